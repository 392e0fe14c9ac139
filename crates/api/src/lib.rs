//! The OpenAI API over HTTP, health and metrics, and the chat page.
#![deny(missing_docs)]

mod server;

pub use server::{ServeError, ServedModel, Server, ServerConfig};
