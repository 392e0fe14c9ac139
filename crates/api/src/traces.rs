//! Spans of requests for an OpenTelemetry collector: OTLP over HTTP as JSON, with the names of
//! the semantic conventions for generative AI.
//!
//! Requests never wait for it: spans go into a bounded queue, and what does not fit, or cannot be
//! delivered, is dropped and counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use sedge_engine::{Finish, FinishReason};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::ids;

/// Answers that may wait to be sent.
const QUEUED: usize = 2048;
/// Answers of one message, and how long it waits to be filled.
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

/// A caller's span, from a W3C `traceparent` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parent {
    trace: String,
    span: String,
}

impl Parent {
    /// `00-<32 hex>-<16 hex>-<2 hex>`; anything else is nobody's.
    pub(crate) fn parse(header: &str) -> Option<Parent> {
        let mut parts = header.trim().split('-');
        let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str, digits: usize| {
            text.len() == digits
                && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
                && text.bytes().any(|b| b != b'0')
        };
        let known = version.len() == 2 && version != "ff" && parts.next()?.len() >= 2;
        (known && hex(trace, 32) && hex(span, 16)).then(|| Parent {
            trace: trace.to_owned(),
            span: span.to_owned(),
        })
    }
}

/// What an answer's span tells besides its end.
#[derive(Debug, Clone)]
pub(crate) struct About {
    /// `chat`, `text_completion` or `embeddings`.
    pub(crate) operation: &'static str,
    pub(crate) model: String,
    pub(crate) tenant: Arc<str>,
    pub(crate) priority: i32,
    pub(crate) parent: Option<Parent>,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) temperature: Option<f32>,
}

/// The way to the collector, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    sender: Option<Sender<Value>>,
    lost: Arc<AtomicU64>,
}

impl Traces {
    /// Starts sending. Needs a Tokio runtime.
    pub(crate) fn start(collector: Option<Collector>) -> Traces {
        let lost = Arc::new(AtomicU64::new(0));
        let sender = collector.map(|collector| {
            let (sender, receiver) = mpsc::channel(QUEUED);
            tokio::spawn(deliver(collector, receiver, lost.clone()));
            sender
        });
        Traces { sender, lost }
    }

    /// Whether spans are wanted.
    pub(crate) fn wanted(&self) -> bool {
        self.sender.is_some()
    }

    /// Answers whose spans were not delivered.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// An answer has just ended.
    pub(crate) fn answered(&self, about: &About, finish: &Finish) {
        let Some(sender) = &self.sender else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let spans = spans(about, finish, now.unwrap_or_default());
        if sender.try_send(spans).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

fn number(key: &str, value: usize) -> Value {
    // OTLP's JSON has 64-bit integers as strings.
    json!({"key": key, "value": {"intValue": value.to_string()}})
}

/// An answer's span and those of its parts: waiting, prefill, decode.
fn spans(about: &About, finish: &Finish, end: Duration) -> Value {
    let hex = |digits: usize| ids::unique("")[..digits].to_owned();
    let own = hex(16);
    let trace = match &about.parent {
        Some(parent) => parent.trace.clone(),
        None => hex(16) + &hex(16),
    };
    let start = end.saturating_sub(finish.timings.total);
    let at = |time: Duration| (start + time).as_nanos().to_string();
    let (reason, failed) = match &finish.reason {
        FinishReason::Stop => ("stop", None),
        FinishReason::Length => ("length", None),
        FinishReason::Deadline => ("error", Some("the deadline passed")),
        FinishReason::Error(why) => ("error", Some(why.as_str())),
    };
    let mut attributes = vec![
        text("gen_ai.operation.name", about.operation),
        text("gen_ai.provider.name", "sedge"),
        text("gen_ai.request.model", &about.model),
        text("gen_ai.response.model", &about.model),
        json!({"key": "gen_ai.response.finish_reasons",
               "value": {"arrayValue": {"values": [{"stringValue": reason}]}}}),
        number("gen_ai.usage.input_tokens", finish.usage.prompt),
        number("gen_ai.usage.output_tokens", finish.usage.completion),
        number("sedge.cached_tokens", finish.usage.cached),
        text("sedge.tenant", &about.tenant),
        json!({"key": "sedge.priority", "value": {"intValue": about.priority.to_string()}}),
    ];
    attributes.extend(
        about
            .max_tokens
            .map(|n| number("gen_ai.request.max_tokens", n)),
    );
    attributes.extend(about.temperature.map(
        |t| json!({"key": "gen_ai.request.temperature", "value": {"doubleValue": f64::from(t)}}),
    ));
    let status = match failed {
        None => json!({"code": 1}),
        Some(why) => json!({"code": 2, "message": why}),
    };
    let parent = about.parent.as_ref().map_or("", |parent| &parent.span);
    let mut spans = vec![json!({
        "traceId": trace, "spanId": own, "parentSpanId": parent,
        "name": format!("{} {}", about.operation, about.model),
        "kind": 2,
        "startTimeUnixNano": at(Duration::ZERO),
        "endTimeUnixNano": at(finish.timings.total),
        "attributes": attributes,
        "status": status,
    })];
    let timings = finish.timings;
    let parts = [
        ("queue", Duration::ZERO, timings.queued),
        ("prefill", timings.queued, timings.first_token),
        ("decode", timings.first_token, timings.total),
    ];
    spans.extend(parts.into_iter().filter(|(_, from, to)| from < to).map(|(name, from, to)| {
        json!({
            "traceId": trace, "spanId": hex(16), "parentSpanId": own, "name": name, "kind": 1,
            "startTimeUnixNano": at(from), "endTimeUnixNano": at(to),
        })
    }));
    spans.into()
}

/// Sends what comes, in batches.
async fn deliver(collector: Collector, mut spans: Receiver<Value>, lost: Arc<AtomicU64>) {
    let mut warned: Option<Instant> = None;
    let mut batch = Vec::new();
    while spans.recv_many(&mut batch, BATCH).await > 0 {
        let filled = async {
            while batch.len() < BATCH
                && let Some(next) = spans.recv().await
            {
                batch.push(next);
            }
        };
        let _ = tokio::time::timeout(WAIT, filled).await;
        let count = batch.len() as u64;
        let all: Vec<Value> = batch
            .drain(..)
            .flat_map(|s| match s {
                Value::Array(spans) => spans,
                other => vec![other],
            })
            .collect();
        let sent = tokio::time::timeout(TIMEOUT, post(&collector, message(all))).await;
        let failed = match sent {
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

fn message(spans: Vec<Value>) -> Value {
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
    let name = match host.parse::<SocketAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => format!("{host}:{port}"),
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
    use sedge_engine::{Timings, Usage};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn about(parent: Option<&str>) -> About {
        About {
            operation: "chat",
            model: "m".into(),
            tenant: "team".into(),
            priority: -1,
            parent: parent.and_then(Parent::parse),
            max_tokens: Some(9),
            temperature: Some(0.5),
        }
    }

    fn finish(reason: FinishReason) -> Finish {
        let ms = Duration::from_millis;
        Finish {
            reason,
            text: String::new(),
            usage: Usage {
                prompt: 7,
                completion: 3,
                cached: 4,
            },
            timings: Timings {
                queued: ms(10),
                first_token: ms(30),
                total: ms(50),
            },
        }
    }

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

    #[test]
    fn only_whole_parents_count() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let good = format!("00-{trace}-{span}-01");
        let parent = Parent::parse(&good).unwrap();
        assert_eq!((parent.trace.as_str(), parent.span.as_str()), (trace, span));
        let zero = format!("00-{}-{span}-01", "0".repeat(32));
        for wrong in [
            "",
            "00-1-2-01",
            &good[..50],
            &zero,
            &good.replace("4b", "4B"),
        ] {
            assert_eq!(Parent::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_answer_is_a_span_with_its_parts() {
        let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let end = Duration::from_secs(1000);
        let spans = spans(&about(Some(header)), &finish(FinishReason::Length), end);
        let names: Vec<_> = spans
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["chat m", "queue", "prefill", "decode"]);
        assert_eq!(spans[0]["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(spans[0]["parentSpanId"], "00f067aa0ba902b7");
        assert_eq!(spans[1]["parentSpanId"], spans[0]["spanId"]);
        assert_eq!(spans[0]["startTimeUnixNano"], "999950000000");
        assert_eq!(spans[3]["startTimeUnixNano"], "999980000000");
        let attribute = |key: &str| {
            let all = spans[0]["attributes"].as_array().unwrap();
            all.iter().find(|a| a["key"] == key).unwrap()["value"].clone()
        };
        assert_eq!(
            attribute("gen_ai.usage.input_tokens"),
            json!({"intValue": "7"})
        );
        assert_eq!(
            attribute("gen_ai.operation.name"),
            json!({"stringValue": "chat"})
        );
        assert_eq!(
            attribute("gen_ai.request.temperature"),
            json!({"doubleValue": 0.5})
        );
        let failed = super::spans(&about(None), &finish(FinishReason::Deadline), end);
        assert_eq!(failed[0]["status"]["code"], 2);
        assert_eq!(failed[0]["traceId"].as_str().unwrap().len(), 32);
    }

    #[tokio::test]
    async fn spans_reach_a_collector_and_are_counted_when_there_is_none() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let traces = Traces::start(Collector::parse(&endpoint).ok());
        traces.answered(&about(None), &finish(FinishReason::Stop));
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut received = String::new();
        let mut buffer = [0; 4096];
        while !received.ends_with("]}]}") {
            let n = stream.read(&mut buffer).await.unwrap();
            received.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            .await
            .unwrap();
        assert!(received.starts_with("POST /v1/traces HTTP/1.1"));
        assert!(received.contains("\"chat m\"") && received.contains("\"service.name\""));
        drop((listener, stream));

        let none = Traces::start(Collector::parse(&endpoint).ok());
        none.answered(&about(None), &finish(FinishReason::Stop));
        while none.lost() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!((none.lost(), traces.lost()), (1, 0));
    }
}
