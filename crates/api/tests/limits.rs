//! Clients that misbehave, servers that are full, and the end of a server.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use sedge_api::{ApiKey, ServerConfig};
use sedge_engine::EngineConfig;
use serde_json::{Value, json};
use support::{CONTEXT, PATIENCE, TestServer, config, exchange, say};

const CHAT: &str = "/v1/chat/completions";

fn chat(text: &str) -> Value {
    json!({"messages": [{"role": "user", "content": say(text)}]})
}

fn streamed(text: &str) -> Value {
    json!({"messages": [{"role": "user", "content": say(text)}], "stream": true})
}

fn with(config: ServerConfig) -> TestServer {
    TestServer::with(config, EngineConfig::default())
}

#[test]
fn bodies_that_are_no_request_are_refused() {
    let server = TestServer::start();
    let post = |body: &[u8]| server.post_bytes(CHAT, body).error();
    for body in [
        b"".as_slice(),
        b"{",
        b"{\"messages\": [\xFF]}",
        b"{\"messages\":\"\xC3\"}",
        b"[]",
        b"null",
        b"1 2",
    ] {
        assert_eq!(
            post(body),
            (400, Value::Null, json!("invalid_json")),
            "{}",
            body.escape_ascii()
        );
    }
    let deep = "[".repeat(100_000);
    assert_eq!(post(deep.as_bytes()).2, "invalid_json");
    assert_eq!(post(b"{\"messages\": 1}").1, "messages");
    assert_eq!(
        server
            .post(CHAT, &json!({"messages": [], "hello": 1}))
            .error()
            .0,
        400
    );
    let mut unknown = chat("a");
    unknown["hello"] = 1.into();
    assert_eq!(
        server.post(CHAT, &unknown).error(),
        (400, json!("hello"), json!("unknown_parameter"))
    );
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        let body = chat("a").to_string();
        let reply = exchange(
            server.address,
            "POST",
            CHAT,
            &[("Content-Type", kind)],
            body.as_bytes(),
        );
        assert_eq!(reply.error().0, 415);
    }
    assert_eq!(server.post(CHAT, &chat("still here")).status, 200);
}

#[test]
fn parameters_out_of_range_are_named() {
    let server = TestServer::start();
    let cases = [
        ("temperature", json!(-1)),
        ("temperature", json!(1e300)),
        ("top_p", json!(1.5)),
        ("min_p", json!(2)),
        ("repetition_penalty", json!(0)),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}),
        ),
        ("grammar", json!("start: nowhere")),
        (
            "grammar",
            json!({"type": "json_schema", "value": {"type": "nothing"}}),
        ),
    ];
    for (name, value) in cases {
        let mut request = chat("a");
        request[name] = value;
        let (status, param, _) = server.post(CHAT, &request).error();
        assert_eq!((status, param), (400, json!(name)));
    }
    // A call that must be made is made of the tools' schemas.
    let mut request = chat("a");
    request["tools"] =
        json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "nothing"}}}]);
    request["tool_choice"] = json!("required");
    assert_eq!(server.post(CHAT, &request).error().1, "tools");
    let request = json!({"prompt": "a", "grammar": "start: nowhere"});
    assert_eq!(
        server.post("/v1/completions", &request).error().1,
        "grammar"
    );
    let mut request = chat("a");
    request["logit_bias"] = json!({"999999": 1});
    assert_eq!(server.post(CHAT, &request).status, 400);
    assert_eq!(
        server
            .post("/v1/completions", &json!({"prompt": [999_999]}))
            .error()
            .1,
        "prompt"
    );
    assert_eq!(
        server
            .post("/v1/completions", &json!({"prompt": ""}))
            .error()
            .1,
        "prompt"
    );
}

#[test]
fn a_prompt_that_does_not_fit_is_refused() {
    let server = TestServer::start();
    let (status, param, code) = server.post(CHAT, &chat(&"a".repeat(CONTEXT))).error();
    assert_eq!(
        (status, param, code),
        (400, json!("messages"), json!("context_length_exceeded"))
    );
    // Refused before every answer gets a copy.
    let long = json!({"prompt": vec![97; 200_000], "echo": true, "logprobs": 1, "n": 128});
    let (status, param, code) = server.post("/v1/completions", &long).error();
    assert_eq!(
        (status, param, code),
        (400, json!("prompt"), json!("context_length_exceeded"))
    );
    // One that just fits without an answer.
    let full = json!({"prompt": vec![97; CONTEXT], "max_tokens": 0});
    assert_eq!(server.post("/v1/completions", &full).status, 200);
    let (_, param, code) = server
        .post("/v1/embeddings", &json!({"input": "a".repeat(CONTEXT + 1)}))
        .error();
    assert_eq!(
        (param, code),
        (json!("input"), json!("context_length_exceeded"))
    );
}

#[test]
fn large_bodies_are_refused_by_their_announcement() {
    let server = with(ServerConfig {
        max_body: 1000,
        ..config()
    });
    assert_eq!(server.post(CHAT, &chat(&"a".repeat(500))).status, 200);
    let reply = server.post(CHAT, &chat(&"a".repeat(1000)));
    assert_eq!(
        reply.error(),
        (413, Value::Null, json!("request_too_large"))
    );
    // A client that sends it all nevertheless still gets to read the answer.
    let reply = server.post_bytes(CHAT, &vec![b' '; 100_000_000]);
    assert_eq!(reply.error().0, 413);
    // One that asks first sends nothing.
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                Content-Length: 100000000\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
}

#[test]
fn wrong_routes_and_methods_are_errors_in_json() {
    let server = TestServer::start();
    assert_eq!(
        server.get("/v1/nothing").error(),
        (404, Value::Null, json!("unknown_url"))
    );
    let reply = server.get(CHAT);
    assert_eq!(
        reply.error(),
        (405, Value::Null, json!("method_not_supported"))
    );
    assert_eq!(reply.header("allow"), Some("POST"));
    assert_eq!(
        exchange(server.address, "DELETE", "/", &[], b"").error().0,
        405
    );
}

#[test]
fn every_response_has_a_request_id() {
    let server = TestServer::start();
    let own = server
        .get("/health")
        .header("x-request-id")
        .unwrap()
        .to_string();
    assert!(own.starts_with("req_"));
    let reply = exchange(
        server.address,
        "GET",
        "/nowhere",
        &[("X-Request-Id", "mine-1")],
        b"",
    );
    assert_eq!(reply.header("x-request-id"), Some("mine-1"));
}

#[test]
fn a_tenant_is_a_keys_name_or_what_a_client_without_keys_says() {
    let body = chat("four").to_string();
    let ask = |server: &TestServer, headers: &[(&str, &str)]| {
        let json = ("Content-Type", "application/json");
        let headers: Vec<_> = headers.iter().copied().chain([json]).collect();
        exchange(server.address, "POST", CHAT, &headers, body.as_bytes()).status
    };
    let counted = |server: &TestServer, headers: &[(&str, &str)], tenant: &str| {
        let line = format!("sedge_tenant_requests_finished_total{{tenant=\"{tenant}\"}} 1");
        let metrics = exchange(server.address, "GET", "/metrics", headers, b"");
        metrics.text().lines().any(|found| found == line)
    };
    let open = TestServer::start();
    assert_eq!(ask(&open, &[("X-Sedge-Tenant", "team")]), 200);
    assert_eq!(ask(&open, &[("X-Sedge-Tenant", "two words")]), 400);
    assert!(counted(&open, &[], "team"));

    let keyed = |trust_tenant_header| {
        with(ServerConfig {
            api_keys: vec![ApiKey {
                name: "payer".into(),
                secret: "secret".into(),
            }],
            trust_tenant_header,
            ..config()
        })
    };
    let key = ("Authorization", "Bearer secret");
    for (trusted, tenant) in [(false, "payer"), (true, "team")] {
        let server = keyed(trusted);
        assert_eq!(ask(&server, &[key, ("X-Sedge-Tenant", "team")]), 200);
        assert!(counted(&server, &[key], tenant), "{tenant}");
    }
}

#[test]
fn keys_are_asked_for_where_work_is_done() {
    let server = with(ServerConfig {
        api_keys: ["first", "second"]
            .map(|secret| ApiKey {
                name: format!("{secret}-team"),
                secret: secret.into(),
            })
            .into(),
        ..config()
    });
    for path in ["/v1/models", "/metrics"] {
        assert_eq!(
            server.get(path).error(),
            (401, Value::Null, json!("invalid_api_key"))
        );
        for (key, status) in [
            ("Bearer first", 200),
            ("Bearer second", 200),
            ("Bearer third", 401),
            ("first", 401),
        ] {
            assert_eq!(
                exchange(server.address, "GET", path, &[("Authorization", key)], b"").status,
                status
            );
        }
    }
    assert_eq!(server.post(CHAT, &chat("a")).status, 401);
    for open in ["/", "/health", "/ready", "/app.js"] {
        assert_eq!(server.get(open).status, 200);
    }
}

#[test]
fn a_loopback_server_answers_under_loopback_names_only() {
    let server = with(ServerConfig {
        cors_origins: vec!["https://chat.example".into()],
        ..config()
    });
    let asked_as =
        |host| exchange(server.address, "GET", "/v1/models", &[("Host", host)], b"").status;
    for host in [
        "localhost",
        "localhost:80",
        "127.0.0.1:9",
        "[::1]:9",
        "chat.example",
    ] {
        assert_eq!(asked_as(host), 200, "{host}");
    }
    for host in ["evil.example", "evil.example:80", "localhost.evil.example"] {
        assert_eq!(asked_as(host), 403, "{host}");
    }
}

#[test]
fn only_configured_origins_may_read_answers() {
    let server = with(ServerConfig {
        cors_origins: vec!["https://chat.example".into()],
        ..config()
    });
    let allowed = |origin| {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            (
                "Access-Control-Request-Headers",
                "authorization,content-type",
            ),
        ];
        let reply = exchange(server.address, "OPTIONS", CHAT, &headers, b"");
        reply
            .header("access-control-allow-origin")
            .map(str::to_string)
    };
    assert_eq!(
        allowed("https://chat.example").as_deref(),
        Some("https://chat.example")
    );
    assert_eq!(allowed("https://evil.example"), None);
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let limits = EngineConfig {
        max_running: 1,
        max_waiting: 3,
        token_budget: 64,
        ..EngineConfig::default()
    };
    let server = TestServer::with(config(), limits);
    server.gate.only(1);
    let running = server.stream(CHAT, &streamed("a"));
    server.wait_for(|stats| stats.running == 1);
    let waiting = server.stream(CHAT, &streamed("b"));
    server.wait_for(|stats| stats.waiting == 1);
    // Several answers of which not all fit are none at all.
    let mut several = chat("c");
    several["n"] = 3.into();
    assert_eq!(server.post(CHAT, &several).status, 429);
    let reply = server.post(CHAT, &chat("d"));
    assert_eq!(reply.error(), (429, Value::Null, json!("queue_full")));
    assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    server.gate.open();
    assert!(!running.rest().is_empty() && !waiting.rest().is_empty());
}

#[test]
fn more_answers_than_may_ever_wait_are_not_asked_for_again() {
    let limits = EngineConfig {
        max_waiting: 2,
        ..EngineConfig::default()
    };
    let server = TestServer::with(config(), limits);
    let mut request = chat("a");
    request["n"] = 3.into();
    let reply = server.post(CHAT, &request);
    assert_eq!(reply.error(), (400, json!("n"), json!("invalid_value")));
    let message = reply.json()["error"]["message"].to_string();
    assert!(message.contains('3') && message.contains('2'), "{message}");
    let texts = "/v1/completions";
    let request = json!({"prompt": ["a", "b"], "n": 2});
    assert_eq!(server.post(texts, &request).error().1, "n");
    let request = json!({"prompt": ["a", "b", "c"]});
    assert_eq!(server.post(texts, &request).error().1, "prompt");
}

#[test]
fn a_client_that_leaves_frees_its_place_in_one_step() {
    let server = TestServer::start();
    for stream in [true, false] {
        let before = server.stats();
        server.gate.only(3);
        let mut request = chat("*");
        request["stream"] = stream.into();
        let mut socket = TcpStream::connect(server.address).unwrap();
        let body = request.to_string();
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all((head + &body).as_bytes()).unwrap();
        server.wait_for(|stats| stats.steps == before.steps + 3);
        drop(socket);
        // Once the server has seen it, only the connection that asks is left.
        server.wait_for(|_| {
            server
                .get("/metrics")
                .text()
                .contains("\nsedge_http_connections 1\n")
        });
        // The step that waits at the gate, and none that may follow.
        server.gate.only(1);
        server.wait_for(|stats| stats.cancelled == before.cancelled + 1);
        server.wait_for(|stats| stats.running == 0 && stats.pages_used == 0);
        assert!(server.stats().steps <= before.steps + 4);
    }
}

#[test]
fn connections_that_send_nothing_are_closed_and_keep_nobody_out() {
    let server = with(ServerConfig {
        max_connections: 8,
        header_timeout: Duration::from_secs(3600),
        ..config()
    });
    // Far more than there are seats: the oldest idle ones leave.
    let idle: Vec<TcpStream> = (0..60)
        .map(|_| TcpStream::connect(server.address).unwrap())
        .collect();
    assert_eq!(server.post(CHAT, &chat("hello")).status, 200);
    drop(idle);

    let server = with(ServerConfig {
        header_timeout: Duration::from_millis(50),
        ..config()
    });
    let mut slow = TcpStream::connect(server.address).unwrap();
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: local")
        .unwrap();
    let mut answer = Vec::new();
    // Closed, with a word or without, long before the reading gives up.
    let begun = Instant::now();
    let _ = slow.read_to_end(&mut answer);
    assert!(begun.elapsed() < PATIENCE && !answer.starts_with(b"HTTP/1.1 200"));
}

#[test]
fn a_single_seat_serves_one_client_after_the_other() {
    let server = with(ServerConfig {
        max_connections: 1,
        ..config()
    });
    for _ in 0..5 {
        // Nobody else wants the seat while the client thinks.
        let mut socket = TcpStream::connect(server.address).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let waited = socket.read(&mut [0]).unwrap_err().kind();
        assert!(matches!(
            waited,
            ErrorKind::WouldBlock | ErrorKind::TimedOut
        ));
        drop(socket);
        assert_eq!(server.post(CHAT, &chat("hello")).status, 200);
    }
}

#[test]
fn garbage_ends_its_connection_alone() {
    let server = TestServer::start();
    for garbage in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01".as_slice(),
        b"GET\r\n\r\n",
        b"\0\0\0\0",
        &[b'a'; 200_000],
    ] {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_server_that_stops_finishes_what_runs_and_takes_nothing_new() {
    let mut server = TestServer::start();
    server.gate.only(2);
    let mut running = server.stream(CHAT, &streamed("last words"));
    assert_eq!(
        running.next().unwrap()["choices"][0]["delta"]["role"],
        "assistant"
    );
    server.wait_for(|stats| stats.running == 1);
    assert_eq!(server.get("/ready").status, 200);
    server.stop();
    let until = Instant::now() + PATIENCE;
    while server.get("/ready").status != 503 {
        assert!(Instant::now() < until, "still ready");
    }
    assert_eq!(server.get("/health").status, 200);
    let reply = server.post(CHAT, &chat("too late"));
    assert_eq!(reply.error(), (503, Value::Null, json!("shutting_down")));
    assert!(reply.header("retry-after").is_some());
    server.gate.open();
    let events = running.rest();
    let text: String = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, "last words");
    server.wait_for_end();
    assert!(TcpStream::connect(server.address).is_err());
}

#[test]
fn answers_that_outlast_the_drain_end_with_an_error() {
    let mut server = with(ServerConfig {
        drain_timeout: Duration::from_millis(50),
        ..config()
    });
    server.gate.only(5);
    let mut running = server.stream(CHAT, &streamed("*"));
    assert!(running.next().is_some());
    server.wait_for(|stats| stats.generated_tokens >= 1);
    server.stop();
    // Steps go on while the drain waits, and would for ever.
    let gate = server.gate.clone();
    let stepping = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        gate.open();
    });
    let last = running.last().unwrap();
    assert_eq!(last["error"]["code"], "shutting_down", "{last}");
    stepping.join().unwrap();
    server.wait_for_end();
}
