//! Configurations that no model has, and adapters that are none, end with an error, whatever a key
//! holds.

mod common;

use common::{ADAPTERS, folder};
use indexmap::IndexMap;
use sedge_formats::safetensors::{Checkpoint, Tensor};
use sedge_models::config::from_hf;
use sedge_models::{Adapter, Model, open};
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

#[test]
fn any_field_and_any_shape_of_an_adapter_is_taken_or_refused() {
    let Model::Decoder(llama) = open(&folder("llama")).unwrap().model else {
        panic!("llama is a decoder");
    };
    let mut refused = 0;
    for name in ADAPTERS {
        let path = folder(&format!("peft/{name}"));
        let text = std::fs::read_to_string(path.join("adapter_config.json")).unwrap();
        let whole: Value = serde_json::from_str(&text).unwrap();
        let bytes = std::fs::read(path.join("adapter_model.safetensors")).unwrap();
        let tensors = Checkpoint::parse(bytes.into()).unwrap().tensors;
        let mut try_out = |config: &Value, tensors: IndexMap<String, Tensor>| {
            let read = Adapter::from_parts(&config.to_string(), tensors, &llama);
            if let Err(error) = &read {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
            read.is_ok()
        };
        assert!(try_out(&whole, tensors.clone()));
        let mut paths = Vec::new();
        keys(&whole, "", &mut paths);
        for path in paths {
            for value in values() {
                let mut config = whole.clone();
                *config.pointer_mut(&path).unwrap() = value;
                try_out(&config, tensors.clone());
            }
        }
        for (index, tensor) in tensors.values().enumerate() {
            let mut less = tensors.clone();
            less.shift_remove_index(index);
            try_out(&whole, less);
            let mut turned = tensors.clone();
            turned[index].shape.reverse();
            let same = turned[index].shape == tensor.shape;
            assert_eq!(try_out(&whole, turned), same, "{name}: tensor {index}");
            for shape in [vec![], vec![0], vec![1 << 62, 4], vec![1, 1, 1]] {
                let mut odd = tensors.clone();
                odd[index].shape = shape;
                assert!(!try_out(&whole, odd), "{name}: tensor {index}");
            }
            let mut cut = tensors.clone();
            cut[index].data.truncate(3);
            assert!(!try_out(&whole, cut), "{name}: tensor {index}");
        }
    }
    assert!(refused > 3000, "only {refused} were refused");
}
