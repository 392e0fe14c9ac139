//! BERT and its kind: every token sees the whole text; used for embeddings.

use sedge_kernels::{Activations, Matrix, Packer, Team, add_assign, attend_all, gelu, layer_norm};

use crate::batch::{Batch, Outputs};
use crate::config::Config;
use crate::decoder::{positions, sized};
use crate::input::{Input, Read};
use crate::tensors::{TensorError, Tensors};
use crate::weights::Linear;

/// A bidirectional encoder.
#[derive(Debug, Clone)]
pub struct Encoder {
    config: Config,
    tokens: Matrix,
    positions: Matrix,
    /// The type of every token is 0: one text at a time, no pairs.
    token_type: Vec<f32>,
    norm: Norm,
    layers: Vec<EncoderLayer>,
    /// Rounds activations to bfloat16 for packed weights.
    pub(crate) round: bool,
}

#[derive(Debug, Clone)]
struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

#[derive(Debug, Clone)]
struct EncoderLayer {
    q: Linear,
    k: Linear,
    v: Linear,
    output: Linear,
    output_norm: Norm,
    up: Linear,
    down: Linear,
    norm: Norm,
}

/// Working memory of an encoder.
#[derive(Debug, Default)]
pub struct EncoderScratch {
    positions: Vec<u32>,
    row: Vec<f32>,
    state: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    result: Vec<f32>,
    inner: Vec<f32>,
    converted: Activations,
}

impl Encoder {
    pub(crate) fn load(config: Config, t: &Tensors) -> Result<Encoder, TensorError> {
        let hidden = config.hidden;
        let norm = |name: &str| -> Result<Norm, TensorError> {
            let weight = t.vector(&format!("{name}.weight"), hidden)?;
            Ok(Norm {
                weight,
                bias: t.vector(&format!("{name}.bias"), hidden)?,
            })
        };
        let linear = |name: &str, rows: usize, cols: usize| -> Result<Linear, TensorError> {
            let weight = format!("{name}.weight");
            Ok(Linear {
                activation_bits: t.activation_bits(&weight, cols)?,
                bias: t.maybe_vector(&format!("{name}.bias"), rows)?,
                ..t.matrix(&weight, rows, cols)?.into()
            })
        };
        let layer = |i: usize| -> Result<EncoderLayer, TensorError> {
            let name = |part: &str| format!("blk.{i}.{part}");
            Ok(EncoderLayer {
                q: linear(&name("attn_q"), hidden, hidden)?,
                k: linear(&name("attn_k"), hidden, hidden)?,
                v: linear(&name("attn_v"), hidden, hidden)?,
                output: linear(&name("attn_output"), hidden, hidden)?,
                output_norm: norm(&name("attn_output_norm"))?,
                up: linear(&name("ffn_up"), config.intermediate, hidden)?,
                down: linear(&name("ffn_down"), hidden, config.intermediate)?,
                norm: norm(&name("layer_output_norm"))?,
            })
        };
        let mut token_type = vec![0.0; hidden];
        if config.token_types > 0 {
            t.matrix("token_types.weight", config.token_types, hidden)?
                .row(0, &mut token_type);
        }
        let encoder = Encoder {
            tokens: t.matrix("token_embd.weight", config.vocab, hidden)?,
            positions: t.matrix("position_embd.weight", config.context, hidden)?,
            token_type,
            norm: norm("token_embd_norm")?,
            round: false,
            layers: (0..config.layers.len())
                .map(layer)
                .collect::<Result<_, _>>()?,
            config,
        };
        t.all_used()?;
        Ok(encoder)
    }

    /// What [`Model::pack`](crate::Model::pack) packs.
    pub(crate) fn packer(&mut self) -> Packer<'_> {
        let linears = self.layers.iter_mut().flat_map(|w| {
            let EncoderLayer {
                q,
                k,
                v,
                output,
                up,
                down,
                ..
            } = w;
            [q, k, v, output, up, down]
        });
        Packer::new(linears.map(|linear| &mut linear.weight))
    }

    /// The model's shape and rules.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Runs whole texts, a segment each, and leaves the last hidden states that the batch asks for.
    ///
    /// # Panics
    /// When a token or a position is out of range.
    pub fn forward(&self, team: &Team, batch: &Batch, s: &mut EncoderScratch, out: &mut Outputs) {
        let (c, rows) = (&self.config, batch.tokens.len());
        let (hidden, len) = (c.hidden, rows * c.hidden);
        let integers = if self.round { 0 } else { rows };
        positions(&batch.segments, rows, &mut s.positions);
        let (state, row) = (sized(&mut s.state, len), sized(&mut s.row, hidden));
        for ((to, &token), &position) in state
            .chunks_exact_mut(hidden)
            .zip(&batch.tokens)
            .zip(&s.positions)
        {
            self.tokens.row(token as usize, to);
            self.positions.row(position as usize, row);
            add_assign(to, row);
            add_assign(to, &self.token_type);
        }
        let result = sized(&mut s.result, len);
        result.copy_from_slice(state);
        layer_norm(
            result,
            &self.norm.weight,
            &self.norm.bias,
            c.norm_eps,
            state,
        );
        let texts: Vec<_> = batch
            .segments
            .iter()
            .map(|segment| segment.rows.clone())
            .collect();
        for w in &self.layers {
            let (q, k, v) = (
                sized(&mut s.q, len),
                sized(&mut s.k, len),
                sized(&mut s.v, len),
            );
            let readers = [&w.q, &w.k, &w.v];
            let input = Input::of(team, state, integers, &readers, &mut s.converted);
            let reads = [(&w.q, q), (&w.k, k), (&w.v, v)];
            input.products(team, reads.map(|(linear, out)| Read { linear, out }));
            let (q, k, v) = (&s.q[..len], &s.k[..len], &s.v[..len]);
            let attended = sized(&mut s.inner, len);
            attend_all(
                team,
                c.heads,
                c.head_dim,
                c.attention_scale,
                &texts,
                q,
                k,
                v,
                attended,
            );
            read(
                team,
                (attended, integers),
                &w.output,
                &mut s.converted,
                result,
            );
            add_assign(result, state);
            layer_norm(
                result,
                &w.output_norm.weight,
                &w.output_norm.bias,
                c.norm_eps,
                state,
            );
            let inner = sized(&mut s.inner, rows * c.intermediate);
            read(team, (state, integers), &w.up, &mut s.converted, inner);
            team.for_rows(inner, c.intermediate, &|_, row| gelu(row));
            read(team, (inner, integers), &w.down, &mut s.converted, result);
            add_assign(result, state);
            layer_norm(result, &w.norm.weight, &w.norm.bias, c.norm_eps, state);
        }
        out.logits.clear();
        out.hidden.clear();
        for &row in &batch.hidden {
            out.hidden
                .extend_from_slice(&state[row as usize * hidden..][..hidden]);
        }
    }
}

/// `out = x · wᵀ + b`.
fn read(
    team: &Team,
    (x, integers): (&[f32], usize),
    linear: &Linear,
    converted: &mut Activations,
    out: &mut [f32],
) {
    Input::of(team, x, integers, &[linear], converted).products(team, [Read { linear, out }]);
}
