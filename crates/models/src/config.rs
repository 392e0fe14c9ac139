//! Everything in which the architectures differ, as data.
//! A `Config` that was read is consistent: its sizes divide, fit and are bounded.

mod gguf;
mod hf;

pub use gguf::{from_gguf, to_gguf};
pub(crate) use gguf::{rope_factors, rope_freqs};
pub use hf::from_hf;

use sedge_kernels::{KvShape, RopeStyle};

use crate::Architecture;

/// The function between a feed-forward block's products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// GELU by erf.
    Gelu,
}

/// Norms of queries and keys before their rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Each head by itself.
    Head,
    /// All heads of a token together (OLMoE).
    Whole,
}

/// Which hidden states make a text's embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooling {
    /// The mean of all.
    #[default]
    Mean,
    /// The first token's (BERT's CLS).
    First,
    /// The last token's.
    Last,
}

/// One way of rotating.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians per position of each pair; twice as many values of a head rotate.
    pub frequencies: Vec<f32>,
    /// Multiplies sine and cosine (YaRN, LongRoPE).
    pub magnitude: f32,
    /// Base and scaling as the checkpoint states them, to show and to convert.
    pub stated: StatedRope,
}

/// Rotation as a checkpoint states it.
#[derive(Debug, Clone, PartialEq)]
pub struct StatedRope {
    /// Base of the frequencies, θ.
    pub base: f64,
    /// Scaling of the frequencies.
    pub scaling: RopeScaling,
}

/// How frequencies are stretched for contexts longer than those of training.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not.
    None,
    /// Positions divided by the factor.
    Linear {
        /// Stretch.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies stretched, high ones kept, a ramp between.
    Llama3 {
        /// Stretch of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` are stretched fully.
        low: f64,
        /// Wavelengths below `original / high` are kept.
        high: f64,
        /// Context of training.
        original: f64,
    },
    /// YaRN (Peng et al. 2023), with DeepSeek's two magnitudes.
    Yarn {
        /// Stretch.
        factor: f64,
        /// Context of training.
        original: f64,
        /// Rotations below which a frequency is stretched fully.
        beta_slow: f64,
        /// Rotations above which a frequency is kept.
        beta_fast: f64,
        /// Magnitude of sine and cosine when stated.
        attention_factor: Option<f64>,
        /// DeepSeek's `mscale`.
        mscale: f64,
        /// DeepSeek's `mscale_all_dim`; also scales the scores.
        mscale_all_dim: f64,
    },
    /// A divisor for each frequency (a GGUF file's `rope_freqs`).
    Factors {
        /// Divisors.
        factors: Vec<f32>,
        /// Multiplies sine and cosine.
        magnitude: f64,
    },
    /// LongRoPE (Ding et al. 2024): a divisor for each frequency, of two sets the one that suits
    /// the context.
    Long {
        /// Divisors while the context is no longer than that of training.
        short: Vec<f32>,
        /// Divisors beyond it.
        long: Vec<f32>,
        /// Context of training.
        original: f64,
        /// Multiplies sine and cosine.
        magnitude: f64,
    },
}

/// Mixture of experts.
#[derive(Debug, Clone, PartialEq)]
pub struct Moe {
    /// Experts in a layer.
    pub experts: usize,
    /// Experts that a token visits.
    pub per_token: usize,
    /// Inner size of an expert.
    pub intermediate: usize,
    /// Inner size of the expert that every token visits; 0 for none.
    pub shared_intermediate: usize,
    /// The chosen experts' weights are made to sum to 1.
    pub normalise: bool,
    /// Multiplies the chosen experts' weights.
    pub scale: f32,
    /// Experts come in this many groups, of which `groups_per_token` are open to a token
    /// (DeepSeek's group-limited choice); 1 and 1 for a free choice.
    pub groups: usize,
    /// See `groups`.
    pub groups_per_token: usize,
}

/// Multi-head latent attention (DeepSeek-V2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latent {
    /// Rank of the queries' bottleneck, if they have one.
    pub q_rank: Option<usize>,
    /// Rank of the keys' and values' common bottleneck: what is cached.
    pub kv_rank: usize,
    /// Values of a head that do not rotate.
    pub nope: usize,
    /// Values of a head that rotate, one key for all heads.
    pub rope: usize,
    /// Values of a head's value.
    pub v: usize,
}

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Positions that a token sees, its own included; all of them if `None`.
    pub window: Option<usize>,
    /// Index into [`Config::ropes`]; `None` in a layer without positions.
    pub rope: Option<usize>,
    /// Experts instead of one feed-forward block.
    pub moe: bool,
}

/// A model's shape and rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Family.
    pub architecture: Architecture,
    /// Tokens.
    pub vocab: usize,
    /// Values of a token's state.
    pub hidden: usize,
    /// Inner size of a dense feed-forward block.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values of a head (with latent attention: those of its scores).
    pub head_dim: usize,
    /// Most positions.
    pub context: usize,
    /// Added to variances.
    pub norm_eps: f32,
    /// Between the products of a feed-forward block.
    pub activation: Activation,
    /// Multiplies embeddings (gemma).
    pub embedding_scale: f32,
    /// Multiplies scores.
    pub attention_scale: f32,
    /// Caps scores (gemma 2).
    pub attention_softcap: Option<f32>,
    /// Caps logits (gemma 2).
    pub logit_softcap: Option<f32>,
    /// Caps queries, keys and values to ±this (OLMoE).
    pub qkv_clip: Option<f32>,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Which values of a head form pairs, as the loaded weights want it.
    pub rope_style: RopeStyle,
    /// Ways of rotating that layers refer to.
    pub ropes: Vec<Rope>,
    /// Layers, first to last.
    pub layers: Vec<Layer>,
    /// Experts, where layers have them.
    pub moe: Option<Moe>,
    /// Latent attention, if that is what the layers have.
    pub latent: Option<Latent>,
    /// Token types of an encoder; 0 for decoders.
    pub token_types: usize,
    /// Which hidden states make an embedding.
    pub pooling: Pooling,
}

/// Why a configuration is of no use.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// The architecture is not one that Sedge computes.
    #[error(
        "architecture {found:?} is not known; known are {}",
        Architecture::list()
    )]
    Architecture {
        /// What the checkpoint says.
        found: String,
    },
    /// A key is missing.
    #[error("{key} is missing")]
    Missing {
        /// Key in the checkpoint's configuration.
        key: String,
    },
    /// A key has a value that cannot be used.
    #[error("{key} is {found}; it must be {expected}")]
    Invalid {
        /// Key in the checkpoint's configuration.
        key: String,
        /// Its value.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// The text is not JSON.
    #[error("not valid JSON: {0}")]
    Json(String),
}

impl ConfigError {
    pub(crate) fn invalid(key: &str, found: impl ToString, expected: impl ToString) -> ConfigError {
        ConfigError::Invalid {
            key: key.into(),
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }
}

/// Largest head: bounds the frequencies that are made before the rest is checked.
const HEAD_LIMIT: usize = 1 << 12;

/// Checks how many values of a head there are to rotate.
fn rotating(size: usize) -> Result<usize, ConfigError> {
    match size {
        1..=HEAD_LIMIT => Ok(size),
        _ => Err(ConfigError::invalid(
            "head size",
            size,
            format!("1 to {HEAD_LIMIT}"),
        )),
    }
}

impl Config {
    /// What the cache keeps of a token in one layer.
    pub fn kv_shape(&self) -> KvShape {
        match self.latent {
            Some(l) => KvShape {
                heads: 1,
                k_dim: l.kv_rank + l.rope,
                v_dim: l.kv_rank,
                v_in_k: true,
            },
            None => KvShape {
                heads: self.kv_heads,
                k_dim: self.head_dim,
                v_dim: self.head_dim,
                v_in_k: false,
            },
        }
    }

    /// The same model for sequences of at most `limit` positions. LongRoPE's factors depend on it.
    pub fn within(mut self, limit: usize) -> Config {
        self.context = self.context.min(limit);
        for rope in &mut self.ropes {
            let dims = rope.frequencies.len() * 2;
            *rope = crate::rope::rope(dims, rope.stated.clone(), self.context);
        }
        self
    }

    /// Whether every token sees the whole text.
    pub fn bidirectional(&self) -> bool {
        self.architecture == Architecture::Bert
    }

    /// Checks what the forward pass relies on.
    fn validate(self) -> Result<Config, ConfigError> {
        // Bounds that no real model comes near keep products of sizes far from overflow.
        let bounded = [
            ("vocabulary", self.vocab, 1 << 24),
            ("hidden size", self.hidden, 1 << 20),
            ("intermediate size", self.intermediate, 1 << 22),
            ("attention heads", self.heads, 1 << 14),
            ("key/value heads", self.kv_heads, 1 << 14),
            ("head size", self.head_dim, HEAD_LIMIT),
            ("context length", self.context, 1 << 28),
            ("number of layers", self.layers.len(), 1 << 12),
        ];
        for (key, found, limit) in bounded {
            if found == 0 || found > limit {
                return Err(ConfigError::invalid(key, found, format!("1 to {limit}")));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(ConfigError::invalid(
                "key/value heads",
                self.kv_heads,
                format!("a divisor of the {} attention heads", self.heads),
            ));
        }
        if !(self.norm_eps >= 0.0 && self.norm_eps < 1.0) {
            return Err(ConfigError::invalid(
                "norm epsilon",
                self.norm_eps,
                "from 0 to 1",
            ));
        }
        let rotating = self.latent.map_or(self.head_dim, |l| l.rope);
        for rope in &self.ropes {
            if rope.frequencies.len() * 2 > rotating || rope.frequencies.is_empty() {
                return Err(ConfigError::invalid(
                    "rotary dimensions",
                    rope.frequencies.len() * 2,
                    format!("2 to {rotating}"),
                ));
            }
        }
        if let Some(l) = self.latent {
            for (key, found) in [
                ("kv_lora_rank", l.kv_rank),
                ("q_lora_rank", l.q_rank.unwrap_or(1)),
                ("qk_nope_head_dim", l.nope),
                ("qk_rope_head_dim", l.rope),
                ("v_head_dim", l.v),
            ] {
                if found == 0 || found > 1 << 16 {
                    return Err(ConfigError::invalid(key, found, "1 to 65536"));
                }
            }
        }
        if self.layers.iter().any(|l| l.window == Some(0)) {
            return Err(ConfigError::invalid("sliding window", 0, "at least 1"));
        }
        if self.bidirectional() && self.heads * self.head_dim != self.hidden {
            let found = format!("{} of {}", self.heads, self.head_dim);
            let expected = format!("together {}", self.hidden);
            return Err(ConfigError::invalid("attention heads", found, expected));
        }
        // Encoders use the exact form, decoders the others.
        if self.bidirectional() != (self.activation == Activation::Gelu) {
            let found = format!("{:?}", self.activation);
            let expected = if self.bidirectional() {
                "gelu"
            } else {
                "silu or gelu_pytorch_tanh"
            };
            return Err(ConfigError::invalid("hidden_act", found, expected));
        }
        match &self.moe {
            Some(m) => {
                if m.experts == 0 || m.experts > 1 << 14 {
                    return Err(ConfigError::invalid(
                        "number of experts",
                        m.experts,
                        "1 to 16384",
                    ));
                }
                if m.per_token == 0 || m.per_token > m.experts {
                    return Err(ConfigError::invalid(
                        "experts per token",
                        m.per_token,
                        format!("1 to {}", m.experts),
                    ));
                }
                if m.intermediate == 0 || m.intermediate > 1 << 22 {
                    return Err(ConfigError::invalid(
                        "expert size",
                        m.intermediate,
                        "1 to 4194304",
                    ));
                }
                if m.groups == 0
                    || !m.experts.is_multiple_of(m.groups)
                    || m.groups_per_token == 0
                    || m.groups_per_token > m.groups
                    || m.per_token > m.groups_per_token * (m.experts / m.groups)
                {
                    return Err(ConfigError::invalid(
                        "expert groups",
                        format!("{} of {}", m.groups_per_token, m.groups),
                        format!(
                            "a division of {} experts that leaves {} to choose",
                            m.experts, m.per_token
                        ),
                    ));
                }
            }
            None if self.layers.iter().any(|l| l.moe) => {
                return Err(ConfigError::Missing {
                    key: "number of experts".into(),
                });
            }
            None => {}
        }
        Ok(self)
    }
}
