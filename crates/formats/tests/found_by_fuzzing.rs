//! Inputs with which fuzzing once broke a reader.

use indexmap::IndexMap;
use sedge_formats::gguf::Value;
use sedge_formats::template::ChatTemplate;
use sedge_formats::tokenizer::Tokenizer;

#[test]
fn a_template_tag_whose_ends_share_a_percent_sign_is_an_error() {
    for source in ["{%}", "{%}%}", "{% if x %}{%}", "{%", "%}{%}"] {
        assert!(ChatTemplate::new(source, None, None).is_err(), "{source}");
    }
}

#[test]
fn a_merge_that_makes_no_token_is_an_error() {
    let texts =
        |all: &[&str]| Value::from(all.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
    let metadata = IndexMap::from_iter([
        ("tokenizer.ggml.model".to_owned(), "gpt2".into()),
        ("tokenizer.ggml.tokens".to_owned(), texts(&["a", "bc"])),
        ("tokenizer.ggml.merges".to_owned(), texts(&["a bc"])),
    ]);
    let error = Tokenizer::from_metadata(&metadata).unwrap_err().to_string();
    assert!(error.contains("tokenizer.ggml.merges"), "{error}");
}

#[test]
fn a_merge_of_a_folder_that_makes_no_token_is_an_error() {
    for (merge, prefix) in [
        (r#"["a", "bc"]"#, "null"),
        (r#""a bc""#, "null"),
        (r#"["a", "b"]"#, r###""##b""###),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let json = format!(
            r#"{{"model": {{"type": "BPE", "vocab": {{"a": 0, "bc": 1, "b": 2}}, "merges": [{merge}],
                "continuing_subword_prefix": {prefix}}}}}"#
        );
        std::fs::write(folder.path().join("tokenizer.json"), json).unwrap();
        let error = Tokenizer::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("merge"), "{error}");
    }
}
