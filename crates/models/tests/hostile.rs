//! Configurations that no model has end with an error, whatever a key holds.

mod common;

use common::folder;
use sedge_models::config::from_hf;
use serde_json::{Value, json};

const MODELS: [&str; 8] = [
    "llama31-rope",
    "deepseek-v2",
    "gemma3",
    "qwen2-moe",
    "phi3",
    "smollm3",
    "mixtral",
    "bert",
];

fn values() -> Vec<Value> {
    let odd = [
        "null",
        "0",
        "-1",
        "1",
        "3",
        "1099511627776",
        "1e300",
        "1.5",
        "\"x\"",
        "[]",
        "{}",
        "true",
        "[1, 2]",
    ];
    odd.iter()
        .map(|text| serde_json::from_str(text).unwrap())
        .chain([json!({"a": 1})])
        .collect()
}

/// Every key of an object and of the objects in it.
fn keys(object: &Value, at: &str, out: &mut Vec<String>) {
    for (key, value) in object.as_object().into_iter().flatten() {
        let path = format!("{at}/{key}");
        keys(value, &path, out);
        out.push(path);
    }
}

#[test]
fn any_value_of_any_key_is_taken_or_refused() {
    let mut refused = 0;
    for model in MODELS {
        let text = std::fs::read_to_string(folder(model).join("config.json")).unwrap();
        let whole: Value = serde_json::from_str(&text).unwrap();
        from_hf(&text).unwrap();
        let mut paths = Vec::new();
        keys(&whole, "", &mut paths);
        for path in paths {
            for value in values() {
                let mut config = whole.clone();
                *config.pointer_mut(&path).unwrap() = value;
                if let Err(error) = from_hf(&config.to_string()) {
                    assert!(!error.to_string().is_empty());
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 1000, "only {refused} were refused");
}

#[test]
fn an_unknown_architecture_is_named_and_the_known_are_listed() {
    let error = from_hf(r#"{"model_type": "mamba"}"#)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("\"mamba\"") && error.contains("llama") && error.contains("deepseek_v2"),
        "{error}"
    );
}
