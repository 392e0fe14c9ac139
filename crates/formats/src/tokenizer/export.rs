//! A `tokenizer.json` as the metadata of a GGUF file.

use indexmap::IndexMap;

use super::folder::{Outline, steps};
use super::metadata::WORD;
use super::pre::{self, Pre};
use super::vocabulary::Kind;
use super::{Encoder, Tokenizer, TokenizerError};
use crate::gguf::Value;

/// Texts that tell most rules apart; what is written must encode them as before.
const SAMPLES: &[&str] = &[
    "Hello, world! It's 12345 o'clock; they'll say \"I'M\" & <b>won't</b>.",
    "  two  spaces\n\nand\tlines\r\n   \n end ",
    "naïve façade — Größe, Привет мир, Καλημέρα, שלום, مرحبا, नमस्ते, 日本語のテキスト, 한국어, ไทย 🙂👩‍👩‍👧",
    "fn main() { let x_1 = vec![0u8; 1 << 20]; /* 100% */ }\n\tif a != b:\n        return\n",
    "https://example.org/?q=a+b&c=%20#x 3.14159 1,000,000 2026-11-22 ½ ² Ⅷ",
];

fn failed(reason: impl Into<String>) -> TokenizerError {
    TokenizerError::Export {
        reason: reason.into(),
    }
}

pub(super) fn metadata(tokenizer: &Tokenizer) -> Result<IndexMap<String, Value>, TokenizerError> {
    let (Some(outline), Encoder::Pipeline(pipeline)) = (&tokenizer.outline, &tokenizer.encoder)
    else {
        return Err(failed(
            "it came from a GGUF file; copy that file's metadata",
        ));
    };
    let mut out = IndexMap::new();
    let mut put = |key: &str, value: Value| {
        out.insert(format!("tokenizer.ggml.{key}"), value);
    };
    let decoder = steps(&outline.decoder);
    let byte_level = decoder.iter().any(|step| step["type"] == "ByteLevel");
    let texts = || {
        tokenizer
            .tokens
            .iter()
            .enumerate()
            .map(|(id, token)| text(id, &token.text))
    };
    match outline.model.kind.as_str() {
        "BPE" if byte_level => {
            put("model", "gpt2".into());
            put("pre", pre_tokenizer(outline)?.names[0].into());
            put("tokens", texts().collect::<Vec<_>>().into());
            put("token_type", kinds(tokenizer).into());
            let merges = merges(pipeline.inner())?;
            put(
                "merges",
                merges
                    .iter()
                    .map(|(a, b)| format!("{a} {b}"))
                    .collect::<Vec<_>>()
                    .into(),
            );
        }
        "BPE" if outline.model.byte_fallback => {
            put("model", "llama".into());
            put("pre", "default".into());
            put("tokens", texts().collect::<Vec<_>>().into());
            put(
                "scores",
                scores(tokenizer, &merges(pipeline.inner())?).into(),
            );
            put("token_type", kinds(tokenizer).into());
            put("add_space_prefix", space_prefix(outline).into());
        }
        "WordPiece" => {
            put("model", "bert".into());
            put("pre", "default".into());
            put(
                "tokens",
                texts()
                    .map(|text| phantom(&text))
                    .collect::<Vec<_>>()
                    .into(),
            );
            put("token_type", kinds(tokenizer).into());
        }
        kind => {
            return Err(failed(format!(
                "its model is {kind:?}; byte-level BPE, BPE with byte fallback and WordPiece can be \
                 written. Keep the folder and serve that"
            )));
        }
    }
    let word_pieces = outline.model.kind == "WordPiece";
    let (first, last) = (
        tokenizer.before.first().copied(),
        tokenizer.after.first().copied(),
    );
    let bos = if word_pieces {
        tokenizer.bos.or(first)
    } else {
        tokenizer.bos
    };
    let end = if word_pieces {
        last
    } else {
        tokenizer.eos.first().copied()
    };
    for (key, id) in [
        ("bos_token_id", bos),
        (
            if word_pieces {
                "seperator_token_id"
            } else {
                "eos_token_id"
            },
            end,
        ),
        (
            "eot_token_id",
            tokenizer.eos.get(1).copied().filter(|_| !word_pieces),
        ),
        (
            "eom_token_id",
            tokenizer.eos.get(2).copied().filter(|_| !word_pieces),
        ),
        ("unknown_token_id", tokenizer.unknown),
        ("padding_token_id", tokenizer.padding),
    ] {
        if let Some(id) = id {
            put(key, id.into());
        }
    }
    if word_pieces && first.is_some() {
        put(
            "cls_token_id",
            first.into_iter().next().unwrap_or_default().into(),
        );
    }
    put("add_bos_token", first.is_some().into());
    put(
        if word_pieces {
            "add_sep_token"
        } else {
            "add_eos_token"
        },
        last.is_some().into(),
    );
    if let Some(template) = &tokenizer.chat_template {
        out.insert(
            "tokenizer.chat_template".to_owned(),
            template.as_str().into(),
        );
    }
    check(tokenizer, &Tokenizer::from_metadata(&out)?)?;
    Ok(out)
}

/// Compares the vocabulary that will be read with the one that was written.
fn check(tokenizer: &Tokenizer, read: &Tokenizer) -> Result<(), TokenizerError> {
    for sample in SAMPLES {
        for parse_special in [false, true] {
            let (before, after) = (
                tokenizer.encode(sample, true, parse_special),
                read.encode(sample, true, parse_special),
            );
            if before != after {
                let at = before
                    .iter()
                    .zip(&after)
                    .take_while(|(a, b)| a == b)
                    .count();
                return Err(failed(format!(
                    "read back, it encodes {sample:?} otherwise from token {at} on; it has rules that the \
                     format does not know. Keep the folder and serve that"
                )));
            }
        }
    }
    Ok(())
}

/// A token's text; ids without a token get one of their own.
fn text(id: usize, text: &str) -> String {
    if text.is_empty() {
        format!("[PAD{id}]")
    } else {
        text.to_owned()
    }
}

/// A WordPiece token as GGUF files write it.
fn phantom(text: &str) -> String {
    match text.strip_prefix("##") {
        Some(rest) => rest.to_owned(),
        None if text.starts_with('[') && text.ends_with(']') => text.to_owned(),
        None => format!("{WORD}{text}"),
    }
}

fn kinds(tokenizer: &Tokenizer) -> Vec<i32> {
    let kind = |(id, token): (usize, &super::Token)| match token.kind {
        _ if tokenizer.unknown == Some(id as u32) => Kind::Unknown as i32,
        kind => kind as i32,
    };
    tokenizer.tokens.iter().enumerate().map(kind).collect()
}

/// The merges, best first.
fn merges(inner: &tokenizers::Tokenizer) -> Result<Vec<(String, String)>, TokenizerError> {
    #[derive(serde::Deserialize)]
    struct Merges {
        merges: Vec<(String, String)>,
    }
    // The crate shows a model's merges only in its JSON.
    let json =
        serde_json::to_value(inner.get_model()).map_err(|error| failed(error.to_string()))?;
    let merges: Merges = serde_json::from_value(json).map_err(|error| failed(error.to_string()))?;
    Ok(merges.merges)
}

/// Scores that make SentencePiece merge in the order of the merges.
fn scores(tokenizer: &Tokenizer, merges: &[(String, String)]) -> Vec<f32> {
    let mut ranks: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let score = |token: &super::Token| -(*ranks.get(&*token.text).unwrap_or(&merges.len()) as f32);
    tokenizer.tokens.iter().map(score).collect()
}

/// Whether a text gets a space in front.
fn space_prefix(outline: &Outline) -> bool {
    let prepends = steps(&outline.normalizer)
        .iter()
        .any(|step| step["type"] == "Prepend");
    let metaspace = steps(&outline.pre_tokenizer)
        .into_iter()
        .find(|step| step["type"] == "Metaspace");
    prepends
        || metaspace.is_some_and(|step| match step["prepend_scheme"].as_str() {
            Some(scheme) => scheme != "never",
            None => step["add_prefix_space"] != false,
        })
}

/// The name of what `tokenizer.json` spells out.
fn pre_tokenizer(outline: &Outline) -> Result<&'static Pre, TokenizerError> {
    let unnamed = |what: String| {
        failed(format!(
            "its pre-tokenizer {what} has no name that GGUF files know. Keep the folder and serve that"
        ))
    };
    let mut patterns: Vec<String> = Vec::new();
    for step in steps(&outline.pre_tokenizer) {
        match step["type"].as_str() {
            Some("ByteLevel") => {
                if step["add_prefix_space"] == true {
                    return Err(unnamed("that puts a space in front".to_owned()));
                }
                if step["use_regex"] != false {
                    patterns.push(pre::GPT2.to_owned());
                }
            }
            Some("Digits") if step["individual_digits"] == true => {
                patterns.push(pre::DIGIT.to_owned())
            }
            Some("Digits") => patterns.push(r"\p{N}+".to_owned()),
            Some("Split") => {
                let (pattern, behavior) = (&step["pattern"]["Regex"], &step["behavior"]);
                // A pattern that matches everything keeps its matches either way.
                let keeps = (behavior == "Isolated" && step["invert"] != true)
                    || (behavior == "Removed" && step["invert"] == true);
                match pattern.as_str() {
                    Some(pattern) if keeps => {
                        patterns.push(pattern.replace('\r', "\\r").replace('\n', "\\n"));
                    }
                    _ => return Err(unnamed(step.to_string())),
                }
            }
            _ => return Err(unnamed(step.to_string())),
        }
    }
    let fits =
        |pre: &&Pre| pre.patterns == patterns && pre.ignore_merges == outline.model.ignore_merges;
    let same_cuts = |pre: &&Pre| pre.patterns == patterns;
    // Ignoring merges changes nothing where merges lead to every token, so the cuts decide; what
    // is written is compared afterwards.
    let found = pre::ALL
        .iter()
        .find(fits)
        .or_else(|| pre::ALL.iter().find(same_cuts));
    found.ok_or_else(|| unnamed(format!("with the patterns {patterns:?}")))
}
