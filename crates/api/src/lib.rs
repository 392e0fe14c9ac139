//! The OpenAI API over HTTP, pictures, health and metrics, and the pages.
//!
//! A request is read field by field (`openai`), becomes token ids (`prompt`) and requests to
//! the engine (`answers`), whose events become an answer or a stream of events. What always
//! holds: a field that is not understood is an error that names it, and a client that goes away
//! takes its running answers along.
#![deny(missing_docs)]

mod adapter_roots;
mod adapters;
mod answers;
mod app;
mod asker;
mod auth;
mod body;
mod chat;
mod collector;
mod completions;
mod connection;
mod embeddings;
mod error;
mod ids;
mod live;
mod logprobs;
mod memory;
mod metrics;
mod models;
mod openai;
mod prompt;
mod recent;
mod routes;
mod seats;
mod server;
mod sse;
mod stall;
mod tools;
mod traces;
mod vision;
mod web;

pub use adapters::is_adapter_name;
pub use server::{
    ApiKey, OpenAdapter, OpenAdapterFn, ServeError, ServedModel, Server, ServerConfig,
};
pub use vision::{See, SeeFn, Seen, VisionModel, VisionTask, Wish};
