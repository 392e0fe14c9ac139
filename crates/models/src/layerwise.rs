//! A decoder that runs layer by layer: all of a text through one layer before the next begins.
//! So what each product reads can be seen, a layer's weights replaced before the next layer is
//! reached, and only one layer's weights need be in memory.

use std::ops::Range;

use bytes::Bytes;
use sedge_kernels::{DType, KvPages, KvType, Matrix, Packer, Team, Weight, rms_norm};

use crate::batch::Batch;
use crate::config::Config;
use crate::decoder::{Decoder, Scratch};
use crate::open::Model;
use crate::weights::{FeedForward, Gated, LayerWeights, Linear, Projections, Watch};

/// Most rows that are computed at once.
const ROWS: usize = 4096;

/// Takes rows of one of a layer's inputs, by its number.
type See<'a> = &'a mut dyn FnMut(usize, &[f32]);

/// A matrix of the layer that comes next.
#[derive(Debug, Clone)]
pub struct Site {
    /// Name of the tensor in a GGUF file.
    pub tensor: String,
    /// Rows of the tensor that are this matrix: not all of them where several products, or
    /// experts, lie in one tensor.
    pub rows: Range<usize>,
    /// What it reads: sites of a layer with the same number read the same rows.
    pub input: usize,
    /// The weights, `[outputs, inputs]`, as they are stored.
    pub weight: Matrix,
    /// Added to each row of outputs.
    pub bias: Option<Vec<f32>>,
}

/// A decoder on its way through its layers, with the states of all rows of a text.
#[derive(Debug)]
pub struct Layerwise {
    model: Decoder,
    batches: Vec<Batch>,
    /// For each batch `[rows, hidden]`.
    states: Vec<Vec<f32>>,
    scratch: Scratch,
    /// The next layer.
    layer: usize,
    /// For each layer, whether queries, keys and values are one tensor, and gate and up.
    fused: Vec<[bool; 2]>,
}

impl Layerwise {
    /// Begins with the embeddings of some sequences. `tensors` are the names of the checkpoint's
    /// tensors in GGUF. `None` where the model is no decoder, or its weights are stacks.
    ///
    /// # Panics
    /// When a token is beyond the vocabulary, or a sequence is longer than the model's context.
    pub fn new(
        team: &Team,
        model: Model,
        sequences: &[Vec<u32>],
        tensors: &dyn Fn(&str) -> bool,
    ) -> Option<Layerwise> {
        let Model::Decoder(mut model) = model else {
            return None;
        };
        if model.stacks.is_some() {
            return None;
        }
        model.round = sedge_kernels::rounds_fast();
        let mut scratch = Scratch::default();
        let mut batches: Vec<Batch> = Vec::new();
        for sequence in sequences.iter().filter(|s| !s.is_empty()) {
            let full = |b: &Batch| b.tokens.len() + sequence.len() > ROWS;
            if batches.last().is_none_or(full) {
                batches.push(Batch::default());
            }
            let batch = batches.last_mut().expect("one was just there");
            batch.push_sequence(sequence);
        }
        let mut states = Vec::new();
        for batch in &batches {
            model.begin(team, batch, &mut scratch);
            let len = batch.tokens.len() * model.config.hidden;
            states.push(scratch.rows.state[..len].to_vec());
            scratch.who.forget();
        }
        let fused = (0..model.config.layers.len()).map(|layer| {
            let there = |part: &str| tensors(&format!("blk.{layer}.{part}.weight"));
            [there("attn_qkv"), !there("ffn_gate")]
        });
        let fused = fused.collect();
        Some(Layerwise {
            model,
            batches,
            states,
            scratch,
            layer: 0,
            fused,
        })
    }

    /// The model's shape and rules.
    pub fn config(&self) -> &Config {
        &self.model.config
    }

    /// The layer that comes next; the number of layers after the last.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// Whether all layers have been passed.
    pub fn is_done(&self) -> bool {
        self.layer == self.model.config.layers.len()
    }

    /// Rows of states, of all batches.
    pub fn states(&mut self) -> impl Iterator<Item = &mut Vec<f32>> {
        self.states.iter_mut()
    }

    /// The matrices of the next layer's products.
    ///
    /// # Panics
    /// After the last layer.
    pub fn sites(&mut self) -> Vec<Site> {
        let (layer, fused) = (self.layer, self.fused_here());
        let named = named(self.weights(), layer, fused);
        let site = |named: Named<'_>| {
            let Weight::Stored(weight) = &named.linear.weight else {
                unreachable!("weights are packed for one pass only");
            };
            Site {
                tensor: named.tensor,
                rows: named.first..named.first + weight.rows(),
                input: named.input,
                weight: weight.clone(),
                bias: named.linear.bias.clone(),
            }
        };
        named.into_iter().map(site).collect()
    }

    /// Gives a site of the next layer other weights, of the same shape.
    ///
    /// # Panics
    /// When there is no such site or the shape differs.
    pub fn replace(&mut self, site: usize, weight: Matrix, bias: Option<Vec<f32>>) {
        let (layer, fused) = (self.layer, self.fused_here());
        let mut named = named(self.weights(), layer, fused);
        let linear = &mut *named[site].linear;
        let old = (linear.weight.rows(), linear.weight.cols());
        assert_eq!((weight.rows(), weight.cols()), old, "the shape of a site");
        *linear = Linear::new(weight.into(), bias);
    }

    /// The norms over states of the next layer, by the names of their tensors: those before its
    /// products first, then those of their results.
    ///
    /// # Panics
    /// After the last layer.
    pub fn norms(&mut self) -> Vec<(String, &mut Vec<f32>)> {
        let layer = self.layer;
        let w = self.weights();
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let mut all = vec![
            (name("attn_norm"), &mut w.attention_norm),
            (name("ffn_norm"), &mut w.ffn_norm),
        ];
        let post = [
            ("post_attention_norm", w.post_attention_norm.as_mut()),
            ("post_ffw_norm", w.post_ffn_norm.as_mut()),
        ];
        let there = post
            .into_iter()
            .filter_map(|(part, norm)| Some((part, norm?)));
        all.extend(there.map(|(part, norm)| (name(part), norm)));
        all
    }

    /// The norm before the output head.
    pub fn last_norm(&mut self) -> &mut Vec<f32> {
        &mut self.model.family.members[0].norm
    }

    /// Runs the next layer and hands the rows that its products read to `see`, by the number of
    /// the input; the states stay as they are.
    ///
    /// # Errors
    /// When the memory of packed weights cannot be had.
    ///
    /// # Panics
    /// After the last layer.
    pub fn observe(
        &mut self,
        team: &Team,
        see: &mut dyn FnMut(usize, &[f32]),
    ) -> std::io::Result<()> {
        self.run(team, Some(see), false)
    }

    /// Brings all states through the next layer, as its weights are now.
    ///
    /// # Errors
    /// When the memory of packed weights cannot be had.
    ///
    /// # Panics
    /// After the last layer.
    pub fn advance(&mut self, team: &Team) -> std::io::Result<()> {
        self.run(team, None, true)?;
        self.layer += 1;
        Ok(())
    }

    /// What the output head reads: the states after the last norm, row after row.
    pub fn head_inputs(&self, team: &Team, see: &mut dyn FnMut(&[f32])) {
        let c = &self.model.config;
        let norm = &self.model.weights(0).norm;
        let mut rows = Vec::new();
        for states in &self.states {
            rows.resize(states.len(), 0.0);
            team.for_rows(&mut rows, c.hidden, &|row, out| {
                rms_norm(&states[row * c.hidden..][..c.hidden], norm, c.norm_eps, out);
            });
            see(&rows);
        }
    }

    fn fused_here(&self) -> [bool; 2] {
        self.fused.get(self.layer).copied().unwrap_or_default()
    }

    fn weights(&mut self) -> &mut LayerWeights {
        assert!(!self.is_done(), "all layers have been passed");
        &mut self.model.family.members[0].layers[self.layer]
    }

    fn run(&mut self, team: &Team, mut see: Option<See<'_>>, keep: bool) -> std::io::Result<()> {
        let (layer, fused) = (self.layer, self.fused_here());
        let stored = self.weights().clone();
        let mut watches: Vec<Watch> = Vec::new();
        if see.is_some() {
            for named in named(self.weights(), layer, fused) {
                // The first reader of an input is always there when the others are.
                if named.input == watches.len() {
                    let watch = Watch::default();
                    named.linear.watch = Some(watch.clone());
                    watches.push(watch);
                }
            }
        }
        let linears = self.weights().linears();
        let weights = linears.into_iter().map(|linear| &mut linear.weight);
        let release = &mut |bytes: Bytes| sedge_formats::release(&bytes);
        let packed = Packer::new(weights).pack(team, release);
        if let Err(error) = packed {
            *self.weights() = stored;
            return Err(error);
        }
        let Layerwise {
            model,
            batches,
            states,
            scratch,
            ..
        } = self;
        // New for each layer: pages take memory where they are written, which is in this layer.
        let pages = batches.iter().map(|b| b.tables.len()).max().unwrap_or(0);
        let layers = model.config.layers.len();
        let mut kv = KvPages::new(layers, pages, model.config.kv_shape(), KvType::F16);
        for (batch, states) in batches.iter().zip(states) {
            model.begin(team, batch, scratch);
            let len = states.len();
            scratch.rows.state[..len].copy_from_slice(states);
            model.layer(team, layer, batch, &mut kv, scratch);
            if keep {
                states.copy_from_slice(&scratch.rows.state[..len]);
            }
            scratch.who.forget();
            for (input, watch) in watches.iter().enumerate() {
                let mut rows = watch.rows();
                if let Some(see) = see.as_mut() {
                    see(input, &rows);
                }
                rows.clear();
            }
        }
        *self.weights() = stored;
        Ok(())
    }
}

impl Model {
    /// The same model with its embeddings, one of its matrices, or several that lie in one
    /// tensor, in another type; packed, if it can be. The others' memory is shared. `None` where it has no such
    /// products, is no decoder, or the bytes are not of the tensor's shape.
    pub fn with_tensor(
        &self,
        team: &Team,
        tensor: &str,
        dtype: DType,
        bytes: Bytes,
    ) -> Option<Model> {
        let Model::Decoder(model) = self else {
            return None;
        };
        let mut model = model.clone();
        let weights = &mut model.family.members[0];
        if let ("token_embd.weight", Some(embeddings)) = (tensor, &mut weights.embeddings) {
            let (rows, cols) = (embeddings.rows(), embeddings.cols());
            *embeddings = Matrix::new(dtype, rows, cols, bytes).ok()?;
            return Some(Model::Decoder(model));
        }
        let mut linears: Vec<(usize, &mut Linear)> = match tensor {
            "output.weight" => vec![(0, &mut weights.head)],
            "token_embd.weight" => vec![(0, &mut weights.head)],
            _ => {
                let layer: usize = tensor
                    .strip_prefix("blk.")?
                    .split('.')
                    .next()?
                    .parse()
                    .ok()?;
                let fused = ["attn_qkv", "ffn_up"].map(|part| tensor.contains(part));
                // In one tensor with another where its bytes are those of both.
                let w = weights.layers.get_mut(layer)?;
                let values = dtype.bytes_for(w.ffn_up_values()).unwrap_or(0);
                let fused = [fused[0], fused[1] && bytes.len() > values];
                let all = named(w, layer, fused).into_iter();
                all.filter(|n| n.tensor == tensor)
                    .map(|n| (n.first, n.linear))
                    .collect()
            }
        };
        if linears.is_empty() {
            return None;
        }
        for (first, linear) in &mut linears {
            let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
            let row = dtype.bytes_for(cols)?;
            let here = *first * row..(*first + rows) * row;
            if here.end > bytes.len() {
                return None;
            }
            linear.weight = Matrix::new(dtype, rows, cols, bytes.slice(here))
                .ok()?
                .into();
        }
        let weights = linears.into_iter().map(|(_, linear)| &mut linear.weight);
        Packer::new(weights).pack(team, &mut |_| {}).ok()?;
        Some(Model::Decoder(model))
    }
}

impl LayerWeights {
    /// Values of the matrix that makes a dense block's inner width, without the gate's.
    fn ffn_up_values(&self) -> usize {
        match &self.ffn {
            FeedForward::Dense(gated) => gated.up.weight.rows() * gated.up.weight.cols(),
            FeedForward::Experts(_) => usize::MAX,
        }
    }
}

/// A product of a layer, and where its weights come from.
struct Named<'a> {
    tensor: String,
    first: usize,
    input: usize,
    linear: &'a mut Linear,
}

/// All products of a layer that read rows of states or what is made of them, grouped by inputs.
fn named(w: &mut LayerWeights, layer: usize, [qkv, gate_up]: [bool; 2]) -> Vec<Named<'_>> {
    let mut all = Vec::new();
    let mut inputs = 0;
    let mut put = |part: &str, first: usize, new: bool, linear| {
        inputs += usize::from(new);
        all.push(Named {
            tensor: format!("blk.{layer}.{part}.weight"),
            first,
            input: inputs - 1,
            linear,
        });
    };
    match &mut w.projections {
        Projections::Heads { q, k, v, .. } => {
            let (after_q, after_k) = (q.weight.rows(), q.weight.rows() + k.weight.rows());
            let (of_q, of_k, of_v) = match qkv {
                true => (
                    ("attn_qkv", 0),
                    ("attn_qkv", after_q),
                    ("attn_qkv", after_k),
                ),
                false => (("attn_q", 0), ("attn_k", 0), ("attn_v", 0)),
            };
            put(of_q.0, of_q.1, true, q);
            put(of_k.0, of_k.1, false, k);
            put(of_v.0, of_v.1, false, v);
        }
        Projections::Latent(latent) => {
            let latent = &mut **latent;
            match &mut latent.q_down {
                Some((down, _)) => {
                    put("attn_q_a", 0, true, down);
                    put("attn_kv_a_mqa", 0, false, &mut latent.kv_down);
                    put("attn_q_b", 0, true, &mut latent.q);
                }
                None => {
                    put("attn_q", 0, true, &mut latent.q);
                    put("attn_kv_a_mqa", 0, false, &mut latent.kv_down);
                }
            }
        }
    }
    put("attn_output", 0, true, &mut w.output);
    match &mut w.ffn {
        FeedForward::Dense(Gated { gate, up, down }) => {
            let (of_gate, of_up) = match gate_up {
                true => (("ffn_up", 0), ("ffn_up", gate.weight.rows())),
                false => (("ffn_gate", 0), ("ffn_up", 0)),
            };
            put(of_gate.0, of_gate.1, true, gate);
            put(of_up.0, of_up.1, false, up);
            put("ffn_down", 0, true, down);
        }
        FeedForward::Experts(e) => {
            for (i, Gated { gate, up, down }) in e.experts.iter_mut().enumerate() {
                let (inner, outer) = (i * gate.weight.rows(), i * down.weight.rows());
                put("ffn_gate_exps", inner, true, gate);
                put("ffn_up_exps", inner, false, up);
                put("ffn_down_exps", outer, true, down);
            }
            if let Some(Gated { gate, up, down }) = &mut e.shared {
                put("ffn_gate_shexp", 0, true, gate);
                put("ffn_up_shexp", 0, false, up);
                put("ffn_down_shexp", 0, true, down);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{Outputs, Workspace, open};

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

    /// The hidden states of the whole model in one pass.
    fn at_once(team: &Team, model: &Model, sequences: &[Vec<u32>]) -> Vec<f32> {
        let mut batch = Batch::default();
        for sequence in sequences {
            batch.push_sequence(sequence);
        }
        batch.hidden = (0..batch.tokens.len() as u32).collect();
        let c = model.config();
        let mut kv = KvPages::new(
            c.layers.len(),
            batch.tables.len(),
            model.kv_shape(),
            KvType::F16,
        );
        let (mut work, mut out) = (Workspace::default(), Outputs::default());
        model.forward(team, &batch, &mut kv, &mut work, &mut out);
        out.hidden
    }

    #[test]
    fn layer_by_layer_is_the_whole_model() {
        let team = Team::new(2);
        let sequences = vec![vec![1, 5, 9, 3, 7], vec![2; 20], vec![4]];
        for name in ["llama", "phi3", "gemma2", "mixtral", "deepseek-v2"] {
            let folder = Path::new(GOLDEN).join(name);
            let Ok(opened) = open(&folder) else {
                panic!("{name} is among the goldens");
            };
            let fused = name == "phi3";
            let tensors = |n: &str| n.contains("attn_qkv") == fused;
            let whole = at_once(&team, &opened.model, &sequences);
            let mut steps = Layerwise::new(&team, opened.model, &sequences, &tensors).unwrap();
            while !steps.is_done() {
                let sites = steps.sites();
                let mut seen = vec![0; 1 + sites.iter().map(|s| s.input).max().unwrap()];
                steps
                    .observe(&team, &mut |input, rows| seen[input] += rows.len())
                    .unwrap();
                for (site, rows) in sites.iter().map(|s| (s, seen[s.input] / s.weight.cols())) {
                    let whole = seen[site.input].is_multiple_of(site.weight.cols());
                    assert!(
                        whole && (rows == 26 || site.tensor.contains("exps")),
                        "{name}"
                    );
                }
                steps.advance(&team).unwrap();
            }
            let mut last = Vec::new();
            steps.head_inputs(&team, &mut |rows| last.extend_from_slice(rows));
            let far = last.iter().zip(&whole).map(|(a, b)| (a - b).abs());
            let far = far.fold(0.0, f32::max);
            assert!(last.len() == whole.len() && far < 0.1, "{name}: {far}");
        }
    }
}
