//! Mixture of experts: each token visits a few feed-forward blocks, chosen by a router.
//! Tokens are grouped by expert, so that an expert's weights are read once a step.

use sedge_kernels::{Activations, Team, matmul, softmax_in_place};

use crate::config::{Activation, Moe};
use crate::decoder::sized;
use crate::input::{FeedForwardOut, FeedForwardWork, Input, feed_forward};
use crate::weights::{Experts, Gated};

/// Working memory.
#[derive(Debug, Default)]
pub(crate) struct MoeScratch {
    scores: Vec<f32>,
    /// `(expert, weight)` of each token's choices, `[rows, per_token]`.
    choices: Vec<(u32, f32)>,
    order: Vec<u32>,
    gathered: Vec<f32>,
    computed: Vec<f32>,
    /// Each choice's result, `[rows, per_token, hidden]`.
    parts: Vec<f32>,
    converted: Activations,
    ffn: FeedForwardWork,
}

/// `out[rows, hidden]`: the weighted sum of each token's experts, and the shared one. Packed
/// weights multiply the first `integers` rows as integers.
pub(crate) fn forward(
    team: &Team,
    activation: Activation,
    rules: &Moe,
    w: &Experts,
    (x, integers): (&[f32], usize),
    s: &mut MoeScratch,
    out: &mut [f32],
) {
    let hidden = w.router.cols();
    let rows = x.len() / hidden;
    let scores = sized(&mut s.scores, rows * rules.experts);
    matmul(team, x, &w.router, scores);
    s.choices.clear();
    for row in scores.chunks_exact_mut(rules.experts) {
        softmax_in_place(row);
        choose(rules, row, &mut s.order, &mut s.choices);
    }
    let parts = sized(&mut s.parts, rows * rules.per_token * hidden);
    for (index, expert) in w.experts.iter().enumerate() {
        let visits = || {
            s.choices
                .iter()
                .enumerate()
                .filter(|(_, c)| c.0 as usize == index)
                .map(|(slot, _)| slot)
        };
        let count = visits().count();
        if count == 0 {
            continue;
        }
        let gathered = sized(&mut s.gathered, count * hidden);
        for (to, slot) in gathered.chunks_exact_mut(hidden).zip(visits()) {
            to.copy_from_slice(&x[slot / rules.per_token * hidden..][..hidden]);
        }
        let computed = sized(&mut s.computed, count * hidden);
        visit(
            team,
            activation,
            expert,
            (
                gathered,
                visits()
                    .filter(|slot| slot / rules.per_token < integers)
                    .count(),
            ),
            (&mut s.converted, &mut s.ffn),
            computed,
        );
        for (from, slot) in computed.chunks_exact(hidden).zip(visits()) {
            parts[slot * hidden..][..hidden].copy_from_slice(from);
        }
    }
    // Summed in the order of choice, which does not depend on who else is in the batch.
    for (row, to) in out.chunks_exact_mut(hidden).enumerate() {
        to.fill(0.0);
        for slot in row * rules.per_token..(row + 1) * rules.per_token {
            let weight = s.choices[slot].1;
            for (to, part) in to.iter_mut().zip(&parts[slot * hidden..][..hidden]) {
                *to += weight * part;
            }
        }
    }
    if let Some(shared) = &w.shared {
        let computed = sized(&mut s.computed, rows * hidden);
        visit(
            team,
            activation,
            shared,
            (x, integers),
            (&mut s.converted, &mut s.ffn),
            computed,
        );
        let weights = sized(&mut s.scores, rows);
        match &w.shared_gate {
            Some(gate) => {
                matmul(team, x, gate, weights);
                weights
                    .iter_mut()
                    .for_each(|w| *w = 1.0 / (1.0 + (-*w).exp()));
            }
            None => weights.fill(1.0),
        }
        for ((to, part), weight) in out
            .chunks_exact_mut(hidden)
            .zip(computed.chunks_exact(hidden))
            .zip(weights)
        {
            for (to, part) in to.iter_mut().zip(part) {
                *to += *weight * part;
            }
        }
    }
}

/// One expert's result for the rows that visit it.
fn visit(
    team: &Team,
    activation: Activation,
    w: &Gated,
    (x, integers): (&[f32], usize),
    (converted, work): (&mut Activations, &mut FeedForwardWork),
    out: &mut [f32],
) {
    let x = Input::of(team, x, integers, &[&w.gate, &w.up], converted);
    feed_forward(team, activation, w, x, work, FeedForwardOut::Set(out));
}

/// Appends the experts of one token, the most probable first, the first of equals.
fn choose(
    rules: &Moe,
    probabilities: &mut [f32],
    order: &mut Vec<u32>,
    choices: &mut Vec<(u32, f32)>,
) {
    if rules.groups > 1 {
        close_groups(rules, probabilities, order);
    }
    let p = |i: u32| probabilities[i as usize];
    order.clear();
    order.extend(0..probabilities.len() as u32);
    order.sort_unstable_by(|&a, &b| p(b).total_cmp(&p(a)).then(a.cmp(&b)));
    let chosen = &order[..rules.per_token];
    let sum = if rules.normalise {
        chosen
            .iter()
            .map(|&i| p(i))
            .sum::<f32>()
            .max(f32::MIN_POSITIVE)
    } else {
        1.0
    };
    choices.extend(chosen.iter().map(|&i| (i, p(i) / sum * rules.scale)));
}

/// DeepSeek-V2's group-limited choice: only the groups with the best single experts stay open.
fn close_groups(rules: &Moe, probabilities: &mut [f32], order: &mut Vec<u32>) {
    let size = probabilities.len() / rules.groups;
    let best = |g: u32| {
        probabilities[g as usize * size..][..size]
            .iter()
            .copied()
            .fold(0.0, f32::max)
    };
    order.clear();
    order.extend(0..rules.groups as u32);
    order.sort_unstable_by(|&a, &b| best(b).total_cmp(&best(a)).then(a.cmp(&b)));
    for &closed in &order[rules.groups_per_token..] {
        probabilities[closed as usize * size..][..size].fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(groups: usize, open: usize, normalise: bool) -> Moe {
        Moe {
            experts: 4,
            per_token: 2,
            intermediate: 8,
            shared_intermediate: 0,
            normalise,
            scale: 1.0,
            groups,
            groups_per_token: open,
        }
    }

    fn chosen(rules: &Moe, p: [f32; 4]) -> Vec<(u32, f32)> {
        let mut choices = Vec::new();
        choose(rules, &mut p.clone(), &mut Vec::new(), &mut choices);
        choices
    }

    #[test]
    fn the_most_probable_experts_are_chosen_the_first_of_equals() {
        assert_eq!(
            chosen(&rules(1, 1, false), [0.1, 0.4, 0.1, 0.4]),
            [(1, 0.4), (3, 0.4)]
        );
        assert_eq!(
            chosen(&rules(1, 1, false), [0.25; 4]),
            [(0, 0.25), (1, 0.25)]
        );
    }

    #[test]
    fn normalised_weights_sum_to_one() {
        let sum: f32 = chosen(&rules(1, 1, true), [0.1, 0.2, 0.3, 0.4])
            .iter()
            .map(|c| c.1)
            .sum();
        assert!((sum - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_closed_group_is_not_chosen() {
        // The second group has the best expert, so both choices come from it.
        assert_eq!(
            chosen(&rules(2, 1, false), [0.3, 0.2, 0.1, 0.4]),
            [(3, 0.4), (2, 0.1)]
        );
    }
}
