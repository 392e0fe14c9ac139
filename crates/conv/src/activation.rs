//! What is applied to each value that a product has made, while it is still in a register.

use crate::lanes::Lanes;

/// A function of one value.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// `x`
    #[default]
    Identity,
    /// `max(x, 0)`
    Relu,
    /// `min(max(x, low), high)`
    Clip {
        /// The least result.
        low: f32,
        /// The greatest.
        high: f32,
    },
    /// `x` where it is positive, else `slope · x`
    LeakyRelu {
        /// Of negative values.
        slope: f32,
    },
    /// `min(max(alpha · x + beta, 0), 1)`
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Result for 0.
        beta: f32,
    },
    /// `x · min(max(x / 6 + 1/2, 0), 1)`
    HardSwish,
    /// `1 / (1 + exp(−x))`
    Sigmoid,
    /// `x / (1 + exp(−x))`
    Silu,
    /// `tanh(x)`
    Tanh,
}

impl Activation {
    /// The function of one value: what every kernel's version is held against.
    pub fn of(self, x: f32) -> f32 {
        match self {
            Activation::Identity => x,
            Activation::Relu => x.max(0.0),
            Activation::Clip { low, high } => x.max(low).min(high),
            Activation::LeakyRelu { slope } => match x < 0.0 {
                true => slope * x,
                false => x,
            },
            Activation::HardSigmoid { alpha, beta } => (alpha * x + beta).clamp(0.0, 1.0),
            Activation::HardSwish => x * (x * (1.0 / 6.0) + 0.5).clamp(0.0, 1.0),
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Tanh => x.tanh(),
        }
    }

    /// The bounds between which values are brought, if that is all.
    #[inline(always)]
    pub(crate) fn bounds(self) -> Option<(f32, f32)> {
        match self {
            Activation::Identity => Some((f32::NEG_INFINITY, f32::INFINITY)),
            Activation::Relu => Some((0.0, f32::INFINITY)),
            Activation::Clip { low, high } => Some((low, high)),
            _ => None,
        }
    }

    /// The function of the values of a vector, to some units of the last place.
    #[inline(always)]
    pub(crate) fn on<L: Lanes>(self, l: L, x: L::V) -> L::V {
        let (zero, one) = (l.splat(0.0), l.splat(1.0));
        match self {
            Activation::Identity => x,
            Activation::Relu => l.max(zero, x),
            Activation::Clip { low, high } => l.clamp(x, l.splat(low), l.splat(high)),
            // One of the two terms is 0, or x is NaN.
            Activation::LeakyRelu { slope } => {
                l.fma(l.min(zero, x), l.splat(slope), l.max(zero, x))
            }
            Activation::HardSigmoid { alpha, beta } => {
                l.clamp(l.fma(x, l.splat(alpha), l.splat(beta)), zero, one)
            }
            Activation::HardSwish => {
                let gate = l.fma(x, l.splat(1.0 / 6.0), l.splat(0.5));
                l.mul(x, l.clamp(gate, zero, one))
            }
            Activation::Sigmoid => l.sigmoid(x),
            Activation::Silu => l.mul(x, l.sigmoid(x)),
            Activation::Tanh => l.tanh(x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hard_swish_is_its_parts() {
        let sigmoid = Activation::HardSigmoid {
            alpha: 1.0 / 6.0,
            beta: 0.5,
        };
        for x in [-4.0, -3.0, -1.5, 0.0, 0.7, 3.0, 9.0] {
            assert_eq!(Activation::HardSwish.of(x), x * sigmoid.of(x));
        }
    }
}
