//! One step's work: a flat run of many requests' tokens, and what it leaves behind.

use std::sync::Arc;

use sedge_kernels::{PAGE_TOKENS, Segment};

use crate::adapter::Adapter;

/// Which weights compute a sequence's tokens.
#[derive(Debug, Clone, Default)]
pub struct Variant {
    /// Number of the fine-tune, in the order in which they [joined](crate::Model::join).
    pub member: usize,
    /// What is changed of it.
    pub adapter: Option<Arc<Adapter>>,
}

/// Tokens of many sequences, prefill chunks and decodes mixed.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Token ids, `[rows]`.
    pub tokens: Vec<u32>,
    /// So many of the rows, the first ones, are tokens that a model has generated; the others
    /// are of prompts. A model may compute the two in different arithmetic, so a token must be
    /// of the same kind whenever it is computed.
    pub generated: usize,
    /// Which rows belong to which sequence, where in it, and in which pages it lives.
    pub segments: Vec<Segment>,
    /// What each segment is computed with; those beyond its end, with the first member.
    pub variants: Vec<Variant>,
    /// Page numbers that segments refer to.
    pub tables: Vec<u32>,
    /// Rows whose logits are wanted.
    pub logits: Vec<u32>,
    /// Rows whose final hidden state (after the last norm) is wanted.
    pub hidden: Vec<u32>,
}

impl Batch {
    /// Appends a sequence from its beginning, with the pages after those of the sequences before.
    pub fn push_sequence(&mut self, tokens: &[u32]) {
        let (rows, pages) = (self.tokens.len(), self.tables.len());
        let end = pages + tokens.len().div_ceil(PAGE_TOKENS);
        self.tokens.extend_from_slice(tokens);
        self.tables.extend(pages as u32..end as u32);
        self.segments.push(Segment {
            rows: rows..self.tokens.len(),
            position: 0,
            pages: pages..end,
        });
    }

    /// Empties the batch, keeping its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.generated = 0;
        self.segments.clear();
        self.variants.clear();
        self.tables.clear();
        self.logits.clear();
        self.hidden.clear();
    }
}

/// What a forward pass computed, in the order in which the batch asked.
#[derive(Debug, Clone, Default)]
pub struct Outputs {
    /// `[batch.logits.len(), vocab]`.
    pub logits: Vec<f32>,
    /// `[batch.hidden.len(), hidden]`.
    pub hidden: Vec<f32>,
}
