//! Spans of requests, as a collector receives them.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

use sedge_api::{ApiKey, ServerConfig};
use sedge_engine::EngineConfig;
use serde_json::{Value, json};
use support::{PATIENCE, TestServer, config, exchange, say};

const CHAT: &str = "/v1/chat/completions";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// A collector that answers every message; gives its address and the requests' spans.
fn collector() -> (String, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, spans) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut line, mut length) = (String::new(), 0);
            while stream.read_line(&mut line).unwrap() > 2 {
                let lower = line.to_ascii_lowercase();
                if let Some(value) = lower.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
            stream.get_mut().write_all(answer).unwrap();
            let message: Value = serde_json::from_slice(&body).unwrap();
            let spans = &message["resourceSpans"][0]["scopeSpans"][0]["spans"];
            for span in spans.as_array().unwrap() {
                // The parts of a request are of the kind "internal".
                if span["kind"] == 2 && sender.send(span.clone()).is_err() {
                    return;
                }
            }
        }
    });
    (endpoint, spans)
}

fn attribute(span: &Value, key: &str) -> Value {
    let all = span["attributes"].as_array().unwrap();
    let found = all.iter().find(|attribute| attribute["key"] == key);
    found.map_or(Value::Null, |attribute| attribute["value"].clone())
}

fn traced(endpoint: String) -> ServerConfig {
    ServerConfig {
        otlp_endpoint: Some(endpoint),
        ..config()
    }
}

fn chat(text: &str, n: usize) -> Value {
    json!({"messages": [{"role": "user", "content": say(text)}], "n": n, "max_tokens": 50})
}

#[test]
fn every_request_is_one_span_under_its_callers() {
    let (endpoint, spans) = collector();
    let keyed = ServerConfig {
        api_keys: vec![ApiKey {
            name: "payer".into(),
            secret: "secret".into(),
        }],
        ..traced(endpoint)
    };
    let server = TestServer::with(keyed, EngineConfig::default());
    let post = |path: &str, body: Value, parent: &str| {
        let headers = [
            ("Content-Type", "application/json"),
            ("Authorization", "Bearer secret"),
            ("traceparent", parent),
        ];
        let body = body.to_string();
        exchange(server.address, "POST", path, &headers, body.as_bytes()).ok()
    };
    let parent = format!("00-{TRACE}-{SPAN}-01");
    post(
        CHAT,
        chat("unrecorded", 1),
        &format!("00-{TRACE}-{SPAN}-00"),
    );
    let mut hurried = chat("four", 2);
    hurried["priority"] = json!(-7);
    let answer = post(CHAT, hurried, &parent);
    let span = spans.recv_timeout(PATIENCE).unwrap();
    assert_eq!(span["name"], "chat parrot");
    assert_eq!(
        (&span["traceId"], &span["parentSpanId"]),
        (&json!(TRACE), &json!(SPAN))
    );
    assert_eq!(
        attribute(&span, "gen_ai.response.id")["stringValue"],
        answer["id"]
    );
    let usage = &answer["usage"];
    for (key, value) in [
        (
            "gen_ai.usage.input_tokens",
            usage["prompt_tokens"].to_string(),
        ),
        (
            "gen_ai.usage.output_tokens",
            usage["completion_tokens"].to_string(),
        ),
        ("gen_ai.request.max_tokens", "50".into()),
        // A key without `trust_priority` goes before nobody, and the span says so.
        ("sedge.priority", "0".into()),
    ] {
        assert_eq!(attribute(&span, key), json!({"intValue": value}), "{key}");
    }
    assert_eq!(attribute(&span, "sedge.tenant")["stringValue"], "payer");
    let reasons = attribute(&span, "gen_ai.response.finish_reasons");
    assert_eq!(reasons["arrayValue"]["values"].as_array().unwrap().len(), 2);

    let inputs: Vec<String> = (0..40).map(|i| format!("text {i}")).collect();
    let body = json!({"model": "encoder", "input": inputs});
    let answer = post("/v1/embeddings", body, "none");
    let span = spans.recv_timeout(PATIENCE).unwrap();
    assert_eq!(span["name"], "embeddings encoder");
    let tokens = answer["usage"]["prompt_tokens"].to_string();
    assert_eq!(
        attribute(&span, "gen_ai.usage.input_tokens"),
        json!({"intValue": tokens})
    );
}

#[test]
fn refused_abandoned_and_last_requests_have_spans_too() {
    let (endpoint, spans) = collector();
    let limits = EngineConfig {
        max_running: 1,
        max_waiting: 1,
        ..EngineConfig::default()
    };
    let mut server = TestServer::with(traced(endpoint), limits);
    let kind = || {
        let span = spans.recv_timeout(PATIENCE).unwrap();
        attribute(&span, "error.type")["stringValue"].clone()
    };
    let mut endless = chat("*", 1);
    endless["max_tokens"] = Value::Null;
    endless["stream"] = json!(true);
    server.gate.only(1);
    let running = server.stream(CHAT, &endless);
    server.wait_for(|stats| stats.running == 1);
    let waiting = server.stream(CHAT, &endless);
    server.wait_for(|stats| stats.waiting == 1);
    assert_eq!(server.post(CHAT, &chat("four", 1)).status, 429);
    assert_eq!(kind(), "queue_full");
    drop((running, waiting));
    server.gate.open();
    assert_eq!((kind(), kind()), (json!("cancelled"), json!("cancelled")));

    // The last one's span would still wait for others when the server has ended.
    server.post(CHAT, &chat("four", 1)).ok();
    server.stop();
    server.wait_for_end();
    drop(server); // and its runtime
    assert_eq!(kind(), Value::Null);
}

#[test]
fn no_request_fails_or_waits_without_a_collector() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", unused.local_addr().unwrap());
    drop(unused);
    let server = TestServer::with(traced(endpoint), EngineConfig::default());
    server.post(CHAT, &chat("four", 1)).ok();
    let lost = "sedge_traces_lost_total 1";
    let until = std::time::Instant::now() + PATIENCE;
    while !server
        .get("/metrics")
        .text()
        .lines()
        .any(|line| line == lost)
    {
        assert!(std::time::Instant::now() < until, "nothing was counted");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
