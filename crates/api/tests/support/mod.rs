//! A real server on a loopback port with a real engine, whose model says what it is told.

#![allow(dead_code, unused_imports)] // each test file uses a part

mod client;
mod parrot;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sedge_api::{OpenAdapter, ServedModel, Server, ServerConfig};
use sedge_engine::{
    CacheConfig, Engine, EngineConfig, EngineStats, NewAdapter, Prefixes, Sampling,
};
use sedge_formats::template::ChatTemplate;
use sedge_models::Adapter;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

pub(crate) use client::{Reply, Streamed, exchange};
pub(crate) use parrot::{CONTEXT, Gate, HIDDEN, Parrot, say, tokenizer};

/// Messages one after the other, then the mark after which the parrot speaks. Knows no tools.
const TEMPLATE: &str = "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}\u{3}{% endif %}";

/// Longest wait for anything in a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running server; dropping it ends it.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    /// Lets the parrot's steps through.
    pub(crate) gate: Arc<Gate>,
    engine: Engine,
    shutdown: Option<oneshot::Sender<()>>,
    ended: Option<tokio::task::JoinHandle<()>>,
    runtime: Runtime,
}

/// Settings that suit most tests.
pub(crate) fn config() -> ServerConfig {
    ServerConfig {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        api_keys: Vec::new(),
        trust_tenant_header: false,
        trust_priority: false,
        adapter_roots: Vec::new(),
        otlp_endpoint: None,
        max_body: 1 << 20,
        max_connections: 64,
        header_timeout: Duration::from_secs(10),
        drain_timeout: Duration::from_secs(10),
        cors_origins: Vec::new(),
        web_folder: None,
    }
}

/// An adapter that changes nothing: a folder with `adapter.txt`, whose text, if there is one, is
/// why it cannot be read.
fn open_adapter(name: &str, folder: &Path) -> Result<NewAdapter, String> {
    let file = folder.join("adapter.txt");
    let read = move || match std::fs::read_to_string(&file) {
        Ok(text) if text.is_empty() => Ok(Adapter::default()),
        Ok(text) => Err(text),
        Err(error) => Err(error.to_string()),
    };
    Ok(NewAdapter {
        name: name.into(),
        identity: [0; 32],
        member: 0,
        load: Arc::new(read),
        merge: Arc::new(|_| Err("a parrot has no weights".into())),
    })
}

impl TestServer {
    /// Serves the models `parrot`, `mute` (no template) and `encoder`.
    pub(crate) fn start() -> TestServer {
        TestServer::with(config(), EngineConfig::default())
    }

    pub(crate) fn with(config: ServerConfig, limits: EngineConfig) -> TestServer {
        // The scripted model reads its answer from a prompt that is computed.
        let limits = EngineConfig {
            cache: CacheConfig {
                prefixes: Prefixes::Off,
                ..CacheConfig::default()
            },
            ..limits
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let tokenizer = Arc::new(tokenizer());
        let gate = Arc::new(Gate::default());
        let parrot = Parrot::new(gate.clone(), false);
        let engine = Engine::start(Box::new(parrot), Some(tokenizer.clone()), limits.clone());
        let encoder = Parrot::new(Arc::new(Gate::default()), true);
        let encoder = Engine::start(Box::new(encoder), Some(tokenizer.clone()), limits);
        let template = Arc::new(ChatTemplate::new(TEMPLATE, None, None).unwrap());
        let parrot = ServedModel {
            name: "parrot".into(),
            member: 0,
            adapter: None,
            open_adapter: Some(OpenAdapter(Arc::new(open_adapter))),
            engine: engine.clone(),
            tokenizer,
            template: Some(template),
            context: CONTEXT,
            generates: true,
            architecture: "bird".into(),
            parameters: 7,
            defaults: Sampling::default(),
        };
        let mute = ServedModel {
            name: "org/mute".into(),
            template: None,
            ..parrot.clone()
        };
        let encoder = ServedModel {
            name: "encoder".into(),
            engine: encoder,
            generates: false,
            ..mute.clone()
        };
        let server = runtime
            .block_on(Server::bind(vec![parrot, mute, encoder], vec![], config))
            .unwrap();
        let address = server.address();
        let (shutdown, stopped) = oneshot::channel::<()>();
        let ended = runtime.spawn(async move {
            server
                .run(async move { drop(stopped.await) })
                .await
                .unwrap();
        });
        TestServer {
            address,
            gate,
            engine,
            shutdown: Some(shutdown),
            ended: Some(ended),
            runtime,
        }
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        exchange(self.address, "GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &serde_json::Value) -> Reply {
        self.post_bytes(path, body.to_string().as_bytes())
    }

    pub(crate) fn delete(&self, path: &str) -> Reply {
        exchange(self.address, "DELETE", path, &[], b"")
    }

    pub(crate) fn post_bytes(&self, path: &str, body: &[u8]) -> Reply {
        exchange(
            self.address,
            "POST",
            path,
            &[("Content-Type", "application/json")],
            body,
        )
    }

    /// Posts and reads the events as they come.
    pub(crate) fn stream(&self, path: &str, body: &serde_json::Value) -> Streamed {
        Streamed::open(self.address, path, body)
    }

    /// The parrot's engine's counters.
    pub(crate) fn stats(&self) -> EngineStats {
        self.engine.stats()
    }

    /// Waits until the counters are as wished.
    pub(crate) fn wait_for(&self, wish: impl Fn(&EngineStats) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !wish(&self.stats()) {
            assert!(Instant::now() < until, "waited in vain: {:?}", self.stats());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Begins the shutdown.
    pub(crate) fn stop(&mut self) {
        self.shutdown.take().unwrap().send(()).unwrap();
    }

    /// Waits for the server's end.
    pub(crate) fn wait_for_end(&mut self) {
        let ended = self.ended.take().unwrap();
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, ended).await })
            .expect("no end")
            .unwrap();
    }
}
