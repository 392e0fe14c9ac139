//! Fine-tunes of one architecture in one model: weights that are equal are held once, and a
//! batch's rows are split only where their members differ.

use std::collections::HashMap;

use sedge_kernels::{Matrix, Packer, Weight};

use crate::similar::Similar;
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
#[derive(Debug, Clone)]
pub(crate) struct Family {
    pub(crate) members: Vec<Weights>,
    /// Members that nobody is any more; their weights are the first one's.
    vacant: Vec<usize>,
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
            vacant: Vec::new(),
            stages: vec![[vec![0], vec![0], vec![0]]; layers],
            heads: vec![0],
        }
    }

    /// Takes a further member; what equals an earlier one's becomes that. Its number.
    pub(crate) fn join(&mut self, mut new: Weights) -> usize {
        for member in &mut self.members {
            unify(member, &mut new);
        }
        self.add(new)
    }

    /// Takes a further member, whose memory is what it is. Its number.
    pub(crate) fn add(&mut self, new: Weights) -> usize {
        if let Some(number) = self.vacant.pop() {
            self.members[number] = new;
            self.compare_from(number);
            return number;
        }
        let number = self.members.len();
        self.members.push(new);
        for stages in &mut self.stages {
            stages.iter_mut().for_each(|stage| stage.push(0));
        }
        self.heads.push(0);
        self.compare(number);
        number
    }

    /// Forgets a member; its number may be another's later.
    pub(crate) fn forget(&mut self, number: usize) {
        self.members[number] = self.members[0].clone();
        self.compare_from(number);
        self.vacant.push(number);
    }

    /// The same of one and of those after it, which may have shared with it.
    fn compare_from(&mut self, number: usize) {
        (number..self.members.len()).for_each(|number| self.compare(number));
    }

    /// Finds out with which earlier members one shares its weights.
    fn compare(&mut self, number: usize) {
        let (before, rest) = self.members.split_at(number);
        let new = &rest[0];
        let first =
            |same: &dyn Fn(&Weights) -> bool| before.iter().position(same).unwrap_or(number);
        for (layer, stages) in self.stages.iter_mut().enumerate() {
            let of = |same: fn(&LayerWeights, &LayerWeights) -> bool| {
                first(&|other| same(&other.layers[layer], &new.layers[layer]))
            };
            let firsts = [of(same_projections), of(same_output), of(same_feed_forward)];
            for (stage, first) in stages.iter_mut().zip(firsts) {
                stage[number] = first;
            }
        }
        self.heads[number] = first(&|other| other.norm == new.norm && other.head.is(&new.head));
    }

    /// Bytes of all members' matrices, of those that are shared once.
    pub(crate) fn bytes(&mut self) -> u64 {
        let mut seen = HashMap::new();
        for member in &mut self.members {
            for place in member.matrices() {
                let (place, bytes) = match place {
                    Place::Weight(w) => (w.place(), w.bytes()),
                    Place::Matrix(m) => (m.bytes().as_ptr(), m.bytes().len()),
                };
                seen.insert(place, bytes as u64);
            }
        }
        seen.values().sum()
    }

    /// Whether any product's weights of the first member are those of another model.
    pub(crate) fn shares_with(&mut self, other: &mut Weights) -> bool {
        let pairs = self.members[0].matrices().into_iter().zip(other.matrices());
        let mut weights = pairs.filter_map(|pair| match pair {
            (Place::Weight(a), Place::Weight(b)) => Some((a, b)),
            _ => None,
        });
        weights.any(|(a, b)| match (&*a, &*b) {
            (Weight::Stored(a), Weight::Stored(b)) => equal(a, b),
            _ => false,
        })
    }

    /// What is packed of all members.
    pub(crate) fn packer(&mut self) -> Packer<'_> {
        Packer::new(self.members.iter_mut().flat_map(Weights::packed))
    }

    /// Whether all of a member's layer is another's.
    pub(crate) fn has_layer_of(&self, member: usize, other: usize, layer: usize) -> bool {
        self.stages[layer]
            .iter()
            .all(|stage| stage[member] == stage[other])
    }

    /// Puts another member's layer in place of a member's own.
    pub(crate) fn substitute(&mut self, similar: &Similar) {
        let layer = self.members[similar.with].layers[similar.layer].clone();
        self.members[similar.member].layers[similar.layer] = layer;
        self.compare_from(similar.member);
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
    /// Whether both are the same memory, with equal biases and activations of equal bits.
    fn is(&self, other: &Linear) -> bool {
        self.weight.is(&other.weight)
            && self.bias == other.bias
            && self.activation_bits == other.activation_bits
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
    let mut pairs = a
        .experts
        .iter()
        .chain(&a.shared)
        .zip(b.experts.iter().chain(&b.shared));
    gates && equal(&a.router, &b.router) && pairs.all(|(a, b)| a.is(b))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, OnceLock};

    use sedge_kernels::{KvPages, KvType, PAGE_TOKENS, Segment, Team, dequantize, quantize};
    use tempfile::TempDir;

    use super::*;
    use crate::adapter::{Adapter, Change, LayerChange, LowRank, Part, Term};
    use crate::{Batch, Config, Mixture, Model, Outputs, Variant, Workspace, open, synth};

    /// The file of a model whose weights are packed, or the folder of one whose are not.
    fn place(packs: bool) -> PathBuf {
        static FILE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
        if !packs {
            return Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama");
        }
        let (_, file) = FILE.get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("m.gguf");
            synth("seedling", Mixture::Q4KM, 1, &file, &mut |_| {}).unwrap();
            (dir, file)
        });
        file.clone()
    }

    fn model(packs: bool) -> Model {
        open(&place(packs)).unwrap().model
    }

    /// A fine-tune in which one matrix of a layer is another.
    fn tuned(packs: bool, layer: usize, factor: f32) -> Model {
        let mut model = model(packs);
        let Model::Decoder(decoder) = &mut model else {
            unreachable!("a llama is a decoder")
        };
        let FeedForward::Dense(gated) = &mut decoder.family.members[0].layers[layer].ffn else {
            unreachable!("a llama is dense")
        };
        let Weight::Stored(w) = &gated.down.weight else {
            unreachable!("nothing is packed")
        };
        let mut values = vec![0.0; w.rows() * w.cols()];
        dequantize(w.dtype(), w.bytes(), &mut values).unwrap();
        values.iter_mut().for_each(|v| *v *= factor);
        let mut bytes = Vec::new();
        quantize(w.dtype(), &values, &mut bytes).unwrap();
        let other = Matrix::new(w.dtype(), w.rows(), w.cols(), bytes.into()).unwrap();
        gated.down.weight = other.into();
        model
    }

    /// An adapter that changes queries and `down` of the second layer.
    fn adapter(config: &Config, seed: u32, rank: usize) -> Arc<Adapter> {
        let factor = |rows: usize, cols: usize, seed: u32| {
            let number = |i: usize| {
                (i as u32)
                    .wrapping_mul(2_654_435_761)
                    .wrapping_add(seed * 97)
            };
            let values = (0..rows * cols).map(|i| (number(i) >> 20) as f32 / 4096.0 - 0.5);
            Matrix::from_f32(rows, cols, &values.collect::<Vec<_>>()).unwrap()
        };
        let change = |cols: usize, rows: usize| Change {
            terms: vec![Term::LowRank(LowRank {
                a: factor(rank, cols, seed).into(),
                between: vec![0.1; rank],
                b: factor(rank, rows, seed + 1).into(),
                after: None,
            })],
            ..Change::default()
        };
        let mut layers = vec![LayerChange::default(); config.layers.len()];
        let (hidden, inner) = (config.hidden, config.intermediate);
        layers[1].parts[Part::Q as usize] = Some(change(hidden, config.heads * config.head_dim));
        layers[1].parts[Part::Down as usize] = Some(change(inner, hidden));
        Arc::new(Adapter {
            layers,
            ..Adapter::default()
        })
    }

    struct Bench {
        model: Model,
        team: Team,
    }

    impl Bench {
        /// The last logits of some sequences, each `(variant, tokens)`, in one batch.
        fn logits(&self, sequences: &[(Variant, Vec<u32>)]) -> Vec<Vec<f32>> {
            let config = self.model.config();
            let pages = 4 * sequences.len();
            let mut kv = KvPages::new(config.layers.len(), pages, config.kv_shape(), KvType::F32);
            let mut batch = Batch::default();
            for (i, (variant, tokens)) in sequences.iter().enumerate() {
                let row = batch.tokens.len();
                batch.tokens.extend(tokens);
                batch.logits.push(batch.tokens.len() as u32 - 1);
                let pages = tokens.len().div_ceil(PAGE_TOKENS);
                let table = batch.tables.len();
                batch.tables.extend((0..pages).map(|p| (i * 4 + p) as u32));
                batch.segments.push(Segment {
                    rows: row..batch.tokens.len(),
                    position: 0,
                    pages: table..batch.tables.len(),
                });
                batch.variants.push(variant.clone());
            }
            let mut out = Outputs::default();
            let mut work = Workspace::default();
            self.model
                .forward(&self.team, &batch, &mut kv, &mut work, &mut out);
            out.logits
                .chunks(config.vocab)
                .map(<[f32]>::to_vec)
                .collect()
        }
    }

    /// Sequences of all members, with two adapters and without.
    fn sequences(config: &Config) -> Vec<(Variant, Vec<u32>)> {
        let adapters = [
            None,
            Some(adapter(config, 1, 4)),
            Some(adapter(config, 5, 7)),
        ];
        let sequence = |i: usize| {
            let variant = Variant {
                member: i % 3,
                adapter: adapters[i / 2 % 3].clone(),
            };
            let tokens = (0..5 + 4 * i).map(|t| (t * 37 + i * 11) as u32 % 512);
            (variant, tokens.collect())
        };
        (0..9).map(sequence).collect()
    }

    fn readied(mut model: Model, packs: bool, round: bool) -> Bench {
        let team = Team::new(2);
        if packs {
            model.pack(&team).unwrap();
        }
        model.round_prompts(round);
        Bench { model, team }
    }

    fn family(packs: bool, round: bool) -> Bench {
        let mut model = model(packs);
        assert_eq!(model.join(tuned(packs, 1, 1.5)).unwrap(), 1);
        assert_eq!(model.join(tuned(packs, 2, 0.5)).unwrap(), 2);
        readied(model, packs, round)
    }

    fn members_compute_what_each_computes_alone(packs: bool, round: bool) {
        let family = family(packs, round);
        let sequences = sequences(family.model.config());
        let together = family.logits(&sequences);
        for (sequence, together) in sequences.iter().zip(&together) {
            assert!(family.logits(std::slice::from_ref(sequence))[0] == *together);
        }
        for member in 0..3 {
            let alone = match member {
                0 => model(packs),
                1 => tuned(packs, 1, 1.5),
                _ => tuned(packs, 2, 0.5),
            };
            let alone = readied(alone, packs, round);
            for (sequence, together) in sequences.iter().zip(&together) {
                if sequence.0.member == member && sequence.0.adapter.is_none() {
                    let tokens = sequence.1.clone();
                    assert!(alone.logits(&[(Variant::default(), tokens)])[0] == *together);
                }
            }
        }
        // And they are not all the same.
        let of = |member: usize, adapter: &Option<Arc<Adapter>>| {
            let variant = Variant {
                member,
                adapter: adapter.clone(),
            };
            family.logits(&[(variant, vec![1, 2, 3])]).remove(0)
        };
        let adapter = Some(adapter(family.model.config(), 1, 4));
        let (none, a) = (&None, &adapter);
        let different = [of(0, none), of(1, none), of(2, none), of(0, a), of(2, a)];
        for (i, a) in different.iter().enumerate() {
            assert!(different[..i].iter().all(|b| a != b));
        }
    }

    #[test]
    fn stored_members_and_adapters_do_not_see_each_other() {
        members_compute_what_each_computes_alone(false, false);
    }

    #[test]
    fn packed_members_and_adapters_do_not_see_each_other() {
        members_compute_what_each_computes_alone(true, false);
        members_compute_what_each_computes_alone(true, true);
    }

    #[test]
    fn what_is_equal_is_held_once() {
        let Model::Decoder(decoder) = family(false, false).model else {
            unreachable!("a llama is a decoder")
        };
        let family = &decoder.family;
        for layer in 0..3 {
            for stage in [Stage::Project, Stage::Output] {
                assert!((0..3).all(|member| family.first(layer, stage, member) == 0));
            }
            let firsts: Vec<usize> = (0..3)
                .map(|member| family.first(layer, Stage::FeedForward, member))
                .collect();
            assert_eq!(firsts, [[0, 0, 0], [0, 1, 0], [0, 0, 2]][layer]);
        }
        assert!((0..3).all(|member| family.first_head(member) == 0));
    }
}
