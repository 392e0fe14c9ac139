//! The arithmetic of pictures: convolution, pooling, resizing, dense and sparse, f32 and int8.
//!
//! Knows no model and no graph. Dense kernels work on pixels of channels ([`Picture`], NHWC),
//! sparse ones on planes (CHW). Every operation has one contract, checked once at its door, a
//! portable twin that defines the result, and fast versions chosen at run time. Results differ
//! between instruction sets in last bits only, and not with the number of threads.
#![deny(missing_docs)]

mod activation;
pub mod int8;
mod picture;
mod window;

pub use activation::Activation;
pub use int8::{Int8Conv, Int8Error, Quant};
pub use picture::{Picture, PictureMut, Shape};
pub use window::{Window, WindowError};
