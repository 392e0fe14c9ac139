//! The same on AVX-512: the bytes of a panel's outputs are one vector.

use std::arch::x86_64::*;

use crate::Activation;

use super::super::lanes::Avx512;
use super::{Add, Finish, Rows};

/// # Safety
/// As [`super::bytes`]; the machine has the set.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub(in super::super) unsafe fn bytes(r: &Rows<'_>, finish: Finish, out: *mut u8, stride: usize) {
    // SAFETY: by the caller's promise.
    unsafe {
        match Quick::new(finish) {
            None => super::bytes::<Avx512>(r, finish, out, stride),
            Some(quick) => match (r.outputs.div_ceil(16), quick.swish) {
                (1, None) => rows::<1, false>(r, quick, out, stride),
                (1, _) => rows::<1, true>(r, quick, out, stride),
                (2, None) => rows::<2, false>(r, quick, out, stride),
                (2, _) => rows::<2, true>(r, quick, out, stride),
                (3, None) => rows::<3, false>(r, quick, out, stride),
                (3, _) => rows::<3, true>(r, quick, out, stride),
                (_, None) => rows::<4, false>(r, quick, out, stride),
                _ => rows::<4, true>(r, quick, out, stride),
            },
        }
    }
}

/// What can be finished in registers.
#[derive(Clone, Copy)]
pub(in super::super) struct Quick {
    zero: u8,
    low: u8,
    high: u8,
    /// Steps of a unit, where hard swish comes before.
    swish: Option<f32>,
}

impl Quick {
    pub(in super::super) fn new(finish: Finish) -> Option<Quick> {
        match finish {
            Finish::Steps { zero, low, high } => Some(Quick {
                zero,
                low,
                high,
                swish: None,
            }),
            Finish::Function { activation, output } => (activation == Activation::HardSwish)
                .then_some(Quick {
                    zero: output.zero,
                    low: 0,
                    high: 255,
                    swish: Some(1.0 / output.scale),
                }),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn rows<const STRIPS: usize, const SWISH: bool>(
    r: &Rows<'_>,
    quick: Quick,
    out: *mut u8,
    stride: usize,
) {
    let mut scale = [_mm512_setzero_ps(); STRIPS];
    let mut bias = [_mm512_setzero_ps(); STRIPS];
    let mask = u64::MAX >> (64 - r.outputs);
    // Lanes of four bytes, of which packing has made columns.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    // SAFETY: loads are of sixteen values of arrays; the store and the load of what is added
    // are of the outputs of a row, by the caller's promise.
    unsafe {
        for i in 0..STRIPS {
            scale[i] = _mm512_loadu_ps(r.scale[16 * i..][..16].as_ptr());
            bias[i] = _mm512_loadu_ps(r.bias[16 * i..][..16].as_ptr());
        }
        for row in 0..r.rows {
            let mut v = [_mm512_setzero_ps(); 4];
            for i in 0..STRIPS {
                let sum = _mm512_loadu_si512(r.sums.0[i][row].as_ptr().cast());
                v[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale[i], bias[i]);
            }
            if let Some(add) = r.add {
                let Add {
                    values,
                    stride,
                    zero,
                    scale,
                } = add;
                let bytes = _mm512_maskz_loadu_epi8(mask, values.add(row * stride).cast());
                let lanes = [
                    _mm512_castsi512_si128(bytes),
                    _mm512_extracti32x4_epi32::<1>(bytes),
                    _mm512_extracti32x4_epi32::<2>(bytes),
                    _mm512_extracti32x4_epi32::<3>(bytes),
                ];
                for i in 0..STRIPS {
                    let q = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(lanes[i]));
                    let q = _mm512_sub_ps(q, _mm512_set1_ps(zero));
                    v[i] = _mm512_fmadd_ps(q, _mm512_set1_ps(scale), v[i]);
                }
            }
            let bytes = quantised::<STRIPS, SWISH>(v, quick);
            let bytes = _mm512_permutexvar_epi32(order, bytes);
            _mm512_mask_storeu_epi8(out.add(row * stride).cast(), mask, bytes);
        }
    }
}

/// The bytes of 64 numbers: of each vector its four first, then of each its four next.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
#[inline]
pub(in super::super) fn quantised<const VECTORS: usize, const SWISH: bool>(
    mut v: [__m512; 4],
    quick: Quick,
) -> __m512i {
    let mut whole = [_mm512_setzero_si512(); 4];
    let high = _mm512_set1_ps(f32::from(quick.high) - f32::from(quick.zero));
    for i in 0..VECTORS {
        if SWISH {
            let line = _mm512_fmadd_ps(v[i], _mm512_set1_ps(1.0 / 6.0), _mm512_set1_ps(0.5));
            let line = _mm512_max_ps(line, _mm512_setzero_ps());
            let line = _mm512_min_ps(line, _mm512_set1_ps(1.0));
            let unit = quick.swish.unwrap_or(1.0);
            v[i] = _mm512_mul_ps(_mm512_mul_ps(v[i], line), _mm512_set1_ps(unit));
        }
        // The lower limit can wait: what is far below becomes the least integer.
        whole[i] = _mm512_cvtps_epi32(_mm512_min_ps(v[i], high));
    }
    let zero = _mm512_set1_epi16(i16::from(quick.zero));
    let pair = |a, b| _mm512_adds_epi16(_mm512_packs_epi32(a, b), zero);
    let first = pair(whole[0], whole[1]);
    let second = match VECTORS {
        1 | 2 => first,
        _ => pair(whole[2], whole[3]),
    };
    let bytes = _mm512_packus_epi16(first, second);
    _mm512_max_epu8(bytes, _mm512_set1_epi8(quick.low as i8))
}
