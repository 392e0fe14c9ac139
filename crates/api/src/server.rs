//! Binding, routes and shutdown.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sedge_engine::{Engine, Sampling};
use sedge_formats::template::ChatTemplate;
use sedge_formats::tokenizer::Tokenizer;

/// One model that the server answers with.
#[derive(Debug, Clone)]
pub struct ServedModel {
    /// Name in the API's `model` field.
    pub name: String,
    /// Its engine.
    pub engine: Engine,
    /// Its vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template; without one, chat completions are refused with a reason.
    pub template: Option<Arc<ChatTemplate>>,
    /// Most positions of a sequence.
    pub context: usize,
    /// Whether it generates text; an encoder only embeds.
    pub generates: bool,
    /// Architecture's name, as `sedge show` prints it.
    pub architecture: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Sampling where a request says nothing.
    pub defaults: Sampling,
}

/// How to listen and what to allow.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Address to listen on; port 0 takes a free one.
    pub address: SocketAddr,
    /// Keys that are accepted as bearer tokens; empty lets everyone in.
    pub api_keys: Vec<String>,
    /// Most bytes of a request's body.
    pub max_body: usize,
    /// Most connections at once; further ones wait unaccepted.
    pub max_connections: usize,
    /// A connection that has not sent a whole request head by then is closed.
    pub header_timeout: Duration,
    /// How long shutdown waits for running answers.
    pub drain_timeout: Duration,
    /// Origins that browsers may call from besides the server's own; `*` for all.
    pub cors_origins: Vec<String>,
    /// Serve the chat page from this folder instead of the built-in one (for working on it).
    pub web_folder: Option<PathBuf>,
}

/// Why the server could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Address asked for.
        address: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
}

/// A bound server.
#[derive(Debug)]
pub struct Server {}

impl Server {
    /// Binds the address. The first model answers requests that name none.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(models: Vec<ServedModel>, config: ServerConfig) -> Result<Server, ServeError> {
        let _ = (models, config);
        unimplemented!()
    }

    /// Address with the real port.
    pub fn address(&self) -> SocketAddr {
        unimplemented!()
    }

    /// Serves until `shutdown` resolves, then lets running answers end.
    ///
    /// # Errors
    /// When the listener fails for good.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), ServeError> {
        shutdown.await;
        Ok(())
    }
}
