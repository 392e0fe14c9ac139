//! The forward pass of every decoder: one flat batch through all layers.
//! A row's result does not depend on the other rows, so batching never changes an answer.

use sedge_kernels::{
    Activations, Attention, KvPages, PAGE_TOKENS, Packer, Segment, Team, add_assign, attend,
    matmul, rms_norm, rms_norm_in_place, rotate, scale, softcap,
};

use crate::batch::{Batch, Outputs};
use crate::config::{Config, Latent, Layer, QkNorm};
use crate::input::{FeedForwardOut, FeedForwardWork, Input, Read, Rows, feed_forward};
use crate::moe;
use crate::rope::Angles;
use crate::tensors::{TensorError, Tensors};
use crate::weights::{FeedForward, LatentWeights, LayerWeights, Projections, Weights, Work};

/// A causal language model.
#[derive(Debug)]
pub struct Decoder {
    config: Config,
    weights: Weights,
    /// Rounds the rows of prompts to bfloat16 for packed weights.
    pub(crate) round: bool,
}

/// Working memory of forward passes; grows to the largest batch and stays.
#[derive(Debug, Default)]
pub struct Scratch {
    positions: Vec<u32>,
    angles: Vec<Angles>,
    state: Vec<f32>,
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    result: Vec<f32>,
    narrow: Vec<f32>,
    by_head: Vec<f32>,
    converted: Activations,
    ffn: FeedForwardWork,
    moe: moe::MoeScratch,
}

/// The first `len` values of a buffer that only grows.
pub(crate) fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

impl Decoder {
    pub(crate) fn load(config: Config, tensors: &Tensors) -> Result<Decoder, TensorError> {
        let weights = Weights::load(&config, tensors)?;
        Ok(Decoder {
            config,
            weights,
            round: false,
        })
    }

    /// Whether packed weights multiply the rows of prompts rounded to bfloat16; see
    /// [`Model::round_prompts`](crate::Model::round_prompts).
    pub fn rounds_prompts(&self) -> bool {
        self.round
    }

    /// What [`Model::pack`](crate::Model::pack) packs.
    pub(crate) fn packer(&mut self) -> Packer<'_> {
        self.weights.packer()
    }

    #[cfg(test)]
    pub(crate) fn embedding(&self, token: usize, out: &mut [f32]) {
        self.weights.embedding(token, out);
    }

    /// What adapters change.
    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// What the products of one token take: in all layers, and in the output head.
    pub fn work(&self) -> [Work; 2] {
        self.weights.work(&self.config)
    }

    /// The model's shape and rules.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Runs a batch: stores its keys and values, and computes the logits and hidden states that
    /// it asks for.
    ///
    /// # Panics
    /// When a token is not in the vocabulary, or segments, tables and pages do not fit together.
    pub fn forward(
        &self,
        team: &Team,
        batch: &Batch,
        kv: &mut KvPages,
        s: &mut Scratch,
        out: &mut Outputs,
    ) {
        let (c, rows) = (&self.config, batch.tokens.len());
        assert!(batch.generated <= rows, "more generated tokens than rows");
        positions(&batch.segments, rows, &mut s.positions);
        s.angles.resize_with(c.ropes.len(), Angles::default);
        for (angles, rope) in s.angles.iter_mut().zip(&c.ropes) {
            angles.fill(rope, &s.positions);
        }
        let state = sized(&mut s.state, rows * c.hidden);
        team.for_rows(state, c.hidden, &|row, out| {
            self.weights.embedding(batch.tokens[row] as usize, out);
            if c.embedding_scale != 1.0 {
                scale(out, c.embedding_scale);
            }
        });
        for (index, (layer, weights)) in c.layers.iter().zip(&self.weights.layers).enumerate() {
            self.attention(team, index, layer, weights, batch, kv, s);
            self.feed_forward(team, weights, self.rows(batch), s);
        }
        let state = &s.state;
        let last_norm = |row: u32, out: &mut [f32]| {
            let from = &state[row as usize * c.hidden..][..c.hidden];
            rms_norm(from, &self.weights.norm, c.norm_eps, out);
        };
        out.hidden.resize(batch.hidden.len() * c.hidden, 0.0);
        team.for_rows(&mut out.hidden, c.hidden, &|i, out| {
            last_norm(batch.hidden[i], out);
        });
        out.logits.resize(batch.logits.len() * c.vocab, 0.0);
        if batch.logits.is_empty() {
            return;
        }
        let head = &self.weights.head;
        let input = Input::made(
            team,
            // Few rows, of either kind: always as integers.
            Rows {
                all: batch.logits.len(),
                integers: batch.logits.len(),
            },
            &|i, out| last_norm(batch.logits[i], out),
            &[head],
            &mut s.normed,
            &mut s.converted,
        );
        let logits = &mut out.logits[..];
        input.products(
            team,
            [Read {
                linear: head,
                out: logits,
            }],
        );
        if let Some(cap) = c.logit_softcap {
            team.for_rows(&mut out.logits, c.vocab, &|_, row| softcap(row, cap));
        }
    }

    /// The batch's rows, as packed weights multiply them.
    fn rows(&self, batch: &Batch) -> Rows {
        let all = batch.tokens.len();
        let integers = if self.round { batch.generated } else { all };
        Rows { all, integers }
    }

    #[allow(clippy::too_many_arguments)] // one layer's half needs just these
    fn attention(
        &self,
        team: &Team,
        index: usize,
        layer: &Layer,
        w: &LayerWeights,
        batch: &Batch,
        kv: &mut KvPages,
        s: &mut Scratch,
    ) {
        let (c, rows) = (&self.config, batch.tokens.len());
        let integers = self.rows(batch).integers;
        let state = &s.state;
        let norm = |row: usize, out: &mut [f32]| {
            let from = &state[row * c.hidden..][..c.hidden];
            rms_norm(from, &w.attention_norm, c.norm_eps, out);
        };
        match &w.projections {
            Projections::Heads {
                q,
                k,
                v,
                q_norm,
                k_norm,
            } => {
                let (q_cols, kv_cols) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
                let input = Input::made(
                    team,
                    self.rows(batch),
                    &norm,
                    &[q, k, v],
                    &mut s.normed,
                    &mut s.converted,
                );
                let reads = [
                    (q, sized(&mut s.q, rows * q_cols)),
                    (k, sized(&mut s.k, rows * kv_cols)),
                    (v, sized(&mut s.v, rows * kv_cols)),
                ];
                input.products(team, reads.map(|(linear, out)| Read { linear, out }));
                let (q, k, v) = (
                    &mut s.q[..rows * q_cols],
                    &mut s.k[..rows * kv_cols],
                    &mut s.v[..rows * kv_cols],
                );
                if c.qk_norm == QkNorm::Whole {
                    // OLMoE clips what its norms have left.
                    normalise(team, q_norm, c.norm_eps, q);
                    normalise(team, k_norm, c.norm_eps, k);
                }
                if let Some(clip) = c.qkv_clip {
                    for x in [&mut *q, &mut *k, &mut *v] {
                        x.iter_mut().for_each(|x| *x = x.clamp(-clip, clip));
                    }
                }
                if c.qk_norm == QkNorm::Head {
                    normalise(team, q_norm, c.norm_eps, q);
                    normalise(team, k_norm, c.norm_eps, k);
                }
                if let Some(rope) = layer.rope {
                    let (angles, pairs) = (&s.angles[rope], c.ropes[rope].frequencies.len());
                    for (x, heads) in [(q, c.heads), (k, c.kv_heads)] {
                        team.for_rows(x, heads * c.head_dim, &|row, x| {
                            let angle = row * pairs..(row + 1) * pairs;
                            let (cos, sin) = (&angles.cos[angle.clone()], &angles.sin[angle]);
                            rotate(x, heads, c.head_dim, cos, sin, pairs, c.rope_style);
                        });
                    }
                }
            }
            Projections::Latent(latent) => {
                team.for_rows(sized(&mut s.normed, rows * c.hidden), c.hidden, &norm);
                self.latent_queries(team, layer, latent, self.rows(batch), s);
            }
        }
        store(batch, index, kv, &s.k, &s.v);
        let shape = kv.shape();
        let attention = Attention {
            layer: index,
            heads: c.heads,
            scale: c.attention_scale,
            window: layer.window,
            softcap: c.attention_softcap,
            segments: &batch.segments,
            tables: &batch.tables,
            rounded_from: integers,
        };
        let q = &s.q[..rows * c.heads * shape.k_dim];
        attend(
            team,
            &attention,
            q,
            kv,
            sized(&mut s.attended, rows * c.heads * shape.v_dim),
        );
        let mut attended = c.heads * shape.v_dim;
        if let (Projections::Latent(latent), Some(l)) = (&w.projections, c.latent) {
            self.out_of_latent(team, latent, l, rows, s);
            attended = c.heads * l.v;
        }
        let x = &s.attended[..rows * attended];
        let input = Input::of(team, x, integers, &[&w.output], &mut s.converted);
        let (linear, state) = (&w.output, &mut s.state[..rows * c.hidden]);
        if let Some(norm) = &w.post_attention_norm {
            let out = sized(&mut s.result, rows * c.hidden);
            input.products(team, [Read { linear, out }]);
            self.add_normed(team, norm, &mut s.result[..rows * c.hidden], state);
        } else {
            input.add_product(team, Read { linear, out: state }, &mut s.result);
        }
    }

    /// Adds the norm of `x` to `state`.
    fn add_normed(&self, team: &Team, norm: &[f32], x: &mut [f32], state: &mut [f32]) {
        let c = &self.config;
        team.for_rows(x, c.hidden, &|_, row| {
            rms_norm_in_place(row, norm, c.norm_eps)
        });
        let x = &*x;
        team.for_rows(state, c.hidden, &|row, state| {
            add_assign(state, &x[row * c.hidden..][..c.hidden]);
        });
    }

    /// Queries in the latent space and this batch's latent keys: `q [rows, heads, kv_rank + rope]`,
    /// `k [rows, kv_rank + rope]`.
    fn latent_queries(
        &self,
        team: &Team,
        layer: &Layer,
        w: &LatentWeights,
        Rows {
            all: rows,
            integers,
        }: Rows,
        s: &mut Scratch,
    ) {
        let c = &self.config;
        let Some(l) = c.latent else { return };
        let normed = &s.normed[..rows * c.hidden];
        let head = l.nope + l.rope;
        let plain = sized(&mut s.v, rows * c.heads * head);
        let first = w.q_down.as_ref().map_or(&w.q, |(down, _)| down);
        let readers = [first, &w.kv_down];
        let input = Input::of(team, normed, integers, &readers, &mut s.converted);
        let width = l.kv_rank + l.rope;
        let down = sized(&mut s.narrow, rows * width);
        let linear = &w.kv_down;
        input.products(team, [Read { linear, out: down }]);
        match &w.q_down {
            Some((narrow, norm)) => {
                let rank = narrow.weight.rows();
                let out = sized(&mut s.by_head, rows * rank);
                input.products(
                    team,
                    [Read {
                        linear: narrow,
                        out,
                    }],
                );
                let x = &mut s.by_head[..rows * rank];
                team.for_rows(x, rank, &|_, row| rms_norm_in_place(row, norm, c.norm_eps));
                let input = Input::of(team, x, integers, &[&w.q], &mut s.converted);
                input.products(
                    team,
                    [Read {
                        linear: &w.q,
                        out: plain,
                    }],
                );
            }
            None => input.products(
                team,
                [Read {
                    linear: &w.q,
                    out: plain,
                }],
            ),
        }
        let k = sized(&mut s.k, rows * width);
        for (from, to) in down.chunks_exact(width).zip(k.chunks_exact_mut(width)) {
            rms_norm(
                &from[..l.kv_rank],
                &w.kv_norm,
                c.norm_eps,
                &mut to[..l.kv_rank],
            );
            to[l.kv_rank..].copy_from_slice(&from[l.kv_rank..]);
        }
        // Each head's part without positions goes through that head's matrix.
        let q = sized(&mut s.q, rows * c.heads * width);
        let (nope, latent) =
            sized(&mut s.by_head, rows * (l.nope + l.kv_rank)).split_at_mut(rows * l.nope);
        for (h, to_latent) in w.q_to_latent.iter().enumerate() {
            for row in 0..rows {
                nope[row * l.nope..][..l.nope]
                    .copy_from_slice(&plain[(row * c.heads + h) * head..][..l.nope]);
            }
            matmul(team, nope, to_latent, latent);
            for row in 0..rows {
                let to = &mut q[(row * c.heads + h) * width..][..width];
                to[..l.kv_rank].copy_from_slice(&latent[row * l.kv_rank..][..l.kv_rank]);
                to[l.kv_rank..]
                    .copy_from_slice(&plain[(row * c.heads + h) * head + l.nope..][..l.rope]);
            }
        }
        if let Some(rope) = layer.rope {
            let (angles, pairs) = (&s.angles[rope], c.ropes[rope].frequencies.len());
            for row in 0..rows {
                let angle = row * pairs..(row + 1) * pairs;
                let (cos, sin) = (&angles.cos[angle.clone()], &angles.sin[angle]);
                for part in q[row * c.heads * width..][..c.heads * width]
                    .chunks_exact_mut(width)
                    .chain([&mut k[row * width..][..width]])
                {
                    rotate(
                        &mut part[l.kv_rank..],
                        1,
                        l.rope,
                        cos,
                        sin,
                        pairs,
                        c.rope_style,
                    );
                }
            }
        }
    }

    /// `attended [rows, heads, kv_rank]` becomes `[rows, heads, v]`.
    fn out_of_latent(
        &self,
        team: &Team,
        w: &LatentWeights,
        l: Latent,
        rows: usize,
        s: &mut Scratch,
    ) {
        let heads = self.config.heads;
        let out = sized(&mut s.q, rows * heads * l.v);
        let (latent, v) =
            sized(&mut s.by_head, rows * (l.kv_rank + l.v)).split_at_mut(rows * l.kv_rank);
        for (h, to_v) in w.latent_to_v.iter().enumerate() {
            for row in 0..rows {
                let from = &s.attended[(row * heads + h) * l.kv_rank..][..l.kv_rank];
                latent[row * l.kv_rank..][..l.kv_rank].copy_from_slice(from);
            }
            matmul(team, latent, to_v, v);
            for row in 0..rows {
                out[(row * heads + h) * l.v..][..l.v].copy_from_slice(&v[row * l.v..][..l.v]);
            }
        }
        sized(&mut s.attended, rows * heads * l.v).copy_from_slice(out);
    }

    fn feed_forward(&self, team: &Team, w: &LayerWeights, rows: Rows, s: &mut Scratch) {
        let c = &self.config;
        let len = rows.all * c.hidden;
        let from = &s.state;
        let norm = |row: usize, out: &mut [f32]| {
            let from = &from[row * c.hidden..][..c.hidden];
            rms_norm(from, &w.ffn_norm, c.norm_eps, out);
        };
        match (&w.ffn, &c.moe) {
            (FeedForward::Dense(dense), _) => {
                let readers = [&dense.gate, &dense.up];
                let plain = &mut s.normed;
                let x = Input::made(team, rows, &norm, &readers, plain, &mut s.converted);
                let out = match w.post_ffn_norm {
                    Some(_) => FeedForwardOut::Set(sized(&mut s.result, len)),
                    None => FeedForwardOut::Add(&mut s.state[..len]),
                };
                feed_forward(team, c.activation, dense, x, &mut s.ffn, out);
            }
            (FeedForward::Experts(experts), Some(rules)) => {
                let normed = sized(&mut s.normed, len);
                team.for_rows(normed, c.hidden, &norm);
                let result = sized(&mut s.result, len);
                moe::forward(
                    team,
                    c.activation,
                    rules,
                    experts,
                    (normed, rows.integers),
                    &mut s.moe,
                    result,
                );
                if w.post_ffn_norm.is_none() {
                    add_assign(&mut s.state[..len], result);
                }
            }
            (FeedForward::Experts(_), None) => {
                unreachable!("experts are loaded only where the config has them")
            }
        }
        if let Some(norm) = &w.post_ffn_norm {
            self.add_normed(team, norm, &mut s.result[..len], &mut s.state[..len]);
        }
    }
}

/// Each row's place in its sequence.
pub(crate) fn positions(segments: &[Segment], rows: usize, out: &mut Vec<u32>) {
    out.clear();
    out.resize(rows, 0);
    for segment in segments {
        for (i, row) in segment.rows.clone().enumerate() {
            out[row] = (segment.position + i) as u32;
        }
    }
}

/// Puts the batch's keys and values into their pages.
fn store(batch: &Batch, layer: usize, kv: &mut KvPages, k: &[f32], v: &[f32]) {
    let shape = kv.shape();
    let k_cols = shape.heads * shape.k_dim;
    let v_cols = if shape.v_in_k {
        0
    } else {
        shape.heads * shape.v_dim
    };
    for segment in &batch.segments {
        let table = &batch.tables[segment.pages.clone()];
        for (i, row) in segment.rows.clone().enumerate() {
            let position = segment.position + i;
            let page = table[position / PAGE_TOKENS];
            kv.write(
                layer,
                page,
                position % PAGE_TOKENS,
                &k[row * k_cols..][..k_cols],
                &v[row * v_cols..][..v_cols],
            );
        }
    }
}

/// Norm in place, if there is one.
fn normalise(team: &Team, weight: &Option<Vec<f32>>, eps: f32, x: &mut [f32]) {
    if let Some(weight) = weight {
        team.for_rows(x, weight.len(), &|_, row| {
            rms_norm_in_place(row, weight, eps)
        });
    }
}
