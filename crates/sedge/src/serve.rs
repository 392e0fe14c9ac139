//! `sedge serve`: models over the OpenAI API, networks that see, and their pages, until a signal.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use sedge_api::{ApiKey, ServeError, ServedModel, Server, ServerConfig, VisionModel};
use sedge_kernels::Team;

use crate::adapters::{self, AdapterArg};
use crate::failure::Failure;
use crate::launch::{self, Running};
use crate::load::LoadArgs;
use crate::machine::{self, MachineArgs};
use crate::output::{self, ProgressLine};
use crate::see::ServedNetwork;
use crate::share::ShareArgs;
use crate::show;
use crate::size::{self, Bytes};
use crate::source::{self, Source};

const EXAMPLES: &str = "\
Examples:
  sedge serve                                    the built-in model
  sedge serve -m a.gguf -m fast=b/ --port 8000   two models; requests name `a` or `fast`
  sedge serve --vision dog=yolox_nano.onnx       pictures only; the page is /vision
  SEDGE_API_KEY=secret sedge serve -m a.gguf --host 0.0.0.0

Ctrl-C or SIGTERM lets running answers end; a second one stops at once.";

/// Port that is tried first when none is asked for.
const PORT: u16 = 8080;
/// How many ports after it are tried.
const TRIES: u16 = 100;

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Model to serve, as MODEL or NAME=MODEL (repeatable); the first answers requests that name
    /// none [default: seedling, unless there is a --vision]
    #[arg(short, long = "model", value_name = "MODEL")]
    models: Vec<Source>,

    /// Network that sees to serve: an ONNX file, or the name of one that Sedge builds; after a
    /// comma each, preset=NAME, labels=FILE, size=HxW and weights=FILE as in sedge see (repeatable)
    #[arg(long, value_name = "[NAME=]MODEL[,…]")]
    vision: Vec<ServedNetwork>,

    /// Adapter to serve as MODEL:NAME: a folder in peft's layout, or a stored adapter's name, of
    /// the first model if none is named (repeatable)
    #[arg(long = "adapter", value_name = "[MODEL:]NAME=FOLDER")]
    adapters: Vec<AdapterArg>,

    /// Serve every adapter in this folder, for the first model
    #[arg(long, value_name = "FOLDER")]
    adapter_folder: Option<PathBuf>,

    /// Let requests add adapters that lie below this folder, through /v1/adapters (repeatable)
    #[arg(long = "adapter-root", value_name = "FOLDER")]
    adapter_roots: Vec<PathBuf>,

    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: String,

    /// Port to listen on; 0 takes a free one [default: 8080, or the next free one]
    #[arg(long)]
    port: Option<u16>,

    /// Key that requests must carry as a bearer token, as KEY or TENANT=KEY (repeatable)
    #[arg(
        long = "api-key",
        value_name = "KEY",
        env = "SEDGE_API_KEY",
        hide_env_values = true
    )]
    api_keys: Vec<String>,

    /// With keys: believe the x-sedge-tenant header (behind a gateway that sets it)
    #[arg(long)]
    trust_tenant_header: bool,

    /// With keys: let requests have priorities below 0, which go before all others
    #[arg(long)]
    trust_priority: bool,

    /// Origin that browsers may call from besides the server's own; `*` for all (repeatable)
    #[arg(long = "cors-origin", value_name = "ORIGIN")]
    cors_origins: Vec<String>,

    /// Most bytes of a request's body
    #[arg(long, value_name = "BYTES", default_value = "10MiB")]
    max_body: Bytes,

    /// Most connections at once
    #[arg(long, value_name = "N", default_value = "1024")]
    max_connections: NonZeroUsize,

    /// Seconds that a connection may take to send a request's head
    #[arg(long, value_name = "SECONDS", default_value = "10")]
    header_timeout: u64,

    /// Seconds that shutdown waits for running answers
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    drain_timeout: u64,

    /// OpenTelemetry collector that gets a span for each request, over HTTP
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,

    /// Serve the chat page from this folder (for working on it)
    #[arg(long, value_name = "FOLDER", hide = true)]
    web_folder: Option<PathBuf>,

    #[command(flatten)]
    share: ShareArgs,

    #[command(flatten)]
    load: LoadArgs,

    #[command(flatten)]
    machine: MachineArgs,
}

impl Args {
    /// What `sedge` alone does.
    pub(crate) fn default_model() -> Args {
        #[derive(Parser)]
        struct Alone {
            #[command(flatten)]
            args: Args,
        }
        Alone::parse_from(["sedge"]).args
    }
}

pub(crate) fn run(mut args: Args) -> Result<(), Failure> {
    // An empty variable means no key, never that the empty key opens the door.
    args.api_keys.retain(|key| !key.is_empty());
    let host = resolve(&args.host)?;
    if let Some(root) = args.adapter_roots.iter().find(|root| !root.is_dir()) {
        let what = format_args!("--adapter-root {}: no such folder", root.display()).to_string();
        return Err(Failure::new(what));
    }
    let mut sources = args.models.clone();
    if sources.is_empty() && args.vision.is_empty() {
        sources.push(Source::built_in());
    }
    source::distinguish(&mut sources);
    let running = launch::launch_all(&sources, &args.machine, Some(&args.load), Some(&args.share))?;
    add_adapters(&args, &running)?;
    let vision = launch_vision(&args, &running)?;

    let runtime = tokio::runtime::Runtime::new().map_err(Failure::new)?;
    runtime.block_on(async {
        let server = bind(&args, host, &running, &vision).await?;
        let address = server.address();
        if !host.is_loopback() && args.api_keys.is_empty() {
            output::note(format_args!(
                "sedge: whoever reaches {address} can use these models: no API key is set\n  \
                 try: SEDGE_API_KEY=… sedge serve --host {}",
                args.host
            ));
        }
        let greeting = greeting(&running, &vision, address, !args.api_keys.is_empty());
        // Served to the end even if nobody reads the greeting.
        let _ = output::print(&greeting);
        let drain = args.drain_timeout;
        server
            .run(async move {
                signal().await;
                output::note(format_args!(
                    "sedge: stopping; running answers have {drain} s to end (again: stop now)"
                ));
                tokio::spawn(async {
                    signal().await;
                    std::process::exit(130);
                });
            })
            .await
            .map_err(Failure::new)
    })
}

/// Readies networks that see. They share threads: a picture is looked at at a time.
fn launch_vision(args: &Args, running: &[Running]) -> Result<Vec<VisionModel>, Failure> {
    let mut models: Vec<VisionModel> = Vec::new();
    let team = match args.vision.is_empty() {
        true => return Ok(models),
        false => Arc::new(Team::new(machine::threads(args.machine.threads))),
    };
    for wanted in &args.vision {
        let name = &wanted.name;
        let text = running.iter().any(|model| model.name == *name);
        if text || models.iter().any(|model| model.name == *name) {
            let what = format!("--vision {name}: another model has this name");
            return Err(Failure::misused(what, "--vision OTHER=MODEL"));
        }
        models.push(wanted.launch(&team)?);
    }
    Ok(models)
}

/// Registers the adapters that are to be served from the start.
fn add_adapters(args: &Args, running: &[Running]) -> Result<(), Failure> {
    let mut wanted = args.adapters.clone();
    if let Some(folder) = &args.adapter_folder {
        wanted.extend(adapters::in_folder(folder)?);
    }
    let mut line = ProgressLine::new();
    let total = wanted.len() as u64;
    for (done, wanted) in wanted.into_iter().enumerate() {
        line.show(done as u64, total, &wanted.name);
        let model = match &wanted.model {
            None => running.first().ok_or_else(|| {
                Failure::misused("--adapter without a model that it changes", "-m MODEL")
            })?,
            Some(name) => running.iter().find(|r| r.name == *name).ok_or_else(|| {
                let served: Vec<&str> = running.iter().map(|r| r.name.as_str()).collect();
                Failure::new(format_args!("--adapter {name}:…: no such model"))
                    .hint(format_args!("one of {}", served.join(", ")))
            })?,
        };
        let name = format!("{}:{}", model.name, wanted.name);
        let new = model.adapters.of_place(&name, &wanted.folder)?;
        model
            .engine
            .add_adapter(new)
            .map_err(|e| Failure::about(&wanted.folder, &e))?;
    }
    line.clear();
    Ok(())
}

/// Binds the port asked for, or the first free one from 8080 on.
async fn bind(
    args: &Args,
    host: IpAddr,
    running: &[Running],
    vision: &[VisionModel],
) -> Result<Server, Failure> {
    let first = args.port.unwrap_or(PORT);
    let last = match args.port {
        Some(port) => port,
        None => PORT + TRIES,
    };
    let mut port = first;
    loop {
        let address = SocketAddr::new(host, port);
        let models = running.iter().map(served).collect();
        match Server::bind(models, vision.to_vec(), server_config(args, address)).await {
            Ok(server) => {
                if port != first {
                    output::note(format_args!(
                        "sedge: port {first} is taken, so this is port {port}"
                    ));
                }
                return Ok(server);
            }
            Err(ServeError::Bind { source, .. })
                if source.kind() == io::ErrorKind::AddrInUse && port < last =>
            {
                port += 1;
            }
            Err(error @ ServeError::Bind { .. }) => {
                return Err(Failure::new(error).hint("--port 0, which takes a free one"));
            }
            #[allow(unreachable_patterns)] // The API may learn further reasons.
            Err(error) => return Err(Failure::new(error)),
        }
    }
}

fn server_config(args: &Args, address: SocketAddr) -> ServerConfig {
    ServerConfig {
        address,
        api_keys: named_keys(&args.api_keys),
        trust_tenant_header: args.trust_tenant_header,
        trust_priority: args.trust_priority,
        max_body: args.max_body.0 as usize,
        max_connections: args.max_connections.get(),
        header_timeout: Duration::from_secs(args.header_timeout),
        drain_timeout: Duration::from_secs(args.drain_timeout),
        cors_origins: args.cors_origins.clone(),
        adapter_roots: args.adapter_roots.clone(),
        otlp_endpoint: args.otlp_endpoint.clone().filter(|url| !url.is_empty()),
        web_folder: args.web_folder.clone(),
    }
}

/// Keys with their tenants' names: before a `=`, if that reads like a name, or by number.
fn named_keys(keys: &[String]) -> Vec<ApiKey> {
    let plain = |name: &str| {
        let letters = name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        (1..=64).contains(&name.len()) && letters
    };
    let named = |(number, key): (usize, &String)| match key.split_once('=') {
        Some((name, secret)) if plain(name) && !secret.trim_matches('=').is_empty() => ApiKey {
            name: name.to_owned(),
            secret: secret.to_owned(),
        },
        _ => ApiKey {
            name: format!("key-{}", number + 1),
            secret: key.clone(),
        },
    };
    keys.iter().enumerate().map(named).collect()
}

fn served(running: &Running) -> ServedModel {
    ServedModel {
        name: running.name.clone(),
        engine: running.engine.clone(),
        member: running.member,
        adapter: None,
        open_adapter: Some(running.adapters.opener()),
        tokenizer: running.tokenizer.clone(),
        template: running.template.clone(),
        context: running.context,
        generates: running.generates,
        architecture: running.architecture.to_owned(),
        parameters: running.info.parameters,
        defaults: running.defaults.clone(),
    }
}

fn resolve(host: &str) -> Result<IpAddr, Failure> {
    let unknown = |why: &dyn std::fmt::Display| {
        Failure::new(format_args!("--host {host}: {why}"))
            .hint("--host 127.0.0.1, or 0.0.0.0 for everyone")
    };
    let mut found = (host, 0).to_socket_addrs().map_err(|e| unknown(&e))?;
    let address = found.next().ok_or_else(|| unknown(&"no address"))?;
    Ok(address.ip())
}

/// The models, the pages and a request to copy. Programs read the address from it: the
/// first `http://` is the server's own.
fn greeting(
    running: &[Running],
    vision: &[VisionModel],
    address: SocketAddr,
    keyed: bool,
) -> String {
    let reachable = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(_) => IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
    };
    let url = format!("http://{}", SocketAddr::new(reachable, address.port()));
    let mut text = String::new();
    for model in running {
        text.push_str(&format!(
            "model      {}  {}, {} parameters, {} {}, context {}\n",
            model.name,
            model.architecture,
            size::count(model.info.parameters),
            show::main_type(&model.info),
            Bytes(model.info.bytes),
            model.context
        ));
    }
    let groups = running.iter().filter(|r| r.member == 0 && r.weights.1 > 1);
    for group in groups {
        let (bytes, models) = group.weights;
        let apart = running.iter().filter(|r| r.engine.is_same(&group.engine));
        let apart: u64 = apart.map(|r| r.info.bytes).sum();
        text.push_str(&format!(
            "shared     {models} models hold {} of weights in memory; their files hold {}\n",
            Bytes(bytes),
            Bytes(apart)
        ));
    }
    for model in vision {
        let [rows, columns] = model.size;
        text.push_str(&format!(
            "vision     {}  {}, {} parameters, preset {}, {rows} × {columns}\n",
            model.name,
            model.task.name(),
            size::count(model.parameters),
            model.preset,
        ));
    }
    let key = if keyed {
        r#" -H "authorization: Bearer $SEDGE_API_KEY""#
    } else {
        ""
    };
    if !vision.is_empty() {
        text.push_str(&format!("pictures   {url}/vision\n"));
    }
    let Some(first) = running.first() else {
        let task = vision.first().map_or("detect", |model| model.task.name());
        text.push_str(&format!(
            "request    curl {url}/v1/vision/{task}{key} -H 'content-type: image/jpeg' --data-binary @photo.jpg\n"
        ));
        return text;
    };
    let (path, body) = if first.generates {
        let message = r#"[{"role":"user","content":"find all files larger than 100MB"}]"#;
        (
            "chat/completions",
            format!(r#"{{"model":"{}","messages":{message}}}"#, first.name),
        )
    } else {
        (
            "embeddings",
            format!(r#"{{"model":"{}","input":"a sedge"}}"#, first.name),
        )
    };
    if first.generates {
        text.push_str(&format!("chat page  {url}/\n"));
    } else {
        text.push_str(&format!("server     {url}/\n"));
    }
    text.push_str(&format!(
        "request    curl {url}/v1/{path}{key} -H 'content-type: application/json' -d '{body}'\n"
    ));
    text
}

/// SIGINT or SIGTERM.
pub(crate) async fn signal() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = interrupt => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = interrupt.await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_names() {
        let keys = ["secret", "team=abc", "a b=c", "YWJj==", "==base64=="].map(String::from);
        let found = named_keys(&keys);
        let found: Vec<(&str, &str)> = found
            .iter()
            .map(|key| (key.name.as_str(), key.secret.as_str()))
            .collect();
        let expected = [
            ("key-1", "secret"),
            ("team", "abc"),
            ("key-3", "a b=c"),
            ("key-4", "YWJj=="),
            ("key-5", "==base64=="),
        ];
        assert_eq!(found, expected);
    }
}
