//! Any size from one file: matrices as stacks of blocks, in the order in which memory takes them
//! best.

mod decompose;
mod linear;
mod moment;
mod order;

pub use decompose::{Decomposed, Decomposition, decompose};
pub use moment::{Inputs, Moment};
