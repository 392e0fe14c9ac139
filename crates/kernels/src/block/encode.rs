//! f32 to blocks. Scales are chosen to make the squared error of the decoded values small,
//! in the ways of ggml's reference quantisers.

use half::{bf16, f16};

use crate::DType;

use super::grid::Grid;

/// Appends whole blocks of values.
pub(crate) fn encode(dtype: DType, x: &[f32], out: &mut Vec<u8>) {
    match dtype {
        DType::F32 => out.extend(x.iter().flat_map(|v| v.to_le_bytes())),
        DType::F16 => out.extend(x.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
        DType::BF16 => out.extend(x.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
        DType::Q8_0 => each(x, out, q8_0),
        DType::Q4_0 => each(x, out, q4_0),
        _ => fitted(dtype, x, out),
    }
}

/// Values rounded to the grid that fits them.
fn fitted(dtype: DType, x: &[f32], out: &mut Vec<u8>) {
    let mut codes = [0; 256];
    for block in x.chunks_exact(dtype.block_len()) {
        let grid = Grid::fit(dtype, block, None);
        for (column, (code, &x)) in codes.iter_mut().zip(block).enumerate() {
            *code = grid.round(column, tame(x)).0;
        }
        grid.write(&codes, out);
    }
}

fn each<const N: usize, const B: usize>(
    x: &[f32],
    out: &mut Vec<u8>,
    encode: impl Fn(&[f32; N]) -> [u8; B],
) {
    let (blocks, _) = x.as_chunks::<N>();
    for block in blocks {
        out.extend_from_slice(&encode(&block.map(tame)));
    }
}

/// Bounds a value so that no scale or squared error overflows; NaN becomes 0.
pub(super) fn tame(x: f32) -> f32 {
    if x.is_nan() {
        0.0
    } else {
        x.clamp(-1e15, 1e15)
    }
}

/// The nearest finite f16.
pub(super) fn to_half(x: f32) -> f16 {
    f16::from_f32(x.clamp(-65504.0, 65504.0))
}

pub(super) fn inverse(x: f32) -> f32 {
    let inverse = 1.0 / x;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The value of largest magnitude, with its sign.
fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(
        0.0,
        |best: f32, &v| if v.abs() > best.abs() { v } else { best },
    )
}

/// The largest magnitude becomes ±127.
fn q8_0(x: &[f32; 32]) -> [u8; 34] {
    let d = extreme(x).abs() / 127.0;
    let id = inverse(d);
    let mut block = [0; 34];
    block[..2].copy_from_slice(&to_half(d).to_le_bytes());
    for (b, v) in block[2..].iter_mut().zip(x) {
        *b = (v * id).round().clamp(-127.0, 127.0) as i8 as u8;
    }
    block
}

/// The extreme value becomes −8, which has no positive twin.
fn q4_0(x: &[f32; 32]) -> [u8; 18] {
    let d = extreme(x) / -8.0;
    let id = inverse(d);
    let quant = |v: f32| ((v * id + 8.5) as u8).min(15);
    let mut block = [0; 18];
    block[..2].copy_from_slice(&to_half(d).to_le_bytes());
    for i in 0..16 {
        block[2 + i] = quant(x[i]) | quant(x[i + 16]) << 4;
    }
    block
}
