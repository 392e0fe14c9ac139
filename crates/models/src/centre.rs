//! A model's mean keys and values, from which those of few bits are kept.

use sedge_kernels::{KvCentre, KvPages, KvType, PAGE_TOKENS, Team, rotate};

use crate::batch::{Batch, Outputs};
use crate::config::Rope;
use crate::decoder::{Decoder, Scratch};

/// Tokens that the mean is of.
const TOKENS: usize = 256;

/// Places in the context to which their mean is moved.
const PLACES: usize = 1024;

impl Decoder {
    /// The mean key and value of each layer and head over tokens from all of the vocabulary, as
    /// they would be anywhere in a sequence of `context` positions. Takes a forward pass of 256
    /// tokens.
    ///
    /// What turns often within the context has no mean there and gets none. Where scores are
    /// capped, softmax sees what keys have in common, so keys get none at all.
    pub fn kv_centre(&self, team: &Team, context: usize) -> KvCentre {
        let c = &self.config;
        let tokens = TOKENS.min(context).max(1);
        let pages = tokens.div_ceil(PAGE_TOKENS);
        let mut kv = KvPages::new(c.layers.len(), pages, c.kv_shape(), KvType::F32);
        let spread_out: Vec<u32> = (0..tokens).map(|i| token(i, c.vocab)).collect();
        let mut batch = Batch::default();
        batch.push_sequence(&spread_out);
        let (mut scratch, mut out) = (Scratch::default(), Outputs::default());
        self.forward(team, &batch, &mut kv, &mut scratch, &mut out);
        let mut centre = KvCentre::of(&kv, tokens);
        // Where a key's part knows its position: all of it, or the end of a latent one.
        let (dim, first) = c.latent.map_or((c.head_dim, 0), |l| (l.rope, l.kv_rank));
        for (index, layer) in c.layers.iter().enumerate() {
            let keys = centre.keys_mut(index);
            if c.attention_softcap.is_some() {
                keys.fill(0.0);
            } else if let Some(rope) = layer.rope {
                let (cos, sin) = spread(&c.ropes[rope], context);
                for key in keys.chunks_exact_mut(c.kv_shape().k_dim) {
                    let key = &mut key[first..][..dim];
                    rotate(key, 1, dim, &cos, &sin, cos.len(), c.rope_style);
                }
            }
        }
        centre
    }
}

/// Numbers from 0 to 1, spread evenly and without a period: multiples of the golden ratio.
fn even(i: usize) -> f64 {
    (i as f64 * 0.618_033_988_749_895).fract()
}

/// A token about as frequent as in texts: vocabularies are mostly in the order in which their
/// merges were learnt, the most frequent first, and frequencies follow Zipf's law with
/// Mandelbrot's offset, here that of the bytes before the merges.
fn token(i: usize, vocab: usize) -> u32 {
    const OFFSET: f64 = 256.0;
    let place = OFFSET * ((vocab as f64 + OFFSET) / OFFSET).powf(even(i)) - OFFSET;
    (place as usize).min(vocab - 1) as u32
}

/// Mean cosine and sine of each pair's angles over places in the context: rotating by them is the
/// mean of all those rotations.
fn spread(rope: &Rope, context: usize) -> (Vec<f32>, Vec<f32>) {
    let place = |i: usize| even(i) * context as f64;
    let mean = |f: &f32, of: fn(f64) -> f64| {
        let sum: f64 = (0..PLACES).map(|i| of(f64::from(*f) * place(i))).sum();
        (sum / PLACES as f64) as f32
    };
    let all = |of| rope.frequencies.iter().map(|f| mean(f, of)).collect();
    (all(f64::cos), all(f64::sin))
}
