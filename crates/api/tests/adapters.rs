//! Adapters that come and go while the server runs.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use sedge_api::{ApiKey, ServerConfig};
use sedge_engine::EngineConfig;
use serde_json::{Value, json};
use support::{TestServer, config, exchange, say};

const ADAPTERS: &str = "/v1/adapters";
const CHAT: &str = "/v1/chat/completions";

/// A server that may read adapters below a folder.
struct Place {
    server: TestServer,
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place::with(config(), EngineConfig::default())
    }

    fn with(config: ServerConfig, limits: EngineConfig) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let config = ServerConfig {
            adapter_roots: vec![folder.path().join("root")],
            ..config
        };
        let place = Place {
            server: TestServer::with(config, limits),
            folder,
        };
        place.write("root/sql", "");
        place
    }

    /// Makes an adapter, which can be read if `text` is empty.
    fn write(&self, path: &str, text: &str) -> PathBuf {
        let folder = self.folder.path().join(path);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("adapter.txt"), text).unwrap();
        folder
    }

    fn add(&self, name: &str, path: impl AsRef<Path>) -> support::Reply {
        let path = path.as_ref().to_str().unwrap();
        let body = json!({"name": name, "path": path});
        self.server.post(ADAPTERS, &body)
    }

    /// Names of all adapters.
    fn names(&self) -> Vec<String> {
        let list = self.server.get(ADAPTERS).ok();
        let all = list["data"].as_array().unwrap().iter();
        all.map(|a| a["id"].as_str().unwrap().to_owned()).collect()
    }
}

fn chat(model: &str, text: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": say(text)}]})
}

#[test]
fn an_adapter_is_added_listed_asked_and_removed() {
    let place = Place::new();
    let server = &place.server;
    assert_eq!(
        server.get(ADAPTERS).ok(),
        json!({"object": "list", "data": []})
    );
    let added = place.add("sql", place.folder.path().join("root/sql"));
    assert_eq!(added.status, 201, "{}", added.text());
    let card = json!({
        "id": "parrot:sql", "object": "adapter", "name": "sql", "model": "parrot",
        "method": added.json()["method"], "bytes": 1, "positions": 0, "resident": true,
        "merged": null, "requests": 0, "loads": 0,
    });
    assert_eq!(added.json(), card);
    assert!(card["method"].is_string());

    // A model whose name has a slash, and a path that starts at the root.
    let body = json!({"model": "org/mute", "name": "sql", "path": "sql"});
    assert_eq!(server.post(ADAPTERS, &body).status, 201);
    assert_eq!(place.names(), ["parrot:sql", "org/mute:sql"]);

    for model in ["parrot", "parrot:sql"] {
        let answer = server.post(CHAT, &chat(model, "hello")).ok();
        assert_eq!(answer["model"], model);
        assert_eq!(answer["choices"][0]["message"]["content"], "hello");
    }
    let prompt = json!({"model": "org/mute:sql", "prompt": say("on"), "max_tokens": 5});
    let answer = server.post("/v1/completions", &prompt).ok();
    assert_eq!(answer["model"], "org/mute:sql");
    let one = server.get("/v1/adapters/parrot:sql").ok();
    assert_eq!(one["requests"], 1);
    assert_eq!(server.get("/v1/adapters/org/mute:sql").ok()["requests"], 1);

    let gone = server.delete("/v1/adapters/parrot%3Asql").ok();
    assert_eq!(
        gone,
        json!({"id": "parrot:sql", "object": "adapter", "deleted": true})
    );
    assert_eq!(server.delete("/v1/adapters/org/mute:sql").status, 200);
    assert!(place.names().is_empty());
    let (status, param, code) = server.post(CHAT, &chat("parrot:sql", "a")).error();
    assert_eq!(
        (status, param, code),
        (404, json!("model"), json!("model_not_found"))
    );
    assert_eq!(place.add("sql", "sql").status, 201);
}

#[test]
fn models_list_their_adapters() {
    let place = Place::new();
    let server = &place.server;
    place.add("sql", "sql");
    let list = server.get("/v1/models").ok();
    let ids: Vec<&str> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["parrot", "org/mute", "encoder", "parrot:sql"]);
    let adapter = &list["data"][3];
    assert_eq!(adapter, &server.get("/v1/models/parrot:sql").ok());
    assert_eq!(adapter["object"], "model");
    assert_eq!(adapter["parent"], "parrot");
    assert_eq!(
        (&adapter["bytes"], &adapter["resident"]),
        (&json!(1), &json!(true))
    );
    assert!(adapter["method"].is_string() && adapter["merged"].is_null());
    for same in ["architecture", "parameters", "context", "generates", "chat"] {
        assert_eq!(adapter[same], list["data"][0][same]);
    }
    assert_eq!(list["data"][0]["parent"], Value::Null);
    for unknown in ["parrot:no", "org/mute:sql", "sql", "parrot:", ":sql"] {
        let reply = server.get(&format!("/v1/models/{unknown}"));
        assert_eq!(reply.error().0, 404, "{unknown}");
        assert!(reply.text().contains("parrot:sql"), "{}", reply.text());
    }
}

#[test]
fn an_unknown_name_lists_the_first_of_many() {
    let place = Place::new();
    for number in 0..30 {
        assert_eq!(place.add(&format!("a{number}"), "sql").status, 201);
    }
    let reply = place.server.post(CHAT, &chat("nobody", "a"));
    let text = reply.json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        text,
        "The model 'nobody' is not served here. Served: parrot, org/mute, encoder and 30 more, \
         which GET /v1/models lists."
    );
}

#[test]
fn a_removed_adapter_answers_those_who_have_begun() {
    let place = Place::new();
    let server = &place.server;
    place.add("sql", "sql");
    server.gate.only(3);
    let mut body = chat("parrot:sql", "*");
    body["stream"] = true.into();
    body["max_tokens"] = 20.into();
    let mut stream = server.stream(CHAT, &body);
    let first = stream.next().unwrap();
    assert_eq!(first["model"], "parrot:sql");
    assert_eq!(
        stream.next().unwrap()["choices"][0]["delta"]["content"],
        "x"
    );

    assert_eq!(server.delete("/v1/adapters/parrot:sql").status, 200);
    assert!(place.names().is_empty());
    assert_eq!(server.post(CHAT, &chat("parrot:sql", "a")).error().0, 404);
    // Its name is free at once, also for others.
    assert_eq!(place.add("sql", "sql").status, 201);
    server.gate.open();
    let events = stream.rest();
    let text: String = events
        .iter()
        .filter_map(|e| e["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, "x".repeat(19));
    assert_eq!(
        events.last().unwrap()["choices"][0]["finish_reason"],
        "length"
    );
    assert_eq!(server.post(CHAT, &chat("parrot:sql", "a")).status, 200);
}

#[test]
fn what_cannot_be_added_is_refused_with_the_reason() {
    let place = Place::new();
    let server = &place.server;
    let error = |body: Value| {
        let reply = server.post(ADAPTERS, &body);
        let message = reply.json()["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        let (status, param, code) = reply.error();
        let text = |v: Value| v.as_str().unwrap_or_default().to_owned();
        (status, text(param), text(code), message)
    };
    let is = |body: Value, status: u16, param: &str, code: &str| {
        let (found, whom, why, message) = error(body.clone());
        assert_eq!(
            (found, &*whom, &*why),
            (status, param, code),
            "{body}: {message}"
        );
        message
    };
    is(
        json!({"path": "sql"}),
        400,
        "name",
        "missing_required_parameter",
    );
    is(
        json!({"name": "a"}),
        400,
        "path",
        "missing_required_parameter",
    );
    is(
        json!({"name": "a", "path": 1}),
        400,
        "path",
        "invalid_value",
    );
    is(
        json!({"name": "a", "path": "sql", "x": 1}),
        400,
        "x",
        "unknown_parameter",
    );
    for name in ["", "a:b", "a/b", "../a", "a b", "é", &"x".repeat(65)] {
        let message = is(
            json!({"name": name, "path": "sql"}),
            400,
            "name",
            "invalid_value",
        );
        assert!(message.contains("1 to 64"), "{message}");
    }
    for model in ["nobody", "parrot:sql"] {
        let body = json!({"model": model, "name": "a", "path": "sql"});
        is(body, 404, "model", "model_not_found");
    }
    let body = json!({"model": "encoder", "name": "a", "path": "sql"});
    is(body, 400, "model", "invalid_value");

    place.add("sql", "sql");
    let message = is(
        json!({"name": "sql", "path": "sql"}),
        409,
        "name",
        "adapter_exists",
    );
    assert!(message.contains("DELETE"), "{message}");
    place.write("root/bad", "it is for another base");
    let message = is(
        json!({"name": "bad", "path": "bad"}),
        400,
        "path",
        "invalid_value",
    );
    assert!(message.contains("it is for another base"), "{message}");
    fs::create_dir(place.folder.path().join("root/empty")).unwrap();
    is(
        json!({"name": "empty", "path": "empty"}),
        400,
        "path",
        "invalid_value",
    );
    assert_eq!(place.names(), ["parrot:sql"]);

    let tight = Place::with(
        config(),
        EngineConfig {
            adapter_memory: 0,
            ..EngineConfig::default()
        },
    );
    let reply = tight.add("sql", "sql");
    assert_eq!(
        reply.error(),
        (400, json!("path"), json!("adapter_too_large"))
    );
    assert!(
        reply.text().contains("--adapter-memory"),
        "{}",
        reply.text()
    );
}

#[test]
fn paths_outside_the_allowed_folders_are_not_read() {
    let place = Place::new();
    let outside = place.write("other/sql", "");
    place.write("roots/sql", "");
    let refused = |path: &Path| {
        let reply = place.add("x", path);
        let told = reply.json()["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert_eq!(
            reply.error(),
            (403, json!("path"), json!("path_not_allowed")),
            "{path:?}"
        );
        told.replace(path.to_str().unwrap(), "PATH")
    };
    // What is there is told from what is not by no answer.
    let told = refused(&outside);
    for path in [
        "/",
        "",
        "../other/sql",
        "sql/../../other/sql",
        "../roots/sql",
        "/nowhere/at/all",
        "nothing",
        "a\0b",
    ] {
        // The root itself is a folder that may be read, and no adapter.
        if path.is_empty() {
            assert_eq!(place.add("x", path).error().0, 400);
        } else {
            assert_eq!(refused(Path::new(path)), told);
        }
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        let root = place.folder.path().join("root");
        symlink(place.folder.path().join("other"), root.join("out")).unwrap();
        assert_eq!(refused(Path::new("out/sql")), told);
        fs::create_dir(root.join("linked")).unwrap();
        symlink(outside.join("adapter.txt"), root.join("linked/adapter.txt")).unwrap();
        assert_eq!(refused(Path::new("linked")), told);
        symlink(root.join("sql"), root.join("inside")).unwrap();
        assert_eq!(place.add("inside", "inside").status, 201);
        assert_eq!(place.names(), ["parrot:inside"]);
    }
}

#[test]
fn without_a_root_nothing_is_read() {
    let server = TestServer::start();
    let reply = server.post(ADAPTERS, &json!({"name": "a", "path": "/"}));
    assert_eq!(
        reply.error(),
        (403, json!("path"), json!("path_not_allowed"))
    );
    assert!(reply.text().contains("--adapter-root"), "{}", reply.text());
}

#[test]
fn merging_says_what_it_cannot_do() {
    let place = Place::new();
    let server = &place.server;
    place.add("sql", "sql");
    let post = |path: &str| server.post(path, &json!({})).error();
    // The scripted model has no weights; real merges are tested with the real binary.
    let (status, _, code) = post("/v1/adapters/parrot:sql/merge");
    assert_eq!((status, code), (400, json!("adapter_not_mergeable")));
    let (status, _, code) = post("/v1/adapters/parrot:sql/unmerge");
    assert_eq!((status, code), (409, json!("adapter_not_merged")));
    for name in ["parrot:no", "nobody:sql", "parrot", "org/mute:sql"] {
        for act in ["merge", "unmerge"] {
            let (status, _, code) = post(&format!("/v1/adapters/{name}/{act}"));
            assert_eq!((status, code), (404, json!("adapter_not_found")), "{name}");
        }
        let path = format!("/v1/adapters/{name}");
        assert_eq!(server.delete(&path).error().2, "adapter_not_found");
        assert_eq!(server.get(&path).error().2, "adapter_not_found");
    }
    assert_eq!(post("/v1/adapters/parrot:sql/melt").2, "unknown_url");
    assert_eq!(post("/v1/adapters/parrot:sql").2, "unknown_url");
    let fields = server.post("/v1/adapters/parrot:sql/merge", &json!({"x": 1}));
    assert_eq!(fields.error().2, "unknown_parameter");
    let put = exchange(server.address, "PUT", ADAPTERS, &[], b"");
    assert_eq!(put.error().0, 405);
    assert_eq!(place.names(), ["parrot:sql"]);
}

#[test]
fn web_pages_and_strangers_change_nothing() {
    let place = Place::new();
    place.add("sql", "sql");
    // What a page may send to any address without being asked: a post without a JSON type.
    for body in [&b""[..], b"{}"] {
        for path in [
            ADAPTERS,
            "/v1/adapters/parrot:sql/merge",
            "/v1/adapters/parrot:sql/unmerge",
        ] {
            for headers in [&[][..], &[("Content-Type", "text/plain")]] {
                let reply = exchange(place.server.address, "POST", path, headers, body);
                assert_eq!(reply.error().0, 415, "{path}");
            }
        }
    }
    let json = [("Content-Type", "application/json")];
    let reply = exchange(
        place.server.address,
        "POST",
        "/v1/adapters/parrot:sql/unmerge",
        &json,
        b"",
    );
    assert_eq!(reply.error().0, 409);

    let keyed = ServerConfig {
        api_keys: vec![ApiKey {
            name: "ann".into(),
            secret: "secret".into(),
        }],
        ..config()
    };
    let place = Place::with(keyed, EngineConfig::default());
    let ask = |method: &str, path: &str, key: &str| {
        let headers = [("Content-Type", "application/json"), ("Authorization", key)];
        let body = json!({"name": "sql", "path": "sql"}).to_string();
        let body = if path == ADAPTERS && method == "POST" {
            &*body
        } else {
            ""
        };
        exchange(
            place.server.address,
            method,
            path,
            &headers,
            body.as_bytes(),
        )
        .status
    };
    let routes = [
        ("GET", ADAPTERS, 200),
        ("POST", ADAPTERS, 201),
        ("GET", "/v1/adapters/parrot:sql", 200),
        ("POST", "/v1/adapters/parrot:sql/merge", 400),
        ("POST", "/v1/adapters/parrot:sql/unmerge", 409),
        ("DELETE", "/v1/adapters/parrot:sql", 200),
    ];
    for (method, path, status) in routes {
        assert_eq!(ask(method, path, "Bearer wrong"), 401, "{method} {path}");
        assert_eq!(ask(method, path, ""), 401, "{method} {path}");
        assert_eq!(
            ask(method, path, "Bearer secret"),
            status,
            "{method} {path}"
        );
    }
}

#[test]
fn metrics_and_the_live_view_tell_of_adapters() {
    let place = Place::with(
        config(),
        EngineConfig {
            adapter_memory: 1,
            ..EngineConfig::default()
        },
    );
    let server = &place.server;
    place.add("sql", "sql");
    place.add("other", "sql");
    for name in ["parrot:sql", "parrot:other", "parrot:other", "parrot"] {
        server.post(CHAT, &chat(name, "a")).ok();
    }
    server.wait_for(|stats| stats.finished == 4);
    let text = server.get("/metrics").text().to_owned();
    for line in [
        "sedge_adapters_registered{model=\"parrot\"} 2",
        "sedge_adapters_resident{model=\"parrot\"} 1",
        "sedge_adapters_bytes{model=\"parrot\"} 1",
        "sedge_adapters_capacity_bytes{model=\"parrot\"} 1",
        "sedge_adapter_loads_total{model=\"parrot\"} 1",
        "sedge_adapter_evictions_total{model=\"parrot\"} 1",
        "sedge_adapter_hits_total{model=\"parrot\"} 2",
        "sedge_requests_finished_total{model=\"parrot\"} 4",
        // Adapters' requests are their model's.
        "sedge_request_duration_seconds_count{model=\"parrot\"} 4",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(text.contains("sedge_adapter_load_seconds_total{model=\"parrot\"} "));
    // The first two models share an engine, which is counted once.
    assert!(!text.contains("sedge_requests_finished_total{model=\"org/mute\"}"));
    assert!(text.contains("sedge_requests_finished_total{model=\"encoder\"} 0"));
    assert!(text.contains("sedge_request_duration_seconds_count{model=\"org/mute\"} 0"));

    let view = server.get("/live").ok()["model"]["adapters"].clone();
    let told = json!({
        "registered": 2, "resident": 1, "bytes": 1, "capacity": 1, "loads": 1, "evictions": 1, "hits": 2,
    });
    assert_eq!(view, told);
    let mut body = chat("parrot:sql", "*");
    body["stream"] = true.into();
    let mut running = server.stream(CHAT, &body);
    let until = std::time::Instant::now() + support::PATIENCE;
    let asked = || server.get("/live").ok()["model"]["requests"][0]["model"].clone();
    while asked() != "parrot:sql" {
        assert!(std::time::Instant::now() < until && running.next().is_some());
    }
}
