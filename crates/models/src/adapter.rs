//! What an adapter changes of a model, in the shapes that the forward pass walks.
//!
//! The methods of parameter-efficient tuning act in four places: on a weight (a low-rank or
//! Kronecker term, scales of its inputs or outputs), on a norm, on the embeddings, and on keys and
//! values. Each method's checkpoint becomes the same few shapes, so that the forward pass, merging
//! and batching know no method.

mod adalora;
mod base;
mod before;
mod checkpoint;
mod dense;
mod dora;
mod error;
mod facts;
mod ia3;
mod loha;
mod lokr;
mod lora;
mod method;
mod norms;
mod open;
mod reader;
mod settings;
#[cfg(test)]
mod tests;
mod vera;

use std::sync::Arc;

use sedge_kernels::{Factor, Matrix};

pub(crate) use base::{paired_head, product};
pub use error::AdapterError;
pub use facts::AdapterFacts;
pub use method::Acts;
use method::Method;

/// A small change of a decoder.
#[derive(Debug, Clone, Default)]
pub struct Adapter {
    /// How it was tuned.
    pub(crate) method: &'static dyn Method,
    /// One for each layer.
    pub(crate) layers: Vec<LayerChange>,
    /// What is added to a token's embedding.
    pub(crate) embedding: Option<EmbeddingChange>,
    /// Change of the output head.
    pub(crate) head: Option<Change>,
    /// In place of the last norm's weights.
    pub(crate) norm: Option<Vec<f32>>,
    /// What stands before every prompt.
    pub(crate) before: Option<Before>,
}

/// A product of a layer that adapters change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Q,
    K,
    V,
    Output,
    Gate,
    Up,
    Down,
}

/// A norm of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum NormPart {
    Attention,
    PostAttention,
    FeedForward,
    PostFeedForward,
    Query,
    Key,
}

/// Changes of one layer.
#[derive(Debug, Clone, Default)]
pub(crate) struct LayerChange {
    /// By [`Part`].
    pub(crate) parts: [Option<Change>; 7],
    /// In place of a norm's weights, by [`NormPart`].
    pub(crate) norms: [Option<Vec<f32>>; 6],
}

/// Change of one product: `y = (W (x ⊙ inputs) + Σ term(x)) ⊙ outputs + bias`, where the model's
/// own is `y = W x + bias`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Change {
    /// Factors of the inputs, `[cols]`.
    pub(crate) inputs: Option<Vec<f32>>,
    /// What is added to the matrix.
    pub(crate) terms: Vec<Term>,
    /// Factors of the outputs, `[rows]`.
    pub(crate) outputs: Option<Vec<f32>>,
    /// In place of the model's bias, `[rows]`.
    pub(crate) bias: Option<Vec<f32>>,
}

/// A matrix `[rows, cols]` that is not stored as one.
#[derive(Debug, Clone)]
pub(crate) enum Term {
    LowRank(LowRank),
    Kronecker(Kronecker),
}

/// `diag(after) · bᵀ · diag(between) · a`.
#[derive(Debug, Clone)]
pub(crate) struct LowRank {
    /// `[rank, cols]` of f32, f16 or bf16. Parts of an adapter may share it.
    pub(crate) a: Factor,
    /// `[rank]`, the method's scaling in it.
    pub(crate) between: Vec<f32>,
    /// `[rank, rows]` of f32, f16 or bf16: the second factor transposed. Parts may share it.
    pub(crate) b: Factor,
    /// `[rows]`.
    pub(crate) after: Option<Vec<f32>>,
}

/// `scale · (left ⊗ right)`: element `(i·r + k, j·c + l)` is `scale · left[i, j] · right[k, l]`
/// where `right` is `[r, c]`.
#[derive(Debug, Clone)]
pub(crate) struct Kronecker {
    pub(crate) left: Matrix,
    pub(crate) right: Matrix,
    pub(crate) scale: f32,
    /// Which row of the product each row of the term is; the row itself if `None`. Rows of
    /// queries and keys lie in another order in some files, and one module may be several products.
    pub(crate) rows: Option<Arc<[u32]>>,
}

/// `token ↦ scale · a[token] · b`, added to the row of the table, before
/// [`Config::embedding_scale`](crate::Config::embedding_scale).
#[derive(Debug, Clone)]
pub(crate) struct EmbeddingChange {
    /// `[vocab, rank]`.
    pub(crate) a: Matrix,
    pub(crate) scale: f32,
    /// `[rank, hidden]`.
    pub(crate) b: Matrix,
}

/// Positions before every prompt that hold no token of the vocabulary.
#[derive(Debug, Clone)]
pub(crate) enum Before {
    /// Embeddings, `[positions, hidden]`, in place of tokens'. They are what the first layer
    /// reads: `embedding_scale` does not multiply them.
    Embeddings(Matrix),
    /// For each layer keys and values, `[positions, kv_heads · head_dim]`, as they lie in the
    /// cache: keys are not rotated any more.
    KeysValues {
        positions: usize,
        layers: Vec<[Vec<f32>; 2]>,
    },
}

impl Adapter {
    /// Positions that it puts before every prompt.
    pub fn positions(&self) -> usize {
        match &self.before {
            None => 0,
            Some(Before::Embeddings(rows)) => rows.rows(),
            Some(Before::KeysValues { positions, .. }) => *positions,
        }
    }
}
