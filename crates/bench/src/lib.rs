//! Measurement: how well a model predicts a text, and how fast it runs.
#![deny(missing_docs)]

mod costs;
mod peer;
mod perplexity;
mod plot;
mod speed;

pub use costs::measure_costs;
pub use peer::{PeerError, PeerFigure, read_peer};
pub use perplexity::{Count, Perplexity, PerplexityError, PerplexityOptions, perplexity, score};
pub use plot::{line_plot, sparkline};
pub use speed::{Spread, Task, time};
