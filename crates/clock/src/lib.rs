//! Time as a value, real or virtual, and measured models of what work costs.
//!
//! Whoever plans takes both as arguments, so that the same code runs on a machine and, in a
//! fraction of the time, in a simulator.
#![deny(missing_docs)]

mod clock;
mod costs;

pub use clock::Clock;
pub use costs::{Costs, CostsError, Load};
