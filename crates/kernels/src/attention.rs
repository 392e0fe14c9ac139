//! Attention of new queries over paged keys and values.

mod direct;
mod nibbles;
#[cfg(target_arch = "x86_64")]
mod tiles;

use std::cell::RefCell;
use std::ops::Range;

use crate::isa::{Isa, isa};
use crate::kv::PageHead;
use crate::simd::Sixteen;
use crate::team::Disjoint;
use crate::{KvPages, KvType, PAGE_TOKENS, Team, hadamard};

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
    /// Segments that begin at this row or later are computed with queries, keys, values and
    /// weights rounded to bfloat16, where [tiles](crate::rounds_fast) are there for their shape.
    pub rounded_from: usize,
}

/// Queries of one head of keys that share what is decoded of its pages.
const QUERIES: usize = 32;

/// Pages that are decoded together: 64 tokens, the columns of a tile of scores.
const CHUNK: usize = 4;

/// Tokens of a chunk.
const TOKENS: usize = CHUNK * PAGE_TOKENS;

/// Vectors of values that are summed side by side.
const WIDE: usize = 4;

thread_local! {
    /// Queries, sums and decoded pages of a task.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Causal attention: each row sees its sequence's positions up to its own.
///
/// - `q`: `[rows, heads, k_dim]`, rotated
/// - `out`: `[rows, heads, v_dim]`; rows outside all segments are left alone
///
/// The keys and values of the batch's own tokens must already be in the pages. Reduces over
/// pages oldest first, so a token's result depends neither on its batch nor on its chunk.
/// Pages wholly before the window are not read: their table entries may be anything.
///
/// # Panics
/// When lengths do not fit the shapes, a table is too short, the window is 0, or the
/// segments' rows overlap or are not in order.
pub fn attend(team: &Team, a: &Attention<'_>, q: &[f32], kv: &KvPages, out: &mut [f32]) {
    attend_on(isa(), team, a, q, kv, out);
}

fn attend_on(isa: &Isa, team: &Team, a: &Attention<'_>, q: &[f32], kv: &KvPages, out: &mut [f32]) {
    let shape = kv.shape();
    assert!(shape.heads > 0 && a.heads > 0 && a.heads.is_multiple_of(shape.heads));
    assert!(shape.k_dim > 0 && shape.v_dim > 0);
    assert!(!shape.v_in_k || shape.v_dim <= shape.k_dim);
    assert!(a.window != Some(0), "a window of no positions");
    let rows = q.len() / (a.heads * shape.k_dim);
    assert_eq!(q.len(), rows * a.heads * shape.k_dim);
    assert_eq!(out.len(), rows * a.heads * shape.v_dim);
    let mut end = 0;
    for segment in a.segments {
        assert!(
            segment.rows.start >= end,
            "segments overlap or are not in order"
        );
        end = segment.rows.end.max(segment.rows.start);
        let positions = segment.position + segment.rows.len();
        assert!(
            segment.pages.len() * PAGE_TOKENS >= positions,
            "a table is too short"
        );
        assert!(segment.pages.end <= a.tables.len());
    }
    assert!(end <= rows);

    let group = a.heads / shape.heads;
    let tiled = |s: &Segment| s.rows.start >= a.rounded_from && tiles_available(shape);
    let rows_in_block = |s: &Segment| {
        let queries = if tiled(s) { TILED } else { QUERIES };
        (queries / group).max(1)
    };
    let blocks = |s: &Segment| s.rows.len().div_ceil(rows_in_block(s));
    let total: usize = a.segments.iter().map(blocks).sum();
    let out = Disjoint::new(out);
    team.run(total * shape.heads, &|task| {
        let (mut block, head) = (task / shape.heads, task % shape.heads);
        let mut segments = a.segments.iter();
        let Some(segment) = segments.find(|s| {
            let here = blocks(s);
            let found = block < here;
            block -= if found { 0 } else { here };
            found
        }) else {
            return; // There are exactly `total` blocks.
        };
        // The last rows see most: begin with them, so that no thread ends with a long task.
        let first = (blocks(segment) - 1 - block) * rows_in_block(segment);
        SCRATCH.with_borrow_mut(|scratch| {
            let work = Work {
                a,
                q,
                kv,
                out: &out,
                head,
                group,
                pages: &a.tables[segment.pages.clone()],
                row: segment.rows.start + first,
                rows: rows_in_block(segment).min(segment.rows.len() - first),
                position: segment.position + first,
            };
            match tiled(segment) {
                #[cfg(target_arch = "x86_64")]
                true => tiles::work(&work),
                _ => (isa.attend)(&work, scratch),
            }
        });
    });
}

#[cfg(target_arch = "x86_64")]
use tiles::{QUERIES as TILED, available as tiles_available};
#[cfg(not(target_arch = "x86_64"))]
const TILED: usize = QUERIES;
#[cfg(not(target_arch = "x86_64"))]
fn tiles_available(_: crate::KvShape) -> bool {
    false
}

/// A few rows of one segment against one head of keys and values.
pub(crate) struct Work<'a> {
    a: &'a Attention<'a>,
    q: &'a [f32],
    kv: &'a KvPages,
    /// Outputs of these rows and this head's queries belong to this task.
    out: &'a Disjoint<'a, f32>,
    head: usize,
    /// Query heads that share the head.
    group: usize,
    pages: &'a [u32],
    row: usize,
    rows: usize,
    position: usize,
}

/// Softmax over chunks of four pages, oldest first, with a running maximum (Milakov and
/// Gimelshein 2018, arXiv 1805.02867). Chunks begin at multiples of 64 positions, whoever asks.
#[inline(always)]
pub(crate) fn work<S: Sixteen>(s: S, w: &Work<'_>, scratch: &mut Vec<f32>) {
    let (a, shape) = (w.a, w.kv.shape());
    let v_pad = shape.v_dim.next_multiple_of(16);
    let queries = w.rows * w.group;
    let padded = queries.next_multiple_of(S::QUERIES);
    let sizes = [
        padded * shape.k_dim,
        padded * v_pad,
        padded * TOKENS,
        shape.k_dim * TOKENS,
        TOKENS * v_pad,
    ];
    let needed: usize = sizes.iter().sum::<usize>() + 2 * padded;
    if scratch.len() < needed {
        scratch.resize(needed, 0.0);
    }
    let (q, rest) = scratch[..needed].split_at_mut(sizes[0]);
    let (acc, rest) = rest.split_at_mut(sizes[1]);
    let (scores, rest) = rest.split_at_mut(sizes[2]);
    let (keys, rest) = rest.split_at_mut(sizes[3]);
    let (values, state) = rest.split_at_mut(sizes[4]);
    let (keys, values) = (keys.as_chunks_mut::<16>().0, values.as_chunks_mut::<16>().0);
    let (scores, state) = (
        scores.as_chunks_mut::<TOKENS>().0,
        state.as_chunks_mut::<2>().0,
    );

    let query_at = |i: usize| (w.row + i / w.group) * a.heads + w.head * w.group + i % w.group;
    for (i, q) in q.chunks_exact_mut(shape.k_dim).enumerate() {
        // Those that fill up the last tile repeat the last one; their results go nowhere.
        let from = query_at(i.min(queries - 1)) * shape.k_dim;
        q.copy_from_slice(&w.q[from..][..shape.k_dim]);
        if w.kv.rotated() {
            hadamard::turn_key(s, shape, q);
        }
    }
    acc.fill(0.0);
    state.fill([f32::NEG_INFINITY, 0.0]);

    // Positions that query i sees.
    let seen = |i: usize| {
        let end = w.position + i.min(queries - 1) / w.group + 1;
        a.window.map_or(0, |window| end.saturating_sub(window))..end
    };
    let all = seen(0).start..seen(queries - 1).end;
    // The queries of one token see the same: pages are read once, straight into registers.
    let alone =
        w.rows == 1 && queries <= S::QUERIES && !shape.v_in_k && shape.v_dim.is_multiple_of(16);
    for chunk in all.start / TOKENS..all.end.div_ceil(TOKENS) {
        let first = chunk * TOKENS;
        // Tokens of the chunk that some query sees; no others are read or counted.
        let read = all.start.max(first) - first..all.end.min(first + TOKENS) - first;
        let pages = read.start / PAGE_TOKENS..read.end.div_ceil(PAGE_TOKENS);
        if alone {
            direct::chunk(s, w, chunk, pages, read, q, scores, acc, state);
            continue;
        }
        for p in pages.clone() {
            let id = w.pages[chunk * CHUNK + p];
            let ahead = w.pages.get((chunk + 1) * CHUNK + p).copied();
            let ahead = ahead.filter(|_| first + TOKENS + p * PAGE_TOKENS < all.end);
            decode_keys(s, w, id, ahead, p, keys);
            if shape.v_in_k {
                turn(w, id, p, keys, values, v_pad / 16);
            } else {
                decode_values(s, w, id, ahead, &mut values[p * v_pad..][..v_pad]);
            }
        }
        let tiles = q
            .chunks_exact(S::QUERIES * shape.k_dim)
            .zip(scores.chunks_exact_mut(S::QUERIES))
            .zip(acc.chunks_exact_mut(S::QUERIES * v_pad))
            .zip(state.chunks_exact_mut(S::QUERIES));
        for (tile, (((q, scores), acc), state)) in tiles.enumerate() {
            let i = tile * S::QUERIES;
            let within = |position: usize| position.clamp(first, first + TOKENS) - first;
            let last = i + S::QUERIES - 1;
            if within(seen(i).start) == within(seen(last).end) {
                continue;
            }
            score(s, q, shape.k_dim, keys, scores);
            for (q, (scores, state)) in scores.iter_mut().zip(&mut *state).enumerate() {
                let slots = within(seen(i + q).start)..within(seen(i + q).end);
                let acc = &mut acc[q * v_pad..][..v_pad];
                weigh(s, w, chunk, pages.clone(), slots, scores, state, acc);
            }
            // What all of the tile's queries see goes into their sums together; what only some
            // see into those alone, so that a value that is not finite stays with who sees it.
            let common = within(seen(last).start)..within(seen(i).end);
            // Where nothing is seen by all, the first pass takes everything.
            let split = if common.is_empty() {
                TOKENS
            } else {
                common.start
            };
            for (q, scores) in scores.iter().enumerate() {
                let own = within(seen(i + q).start)..within(seen(i + q).end);
                let (tokens, acc) = (
                    own.start..own.end.min(split),
                    &mut acc[q * v_pad..][..v_pad],
                );
                mix::<S, 1>(s, std::slice::from_ref(scores), tokens, values, acc);
            }
            if common.is_empty() {
                continue;
            }
            match S::QUERIES {
                4 => mix::<S, 4>(s, scores, common.clone(), values, acc),
                _ => mix::<S, 1>(s, scores, common.clone(), values, acc),
            }
            for (q, scores) in scores.iter().enumerate() {
                let tokens = common.end..within(seen(i + q).end);
                let acc = &mut acc[q * v_pad..][..v_pad];
                mix::<S, 1>(s, std::slice::from_ref(scores), tokens, values, acc);
            }
        }
    }
    for (i, acc) in acc.chunks_exact(v_pad).enumerate().take(queries) {
        // SAFETY: the outputs of this query belong to this task, by the contract of `Work`.
        let out = unsafe { w.out.part(query_at(i) * shape.v_dim, shape.v_dim) };
        let inverse = 1.0 / state[i][1];
        for (o, v) in out.iter_mut().zip(acc) {
            *o = v * inverse;
        }
        if w.kv.rotated() {
            hadamard::turn(s, out);
        }
        w.kv.put_back(a.layer, w.head, out);
    }
}

/// Decodes a page's keys into its 16 columns of `[k_dim][64]`, and asks for those of the page
/// that comes four later.
#[inline(always)]
fn decode_keys<S: Sixteen>(
    s: S,
    w: &Work<'_>,
    id: u32,
    ahead: Option<u32>,
    page: usize,
    keys: &mut [[f32; 16]],
) {
    let ahead = ahead.map(|id| w.kv.keys(w.a.layer, id, w.head));
    let out = keys.iter_mut().skip(page).step_by(CHUNK);
    match w.kv.keys(w.a.layer, id, w.head) {
        PageHead::Q4(words) => {
            ask_words(s, ahead);
            nibbles::keys(s, words, w.kv.shape().k_dim, out);
        }
        page => decode(s, page, ahead, out),
    }
}

/// Decodes a page's values into `[16][v_pad]`, and asks for those of the page that comes four
/// later.
#[inline(always)]
fn decode_values<S: Sixteen>(
    s: S,
    w: &Work<'_>,
    id: u32,
    ahead: Option<u32>,
    values: &mut [[f32; 16]],
) {
    let page = w.kv.values(w.a.layer, id, w.head);
    let v_dim = w.kv.shape().v_dim;
    let ahead = ahead.map(|id| w.kv.values(w.a.layer, id, w.head));
    if let PageHead::Q4(words) = page {
        ask_words(s, ahead);
        return nibbles::values(s, words, v_dim, values);
    }
    if v_dim.is_multiple_of(16) {
        return decode(s, page, ahead, values.iter_mut());
    }
    let values = values.as_flattened_mut();
    for (token, out) in values
        .chunks_exact_mut(v_dim.next_multiple_of(16))
        .enumerate()
    {
        let part = token * v_dim..(token + 1) * v_dim;
        match page {
            PageHead::F32(x) => out[..v_dim].copy_from_slice(&x[part]),
            PageHead::F16(x) => each(out, &x[part], |x| half::f16::from_bits(x).to_f32()),
            PageHead::BF16(x) => each(out, &x[part], |x| half::bf16::from_bits(x).to_f32()),
            PageHead::Q8(x) => each(out, &x[part], f32::from),
            PageHead::Q4(_) => {} // Above.
        }
        out[v_dim..].fill(0.0);
    }
}

#[inline(always)]
fn each<T: Copy>(out: &mut [f32], x: &[T], f: impl Fn(T) -> f32) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = f(*x);
    }
}

/// Asks for the lines of a page of 4-bit numbers.
#[inline(always)]
fn ask_words<S: Sixteen>(s: S, page: Option<PageHead<'_>>) {
    if let Some(PageHead::Q4(words)) = page {
        words.iter().step_by(16).for_each(|line| s.prefetch(line));
    }
}

/// Decodes whole vectors, and asks for the same vectors of another page.
#[inline(always)]
fn decode<'o, S: Sixteen>(
    s: S,
    page: PageHead<'_>,
    ahead: Option<PageHead<'_>>,
    out: impl Iterator<Item = &'o mut [f32; 16]>,
) {
    match page {
        PageHead::F32(x) => {
            let x = x.as_chunks::<16>().0;
            if let Some(PageHead::F32(ahead)) = ahead {
                ahead.iter().step_by(16).for_each(|line| s.prefetch(line));
            }
            for (x, out) in x.iter().zip(out) {
                *out = *x;
            }
        }
        PageHead::F16(x) => {
            let x = x.as_chunks::<16>().0;
            if let Some(PageHead::F16(ahead)) = ahead {
                ahead.iter().step_by(32).for_each(|line| s.prefetch(line));
            }
            for (x, out) in x.iter().zip(out) {
                s.store(s.load_f16(x), out);
            }
        }
        PageHead::BF16(x) => {
            let x = x.as_chunks::<16>().0;
            if let Some(PageHead::BF16(ahead)) = ahead {
                ahead.iter().step_by(32).for_each(|line| s.prefetch(line));
            }
            for (x, out) in x.iter().zip(out) {
                s.store(s.load_bf16(x), out);
            }
        }
        PageHead::Q8(x) => {
            let x = x.as_chunks::<16>().0;
            if let Some(PageHead::Q8(ahead)) = ahead {
                ahead.iter().step_by(64).for_each(|line| s.prefetch(line));
            }
            for (x, out) in x.iter().zip(out) {
                s.store(s.load_i8(x), out);
            }
        }
        PageHead::Q4(_) => {} // `nibbles` decodes those.
    }
}

/// Values that lie in the keys: a page's `[v_dim][16]` columns of `keys` as rows of `values`.
#[inline(always)]
fn turn(
    w: &Work<'_>,
    id: u32,
    page: usize,
    keys: &[[f32; 16]],
    values: &mut [[f32; 16]],
    width: usize,
) {
    let v_dim = w.kv.shape().v_dim;
    let scales = match w.kv.kv_type() {
        KvType::Q8 => Some(w.kv.key_scales(w.a.layer, id, w.head)),
        KvType::F32 | KvType::F16 | KvType::BF16 | KvType::Q4 => None,
    };
    for (token, out) in values[page * 16 * width..][..16 * width]
        .chunks_exact_mut(width)
        .enumerate()
    {
        let out = out.as_flattened_mut();
        let scale = scales.map_or(1.0, |s| s[token]);
        for (d, out) in out.iter_mut().enumerate() {
            *out = if d < v_dim {
                keys[d * CHUNK + page][token] * scale
            } else {
                0.0
            };
        }
    }
}

/// Products of a tile of queries with a chunk's keys, each summed in the order of dimensions.
#[inline(always)]
fn score<S: Sixteen>(
    s: S,
    q: &[f32],
    k_dim: usize,
    keys: &[[f32; 16]],
    scores: &mut [[f32; TOKENS]],
) {
    match S::QUERIES {
        4 => score_tile::<S, 4>(s, q, k_dim, keys, scores),
        _ => score_tile::<S, 1>(s, q, k_dim, keys, scores),
    }
}

#[inline(always)]
fn score_tile<S: Sixteen, const Q: usize>(
    s: S,
    q: &[f32],
    k_dim: usize,
    keys: &[[f32; 16]],
    scores: &mut [[f32; TOKENS]],
) {
    let mut rows = [&q[..k_dim]; Q];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = &q[i * k_dim..][..k_dim];
    }
    let keys = &keys.as_chunks::<CHUNK>().0[..k_dim];
    let mut acc = [[s.splat(0.0); CHUNK]; Q];
    for d in 0..k_dim {
        let mut k = [s.splat(0.0); CHUNK];
        for p in 0..CHUNK {
            k[p] = s.load(&keys[d][p]);
        }
        for i in 0..Q {
            let q = s.splat(rows[i][d]);
            for p in 0..CHUNK {
                acc[i][p] = s.fma(q, k[p], acc[i][p]);
            }
        }
    }
    for i in 0..Q {
        let (out, _) = scores[i].as_chunks_mut::<16>();
        for p in 0..CHUNK {
            s.store(acc[i][p], &mut out[p]);
        }
    }
}

/// Turns the products of a query with a chunk's keys into weights relative to the largest score
/// so far, which is `state[0]`, and adds them to `state[1]`; tokens outside `slots` get weight 0.
/// When the largest changes, what was summed under the old one shrinks.
#[allow(clippy::too_many_arguments)] // one chunk's share of a query's state
#[inline(always)]
fn weigh<S: Sixteen>(
    s: S,
    w: &Work<'_>,
    chunk: usize,
    pages: Range<usize>,
    slots: Range<usize>,
    scores: &mut [f32; TOKENS],
    state: &mut [f32; 2],
    acc: &mut [f32],
) {
    if slots.is_empty() {
        scores.fill(0.0);
        return;
    }
    let a = w.a;
    let q8 = w.kv.kv_type() == KvType::Q8;
    let id = |p: usize| w.pages[chunk * CHUNK + p];
    let (vectors, _) = scores.as_chunks_mut::<16>();
    for p in pages.clone() {
        let mut x = s.mul(s.load(&vectors[p]), s.splat(a.scale));
        if q8 {
            x = s.mul(x, s.load(w.kv.key_scales(a.layer, id(p), w.head)));
        }
        if let Some(cap) = a.softcap {
            let x_over = s.mul(x, s.splat(1.0 / cap));
            x = s.mul(s.splat(cap), s.tanh(x_over));
        }
        s.store(x, &mut vectors[p]);
    }
    // Slots that the query does not see may hold anything.
    scores[..slots.start].fill(f32::NEG_INFINITY);
    scores[slots.end..].fill(f32::NEG_INFINITY);
    let (vectors, _) = scores.as_chunks_mut::<16>();
    let mut largest = s.load(&vectors[0]);
    for v in &vectors[1..] {
        largest = s.max(s.load(v), largest);
    }
    let largest = s.max_lane(largest);
    if largest > state[0] {
        let mut shrink = [0.0; 16];
        s.store(s.exp(s.splat(state[0] - largest)), &mut shrink);
        let shrink = shrink[0];
        state[0] = largest;
        state[1] *= shrink;
        for acc in acc.as_chunks_mut::<16>().0 {
            s.store(s.mul(s.load(acc), s.splat(shrink)), acc);
        }
    }
    let mut sum = s.splat(0.0);
    for (p, v) in vectors.iter_mut().enumerate() {
        let mut weight = s.exp(s.sub(s.load(v), s.splat(state[0])));
        sum = s.add(sum, weight);
        if q8 && !w.kv.shape().v_in_k && pages.contains(&p) {
            weight = s.mul(weight, s.load(w.kv.value_scales(a.layer, id(p), w.head)));
        }
        s.store(weight, v);
    }
    state[1] += s.sum_lanes(sum);
    // A weight of 0 times the scale of a token that is not there may be anything.
    scores[..slots.start].fill(0.0);
    scores[slots.end..].fill(0.0);
}

/// `acc += Σ weight · value` over the tokens, oldest first, for `Q` queries.
///
/// - `values`: `[64][width / 16]` vectors
/// - `acc`: `[Q][width]`
#[inline(always)]
fn mix<S: Sixteen, const Q: usize>(
    s: S,
    weights: &[[f32; TOKENS]],
    tokens: Range<usize>,
    values: &[[f32; 16]],
    acc: &mut [f32],
) {
    if tokens.is_empty() {
        return;
    }
    let width = acc.len() / Q / 16;
    let mut at = 0;
    while at + WIDE <= width {
        mix_part::<S, Q, WIDE>(s, weights, tokens.clone(), values, width, at, acc);
        at += WIDE;
    }
    for at in at..width {
        mix_part::<S, Q, 1>(s, weights, tokens.clone(), values, width, at, acc);
    }
}

/// [`mix`] for `N` vectors of the values, from vector `at` of `width`.
#[inline(always)]
fn mix_part<S: Sixteen, const Q: usize, const N: usize>(
    s: S,
    weights: &[[f32; TOKENS]],
    tokens: Range<usize>,
    values: &[[f32; 16]],
    width: usize,
    at: usize,
    acc: &mut [f32],
) {
    let (acc, _) = acc.as_chunks_mut::<16>();
    let weights = &weights[..Q];
    let mut sums = [[s.splat(0.0); N]; Q];
    for q in 0..Q {
        for n in 0..N {
            sums[q][n] = s.load(&acc[q * width + at + n]);
        }
    }
    for token in tokens {
        let row = &values[token * width + at..][..N];
        let mut v = [s.splat(0.0); N];
        for n in 0..N {
            v[n] = s.load(&row[n]);
        }
        for q in 0..Q {
            let weight = s.splat(weights[q][token]);
            for n in 0..N {
                sums[q][n] = s.fma(weight, v[n], sums[q][n]);
            }
        }
    }
    for q in 0..Q {
        for n in 0..N {
            s.store(sums[q][n], &mut acc[q * width + at + n]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::KvShape;
    use crate::isa;

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

    #[derive(Debug, Clone)]
    struct Case {
        shape: KvShape,
        kv: KvType,
        group: usize,
        window: Option<usize>,
        softcap: Option<f32>,
        /// Positions before the new rows, and new rows, of each sequence.
        lengths: Vec<(usize, usize)>,
        seed: u64,
        /// All values are multiples of 1/32, which every type holds exactly, and rows are
        /// rounded to bfloat16, which leaves them as they are.
        rounded: bool,
    }

    impl Case {
        fn values(&self, n: usize, seed: u64) -> Vec<f32> {
            let mut all = values(n, seed);
            if self.rounded {
                all.iter_mut().for_each(|v| *v = (*v * 32.0).round() / 32.0);
            }
            all
        }

        fn rounded_from(&self) -> usize {
            if self.rounded { 0 } else { usize::MAX }
        }
    }

    fn cases() -> impl Strategy<Value = Case> {
        let dims = prop_oneof![
            Just((8, 8)),
            Just((64, 64)),
            Just((20, 12)),
            Just((72, 40)),
            Just((128, 128)),
            Just((5, 3))
        ];
        let kv = prop_oneof![
            Just(KvType::F32),
            Just(KvType::F16),
            Just(KvType::BF16),
            Just(KvType::Q8),
            Just(KvType::Q4)
        ];
        (
            (dims, 1usize..4, any::<bool>(), kv, 1usize..9),
            proptest::option::of(1usize..40),
            proptest::option::of(0.5f32..30.0),
            proptest::collection::vec((0usize..300, 1usize..40), 1..4),
            any::<u32>(),
        )
            .prop_map(
                |(((k_dim, v_dim), heads, v_in_k, kv, group), window, softcap, lengths, seed)| {
                    Case {
                        shape: KvShape {
                            heads,
                            k_dim,
                            v_dim,
                            v_in_k,
                        },
                        kv,
                        group,
                        window,
                        softcap,
                        lengths,
                        seed: seed.into(),
                        rounded: false,
                    }
                },
            )
    }

    /// A batch: pages in a scrambled order, those not written full of NaN.
    struct Batch {
        pages: KvPages,
        tables: Vec<u32>,
        segments: Vec<Segment>,
        q: Vec<f32>,
    }

    fn batch(case: &Case) -> Batch {
        let Case {
            shape,
            kv,
            group,
            ref lengths,
            seed,
            ..
        } = *case;
        let needed = |(before, rows): (usize, usize)| (before + rows).div_ceil(PAGE_TOKENS);
        let total: usize = lengths.iter().map(|l| needed(*l)).sum();
        let mut pages = KvPages::new(2, total, shape, kv);
        let nan = vec![f32::NAN; shape.heads * shape.k_dim.max(shape.v_dim)];
        for page in 0..total as u32 {
            for slot in 0..PAGE_TOKENS {
                pages.write(
                    1,
                    page,
                    slot,
                    &nan[..shape.heads * shape.k_dim],
                    &nan[..shape.heads * shape.v_dim],
                );
            }
        }
        let tables: Vec<u32> = (0..total as u32).rev().collect();
        let (mut segments, mut row, mut page) = (Vec::new(), 0, 0);
        for (s, &(before, rows)) in lengths.iter().enumerate() {
            let table = page..page + needed((before, rows));
            let k = case.values(
                (before + rows) * shape.heads * shape.k_dim,
                seed + 2 * s as u64,
            );
            let v = case.values(
                (before + rows) * shape.heads * shape.v_dim,
                seed + 2 * s as u64 + 1,
            );
            for (p, (k, v)) in k
                .chunks(shape.heads * shape.k_dim)
                .zip(v.chunks(shape.heads * shape.v_dim))
                .enumerate()
            {
                pages.write(
                    1,
                    tables[table.clone()][p / PAGE_TOKENS],
                    p % PAGE_TOKENS,
                    k,
                    v,
                );
            }
            page = table.end;
            segments.push(Segment {
                rows: row..row + rows,
                position: before,
                pages: table,
            });
            row += rows;
        }
        let q = case.values(row * shape.heads * group * shape.k_dim, seed + 99);
        Batch {
            pages,
            tables,
            segments,
            q,
        }
    }

    fn attention<'a>(case: &Case, segments: &'a [Segment], tables: &'a [u32]) -> Attention<'a> {
        Attention {
            layer: 1,
            heads: case.shape.heads * case.group,
            scale: 0.3,
            window: case.window,
            softcap: case.softcap,
            segments,
            tables,
            rounded_from: case.rounded_from(),
        }
    }

    fn run(isa: &Isa, threads: usize, case: &Case, b: &Batch, segments: &[Segment]) -> Vec<f32> {
        let rows = b.q.len() / (case.shape.heads * case.group * case.shape.k_dim);
        let mut out = vec![-1.0; rows * case.shape.heads * case.group * case.shape.v_dim];
        let a = attention(case, segments, &b.tables);
        attend_on(isa, &Team::new(threads), &a, &b.q, &b.pages, &mut out);
        out
    }

    /// The definition, in f64, over what the pages hold.
    fn naive(case: &Case, b: &Batch) -> Vec<f64> {
        let Case {
            shape,
            group,
            window,
            softcap,
            ..
        } = *case;
        let heads = shape.heads * group;
        let mut out = Vec::new();
        for segment in &b.segments {
            for (i, row) in segment.rows.clone().enumerate() {
                for head in 0..heads {
                    let q = &b.q[(row * heads + head) * shape.k_dim..][..shape.k_dim];
                    let end = segment.position + i + 1;
                    let start = window.map_or(0, |w| end.saturating_sub(w));
                    let (mut sum, mut acc) = (0.0, vec![0.0; shape.v_dim]);
                    for p in start..end {
                        let page = b.tables[segment.pages.start + p / PAGE_TOKENS];
                        let (layer, head, slot) = (1, head / group, p % PAGE_TOKENS);
                        let mut k = b.pages.key(layer, page, head, slot);
                        let mut v = match shape.v_in_k {
                            true => k[..shape.v_dim].to_vec(),
                            false => b.pages.value(layer, page, head, slot),
                        };
                        if b.pages.rotated() {
                            // Back to what was written, but for the rounding.
                            let (first, rest) = k.split_at_mut(hadamard::key_part(shape));
                            [first, rest, &mut v].into_iter().for_each(isa().hadamard);
                        }
                        let dot: f64 = q
                            .iter()
                            .zip(&k)
                            .map(|(a, b)| f64::from(*a) * f64::from(*b))
                            .sum();
                        let mut score = dot * f64::from(0.3f32);
                        if let Some(cap) = softcap.map(f64::from) {
                            score = cap * (score / cap).tanh();
                        }
                        sum += score.exp();
                        acc.iter_mut()
                            .zip(&v)
                            .for_each(|(a, v)| *a += score.exp() * f64::from(*v));
                    }
                    out.extend(acc.iter().map(|a| a / sum));
                }
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..Default::default() })]

        #[test]
        fn attention_agrees_with_its_definition(case in cases()) {
            let b = batch(&case);
            let expected = naive(&case, &b);
            for isa in isa::all() {
                for (y, e) in run(isa, 2, &case, &b, &b.segments).iter().zip(&expected) {
                    prop_assert!((f64::from(*y) - e).abs() < 2e-5, "{y}, not {e}");
                }
            }
        }

        #[test]
        fn rounded_attention_agrees_with_its_definition(mut case in cases()) {
            case.rounded = true;
            let b = batch(&case);
            let expected = naive(&case, &b);
            // Weights are off by at most 2⁻⁸ of themselves, and values are below 2. What 4 bits
            // hold is no multiple of 1/32, and turned queries are none: they are rounded too.
            let off = if case.kv == KvType::Q4 { 0.1 } else { 7.9e-3 };
            for (y, e) in run(isa(), 2, &case, &b, &b.segments).iter().zip(&expected) {
                prop_assert!((f64::from(*y) - e).abs() < off, "{y}, not {e}");
            }
        }

        #[test]
        fn a_token_does_not_depend_on_its_batch_or_chunk(
            mut case in cases(), cut in 1usize..40, rounded in any::<bool>(),
        ) {
            case.rounded = rounded;
            let b = batch(&case);
            for isa in isa::all() {
                let all = run(isa, 1, &case, &b, &b.segments);
                prop_assert_eq!(&all, &run(isa, 3, &case, &b, &b.segments));
                let width = case.shape.heads * case.group * case.shape.v_dim;
                for segment in &b.segments {
                    for start in segment.rows.clone().step_by(cut) {
                        let rows = start..segment.rows.end.min(start + cut);
                        let position = segment.position + start - segment.rows.start;
                        let chunk = Segment { rows: rows.clone(), position, pages: segment.pages.clone() };
                        let alone = run(isa, 2, &case, &b, &[chunk]);
                        let part = rows.start * width..rows.end * width;
                        prop_assert_eq!(&alone[part.clone()], &all[part.clone()]);
                        prop_assert!(alone[..part.start].iter().chain(&alone[part.end..]).all(|v| *v == -1.0));
                    }
                }
            }
        }
    }

    #[test]
    fn a_value_that_is_not_finite_stays_with_those_who_see_it() {
        let shape = KvShape {
            heads: 1,
            k_dim: 32,
            v_dim: 16,
            v_in_k: false,
        };
        for (group, rounded) in [1, 2, 3, 7]
            .into_iter()
            .flat_map(|g| [(g, false), (g, true)])
        {
            let case = Case {
                shape,
                kv: KvType::F16,
                group,
                window: None,
                softcap: None,
                lengths: vec![(5, 9)],
                seed: 3,
                rounded,
            };
            let mut b = batch(&case);
            // The last row's value is above what f16 holds.
            b.pages.write(1, b.tables[0], 13, &[0.5; 32], &[1e6; 16]);
            for isa in isa::all() {
                let out = run(isa, 1, &case, &b, &b.segments);
                let (before, last) = out.split_at(8 * group * 16);
                assert!(before.iter().all(|v| v.is_finite()), "group {group}");
                assert!(last.iter().all(|v| !v.is_finite()), "group {group}");
            }
        }
    }

    #[test]
    fn pages_before_the_window_are_never_read() {
        let shape = KvShape {
            heads: 1,
            k_dim: 8,
            v_dim: 8,
            v_in_k: false,
        };
        let (kv, lengths) = (KvType::F32, vec![(100, 1)]);
        let case = Case {
            shape,
            kv,
            group: 2,
            window: Some(20),
            softcap: None,
            lengths,
            seed: 1,
            rounded: false,
        };
        let mut b = batch(&case);
        let all = run(&isa::PORTABLE, 1, &case, &b, &b.segments);
        b.tables[..5].fill(u32::MAX); // the window begins at position 81, in page 5
        assert_eq!(run(&isa::PORTABLE, 1, &case, &b, &b.segments), all);
    }

    #[test]
    fn pages_past_the_last_token_are_never_read() {
        let shape = KvShape {
            heads: 1,
            k_dim: 32,
            v_dim: 16,
            v_in_k: false,
        };
        for (rounded, rows) in [(false, 1), (true, 1), (false, 9), (true, 9)] {
            let case = Case {
                shape,
                kv: KvType::F16,
                group: 2,
                window: None,
                softcap: None,
                lengths: vec![(70, rows)],
                seed: 1,
                rounded,
            };
            let mut b = batch(&case);
            let expected: Vec<_> = isa::all()
                .iter()
                .map(|isa| run(isa, 1, &case, &b, &b.segments))
                .collect();
            b.tables.extend([u32::MAX; 9]);
            b.segments[0].pages.end += 9;
            for (isa, expected) in isa::all().iter().zip(expected) {
                assert_eq!(run(isa, 1, &case, &b, &b.segments), expected);
            }
        }
    }
}
