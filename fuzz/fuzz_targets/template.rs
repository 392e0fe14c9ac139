//! Any text as a chat template: an error, or a text, in bounded time and memory.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sedge_formats::template::{ChatInput, ChatTemplate};
use serde_json::{Value, json};

static INPUT: LazyLock<ChatInput> = LazyLock::new(|| {
    let list = |value: Value| value.as_array().cloned().unwrap_or_default();
    ChatInput {
        messages: list(json!([
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is the weather in Zürich?"},
            {"role": "assistant", "content": null, "tool_calls": [{
                "id": "call_1", "type": "function",
                "function": {"name": "weather", "arguments": "{\"city\": \"Zürich\"}"},
            }]},
            {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": "{\"celsius\": 7}"},
            {"role": "user", "content": [{"type": "text", "text": "And\ntomorrow?"}]},
        ])),
        tools: list(json!([{
            "type": "function",
            "function": {
                "name": "weather",
                "description": "Weather of a city",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
            },
        }])),
        add_generation_prompt: true,
        extra: serde_json::Map::from_iter([("enable_thinking".to_owned(), true.into())]),
    }
});

fuzz_target!(|source: &str| {
    if let Ok(template) = ChatTemplate::new(source, Some("<s>"), Some("</s>")) {
        let _ = template.render(&INPUT);
    }
});
