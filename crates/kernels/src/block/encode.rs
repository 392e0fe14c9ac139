//! f32 to blocks. Scales are chosen to make the squared error of the decoded values small,
//! in the ways of ggml's reference quantisers.

use half::{bf16, f16};

use super::bipolar;
use crate::DType;

/// Appends whole blocks of values to a buffer.
pub(crate) type Encoder = fn(&[f32], &mut Vec<u8>);

/// The encoder of a type that Sedge writes.
pub(crate) fn encoder(dtype: DType) -> Option<Encoder> {
    Some(match dtype {
        DType::F32 => |x, out| out.extend(x.iter().flat_map(|v| v.to_le_bytes())),
        DType::F16 => |x, out| out.extend(x.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
        DType::BF16 => |x, out| out.extend(x.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
        DType::Q8_0 => |x, out| each(x, out, q8_0),
        DType::Q4_0 => |x, out| each(x, out, q4_0),
        DType::Q4K => |x, out| each(x, out, q4_k),
        DType::Q6K => |x, out| each(x, out, q6_k),
        DType::B1 => |x, out| bipolar::encode(1, x, None, out),
        DType::B2 => |x, out| bipolar::encode(2, x, None, out),
        DType::B3 => |x, out| bipolar::encode(3, x, None, out),
        DType::B4 => |x, out| bipolar::encode(4, x, None, out),
        DType::B5 => |x, out| bipolar::encode(5, x, None, out),
        DType::B6 => |x, out| bipolar::encode(6, x, None, out),
        DType::B7 => |x, out| bipolar::encode(7, x, None, out),
        DType::B8 => |x, out| bipolar::encode(8, x, None, out),
        _ => return None,
    })
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

fn inverse(x: f32) -> f32 {
    let inverse = 1.0 / x;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The nearest of the integers `low..=high`.
fn nearest(x: f32, low: i32, high: i32) -> i32 {
    (x.round_ties_even() as i32).clamp(low, high)
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

/// The scale and the offset (at most 0) for which `scale · q + offset`, `q` in `0..=15`, is
/// near `x` in weighted squares. Tries ranges a little narrower and wider than that of `x`;
/// for each, rounds, then solves the least-squares problem for the rounded `q`. The next
/// range begins at the best offset so far.
fn fit_scale_and_offset(x: &[f32], weights: &[f32]) -> (f32, f32) {
    const TOP: f32 = 15.0;
    let low = x.iter().copied().fold(0.0, f32::min);
    let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if high <= low {
        return (0.0, low);
    }
    let quant = |v: f32, low: f32, inverse: f32| nearest(inverse * (v - low), 0, 15) as f32;
    let error = |low: f32, inverse: f32, (scale, offset): (f32, f32)| -> f32 {
        let of = |(&v, w): (&f32, &f32)| w * (scale * quant(v, low, inverse) + offset - v).powi(2);
        x.iter().zip(weights).map(of).sum()
    };
    let mut best = ((high - low) / TOP, low);
    let mut least = error(low, inverse(best.0), best);
    for step in 0..=20 {
        let low = best.1;
        let inverse = (TOP - 1.0 + 0.1 * step as f32) / (high - low);
        if !inverse.is_finite() {
            break;
        }
        let (mut w1, mut wx, mut wq, mut wqq, mut wxq) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (&v, &w) in x.iter().zip(weights) {
            let q = quant(v, low, inverse);
            w1 += w;
            wx += w * v;
            wq += w * q;
            wqq += w * q * q;
            wxq += w * v * q;
        }
        let determinant = w1 * wqq - wq * wq;
        if determinant <= 0.0 {
            continue;
        }
        let mut fit = (
            (w1 * wxq - wx * wq) / determinant,
            (wqq * wx - wq * wxq) / determinant,
        );
        if fit.1 > 0.0 {
            fit = (wxq / wqq, 0.0);
        }
        let error = error(low, inverse, fit);
        if error < least {
            (least, best) = (error, fit);
        }
    }
    best
}

/// Eight sub-blocks of 32; their scales and offsets are themselves stored in six bits.
fn q4_k(x: &[f32; 256]) -> [u8; 144] {
    let mut fits = [(0.0f32, 0.0f32); 8];
    for (fit, x) in fits.iter_mut().zip(x.chunks_exact(32)) {
        let rms = (x.iter().map(|v| v * v).sum::<f32>() / 32.0).sqrt();
        let mut weights = [0.0; 32];
        for (w, v) in weights.iter_mut().zip(x) {
            *w = rms + v.abs();
        }
        *fit = fit_scale_and_offset(x, &weights);
    }
    let largest_scale = fits.iter().fold(0.0, |m: f32, f| m.max(f.0));
    let largest_min = fits.iter().fold(0.0, |m: f32, f| m.max(-f.1));
    let (d, dmin) = (to_half(largest_scale / 63.0), to_half(largest_min / 63.0));
    let mut block = [0; 144];
    block[..2].copy_from_slice(&d.to_le_bytes());
    block[2..4].copy_from_slice(&dmin.to_le_bytes());
    let (to_scale, to_min) = (63.0 * inverse(largest_scale), 63.0 * inverse(largest_min));
    for (i, (fit, x)) in fits.iter().zip(x.chunks_exact(32)).enumerate() {
        let scale = nearest(to_scale * fit.0, 0, 63) as u8;
        let min = nearest(to_min * -fit.1, 0, 63) as u8;
        if i < 4 {
            block[4 + i] |= scale;
            block[8 + i] |= min;
        } else {
            block[8 + i] = (scale & 15) | (min & 15) << 4;
            block[i] |= scale >> 4 << 6;
            block[4 + i] |= min >> 4 << 6;
        }
        // Round to what the stored scales decode to, not to what was wished for.
        let id = inverse(d.to_f32() * f32::from(scale));
        let min = dmin.to_f32() * f32::from(min);
        for (b, v) in block[16 + i / 2 * 32..].iter_mut().zip(x) {
            *b |= (nearest((v + min) * id, 0, 15) as u8) << (i % 2 * 4);
        }
    }
    block
}

/// The scale for which `scale · q`, `q` in `-32..=31`, is near `x` in squares weighted by
/// `x²`. Tries to map the extreme value to a little less and more than −32.
fn fit_scale(x: &[f32]) -> f32 {
    let extreme = extreme(x);
    if inverse(extreme) == 0.0 {
        return 0.0;
    }
    let (mut best, mut most) = (extreme / -32.0, 0.0);
    for step in -9i32..=9 {
        let inverse = -(32.0 + 0.1 * step as f32) / extreme;
        let (mut xq, mut qq) = (0.0f32, 0.0f32);
        for &v in x {
            let q = nearest(inverse * v, -32, 31) as f32;
            xq += v * v * v * q;
            qq += v * v * q * q;
        }
        // The error of the best scale, xq / qq, is a constant less xq² / qq.
        if qq > 0.0 && xq * (xq / qq) > most {
            (most, best) = (xq * (xq / qq), xq / qq);
        }
    }
    best
}

/// Sixteen sub-blocks of 16; their scales are themselves stored in eight bits.
fn q6_k(x: &[f32; 256]) -> [u8; 210] {
    let mut scales = [0.0f32; 16];
    // Cubes and squares of the values: keep them away from under- and overflow.
    let unit = extreme(x).abs();
    let to_unit = inverse(unit);
    for (scale, x) in scales.iter_mut().zip(x.as_chunks::<16>().0) {
        *scale = fit_scale(&x.map(|v| v * to_unit)) * unit;
    }
    let to_scale = -128.0 * inverse(extreme(&scales));
    let d = to_half(inverse(to_scale));
    let mut block = [0; 210];
    block[208..].copy_from_slice(&d.to_le_bytes());
    for (i, (scale, x)) in scales.iter().zip(x.chunks_exact(16)).enumerate() {
        let scale = nearest(to_scale * scale, -128, 127) as i8;
        block[192 + i] = scale as u8;
        let id = inverse(d.to_f32() * f32::from(scale));
        for (j, v) in x.iter().enumerate() {
            let q = (nearest(v * id, -32, 31) + 32) as u8;
            block[i / 8 * 64 + i % 4 * 16 + j] |= (q & 15) << (i / 4 % 2 * 4);
            block[128 + i / 8 * 32 + i % 2 * 16 + j] |= q >> 4 << (i / 2 % 4 * 2);
        }
    }
    block
}
