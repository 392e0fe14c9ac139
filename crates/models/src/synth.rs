//! Files with random weights: in the shape of a known model, as a fine-tune of another file, or
//! as an adapter of a model. For measuring and trying what needs them without having them.

mod adapter;
mod perturb;

use std::path::Path;

use bytes::Bytes;
use half::f16;
use indexmap::IndexMap;
use sedge_formats::gguf::{self, Array, TensorPlan, Value};
use sedge_kernels::{DType, quantize};

use crate::Architecture;
use crate::config::{self, Config, QkNorm};
use crate::convert::{ConvertError, Progress, file_type, fitting, has_better_head};

pub use adapter::{AdapterPlan, synth_adapter, synth_methods};
pub use perturb::perturb;

/// Why no file was written.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    /// The model to start from cannot be read, or its fine-tune not be written.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The model does not have such a layer.
    #[error("layer {found} is none of the model's, which are 0 to {last}")]
    Layer {
        /// What was asked for.
        found: usize,
        /// The model's last layer.
        last: usize,
    },
    /// Nothing would be changed.
    #[error("no layer is named, so nothing would be changed")]
    NoLayer,
    /// There is no such method of tuning.
    #[error("no method is called {found:?}; there are {known}")]
    Method {
        /// What was asked for.
        found: String,
        /// Names of methods.
        known: String,
    },
    /// The model has no such module that the method could change.
    #[error("{method} cannot change {found:?} in this model; it can change {known}")]
    Target {
        /// Method.
        method: &'static str,
        /// What was asked for.
        found: String,
        /// Names of modules.
        known: String,
    },
    /// A number that makes no adapter.
    #[error("{what} is {found}; it must be {expected}")]
    Number {
        /// Which.
        what: &'static str,
        /// What was asked for.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A type that adapters do not have.
    #[error("adapters are written in f32, f16 and bf16, not in {dtype}")]
    Type {
        /// What was asked for.
        dtype: DType,
    },
    /// There is no such shape.
    #[error("no shape is called {found:?}; there are {known}")]
    Like {
        /// What was asked for.
        found: String,
        /// Names of shapes.
        known: String,
    },
    /// The output could not be written.
    #[error("writing {path}: {source}")]
    Write {
        /// Output file.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
}

/// A shape to take after: a name and the configuration of the model that has it.
struct Like {
    name: &'static str,
    config: &'static str,
}

/// Published configurations, cut down to what decides the shape.
const LIKES: [Like; 6] = [
    Like {
        name: "seedling",
        config: r#"{"model_type": "llama", "vocab_size": 8192, "hidden_size": 512,
            "intermediate_size": 1280, "num_hidden_layers": 8, "num_attention_heads": 8,
            "num_key_value_heads": 4, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true}"#,
    },
    Like {
        name: "qwen2.5-0.5b",
        config: r#"{"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896,
            "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0, "hidden_act": "silu", "tie_word_embeddings": true}"#,
    },
    Like {
        name: "qwen3-0.6b",
        config: r#"{"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024,
            "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
            "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "hidden_act": "silu",
            "tie_word_embeddings": true}"#,
    },
    Like {
        name: "llama-3.2-1b",
        config: r#"{"model_type": "llama", "vocab_size": 128256, "hidden_size": 2048,
            "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
            "tie_word_embeddings": true, "rope_scaling": {"rope_type": "llama3", "factor": 32.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}}"#,
    },
    Like {
        name: "llama-3.1-8b",
        config: r#"{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
            "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "hidden_act": "silu", "tie_word_embeddings": false,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#,
    },
    Like {
        name: "olmoe-1b-7b",
        config: r#"{"model_type": "olmoe", "vocab_size": 50304, "hidden_size": 2048,
            "intermediate_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16,
            "num_key_value_heads": 16, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false,
            "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": false}"#,
    },
];

/// Names of the shapes there are.
pub fn likes() -> impl Iterator<Item = &'static str> {
    LIKES.iter().map(|like| like.name)
}

/// Types of the large matrices of a synthetic file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mixture {
    /// One type for all, but that files of 4 bits or fewer have their output head in q6_k.
    Plain(DType),
    /// llama.cpp's Q4_K_M: q4_k, with q6_k for the output head and, in some layers, for values
    /// and the way down.
    Q4KM,
}

impl Mixture {
    /// `q4_k_m`, or the name of a type that Sedge writes.
    pub fn from_name(name: &str) -> Option<Mixture> {
        if name.eq_ignore_ascii_case("q4_k_m") {
            return Some(Mixture::Q4KM);
        }
        let dtype = DType::from_name(name)?;
        let mut probe = Vec::new();
        let written = quantize(dtype, &vec![0.0; dtype.block_len()], &mut probe).is_ok();
        written.then_some(Mixture::Plain(dtype))
    }

    /// The type of a matrix, by its part of the name.
    fn of(self, part: &str, layer: usize, layers: usize, cols: usize) -> DType {
        let head = part == "token_embd" || part == "output";
        let wanted = match self {
            Mixture::Plain(dtype) if head && has_better_head(dtype) => DType::Q6K,
            Mixture::Plain(dtype) => dtype,
            Mixture::Q4KM if head => DType::Q6K,
            Mixture::Q4KM => {
                let eighth = layers / 8;
                let more = layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2;
                let gains = part == "attn_v" || part.starts_with("ffn_down");
                if more && gains {
                    DType::Q6K
                } else {
                    DType::Q4K
                }
            }
        };
        match (self, wanted) {
            // What llama.cpp takes where rows do not fill blocks of 256.
            (Mixture::Q4KM, DType::Q4K) if !cols.is_multiple_of(256) => DType::Q5_0,
            _ => fitting(wanted, cols),
        }
    }

    fn file_type(self) -> u32 {
        match self {
            Mixture::Plain(dtype) => file_type(dtype),
            Mixture::Q4KM => 15,
        }
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SynthReport {
    /// Values in all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
}

/// Writes a GGUF file with random weights in the shape of the model `like`, and a vocabulary of
/// its size that knows bytes. Weights have a variance of 1 over the length of their rows, so
/// that activations stay of the order of 1. Equal seeds give equal files.
///
/// # Errors
/// When there is no shape of that name, or the file cannot be written.
pub fn synth(
    like: &str,
    mixture: Mixture,
    seed: u64,
    output: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<SynthReport, SynthError> {
    let Some(like) = LIKES.iter().find(|l| l.name == like) else {
        return Err(SynthError::Like {
            found: like.into(),
            known: likes().collect::<Vec<_>>().join(", "),
        });
    };
    let config = config::from_hf(like.config).expect("a test reads every configuration");
    let tied = like.config.contains(r#""tie_word_embeddings": true"#);
    let mut metadata = config::to_gguf(&config);
    let name = format!("{} (random weights)", like.name);
    metadata.insert("general.name".into(), Value::String(name));
    metadata.insert("general.file_type".into(), Value::U32(mixture.file_type()));
    metadata.insert("general.quantization_version".into(), Value::U32(2));
    metadata.extend(vocabulary(config.vocab));

    let plans = tensors(&config, tied, mixture);
    let size = |p: &TensorPlan| p.dtype.bytes_for(p.shape.iter().product()).unwrap_or(0) as u64;
    let total = plans.iter().map(size).sum();
    let mut weights = Random::new(seed);
    let mut done = 0;
    gguf::write(output, &metadata, &plans, |index| {
        let plan = &plans[index];
        progress(Progress {
            tensor: &plan.name,
            done,
            total,
        });
        done += size(plan);
        Ok(match config::rope_freqs(&config) {
            Some((_, divisors)) if plan.name == "rope_freqs.weight" => {
                divisors.iter().flat_map(|d| d.to_le_bytes()).collect()
            }
            _ => weights.tensor(plan),
        })
    })
    .map_err(|source: std::io::Error| SynthError::Write {
        path: output.display().to_string(),
        source,
    })?;
    Ok(SynthReport {
        parameters: plans
            .iter()
            .map(|p| p.shape.iter().product::<usize>() as u64)
            .sum(),
        bytes: total,
    })
}

/// The tensors of a decoder, in the order of the forward pass.
fn tensors(c: &Config, tied: bool, mixture: Mixture) -> Vec<TensorPlan> {
    let mut plans = Vec::new();
    let layers = c.layers.len();
    let mut put = |name: String, dtype: DType, shape: &[usize]| {
        let shape = shape.to_vec();
        plans.push(TensorPlan { name, dtype, shape });
    };
    let whole = |part: &str, cols: usize| mixture.of(part, 0, layers, cols);
    let embeddings = [c.vocab, c.hidden];
    put(
        "token_embd.weight".into(),
        whole("token_embd", c.hidden),
        &embeddings,
    );
    if let Some((dtype, divisors)) = config::rope_freqs(c) {
        put("rope_freqs.weight".into(), dtype, &[divisors.len()]);
    }
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    for (index, layer) in c.layers.iter().enumerate() {
        let mut part = |part: &str, suffix: &str, shape: &[usize]| {
            let cols = *shape.last().expect("a shape has dimensions");
            let small = shape.len() == 1 || part == "ffn_gate_inp";
            let dtype = match small {
                true => DType::F32,
                false => mixture.of(part, index, layers, cols),
            };
            put(format!("blk.{index}.{part}.{suffix}"), dtype, shape);
        };
        part("attn_norm", "weight", &[c.hidden]);
        for (name, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
            part(name, "weight", &[rows, c.hidden]);
            if matches!(c.architecture, Architecture::Qwen2) {
                part(name, "bias", &[rows]);
            }
        }
        let norms = match c.qk_norm {
            QkNorm::None => None,
            QkNorm::Head => Some((c.head_dim, c.head_dim)),
            QkNorm::Whole => Some((q, kv)),
        };
        if let Some((q, k)) = norms {
            part("attn_q_norm", "weight", &[q]);
            part("attn_k_norm", "weight", &[k]);
        }
        part("attn_output", "weight", &[c.hidden, q]);
        part("ffn_norm", "weight", &[c.hidden]);
        match &c.moe {
            Some(m) if layer.moe => {
                part("ffn_gate_inp", "weight", &[m.experts, c.hidden]);
                part(
                    "ffn_gate_exps",
                    "weight",
                    &[m.experts, m.intermediate, c.hidden],
                );
                part(
                    "ffn_up_exps",
                    "weight",
                    &[m.experts, m.intermediate, c.hidden],
                );
                part(
                    "ffn_down_exps",
                    "weight",
                    &[m.experts, c.hidden, m.intermediate],
                );
            }
            _ => {
                part("ffn_gate", "weight", &[c.intermediate, c.hidden]);
                part("ffn_up", "weight", &[c.intermediate, c.hidden]);
                part("ffn_down", "weight", &[c.hidden, c.intermediate]);
            }
        }
    }
    put("output_norm.weight".into(), DType::F32, &[c.hidden]);
    if !tied {
        put(
            "output.weight".into(),
            whole("output", c.hidden),
            &embeddings,
        );
    }
    plans
}

/// A byte-level BPE vocabulary: the 256 bytes, a token that ends a text, and unused ones.
fn vocabulary(size: usize) -> IndexMap<String, Value> {
    let mut tokens: Vec<String> = sedge_formats::tokenizer::byte_letters()
        .map(String::from)
        .into();
    tokens.push("<|end|>".into());
    // One merge, since a vocabulary without any is refused by some readers.
    tokens.push("aa".into());
    let mut kinds = vec![1i32; tokens.len()];
    kinds[256] = 3; // control
    tokens.truncate(size);
    for unused in tokens.len()..size {
        tokens.push(format!("<|unused-{unused}|>"));
        kinds.push(5);
    }
    kinds.truncate(size);
    let text = |text: &str| Value::String(text.into());
    [
        ("model", text("gpt2")),
        ("pre", text("gpt-2")),
        ("tokens", Value::Array(Array::String(tokens))),
        ("token_type", Value::Array(Array::I32(kinds))),
        ("merges", Value::Array(Array::String(vec!["a a".into()]))),
        ("bos_token_id", Value::U32(256)),
        ("eos_token_id", Value::U32(256)),
        ("add_bos_token", Value::Bool(false)),
    ]
    .into_iter()
    .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
    .collect()
}

/// Where the random numbers of a named part start.
fn seeded(seed: u64, name: &str) -> Random {
    // FNV-1a.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Random::new(seed ^ hash)
}

/// Values made once for each type and variance; tensors are runs of them from different starts.
const POOL: usize = 1 << 20;

struct Random {
    state: u64,
    pools: IndexMap<(DType, usize), Bytes>,
}

impl Random {
    fn new(seed: u64) -> Random {
        Random {
            state: seed,
            pools: IndexMap::new(),
        }
    }

    /// SplitMix64 (Steele, Lea and Flood 2014).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Nearly normal, of variance 1: the sum of four uniform values.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
        (sum as f32 / 65536.0 - 2.0) * 3f32.sqrt()
    }

    fn tensor(&mut self, plan: &TensorPlan) -> Bytes {
        let values = plan.shape.iter().product();
        if plan.shape.len() == 1 {
            // Norms near 1, biases near 0.
            let centre = if plan.name.ends_with("norm.weight") {
                1.0
            } else {
                0.0
            };
            let each = (0..values).map(|_| centre + 0.01 * self.normal());
            return each.flat_map(f32::to_le_bytes).collect();
        }
        let cols = plan.shape[plan.shape.len() - 1];
        let pool = match self.pools.get(&(plan.dtype, cols)) {
            Some(pool) => pool.clone(),
            None => {
                let pool = self.pool(plan.dtype, cols);
                self.pools.insert((plan.dtype, cols), pool.clone());
                pool
            }
        };
        let len = plan.dtype.bytes_for(values).unwrap_or(0);
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let blocks = pool.len() / plan.dtype.block_bytes();
            let start = self.next() as usize % blocks * plan.dtype.block_bytes();
            let run = pool.len() - start;
            out.extend_from_slice(&pool[start..start + run.min(len - out.len())]);
        }
        out.into()
    }

    fn pool(&mut self, dtype: DType, cols: usize) -> Bytes {
        let deviation = (cols as f32).sqrt().recip();
        let mut out = Vec::new();
        if dtype == DType::Q5_0 {
            // Not a type that Sedge encodes: uniform codes, −16 to 15, have a deviation of 9.2.
            for _ in 0..POOL / 32 {
                out.extend(f16::from_f32(deviation / 9.2).to_le_bytes());
                let bits = [(); 3].map(|()| self.next().to_le_bytes());
                out.extend(&bits.as_flattened()[..20]);
            }
            return out.into();
        }
        let values: Vec<f32> = (0..POOL).map(|_| self.normal() * deviation).collect();
        quantize(dtype, &values, &mut out).expect("whole blocks of a type that is written");
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_has_the_parameters_of_its_namesake() {
        let millions = |name: &str| {
            let like = LIKES.iter().find(|l| l.name == name).unwrap();
            let config = config::from_hf(like.config).unwrap();
            let tied = like.config.contains(r#""tie_word_embeddings": true"#);
            let plans = tensors(&config, tied, Mixture::Plain(DType::F16));
            let all: usize = plans
                .iter()
                .map(|p| p.shape.iter().product::<usize>())
                .sum();
            all / 1_000_000
        };
        // As published with each model.
        assert_eq!(millions("seedling"), 26);
        assert_eq!(millions("qwen2.5-0.5b"), 494);
        assert_eq!(millions("qwen3-0.6b"), 596);
        assert_eq!(millions("llama-3.2-1b"), 1235);
        assert_eq!(millions("llama-3.1-8b"), 8030);
        assert_eq!(millions("olmoe-1b-7b"), 6919);
    }

    #[test]
    fn a_file_opens_and_equal_seeds_give_equal_files() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["q4_0", "q8_0", "q4_k_m", "f16"] {
            let mixture = Mixture::from_name(name).unwrap();
            let write = |file: &str, seed| {
                let path = dir.path().join(file);
                synth("seedling", mixture, seed, &path, &mut |_| {}).unwrap();
                path
            };
            let (a, b, c) = (write("a.gguf", 1), write("b.gguf", 1), write("c.gguf", 2));
            let opened = crate::open(&a).unwrap();
            assert_eq!(opened.info.parameters, 26_223_104);
            let tokenizer = opened.tokenizer.unwrap();
            let ids = tokenizer.encode("baaé", false, false);
            assert_eq!(tokenizer.decode(&ids), "baaé");
            let read = |path| std::fs::read(path).unwrap();
            assert!(read(&a) == read(&b) && read(&a) != read(&c), "{name}");
        }
        assert!(Mixture::from_name("q9_k").is_none());
    }

    #[test]
    fn an_unknown_shape_is_named_with_those_that_are_known() {
        let mixture = Mixture::Plain(DType::Q8_0);
        let error = synth("gpt-9", mixture, 0, Path::new("/nowhere"), &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("gpt-9") && error.to_string().contains("qwen2.5-0.5b"));
    }
}
