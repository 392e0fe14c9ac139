//! What is done to a vector of sums before it is stored.

use super::lanes::Lanes;
use crate::Activation;

/// An activation as kernels of planes apply it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// None.
    Identity,
    /// `min(max(x, low), high)`
    Bounds { low: f32, high: f32 },
    /// `g = min(max(alpha · x + beta, 0), 1)`, or `x · g`
    Gate {
        alpha: f32,
        beta: f32,
        times_x: bool,
    },
    /// A function that has no vector form here: value by value, of what has been stored.
    Other(Activation),
}

impl Form {
    pub(super) fn new(activation: Activation) -> Form {
        match activation {
            Activation::Identity => Form::Identity,
            Activation::Relu => Form::Bounds {
                low: 0.0,
                high: f32::INFINITY,
            },
            Activation::Clip { low, high } => Form::Bounds { low, high },
            Activation::HardSigmoid { alpha, beta } => Form::Gate {
                alpha,
                beta,
                times_x: false,
            },
            Activation::HardSwish => Form::Gate {
                alpha: 1.0 / 6.0,
                beta: 0.5,
                times_x: true,
            },
            other => Form::Other(other),
        }
    }

    /// The function of a vector; [`Form::Other`] leaves it to [`Form::finish`].
    #[inline(always)]
    pub(super) fn apply<L: Lanes>(self, l: L, x: L::V) -> L::V {
        match self {
            Form::Identity | Form::Other(_) => x,
            Form::Bounds { low, high } => l.min(l.max(x, l.splat(low)), l.splat(high)),
            Form::Gate {
                alpha,
                beta,
                times_x,
            } => {
                let gate = l.fma(x, l.splat(alpha), l.splat(beta));
                let gate = l.min(l.max(gate, l.splat(0.0)), l.splat(1.0));
                match times_x {
                    true => l.mul(x, gate),
                    false => gate,
                }
            }
        }
    }

    /// What remains to be done to `n` values that have been stored at `y`.
    ///
    /// # Safety
    /// They can be read and written, and nobody else uses them.
    #[inline(always)]
    pub(super) unsafe fn finish(self, y: *mut f32, n: usize) {
        if let Form::Other(activation) = self {
            // SAFETY: the caller's promise.
            let values = unsafe { std::slice::from_raw_parts_mut(y, n) };
            each(activation, values);
        }
    }
}

/// Apart, so that kernels stay small.
#[inline(never)]
fn each(activation: Activation, values: &mut [f32]) {
    for value in values {
        *value = activation.of(*value);
    }
}
