//! Which outputs go together: those that can do without the same inputs.

use std::ops::Range;

/// Rows of magnitudes, and below which mean of a group's a cell is left out.
pub(super) struct Rows {
    /// `[rows, columns]`.
    pub(super) values: Vec<f32>,
    /// For each column.
    pub(super) thresholds: Vec<f32>,
}

impl Rows {
    fn row(&self, i: usize) -> &[f32] {
        let n = self.thresholds.len();
        &self.values[i * n..][..n]
    }

    /// What is kept beyond the threshold when the sums of `count` rows are these; the sum over
    /// groups is greatest where as much as possible is kept at that threshold.
    fn kept(&self, count: usize, sums: impl Iterator<Item = f32>) -> f32 {
        let count = count as f32;
        let cells = sums.zip(&self.thresholds);
        cells.map(|(sum, t)| (sum - count * t).max(0.0)).sum()
    }

    fn sums(&self, rows: &[usize]) -> Vec<f32> {
        let mut sums = vec![0.0; self.thresholds.len()];
        for &row in rows {
            for (sum, x) in sums.iter_mut().zip(self.row(row)) {
                *sum += x;
            }
        }
        sums
    }

    fn total(&self, order: &[usize], n: usize) -> f64 {
        let groups = order.chunks(n);
        let kept = groups.map(|rows| self.kept(rows.len(), self.sums(rows).into_iter()));
        kept.map(f64::from).sum()
    }
}

/// Swaps are tried between all groups so often at most.
const PASSES: usize = 3;

/// An order of the rows in which groups of `n` keep more: `order[new]` is the old place. `None`
/// when none was found that keeps more than the one there is.
pub(super) fn grouped(rows: &Rows, n: usize) -> Option<Vec<usize>> {
    let count = rows.values.len() / rows.thresholds.len().max(1);
    let before: Vec<usize> = (0..count).collect();
    let mut order = greedy(rows, count, n);
    swaps(rows, &mut order, n);
    (rows.total(&order, n) > rows.total(&before, n) * (1.0 + 1e-6)).then_some(order)
}

/// One group after the other: the strongest row that is left, and those that fit it best.
fn greedy(rows: &Rows, count: usize, n: usize) -> Vec<usize> {
    let strength = |i: usize| rows.row(i).iter().map(|x| x * x).sum::<f32>();
    let mut left: Vec<usize> = (0..count).collect();
    left.sort_by(|&a, &b| strength(b).total_cmp(&strength(a)).then(a.cmp(&b)));
    let mut order = Vec::with_capacity(count);
    while !left.is_empty() {
        let first = left.remove(0);
        order.push(first);
        let mut sums = rows.row(first).to_vec();
        for held in 2..=n.min(left.len() + 1) {
            let gain = |&i: &usize| {
                let both = sums.iter().zip(rows.row(i)).map(|(a, b)| a + b);
                rows.kept(held, both) - rows.kept(1, rows.row(i).iter().copied())
            };
            let gains = left.iter().map(gain).enumerate();
            let best = gains.max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
            let Some((at, _)) = best else {
                break;
            };
            let next = left.remove(at);
            for (sum, x) in sums.iter_mut().zip(rows.row(next)) {
                *sum += x;
            }
            order.push(next);
        }
    }
    order
}

/// Exchanges rows of two groups wherever both keep more for it.
fn swaps(rows: &Rows, order: &mut [usize], n: usize) {
    let groups: Vec<Range<usize>> = (0..order.len())
        .step_by(n)
        .map(|at| at..order.len().min(at + n))
        .collect();
    let mut sums: Vec<Vec<f32>> = groups
        .iter()
        .map(|g| rows.sums(&order[g.clone()]))
        .collect();
    let mut kept: Vec<f32> = (0..groups.len())
        .map(|g| rows.kept(groups[g].len(), sums[g].iter().copied()))
        .collect();
    for _ in 0..PASSES {
        let mut changed = false;
        for a in 0..groups.len() {
            for b in a + 1..groups.len() {
                for i in groups[a].clone() {
                    for j in groups[b].clone() {
                        let (x, y) = (rows.row(order[i]), rows.row(order[j]));
                        let moved = |sum: &[f32], out: &[f32], into: &[f32], g: usize| {
                            let each = sum.iter().zip(out).zip(into);
                            rows.kept(groups[g].len(), each.map(|((s, o), i)| s - o + i))
                        };
                        let (in_a, in_b) = (moved(&sums[a], x, y, a), moved(&sums[b], y, x, b));
                        let (before, after) = (kept[a] + kept[b], in_a + in_b);
                        if after > before * (1.0 + 1e-5) {
                            order.swap(i, j);
                            for g in [a, b] {
                                sums[g] = rows.sums(&order[groups[g].clone()]);
                            }
                            (kept[a], kept[b]) = (in_a, in_b);
                            changed = true;
                        }
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
}
