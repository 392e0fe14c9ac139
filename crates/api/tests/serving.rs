//! Answers over HTTP, from a model that says what it is told.

mod support;

use serde_json::{Value, json};
use support::{CONTEXT, HIDDEN, TestServer, say};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const EMBED: &str = "/v1/embeddings";

/// A chat request of one message with further fields.
fn chat(text: &str, fields: Value) -> Value {
    let mut request = json!({"messages": [{"role": "user", "content": say(text)}]});
    request
        .as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    request
}

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": {
        "type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}, "required": ["city"],
        "additionalProperties": false, "$defs": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}}}}}])
}

/// The texts of a streamed chat's choice, joined.
fn content(events: &[Value], index: usize) -> String {
    let choices = events
        .iter()
        .flat_map(|event| event["choices"].as_array().unwrap());
    choices
        .filter(|c| c["index"] == index)
        .filter_map(|c| c["delta"]["content"].as_str())
        .collect()
}

#[test]
fn a_chat_is_answered() {
    let server = TestServer::start();
    let answer = server
        .post(CHAT, &chat("Grüße 👋", json!({"model": "parrot"})))
        .ok();
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("chat.completion"), &json!("parrot"))
    );
    assert_eq!(
        answer["choices"],
        json!([{"index": 0, "message": {"role": "assistant", "content": "Grüße 👋", "refusal": null},
                "logprobs": null, "finish_reason": "stop"}])
    );
    // The user's message has 2 marks and a line end, then comes the assistant's mark.
    let (prompt, completion) = ("Grüße 👋".len() + 4, "Grüße 👋".len() + 1);
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
               "prompt_tokens_details": {"cached_tokens": 0}})
    );
}

#[test]
fn a_streamed_chat_says_the_same_piece_by_piece() {
    let server = TestServer::start();
    let request = chat(
        "Grüße 👋",
        json!({"stream": true, "stream_options": {"include_usage": true}, "n": 2}),
    );
    let events = server.stream(CHAT, &request).rest();
    assert_eq!(
        events[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    assert!(
        events
            .iter()
            .all(|event| event["object"] == "chat.completion.chunk"
                && event["id"] == events[0]["id"])
    );
    assert_eq!(
        (content(&events, 0), content(&events, 1)),
        ("Grüße 👋".into(), "Grüße 👋".into())
    );
    let (usage, chunks) = events.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(
        usage["usage"]["completion_tokens"],
        2 * ("Grüße 👋".len() + 1)
    );
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some())
    );
    let reasons = chunks
        .iter()
        .filter(|chunk| chunk["choices"][0]["finish_reason"] == "stop")
        .count();
    assert_eq!(reasons, 2);
}

#[test]
fn an_answer_ends_at_stop_texts_and_limits() {
    let server = TestServer::start();
    let ended = |fields| {
        let choice = server.post(CHAT, &chat("one two three", fields)).ok()["choices"][0].clone();
        (
            choice["message"]["content"].as_str().unwrap().to_string(),
            choice["finish_reason"].clone(),
        )
    };
    assert_eq!(
        ended(json!({"stop": "two"})),
        ("one ".into(), json!("stop"))
    );
    assert_eq!(
        ended(json!({"stop": ["x", " t"]})),
        ("one".into(), json!("stop"))
    );
    assert_eq!(
        ended(json!({"max_completion_tokens": 5})),
        ("one t".into(), json!("length"))
    );
    let events = server
        .stream(
            CHAT,
            &chat("one two three", json!({"stream": true, "stop": "three"})),
        )
        .rest();
    assert_eq!(content(&events, 0), "one two ");
}

#[test]
fn a_seed_repeats_all_choices_and_choices_differ() {
    let server = TestServer::start();
    let texts = |seed: u64| -> Vec<Value> {
        let answer = server
            .post(
                CHAT,
                &chat("?", json!({"n": 3, "seed": seed, "max_tokens": 20})),
            )
            .ok();
        answer["choices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|choice| choice["message"]["content"].clone())
            .collect()
    };
    let first = texts(7);
    assert_eq!(first, texts(7));
    assert_ne!(first, texts(8));
    assert!(first[0] != first[1] && first[1] != first[2]);
}

#[test]
fn logprobs_come_with_every_token() {
    let server = TestServer::start();
    let fields = json!({"logprobs": true, "top_logprobs": 2});
    let answer = server.post(CHAT, &chat("aä", fields.clone())).ok();
    let logprobs = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap()
        .clone();
    let bytes: Vec<&Value> = logprobs.iter().map(|token| &token["bytes"][0]).collect();
    assert_eq!(bytes, [&json!(97), &json!(0xC3), &json!(0xA4)]);
    assert!(
        logprobs
            .iter()
            .all(|token| token["top_logprobs"].as_array().unwrap().len() == 2)
    );
    assert!(logprobs[0]["logprob"].as_f64().unwrap() > -0.01);
    assert_eq!(logprobs[0]["top_logprobs"][0]["token"], "a");

    let mut request = chat("aä", fields);
    request["stream"] = true.into();
    let events = server.stream(CHAT, &request).rest();
    let streamed: Vec<Value> = events
        .iter()
        .filter_map(|event| {
            event["choices"][0]["logprobs"]["content"]
                .as_array()
                .cloned()
        })
        .flatten()
        .collect();
    assert_eq!(streamed, logprobs);
}

#[test]
fn calls_are_found_in_an_answer() {
    let server = TestServer::start();
    let call = "Let me see.\n<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}</tool_call>";
    let answer = server
        .post(CHAT, &chat(call, json!({"tools": tools()})))
        .ok();
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &json!("Let me see."))
    );
    let called = &choice["message"]["tool_calls"][0];
    assert!(called["id"].as_str().unwrap().len() == 9 && called["type"] == "function");
    assert_eq!(
        called["function"],
        json!({"name": "weather", "arguments": "{\"city\":\"Rome\"}"})
    );

    // The same as a stream, and after a control token that has no text.
    for text in [
        call,
        "\u{4}[{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}]",
    ] {
        let events = server
            .stream(CHAT, &chat(text, json!({"tools": tools(), "stream": true})))
            .rest();
        let deltas: Vec<&Value> = events
            .iter()
            .map(|event| &event["choices"][0]["delta"]["tool_calls"])
            .collect();
        let called = deltas.iter().find(|delta| delta.is_array()).unwrap();
        assert_eq!(called[0]["index"], 0);
        assert_eq!(
            called[0]["function"],
            json!({"name": "weather", "arguments": "{\"city\":\"Rome\"}"})
        );
        assert_eq!(
            events.last().unwrap()["choices"][0]["finish_reason"],
            "tool_calls"
        );
        assert!(!content(&events, 0).contains("weather"));
    }

    // Text that a stop text may begin with stays before the call that it was written before.
    let text = "So be it\u{4}[{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}]";
    let fields = json!({"tools": tools(), "stop": "it is"});
    let choice = server.post(CHAT, &chat(text, fields)).ok()["choices"][0].clone();
    assert_eq!(choice["message"]["content"], "So be it");
    assert_eq!(
        choice["message"]["tool_calls"][0]["function"]["name"],
        "weather"
    );

    // As XML, with the types that the tool's schema has.
    let typed = json!([{"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}]);
    let text = "<tool_call>\n<function=weather>\n<parameter=city>\n8\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>";
    let answer = server.post(CHAT, &chat(text, json!({"tools": typed}))).ok();
    assert_eq!(
        answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"],
        "{\"city\":\"8\",\"days\":3}"
    );

    // Two calls where one is allowed; and no calls where none is.
    let two = format!("{}{}", &call[11..], &call[11..]);
    let answer = server
        .post(
            CHAT,
            &chat(
                &two,
                json!({"tools": tools(), "parallel_tool_calls": false}),
            ),
        )
        .ok();
    assert_eq!(
        answer["choices"][0]["message"]["tool_calls"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let answer = server
        .post(
            CHAT,
            &chat(call, json!({"tools": tools(), "tool_choice": "none"})),
        )
        .ok();
    assert_eq!(answer["choices"][0]["message"]["content"], call);
}

#[test]
fn a_required_call_is_made_whatever_the_model_would_rather_say() {
    let server = TestServer::start();
    for choice in [
        json!("required"),
        json!({"type": "function", "function": {"name": "weather"}}),
    ] {
        let fields =
            json!({"tools": tools(), "tool_choice": choice, "max_tokens": 200, "temperature": 0});
        let answer = server.post(CHAT, &chat("No, I will not.", fields)).ok();
        let message = &answer["choices"][0]["message"];
        assert_eq!(
            answer["choices"][0]["finish_reason"], "tool_calls",
            "{answer}"
        );
        assert_eq!(
            (
                &message["content"],
                &message["tool_calls"][0]["function"]["name"]
            ),
            (&Value::Null, &json!("weather"))
        );
        let arguments = message["tool_calls"][0]["function"]["arguments"]
            .as_str()
            .unwrap();
        let city = serde_json::from_str::<Value>(arguments).unwrap()["city"].clone();
        assert!(city == "Rome" || city == "Oslo", "{city}");
    }
}

#[test]
fn a_required_call_has_an_object_even_if_the_schema_does_not_say_so() {
    let server = TestServer::start();
    let reference = json!({"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"b": {"type": "null"}}, "additionalProperties": false}}});
    for parameters in [
        json!({"additionalProperties": false}),
        json!({"anyOf": [{"type": "integer"}, {"additionalProperties": false}]}),
        reference,
    ] {
        let tools =
            json!([{"type": "function", "function": {"name": "f", "parameters": parameters}}]);
        let fields =
            json!({"tools": tools, "tool_choice": "required", "max_tokens": 200, "temperature": 0});
        let answer = server.post(CHAT, &chat("No, I will not.", fields)).ok();
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    }
}

#[test]
fn formats_and_grammars_are_kept() {
    let server = TestServer::start();
    let say = |fields: Value| {
        let answer = server.post(CHAT, &chat("yes and no", fields)).ok();
        answer["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .to_string()
    };
    assert_eq!(
        say(json!({"grammar": {"type": "regex", "value": "yes|no"}})),
        "yes"
    );
    assert_eq!(say(json!({"grammar": "start: \"yes and\""})), "yes and");
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
                        "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
    let text = say(json!({"response_format": format, "max_tokens": 100, "temperature": 0}));
    assert!(
        serde_json::from_str::<Value>(&text).unwrap()["ok"].is_boolean(),
        "{text}"
    );
    // With tools, either fits: the model would rather speak, and its answer has the format.
    let text = say(
        json!({"response_format": format, "tools": tools(), "max_tokens": 100, "temperature": 0,
                          "logit_bias": {"110": -100}}),
    );
    assert!(
        serde_json::from_str::<Value>(&text).unwrap()["ok"].is_boolean(),
        "{text}"
    );
}

#[test]
fn texts_are_continued() {
    let server = TestServer::start();
    let answer = server
        .post(TEXT, &json!({"prompt": say("abc"), "max_tokens": 10}))
        .ok();
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(
        answer["choices"],
        json!([{"index": 0, "text": "abc", "logprobs": null, "finish_reason": "stop"}])
    );
    let ids: Vec<u32> = say("xyz").bytes().map(u32::from).collect();
    let answer = server
        .post(
            TEXT,
            &json!({"prompt": [ids], "max_tokens": 2, "n": 2, "echo": true}),
        )
        .ok();
    let texts: Vec<&Value> = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| &choice["text"])
        .collect();
    let echoed = json!(say("xyz") + "xy");
    assert_eq!(texts, [&echoed, &echoed]);
    assert_eq!(
        (
            &answer["usage"]["prompt_tokens"],
            &answer["usage"]["completion_tokens"]
        ),
        (&json!(5), &json!(4))
    );
    let answer = server
        .post(TEXT, &json!({"prompt": [say("a"), say("b")]}))
        .ok();
    assert_eq!(
        (&answer["choices"][0]["text"], &answer["choices"][1]["text"]),
        (&json!("a"), &json!("b"))
    );
}

#[test]
fn an_echo_with_logprobs_scores_the_prompt() {
    let server = TestServer::start();
    let request = json!({"prompt": "ä\u{1}bc\u{2}b", "max_tokens": 1, "echo": true, "logprobs": 1});
    let answer = server.post(TEXT, &request).ok();
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "ä\u{1}bc\u{2}bc");
    let logprobs = &choice["logprobs"];
    assert_eq!(
        logprobs["tokens"],
        json!([
            "bytes:\\xc3",
            "bytes:\\xa4",
            "\u{1}",
            "b",
            "c",
            "\u{2}",
            "b",
            "c"
        ])
    );
    assert_eq!(logprobs["text_offset"], json!([0, 1, 1, 2, 3, 4, 5, 6]));
    assert_eq!(
        (&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]),
        (&Value::Null, &Value::Null)
    );
    // The parrot was certain of "b" after the second mark, and of "c" then.
    assert!(logprobs["token_logprobs"][6].as_f64().unwrap() > -0.01);
    assert!(logprobs["token_logprobs"][3].as_f64().unwrap() < -10.0);
    assert!(logprobs["top_logprobs"][7]["c"].as_f64().unwrap() > -0.01);

    // Scoring alone, and as a stream.
    let request =
        json!({"prompt": "abc", "max_tokens": 0, "echo": true, "logprobs": 0, "stream": true});
    let events = server.stream(TEXT, &request).rest();
    let texts: String = events
        .iter()
        .filter_map(|event| event["choices"][0]["text"].as_str())
        .collect();
    assert_eq!(texts, "abc");
    assert_eq!(
        events[0]["choices"][0]["logprobs"]["tokens"],
        json!(["a", "b", "c"])
    );
    assert_eq!(
        events.last().unwrap()["choices"][0]["finish_reason"],
        "length"
    );
}

#[test]
fn embeddings_have_length_1_in_both_encodings() {
    let server = TestServer::start();
    for model in ["encoder", "parrot"] {
        let answer = server
            .post(EMBED, &json!({"model": model, "input": ["abc", "abcd"]}))
            .ok();
        assert_eq!(
            answer["usage"],
            json!({"prompt_tokens": 7, "total_tokens": 7})
        );
        let vector: Vec<f64> =
            serde_json::from_value(answer["data"][1]["embedding"].clone()).unwrap();
        assert_eq!(
            (vector.len(), &answer["data"][1]["index"]),
            (HIDDEN, &json!(1))
        );
        assert!((vector.iter().map(|value| value * value).sum::<f64>() - 1.0).abs() < 1e-6);

        let answer = server
            .post(
                EMBED,
                &json!({"model": model, "input": "abcd", "encoding_format": "base64"}),
            )
            .ok();
        let bytes = unbase64(answer["data"][0]["embedding"].as_str().unwrap());
        let same: Vec<f32> = bytes
            .chunks(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert!(
            same.iter()
                .zip(&vector)
                .all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6)
        );
    }
    let answer = server
        .post(
            EMBED,
            &json!({"model": "encoder", "input": "abcd", "dimensions": 2}),
        )
        .ok();
    assert_eq!(answer["data"][0]["embedding"].as_array().unwrap().len(), 2);
    let error = server
        .post(
            EMBED,
            &json!({"model": "encoder", "input": "abcd", "dimensions": 9}),
        )
        .error();
    assert_eq!(error, (400, json!("dimensions"), json!("invalid_value")));
}

/// Plain base64, independent of the server's.
fn unbase64(text: &str) -> Vec<u8> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut bytes) = (0u32, 0, Vec::new());
    for letter in text.bytes().filter(|letter| *letter != b'=') {
        bits = bits << 6 | LETTERS.iter().position(|known| *known == letter).unwrap() as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

#[test]
fn more_inputs_than_the_queue_holds_are_embedded() {
    let limits = sedge_engine::EngineConfig {
        max_waiting: 3,
        max_running: 2,
        token_budget: 64,
        ..sedge_engine::EngineConfig::default()
    };
    let server = TestServer::with(support::config(), limits);
    let inputs: Vec<String> = (0..200).map(|i| format!("text {i}")).collect();
    let answer = server
        .post(EMBED, &json!({"model": "encoder", "input": inputs}))
        .ok();
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), 200);
    let alone = server
        .post(EMBED, &json!({"model": "encoder", "input": inputs[150]}))
        .ok();
    assert_eq!(alone["data"][0]["embedding"], data[150]["embedding"]);
}

#[test]
fn models_are_listed_and_found() {
    let server = TestServer::start();
    let list = server.get("/v1/models").ok();
    let names: Vec<&Value> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| &model["id"])
        .collect();
    assert_eq!(
        names,
        [&json!("parrot"), &json!("org/mute"), &json!("encoder")]
    );
    let parrot = &list["data"][0];
    assert_eq!(
        (&parrot["context"], &parrot["chat"], &parrot["generates"]),
        (&json!(CONTEXT), &json!(true), &json!(true))
    );
    assert_eq!(server.get("/v1/models/org/mute").ok()["chat"], false);
    assert_eq!(
        server.get("/v1/models/none").error(),
        (404, json!("model"), json!("model_not_found"))
    );
    let error = server
        .post(CHAT, &chat("a", json!({"model": "none"})))
        .error();
    assert_eq!(error, (404, json!("model"), json!("model_not_found")));
    // A model without a template cannot chat; an encoder cannot speak at all.
    assert_eq!(
        server
            .post(CHAT, &chat("a", json!({"model": "org/mute"})))
            .error()
            .0,
        400
    );
    assert_eq!(
        server
            .post(TEXT, &json!({"model": "org/mute", "prompt": say("a")}))
            .ok()["choices"][0]["text"],
        "a"
    );
    assert_eq!(
        server
            .post(TEXT, &json!({"model": "encoder", "prompt": "a"}))
            .error()
            .1,
        "model"
    );
}

#[test]
fn metrics_tell_of_answers() {
    let server = TestServer::start();
    server.post(CHAT, &chat("four", json!({}))).ok();
    server.get("/nowhere");
    // The engine counts an answer after its last word is out.
    server.wait_for(|stats| stats.finished == 1);
    let reply = server.get("/metrics");
    assert!(
        reply
            .header("content-type")
            .unwrap()
            .starts_with("text/plain")
    );
    for line in [
        "sedge_completion_tokens_total{model=\"parrot\"} 5",
        "sedge_time_to_first_token_seconds_count{model=\"parrot\"} 1",
        "sedge_inter_token_seconds_count{model=\"parrot\"} 3",
        "sedge_requests_finished_total{model=\"parrot\"} 1",
        "sedge_http_responses_total{route=\"/v1/chat/completions\",status=\"200\"} 1",
        "sedge_http_responses_total{route=\"other\",status=\"404\"} 1",
    ] {
        assert!(
            reply.text().lines().any(|found| found == line),
            "{line}\n{}",
            reply.text()
        );
    }
}

#[test]
fn an_answer_that_is_not_ready_in_time_is_an_error() {
    let server = TestServer::start();
    let reply = server.post(CHAT, &chat("four", json!({"timeout": 1e-9})));
    assert_eq!(reply.status, 504);
    assert_eq!(reply.json()["error"]["code"], "deadline_exceeded");
    for (field, value) in [("timeout", json!(-1)), ("priority", json!("high"))] {
        let reply = server.post(CHAT, &chat("four", json!({ field: value })));
        assert_eq!(reply.status, 400);
        assert_eq!(reply.json()["error"]["param"], field);
    }
    server
        .post(CHAT, &chat("four", json!({"timeout": 60, "priority": -5})))
        .ok();
}

#[test]
fn the_live_view_tells_steps_requests_and_latencies() {
    let server = TestServer::start();
    server.post(CHAT, &chat("four", json!({}))).ok();
    server.wait_for(|stats| stats.finished == 1);
    let live = server.get("/live").json();
    assert_eq!(live["models"], json!(["parrot", "org/mute", "encoder"]));
    let model = &live["model"];
    let steps = model["steps"].as_array().unwrap();
    assert!(steps.len() >= 5 && steps[0]["number"] == 1, "{live:#}");
    let sum = |of: &str| steps.iter().map(|s| s[of].as_u64().unwrap()).sum::<u64>();
    assert!(sum("prompt") > 0 && sum("generated") == 4, "{live:#}");
    assert_eq!(model["latency"]["ttft_ms"]["count"], 1);
    assert_eq!(model["number"], 0);
    assert_eq!(model["last_step"], steps.last().unwrap()["number"]);
    let later = server.get("/live?model=0&since=3").json();
    assert_eq!(later["model"]["steps"][0]["number"], 4);
    assert!(later["started"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(server.get("/live?since=x").status, 400);
    assert_eq!(server.get("/live?model=99").json()["model"]["number"], 2);
}

#[test]
fn the_live_view_lists_nobody_who_has_gone() {
    let server = TestServer::start();
    let open = server.get("/live").json();
    assert_eq!(open["model"]["requests"], json!([]));
    let mut running = server.stream(CHAT, &chat("*", json!({"stream": true, "priority": 3})));
    let listed = || server.get("/live").json()["model"]["requests"].clone();
    let until = std::time::Instant::now() + support::PATIENCE;
    while listed()[0]["priority"] != 3 {
        assert!(std::time::Instant::now() < until && running.next().is_some());
    }
    drop(running);
    server.wait_for(|stats| stats.cancelled == 1 && stats.running == 0);
    assert_eq!(listed(), json!([]));
}

#[test]
fn the_page_is_served_with_a_policy_and_a_tag() {
    let server = TestServer::start();
    let page = server.get("/");
    assert_eq!(
        (page.status, page.header("content-type")),
        (200, Some("text/html; charset=utf-8"))
    );
    assert!(
        page.header("content-security-policy")
            .unwrap()
            .contains("script-src 'self'")
    );
    let tag = page.header("etag").unwrap();
    let again = support::exchange(server.address, "GET", "/", &[("If-None-Match", tag)], b"");
    assert_eq!((again.status, again.body.len()), (304, 0));
    assert_eq!(
        server.get("/app.js").header("content-type"),
        Some("text/javascript; charset=utf-8")
    );
    for path in [
        "/../Cargo.toml",
        "/%2e%2e/Cargo.toml",
        "//etc/passwd",
        "/web/app.js",
        "/index.html/",
    ] {
        assert_eq!(server.get(path).error().0, 404, "{path}");
    }
}

#[test]
fn a_folder_replaces_the_page_but_only_its_own_files() {
    let folder = std::env::temp_dir().join(format!("sedge-web-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("index.html"), "mine").unwrap();
    std::fs::write(folder.join("secret.txt"), "no").unwrap();
    let config = sedge_api::ServerConfig {
        web_folder: Some(folder.clone()),
        ..support::config()
    };
    let server = TestServer::with(config, sedge_engine::EngineConfig::default());
    assert_eq!(server.get("/").text(), "mine");
    assert_eq!(server.get("/secret.txt").status, 404);
    assert_eq!(server.get("/app.js").status, 500);
    std::fs::remove_dir_all(folder).unwrap();
}
