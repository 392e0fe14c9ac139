//! Any lists as a GGUF file's vocabulary: an error, or a tokenizer that encodes and decodes any text.
//! Random bytes seldom make well-formed lists, so these are made from the fuzzer's choices.
#![no_main]

use std::io;

use arbitrary::Arbitrary;
use bytes::Bytes;
use indexmap::IndexMap;
use libfuzzer_sys::fuzz_target;
use sedge_formats::gguf::{Gguf, Value, write_to};
use sedge_formats::tokenizer::Tokenizer;

#[derive(Debug, Arbitrary)]
struct Vocabulary {
    model: Model,
    pre: Pre,
    /// Starts with the 256 byte tokens, so that most texts can be encoded.
    bytes: bool,
    tokens: Vec<(String, f32, u8)>,
    /// Pairs of indices into the tokens, or free text.
    merges: Vec<Result<(u8, u8), String>>,
    scores: Option<i8>,
    types: Option<i8>,
    ids: Vec<(Special, u16)>,
    flags: Vec<(Flag, bool)>,
    text: String,
    add_special: bool,
    parse_special: bool,
    decode: Vec<u16>,
}

#[derive(Debug, Arbitrary)]
enum Model {
    Gpt2,
    Llama,
    Bert,
    Other(String),
}

#[derive(Debug, Arbitrary)]
enum Pre {
    Absent,
    Default,
    Gpt2,
    Llama3,
    Qwen2,
    SmolLm,
    DeepSeek,
    Other(String),
}

#[derive(Debug, Arbitrary)]
enum Special {
    Bos,
    Eos,
    Eot,
    Unknown,
    Padding,
    Cls,
    Separator,
}

#[derive(Debug, Arbitrary)]
enum Flag {
    AddBos,
    AddEos,
    AddSpacePrefix,
}

/// GPT-2's letter for a byte.
fn letter(byte: u8) -> char {
    match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => byte.into(),
        0..=b' ' => char::from_u32(0x100 + u32::from(byte)).unwrap_or('?'),
        0x7f..=0xa0 => char::from_u32(0x121 + u32::from(byte) - 0x7f).unwrap_or('?'),
        0xad => '\u{143}',
    }
}

/// `len` of `list` changed by a little: lists of unequal length are among the faults to survive.
fn resized<T: Clone>(list: &[T], by: i8) -> Vec<T> {
    let len = list.len().saturating_add_signed(by.into());
    list.iter()
        .cycle()
        .take(if list.is_empty() { 0 } else { len })
        .cloned()
        .collect()
}

fn metadata(v: &Vocabulary) -> IndexMap<String, Value> {
    let model = match &v.model {
        Model::Gpt2 => "gpt2",
        Model::Llama => "llama",
        Model::Bert => "bert",
        Model::Other(name) => name,
    };
    let pre = match &v.pre {
        Pre::Absent => None,
        Pre::Default => Some("default"),
        Pre::Gpt2 => Some("gpt-2"),
        Pre::Llama3 => Some("llama-bpe"),
        Pre::Qwen2 => Some("qwen2"),
        Pre::SmolLm => Some("smollm"),
        Pre::DeepSeek => Some("deepseek-llm"),
        Pre::Other(name) => Some(name.as_str()),
    };
    let mut tokens = Vec::new();
    if v.bytes {
        tokens.extend((0..=255u8).map(|b| match v.model {
            Model::Llama => (format!("<0x{b:02X}>"), 0.0, 6),
            _ => (letter(b).to_string(), 0.0, 1),
        }));
    }
    tokens.extend(
        v.tokens
            .iter()
            .map(|(text, score, kind)| (text.clone(), *score, i32::from(*kind % 8))),
    );
    let at = |i: u8| tokens.get(usize::from(i)).map_or("", |t| t.0.as_str());
    let merges: Vec<String> = v
        .merges
        .iter()
        .map(|merge| match merge {
            Ok((a, b)) => format!("{} {}", at(*a), at(*b)),
            Err(text) => text.clone(),
        })
        .collect();
    let scores: Vec<f32> = tokens.iter().map(|t| t.1).collect();
    let types: Vec<i32> = tokens.iter().map(|t| t.2).collect();

    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let mut metadata = IndexMap::from_iter([
        (key("model"), model.into()),
        (
            key("tokens"),
            tokens
                .iter()
                .map(|t| t.0.clone())
                .collect::<Vec<_>>()
                .into(),
        ),
        (key("merges"), merges.into()),
    ]);
    if let Some(pre) = pre {
        metadata.insert(key("pre"), pre.into());
    }
    if let Some(by) = v.scores {
        metadata.insert(key("scores"), resized(&scores, by).into());
    }
    if let Some(by) = v.types {
        metadata.insert(key("token_type"), resized(&types, by).into());
    }
    for (special, id) in &v.ids {
        let name = match special {
            Special::Bos => "bos_token_id",
            Special::Eos => "eos_token_id",
            Special::Eot => "eot_token_id",
            Special::Unknown => "unknown_token_id",
            Special::Padding => "padding_token_id",
            Special::Cls => "cls_token_id",
            Special::Separator => "seperator_token_id", // the format's own spelling
        };
        metadata.insert(key(name), u32::from(*id).into());
    }
    for (flag, on) in &v.flags {
        let name = match flag {
            Flag::AddBos => "add_bos_token",
            Flag::AddEos => "add_eos_token",
            Flag::AddSpacePrefix => "add_space_prefix",
        };
        metadata.insert(key(name), (*on).into());
    }
    metadata
}

fuzz_target!(|v: Vocabulary| {
    let mut file = Vec::new();
    write_to(&mut file, &metadata(&v), &[], |_| {
        io::Result::Ok(Bytes::new())
    })
    .expect("plain lists can be written");
    let gguf = Gguf::parse(file.into()).expect("what was written can be read");
    let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) else {
        return;
    };
    let ids = tokenizer.encode(&v.text, v.add_special, v.parse_special);
    assert!(ids.iter().all(|&id| (id as usize) < tokenizer.len()));
    tokenizer.decode(&ids);

    let mut stream = tokenizer.stream();
    for id in v.decode.iter().map(|&id| u32::from(id)).chain(ids) {
        tokenizer.bytes(id);
        tokenizer.token(id);
        stream.push(&tokenizer, id);
    }
    stream.finish();
});
