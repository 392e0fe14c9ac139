//! A checkpoint's tensors under one set of names, GGUF's, wherever they come from.
//! A Hugging Face checkpoint is seen through a table of names; nothing is copied but small norms.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use indexmap::IndexMap;
use sedge_formats::gguf::Gguf;
use sedge_formats::safetensors::Checkpoint;
use sedge_kernels::{ActivationBits, BitsError, DType, Matrix, MatrixError, dequantize};

use crate::Architecture;
use crate::activation_bits::{self, BitsByName};
use crate::stack::Stacks;

/// Why a checkpoint's tensors do not make the model that its configuration describes.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// A tensor is missing.
    #[error("tensor {name:?} is missing")]
    Missing {
        /// Name.
        name: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor {name:?} has the shape {found:?}; the configuration makes it {expected:?}")]
    Shape {
        /// Name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that the configuration needs.
        expected: Vec<usize>,
    },
    /// A tensor's bytes do not fit its shape.
    #[error("tensor {name:?}: {source}")]
    Matrix {
        /// Name.
        name: String,
        /// What is wrong.
        source: MatrixError,
    },
    /// What a file says of a tensor's activations does not fit it.
    #[error("activations of {name:?}: {source}")]
    ActivationBits {
        /// Name.
        name: String,
        /// What is wrong.
        source: BitsError,
    },
    /// A layer has a tensor that the architecture does not use: computing without it would be wrong.
    #[error(
        "tensor {name:?} is not one that {architecture} uses; the checkpoint is of a variant that is not known"
    )]
    Unused {
        /// Name.
        name: String,
        /// Architecture.
        architecture: Architecture,
    },
    /// A stack of blocks is not what its metadata say.
    #[error("{name:?}: {reason}")]
    Stack {
        /// Matrix, tensor or metadata key.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A checkpoint has no tensor of any use.
    #[error(
        "{count} tensors of types that are not computed with, {example:?} among them ({dtype})"
    )]
    Types {
        /// How many.
        count: usize,
        /// Name of one.
        example: String,
        /// Its type.
        dtype: String,
    },
}

/// One tensor: `[..., rows, cols]`, in one piece or a piece for each expert.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) pieces: Vec<Bytes>,
    /// The hash of the piece's bytes, where it is known without reading them: when they come from
    /// a store. Of several pieces, the hash of their hashes.
    pub(crate) key: Option<blake3::Hash>,
    /// Name in the checkpoint, for errors.
    pub(crate) original: String,
}

/// Content keys by the tensors' names in the checkpoint.
pub(crate) type Keys = HashMap<String, blake3::Hash>;

/// All tensors of a checkpoint, and which of them have been used.
#[derive(Debug)]
pub(crate) struct Tensors {
    pub(crate) map: IndexMap<String, Stored>,
    activation_bits: BitsByName,
    /// Matrices that are stacks of blocks, of which `map` has no tensors.
    pub(crate) stacks: Option<Arc<Stacks>>,
    used: RefCell<HashSet<String>>,
    architecture: Architecture,
}

impl Tensors {
    pub(crate) fn from_gguf(file: &Gguf, architecture: Architecture, keys: &Keys) -> Tensors {
        let one = |(name, info): (&String, &sedge_formats::gguf::TensorInfo)| {
            let pieces = vec![file.data(info)];
            let stored = Stored {
                dtype: info.dtype,
                shape: info.shape.clone(),
                pieces,
                key: keys.get(name).copied(),
                original: name.clone(),
            };
            (name.clone(), stored)
        };
        Tensors {
            map: file.tensors().iter().map(one).collect(),
            activation_bits: activation_bits::of_metadata(file.metadata()),
            stacks: None,
            used: RefCell::default(),
            architecture,
        }
    }

    pub(crate) fn from_hf(
        checkpoint: &Checkpoint,
        architecture: Architecture,
        keys: &Keys,
    ) -> Result<Tensors, TensorError> {
        let mut map: IndexMap<String, Stored> = IndexMap::new();
        let mut experts: IndexMap<String, Vec<Option<Stored>>> = IndexMap::new();
        let plus_one = matches!(architecture, Architecture::Gemma2 | Architecture::Gemma3);
        for (original, tensor) in &checkpoint.tensors {
            let mut stored = Stored {
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                pieces: vec![tensor.data.clone()],
                key: keys.get(original).copied(),
                original: original.clone(),
            };
            match canonical(architecture, original) {
                Some(Name::Whole(name)) => {
                    // Gemma multiplies by 1 + weight; GGUF files hold the sum.
                    if plus_one && name.ends_with("norm.weight") {
                        stored.add_one();
                    }
                    map.insert(name, stored);
                }
                Some(Name::Expert(name, index)) => {
                    let each = experts.entry(name).or_default();
                    if each.len() <= index {
                        each.resize(index + 1, None);
                    }
                    each[index] = Some(stored);
                }
                // The towers of a vision-language checkpoint are not the text model's.
                None if of_a_tower(original) => {}
                None => {
                    let name = original.strip_prefix("bert.").unwrap_or(original);
                    map.insert(name.to_string(), stored);
                }
            }
        }
        for (name, each) in experts {
            let count = each.len();
            let mut all: Option<Stored> = None;
            for (index, stored) in each.into_iter().enumerate() {
                let missing = || TensorError::Missing {
                    name: format!("{name}, expert {index}"),
                };
                let stored = stored.ok_or_else(missing)?;
                match &mut all {
                    None => {
                        let mut shape = vec![count];
                        shape.extend(&stored.shape);
                        all = Some(Stored { shape, ..stored });
                    }
                    Some(all) => {
                        if all.shape[1..] != stored.shape[..] || all.dtype != stored.dtype {
                            let expected = all.shape[1..].to_vec();
                            return Err(TensorError::Shape {
                                name: stored.original,
                                found: stored.shape,
                                expected,
                            });
                        }
                        all.pieces.extend(stored.pieces);
                        all.key = all.key.zip(stored.key).map(|(all, one)| {
                            let mut both = blake3::Hasher::new();
                            both.update(all.as_bytes()).update(one.as_bytes());
                            both.finalize()
                        });
                    }
                }
            }
            map.extend(all.map(|all| (name, all)));
        }
        if let (true, Some((example, dtype))) = (map.is_empty(), checkpoint.skipped.first()) {
            let (example, dtype) = (example.clone(), dtype.clone());
            return Err(TensorError::Types {
                count: checkpoint.skipped.len(),
                example,
                dtype,
            });
        }
        Ok(Tensors {
            map,
            activation_bits: BitsByName::new(),
            stacks: None,
            used: RefCell::default(),
            architecture,
        })
    }

    /// Takes the matrices that are stacks of blocks out of the tensors.
    ///
    /// # Errors
    /// When they are not what the file's metadata say.
    pub(crate) fn with_stacks(mut self, file: &Gguf) -> Result<Tensors, TensorError> {
        self.stacks = Stacks::take(file, &mut self.map)?.map(Arc::new);
        Ok(self)
    }

    /// The tensor, if it is there; from now on it counts as used.
    pub(crate) fn find(&self, name: &str) -> Option<&Stored> {
        let found = self.map.get(name)?;
        self.used.borrow_mut().insert(name.to_string());
        Some(found)
    }

    pub(crate) fn get(&self, name: &str) -> Result<&Stored, TensorError> {
        self.find(name).ok_or_else(|| TensorError::Missing {
            name: name.to_string(),
        })
    }

    /// A matrix `[rows, cols]`.
    pub(crate) fn matrix(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Matrix, TensorError> {
        self.get(name)?.matrix(&[rows, cols])
    }

    /// The matrices `[rows, cols]` of all experts.
    pub(crate) fn experts(
        &self,
        name: &str,
        experts: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Vec<Matrix>, TensorError> {
        self.get(name)?.experts(experts, rows, cols)
    }

    /// The bits of the activations that a matrix of so many columns reads, if not 8.
    pub(crate) fn activation_bits(
        &self,
        name: &str,
        cols: usize,
    ) -> Result<Option<ActivationBits>, TensorError> {
        let Some(bits) = self.activation_bits.get(name) else {
            return Ok(None);
        };
        ActivationBits::new(bits, cols).map_err(|source| TensorError::ActivationBits {
            name: name.to_owned(),
            source,
        })
    }

    /// A vector of f32.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, TensorError> {
        self.get(name)?.vector(len)
    }

    /// A vector of f32 if it is there.
    pub(crate) fn maybe_vector(
        &self,
        name: &str,
        len: usize,
    ) -> Result<Option<Vec<f32>>, TensorError> {
        self.find(name).map(|s| s.vector(len)).transpose()
    }

    /// Refuses what nothing has asked for, except buffers that carry no weights.
    pub(crate) fn all_used(&self) -> Result<(), TensorError> {
        let used = self.used.borrow();
        let harmless = |name: &str| {
            [
                "rotary_emb.inv_freq",
                "position_ids",
                "masked_bias",
                "attn_rot_embd",
                "rope_freqs.weight",
            ]
            .iter()
            .any(|end| name.ends_with(end))
                || [
                    "rope_factors_",
                    "pooler.",
                    "cls.",
                    "output.weight",
                    "lm_head",
                ]
                .iter()
                .any(|start| name.starts_with(start))
        };
        match self
            .map
            .iter()
            .find(|(name, _)| !used.contains(*name) && !harmless(name))
        {
            Some((_, stored)) => Err(TensorError::Unused {
                name: stored.original.clone(),
                architecture: self.architecture,
            }),
            None => Ok(()),
        }
    }
}

impl Stored {
    /// Number of values; the readers have checked that it does not overflow.
    pub(crate) fn values(&self) -> usize {
        self.shape.iter().product()
    }

    fn shaped(&self, expected: &[usize]) -> Result<(), TensorError> {
        // A vector may be stored as a matrix of one row or column.
        let squeeze = |s: &[usize]| s.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
        if self.shape == expected || squeeze(&self.shape) == squeeze(expected) {
            return Ok(());
        }
        let (found, expected) = (self.shape.clone(), expected.to_vec());
        Err(TensorError::Shape {
            name: self.original.clone(),
            found,
            expected,
        })
    }

    pub(crate) fn matrix(&self, shape: &[usize; 2]) -> Result<Matrix, TensorError> {
        self.shaped(shape)?;
        self.piece(0, shape[0], shape[1])
    }

    fn piece(&self, index: usize, rows: usize, cols: usize) -> Result<Matrix, TensorError> {
        Matrix::new(self.dtype, rows, cols, self.pieces[index].clone()).map_err(|source| {
            TensorError::Matrix {
                name: self.original.clone(),
                source,
            }
        })
    }

    pub(crate) fn experts(
        &self,
        experts: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Vec<Matrix>, TensorError> {
        self.shaped(&[experts, rows, cols])?;
        if self.pieces.len() == experts && experts > 1 {
            return (0..experts).map(|i| self.piece(i, rows, cols)).collect();
        }
        let all = self.piece(0, experts * rows, cols)?;
        Ok((0..experts)
            .map(|i| all.slice_rows(i * rows..(i + 1) * rows))
            .collect())
    }

    pub(crate) fn vector(&self, len: usize) -> Result<Vec<f32>, TensorError> {
        self.shaped(&[len])?;
        let mut out = vec![0.0; len];
        // A vector shorter than a block cannot be of a block type, which is an error here too.
        let wrong = |_| TensorError::Matrix {
            name: self.original.clone(),
            source: MatrixError::Blocks {
                dtype: self.dtype,
                cols: len,
            },
        };
        dequantize(self.dtype, &self.pieces[0], &mut out).map_err(wrong)?;
        Ok(out)
    }

    fn add_one(&mut self) {
        let mut values = vec![0.0; self.values()];
        if dequantize(self.dtype, &self.pieces[0], &mut values).is_ok() {
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|v| (v + 1.0).to_le_bytes())
                .collect();
            self.dtype = DType::F32;
            self.pieces = vec![bytes.into()];
            self.key = None;
        }
    }
}

/// Whether a tensor is of a part that turns pictures into what a text model reads.
pub(crate) fn of_a_tower(original: &str) -> bool {
    ["vision_tower.", "multi_modal_projector."]
        .iter()
        .any(|part| original.contains(part))
}

/// What a Hugging Face tensor is in GGUF.
pub(crate) enum Name {
    Whole(String),
    Expert(String, usize),
}

/// GGUF's name of a Hugging Face tensor, if it is one that decoders or encoders have.
pub(crate) fn canonical(architecture: Architecture, original: &str) -> Option<Name> {
    let mut name: Cow<'_, str> = Cow::Borrowed(original);
    for prefix in ["language_model.", "model.", "language_model.", "bert."] {
        if let Some(rest) = name.strip_prefix(prefix) {
            name = Cow::Owned(rest.to_string());
        }
    }
    let (stem, kind) = name.rsplit_once('.')?;
    let kind = match kind {
        "weight" | "gamma" => "weight",
        "bias" | "beta" => "bias",
        _ => return None,
    };
    let whole = match stem {
        "embed_tokens" | "embeddings.word_embeddings" => "token_embd",
        "norm" => "output_norm",
        "lm_head" => "output",
        "embeddings.position_embeddings" => "position_embd",
        "embeddings.token_type_embeddings" => "token_types",
        "embeddings.LayerNorm" => "token_embd_norm",
        _ => "",
    };
    if !whole.is_empty() {
        return Some(Name::Whole(format!("{whole}.{kind}")));
    }
    let rest = stem
        .strip_prefix("layers.")
        .or_else(|| stem.strip_prefix("encoder.layer."))?;
    let (layer, part) = rest.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    for experts in ["mlp.experts.", "block_sparse_moe.experts."] {
        if let Some((index, matrix)) = part
            .strip_prefix(experts)
            .and_then(|rest| rest.split_once('.'))
        {
            let to = match matrix {
                "gate_proj" | "w1" => "ffn_gate_exps",
                "down_proj" | "w2" => "ffn_down_exps",
                "up_proj" | "w3" => "ffn_up_exps",
                _ => return None,
            };
            // No model comes near so many; a hostile index must not size a list.
            let index = index.parse().ok().filter(|&i: &usize| i < 1 << 14)?;
            return Some(Name::Expert(format!("blk.{layer}.{to}.{kind}"), index));
        }
    }
    let gemma = matches!(architecture, Architecture::Gemma2 | Architecture::Gemma3);
    let to = match part {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" if gemma => "post_attention_norm",
        "post_attention_layernorm" => "ffn_norm",
        "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "self_attn.q_proj" | "attention.self.query" => "attn_q",
        "self_attn.k_proj" | "attention.self.key" => "attn_k",
        "self_attn.v_proj" | "attention.self.value" => "attn_v",
        "self_attn.qkv_proj" => "attn_qkv",
        "self_attn.o_proj" | "attention.output.dense" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "self_attn.q_a_proj" => "attn_q_a",
        "self_attn.q_a_layernorm" => "attn_q_a_norm",
        "self_attn.q_b_proj" => "attn_q_b",
        "self_attn.kv_a_proj_with_mqa" => "attn_kv_a_mqa",
        "self_attn.kv_a_layernorm" => "attn_kv_a_norm",
        "self_attn.kv_b_proj" => "attn_kv_b",
        "attention.output.LayerNorm" => "attn_output_norm",
        "output.LayerNorm" => "layer_output_norm",
        "intermediate.dense" => "ffn_up",
        "output.dense" => "ffn_down",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        // Phi-3's gate and up in one matrix, the gate's rows first.
        "mlp.gate_up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "mlp.gate" | "block_sparse_moe.gate" => "ffn_gate_inp",
        "mlp.shared_expert.gate_proj" | "mlp.shared_experts.gate_proj" => "ffn_gate_shexp",
        "mlp.shared_expert.up_proj" | "mlp.shared_experts.up_proj" => "ffn_up_shexp",
        "mlp.shared_expert.down_proj" | "mlp.shared_experts.down_proj" => "ffn_down_shexp",
        "mlp.shared_expert_gate" => "ffn_gate_inp_shexp",
        _ => return None,
    };
    Some(Name::Whole(format!("blk.{layer}.{to}.{kind}")))
}
