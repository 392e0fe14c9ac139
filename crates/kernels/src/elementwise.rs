//! Operations on each value alone.

use std::f64::consts::FRAC_1_SQRT_2;

use crate::isa::isa;
use crate::simd::{LANES, Simd};

/// `x += y`.
///
/// # Panics
/// When the lengths differ.
pub fn add_assign(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// Adds `bias` to every row of `bias.len()` values.
///
/// # Panics
/// When `x` is not whole rows.
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    let width = bias.len().max(1);
    assert!(x.len().is_multiple_of(width));
    for row in x.chunks_exact_mut(width) {
        add_assign(row, bias);
    }
}

/// `x *= factor`.
pub fn scale(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

/// `gate = silu(gate) · up`.
///
/// # Panics
/// When the lengths differ.
pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    (isa().silu_mul)(gate, up);
}

/// `gate = gelu_tanh(gate) · up`: gemma's, with the tanh approximation.
///
/// # Panics
/// When the lengths differ.
pub fn gelu_mul(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    (isa().gelu_mul)(gate, up);
}

/// `x = gelu(x)`: BERT's, exact (erf).
pub fn gelu(x: &mut [f32]) {
    for x in x {
        let v = f64::from(*x);
        *x = (0.5 * v * (1.0 + erf(v * FRAC_1_SQRT_2))) as f32;
    }
}

/// `x = cap · tanh(x / cap)`.
pub fn softcap(x: &mut [f32], cap: f32) {
    for x in x {
        *x = cap * (*x / cap).tanh();
    }
}

/// `silu(x) = x · sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu_mul_lanes<S: Simd>(s: S, gate: &mut [f32], up: &[f32]) {
    gated::<S, false>(s, gate, up);
}

/// `gelu_tanh(x) = x · (1 + tanh u) / 2 = x · sigmoid(2u)`, `u = √(2/π) (x + 0.044715 x³)`.
#[inline(always)]
pub(crate) fn gelu_mul_lanes<S: Simd>(s: S, gate: &mut [f32], up: &[f32]) {
    gated::<S, true>(s, gate, up);
}

/// The last values take the same path as the others, so that a value's result does not depend
/// on where it lies.
#[inline(always)]
fn gated<S: Simd, const GELU: bool>(s: S, gate: &mut [f32], up: &[f32]) {
    let (gates, gate_rest) = gate.as_chunks_mut::<LANES>();
    let (ups, up_rest) = up.as_chunks::<LANES>();
    for (g, u) in gates.iter_mut().zip(ups) {
        s.store(gate_one::<S, GELU>(s, s.load(g), s.load(u)), g);
    }
    let mut rest = [0.0; LANES];
    s.store(
        gate_one::<S, GELU>(s, s.load_part(gate_rest), s.load_part(up_rest)),
        &mut rest,
    );
    gate_rest.copy_from_slice(&rest[..gate_rest.len()]);
}

#[inline(always)]
fn gate_one<S: Simd, const GELU: bool>(s: S, x: S::V, up: S::V) -> S::V {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    let argument = if GELU {
        let cube = s.mul(s.mul(x, x), x);
        s.mul(
            s.fma(cube, s.splat(0.044_715), x),
            s.splat(TWICE_SQRT_2_OVER_PI),
        )
    } else {
        x
    };
    s.mul(s.mul(x, s.sigmoid(argument)), up)
}

/// The error function, to 1e-8: W. J. Cody's rational approximations (Math. Comp. 23, 1969),
/// with coefficients as in SPECFUN; beyond 4 it is 1 to 1.6e-8.
fn erf(x: f64) -> f64 {
    const A: [f64; 5] = [
        1.857_777_061_846_031_5e-1,
        3.161_123_743_870_565_6,
        1.138_641_541_510_501_6e2,
        3.774_852_376_853_02e2,
        3.209_377_589_138_469_5e3,
    ];
    const B: [f64; 5] = [
        1.0,
        2.360_129_095_234_412_1e1,
        2.440_246_379_344_441_7e2,
        1.282_616_526_077_372_3e3,
        2.844_236_833_439_171e3,
    ];
    const C: [f64; 9] = [
        2.153_115_354_744_038_5e-8,
        5.641_884_969_886_701e-1,
        8.883_149_794_388_375,
        6.611_919_063_714_163e1,
        2.986_351_381_974_001e2,
        8.819_522_212_417_69e2,
        1.712_047_612_634_070_6e3,
        2.051_078_377_826_071_5e3,
        1.230_339_354_797_997_3e3,
    ];
    const D: [f64; 9] = [
        1.0,
        1.574_492_611_070_983_5e1,
        1.176_939_508_913_125e2,
        5.371_811_018_620_099e2,
        1.621_389_574_566_690_2e3,
        3.290_799_235_733_459_6e3,
        4.362_619_090_143_247e3,
        3.439_367_674_143_721_6e3,
        1.230_339_354_803_749_4e3,
    ];
    let a = x.abs();
    if a <= 0.468_75 {
        let s = x * x;
        x * polynomial(&A, s) / polynomial(&B, s)
    } else if a <= 4.0 {
        let erfc = (-a * a).exp() * polynomial(&C, a) / polynomial(&D, a);
        (1.0 - erfc).copysign(x)
    } else if x.is_nan() {
        x
    } else {
        1f64.copysign(x)
    }
}

/// Highest power first.
fn polynomial<const N: usize>(coefficients: &[f64; N], x: f64) -> f64 {
    coefficients.iter().fold(0.0, |sum, c| sum * x + c)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `erf` by its Maclaurin series, exact to 1e-13 for |x| ≤ 3.
    fn series(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..80 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn erf_agrees_with_its_series() {
        for i in -3000..=3000 {
            let x = f64::from(i) / 1000.0;
            assert!((erf(x) - series(x)).abs() < 1e-8, "at {x}");
        }
        for x in [3.5, 4.0, 4.1, 10.0, f64::INFINITY] {
            assert!((erf(x) - 1.0).abs() < 1e-6);
            assert_eq!(erf(-x), -erf(x));
        }
    }

    #[test]
    fn the_tanh_gelu_is_what_its_name_says() {
        for i in -800..=800 {
            let x = i as f32 / 100.0;
            let mut y = [x];
            gelu_mul(&mut y, &[2.0]);
            let v = f64::from(x);
            let u = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v * v * v);
            let expected = v * (1.0 + u.tanh());
            assert!((f64::from(y[0]) - expected).abs() < 2e-6, "at {x}");
        }
    }

    #[test]
    fn the_two_gelus_nearly_agree_and_extremes_stay_finite() {
        let x: Vec<f32> = (-600..=600).map(|i| i as f32 / 100.0).collect();
        let (mut exact, mut tanh) = (x.clone(), x);
        gelu(&mut exact);
        let ones = vec![1.0; tanh.len()];
        gelu_mul(&mut tanh, &ones);
        assert!(exact.iter().zip(&tanh).all(|(a, b)| (a - b).abs() < 1e-3));
        let mut far = [-1e30, -100.0, 100.0, 1e30];
        gelu_mul(&mut far, &[1.0; 4]);
        assert_eq!(far, [0.0, 0.0, 100.0, 1e30]);
        let mut far = [-1e30, -100.0, 100.0, 1e30];
        silu_mul(&mut far, &[1.0; 4]);
        assert_eq!(far, [0.0, 0.0, 100.0, 1e30]);
    }
}
