//! Attention of an encoder: every token sees its whole text, and nothing is kept.

use std::cell::RefCell;
use std::ops::Range;

use crate::matmul::tile;
use crate::simd::Portable;
use crate::team::Disjoint;
use crate::{Team, softmax_in_place};

thread_local! {
    /// Scores of a row.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Bidirectional attention: each row sees all rows of its segment.
///
/// - `q`, `k`, `v`, `out`: `[rows, heads, dim]`
/// - `segments`: ranges of rows that do not overlap; rows outside all of them are left alone
///
/// # Panics
/// When the lengths differ, are not whole rows, or a segment is out of range.
#[allow(clippy::too_many_arguments)] // plain data, all of it needed
pub fn attend_all(
    team: &Team,
    heads: usize,
    dim: usize,
    scale: f32,
    segments: &[Range<usize>],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
) {
    let width = heads * dim;
    assert!(width > 0 && q.len().is_multiple_of(width));
    assert!(k.len() == q.len() && v.len() == q.len() && out.len() == q.len());
    let disjoint = segments.iter().enumerate().all(|(i, a)| {
        segments[..i]
            .iter()
            .all(|b| a.is_empty() || b.is_empty() || a.end <= b.start || b.end <= a.start)
    });
    assert!(disjoint, "segments overlap");
    let out = Disjoint::new(out);
    team.run(segments.len() * heads, &|task| {
        let (segment, head) = (&segments[task / heads], task % heads);
        let at = |row: usize| row * width + head * dim;
        let mut scores = SCORES.take();
        scores.resize(segment.len(), 0.0);
        for row in segment.clone() {
            let q = &q[at(row)..][..dim];
            for (score, row) in scores.iter_mut().zip(segment.clone()) {
                let [[product]] = tile(Portable, &[q], &[&k[at(row)..][..dim]]);
                *score = product * scale;
            }
            softmax_in_place(&mut scores);
            // SAFETY: segments do not overlap, so each row and head belongs to one task.
            let out = unsafe { out.part(at(row), dim) };
            out.fill(0.0);
            for (&weight, row) in scores.iter().zip(segment.clone()) {
                for (o, v) in out.iter_mut().zip(&v[at(row)..][..dim]) {
                    *o += weight * v;
                }
            }
        }
        SCORES.set(scores);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2) + 1;
        let mut next = move || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 22) as f32 - 2.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn rows_of_a_segment_see_each_other_and_nothing_else() {
        let (heads, dim, segments) = (2, 12, [0..5, 5..6, 6..6, 7..20]);
        let [q, k, v] = [1, 2, 3].map(|seed| values(20 * heads * dim, seed));
        let mut out = vec![-1.0; q.len()];
        attend_all(
            &Team::new(2),
            heads,
            dim,
            0.5,
            &segments,
            &q,
            &k,
            &v,
            &mut out,
        );
        let at =
            |row: usize, head: usize| (row * heads + head) * dim..(row * heads + head + 1) * dim;
        for (segment, head) in segments.iter().flat_map(|s| [(s, 0), (s, 1)]) {
            for row in segment.clone() {
                let (mut sum, mut acc) = (0.0, [0.0f64; 12]);
                for other in segment.clone() {
                    let terms = q[at(row, head)].iter().zip(&k[at(other, head)]);
                    let score: f64 = terms.map(|(a, b)| f64::from(a * b)).sum();
                    let weight = (score * 0.5).exp();
                    sum += weight;
                    for (a, v) in acc.iter_mut().zip(&v[at(other, head)]) {
                        *a += weight * f64::from(*v);
                    }
                }
                for (a, o) in acc.iter().zip(&out[at(row, head)]) {
                    assert!((a / sum - f64::from(*o)).abs() < 1e-5);
                }
            }
        }
        assert!(
            out[6 * heads * dim..7 * heads * dim]
                .iter()
                .all(|v| *v == -1.0)
        );
    }
}
