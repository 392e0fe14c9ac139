//! Adapters of the real binary: made, served, and changed from the command line.

mod common;

use std::io::{BufRead, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use common::{PROMPTS, Serving, complaint, done, run, synth};

use serde_json::{Value, json};

#[test]
fn an_adapter_comes_is_merged_and_goes_while_its_model_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = synth(folder.path(), "sql", "lora");
    let root = folder.path().to_str().unwrap();
    let server = Serving::start(&["--adapter-root", root]);
    assert_eq!(done(server.adapter(&["list"])), "no adapters\n");

    let added = done(server.adapter(&["add", &format!("seedling:sql={path}")]));
    assert!(added.starts_with("seedling:sql: LoRA, "), "{added}");
    let model = server.answer("seedling", PROMPTS[0]);
    let beside = server.answer("seedling:sql", PROMPTS[0]);
    assert_ne!(model, beside);

    let merged = done(server.adapter(&["merge", "seedling:sql"]));
    assert!(merged.starts_with("seedling:sql is merged, "), "{merged}");
    let list = done(server.adapter(&["list"]));
    let rows: Vec<&str> = list.lines().collect();
    assert_eq!(rows.len(), 2, "{list}");
    assert!(
        rows[0].starts_with("adapter") && rows[1].contains("merged, "),
        "{list}"
    );
    // Another arithmetic: the change is in weights of 8 bits. What is near is the same text with
    // tokens that are about as likely; the next likely ones are far.
    let (text, logprobs) = server.answer("seedling:sql", PROMPTS[0]);
    assert_eq!(text, beside.0);
    let mut pairs = logprobs.iter().zip(&beside.1);
    assert!(
        pairs.all(|(merged, beside)| (merged - beside).abs() < 0.2),
        "{logprobs:?} {:?}",
        beside.1
    );
    server.answer("seedling:sql", PROMPTS[1]);
    assert_eq!(server.answer("seedling", PROMPTS[0]), model);

    let unmerged = done(server.adapter(&["unmerge", "seedling:sql"]));
    assert_eq!(unmerged, "seedling:sql is beside the weights again\n");
    // To the last bit as before, also what was only asked while it was merged: a server that
    // never merged says the same.
    let other = Serving::start(&["--adapter", &format!("sql={path}")]);
    assert_eq!(server.answer("seedling:sql", PROMPTS[0]), beside);
    for prompt in PROMPTS {
        for model in ["seedling", "seedling:sql"] {
            assert_eq!(
                server.answer(model, prompt),
                other.answer(model, prompt),
                "{model}: {prompt}"
            );
        }
    }
    let error = complaint(server.adapter(&["unmerge", "seedling:sql"]), 1);
    assert!(error.contains("not merged"), "{error}");

    // What runs with it ends with it.
    let body = json!({"model": "seedling:sql", "prompt": "find", "max_tokens": 300, "ignore_eos": true, "stream": true});
    let mut running = server.send("/v1/completions", &body);
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert!(running.read_line(&mut line).unwrap() > 0);
    }
    assert_eq!(
        done(server.adapter(&["rm", "seedling:sql"])),
        "seedling:sql is removed\n"
    );
    let mut rest = String::new();
    running.read_to_string(&mut rest).unwrap();
    assert!(
        rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]"),
        "{rest}"
    );
    assert_eq!(done(server.adapter(&["list"])), "no adapters\n");
}

#[test]
fn an_adapter_is_of_one_of_the_models_that_share_an_engine() {
    let folder = tempfile::tempdir().unwrap();
    let tuned = folder.path().join("tuned.gguf");
    let tuned = tuned.to_str().unwrap();
    done(run(&[
        "synth",
        "--from",
        "seedling",
        "--perturb",
        "layers=3",
        "--seed",
        "1",
        tuned,
    ]));
    let path = synth(folder.path(), "sql", "lora");
    let root = folder.path().to_str().unwrap();
    let args = ["-m", "seedling", "-m", tuned, "--adapter-root", root];
    let server = Serving::start(&args);
    done(server.adapter(&["add", &format!("tuned:sql={path}")]));
    let missing = complaint(server.adapter(&["rm", "seedling:sql"]), 1);
    assert!(missing.contains("seedling:sql"), "{missing}");
    let of_tuned = server.answer("tuned:sql", PROMPTS[0]);
    done(server.adapter(&["add", &format!("sql={path}")]));
    assert_ne!(server.answer("seedling:sql", PROMPTS[0]), of_tuned);
    server.answer("seedling", PROMPTS[0]);

    // An answer may be here before it is counted.
    let counted = "sedge_requests_finished_total{model=\"seedling\"} 3\n";
    let start = Instant::now();
    let mut text = server.metrics();
    while !text.contains(counted) {
        assert!(start.elapsed() < Duration::from_secs(20), "{text}");
        text = server.metrics();
    }
    // The engine's counters once, the models' own each.
    for line in [
        "sedge_adapters_registered{model=\"seedling\"} 2",
        "sedge_request_duration_seconds_count{model=\"seedling\"} 2",
        "sedge_request_duration_seconds_count{model=\"tuned\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    for name in ["sedge_adapters_registered", "sedge_requests_finished_total"] {
        assert!(
            !text.contains(&format!("{name}{{model=\"tuned\"}}")),
            "{name}"
        );
    }
}

#[test]
fn a_server_says_why_it_does_not_take_an_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    let prefix = synth(&inside, "prefix", "prefix");
    let outside = synth(folder.path(), "outside", "lora");
    let server = Serving::start(&["--adapter-root", inside.to_str().unwrap()]);

    let card = done(server.adapter(&["add", "--json", &format!("p={prefix}")]));
    let card: Value = serde_json::from_str(&card).unwrap();
    assert_eq!(
        (&card["id"], &card["positions"]),
        (&json!("seedling:p"), &json!(16))
    );
    let refused = |args: &[&str], what: &str| {
        let error = complaint(server.adapter(args), 1);
        assert!(error.contains(what), "{args:?}: {error}");
    };
    refused(&["add", &format!("x={outside}")], "--adapter-root");
    refused(&["add", &format!("nobody:x={prefix}")], "nobody");
    refused(&["add", &format!("p={prefix}")], "already");
    refused(&["merge", "seedling:p"], "does not merge");
    refused(&["rm", "seedling:no"], "sedge adapter list");
    // Files of another model.
    let bad = synth(&inside, "bad", "lora");
    let config = Path::new(&bad).join("adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"r\": 8", "\"r\": 4")).unwrap();
    refused(&["add", &format!("bad={bad}")], "rank");
    std::fs::remove_file(&config).unwrap();
    refused(&["add", &format!("bad={bad}")], "adapter_config.json");

    let error = complaint(server.adapter(&["add", &format!("a b={prefix}")]), 2);
    assert!(error.contains("1 to 64"), "{error}");
    let nobody = ["adapter", "list", "--server", "http://127.0.0.1:9"];
    assert!(complaint(run(&nobody), 1).contains("try: sedge serve"));
    let error = complaint(run(&["serve", "--adapter-root", "/no/such/folder"]), 1);
    assert!(error.contains("no such folder"), "{error}");
}

#[test]
fn merge_has_two_forms_and_show_needs_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let lora = synth(folder.path(), "lora", "lora");
    let shown = done(run(&["adapter", "show", "--json", &lora]));
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        (&shown["method"], &shown["rank"]),
        (&json!("LoRA"), &json!(8))
    );
    assert!(done(run(&["adapter", "show", &lora])).contains("merges        yes"));
    complaint(
        run(&["adapter", "show", folder.path().to_str().unwrap()]),
        1,
    );

    let file = folder.path().join("merged.gguf");
    let file = file.to_str().unwrap();
    done(run(&["adapter", "merge", "seedling", &lora, "-o", file]));
    done(run(&["show", file]));
    for wrong in [
        &["seedling", &lora][..],
        &["seedling", "-o", file],
        &["seedling:sql", "--type", "q8_0"],
    ] {
        let args: Vec<&str> = ["adapter", "merge"].iter().chain(wrong).copied().collect();
        let error = complaint(run(&args), 2);
        assert!(
            error.contains("MODEL:NAME") && error.contains("--output"),
            "{error}"
        );
    }
}
