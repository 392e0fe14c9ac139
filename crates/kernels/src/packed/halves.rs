//! Weights of 16 bits: multiplied as they are with f32 activations, in the same strips as
//! quantised ones.
//!
//! A strip's columns lie in tiles of 32: `[16 pairs of columns][16 rows][2]`, which is what a
//! tile of bfloat16 wants, and what vectors can take apart.
//!
//! Every kernel gives the same bits: an output is the sum of its even columns plus that of its
//! odd ones, each by fused multiply-adds from the first column to the last.

use half::{bf16, f16};

use crate::DType;

use super::layout::STRIP;
use super::rounded::{TILE, Tiles};

/// Bytes of a tile of a strip.
pub(crate) const TILE_BYTES: usize = 2 * TILE * STRIP;

/// Products of a strip with rows of f32, whose stride is the strip's columns, padded with zeros:
/// 16 outputs for each row.
pub(crate) type Multiply = fn(DType, strip: &[u8], x: &[f32], out: &mut [[f32; STRIP]]);

/// Whether a type is one of these.
pub(crate) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// A stored value.
#[inline(always)]
fn value(dtype: DType, bits: [u8; 2]) -> f32 {
    match dtype {
        DType::F16 => f16::from_le_bytes(bits).to_f32(),
        _ => bf16::from_le_bytes(bits).to_f32(),
    }
}

/// Packs up to 16 stored rows, `row_bytes` each; what is missing is 0.
pub(crate) fn pack(stored: &[u8], row_bytes: usize, strip: &mut [u8]) {
    strip.fill(0);
    for (lane, row) in stored.chunks_exact(row_bytes).enumerate() {
        for (pair, columns) in row.chunks(4).enumerate() {
            strip[(pair * STRIP + lane) * 4..][..columns.len()].copy_from_slice(columns);
        }
    }
}

/// One row of a strip.
pub(crate) fn row(dtype: DType, strip: &[u8], lane: usize, out: &mut [f32]) {
    for (column, out) in out.iter_mut().enumerate() {
        let at = (column / 2 * STRIP + lane) * 4 + column % 2 * 2;
        *out = value(dtype, [strip[at], strip[at + 1]]);
    }
}

/// The definition of a product.
pub(crate) fn multiply(dtype: DType, strip: &[u8], x: &[f32], out: &mut [[f32; STRIP]]) {
    let columns = strip.len() / (2 * STRIP);
    for (x, out) in x.chunks_exact(columns).zip(out) {
        for (lane, out) in out.iter_mut().enumerate() {
            let mut sums = [0.0f32; 2];
            for (pair, x) in x.as_chunks::<2>().0.iter().enumerate() {
                let at = (pair * STRIP + lane) * 4;
                for (i, sum) in sums.iter_mut().enumerate() {
                    let bits = [strip[at + 2 * i], strip[at + 2 * i + 1]];
                    *sum = x[i].mul_add(value(dtype, bits), *sum);
                }
            }
            *out = sums[0] + sums[1];
        }
    }
}

/// The tiles of bfloat16 of some of a strip's columns.
pub(crate) fn decode(dtype: DType, tiles: &[u8], half: usize, out: &mut [Tiles]) {
    for (from, out) in tiles.chunks_exact(TILE_BYTES).zip(out) {
        let out = out.0[half].as_flattened_mut();
        for (bits, out) in from.as_chunks::<2>().0.iter().zip(out) {
            *out = match dtype {
                DType::BF16 => u16::from_le_bytes(*bits),
                _ => bf16::from_f32(value(dtype, *bits)).to_bits(),
            };
        }
    }
}
