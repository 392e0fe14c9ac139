//! The tokenizer of a GGUF file's metadata.

use indexmap::IndexMap;
use tokenizers::models::bpe::BPE;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, Model};

use super::pipeline::Pipeline;
use super::pre::{self, Pre};
use super::spm::{Settings, Spm};
use super::vocabulary::{Kind, Spelling, Token};
use super::{Encoder, Tokenizer, TokenizerError};
use crate::gguf::{Array, Value};

/// Tokens that end a turn or a text in one model or another, whatever a file says of them;
/// llama.cpp's list.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
];

/// A word of WordPiece begins with it in a GGUF file.
pub(super) const WORD: char = '\u{2581}';

/// The metadata with errors that name keys.
struct Metadata<'a>(&'a IndexMap<String, Value>);

impl<'a> Metadata<'a> {
    fn key(name: &str) -> String {
        format!("tokenizer.ggml.{name}")
    }

    fn error(name: &str, problem: &'static str) -> TokenizerError {
        TokenizerError::Key {
            key: Self::key(name),
            problem,
        }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(&Self::key(name))
    }

    fn text(&self, name: &str) -> Option<&'a str> {
        self.get(name)?.as_str()
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.get(name)?.as_bool()
    }

    fn strings(&self, name: &str) -> Result<&'a [String], TokenizerError> {
        let value = self
            .get(name)
            .ok_or_else(|| Self::error(name, "is missing"))?;
        let strings = value.as_array().and_then(Array::strings);
        strings.ok_or_else(|| Self::error(name, "is not an array of strings"))
    }

    /// A token's id, if it is one.
    fn id(&self, name: &str, tokens: usize) -> Option<u32> {
        let id = self.get(&format!("{name}_token_id"))?.as_u64()?;
        (id < tokens as u64).then_some(id as u32)
    }
}

fn failed(error: impl std::fmt::Display) -> TokenizerError {
    TokenizerError::Vocabulary {
        reason: error.to_string(),
    }
}

pub(super) fn build(metadata: &IndexMap<String, Value>) -> Result<Tokenizer, TokenizerError> {
    let name = metadata
        .get("general.name")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_lowercase();
    let chat_template = metadata
        .get("tokenizer.chat_template")
        .and_then(Value::as_str)
        .map(str::to_owned);
    let metadata = Metadata(metadata);
    let model = metadata
        .text("model")
        .ok_or_else(|| Metadata::error("model", "is missing"))?;
    let texts = metadata.strings("tokens")?;
    if texts.is_empty() || u32::try_from(texts.len()).is_err() {
        return Err(Metadata::error("tokens", "is empty or too long"));
    }
    let mut kinds = kinds(&metadata, texts.len())?;
    let id = |name| metadata.id(name, texts.len());
    let within = |id: u32| Some(id).filter(|&id| (id as usize) < texts.len());

    let mut eos: Vec<u32> = id("eos").into_iter().collect();
    if model == "llama" && eos.is_empty() {
        eos.extend(within(2));
    }
    add_ends(&mut eos, &metadata, texts, &mut kinds);

    let unknown;
    let bos;
    let defaults; // adds BOS, EOS
    let spelling;
    let mut drops_first_space = false;
    let encoder = match model {
        "gpt2" => {
            let name = metadata.text("pre").unwrap_or("default");
            let pre = Pre::named(name).ok_or_else(|| TokenizerError::PreTokenizer {
                name: name.to_owned(),
                known: pre::names(),
            })?;
            spelling = Spelling::ByteLevel;
            unknown = id("unknown");
            bos = id("bos");
            defaults = (pre.adds_bos, false);
            let merges = metadata.strings("merges")?;
            Encoder::Pipeline(Box::new(byte_level(texts, &kinds, merges, pre)?))
        }
        "llama" => {
            let settings = Settings {
                space_prefix: metadata.flag("add_space_prefix").unwrap_or(true),
                single_spaces: metadata.flag("remove_extra_whitespaces").unwrap_or(false),
                // Phi-3's tokens say so in tokenizer.json; a GGUF file cannot.
                strip_after_control: name.contains("phi-3") || name.contains("phi3"),
            };
            spelling = Spelling::SentencePiece;
            drops_first_space = settings.space_prefix;
            unknown = id("unknown").or(within(0));
            bos = id("bos").or(within(1));
            defaults = (true, false);
            let scores = scores(&metadata, texts.len())?;
            let spm = Spm::new(texts, scores, kinds.clone(), unknown, settings).map_err(failed)?;
            Encoder::Spm(Box::new(spm))
        }
        "bert" => {
            spelling = Spelling::WordPiece { tidy: true };
            drops_first_space = true;
            unknown = id("unknown").or(within(100));
            bos = id("cls").or(id("bos")).or(within(101));
            defaults = (true, true);
            // Sic: the format's own spelling.
            eos = id("seperator")
                .or(id("separator"))
                .or(id("eos"))
                .or(within(102))
                .into_iter()
                .collect();
            Encoder::Pipeline(Box::new(word_pieces(texts, &mut kinds, unknown)?))
        }
        other => {
            return Err(TokenizerError::Model {
                model: other.to_owned(),
            });
        }
    };

    let tokens = texts.iter().zip(&kinds).map(|(text, &kind)| {
        let text = if model == "bert" {
            word_piece(text)
        } else {
            text.clone()
        };
        Token::new(text, kind, spelling)
    });
    let adds_bos = metadata.flag("add_bos_token").unwrap_or(defaults.0);
    let adds_eos = match model {
        "bert" => metadata.flag("add_sep_token").unwrap_or(defaults.1),
        _ => metadata.flag("add_eos_token").unwrap_or(defaults.1),
    };
    Ok(Tokenizer {
        encoder,
        tokens: tokens.collect(),
        before: bos.filter(|_| adds_bos).into_iter().collect(),
        after: eos
            .first()
            .copied()
            .filter(|_| adds_eos)
            .into_iter()
            .collect(),
        bos,
        eos,
        unknown,
        padding: id("padding"),
        drops_first_space,
        chat_template,
        outline: None,
    })
}

fn kinds(metadata: &Metadata, tokens: usize) -> Result<Vec<Kind>, TokenizerError> {
    let Some(value) = metadata.get("token_type") else {
        return Ok(vec![Kind::Normal; tokens]);
    };
    let kinds: Option<Vec<Kind>> = match value.as_array() {
        Some(Array::I32(kinds)) => Some(kinds.iter().map(|&kind| Kind::of(kind)).collect()),
        Some(Array::U32(kinds)) => Some(kinds.iter().map(|&kind| Kind::of(kind as i32)).collect()),
        _ => None,
    };
    let kinds =
        kinds.ok_or_else(|| Metadata::error("token_type", "is not an array of 32-bit integers"))?;
    if kinds.len() != tokens {
        return Err(Metadata::error("token_type", "has not one entry a token"));
    }
    Ok(kinds)
}

fn scores(metadata: &Metadata, tokens: usize) -> Result<Vec<f32>, TokenizerError> {
    let Some(value) = metadata.get("scores") else {
        return Ok(vec![0.0; tokens]);
    };
    let scores = value.as_array().and_then(Array::f32s);
    let scores = scores.ok_or_else(|| Metadata::error("scores", "is not an array of f32"))?;
    if scores.len() != tokens {
        return Err(Metadata::error("scores", "has not one entry a token"));
    }
    Ok(scores.to_vec())
}

/// Adds to the end-of-text token all others that end a turn. Those are control tokens even where
/// a file says otherwise.
fn add_ends(eos: &mut Vec<u32>, metadata: &Metadata, texts: &[String], kinds: &mut [Kind]) {
    let told = ["eot", "eom"].map(|name| metadata.id(name, texts.len()));
    let known = texts
        .iter()
        .enumerate()
        .filter(|(_, text)| ENDS.contains(&text.as_str()));
    let known: Vec<u32> = known.map(|(id, _)| id as u32).collect();
    let has = |token: &str| known.iter().any(|&id| texts[id as usize] == token);
    // In these vocabularies `<|end|>` ends a message within a turn, and `</s>` is a word of HTML.
    let harmony = (has("<|return|>") && has("<|call|>"))
        || (has("<|flush|>") && (has("<|call|>") || has("<|calls|>")));
    let gemma4 = has("<|tool_response>");
    for id in told.into_iter().flatten().chain(known.iter().copied()) {
        let text = texts[id as usize].as_str();
        if (harmony && text == "<|end|>") || (gemma4 && text == "</s>") {
            continue;
        }
        kinds[id as usize] = Kind::Control;
        if !eos.contains(&id) {
            eos.push(id);
        }
    }
}

/// The tokens that are found in a text before it is cut.
fn added(texts: &[String], kinds: &[Kind]) -> Vec<AddedToken> {
    let tokens = texts
        .iter()
        .zip(kinds)
        .filter_map(|(text, kind)| match kind {
            Kind::Control | Kind::Unknown => Some(AddedToken::from(text, true)),
            Kind::UserDefined => Some(AddedToken::from(text, false).normalized(false)),
            _ => None,
        });
    tokens.collect()
}

fn byte_level(
    texts: &[String],
    kinds: &[Kind],
    merges: &[String],
    pre: &Pre,
) -> Result<Pipeline, TokenizerError> {
    // A merge is two tokens with a space between; the first may begin with one.
    let merges: Option<Vec<(String, String)>> = merges
        .iter()
        .map(|merge| {
            let after_first = merge.chars().next()?.len_utf8();
            let space = after_first + merge[after_first..].find(' ')?;
            Some((merge[..space].to_owned(), merge[space + 1..].to_owned()))
        })
        .collect();
    let merges =
        merges.ok_or_else(|| Metadata::error("merges", "has an entry that is not a pair"))?;
    let vocabulary: tokenizers::models::bpe::Vocab = texts
        .iter()
        .enumerate()
        .map(|(id, text)| (text.clone(), id as u32))
        .collect();
    // The crate panics on a merge into more bytes than any token has.
    if merges
        .iter()
        .any(|(left, right)| !vocabulary.contains_key(&format!("{left}{right}")))
    {
        return Err(Metadata::error(
            "merges",
            "has an entry that makes no token",
        ));
    }
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .ignore_merges(pre.ignore_merges)
        .build()
        .map_err(failed)?;
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_pre_tokenizer(Some(pre.build().map_err(failed)?));
    inner.add_tokens(added(texts, kinds)).map_err(failed)?;
    Pipeline::new(inner).map_err(failed)
}

/// A token as WordPiece writes it: in a GGUF file `▁` begins a word and nothing continues one.
fn word_piece(text: &str) -> String {
    match text.strip_prefix(WORD) {
        Some(word) => word.to_owned(),
        None if text.starts_with('[') && text.ends_with(']') => text.to_owned(),
        None => format!("##{text}"),
    }
}

fn word_pieces(
    texts: &[String],
    kinds: &mut [Kind],
    unknown: Option<u32>,
) -> Result<Pipeline, TokenizerError> {
    let unknown = unknown.ok_or_else(|| Metadata::error("unknown_token_id", "is missing"))?;
    kinds[unknown as usize] = Kind::Unknown;
    let texts: Vec<String> = texts.iter().map(|text| word_piece(text)).collect();
    // A GGUF file does not say whether case matters; a vocabulary without capitals does.
    let mut words = texts
        .iter()
        .zip(&*kinds)
        .filter(|(_, kind)| **kind == Kind::Normal);
    let lowercase = !words
        .any(|(text, _)| !text.starts_with('[') && text.contains(|c: char| c.is_ascii_uppercase()));
    let model = WordPiece::builder()
        .vocab(
            texts
                .iter()
                .enumerate()
                .map(|(id, text)| (text.clone(), id as u32))
                .collect::<tokenizers::models::bpe::Vocab>(),
        )
        .unk_token(texts[unknown as usize].clone())
        .build()
        .map_err(failed)?;
    debug_assert!(model.token_to_id(&texts[unknown as usize]).is_some());
    let mut inner = tokenizers::Tokenizer::new(model);
    inner
        .with_normalizer(Some(BertNormalizer::new(true, true, None, lowercase)))
        .map_err(failed)?;
    inner.with_pre_tokenizer(Some(BertPreTokenizer));
    inner.add_tokens(added(&texts, kinds)).map_err(failed)?;
    Pipeline::new(inner).map_err(failed)
}
