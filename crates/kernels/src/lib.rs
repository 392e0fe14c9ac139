//! Packed matrices and the arithmetic on them.
//!
//! Knows no model. Every operation has one contract, checked once at its door, a portable
//! twin that defines the result, and fast versions chosen at run time.
//!
//! **A row's result does not depend on the rows beside it.** Every product, norm and
//! attention here reduces each output in an order that is fixed by the shapes of that output
//! alone, never by the batch. So a request's tokens are bit-identical whether it runs alone,
//! in a batch, in one prefill or in chunks; tests of the engine rely on it.
#![deny(missing_docs)]

#[cfg(target_arch = "x86_64")]
pub mod amx;
mod arena;
mod attention;
mod bidirectional;
mod block;
mod dtype;
mod elementwise;
mod factor;
mod hadamard;
mod isa;
mod kv;
mod large_pages;
mod low_rank;
mod matmul;
mod matrix;
mod norm;
mod packed;
mod peak;
mod rotary;
mod sampling;
mod simd;
mod stack;
mod team;
mod weight;

pub use arena::Arena;
pub use attention::{Attention, Segment, attend};
pub use bidirectional::attend_all;
pub use block::{CodecError, Grid, dequantize, quantize};
pub use dtype::DType;
pub use elementwise::{add_assign, add_bias, gelu, gelu_mul, scale, silu_mul, softcap};
pub use factor::Factor;
pub use kv::{KvCentre, KvPages, KvShape, KvType, PAGE_TOKENS};
pub use large_pages::ask as ask_for_large_pages;
pub use low_rank::{LowRankTerm, add_low_rank};
pub use matmul::matmul;
pub use matrix::{Matrix, MatrixError};
pub use norm::{layer_norm, rms_norm, rms_norm_in_place};
pub use packed::{
    ActivationBits, Activations, BitsError, Forms, PACKED_VERSION, Packed, Product, gated_product,
    packed_kernels, packs, products, rounds_fast, vector_products,
};
pub use peak::{Peak, bf16_peak, f32_peak, int8_peak, read_bandwidth};
pub use rotary::{RopeStyle, rotate};
pub use sampling::{argmax, log_softmax_in_place, softmax_in_place};
pub use stack::{Stack, StackBlock, StackError};
pub use team::Team;
pub use weight::{Packer, Weight};
