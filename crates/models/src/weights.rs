//! A decoder's weights, read from tensors into the shapes that the forward pass walks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sedge_kernels::{ActivationBits, Matrix, Weight, dequantize};

use crate::config::{Config, Latent, QkNorm};
use crate::tensors::{Stored, TensorError, Tensors};

/// A product with an optional bias.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub(crate) weight: Weight,
    pub(crate) bias: Option<Vec<f32>>,
    /// Of what it reads; 8 without.
    pub(crate) activation_bits: Option<ActivationBits>,
    /// Keeps the rows that it reads, while a model is calibrated.
    pub(crate) watch: Option<Watch>,
}

impl Linear {
    pub(crate) fn new(weight: Weight, bias: Option<Vec<f32>>) -> Linear {
        Linear {
            weight,
            bias,
            activation_bits: None,
            watch: None,
        }
    }
}

impl From<Matrix> for Linear {
    fn from(weight: Matrix) -> Linear {
        Linear::new(weight.into(), None)
    }
}

/// Rows that products have read, as f32, one after the other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watch(Arc<Mutex<Vec<f32>>>);

impl Watch {
    pub(crate) fn see(&self, rows: &[f32]) {
        self.rows().extend_from_slice(rows);
    }

    /// What has been seen.
    pub(crate) fn rows(&self) -> MutexGuard<'_, Vec<f32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gate, up and down of a gated feed-forward block.
#[derive(Debug, Clone)]
pub(crate) struct Gated {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// Experts, the matrix that chooses among them, and the one that all tokens visit.
#[derive(Debug, Clone)]
pub(crate) struct Experts {
    pub(crate) router: Matrix,
    pub(crate) experts: Vec<Gated>,
    pub(crate) shared: Option<Gated>,
    /// Scales the shared expert by its sigmoid (Qwen).
    pub(crate) shared_gate: Option<Matrix>,
}

#[derive(Debug, Clone)]
pub(crate) enum FeedForward {
    Dense(Gated),
    Experts(Experts),
}

/// Latent attention in its absorbed form: queries are brought into the latent space and the
/// result out of it, so that one cached vector serves all heads as key and as value.
#[derive(Debug, Clone)]
pub(crate) struct LatentWeights {
    /// Queries' bottleneck and its norm, if they have one; then `q` reads from it.
    pub(crate) q_down: Option<(Linear, Vec<f32>)>,
    /// `[heads · (nope + rope), …]`.
    pub(crate) q: Linear,
    /// `[kv_rank + rope, hidden]`.
    pub(crate) kv_down: Linear,
    pub(crate) kv_norm: Vec<f32>,
    /// For each head `[kv_rank, nope]`: a query's part without positions into the latent space.
    pub(crate) q_to_latent: Vec<Matrix>,
    /// For each head `[v, kv_rank]`: out of it.
    pub(crate) latent_to_v: Vec<Matrix>,
}

// One for each layer: what a box would save is nothing beside the weights.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
pub(crate) enum Projections {
    /// Query, key, value, and norms of queries and keys.
    Heads {
        q: Linear,
        k: Linear,
        v: Linear,
        q_norm: Option<Vec<f32>>,
        k_norm: Option<Vec<f32>>,
    },
    Latent(Box<LatentWeights>),
}

#[derive(Debug, Clone)]
pub(crate) struct LayerWeights {
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) projections: Projections,
    pub(crate) output: Linear,
    /// Norm of attention's result before it is added (gemma).
    pub(crate) post_attention_norm: Option<Vec<f32>>,
    pub(crate) ffn_norm: Vec<f32>,
    pub(crate) ffn: FeedForward,
    /// Norm of the feed-forward's result before it is added (gemma).
    pub(crate) post_ffn_norm: Option<Vec<f32>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Weights {
    /// `None` where the head's are the same.
    pub(crate) embeddings: Option<Matrix>,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) norm: Vec<f32>,
    /// `[vocab, hidden]`.
    pub(crate) head: Linear,
}

impl Weights {
    pub(crate) fn load(config: &Config, t: &Tensors) -> Result<Weights, TensorError> {
        let embeddings = t.matrix("token_embd.weight", config.vocab, config.hidden)?;
        let (embeddings, head, name) = match t.find("output.weight") {
            Some(head) => (
                Some(embeddings),
                head.matrix(&[config.vocab, config.hidden])?,
                "output.weight",
            ),
            None => (None, embeddings, "token_embd.weight"),
        };
        let layers = (0..config.layers.len())
            .map(|i| layer(config, t, i))
            .collect::<Result<_, _>>()?;
        let norm = t.vector("output_norm.weight", config.hidden)?;
        t.all_used()?;
        Ok(Weights {
            embeddings,
            layers,
            norm,
            head: Linear {
                activation_bits: t.activation_bits(name, config.hidden)?,
                ..head.into()
            },
        })
    }

    /// A token's embedding.
    pub(crate) fn embedding(&self, token: usize, out: &mut [f32]) {
        match &self.embeddings {
            Some(embeddings) => embeddings.row(token, out),
            None => self.head.weight.row(token, out),
        }
    }

    /// What products read; embeddings of their own, read row by row, stay as they are stored.
    pub(crate) fn packed(&mut self) -> impl Iterator<Item = &mut Weight> {
        let linears = self.layers.iter_mut().flat_map(LayerWeights::linears);
        let all = linears.chain([&mut self.head]);
        all.map(|linear| &mut linear.weight)
    }
}

impl Gated {
    fn linears(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }

    fn linears_mut(&mut self) -> [&mut Linear; 3] {
        [&mut self.gate, &mut self.up, &mut self.down]
    }
}

impl LayerWeights {
    /// Every product of the layer but those of a few rows or of one head: the choice of experts
    /// and the ways into and out of a latent space.
    pub(crate) fn linears(&mut self) -> Vec<&mut Linear> {
        let mut all = match &mut self.projections {
            Projections::Heads { q, k, v, .. } => vec![q, k, v],
            Projections::Latent(latent) => {
                let LatentWeights {
                    q_down, q, kv_down, ..
                } = &mut **latent;
                let down = q_down.as_mut().map(|(down, _)| down);
                down.into_iter().chain([q, kv_down]).collect()
            }
        };
        all.push(&mut self.output);
        match &mut self.ffn {
            FeedForward::Dense(gated) => all.extend(gated.linears_mut()),
            FeedForward::Experts(e) => {
                let experts = e.experts.iter_mut().chain(&mut e.shared);
                all.extend(experts.flat_map(Gated::linears_mut));
            }
        }
        all
    }

    /// What one token reads of the layer.
    fn work(&self, per_token: usize) -> Work {
        let attention: Vec<&Linear> = match &self.projections {
            Projections::Heads { q, k, v, .. } => vec![q, k, v],
            Projections::Latent(l) => {
                let down = l.q_down.as_ref().map(|(down, _)| down);
                down.into_iter().chain([&l.q, &l.kv_down]).collect()
            }
        };
        let always = attention.into_iter().chain([&self.output]);
        match &self.ffn {
            FeedForward::Dense(gated) => Work::of(always.chain(gated.linears())),
            FeedForward::Experts(e) => {
                let shared = e.shared.iter().flat_map(Gated::linears);
                // All experts are of one size.
                let visited = e.experts.iter().take(per_token).flat_map(Gated::linears);
                Work::of(always.chain(shared).chain(visited))
            }
        }
    }
}

/// What the products of one token take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes of weights that are read.
    pub bytes: u64,
    /// Multiply-adds.
    pub products: u64,
}

impl Work {
    fn of<'a>(linears: impl Iterator<Item = &'a Linear>) -> Work {
        linears
            .map(|l| &l.weight)
            .fold(Work::default(), |sum, w| Work {
                bytes: sum.bytes + w.bytes() as u64,
                products: sum.products + (w.rows() * w.cols()) as u64,
            })
    }
}

impl Weights {
    /// What one token takes in all layers, and in the head.
    pub(crate) fn work(&self, config: &Config) -> [Work; 2] {
        let per_token = config.moe.as_ref().map_or(0, |m| m.per_token);
        let layers = self.layers.iter().map(|l| l.work(per_token));
        let layers = layers.fold(Work::default(), |a, b| Work {
            bytes: a.bytes + b.bytes,
            products: a.products + b.products,
        });
        [layers, Work::of([&self.head].into_iter())]
    }
}

/// A layer's tensors by the part of the name after `blk.N.`.
struct Block<'a> {
    tensors: &'a Tensors,
    prefix: String,
}

impl Block<'_> {
    fn name(&self, part: &str) -> String {
        format!("{}.{part}", self.prefix)
    }

    /// Whether there is a tensor or a stack of this name.
    fn has(&self, part: &str) -> bool {
        let stacks = self.tensors.stacks.as_ref();
        self.find(part).is_some() || stacks.is_some_and(|s| s.has(&self.name(part)))
    }

    fn find(&self, part: &str) -> Option<&Stored> {
        self.tensors.find(&self.name(part))
    }

    fn vector(&self, part: &str, len: usize) -> Result<Vec<f32>, TensorError> {
        self.tensors.vector(&self.name(part), len)
    }

    fn maybe_vector(&self, part: &str, len: usize) -> Result<Option<Vec<f32>>, TensorError> {
        self.tensors.maybe_vector(&self.name(part), len)
    }

    fn matrix(&self, part: &str, rows: usize, cols: usize) -> Result<Matrix, TensorError> {
        self.tensors.matrix(&self.name(part), rows, cols)
    }

    fn linear(&self, part: &str, rows: usize, cols: usize) -> Result<Linear, TensorError> {
        let stacks = self.tensors.stacks.as_ref();
        let name = self.name(&format!("{part}.weight"));
        let stacked = stacks.map(|stacks| stacks.matrix(&name, rows, cols));
        let linear = match stacked.transpose()?.flatten() {
            Some(stacked) => Linear {
                activation_bits: self.activation_bits(&format!("{part}.weight"), cols)?,
                ..Linear::new(stacked, None)
            },
            None => self.unbiased(part, rows, cols)?,
        };
        Ok(Linear {
            bias: self.maybe_vector(&format!("{part}.bias"), rows)?,
            ..linear
        })
    }

    fn unbiased(&self, part: &str, rows: usize, cols: usize) -> Result<Linear, TensorError> {
        let name = format!("{part}.weight");
        Ok(Linear {
            activation_bits: self.activation_bits(&name, cols)?,
            ..self.matrix(&name, rows, cols)?.into()
        })
    }

    fn activation_bits(
        &self,
        part: &str,
        cols: usize,
    ) -> Result<Option<ActivationBits>, TensorError> {
        self.tensors.activation_bits(&self.name(part), cols)
    }

    /// Several products in one matrix, their rows one after the other.
    fn fused(&self, part: &str, rows: &[usize], cols: usize) -> Result<Vec<Linear>, TensorError> {
        let count = rows.iter().sum();
        let all = self.matrix(&format!("{part}.weight"), count, cols)?;
        let bias = self.maybe_vector(&format!("{part}.bias"), count)?;
        let activation_bits = self.activation_bits(&format!("{part}.weight"), cols)?;
        let mut start = 0;
        let split = |&n: &usize| {
            let range = start..start + n;
            start += n;
            let weight = all.slice_rows(range.clone());
            Linear {
                bias: bias.as_ref().map(|b| b[range].to_vec()),
                activation_bits: activation_bits.clone(),
                ..weight.into()
            }
        };
        Ok(rows.iter().map(split).collect())
    }
}

fn layer(config: &Config, tensors: &Tensors, index: usize) -> Result<LayerWeights, TensorError> {
    let b = Block {
        tensors,
        prefix: format!("blk.{index}"),
    };
    let hidden = config.hidden;
    let (projections, attention_out) = match config.latent {
        Some(latent) => (
            latent_attention(config, &b, latent)?,
            config.heads * latent.v,
        ),
        None => (heads(config, &b)?, config.heads * config.head_dim),
    };
    Ok(LayerWeights {
        attention_norm: b.vector("attn_norm.weight", hidden)?,
        projections,
        output: b.linear("attn_output", hidden, attention_out)?,
        post_attention_norm: b.maybe_vector("post_attention_norm.weight", hidden)?,
        ffn_norm: b.vector("ffn_norm.weight", hidden)?,
        ffn: feed_forward(config, &b, config.layers[index].moe)?,
        post_ffn_norm: b.maybe_vector("post_ffw_norm.weight", hidden)?,
    })
}

fn heads(config: &Config, b: &Block<'_>) -> Result<Projections, TensorError> {
    let (q_rows, kv_rows) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    let [q, k, v] = if b.find("attn_qkv.weight").is_some() {
        let mut parts = b
            .fused("attn_qkv", &[q_rows, kv_rows, kv_rows], config.hidden)?
            .into_iter();
        [(); 3].map(|()| parts.next().expect("three parts were asked for"))
    } else {
        [
            b.linear("attn_q", q_rows, config.hidden)?,
            b.linear("attn_k", kv_rows, config.hidden)?,
            b.linear("attn_v", kv_rows, config.hidden)?,
        ]
    };
    let (q_norm, k_norm) = match config.qk_norm {
        QkNorm::None => (None, None),
        QkNorm::Head => (Some(config.head_dim), Some(config.head_dim)),
        QkNorm::Whole => (Some(q_rows), Some(kv_rows)),
    };
    let q_norm = q_norm
        .map(|len| b.vector("attn_q_norm.weight", len))
        .transpose()?;
    let k_norm = k_norm
        .map(|len| b.vector("attn_k_norm.weight", len))
        .transpose()?;
    Ok(Projections::Heads {
        q,
        k,
        v,
        q_norm,
        k_norm,
    })
}

fn latent_attention(config: &Config, b: &Block<'_>, l: Latent) -> Result<Projections, TensorError> {
    let (hidden, heads) = (config.hidden, config.heads);
    let q_rows = heads * (l.nope + l.rope);
    let (q_down, q) = match l.q_rank {
        Some(rank) => {
            let down = b.unbiased("attn_q_a", rank, hidden)?;
            (
                Some((down, b.vector("attn_q_a_norm.weight", rank)?)),
                b.unbiased("attn_q_b", q_rows, rank)?,
            )
        }
        None => (None, b.unbiased("attn_q", q_rows, hidden)?),
    };
    let (q_to_latent, latent_to_v) = match b.find("attn_kv_b.weight") {
        Some(both) => {
            let both = both.matrix(&[heads * (l.nope + l.v), l.kv_rank])?;
            let head = |h: usize| h * (l.nope + l.v);
            let k = |h: usize| transposed(&both.slice_rows(head(h)..head(h) + l.nope));
            let v = |h: usize| both.slice_rows(head(h) + l.nope..head(h + 1));
            ((0..heads).map(k).collect(), (0..heads).map(v).collect())
        }
        // Newer GGUF files hold the two parts apart, the key's already transposed.
        None => (
            b.tensors
                .experts(&b.name("attn_k_b.weight"), heads, l.kv_rank, l.nope)?,
            b.tensors
                .experts(&b.name("attn_v_b.weight"), heads, l.v, l.kv_rank)?,
        ),
    };
    Ok(Projections::Latent(Box::new(LatentWeights {
        q_down,
        q,
        kv_down: b.unbiased("attn_kv_a_mqa", l.kv_rank + l.rope, hidden)?,
        kv_norm: b.vector("attn_kv_a_norm.weight", l.kv_rank)?,
        q_to_latent,
        latent_to_v,
    })))
}

/// `wᵀ` in f32: small, one head's share of a low-rank product.
fn transposed(w: &Matrix) -> Matrix {
    let (rows, cols) = (w.rows(), w.cols());
    let mut values = vec![0.0; rows * cols];
    dequantize(w.dtype(), w.bytes(), &mut values).expect("a matrix has the bytes of its shape");
    let turned: Vec<f32> = (0..cols * rows)
        .map(|i| values[(i % rows) * cols + i / rows])
        .collect();
    Matrix::from_f32(cols, rows, &turned).expect("as many values as before")
}

fn feed_forward(config: &Config, b: &Block<'_>, moe: bool) -> Result<FeedForward, TensorError> {
    let hidden = config.hidden;
    let (true, Some(m)) = (moe, &config.moe) else {
        let inner = config.intermediate;
        let (gate, up) = if b.has("ffn_gate.weight") {
            (
                b.linear("ffn_gate", inner, hidden)?,
                b.linear("ffn_up", inner, hidden)?,
            )
        } else {
            let mut parts = b.fused("ffn_up", &[inner, inner], hidden)?.into_iter();
            let mut next = || parts.next().expect("two parts were asked for");
            (next(), next())
        };
        return Ok(FeedForward::Dense(Gated {
            gate,
            up,
            down: b.linear("ffn_down", hidden, inner)?,
        }));
    };
    let part = |part: &str, rows, cols| b.tensors.experts(&b.name(part), m.experts, rows, cols);
    let gates = part("ffn_gate_exps.weight", m.intermediate, hidden)?;
    let ups = part("ffn_up_exps.weight", m.intermediate, hidden)?;
    let downs = part("ffn_down_exps.weight", hidden, m.intermediate)?;
    let of = |part: &str, cols| b.activation_bits(&format!("{part}.weight"), cols);
    let narrow = [of("ffn_gate_exps", hidden)?, of("ffn_up_exps", hidden)?];
    let down_bits = of("ffn_down_exps", m.intermediate)?;
    let expert = |weight: Matrix, activation_bits: &Option<ActivationBits>| Linear {
        activation_bits: activation_bits.clone(),
        ..weight.into()
    };
    let experts = gates
        .into_iter()
        .zip(ups)
        .zip(downs)
        .map(|((gate, up), down)| Gated {
            gate: expert(gate, &narrow[0]),
            up: expert(up, &narrow[1]),
            down: expert(down, &down_bits),
        })
        .collect();
    let shared = (m.shared_intermediate > 0)
        .then(|| {
            Ok::<_, TensorError>(Gated {
                gate: b.linear("ffn_gate_shexp", m.shared_intermediate, hidden)?,
                up: b.linear("ffn_up_shexp", m.shared_intermediate, hidden)?,
                down: b.linear("ffn_down_shexp", hidden, m.shared_intermediate)?,
            })
        })
        .transpose()?;
    let shared_gate = b
        .find("ffn_gate_inp_shexp.weight")
        .map(|s| s.matrix(&[1, hidden]))
        .transpose()?;
    let router = b.matrix("ffn_gate_inp.weight", m.experts, hidden)?;
    Ok(FeedForward::Experts(Experts {
        router,
        experts,
        shared,
        shared_gate,
    }))
}
