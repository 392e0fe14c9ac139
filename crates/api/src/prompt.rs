//! From messages or texts to the token ids that the model reads.

use sedge_formats::template::{ChatInput, ChatTemplate, TemplateError};
use sedge_formats::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::openai::chat::{ChatRequest, Message, PastCall, Role};
use crate::openai::completions::Prompt;
use crate::openai::tools::{Tool, ToolChoice};
use crate::server::ServedModel;
use crate::tools::describe;

/// Token ids of a chat, the assistant's turn opened.
///
/// Control tokens written out in the rendered text become those tokens, in the users' words too,
/// as other servers have it: the template's own marks cannot be told apart from them.
pub(crate) fn of_chat(model: &ServedModel, chat: &ChatRequest) -> Result<Vec<u32>, ApiError> {
    let Some(template) = &model.template else {
        let message = format!(
            "The model '{}' has no chat template; use /v1/completions.",
            model.name
        );
        return Err(ApiError::invalid("model", message));
    };
    let text = render(template, chat).map_err(|error| ApiError::template(&error))?;
    let mut ids = model.tokenizer.encode(&text, false, true);
    // Most templates write BOS themselves.
    if model.tokenizer.adds_bos()
        && let Some(bos) = model.tokenizer.bos()
        && ids.first() != Some(&bos)
    {
        ids.insert(0, bos);
    }
    Ok(ids)
}

/// Token ids of a text to continue. Control tokens written out become those tokens, so that
/// callers can use a model's own chat or infilling marks; a BOS of theirs is not doubled.
pub(crate) fn of_text(tokenizer: &Tokenizer, prompt: &Prompt) -> Vec<u32> {
    let text = match prompt {
        Prompt::Ids(ids) => return ids.clone(),
        Prompt::Text(text) => text,
    };
    let mut ids = tokenizer.encode(text, true, true);
    let doubled = tokenizer
        .bos()
        .is_some_and(|bos| ids.starts_with(&[bos, bos]));
    if doubled && tokenizer.adds_bos() {
        ids.remove(0);
    }
    ids
}

/// Token ids of a text to embed, which stays text.
pub(crate) fn of_input(tokenizer: &Tokenizer, prompt: &Prompt) -> Vec<u32> {
    match prompt {
        Prompt::Ids(ids) => ids.clone(),
        Prompt::Text(text) => tokenizer.encode(text, true, false),
    }
}

/// How a call's arguments appear to the template: templates disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arguments {
    /// As values, which most templates write with `tojson`.
    Values,
    /// As JSON text, which some append to other text.
    Text,
}

/// Renders the chat the way its template can take: what it refuses is offered in other forms, and
/// the first refusal is the error when none is taken.
fn render(template: &ChatTemplate, chat: &ChatRequest) -> Result<String, TemplateError> {
    let offered: &[Tool] = if chat.tool_choice == ToolChoice::None {
        &[]
    } else {
        &chat.tools
    };
    let (messages, tools) = if template.supports_tools() {
        (chat.messages.clone(), offered)
    } else {
        (describe::in_words(&chat.messages, offered), &[][..])
    };
    let try_render = |messages: &[Message], arguments| {
        template.render(&ChatInput {
            messages: messages
                .iter()
                .map(|message| value(message, arguments))
                .collect(),
            tools: tools.iter().map(|tool| tool.json.clone()).collect(),
            add_generation_prompt: true,
            extra: chat.template.clone(),
        })
    };
    let first = match try_render(&messages, Arguments::Values) {
        Ok(text) => return Ok(text),
        Err(error) => error,
    };
    let called = messages.iter().any(|message| !message.calls.is_empty());
    if called && let Ok(text) = try_render(&messages, Arguments::Text) {
        return Ok(text);
    }
    // Some templates know no system message, so that the user says it.
    if matches!(first, TemplateError::Refused(_))
        && let Some(merged) = system_into_user(&messages)
        && let Ok(text) = try_render(&merged, Arguments::Values)
    {
        return Ok(text);
    }
    Err(first)
}

/// The messages with a leading system message put before the first user's words.
fn system_into_user(messages: &[Message]) -> Option<Vec<Message>> {
    let (system, rest) = messages
        .split_first()
        .filter(|(first, _)| first.role == Role::System)?;
    let mut merged = rest.to_vec();
    let user = merged
        .first_mut()
        .filter(|message| message.role == Role::User)?;
    user.text = format!("{}\n\n{}", system.text, user.text);
    Some(merged)
}

/// A message as templates read it.
fn value(message: &Message, arguments: Arguments) -> Value {
    let mut map = Map::new();
    map.insert("role".into(), message.role.name().into());
    map.insert("content".into(), message.text.clone().into());
    let optional = [
        ("name", &message.name),
        ("tool_call_id", &message.call_id),
        ("reasoning_content", &message.reasoning),
    ];
    for (key, text) in optional {
        if let Some(text) = text {
            map.insert(key.into(), text.clone().into());
        }
    }
    if !message.calls.is_empty() {
        let calls = message
            .calls
            .iter()
            .map(|call| call_value(call, arguments))
            .collect();
        map.insert("tool_calls".into(), Value::Array(calls));
    }
    Value::Object(map)
}

fn call_value(call: &PastCall, arguments: Arguments) -> Value {
    let parsed = match arguments {
        Arguments::Values => serde_json::from_str::<Map<String, Value>>(&call.arguments)
            .ok()
            .map(Value::Object),
        Arguments::Text => None,
    };
    let arguments = parsed.unwrap_or_else(|| call.arguments.clone().into());
    json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}})
}

#[cfg(test)]
mod tests {
    use sedge_engine::Sampling;

    use super::*;
    use crate::openai::fields::Fields;

    const CHATML: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}\
                          [{{ c.function.name }} {{ c.function.arguments }}]{% endfor %}{% endfor %}\
                          {% if add_generation_prompt %}<|assistant|>{% endif %}";

    fn chat(request: Value) -> ChatRequest {
        ChatRequest::read(Fields::open("", request).unwrap(), &Sampling::default()).unwrap()
    }

    fn rendered(template: &str, request: Value) -> Result<String, TemplateError> {
        render(
            &ChatTemplate::new(template, None, None).unwrap(),
            &chat(request),
        )
    }

    #[test]
    fn a_template_without_tools_gets_them_in_words() {
        let plain = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}";
        let text = rendered(
            plain,
            json!({
                "messages": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "tool_calls": [
                        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
                    {"role": "tool", "tool_call_id": "call_1", "content": "42"},
                ],
                "tools": [{"type": "function", "function": {"name": "f"}}],
            }),
        )
        .unwrap();
        assert!(text.starts_with("<|system|>"), "{text}");
        assert!(
            text.contains("<tool_call>\n{\"name\":\"f\",\"arguments\":{\"a\":1}}\n</tool_call>"),
            "{text}"
        );
        assert!(
            text.contains("<|user|><tool_response>\n42\n</tool_response>"),
            "{text}"
        );
    }

    #[test]
    fn without_a_choice_of_tools_the_model_hears_of_none() {
        let request = json!({"messages": [{"role": "user", "content": "hi"}], "tool_choice": "none",
                             "tools": [{"type": "function", "function": {"name": "f"}}]});
        let plain = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}";
        assert_eq!(rendered(plain, request).unwrap(), "<|user|>hi");
    }

    #[test]
    fn arguments_are_offered_as_text_where_values_fail() {
        let needs_text = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ '->' + c.function.arguments }}\
                          {% endfor %}{% endfor %}{# tools #}{% if tools %}{% endif %}";
        let request = json!({"messages": [{"role": "assistant", "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]}]});
        assert_eq!(rendered(needs_text, request).unwrap(), "->{\"a\": 1}");
    }

    #[test]
    fn a_refused_system_message_becomes_the_users_words() {
        let refusing =
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
                .to_string();
        let request = json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]});
        assert_eq!(
            rendered(&(refusing.clone() + CHATML), request).unwrap(),
            "<|user|>s\n\nu<|assistant|>"
        );
        let request = json!({"messages": [{"role": "system", "content": "s"}]});
        assert!(matches!(
            rendered(&(refusing + CHATML), request),
            Err(TemplateError::Refused(_))
        ));
    }
}
