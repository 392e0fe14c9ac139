//! The forward pass of every decoder: one flat batch through all layers.
//! A row's result does not depend on the other rows, so batching never changes an answer.

use sedge_kernels::{
    Attention, KvPages, PAGE_TOKENS, Segment, Team, add_assign, add_bias, attend, gelu_mul, matmul,
    rms_norm, rotate, scale, silu_mul, softcap,
};

use crate::batch::{Batch, Outputs};
use crate::config::{Activation, Config, Latent, Layer, QkNorm};
use crate::moe;
use crate::rope::Angles;
use crate::tensors::{TensorError, Tensors};
use crate::weights::{
    FeedForward, Gated, LatentWeights, LayerWeights, Linear, Projections, Weights,
};

/// A causal language model.
#[derive(Debug)]
pub struct Decoder {
    config: Config,
    weights: Weights,
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
    wanted: Vec<f32>,
    pub(crate) gate: Vec<f32>,
    pub(crate) up: Vec<f32>,
    pub(crate) moe: moe::MoeScratch,
}

/// The first `len` values of a buffer that only grows.
pub(crate) fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// `out = x · wᵀ + b`.
pub(crate) fn linear(team: &Team, x: &[f32], w: &Linear, out: &mut [f32]) {
    matmul(team, x, &w.weight, out);
    if let Some(bias) = &w.bias {
        add_bias(out, bias);
    }
}

/// `out = down(activation(gate(x)) · up(x))`, with `gate` and `up` as working memory.
pub(crate) fn gated(
    team: &Team,
    activation: Activation,
    w: &Gated,
    x: &[f32],
    (gate, up): (&mut Vec<f32>, &mut Vec<f32>),
    out: &mut [f32],
) {
    let rows = x.len() / w.gate.weight.cols();
    let inner = rows * w.gate.weight.rows();
    let (gate, up) = (sized(gate, inner), sized(up, inner));
    linear(team, x, &w.gate, gate);
    linear(team, x, &w.up, up);
    match activation {
        Activation::Silu => silu_mul(gate, up),
        Activation::GeluTanh | Activation::Gelu => gelu_mul(gate, up),
    }
    linear(team, gate, &w.down, out);
}

impl Decoder {
    pub(crate) fn load(config: Config, tensors: &Tensors) -> Result<Decoder, TensorError> {
        let weights = Weights::load(&config, tensors)?;
        Ok(Decoder { config, weights })
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
        positions(&batch.segments, rows, &mut s.positions);
        s.angles.resize_with(c.ropes.len(), Angles::default);
        for (angles, rope) in s.angles.iter_mut().zip(&c.ropes) {
            angles.fill(rope, &s.positions);
        }
        let state = sized(&mut s.state, rows * c.hidden);
        for (row, &token) in state.chunks_exact_mut(c.hidden).zip(&batch.tokens) {
            self.weights.embeddings.row(token as usize, row);
        }
        if c.embedding_scale != 1.0 {
            scale(state, c.embedding_scale);
        }
        for (index, (layer, weights)) in c.layers.iter().zip(&self.weights.layers).enumerate() {
            self.attention(team, index, layer, weights, batch, kv, s);
            self.feed_forward(team, weights, rows, s);
        }
        self.wanted(&batch.hidden, s, &mut out.hidden);
        let mut wanted = std::mem::take(&mut s.wanted);
        self.wanted(&batch.logits, s, &mut wanted);
        out.logits.resize(batch.logits.len() * c.vocab, 0.0);
        matmul(team, &wanted, &self.weights.head, &mut out.logits);
        s.wanted = wanted;
        if let Some(cap) = c.logit_softcap {
            softcap(&mut out.logits, cap);
        }
    }

    /// The last norm of chosen rows.
    fn wanted(&self, rows: &[u32], s: &Scratch, out: &mut Vec<f32>) {
        let hidden = self.config.hidden;
        out.resize(rows.len() * hidden, 0.0);
        for (to, &row) in out.chunks_exact_mut(hidden).zip(rows) {
            let from = &s.state[row as usize * hidden..][..hidden];
            rms_norm(from, &self.weights.norm, self.config.norm_eps, to);
        }
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
        rms_norm(
            &s.state[..rows * c.hidden],
            &w.attention_norm,
            c.norm_eps,
            sized(&mut s.normed, rows * c.hidden),
        );
        match &w.projections {
            Projections::Heads {
                q,
                k,
                v,
                q_norm,
                k_norm,
            } => {
                let (q_cols, kv_cols) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
                let normed = &s.normed[..rows * c.hidden];
                linear(team, normed, q, sized(&mut s.q, rows * q_cols));
                linear(team, normed, k, sized(&mut s.k, rows * kv_cols));
                linear(team, normed, v, sized(&mut s.v, rows * kv_cols));
                let (q, k, v) = (
                    &mut s.q[..rows * q_cols],
                    &mut s.k[..rows * kv_cols],
                    &mut s.v[..rows * kv_cols],
                );
                if c.qk_norm == QkNorm::Whole {
                    // OLMoE clips what its norms have left.
                    normalise(q_norm, c.norm_eps, q, &mut s.narrow);
                    normalise(k_norm, c.norm_eps, k, &mut s.narrow);
                }
                if let Some(clip) = c.qkv_clip {
                    for x in [&mut *q, &mut *k, &mut *v] {
                        x.iter_mut().for_each(|x| *x = x.clamp(-clip, clip));
                    }
                }
                if c.qk_norm == QkNorm::Head {
                    normalise(q_norm, c.norm_eps, q, &mut s.narrow);
                    normalise(k_norm, c.norm_eps, k, &mut s.narrow);
                }
                if let Some(rope) = layer.rope {
                    let (angles, pairs) = (&s.angles[rope], c.ropes[rope].frequencies.len());
                    rotate(
                        q,
                        c.heads,
                        c.head_dim,
                        &angles.cos,
                        &angles.sin,
                        pairs,
                        c.rope_style,
                    );
                    rotate(
                        k,
                        c.kv_heads,
                        c.head_dim,
                        &angles.cos,
                        &angles.sin,
                        pairs,
                        c.rope_style,
                    );
                }
            }
            Projections::Latent(latent) => self.latent_queries(team, layer, latent, rows, s),
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
        let result = sized(&mut s.result, rows * c.hidden);
        linear(team, &s.attended[..rows * attended], &w.output, result);
        if w.post_attention_norm.is_some() {
            normalise(&w.post_attention_norm, c.norm_eps, result, &mut s.narrow);
        }
        add_assign(&mut s.state[..rows * c.hidden], result);
    }

    /// Queries in the latent space and this batch's latent keys: `q [rows, heads, kv_rank + rope]`,
    /// `k [rows, kv_rank + rope]`.
    fn latent_queries(
        &self,
        team: &Team,
        layer: &Layer,
        w: &LatentWeights,
        rows: usize,
        s: &mut Scratch,
    ) {
        let c = &self.config;
        let Some(l) = c.latent else { return };
        let normed = &s.normed[..rows * c.hidden];
        let head = l.nope + l.rope;
        let plain = sized(&mut s.v, rows * c.heads * head);
        match &w.q_down {
            Some((down, norm)) => {
                let narrow = sized(&mut s.narrow, rows * down.rows());
                matmul(team, normed, down, narrow);
                let narrow_normed = sized(&mut s.by_head, rows * down.rows());
                rms_norm(narrow, norm, c.norm_eps, narrow_normed);
                matmul(team, narrow_normed, &w.q, plain);
            }
            None => matmul(team, normed, &w.q, plain),
        }
        let width = l.kv_rank + l.rope;
        let down = sized(&mut s.narrow, rows * width);
        matmul(team, normed, &w.kv_down, down);
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

    fn feed_forward(&self, team: &Team, w: &LayerWeights, rows: usize, s: &mut Scratch) {
        let c = &self.config;
        let normed = sized(&mut s.normed, rows * c.hidden);
        rms_norm(&s.state[..rows * c.hidden], &w.ffn_norm, c.norm_eps, normed);
        let result = sized(&mut s.result, rows * c.hidden);
        match (&w.ffn, &c.moe) {
            (FeedForward::Dense(dense), _) => {
                gated(
                    team,
                    c.activation,
                    dense,
                    normed,
                    (&mut s.gate, &mut s.up),
                    result,
                );
            }
            (FeedForward::Experts(experts), Some(rules)) => {
                moe::forward(
                    team,
                    c.activation,
                    rules,
                    experts,
                    normed,
                    &mut s.moe,
                    result,
                );
            }
            (FeedForward::Experts(_), None) => {
                unreachable!("experts are loaded only where the config has them")
            }
        }
        if w.post_ffn_norm.is_some() {
            normalise(&w.post_ffn_norm, c.norm_eps, result, &mut s.narrow);
        }
        add_assign(&mut s.state[..rows * c.hidden], result);
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

/// Norm in place, by way of `narrow`.
fn normalise(weight: &Option<Vec<f32>>, eps: f32, x: &mut [f32], narrow: &mut Vec<f32>) {
    if let Some(weight) = weight {
        let out = sized(narrow, x.len());
        rms_norm(x, weight, eps, out);
        x.copy_from_slice(out);
    }
}
