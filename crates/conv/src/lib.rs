//! The arithmetic of pictures: convolution, pooling, resizing, dense and sparse, f32 and int8.
//!
//! Knows no model and no graph. Dense kernels work on pixels of channels ([`Picture`], NHWC),
//! sparse ones on planes (CHW). Every operation has one contract, checked once at its door, a
//! portable twin that defines the result, and fast versions chosen at run time. Results differ
//! between instruction sets in last bits only, and not with the number of threads.
#![deny(missing_docs)]

mod activation;
mod aligned;
mod conv;
mod depthwise;
mod elementwise;
pub mod int8;
mod lanes;
mod picture;
mod planes;
mod pool;
mod product;
mod resize;
mod shared;
mod softmax;
pub mod sparse;
#[cfg(test)]
mod testing;
mod transpose;
mod window;

pub use activation::Activation;
pub use aligned::{Aligned, Number};
pub use conv::{Conv, ConvError, ConvShape};
pub use elementwise::{Binary, Operand, activate, binary};
pub use int8::{Int8Conv, Int8Error, Quant};
pub use picture::{Picture, PictureMut, Shape};
pub use planes::{from_bytes, from_planes, to_planes};
pub use pool::{Pooling, global_average, pool};
pub use resize::{Mix, resize};
pub use softmax::softmax;
pub use transpose::ConvTranspose;
pub use window::{Window, WindowError};
