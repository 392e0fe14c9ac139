//! Attention of new queries over paged keys and values.

use std::ops::Range;

use crate::matmul::dot;
use crate::team::Disjoint;
use crate::{KvPages, PAGE_TOKENS, Team, softmax_in_place};

/// Consecutive tokens of one sequence within a flat batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Position in its sequence of the first row.
    pub position: usize,
    /// The part of the batch's block tables that lists this sequence's pages, oldest first.
    pub pages: Range<usize>,
}

/// What attention does, the same for all segments of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Layer of the pages.
    pub layer: usize,
    /// Query heads; a multiple of the key heads.
    pub heads: usize,
    /// Multiplies each score.
    pub scale: f32,
    /// A query sees at most this many positions, its own included.
    pub window: Option<usize>,
    /// `cap · tanh(score / cap)` before the softmax.
    pub softcap: Option<f32>,
    /// Sequences of the batch.
    pub segments: &'a [Segment],
    /// Page numbers that segments refer to.
    pub tables: &'a [u32],
}

/// Causal attention: each row sees its sequence's positions up to its own.
///
/// - `q`: `[rows, heads, k_dim]`, rotated
/// - `out`: `[rows, heads, v_dim]`
///
/// The keys and values of the batch's own tokens must already be in the pages. Reduces over
/// pages oldest first, so a token's result depends neither on its batch nor on its chunk.
///
/// # Panics
/// When lengths do not fit the shapes or a table is too short.
pub fn attend(team: &Team, a: &Attention<'_>, q: &[f32], kv: &KvPages, out: &mut [f32]) {
    let shape = kv.shape();
    assert!(shape.heads > 0 && a.heads.is_multiple_of(shape.heads));
    assert!(!shape.v_in_k || shape.v_dim <= shape.k_dim);
    let rows = q.len() / (a.heads * shape.k_dim);
    assert_eq!(q.len(), rows * a.heads * shape.k_dim);
    assert_eq!(out.len(), rows * a.heads * shape.v_dim);
    let out = Disjoint::new(out);
    let group = a.heads / shape.heads;
    team.run(a.segments.len() * a.heads, &|task| {
        let (segment, head) = (&a.segments[task / a.heads], task % a.heads);
        let pages = &a.tables[segment.pages.clone()];
        let kv_head = head / group;
        let mut keys = vec![0.0; PAGE_TOKENS * shape.k_dim];
        let mut values = vec![0.0; PAGE_TOKENS * shape.v_dim];
        for (i, row) in segment.rows.clone().enumerate() {
            let end = segment.position + i + 1;
            let start = a.window.map_or(0, |w| end.saturating_sub(w));
            let q = &q[(row * a.heads + head) * shape.k_dim..][..shape.k_dim];
            // SAFETY: each row and head belongs to one task.
            let out = unsafe { out.part((row * a.heads + head) * shape.v_dim, shape.v_dim) };
            out.fill(0.0);
            let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0f32);
            for page in start / PAGE_TOKENS..end.div_ceil(PAGE_TOKENS) {
                kv.keys(a.layer, pages[page], kv_head).decode(&mut keys);
                if shape.v_in_k {
                    let rows = keys.chunks_exact(shape.k_dim);
                    for (v, k) in values.chunks_exact_mut(shape.v_dim).zip(rows) {
                        v.copy_from_slice(&k[..shape.v_dim]);
                    }
                } else {
                    kv.values(a.layer, pages[page], kv_head).decode(&mut values);
                }
                let first = page * PAGE_TOKENS;
                for p in start.max(first)..end.min(first + PAGE_TOKENS) {
                    let slot = p - first;
                    let mut score = dot(q, &keys[slot * shape.k_dim..][..shape.k_dim]) * a.scale;
                    if let Some(cap) = a.softcap {
                        score = cap * (score / cap).tanh();
                    }
                    if score > max {
                        let shrink = (max - score).exp();
                        sum *= shrink;
                        out.iter_mut().for_each(|o| *o *= shrink);
                        max = score;
                    }
                    let weight = (score - max).exp();
                    sum += weight;
                    for (o, v) in out.iter_mut().zip(&values[slot * shape.v_dim..]) {
                        *o += weight * v;
                    }
                }
            }
            out.iter_mut().for_each(|o| *o /= sum);
        }
    });
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
        let mut scores = vec![0.0; segment.len()];
        for row in segment.clone() {
            let q = &q[at(row)..][..dim];
            for (score, row) in scores.iter_mut().zip(segment.clone()) {
                *score = dot(q, &k[at(row)..][..dim]) * scale;
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
    });
}
