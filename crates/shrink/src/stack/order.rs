//! The order in which memory takes blocks: by what each was measured to be worth.
//!
//! With all matrices at a level, one at a time is raised by a block, and the loss on a
//! calibration text is compared (BitStack). A block's worth is what the loss falls by for each
//! byte; of all matrices' next blocks the one that is worth most comes first. So one matrix may
//! be some blocks ahead of another, and a budget's model is that of the longest beginning that
//! fits.

use sedge_kernels::{KvPages, KvType, PAGE_TOKENS, Segment, Team, log_softmax_in_place};
use sedge_models::{Batch, Model, Outputs, StackedMatrix, Workspace};

/// The order, from what each block is worth: `gains[matrix][n]` is what the loss falls by with
/// block `n + 1` of the matrix, measured with `n + 1` blocks of all.
pub(super) fn by_worth(matrices: &[StackedMatrix], gains: &[Vec<f64>]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..matrices.len() as u32).collect();
    let mut next = vec![1; matrices.len()];
    loop {
        let mut best: Option<(f64, usize)> = None;
        for (number, matrix) in matrices.iter().enumerate() {
            let Some(block) = matrix.blocks.get(next[number]) else {
                continue;
            };
            let worth = gains[number][next[number] - 1] / block.bytes().len() as f64;
            if best.is_none_or(|(most, _)| worth > most) {
                best = Some((worth, number));
            }
        }
        let Some((_, number)) = best else {
            return order;
        };
        order.push(number as u32);
        next[number] += 1;
    }
}

/// Measures what each block is worth; see [`by_worth`]. The model's matrices are these stacks.
pub(super) fn gains(
    team: &Team,
    model: &mut Model,
    matrices: &[StackedMatrix],
    text: &[Vec<u32>],
    progress: &mut dyn FnMut(usize, usize),
) -> Vec<Vec<f64>> {
    let mut loss = Loss::new(model);
    let levels = matrices.iter().map(|m| m.blocks.len()).max().unwrap_or(0);
    let total: usize = matrices.iter().map(|m| m.blocks.len() - 1).sum();
    let mut done = 0;
    let mut gains = vec![Vec::new(); matrices.len()];
    for level in 1..levels {
        let all: Vec<usize> = matrices.iter().map(|m| level.min(m.blocks.len())).collect();
        model.set_levels(&all);
        let before = loss.of(team, model, text);
        for (number, matrix) in matrices.iter().enumerate() {
            if matrix.blocks.len() <= level {
                continue;
            }
            let mut raised = all.clone();
            raised[number] += 1;
            model.set_levels(&raised);
            let gain = before - loss.of(team, model, text);
            gains[number].push(if gain.is_finite() { gain } else { 0.0 });
            done += 1;
            progress(done, total);
        }
    }
    gains
}

/// The mean negative log-likelihood of texts' tokens, each text from its first token on.
pub(super) struct Loss {
    kv: KvPages,
    work: Workspace,
    out: Outputs,
}

impl Loss {
    pub(super) fn new(model: &Model) -> Loss {
        let config = model.config();
        let pages = config.context.div_ceil(PAGE_TOKENS);
        Loss {
            kv: KvPages::new(config.layers.len(), pages, model.kv_shape(), KvType::F16),
            work: Workspace::default(),
            out: Outputs::default(),
        }
    }

    /// In nats a token.
    pub(super) fn of(&mut self, team: &Team, model: &Model, text: &[Vec<u32>]) -> f64 {
        let config = model.config();
        let (mut sum, mut count) = (0.0, 0);
        for tokens in text.iter().filter(|t| t.len() > 1) {
            let tokens = &tokens[..tokens.len().min(config.context)];
            let pages = tokens.len().div_ceil(PAGE_TOKENS);
            let batch = Batch {
                tokens: tokens.to_vec(),
                segments: vec![Segment {
                    rows: 0..tokens.len(),
                    position: 0,
                    pages: 0..pages,
                }],
                tables: (0..pages as u32).collect(),
                logits: (0..tokens.len() as u32 - 1).collect(),
                ..Batch::default()
            };
            model.forward(team, &batch, &mut self.kv, &mut self.work, &mut self.out);
            let rows = self.out.logits.chunks_exact_mut(config.vocab);
            for (row, &next) in rows.zip(&tokens[1..]) {
                log_softmax_in_place(row);
                sum -= f64::from(row[next as usize]);
                count += 1;
            }
        }
        sum / f64::from(count.max(1))
    }
}
