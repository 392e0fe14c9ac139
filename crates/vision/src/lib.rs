//! Networks that see.
//!
//! A network is a [`Graph`], whatever it came from: an ONNX file or a table written here.
//! Everything that changes networks works on graphs.
#![deny(missing_docs)]

mod export;
mod fuse;
mod graph;
mod kernel;
mod lower;
mod nd;
pub mod nets;
mod op;
mod plain;
mod plan;
mod program;
pub mod task;

pub use export::{ExportError, export};
pub use fuse::fuse;
pub use graph::{Graph, GraphError, Node, Value, ValueInfo};
pub use lower::{LowerError, Sizes, Unsupported, lower};
pub use op::{
    Activation, Axis, Binary, Conv, ConvTranspose, Fill, Function, Op, OpError, Pool, Reduction,
    Weights,
};
pub use plain::reference;
pub use program::{Options, Program, ProgramError, Sparsity, StepName};
pub use sedge_conv::{Quant, Window, WindowError};
