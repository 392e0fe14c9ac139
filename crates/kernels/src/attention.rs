//! Attention of new queries over paged keys and values.

use std::cell::RefCell;
use std::ops::Range;

use crate::isa::{Isa, isa};
use crate::kv::PageHead;
use crate::matmul::{TILE_W, TILE_X, Tiles};
use crate::simd::{LANES, Simd};
use crate::team::Disjoint;
use crate::{KvPages, PAGE_TOKENS, Team};

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

/// Queries of one head of keys that share each decoded page.
const QUERIES: usize = 32;

/// Vectors of values that are summed side by side: enough to hide the latency of a sum.
const WIDE: usize = 8;

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
    let rows_in_block = (QUERIES / group).max(1);
    let blocks = |s: &Segment| s.rows.len().div_ceil(rows_in_block);
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
        let first = (blocks(segment) - 1 - block) * rows_in_block;
        SCRATCH.with_borrow_mut(|scratch| {
            (isa.attend)(&mut Work {
                tiles: &isa.tiles,
                a,
                q,
                kv,
                out: &out,
                head,
                group,
                pages: &a.tables[segment.pages.clone()],
                row: segment.rows.start + first,
                rows: rows_in_block.min(segment.rows.len() - first),
                position: segment.position + first,
                scratch,
            });
        });
    });
}

/// A few rows of one segment against one head of keys and values.
pub(crate) struct Work<'a> {
    tiles: &'a Tiles,
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
    scratch: &'a mut Vec<f32>,
}

/// Softmax over pages, oldest first, with a running maximum (Milakov and Gimelshein 2018,
/// arXiv 1805.02867). All rows of scratch are padded to whole vectors with zeros.
#[inline(always)]
pub(crate) fn work<S: Simd>(s: S, w: &mut Work<'_>) {
    let (a, shape) = (w.a, w.kv.shape());
    let (k_pad, v_pad) = (padded(shape.k_dim), padded(shape.v_dim));
    let queries = w.rows * w.group;
    let sizes = [
        queries * k_pad,
        queries * v_pad,
        2 * queries,
        PAGE_TOKENS * (k_pad + v_pad),
    ];
    let [q_len, acc_len, state_len, _] = sizes;
    let needed: usize = sizes.iter().sum();
    if w.scratch.len() < needed {
        w.scratch.resize(needed, 0.0);
    }
    let (q, rest) = w.scratch[..needed].split_at_mut(q_len);
    let (acc, rest) = rest.split_at_mut(acc_len);
    let (state, rest) = rest.split_at_mut(state_len);
    let (keys, values) = rest.split_at_mut(PAGE_TOKENS * k_pad);
    let query_at = |i: usize| (w.row + i / w.group) * a.heads + w.head * w.group + i % w.group;
    for (i, q) in q.chunks_exact_mut(k_pad).enumerate() {
        q[..shape.k_dim].copy_from_slice(&w.q[query_at(i) * shape.k_dim..][..shape.k_dim]);
        q[shape.k_dim..].fill(0.0);
    }
    acc.fill(0.0);
    for state in state.chunks_exact_mut(2) {
        state.copy_from_slice(&[f32::NEG_INFINITY, 0.0]);
    }

    // Positions that query i sees.
    let seen = |i: usize| {
        let end = w.position + i / w.group + 1;
        a.window.map_or(0, |window| end.saturating_sub(window))..end
    };
    let pages = seen(0).start / PAGE_TOKENS..seen(queries - 1).end.div_ceil(PAGE_TOKENS);
    for (page, &id) in w.pages.iter().enumerate().take(pages.end).skip(pages.start) {
        let first = page * PAGE_TOKENS;
        decode_rows(w.kv.keys(a.layer, id, w.head), shape.k_dim, k_pad, keys);
        let (values, v_stride) = if shape.v_in_k {
            (&*keys, k_pad)
        } else {
            decode_rows(w.kv.values(a.layer, id, w.head), shape.v_dim, v_pad, values);
            (&*values, v_pad)
        };
        let mut i = 0;
        while i < queries {
            let n = (queries - i).min(TILE_X);
            let mut scores = [[0.0; PAGE_TOKENS]; TILE_X];
            score(
                w.tiles,
                &q[i * k_pad..(i + n) * k_pad],
                keys,
                k_pad,
                &mut scores,
            );
            for (i, scores) in (i..i + n).zip(&mut scores) {
                let seen = seen(i);
                let slots = seen.start.clamp(first, first + PAGE_TOKENS) - first
                    ..seen.end.clamp(first, first + PAGE_TOKENS) - first;
                if slots.is_empty() {
                    continue;
                }
                let (state, acc) = (&mut state[2 * i..2 * i + 2], &mut acc[i * v_pad..][..v_pad]);
                weigh(s, a, slots.clone(), scores, state, acc);
                for (lane, acc) in acc
                    .as_chunks_mut::<{ WIDE * LANES }>()
                    .0
                    .iter_mut()
                    .enumerate()
                {
                    mix::<S, WIDE>(
                        s,
                        scores,
                        slots.clone(),
                        &values[lane * WIDE * LANES..],
                        v_stride,
                        acc,
                    );
                }
                let done = v_pad / (WIDE * LANES) * WIDE * LANES;
                for at in (done..v_pad).step_by(LANES) {
                    let (acc, _) = acc[at..].as_chunks_mut::<LANES>();
                    mix::<S, 1>(
                        s,
                        scores,
                        slots.clone(),
                        &values[at..],
                        v_stride,
                        &mut acc[0],
                    );
                }
            }
            i += n;
        }
    }
    for (i, acc) in acc.chunks_exact(v_pad).enumerate() {
        // SAFETY: the outputs of this query belong to this task, by the contract of `Work`.
        let out = unsafe { w.out.part(query_at(i) * shape.v_dim, shape.v_dim) };
        let inverse = 1.0 / state[2 * i + 1];
        for (o, v) in out.iter_mut().zip(acc) {
            *o = v * inverse;
        }
    }
}

fn padded(dim: usize) -> usize {
    dim.next_multiple_of(LANES)
}

/// `[16][dim]` to `[16][pad]`.
fn decode_rows(page: PageHead<'_>, dim: usize, pad: usize, out: &mut [f32]) {
    if dim == pad {
        page.decode(0, &mut out[..PAGE_TOKENS * dim]);
        return;
    }
    for (slot, out) in out.chunks_exact_mut(pad).take(PAGE_TOKENS).enumerate() {
        page.decode(slot * dim, &mut out[..dim]);
        out[dim..].fill(0.0);
    }
}

/// Products of up to four queries with all keys of a page.
fn score(
    tiles: &Tiles,
    q: &[f32],
    keys: &[f32],
    k_pad: usize,
    scores: &mut [[f32; PAGE_TOKENS]; TILE_X],
) {
    let queries = q.len() / k_pad;
    for slot in (0..PAGE_TOKENS).step_by(TILE_W) {
        let n = TILE_W.min(PAGE_TOKENS - slot);
        let mut sums = [[0.0; TILE_W]; TILE_X];
        tiles[queries - 1][n - 1](q, k_pad, &keys[slot * k_pad..], k_pad, k_pad, &mut sums);
        for (scores, sums) in scores.iter_mut().zip(sums) {
            scores[slot..slot + n].copy_from_slice(&sums[..n]);
        }
    }
}

/// Turns the products of a query with a page's keys into weights relative to the largest
/// score so far, which is `state[0]`, and adds the weights to `state[1]`. When the largest
/// changes, what was summed under the old one shrinks.
#[inline(always)]
fn weigh<S: Simd>(
    s: S,
    a: &Attention<'_>,
    slots: Range<usize>,
    scores: &mut [f32; PAGE_TOKENS],
    state: &mut [f32],
    acc: &mut [f32],
) {
    let (vectors, _) = scores.as_chunks_mut::<LANES>();
    for v in vectors.iter_mut() {
        let mut x = s.mul(s.load(v), s.splat(a.scale));
        if let Some(cap) = a.softcap {
            x = s.mul(s.splat(cap), s.tanh(s.div(x, s.splat(cap))));
        }
        s.store(x, v);
    }
    // Slots that the query does not see may hold anything.
    scores[..slots.start].fill(f32::NEG_INFINITY);
    scores[slots.end..].fill(f32::NEG_INFINITY);
    let (vectors, _) = scores.as_chunks_mut::<LANES>();
    let mut largest = s.splat(f32::NEG_INFINITY);
    for v in vectors.iter() {
        largest = s.max(largest, s.load(v));
    }
    let largest = s.max_lane(largest);
    if largest > state[0] {
        let mut shrink = [0.0; LANES];
        s.store(s.exp(s.splat(state[0] - largest)), &mut shrink);
        let shrink = shrink[0];
        state[0] = largest;
        state[1] *= shrink;
        for acc in acc.as_chunks_mut::<LANES>().0 {
            s.store(s.mul(s.load(acc), s.splat(shrink)), acc);
        }
    }
    let mut sums = [s.zero(); 4];
    for (v, sum) in vectors.iter_mut().zip(&mut sums) {
        *sum = s.exp(s.sub(s.load(v), s.splat(state[0])));
        s.store(*sum, v);
    }
    let [low, high, ..] = s.sum4(sums);
    state[1] += low + high;
}

/// `acc += Σ weight · value` over the slots, oldest first, for `N` vectors of the values.
#[inline(always)]
fn mix<S: Simd, const N: usize>(
    s: S,
    weights: &[f32; PAGE_TOKENS],
    slots: Range<usize>,
    values: &[f32],
    stride: usize,
    acc: &mut [f32],
) {
    // Lengths known to the compiler keep the sums in registers.
    let acc = &mut acc.as_chunks_mut::<LANES>().0[..N];
    let mut sums = [s.zero(); N];
    for c in 0..N {
        sums[c] = s.load(&acc[c]);
    }
    for slot in slots {
        let weight = s.splat(weights[slot]);
        let values = &values[slot * stride..].as_chunks::<LANES>().0[..N];
        for c in 0..N {
            sums[c] = s.fma(weight, s.load(&values[c]), sums[c]);
        }
    }
    for c in 0..N {
        s.store(sums[c], &mut acc[c]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::isa;
    use crate::{KvShape, KvType};

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
    }

    fn cases() -> impl Strategy<Value = Case> {
        let dims = prop_oneof![
            Just((8, 8)),
            Just((64, 64)),
            Just((20, 12)),
            Just((72, 40)),
            Just((5, 3))
        ];
        let kv = prop_oneof![Just(KvType::F32), Just(KvType::F16), Just(KvType::BF16)];
        (
            (dims, 1usize..4, any::<bool>(), kv, 1usize..6),
            proptest::option::of(1usize..40),
            proptest::option::of(0.5f32..30.0),
            proptest::collection::vec((0usize..70, 1usize..40), 1..4),
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
            let k = values(
                (before + rows) * shape.heads * shape.k_dim,
                seed + 2 * s as u64,
            );
            let v = values(
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
        let q = values(row * shape.heads * group * shape.k_dim, seed + 99);
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
                        let mut k = vec![0.0; shape.k_dim];
                        let keys = b.pages.keys(1, page, head / group);
                        keys.decode(p % PAGE_TOKENS * shape.k_dim, &mut k);
                        let mut v = vec![0.0; shape.v_dim];
                        if shape.v_in_k {
                            v.copy_from_slice(&k[..shape.v_dim]);
                        } else {
                            let values = b.pages.values(1, page, head / group);
                            values.decode(p % PAGE_TOKENS * shape.v_dim, &mut v);
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
        fn a_token_does_not_depend_on_its_batch_or_chunk(case in cases(), cut in 1usize..40) {
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
        };
        let mut b = batch(&case);
        let all = run(&isa::PORTABLE, 1, &case, &b, &b.segments);
        b.tables[..5].fill(u32::MAX); // the window begins at position 81, in page 5
        assert_eq!(run(&isa::PORTABLE, 1, &case, &b, &b.segments), all);
    }
}
