//! Strips rebuilt with vectors of sixteen rows: a column's signs are a mask.

#![allow(clippy::needless_range_loop)] // one index walks several arrays of vectors

use std::arch::x86_64::*;

use super::{Rebuild, SCALES, Stack, StripWork, UNIT, WORD, ZERO, parts};
use crate::packed::layout::{GROUP, SLAB, STRIP};

/// The way, where the machine has it.
pub(super) fn rebuild() -> Option<Rebuild> {
    let there = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("f16c");
    // SAFETY: the sets are there, by the test above.
    there.then_some(|stack, strip, work| unsafe { rebuild_strip(stack, strip, work) })
}

macro_rules! avx512 {
    ($(#[$meta:meta])* fn $($rest:tt)*) => {
        $(#[$meta])*
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c,fma")]
        fn $($rest)*
    };
}

avx512! {
#[inline]
fn halves(words: &[[u8; WORD]; STRIP]) -> __m512 {
    // SAFETY: reads the 32 bytes of the array.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(words.as_ptr().cast()) })
}
}

avx512! {
#[inline]
fn load(values: &[f32; STRIP]) -> __m512 {
    // SAFETY: reads the 16 values of the array.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}
}

avx512! {
#[inline]
fn store(values: &mut [f32; STRIP], v: __m512) {
    // SAFETY: writes the 16 values of the array.
    unsafe { _mm512_storeu_ps(values.as_mut_ptr(), v) }
}
}

avx512! {
fn rebuild_strip(stack: &Stack, strip: usize, work: &mut StripWork) {
    let terms = stack.terms();
    let StripWork { out, u, scaled, v } = work;
    u.resize(terms, [0.0; STRIP]);
    scaled.resize(terms, [0.0; STRIP]);
    v.resize(terms, [0.0; SLAB]);
    let mut term = 0;
    for block in &stack.blocks {
        let [_, factors, _] = parts(stack, block, strip);
        for row in factors.as_chunks::<STRIP>().0 {
            store(&mut u[term], halves(row));
            term += 1;
        }
    }
    for (index, unit) in out.chunks_exact_mut(UNIT).enumerate() {
        let (codes, scales) = unit.split_at_mut(STRIP * GROUP);
        let slabs = codes.as_chunks_mut::<{ STRIP * SLAB }>().0;
        let scales = scales.as_chunks_mut::<SCALES>().0;
        for (half, (codes, scales)) in slabs.iter_mut().zip(scales).enumerate() {
            let first = (2 * index + half) * SLAB;
            let inverse = scales_of(stack, strip, first, u, v, scales);
            for t in 0..terms {
                store(&mut scaled[t], _mm512_mul_ps(load(&u[t]), inverse));
            }
            for (eight, codes) in codes.as_chunks_mut::<128>().0.iter_mut().enumerate() {
                let columns = first + 8 * eight;
                eight_columns(stack, strip, columns, 8 * eight, (scaled, v), codes);
            }
        }
    }
}
}

avx512! {
/// Decodes V of 32 columns, writes their scales, and gives the inverses.
#[inline]
fn scales_of(
    stack: &Stack,
    strip: usize,
    first: usize,
    u: &[[f32; STRIP]],
    v: &mut [[f32; SLAB]],
    scales: &mut [u8; SCALES],
) -> __m512 {
    let mut bound = _mm512_setzero_ps();
    let columns = stack.cols.saturating_sub(first).min(SLAB);
    let mut term = 0;
    for block in &stack.blocks {
        let [_, _, all] = parts(stack, block, strip);
        for r in 0..block.rank {
            let mut words = [[0; WORD]; SLAB];
            let here = r * stack.cols + first.min(stack.cols);
            words[..columns].copy_from_slice(&all[here..here + columns]);
            let [low, high] = words.as_chunks::<STRIP>().0 else {
                unreachable!("a slab is two strips wide")
            };
            let (low, high) = (halves(low), halves(high));
            let [out_low, out_high] = v[term].as_chunks_mut::<STRIP>().0 else {
                unreachable!("a slab is two strips wide")
            };
            store(out_low, low);
            store(out_high, high);
            let most = _mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high));
            let most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
            bound = _mm512_fmadd_ps(_mm512_abs_ps(load(&u[term])), most, bound);
            term += 1;
        }
    }
    let scale = _mm512_div_ps(bound, _mm512_set1_ps(127.0));
    let scale = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(scale);
    // SAFETY: writes the 32 bytes of the array.
    unsafe { _mm256_storeu_si256(scales.as_mut_ptr().cast(), scale) };
    let scale = _mm512_cvtph_ps(scale);
    let there = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(scale, _mm512_setzero_ps());
    _mm512_maskz_div_ps(there, _mm512_set1_ps(1.0), scale)
}
}

avx512! {
/// The codes of eight columns, which are at `column` of their 32.
#[inline]
fn eight_columns(
    stack: &Stack,
    strip: usize,
    first: usize,
    column: usize,
    (scaled, v): (&[[f32; STRIP]], &[[f32; SLAB]]),
    out: &mut [u8; 128],
) {
    let minus = _mm512_castps_si512(_mm512_set1_ps(-0.0));
    let mut sums = [_mm512_setzero_ps(); 8];
    let mut term = 0;
    for block in &stack.blocks {
        let [signs, _, _] = parts(stack, block, strip);
        let mut negative = [[0; WORD]; 8];
        match signs.get(first..first + 8) {
            Some(words) => negative.copy_from_slice(words),
            None => {
                let rest = &signs[first.min(signs.len())..];
                negative[..rest.len()].copy_from_slice(rest);
            }
        }
        for _ in 0..block.rank {
            let u = _mm512_castps_si512(load(&scaled[term]));
            for c in 0..8 {
                let mask = u16::from_le_bytes(negative[c]);
                let u = _mm512_castsi512_ps(_mm512_mask_xor_epi32(u, mask, u, minus));
                let v = _mm512_set1_ps(v[term][column + c]);
                sums[c] = _mm512_fmadd_ps(v, u, sums[c]);
            }
            term += 1;
        }
    }
    for (four, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let mut whole = [_mm512_setzero_si512(); 4];
        for c in 0..4 {
            // Rounds to nearest, ties to even.
            whole[c] = _mm512_cvtps_epi32(sums[4 * four + c]);
        }
        let low = _mm512_packs_epi32(whole[0], whole[1]);
        let high = _mm512_packs_epi32(whole[2], whole[3]);
        // In each 128 bits four rows of the first column, of the second, …
        let columns = _mm512_packs_epi16(low, high);
        let rows = _mm512_broadcast_i32x4(_mm_setr_epi8(
            0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,
        ));
        let codes = _mm512_shuffle_epi8(columns, rows);
        let codes = _mm512_xor_si512(codes, _mm512_set1_epi8(ZERO as i8));
        // SAFETY: writes the 64 bytes of the array.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), codes) };
    }
}
}
