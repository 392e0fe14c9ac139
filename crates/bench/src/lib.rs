//! Measurement: how well a model predicts a text, how fast it runs, and how a server bears load.
#![deny(missing_docs)]

mod agreement;
mod costs;
mod hub;
pub mod load;
mod peer;
mod perplexity;
mod plot;
mod products;
mod speed;
mod vision;

pub use agreement::{Agreement, agreement, agreement_between};
pub use costs::measure_costs;
pub use hub::{BenchHub, write_weights};
pub use peer::{PeerError, PeerFigure, read_peer};
pub use perplexity::{Count, Perplexity, PerplexityError, PerplexityOptions, perplexity, score};
pub use plot::{Chart, Line, line_plot, sparkline};
pub use products::{ProductCase, ProductFigure, ProductOptions, products};
pub use speed::{Spread, Task, fill, generate, time, time_of};
pub use vision::{OnnxRuntime, OnnxRuntimeError, VisionFigure, relative_error, vision};
