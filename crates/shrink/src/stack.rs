//! Any size from one file: a model's matrices as stacks of blocks, in the order in which memory
//! takes them best (BitStack, Wang et al., ICLR 2025).
//!
//! [`build`] goes through the layers once and makes each matrix a sum of blocks ([`decompose`]),
//! measures what each block is worth, and writes them in that order. What fits into memory is
//! then a model; see [`Model::set_memory`](sedge_models::Model::set_memory).

mod build;
mod decompose;
mod inputs;
mod linear;
mod order;

pub use build::{StackBuildError, StackDoing, StackOptions, StackReport, build};
pub use decompose::{Decomposed, Decomposition, decompose};
pub use inputs::Inputs;
