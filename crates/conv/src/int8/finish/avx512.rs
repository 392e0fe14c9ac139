//! The same on AVX-512: the bytes of a panel's outputs are one vector.

use std::arch::x86_64::*;

use crate::Activation;

use super::super::lanes::Avx512;
use super::super::vectors::Vector;
use super::{Finish, Rows};

/// # Safety
/// As [`super::bytes`]; the machine has the set.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub(in super::super) unsafe fn bytes(r: &Rows<'_>, finish: Finish, out: *mut u8, stride: usize) {
    // SAFETY: by the caller's promise.
    unsafe {
        match Quick::new(finish) {
            None => super::bytes::<Avx512>(r, finish, out, stride),
            Some(quick) => match r.outputs.div_ceil(16) {
                1 => rows::<1>(r, quick, out, stride),
                2 => rows::<2>(r, quick, out, stride),
                3 => rows::<3>(r, quick, out, stride),
                _ => rows::<4>(r, quick, out, stride),
            },
        }
    }
}

/// What can be finished in registers.
#[derive(Clone, Copy, Debug)]
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
unsafe fn rows<const STRIPS: usize>(r: &Rows<'_>, quick: Quick, out: *mut u8, stride: usize) {
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
                let from = add.values.add(row * add.stride);
                let bytes = _mm512_maskz_loadu_epi8(mask, from.cast());
                let lanes = [
                    _mm512_castsi512_si128(bytes),
                    _mm512_extracti32x4_epi32::<1>(bytes),
                    _mm512_extracti32x4_epi32::<2>(bytes),
                    _mm512_extracti32x4_epi32::<3>(bytes),
                ];
                for i in 0..STRIPS {
                    let q = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(lanes[i]));
                    let q = _mm512_sub_ps(q, _mm512_set1_ps(add.zero));
                    v[i] = _mm512_fmadd_ps(q, _mm512_set1_ps(add.scale), v[i]);
                }
            }
            let bytes = quantised::<__m512i>(v, quick);
            let bytes = _mm512_permutexvar_epi32(order, bytes);
            _mm512_mask_storeu_epi8(out.add(row * stride).cast(), mask, bytes);
        }
    }
}

/// The bytes of four vectors of numbers: of each 16 bytes, four are of each vector.
#[inline(always)]
pub(in super::super) fn quantised<V: Vector>(mut v: [V::Floats; 4], quick: Quick) -> V {
    if let Some(unit) = quick.swish {
        for v in &mut v {
            let line = V::fma(*v, V::splat_f32(1.0 / 6.0), V::splat_f32(0.5));
            let line = V::min(V::max(line, V::splat_f32(0.0)), V::splat_f32(1.0));
            *v = V::mul(V::mul(*v, line), V::splat_f32(unit));
        }
    }
    // The lower limit can wait: what is far below becomes the least integer.
    let high = V::splat_f32(f32::from(quick.high) - f32::from(quick.zero));
    let [a, b, c, d] = v.map(|v| V::to_i32(V::min(v, high)));
    let zero = V::splat_i16(i16::from(quick.zero));
    let (first, second) = (a.pack_i16(b).add_i16(zero), c.pack_i16(d).add_i16(zero));
    first.pack_u8(second).max_u8(V::splat_u8(quick.low))
}
