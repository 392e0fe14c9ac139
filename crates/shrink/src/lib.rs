//! Makes a model fit a budget with the least loss: quantisation that looks at what a model's
//! products read, matrix by matrix, so that a model need not fit the memory to be made smaller.
//!
//! [`shrink`](shrink()) goes through the layers once. For each it sees, on a calibration text,
//! what its products read ([`Moment`]), rounds its matrices so that their products change least
//! ([`Method`]), and lets the text pass through what it has become. What is done is kept beside
//! the output until that is whole, so that a run that was interrupted goes on.
#![deny(missing_docs)]

mod awq;
mod distance;
mod moment;
mod numbers;
mod outliers;
mod plan;
mod round;
mod shrink;
pub mod stack;
mod target;
mod text;
pub mod vision;
mod work;

pub use moment::{Moment, NotFinite, Spread};
pub use plan::{Candidate, Choice, Plan, plan};
pub use round::{Rounded, nearest, spreading};
pub use shrink::{
    Doing, LEAST_TOKENS, Method, Options, ShrinkError, ShrinkReport, Shrunk, Types, shrink,
};
pub use target::{Scheme, Target, TargetError, by_scheme, whole};
pub use text::{pieces, written};
pub use work::WorkError;
