//! One node's language-model serving.
//!
//! `submit → [queue] → plan → move → forward → sample → emit`. Planning is a pure function;
//! the step loop is one file, `step.rs`. What always holds: a request ends exactly once, its
//! pages are free within one step of its end, and its tokens do not depend on its neighbours.
#![deny(missing_docs)]

mod adapters;
mod budget;
mod cache;
mod check;
mod constraint;
mod executor;
mod fair;
mod live;
mod logprob;
mod plan;
mod pressure;
mod request;
mod rng;
mod run;
mod sample;
#[cfg(test)]
mod scripted;
mod sequence;
mod shared;
mod sim;
mod softmax;
mod step;
mod stop;

pub use adapters::{
    AdapterError, AdapterStats, AdapterView, LoadAdapter, MergeAdapter, NewAdapter,
};
pub use cache::{CacheConfig, CacheStats, DiskTier, HostConfig, Prefixes};
pub use executor::{CpuExecutor, Executor, Shape};
pub use live::{RequestView, StepRecord, TierPages};
pub use plan::Policy;
pub use pressure::{Reading, Watch};
pub use request::{
    Constraint, Event, Finish, FinishReason, Goal, Logprob, Request, Sampling, SubmitError,
    Timings, TokenEvent, Usage,
};
pub use rng::Rng;
pub use run::{Engine, EngineConfig, EngineStats, Output};
pub use sedge_models::{MemoryError, Moved, StackMemory};
pub use sim::{SIM_VOCAB, SimExecutor, SimMemory, SimOutcome, SimRequest, SimRun, load, simulate};
