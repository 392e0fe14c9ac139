//! A request to `/v1/chat/completions`.

use sedge_engine::Sampling;
use serde_json::{Map, Value};

use super::constraint::{self, Format};
use super::fields::{Fields, numbered, wrong};
use super::options::{MAX_LOGPROBS, Options};
use super::tools::{Tool, ToolChoice, take_tools};
use crate::error::ApiError;

/// OpenAI's fields that change nothing here, and are therefore accepted.
const IGNORED: [&str; 9] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
    "verbosity",
];

/// A chat request whose every field was read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChatRequest {
    /// What was said so far; at least one message.
    pub(crate) messages: Vec<Message>,
    /// What the model may call.
    pub(crate) tools: Vec<Tool>,
    /// Whether it may or must.
    pub(crate) tool_choice: ToolChoice,
    /// Whether it may call more than once in an answer.
    pub(crate) parallel_tool_calls: bool,
    /// What the answer must look like.
    pub(crate) format: Option<Format>,
    /// Most tokens of an answer.
    pub(crate) max_tokens: Option<usize>,
    /// Report log-probabilities with this many alternatives.
    pub(crate) logprobs: Option<usize>,
    /// Further variables of the chat template.
    pub(crate) template: Map<String, Value>,
    /// Sampling, stopping, streaming.
    pub(crate) options: Options,
}

impl ChatRequest {
    /// Reads the fields other than `model`.
    pub(crate) fn read(mut fields: Fields, defaults: &Sampling) -> Result<ChatRequest, ApiError> {
        fields.ignore(&IGNORED);
        only_text(&mut fields)?;
        let (tools, tool_choice) = take_tools(&mut fields)?;
        let request = ChatRequest {
            messages: messages(&mut fields)?,
            tools,
            tool_choice,
            parallel_tool_calls: fields.boolean("parallel_tool_calls")?.unwrap_or(true),
            format: constraint::take(&mut fields)?,
            max_tokens: max_tokens(&mut fields)?,
            logprobs: logprobs(&mut fields)?,
            template: template(&mut fields)?,
            options: Options::take(&mut fields, defaults)?,
        };
        fields.end()?;
        Ok(request)
    }
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// `system`.
    System,
    /// `developer`, the newer name of `system`, which some templates know.
    Developer,
    /// `user`.
    User,
    /// `assistant`.
    Assistant,
    /// `tool`: a call's result.
    Tool,
}

impl Role {
    /// The name that templates know.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// One turn of the conversation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Message {
    /// Who speaks.
    pub(crate) role: Role,
    /// What is said; text parts are joined by line ends.
    pub(crate) text: String,
    /// The speaker's or the called function's name.
    pub(crate) name: Option<String>,
    /// Functions that the assistant called.
    pub(crate) calls: Vec<PastCall>,
    /// The call that a tool's message answers.
    pub(crate) call_id: Option<String>,
    /// What the assistant thought, for templates that show it.
    pub(crate) reasoning: Option<String>,
}

/// A call that the assistant made earlier.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PastCall {
    /// Its id.
    pub(crate) id: String,
    /// The function.
    pub(crate) name: String,
    /// Its arguments as JSON text.
    pub(crate) arguments: String,
}

fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let items = fields
        .list("messages")?
        .ok_or_else(|| fields.missing("messages"))?;
    if items.is_empty() {
        return Err(ApiError::invalid(
            "messages",
            "'messages' is empty; it must have at least one message.",
        ));
    }
    items
        .into_iter()
        .map(|(path, value)| message(path, value))
        .collect()
}

fn message(path: String, value: Value) -> Result<Message, ApiError> {
    let mut fields = Fields::open(path, value)?;
    let role = match fields.required_string("role")?.as_str() {
        "system" => Role::System,
        "developer" => Role::Developer,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        other => {
            let message = format!(
                "'{other}' is not a role; there are system, developer, user, assistant and tool."
            );
            return Err(ApiError::invalid(fields.path("role"), message));
        }
    };
    let calls = match role {
        Role::Assistant => past_calls(&mut fields)?,
        _ => Vec::new(),
    };
    let text = match fields.take("content") {
        Some(content) => text(&fields.path("content"), content)?,
        None if role == Role::Assistant && !calls.is_empty() => String::new(),
        None => return Err(fields.missing("content")),
    };
    let call_id = match role {
        Role::Tool => Some(fields.required_string("tool_call_id")?),
        _ => None,
    };
    let reasoning = match fields.string("reasoning_content")? {
        Some(reasoning) => Some(reasoning),
        None => fields.string("reasoning")?,
    };
    let message = Message {
        role,
        text,
        name: fields.string("name")?,
        calls,
        call_id,
        reasoning,
    };
    if role == Role::Assistant {
        // Clients send an answer back as they got it.
        fields.ignore(&["refusal", "annotations", "audio"]);
    }
    fields.end()?;
    Ok(message)
}

/// Text, or parts that are all text.
fn text(path: &str, content: Value) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => numbered(path, parts),
        other => return Err(wrong(path, "a string or an array of parts", &other)),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (path, part) in parts {
        let mut part = Fields::open(path, part)?;
        let kind = part.required_string("type")?;
        if kind != "text" && kind != "refusal" {
            let message =
                format!("Content of type '{kind}' is not supported: this model reads text only.");
            return Err(ApiError::invalid(part.path("type"), message));
        }
        texts.push(part.required_string(&kind)?);
        part.ignore(&["annotations", "cache_control"]);
        part.end()?;
    }
    Ok(texts.join("\n"))
}

fn past_calls(fields: &mut Fields) -> Result<Vec<PastCall>, ApiError> {
    let Some(items) = fields.list("tool_calls")? else {
        return Ok(Vec::new());
    };
    let call = |(path, value)| {
        let mut call = Fields::open(path, value)?;
        let kind = call.string("type")?;
        if kind.as_deref().is_some_and(|kind| kind != "function") {
            return Err(ApiError::invalid(
                call.path("type"),
                "Only calls of type 'function' are supported.",
            ));
        }
        let mut function = call
            .object("function")?
            .ok_or_else(|| call.missing("function"))?;
        let past = PastCall {
            id: call.required_string("id")?,
            name: function.required_string("name")?,
            arguments: function.required_string("arguments")?,
        };
        function.end()?;
        call.ignore(&["index"]);
        call.end()?;
        Ok(past)
    };
    items.into_iter().map(call).collect()
}

/// `modalities`, of which text is the only one.
fn only_text(fields: &mut Fields) -> Result<(), ApiError> {
    for (path, value) in fields.list("modalities")?.unwrap_or_default() {
        if value != "text" {
            return Err(ApiError::invalid(
                path,
                format!("The modality {value} is not supported: answers are text."),
            ));
        }
    }
    Ok(())
}

/// `max_completion_tokens`, or `max_tokens`, its older name.
fn max_tokens(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let (new, old) = (
        fields.count("max_completion_tokens", 1, usize::MAX)?,
        fields.count("max_tokens", 1, usize::MAX)?,
    );
    if let (Some(new), Some(old)) = (new, old)
        && new != old
    {
        let message = "'max_tokens' and 'max_completion_tokens' differ; send one of them.";
        return Err(ApiError::invalid("max_tokens", message));
    }
    Ok(new.or(old))
}

fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.flag("logprobs")?;
    let top = fields.count("top_logprobs", 0, MAX_LOGPROBS)?;
    if !wanted && top.is_some_and(|top| top > 0) {
        return Err(ApiError::invalid(
            "top_logprobs",
            "'top_logprobs' needs 'logprobs' to be true.",
        ));
    }
    Ok(wanted.then(|| top.unwrap_or(0)))
}

/// `chat_template_kwargs`; `reasoning_effort` is a variable of some templates too.
fn template(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let mut variables = match fields.take("chat_template_kwargs") {
        None => Map::new(),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong("chat_template_kwargs", "an object", &other)),
    };
    // These come from the request's own fields.
    if let Some(name) = ["messages", "tools", "add_generation_prompt"]
        .iter()
        .find(|name| variables.contains_key(**name))
    {
        let path = format!("chat_template_kwargs.{name}");
        return Err(ApiError::invalid(
            &path,
            format!("'{path}' is not for the request to set."),
        ));
    }
    if let Some(effort) = fields.string("reasoning_effort")? {
        variables.insert("reasoning_effort".into(), Value::String(effort));
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use sedge_engine::Constraint;
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<ChatRequest, ApiError> {
        ChatRequest::read(Fields::open("", value)?, &Sampling::default())
    }

    fn blamed(value: Value) -> Value {
        read(value).unwrap_err().json()["error"]["param"].clone()
    }

    fn hello() -> Value {
        json!([{"role": "user", "content": "hello"}])
    }

    #[test]
    fn every_supported_field_is_read() {
        let request = read(json!({
            "messages": [
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "ann"},
                {"role": "assistant", "content": null, "refusal": null, "annotations": [],
                 "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
                {"role": "tool", "content": "42", "tool_call_id": "call_1"}
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "tool_choice": "auto", "parallel_tool_calls": false,
            "response_format": {"type": "json_object"},
            "max_completion_tokens": 7, "logprobs": true, "top_logprobs": 3,
            "temperature": 0, "top_p": 0.5, "n": 2, "seed": 1, "stop": "x", "stream": true,
            "stream_options": {"include_usage": true}, "logit_bias": {"1": 2}, "presence_penalty": 0.1,
            "frequency_penalty": 0.2, "repetition_penalty": 1.1, "top_k": 4, "min_p": 0.01,
            "chat_template_kwargs": {"enable_thinking": false}, "reasoning_effort": "low",
            "user": "u", "metadata": {}, "store": false
        }))
        .unwrap();
        assert_eq!(request.messages[0].role, Role::Developer);
        assert_eq!(request.messages[1].text, "a\nb");
        assert_eq!(request.messages[2].calls[0].name, "f");
        assert_eq!(request.messages[3].call_id.as_deref(), Some("call_1"));
        let format = Format {
            field: "response_format",
            constraint: Constraint::JsonObject,
        };
        assert_eq!(request.format, Some(format));
        assert_eq!((request.max_tokens, request.logprobs), (Some(7), Some(3)));
        assert_eq!(request.template["reasoning_effort"], "low");
        assert!(!request.parallel_tool_calls);
    }

    #[test]
    fn mistakes_are_named_by_their_path() {
        let image = json!([{"role": "user", "content": [
            {"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "x"}}]}]);
        let cases = [
            (json!({}), "messages"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": "hi"}), "messages"),
            (json!({"messages": ["hi"]}), "messages[0]"),
            (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
            (
                json!({"messages": [{"role": "robot", "content": "x"}]}),
                "messages[0].role",
            ),
            (
                json!({"messages": [{"role": "user"}]}),
                "messages[0].content",
            ),
            (
                json!({"messages": [{"role": "user", "content": 7}]}),
                "messages[0].content",
            ),
            (
                json!({"messages": [{"role": "user", "content": "x", "mood": "good"}]}),
                "messages[0].mood",
            ),
            (
                json!({"messages": [{"role": "tool", "content": "x"}]}),
                "messages[0].tool_call_id",
            ),
            (json!({"messages": image}), "messages[0].content[1].type"),
            (
                json!({"messages": hello(), "temperature": "hot"}),
                "temperature",
            ),
            (json!({"messages": hello(), "n": 0}), "n"),
            (json!({"messages": hello(), "max_tokens": 0}), "max_tokens"),
            (
                json!({"messages": hello(), "max_tokens": 1.5}),
                "max_tokens",
            ),
            (
                json!({"messages": hello(), "top_logprobs": 21, "logprobs": true}),
                "top_logprobs",
            ),
            (
                json!({"messages": hello(), "top_logprobs": 2}),
                "top_logprobs",
            ),
            (
                json!({"messages": hello(), "modalities": ["text", "audio"]}),
                "modalities[1]",
            ),
            (
                json!({"messages": hello(), "chat_template_kwargs": {"messages": []}}),
                "chat_template_kwargs.messages",
            ),
            (json!({"messages": hello(), "foo": 1}), "foo"),
        ];
        for (request, param) in cases {
            assert_eq!(blamed(request.clone()), param, "{request}");
        }
    }
}
