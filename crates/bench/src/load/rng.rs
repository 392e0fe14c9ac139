//! The distributions that loads are drawn from, the same on every machine.

use sedge_engine as engine;

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub(crate) struct Rng(engine::Rng);

impl Rng {
    /// The stream of this seed and purpose; streams of different purposes are independent.
    pub(crate) fn new(seed: u64, purpose: u64) -> Rng {
        Rng(engine::Rng::new(
            seed ^ purpose.wrapping_mul(0xd134_2543_de82_ef95),
        ))
    }

    /// Within (0, 1].
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.0.bits() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Below `end`, which is not 0; the bias is below `end` / 2⁶⁴.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.0.bits()) * end as u128) >> 64) as usize
    }

    /// Exponential with mean 1.
    pub(crate) fn exponential(&mut self) -> f64 {
        -self.unit().ln()
    }

    /// Gamma with mean 1 and this coefficient of variation, after Marsaglia and Tsang (2000).
    pub(crate) fn gamma(&mut self, cv: f64) -> f64 {
        let shape = 1.0 / (cv * cv);
        // A shape below 1 is drawn one above and scaled down.
        let (raised, boost) = match shape < 1.0 {
            true => (shape + 1.0, self.unit().powf(1.0 / shape)),
            false => (shape, 1.0),
        };
        let d = raised - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.unit().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v * boost / shape;
            }
        }
    }

    fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_and_cv(mut draw: impl FnMut() -> f64) -> (f64, f64) {
        let figures: Vec<f64> = (0..40_000).map(|_| draw()).collect();
        let mean = figures.iter().sum::<f64>() / figures.len() as f64;
        let squares: f64 = figures.iter().map(|x| (x - mean).powi(2)).sum();
        (mean, (squares / figures.len() as f64).sqrt() / mean)
    }

    #[test]
    fn draws_have_their_mean_and_variation() {
        let mut rng = Rng::new(1, 0);
        let (mean, cv) = mean_and_cv(|| rng.exponential());
        assert!(
            (mean - 1.0).abs() < 0.02 && (cv - 1.0).abs() < 0.03,
            "{mean} {cv}"
        );
        for expected in [0.3, 1.0, 2.0, 4.0] {
            let (mean, cv) = mean_and_cv(|| rng.gamma(expected));
            assert!((mean - 1.0).abs() < 0.08, "{mean} of cv {expected}");
            assert!((cv / expected - 1.0).abs() < 0.1, "{cv} for {expected}");
        }
        let (mean, _) = mean_and_cv(|| rng.below(11) as f64);
        assert!((mean - 5.0).abs() < 0.1, "{mean}");
    }
}
