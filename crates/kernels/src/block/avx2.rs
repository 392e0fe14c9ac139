//! The decoders of `decode.rs` for AVX2: the same roundings in the same order, so the same bits.
//! Each gathers 16 small integers, which `scaled` and `affine` turn into f32.

use std::arch::x86_64::*;

use half::f16;

use super::decode::{IQ4, each, scale_min};
use crate::DType;

type Out32 = [f32; 32];
type Out256 = [f32; 256];

/// Decodes whole blocks; the caller has checked that `bytes` holds exactly `out.len()` values.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => super::decode::decode(dtype, bytes, out),
        DType::F16 => plain(dtype, bytes, out, |b| _mm256_cvtph_ps(b)),
        DType::BF16 => plain(dtype, bytes, out, |b| {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(b)))
        }),
        DType::Q8_0 => each(bytes, out, |b, o| q8_0(b, o)),
        DType::Q4_0 => each(bytes, out, |b, o| q4_0(b, o)),
        DType::Q4_1 => each(bytes, out, |b, o| q4_1(b, o)),
        DType::Q5_0 => each(bytes, out, |b, o| q5_0(b, o)),
        DType::Q5_1 => each(bytes, out, |b, o| q5_1(b, o)),
        DType::Q2K => each(bytes, out, |b, o| q2_k(b, o)),
        DType::Q3K => each(bytes, out, |b, o| q3_k(b, o)),
        DType::Q4K => each(bytes, out, |b, o| q4_k(b, o)),
        DType::Q5K => each(bytes, out, |b, o| q5_k(b, o)),
        DType::Q6K => each(bytes, out, |b, o| q6_k(b, o)),
        DType::Iq4Nl => each(bytes, out, |b, o| iq4_nl(b, o)),
        DType::Iq4Xs => each(bytes, out, |b, o| iq4_xs(b, o)),
    }
}

/// Eight values of two bytes at a time, the rest by the portable twin.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn plain(dtype: DType, bytes: &[u8], out: &mut [f32], widen: impl Fn(__m128i) -> __m256) {
    let (bytes, bytes_rest) = bytes.as_chunks::<16>();
    let (values, rest) = out.as_chunks_mut::<8>();
    for (b, o) in bytes.iter().zip(values) {
        put(o, widen(load(b)));
    }
    super::decode::decode(dtype, bytes_rest, rest);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load(b: &[u8; 16]) -> __m128i {
    // SAFETY: reads the 16 bytes of the array.
    unsafe { _mm_loadu_si128(b.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn put(o: &mut [f32; 8], v: __m256) {
    // SAFETY: writes the 8 values of the array.
    unsafe { _mm256_storeu_ps(o.as_mut_ptr(), v) }
}

/// 16 bytes from `at`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn at<const N: usize>(b: &[u8; N], at: usize) -> __m128i {
    load(
        b[at..]
            .first_chunk()
            .expect("within the block: its offsets are constants"),
    )
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn half<const N: usize>(b: &[u8; N], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// Signed bytes as two vectors of f32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn widen(q: __m128i) -> [__m256; 2] {
    let low = _mm256_cvtepi8_epi32(q);
    let high = _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(q, q));
    [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
}

/// `q · scale`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scaled(out: &mut [f32], q: __m128i, scale: f32) {
    let scale = _mm256_set1_ps(scale);
    for (o, q) in out.as_chunks_mut::<8>().0.iter_mut().zip(widen(q)) {
        put(o, _mm256_mul_ps(q, scale));
    }
}

/// `q · scale + offset`, rounded twice.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn affine(out: &mut [f32], q: __m128i, scale: f32, offset: f32) {
    let (scale, offset) = (_mm256_set1_ps(scale), _mm256_set1_ps(offset));
    for (o, q) in out.as_chunks_mut::<8>().0.iter_mut().zip(widen(q)) {
        put(o, _mm256_add_ps(_mm256_mul_ps(q, scale), offset));
    }
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
fn halves(q: __m128i) -> [__m128i; 2] {
    [bits(q, 0, 15), bits(q, 4, 15)]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn minus(q: __m128i, n: i8) -> __m128i {
    _mm_sub_epi8(q, _mm_set1_epi8(n))
}

/// 16 where a bit is set, else 0, for the bits of two bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fifths(b0: u8, b1: u8) -> __m128i {
    let spread = _mm_set_epi64x(
        (u64::from(b1) * 0x0101_0101_0101_0101) as i64,
        (u64::from(b0) * 0x0101_0101_0101_0101) as i64,
    );
    let mask = _mm_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
    let set = _mm_cmpeq_epi8(_mm_and_si128(spread, mask), mask);
    _mm_and_si128(set, _mm_set1_epi8(16))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q8_0(b: &[u8; 34], out: &mut Out32) {
    let d = half(b, 0);
    for (i, out) in out.chunks_exact_mut(16).enumerate() {
        scaled(out, at(b, 2 + 16 * i), d);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_0(b: &[u8; 18], out: &mut Out32) {
    let d = half(b, 0);
    for (out, q) in out.chunks_exact_mut(16).zip(halves(at(b, 2))) {
        scaled(out, minus(q, 8), d);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_1(b: &[u8; 20], out: &mut Out32) {
    let (d, m) = (half(b, 0), half(b, 2));
    for (out, q) in out.chunks_exact_mut(16).zip(halves(at(b, 4))) {
        affine(out, q, d, m);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q5_0(b: &[u8; 22], out: &mut Out32) {
    let d = half(b, 0);
    let high = [fifths(b[2], b[3]), fifths(b[4], b[5])];
    for ((out, q), high) in out.chunks_exact_mut(16).zip(halves(at(b, 6))).zip(high) {
        scaled(out, minus(_mm_or_si128(q, high), 16), d);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q5_1(b: &[u8; 24], out: &mut Out32) {
    let (d, m) = (half(b, 0), half(b, 2));
    let high = [fifths(b[4], b[5]), fifths(b[6], b[7])];
    for ((out, q), high) in out.chunks_exact_mut(16).zip(halves(at(b, 8))).zip(high) {
        affine(out, _mm_or_si128(q, high), d, m);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q2_k(b: &[u8; 84], out: &mut Out256) {
    let (d, dmin) = (half(b, 80), half(b, 82));
    for (i, out) in out.chunks_exact_mut(16).enumerate() {
        let (scale, min) = (d * f32::from(b[i] & 15), dmin * f32::from(b[i] >> 4));
        let q = at(b, 16 + i / 8 * 32 + i % 2 * 16);
        affine(out, bits(q, i / 2 % 4 * 2, 3), scale, -min);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q3_k(b: &[u8; 110], out: &mut Out256) {
    let d = half(b, 108);
    let (low, high) = (&b[96..104], &b[104..108]);
    for (i, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = (low[i % 8] >> (i / 8 * 4) & 15) | (high[i % 4] >> (i / 4 * 2) & 3) << 4;
        let scale = d * (f32::from(scale) - 32.0);
        let q = bits(at(b, 32 + i / 8 * 32 + i % 2 * 16), i / 2 % 4 * 2, 3);
        let third = _mm_slli_epi16::<2>(bits(at(b, i % 2 * 16), i / 2, 1));
        scaled(out, minus(_mm_or_si128(q, third), 4), scale);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_k(b: &[u8; 144], out: &mut Out256) {
    let (d, dmin) = (half(b, 0), half(b, 2));
    for (i, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&b[4..16], i);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for (j, out) in out.chunks_exact_mut(16).enumerate() {
            let q = bits(at(b, 16 + i / 2 * 32 + j * 16), i % 2 * 4, 15);
            affine(out, q, scale, -min);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q5_k(b: &[u8; 176], out: &mut Out256) {
    let (d, dmin) = (half(b, 0), half(b, 2));
    for (i, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&b[4..16], i);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for (j, out) in out.chunks_exact_mut(16).enumerate() {
            let q = bits(at(b, 48 + i / 2 * 32 + j * 16), i % 2 * 4, 15);
            let fifth = _mm_slli_epi16::<4>(bits(at(b, 16 + j * 16), i, 1));
            affine(out, _mm_or_si128(q, fifth), scale, -min);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q6_k(b: &[u8; 210], out: &mut Out256) {
    let d = half(b, 208);
    for (i, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(b[192 + i] as i8);
        let low = bits(at(b, i / 8 * 64 + i % 4 * 16), i / 4 % 2 * 4, 15);
        let high = bits(at(b, 128 + i / 8 * 32 + i % 2 * 16), i / 2 % 4 * 2, 3);
        scaled(
            out,
            minus(_mm_or_si128(low, _mm_slli_epi16::<4>(high)), 32),
            scale,
        );
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn iq4(out: &mut [f32], q: __m128i, scale: f32) {
    let table = load(&IQ4.map(|v| v as u8));
    for (out, q) in out.chunks_exact_mut(16).zip(halves(q)) {
        scaled(out, _mm_shuffle_epi8(table, q), scale);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn iq4_nl(b: &[u8; 18], out: &mut Out32) {
    iq4(out, at(b, 2), half(b, 0));
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn iq4_xs(b: &[u8; 136], out: &mut Out256) {
    let d = half(b, 0);
    let high = u16::from_le_bytes([b[2], b[3]]);
    for (i, out) in out.chunks_exact_mut(32).enumerate() {
        let scale = (b[4 + i / 2] >> (i % 2 * 4) & 15) | ((high >> (2 * i) & 3) as u8) << 4;
        iq4(out, at(b, 8 + 16 * i), d * (f32::from(scale) - 32.0));
    }
}
