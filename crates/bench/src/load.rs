//! Load on a server: what is asked for and when, who asks, and what came of it.
//!
//! A [`Workload`] is plain data: a simulator can play it as well as [`play`], which plays it
//! against any server that speaks OpenAI's API. Both end in [`Record`]s, of which [`Figures`]
//! are made.

mod capacity;
mod client;
mod compare;
mod figures;
mod metrics;
mod play;
mod report;
mod rng;
mod server;
mod sse;
mod trace;
mod workload;

pub use capacity::Bisection;
pub use client::{Api, ClientError, Target};
pub use compare::{Figure, Summary, Trial, Unit, summarize};
pub use figures::{Figures, Outcome, Quantiles, Record, Slo, TenantFigures};
pub use metrics::Sample;
pub use play::{Progress, Run, play};
pub use report::{Page, Table, charts};
pub use server::{Launched, ServerError, ServerSpec};
pub use trace::{Row, Trace, TraceError};
pub use workload::{Arrivals, Length, Lengths, Planned, Workload, WorkloadError, WorkloadSpec};
