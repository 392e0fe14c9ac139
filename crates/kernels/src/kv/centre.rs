//! A mean key and value for each head, from which others are kept.
//!
//! Softmax does not see what all keys of a head have in common, and a mean of values moves with
//! them: so both may be taken off before rounding, and nothing else changes but that.

use super::{KvPages, KvShape, PageHead};
use crate::PAGE_TOKENS;

/// What is taken off keys and values before they are stored.
#[derive(Debug, Clone, PartialEq)]
pub struct KvCentre {
    shape: KvShape,
    /// `[layer][head][k_dim]`
    keys: Vec<f32>,
    /// `[layer][head][v_dim]`; empty where the value lies in the key.
    values: Vec<f32>,
}

impl KvCentre {
    /// The mean of the first `tokens` tokens of pages of f32, in the order of pages; 0 where
    /// that is not finite.
    ///
    /// # Panics
    /// When there are fewer tokens, or the pages are of another type.
    pub fn of(pages: &KvPages, tokens: usize) -> KvCentre {
        let shape = pages.shape();
        let mut centre = KvCentre {
            shape,
            keys: Vec::new(),
            values: Vec::new(),
        };
        let mean = |read: &dyn Fn(u32, usize) -> f32| {
            let at = |token: usize| read((token / PAGE_TOKENS) as u32, token % PAGE_TOKENS);
            let sum: f64 = (0..tokens).map(|token| f64::from(at(token))).sum();
            let mean = (sum / tokens as f64) as f32;
            if mean.is_finite() { mean } else { 0.0 }
        };
        let plain = |head| match head {
            PageHead::F32(x) => x,
            _ => panic!("the mean of pages of f32"),
        };
        for (layer, head) in (0..pages.layers()).flat_map(|l| (0..shape.heads).map(move |h| (l, h)))
        {
            for d in 0..shape.k_dim {
                let key = |page, slot| plain(pages.keys(layer, page, head))[d * PAGE_TOKENS + slot];
                centre.keys.push(mean(&key));
            }
            for d in (0..shape.v_dim).filter(|_| !shape.v_in_k) {
                let value =
                    |page, slot| plain(pages.values(layer, page, head))[slot * shape.v_dim + d];
                centre.values.push(mean(&value));
            }
        }
        centre
    }

    /// A layer's mean keys, `[heads, k_dim]`. Any are right, if they do not depend on the token;
    /// near ones are good. With values in keys, these are the values' too.
    pub fn keys_mut(&mut self, layer: usize) -> &mut [f32] {
        let width = self.shape.heads * self.shape.k_dim;
        &mut self.keys[layer * width..][..width]
    }

    pub(super) fn fits(&self, layers: usize, shape: KvShape) -> bool {
        self.shape == shape && self.keys.len() == layers * shape.heads * shape.k_dim
    }

    /// A head's mean key.
    pub(super) fn key(&self, layer: usize, head: usize) -> &[f32] {
        let at = (layer * self.shape.heads + head) * self.shape.k_dim;
        &self.keys[at..][..self.shape.k_dim]
    }

    /// A head's mean value.
    pub(super) fn value(&self, layer: usize, head: usize) -> &[f32] {
        if self.shape.v_in_k {
            return &self.key(layer, head)[..self.shape.v_dim];
        }
        let at = (layer * self.shape.heads + head) * self.shape.v_dim;
        &self.values[at..][..self.shape.v_dim]
    }
}
