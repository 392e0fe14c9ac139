//! Codes and scales into blocks: what `decode.rs` takes apart, put together.
#![allow(clippy::needless_range_loop)] // one index walks several arrays

use half::f16;

use crate::DType;

use super::bipolar;

/// What a block has beside its codes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Header {
    /// What multiplies scales, and minima; the scale and the minimum themselves where they are
    /// not nested.
    pub(crate) outer: [f16; 2],
    /// Nested scales, and minima.
    pub(crate) scales: [i16; 16],
    pub(crate) minima: [u8; 16],
}

/// Appends a block. A code is the level's distance from the lowest one.
pub(crate) fn write(dtype: DType, h: &Header, codes: &[u8], out: &mut Vec<u8>) {
    let [d, minimum] = h.outer;
    let start = out.len();
    out.resize(start + dtype.block_bytes(), 0);
    let b = &mut out[start..];
    match dtype {
        DType::Q8_0 => {
            b[..2].copy_from_slice(&d.to_le_bytes());
            for (b, code) in b[2..].iter_mut().zip(codes) {
                *b = code.wrapping_sub(127);
            }
        }
        DType::Q4_0 | DType::Iq4Nl => {
            b[..2].copy_from_slice(&d.to_le_bytes());
            halves(&mut b[2..], codes);
        }
        DType::Q4_1 => {
            b[..2].copy_from_slice(&d.to_le_bytes());
            b[2..4].copy_from_slice(&(-minimum).to_le_bytes());
            halves(&mut b[4..], codes);
        }
        DType::Q5_0 => {
            b[..2].copy_from_slice(&d.to_le_bytes());
            b[2..6].copy_from_slice(&fifths(codes).to_le_bytes());
            halves(&mut b[6..], codes);
        }
        DType::Q5_1 => {
            b[..2].copy_from_slice(&d.to_le_bytes());
            b[2..4].copy_from_slice(&(-minimum).to_le_bytes());
            b[4..8].copy_from_slice(&fifths(codes).to_le_bytes());
            halves(&mut b[8..], codes);
        }
        DType::Q2K => {
            for i in 0..16 {
                b[i] = h.scales[i] as u8 | h.minima[i] << 4;
            }
            two_bits(&mut b[16..80], codes);
            b[80..82].copy_from_slice(&d.to_le_bytes());
            b[82..84].copy_from_slice(&minimum.to_le_bytes());
        }
        DType::Q3K => {
            for (i, code) in codes[..256].iter().enumerate() {
                b[i % 32] |= (code >> 2 & 1) << (i / 32);
            }
            two_bits(&mut b[32..96], codes);
            for i in 0..16 {
                let scale = (h.scales[i] + 32) as u8;
                b[96 + i % 8] |= (scale & 15) << (i / 8 * 4);
                b[104 + i % 4] |= scale >> 4 << (i / 4 * 2);
            }
            b[108..110].copy_from_slice(&d.to_le_bytes());
        }
        DType::Q4K => {
            six_bits(h, b);
            nibbles(&mut b[16..144], codes);
        }
        DType::Q5K => {
            six_bits(h, b);
            for (i, code) in codes[..256].iter().enumerate() {
                b[16 + i % 32] |= (code >> 4) << (i / 32);
            }
            nibbles(&mut b[48..176], codes);
        }
        DType::Q6K => {
            for (i, code) in codes[..256].iter().enumerate() {
                let (half, i) = (i / 128, i % 128);
                b[half * 64 + i % 64] |= (code & 15) << (i / 64 * 4);
                b[128 + half * 32 + i % 32] |= code >> 4 << (i / 32 * 2);
            }
            for i in 0..16 {
                b[192 + i] = h.scales[i] as i8 as u8;
            }
            b[208..210].copy_from_slice(&d.to_le_bytes());
        }
        DType::Iq4Xs => {
            b[..2].copy_from_slice(&d.to_le_bytes());
            let mut high = 0u16;
            for i in 0..8 {
                let scale = (h.scales[i] + 32) as u16;
                high |= (scale >> 4) << (2 * i);
                b[4 + i / 2] |= ((scale & 15) << (i % 2 * 4)) as u8;
            }
            b[2..4].copy_from_slice(&high.to_le_bytes());
            for (b, codes) in b[8..136].chunks_exact_mut(16).zip(codes.chunks_exact(32)) {
                halves(b, codes);
            }
        }
        DType::B1
        | DType::B2
        | DType::B3
        | DType::B4
        | DType::B5
        | DType::B6
        | DType::B7
        | DType::B8 => {
            let bits = dtype.bipolar_bits().unwrap_or(8);
            bipolar::write(bits, d, codes, b);
        }
        DType::F32 | DType::F16 | DType::BF16 => unreachable!("plain types have no blocks"),
    }
}

/// 32 codes, the first 16 in the low halves of bytes.
fn halves(b: &mut [u8], codes: &[u8]) {
    for i in 0..16 {
        b[i] = (codes[i] & 15) | codes[i + 16] << 4;
    }
}

/// The fifth bits of 32 codes.
fn fifths(codes: &[u8]) -> u32 {
    let bit = |(i, code): (usize, &u8)| u32::from(code >> 4 & 1) << i;
    codes[..32].iter().enumerate().map(bit).sum()
}

/// The lowest two bits of 256 codes: 32 bytes hold 128, 32 in their lowest bits, 32 in the next…
fn two_bits(b: &mut [u8], codes: &[u8]) {
    for (i, code) in codes[..256].iter().enumerate() {
        b[i / 128 * 32 + i % 32] |= (code & 3) << (i % 128 / 32 * 2);
    }
}

/// The low four bits of 256 codes: 32 bytes hold 64, 32 in their low halves.
fn nibbles(b: &mut [u8], codes: &[u8]) {
    for (i, code) in codes[..256].iter().enumerate() {
        b[i / 64 * 32 + i % 32] |= (code & 15) << (i % 64 / 32 * 4);
    }
}

/// Both factors, and eight scales and minima of six bits each.
fn six_bits(h: &Header, b: &mut [u8]) {
    let [d, dmin] = h.outer;
    b[..2].copy_from_slice(&d.to_le_bytes());
    b[2..4].copy_from_slice(&dmin.to_le_bytes());
    for i in 0..8 {
        let (scale, minimum) = (h.scales[i] as u8, h.minima[i]);
        if i < 4 {
            b[4 + i] |= scale;
            b[8 + i] |= minimum;
        } else {
            b[8 + i] = (scale & 15) | (minimum & 15) << 4;
            b[i] |= scale >> 4 << 6;
            b[4 + i] |= minimum >> 4 << 6;
        }
    }
}
