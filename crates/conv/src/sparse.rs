//! Pictures as planes (CHW), and the kernels that make mostly zero weights cheap.
//!
//! A weight multiplies many pixels of one channel, which lie side by side in planes, so a weight
//! that is 0 costs nothing: it is not in the list of those to multiply. Every kernel runs on
//! vectors of the best instruction set that the machine has, and writes each result once, with
//! its bias, another addend and its activation applied in registers.

mod conv;
mod convert;
mod depthwise;
mod elementwise;
mod epilogue;
mod isa;
mod lanes;
mod planes;
mod pointwise;
mod strip;
#[cfg(test)]
mod tests;

pub use conv::PlaneConv;
pub use convert::{from_planes, to_planes};
pub use depthwise::Depthwise;
pub use planes::{Planes, PlanesMut, plane_stride};
pub use pointwise::Sparse;

use crate::{Window, WindowError};

/// Why there is no such layer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SparseError {
    /// Outputs share lists of inputs in other numbers.
    #[error("lists for {0} outputs at once; there are lists for 1, 2, 4, 8 and 16")]
    Block(usize),
    /// The weights do not have the size that the layer has.
    #[error("{found} weights where the layer has {expected}")]
    Weights {
        /// Values given.
        found: usize,
        /// Values wanted.
        expected: usize,
    },
    /// Not one bias for each output.
    #[error("{found} biases of {expected} outputs")]
    Bias {
        /// Values given.
        found: usize,
        /// Outputs.
        expected: usize,
    },
    /// Sizes whose product does not fit.
    #[error("{outputs} outputs of {inputs} inputs are too many")]
    Large {
        /// Outputs.
        outputs: usize,
        /// Inputs of each.
        inputs: usize,
    },
    /// Depthwise windows that have no kernel here.
    #[error("planes have depthwise kernels of 3 × 3 and 5 × 5, steps of 1 and 2, not {0:?}")]
    Depthwise(Window),
    /// Windows that do not exist.
    #[error(transparent)]
    Window(#[from] WindowError),
}
