//! Arithmetic on a row of logits.

use crate::isa::isa;
use crate::simd::{LANES, Simd};

/// Index of the largest value, the first of equals; NaN never wins. 0 for an empty row.
pub fn argmax(x: &[f32]) -> usize {
    let mut best: Option<(usize, f32)> = None;
    for (i, &v) in x.iter().enumerate() {
        if !v.is_nan() && best.is_none_or(|(_, b)| v > b) {
            best = Some((i, v));
        }
    }
    best.map_or(0, |(i, _)| i)
}

/// The largest value, NaN aside; minus infinity when there is none.
fn max(x: &[f32]) -> f32 {
    x.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Turns logits into probabilities. A NaN or −∞ logit has probability 0; when no logit is
/// larger than −∞ all become 0, and a logit of +∞ shares the whole with its equals.
pub fn softmax_in_place(x: &mut [f32]) {
    exp_above(x, max(x));
    let sum = sum(x);
    let inverse = if sum > 0.0 { (1.0 / sum) as f32 } else { 0.0 };
    for v in x.iter_mut() {
        *v *= inverse;
    }
}

/// Turns logits into natural-log probabilities: −∞ where [`softmax_in_place`] gives 0.
pub fn log_softmax_in_place(x: &mut [f32]) {
    let max = max(x);
    let mut buffer = [0.0; 512];
    let mut total = 0.0;
    for x in x.chunks(buffer.len()) {
        let buffer = &mut buffer[..x.len()];
        buffer.copy_from_slice(x);
        exp_above(buffer, max);
        total += sum(buffer);
    }
    let log = total.ln() as f32;
    for v in x.iter_mut() {
        *v = above(*v, max) - if log.is_finite() { log } else { 0.0 };
    }
}

/// `x = exp(x − max)`.
fn exp_above(x: &mut [f32], max: f32) {
    if max.is_finite() {
        (isa().exp_above)(x, max);
    } else {
        x.iter_mut().for_each(|v| *v = above(*v, max).exp());
    }
}

/// `x = exp(x − max)` for a finite maximum; 0 for NaN.
#[inline(always)]
pub(crate) fn exp_above_lanes<S: Simd>(s: S, x: &mut [f32], max: f32) {
    let (vectors, rest) = x.as_chunks_mut::<LANES>();
    for v in vectors {
        s.store(exp_one(s, s.load(v), max), v);
    }
    let mut lanes = [0.0; LANES];
    s.store(exp_one(s, s.load_part(rest), max), &mut lanes);
    rest.copy_from_slice(&lanes[..rest.len()]);
}

#[inline(always)]
fn exp_one<S: Simd>(s: S, x: S::V, max: f32) -> S::V {
    let x = s.max(x, s.splat(f32::NEG_INFINITY)); // which also replaces NaN
    s.exp(s.sub(x, s.splat(max)))
}

fn sum(x: &[f32]) -> f64 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [0.0f64; LANES];
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(v);
        }
    }
    lanes.iter().sum::<f64>() + tail.iter().map(|&v| f64::from(v)).sum::<f64>()
}

/// `v − max`, with the infinities and NaN as the softmax wants them.
fn above(v: f32, max: f32) -> f32 {
    if v.is_nan() || v == f32::NEG_INFINITY {
        f32::NEG_INFINITY
    } else if v == max {
        0.0
    } else {
        v - max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: f32 = f32::NAN;
    const INF: f32 = f32::INFINITY;

    #[test]
    fn argmax_is_the_first_of_equals_and_never_nan() {
        assert_eq!(argmax(&[]), 0);
        assert_eq!(argmax(&[NAN, NAN]), 0);
        assert_eq!(argmax(&[NAN, -INF, -3.0, 2.0, NAN, 2.0]), 3);
        assert_eq!(argmax(&[NAN, -INF]), 1);
    }

    #[test]
    fn probabilities_sum_to_one_and_logs_agree() {
        let x: Vec<f32> = (0..1000)
            .map(|i| ((i * 37 % 101) as f32) * 0.3 - 20.0)
            .collect();
        let (mut p, mut l) = (x.clone(), x);
        softmax_in_place(&mut p);
        log_softmax_in_place(&mut l);
        assert!((p.iter().map(|&v| f64::from(v)).sum::<f64>() - 1.0).abs() < 1e-6);
        assert!(p.iter().zip(&l).all(|(p, l)| (p.ln() - l).abs() < 1e-5));
    }

    #[test]
    fn masked_logits_get_nothing() {
        let mut p = [1.0, -INF, 1.0, NAN];
        softmax_in_place(&mut p);
        assert_eq!(p, [0.5, 0.0, 0.5, 0.0]);
        let mut none = [-INF; 3];
        softmax_in_place(&mut none);
        assert_eq!(none, [0.0; 3]);
        let mut l = [-INF; 2];
        log_softmax_in_place(&mut l);
        assert_eq!(l, [-INF; 2]);
        let mut sure = [INF, 3.0, INF];
        softmax_in_place(&mut sure);
        assert_eq!(sure, [0.5, 0.0, 0.5]);
    }
}
