//! Bytes to typed values and back: GGUF, safetensors, ONNX, pictures, tokenizers and chat
//! templates.
//!
//! Every reader treats its input as hostile: it checks before it allocates, names the place in
//! its errors and never panics on content. Tensor types and their byte layouts are one table in
//! `sedge_kernels::DType`; nothing else of that crate is used here.
#![deny(missing_docs)]
#![deny(unsafe_code)] // except in `map`

pub mod gguf;
pub mod image;
mod map;
pub mod onnx;
mod replace;
pub mod safetensors;
pub mod template;
pub mod tokenizer;

pub use map::{map, release};
pub use replace::replace;
