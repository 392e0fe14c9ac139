//! A model that runs while it changes: adapters become members of it, and are taken out again.
//! Nothing that is there is written to: the weights before and after are the same memory.

use std::sync::{Arc, PoisonError, RwLock};

use sedge_kernels::{DType, Matrix, Packer, Team, Weight, quantize};

use crate::adapter::{Adapter, Change, NormPart, Part};
use crate::decoder::Decoder;
use crate::open::Model;
use crate::resize::Resizing;
use crate::weights::{FeedForward, LayerWeights, Linear, Projections, Weights};

/// A model that several parts of a program use.
#[derive(Debug)]
pub struct SharedModel {
    model: RwLock<Arc<Model>>,
    pub(crate) resizing: Resizing,
}

/// An adapter that is part of the weights of a member of its own, until this is dropped.
#[derive(Debug)]
pub struct Merged {
    /// The member's number.
    pub member: usize,
    /// Bytes of weights that are its own.
    pub bytes: u64,
    model: Arc<SharedModel>,
}

/// Why an adapter does not become part of the weights.
#[derive(Debug, thiserror::Error)]
pub enum NoMerge {
    /// The model is no decoder.
    #[error("only decoders have adapters")]
    Encoder,
    /// The method is none that changes weights.
    #[error("{method} does not merge: {why}")]
    Method {
        /// Its name.
        method: &'static str,
        /// What it does instead.
        why: &'static str,
    },
    /// It changes what all tokens read row by row.
    #[error(
        "an adapter that changes the embeddings is merged into a file only: `sedge adapter merge`"
    )]
    Embeddings,
    /// Its weights may become others.
    #[error(
        "the model's weights are stacks, whose size may change; requests may name the adapter unmerged"
    )]
    Stacked,
    /// There is no memory.
    #[error("the merged weights could not be packed: {0}")]
    Memory(std::io::Error),
}

impl SharedModel {
    /// Shares a model.
    pub fn new(model: impl Into<Arc<Model>>) -> Arc<SharedModel> {
        Arc::new(SharedModel {
            model: RwLock::new(model.into()),
            resizing: Resizing::default(),
        })
    }

    /// The model as it is now; it stays so for who holds it.
    pub fn get(&self) -> Arc<Model> {
        self.model
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Makes an adapter part of a copy of a member's weights. Only what it changes takes memory;
    /// types of fewer than 8 bits become q8_0, so that its change is not rounded away.
    ///
    /// # Errors
    /// When the adapter does not merge, or there is no memory.
    pub fn merge(
        self: &Arc<Self>,
        member: usize,
        adapter: &Adapter,
        team: &Team,
    ) -> Result<Merged, NoMerge> {
        let model = self.get();
        let Model::Decoder(decoder) = &*model else {
            return Err(NoMerge::Encoder);
        };
        if decoder.stacks.is_some() {
            return Err(NoMerge::Stacked);
        }
        let (weights, bytes) = merged(decoder, member, adapter, team)?;
        let member = self.change(|decoder| decoder.family.add(weights));
        Ok(Merged {
            member: member.ok_or(NoMerge::Encoder)?,
            bytes,
            model: self.clone(),
        })
    }

    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Decoder) -> T) -> Option<T> {
        let mut place = self.model.write().unwrap_or_else(PoisonError::into_inner);
        let Model::Decoder(decoder) = &**place else {
            return None;
        };
        // Who runs a step holds the old one until its end.
        let mut decoder = decoder.clone();
        let result = change(&mut decoder);
        let old = std::mem::replace(&mut *place, Arc::new(Model::Decoder(decoder)));
        // What only the old one had is given back by who holds it last: often a step under way.
        drop(place);
        drop(old);
        Some(result)
    }
}

impl Drop for Merged {
    fn drop(&mut self) {
        let member = self.member;
        self.model.change(|decoder| decoder.family.forget(member));
    }
}

/// A member's weights with an adapter in them, packed, and the bytes that are new.
fn merged(
    decoder: &Decoder,
    member: usize,
    adapter: &Adapter,
    team: &Team,
) -> Result<(Weights, u64), NoMerge> {
    if let Some(why) = adapter.acts().unmergeable() {
        let method = adapter.method();
        return Err(NoMerge::Method { method, why });
    }
    if adapter.embedding.is_some() {
        return Err(NoMerge::Embeddings);
    }
    let mut weights = decoder.weights(member).clone();
    let packs = decoder.is_packed();
    let mut bytes = 0;
    for (layer, change) in weights.layers.iter_mut().zip(&adapter.layers) {
        for (part, change) in PARTS.into_iter().zip(&change.parts) {
            if let (Some(change), Some(linear)) = (change, layer.part(part)) {
                bytes += merge(linear, change, team);
            }
        }
        for (part, norm) in NORMS.into_iter().zip(&change.norms) {
            if let (Some(norm), Some(own)) = (norm, layer.norm(part)) {
                own.clone_from(norm);
            }
        }
    }
    if let Some(change) = &adapter.head {
        // Embeddings that are the head's rows stay what they were.
        if weights.embeddings.is_none() {
            weights.embeddings = Some(rows(&weights.head.weight, team));
        }
        bytes += merge(&mut weights.head, change, team);
    }
    if let Some(norm) = &adapter.norm {
        weights.norm.clone_from(norm);
    }
    if packs {
        let memory = Packer::new(weights.packed()).pack(team, &mut drop);
        bytes = memory.map_err(NoMerge::Memory)?.len() as u64;
    }
    Ok((weights, bytes))
}

/// Puts a change into a product's weights; the bytes that they take as they are stored.
fn merge(linear: &mut Linear, change: &Change, team: &Team) -> u64 {
    let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
    let dtype = match linear.weight.dtype() {
        plain @ (DType::F32 | DType::F16 | DType::BF16) => plain,
        _ => DType::Q8_0,
    };
    let row_bytes = dtype.bytes_for(cols);
    let dtype = if row_bytes.is_some() {
        dtype
    } else {
        DType::F32
    };
    let row_bytes = row_bytes.unwrap_or(cols * size_of::<f32>());
    let mut bytes = vec![0; rows * row_bytes];
    let weight = &linear.weight;
    team.for_rows(&mut bytes, row_bytes, &|row, out| {
        let mut values = vec![0.0; cols];
        weight.row(row, &mut values);
        change.merge_row(row, &mut values);
        let mut stored = Vec::with_capacity(row_bytes);
        quantize(dtype, &values, &mut stored).expect("a row is whole blocks of the type");
        out.copy_from_slice(&stored);
    });
    let merged = Matrix::new(dtype, rows, cols, bytes.into()).expect("as many as there are rows");
    linear.weight = merged.into();
    if let Some(bias) = &change.bias {
        linear.bias = Some(bias.clone());
    }
    (rows * row_bytes) as u64
}

/// The rows of packed weights, as they were stored or in 8 bits.
fn rows(weight: &Weight, team: &Team) -> Matrix {
    let mut copy = Linear::new(weight.clone(), None);
    if let Weight::Stored(matrix) = weight {
        return matrix.clone();
    }
    merge(&mut copy, &Change::default(), team);
    match copy.weight {
        Weight::Stored(matrix) => matrix,
        Weight::Packed(_) => unreachable!("what is merged is stored"),
    }
}

impl LayerWeights {
    pub(crate) fn part(&mut self, part: Part) -> Option<&mut Linear> {
        match (part, &mut self.projections, &mut self.ffn) {
            (Part::Output, _, _) => Some(&mut self.output),
            (Part::Q, Projections::Heads { q, .. }, _) => Some(q),
            (Part::K, Projections::Heads { k, .. }, _) => Some(k),
            (Part::V, Projections::Heads { v, .. }, _) => Some(v),
            (Part::Gate, _, FeedForward::Dense(gated)) => Some(&mut gated.gate),
            (Part::Up, _, FeedForward::Dense(gated)) => Some(&mut gated.up),
            (Part::Down, _, FeedForward::Dense(gated)) => Some(&mut gated.down),
            _ => None,
        }
    }

    fn norm(&mut self, part: NormPart) -> Option<&mut Vec<f32>> {
        match (part, &mut self.projections) {
            (NormPart::Attention, _) => Some(&mut self.attention_norm),
            (NormPart::PostAttention, _) => self.post_attention_norm.as_mut(),
            (NormPart::FeedForward, _) => Some(&mut self.ffn_norm),
            (NormPart::PostFeedForward, _) => self.post_ffn_norm.as_mut(),
            (NormPart::Query, Projections::Heads { q_norm, .. }) => q_norm.as_mut(),
            (NormPart::Key, Projections::Heads { k_norm, .. }) => k_norm.as_mut(),
            _ => None,
        }
    }
}

const PARTS: [Part; 7] = [
    Part::Q,
    Part::K,
    Part::V,
    Part::Output,
    Part::Gate,
    Part::Up,
    Part::Down,
];

const NORMS: [NormPart; 6] = [
    NormPart::Attention,
    NormPart::PostAttention,
    NormPart::FeedForward,
    NormPart::PostFeedForward,
    NormPart::Query,
    NormPart::Key,
];
