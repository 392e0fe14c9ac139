//! Binding, routes and shutdown.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use sedge_engine::{Engine, NewAdapter, Sampling};
use sedge_formats::template::ChatTemplate;
use sedge_formats::tokenizer::Tokenizer;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::app::App;
use crate::collector::Collector;
use crate::connection::{self, Phase};
use crate::routes;
use crate::seats::{self, Seats};
use crate::vision::VisionModel;

/// After a failed accept, so that a lack of file descriptors does not keep a core busy.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long connections may take to send what has been answered.
const LAST_BYTES: Duration = Duration::from_secs(5);

/// One model that the server answers with.
#[derive(Debug, Clone)]
pub struct ServedModel {
    /// Name in the API's `model` field.
    pub name: String,
    /// Its engine.
    pub engine: Engine,
    /// Its number among the fine-tunes that share the engine.
    pub member: usize,
    /// The adapter that changes it, by its name in the engine, `MODEL:NAME`.
    pub adapter: Option<Arc<str>>,
    /// Opens adapters that are added while it is served; without it none are.
    pub open_adapter: Option<OpenAdapter>,
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

/// Makes an adapter of its name in the engine, `MODEL:NAME`, and the folder that it is read from;
/// the text says why it cannot.
#[derive(Clone)]
pub struct OpenAdapter(pub Arc<OpenAdapterFn>);

/// What is behind [`OpenAdapter`].
pub type OpenAdapterFn = dyn Fn(&str, &Path) -> Result<NewAdapter, String> + Send + Sync;

impl std::fmt::Debug for OpenAdapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OpenAdapter")
    }
}

/// A key that lets requests in.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Whose requests they are: the tenant's name. Several keys may share it.
    pub name: String,
    /// What the client sends.
    pub secret: String,
}

impl std::fmt::Debug for ApiKey {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKey")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// How to listen and what to allow.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Address to listen on; port 0 takes a free one.
    pub address: SocketAddr,
    /// Keys that are accepted as bearer tokens; empty lets everyone in.
    pub api_keys: Vec<ApiKey>,
    /// With keys: a request's `x-sedge-tenant` header says whose it is (for gateways).
    pub trust_tenant_header: bool,
    /// With keys: requests may have priorities below 0.
    pub trust_priority: bool,
    /// Most bytes of a request's body.
    pub max_body: usize,
    /// Most connections at once; further ones wait unserved.
    pub max_connections: usize,
    /// A connection that has not sent a whole request head by then is closed.
    pub header_timeout: Duration,
    /// How long shutdown waits for running answers.
    pub drain_timeout: Duration,
    /// Origins that browsers may call from besides the server's own; `*` for all.
    pub cors_origins: Vec<String>,
    /// Folders below which adapters may be read because a request asks for it; none without any.
    pub adapter_roots: Vec<PathBuf>,
    /// An OpenTelemetry collector, as `http://HOST:PORT`, that gets a span for each request.
    pub otlp_endpoint: Option<String>,
    /// Serve the chat page from this folder instead of the built-in one (for working on it).
    pub web_folder: Option<PathBuf>,
}

/// Why the server could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The collector's address cannot be used.
    #[error("the OpenTelemetry endpoint {endpoint}: {why}")]
    Collector {
        /// What was given.
        endpoint: String,
        /// Why.
        why: &'static str,
    },
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
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: Arc<App>,
}

impl Server {
    /// Binds the address. The first model of a kind answers requests that name none.
    ///
    /// On Unix this raises the process's limit of open files if `max_connections` needs it.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(
        models: Vec<ServedModel>,
        vision: Vec<VisionModel>,
        config: ServerConfig,
    ) -> Result<Server, ServeError> {
        if let Some(endpoint) = &config.otlp_endpoint {
            let endpoint = endpoint.clone();
            Collector::parse(&endpoint).map_err(|why| ServeError::Collector { endpoint, why })?;
        }
        let failed = |source| ServeError::Bind {
            address: config.address,
            source,
        };
        let listener = TcpListener::bind(config.address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Server {
            listener,
            address,
            app: Arc::new(App::new(models, vision, config)),
        })
    }

    /// Address with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` resolves, then lets running answers end: new requests get 503,
    /// `/ready` too, and what still runs after `drain_timeout` ends with an error. Connections are
    /// accepted until then, so that nobody is left without an answer.
    ///
    /// # Errors
    /// When the listener fails for good.
    pub async fn run(
        self,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ServeError> {
        let Server { listener, app, .. } = self;
        let router = routes::router(app.clone());
        let seats = Seats::new(seats::allowed_by_system(app.config.max_connections));
        let (phase, _) = watch::channel(Phase::Open);
        let mut drained = pin!(async {
            shutdown.await;
            drain(&app).await;
        });
        loop {
            // A seat is for a client that is there: taken ahead, it would cost another its own.
            let accept = async {
                let (stream, _) = listener.accept().await?;
                Ok::<_, std::io::Error>((stream, seats.take().await))
            };
            let accepted = tokio::select! {
                () = &mut drained => break,
                accepted = accept => accepted,
            };
            match accepted {
                Ok((stream, seat)) => {
                    let timeout = app.config.header_timeout;
                    let serving = connection::serve(
                        stream,
                        app.clone(),
                        router.clone(),
                        seat,
                        phase.subscribe(),
                        timeout,
                    );
                    tokio::spawn(serving);
                }
                // The client went away again, or the system is out of something: never fatal.
                Err(error) => {
                    tracing::warn!("a connection could not be accepted: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        // Answers have ended; what is left is sending them.
        phase.send_replace(Phase::Closing);
        if !seats.emptied(LAST_BYTES).await {
            phase.send_replace(Phase::Cut);
            seats.emptied(LAST_BYTES).await;
        }
        app.traces.finish().await;
        Ok(())
    }
}

/// Lets the engines finish, all at once.
async fn drain(app: &Arc<App>) {
    app.drain();
    let drains: Vec<_> = app
        .models
        .iter()
        .map(|model| {
            let (engine, timeout) = (model.engine.clone(), app.config.drain_timeout);
            tokio::task::spawn_blocking(move || engine.drain(timeout))
        })
        .collect();
    for (drain, model) in drains.into_iter().zip(&app.models) {
        if !drain.await.unwrap_or(false) {
            tracing::warn!(
                "answers of {} were cut: they took longer than the drain timeout",
                model.name
            );
        }
    }
}
