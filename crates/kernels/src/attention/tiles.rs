//! Attention with tiles of bfloat16: for prompts, whose many queries share what is decoded.
//!
//! Scores and sums of values are products of tiles; the softmax between them is that of the
//! other kernels, in f32. Queries, keys, values and weights are rounded to bfloat16, so results
//! differ from those of the other kernels by some 2⁻⁸ of their size. As there, a query's result
//! depends neither on its batch nor on its chunk.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::{CHUNK, TOKENS, Work, nibbles};
use crate::amx::Shape;
use crate::kv::PageHead;
use crate::simd::{Avx512, Sixteen};
use crate::{KvShape, KvType, PAGE_TOKENS, hadamard};

/// Queries that share what is decoded of a chunk.
pub(super) const QUERIES: usize = 128;

/// Rows of a tile.
const ROWS: usize = 16;

/// Values of bfloat16 in a row of a tile.
const WIDE: usize = 32;

/// A tile of bfloat16, as its bits.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Tile([[u16; WIDE]; ROWS]);

/// Scores of a tile's queries with a chunk.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Scores([[f32; TOKENS]; ROWS]);

/// A vector of sums.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Sums([f32; 16]);

/// Working memory of a task.
struct Scratch {
    /// `[tile of queries][k_dim / 32]`: 16 queries of 32 dimensions.
    queries: Vec<Tile>,
    /// `[k_dim / 32][4 pages]`: 16 pairs of dimensions of 16 tokens.
    keys: Vec<Tile>,
    /// `[v_dim / 16][2]`: 16 pairs of tokens of 16 dimensions.
    values: Vec<Tile>,
    /// `[query][v_dim / 16]`.
    sums: Vec<Sums>,
    /// One for each tile of queries.
    states: Vec<State>,
    /// A query that is turned, or a head of a page of 4-bit numbers.
    decoded: Vec<f32>,
}

/// What a tile's queries have seen so far.
#[derive(Clone, Copy)]
struct State {
    /// The largest score of each query.
    largest: [f32; ROWS],
    /// The sum of its weights, which are relative to the largest, by lane.
    weights: [[f32; 16]; ROWS],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            queries: Vec::new(),
            keys: Vec::new(),
            values: Vec::new(),
            sums: Vec::new(),
            states: Vec::new(),
            decoded: Vec::new(),
        })
    };
}

/// Whether there are tiles for keys and values of this shape.
pub(super) fn available(shape: KvShape) -> bool {
    Avx512::detect().is_some()
        && is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("f16c")
        && crate::amx::available()
        && !shape.v_in_k
        && shape.k_dim.is_multiple_of(WIDE)
        && shape.v_dim.is_multiple_of(16)
}

/// As [`work`](super::work), for a shape that is [`available`].
pub(super) fn work(w: &Work<'_>) {
    assert!(available(w.kv.shape()));
    let _entered = crate::amx::enter(&Shape {
        sums: ROWS as u8,
        left: (ROWS as u8, 64),
        right: (ROWS as u8, 64),
    });
    // SAFETY: the instructions are there, by the check, and the tiles have the shape that
    // `multiply_keys` and `multiply_values` want.
    SCRATCH.with_borrow_mut(|scratch| unsafe { attend(w, scratch) });
}

macro_rules! avx512 {
    ($(#[$meta:meta])* fn $($rest:tt)*) => {
        $(#[$meta])*
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,f16c,fma,avx2")]
        fn $($rest)*
    };
}

avx512! {
fn attend(w: &Work<'_>, scratch: &mut Scratch) {
    let s = Avx512::here();
    let (a, shape) = (w.a, w.kv.shape());
    let (deep, wide) = (shape.k_dim / WIDE, shape.v_dim / 16);
    let queries = w.rows * w.group;
    let tiles = queries.div_ceil(ROWS);
    let zero = Tile([[0; WIDE]; ROWS]);
    scratch.queries.resize(tiles * deep, zero);
    scratch.keys.resize(deep * CHUNK, zero);
    scratch.values.resize(wide * 2, zero);
    scratch.sums.clear();
    scratch.sums.resize(tiles * ROWS * wide, Sums([0.0; 16]));
    let unseen = State { largest: [f32::NEG_INFINITY; ROWS], weights: [[0.0; 16]; ROWS] };
    scratch.states.clear();
    scratch.states.resize(tiles, unseen);

    let query_at = |i: usize| (w.row + i / w.group) * a.heads + w.head * w.group + i % w.group;
    for i in 0..tiles * ROWS {
        // Those that fill up the last tile repeat the last one; their results go nowhere.
        let from = query_at(i.min(queries - 1)) * shape.k_dim;
        let mut turned = &w.q[from..][..shape.k_dim];
        if w.kv.rotated() {
            scratch.decoded.clear();
            scratch.decoded.extend_from_slice(turned);
            hadamard::turn_key(s, shape, &mut scratch.decoded);
            turned = &scratch.decoded;
        }
        let from = turned.as_chunks::<WIDE>().0;
        let tile = &mut scratch.queries[i / ROWS * deep..][..deep];
        for (from, tile) in from.iter().zip(tile) {
            let (low, high) = from.split_at(16);
            pack_in_order(load(low), load(high), &mut tile.0[i % ROWS]);
        }
    }

    // Positions that query i sees.
    let seen = |i: usize| {
        let end = w.position + i.min(queries - 1) / w.group + 1;
        a.window.map_or(0, |window| end.saturating_sub(window))..end
    };
    let all = seen(0).start..seen(queries - 1).end;
    let mut scores = Scores([[0.0; TOKENS]; ROWS]);
    let mut weights = [zero; 2];
    for chunk in all.start / TOKENS..all.end.div_ceil(TOKENS) {
        let first = chunk * TOKENS;
        // Tokens of the chunk that some query sees; no others are read or counted.
        let read = all.start.max(first) - first..all.end.min(first + TOKENS) - first;
        let pages = read.start / PAGE_TOKENS..read.end.div_ceil(PAGE_TOKENS);
        for page in pages.clone() {
            let id = w.pages[chunk * CHUNK + page];
            keys(w, id, page, &mut scratch.keys, &mut scratch.decoded);
        }
        let scales = (w.kv.kv_type() == KvType::Q8).then(|| {
            let mut all = [[[0.0; 16]; CHUNK]; 2];
            for page in pages.clone() {
                let id = w.pages[chunk * CHUNK + page];
                all[0][page] = *w.kv.key_scales(a.layer, id, w.head);
                all[1][page] = *w.kv.value_scales(a.layer, id, w.head);
            }
            all
        });
        let scales = scales.as_ref();
        let room = &mut scratch.decoded;
        let strange = values(w, chunk, pages.clone(), read, &mut scratch.values, room);
        for (tile, queries) in scratch.queries.chunks_exact(deep).enumerate() {
            let within = |position: usize| position.clamp(first, first + TOKENS) - first;
            let (start, last) = (tile * ROWS, tile * ROWS + ROWS - 1);
            if within(seen(start).start) == within(seen(last).end) {
                continue;
            }
            multiply_keys(queries, &scratch.keys, &mut scores);
            let mut masks = [0u64; ROWS];
            for (q, mask) in masks.iter_mut().enumerate() {
                let slots = within(seen(start + q).start)..within(seen(start + q).end);
                let below = |n: usize| u64::MAX.checked_shr(64 - n as u32).unwrap_or(0);
                *mask = below(slots.end) & !below(slots.start);
            }
            let sums = &mut scratch.sums[start * wide..][..ROWS * wide];
            let state = &mut scratch.states[tile];
            weigh(w, scales, &masks, &mut scores, state, sums, &mut weights);
            // A weight of 0 times what is not finite is not 0, so its row is 0 in the tile, and
            // those who see it are told here.
            for (weights, mask) in state.weights.iter_mut().zip(&masks) {
                if mask & strange != 0 {
                    *weights = [f32::NAN; 16];
                }
            }
            multiply_values(&weights, &scratch.values, sums);
        }
    }
    for (i, sums) in scratch.sums.chunks_exact_mut(wide).enumerate().take(queries) {
        // SAFETY: the outputs of this query belong to this task, by the contract of `Work`.
        let out = unsafe { w.out.part(query_at(i) * shape.v_dim, shape.v_dim) };
        let weights = s.load(&scratch.states[i / ROWS].weights[i % ROWS]);
        let inverse = 1.0 / s.sum_lanes(weights);
        for (o, v) in out.iter_mut().zip(flat(sums)) {
            *o = *v * inverse;
        }
        if w.kv.rotated() {
            hadamard::turn(s, out);
        }
        w.kv.put_back(a.layer, w.head, out);
    }
}
}

avx512! {
/// Turns the scores of a tile's queries into weights relative to the largest score so far; tokens
/// outside a query's mask get weight 0. When a query's largest changes, what was summed under
/// the old one shrinks. Scales are those of a chunk's keys and values.
fn weigh(
    w: &Work<'_>,
    scales: Option<&[[[f32; 16]; CHUNK]; 2]>,
    masks: &[u64; ROWS],
    scores: &mut Scores,
    state: &mut State,
    sums: &mut [Sums],
    weights: &mut [Tile; 2],
) {
    let s = Avx512::here();
    let scale = s.splat(w.a.scale);
    let nothing = s.splat(f32::NEG_INFINITY);
    let part = |mask: u64, page: usize| (mask >> (page * PAGE_TOKENS)) as u16;
    let mut largest = [0.0; ROWS];
    for ((scores, mask), largest) in scores.0.iter_mut().zip(masks).zip(&mut largest) {
        let mut most = nothing;
        for (page, scores) in scores.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let mut x = s.mul(s.load(scores), scale);
            if let Some([keys, _]) = scales {
                x = s.mul(x, s.load(&keys[page]));
            }
            if let Some(cap) = w.a.softcap {
                x = s.mul(s.splat(cap), s.tanh(s.mul(x, s.splat(1.0 / cap))));
            }
            let x = _mm512_mask_mov_ps(nothing, part(*mask, page), x);
            s.store(x, scores);
            most = s.max(x, most);
        }
        *largest = s.max_lane(most);
    }
    let old = s.load(&state.largest);
    let new = s.max(s.load(&largest), old);
    s.store(new, &mut state.largest);
    // Where nothing has been seen yet, there is nothing to shrink.
    let grown = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(new, old);
    let mut shrink = [0.0; ROWS];
    s.store(_mm512_mask_mov_ps(s.splat(1.0), grown, s.exp(s.sub(old, new))), &mut shrink);
    let wide = sums.len() / ROWS;
    for q in (0..ROWS).filter(|q| grown >> q & 1 == 1) {
        let shrink = s.splat(shrink[q]);
        for sum in &mut sums[q * wide..][..wide] {
            s.store(s.mul(s.load(&sum.0), shrink), &mut sum.0);
        }
        let total = &mut state.weights[q];
        s.store(s.mul(s.load(total), shrink), total);
    }
    for (q, (scores, mask)) in scores.0.iter().zip(masks).enumerate() {
        let largest = s.splat(state.largest[q]);
        let mut each = [largest; CHUNK];
        let mut total = s.load(&state.weights[q]);
        for (page, scores) in scores.as_chunks::<16>().0.iter().enumerate() {
            let weight = s.exp(s.sub(s.load(scores), largest));
            each[page] = _mm512_maskz_mov_ps(part(*mask, page), weight);
            total = s.add(total, each[page]);
        }
        s.store(total, &mut state.weights[q]);
        if let Some([_, values]) = scales {
            for (page, (each, values)) in each.iter_mut().zip(values).enumerate() {
                // The scale of a token that is not there may be anything.
                let scaled = s.mul(*each, s.load(values));
                *each = _mm512_maskz_mov_ps(part(*mask, page), scaled);
            }
        }
        for (half, weights) in weights.iter_mut().enumerate() {
            pack_in_order(each[2 * half], each[2 * half + 1], &mut weights.0[q]);
        }
    }
}
}

/// Room for so many values.
fn sized(room: &mut Vec<f32>, len: usize) -> &mut [f32] {
    room.resize(room.len().max(len), 0.0);
    &mut room[..len]
}

/// The sums of a query as plain values.
#[inline(always)]
fn flat(sums: &mut [Sums]) -> &mut [f32] {
    // SAFETY: `Sums` is an array of sixteen values without padding.
    unsafe { std::slice::from_raw_parts_mut(sums.as_mut_ptr().cast(), sums.len() * 16) }
}

avx512! {
#[inline]
fn load(x: &[f32]) -> __m512 {
    let x = &x[..16];
    // SAFETY: reads the 16 values of the slice.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}
}

avx512! {
/// Rounds 32 values that follow each other.
#[inline]
fn pack_in_order(low: __m512, high: __m512, out: &mut [u16; WIDE]) {
    // SAFETY: both types are 64 bytes of any bits; the store fills the array.
    unsafe {
        let bits: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
        _mm512_storeu_si512(out.as_mut_ptr().cast(), bits);
    }
}
}

avx512! {
/// Rounds two vectors and puts the values of each lane side by side.
#[inline]
fn pack_in_pairs(even: __m512, odd: __m512, out: &mut [u16; WIDE]) {
    // SAFETY: both types are 64 bytes of any bits; the store fills the array.
    unsafe {
        let bits: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(odd, even));
        let bits = _mm512_permutexvar_epi16(interleave(), bits);
        _mm512_storeu_si512(out.as_mut_ptr().cast(), bits);
    }
}
}

avx512! {
/// 0, 16, 1, 17 and so on.
#[inline]
fn interleave() -> __m512i {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i / 2 + i % 2 * 16) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: reads the 64 bytes of the array.
    unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) }
}
}

avx512! {
/// The 16 values from `at`.
#[inline]
fn vector(page: PageHead<'_>, at: usize) -> __m512 {
    let s = Avx512::here();
    let part = at..at + 16;
    let wrong = "sixteen values";
    match page {
        PageHead::F32(x) => s.load(x[part].try_into().expect(wrong)),
        PageHead::F16(x) => s.load_f16(x[part].try_into().expect(wrong)),
        PageHead::BF16(x) => s.load_bf16(x[part].try_into().expect(wrong)),
        PageHead::Q8(x) => s.load_i8(x[part].try_into().expect(wrong)),
        PageHead::Q4(_) => unreachable!("decoded before"),
    }
}
}

avx512! {
/// Puts a page's keys, `[k_dim][16]`, into its tiles. Their scales multiply the scores.
fn keys(w: &Work<'_>, id: u32, page: usize, tiles: &mut [Tile], room: &mut Vec<f32>) {
    let mut from = w.kv.keys(w.a.layer, id, w.head);
    if let PageHead::Q4(words) = from {
        let k_dim = w.kv.shape().k_dim;
        let decoded = sized(room, k_dim * PAGE_TOKENS);
        let out = decoded.as_chunks_mut::<16>().0.iter_mut();
        nibbles::keys(Avx512::here(), words, k_dim, out);
        from = PageHead::F32(decoded);
    }
    for (depth, tiles) in tiles.chunks_exact_mut(CHUNK).enumerate() {
        for (pair, out) in tiles[page].0.iter_mut().enumerate() {
            let at = (depth * WIDE + 2 * pair) * PAGE_TOKENS;
            pack_in_pairs(vector(from, at), vector(from, at + PAGE_TOKENS), out);
        }
    }
}
}

avx512! {
/// Puts a chunk's values, pages of `[16][v_dim]`, into tiles; those of tokens that are not read,
/// or are not finite, are 0. Their scales multiply the weights. Says which are not finite.
fn values(
    w: &Work<'_>,
    chunk: usize,
    pages: Range<usize>,
    read: Range<usize>,
    tiles: &mut [Tile],
    room: &mut Vec<f32>,
) -> u64 {
    let v_dim = w.kv.shape().v_dim;
    let mut strange = 0;
    for page in 0..CHUNK {
        let mut from = pages
            .contains(&page)
            .then(|| w.kv.values(w.a.layer, w.pages[chunk * CHUNK + page], w.head));
        if let Some(PageHead::Q4(words)) = from {
            let decoded = sized(room, PAGE_TOKENS * v_dim);
            nibbles::values(Avx512::here(), words, v_dim, decoded.as_chunks_mut().0);
            from = Some(PageHead::F32(decoded));
        }
        for pair in 0..PAGE_TOKENS / 2 {
            let token = page * PAGE_TOKENS + 2 * pair;
            let (half, row) = (token / WIDE, token % WIDE / 2);
            for (wide, tiles) in tiles.chunks_exact_mut(2).enumerate() {
                let mut both = [_mm512_setzero_ps(); 2];
                for (i, both) in both.iter_mut().enumerate() {
                    let Some(from) = from.filter(|_| read.contains(&(token + i))) else {
                        continue;
                    };
                    let v = vector(from, (2 * pair + i) * v_dim + wide * 16);
                    // Quiet and signalling NaN, and both infinities.
                    let bad = _mm512_fpclass_ps_mask::<0x99>(v);
                    strange |= u64::from(bad != 0) << (token + i);
                    *both = _mm512_maskz_mov_ps(!bad, v);
                }
                pack_in_pairs(both[0], both[1], &mut tiles[half].0[row]);
            }
        }
    }
    strange
}
}

/// Products of a tile of queries with the keys of a chunk.
fn multiply_keys(queries: &[Tile], keys: &[Tile], out: &mut Scores) {
    assert_eq!(keys.len(), queries.len() * CHUNK);
    let out = out.0.as_mut_ptr();
    // SAFETY: the tiles are configured; four tiles of keys are read for each of the queries', by
    // the check; the four tiles of sums fill 16 rows of 256 bytes.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{q} + {row}]",
            "tileloadd tmm6, [{k} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{k} + {row} + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm6, [{k} + {row} + 2048]",
            "tdpbf16ps tmm2, tmm4, tmm6",
            "tileloadd tmm7, [{k} + {row} + 3072]",
            "tdpbf16ps tmm3, tmm4, tmm7",
            "add {q}, 1024",
            "add {k}, 4096",
            "dec {n}",
            "jnz 2b",
            "tilestored [{out} + {wide}], tmm0",
            "tilestored [{out} + {wide} + 64], tmm1",
            "tilestored [{out} + {wide} + 128], tmm2",
            "tilestored [{out} + {wide} + 192], tmm3",
            q = inout(reg) queries.as_ptr() => _, k = inout(reg) keys.as_ptr() => _,
            n = inout(reg) queries.len() => _,
            out = in(reg) out, row = in(reg) 64usize, wide = in(reg) 4 * TOKENS,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Adds the products of a tile of queries' weights with the values of a chunk.
fn multiply_values(weights: &[Tile; 2], values: &[Tile], sums: &mut [Sums]) {
    assert_eq!(sums.len(), ROWS * values.len() / 2);
    // SAFETY: the tiles are configured; two tiles of values are read for each vector of a row of
    // sums, whose 16 rows have as many vectors, by the check.
    unsafe {
        asm!(
            "tileloadd tmm4, [{w} + {row}]",
            "tileloadd tmm5, [{w} + {row} + 1024]",
            "2:",
            "tileloadd tmm0, [{out} + {wide}]",
            "tileloadd tmm6, [{v} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{v} + {row} + 1024]",
            "tdpbf16ps tmm0, tmm5, tmm7",
            "tilestored [{out} + {wide}], tmm0",
            "add {out}, 64",
            "add {v}, 2048",
            "dec {n}",
            "jnz 2b",
            w = in(reg) weights.as_ptr(), v = inout(reg) values.as_ptr() => _,
            n = inout(reg) values.len() / 2 => _, out = inout(reg) sums.as_mut_ptr() => _,
            row = in(reg) 64usize, wide = in(reg) values.len() / 2 * 64,
            out("tmm0") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
