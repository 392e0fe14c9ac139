//! The decoders of `decode.rs` for AVX2: the same roundings in the same order, so the same bits.
//!
//! Each layout has two parts: the block's scales, and a group of 32 values given the scales.
//! Whole blocks are decoded from them, or multiplied with a row of x without going through
//! memory.

use std::arch::x86_64::*;

use super::decode::{IQ4, scale_min};
use crate::DType;
use crate::simd::{Avx2, LANES, Simd};

/// Values in a group.
const GROUP: usize = 32;

/// 32 decoded values.
type Values = [__m256; GROUP / LANES];

/// What to do with blocks.
enum Job<'a> {
    Decode {
        bytes: &'a [u8],
        out: &'a mut [f32],
    },
    /// Products of four rows, which are not empty, with x.
    Dot {
        rows: [&'a [u8]; 4],
        x: &'a [f32],
        sums: &'a mut [f32; 4],
    },
}

/// Decodes whole blocks; the caller has checked that `bytes` holds exactly `out.len()` values.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    run(dtype, Job::Decode { bytes, out });
}

/// The products of four rows of `x.len()` stored values each with x, reduced in the order of
/// `matmul`'s tiles.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot4(dtype: DType, rows: [&[u8]; 4], x: &[f32]) -> [f32; 4] {
    let mut sums = [0.0; 4];
    run(
        dtype,
        Job::Dot {
            rows,
            x,
            sums: &mut sums,
        },
    );
    sums
}

/// Chooses the layout.
#[target_feature(enable = "avx2,fma,f16c")]
fn run(dtype: DType, job: Job<'_>) {
    match dtype {
        DType::F32 => each(dtype, job, |_| (), |b: &[u8; 128], (), _| f32s(b)),
        DType::F16 => each(dtype, job, |_| (), |b: &[u8; 64], (), _| f16s(b)),
        DType::BF16 => each(dtype, job, |_| (), |b: &[u8; 64], (), _| bf16s(b)),
        DType::Q8_0 => each(dtype, job, |b: &[u8; 34]| half(b, 0), |b, d, _| q8_0(b, *d)),
        DType::Q4_0 => each(dtype, job, |b: &[u8; 18]| half(b, 0), |b, d, _| q4_0(b, *d)),
        DType::Q4_1 => each(
            dtype,
            job,
            |b: &[u8; 20]| halves(b, 0),
            |b, d, _| q4_1(b, *d),
        ),
        DType::Q5_0 => each(dtype, job, |b: &[u8; 22]| half(b, 0), |b, d, _| q5_0(b, *d)),
        DType::Q5_1 => each(
            dtype,
            job,
            |b: &[u8; 24]| halves(b, 0),
            |b, d, _| q5_1(b, *d),
        ),
        DType::Q2K => each(dtype, job, |b| q2_k_scales(b), |b, s, g| q2_k(b, s, g)),
        DType::Q3K => each(dtype, job, |b| q3_k_scales(b), |b, s, g| q3_k(b, s, g)),
        DType::Q4K => each(
            dtype,
            job,
            |b: &[u8; 144]| k_scales(b),
            |b, s, g| q4_k(b, s, g),
        ),
        DType::Q5K => each(
            dtype,
            job,
            |b: &[u8; 176]| k_scales(b),
            |b, s, g| q5_k(b, s, g),
        ),
        DType::Q6K => each(dtype, job, |b| q6_k_scales(b), |b, s, g| q6_k(b, s, g)),
        DType::Iq4Nl => each(
            dtype,
            job,
            |b: &[u8; 18]| half(b, 0),
            |b, d, _| iq4(at(b, 2), *d),
        ),
        DType::Iq4Xs => each(
            dtype,
            job,
            |b| iq4_xs_scales(b),
            |b: &[u8; 136], s, g| iq4(at(b, 8 + 16 * g), s[g]),
        ),
        DType::B1 => each(
            dtype,
            job,
            |b: &[u8; 18]| half(b, 0),
            |b, d, g| bipolar::<1, 18>(b, *d, g),
        ),
        DType::B2 => each(
            dtype,
            job,
            |b: &[u8; 34]| half(b, 0),
            |b, d, g| bipolar::<2, 34>(b, *d, g),
        ),
        DType::B3 => each(
            dtype,
            job,
            |b: &[u8; 50]| half(b, 0),
            |b, d, g| bipolar::<3, 50>(b, *d, g),
        ),
        DType::B4 => each(
            dtype,
            job,
            |b: &[u8; 66]| half(b, 0),
            |b, d, g| bipolar::<4, 66>(b, *d, g),
        ),
        DType::B5 => each(
            dtype,
            job,
            |b: &[u8; 82]| half(b, 0),
            |b, d, g| bipolar::<5, 82>(b, *d, g),
        ),
        DType::B6 => each(
            dtype,
            job,
            |b: &[u8; 98]| half(b, 0),
            |b, d, g| bipolar::<6, 98>(b, *d, g),
        ),
        DType::B7 => each(
            dtype,
            job,
            |b: &[u8; 114]| half(b, 0),
            |b, d, g| bipolar::<7, 114>(b, *d, g),
        ),
        DType::B8 => each(
            dtype,
            job,
            |b: &[u8; 130]| half(b, 0),
            |b, d, g| bipolar::<8, 130>(b, *d, g),
        ),
    }
}

/// Does the job over blocks of `B` bytes; values of the plain types that fill no group go
/// through the portable twin.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn each<const B: usize, P>(
    dtype: DType,
    job: Job<'_>,
    scales: impl Fn(&[u8; B]) -> P,
    group: impl Fn(&[u8; B], &P, usize) -> Values,
) {
    let s = Avx2::here();
    let groups = (dtype.block_len() / GROUP).max(1);
    match job {
        Job::Decode { bytes, out } => {
            let (blocks, bytes_rest) = bytes.as_chunks::<B>();
            let (vectors, _) = out.as_chunks_mut::<LANES>();
            for (b, out) in blocks.iter().zip(vectors.chunks_exact_mut(groups * 4)) {
                let p = scales(b);
                for (g, out) in out.chunks_exact_mut(4).enumerate() {
                    for (out, v) in out.iter_mut().zip(group(b, &p, g)) {
                        s.store(v, out);
                    }
                }
            }
            let rest = blocks.len() * groups * GROUP;
            super::decode::decode(dtype, bytes_rest, &mut out[rest..]);
        }
        Job::Dot { rows, x, sums } => {
            let n = rows[0].len() / B;
            let mut blocks: [&[[u8; B]]; 4] = [&[]; 4];
            for (blocks, row) in blocks.iter_mut().zip(rows) {
                *blocks = &row.as_chunks().0[..n];
            }
            let (vectors, _) = x.as_chunks::<LANES>();
            let mut acc = [s.zero(); 4];
            let ahead = ahead(rows[0].len());
            for (i, x) in vectors.chunks_exact(groups * 4).take(n).enumerate() {
                for row in blocks {
                    prefetch(row[i].as_ptr().wrapping_add(ahead));
                }
                let [a, b, c, d] = blocks;
                let p = [scales(&a[i]), scales(&b[i]), scales(&c[i]), scales(&d[i])];
                for (g, x) in x.chunks_exact(4).enumerate() {
                    let x = [s.load(&x[0]), s.load(&x[1]), s.load(&x[2]), s.load(&x[3])];
                    // Group by group over the rows: their chains of sums run side by side.
                    for r in 0..4 {
                        let w = group(&blocks[r][i], &p[r], g);
                        for (x, w) in x.iter().zip(w) {
                            acc[r] = s.fma(*x, w, acc[r]);
                        }
                    }
                }
            }
            let x = &x[n * groups * GROUP..];
            if !x.is_empty() {
                let mut w = [0.0; GROUP];
                for (acc, row) in acc.iter_mut().zip(rows) {
                    super::decode::decode(dtype, &row[n * B..], &mut w[..x.len()]);
                    for (x, w) in x.chunks(LANES).zip(w[..x.len()].chunks(LANES)) {
                        *acc = s.fma(s.load_part(x), s.load_part(w), *acc);
                    }
                }
            }
            *sums = s.sum4(acc);
        }
    }
}

/// How far before its use a byte is asked for. The processor's own prefetcher does not get going
/// within a short row, so short rows ask for their successors, four rows on.
fn ahead(row: usize) -> usize {
    if row <= 2048 { 4 * row } else { 1024 }
}

#[inline]
fn prefetch(address: *const u8) {
    // SAFETY: a prefetch is a hint; it reads nothing and takes any address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load(b: &[u8; 16]) -> __m128i {
    // SAFETY: reads the 16 bytes of the array.
    unsafe { _mm_loadu_si128(b.as_ptr().cast()) }
}

/// 16 bytes from `at`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn at<const N: usize>(b: &[u8; N], at: usize) -> __m128i {
    load(
        b[at..]
            .first_chunk()
            .expect("each layout's offsets lie within its block"),
    )
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn half<const N: usize>(b: &[u8; N], at: usize) -> f32 {
    let bits = u16::from_le_bytes([b[at], b[at + 1]]);
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits.into())))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn halves<const N: usize>(b: &[u8; N], at: usize) -> [f32; 2] {
    [half(b, at), half(b, at + 2)]
}

/// Twice 16 signed bytes as f32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn widen(q: [__m128i; 2]) -> Values {
    let [a, b] = q;
    [a, _mm_unpackhi_epi64(a, a), b, _mm_unpackhi_epi64(b, b)]
        .map(|q| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)))
}

/// `q · scale`, one scale for each 16.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scaled(q: [__m128i; 2], scale: [f32; 2]) -> Values {
    let [a, b, c, d] = widen(q);
    let [s, t] = scale.map(|s| _mm256_set1_ps(s));
    [
        _mm256_mul_ps(a, s),
        _mm256_mul_ps(b, s),
        _mm256_mul_ps(c, t),
        _mm256_mul_ps(d, t),
    ]
}

/// `q · scale + offset`, rounded twice.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn affine(q: [__m128i; 2], scale: [f32; 2], offset: [f32; 2]) -> Values {
    let [a, b, c, d] = scaled(q, scale);
    let [s, t] = offset.map(|o| _mm256_set1_ps(o));
    [
        _mm256_add_ps(a, s),
        _mm256_add_ps(b, s),
        _mm256_add_ps(c, t),
        _mm256_add_ps(d, t),
    ]
}

/// `q >> shift & mask` of each byte; `mask` covers no bit from the next byte.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bits(q: __m128i, shift: usize, mask: i8) -> __m128i {
    _mm_and_si128(
        _mm_srl_epi16(q, _mm_cvtsi32_si128(shift as i32)),
        _mm_set1_epi8(mask),
    )
}

/// Low and high halves of 16 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nibbles(q: __m128i) -> [__m128i; 2] {
    let mask = _mm_set1_epi8(15);
    [
        _mm_and_si128(q, mask),
        _mm_and_si128(_mm_srli_epi16::<4>(q), mask),
    ]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn minus(q: [__m128i; 2], n: i8) -> [__m128i; 2] {
    q.map(|q| _mm_sub_epi8(q, _mm_set1_epi8(n)))
}

/// `low | high << SHIFT` of each byte, whose high bits do not leave it.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn with_high<const SHIFT: i32>(low: [__m128i; 2], high: [__m128i; 2]) -> [__m128i; 2] {
    [0, 1].map(|i| _mm_or_si128(low[i], _mm_slli_epi16::<SHIFT>(high[i])))
}

/// 1 where a bit is set, else 0, for 32 bits from `at`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn spread<const N: usize>(b: &[u8; N], at: usize) -> [__m128i; 2] {
    [at, at + 2].map(|at| {
        let eight = |b: u8| (u64::from(b) * 0x0101_0101_0101_0101) as i64;
        let mask = _mm_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let bits = _mm_and_si128(_mm_set_epi64x(eight(b[at + 1]), eight(b[at])), mask);
        _mm_and_si128(_mm_cmpeq_epi8(bits, mask), _mm_set1_epi8(1))
    })
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn f32s(b: &[u8; 128]) -> Values {
    [0, 32, 64, 96].map(|i| {
        let b: &[u8; 32] = b[i..].first_chunk().expect("four vectors in a group");
        // SAFETY: reads the 32 bytes of the array.
        unsafe { _mm256_loadu_ps(b.as_ptr().cast()) }
    })
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn f16s(b: &[u8; 64]) -> Values {
    [0, 16, 32, 48].map(|i| _mm256_cvtph_ps(at(b, i)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bf16s(b: &[u8; 64]) -> Values {
    [0, 16, 32, 48]
        .map(|i| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(at(b, i)))))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q8_0(b: &[u8; 34], d: f32) -> Values {
    scaled([at(b, 2), at(b, 18)], [d, d])
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_0(b: &[u8; 18], d: f32) -> Values {
    scaled(minus(nibbles(at(b, 2)), 8), [d, d])
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_1(b: &[u8; 20], [d, m]: [f32; 2]) -> Values {
    affine(nibbles(at(b, 4)), [d, d], [m, m])
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q5_0(b: &[u8; 22], d: f32) -> Values {
    let q = with_high::<4>(nibbles(at(b, 6)), spread(b, 2));
    scaled(minus(q, 16), [d, d])
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q5_1(b: &[u8; 24], [d, m]: [f32; 2]) -> Values {
    let q = with_high::<4>(nibbles(at(b, 8)), spread(b, 4));
    affine(q, [d, d], [m, m])
}

/// Scales, and minima negated.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q2_k_scales(b: &[u8; 84]) -> [[f32; 16]; 2] {
    let [d, dmin] = halves(b, 80);
    let mut scales = [0.0; 16];
    let mut offsets = [0.0; 16];
    for ((s, o), b) in scales.iter_mut().zip(&mut offsets).zip(b) {
        *s = d * f32::from(b & 15);
        *o = -(dmin * f32::from(b >> 4));
    }
    [scales, offsets]
}

/// The two of 16 that belong to a group.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn pair(scales: &[f32; 16], g: usize) -> [f32; 2] {
    scales.as_chunks().0[g]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q2_k(b: &[u8; 84], [scales, offsets]: &[[f32; 16]; 2], g: usize) -> Values {
    let start = 16 + g / 4 * 32;
    let q = [start, start + 16].map(|i| bits(at(b, i), g % 4 * 2, 3));
    affine(q, pair(scales, g), pair(offsets, g))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q3_k_scales(b: &[u8; 110]) -> [f32; 16] {
    let d = half(b, 108);
    let (low, high) = (&b[96..104], &b[104..108]);
    let mut scales = [0.0; 16];
    for (i, scale) in scales.iter_mut().enumerate() {
        let bits = (low[i % 8] >> (i / 8 * 4) & 15) | (high[i % 4] >> (i / 4 * 2) & 3) << 4;
        *scale = d * (f32::from(bits) - 32.0);
    }
    scales
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q3_k(b: &[u8; 110], scales: &[f32; 16], g: usize) -> Values {
    let start = 32 + g / 4 * 32;
    let low = [start, start + 16].map(|i| bits(at(b, i), g % 4 * 2, 3));
    let third = [0, 16].map(|i| bits(at(b, i), g, 1));
    scaled(minus(with_high::<2>(low, third), 4), pair(scales, g))
}

/// Scales, and minima negated, of Q4_K and Q5_K.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn k_scales<const N: usize>(b: &[u8; N]) -> [[f32; 8]; 2] {
    let [d, dmin] = halves(b, 0);
    let mut scales = [0.0; 8];
    let mut offsets = [0.0; 8];
    for (i, (s, o)) in scales.iter_mut().zip(&mut offsets).enumerate() {
        let (scale, min) = scale_min(&b[4..16], i);
        *s = d * f32::from(scale);
        *o = -(dmin * f32::from(min));
    }
    [scales, offsets]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_k(b: &[u8; 144], [scales, offsets]: &[[f32; 8]; 2], g: usize) -> Values {
    let start = 16 + g / 2 * 32;
    let q = [start, start + 16].map(|i| bits(at(b, i), g % 2 * 4, 15));
    affine(q, [scales[g]; 2], [offsets[g]; 2])
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q5_k(b: &[u8; 176], [scales, offsets]: &[[f32; 8]; 2], g: usize) -> Values {
    let start = 48 + g / 2 * 32;
    let low = [start, start + 16].map(|i| bits(at(b, i), g % 2 * 4, 15));
    let fifth = [16, 32].map(|i| bits(at(b, i), g, 1));
    affine(with_high::<4>(low, fifth), [scales[g]; 2], [offsets[g]; 2])
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q6_k_scales(b: &[u8; 210]) -> [f32; 16] {
    let d = half(b, 208);
    let mut scales = [0.0; 16];
    for (scale, q) in scales.iter_mut().zip(&b[192..208]) {
        *scale = d * f32::from(*q as i8);
    }
    scales
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q6_k(b: &[u8; 210], scales: &[f32; 16], g: usize) -> Values {
    let low = g / 4 * 64 + g % 2 * 32;
    let low = [low, low + 16].map(|i| bits(at(b, i), g / 2 % 2 * 4, 15));
    let high = 128 + g / 4 * 32;
    let high = [high, high + 16].map(|i| bits(at(b, i), g % 4 * 2, 3));
    scaled(minus(with_high::<4>(low, high), 32), pair(scales, g))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn iq4(q: __m128i, scale: f32) -> Values {
    let table = load(&IQ4.map(|v| v as u8));
    scaled(
        nibbles(q).map(|q| _mm_shuffle_epi8(table, q)),
        [scale, scale],
    )
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn iq4_xs_scales(b: &[u8; 136]) -> [f32; 8] {
    let d = half(b, 0);
    let high = u16::from_le_bytes([b[2], b[3]]);
    let mut scales = [0.0; 8];
    for (i, scale) in scales.iter_mut().enumerate() {
        let bits = (b[4 + i / 2] >> (i % 2 * 4) & 15) | ((high >> (2 * i) & 3) as u8) << 4;
        *scale = d * (f32::from(bits) - 32.0);
    }
    scales
}

/// 32 columns of `P` planes of bits, each plane 128 bits of the block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bipolar<const P: usize, const N: usize>(b: &[u8; N], d: f32, group: usize) -> Values {
    let (lanes, one) = (
        _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
        _mm256_set1_epi32(1),
    );
    let (top, d) = (_mm256_set1_epi32((1 << P) - 1), _mm256_set1_ps(d));
    let mut out = [_mm256_setzero_ps(); GROUP / LANES];
    for (i, out) in out.iter_mut().enumerate() {
        let mut code = _mm256_setzero_si256();
        for plane in (0..P).rev() {
            let eight = _mm256_set1_epi32(b[2 + 16 * plane + 4 * group + i].into());
            let bits = _mm256_and_si256(_mm256_srlv_epi32(eight, lanes), one);
            code = _mm256_or_si256(_mm256_slli_epi32::<1>(code), bits);
        }
        let odd = _mm256_sub_epi32(_mm256_slli_epi32::<1>(code), top);
        *out = _mm256_mul_ps(_mm256_cvtepi32_ps(odd), d);
    }
    out
}
