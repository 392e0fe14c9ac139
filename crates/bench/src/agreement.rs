//! How far two variants of one model agree on a text: their perplexities, and how often both
//! find the same token most likely.

use sedge_engine::Executor;
use sedge_kernels::argmax;
use sedge_models::{Batch, Outputs, Variant};

/// What was compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// Tokens scored.
    pub tokens: usize,
    /// Sums of the negative natural-log probabilities, of each variant.
    pub nats: [f64; 2],
    /// Tokens that both find most likely.
    pub same: usize,
}

impl Agreement {
    /// The variants' perplexities.
    pub fn perplexities(&self) -> [f64; 2] {
        self.nats
            .map(|nats| (nats / self.tokens.max(1) as f64).exp())
    }

    /// By how much the second's perplexity is more than the first's.
    pub fn increase(&self) -> f64 {
        let [first, second] = self.perplexities();
        second / first - 1.0
    }

    /// Share of tokens that both find most likely.
    pub fn top1(&self) -> f64 {
        self.same as f64 / self.tokens.max(1) as f64
    }
}

/// Scores a text's tokens with two variants, in windows that each begin anew. The executor has
/// pages for a window. `None` where the text has no two tokens.
///
/// # Panics
/// When the executor has too few pages or positions, or a token is not in its vocabulary.
pub fn agreement(
    executor: &mut dyn Executor,
    variants: [&Variant; 2],
    text: &[u32],
    window: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Option<Agreement> {
    let vocab = executor.shape().vocab;
    let windows: Vec<&[u32]> = text.chunks(window).collect();
    let run = &mut |which: usize, batch: &mut Batch, out: &mut Outputs| {
        batch.variants = vec![variants[which].clone()];
        executor.forward(batch, out);
    };
    compare(run, vocab, &windows, progress)
}

/// The same of two models with one vocabulary, on texts that each begin anew.
///
/// # Panics
/// As [`agreement`], and when the vocabularies are of different sizes.
pub fn agreement_between(
    executors: [&mut dyn Executor; 2],
    texts: &[Vec<u32>],
    progress: &mut dyn FnMut(usize, usize),
) -> Option<Agreement> {
    let [first, second] = executors;
    let vocab = first.shape().vocab;
    assert_eq!(vocab, second.shape().vocab, "one vocabulary");
    let run = &mut |which: usize, batch: &mut Batch, out: &mut Outputs| match which {
        0 => first.forward(batch, out),
        _ => second.forward(batch, out),
    };
    let windows: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    compare(run, vocab, &windows, progress)
}

fn compare(
    run: &mut dyn FnMut(usize, &mut Batch, &mut Outputs),
    vocab: usize,
    windows: &[&[u32]],
    progress: &mut dyn FnMut(usize, usize),
) -> Option<Agreement> {
    let mut sum = Agreement {
        tokens: 0,
        nats: [0.0; 2],
        same: 0,
    };
    let windows: Vec<&[u32]> = windows.iter().copied().filter(|w| w.len() > 1).collect();
    let mut outs = [Outputs::default(), Outputs::default()];
    for (done, tokens) in windows.iter().enumerate() {
        progress(done, windows.len());
        let scored = tokens.len() - 1;
        for (which, out) in outs.iter_mut().enumerate() {
            let mut batch = Batch::default();
            batch.push_sequence(tokens);
            batch.logits.extend(0..scored as u32);
            run(which, &mut batch, out);
        }
        let [first, second] = &outs;
        let rows = first.logits.chunks(vocab).zip(second.logits.chunks(vocab));
        for ((a, b), &next) in rows.zip(&tokens[1..]) {
            sum.nats[0] += surprise(a, next);
            sum.nats[1] += surprise(b, next);
            sum.same += usize::from(argmax(a) == argmax(b));
        }
        sum.tokens += scored;
    }
    (sum.tokens > 0).then_some(sum)
}

/// The negative natural-log probability of a token.
fn surprise(logits: &[f32], token: u32) -> f64 {
    let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - most).exp()).sum();
    sum.ln() + most - f64::from(logits[token as usize])
}

#[cfg(test)]
mod tests {
    use sedge_engine::Shape;

    use super::*;

    /// Its first member expects the next number, the second one is never sure.
    struct Counter;

    impl Executor for Counter {
        fn shape(&self) -> Shape {
            Shape {
                vocab: 8,
                hidden: 1,
                context: 64,
                pages: 4,
                bidirectional: false,
                pooling: Default::default(),
                members: 2,
            }
        }

        fn forward(&mut self, batch: &Batch, out: &mut Outputs) {
            let sure = batch.variants[0].member == 0;
            out.logits.clear();
            for &row in &batch.logits {
                let next = (batch.tokens[row as usize] + 1) % 8;
                let logit = |t| if sure && t == next { 100.0 } else { 0.0 };
                out.logits.extend((0..8).map(logit));
            }
        }
    }

    #[test]
    fn what_differs_shows_in_both_figures() {
        let text: Vec<u32> = (0..40).map(|t| t % 8).collect();
        let of = |member| Variant {
            member,
            adapter: None,
        };
        let (sure, unsure) = (of(0), of(1));
        let run = |a, b| agreement(&mut Counter, [a, b], &text, 16, &mut |_, _| {}).unwrap();
        let same = run(&sure, &sure);
        assert_eq!((same.tokens, same.top1()), (37, 1.0));
        assert!(same.increase().abs() < 1e-9 && (same.perplexities()[0] - 1.0).abs() < 1e-9);
        let other = run(&sure, &unsure);
        assert!(
            (other.perplexities()[1] - 8.0).abs() < 1e-9 && (other.increase() - 7.0).abs() < 1e-9
        );
        // Of equal logits the first is taken, which is right for one token in eight.
        assert!(other.top1() < 0.2);
        assert!(agreement(&mut Counter, [&sure, &sure], &[1], 16, &mut |_, _| {}).is_none());
    }
}
