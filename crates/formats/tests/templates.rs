//! Every template renders what Python's jinja2 renders, byte for byte
//! (`templates-golden/make.py` made the texts), and docs/chat-templates.md says which.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use sedge_formats::template::{ChatInput, ChatTemplate, TemplateError};
use serde_json::{Map, Value};

/// The time in the golden texts: 5 July 2026, 09:08:07.
const NOW: Duration = Duration::from_secs(1_783_242_487);

/// Cases in which we render and Python does not, with Python's reason.
const BETTER: &[(&str, &[&str], &str)] = &[
    (
        "Kimi-K2-Thinking",
        &["tools", "tool_turn"],
        "calls list.append, which transformers' sandbox forbids",
    ),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn sources() -> BTreeMap<String, String> {
    let files = fs::read_dir(folder().join("templates")).expect("the templates are in the repository");
    files
        .map(|file| file.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jinja"))
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).expect("text"))
        })
        .collect()
}

fn read_json(path: PathBuf) -> Map<String, Value> {
    serde_json::from_str(&fs::read_to_string(path).expect("a golden file")).expect("JSON")
}

fn input(case: &Value) -> ChatInput {
    ChatInput {
        messages: case["messages"].as_array().expect("messages").clone(),
        tools: case["tools"].as_array().cloned().unwrap_or_default(),
        add_generation_prompt: case["add_generation_prompt"] == true,
        extra: case["extra"].as_object().cloned().unwrap_or_default(),
    }
}

fn render(source: &str, case: &Value) -> Result<String, TemplateError> {
    ChatTemplate::new(source, Some("<BOS>"), Some("<EOS>"))?.render_at(&input(case), UNIX_EPOCH + NOW)
}

#[test]
fn templates_render_what_python_renders() {
    let cases = read_json(folder().join("templates-golden/cases.json"));
    let mut wrong = Vec::new();
    for (name, source) in sources() {
        let golden = read_json(folder().join(format!("templates-golden/{name}.json")));
        for (case, expected) in &golden {
            let ours = render(&source, &cases[case]);
            let same = match (&ours, expected["text"].as_str(), expected["refused"].as_str()) {
                (Ok(text), Some(expected), _) => text == expected,
                (Err(TemplateError::Refused(reason)), None, Some(expected)) => reason == expected,
                (Ok(_), None, None) => {
                    BETTER.iter().any(|(better, cases, _)| *better == name && cases.contains(&case.as_str()))
                }
                (Err(TemplateError::Render(_)), None, None) => true,
                _ => false,
            };
            if !same {
                wrong.push(format!("{name}, {case}:\n  ours   {ours:?}\n  python {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
