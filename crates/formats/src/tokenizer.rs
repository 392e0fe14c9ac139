//! Text to token ids and back, whatever file the vocabulary came in.
//!
//! A Hugging Face folder's `tokenizer.json` and a GGUF file's vocabulary become the same type.
//! Byte-level BPE and WordPiece run through the `tokenizers` crate, SentencePiece vocabularies
//! with scores through a merge of our own. Decoding, streamed or not, joins the bytes that each
//! token stands for.

mod alphabet;
mod export;
mod folder;
mod metadata;
mod pipeline;
mod pre;
mod spm;
mod stream;
mod vocabulary;

pub use alphabet::byte_letters;
use std::path::Path;

use bytes::Bytes;
use indexmap::IndexMap;

use crate::gguf::{Gguf, Value};
use folder::Outline;
use pipeline::Pipeline;
use spm::Spm;
pub use stream::TextStream;
use vocabulary::{Kind, Token};

/// Why a tokenizer could not be read or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// File.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{path}: {reason}")]
    File {
        /// File.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A metadata key is missing, or not of its type.
    #[error("GGUF vocabulary: {key} {problem}")]
    Key {
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A GGUF file's kind of vocabulary is not known.
    #[error("GGUF vocabulary: model {model:?} is not supported; known are gpt2, llama, bert")]
    Model {
        /// `tokenizer.ggml.model`.
        model: String,
    },
    /// A GGUF file's pre-tokenizer is not known.
    #[error("GGUF vocabulary: pre-tokenizer {name:?} is not known; known are {known}")]
    PreTokenizer {
        /// `tokenizer.ggml.pre`.
        name: String,
        /// All names.
        known: String,
    },
    /// Vocabulary and merges do not fit together.
    #[error("vocabulary: {reason}")]
    Vocabulary {
        /// What does not fit.
        reason: String,
    },
    /// The vocabulary cannot be written to a GGUF file.
    #[error("this tokenizer cannot be written to a GGUF file: {reason}")]
    Export {
        /// What a GGUF file cannot say, and what to do.
        reason: String,
    },
}

/// A vocabulary with its rules.
#[derive(Debug)]
pub struct Tokenizer {
    encoder: Encoder,
    /// One for each id.
    tokens: Vec<Token>,
    /// What `encode(_, true, _)` puts before and after a text.
    before: Vec<u32>,
    after: Vec<u32>,
    bos: Option<u32>,
    eos: Vec<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
    drops_first_space: bool,
    chat_template: Option<String>,
    /// What `tokenizer.json` says, for writing it elsewhere.
    outline: Option<Outline>,
}

#[derive(Debug)]
enum Encoder {
    Pipeline(Box<Pipeline>),
    Spm(Box<Spm>),
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and from `tokenizer_config.json`, `generation_config.json` and
    /// `config.json` beside it which tokens begin and end texts and turns.
    ///
    /// # Errors
    /// When a file is missing or malformed.
    pub fn open(folder: &Path) -> Result<Tokenizer, TokenizerError> {
        folder::open(folder)
    }

    /// Reads the same files where they lie in no folder: `find` gives a file's bytes by its name.
    /// `place` stands for the folder in errors.
    ///
    /// # Errors
    /// Those of [`Tokenizer::open`].
    pub fn from_files(
        place: &str,
        find: &dyn Fn(&str) -> Option<Bytes>,
    ) -> Result<Tokenizer, TokenizerError> {
        folder::from_files(place, find)
    }

    /// Builds the tokenizer of a GGUF file from its `tokenizer.ggml.*` metadata.
    ///
    /// # Errors
    /// When keys are missing or malformed, or the model or pre-tokenizer is unknown (named).
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::from_metadata(gguf.metadata())
    }

    /// Builds a tokenizer from the `tokenizer.ggml.*` entries of GGUF metadata.
    ///
    /// # Errors
    /// Those of [`Tokenizer::from_gguf`].
    pub fn from_metadata(metadata: &IndexMap<String, Value>) -> Result<Tokenizer, TokenizerError> {
        metadata::build(metadata)
    }

    /// The `tokenizer.ggml.*` and `tokenizer.chat_template` entries of a GGUF file with this
    /// vocabulary, for one that [`Tokenizer::open`] read. What is written was read back and
    /// compared on sample texts.
    ///
    /// # Errors
    /// When a GGUF file cannot say what this tokenizer does: an unnamed pre-tokenizer, another
    /// model than byte-level BPE, SentencePiece-like BPE and WordPiece, or rules that get lost.
    pub fn to_gguf_metadata(&self) -> Result<IndexMap<String, Value>, TokenizerError> {
        export::metadata(self)
    }

    /// Whether both turn the same ids into the same text and end at the same ones, so that what
    /// one's model generates the other can decode.
    pub fn is_alike(&self, other: &Tokenizer) -> bool {
        self.eos() == other.eos()
            && self.tokens.len() == other.tokens.len()
            && self
                .tokens
                .iter()
                .zip(&other.tokens)
                .all(|(a, b)| (&a.bytes, a.kind) == (&b.bytes, b.kind))
    }

    /// Number of ids: one more than the largest.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Token ids of a text. `special`: adds what the vocabulary puts around a text (BOS, CLS, SEP).
    /// Special tokens written out in the text are recognised only if `parse_special`: true for a
    /// rendered chat template, false for text of a user that must stay text.
    pub fn encode(&self, text: &str, special: bool, parse_special: bool) -> Vec<u32> {
        let mut ids = match &self.encoder {
            Encoder::Pipeline(pipeline) => pipeline.encode(text, parse_special),
            Encoder::Spm(spm) => spm.encode(text, parse_special),
        };
        if special {
            ids.splice(0..0, self.before.iter().copied());
            ids.extend(&self.after);
        }
        ids
    }

    /// Token ids of a rendered chat. Most templates write BOS themselves; where one does not and
    /// the vocabulary wants it, it is put first.
    pub fn encode_chat(&self, rendered: &str) -> Vec<u32> {
        let mut ids = self.encode(rendered, false, true);
        if let (true, Some(bos)) = (self.adds_bos(), self.bos())
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        ids
    }

    /// Token ids of a text to continue. Control tokens written out become those tokens, so that a
    /// model's own marks can be used; a BOS among them is not doubled.
    pub fn encode_prompt(&self, text: &str) -> Vec<u32> {
        let mut ids = self.encode(text, true, true);
        let doubled = self.bos().is_some_and(|bos| ids.starts_with(&[bos, bos]));
        if doubled && self.adds_bos() {
            ids.remove(0);
        }
        ids
    }

    /// Text of ids, special (control) tokens left out, invalid UTF-8 replaced.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = self.stream();
        let mut text: String = ids.iter().map(|&id| stream.push(self, id)).collect();
        text.push_str(&stream.finish());
        text
    }

    /// The bytes that a token stands for in the middle of a text; empty for control tokens and unknown ids.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.tokens
            .get(id as usize)
            .map_or(&[], |token| &token.bytes)
    }

    /// The token as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(|token| &*token.text)
    }

    /// The id of a token as the vocabulary writes it.
    pub fn id(&self, token: &str) -> Option<u32> {
        match &self.encoder {
            Encoder::Pipeline(pipeline) => pipeline.inner().token_to_id(token),
            Encoder::Spm(spm) => spm.id(token),
        }
    }

    /// Whether the token is a control token, which has no text.
    pub fn is_special(&self, id: u32) -> bool {
        let kind = self.tokens.get(id as usize).map(|token| token.kind);
        matches!(kind, Some(Kind::Control | Kind::Unknown))
    }

    /// Begin of text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Whether `encode(_, true, _)` puts BOS first.
    pub fn adds_bos(&self) -> bool {
        self.bos.is_some() && self.before.first() == self.bos.as_ref()
    }

    /// Every id that ends a turn or a text; the first is the vocabulary's own end of text, whose
    /// [`Tokenizer::token`] chat templates know as `eos_token`.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// The Jinja template of conversations, if the model came with one.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// A decoder for one stream of ids.
    pub fn stream(&self) -> TextStream {
        TextStream::default()
    }

    /// Whether a text's first space is the vocabulary's own and not the text's.
    fn drops_first_space(&self) -> bool {
        self.drops_first_space
    }
}
