//! Tokenizers agree with other implementations, and streams with whole texts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;
use sedge_formats::gguf::{Array, Gguf, Value};
use sedge_formats::tokenizer::Tokenizer;
use serde_json::json;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn vocabulary(name: &str) -> Gguf {
    Gguf::open(&folder().join(format!("vocabs/ggml-vocab-{name}.gguf"))).expect("a GGUF file")
}

/// llama.cpp's test cases of a vocabulary: texts and their ids.
fn cases(name: &str) -> Vec<(String, Vec<u32>)> {
    let read = |kind: &str| {
        let path = folder().join(format!("vocabs/ggml-vocab-{name}.gguf.{kind}"));
        fs::read_to_string(path).expect("a fixture")
    };
    let (texts, ids) = (read("inp"), read("out"));
    let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
    let ids: Vec<&str> = ids.lines().collect();
    assert_eq!(
        texts.len(),
        ids.len() + usize::from(texts.last() == Some(&"")),
        "{name}"
    );
    let ids = ids.iter().map(|line| {
        line.split_whitespace()
            .map(|id| id.parse().expect("an id"))
            .collect()
    });
    texts.into_iter().map(str::to_owned).zip(ids).collect()
}

fn gpt2() -> &'static Tokenizer {
    static IT: LazyLock<Tokenizer> =
        LazyLock::new(|| Tokenizer::from_gguf(&vocabulary("gpt-2")).expect("a vocabulary"));
    &IT
}

fn llama() -> &'static Tokenizer {
    static IT: LazyLock<Tokenizer> =
        LazyLock::new(|| Tokenizer::from_gguf(&vocabulary("llama-spm")).expect("a vocabulary"));
    &IT
}

fn seedling() -> &'static Tokenizer {
    static IT: LazyLock<Tokenizer> =
        LazyLock::new(|| Tokenizer::open(&folder().join("seedling")).expect("a tokenizer"));
    &IT
}

/// The cases that differ.
fn wrong(tokenizer: &Tokenizer, name: &str) -> Vec<String> {
    let cases = cases(name);
    assert!(cases.len() > 40);
    let differ = cases.into_iter().filter_map(|(text, expected)| {
        let ids = tokenizer.encode(&text, false, false);
        (ids != expected).then(|| format!("{text:?}: ours {ids:?}, theirs {expected:?}"))
    });
    differ.collect()
}

#[test]
fn gguf_vocabularies_encode_as_llama_cpp_does() {
    for name in ["gpt-2", "llama-spm", "phi-3"] {
        let tokenizer = Tokenizer::from_gguf(&vocabulary(name)).expect("a vocabulary");
        let wrong = wrong(&tokenizer, name);
        assert!(
            wrong.is_empty(),
            "{name}: {} differ\n{}",
            wrong.len(),
            wrong.join("\n")
        );
    }
}

#[test]
fn a_rendered_chat_encodes_as_transformers_does() {
    let golden: serde_json::Value = serde_json::from_str(
        &fs::read_to_string(folder().join("seedling/golden.json")).expect("a file"),
    )
    .expect("JSON");
    let tokenizer = seedling();
    for case in 0..5 {
        let case = &golden[case.to_string()];
        let chat = format!(
            "<|user|>{}<|end|><|assistant|>",
            case["prompt"].as_str().expect("a prompt")
        );
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).expect("ids");
        assert_eq!(tokenizer.encode(&chat, false, true), ids);
        let greedy: Vec<u32> = serde_json::from_value(case["greedy"].clone()).expect("ids");
        assert_eq!(
            tokenizer.decode(&greedy),
            case["text"].as_str().expect("a text")
        );
    }
    assert_eq!(tokenizer.eos(), [4, 0]);
    assert_eq!(tokenizer.bos(), Some(0));
    assert!(!tokenizer.adds_bos());
    assert_eq!(tokenizer.len(), 8192);
    assert!(
        tokenizer
            .chat_template()
            .is_some_and(|template| template.contains("add_generation_prompt"))
    );
}

#[test]
fn a_special_token_in_a_users_text_is_text() {
    for (tokenizer, special) in [
        (seedling(), "<|end|>"),
        (gpt2(), "<|endoftext|>"),
        (llama(), "</s>"),
    ] {
        let id = tokenizer.id(special).expect("a token");
        assert!(tokenizer.is_special(id));
        let text = format!("a{special}b");
        assert!(
            !tokenizer.encode(&text, false, false).contains(&id),
            "{special}"
        );
        assert_eq!(
            tokenizer.decode(&tokenizer.encode(&text, false, false)),
            text
        );
        assert!(
            tokenizer.encode(&text, false, true).contains(&id),
            "{special}"
        );
        assert!(tokenizer.bytes(id).is_empty());
    }
}

#[test]
fn what_goes_around_a_text_is_added_when_asked() {
    assert!(llama().adds_bos());
    assert_eq!(llama().encode("Hello", true, false), [1, 15043]);
    assert_eq!(llama().encode("", true, false), [1]);
    assert_eq!(llama().eos(), [2]);
    assert!(!gpt2().adds_bos());
    assert_eq!(gpt2().encode("Hello", true, false), [15496]);
}

/// Texts that find the seams: words, spaces, scripts, parts of special tokens.
fn texts() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        any::<String>(),
        "[ \\t\\n]{0,6}",
        "[a-zA-Z' ]{0,12}",
        "[0-9]{0,8}",
        Just("<|end|>".to_owned()),
        Just("</s>".to_owned()),
        Just("<0x0A>".to_owned()),
        Just("\u{2581}".to_owned()),
        Just("🙂👩‍👩‍👧 漢字 ελ".to_owned()),
    ];
    prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decoding_gives_back_what_was_encoded(text in texts()) {
        prop_assert_eq!(&gpt2().decode(&gpt2().encode(&text, false, false)), &text);
        prop_assert_eq!(&seedling().decode(&seedling().encode(&text, false, false)), &text);
        // SentencePiece writes a space as U+2581, so it cannot tell the two apart.
        let spaces = text.replace('\u{2581}', " ");
        prop_assert_eq!(llama().decode(&llama().encode(&text, false, false)), spaces);
    }

    #[test]
    fn a_stream_gives_the_text_of_all_its_ids(ids in prop::collection::vec(0u32..33_000, 0..40)) {
        for tokenizer in [gpt2(), llama(), seedling()] {
            let mut stream = tokenizer.stream();
            let mut text: String = ids.iter().map(|&id| stream.push(tokenizer, id)).collect();
            text += &stream.finish();
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.bytes(id)).copied().collect();
            let whole = String::from_utf8_lossy(&bytes).into_owned();
            let whole = match std::ptr::eq(tokenizer, llama()) {
                true => whole.strip_prefix(' ').unwrap_or(&whole).to_owned(),
                false => whole,
            };
            prop_assert_eq!(&text, &whole);
            prop_assert_eq!(&tokenizer.decode(&ids), &whole);
        }
    }

    #[test]
    fn a_written_vocabulary_encodes_as_before(text in texts(), special: bool) {
        static READ: LazyLock<Tokenizer> = LazyLock::new(|| {
            let metadata = seedling().to_gguf_metadata().expect("a vocabulary that can be written");
            assert_eq!(metadata["tokenizer.ggml.pre"].as_str(), Some("gpt-2"));
            Tokenizer::from_metadata(&metadata).expect("what was written")
        });
        prop_assert_eq!(READ.encode(&text, true, special), seedling().encode(&text, true, special));
    }
}

#[test]
fn a_written_vocabulary_keeps_its_ends_and_template() {
    let metadata = seedling()
        .to_gguf_metadata()
        .expect("a vocabulary that can be written");
    let read = Tokenizer::from_metadata(&metadata).expect("what was written");
    assert_eq!(read.eos(), seedling().eos());
    assert_eq!(read.bos(), seedling().bos());
    assert_eq!(read.adds_bos(), seedling().adds_bos());
    assert_eq!(read.chat_template(), seedling().chat_template());
    assert_eq!(read.len(), seedling().len());
    for id in 0..read.len() as u32 {
        assert_eq!(read.bytes(id), seedling().bytes(id));
        assert_eq!(read.is_special(id), seedling().is_special(id));
    }
}

/// The llama vocabulary as the `tokenizer.json` that transformers makes of it: every way to split
/// a token into two is a merge, in the order of the scores.
fn llama_json() -> serde_json::Value {
    let gguf = vocabulary("llama-spm");
    let array = |key: &str| gguf.get(key).and_then(Value::as_array).expect("an array");
    let tokens = array("tokenizer.ggml.tokens").strings().expect("strings");
    let scores = array("tokenizer.ggml.scores").f32s().expect("f32");
    let ids: BTreeMap<&str, usize> = tokens
        .iter()
        .enumerate()
        .map(|(id, text)| (text.as_str(), id))
        .collect();
    let mut merges = Vec::new();
    for (&token, &id) in ids.iter().filter(|(_, id)| **id >= 259) {
        let splits = token
            .char_indices()
            .skip(1)
            .map(|(at, _)| token.split_at(at));
        for (left, right) in
            splits.filter(|(left, right)| ids.contains_key(left) && ids.contains_key(right))
        {
            merges.push((-scores[id], ids[left], ids[right], left, right));
        }
    }
    merges.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let merges: Vec<(&str, &str)> = merges.into_iter().map(|merge| (merge.3, merge.4)).collect();
    let added = |id: usize| {
        json!({"id": id, "content": tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    json!({
        "version": "1.0",
        "added_tokens": [added(0), added(1), added(2)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": ids, "merges": merges},
    })
}

fn open(
    files: &[(&str, serde_json::Value)],
) -> Result<Tokenizer, sedge_formats::tokenizer::TokenizerError> {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, json) in files {
        fs::write(folder.path().join(name), json.to_string()).expect("a file");
    }
    Tokenizer::open(folder.path())
}

#[test]
fn sentencepiece_agrees_as_json_as_gguf_and_from_one_to_the_other() {
    let config = json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": "<unk>",
        "chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]});
    let json = open(&[
        ("tokenizer.json", llama_json()),
        ("tokenizer_config.json", config),
    ])
    .expect("a tokenizer");
    assert_eq!(json.chat_template(), Some("d"));
    let differ = wrong(&json, "llama-spm");
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    let read = Tokenizer::from_metadata(&json.to_gguf_metadata().expect("metadata"))
        .expect("a vocabulary");
    let differ = wrong(&read, "llama-spm");
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    for (text, ids) in cases("llama-spm") {
        for tokenizer in [&json, &read, llama()] {
            assert_eq!(tokenizer.decode(&ids), text);
            assert_eq!(tokenizer.encode(&text, true, true)[0], 1);
        }
    }
    assert_eq!(read.eos(), [2]);
    for id in 0..32_000 {
        assert_eq!(read.bytes(id), llama().bytes(id));
        assert_eq!(json.bytes(id), llama().bytes(id));
    }
}

#[test]
fn a_config_decides_whether_a_text_begins_with_bos() {
    let with = |config| {
        open(&[
            ("tokenizer.json", llama_json()),
            ("tokenizer_config.json", config),
        ])
        .expect("a tokenizer")
    };
    let without = with(
        json!({"bos_token": "<s>", "add_bos_token": false, "add_eos_token": true, "eos_token": "</s>"}),
    );
    assert_eq!(without.encode("Hello", true, false), [15043, 2]);
    assert!(!without.adds_bos());
    let with = with(json!({"bos_token": "<s>"}));
    assert_eq!(with.encode("Hello", true, false), [1, 15043]);
    assert!(with.adds_bos());
}

/// A small vocabulary in the way of BERT's.
fn bert_words() -> Vec<&'static str> {
    vec![
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "un", "##aff", "##able",
        "cafe", "!", ",", "the", "quick", "##er", "漢", "字", "'", "s", "don", "t", "##s", "1",
        "##2", "-", "[", "]", "cl", "##ss",
    ]
}

#[test]
fn wordpiece_agrees_as_json_as_gguf_and_from_one_to_the_other() {
    let words = bert_words();
    let vocabulary: BTreeMap<&str, usize> = words
        .iter()
        .enumerate()
        .map(|(id, word)| (*word, id))
        .collect();
    let added = |id: usize| {
        json!({"id": id, "content": words[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": (0..5).map(added).collect::<Vec<_>>(),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary},
    });
    let config = json!({"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"});
    let json = open(&[
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", config),
    ])
    .expect("a tokenizer");
    let read = Tokenizer::from_metadata(&json.to_gguf_metadata().expect("metadata"))
        .expect("a vocabulary");
    // Ids and texts: the tokenizers package of Python, 0.23.3, with the same JSON and
    // `encode_special_tokens`.
    for (text, ids, decoded) in [
        ("Hello, World!", vec![2, 5, 12, 6, 11, 3], "hello, world!"),
        (
            "Unaffable CAFÉ 漢字",
            vec![2, 7, 8, 9, 10, 16, 17, 3],
            "unaffable cafe 漢 字",
        ),
        (
            "don't the quicker",
            vec![2, 20, 18, 21, 13, 14, 15, 3],
            "don ' t the quicker",
        ),
        (
            "[CLS] xyzzy 12",
            vec![2, 26, 28, 22, 27, 1, 23, 24, 3],
            "[ cls ] 12",
        ),
    ] {
        for tokenizer in [&json, &read] {
            assert_eq!(tokenizer.encode(text, true, false), ids, "{text}");
            assert_eq!(tokenizer.decode(&ids), decoded);
        }
        assert_eq!(json.encode(text, true, true), read.encode(text, true, true));
    }
    assert_eq!(read.encode("[CLS] hello", false, true), [2, 5]);
}

#[test]
fn malformed_metadata_is_an_error_that_names_the_key() {
    let gguf = vocabulary("llama-spm");
    let whole = gguf.metadata();
    let broken = |key: &str, value: Option<Value>| {
        let mut metadata = whole.clone();
        match value {
            Some(value) => metadata.insert(key.to_owned(), value),
            None => metadata.shift_remove(key),
        };
        Tokenizer::from_metadata(&metadata)
    };
    for key in ["tokenizer.ggml.model", "tokenizer.ggml.tokens"] {
        let error = broken(key, None).expect_err("an error").to_string();
        assert!(error.contains(key), "{error}");
    }
    for key in [
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.scores",
        "tokenizer.ggml.token_type",
    ] {
        for value in [
            Value::from(1u32),
            Value::Array(Array::U8(vec![1])),
            Value::from(vec![1.0f32]),
        ] {
            let error = broken(key, Some(value)).expect_err("an error").to_string();
            assert!(error.contains(key), "{error}");
        }
    }
    let error = broken("tokenizer.ggml.model", Some("gpt2".into()))
        .expect_err("an error")
        .to_string();
    assert!(error.contains("tokenizer.ggml."), "{error}");
    let error = broken("tokenizer.ggml.model", Some("t5".into()))
        .expect_err("an error")
        .to_string();
    assert!(
        error.contains("\"t5\"") && error.contains("llama"),
        "{error}"
    );
    // Ids out of range are as good as absent.
    let tokenizer =
        broken("tokenizer.ggml.bos_token_id", Some(99_999_999u32.into())).expect("a vocabulary");
    assert_eq!(tokenizer.bos(), Some(1));
    let mut metadata = vocabulary("gpt-2").metadata().clone();
    metadata.insert("tokenizer.ggml.pre".to_owned(), "klingon".into());
    let error = Tokenizer::from_metadata(&metadata)
        .expect_err("an error")
        .to_string();
    assert!(
        error.contains("klingon") && error.contains("qwen2"),
        "{error}"
    );
    metadata.insert("tokenizer.ggml.pre".to_owned(), "gpt-2".into());
    for merge in ["", "a", " ", "é"] {
        metadata.insert(
            "tokenizer.ggml.merges".to_owned(),
            vec![merge.to_owned()].into(),
        );
        Tokenizer::from_metadata(&metadata).expect_err("an error");
    }
}
