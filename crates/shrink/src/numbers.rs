//! Random numbers that depend on nothing but their seed.

/// SplitMix64 (Steele et al., 2014).
#[derive(Debug, Clone)]
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Numbers {
        Numbers(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// Values that look like weights.
#[cfg(test)]
pub(crate) fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut numbers = Numbers::new(seed);
    let mut one = || (0..6).map(|_| numbers.unit() - 0.5).sum::<f32>() * 1.4;
    (0..n).map(|_| one()).collect()
}
