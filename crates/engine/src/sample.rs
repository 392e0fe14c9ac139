//! How the next token is chosen from a row of logits.
//! Equal logits, settings and seed give equal tokens; nothing else enters the choice.

use std::collections::{HashMap, HashSet};

use crate::Sampling;
use crate::logprob::{BadLogits, peak, strongest};
use crate::rng::Rng;
use crate::softmax::{BLOCK, exp, sum, total};

/// One request's choice of tokens and what it remembers.
#[derive(Debug)]
pub(crate) struct Sampler {
    settings: Sampling,
    rng: Rng,
    /// How often each token was generated.
    generated: HashMap<u32, u32>,
    /// Tokens of prompt and answer, kept while a repetition penalty needs them.
    seen: HashSet<u32>,
}

impl Sampler {
    /// `seed` is used where the settings have none.
    pub(crate) fn new(settings: Sampling, prompt: &[u32], seed: u64) -> Sampler {
        let rng = Rng::new(settings.seed.unwrap_or(seed));
        let seen = if settings.repetition_penalty == 1.0 {
            HashSet::new()
        } else {
            prompt.iter().copied().collect()
        };
        Sampler {
            settings,
            rng,
            generated: HashMap::new(),
            seen,
        }
    }

    /// Chooses a token, in this order: repetition penalty, frequency and presence penalties,
    /// bias, temperature, then `top_k` and `min_p`, then `top_p` over what those kept. Rules
    /// tokens out beforehand with −∞. `logits` is changed.
    pub(crate) fn choose(&mut self, logits: &mut [f32]) -> Result<u32, BadLogits> {
        self.adjust(logits);
        let (best, max) = peak(logits)?;
        let s = &self.settings;
        let chosen = if s.temperature == 0.0 || s.top_k == 1 {
            best
        } else {
            // With top_k only few tokens are looked at, the strongest first; else all, by number.
            let few = (1..logits.len())
                .contains(&s.top_k)
                .then(|| strongest(logits, s.top_k));
            let mut values: Vec<f32> = few.iter().flatten().map(|f| f.0).collect();
            let weights = if few.is_some() {
                &mut values[..]
            } else {
                logits
            };
            for value in weights.iter_mut() {
                let weight = exp((*value - max) / s.temperature);
                *value = if weight < s.min_p { 0.0 } else { weight };
            }
            if s.top_p < 1.0 {
                cut(weights, f64::from(s.top_p) * total(weights));
            }
            let at = draw(weights, self.rng.unit());
            few.map_or(at, |few| few[at].1 as usize)
        };
        let chosen = chosen as u32;
        self.remember(chosen);
        Ok(chosen)
    }

    fn remember(&mut self, token: u32) {
        let s = &self.settings;
        if s.presence_penalty != 0.0 || s.frequency_penalty != 0.0 {
            *self.generated.entry(token).or_insert(0) += 1;
        }
        if s.repetition_penalty != 1.0 {
            self.seen.insert(token);
        }
    }

    /// Penalties and bias. The order among tokens does not matter: each is changed by itself.
    fn adjust(&self, logits: &mut [f32]) {
        let s = &self.settings;
        for &token in &self.seen {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 {
                    *logit / s.repetition_penalty
                } else {
                    *logit * s.repetition_penalty
                };
            }
        }
        for (&token, &times) in &self.generated {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit -= s.presence_penalty + s.frequency_penalty * times as f32;
            }
        }
        for &(token, bias) in &s.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
    }
}

/// Keeps the heaviest tokens, the first of equals first, and as few as together weigh `quota`;
/// at least one. The others' weights become 0. Weights are from 0 to 1.
///
/// Sorts only the few tokens near the border: a histogram over the leading bits of the weights
/// says where that is.
fn cut(weights: &mut [f32], quota: f64) {
    /// Keeps the exponent and five bits of the fraction.
    const SHIFT: u32 = 18;
    const BINS: usize = (1.0f32.to_bits() >> SHIFT) as usize + 1;
    let bin = |weight: f32| ((weight.to_bits() >> SHIFT) as usize).min(BINS - 1);
    let mut sums = [0.0; BINS];
    for &weight in weights.iter().filter(|&&w| w > 0.0) {
        sums[bin(weight)] += f64::from(weight);
    }
    let mut above = 0.0;
    let border = (0..BINS).rev().find(|&b| {
        above += sums[b];
        sums[b] > 0.0 && above >= quota
    });
    let Some(border) = border else { return };
    above -= sums[border];
    let mut near: Vec<(f32, usize)> = weights
        .iter()
        .enumerate()
        .filter(|&(_, &w)| w > 0.0 && bin(w) == border)
        .map(|(i, &w)| (w, i))
        .collect();
    near.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let last = near.iter().find(|&&(weight, _)| {
        above += f64::from(weight);
        above >= quota
    });
    // Rounding may leave the sum just short of the quota: then all near the border stay.
    let Some(&(least, last)) = last.or(near.last()) else {
        return;
    };
    for (i, weight) in weights.iter_mut().enumerate() {
        if *weight < least || (*weight == least && i > last) {
            *weight = 0.0;
        }
    }
}

/// The index at which the running sum of the weights passes the share `u` of their total.
fn draw(weights: &[f32], u: f64) -> usize {
    let mark = u * total(weights);
    let mut passed = 0.0;
    let mut last = 0;
    for (block, start) in weights.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
        let here = sum(block);
        if let Some(index) = block.iter().rposition(|&w| w > 0.0) {
            last = start + index;
        }
        if passed + here > mark {
            let mut running = passed;
            let found = block.iter().position(|&weight| {
                running += f64::from(weight);
                running > mark
            });
            return found.map_or(last, |index| start + index);
        }
        passed += here;
    }
    last
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Rng;

    fn sampler(settings: Sampling) -> Sampler {
        Sampler::new(settings, &[], 1)
    }

    /// The distribution that the settings ask for: sorts everything, in doubles.
    fn exact(logits: &[f32], s: &Sampling) -> Vec<f64> {
        let mut sorted: Vec<(f64, usize)> = logits
            .iter()
            .enumerate()
            .map(|(i, &x)| (f64::from(x) / f64::from(s.temperature), i))
            .collect();
        sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
        let max = sorted[0].0;
        let mut sorted: Vec<(f64, usize)> = sorted
            .into_iter()
            .map(|(x, i)| ((x - max).exp(), i))
            .collect();
        if s.top_k > 0 {
            sorted.truncate(s.top_k);
        }
        sorted.retain(|p| p.0 >= f64::from(s.min_p));
        let total: f64 = sorted.iter().map(|p| p.0).sum();
        let mut mass = 0.0;
        let last = sorted.iter().position(|p| {
            mass += p.0;
            mass >= f64::from(s.top_p) * total
        });
        sorted.truncate(last.map_or(sorted.len(), |l| l + 1));
        let total: f64 = sorted.iter().map(|p| p.0).sum();
        let mut out = vec![0.0; logits.len()];
        for (p, i) in sorted {
            out[i] = p / total;
        }
        out
    }

    fn row(n: usize, spread: f32) -> Vec<f32> {
        let mut rng = Rng::new(n as u64);
        (0..n).map(|_| (rng.unit() as f32 - 0.5) * spread).collect()
    }

    #[test]
    fn drawn_shares_are_the_exact_probabilities() {
        let d = Sampling::default();
        let cases = [
            Sampling {
                temperature: 0.7,
                ..d.clone()
            },
            Sampling {
                top_k: 5,
                ..d.clone()
            },
            Sampling {
                top_p: 0.6,
                temperature: 1.5,
                ..d.clone()
            },
            Sampling {
                min_p: 0.2,
                ..d.clone()
            },
            Sampling {
                top_k: 20,
                top_p: 0.8,
                min_p: 0.05,
                temperature: 0.9,
                ..d.clone()
            },
            Sampling { top_p: 0.0, ..d },
        ];
        const DRAWS: usize = 20_000;
        for logits in [row(12, 4.0), row(1000, 12.0)] {
            for settings in &cases {
                let expected = exact(&logits, settings);
                let mut sampler = sampler(settings.clone());
                let mut seen = vec![0usize; logits.len()];
                for _ in 0..DRAWS {
                    seen[sampler.choose(&mut logits.clone()).unwrap() as usize] += 1;
                }
                for (i, (&n, &p)) in seen.iter().zip(&expected).enumerate() {
                    assert!(
                        n == 0 || p > 0.0,
                        "{settings:?} drew token {i}, which it must not keep"
                    );
                    // Five standard deviations, and a little for rare tokens.
                    let tolerance = 5.0 * (DRAWS as f64 * p * (1.0 - p)).sqrt() + 3.0;
                    let off = (n as f64 - p * DRAWS as f64).abs();
                    assert!(
                        off <= tolerance,
                        "{settings:?}: token {i} came {n} times, expected {}",
                        p * DRAWS as f64
                    );
                }
            }
        }
    }

    #[test]
    fn zero_temperature_takes_the_first_of_equals() {
        let mut s = sampler(Sampling {
            temperature: 0.0,
            ..Sampling::default()
        });
        assert_eq!(s.choose(&mut [1.0, 5.0, 5.0, 0.0]), Ok(1));
    }

    #[test]
    fn a_seed_gives_these_tokens_in_every_release() {
        let logits = row(50, 6.0);
        let mut plain = sampler(Sampling {
            seed: Some(42),
            ..Sampling::default()
        });
        let tokens: Vec<u32> = (0..12)
            .map(|_| plain.choose(&mut logits.clone()).unwrap())
            .collect();
        let mut nucleus = sampler(Sampling {
            seed: Some(42),
            top_p: 0.9,
            top_k: 40,
            ..Sampling::default()
        });
        let more: Vec<u32> = (0..12)
            .map(|_| nucleus.choose(&mut logits.clone()).unwrap())
            .collect();
        assert_eq!((tokens, more), (PLAIN.to_vec(), NUCLEUS.to_vec()));
    }
    const PLAIN: [u32; 12] = [36, 11, 49, 31, 34, 22, 2, 22, 8, 49, 20, 43];
    const NUCLEUS: [u32; 12] = [17, 0, 18, 34, 5, 11, 19, 10, 31, 12, 11, 22];

    #[test]
    fn penalties_and_bias_change_the_logits_as_documented() {
        let settings = Sampling {
            temperature: 0.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            repetition_penalty: 2.0,
            logit_bias: vec![(3, 10.0), (9, 1.0)],
            ..Sampling::default()
        };
        let mut s = Sampler::new(settings, &[1, 99], 0);
        let mut logits = [4.0, 3.0, -1.0, -8.0];
        assert_eq!(s.choose(&mut logits), Ok(0));
        assert_eq!(logits, [4.0, 1.5, -1.0, 2.0]);
        s.remember(0);
        s.remember(2);
        let mut logits = [4.0, 3.0, -1.0, -8.0];
        assert_eq!(s.choose(&mut logits), Ok(3));
        assert_eq!(logits, [4.0 / 2.0 - 1.0, 1.5, -2.0 - 0.75, 2.0]);
    }

    #[test]
    fn bad_logits_are_an_error() {
        let mut s = sampler(Sampling::default());
        assert_eq!(s.choose(&mut [0.0, f32::NAN]), Err(BadLogits));
        assert_eq!(s.choose(&mut [f32::NEG_INFINITY; 3]), Err(BadLogits));
    }

    proptest! {
        #[test]
        fn a_token_that_is_ruled_out_is_never_chosen(
            seed in any::<u64>(),
            logits in prop::collection::vec(prop_oneof![-90f32..90.0, Just(f32::NEG_INFINITY)], 1..200),
            temperature in prop_oneof![Just(0f32), 1e-38f32..1e-30, 0.1f32..3.0],
            top_k in 0usize..10, top_p in 0f32..=1.0, min_p in 0f32..=1.0,
        ) {
            let mut s = sampler(Sampling { temperature, top_k, top_p, min_p, seed: Some(seed), ..Sampling::default() });
            match s.choose(&mut logits.clone()) {
                Ok(token) => prop_assert!(logits[token as usize].is_finite()),
                Err(BadLogits) => prop_assert!(logits.iter().all(|x| x.is_infinite())),
            }
        }
    }
}
