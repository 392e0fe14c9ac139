//! Random numbers, for sampling and for measuring.
//! A seed gives the same numbers on every machine and in every release.

/// xoshiro256++ 1.0 of Blackman and Vigna, its state filled by SplitMix64.
#[derive(Debug, Clone)]
pub struct Rng([u64; 4]);

impl Rng {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Rng {
        let mut counter = seed;
        Rng([(); 4].map(|()| split_mix(&mut counter)))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.0;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let carry = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= carry;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// Uniform in [0, 1), all 53 bits of a double's fraction.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Advances a counter and mixes it well: also turns consecutive numbers into unlike seeds.
pub(crate) fn split_mix(counter: &mut u64) -> u64 {
    *counter = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *counter;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Both lists were printed by the authors' C programs (prng.di.unimi.it).
    #[test]
    fn numbers_are_those_of_the_reference_implementations() {
        let mut counter = 1_477_776_061_723_855_037;
        let mixed = [(); 3].map(|()| split_mix(&mut counter));
        assert_eq!(
            mixed,
            [
                1_985_237_415_132_408_290,
                2_979_275_885_539_914_483,
                13_511_426_838_097_143_398
            ]
        );

        let mut rng = Rng([1, 2, 3, 4]);
        let drawn = [(); 6].map(|()| rng.bits());
        let expected = [
            41_943_041,
            58_720_359,
            3_588_806_011_781_223,
            3_591_011_842_654_386,
            9_228_616_714_210_784_205,
            9_973_669_472_204_895_162,
        ];
        assert_eq!(drawn, expected);
    }

    #[test]
    fn a_seed_always_gives_the_same_numbers() {
        let mut rng = Rng::new(7);
        let drawn = [(); 3].map(|()| rng.bits());
        let mut again = Rng::new(7);
        assert_eq!(drawn, [(); 3].map(|()| again.bits()));
        assert!(
            (0..1000)
                .map(|_| rng.unit())
                .all(|u| (0.0..1.0).contains(&u))
        );
    }
}
