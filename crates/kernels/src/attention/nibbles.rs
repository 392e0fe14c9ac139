//! Reading keys and values of 4 bits: decoded for many queries, or straight into registers.
//! Either way a value is `code · scale + minimum`, rounded alike, and sums have one order.
#![allow(clippy::needless_range_loop)] // one index walks several arrays of vectors

use std::ops::Range;

use super::TOKENS;
use crate::PAGE_TOKENS;
use crate::kv::nibbles::{CODES, GROUP, LINE};
use crate::simd::Sixteen;

/// Vectors of values in a group.
const WIDE: usize = GROUP / LINE;

type Line = [u32; LINE];

/// The lines of a group, and those after it. `each` is the lines of codes of so many dimensions.
#[inline(always)]
fn group(lines: &[Line], dims: usize, each: usize, codes: usize) -> (&Line, &[Line], &[Line]) {
    let (group, rest) = lines.split_at(1 + dims.min(GROUP).div_ceil(each) * codes);
    (&group[0], &group[1..], rest)
}

/// Decodes a page's keys into its columns, `[k_dim]` of 16 tokens.
#[inline(always)]
pub(super) fn keys<'o, S: Sixteen>(
    s: S,
    words: &[u32],
    k_dim: usize,
    mut out: impl Iterator<Item = &'o mut [f32; 16]>,
) {
    let (mut lines, _) = words.as_chunks::<LINE>();
    for first in (0..k_dim).step_by(GROUP) {
        let (meaning, codes, rest) = group(lines, k_dim - first, CODES, 1);
        let [scale, least] = s.two_f16(meaning);
        for line in codes {
            // The last word may be of fewer dimensions.
            for (place, out) in (0..CODES).zip(&mut out) {
                s.store(s.fma(s.nibble(line, place), scale, least), out);
            }
        }
        lines = rest;
    }
}

/// Decodes a page's values into `[16]` rows of `[v_dim / 16]`, rounded up.
#[inline(always)]
pub(super) fn values<S: Sixteen>(s: S, words: &[u32], v_dim: usize, out: &mut [[f32; 16]]) {
    let width = v_dim.div_ceil(LINE);
    let (mut lines, _) = words.as_chunks::<LINE>();
    for first in (0..v_dim).step_by(GROUP) {
        let (meaning, codes, rest) = group(lines, v_dim - first, LINE, 2);
        let meaning = Meaning::of(s, meaning);
        for (wide, codes) in codes.as_chunks::<2>().0.iter().enumerate() {
            for token in 0..PAGE_TOKENS {
                let v = meaning.value(s, codes, token);
                s.store(v, &mut out[token * width + first / LINE + wide]);
            }
        }
        lines = rest;
    }
}

/// What the codes of a group of values mean, by token.
struct Meaning {
    scale: [f32; PAGE_TOKENS],
    least: [f32; PAGE_TOKENS],
}

impl Meaning {
    #[inline(always)]
    fn of<S: Sixteen>(s: S, line: &Line) -> Meaning {
        let mut meaning = Meaning {
            scale: [0.0; PAGE_TOKENS],
            least: [0.0; PAGE_TOKENS],
        };
        let [scale, least] = s.two_f16(line);
        s.store(scale, &mut meaning.scale);
        s.store(least, &mut meaning.least);
        meaning
    }

    /// Sixteen dimensions of a token.
    #[inline(always)]
    fn value<S: Sixteen>(&self, s: S, codes: &[Line; 2], token: usize) -> S::W {
        let code = s.nibble(&codes[token / CODES], token % CODES);
        s.fma(code, s.splat(self.scale[token]), s.splat(self.least[token]))
    }
}

/// Products of `Q` queries with the keys of `N` pages, each summed in the order of dimensions.
#[inline(always)]
pub(super) fn score<S: Sixteen, const Q: usize, const N: usize>(
    s: S,
    q: &[f32],
    k_dim: usize,
    keys: [&[u32]; N],
    page: usize,
    scores: &mut [[f32; TOKENS]],
) {
    let mut rows = [&q[..k_dim]; Q];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = &q[i * k_dim..][..k_dim];
    }
    let mut lines = [&[] as &[Line]; N];
    for n in 0..N {
        (lines[n], _) = keys[n].as_chunks();
    }
    let mut acc = [[s.splat(0.0); N]; Q];
    for first in (0..k_dim).step_by(GROUP) {
        let mut codes = [&[] as &[Line]; N];
        let (mut scale, mut least) = ([s.splat(0.0); N], [s.splat(0.0); N]);
        for n in 0..N {
            let (meaning, here, rest) = group(lines[n], k_dim - first, CODES, 1);
            [scale[n], least[n]] = s.two_f16(meaning);
            (codes[n], lines[n]) = (here, rest);
        }
        for line in 0..codes[0].len() {
            let from = first + line * CODES;
            for place in 0..CODES.min(k_dim - from) {
                let mut k = [s.splat(0.0); N];
                for n in 0..N {
                    k[n] = s.fma(s.nibble(&codes[n][line], place), scale[n], least[n]);
                }
                for i in 0..Q {
                    let q = s.splat(rows[i][from + place]);
                    for n in 0..N {
                        acc[i][n] = s.fma(q, k[n], acc[i][n]);
                    }
                }
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
pub(super) fn mix<S: Sixteen, const Q: usize>(
    s: S,
    weights: &[[f32; TOKENS]],
    tokens: Range<usize>,
    words: &[u32],
    start: usize,
    acc: &mut [f32],
) {
    let width = acc.len() / Q / LINE;
    let (acc, _) = acc.as_chunks_mut::<16>();
    let (mut lines, _) = words.as_chunks::<LINE>();
    for at in (0..width).step_by(WIDE) {
        let (meaning, codes, rest) = group(lines, (width - at) * LINE, LINE, 2);
        let meaning = Meaning::of(s, meaning);
        let (codes, _) = codes.as_chunks::<2>();
        if let Ok(codes) = <&[[Line; 2]; WIDE]>::try_from(codes) {
            let tokens = tokens.clone();
            mix_part::<S, Q, WIDE>(s, weights, tokens, &meaning, codes, start, (width, at), acc);
        } else {
            for (i, codes) in codes.iter().enumerate() {
                let (codes, tokens) = (std::array::from_ref(codes), tokens.clone());
                let at = (width, at + i);
                mix_part::<S, Q, 1>(s, weights, tokens, &meaning, codes, start, at, acc);
            }
        }
        lines = rest;
    }
}

/// [`mix`] for `N` vectors of the values, from vector `at` of `width`.
#[allow(clippy::too_many_arguments)] // the state of one task
#[inline(always)]
fn mix_part<S: Sixteen, const Q: usize, const N: usize>(
    s: S,
    weights: &[[f32; TOKENS]],
    tokens: Range<usize>,
    meaning: &Meaning,
    codes: &[[Line; 2]; N],
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
            v[n] = meaning.value(s, &codes[n], token - start);
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
