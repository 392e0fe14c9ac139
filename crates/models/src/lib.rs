//! What is computed: language models as data plus a short forward function over the kernels.
//!
//! [`Config`] says everything in which the architectures differ; [`Decoder`] is the one forward
//! pass that it drives, [`Encoder`] the bidirectional one. A checkpoint comes as a Hugging Face
//! folder or a GGUF file; [`open()`] reads either into the same types.
#![deny(missing_docs)]

mod activation_bits;
mod adapter;
mod architecture;
mod batch;
mod centre;
mod changed;
pub mod config;
mod convert;
mod decoder;
mod encoder;
mod family;
mod input;
mod latent;
mod layerwise;
mod merge;
mod moe;
mod open;
mod packed_cache;
mod resize;
mod rewriting;
mod rope;
mod rows;
mod shared;
mod similar;
mod stack;
mod synth;
mod tensors;
mod weights;

pub use activation_bits::activation_bits;
pub use adapter::{Acts, Adapter, AdapterError, AdapterFacts};
pub use architecture::Architecture;
pub use batch::{Batch, Outputs, Variant};
pub use config::Config;
pub use convert::{ConvertError, ConvertReport, Origin, Progress, convert};
pub use decoder::{Decoder, Scratch};
pub use encoder::{Encoder, EncoderScratch};
pub use family::JoinError;
pub use layerwise::{Layerwise, Site};
pub use merge::{MergeError, merge};
pub use open::{
    Info, KV_TYPE, Model, OpenError, Opened, Parts, Piece, Recommended, TensorFact, Workspace,
    open, open_bytes, open_parts, open_within,
};
pub use packed_cache::{Cached, PackedCache};
pub use rewriting::{Rewriting, Tensor};
pub use shared::{Merged, NoMerge, SharedModel};
pub use similar::Similar;
pub use stack::{
    Blocks, MemoryError, Moved, StackMemory, StackedMatrix, stack_metadata, stack_tensors,
};
pub use synth::{
    AdapterPlan, Mixture, SynthError, SynthReport, likes, perturb, synth, synth_adapter,
    synth_methods,
};
pub use tensors::TensorError;
pub use weights::Work;
