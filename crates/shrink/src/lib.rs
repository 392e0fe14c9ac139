//! Makes a model fit a budget with the least loss.
#![deny(missing_docs)]
