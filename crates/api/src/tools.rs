//! Function calls: how models are told of functions, made to call them, and how calls are found
//! in what they write.

pub(crate) mod describe;
pub(crate) mod force;
pub(crate) mod parse;
mod xml;
