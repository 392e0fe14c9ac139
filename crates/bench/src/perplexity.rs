//! Perplexity: how surprised a model is by a text.
//! The figure depends on the text, the window and the model, never on how the work is cut up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sedge_engine::Executor;
use sedge_formats::tokenizer::Tokenizer;
use sedge_kernels::{PAGE_TOKENS, Segment, Team};
use sedge_models::{Batch, Outputs};

/// Most bytes of logits that are computed at once.
const LOGIT_BYTES: usize = 64 << 20;
/// Most rows that are computed at once.
const ROWS: usize = 512;

/// How a text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens that a window reads, and tokens on which it is scored.
    pub window: usize,
    /// Score this many windows only, from the text's start.
    pub windows: Option<usize>,
    /// Which tokens count.
    pub count: Count,
}

/// Which tokens of a window count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Count {
    /// All that follow one of the window's.
    #[default]
    All,
    /// Those of the second half that follow one of the second half, as llama.cpp counts them:
    /// each has half a window before it.
    SecondHalf,
}

impl Default for PerplexityOptions {
    fn default() -> Self {
        PerplexityOptions {
            window: 512,
            windows: None,
            count: Count::All,
        }
    }
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Perplexity {
    /// Tokens of a window.
    pub window: usize,
    /// Windows scored.
    pub windows: usize,
    /// Tokens scored.
    pub tokens: usize,
    /// Bytes of text that the scored tokens stand for; 0 where no text is known.
    pub bytes: usize,
    /// Sum of the scored tokens' negative natural-log probabilities.
    pub nats: f64,
    /// From the first window's start to the last one's end.
    pub time: Duration,
}

impl Perplexity {
    /// Nats per token.
    pub fn mean(&self) -> f64 {
        self.nats / self.tokens as f64
    }

    /// `exp` of the mean.
    pub fn perplexity(&self) -> f64 {
        self.mean().exp()
    }

    /// Bits per byte of text: comparable between models with unlike vocabularies.
    pub fn bits_per_byte(&self) -> f64 {
        self.nats / std::f64::consts::LN_2 / self.bytes as f64
    }

    /// Rate.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.time.as_secs_f64()
    }
}

/// Why nothing was measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PerplexityError {
    /// The model does not predict the next token.
    #[error("the model is an encoder: it predicts no next token, so it has no perplexity")]
    Encoder,
    /// A window is empty or longer than the model's context.
    #[error("a window of {window} tokens; it must have 1 to {context}, the model's context")]
    Window {
        /// What was asked for.
        window: usize,
        /// Most positions.
        context: usize,
    },
    /// The executor keeps fewer positions than a window has.
    #[error(
        "a window of {window} tokens needs {needed} pages of keys and values; there are {pages}"
    )]
    Pages {
        /// What was asked for.
        window: usize,
        /// Pages that it takes.
        needed: usize,
        /// Pages that there are.
        pages: usize,
    },
    /// The text has no whole window.
    #[error("the text has {tokens} tokens; a window of {window} needs {}", window + 1)]
    Short {
        /// Tokens of the text.
        tokens: usize,
        /// What was asked for.
        window: usize,
    },
    /// The tokenizer and the model do not belong together.
    #[error("token {id} of the text is not among the model's {vocab}")]
    Token {
        /// Token id.
        id: u32,
        /// Size of the model's vocabulary.
        vocab: usize,
    },
}

/// Encodes a text without special tokens and [`score`]s it; knows its bytes.
///
/// # Errors
/// When the text is too short, or the model does not fit it.
pub fn perplexity(
    executor: &mut dyn Executor,
    team: &Team,
    tokenizer: &Tokenizer,
    text: &str,
    options: PerplexityOptions,
    progress: &mut dyn FnMut(&Perplexity, usize),
) -> Result<Perplexity, PerplexityError> {
    // As llama.cpp does, which begins each window with the token that begins a text.
    let begins = options.count == Count::SecondHalf && tokenizer.adds_bos();
    let ids = tokenizer.encode(text, begins, false);
    let first = tokenizer.bos().filter(|_| begins);
    let mut result = score_from(executor, team, &ids, first, options, progress)?;
    let bytes = |ids: &[u32]| {
        ids.iter()
            .map(|id| tokenizer.bytes(*id).len())
            .sum::<usize>()
    };
    result.bytes = match options.count {
        Count::All => bytes(&ids[1..=result.tokens]),
        Count::SecondHalf => ids
            .chunks_exact(options.window)
            .take(result.windows)
            .map(|window| bytes(&window[options.window / 2 + 1..]))
            .sum(),
    };
    Ok(result)
}

/// Scores token ids. Window `k` of `W` tokens reads ids `Wk … Wk+W-1` from an empty cache and is
/// scored on ids `Wk+1 … Wk+W`, all `W` of them, or with [`Count::SecondHalf`] on ids
/// `Wk+W/2+1 … Wk+W-1`; ids that fill no window are left out.
/// `progress` sees the sum so far and the number of windows.
///
/// # Errors
/// When there are too few ids, or the model does not fit them.
pub fn score(
    executor: &mut dyn Executor,
    team: &Team,
    ids: &[u32],
    options: PerplexityOptions,
    progress: &mut dyn FnMut(&Perplexity, usize),
) -> Result<Perplexity, PerplexityError> {
    score_from(executor, team, ids, None, options, progress)
}

/// [`score`], with every window's first token replaced by `first`, if there is one.
fn score_from(
    executor: &mut dyn Executor,
    team: &Team,
    ids: &[u32],
    first: Option<u32>,
    options: PerplexityOptions,
    progress: &mut dyn FnMut(&Perplexity, usize),
) -> Result<Perplexity, PerplexityError> {
    let shape = executor.shape();
    let window = options.window;
    if shape.bidirectional {
        return Err(PerplexityError::Encoder);
    }
    if window == 0 || window > shape.context {
        return Err(PerplexityError::Window {
            window,
            context: shape.context,
        });
    }
    let needed = window.div_ceil(PAGE_TOKENS);
    if needed > shape.pages {
        return Err(PerplexityError::Pages {
            window,
            needed,
            pages: shape.pages,
        });
    }
    let (whole, scored) = match options.count {
        Count::All => (ids.len().saturating_sub(1) / window, 0..window),
        // The last token of a window has nothing to predict.
        Count::SecondHalf => (ids.len() / window, window / 2..window.saturating_sub(1)),
    };
    let windows = options.windows.map_or(whole, |limit| limit.min(whole));
    if windows == 0 {
        return Err(PerplexityError::Short {
            tokens: ids.len(),
            window,
        });
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= shape.vocab) {
        return Err(PerplexityError::Token {
            id: *id,
            vocab: shape.vocab,
        });
    }

    let rows = (LOGIT_BYTES / (shape.vocab * size_of::<f32>())).clamp(1, ROWS);
    let mut sum = Perplexity {
        window,
        windows: 0,
        tokens: 0,
        bytes: 0,
        nats: 0.0,
        time: Duration::ZERO,
    };
    let mut batch = Batch {
        tables: (0..needed as u32).collect(),
        ..Batch::default()
    };
    let mut out = Outputs::default();
    let start = Instant::now();
    let mut inputs = Vec::with_capacity(window);
    for start_id in (0..windows).map(|w| w * window) {
        inputs.clear();
        inputs.extend_from_slice(&ids[start_id..start_id + window]);
        if let Some(first) = first {
            inputs[0] = first;
        }
        for (chunk, inputs) in inputs.chunks(rows).enumerate() {
            let position = chunk * rows;
            batch.tokens.clear();
            batch.tokens.extend_from_slice(inputs);
            batch.segments.clear();
            batch.segments.push(Segment {
                rows: 0..inputs.len(),
                position,
                pages: 0..needed,
            });
            let here = scored.start.clamp(position, position + inputs.len())
                ..scored.end.clamp(position, position + inputs.len());
            batch.logits.clear();
            batch
                .logits
                .extend((here.start - position) as u32..(here.end - position) as u32);
            executor.forward(&batch, &mut out);
            let targets = &ids[start_id + here.start + 1..][..here.len()];
            sum.nats += surprise(team, &out.logits, targets, shape.vocab);
            sum.tokens += here.len();
        }
        sum.windows += 1;
        sum.time = start.elapsed();
        progress(&sum, windows);
    }
    Ok(sum)
}

/// Sum over rows of `-ln softmax(logits[row])[target]`, added up in the rows' order.
fn surprise(team: &Team, logits: &[f32], targets: &[u32], vocab: usize) -> f64 {
    let nats: Vec<AtomicU64> = targets.iter().map(|_| AtomicU64::new(0)).collect();
    team.run(targets.len(), &|row| {
        let logits = &logits[row * vocab..][..vocab];
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|x| f64::from((x - max).exp())).sum();
        let value = sum.ln() + f64::from(max) - f64::from(logits[targets[row] as usize]);
        nats[row].store(value.to_bits(), Ordering::Relaxed);
    });
    nats.into_iter()
        .map(|n| f64::from_bits(n.into_inner()))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sedge_engine::Shape;

    /// A model whose logits depend on the last token and the position alone, and that checks
    /// what it is given.
    struct Bigram {
        vocab: usize,
        context: usize,
        expected: usize,
    }

    impl Bigram {
        fn logit(&self, token: u32, position: usize, next: usize) -> f32 {
            let x = (token as usize * 31 + position * 7 + next * 13) % 17;
            x as f32 / 3.0
        }
    }

    impl Executor for Bigram {
        fn shape(&self) -> Shape {
            Shape {
                vocab: self.vocab,
                hidden: 1,
                context: self.context,
                pages: 64,
                bidirectional: false,
                pooling: sedge_models::config::Pooling::Mean,
                members: 1,
            }
        }

        fn forward(&mut self, batch: &Batch, out: &mut Outputs) {
            let segment = &batch.segments[0];
            if segment.position != 0 {
                assert_eq!(segment.position, self.expected, "chunks follow each other");
            }
            self.expected = segment.position + segment.rows.len();
            out.logits.clear();
            for &row in &batch.logits {
                let (token, position) =
                    (&batch.tokens[row as usize], segment.position + row as usize);
                out.logits
                    .extend((0..self.vocab).map(|next| self.logit(*token, position, next)));
            }
        }
    }

    fn ids(n: usize, vocab: usize) -> Vec<u32> {
        (0..n)
            .map(|i| (i * i * 5 + i * 3 + 1) as u32 % vocab as u32)
            .collect()
    }

    fn measure(
        model: &mut Bigram,
        ids: &[u32],
        window: usize,
        windows: Option<usize>,
    ) -> Perplexity {
        let options = PerplexityOptions {
            window,
            windows,
            ..Default::default()
        };
        score(model, &Team::new(2), ids, options, &mut |_, _| {}).unwrap()
    }

    #[test]
    fn scores_equal_the_definition() {
        let (vocab, window) = (11, 32);
        let mut model = Bigram {
            vocab,
            context: 4096,
            expected: 0,
        };
        let ids = ids(100, vocab);
        let found = measure(&mut model, &ids, window, None);

        // The definition, one target at a time: windows 0, 1 and 2 use ids 0 ..= 96.
        let mut nats = 0.0f64;
        for target in 1..=96 {
            let position = (target - 1) % window;
            let weight =
                |next: usize| f64::from(model.logit(ids[target - 1], position, next)).exp();
            let all: f64 = (0..vocab).map(weight).sum();
            nats -= (weight(ids[target] as usize) / all).ln();
        }
        assert_eq!((found.windows, found.tokens), (3, 96));
        assert!((found.nats - nats).abs() < 1e-4, "{} {nats}", found.nats);
        assert!((found.perplexity() - (nats / 96.0).exp()).abs() < 1e-5);
    }

    #[test]
    fn the_second_half_is_scored_as_llama_cpp_does() {
        let (vocab, window) = (11, 32);
        let mut model = Bigram {
            vocab,
            context: 4096,
            expected: 0,
        };
        let ids = ids(100, vocab);
        let options = PerplexityOptions {
            window,
            count: Count::SecondHalf,
            ..Default::default()
        };
        let team = Team::new(1);
        for first in [None, Some(5)] {
            let found =
                score_from(&mut model, &team, &ids, first, options, &mut |_, _| {}).unwrap();
            let mut nats = 0.0f64;
            for start in [0, 32, 64] {
                for position in 16..31 {
                    let token = ids[start + position];
                    let weight = |next: usize| f64::from(model.logit(token, position, next)).exp();
                    let all: f64 = (0..vocab).map(weight).sum();
                    nats -= (weight(ids[start + position + 1] as usize) / all).ln();
                }
            }
            assert_eq!((found.windows, found.tokens), (3, 45));
            assert!((found.nats - nats).abs() < 1e-4, "{} {nats}", found.nats);
        }
    }

    #[test]
    fn chunks_do_not_change_the_score() {
        // 100,000 tokens in the vocabulary leave room for 167 rows at once.
        let vocab = 100_000;
        let mut model = Bigram {
            vocab,
            context: 4096,
            expected: 0,
        };
        let ids = ids(401, vocab);
        let one = measure(&mut model, &ids, 400, None);
        let naive: f64 = (0..400)
            .map(|i| {
                let row: Vec<f32> = (0..vocab).map(|n| model.logit(ids[i], i, n)).collect();
                surprise(&Team::new(1), &row, &[ids[i + 1]], vocab)
            })
            .sum();
        assert!((one.nats - naive).abs() < 1e-6);
    }

    #[test]
    fn a_limit_takes_the_first_windows() {
        let mut model = Bigram {
            vocab: 11,
            context: 64,
            expected: 0,
        };
        let ids = ids(200, 11);
        let limited = measure(&mut model, &ids, 16, Some(2));
        let short = measure(&mut model, &ids[..33], 16, None);
        assert_eq!((limited.tokens, limited.nats), (32, short.nats));
    }

    #[test]
    fn what_cannot_be_measured_is_said() {
        let mut model = Bigram {
            vocab: 11,
            context: 64,
            expected: 0,
        };
        let mut run = |ids: &[u32], window| {
            let options = PerplexityOptions {
                window,
                ..Default::default()
            };
            score(&mut model, &Team::new(1), ids, options, &mut |_, _| {}).unwrap_err()
        };
        assert_eq!(
            run(&[1; 16], 16),
            PerplexityError::Short {
                tokens: 16,
                window: 16
            }
        );
        assert_eq!(
            run(&[], 16),
            PerplexityError::Short {
                tokens: 0,
                window: 16
            }
        );
        assert_eq!(
            run(&[1; 99], 65),
            PerplexityError::Window {
                window: 65,
                context: 64
            }
        );
        assert_eq!(
            run(&[1; 99], 0),
            PerplexityError::Window {
                window: 0,
                context: 64
            }
        );
        assert_eq!(
            run(&[11; 99], 16),
            PerplexityError::Token { id: 11, vocab: 11 }
        );
    }

    #[test]
    fn bits_per_byte_are_nats_over_bytes() {
        let p = Perplexity {
            window: 1,
            windows: 8,
            tokens: 8,
            bytes: 16,
            nats: 8.0 * std::f64::consts::LN_2,
            time: Duration::from_secs(2),
        };
        assert!((p.bits_per_byte() - 0.5).abs() < 1e-12);
        assert!((p.perplexity() - 2.0).abs() < 1e-12);
        assert_eq!(p.tokens_per_second(), 4.0);
    }
}
