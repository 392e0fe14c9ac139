//! AVX-512 with VNNI: a step multiplies four columns of a row by 16 outputs.

use std::arch::x86_64::*;

use super::{Products, Sums};

/// Rows whose sums are in registers together: with four strips, 24 of 32.
const ROWS: usize = 6;

/// # Safety
/// As [`super::portable`]; the machine has the set.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(in super::super) unsafe fn products(p: &Products<'_>, sums: &mut Sums) {
    // SAFETY: by the caller's promise.
    unsafe {
        match p.strips() {
            1 => strips::<1>(p, sums),
            2 => strips::<2>(p, sums),
            3 => strips::<3>(p, sums),
            _ => strips::<4>(p, sums),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn strips<const STRIPS: usize>(p: &Products<'_>, sums: &mut Sums) {
    let mut row = 0;
    while row < p.rows {
        // SAFETY: as of `products`; rows are some of `p`'s.
        unsafe {
            match p.rows - row {
                ROWS.. => block::<ROWS, STRIPS>(p, row, sums),
                3..ROWS => block::<3, STRIPS>(p, row, sums),
                _ => block::<1, STRIPS>(p, row, sums),
            }
        }
        row += match p.rows - row {
            ROWS.. => ROWS,
            3..ROWS => 3,
            _ => 1,
        };
    }
}

/// Rows `first` and those after it.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn block<const ROWS: usize, const STRIPS: usize>(
    p: &Products<'_>,
    first: usize,
    sums: &mut Sums,
) {
    assert!(p.weights.len() == STRIPS * p.quads);
    let weights = p.weights.as_ptr();
    // SAFETY: the rows are there by the caller's promise, weights by the assertion; other loads
    // and stores are of arrays of 16 integers.
    unsafe {
        let x = p.x.add(first * p.stride);
        let mut sum = [[_mm512_setzero_si512(); STRIPS]; ROWS];
        for sum in &mut sum {
            for (strip, sum) in sum.iter_mut().enumerate() {
                *sum = _mm512_loadu_si512(p.start[16 * strip..][..16].as_ptr().cast());
            }
        }
        for quad in 0..p.quads {
            let mut w = [_mm512_setzero_si512(); STRIPS];
            for (strip, w) in w.iter_mut().enumerate() {
                *w = _mm512_loadu_si512(weights.add(strip * p.quads + quad).cast());
            }
            for (row, sum) in sum.iter_mut().enumerate() {
                let x = x.add(row * p.stride + 4 * quad).cast::<i32>();
                let x = _mm512_set1_epi32(x.read_unaligned());
                for (sum, w) in sum.iter_mut().zip(w) {
                    *sum = _mm512_dpbusd_epi32(*sum, x, w);
                }
            }
        }
        for (row, sum) in sum.into_iter().enumerate() {
            for (strip, sum) in sum.into_iter().enumerate() {
                let out = &mut sums.0[strip][first + row];
                _mm512_storeu_si512(out.as_mut_ptr().cast(), sum);
            }
        }
    }
}
