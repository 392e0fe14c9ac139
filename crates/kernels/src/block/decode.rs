//! Blocks to f32, one plain function a layout: the definition of what each block means.
//! Layouts after ggml-common.h; products are rounded in the order ggml's reference takes.

use half::{bf16, f16};

use super::bipolar;
use crate::DType;

/// Decodes whole blocks; the caller has checked that `bytes` holds exactly `out.len()` values.
pub(crate) fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => each(bytes, out, |b: &[u8; 4], o: &mut [f32; 1]| {
            o[0] = f32::from_le_bytes(*b)
        }),
        DType::F16 => each(bytes, out, |b: &[u8; 2], o: &mut [f32; 1]| o[0] = half(*b)),
        DType::BF16 => each(bytes, out, |b: &[u8; 2], o: &mut [f32; 1]| {
            o[0] = bf16::from_le_bytes(*b).to_f32();
        }),
        DType::Q8_0 => each(bytes, out, q8_0),
        DType::Q4_0 => each(bytes, out, q4_0),
        DType::Q4_1 => each(bytes, out, q4_1),
        DType::Q5_0 => each(bytes, out, q5_0),
        DType::Q5_1 => each(bytes, out, q5_1),
        DType::Q2K => each(bytes, out, q2_k),
        DType::Q3K => each(bytes, out, q3_k),
        DType::Q4K => each(bytes, out, q4_k),
        DType::Q5K => each(bytes, out, q5_k),
        DType::Q6K => each(bytes, out, q6_k),
        DType::Iq4Nl => each(bytes, out, iq4_nl),
        DType::Iq4Xs => each(bytes, out, iq4_xs),
        DType::B1 => each(bytes, out, bipolar::decode::<1, 18>),
        DType::B2 => each(bytes, out, bipolar::decode::<2, 34>),
        DType::B3 => each(bytes, out, bipolar::decode::<3, 50>),
        DType::B4 => each(bytes, out, bipolar::decode::<4, 66>),
        DType::B5 => each(bytes, out, bipolar::decode::<5, 82>),
        DType::B6 => each(bytes, out, bipolar::decode::<6, 98>),
        DType::B7 => each(bytes, out, bipolar::decode::<7, 114>),
        DType::B8 => each(bytes, out, bipolar::decode::<8, 130>),
    }
}

#[inline(always)]
fn each<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; B], &mut [f32; N]),
) {
    let (blocks, _) = bytes.as_chunks::<B>();
    let (values, _) = out.as_chunks_mut::<N>();
    for (b, o) in blocks.iter().zip(values) {
        block(b, o);
    }
}

pub(super) fn half(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

/// 32 × i8, scaled: `d: f16, q: [i8; 32]`.
fn q8_0(b: &[u8; 34], out: &mut [f32; 32]) {
    let d = half([b[0], b[1]]);
    for (o, &q) in out.iter_mut().zip(&b[2..]) {
        *o = f32::from(q as i8) * d;
    }
}

/// `d: f16, q: [u4; 32]`; value `i` is the low half of byte `i`, value `16 + i` its high half.
fn q4_0(b: &[u8; 18], out: &mut [f32; 32]) {
    let d = half([b[0], b[1]]);
    for (i, &q) in b[2..].iter().enumerate() {
        out[i] = (f32::from(q & 15) - 8.0) * d;
        out[i + 16] = (f32::from(q >> 4) - 8.0) * d;
    }
}

/// `d: f16, m: f16, q: [u4; 32]`, halves as in Q4_0.
fn q4_1(b: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half([b[0], b[1]]), half([b[2], b[3]]));
    for (i, &q) in b[4..].iter().enumerate() {
        out[i] = f32::from(q & 15) * d + m;
        out[i + 16] = f32::from(q >> 4) * d + m;
    }
}

/// The fifth bits of 32 values.
fn fifth(high: u32, i: usize) -> u8 {
    ((high >> i & 1) << 4) as u8
}

/// `d: f16, fifth bits: u32, q: [u4; 32]`, halves as in Q4_0.
fn q5_0(b: &[u8; 22], out: &mut [f32; 32]) {
    let d = half([b[0], b[1]]);
    let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
    for (i, &q) in b[6..].iter().enumerate() {
        out[i] = (f32::from(q & 15 | fifth(high, i)) - 16.0) * d;
        out[i + 16] = (f32::from(q >> 4 | fifth(high, i + 16)) - 16.0) * d;
    }
}

/// `d: f16, m: f16, fifth bits: u32, q: [u4; 32]`, halves as in Q4_0.
fn q5_1(b: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half([b[0], b[1]]), half([b[2], b[3]]));
    let high = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
    for (i, &q) in b[8..].iter().enumerate() {
        out[i] = f32::from(q & 15 | fifth(high, i)) * d + m;
        out[i + 16] = f32::from(q >> 4 | fifth(high, i + 16)) * d + m;
    }
}

/// `scale, min: [u4, u4; 16], q: [u2; 256], d: f16, dmin: f16`.
/// 32 bytes of `q` hold 128 values: 32 in their lowest two bits, 32 in the next…
fn q2_k(b: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (half([b[80], b[81]]), half([b[82], b[83]]));
    for (i, out) in out.chunks_exact_mut(16).enumerate() {
        let (scale, min) = (d * f32::from(b[i] & 15), dmin * f32::from(b[i] >> 4));
        let (start, shift) = (16 + i / 8 * 32 + i % 2 * 16, i / 2 % 4 * 2);
        for (o, &q) in out.iter_mut().zip(&b[start..]) {
            *o = scale * f32::from(q >> shift & 3) - min;
        }
    }
}

/// `third bits: [u8; 32], q: [u2; 256], scales: [u6; 16], d: f16`; `q` as in Q2_K. Bit `j` of
/// byte `i` of the third bits belongs to value `32j + i`. Scales: low four bits in 8 bytes as
/// in Q4_0, high two in 4 bytes.
fn q3_k(b: &[u8; 110], out: &mut [f32; 256]) {
    let d = half([b[108], b[109]]);
    let (low, high) = (&b[96..104], &b[104..108]);
    for (i, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = (low[i % 8] >> (i / 8 * 4) & 15) | (high[i % 4] >> (i / 4 * 2) & 3) << 4;
        let scale = d * (f32::from(scale) - 32.0);
        let (start, shift) = (32 + i / 8 * 32 + i % 2 * 16, i / 2 % 4 * 2);
        let third = &b[i % 2 * 16..];
        for ((o, &q), &t) in out.iter_mut().zip(&b[start..]).zip(third) {
            let below = if t >> (i / 2) & 1 == 0 { 4.0 } else { 0.0 };
            *o = scale * (f32::from(q >> shift & 3) - below);
        }
    }
}

/// Scale and minimum of sub-block `i` of 8, six bits each, packed in 12 bytes: the first four
/// of each fill the low six bits of 8 bytes; of the last four, the low four bits lie in 4
/// further bytes and the high two in the spare bits of the first 8.
pub(crate) fn scale_min(packed: &[u8], i: usize) -> (u8, u8) {
    if i < 4 {
        (packed[i] & 63, packed[i + 4] & 63)
    } else {
        let q = packed[i + 4];
        (
            q & 15 | packed[i - 4] >> 6 << 4,
            q >> 4 | packed[i] >> 6 << 4,
        )
    }
}

/// `d: f16, dmin: f16, scales and minima: [u8; 12], q: [u4; 256]`. 32 bytes of `q` hold 64
/// values: 32 in their low halves, then 32 in their high halves.
fn q4_k(b: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half([b[0], b[1]]), half([b[2], b[3]]));
    for (i, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&b[4..16], i);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let (start, shift) = (16 + i / 2 * 32, i % 2 * 4);
        for (o, &q) in out.iter_mut().zip(&b[start..]) {
            *o = scale * f32::from(q >> shift & 15) - min;
        }
    }
}

/// Q4_K with fifth bits: `d, dmin, scales and minima, fifth bits: [u8; 32], q: [u4; 256]`.
/// Bit `j` of byte `i` of the fifth bits belongs to value `32j + i`.
fn q5_k(b: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half([b[0], b[1]]), half([b[2], b[3]]));
    for (i, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&b[4..16], i);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let (start, shift) = (48 + i / 2 * 32, i % 2 * 4);
        for ((o, &q), &h) in out.iter_mut().zip(&b[start..]).zip(&b[16..48]) {
            *o = scale * f32::from((q >> shift & 15) | (h >> i & 1) << 4) - min;
        }
    }
}

/// `low: [u4; 256], high: [u2; 256], scales: [i8; 16], d: f16`. Each 128 values take 64 bytes
/// of `low` (64 in the low halves, 64 in the high halves) and 32 bytes of `high`, as in Q2_K.
fn q6_k(b: &[u8; 210], out: &mut [f32; 256]) {
    let d = half([b[208], b[209]]);
    for (i, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(b[192 + i] as i8);
        let low = &b[i / 8 * 64 + i % 4 * 16..];
        let high = &b[128 + i / 8 * 32 + i % 2 * 16..];
        for ((o, &l), &h) in out.iter_mut().zip(low).zip(high) {
            let q = (l >> (i / 4 % 2 * 4) & 15) | (h >> (i / 2 % 4 * 2) & 3) << 4;
            *o = scale * (f32::from(q) - 32.0);
        }
    }
}

/// The 16 values of IQ4's four bits, from ggml.
pub(crate) const IQ4: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// Q4_0's layout over the values of [`IQ4`].
fn iq4_nl(b: &[u8; 18], out: &mut [f32; 32]) {
    let d = half([b[0], b[1]]);
    for (i, &q) in b[2..].iter().enumerate() {
        out[i] = d * f32::from(IQ4[usize::from(q & 15)]);
        out[i + 16] = d * f32::from(IQ4[usize::from(q >> 4)]);
    }
}

/// `d: f16, high scale bits: [u2; 8], low scale bits: [u4; 8], q: [u4; 256]`, each 32 values
/// as in IQ4_NL.
fn iq4_xs(b: &[u8; 136], out: &mut [f32; 256]) {
    let d = half([b[0], b[1]]);
    let high = u16::from_le_bytes([b[2], b[3]]);
    for (i, (out, q)) in out
        .chunks_exact_mut(32)
        .zip(b[8..].chunks_exact(16))
        .enumerate()
    {
        let scale = (b[4 + i / 2] >> (i % 2 * 4) & 15) | ((high >> (2 * i) & 3) as u8) << 4;
        let d = d * (f32::from(scale) - 32.0);
        for (i, &q) in q.iter().enumerate() {
            out[i] = d * f32::from(IQ4[usize::from(q & 15)]);
            out[i + 16] = d * f32::from(IQ4[usize::from(q >> 4)]);
        }
    }
}
