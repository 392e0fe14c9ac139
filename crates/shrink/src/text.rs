//! What a model reads while it is looked at: tokens of a text, or tokens that it writes itself,
//! which need no text and are of the kind that it was trained on (LLM-QAT: Liu et al., 2023,
//! arXiv 2305.17888).

use sedge_kernels::{KvPages, KvType, PAGE_TOKENS, Segment, Team};
use sedge_models::{Batch, Model, Outputs, Workspace};

use crate::numbers::Numbers;

/// Sequences of `length` tokens from all over a text, at most `count`.
pub fn pieces(tokens: &[u32], length: usize, count: usize) -> Vec<Vec<u32>> {
    let all: Vec<&[u32]> = tokens.chunks(length).collect();
    let whole = all.iter().filter(|s| s.len() == length).count();
    if whole == 0 {
        return all.iter().take(1).map(|s| s.to_vec()).collect();
    }
    let take = count.min(whole);
    (0..take).map(|i| all[i * whole / take].to_vec()).collect()
}

/// Sequences that the model writes, each of `length` tokens after `start`, every token drawn from
/// what the model thinks of it. The same for the same seed.
///
/// # Panics
/// When `start` is empty or not of the vocabulary, the model is no decoder, or the length is
/// beyond its context.
pub fn written(
    team: &Team,
    model: &Model,
    start: &[u32],
    (count, length): (usize, usize),
    seed: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> Vec<Vec<u32>> {
    const TOGETHER: usize = 64;
    let config = model.config();
    let (vocab, layers) = (config.vocab, config.layers.len());
    let length = length.min(config.context).max(start.len() + 1);
    let (mut work, mut out) = (Workspace::default(), Outputs::default());
    let mut all = Vec::new();
    let pages = length.div_ceil(PAGE_TOKENS);
    for first in (0..count).step_by(TOGETHER) {
        let here = TOGETHER.min(count - first);
        let mut kv = KvPages::new(layers, pages * here, model.kv_shape(), KvType::F16);
        let mut texts = vec![start.to_vec(); here];
        let mut numbers: Vec<Numbers> = (0..here)
            .map(|i| Numbers::new(seed.wrapping_mul(0x9e37).wrapping_add((first + i) as u64)))
            .collect();
        let mut done = 0;
        while texts[0].len() < length {
            progress(first * length + texts[0].len() * here, count * length);
            let mut batch = Batch::default();
            for (i, text) in texts.iter().enumerate() {
                let rows = batch.tokens.len();
                batch.tokens.extend_from_slice(&text[done..]);
                batch
                    .tables
                    .extend((0..pages).map(|p| (i * pages + p) as u32));
                batch.segments.push(Segment {
                    rows: rows..batch.tokens.len(),
                    position: done,
                    pages: i * pages..(i + 1) * pages,
                });
                batch.logits.push(batch.tokens.len() as u32 - 1);
            }
            if done > 0 {
                batch.generated = batch.tokens.len();
            }
            done = texts[0].len();
            model.forward(team, &batch, &mut kv, &mut work, &mut out);
            let rows = out.logits.chunks_exact(vocab);
            for ((text, numbers), logits) in texts.iter_mut().zip(&mut numbers).zip(rows) {
                text.push(draw(logits, numbers.unit()));
            }
        }
        all.extend(texts);
    }
    all
}

/// The token at which the probabilities, summed up, pass `at`.
fn draw(logits: &[f32], at: f32) -> u32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |l: f32| f64::from(l - most).exp();
    let sum: f64 = logits.iter().map(|&l| weight(l)).sum();
    let mut left = f64::from(at) * sum;
    for (token, &logit) in logits.iter().enumerate() {
        left -= weight(logit);
        if left < 0.0 {
            return token as u32;
        }
    }
    logits.len().saturating_sub(1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_from_all_over_the_text() {
        let tokens: Vec<u32> = (0..1000).collect();
        let found = pieces(&tokens, 100, 3);
        let starts: Vec<u32> = found.iter().map(|s| s[0]).collect();
        assert_eq!(starts, [0, 300, 600]);
        assert!(found.iter().all(|s| s.len() == 100));
        assert_eq!(pieces(&tokens, 100, 99).len(), 10);
        assert_eq!(pieces(&tokens[..50], 100, 3), [tokens[..50].to_vec()]);
        assert!(pieces(&[], 100, 3).is_empty());
    }

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_likely() {
        let logits = [0.0, (3.0f32).ln(), f32::NEG_INFINITY];
        let mut numbers = Numbers::new(5);
        let drawn = (0..4000)
            .filter(|_| draw(&logits, numbers.unit()) == 1)
            .count();
        assert!((2850..3150).contains(&drawn), "{drawn}");
        assert_eq!(draw(&logits, 0.0), 0);
        assert_eq!(draw(&logits, 0.999_999), 1);
    }
}
