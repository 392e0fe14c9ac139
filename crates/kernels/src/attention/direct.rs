//! Attention of one token's queries: each page is read once, by registers, without a copy.
//! The sums are those of the other way, in the same order, so that the bits are the same.
#![allow(clippy::needless_range_loop)] // one index walks several arrays of vectors

use std::ops::Range;

use super::{CHUNK, TOKENS, WIDE, Work, nibbles, weigh};
use crate::PAGE_TOKENS;
use crate::kv::PageHead;
use crate::simd::Sixteen;

/// Stored values, a vector at a time.
trait Stored<S: Sixteen>: Copy {
    fn vector(self, s: S, index: usize) -> S::W;
}

#[derive(Clone, Copy)]
struct F32<'a>(&'a [[f32; 16]]);
#[derive(Clone, Copy)]
struct F16<'a>(&'a [[u16; 16]]);
#[derive(Clone, Copy)]
struct Bf16<'a>(&'a [[u16; 16]]);
#[derive(Clone, Copy)]
struct Q8<'a>(&'a [[i8; 16]]);

macro_rules! stored {
    ($name:ident, $load:ident) => {
        impl<S: Sixteen> Stored<S> for $name<'_> {
            #[inline(always)]
            fn vector(self, s: S, index: usize) -> S::W {
                s.$load(&self.0[index])
            }
        }
    };
}
stored!(F32, load);
stored!(F16, load_f16);
stored!(Bf16, load_bf16);
stored!(Q8, load_i8);

/// Calls a function with a page's values as their type.
macro_rules! with_stored {
    ($page:expr, $values:ident => $call:expr) => {
        match $page {
            PageHead::F32(x) => {
                let $values = F32(x.as_chunks().0);
                $call
            }
            PageHead::F16(x) => {
                let $values = F16(x.as_chunks().0);
                $call
            }
            PageHead::BF16(x) => {
                let $values = Bf16(x.as_chunks().0);
                $call
            }
            PageHead::Q8(x) => {
                let $values = Q8(x.as_chunks().0);
                $call
            }
            PageHead::Q4(_) => unreachable!("read by `nibbles`"),
        }
    };
}

/// One chunk of pages, of which the tokens `read` are seen, for `S::QUERIES` queries `q`.
#[allow(clippy::too_many_arguments)] // the state of one task
#[inline(always)]
pub(super) fn chunk<S: Sixteen>(
    s: S,
    w: &Work<'_>,
    chunk: usize,
    pages: Range<usize>,
    read: Range<usize>,
    q: &[f32],
    scores: &mut [[f32; TOKENS]],
    acc: &mut [f32],
    state: &mut [[f32; 2]],
) {
    let (layer, shape) = (w.a.layer, w.kv.shape());
    let id = |p: usize| w.pages[chunk * CHUNK + p];
    for p in pages.clone() {
        // These pages' values are wanted next, and the keys of the next ones after that.
        ask(s, w.kv.values(layer, id(p), w.head));
        // What lies past the query in its table may be anything.
        let ahead = (chunk + 1) * CHUNK + p;
        if ahead * PAGE_TOKENS <= w.position {
            ask(s, w.kv.keys(layer, w.pages[ahead], w.head));
        }
    }
    // As many pages side by side as there are, so that no sum waits for itself.
    let mut p = pages.start;
    while p < pages.end {
        let keys = |i: usize| w.kv.keys(layer, id(p + i), w.head);
        p += match pages.end - p {
            CHUNK.. => scores_of::<S, CHUNK>(s, q, shape.k_dim, [0, 1, 2, 3].map(keys), p, scores),
            2.. => scores_of::<S, 2>(s, q, shape.k_dim, [0, 1].map(keys), p, scores),
            _ => scores_of::<S, 1>(s, q, shape.k_dim, [keys(0)], p, scores),
        };
    }
    let width = shape.v_dim;
    for (q, (scores, state)) in scores.iter_mut().zip(state).enumerate() {
        let acc = &mut acc[q * width..][..width];
        weigh(s, w, chunk, pages.clone(), read.clone(), scores, state, acc);
    }
    for p in pages {
        let start = p * PAGE_TOKENS;
        let tokens = read.start.max(start)..read.end.min(start + PAGE_TOKENS);
        let values = w.kv.values(layer, id(p), w.head);
        if let PageHead::Q4(words) = values {
            match S::QUERIES {
                4 => nibbles::mix::<S, 4>(s, scores, tokens, words, start, acc),
                _ => nibbles::mix::<S, 1>(s, scores, tokens, words, start, acc),
            }
            continue;
        }
        match S::QUERIES {
            4 => with_stored!(values, v => mix::<S, _, 4>(s, scores, tokens, v, start, acc)),
            _ => with_stored!(values, v => mix::<S, _, 1>(s, scores, tokens, v, start, acc)),
        }
    }
}

/// Asks for a page's lines.
#[inline(always)]
fn ask<S: Sixteen>(s: S, page: PageHead<'_>) {
    match page {
        PageHead::F32(x) => x.iter().step_by(16).for_each(|line| s.prefetch(line)),
        PageHead::F16(x) | PageHead::BF16(x) => {
            x.iter().step_by(32).for_each(|line| s.prefetch(line))
        }
        PageHead::Q8(x) => x.iter().step_by(64).for_each(|line| s.prefetch(line)),
        PageHead::Q4(_) => super::ask_words(s, Some(page)),
    }
}

/// Products of queries with the keys of `N` pages from `page` on; says how many that was.
#[inline(always)]
fn scores_of<S: Sixteen, const N: usize>(
    s: S,
    q: &[f32],
    k_dim: usize,
    keys: [PageHead<'_>; N],
    page: usize,
    scores: &mut [[f32; TOKENS]],
) -> usize {
    macro_rules! score {
        ($kind:ident, $stored:ident) => {{
            let keys = keys.map(|page| match page {
                PageHead::$kind(x) => $stored(x.as_chunks().0),
                _ => unreachable!("all pages are of one type"),
            });
            match S::QUERIES {
                4 => score::<S, _, 4, N>(s, q, k_dim, keys, page, scores),
                _ => score::<S, _, 1, N>(s, q, k_dim, keys, page, scores),
            }
        }};
    }
    match keys[0] {
        PageHead::Q4(_) => {
            let keys = keys.map(|page| match page {
                PageHead::Q4(words) => words,
                _ => unreachable!("all pages are of one type"),
            });
            match S::QUERIES {
                4 => nibbles::score::<S, 4, N>(s, q, k_dim, keys, page, scores),
                _ => nibbles::score::<S, 1, N>(s, q, k_dim, keys, page, scores),
            }
        }
        PageHead::F32(_) => score!(F32, F32),
        PageHead::F16(_) => score!(F16, F16),
        PageHead::BF16(_) => score!(BF16, Bf16),
        PageHead::Q8(_) => score!(Q8, Q8),
    }
    N
}

/// Products of queries with the keys of `N` pages, each summed in the order of dimensions.
#[inline(always)]
fn score<S: Sixteen, P: Stored<S>, const Q: usize, const N: usize>(
    s: S,
    q: &[f32],
    k_dim: usize,
    keys: [P; N],
    page: usize,
    scores: &mut [[f32; TOKENS]],
) {
    let mut rows = [&q[..k_dim]; Q];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = &q[i * k_dim..][..k_dim];
    }
    let mut acc = [[s.splat(0.0); N]; Q];
    for d in 0..k_dim {
        let mut k = [s.splat(0.0); N];
        for n in 0..N {
            k[n] = keys[n].vector(s, d);
        }
        for i in 0..Q {
            let q = s.splat(rows[i][d]);
            for n in 0..N {
                acc[i][n] = s.fma(q, k[n], acc[i][n]);
            }
        }
    }
    for i in 0..Q {
        for n in 0..N {
            s.store(acc[i][n], &mut scores[i].as_chunks_mut::<16>().0[page + n]);
        }
    }
}

/// `acc += Σ weight · value` over tokens of a page that begins at slot `start`, oldest first.
#[inline(always)]
fn mix<S: Sixteen, P: Stored<S>, const Q: usize>(
    s: S,
    weights: &[[f32; TOKENS]],
    tokens: Range<usize>,
    values: P,
    start: usize,
    acc: &mut [f32],
) {
    let width = acc.len() / Q / 16;
    let (acc, _) = acc.as_chunks_mut::<16>();
    let mut at = 0;
    while at < width {
        let wide = WIDE.min(width - at);
        match wide {
            WIDE => mix_part::<S, P, Q, WIDE>(
                s,
                weights,
                tokens.clone(),
                values,
                start,
                (width, at),
                acc,
            ),
            _ => {
                for at in at..width {
                    mix_part::<S, P, Q, 1>(
                        s,
                        weights,
                        tokens.clone(),
                        values,
                        start,
                        (width, at),
                        acc,
                    );
                }
            }
        }
        at += wide;
    }
}

/// [`mix`] for `N` vectors of the values, from vector `at` of `width`.
#[inline(always)]
fn mix_part<S: Sixteen, P: Stored<S>, const Q: usize, const N: usize>(
    s: S,
    weights: &[[f32; TOKENS]],
    tokens: Range<usize>,
    values: P,
    start: usize,
    (width, at): (usize, usize),
    acc: &mut [[f32; 16]],
) {
    let weights = &weights[..Q];
    let mut sums = [[s.splat(0.0); N]; Q];
    for q in 0..Q {
        for n in 0..N {
            sums[q][n] = s.load(&acc[q * width + at + n]);
        }
    }
    for token in tokens {
        let mut v = [s.splat(0.0); N];
        for n in 0..N {
            v[n] = values.vector(s, (token - start) * width + at + n);
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
