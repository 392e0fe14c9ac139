//! Log-probabilities in the chat API's form and in that of text completions.

use sedge_engine::Logprob;
use sedge_formats::tokenizer::Tokenizer;
use serde_json::{Map, Value};

use crate::openai::response::{ChatLogprobs, RankedToken, TextLogprobs, TokenLogprob};

/// What OpenAI sends for a token that cannot come: JSON has no infinity.
const LEAST: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    if logprob.is_nan() {
        LEAST
    } else {
        logprob.clamp(LEAST, 0.0)
    }
}

/// A token as the chat API has it: text, and the exact bytes.
fn ranked(tokenizer: &Tokenizer, id: u32, logprob: f32) -> RankedToken {
    let bytes = tokenizer.bytes(id);
    let (token, bytes) = if bytes.is_empty() {
        (tokenizer.token(id).unwrap_or_default().to_string(), None)
    } else {
        (
            String::from_utf8_lossy(bytes).into_owned(),
            Some(bytes.to_vec()),
        )
    };
    RankedToken {
        token,
        logprob: finite(logprob),
        bytes,
    }
}

/// One token of a chat's answer.
pub(crate) fn of_chat(tokenizer: &Tokenizer, logprob: &Logprob) -> TokenLogprob {
    TokenLogprob {
        token: ranked(tokenizer, logprob.id, logprob.logprob),
        top_logprobs: logprob
            .top
            .iter()
            .map(|(id, logprob)| ranked(tokenizer, *id, *logprob))
            .collect(),
    }
}

/// A token as text completions have it: text, or its bytes when they are no text by themselves.
fn named(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.bytes(id);
    if bytes.is_empty() {
        return tokenizer.token(id).unwrap_or_default().to_string();
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_string(),
        Err(_) => bytes.iter().fold("bytes:".to_string(), |text, byte| {
            format!("{text}\\x{byte:02x}")
        }),
    }
}

impl ChatLogprobs {
    /// Adds what another chunk has.
    pub(crate) fn extend(&mut self, more: ChatLogprobs) {
        self.content.extend(more.content);
    }
}

impl TextLogprobs {
    /// Adds a text's first token, which nothing precedes.
    pub(crate) fn push_first(&mut self, tokenizer: &Tokenizer, id: u32, offset: &mut usize) {
        self.push_token(tokenizer, id, offset);
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
    }

    /// Adds a token; `offset` counts the characters so far.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, logprob: &Logprob, offset: &mut usize) {
        self.push_token(tokenizer, logprob.id, offset);
        self.token_logprobs.push(Some(finite(logprob.logprob)));
        let chosen = (logprob.id, logprob.logprob);
        let mut top = Map::new();
        for (id, logprob) in logprob.top.iter().copied().chain([chosen]) {
            top.entry(named(tokenizer, id))
                .or_insert_with(|| Value::from(finite(logprob)));
        }
        self.top_logprobs.push(Some(top));
    }

    fn push_token(&mut self, tokenizer: &Tokenizer, id: u32, offset: &mut usize) {
        self.tokens.push(named(tokenizer, id));
        self.text_offset.push(*offset);
        // A character counts where its first byte is.
        *offset += tokenizer
            .bytes(id)
            .iter()
            .filter(|byte| **byte & 0xC0 != 0x80)
            .count();
    }

    /// Adds what another chunk has.
    pub(crate) fn extend(&mut self, more: TextLogprobs) {
        self.tokens.extend(more.tokens);
        self.token_logprobs.extend(more.token_logprobs);
        self.top_logprobs.extend(more.top_logprobs);
        self.text_offset.extend(more.text_offset);
    }
}
