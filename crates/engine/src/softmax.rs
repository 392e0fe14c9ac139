//! Exponentials of logits and their sums.
//! The same bits on every machine, unlike the C library's, so that a seed means the same tokens.

/// eˣ for x ≤ 0, with a relative error below 3·10⁻⁷; 0 where the result would be subnormal.
///
/// Cody and Waite's reduction by multiples of ln 2, then the polynomial of Moshier's Cephes
/// library (`expf`). Without branches, so that the compiler uses vectors.
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding it rounds to a whole number, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³
    let bounded = if x > -87.0 { x } else { -87.0 };
    let shifted = bounded * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = (bounded - whole * 0.693_359_4) + whole * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let power = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127)
        << 23;
    let y = (p * r * r + r + 1.0) * f32::from_bits(power);
    if x > -87.0 { y } else { 0.0 }
}

/// Weights whose sum is formed at once.
pub(crate) const BLOCK: usize = 256;

/// Sum of a block, in eight lanes, so that the compiler uses vectors; always in the same order.
pub(crate) fn sum(block: &[f32]) -> f64 {
    let (eights, rest) = block.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for eight in eights {
        for (lane, &weight) in lanes.iter_mut().zip(eight) {
            *lane += f64::from(weight);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&w| f64::from(w)).sum::<f64>()
}

/// Sum of a row of weights, block by block.
pub(crate) fn total(weights: &[f32]) -> f64 {
    weights.chunks(BLOCK).map(sum).sum()
}

/// Natural logarithm of the sum of the exponentials of logits up to `max`.
pub(crate) fn log_total(logits: &[f32], max: f32) -> f64 {
    let mut weights = [0.0; BLOCK];
    let blocks = logits.chunks(BLOCK).map(|block| {
        let weights = &mut weights[..block.len()];
        weights
            .iter_mut()
            .zip(block)
            .for_each(|(w, &x)| *w = exp(x - max));
        sum(weights)
    });
    f64::from(max) + blocks.sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_below_the_bound() {
        for i in 0..870_000 {
            let x = i as f32 * -1e-4;
            let exact = f64::from(x).exp();
            let error = ((f64::from(exp(x)) - exact) / exact).abs();
            assert!(error < 3e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(
            [0.0, -87.0, -1e9, f32::NEG_INFINITY].map(exp),
            [1.0, 0.0, 0.0, 0.0]
        );
    }
}
