//! A model for tests whose outputs are a hash of what it finds in its pages.
//! A wrong block table, a page with two owners or a chunk at a wrong position gives other tokens.

use std::time::Duration;

use sedge_clock::Clock;
use sedge_formats::gguf::{Array, Value};
use sedge_formats::tokenizer::Tokenizer;
use sedge_kernels::PAGE_TOKENS;
use sedge_models::{Batch, Outputs};

use crate::logprob::peak;
use crate::rng::split_mix;
use crate::{Executor, Request, Sampling, Shape};

/// Shape of the model in most tests.
pub(crate) const SHAPE: Shape = Shape {
    vocab: 40,
    hidden: 3,
    context: 256,
    pages: 64,
    bidirectional: false,
    pooling: sedge_models::config::Pooling::Mean,
    members: 1,
};

// Tokens that make trouble, in models of that vocabulary only.
/// A step with this token panics.
pub(crate) const PANIC: u32 = 39;
/// After this token every logit is NaN.
pub(crate) const NAN: u32 = 38;
/// A step with this token leaves too few logits.
pub(crate) const SHORT: u32 = 37;
/// Tokens below this one are ordinary.
pub(crate) const ORDINARY: u32 = 37;

pub(crate) struct Scripted {
    shape: Shape,
    /// Token and position of each slot of each page.
    memory: Vec<Option<(u32, usize)>>,
    /// More tokens than this in a step panic.
    pub(crate) most_tokens: usize,
    /// What a step takes, on this clock.
    pub(crate) pace: Option<(Clock, Duration)>,
}

impl Scripted {
    pub(crate) fn new(shape: Shape) -> Scripted {
        Scripted {
            shape,
            memory: vec![None; shape.pages * PAGE_TOKENS],
            most_tokens: usize::MAX,
            pace: None,
        }
    }

    /// The most likely continuation of a prompt, without pages or steps.
    pub(crate) fn alone(prompt: &[u32], tokens: usize) -> Vec<u32> {
        let mut all = prompt.to_vec();
        for _ in 0..tokens {
            all.push(peak(&logits(&all, SHAPE.vocab)).unwrap().0 as u32);
        }
        all.split_off(prompt.len())
    }
}

/// A request for the most likely tokens.
pub(crate) fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Request {
    let sampling = Sampling {
        temperature: 0.0,
        ..Sampling::default()
    };
    Request {
        prompt,
        max_tokens: Some(max_tokens),
        sampling,
        ..Request::default()
    }
}

/// A SentencePiece vocabulary: 0 unknown, 1 begins and 2 ends a text, then the 256 bytes, then
/// `pieces` from [`PIECES`] on.
pub(crate) fn tokenizer(pieces: &[&str]) -> Tokenizer {
    let mut tokens = vec!["<unk>".to_string(), "<s>".to_string(), "</s>".to_string()];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(pieces.iter().map(|piece| piece.replace(' ', "\u{2581}")));
    let kind = |id| match id {
        0 => 2,
        1..=2 => 3,
        3..PIECES => 6,
        _ => 1,
    };
    let kinds = (0..tokens.len() as u32).map(kind).collect();
    let text = |text: &str| Value::String(text.to_string());
    let metadata = [
        ("tokenizer.ggml.model", text("llama")),
        ("tokenizer.ggml.tokens", Value::Array(Array::String(tokens))),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds))),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
    ];
    let metadata = metadata
        .into_iter()
        .map(|(key, value)| (key.to_string(), value))
        .collect();
    Tokenizer::from_metadata(&metadata).unwrap()
}

/// First id after the bytes.
pub(crate) const PIECES: u32 = 259;

fn hash(tokens: &[u32]) -> u64 {
    tokens
        .iter()
        .fold(17, |hash, &token| split_mix(&mut (hash ^ u64::from(token))))
}

/// Logits after a text.
pub(crate) fn logits(text: &[u32], vocab: usize) -> Vec<f32> {
    let mut state = hash(text);
    let scripted = vocab == SHAPE.vocab;
    let nan = scripted && text.last() == Some(&NAN);
    (0..vocab as u32)
        .map(|token| match token {
            _ if nan => f32::NAN,
            ORDINARY.. if scripted => f32::NEG_INFINITY,
            _ => (split_mix(&mut state) % 1000) as f32 / 100.0,
        })
        .collect()
}

/// Hidden state of the last token of a text.
pub(crate) fn hidden(text: &[u32], width: usize) -> Vec<f32> {
    let mut state = !hash(text);
    (0..width)
        .map(|_| (split_mix(&mut state) % 1000) as f32 / 100.0)
        .collect()
}

impl Executor for Scripted {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn page_bytes(&self) -> usize {
        PAGE_TOKENS * 8
    }

    fn read_page(&self, page: u32) -> Vec<u8> {
        let slots = &self.memory[page as usize * PAGE_TOKENS..][..PAGE_TOKENS];
        let bytes = slots.iter().flat_map(|slot| {
            let (token, position) = slot.unwrap_or((u32::MAX, 0));
            [token, position as u32].map(u32::to_le_bytes)
        });
        bytes.flatten().collect()
    }

    fn write_page(&mut self, page: u32, bytes: &[u8]) {
        let slots = &mut self.memory[page as usize * PAGE_TOKENS..][..PAGE_TOKENS];
        for (slot, pair) in slots.iter_mut().zip(bytes.as_chunks::<8>().0) {
            let [token, position] =
                [&pair[..4], &pair[4..]].map(|half| u32::from_le_bytes(half.try_into().unwrap()));
            *slot = (token != u32::MAX).then_some((token, position as usize));
        }
    }

    fn copy_page(&mut self, from: u32, to: u32) {
        let from = from as usize * PAGE_TOKENS;
        self.memory
            .copy_within(from..from + PAGE_TOKENS, to as usize * PAGE_TOKENS);
    }

    fn forward(&mut self, batch: &Batch, out: &mut Outputs) {
        if let Some((clock, step)) = &self.pace {
            clock.wait(*step);
        }
        let rows = batch.tokens.len();
        let scripted = self.shape.vocab == SHAPE.vocab;
        let contains = |token| scripted && batch.tokens.contains(&token);
        assert!(!contains(PANIC), "a scripted panic");
        assert!(rows <= self.most_tokens, "{rows} tokens in a step");
        assert_eq!(batch.segments.first().map(|s| s.rows.start), Some(0));
        assert_eq!(batch.segments.last().map(|s| s.rows.end), Some(rows));
        assert!(
            batch
                .segments
                .windows(2)
                .all(|s| s[0].rows.end == s[1].rows.start)
        );

        if !self.shape.bidirectional {
            for segment in &batch.segments {
                let table = &batch.tables[segment.pages.clone()];
                for (row, position) in segment.rows.clone().zip(segment.position..) {
                    let slot = table[position / PAGE_TOKENS] as usize * PAGE_TOKENS
                        + position % PAGE_TOKENS;
                    self.memory[slot] = Some((batch.tokens[row], position));
                }
            }
        }
        // What each row sees of its sequence.
        let text = |row: usize| -> Vec<u32> {
            let segment = batch
                .segments
                .iter()
                .find(|s| s.rows.contains(&row))
                .unwrap();
            if self.shape.bidirectional {
                let mut text = batch.tokens[segment.rows.clone()].to_vec();
                text.push((row - segment.rows.start) as u32);
                return text;
            }
            let table = &batch.tables[segment.pages.clone()];
            (0..=segment.position + row - segment.rows.start)
                .map(|position| {
                    let slot = table[position / PAGE_TOKENS] as usize * PAGE_TOKENS
                        + position % PAGE_TOKENS;
                    let (token, stored) = self.memory[slot].unwrap();
                    assert_eq!(stored, position, "a page was overwritten");
                    token
                })
                .collect()
        };
        out.logits.clear();
        for &row in &batch.logits {
            out.logits
                .extend(logits(&text(row as usize), self.shape.vocab));
        }
        out.hidden.clear();
        for &row in &batch.hidden {
            out.hidden
                .extend(hidden(&text(row as usize), self.shape.hidden));
        }
        if contains(SHORT) {
            out.logits.pop();
        }
    }
}
