//! AMX with bfloat16: 32 rows by 32 outputs are four tiles of sums, which stay in their
//! registers for all columns.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::DType;
use crate::amx::Shape;

use super::avx512::{codes, outer, scales};
use super::halves::TILE_BYTES;
use super::layout::{Format, SLAB, STRIP, with_format};
use super::quantized::BLOCK_ROWS;
use super::rounded::{Half, PairSums, RoundedKernels, TILE, Tiles};

/// The products, where processor and system have the tiles and AVX-512 can round.
pub(super) fn kernels() -> Option<&'static RoundedKernels> {
    let there = super::avx512::kernels().is_some()
        && crate::amx::available()
        && is_x86_feature_detected!("avx512bf16");
    there.then_some(&AMX)
}

// SAFETY, of every block below: the table is only handed out after detection.
#[allow(clippy::undocumented_unsafe_blocks)] // the line above
static AMX: RoundedKernels = RoundedKernels {
    fast: true,
    round: |x, out| unsafe { round(x, out) },
    round_rows: |x, half, out| unsafe { round_rows(x, half, out) },
    decode: |dtype, units, half, out| match dtype {
        DType::BF16 | DType::F16 => unsafe { halves(dtype, units, half, out) },
        _ => unsafe { with_format!(dtype, decode(units, half, out)) },
    },
    enter: || {
        Some(crate::amx::enter(&Shape {
            sums: BLOCK_ROWS as u8,
            left: (BLOCK_ROWS as u8, 2 * TILE as u16),
            right: (TILE as u8 / 2, 64),
        }))
    },
    multiply: |entered, x, w, add, sums| {
        assert!(entered.is_some() && x.len() == w.len());
        // SAFETY: the tiles have the shape that `enter` set, and the operands are as long as
        // each other.
        unsafe { multiply(x, w, add, sums) }
    },
};

macro_rules! avx512_bf16 {
    ($(#[$meta:meta])* fn $($rest:tt)*) => {
        $(#[$meta])*
        #[target_feature(
            enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,f16c,fma"
        )]
        fn $($rest)*
    };
}

avx512_bf16! {
fn round(x: &[f32; TILE], out: &mut [u16; TILE]) {
    // SAFETY: reads and writes the arrays, 32 values each.
    unsafe {
        let (low, high) = (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16)));
        let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
        _mm512_storeu_si512(out.as_mut_ptr().cast(), both);
    }
}
}

avx512_bf16! {
fn round_rows(x: &[[f32; STRIP]], half: usize, out: &mut Half) {
    for (x, out) in x.iter().zip(out) {
        let out = &mut out[half * STRIP..][..STRIP];
        // SAFETY: reads the 16 values of the array, and writes those of the slice.
        unsafe {
            let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(_mm512_loadu_ps(x.as_ptr())));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), rounded);
        }
    }
}
}

avx512_bf16! {
/// Tiles of bfloat16 lie in a strip as they are wanted; those of f16 are rounded.
fn halves(dtype: DType, tiles: &[u8], half: usize, out: &mut [Tiles]) {
    for (from, out) in tiles.chunks_exact(TILE_BYTES).zip(out) {
        for (from, out) in from.as_chunks::<64>().0.iter().zip(&mut out.0[half]) {
            // SAFETY: reads and writes 64 bytes of each array; all types are of that size.
            unsafe {
                let mut v = _mm512_loadu_si512(from.as_ptr().cast());
                if dtype == DType::F16 {
                    let even = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
                    let odd = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(v)));
                    let even: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(even));
                    let odd: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(odd));
                    let odd = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(odd));
                    v = _mm512_or_si512(_mm512_cvtepu16_epi32(even), odd);
                }
                _mm512_storeu_si512(out.as_mut_ptr().cast(), v);
            }
        }
    }
}
}

avx512_bf16! {
fn decode<F: Format>(units: &[u8], half: usize, out: &mut [Tiles]) {
    // Of two registers' columns, those of one lane side by side.
    let mut order = [0u16; 32];
    for (i, order) in order.iter_mut().enumerate() {
        *order = (i / 2 + i % 2 * 16) as u16;
    }
    // SAFETY: reads the 64 bytes of the array.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    let byte = _mm512_set1_epi32(255);
    let zero = _mm512_set1_ps(-F::ZERO as f32);
    for (unit, out) in units.chunks_exact(F::UNIT_BYTES).zip(out.chunks_mut(F::UNIT / SLAB)) {
        let [scale, minimum] = outer::<F>(unit);
        for (slab, tiles) in out.iter_mut().enumerate() {
            let codes = codes::<F>(&unit[slab * F::SLAB_BYTES..][..F::SLAB_BYTES]);
            let tile = &mut tiles.0[half];
            let width = F::BLOCK.min(SLAB);
            for part in 0..SLAB / width {
                let block = (slab * SLAB + part * width) / F::BLOCK;
                let s = scales::<F>(unit, F::SCALES, block, scale);
                let mut least = _mm512_mul_ps(zero, s);
                if F::MINIMA {
                    let minimum = scales::<F>(unit, F::MINIMUMS, block, minimum);
                    least = _mm512_fmsub_ps(zero, s, minimum);
                }
                for v in part * width / 4..(part + 1) * width / 4 {
                    let c = codes[v];
                    let columns = [
                        _mm512_and_si512(c, byte),
                        _mm512_and_si512(_mm512_srli_epi32::<8>(c), byte),
                        _mm512_and_si512(_mm512_srli_epi32::<16>(c), byte),
                        _mm512_srli_epi32::<24>(c),
                    ];
                    let mut values = [s; 4];
                    for i in 0..4 {
                        values[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(columns[i]), s, least);
                    }
                    for i in 0..2 {
                        let pair = _mm512_cvtne2ps_pbh(values[2 * i + 1], values[2 * i]);
                        // SAFETY: both are 64 bytes of any bits; the store fills a row of the tile.
                        unsafe {
                            let pair: __m512i = std::mem::transmute(pair);
                            let pair = _mm512_permutexvar_epi16(order, pair);
                            _mm512_storeu_si512(tile[2 * v + i].as_mut_ptr().cast(), pair);
                        }
                    }
                }
            }
        }
    }
}
}

/// # Safety
/// The tiles are configured as `enter` does; `x` and `w` are equally many.
unsafe fn multiply(x: &[Tiles], w: &[Tiles], add: bool, sums: &mut PairSums) {
    const { assert!(size_of::<PairSums>() == 4 * STRIP * BLOCK_ROWS * 4) };
    let c = sums.0.as_mut_ptr();
    // SAFETY: the tiles' loads stay within the operands, two KiB of each at a step; their sums
    // fill `sums`.
    unsafe {
        if add {
            asm!(
                "tileloadd tmm0, [{c} + {row}]",
                "tileloadd tmm1, [{c} + {row} + 1024]",
                "tileloadd tmm2, [{c} + {row} + 2048]",
                "tileloadd tmm3, [{c} + {row} + 3072]",
                c = in(reg) c, row = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, preserves_flags),
            );
        } else {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, preserves_flags),
            );
        }
        if !x.is_empty() {
            asm!(
                "2:",
                "tileloadd tmm4, [{x} + {row}]",
                "tileloadd tmm6, [{w} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w} + {row} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{x} + {row} + 1024]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {x}, 2048",
                "add {w}, 2048",
                "dec {n}",
                "jnz 2b",
                x = inout(reg) x.as_ptr() => _, w = inout(reg) w.as_ptr() => _,
                n = inout(reg) x.len() => _, row = in(reg) 64usize,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
        asm!(
            "tilestored [{c} + {row}], tmm0",
            "tilestored [{c} + {row} + 1024], tmm1",
            "tilestored [{c} + {row} + 2048], tmm2",
            "tilestored [{c} + {row} + 3072], tmm3",
            c = in(reg) c, row = in(reg) 64usize,
            options(nostack, preserves_flags),
        );
    }
}
