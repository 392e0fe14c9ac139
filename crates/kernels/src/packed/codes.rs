//! Codes and scales of stored blocks, taken apart but not multiplied: what packing moves.
//! The layouts are those of `block/decode.rs`; a test holds the two together.

use crate::DType;
use crate::block::{bipolar, scale_min};

use super::layout::Format;

/// One row's share of a unit.
#[derive(Debug, Clone)]
pub(crate) struct RowUnit {
    /// A code for each column.
    pub(crate) codes: [u8; 256],
    /// Scale of each block: f16 bits, or an i8 where scales are nested.
    pub(crate) scales: [u16; 16],
    /// Minimum of each block, alike; subtracted.
    pub(crate) minima: [u16; 16],
    /// f16 bits that multiply nested scales, and nested minima.
    pub(crate) outer: [u16; 2],
}

impl RowUnit {
    /// All of value 0.
    pub(crate) const ZERO: RowUnit = RowUnit {
        codes: [0; 256],
        scales: [0; 16],
        minima: [0; 16],
        outer: [0; 2],
    };

    /// Takes apart the stored blocks of `columns ≤ F::UNIT` columns; the rest stays 0.
    #[inline(always)]
    pub(crate) fn read<F: Format>(&mut self, bytes: &[u8]) {
        let (length, size) = (F::DTYPE.block_len(), F::DTYPE.block_bytes());
        if bytes.len() < F::UNIT / length * size {
            *self = RowUnit::ZERO;
        }
        for (i, b) in bytes.chunks_exact(size).enumerate() {
            match F::DTYPE {
                DType::Q8_0 => self.q8_0(i, b),
                DType::Q4_0 | DType::Iq4Nl => self.nibbles(i, [b[0], b[1]], None, &b[2..]),
                DType::Q4_1 => self.nibbles(i, [b[0], b[1]], Some([b[2], b[3]]), &b[4..]),
                DType::Q5_0 => {
                    self.nibbles(i, [b[0], b[1]], None, &b[6..]);
                    self.fifths(i, [b[2], b[3], b[4], b[5]]);
                }
                DType::Q5_1 => {
                    self.nibbles(i, [b[0], b[1]], Some([b[2], b[3]]), &b[8..]);
                    self.fifths(i, [b[4], b[5], b[6], b[7]]);
                }
                DType::Q2K => self.q2_k(b),
                DType::Q3K => self.q3_k(b),
                DType::Q4K => {
                    self.k_scales(b);
                    self.k_nibbles(&b[16..144]);
                }
                DType::Q5K => {
                    self.k_scales(b);
                    self.k_nibbles(&b[48..176]);
                    for (j, codes) in self.codes.chunks_exact_mut(32).enumerate() {
                        for (code, &h) in codes.iter_mut().zip(&b[16..48]) {
                            *code |= (h >> j & 1) << 4;
                        }
                    }
                }
                DType::Q6K => self.q6_k(b),
                DType::Iq4Xs => self.iq4_xs(b),
                DType::B1
                | DType::B2
                | DType::B3
                | DType::B4
                | DType::B5
                | DType::B6
                | DType::B7
                | DType::B8 => self.bipolar(F::BITS, i, b),
                DType::F32 | DType::F16 | DType::BF16 => unreachable!("plain types have no codes"),
            }
        }
    }

    #[inline(always)]
    fn q8_0(&mut self, block: usize, b: &[u8]) {
        self.scales[block] = u16::from_le_bytes([b[0], b[1]]);
        for (code, &q) in self.codes[32 * block..][..32].iter_mut().zip(&b[2..34]) {
            *code = q ^ 0x80;
        }
    }

    /// `q` holds 32 codes, the first 16 in the low halves. A stored minimum is added, ours is
    /// subtracted.
    #[inline(always)]
    fn nibbles(&mut self, block: usize, scale: [u8; 2], minimum: Option<[u8; 2]>, q: &[u8]) {
        self.scales[block] = u16::from_le_bytes(scale);
        self.minima[block] = minimum.map_or(0, |m| u16::from_le_bytes(m) ^ 0x8000);
        let (low, high) = self.codes[32 * block..][..32].split_at_mut(16);
        for ((low, high), &q) in low.iter_mut().zip(high).zip(&q[..16]) {
            (*low, *high) = (q & 15, q >> 4);
        }
    }

    #[inline(always)]
    fn fifths(&mut self, block: usize, bits: [u8; 4]) {
        let bits = u32::from_le_bytes(bits);
        for (i, code) in self.codes[32 * block..][..32].iter_mut().enumerate() {
            *code |= ((bits >> i & 1) << 4) as u8;
        }
    }

    #[inline(always)]
    fn two_bits(&mut self, q: &[u8]) {
        for (half, q) in self.codes.chunks_exact_mut(128).zip(q.chunks_exact(32)) {
            for (field, codes) in half.chunks_exact_mut(32).enumerate() {
                for (code, &q) in codes.iter_mut().zip(q) {
                    *code = q >> (2 * field) & 3;
                }
            }
        }
    }

    #[inline(always)]
    fn q2_k(&mut self, b: &[u8]) {
        for i in 0..16 {
            self.scales[i] = u16::from(b[i] & 15);
            self.minima[i] = u16::from(b[i] >> 4);
        }
        self.two_bits(&b[16..80]);
        self.outer = [[b[80], b[81]], [b[82], b[83]]].map(u16::from_le_bytes);
    }

    #[inline(always)]
    fn q3_k(&mut self, b: &[u8]) {
        let (low, high) = (&b[96..104], &b[104..108]);
        for i in 0..16 {
            let scale = (low[i % 8] >> (i / 8 * 4) & 15) | (high[i % 4] >> (i / 4 * 2) & 3) << 4;
            self.scales[i] = u16::from(scale.wrapping_sub(32));
        }
        self.two_bits(&b[32..96]);
        for (j, codes) in self.codes.chunks_exact_mut(32).enumerate() {
            for (code, &third) in codes.iter_mut().zip(&b[..32]) {
                *code |= (third >> j & 1) << 2;
            }
        }
        self.outer[0] = u16::from_le_bytes([b[108], b[109]]);
    }

    #[inline(always)]
    fn k_scales(&mut self, b: &[u8]) {
        self.outer = [[b[0], b[1]], [b[2], b[3]]].map(u16::from_le_bytes);
        for i in 0..8 {
            let (scale, minimum) = scale_min(&b[4..16], i);
            (self.scales[i], self.minima[i]) = (scale.into(), minimum.into());
        }
    }

    #[inline(always)]
    fn k_nibbles(&mut self, q: &[u8]) {
        for (codes, q) in self.codes.chunks_exact_mut(64).zip(q.chunks_exact(32)) {
            let (low, high) = codes.split_at_mut(32);
            for ((low, high), &q) in low.iter_mut().zip(high).zip(q) {
                (*low, *high) = (q & 15, q >> 4);
            }
        }
    }

    #[inline(always)]
    fn q6_k(&mut self, b: &[u8]) {
        let halves = b[..128].chunks_exact(64).zip(b[128..192].chunks_exact(32));
        for (codes, (low, high)) in self.codes.chunks_exact_mut(128).zip(halves) {
            for (j, codes) in codes.chunks_exact_mut(32).enumerate() {
                let low = &low[j % 2 * 32..][..32];
                for ((code, &l), &h) in codes.iter_mut().zip(low).zip(high) {
                    *code = (l >> (j / 2 * 4) & 15) | (h >> (2 * j) & 3) << 4;
                }
            }
        }
        for (scale, &s) in self.scales.iter_mut().zip(&b[192..208]) {
            *scale = s.into();
        }
        self.outer[0] = u16::from_le_bytes([b[208], b[209]]);
    }

    #[inline(always)]
    fn bipolar(&mut self, bits: usize, block: usize, b: &[u8]) {
        self.scales[block] = u16::from_le_bytes([b[0], b[1]]);
        self.codes[128 * block..][..128].copy_from_slice(&bipolar::codes(bits, &b[2..]));
    }

    #[inline(always)]
    fn iq4_xs(&mut self, b: &[u8]) {
        let high = u16::from_le_bytes([b[2], b[3]]);
        for (i, q) in b[8..136].chunks_exact(16).enumerate() {
            self.nibbles(i, [0; 2], None, q);
            let scale = (b[4 + i / 2] >> (i % 2 * 4) & 15) | ((high >> (2 * i) & 3) as u8) << 4;
            self.scales[i] = u16::from(scale.wrapping_sub(32));
        }
        self.outer[0] = u16::from_le_bytes([b[0], b[1]]);
    }
}
