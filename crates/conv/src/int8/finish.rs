//! From integer sums to results: the one sequence of f32 operations that every kernel follows.
//!
//! `v = fma(f32(sum), scale, bias)`, then `v = fma(f32(q − zero), scale, v)` of what is added,
//! the activation, `v · (1 / step)`, limits, rounding to even, and the zero point. Where the
//! activation only clips (identity, ReLU, clip), step is divided out of all scales beforehand
//! and the limits are those of the activation.

use crate::Activation;

use super::lanes::{self, Lanes};
use super::{PANEL, Quant};

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;

/// What becomes of a sum once it is a number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Finish {
    /// Numbers are in steps of the output: they are rounded, moved by `zero`, and limited.
    Steps { zero: u8, low: u8, high: u8 },
    /// Numbers are real: the function, then steps.
    Function {
        activation: Activation,
        output: Quant,
    },
}

impl Finish {
    /// The quickest way to apply `activation` and quantise.
    pub(super) fn new(activation: Activation, output: Quant) -> Finish {
        let zero = output.zero;
        let steps = |low, high| Finish::Steps { zero, low, high };
        match activation {
            Activation::Identity => steps(0, 255),
            Activation::Relu => steps(zero, 255),
            Activation::Clip { low, high } => steps(output.of(low), output.of(high)),
            _ => Finish::Function { activation, output },
        }
    }
}

/// A number for each output, in panels.
#[derive(Clone, Debug, Default)]
pub(super) struct Scales {
    pub(super) scale: Vec<[f32; PANEL]>,
    pub(super) bias: Vec<[f32; PANEL]>,
}

/// Quantised values that are added: pixel after pixel `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Add {
    pub(super) values: *const u8,
    pub(super) stride: usize,
    pub(super) zero: f32,
    pub(super) scale: f32,
}

/// The function of sixteen values.
#[inline(always)]
pub(super) fn apply<L: Lanes>(activation: Activation, x: L) -> L {
    let (zero, one) = (L::splat(0.0), L::splat(1.0));
    let sigmoid = |x: L| one.div(one.add(lanes::exp(x.mul(L::splat(-1.0)))));
    match activation {
        Activation::Identity => x,
        Activation::Relu => x.max(zero),
        Activation::Clip { low, high } => x.max(L::splat(low)).min(L::splat(high)),
        Activation::LeakyRelu { slope } => x.min(zero).fma(L::splat(slope), x.max(zero)),
        Activation::HardSigmoid { alpha, beta } => {
            let line = x.fma(L::splat(alpha), L::splat(beta));
            line.max(zero).min(one)
        }
        Activation::HardSwish => {
            let line = x.fma(L::splat(1.0 / 6.0), L::splat(0.5));
            x.mul(line.max(zero).min(one))
        }
        Activation::Sigmoid => sigmoid(x),
        Activation::Silu => x.mul(sigmoid(x)),
        Activation::Tanh => sigmoid(x.add(x)).fma(L::splat(2.0), L::splat(-1.0)),
    }
}

/// Rounds steps to even, adds the zero point and limits.
#[inline(always)]
pub(super) fn quantised<L: Lanes>(steps: L, zero: u8, low: u8, high: u8) -> [u8; 16] {
    // The limits are whole numbers, so it is the same to limit before rounding.
    let zero = f32::from(zero);
    let low = L::splat(f32::from(low) - zero);
    let high = L::splat(f32::from(high) - zero);
    steps.max(low).min(high).round().add(L::splat(zero)).to_u8()
}

/// One vector: 16 sums and, beside them, what is added.
#[inline(always)]
fn number<L: Lanes>(
    sums: &[i32; 16],
    scale: &[f32],
    bias: &[f32],
    add: Option<(&[u8; 16], f32, f32)>,
) -> L {
    let lanes = |x: &[f32]| L::load(x.first_chunk().expect("a strip of a panel"));
    let v = L::from_i32(sums).fma(lanes(scale), lanes(bias));
    match add {
        None => v,
        Some((values, zero, scale)) => {
            let real = L::from_u8(values).add(L::splat(-zero));
            real.fma(L::splat(scale), v)
        }
    }
}

/// Sums `[strip][row]` of a panel's outputs, and where they go.
pub(super) struct Rows<'a> {
    pub(super) sums: &'a super::gemm::Sums,
    pub(super) rows: usize,
    /// Outputs of the panel.
    pub(super) outputs: usize,
    pub(super) scale: &'a [f32; PANEL],
    pub(super) bias: &'a [f32; PANEL],
    pub(super) add: Option<Add>,
}

/// Writes rows of bytes, `stride` apart.
///
/// # Safety
/// `out`, and what is added, have `rows` rows of `outputs` values.
#[inline(always)]
pub(super) unsafe fn bytes<L: Lanes>(r: &Rows<'_>, finish: Finish, out: *mut u8, stride: usize) {
    // SAFETY: by the caller's promise.
    unsafe {
        each(r, |v: L, at, row, n| {
            let bytes = match finish {
                Finish::Steps { zero, low, high } => quantised(v, zero, low, high),
                Finish::Function { activation, output } => {
                    let steps = apply(activation, v).mul(L::splat(1.0 / output.scale));
                    quantised(steps, output.zero, 0, 255)
                }
            };
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), out.add(row * stride + at), n);
        });
    }
}

/// Writes rows of real numbers, `stride` apart.
///
/// # Safety
/// As of [`bytes`].
#[inline(always)]
pub(super) unsafe fn reals<L: Lanes>(
    r: &Rows<'_>,
    activation: Activation,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: by the caller's promise.
    unsafe {
        each(r, |v: L, at, row, n| {
            let mut values = [0.0; 16];
            apply(activation, v).store(&mut values);
            std::ptr::copy_nonoverlapping(values.as_ptr(), out.add(row * stride + at), n);
        });
    }
}

/// Calls `f(numbers, first output, row, how many)` for all.
///
/// # Safety
/// What is added has `rows` rows of `outputs` values.
#[inline(always)]
unsafe fn each<L: Lanes>(r: &Rows<'_>, mut f: impl FnMut(L, usize, usize, usize)) {
    for row in 0..r.rows {
        for (strip, sums) in r.sums.0.iter().enumerate() {
            let at = 16 * strip;
            let Some(n @ 1..) = r.outputs.checked_sub(at).map(|n| n.min(16)) else {
                break;
            };
            let mut beside = [0; 16];
            let add = r.add.map(|add| {
                // SAFETY: `n` values of the row are there, by the caller's promise.
                unsafe {
                    let from = add.values.add(row * add.stride + at);
                    std::ptr::copy_nonoverlapping(from, beside.as_mut_ptr(), n);
                }
                (&beside, add.zero, add.scale)
            });
            let v = number(&sums[row], &r.scale[at..], &r.bias[at..], add);
            f(v, at, row, n);
        }
    }
}
