//! Bipolar integers of 1 to 8 bits: every bit counts +1 or −1 times its power of two, so that a
//! product of two of them is a sum of products of bits, which are equal or not.
//!
//! ```text
//! value of code c    scale · (2c − (2ᵖ − 1))       odd integers −(2ᵖ − 1) … 2ᵖ − 1, no zero
//! block              f16 scale, then p planes of 128 bits: bit k of plane i is bit i of code k
//! ```
//!
//! Signed integers become bipolar ones without loss: `s · x + z` for an `x` of p bits is
//! `s/2 · (2x + 1) + (z − s/2)`, and `2x + 1` is the odd integer of the code `x + 2ᵖ⁻¹`. After
//! bipolar-INT (APT-LLM), of which this is the number format.

use half::f16;

use super::decode::half;

/// Values of a block.
pub(crate) const BLOCK: usize = 128;

/// Decodes a block of `P` planes, `N = 2 + 16 P` bytes.
pub(super) fn decode<const P: usize, const N: usize>(b: &[u8; N], out: &mut [f32; BLOCK]) {
    let d = half([b[0], b[1]]);
    for (o, code) in out.iter_mut().zip(codes(P, &b[2..])) {
        *o = odd(P, code) as f32 * d;
    }
}

/// The codes of a block's planes.
pub(crate) fn codes(bits: usize, planes: &[u8]) -> [u8; BLOCK] {
    let mut codes = [0; BLOCK];
    for (i, plane) in planes.as_chunks::<16>().0.iter().take(bits).enumerate() {
        for (code, column) in codes.iter_mut().zip(0..) {
            *code |= (plane[column / 8] >> (column % 8) & 1) << i;
        }
    }
    codes
}

/// The integer that a code means.
fn odd(bits: usize, code: u8) -> i32 {
    2 * i32::from(code) - ((1 << bits) - 1)
}

/// Appends a block of these codes.
pub(super) fn write(bits: usize, scale: f16, codes: &[u8], out: &mut [u8]) {
    out[..2].copy_from_slice(&scale.to_le_bytes());
    let mut planes = [0u128; 8];
    for (k, code) in codes[..BLOCK].iter().enumerate() {
        for (i, plane) in planes.iter_mut().enumerate() {
            *plane |= u128::from(code >> i & 1) << k;
        }
    }
    for (out, plane) in out[2..].chunks_exact_mut(16).zip(&planes[..bits]) {
        out.copy_from_slice(&plane.to_le_bytes());
    }
}

/// Steps between the scales that are tried.
const TRIES: usize = 20;

/// The scale for which the nearest odd integers are near `x` in weighted squares: several are
/// tried, each in place of which comes the best one for the integers that it gives.
#[inline(always)]
pub(super) fn fit(bits: usize, x: &[f32; BLOCK], importance: &[f32; BLOCK]) -> f32 {
    let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let whole = largest / ((1 << bits) - 1) as f32;
    if whole == 0.0 {
        return 0.0;
    }
    // In units of the largest value, so that squares stay in range.
    let unit = &x.map(|v| v / largest);
    // The fewer bits, the more of the largest values are better cut off.
    let least = match bits {
        1 => 1.0,
        2 => 0.45,
        3 => 0.6,
        _ => 0.8,
    };
    let (mut best, mut most) = (whole, 0.0f32);
    for step in 0..=TRIES {
        let factor = least + (1.05 - least) * step as f32 / TRIES as f32;
        let odds = nearest(bits, unit, factor * whole / largest);
        let (mut xv, mut vv) = (0.0f32, 0.0f32);
        for ((x, v), w) in unit.iter().zip(&odds).zip(importance) {
            xv += w * x * v;
            vv += w * v * v;
        }
        // The error of the best scale, xv / vv, is a constant less xv² / vv.
        if vv > 0.0 && xv * (xv / vv) > most {
            (most, best) = (xv * (xv / vv), xv / vv * largest);
        }
        if bits == 1 {
            break;
        }
    }
    best
}

/// The odd integers nearest to `x / scale`.
#[inline(always)]
fn nearest(bits: usize, x: &[f32; BLOCK], scale: f32) -> [f32; BLOCK] {
    /// Added to a number and taken away again, it leaves the nearest integer.
    const WHOLE: f32 = 12_582_912.0;
    let top = ((1 << bits) - 1) as f32;
    let inverse = 0.5 / scale;
    let inverse = if inverse.is_finite() { inverse } else { 0.0 };
    x.map(|x| {
        let code = (x * inverse + 0.5 * top).clamp(0.0, top);
        2.0 * (code + WHOLE - WHOLE) - top
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    use crate::{DType, Grid, dequantize, quantize};

    /// The code of `2x + 1`, for a signed integer `x` of so many bits.
    fn of_signed(bits: usize, x: i32) -> u8 {
        (x + (1 << (bits - 1))) as u8
    }

    proptest! {
        #[test]
        fn signed_integers_become_bipolar_ones_without_loss(
            bits in 1usize..9, x in prop::collection::vec(any::<i32>(), BLOCK), s in 1u32..2048, z in -100i32..100,
        ) {
            let range = 1i32 << (bits - 1);
            let x: Vec<i32> = x.iter().map(|x| x.rem_euclid(2 * range) - range).collect();
            // Half a step is an f16, and everything below is exact.
            let (s, z) = (s as f32 / 1024.0, z as f32);
            let scale = half::f16::from_f32(s / 2.0);
            prop_assert_eq!(scale.to_f32(), s / 2.0);
            let mut block = scale.to_le_bytes().to_vec();
            for i in 0..bits {
                let bit = |k: usize| u128::from(of_signed(bits, x[k]) >> i & 1) << k;
                block.extend((0..BLOCK).map(bit).fold(0, |a, b| a | b).to_le_bytes());
            }
            let mut y = [0.0; BLOCK];
            dequantize(DType::bipolar(bits).unwrap(), &block, &mut y).unwrap();
            for (x, y) in x.iter().zip(y) {
                prop_assert_eq!(y + (z - s / 2.0), s * *x as f32 + z);
            }
        }

        #[test]
        fn what_is_bipolar_already_is_kept(bits in 1usize..9, seed: u64, s in 1u32..1024) {
            let top = (1i32 << bits) - 1;
            let scale = s as f32 / 256.0;
            let mut x = [0.0; BLOCK];
            for (k, x) in x.iter_mut().enumerate() {
                let code = (seed.rotate_left(k as u32) >> 5) as i32 & top;
                *x = (2 * code - top) as f32 * scale;
            }
            (x[0], x[1]) = (top as f32 * scale, -top as f32 * scale);
            let (mut block, mut y) = (Vec::new(), [0.0; BLOCK]);
            let dtype = DType::bipolar(bits).unwrap();
            quantize(dtype, &x, &mut block).unwrap();
            dequantize(dtype, &block, &mut y).unwrap();
            prop_assert_eq!(x, y);
        }
    }

    #[test]
    fn important_columns_are_nearer() {
        let x: Vec<f32> = (0..BLOCK)
            .map(|i| ((i * 37 % BLOCK) as f32 / 64.0 - 1.0).powi(3))
            .collect();
        let mut importance = vec![1.0; BLOCK];
        let error = |importance: Option<&[f32]>| {
            let grid = Grid::fit(DType::B2, &x, importance);
            let of = |i: usize| (x[i] - grid.round(i, x[i]).1).powi(2);
            (0..8).map(of).sum::<f32>()
        };
        let before = error(Some(&importance));
        importance[..8].fill(100.0);
        let after = error(Some(&importance));
        assert!(after < 0.98 * before, "{before} → {after}");
    }
}
