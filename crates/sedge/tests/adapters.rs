//! Adapters of the real binary: made, served, and changed from the command line.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

fn sedge(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sedge"));
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    for name in ["SEDGE_API_KEY", "SEDGE_SERVER", "SEDGE_LOG"] {
        command.env_remove(name);
    }
    command
}

/// Standard output of a command that succeeded.
#[track_caller]
fn done(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a command that failed with this code.
#[track_caller]
fn complaint(output: Output, code: i32) -> String {
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{errors}");
    assert!(
        errors.starts_with("sedge: ") && !errors.contains("panicked"),
        "{errors}"
    );
    errors
}

fn run(args: &[&str]) -> Output {
    sedge(args).stderr(Stdio::piped()).output().unwrap()
}

/// Writes a random adapter of the built-in model into `folder/name`.
fn synth(folder: &Path, name: &str, method: &str) -> String {
    let path = folder.join(name).to_str().unwrap().to_owned();
    let args = [
        "synth",
        "--from",
        "seedling",
        "--adapter",
        method,
        "--alpha",
        "64",
        "--seed",
        "3",
        &path,
    ];
    done(run(&args));
    path
}

/// A server that is ended with the test.
struct Serving {
    child: Child,
    address: String,
}

impl Serving {
    fn start(args: &[&str]) -> Serving {
        let all: Vec<&str> = ["serve", "--port", "0"]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        let mut child = sedge(&all).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut greeting = String::new();
        while !greeting.contains("\nrequest ") {
            assert!(out.read_line(&mut greeting).unwrap() > 0, "{greeting}");
        }
        let address = greeting.split("http://").nth(1).unwrap();
        let end = address.find('/').unwrap();
        Serving {
            child,
            address: address[..end].to_owned(),
        }
    }

    /// `sedge adapter …` against this server.
    fn adapter(&self, args: &[&str]) -> Output {
        let mut command = sedge(&["adapter"]);
        command
            .args(args)
            .env("SEDGE_SERVER", format!("http://{}", self.address));
        command.stderr(Stdio::piped()).output().unwrap()
    }

    /// Sends a request and leaves its answer to be read.
    fn send(&self, path: &str, body: &Value) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let body = body.to_string();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .unwrap();
        BufReader::new(stream)
    }

    fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.address
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// Text and tokens' log-probabilities, to the last bit, of a greedy answer.
    fn answer(&self, model: &str, prompt: &str) -> (String, Vec<f64>) {
        let body = json!({
            "model": model, "messages": [{"role": "user", "content": prompt}],
            "temperature": 0, "max_tokens": 24, "logprobs": true,
        });
        let mut answer = String::new();
        let mut stream = self.send("/v1/chat/completions", &body);
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["model"], model);
        let choice = &body["choices"][0];
        let tokens = choice["logprobs"]["content"].as_array().unwrap();
        let logprobs = tokens.iter().map(|t| t["logprob"].as_f64().unwrap());
        let text = choice["message"]["content"].as_str().unwrap();
        (text.to_owned(), logprobs.collect())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const PROMPTS: [&str; 2] = ["find all files larger than 100MB", "count lines in a file"];

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
