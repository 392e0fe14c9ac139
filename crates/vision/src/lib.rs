//! Networks that see.
//!
//! A network is a [`Graph`], whatever it came from: an ONNX file or a table written here.
//! Everything that changes networks works on graphs.
#![deny(missing_docs)]

mod graph;
mod nd;
pub mod nets;
mod op;
pub mod task;

pub use graph::{Graph, GraphError, Node, Value, ValueInfo};
pub use op::{
    Activation, Axis, Binary, Conv, ConvTranspose, Fill, Function, Op, OpError, Pool, Reduction,
    Weights,
};
pub use sedge_conv::{Quant, Window, WindowError};
