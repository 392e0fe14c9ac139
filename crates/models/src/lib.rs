//! What is computed: language models as data plus a short forward function over the kernels.
//!
//! [`Config`] says everything in which the architectures differ; [`Decoder`] is the one forward
//! pass that it drives, [`Encoder`] the bidirectional one. A checkpoint comes as a Hugging Face
//! folder or a GGUF file; [`open`] reads either into the same types.
#![deny(missing_docs)]

mod batch;

pub use batch::{Batch, Outputs};
