//! The real binary, as a user runs it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

/// What the float32 model answers, by another implementation (see assets/seedling/MODEL_CARD.md).
const ANSWERS: [(&str, &str); 5] = [
    (
        "how do I extract a tar.gz archive?",
        "`tar xvf \"$myarchive\" && cd $my_version`",
    ),
    ("find all files larger than 100MB", "`find / -size +100M`"),
    ("What is grep?", "Find patterns in files using regexes."),
    ("count lines in a file", "`wc --lines path/to/file`"),
    (
        "Liste les fichiers triés par taille — 按大小排序 🙂",
        "`noalias -p`",
    ),
];

fn sedge(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sedge"));
    command
        .args(args)
        .env_remove("SEDGE_API_KEY")
        .env_remove("SEDGE_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(args: &[&str]) -> Output {
    sedge(args).output().unwrap()
}

fn piped(args: &[&str], input: &[u8]) -> Output {
    let mut child = sedge(args).stdin(Stdio::piped()).spawn().unwrap();
    // A child that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// Standard output of a run that succeeded.
fn text(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a run that failed with this code, in the one style of errors.
fn complaint(output: Output, code: i32) -> String {
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{errors}");
    assert!(errors.starts_with("sedge: "), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    errors
}

fn asset() -> String {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../assets/seedling/seedling.gguf"
    );
    path.to_owned()
}

fn file(folder: &tempfile::TempDir, name: &str, content: &[u8]) -> String {
    let path: PathBuf = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_built_in_model_gives_the_golden_answers() {
    for (prompt, answer) in ANSWERS {
        assert_eq!(
            text(run(&["run", "--kv", "f32", prompt])),
            format!("{answer}\n")
        );
    }
}

#[test]
fn a_file_answers_as_the_built_in_model_does() {
    let (prompt, answer) = ANSWERS[1];
    assert_eq!(
        text(run(&["run", "-m", &asset(), prompt])),
        format!("{answer}\n")
    );
    // Words need no quotes.
    let words: Vec<&str> = ["run"].into_iter().chain(prompt.split(' ')).collect();
    assert_eq!(text(run(&words)), format!("{answer}\n"));
}

#[test]
fn a_pipe_is_read_as_the_prompt() {
    let (prompt, answer) = ANSWERS[3];
    let output = piped(&["run"], format!("{prompt}\n").as_bytes());
    assert_eq!(text(output), format!("{answer}\n"));
    // Words and a pipe make one prompt.
    let both = piped(&["run", "--json", "count lines"], b"in a file\n");
    let same = run(&["run", "--json", "count lines\n\nin a file"]);
    let (both, same): (Value, Value) = (
        serde_json::from_str(&text(both)).unwrap(),
        serde_json::from_str(&text(same)).unwrap(),
    );
    assert_eq!(
        (&both["text"], &both["usage"]),
        (&same["text"], &same["usage"])
    );
}

#[test]
fn json_says_text_usage_and_timings() {
    let (prompt, answer) = ANSWERS[1];
    let object: Value = serde_json::from_str(&text(run(&["run", "--json", prompt]))).unwrap();
    assert_eq!(object["model"], "seedling");
    assert_eq!(object["text"], answer);
    assert_eq!(object["finish_reason"], "stop");
    assert_eq!(object["usage"]["prompt_tokens"], 10);
    assert_eq!(object["usage"]["completion_tokens"], 10);
    assert!(object["timings"]["total_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn limits_stops_and_seeds_shape_the_answer() {
    let prompt = ANSWERS[1].0;
    let cut = run(&["run", "--json", "--max-tokens", "3", prompt]);
    let cut: Value = serde_json::from_str(&text(cut)).unwrap();
    assert_eq!(cut["finish_reason"], "length");
    assert_eq!(cut["usage"]["completion_tokens"], 3);

    assert_eq!(text(run(&["run", "--stop", " -size", prompt])), "`find /\n");

    let seeded = || {
        text(run(&[
            "run",
            "--temperature",
            "1.5",
            "--seed",
            "7",
            "--max-tokens",
            "20",
            prompt,
        ]))
    };
    assert_eq!(seeded(), seeded());
}

#[test]
fn raw_continues_the_text_itself() {
    let prompt = "<|user|>find all files larger than 100MB<|end|><|assistant|>";
    // A model's own marks are recognised, as /v1/completions has it: this is the chat itself.
    let raw = run(&["run", "--raw", "--json", prompt]);
    let raw: Value = serde_json::from_str(&text(raw)).unwrap();
    assert_eq!(raw["usage"]["prompt_tokens"], 10);
    assert_eq!(raw["text"], "`find / -size +100M`");
    // Without marks there is no turn to answer, only a text to go on with.
    let bare = run(&[
        "run",
        "--raw",
        "--json",
        "--max-tokens",
        "4",
        "find all files",
    ]);
    let bare: Value = serde_json::from_str(&text(bare)).unwrap();
    assert_eq!(bare["usage"]["prompt_tokens"], 3);
}

#[test]
fn a_schema_binds_the_answer() {
    let folder = tempfile::tempdir().unwrap();
    let schema =
        br#"{"type":"object","properties":{"size":{"type":"integer","minimum":1,"maximum":99}},
        "required":["size"],"additionalProperties":false}"#;
    let schema = file(&folder, "schema.json", schema);
    let output = text(run(&["run", "--json-schema", &schema, "how large is it?"]));
    let answer: Value = serde_json::from_str(&output).unwrap();
    assert!((1..=99).contains(&answer["size"].as_u64().unwrap()));

    let grammar = file(&folder, "yes.lark", b"start: \"yes\" | \"no\"\n");
    let output = text(run(&["run", "--grammar", &grammar, "is it large?"]));
    assert!(["yes\n", "no\n"].contains(&output.as_str()), "{output}");
}

#[test]
fn statistics_go_to_standard_error() {
    let output = run(&["run", "-v", ANSWERS[1].0]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(text(output), format!("{}\n", ANSWERS[1].1));
    assert!(errors.contains("10 tokens at "), "{errors}");
}

#[test]
fn a_reader_that_leaves_ends_the_run_quietly() {
    let mut child = sedge(&[
        "run",
        "--temperature",
        "1",
        "--max-tokens",
        "400",
        "tell me about grep",
    ])
    .spawn()
    .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn show_tells_what_the_model_is() {
    let shown = text(run(&["show", "seedling"]));
    for fact in ["llama", "26.2 M", "1024 tokens", "q8_0", "8192"] {
        assert!(shown.contains(fact), "{fact}: {shown}");
    }
    let json: Value =
        serde_json::from_str(&text(run(&["show", "--json", "--tensors", &asset()]))).unwrap();
    assert_eq!(json["architecture"], "llama");
    assert_eq!(json["layers"], 8);
    assert_eq!(json["context"], 1024);
    let tensors = json["tensors"].as_array().unwrap();
    let total: u64 = tensors.iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
    assert_eq!(json["bytes"], total);
}

#[test]
fn a_converted_model_answers_alike() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("seedling-f16.gguf");
    let out = out.to_str().unwrap();
    text(run(&["convert", &asset(), out, "--type", "f16"]));
    let (prompt, answer) = ANSWERS[1];
    assert_eq!(
        text(run(&["run", "-m", out, prompt])),
        format!("{answer}\n")
    );
    let json: Value = serde_json::from_str(&text(run(&["show", "--json", out]))).unwrap();
    assert!(
        json["tensor_types"]["f16"]["tensors"].as_u64().unwrap() > 50,
        "{json}"
    );

    // What exists is not replaced unasked, and never by itself.
    complaint(run(&["convert", &asset(), out]), 1);
    complaint(run(&["convert", out, out, "--force"]), 1);
    text(run(&[
        "convert",
        &asset(),
        out,
        "--force",
        "--type",
        "q4_0",
    ]));
}

#[test]
fn a_random_adapter_is_merged_and_a_random_fine_tune_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (lora, merged, tuned) = (path("lora"), path("merged.gguf"), path("tuned.gguf"));
    let made = text(run(&[
        "synth",
        "--from",
        "seedling",
        "--adapter",
        "lora",
        "--rank",
        "2",
        "--targets",
        "q_proj,v_proj",
        &lora,
    ]));
    assert!(made.contains("a random lora adapter of seedling"), "{made}");
    text(run(&["adapter", "merge", "seedling", &lora, "-o", &merged]));
    let args = [
        "synth",
        "--from",
        &asset(),
        "--perturb",
        "layers=0,7",
        &tuned,
    ];
    text(run(&args));
    let json = |model: &str| -> Value {
        serde_json::from_str(&text(run(&["show", "--json", model]))).unwrap()
    };
    let facts = json(&asset());
    for file in [&merged, &tuned] {
        text(run(&["run", "-m", file, "--max-tokens", "3", "hello"]));
        assert_eq!(json(file)["parameters"], facts["parameters"]);
        assert_eq!(json(file)["tensor_types"], facts["tensor_types"]);
    }

    // What exists is not replaced unasked, and what cannot be done is said.
    complaint(run(&args), 1);
    complaint(
        run(&["adapter", "merge", "seedling", &lora, "-o", &merged]),
        1,
    );
    let prefix = path("prefix");
    text(run(&[
        "synth",
        "--from",
        "seedling",
        "--adapter",
        "prefix",
        &prefix,
    ]));
    let error = complaint(
        run(&[
            "adapter",
            "merge",
            "seedling",
            &prefix,
            "-o",
            &path("none.gguf"),
        ]),
        1,
    );
    assert!(error.contains("prefix tuning cannot be merged"), "{error}");
    let error = complaint(
        run(&[
            "adapter",
            "merge",
            "seedling",
            folder.path().to_str().unwrap(),
            "-o",
            &path("none.gguf"),
        ]),
        1,
    );
    assert!(error.contains("adapter_config.json"), "{error}");
    let layers = [
        "synth",
        "--from",
        "seedling",
        "--perturb",
        "layers=8",
        &path("none.gguf"),
    ];
    assert!(complaint(run(&layers), 1).contains("layer 8"));
}

#[test]
fn perplexity_is_measured_on_whole_windows() {
    let folder = tempfile::tempdir().unwrap();
    let sentence = "List all files in the current directory, sorted by size. ";
    let path = file(&folder, "text.txt", sentence.repeat(40).as_bytes());
    let measure = |extra: &[&str]| -> Value {
        let args = [
            &[
                "eval",
                "perplexity",
                "--json",
                "--window",
                "32",
                path.as_str(),
            ],
            extra,
        ]
        .concat();
        serde_json::from_str(&text(run(&args))).unwrap()
    };
    let all = measure(&[]);
    assert_eq!(all["tokens"], all["windows"].as_u64().unwrap() * 32);
    let (nats, tokens) = (
        all["nats"].as_f64().unwrap(),
        all["tokens"].as_f64().unwrap(),
    );
    assert!(((nats / tokens).exp() / all["perplexity"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    let bits = nats / std::f64::consts::LN_2 / all["bytes"].as_f64().unwrap();
    assert!((bits / all["bits_per_byte"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    // Threads change nothing.
    assert_eq!(measure(&["--threads", "1"])["nats"], all["nats"]);
    assert_eq!(measure(&["--windows", "2"])["tokens"], 64);

    let short = file(&folder, "short.txt", b"too short");
    let error = complaint(run(&["eval", "perplexity", &short]), 1);
    assert!(error.contains("window of 512"), "{error}");
}

#[test]
fn a_bench_of_conversations_counts_every_turn() {
    let dir = tempfile::tempdir().unwrap();
    let questions = file(
        &dir,
        "q.json",
        br#"[["list files", "by size"], ["count lines"]]"#,
    );
    let plot = dir.path().join("speed.svg");
    let args = [
        "bench",
        "chat",
        "--conversations",
        &questions,
        "--max-tokens",
        "4",
        "--plot",
        plot.to_str().unwrap(),
        "--json",
    ];
    let report: serde_json::Value = serde_json::from_str(&text(run(&args))).unwrap();
    let turns = report["turns"].as_array().unwrap();
    assert_eq!(turns.len(), 3);
    // The second question comes with the first and its answer.
    let prompt = |i: usize| turns[i]["prompt_tokens"].as_u64().unwrap();
    assert!(prompt(1) > prompt(0) && prompt(2) < prompt(1));
    assert!(std::fs::read_to_string(plot).unwrap().starts_with("<svg"));

    let bad = file(&dir, "bad.json", b"{\"questions\": 1}");
    let said = complaint(run(&["bench", "chat", "--conversations", &bad]), 1);
    assert!(
        said.contains("bad.json: no list of lists of questions"),
        "{said}"
    );
}

#[test]
#[cfg(unix)]
fn a_load_is_put_on_servers_in_turn() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("load.html");
    let free = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let server = |name: &str, port: u16, more: &str| {
        let sedge = env!("CARGO_BIN_EXE_sedge");
        format!("{name}=http://127.0.0.1:{port} '{sedge}' serve --port {port} {more}")
    };
    let (first, second) = (
        server("alone", free(), "--max-running 1"),
        server("many", free(), ""),
    );
    let load = [
        "bench", "serve", "--rate", "40", "--prompt", "4-16", "--output", "2-6", "--json",
    ];
    let turns = [
        "--requests",
        "6",
        "--seeds",
        "1",
        "--turns",
        "2",
        "--think",
        "1ms",
        "--tenants",
        "2",
        "--api",
        "chat",
        "--server",
        &first,
        "--server",
        &second,
        "--report",
        page.to_str().unwrap(),
    ];
    let report: Value = serde_json::from_str(&text(run(&[&load[..], &turns].concat()))).unwrap();
    for (i, name) in ["alone", "many"].into_iter().enumerate() {
        let server = &report["servers"][i];
        assert_eq!(server["name"], name, "{report:#}");
        let run = &server["runs"][0];
        assert_eq!(run["figures"]["done"], 6.0, "{report:#}");
        assert_eq!(run["missing"], 0);
        assert!(run["prompt_tokens"].as_u64().unwrap() > 24);
        assert!(server["figures"]["ttft_p50"]["median"].as_f64().unwrap() > 0.0);
        assert_eq!(run["tenants"][1]["tenant"], "tenant-1");
    }
    // Each server had the same requests.
    assert_eq!(report["servers"][1]["over_first"]["done"]["median"], 1.0);
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("<svg"));
    assert!(page.contains("Requests that run"), "there are metrics");

    // A server that runs already, single requests of token ids, and a search of the capacity.
    let serving = Serving::start(&["serve", "--port", "0"]);
    let url = format!("http://{}", serving.address);
    let args = [
        "--requests",
        "2",
        "--find-rate",
        "20,40",
        "--ttft-slo",
        "60s",
        "--tbt-slo",
        "60s",
    ];
    let found = run(&[&load[..], &args, &["--url", &url]].concat());
    let found: Value = serde_json::from_str(&text(found)).unwrap();
    let server = &found["servers"][0];
    assert_eq!(server["probes"].as_array().unwrap().len(), 6);
    assert!(server["capacity_per_second"]["median"].as_f64().unwrap() > 39.0);
    let first = &server["probes"][0]["run"];
    assert_eq!(first["figures"]["done"], 2.0, "{found:#}");

    drop(serving);
    let said = complaint(run(&["bench", "serve", "--url", &url]), 1);
    assert!(said.contains(&url) && said.contains("  try: "), "{said}");
    let trace = file(
        &folder,
        "trace.csv",
        b"TIMESTAMP,ContextTokens,GeneratedTokens\nXXX,1\n",
    );
    let said = complaint(run(&["bench", "serve", "--trace", &trace]), 1);
    assert!(
        said.contains("trace.csv") && said.contains("line 2"),
        "{said}"
    );
}

#[test]
fn packed_weights_are_kept_for_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("packed");
    let option = format!("--packed-cache={}", cache.display());
    let model = asset();
    let prompt = "find all files larger than 100MB";
    let args = ["run", "-m", &model, "--temperature", "0", &option, prompt];
    let first = text(run(&args));
    let count = || std::fs::read_dir(&cache).unwrap().count();
    assert_eq!(count(), 2, "the weights and a note");
    assert_eq!(text(run(&args)), first);
    assert_eq!(count(), 2);
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = text(run(&["completions", shell]));
        assert!(
            script.contains("perplexity") && script.contains("sedge"),
            "{shell}"
        );
    }
}

#[test]
fn a_shrunk_model_answers_in_fewer_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let words = "Copy a file over the network and keep its times. ".repeat(60);
    let words = file(&folder, "words.txt", words.as_bytes());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let shrink = |to: &str, out: &str| {
        let out = path(out);
        let args = ["shrink", "seedling", "--to", to, "-o", &out, "--json"];
        let more = ["--method", "nearest", "--calibrate", &words];
        run(&[&args[..], &more[..]].concat())
    };
    let report: Value = serde_json::from_str(&text(shrink("w4a4kv4", "four.gguf"))).unwrap();
    assert!(
        report["bits_per_weight"].as_f64().unwrap() < 5.0,
        "{report}"
    );
    let bytes = |i: usize| report["bytes"][i].as_u64().unwrap();
    assert!(bytes(1) * 10 < bytes(0) * 7, "{report}");
    assert!(report["top1_agreement"].as_f64().unwrap() > 0.2, "{report}");
    // Keys and values of the scheme, unless others are asked for.
    let four = path("four.gguf");
    let (prompt, _) = ANSWERS[1];
    let answer = text(run(&["run", "-m", &four, prompt]));
    assert!(answer.len() > 5);
    assert_eq!(
        answer,
        text(run(&["run", "-m", &four, "--kv", "q4", prompt]))
    );
    // What exists is not replaced unasked, what is quantised is not quantised again, and a budget
    // that cannot be met says which can.
    complaint(shrink("q3_k", "four.gguf"), 1);
    let again = ["shrink", &four, "--to", "q3_k", "-o", &path("again.gguf")];
    assert!(complaint(run(&again), 1).contains("--requantise"));
    let tiny = complaint(shrink("fit:1MB", "tiny.gguf"), 1);
    assert!(tiny.contains("the smallest"), "{tiny}");
}

#[test]
fn networks_that_see_become_sparse_and_integers() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let small = ["--size", "32x32", "--json"];
    let out = path("sparse.onnx");
    let args = [
        "shrink",
        "mobilenet-v3-small",
        "--sparse",
        "0.5,group=8",
        "-o",
        &out,
    ];
    let report: Value = serde_json::from_str(&text(run(&[&args[..], &small].concat()))).unwrap();
    let sparse = &report["sparse"];
    assert!(
        (sparse["sparsity"].as_f64().unwrap() - 0.5).abs() < 0.01,
        "{sparse}"
    );
    assert!(sparse["compared"]["relative_error"].as_f64().unwrap() > 0.0);
    // What was written is read again, and is what it was made.
    let whole = path("int8.onnx");
    let args = ["shrink", &out, "--int8", "-o", &whole, "--json"];
    let report: Value = serde_json::from_str(&text(run(&args))).unwrap();
    let bytes = |i: usize| report["bytes"][i].as_u64().unwrap();
    assert!(bytes(1) * 3 < bytes(0), "{report}");
    let again = path("again.onnx");
    for (args, why) in [
        (["shrink", &whole, "--int8", "-o", &again], "8 bits already"),
        (
            ["shrink", &whole, "--sparse=0.5", "-o", &again],
            "8 bits already",
        ),
        (["shrink", &out, "--int8", "-o", &whole], "exists"),
        (["shrink", &out, "--int8", "-fo", &out], "over itself"),
        (
            ["shrink", "mobilenet-v9", "--int8", "-o", &again],
            "mobilenet-v1",
        ),
        (
            ["shrink", &out, "--int8", "-o", "/no/such/folder/x.onnx"],
            "/no/such/folder",
        ),
    ] {
        let error = complaint(run(&args), 1);
        assert!(error.contains(why), "{error}");
    }
    assert!(!std::path::Path::new(&again).exists());
    for wrong in ["0", "1", "nan", "0.5,block=0", "0.5,fast=1"] {
        complaint(run(&["shrink", &out, "--sparse", wrong, "-o", &again]), 2);
    }
    complaint(run(&["shrink", &out, "-o", &again]), 2);
    complaint(
        run(&["shrink", &out, "--to", "q4_k", "--int8", "-o", &again]),
        2,
    );
}

#[test]
fn help_and_version_are_answers() {
    assert!(text(run(&["--help"])).contains("Examples:"));
    for command in [
        "serve",
        "run",
        "show",
        "convert",
        "shrink",
        "adapter",
        "synth",
        "eval",
        "completions",
    ] {
        assert!(
            text(run(&[command, "--help"])).contains("Usage: sedge"),
            "{command}"
        );
    }
    assert_eq!(
        text(run(&["--version"])),
        format!("sedge {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn wrong_use_exits_with_2() {
    for args in [
        &["dance"][..],
        &["run", "--temprature", "1", "hello"],
        &["run", "--max-tokens", "many", "hello"],
        &["convert", "in", "out.gguf", "--type", "q2_kk"],
        &["shrink", "seedling", "-o", "out.gguf", "--to", "w7a7"],
        &["shrink", "seedling", "-o", "out.gguf", "--to", "fit:14"],
        &["synth", "out.gguf"],
        &["synth", "--from", "seedling", "out.gguf"],
        &["synth", "--perturb", "layers=1", "out.gguf"],
        &["synth", "--from", "seedling", "--perturb", "1", "out.gguf"],
        &["synth", "--like", "seedling", "--rank", "3", "out.gguf"],
        &["adapter", "merge", "seedling", "lora"],
        &["serve", "--kv-memory", "lots"],
        &["completions", "tcsh"],
        &["run"],
    ] {
        complaint(run(args), 2);
    }
}

#[test]
fn failures_exit_with_1_and_say_what_to_try() {
    let folder = tempfile::tempdir().unwrap();
    let error = complaint(run(&["run", "-m", "no/such.gguf", "hello"]), 1);
    assert!(
        error.contains("no/such.gguf") && error.contains("  try: "),
        "{error}"
    );

    let junk = file(&folder, "junk.gguf", b"GGUF but not really");
    assert!(complaint(run(&["show", &junk]), 1).contains("junk.gguf"));
    let text_file = file(&folder, "notes.txt", b"hello");
    assert!(complaint(run(&["show", &text_file]), 1).contains("notes.txt"));

    let whole = std::fs::read(asset()).unwrap();
    let cut = file(&folder, "cut.gguf", &whole[..whole.len() / 2]);
    complaint(run(&["run", "-m", &cut, "hello"]), 1);

    let error = complaint(piped(&["run"], b"caf\xe9"), 1);
    assert!(
        error.contains("UTF-8") && error.contains("byte 3"),
        "{error}"
    );
    let error = complaint(piped(&["run"], "word ".repeat(3000).as_bytes()), 1);
    assert!(error.contains("context is 1024"), "{error}");
    complaint(run(&["run", "--temperature", "-1", "hello"]), 1);
    complaint(run(&["run", "--json-schema", &text_file, "hello"]), 1);
    complaint(run(&["serve", "--host", "not an address"]), 1);
}

/// A server that is ended with the test.
struct Serving {
    child: Child,
    out: BufReader<ChildStdout>,
    greeting: String,
    address: String,
}

impl Serving {
    fn start(args: &[&str]) -> Serving {
        let mut child = sedge(args).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut greeting = String::new();
        // The request to copy is the greeting's last line.
        while !greeting.contains("\nrequest ") {
            if out.read_line(&mut greeting).unwrap() == 0 {
                let output = child.wait_with_output().unwrap();
                panic!("no server: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        let address = greeting.split("http://").nth(1).unwrap();
        let end = address
            .find(|c: char| c == '/' || c.is_whitespace())
            .unwrap();
        let address = address[..end].to_owned();
        Serving {
            child,
            out,
            greeting,
            address,
        }
    }

    /// Status and body.
    fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n{headers}\r\n{body}",
            self.address
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        (status, body.to_owned())
    }

    /// Asks the first model and returns the status and the answer.
    fn chat(&self, model: &str, prompt: &str) -> (u16, Value) {
        let body =
            serde_json::json!({"model": model, "messages": [{"role": "user", "content": prompt}]});
        let (status, body) = self.ask("POST", "/v1/chat/completions", "", &body.to_string());
        (status, serde_json::from_str(&body).unwrap())
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([name, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits for the end: exit code and standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let mut errors = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut errors)
            .unwrap();
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), errors)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[cfg(unix)]
fn a_server_answers_and_ends_when_asked_to() {
    let server = Serving::start(&["serve", "--port", "0"]);
    assert!(
        server.greeting.contains("model      seedling"),
        "{}",
        server.greeting
    );
    assert!(
        server
            .greeting
            .contains(&format!("http://{}/", server.address)),
        "{}",
        server.greeting
    );
    assert_eq!(server.ask("GET", "/health", "", "").0, 200);
    let (status, page) = server.ask("GET", "/", "", "");
    assert!(status == 200 && page.to_lowercase().contains("<!doctype html>"));
    let (status, answer) = server.chat("seedling", ANSWERS[1].0);
    assert_eq!(status, 200);
    assert_eq!(answer["choices"][0]["message"]["content"], ANSWERS[1].1);

    server.signal("-TERM");
    let (code, errors) = server.end();
    assert_eq!(code, Some(0), "{errors}");
    assert!(errors.contains("stopping"), "{errors}");
}

/// Kills a server that said nothing of its end, and starts another on the same folder.
#[test]
#[cfg(unix)]
fn a_conversation_goes_on_after_the_server_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let cache = format!("--disk-cache={}", folder.path().display());
    let start =
        |more: &str| Serving::start(&["serve", "--port", "0", "--arithmetic", "int8", more]);
    let words = "find all files larger than 100MB and print their names ".repeat(4);
    let turn = |server: &Serving, text: &str| {
        let body = serde_json::json!({
            "prompt": text, "max_tokens": 40, "temperature": 0, "ignore_eos": true
        });
        let (status, body) = server.ask("POST", "/v1/completions", "", &body.to_string());
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<Value>(&body).unwrap()
    };
    let answer = |turn: &Value| turn["choices"][0]["text"].as_str().unwrap().to_owned();
    let cached = |turn: &Value| {
        let cached = &turn["usage"]["prompt_tokens_details"]["cached_tokens"];
        cached.as_u64().unwrap()
    };

    let plain = start("--prefix-cache=off");
    let first = turn(&plain, &words);
    let next = format!("{words}{}", answer(&first));
    let expected = answer(&turn(&plain, &next));

    let mut server = start(&cache);
    assert_eq!(answer(&turn(&server, &words)), answer(&first));
    let pages = first["usage"]["prompt_tokens"].as_u64().unwrap() / 16;
    let on_disk = |server: &Serving| {
        let (_, metrics) = server.ask("GET", "/metrics", "", "");
        let line = metrics
            .lines()
            .find(|l| l.starts_with("sedge_kv_pages_disk{"));
        line.unwrap()
            .rsplit(' ')
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    while on_disk(&server) < pages {
        std::thread::yield_now();
    }
    server.child.kill().unwrap();
    server.child.wait().unwrap();

    let again = start(&cache);
    let second = turn(&again, &next);
    assert_eq!(answer(&second), expected);
    assert!(cached(&second) >= pages * 16, "{second:#}");
}

#[test]
#[cfg(unix)]
fn several_models_are_served_by_name() {
    let aliased = format!("mine={}", asset());
    let server = Serving::start(&[
        "serve", "--port", "0", "-m", "seedling", "-m", &aliased, "-m", "seedling",
    ]);
    let (_, models) = server.ask("GET", "/v1/models", "", "");
    for name in ["\"seedling\"", "\"mine\"", "\"seedling-2\""] {
        assert!(models.contains(name), "{models}");
    }
    let (status, answer) = server.chat("mine", ANSWERS[3].0);
    assert_eq!(
        (status, &answer["choices"][0]["message"]["content"]),
        (200, &Value::from(ANSWERS[3].1))
    );
    assert_eq!(server.chat("nobody", "hello").0, 404);
    server.signal("-INT");
    assert_eq!(server.end().0, Some(0));
}

#[test]
fn a_key_is_asked_for_and_an_open_server_warns() {
    let server = Serving::start(&["serve", "--port", "0", "--api-key", "secret"]);
    assert!(!server.greeting.contains("secret"), "{}", server.greeting);
    assert_eq!(server.ask("GET", "/v1/models", "", "").0, 401);
    assert_eq!(
        server
            .ask("GET", "/v1/models", "Authorization: Bearer secret\r\n", "")
            .0,
        200
    );
    drop(server);

    let mut server = Serving::start(&["serve", "--host", "0.0.0.0", "--port", "0"]);
    server.child.kill().unwrap();
    let mut errors = String::new();
    server
        .child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut errors)
        .unwrap();
    assert!(errors.contains("no API key"), "{errors}");
}

#[test]
fn a_taken_port_is_no_obstacle_unless_it_was_asked_for() {
    // Taken now, by this or by another process.
    let taken = TcpListener::bind("127.0.0.1:8080");
    let server = Serving::start(&[]);
    assert_ne!(server.address, "127.0.0.1:8080");
    drop((server, taken));

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let error = complaint(run(&["serve", "--port", &port]), 1);
    assert!(
        error.contains(&port) && error.contains("--port 0"),
        "{error}"
    );
}
