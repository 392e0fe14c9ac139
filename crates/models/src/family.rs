//! Fine-tunes of one architecture in one model: weights that are equal are held once, and a
//! batch's rows are split only where their members differ.

use sedge_kernels::{Matrix, Weight};

use crate::tensors::TensorError;
use crate::weights::{Experts, FeedForward, Gated, LayerWeights, Linear, Projections, Weights};

/// The parts of a layer that a step computes with one set of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Norm, queries, keys and values.
    Project,
    /// What brings attention's result back.
    Output,
    /// The feed-forward block with its norms.
    FeedForward,
}

/// Members' weights, and which of them are the same.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) members: Vec<Weights>,
    /// For each layer and [`Stage`] the first member with each member's weights.
    stages: Vec<[Vec<usize>; 3]>,
    /// The same of the last norm and the output head.
    heads: Vec<usize>,
}

/// Why a model cannot join others.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It is of another shape.
    #[error("the models differ in shape or rules: they can be served side by side, not as one")]
    Shape,
    /// Only decoders do.
    #[error("encoders are not served as one")]
    Encoder,
    /// The weights were packed before.
    #[error("models join before their weights are packed")]
    Packed,
    /// A tensor could not be read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl Family {
    pub(crate) fn of(weights: Weights) -> Family {
        let layers = weights.layers.len();
        Family {
            members: vec![weights],
            stages: vec![[vec![0], vec![0], vec![0]]; layers],
            heads: vec![0],
        }
    }

    /// Takes a further member; what equals an earlier one's becomes that. Its number.
    pub(crate) fn join(&mut self, mut new: Weights) -> usize {
        for member in &mut self.members {
            unify(member, &mut new);
        }
        let number = self.members.len();
        self.members.push(new);
        let first = |same: &dyn Fn(&Weights, &Weights) -> bool| {
            let new = &self.members[number];
            let found = self.members.iter().position(|member| same(member, new));
            found.unwrap_or(number)
        };
        let stages: Vec<[usize; 3]> = (0..self.stages.len())
            .map(|layer| {
                let of = |same: fn(&LayerWeights, &LayerWeights) -> bool| {
                    first(&|a, b| same(&a.layers[layer], &b.layers[layer]))
                };
                [of(same_projections), of(same_output), of(same_feed_forward)]
            })
            .collect();
        let head = first(&|a, b| a.norm == b.norm && a.head.is(&b.head));
        for (stages, new) in self.stages.iter_mut().zip(stages) {
            for (stage, new) in stages.iter_mut().zip(new) {
                stage.push(new);
            }
        }
        self.heads.push(head);
        number
    }

    /// The first member with the same weights of a stage.
    pub(crate) fn first(&self, layer: usize, stage: Stage, member: usize) -> usize {
        self.stages[layer][stage as usize][member]
    }

    /// The first member with the same head.
    pub(crate) fn first_head(&self, member: usize) -> usize {
        self.heads[member]
    }
}

/// Lets `new` share the memory of what is equal in `old`.
fn unify(old: &mut Weights, new: &mut Weights) {
    for (old, new) in old.matrices().into_iter().zip(new.matrices()) {
        match (old, new) {
            (Place::Weight(old), Place::Weight(new)) => {
                if let (Weight::Stored(a), Weight::Stored(b)) = (&*old, &*new)
                    && equal(a, b)
                {
                    *new = old.clone();
                }
            }
            (Place::Matrix(old), Place::Matrix(new)) if equal(old, new) => *new = old.clone(),
            _ => {}
        }
    }
}

fn equal(a: &Matrix, b: &Matrix) -> bool {
    let shape = |m: &Matrix| (m.dtype(), m.rows(), m.cols());
    let place = |m: &Matrix| (m.bytes().as_ptr(), m.bytes().len());
    shape(a) == shape(b) && (place(a) == place(b) || a.bytes() == b.bytes())
}

/// A matrix of a model.
pub(crate) enum Place<'a> {
    Weight(&'a mut Weight),
    Matrix(&'a mut Matrix),
}

impl Weights {
    /// All matrices, in an order that the configuration fixes.
    pub(crate) fn matrices(&mut self) -> Vec<Place<'_>> {
        let mut all: Vec<Place<'_>> = Vec::new();
        all.extend(self.embeddings.as_mut().map(Place::Matrix));
        all.push(Place::Weight(&mut self.head.weight));
        for layer in &mut self.layers {
            all.extend(layer.matrices());
        }
        all
    }
}

impl LayerWeights {
    /// The layer's matrices, in an order that the configuration fixes.
    pub(crate) fn matrices(&mut self) -> Vec<Place<'_>> {
        let mut all: Vec<Place<'_>> = Vec::new();
        match &mut self.projections {
            Projections::Heads { q, k, v, .. } => {
                all.extend([q, k, v].map(|l| Place::Weight(&mut l.weight)));
            }
            Projections::Latent(l) => {
                all.extend(l.q_down.as_mut().map(|(l, _)| Place::Weight(&mut l.weight)));
                all.extend([&mut l.q, &mut l.kv_down].map(|l| Place::Weight(&mut l.weight)));
                let heads = l.q_to_latent.iter_mut().chain(&mut l.latent_to_v);
                all.extend(heads.map(Place::Matrix));
            }
        }
        all.push(Place::Weight(&mut self.output.weight));
        match &mut self.ffn {
            FeedForward::Dense(g) => all.extend(of_gated(g)),
            FeedForward::Experts(e) => {
                all.push(Place::Matrix(&mut e.router));
                for g in e.experts.iter_mut().chain(&mut e.shared) {
                    all.extend(of_gated(g));
                }
                all.extend(e.shared_gate.as_mut().map(Place::Matrix));
            }
        }
        all
    }
}

fn of_gated(g: &mut Gated) -> [Place<'_>; 3] {
    [&mut g.gate, &mut g.up, &mut g.down].map(|l| Place::Weight(&mut l.weight))
}

impl Linear {
    /// Whether both are the same memory, and equal biases.
    fn is(&self, other: &Linear) -> bool {
        self.weight.is(&other.weight) && self.bias == other.bias
    }
}

impl Gated {
    fn is(&self, other: &Gated) -> bool {
        self.gate.is(&other.gate) && self.up.is(&other.up) && self.down.is(&other.down)
    }
}

fn same_projections(a: &LayerWeights, b: &LayerWeights) -> bool {
    let same = match (&a.projections, &b.projections) {
        (
            Projections::Heads {
                q,
                k,
                v,
                q_norm,
                k_norm,
            },
            Projections::Heads {
                q: q2,
                k: k2,
                v: v2,
                q_norm: q_norm2,
                k_norm: k_norm2,
            },
        ) => q.is(q2) && k.is(k2) && v.is(v2) && q_norm == q_norm2 && k_norm == k_norm2,
        (Projections::Latent(a), Projections::Latent(b)) => {
            let down = match (&a.q_down, &b.q_down) {
                (None, None) => true,
                (Some((a, norm)), Some((b, norm2))) => a.is(b) && norm == norm2,
                _ => false,
            };
            let heads = |a: &[Matrix], b: &[Matrix]| a.iter().zip(b).all(|(a, b)| equal(a, b));
            down && a.q.is(&b.q)
                && a.kv_down.is(&b.kv_down)
                && a.kv_norm == b.kv_norm
                && heads(&a.q_to_latent, &b.q_to_latent)
        }
        _ => false,
    };
    same && a.attention_norm == b.attention_norm
}

fn same_output(a: &LayerWeights, b: &LayerWeights) -> bool {
    let heads = match (&a.projections, &b.projections) {
        (Projections::Latent(a), Projections::Latent(b)) => {
            let mut heads = a.latent_to_v.iter().zip(&b.latent_to_v);
            heads.all(|(a, b)| equal(a, b))
        }
        _ => true,
    };
    heads && a.output.is(&b.output) && a.post_attention_norm == b.post_attention_norm
}

fn same_feed_forward(a: &LayerWeights, b: &LayerWeights) -> bool {
    let same = match (&a.ffn, &b.ffn) {
        (FeedForward::Dense(a), FeedForward::Dense(b)) => a.is(b),
        (FeedForward::Experts(a), FeedForward::Experts(b)) => same_experts(a, b),
        _ => false,
    };
    same && a.ffn_norm == b.ffn_norm && a.post_ffn_norm == b.post_ffn_norm
}

fn same_experts(a: &Experts, b: &Experts) -> bool {
    let gates = match (&a.shared_gate, &b.shared_gate) {
        (None, None) => true,
        (Some(a), Some(b)) => equal(a, b),
        _ => false,
    };
    let mut pairs = a.experts.iter().chain(&a.shared).zip(b.experts.iter().chain(&b.shared));
    gates && equal(&a.router, &b.router) && pairs.all(|(a, b)| a.is(b))
}
