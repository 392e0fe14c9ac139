//! Configurations from Hugging Face's `config.json`, of transformers 4 and 5.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::{
    Activation, Config, ConfigError, Latent, Layer, Moe, Pooling, QkNorm, Rope, RopeScaling,
    StatedRope, rotating,
};
use crate::Architecture;
use crate::rope::{rope, yarn_magnitude};

/// Reads the text of a `config.json`.
///
/// # Errors
/// When it is not JSON, names an unknown architecture, or a key is missing or out of range.
pub fn from_hf(text: &str) -> Result<Config, ConfigError> {
    let json: Value = serde_json::from_str(text).map_err(|e| ConfigError::Json(e.to_string()))?;
    let root = json
        .as_object()
        .ok_or_else(|| ConfigError::Json("it is not an object".into()))?;
    let model_type = Keys(root).string("model_type")?;
    // A text model inside a vision-language checkpoint keeps its keys one level down.
    let (root, model_type) = match root.get("text_config").and_then(Value::as_object) {
        Some(text) => {
            let default = match model_type {
                "gemma3" => "gemma3_text",
                other => other,
            };
            (text, Keys(text).string("model_type").unwrap_or(default))
        }
        None => (root, model_type),
    };
    let architecture =
        Architecture::from_model_type(model_type).ok_or_else(|| ConfigError::Architecture {
            found: model_type.into(),
        })?;
    let root = match architecture {
        Architecture::Gemma3 => Cow::Owned(with_gemma3_defaults(root)),
        _ => Cow::Borrowed(root),
    };
    Reader {
        architecture,
        keys: Keys(&root),
    }
    .config()?
    .validate()
}

/// Adds what published folders leave out because it equals the defaults of transformers'
/// `Gemma3TextConfig`. The other architectures' folders are whole.
fn with_gemma3_defaults(root: &Map<String, Value>) -> Map<String, Value> {
    let mut all = root.clone();
    for (key, value) in [
        ("vocab_size", Value::from(262_208)),
        ("hidden_size", 2304.into()),
        ("intermediate_size", 9216.into()),
        ("num_hidden_layers", 26.into()),
        ("num_attention_heads", 8.into()),
        ("num_key_value_heads", 4.into()),
        ("head_dim", 256.into()),
        ("max_position_embeddings", 131_072.into()),
        ("rms_norm_eps", 1e-6.into()),
        ("rope_theta", 1e6.into()),
        ("query_pre_attn_scalar", 256.into()),
        ("sliding_window", 4096.into()),
    ] {
        all.entry(key).or_insert(value);
    }
    all
}

struct Reader<'a> {
    architecture: Architecture,
    keys: Keys<'a>,
}

impl Reader<'_> {
    fn config(&self) -> Result<Config, ConfigError> {
        use Architecture::*;
        let k = &self.keys;
        if k.flag("use_bidirectional_attention")? == Some(true) {
            let expected = "false: only causal decoders are known";
            return Err(ConfigError::invalid(
                "use_bidirectional_attention",
                true,
                expected,
            ));
        }
        let hidden = k.size("hidden_size")?;
        let heads = k.size("num_attention_heads")?;
        let layers = k.size("num_hidden_layers")?;
        let context = k.size("max_position_embeddings")?;
        if heads == 0 || layers > 1 << 12 {
            return Err(ConfigError::invalid(
                "num_attention_heads",
                heads,
                "at least 1",
            ));
        }
        let latent = (self.architecture == DeepseekV2)
            .then(|| self.latent())
            .transpose()?;
        let head_dim = match &latent {
            Some(l) => l.nope + l.rope,
            None => k.maybe_size("head_dim")?.unwrap_or(hidden / heads),
        };
        let kv_heads = match self.architecture {
            Bert => heads,
            _ => k.maybe_size("num_key_value_heads")?.unwrap_or(heads),
        };
        let gemma = matches!(self.architecture, Gemma2 | Gemma3);
        let mut attention_scale = match k.maybe_number("query_pre_attn_scalar")? {
            Some(scalar) if gemma => scalar.powf(-0.5),
            _ => (head_dim as f64).powf(-0.5),
        };
        let moe = self.moe()?;
        let ropes = self.ropes(rotating(latent.map_or(head_dim, |l| l.rope))?, context)?;
        if let Some(RopeScaling::Yarn {
            factor,
            mscale_all_dim,
            ..
        }) = ropes.first().map(|r| &r.stated.scaling)
            && *mscale_all_dim > 0.0
        {
            attention_scale *= yarn_magnitude(*factor, *mscale_all_dim).powi(2);
        }
        Ok(Config {
            architecture: self.architecture,
            vocab: k.size("vocab_size")?,
            hidden,
            intermediate: k.size("intermediate_size")?,
            heads,
            kv_heads: if latent.is_some() { heads } else { kv_heads },
            head_dim,
            context,
            norm_eps: match self.architecture {
                Bert => k.number("layer_norm_eps")? as f32,
                _ => k.number("rms_norm_eps")? as f32,
            },
            activation: self.activation()?,
            embedding_scale: if gemma {
                (hidden as f64).sqrt() as f32
            } else {
                1.0
            },
            attention_scale: attention_scale as f32,
            attention_softcap: k.maybe_number("attn_logit_softcapping")?.map(|v| v as f32),
            logit_softcap: k.maybe_number("final_logit_softcapping")?.map(|v| v as f32),
            qkv_clip: k.maybe_number("clip_qkv")?.map(|v| v as f32),
            qk_norm: match self.architecture {
                Qwen3 | Qwen3Moe | Gemma3 => QkNorm::Head,
                Olmoe => QkNorm::Whole,
                _ => QkNorm::None,
            },
            rope_style: self.architecture.hf_rope_style(),
            layers: self.layers(layers, &ropes, moe.is_some())?,
            ropes,
            moe,
            latent,
            // A sentence-transformers folder says it elsewhere: see `open`.
            pooling: Pooling::Mean,
            token_types: if self.architecture == Bert {
                k.size("type_vocab_size")?
            } else {
                0
            },
        })
    }

    fn activation(&self) -> Result<Activation, ConfigError> {
        let key = if self.keys.0.contains_key("hidden_activation") {
            "hidden_activation"
        } else {
            "hidden_act"
        };
        // Gemma's `hidden_act` says "gelu" in old files and has always meant the tanh form.
        let gemma = matches!(
            self.architecture,
            Architecture::Gemma2 | Architecture::Gemma3
        );
        match self.keys.0.get(key) {
            None | Some(Value::Null) if gemma => Ok(Activation::GeluTanh),
            _ => match self.keys.string(key)? {
                "silu" | "swish" => Ok(Activation::Silu),
                "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
                "gelu" if gemma => Ok(Activation::GeluTanh),
                "gelu" => Ok(Activation::Gelu),
                other => Err(ConfigError::invalid(
                    key,
                    other,
                    "silu, gelu or gelu_pytorch_tanh",
                )),
            },
        }
    }

    fn latent(&self) -> Result<Latent, ConfigError> {
        let k = &self.keys;
        Ok(Latent {
            q_rank: k.maybe_size("q_lora_rank")?,
            kv_rank: k.size("kv_lora_rank")?,
            nope: k.size("qk_nope_head_dim")?,
            rope: k.size("qk_rope_head_dim")?,
            v: k.size("v_head_dim")?,
        })
    }

    fn moe(&self) -> Result<Option<Moe>, ConfigError> {
        use Architecture::*;
        let k = &self.keys;
        let experts = || k.first_size(&["num_local_experts", "num_experts", "n_routed_experts"]);
        let moe = match self.architecture {
            Mixtral | Olmoe => Moe {
                experts: experts()?,
                per_token: k.size("num_experts_per_tok")?,
                intermediate: k.size("intermediate_size")?,
                shared_intermediate: 0,
                normalise: self.architecture == Mixtral
                    || k.flag("norm_topk_prob")?.unwrap_or(false),
                scale: 1.0,
                groups: 1,
                groups_per_token: 1,
            },
            Qwen2Moe | Qwen3Moe => Moe {
                experts: experts()?,
                per_token: k.size("num_experts_per_tok")?,
                intermediate: k.size("moe_intermediate_size")?,
                shared_intermediate: k
                    .maybe_size("shared_expert_intermediate_size")?
                    .unwrap_or(0),
                normalise: k.flag("norm_topk_prob")?.unwrap_or(false),
                scale: 1.0,
                groups: 1,
                groups_per_token: 1,
            },
            DeepseekV2 => {
                let limited = match k.0.get("topk_method").and_then(Value::as_str) {
                    None | Some("greedy") => false,
                    Some("group_limited_greedy") => true,
                    Some(other) => {
                        return Err(ConfigError::invalid(
                            "topk_method",
                            other,
                            "greedy or group_limited_greedy",
                        ));
                    }
                };
                let intermediate = k.size("moe_intermediate_size")?;
                Moe {
                    experts: experts()?,
                    per_token: k.size("num_experts_per_tok")?,
                    intermediate,
                    shared_intermediate: intermediate
                        .saturating_mul(k.maybe_size("n_shared_experts")?.unwrap_or(0)),
                    normalise: k.flag("norm_topk_prob")?.unwrap_or(false),
                    scale: k.maybe_number("routed_scaling_factor")?.unwrap_or(1.0) as f32,
                    groups: if limited { k.size("n_group")? } else { 1 },
                    groups_per_token: if limited { k.size("topk_group")? } else { 1 },
                }
            }
            _ => return Ok(None),
        };
        Ok(Some(moe))
    }

    /// Ropes in the order of use: full attention first, then the sliding one where it differs.
    fn ropes(&self, head: usize, context: usize) -> Result<Vec<Rope>, ConfigError> {
        if self.architecture == Architecture::Bert {
            return Ok(Vec::new());
        }
        let k = &self.keys;
        let parameters = k.object("rope_parameters")?;
        if let Some(kinds) = parameters
            && let (Some(full), Some(sliding)) =
                (kinds.get("full_attention"), kinds.get("sliding_attention"))
        {
            let one = |v: &Value| match v.as_object() {
                Some(map) => self.rope(head, context, Keys(map), None),
                None => Err(ConfigError::invalid(
                    "rope_parameters",
                    v,
                    "an object for each kind of attention",
                )),
            };
            return Ok(vec![one(full)?, one(sliding)?]);
        }
        let base = k.maybe_number("rope_theta")?.unwrap_or(10_000.0);
        let empty = Map::new();
        let stated = match parameters {
            Some(map) => map,
            None => k.object("rope_scaling")?.unwrap_or(&empty),
        };
        let mut ropes = vec![self.rope(head, context, Keys(stated), Some(base))?];
        if self.architecture == Architecture::Gemma3 {
            let base = k.maybe_number("rope_local_base_freq")?.unwrap_or(10_000.0);
            ropes.push(self.rope(head, context, Keys(&empty), Some(base))?);
        }
        Ok(ropes)
    }

    fn rope(
        &self,
        head: usize,
        context: usize,
        k: Keys<'_>,
        base: Option<f64>,
    ) -> Result<Rope, ConfigError> {
        let base = match (k.maybe_number("rope_theta")?, base) {
            (Some(base), _) | (None, Some(base)) => base,
            (None, None) => k.number("rope_theta")?,
        };
        if !(base > 1.0 && base < 1e15) {
            return Err(ConfigError::invalid("rope_theta", base, "more than 1"));
        }
        let share = match k.maybe_number("partial_rotary_factor")? {
            Some(share) => share,
            None => self
                .keys
                .maybe_number("partial_rotary_factor")?
                .unwrap_or(1.0),
        };
        if !(share > 0.0 && share <= 1.0) {
            return Err(ConfigError::invalid(
                "partial_rotary_factor",
                share,
                "more than 0 and at most 1",
            ));
        }
        let dims = (head as f64 * share) as usize / 2 * 2;
        let kind = match k.0.get("rope_type").or_else(|| k.0.get("type")) {
            None | Some(Value::Null) => "default",
            Some(kind) => kind
                .as_str()
                .ok_or_else(|| ConfigError::invalid("rope_type", kind, "a string"))?,
        };
        let trained = |k: &Keys<'_>| -> Result<f64, ConfigError> {
            let here = k.maybe_number("original_max_position_embeddings")?;
            let above = self.keys.maybe_number("original_max_position_embeddings")?;
            Ok(here.or(above).unwrap_or(context as f64))
        };
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear {
                factor: k.positive("factor")?,
            },
            "llama3" => RopeScaling::Llama3 {
                factor: k.positive("factor")?,
                low: k.positive("low_freq_factor")?,
                high: k.positive("high_freq_factor")?,
                original: k.positive("original_max_position_embeddings")?,
            },
            "yarn" => RopeScaling::Yarn {
                factor: k.positive("factor")?,
                original: trained(&k)?,
                beta_slow: k.maybe_number("beta_slow")?.unwrap_or(1.0),
                beta_fast: k.maybe_number("beta_fast")?.unwrap_or(32.0),
                attention_factor: k.maybe_number("attention_factor")?,
                mscale: k.maybe_number("mscale")?.unwrap_or(0.0),
                mscale_all_dim: k.maybe_number("mscale_all_dim")?.unwrap_or(0.0),
            },
            "longrope" | "su" => {
                let original = trained(&k)?;
                let factors = |key: &str| match k.numbers(key)? {
                    factors if factors.len() == dims / 2 => Ok(factors),
                    factors => {
                        let found = format!("{} numbers", factors.len());
                        let expected = format!("{} numbers", dims / 2);
                        Err(ConfigError::invalid(key, found, expected))
                    }
                };
                let stretch = k
                    .maybe_number("factor")?
                    .unwrap_or(context as f64 / original);
                let grown = if stretch > 1.0 {
                    (1.0 + stretch.ln() / original.ln()).sqrt()
                } else {
                    1.0
                };
                let magnitude = k.maybe_number("attention_factor")?.unwrap_or(grown);
                RopeScaling::Long {
                    short: factors("short_factor")?,
                    long: factors("long_factor")?,
                    original,
                    magnitude,
                }
            }
            other => {
                return Err(ConfigError::invalid(
                    "rope_type",
                    other,
                    "default, linear, llama3, yarn or longrope",
                ));
            }
        };
        Ok(rope(dims, StatedRope { base, scaling }, context))
    }

    fn layers(&self, count: usize, ropes: &[Rope], moe: bool) -> Result<Vec<Layer>, ConfigError> {
        use Architecture::*;
        let k = &self.keys;
        let window = match self.architecture {
            Qwen2 | Qwen2Moe | Qwen3 | Qwen3Moe | SmolLm3
                if k.flag("use_sliding_window")? != Some(true) =>
            {
                None
            }
            // The others' implementations do not read the key, so a stray one means nothing.
            Llama | Olmoe | DeepseekV2 | Bert => None,
            _ => k.maybe_size("sliding_window")?.filter(|&w| w > 0),
        };
        let kinds = k.strings("layer_types")?;
        let no_rope = k.sizes("no_rope_layers")?;
        let interval = k.maybe_size("no_rope_layer_interval")?.unwrap_or(4);
        let pattern = k.first_maybe_size(&["sliding_window_pattern", "_sliding_window_pattern"])?;
        let max_window = k.maybe_size("max_window_layers")?.unwrap_or(0);
        let dense_first = k.maybe_size("first_k_dense_replace")?.unwrap_or(0);
        let dense_only = k.sizes("mlp_only_layers")?.unwrap_or_default();
        let sparse_step = k.maybe_size("decoder_sparse_step")?.unwrap_or(1).max(1);
        for (key, found) in [
            ("layer_types", kinds.as_ref().map(Vec::len)),
            ("no_rope_layers", no_rope.as_ref().map(Vec::len)),
        ] {
            if let Some(found) = found.filter(|&n| n < count) {
                return Err(ConfigError::invalid(
                    key,
                    format!("{found} entries"),
                    format!("one for each of {count} layers"),
                ));
            }
        }
        (0..count)
            .map(|i| {
                let sliding = match &kinds {
                    Some(kinds) => match kinds[i].as_str() {
                        "sliding_attention" => true,
                        "full_attention" => false,
                        other => {
                            let expected = "full_attention or sliding_attention";
                            return Err(ConfigError::invalid("layer_types", other, expected));
                        }
                    },
                    None => match self.architecture {
                        Gemma2 => i % 2 == 0,
                        Gemma3 => (i + 1) % pattern.unwrap_or(6).max(1) != 0,
                        Qwen2 | Qwen2Moe | Qwen3 | Qwen3Moe => i >= max_window,
                        _ => true,
                    },
                };
                let rotates = match (self.architecture, &no_rope) {
                    (Bert, _) => false,
                    (SmolLm3, Some(list)) => list[i] != 0,
                    (SmolLm3, None) => interval == 0 || (i + 1) % interval != 0,
                    _ => true,
                };
                let moe = moe
                    && match self.architecture {
                        DeepseekV2 => i >= dense_first,
                        Qwen2Moe | Qwen3Moe => {
                            !dense_only.contains(&i) && (i + 1) % sparse_step == 0
                        }
                        _ => true,
                    };
                let rope = if sliding && ropes.len() > 1 { 1 } else { 0 };
                Ok(Layer {
                    window: window.filter(|_| sliding),
                    rope: rotates.then_some(rope),
                    moe,
                })
            })
            .collect()
    }
}

/// Typed look-ups that name the key when they fail. A null is as good as absent.
struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn missing(key: &str) -> ConfigError {
        ConfigError::Missing { key: key.into() }
    }

    fn string(&self, key: &str) -> Result<&'a str, ConfigError> {
        let value = self.get(key).ok_or_else(|| Self::missing(key))?;
        value
            .as_str()
            .ok_or_else(|| ConfigError::invalid(key, value, "a string"))
    }

    fn maybe_size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.get(key)
            .map(|v| {
                v.as_u64()
                    .and_then(|v| usize::try_from(v).ok())
                    .ok_or_else(|| ConfigError::invalid(key, v, "a whole number, not negative"))
            })
            .transpose()
    }

    fn size(&self, key: &str) -> Result<usize, ConfigError> {
        self.maybe_size(key)?.ok_or_else(|| Self::missing(key))
    }

    fn first_maybe_size(&self, keys: &[&str]) -> Result<Option<usize>, ConfigError> {
        for key in keys {
            if let Some(found) = self.maybe_size(key)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn first_size(&self, keys: &[&str]) -> Result<usize, ConfigError> {
        self.first_maybe_size(keys)?
            .ok_or_else(|| Self::missing(keys[0]))
    }

    fn maybe_number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.get(key)
            .map(|v| {
                v.as_f64()
                    .ok_or_else(|| ConfigError::invalid(key, v, "a number"))
            })
            .transpose()
    }

    fn number(&self, key: &str) -> Result<f64, ConfigError> {
        self.maybe_number(key)?.ok_or_else(|| Self::missing(key))
    }

    fn positive(&self, key: &str) -> Result<f64, ConfigError> {
        let found = self.number(key)?;
        if found > 0.0 {
            Ok(found)
        } else {
            Err(ConfigError::invalid(key, found, "more than 0"))
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.get(key)
            .map(|v| {
                v.as_bool()
                    .ok_or_else(|| ConfigError::invalid(key, v, "true or false"))
            })
            .transpose()
    }

    fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>, ConfigError> {
        self.get(key)
            .map(|v| {
                v.as_object()
                    .ok_or_else(|| ConfigError::invalid(key, v, "an object"))
            })
            .transpose()
    }

    fn list<T>(
        &self,
        key: &str,
        expected: &str,
        one: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        self.get(key)
            .map(|v| {
                v.as_array()
                    .and_then(|list| list.iter().map(one).collect())
                    .ok_or_else(|| ConfigError::invalid(key, v, expected))
            })
            .transpose()
    }

    fn sizes(&self, key: &str) -> Result<Option<Vec<usize>>, ConfigError> {
        self.list(key, "a list of whole numbers", |v| {
            v.as_u64().and_then(|v| usize::try_from(v).ok())
        })
    }

    fn strings(&self, key: &str) -> Result<Option<Vec<String>>, ConfigError> {
        self.list(key, "a list of strings", |v| v.as_str().map(String::from))
    }

    fn numbers(&self, key: &str) -> Result<Vec<f32>, ConfigError> {
        self.list(key, "a list of numbers", |v| v.as_f64().map(|v| v as f32))?
            .ok_or_else(|| Self::missing(key))
    }
}
