//! Frequencies of the rotary position embedding and their stretching for long contexts.

use crate::config::{Rope, RopeScaling, StatedRope};

/// Rope for `dims` rotating values (an even number) of a head, in sequences of at most `context`
/// positions.
pub(crate) fn rope(dims: usize, stated: StatedRope, context: usize) -> Rope {
    let base = |i: usize| (stated.base.powf(-(2.0 * i as f64) / dims as f64)) as f32;
    let plain: Vec<f32> = (0..dims / 2).map(base).collect();
    let (frequencies, magnitude) = match &stated.scaling {
        RopeScaling::None => (plain, 1.0),
        RopeScaling::Linear { factor } => (plain.iter().map(|f| f / *factor as f32).collect(), 1.0),
        RopeScaling::Llama3 {
            factor,
            low,
            high,
            original,
        } => (
            plain
                .iter()
                .map(|&f| llama3(f, *factor, *low, *high, *original))
                .collect(),
            1.0,
        ),
        RopeScaling::Yarn {
            factor,
            original,
            beta_slow,
            beta_fast,
            attention_factor,
            mscale,
            mscale_all_dim,
        } => {
            // A pair that turns `beta` times within the original context.
            let pair_of = |beta: f64| {
                dims as f64 * (original / (beta * std::f64::consts::TAU)).ln()
                    / (2.0 * stated.base.ln())
            };
            let low = pair_of(*beta_fast).floor().max(0.0);
            let mut high = pair_of(*beta_slow).ceil().min(dims as f64 - 1.0);
            if high == low {
                high += 0.001;
            }
            let stretched = |(i, f): (usize, &f32)| {
                let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32;
                f / *factor as f32 * ramp + f * (1.0 - ramp)
            };
            let magnitude = attention_factor.unwrap_or_else(|| {
                if *mscale > 0.0 && *mscale_all_dim > 0.0 {
                    yarn_magnitude(*factor, *mscale) / yarn_magnitude(*factor, *mscale_all_dim)
                } else {
                    yarn_magnitude(*factor, 1.0)
                }
            });
            (
                plain.iter().enumerate().map(stretched).collect(),
                magnitude as f32,
            )
        }
        RopeScaling::Factors { factors, magnitude } => {
            (divided(&plain, factors), *magnitude as f32)
        }
        RopeScaling::Long {
            short,
            long,
            original,
            magnitude,
        } => {
            let factors = if context as f64 > *original {
                long
            } else {
                short
            };
            (divided(&plain, factors), *magnitude as f32)
        }
    };
    Rope {
        frequencies,
        magnitude,
        stated,
    }
}

fn divided(frequencies: &[f32], factors: &[f32]) -> Vec<f32> {
    frequencies
        .iter()
        .zip(factors)
        .map(|(f, d)| f / d)
        .collect()
}

/// YaRN's growth of the scores with the stretch.
pub(crate) fn yarn_magnitude(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * mscale * factor.ln() + 1.0
    }
}

/// Llama 3.1: wavelengths above `original / low` are stretched, those below `original / high`
/// are kept, and between them the two are mixed.
fn llama3(frequency: f32, factor: f64, low: f64, high: f64, original: f64) -> f32 {
    let f = f64::from(frequency);
    let wavelength = std::f64::consts::TAU / f;
    if wavelength < original / high {
        frequency
    } else if wavelength > original / low {
        (f / factor) as f32
    } else {
        let keep = (original / wavelength - low) / (high - low);
        ((1.0 - keep) * f / factor + keep * f) as f32
    }
}

/// Cosines and sines of a batch's positions, `[rows, pairs]`, reused from step to step.
#[derive(Debug, Default, Clone)]
pub(crate) struct Angles {
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
}

impl Angles {
    pub(crate) fn fill(&mut self, rope: &Rope, positions: &[u32]) {
        self.cos.clear();
        self.sin.clear();
        for &position in positions {
            for &frequency in &rope.frequencies {
                // f32 products, as the implementations do that models were trained with.
                let (sin, cos) = (position as f32 * frequency).sin_cos();
                self.cos.push(cos * rope.magnitude);
                self.sin.push(sin * rope.magnitude);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_keeps_high_frequencies_and_stretches_low_ones() {
        let stated = |scaling| StatedRope {
            base: 500_000.0,
            scaling,
        };
        let plain = rope(128, stated(RopeScaling::None), 8192).frequencies;
        let scaled = rope(
            128,
            stated(RopeScaling::Llama3 {
                factor: 8.0,
                low: 1.0,
                high: 4.0,
                original: 8192.0,
            }),
            65_536,
        )
        .frequencies;
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], (f64::from(plain[63]) / 8.0) as f32);
        assert!(scaled.windows(2).all(|w| w[0] > w[1]), "frequencies fall");
    }

    #[test]
    fn yarn_of_factor_one_changes_nothing() {
        let scaling = RopeScaling::Yarn {
            factor: 1.0,
            original: 4096.0,
            beta_slow: 1.0,
            beta_fast: 32.0,
            attention_factor: None,
            mscale: 0.0,
            mscale_all_dim: 0.0,
        };
        let plain = rope(
            64,
            StatedRope {
                base: 10_000.0,
                scaling: RopeScaling::None,
            },
            4096,
        );
        let yarn = rope(
            64,
            StatedRope {
                base: 10_000.0,
                scaling,
            },
            4096,
        );
        assert_eq!(plain.magnitude, yarn.magnitude);
        for (a, b) in plain.frequencies.iter().zip(&yarn.frequencies) {
            assert!((a - b).abs() <= a * 1e-6);
        }
    }
}
