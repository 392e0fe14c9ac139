//! Configurations in GGUF metadata, both ways.

use indexmap::IndexMap;
use sedge_formats::gguf::{Array, Gguf, Value};
use sedge_kernels::{DType, dequantize};

use super::{
    Activation, Config, ConfigError, Latent, Layer, Moe, Pooling, QkNorm, Rope, RopeScaling,
    StatedRope, rotating,
};
use crate::Architecture;
use crate::rope::{rope, yarn_magnitude};

/// LongRoPE's divisors beyond the context of training.
const LONG_FACTORS: &str = "rope_factors_long.weight";
/// Its divisors within it.
const SHORT_FACTORS: &str = "rope_factors_short.weight";

/// Reads the metadata of a GGUF file.
///
/// # Errors
/// When the architecture is unknown, or a key is missing or out of range.
pub fn from_gguf(file: &Gguf) -> Result<Config, ConfigError> {
    let name = file
        .get("general.architecture")
        .and_then(Value::as_str)
        .ok_or_else(|| ConfigError::Missing {
            key: "general.architecture".into(),
        })?;
    let experts = file
        .get(&format!("{name}.expert_count"))
        .and_then(Value::as_u64)
        .unwrap_or(0)
        > 0;
    let architecture = Architecture::from_gguf(name, experts)
        .ok_or_else(|| ConfigError::Architecture { found: name.into() })?;
    Reader { architecture, file }.config()?.validate()
}

struct Reader<'a> {
    architecture: Architecture,
    file: &'a Gguf,
}

impl Reader<'_> {
    fn config(&self) -> Result<Config, ConfigError> {
        use Architecture::*;
        let hidden = self.size("embedding_length")?;
        let heads = self.size("attention.head_count")?;
        if heads == 0 {
            return Err(ConfigError::invalid(
                "attention.head_count",
                heads,
                "at least 1",
            ));
        }
        let count = self.size("block_count")?;
        if count > 1 << 12 {
            return Err(ConfigError::invalid("block_count", count, "at most 4096"));
        }
        let context = self.size("context_length")?;
        let latent = (self.architecture == DeepseekV2)
            .then(|| self.latent())
            .transpose()?;
        let head_dim = match &latent {
            Some(l) => l.nope + l.rope,
            None => self
                .maybe_size("attention.key_length")?
                .unwrap_or(hidden / heads),
        };
        if let (None, Some(value)) = (&latent, self.maybe_size("attention.value_length")?)
            && value != head_dim
        {
            let key = self.full("attention.value_length");
            return Err(ConfigError::invalid(
                &key,
                value,
                format!("{head_dim}, the length of a key"),
            ));
        }
        let kv_heads = if latent.is_some() {
            heads
        } else {
            self.maybe_size("attention.head_count_kv")?.unwrap_or(heads)
        };
        let gemma = matches!(self.architecture, Gemma2 | Gemma3);
        // The 27B gemmas scale by the mean head size, which their files leave unsaid.
        let scaled_by = match (self.architecture, count) {
            (Gemma2, 46) | (Gemma3, 62) => hidden / heads,
            _ => head_dim,
        };
        let mut attention_scale = self
            .maybe_number("attention.scale")?
            .filter(|&s| s != 0.0)
            .unwrap_or((scaled_by as f64).powf(-0.5));
        let moe = self.moe()?;
        let ropes = self.ropes(rotating(latent.map_or(head_dim, |l| l.rope))?, context)?;
        if latent.is_some()
            && let Some(RopeScaling::Yarn {
                factor,
                mscale_all_dim,
                ..
            }) = ropes.first().map(|r| &r.stated.scaling)
        {
            attention_scale *= yarn_magnitude(*factor, *mscale_all_dim).powi(2);
        }
        let embeddings = self.file.tensors().get("token_embd.weight");
        let vocab = embeddings
            .and_then(|t| t.shape.first().copied())
            .ok_or_else(|| ConfigError::Missing {
                key: "tensor token_embd.weight".into(),
            })?;
        let dense = match (&moe, self.maybe_size("feed_forward_length")?) {
            (_, Some(size)) if size > 0 => size,
            (Some(moe), _) => moe.intermediate,
            (None, _) => self.size("feed_forward_length")?,
        };
        Ok(Config {
            architecture: self.architecture,
            vocab,
            hidden,
            intermediate: dense,
            heads,
            kv_heads,
            head_dim,
            context,
            norm_eps: match self.architecture {
                Bert => self.number("attention.layer_norm_epsilon")? as f32,
                _ => self.number("attention.layer_norm_rms_epsilon")? as f32,
            },
            activation: match self.architecture {
                Gemma2 | Gemma3 => Activation::GeluTanh,
                Bert => Activation::Gelu,
                _ => Activation::Silu,
            },
            embedding_scale: if gemma {
                (hidden as f64).sqrt() as f32
            } else {
                1.0
            },
            attention_scale: attention_scale as f32,
            attention_softcap: self
                .maybe_number("attn_logit_softcapping")?
                .map(|v| v as f32),
            logit_softcap: self
                .maybe_number("final_logit_softcapping")?
                .map(|v| v as f32),
            qkv_clip: self
                .maybe_number("attention.clamp_kqv")?
                .filter(|&v| v > 0.0)
                .map(|v| v as f32),
            qk_norm: match self.architecture {
                Qwen3 | Qwen3Moe | Gemma3 => QkNorm::Head,
                Olmoe => QkNorm::Whole,
                _ => QkNorm::None,
            },
            rope_style: self.architecture.gguf_rope_style(),
            layers: self.layers(count, &ropes, moe.is_some())?,
            ropes,
            moe,
            latent,
            pooling: match self.maybe_size("pooling_type")? {
                None | Some(0 | 1) => Pooling::Mean,
                Some(2) => Pooling::First,
                Some(3) => Pooling::Last,
                Some(other) => {
                    let key = self.full("pooling_type");
                    return Err(ConfigError::invalid(
                        &key,
                        other,
                        "1 (mean), 2 (first) or 3 (last)",
                    ));
                }
            },
            token_types: match self.architecture {
                Bert => self
                    .file
                    .tensors()
                    .get("token_types.weight")
                    .and_then(|t| t.shape.first().copied())
                    .unwrap_or(0),
                _ => 0,
            },
        })
    }

    fn latent(&self) -> Result<Latent, ConfigError> {
        let rope = self.size("rope.dimension_count")?;
        let kv_rank = self.size("attention.kv_lora_rank")?;
        let head = match self.maybe_size("attention.key_length_mla")? {
            Some(size) => size,
            None => self.size("attention.key_length")?,
        };
        let v = match self.maybe_size("attention.value_length_mla")? {
            Some(size) => size,
            None => self.size("attention.value_length")?,
        };
        let nope = head.checked_sub(rope).ok_or_else(|| {
            ConfigError::invalid("attention.key_length", head, format!("more than {rope}"))
        })?;
        let q_rank = self.maybe_size("attention.q_lora_rank")?.filter(|&r| r > 0);
        Ok(Latent {
            q_rank,
            kv_rank,
            nope,
            rope,
            v,
        })
    }

    fn moe(&self) -> Result<Option<Moe>, ConfigError> {
        use Architecture::*;
        if !matches!(
            self.architecture,
            Mixtral | Olmoe | Qwen2Moe | Qwen3Moe | DeepseekV2
        ) {
            return Ok(None);
        }
        if let Some(gating) = self.maybe_size("expert_gating_func")?.filter(|&g| g > 1) {
            return Err(ConfigError::invalid(
                "expert_gating_func",
                gating,
                "1 (softmax)",
            ));
        }
        let experts = self.size("expert_count")?;
        // Without the key, an expert's size stands in the tensor `[experts, size, hidden]`.
        let from_tensor = || {
            let named = |(name, _): &(&String, _)| name.ends_with(".ffn_up_exps.weight");
            self.file
                .tensors()
                .iter()
                .find(named)
                .and_then(|(_, t)| t.shape.get(1).copied())
        };
        let intermediate = match self.maybe_size("expert_feed_forward_length")? {
            Some(size) => size,
            None => match from_tensor() {
                Some(size) => size,
                None => self.size("feed_forward_length")?,
            },
        };
        let shared_intermediate = match self.architecture {
            Qwen2Moe => self
                .maybe_size("expert_shared_feed_forward_length")?
                .unwrap_or(0),
            DeepseekV2 => {
                intermediate.saturating_mul(self.maybe_size("expert_shared_count")?.unwrap_or(0))
            }
            _ => 0,
        };
        let default = matches!(self.architecture, Mixtral | Qwen3Moe);
        Ok(Some(Moe {
            experts,
            per_token: self.size("expert_used_count")?,
            intermediate,
            shared_intermediate,
            normalise: self.flag("expert_weights_norm").unwrap_or(default),
            scale: self
                .maybe_number("expert_weights_scale")?
                .filter(|&s| s != 0.0)
                .unwrap_or(1.0) as f32,
            groups: self
                .maybe_size("expert_group_count")?
                .filter(|&g| g > 0)
                .unwrap_or(1),
            groups_per_token: self
                .maybe_size("expert_group_used_count")?
                .filter(|&g| g > 0)
                .unwrap_or(1),
        }))
    }

    fn ropes(&self, head: usize, context: usize) -> Result<Vec<Rope>, ConfigError> {
        if self.architecture == Architecture::Bert {
            return Ok(Vec::new());
        }
        let base = self.maybe_number("rope.freq_base")?.unwrap_or(10_000.0);
        if !(base > 1.0 && base < 1e15) {
            return Err(ConfigError::invalid("rope.freq_base", base, "more than 1"));
        }
        let dims = self.maybe_size("rope.dimension_count")?.unwrap_or(head);
        if dims == 0 || dims > head || !dims.is_multiple_of(2) {
            return Err(ConfigError::invalid(
                "rope.dimension_count",
                dims,
                format!("an even number up to {head}"),
            ));
        }
        let original = self
            .maybe_number("rope.scaling.original_context_length")?
            .unwrap_or(context as f64);
        let factor = self
            .maybe_number("rope.scaling.factor")?
            .filter(|&f| f > 0.0);
        let magnitude = self.maybe_number("rope.scaling.attn_factor")?;
        let factors = self.vector("rope_freqs.weight", dims / 2)?;
        let short = self.vector(SHORT_FACTORS, dims / 2)?;
        let long = self.vector(LONG_FACTORS, dims / 2)?;
        let kind = self.key("rope.scaling.type").and_then(Value::as_str);
        let missing = |tensor: &str| ConfigError::Missing {
            key: format!("tensor {tensor}"),
        };
        let scaling = match (factors, kind, factor) {
            (Some(factors), _, _) => RopeScaling::Factors {
                factors,
                magnitude: magnitude.unwrap_or(1.0),
            },
            (None, kind, _) if short.is_some() || long.is_some() || kind == Some("longrope") => {
                RopeScaling::Long {
                    short: short.ok_or_else(|| missing(SHORT_FACTORS))?,
                    long: long.ok_or_else(|| missing(LONG_FACTORS))?,
                    original,
                    magnitude: magnitude.unwrap_or(1.0),
                }
            }
            (None, Some("yarn"), Some(factor)) => {
                // llama.cpp stores 0.1 · mscale_all_dim, which both of DeepSeek's magnitudes equal,
                // and reads the key for this architecture alone.
                let mscale = match self.architecture {
                    Architecture::DeepseekV2 => {
                        let stored = self.maybe_number("rope.scaling.yarn_log_multiplier")?;
                        stored.unwrap_or(0.0) * 10.0
                    }
                    _ => 0.0,
                };
                RopeScaling::Yarn {
                    factor,
                    original,
                    beta_slow: self
                        .maybe_number("rope.scaling.yarn_beta_slow")?
                        .unwrap_or(1.0),
                    beta_fast: self
                        .maybe_number("rope.scaling.yarn_beta_fast")?
                        .unwrap_or(32.0),
                    // `attn_factor` multiplies the usual magnitude. `yarn_attn_factor` is left
                    // unread: llama.cpp replaces it by that magnitude.
                    attention_factor: magnitude.map(|m| m * usual_magnitude(factor, mscale)),
                    mscale,
                    mscale_all_dim: mscale,
                }
            }
            (None, Some("linear") | None, Some(factor)) if factor != 1.0 => {
                RopeScaling::Linear { factor }
            }
            (None, Some("none" | "linear" | "yarn") | None, _) => RopeScaling::None,
            (None, Some(other), _) => {
                return Err(ConfigError::invalid(
                    "rope.scaling.type",
                    other,
                    "none, linear, yarn or longrope",
                ));
            }
        };
        let mut ropes = vec![rope(dims, StatedRope { base, scaling }, context)];
        if self.architecture == Architecture::Gemma3 {
            let base = self.maybe_number("rope.freq_base_swa")?.unwrap_or(10_000.0);
            ropes.push(rope(
                dims,
                StatedRope {
                    base,
                    scaling: RopeScaling::None,
                },
                context,
            ));
        }
        Ok(ropes)
    }

    fn layers(&self, count: usize, ropes: &[Rope], moe: bool) -> Result<Vec<Layer>, ConfigError> {
        use Architecture::*;
        let window = self
            .maybe_size("attention.sliding_window")?
            .filter(|&w| w > 0);
        let pattern = self.key("attention.sliding_window_pattern");
        let each = pattern.and_then(Value::as_array).and_then(Array::bools);
        let every = pattern
            .and_then(Value::as_u64)
            .and_then(|v| usize::try_from(v).ok())
            .filter(|&v| v > 0);
        let dense_first = self.maybe_size("leading_dense_block_count")?.unwrap_or(0);
        Ok((0..count)
            .map(|i| {
                let sliding = match each.and_then(|each| each.get(i)) {
                    Some(&sliding) => sliding,
                    None => match self.architecture {
                        Gemma2 => (i + 1) % every.unwrap_or(2) != 0,
                        Gemma3 => (i + 1) % every.unwrap_or(6) != 0,
                        // llama.cpp does not read the key in these; Sedge's files have the array.
                        Llama | Mixtral | Olmoe | DeepseekV2 => false,
                        _ => true,
                    },
                };
                let rotates = match self.architecture {
                    Bert => false,
                    // llama.cpp fixes the interval for this architecture too.
                    SmolLm3 => (i + 1) % 4 != 0,
                    _ => true,
                };
                let rope = if sliding && ropes.len() > 1 { 1 } else { 0 };
                // Layers with a dense block among expert layers show by their tensors.
                let moe = moe
                    && i >= dense_first
                    && self
                        .file
                        .tensors()
                        .contains_key(&format!("blk.{i}.ffn_gate_inp.weight"));
                Layer {
                    window: window.filter(|_| sliding),
                    rope: rotates.then_some(rope),
                    moe,
                }
            })
            .collect())
    }

    fn vector(&self, tensor: &str, len: usize) -> Result<Option<Vec<f32>>, ConfigError> {
        let Some(info) = self.file.tensors().get(tensor) else {
            return Ok(None);
        };
        if info.shape != [len] {
            return Err(ConfigError::invalid(
                tensor,
                format!("{:?}", info.shape),
                format!("[{len}]"),
            ));
        }
        let mut out = vec![0.0; len];
        dequantize(info.dtype, &self.file.data(info), &mut out)
            .map_err(|e| ConfigError::invalid(tensor, e, "a vector"))?;
        Ok(Some(out))
    }

    fn key(&self, key: &str) -> Option<&Value> {
        self.file
            .get(&format!("{}.{key}", self.architecture.gguf_name()))
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.gguf_name())
    }

    fn maybe_size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.key(key)
            .map(|v| {
                let one = match v {
                    // Some files give a number for each layer; those computed here have them equal.
                    Value::Array(each) => each
                        .to_u64s()
                        .filter(|e| e.windows(2).all(|w| w[0] == w[1]))
                        .and_then(|e| e.first().copied()),
                    _ => v.as_u64(),
                };
                one.and_then(|v| usize::try_from(v).ok()).ok_or_else(|| {
                    ConfigError::invalid(
                        &self.full(key),
                        format!("{v:?}"),
                        "a whole number, the same for all layers",
                    )
                })
            })
            .transpose()
    }

    fn size(&self, key: &str) -> Result<usize, ConfigError> {
        self.maybe_size(key)?.ok_or_else(|| ConfigError::Missing {
            key: self.full(key),
        })
    }

    fn maybe_number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.key(key)
            .map(|v| {
                v.as_f64().ok_or_else(|| {
                    ConfigError::invalid(&self.full(key), format!("{v:?}"), "a number")
                })
            })
            .transpose()
    }

    fn number(&self, key: &str) -> Result<f64, ConfigError> {
        self.maybe_number(key)?.ok_or_else(|| ConfigError::Missing {
            key: self.full(key),
        })
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.key(key).and_then(Value::as_bool)
    }
}

/// The metadata that says what `config` says, under the names that llama.cpp reads.
pub fn to_gguf(config: &Config) -> IndexMap<String, Value> {
    use Architecture::*;
    let name = config.architecture.gguf_name();
    let mut out = IndexMap::new();
    out.insert(
        "general.architecture".to_string(),
        Value::String(name.into()),
    );
    let mut put = |key: &str, value: Value| {
        out.insert(format!("{name}.{key}"), value);
    };
    let size = |v: usize| Value::U32(u32::try_from(v).unwrap_or(u32::MAX));
    let number = |v: f64| Value::F32(v as f32);

    put("vocab_size", size(config.vocab));
    put("context_length", size(config.context));
    put("embedding_length", size(config.hidden));
    put("block_count", size(config.layers.len()));
    put("feed_forward_length", size(config.intermediate));
    put("attention.head_count", size(config.heads));
    put("attention.head_count_kv", size(config.kv_heads));
    let pooling = match config.pooling {
        Pooling::Mean => 1,
        Pooling::First => 2,
        Pooling::Last => 3,
    };
    if config.architecture == Bert || config.pooling != Pooling::Mean {
        put("pooling_type", size(pooling));
    }
    if config.architecture == Bert {
        put(
            "attention.layer_norm_epsilon",
            number(config.norm_eps.into()),
        );
        put("attention.causal", Value::Bool(false));
        return out;
    }
    put(
        "attention.layer_norm_rms_epsilon",
        number(config.norm_eps.into()),
    );
    put("attention.key_length", size(config.head_dim));
    put(
        "attention.value_length",
        size(config.latent.map_or(config.head_dim, |l| l.v)),
    );
    if let Some(latent) = config.latent {
        put("attention.q_lora_rank", size(latent.q_rank.unwrap_or(0)));
        put("attention.kv_lora_rank", size(latent.kv_rank));
    }
    if let Some(window) = config.layers.iter().find_map(|l| l.window) {
        put("attention.sliding_window", size(window));
        if !matches!(config.architecture, Gemma2 | Gemma3) {
            let each = config.layers.iter().map(|l| l.window.is_some()).collect();
            put(
                "attention.sliding_window_pattern",
                Value::Array(Array::Bool(each)),
            );
        }
    }
    if let Some(cap) = config.attention_softcap {
        put("attn_logit_softcapping", number(cap.into()));
    }
    if let Some(cap) = config.logit_softcap {
        put("final_logit_softcapping", number(cap.into()));
    }
    if let Some(clip) = config.qkv_clip {
        put("attention.clamp_kqv", number(clip.into()));
    }
    let usual = (config.head_dim as f64).powf(-0.5);
    if config.latent.is_none() && (f64::from(config.attention_scale) - usual).abs() > usual * 1e-5 {
        put("attention.scale", number(config.attention_scale.into()));
    }
    if let Some(moe) = &config.moe {
        put("expert_count", size(moe.experts));
        put("expert_used_count", size(moe.per_token));
        put("expert_feed_forward_length", size(moe.intermediate));
        put("expert_weights_norm", Value::Bool(moe.normalise));
        put("expert_weights_scale", number(moe.scale.into()));
        match config.architecture {
            DeepseekV2 => {
                put(
                    "expert_shared_count",
                    size(moe.shared_intermediate / moe.intermediate.max(1)),
                );
                put(
                    "leading_dense_block_count",
                    size(config.layers.iter().take_while(|l| !l.moe).count()),
                );
                put("expert_group_count", size(moe.groups));
                put("expert_group_used_count", size(moe.groups_per_token));
            }
            Qwen2Moe => put(
                "expert_shared_feed_forward_length",
                size(moe.shared_intermediate),
            ),
            _ => {}
        }
    }
    let rotating = config.latent.map_or(config.head_dim, |l| l.rope);
    let dims = config
        .ropes
        .first()
        .map_or(rotating, |r| r.frequencies.len() * 2);
    put("rope.dimension_count", size(dims));
    if let Some(rope) = config.ropes.first() {
        put("rope.freq_base", number(rope.stated.base));
        match &rope.stated.scaling {
            // Llama 3.1's divisors travel as the tensor rope_freqs, as llama.cpp's do.
            RopeScaling::None | RopeScaling::Llama3 { .. } => {}
            RopeScaling::Factors { magnitude, .. } => {
                put("rope.scaling.attn_factor", number(*magnitude))
            }
            // The divisors travel as two tensors, between which llama.cpp chooses.
            RopeScaling::Long {
                original,
                magnitude,
                ..
            } => {
                put(
                    "rope.scaling.original_context_length",
                    size(*original as usize),
                );
                put("rope.scaling.attn_factor", number(*magnitude));
            }
            RopeScaling::Linear { factor } => {
                put("rope.scaling.type", Value::String("linear".into()));
                put("rope.scaling.factor", number(*factor));
            }
            RopeScaling::Yarn {
                factor,
                original,
                beta_slow,
                beta_fast,
                mscale_all_dim,
                ..
            } => {
                put("rope.scaling.type", Value::String("yarn".into()));
                put("rope.scaling.factor", number(*factor));
                put(
                    "rope.scaling.original_context_length",
                    size(*original as usize),
                );
                put("rope.scaling.yarn_beta_slow", number(*beta_slow));
                put("rope.scaling.yarn_beta_fast", number(*beta_fast));
                let mscale = match config.architecture {
                    DeepseekV2 => *mscale_all_dim,
                    _ => 0.0,
                };
                if mscale != 0.0 {
                    put("rope.scaling.yarn_log_multiplier", number(mscale * 0.1));
                }
                let share = f64::from(rope.magnitude) / usual_magnitude(*factor, mscale);
                if (share - 1.0).abs() > 1e-6 {
                    put("rope.scaling.attn_factor", number(share));
                }
            }
        }
    }
    if let Some(rope) = config.ropes.get(1) {
        put("rope.freq_base_swa", number(rope.stated.base));
    }
    out
}

/// The magnitude that llama.cpp gives sine and cosine with YaRN, `attn_factor` apart: the paper's,
/// or none where DeepSeek's two magnitudes cancel each other.
fn usual_magnitude(factor: f64, mscale: f64) -> f64 {
    match mscale > 0.0 {
        true => 1.0,
        false => yarn_magnitude(factor, 1.0),
    }
}

/// LongRoPE's divisors, as the tensors that llama.cpp reads.
pub(crate) fn rope_factors(config: &Config) -> Vec<(&'static str, Vec<f32>)> {
    match config.ropes.first().map(|rope| &rope.stated.scaling) {
        Some(RopeScaling::Long { short, long, .. }) => {
            vec![(LONG_FACTORS, long.clone()), (SHORT_FACTORS, short.clone())]
        }
        _ => Vec::new(),
    }
}

/// The divisors of the frequencies that metadata cannot say: the tensor `rope_freqs.weight`.
pub(crate) fn rope_freqs(config: &Config) -> Option<(DType, Vec<f32>)> {
    let first = config.ropes.first()?;
    if !matches!(
        first.stated.scaling,
        RopeScaling::Llama3 { .. } | RopeScaling::Factors { .. }
    ) {
        return None;
    }
    let dims = first.frequencies.len() * 2;
    let plain = rope(
        dims,
        StatedRope {
            base: first.stated.base,
            scaling: RopeScaling::None,
        },
        config.context,
    );
    let divisors = plain
        .frequencies
        .iter()
        .zip(&first.frequencies)
        .map(|(p, f)| p / f)
        .collect();
    Some((DType::F32, divisors))
}
