//! Normalisation of rows.
//! Sums run over eight f64 lanes in one fixed order, so a row's result is its own.

const LANES: usize = 8;

/// `Σ f(x)`.
fn sum(x: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [0.0f64; LANES];
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f(f64::from(v));
        }
    }
    let tail: f64 = tail.iter().map(|&v| f(f64::from(v))).sum();
    lanes.iter().sum::<f64>() + tail
}

/// Checks the lengths and pairs the rows of `x` and `out`.
fn rows<'a>(
    x: &'a [f32],
    width: usize,
    out: &'a mut [f32],
) -> impl Iterator<Item = (&'a [f32], &'a mut [f32])> {
    assert_eq!(x.len(), out.len());
    let width = width.max(1);
    assert!(x.len().is_multiple_of(width));
    x.chunks_exact(width).zip(out.chunks_exact_mut(width))
}

/// `out = x / rms(x) · weight` for each row of `weight.len()` values, where
/// `rms(x) = sqrt(mean(x²) + eps)`.
///
/// # Panics
/// When `x` is not whole rows or `out` differs in length.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    for (x, out) in rows(x, weight.len(), out) {
        let inverse = inverse_rms(x, eps);
        for ((o, &v), &w) in out.iter_mut().zip(x).zip(weight) {
            *o = v * inverse * w;
        }
    }
}

/// [`rms_norm`] in place.
///
/// # Panics
/// When `x` is not whole rows.
pub fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    let width = weight.len().max(1);
    assert!(x.len().is_multiple_of(width));
    for row in x.chunks_exact_mut(width) {
        let inverse = inverse_rms(row, eps);
        for (v, &w) in row.iter_mut().zip(weight) {
            *v = *v * inverse * w;
        }
    }
}

/// `1 / sqrt(mean(x²) + eps)`.
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let mean = sum(x, |v| v * v) / x.len() as f64;
    (1.0 / (mean + f64::from(eps)).sqrt()) as f32
}

/// `out = (x − mean) / sqrt(var + eps) · weight + bias` for each row.
///
/// # Panics
/// When `x` is not whole rows, or `out` or `bias` differs in length.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(weight.len(), bias.len());
    let n = weight.len() as f64;
    for (x, out) in rows(x, weight.len(), out) {
        let mean = sum(x, |v| v) / n;
        let var = sum(x, |v| (v - mean) * (v - mean)) / n;
        let inverse = (1.0 / (var + f64::from(eps)).sqrt()) as f32;
        for (((o, &v), &w), &b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *o = (f64::from(v) - mean) as f32 * inverse * w + b;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rms_norm_gives_unit_rms() {
        let x: Vec<f32> = (0..3 * 37)
            .map(|i| ((i * 31 % 17) as f32 - 8.0) * 0.7)
            .collect();
        let mut out = vec![0.0; x.len()];
        rms_norm(&x, &[1.0; 37], 0.0, &mut out);
        for row in out.chunks(37) {
            let rms = (row.iter().map(|v| v * v).sum::<f32>() / 37.0).sqrt();
            assert!((rms - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn layer_norm_gives_the_bias_as_mean_and_the_weight_as_deviation() {
        let x: Vec<f32> = (0..2 * 48)
            .map(|i| ((i * 29 % 23) as f32).sin() + 100.0)
            .collect();
        let mut out = vec![0.0; x.len()];
        layer_norm(&x, &[2.0; 48], &[0.5; 48], 0.0, &mut out);
        for row in out.chunks(48) {
            let mean = row.iter().sum::<f32>() / 48.0;
            let var = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / 48.0;
            assert!((mean - 0.5).abs() < 1e-5);
            assert!((var - 4.0).abs() < 1e-4);
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        let x: Vec<f32> = (0..5 * 33)
            .map(|i| ((i * 7919 % 101) as f32).cos())
            .collect();
        let weight: Vec<f32> = (0..33).map(|i| 1.0 + i as f32 * 0.01).collect();
        let (mut all, mut one) = (vec![0.0; x.len()], vec![0.0; 33]);
        rms_norm(&x, &weight, 1e-6, &mut all);
        for (x, all) in x.chunks(33).zip(all.chunks(33)) {
            rms_norm(x, &weight, 1e-6, &mut one);
            assert_eq!(one, all);
        }
    }
}
