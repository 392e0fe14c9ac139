//! Products of bits: weights of 1 to 3 bits with activations of 1 or 2.
//!
//! A bipolar integer is a sum of bits that count +1 or −1 times their powers of two, so a product
//! over K columns is, for each pair of planes, `2^(i+j) · (K − 2 · popcount(w ⊕ x))`: integers
//! again, the same as other kernels', and scaled by the same sequence.
//!
//! A plane of weights has 32 columns of each of 16 rows in a vector, so that counts stand in the
//! lanes of their rows; planes of two bits are parted into planes of one on the way. One vector
//! of 512 products of bits is one each of XOR, count and sum; counts go to one port of two on
//! Intel's cores, sums and XORs to both, so 341 products of bits a cycle are the limit, where
//! `vpdpbusd` has 128 products of bytes. Adding vectors up before they are counted (carry-save)
//! takes a count and a sum away and puts two ternary operations in their place: no fewer
//! instructions, so it is not done.

use super::layout::{B1, B2, B3, Format, PAIR, SLAB, STRIP};
use super::quantized::{GroupBits, RowBlock};
use super::scale_of;
use crate::DType;

/// Whether there are products of bits for weights of a type and activations of so many bits.
pub(super) fn applies(dtype: DType, bits: usize) -> bool {
    matches!(dtype, DType::B1 | DType::B2 | DType::B3) && bits <= super::quantized::BIPOLAR_BITS
}

/// Calls a function of [`Format`] and bits of activations; `None` where there is none.
macro_rules! with_bits {
    ($dtype:expr, $bits:expr, $function:ident($($argument:expr),*)) => {
        match ($dtype, $bits) {
            (DType::B1, 1) => $function::<B1, 1>($($argument),*),
            (DType::B1, 2) => $function::<B1, 2>($($argument),*),
            (DType::B2, 1) => $function::<B2, 1>($($argument),*),
            (DType::B2, 2) => $function::<B2, 2>($($argument),*),
            (DType::B3, 1) => $function::<B3, 1>($($argument),*),
            (DType::B3, 2) => $function::<B3, 2>($($argument),*),
            _ => unreachable!("products of bits were looked for"),
        }
    };
}

/// The bit planes of a slab's weights, lowest first, each `[16 rows]`.
#[inline(always)]
fn planes<F: Format>(slab: &[u8]) -> [[u32; STRIP]; 3] {
    let mut planes = [[0; STRIP]; 3];
    let word = |vector: usize, lane: usize| {
        let at = (vector * STRIP + lane) * 4;
        u32::from_le_bytes([slab[at], slab[at + 1], slab[at + 2], slab[at + 3]])
    };
    for lane in 0..STRIP {
        if F::BITS & 2 != 0 {
            // Fields of two bits: those of the first vector are the even groups of four columns.
            let (even, odd) = (word(0, lane), word(1, lane));
            planes[0][lane] = even & 0x5555_5555 | (odd << 1) & 0xaaaa_aaaa;
            planes[1][lane] = (even >> 1) & 0x5555_5555 | odd & 0xaaaa_aaaa;
        }
        if F::BITS & 1 != 0 {
            planes[F::BITS & 2][lane] = word(F::BITS & 2, lane);
        }
    }
    planes
}

/// The definition of these products, in plain loops.
#[inline(always)]
fn multiply<F: Format, const Q: usize>(strip: &[u8], x: RowBlock<'_>, out: &mut [[f32; STRIP]]) {
    out[..x.height].fill([0.0; STRIP]);
    for (u, unit) in strip.chunks_exact(F::UNIT_BYTES).enumerate() {
        for pair in 0..F::UNIT / PAIR {
            let block = u * (F::UNIT / PAIR) + pair;
            let slabs = unit[pair * PAIR / SLAB * F::SLAB_BYTES..].chunks_exact(F::SLAB_BYTES);
            let mut w = [[[0; STRIP]; 3]; PAIR / SLAB];
            for (w, slab) in w.iter_mut().zip(slabs) {
                *w = planes::<F>(slab);
            }
            for (row, out) in out.iter_mut().enumerate().take(x.height) {
                let cell = |group: usize| (2 * block + group) * x.height + row;
                let bits: [&GroupBits; 2] = [&x.planes[cell(0)], &x.planes[cell(1)]];
                for (lane, out) in out.iter_mut().enumerate() {
                    let mut apart = 0;
                    for (slab, w) in w.iter().enumerate() {
                        for (i, w) in w.iter().enumerate().take(F::BITS) {
                            for (j, x) in bits[slab / 2].iter().enumerate().take(Q) {
                                apart += (w[lane] ^ x[slab % 2]).count_ones() << (i + j);
                            }
                        }
                    }
                    let sum = whole::<F, Q>() - 2 * apart as i32;
                    let t = sum as f32 * scale_of::<F>(unit, pair, lane).0;
                    *out = t.mul_add(x.scales[cell(0)], *out);
                }
            }
        }
    }
}

/// The sum of a block whose bits are all equal.
const fn whole<F: Format, const Q: usize>() -> i32 {
    PAIR as i32 * ((1 << F::BITS) - 1) * ((1 << Q) - 1)
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::kernels;

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![allow(clippy::needless_range_loop)] // one index walks several arrays of vectors

    use std::arch::x86_64::*;
    use std::sync::OnceLock;

    use super::*;
    use crate::packed::avx512::{load, scales, store_f32};
    use crate::packed::kernels::Kernels;

    /// Sets of which small types of few rows take products of bits, where the machine has them.
    pub(crate) fn kernels() -> impl Iterator<Item = &'static Kernels> {
        static COUNTED: OnceLock<Option<Kernels>> = OnceLock::new();
        static VECTORS: OnceLock<Option<Kernels>> = OnceLock::new();
        let counted = COUNTED.get_or_init(|| {
            let base = crate::packed::avx2::kernels()?;
            is_x86_feature_detected!("popcnt").then_some(Kernels {
                name: "avx2-popcnt",
                direct: Some(|dtype, strip, x, out| match applies(dtype, x.bits) {
                    // SAFETY: the set is only handed out after detection.
                    true => unsafe { with_bits!(dtype, x.bits, counted(strip, x, out)) },
                    false => crate::packed::avx2::direct_of(dtype, strip, x, out),
                }),
                serial: true,
                ..*base
            })
        });
        let vectors = VECTORS.get_or_init(|| {
            let base = crate::packed::avx512::kernels()?;
            is_x86_feature_detected!("avx512vpopcntdq").then_some(Kernels {
                name: "avx512-vpopcnt",
                direct: Some(|dtype, strip, x, out| match applies(dtype, x.bits) {
                    // SAFETY: the set is only handed out after detection.
                    true => unsafe { with_bits!(dtype, x.bits, vectors(strip, x, out)) },
                    false => crate::packed::avx512::direct_of(dtype, strip, x, out),
                }),
                serial: true,
                ..*base
            })
        });
        counted.iter().chain(vectors)
    }

    /// [`multiply`] with the processor's count of one word.
    #[target_feature(enable = "popcnt,avx2,f16c,fma")]
    fn counted<F: Format, const Q: usize>(strip: &[u8], x: RowBlock<'_>, out: &mut [[f32; STRIP]]) {
        multiply::<F, Q>(strip, x, out);
    }

    macro_rules! avx512_popcnt {
        ($(#[$meta:meta])* fn $($rest:tt)*) => {
            $(#[$meta])*
            #[target_feature(
                enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vpopcntdq,avx2,f16c,fma"
            )]
            fn $($rest)*
        };
    }

    avx512_popcnt! {
    /// [`multiply`], 16 rows of weights at a time.
    fn vectors<F: Format, const Q: usize>(
        strip: &[u8],
        x: RowBlock<'_>,
        out: &mut [[f32; STRIP]],
    ) {
        let mut row = 0;
        while row < x.height {
            let out = &mut out[row..];
            row += match x.height - row {
                8.. => some_rows::<F, Q, 8>(strip, x, row, out),
                4.. => some_rows::<F, Q, 4>(strip, x, row, out),
                2 | 3 => some_rows::<F, Q, 2>(strip, x, row, out),
                _ => some_rows::<F, Q, 1>(strip, x, row, out),
            };
        }
    }
    }

    avx512_popcnt! {
    /// [`planes`] of a slab.
    #[inline]
    fn vector_planes<F: Format>(slab: &[u8]) -> [__m512i; 3] {
        let vectors = slab.as_chunks::<64>().0;
        let mut planes = [_mm512_setzero_si512(); 3];
        if F::BITS & 2 != 0 {
            let (even, odd) = (load(&vectors[0]), load(&vectors[1]));
            let mask = _mm512_set1_epi32(0x5555_5555);
            // mask ? even : odd
            planes[0] = _mm512_ternarylogic_epi32::<0xca>(mask, even, _mm512_add_epi32(odd, odd));
            planes[1] = _mm512_ternarylogic_epi32::<0xca>(mask, _mm512_srli_epi32::<1>(even), odd);
        }
        if F::BITS & 1 != 0 {
            planes[F::BITS & 2] = load(&vectors[F::BITS & 2]);
        }
        planes
    }
    }

    avx512_popcnt! {
    fn some_rows<F: Format, const Q: usize, const M: usize>(
        strip: &[u8],
        x: RowBlock<'_>,
        row: usize,
        out: &mut [[f32; STRIP]],
    ) -> usize {
        let mut acc = [_mm512_setzero_ps(); M];
        let half_whole = _mm512_set1_epi32(whole::<F, Q>() / 2);
        for (u, unit) in strip.chunks_exact(F::UNIT_BYTES).enumerate() {
            for line in unit.as_chunks::<64>().0 {
                _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(AHEAD).cast());
            }
            for pair in 0..F::UNIT / PAIR {
                let first = (u * (F::UNIT / PAIR) + pair) * 2 * x.height + row;
                let slabs = &unit[pair * PAIR / SLAB * F::SLAB_BYTES..];
                let mut w = [[_mm512_setzero_si512(); 3]; PAIR / SLAB];
                for (slab, w) in w.iter_mut().enumerate() {
                    *w = vector_planes::<F>(&slabs[slab * F::SLAB_BYTES..][..F::SLAB_BYTES]);
                }
                let s = scales::<F>(unit, F::SCALES, pair, _mm512_setzero_ps());
                // The sum is halved, which is exact, and so is doubling the scale.
                let s = _mm512_add_ps(s, s);
                let scales = &x.scales[first..][..M];
                let bits = [&x.planes[first..][..M], &x.planes[first + x.height..][..M]];
                for m in 0..M {
                    // Counts by the power of two that they are worth.
                    let mut counts = [_mm512_setzero_si512(); 4];
                    for slab in 0..PAIR / SLAB {
                        for i in 0..F::BITS {
                            for j in 0..Q {
                                let x = bits[slab / 2][m][j][slab % 2];
                                let x = _mm512_set1_epi32(x as i32);
                                let apart = _mm512_popcnt_epi32(_mm512_xor_si512(w[slab][i], x));
                                counts[i + j] = _mm512_add_epi32(counts[i + j], apart);
                            }
                        }
                    }
                    let mut apart = counts[F::BITS + Q - 2];
                    for power in (0..F::BITS + Q - 2).rev() {
                        apart = _mm512_add_epi32(_mm512_add_epi32(apart, apart), counts[power]);
                    }
                    let sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(half_whole, apart));
                    let t = _mm512_mul_ps(sum, s);
                    acc[m] = _mm512_fmadd_ps(t, _mm512_set1_ps(scales[m]), acc[m]);
                }
            }
        }
        for (acc, out) in acc.into_iter().zip(out) {
            store_f32(out, acc);
        }
        M
    }
    }

    /// How far before its use a line is asked for.
    const AHEAD: usize = 27 * 64;
}
