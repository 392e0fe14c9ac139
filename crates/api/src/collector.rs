//! The way to an OpenTelemetry collector: OTLP over HTTP as JSON, in batches.
//! What cannot be delivered is dropped and counted; nobody waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::sync::mpsc::Receiver;

/// Requests of one message, and how long it waits to be filled.
const BATCH: usize = 256;
const WAIT: Duration = Duration::from_secs(1);
/// Most time that the collector may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// At most one warning in this time.
const WARN: Duration = Duration::from_secs(60);

/// Where spans go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Collector {
    host: String,
    port: u16,
    path: String,
}

impl Collector {
    /// From an endpoint such as `http://127.0.0.1:4318`, to whose path `/v1/traces` is added.
    pub(crate) fn parse(endpoint: &str) -> Result<Collector, &'static str> {
        let uri: Uri = endpoint.parse().map_err(|_| "it is not an address")?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err("TLS is not spoken: put a local collector before it"),
            _ => return Err("it must begin with http://"),
        }
        let host = uri.host().ok_or("it names no host")?;
        Ok(Collector {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(4318),
            path: format!("{}/v1/traces", uri.path().trim_end_matches('/')),
        })
    }
}

/// Sends what comes, in batches, until the queue has been closed and is empty; `close` closes it.
///
/// Each item is the list of one request's spans.
pub(crate) async fn deliver(
    collector: Collector,
    mut spans: Receiver<Value>,
    close: Arc<Notify>,
    lost: Arc<AtomicU64>,
) {
    let mut warned: Option<Instant> = None;
    let mut batch = Vec::new();
    while let Some(first) = next(&mut spans, &close).await {
        batch.push(first);
        let fill = async {
            while batch.len() < BATCH
                && let Some(more) = next(&mut spans, &close).await
            {
                batch.push(more);
            }
        };
        let _ = tokio::time::timeout(WAIT, fill).await;
        let count = batch.len() as u64;
        let all = batch.drain(..).flat_map(|spans| match spans {
            Value::Array(spans) => spans,
            other => vec![other],
        });
        let message = message(all.collect());
        let failed = match tokio::time::timeout(TIMEOUT, post(&collector, message)).await {
            Ok(Ok(())) => continue,
            Ok(Err(why)) => why,
            Err(_) => "no answer in time".to_owned(),
        };
        lost.fetch_add(count, Ordering::Relaxed);
        if warned.is_none_or(|at| at.elapsed() > WARN) {
            warned = Some(Instant::now());
            let (host, port) = (&collector.host, collector.port);
            tracing::warn!("traces cannot be sent to {host}:{port}: {failed}");
        }
    }
}

/// The next item. A closed queue gives what it still has, then nothing.
async fn next(spans: &mut Receiver<Value>, close: &Notify) -> Option<Value> {
    if !spans.is_closed() {
        tokio::select! {
            biased;
            () = close.notified() => spans.close(),
            next = spans.recv() => return next,
        }
    }
    spans.recv().await
}

fn message(spans: Vec<Value>) -> Value {
    let text = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
    json!({"resourceSpans": [{
        "resource": {"attributes": [
            text("service.name", "sedge"),
            text("service.version", env!("CARGO_PKG_VERSION")),
        ]},
        "scopeSpans": [{"scope": {"name": "sedge"}, "spans": spans}],
    }]})
}

async fn post(collector: &Collector, message: Value) -> Result<(), String> {
    let Collector { host, port, path } = collector;
    let stream = TcpStream::connect((host.as_str(), *port));
    let stream = stream.await.map_err(|e| e.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let connection = tokio::spawn(connection);
    let name = match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    let request = Request::post(path.as_str())
        .header(HOST, name)
        .header(CONTENT_TYPE, "application/json")
        .body(message.to_string())
        .map_err(|e| e.to_string())?;
    let answer = sender.send_request(request).await;
    connection.abort();
    let status = answer.map_err(|e| e.to_string())?.status();
    match status.is_success() {
        true => Ok(()),
        false => Err(format!("the collector answered {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_checked() {
        let parsed = Collector::parse("http://127.0.0.1:4318/otlp/").unwrap();
        assert_eq!(
            (parsed.port, parsed.path.as_str()),
            (4318, "/otlp/v1/traces")
        );
        for wrong in ["127.0.0.1:4318", "https://x", "ftp://x", "http://", ""] {
            assert!(Collector::parse(wrong).is_err(), "{wrong}");
        }
    }
}
