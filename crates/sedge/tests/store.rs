//! The store through the real binary: pulled, killed, resumed, served, damaged, shared by
//! processes.

#[path = "../../store/tests/support/hub.rs"]
mod hub;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hub::{Action, Gate, Hub, safetensors};
use serde_json::Value;

/// A user with a hub and an empty home.
struct User {
    hub: Hub,
    dir: tempfile::TempDir,
}

impl User {
    fn new() -> User {
        User {
            hub: Hub::start(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("sedge")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sedge"));
        command
            .args(args)
            .env_remove("SEDGE_LOG")
            .env_remove("HF_TOKEN")
            .env_remove("HF_HUB_OFFLINE")
            .env_remove("SSL_CERT_FILE")
            .env("NO_PROXY", "127.0.0.1")
            .env("HF_ENDPOINT", self.hub.endpoint())
            .env("HF_HOME", self.dir.path().join("hf"))
            .env_remove("HF_HUB_CACHE")
            .env("SEDGE_HOME", self.home())
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn start(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    /// Standard output of a run that succeeded.
    fn text(&self, args: &[&str]) -> String {
        text(self.run(args))
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.text(args)).unwrap()
    }

    /// Standard error of a run that failed, in the one style of errors.
    fn complaint(&self, args: &[&str], code: i32) -> String {
        let output = self.run(args);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{errors}");
        assert!(errors.starts_with("sedge: "), "{errors}");
        assert!(errors.contains("\n  try: "), "{errors}");
        assert!(!errors.contains("panicked"), "{errors}");
        errors
    }

    /// A model of 3 MB that no architecture runs: it can be pulled, not opened.
    fn weights(&self) -> Vec<u8> {
        let names: Vec<String> = (0..12).map(|i| format!("layer.{i}")).collect();
        let tensors: Vec<(&str, u64)> = names
            .iter()
            .zip(1..)
            .map(|(name, seed)| (name.as_str(), seed))
            .collect();
        let weights = safetensors(&tensors, 64 << 10);
        self.hub.small("config.json", "{}");
        self.hub.large("model.safetensors", weights.clone());
        weights
    }
}

fn text(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    assert_eq!(errors, "", "quiet in pipes");
    String::from_utf8(output.stdout).unwrap()
}

fn seedling() -> Vec<u8> {
    std::fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../assets/seedling/seedling.gguf"
    ))
    .unwrap()
}

const PROMPT: &str = "find all files larger than 100MB";
const ANSWER: &str = "`find / -size +100M`\n";

#[test]
fn a_pulled_model_answers_by_its_name_as_its_file_does() {
    let user = User::new();
    user.hub.large("tiny-Q8_0.gguf", seedling());
    let pulled = user.text(&["pull", "hf:org/tiny-GGUF:Q8_0"]);
    assert!(
        pulled.starts_with("tiny-Q8_0: model, 74 tensors, 26.9 MiB; 26.9 MiB fetched in "),
        "{pulled}"
    );
    assert_eq!(user.text(&["run", "-m", "tiny-Q8_0", PROMPT]), ANSWER);
    assert_eq!(
        user.text(&["run", "-m", "tiny-Q8_0", "--arithmetic", "f32", PROMPT]),
        ANSWER
    );
    let shown = user.text(&["show", "tiny-Q8_0"]);
    assert!(
        shown.contains(&format!("hf:org/tiny-GGUF:Q8_0 at {}", hub::COMMIT)),
        "{shown}"
    );
    assert_eq!(
        user.json(&["show", "--json", "tiny-Q8_0"])["container"],
        "gguf"
    );

    // What is not it, says what may be meant.
    let errors = user.complaint(&["run", "-m", "tiny-q8", PROMPT], 1);
    assert!(
        errors.contains("tiny-Q8_0") && errors.contains("sedge pull"),
        "{errors}"
    );
    let errors = user.complaint(&["show", "nothing-like-it"], 1);
    assert!(errors.contains("sedge pull"), "{errors}");
    // A path that exists is a path.
    std::fs::write(user.dir.path().join("tiny-Q8_0"), "no model").unwrap();
    let output = user.run(&["show", "tiny-Q8_0"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_folder_is_stored_and_opened_as_it_lies() {
    let user = User::new();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/golden");
    let Ok(folders) = std::fs::read_dir(golden) else {
        panic!("{golden} is there")
    };
    let mut compared = 0;
    for folder in folders.flatten().map(|entry| entry.path()) {
        if !folder.join("config.json").is_file() || !folder.join("model.safetensors").is_file() {
            continue;
        }
        let name = format!("m{compared}");
        let path = folder.to_str().unwrap();
        user.text(&["pull", path, "--name", &name]);
        let (stored, own) = (
            user.run(&["show", "--json", "--tensors", &name]),
            user.run(&["show", "--json", "--tensors", path]),
        );
        assert_eq!(stored.status.code(), own.status.code(), "{path}");
        if stored.status.success() {
            let mut stored: Value = serde_json::from_slice(&stored.stdout).unwrap();
            let mut own: Value = serde_json::from_slice(&own.stdout).unwrap();
            for object in [&mut stored, &mut own] {
                let object = object.as_object_mut().unwrap();
                for key in ["name", "source", "revision"] {
                    object.remove(key);
                }
            }
            assert_eq!(stored, own, "{path}");
        }
        compared += 1;
    }
    assert!(compared > 0, "there are folders in {golden}");
}

#[test]
fn a_killed_pull_leaves_a_store_that_holds_and_goes_on_where_it_was() {
    let user = User::new();
    user.hub.small("config.json", "{}");
    user.hub
        .large("model.safetensors", safetensors(&[("a", 1)], 256));
    user.text(&["pull", "hf:org/first"]);
    let weights = user.weights();
    let gate = Arc::new(Gate::default());
    let (count, at) = (AtomicUsize::new(0), gate.clone());
    user.hub.script(move |request| {
        match request.cdn && count.fetch_add(1, Ordering::SeqCst) == 1 {
            // The first request was for the header; in this one, 1.5 MB more come.
            true => Action::Hold(1_500_000, at.clone()),
            false => Action::Serve,
        }
    });
    let mut child = user.start(&["pull", "hf:org/tiny"]);
    gate.wait_for(1);
    // All of it has been sent, and at least the whole megabytes of it are written down soon.
    let journal = user
        .home()
        .join("partial")
        .join(hub::sha256(&weights))
        .join("journal");
    while std::fs::read_to_string(&journal).is_ok_and(|text| text.lines().count() < 2)
        || !journal.exists()
    {
        std::thread::yield_now();
    }
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    gate.open();

    assert!(user.text(&["verify"]).contains("all as they should be"));
    let list = user.json(&["list", "--json"]);
    assert_eq!(list["stored"].as_array().unwrap().len(), 1);
    assert!(list["partial"].as_u64().unwrap() > 2_000_000, "{list}");
    assert!(user.text(&["gc"]).contains(" 0 interrupted pulls"));

    user.hub.script(|_| Action::Serve);
    user.hub.log();
    let pulled = user.json(&["pull", "hf:org/tiny", "--json"]);
    assert_eq!(pulled["tensors"], 12);
    assert_eq!(pulled["revision"], hub::COMMIT);
    let fetched = pulled["fetched"].as_u64().unwrap();
    assert!(fetched < weights.len() as u64 - 2_000_000, "{fetched}");
    assert!(user.text(&["verify"]).contains("all as they should be"));
    let list = user.json(&["list", "--json"]);
    assert_eq!((&list["partial"], &list["unused"]), (&0.into(), &0.into()));
    // What was given up is freed when that is asked for.
    assert!(user.text(&["gc", "--partial"]).starts_with("0 B freed"));
}

#[test]
fn two_processes_pull_list_and_collect_at_once() {
    let user = User::new();
    let gate = Arc::new(Gate::default());
    let at = gate.clone();
    user.weights();
    user.hub.script(
        move |request| match request.path.starts_with("/api/models/org/tiny") {
            true => Action::Hold(1, at.clone()),
            false => Action::Serve,
        },
    );
    let pulling = user.start(&["pull", "hf:org/tiny"]);
    gate.wait_for(1);
    let errors = user.complaint(&["gc", "--partial"], 1);
    assert!(errors.contains("uses the store"), "{errors}");
    // Others come and go meanwhile.
    let others: Vec<Child> = (0..6)
        .map(|i| user.start(&["pull", "hf:org/other", "--name", &format!("other-{i}")]))
        .collect();
    for child in others {
        text(child.wait_with_output().unwrap());
    }
    user.text(&["rm", "other-0", "other-1"]);
    gate.open();
    text(pulling.wait_with_output().unwrap());
    let list = user.json(&["list", "--json"]);
    let names: Vec<&str> = list["stored"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stored| stored["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["other-2", "other-3", "other-4", "other-5", "tiny"]);
    assert_eq!(list["bytes"], 12 * (256 << 10) + 2);
    user.text(&["rm", "tiny", "other-2", "other-3", "other-4"]);
    user.text(&["gc"]);
    assert_eq!(
        user.json(&["list", "--json"])["bytes"],
        12 * (256 << 10) + 2
    );
    assert!(
        user.text(&["rm", "other-5"])
            .contains("sedge gc frees 3.0 MiB")
    );
    assert!(
        user.text(&["gc"])
            .starts_with("3.0 MiB freed: 13 unused blobs")
    );
    assert!(user.text(&["list"]).starts_with("nothing is stored"));
}

#[test]
fn what_verify_finds_the_next_pull_repairs() {
    let user = User::new();
    user.weights();
    user.text(&["pull", "hf:org/tiny"]);
    let blob = largest(&user.home().join("blobs"));
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[7] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let errors = user.complaint(&["verify"], 1);
    assert!(
        errors.contains("wrong content, used by tiny")
            && errors.contains("try: sedge pull hf:org/tiny --name tiny"),
        "{errors}"
    );
    let errors = user.complaint(&["show", "tiny"], 1);
    assert!(
        errors.contains("1 of its blobs are missing")
            && errors.contains("try: sedge pull hf:org/tiny --name tiny"),
        "{errors}"
    );
    let pulled = user.json(&["pull", "hf:org/tiny", "--name", "tiny", "--json"]);
    assert_eq!(pulled["fetched"], 256 << 10);
    assert!(user.text(&["verify"]).contains("all as they should be"));
}

/// The first largest file below a folder.
fn largest(folder: &Path) -> PathBuf {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            match entry.path().is_dir() {
                true => folders.push(entry.path()),
                false => files.push((entry.metadata().unwrap().len(), entry.path())),
            }
        }
    }
    files.into_iter().max().unwrap().1
}

#[test]
fn errors_of_pulls_say_what_to_try() {
    let user = User::new();
    for (path, bytes) in [("m-Q4_K_M.gguf", 10), ("m-Q8_0.gguf", 3 << 20)] {
        user.hub.large(path, vec![0; bytes]);
    }
    let errors = user.complaint(&["pull", "hf:org/m"], 1);
    assert!(
        errors.contains("hf:org/m has 2 models; there are:")
            && errors.contains("\n     3.0 MiB  m-Q8_0.gguf")
            && errors.contains("try: sedge pull 'hf:org/m:m-Q4_K_M.gguf'"),
        "{errors}"
    );
    let errors = user.complaint(&["pull", "hf:org/m:Q5_K_M"], 1);
    assert!(errors.contains("no file \"Q5_K_M\""), "{errors}");
    user.hub.script(|_| Action::Status(401, ""));
    let errors = user.complaint(&["pull", "hf:org/gated"], 1);
    assert!(
        errors.contains("401") && errors.contains("HF_TOKEN"),
        "{errors}"
    );
    user.hub.script(|_| Action::Serve);
    user.weights();
    user.hub
        .lie("model.safetensors", None, Some(&"ab".repeat(32)));
    let errors = user.complaint(&["pull", "hf:org/tiny"], 1);
    assert!(errors.contains("should hash to abab"), "{errors}");

    user.complaint(&["pull", "hf:../x"], 2);
    user.complaint(&["pull", "hf:org/m:../x"], 2);
    user.complaint(&["pull", "no-such-folder"], 1);
    user.complaint(&["rm", "nothing"], 1);
    for bad in ["--name=-x", "--name=a/b", "--name=../x", "--name=seedling"] {
        user.hub.script(|_| Action::Serve);
        user.weights();
        user.complaint(&["pull", "hf:org/tiny", bad], 1);
    }
    user.complaint(&["rm", "--", "--help"], 1);
    assert!(
        user.text(&["list"])
            .contains("of pulls that have not ended")
            || user.text(&["list"]).starts_with("nothing")
    );
}

#[test]
fn adapters_are_listed_and_shown_as_what_they_are() {
    let user = User::new();
    user.hub
        .small("adapter_config.json", r#"{"peft_type":"LORA"}"#);
    user.hub.large(
        "adapter_model.safetensors",
        safetensors(&[("x.lora_A.weight", 1)], 64),
    );
    assert!(
        user.text(&["pull", "hf:org/lora"])
            .starts_with("lora: adapter, 1 tensors")
    );
    let shown = user.text(&["show", "--tensors", "lora"]);
    assert!(
        shown.contains("adapter") && shown.contains("x.lora_A.weight"),
        "{shown}"
    );
    let errors = user.complaint(&["run", "-m", "lora", "x"], 1);
    assert!(errors.contains("is an adapter"), "{errors}");
    assert!(user.text(&["list"]).contains("adapter"));
}
