//! Measurement: how well a model predicts a text.
#![deny(missing_docs)]

mod perplexity;

pub use perplexity::{Perplexity, PerplexityError, PerplexityOptions, perplexity, score};
