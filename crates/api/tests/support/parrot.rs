//! A model of bytes: the answer to a prompt with `\u{1}text\u{2}` is that text.

use std::sync::{Arc, Condvar, Mutex};

use sedge_engine::{Executor, Shape};
use sedge_formats::tokenizer::Tokenizer;
use sedge_kernels::PAGE_TOKENS;
use sedge_models::config::Pooling;
use sedge_models::{Batch, Outputs};
use serde_json::json;

/// Most positions.
pub(crate) const CONTEXT: usize = 4096;
/// Values in a vector.
pub(crate) const HIDDEN: usize = 8;

const VOCAB: usize = 258;
const END: u32 = 256;
/// A control token, as some models have them before calls.
const CALLS: u32 = 257;

/// Words a prompt so that the parrot answers `text`. `*` goes on for ever, `?` is random letters,
/// and `\u{4}` stands for the control token `[TOOL_CALLS]`.
pub(crate) fn say(text: &str) -> String {
    format!("\u{1}{text}\u{2}")
}

/// Every byte is a token; 256 ends an answer.
pub(crate) fn tokenizer() -> Tokenizer {
    let folder = std::env::temp_dir().join(format!(
        "sedge-api-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::create_dir_all(&folder).unwrap();
    let vocab: serde_json::Map<_, _> = (0..=255u8)
        .map(|byte| (letter(byte).to_string(), json!(byte)))
        .collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [special(END, "<|end|>"), special(CALLS, "[TOOL_CALLS]")],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": []},
    });
    std::fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
    let config = json!({"eos_token": "<|end|>"}).to_string();
    std::fs::write(folder.join("tokenizer_config.json"), config).unwrap();
    let tokenizer = Tokenizer::open(&folder).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(tokenizer.encode("aä", false, true).len(), 3);
    tokenizer
}

/// The character that stands for a byte in byte-level vocabularies (GPT-2's table).
fn letter(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let nth = (0..byte).filter(|b| !printable(*b)).count();
    char::from_u32(256 + nth as u32).unwrap()
}

/// Stops steps until the test lets them through.
#[derive(Default)]
pub(crate) struct Gate {
    /// Steps that may run; `None` lets all.
    steps: Mutex<Option<usize>>,
    changed: Condvar,
}

impl Gate {
    /// Only `steps` more steps run.
    pub(crate) fn only(&self, steps: usize) {
        *self.steps.lock().unwrap() = Some(steps);
        self.changed.notify_all();
    }

    /// All steps run.
    pub(crate) fn open(&self) {
        *self.steps.lock().unwrap() = None;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut steps = self
            .changed
            .wait_while(self.steps.lock().unwrap(), |steps| *steps == Some(0))
            .unwrap();
        if let Some(left) = steps.as_mut() {
            *left -= 1;
        }
    }
}

/// The model.
pub(crate) struct Parrot {
    gate: Arc<Gate>,
    encoder: bool,
    memory: Vec<u32>,
}

impl Parrot {
    pub(crate) fn new(gate: Arc<Gate>, encoder: bool) -> Parrot {
        Parrot {
            gate,
            encoder,
            memory: vec![0; 4 * CONTEXT],
        }
    }

    /// The sequence up to a row.
    fn history(&self, batch: &Batch, row: usize) -> Vec<u32> {
        let segment = batch
            .segments
            .iter()
            .find(|segment| segment.rows.contains(&row))
            .unwrap();
        if self.encoder {
            return batch.tokens[segment.rows.clone()].to_vec();
        }
        let table = &batch.tables[segment.pages.clone()];
        (0..=segment.position + row - segment.rows.start)
            .map(|at| self.memory[slot(table, at)])
            .collect()
    }
}

fn slot(table: &[u32], position: usize) -> usize {
    table[position / PAGE_TOKENS] as usize * PAGE_TOKENS + position % PAGE_TOKENS
}

impl Executor for Parrot {
    fn shape(&self) -> Shape {
        let pages = if self.encoder {
            0
        } else {
            self.memory.len() / PAGE_TOKENS
        };
        Shape {
            vocab: VOCAB,
            hidden: HIDDEN,
            context: CONTEXT,
            pages,
            bidirectional: self.encoder,
            pooling: Pooling::Mean,
            members: 1,
        }
    }

    fn forward(&mut self, batch: &Batch, out: &mut Outputs) {
        self.gate.pass();
        if !self.encoder {
            for segment in &batch.segments {
                let table = &batch.tables[segment.pages.clone()];
                for (row, position) in segment.rows.clone().zip(segment.position..) {
                    self.memory[slot(table, position)] = batch.tokens[row];
                }
            }
        }
        out.logits.clear();
        for row in &batch.logits {
            out.logits
                .extend(logits(&self.history(batch, *row as usize)));
        }
        out.hidden.clear();
        for row in &batch.hidden {
            out.hidden
                .extend(hidden(&self.history(batch, *row as usize)));
        }
    }
}

/// What comes after a text, as good as certain.
fn logits(history: &[u32]) -> Vec<f32> {
    let mut logits = vec![-20.0; VOCAB];
    let last = |mark: u32| history.iter().rposition(|token| *token == mark);
    let (Some(from), Some(to)) = (last(1), last(2)) else {
        logits[END as usize] = 20.0;
        return logits;
    };
    let script = history.get(from + 1..to).unwrap_or_default();
    let begin = last(3).filter(|mark| *mark > to).unwrap_or(to) + 1;
    let said = history.len().saturating_sub(begin);
    let next = match script {
        [b] if *b == u32::from(b'*') => u32::from(b'x'),
        [b] if *b == u32::from(b'?') => {
            logits[usize::from(b'a')..=usize::from(b'z')].fill(20.0);
            return logits;
        }
        _ => match script.get(said) {
            Some(4) => CALLS,
            Some(token) => *token,
            None => END,
        },
    };
    logits[next as usize] = 20.0;
    logits
}

/// How often each residue of the tokens came.
fn hidden(history: &[u32]) -> Vec<f32> {
    let mut values = vec![0.0; HIDDEN];
    for token in history {
        values[*token as usize % HIDDEN] += 1.0;
    }
    values
}
