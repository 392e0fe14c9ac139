//! Random weights that behave as trained ones do: whatever the depth, each channel's values have
//! a spread of order 1 before its activation, no channel is dead, and channels differ.
//!
//! A trained batch norm subtracts what a channel is on average and divides by how far it varies.
//! Here both are known without running the network: mean and variance of each channel are carried
//! through the graph, values taken to be normally distributed and independent.

use std::collections::HashMap;

use crate::graph::{Graph, Value};
use crate::op::{Activation, Binary, Op, Pool, Reduction, Weights};

/// Replaces weights and biases of all convolutions and linear products with random ones. Equal
/// seeds and names of nodes give equal weights.
pub fn randomize(graph: &mut Graph, seed: u64) {
    let channels = |value: Value| graph.shape(value).get(1).copied().unwrap_or(1);
    let sizes: Vec<usize> = graph.nodes().iter().map(|x| channels(x.output)).collect();
    let mut known: HashMap<Value, Moments> = HashMap::new();
    for &input in graph.inputs() {
        known.insert(input, Moments::unit(channels(input)));
    }
    for (node, channels) in graph.nodes_mut().zip(sizes) {
        let inputs: Vec<&Moments> = node.inputs.iter().filter_map(|x| known.get(x)).collect();
        let mut random = Random::new(seed, &node.name);
        let made = fill(&mut node.op, &inputs, &mut random)
            .filter(|made| made.0.len() == channels)
            .unwrap_or_else(|| Moments::unit(channels));
        known.insert(node.output, made);
    }
}

/// Mean and variance of each channel.
#[derive(Clone)]
struct Moments(Vec<(f64, f64)>);

impl Moments {
    fn unit(channels: usize) -> Moments {
        Moments(vec![(0.0, 1.0); channels])
    }

    fn after(mut self, activation: Activation) -> Moments {
        for (mean, var) in &mut self.0 {
            (*mean, *var) = activated(activation, *mean, *var);
        }
        self
    }

    fn with(
        mut self,
        other: &Moments,
        f: impl Fn((f64, f64), (f64, f64)) -> (f64, f64),
    ) -> Moments {
        for (a, &b) in self.0.iter_mut().zip(&other.0) {
            *a = f(*a, b);
        }
        self
    }
}

fn sum(a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    (a.0 + b.0, a.1 + b.1)
}

fn product(a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    let mean = a.0 * b.0;
    let square = (a.1 + a.0 * a.0) * (b.1 + b.0 * b.0);
    (mean, square - mean * mean)
}

/// Gives an operation its weights, and says what it makes; `None` when that is not known.
fn fill(op: &mut Op, inputs: &[&Moments], random: &mut Random) -> Option<Moments> {
    let x = *inputs.first()?;
    match op {
        Op::Conv(conv) => {
            let (weights, bias, mut made) =
                normed(x, conv.outputs, conv.groups, conv.window.taps(), random)?;
            conv.weights = weights;
            conv.bias = bias.into();
            if let Some(add) = inputs.get(1) {
                made = made.with(add, sum);
            }
            Some(made.after(conv.activation))
        }
        Op::Linear {
            weights,
            bias,
            outputs,
            activation,
        } if weights.len() == *outputs * x.0.len() => {
            let (new, shift, made) = normed(x, *outputs, 1, 1, random)?;
            *weights = new;
            *bias = shift.into();
            Some(made.after(*activation))
        }
        Op::Scale(activation) => Some(x.clone().with(inputs.get(1)?, product).after(*activation)),
        Op::Binary(binary, activation) => {
            let both = match binary {
                Binary::Add => sum,
                Binary::Mul => product,
                _ => return None,
            };
            Some(x.clone().with(inputs.get(1)?, both).after(*activation))
        }
        Op::Activation(activation) => Some(x.clone().after(*activation)),
        Op::Concat(1) => Some(Moments(inputs.iter().flat_map(|x| x.0.clone()).collect())),
        // The greatest of some neighbours, which are much alike.
        Op::Pool(Pool::Max, _) => Some(Moments(
            x.0.iter().map(|&(m, v)| (m + v.sqrt(), v)).collect(),
        )),
        Op::Pool(Pool::Average { .. }, _)
        | Op::Reduce {
            reduction: Reduction::Mean,
            ..
        }
        | Op::Resize { .. }
        | Op::Reshape(_)
        | Op::Expand(_)
        | Op::Round => Some(x.clone()),
        _ => None,
    }
}

/// Weights `[outputs, inputs / groups, taps]`, a bias, and what they make of the input: a spread
/// around 1 and a mean around 0 that differ from channel to channel.
fn normed(
    x: &Moments,
    outputs: usize,
    groups: usize,
    taps: usize,
    random: &mut Random,
) -> Option<(Weights, Vec<f32>, Moments)> {
    let reads = x.0.len() / groups;
    let each = outputs / groups;
    if reads == 0 || each == 0 {
        return None;
    }
    let mut weights = Vec::with_capacity(outputs * reads * taps);
    let mut bias = Vec::with_capacity(outputs);
    let mut made = Vec::with_capacity(outputs);
    for output in 0..outputs {
        let start = weights.len();
        weights.extend((0..reads * taps).map(|_| random.normal()));
        let row = &mut weights[start..];
        let seen = &x.0[output / each * reads..][..reads];
        let (mut mean, mut var) = (0.0, 0.0);
        for (&(m, v), taps) in seen.iter().zip(row.chunks_exact(taps)) {
            for &w in taps {
                mean += f64::from(w) * m;
                var += f64::from(w * w) * v;
            }
        }
        let spread = (0.3 * f64::from(random.normal())).exp();
        let shift = 0.4 * spread * f64::from(random.normal());
        let scale = spread / (var + 1e-5).sqrt();
        row.iter_mut().for_each(|w| *w *= scale as f32);
        bias.push((shift - mean * scale) as f32);
        made.push((shift, spread * spread));
    }
    Some((Weights::Float(weights.into()), bias, Moments(made)))
}

/// Mean and variance of a function of a normal variable, by a sum over its density.
fn activated(activation: Activation, mean: f64, var: f64) -> (f64, f64) {
    if activation == Activation::Identity {
        return (mean, var);
    }
    const STEPS: i32 = 24;
    let (mut weight, mut first, mut second) = (0.0, 0.0, 0.0);
    for step in -STEPS..=STEPS {
        let z = f64::from(step) * 4.0 / f64::from(STEPS);
        let density = (-0.5 * z * z).exp();
        let y = f64::from(activation.of((mean + z * var.sqrt()) as f32));
        weight += density;
        first += density * y;
        second += density * y * y;
    }
    let mean = first / weight;
    (mean, (second / weight - mean * mean).max(0.0))
}

/// Random numbers: the sequence of splitmix64.
struct Random(u64);

impl Random {
    fn new(seed: u64, name: &str) -> Random {
        // FNV-1a, so that a layer's numbers do not depend on the layers before it.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Random(seed ^ hash)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Mean 0, variance 1: the sum of four uniform numbers, which is near enough to normal.
    fn normal(&mut self) -> f32 {
        let x = self.next();
        let sum: u64 = (0..4).map(|i| x >> (16 * i) & 0xffff).sum();
        (sum as f32 / 65_535.0 - 2.0) * 3f32.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_mean_0_and_variance_1() {
        let mut random = Random::new(1, "x");
        let values: Vec<f64> = (0..50_000).map(|_| f64::from(random.normal())).collect();
        let mean = values.iter().sum::<f64>() / 5e4;
        let var = values.iter().map(|x| x * x).sum::<f64>() / 5e4;
        assert!(
            mean.abs() < 0.02 && (var - 1.0).abs() < 0.03,
            "{mean} {var}"
        );
    }

    #[test]
    fn moments_of_relu_are_those_of_half_a_normal() {
        let (mean, var) = activated(Activation::Relu, 0.0, 1.0);
        let expected = 1.0 / (2.0 * std::f64::consts::PI).sqrt();
        assert!((mean - expected).abs() < 2e-3, "{mean}");
        assert!((var - (0.5 - expected * expected)).abs() < 2e-3, "{var}");
    }
}
