//! A model as its adapters name it: modules of the Hugging Face implementation, found among the
//! decoder's products and norms.
//!
//! Rows of a module may lie elsewhere in the model: one module may be several products, and GGUF
//! files of the llama family have the rows of queries and keys in another order.

use std::cell::Cell;
use std::sync::Arc;

use sedge_kernels::RopeStyle;

use super::error::AdapterError;
use super::{NormPart, Part};
use crate::config::Config;
use crate::convert::halves_row;
use crate::decoder::Decoder;
use crate::tensors::{Name, canonical};
use crate::weights::{FeedForward, LayerWeights, Linear, Projections, Weights};

/// Most bytes that factors may take once they are expanded from what the file holds.
const EXPANDED_LIMIT: usize = 1 << 31;

/// Where a change goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Part(usize, Part),
    Head,
}

/// A product of the model that is a module, or some rows of one.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) target: Target,
    pub(crate) linear: &'a Linear,
    /// Row of the module that is the product's first.
    start: usize,
    /// Rows of a head, where the model has them in another order.
    head: Option<usize>,
}

/// What a module is in the model.
#[derive(Debug)]
pub(crate) enum Place<'a> {
    /// A product, or several whose rows lie one after the other.
    Product(Vec<Piece<'a>>),
    Embedding,
    /// A norm of a layer, and its size.
    Norm(usize, NormPart, usize),
    /// The last one.
    LastNorm,
}

impl Piece<'_> {
    pub(crate) fn rows(&self) -> usize {
        self.linear.weight.rows()
    }

    pub(crate) fn cols(&self) -> usize {
        self.linear.weight.cols()
    }

    /// One past the last of the module's rows that are the product's.
    pub(crate) fn end(&self) -> usize {
        self.start + self.rows()
    }

    /// The module's row that is row `row` of the product.
    pub(crate) fn source(&self, row: usize) -> usize {
        self.start + self.head.map_or(row, |head| halves_row(row, head))
    }

    /// The piece's values of a vector over the module's rows.
    pub(crate) fn gather(&self, values: &[f32]) -> Vec<f32> {
        (0..self.rows())
            .map(|row| values[self.source(row)])
            .collect()
    }

    /// The module's row of each of the product's, where that is not the row itself.
    pub(crate) fn order(&self) -> Option<Arc<[u32]>> {
        let moved = self.start > 0 || self.head.is_some();
        moved.then(|| {
            (0..self.rows())
                .map(|row| self.source(row) as u32)
                .collect()
        })
    }
}

/// Rows of a head, if those of queries and keys, and keys as they lie in the cache, are in another
/// order in the model than in the checkpoints of its Hugging Face implementation.
pub(crate) fn paired_head(c: &Config) -> Option<usize> {
    let paired = c.latent.is_none()
        && c.rope_style == RopeStyle::Pairs
        && c.architecture.hf_rope_style() == RopeStyle::Halves;
    paired.then_some(c.head_dim)
}

/// Sizes of a module: `[rows, cols]`.
pub(crate) fn sizes(pieces: &[Piece<'_>]) -> (usize, usize) {
    let rows = pieces.last().map_or(0, Piece::end);
    (rows, pieces.first().map_or(0, Piece::cols))
}

#[derive(Debug)]
pub(crate) struct Base<'a> {
    pub(crate) config: &'a Config,
    pub(crate) weights: &'a Weights,
    /// The base that the checkpoint names, for errors.
    pub(crate) named: Option<String>,
    /// Bytes that may still be taken by expanding factors.
    left: Cell<usize>,
}

impl<'a> Base<'a> {
    pub(crate) fn new(model: &'a Decoder, member: usize, named: Option<String>) -> Base<'a> {
        Base {
            config: model.config(),
            weights: model.weights(member),
            named,
            left: Cell::new(EXPANDED_LIMIT),
        }
    }

    /// Counts f32 values that are about to be made of a module's factors.
    pub(crate) fn expand(&self, module: &str, values: usize) -> Result<(), AdapterError> {
        let left = values
            .checked_mul(size_of::<f32>())
            .and_then(|bytes| self.left.get().checked_sub(bytes));
        match left {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => Err(AdapterError::TooLarge {
                module: module.into(),
                limit: EXPANDED_LIMIT,
            }),
        }
    }

    /// A module of the model; `tensor` is for errors.
    pub(crate) fn place(&self, module: &str, tensor: &str) -> Result<Place<'a>, AdapterError> {
        let unknown = || AdapterError::Module {
            tensor: tensor.into(),
            module: module.into(),
            architecture: self.config.architecture,
            base: self.named.clone(),
        };
        let refused = |reason| AdapterError::Part {
            tensor: tensor.into(),
            module: module.into(),
            reason,
        };
        let name = canonical(self.config.architecture, &format!("{module}.weight"));
        let name = match name.ok_or_else(unknown)? {
            Name::Whole(name) => name,
            Name::Expert(..) => return Err(refused(EXPERTS)),
        };
        let name = name.strip_suffix(".weight").unwrap_or(&name);
        let weights = self.weights;
        match name {
            "token_embd" => return Ok(Place::Embedding),
            "output_norm" => return Ok(Place::LastNorm),
            "output" => {
                let linear = &weights.head;
                return Ok(Place::Product(vec![Piece {
                    target: Target::Head,
                    linear,
                    start: 0,
                    head: None,
                }]));
            }
            _ => {}
        }
        let (layer, part) = name
            .strip_prefix("blk.")
            .and_then(|rest| rest.split_once('.'))
            .ok_or_else(unknown)?;
        let layer: usize = layer.parse().map_err(|_| unknown())?;
        let Some(of) = weights.layers.get(layer) else {
            return Err(AdapterError::Layer {
                tensor: tensor.into(),
                layer,
                layers: weights.layers.len(),
                base: self.named.clone(),
            });
        };
        if let Some((part, size)) = norm(of, part) {
            let size = size.ok_or_else(unknown)?;
            return Ok(Place::Norm(layer, part, size));
        }
        let parts: &[Part] = match part {
            "attn_q" => &[Part::Q],
            "attn_k" => &[Part::K],
            "attn_v" => &[Part::V],
            "attn_qkv" => &[Part::Q, Part::K, Part::V],
            "attn_output" => &[Part::Output],
            "ffn_gate" => &[Part::Gate],
            "ffn_up" if module.ends_with("gate_up_proj") => &[Part::Gate, Part::Up],
            "ffn_up" => &[Part::Up],
            "ffn_down" => &[Part::Down],
            part if part.contains("_shexp") || part.contains("gate_inp") => {
                return Err(refused(EXPERTS));
            }
            "attn_q_a" | "attn_q_b" | "attn_kv_a_mqa" | "attn_kv_b" => {
                return Err(refused(LATENT));
            }
            _ => return Err(unknown()),
        };
        let mut pieces: Vec<Piece<'a>> = Vec::with_capacity(parts.len());
        for &part in parts {
            let head = match part {
                Part::Q | Part::K => paired_head(self.config),
                _ => None,
            };
            pieces.push(Piece {
                target: Target::Part(layer, part),
                linear: product(of, part).map_err(refused)?,
                start: pieces.last().map_or(0, Piece::end),
                head,
            });
        }
        Ok(Place::Product(pieces))
    }
}

const EXPERTS: &str = "adapters of experts and of what chooses among them are not supported";
const LATENT: &str = "adapters of latent attention's queries, keys and values are not supported, those of its output are";

/// A plain product of a layer, or why it is none.
pub(crate) fn product(layer: &LayerWeights, part: Part) -> Result<&Linear, &'static str> {
    let (q, k, v) = match &layer.projections {
        Projections::Heads { q, k, v, .. } => (Ok(q), Ok(k), Ok(v)),
        Projections::Latent(_) => (Err(LATENT), Err(LATENT), Err(LATENT)),
    };
    let gated = match &layer.ffn {
        FeedForward::Dense(gated) => Ok(gated),
        FeedForward::Experts(_) => Err(EXPERTS),
    };
    match part {
        Part::Q => q,
        Part::K => k,
        Part::V => v,
        Part::Output => Ok(&layer.output),
        Part::Gate => gated.map(|g| &g.gate),
        Part::Up => gated.map(|g| &g.up),
        Part::Down => gated.map(|g| &g.down),
    }
}

/// A norm by its GGUF name, and its size if the layer has it.
fn norm(layer: &LayerWeights, part: &str) -> Option<(NormPart, Option<usize>)> {
    let (q_norm, k_norm) = match &layer.projections {
        Projections::Heads { q_norm, k_norm, .. } => (q_norm.as_ref(), k_norm.as_ref()),
        Projections::Latent(_) => (None, None),
    };
    let (part, of) = match part {
        "attn_norm" => (NormPart::Attention, Some(&layer.attention_norm)),
        "post_attention_norm" => (NormPart::PostAttention, layer.post_attention_norm.as_ref()),
        "ffn_norm" => (NormPart::FeedForward, Some(&layer.ffn_norm)),
        "post_ffw_norm" => (NormPart::PostFeedForward, layer.post_ffn_norm.as_ref()),
        "attn_q_norm" => (NormPart::Query, q_norm),
        "attn_k_norm" => (NormPart::Key, k_norm),
        _ => return None,
    };
    Some((part, of.map(Vec::len)))
}
