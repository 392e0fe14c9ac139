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
    Ok(model.tokenizer.encode_chat(&text))
}

/// Token ids of a text to continue. Control tokens written out become those tokens, so that
/// callers can use a model's own chat or infilling marks; a BOS of theirs is not doubled.
pub(crate) fn of_text(tokenizer: &Tokenizer, prompt: &Prompt) -> Vec<u32> {
    let text = match prompt {
        Prompt::Ids(ids) => return ids.clone(),
        Prompt::Text(text) => text,
    };
    tokenizer.encode_prompt(text)
}

/// Refuses a prompt that the engine would refuse for its length, before it is copied for every
/// answer. `max_tokens` is the answer's; `field` is where the prompt came from.
pub(crate) fn must_fit(
    model: &ServedModel,
    ids: &[u32],
    max_tokens: Option<usize>,
    field: &str,
) -> Result<(), ApiError> {
    if ids.len() + usize::from(max_tokens != Some(0)) <= model.context {
        return Ok(());
    }
    Err(ApiError::too_long(ids.len(), model.context, field))
}

/// Token ids of a text to embed, which stays text.
pub(crate) fn of_input(tokenizer: &Tokenizer, prompt: &Prompt) -> Vec<u32> {
    match prompt {
        Prompt::Ids(ids) => ids.clone(),
        Prompt::Text(text) => tokenizer.encode(text, true, false),
    }
}

/// Renders the chat. Where a template refuses results of tools in a row, because its roles must
/// alternate, they go into one message.
fn render(template: &ChatTemplate, chat: &ChatRequest) -> Result<String, TemplateError> {
    let refused = match render_messages(template, chat, &chat.messages) {
        Err(error @ TemplateError::Refused(_)) => error,
        rendered => return rendered,
    };
    let between = match template.supports_tools() {
        true => "\n",
        false => describe::BETWEEN_RESULTS,
    };
    let merged = merge_results(&chat.messages, between);
    if merged.len() == chat.messages.len() {
        return Err(refused);
    }
    render_messages(template, chat, &merged).map_err(|_| refused)
}

/// Results in a row as one message with the first one's id.
fn merge_results(messages: &[Message], between: &str) -> Vec<Message> {
    let mut merged: Vec<Message> = Vec::with_capacity(messages.len());
    for message in messages {
        match merged.last_mut() {
            Some(last) if last.role == Role::Tool && message.role == Role::Tool => {
                last.text.push_str(between);
                last.text.push_str(&message.text);
            }
            _ => merged.push(message.clone()),
        }
    }
    merged
}

/// Renders messages; the template gets the tools in its own way or, if it has none, in words.
fn render_messages(
    template: &ChatTemplate,
    chat: &ChatRequest,
    messages: &[Message],
) -> Result<String, TemplateError> {
    let offered: &[Tool] = match chat.tool_choice {
        ToolChoice::None => &[],
        _ => &chat.tools,
    };
    let (messages, tools) = if template.supports_tools() {
        (messages.to_vec(), offered)
    } else {
        (describe::in_words(messages, offered), &[][..])
    };
    template.render(&ChatInput {
        messages: messages.iter().map(value).collect(),
        tools: tools.iter().map(|tool| tool.json.clone()).collect(),
        add_generation_prompt: true,
        extra: chat.template.clone(),
    })
}

/// A message as OpenAI has it, but for its text in one piece.
fn value(message: &Message) -> Value {
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
        let call = |call: &PastCall| {
            let function = json!({"name": call.name, "arguments": call.arguments});
            json!({"id": call.id, "type": "function", "function": function})
        };
        map.insert(
            "tool_calls".into(),
            message.calls.iter().map(call).collect(),
        );
    }
    Value::Object(map)
}

#[cfg(test)]
mod tests {
    use sedge_engine::Sampling;

    use super::*;
    use crate::openai::fields::Fields;

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

    /// Refuses two messages of one side in a row.
    const ALTERNATES: &str = "{% for m in messages %}{% if m.role != 'system' %}\
        {% if (m.role == 'assistant') == (loop.index is odd) %}{{ raise_exception('roles must alternate') }}{% endif %}\
        <|{{ m.role }}{% if m.tool_call_id %} {{ m.tool_call_id }}{% endif %}|>{{ m.content }}{% endif %}{% endfor %}";

    fn two_results() -> Value {
        let call = |id| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}});
        json!({"messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": [call("call_1"), call("call_2")]},
            {"role": "tool", "tool_call_id": "call_1", "content": "one"},
            {"role": "tool", "tool_call_id": "call_2", "content": "two"},
        ]})
    }

    #[test]
    fn results_in_a_row_become_one_message_where_roles_must_alternate() {
        let text = rendered(ALTERNATES, two_results()).unwrap();
        let results = "<|user|><tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>";
        assert!(text.ends_with(results), "{text}");

        let with_tools = format!("{{# tools #}}{ALTERNATES}");
        let text = rendered(&with_tools, two_results()).unwrap();
        assert!(text.ends_with("<|tool call_1|>one\ntwo"), "{text}");

        // Elsewhere they stay apart.
        let plain = "{# tools #}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}";
        let text = rendered(plain, two_results()).unwrap();
        assert!(text.ends_with("<|tool|>one<|tool|>two"), "{text}");

        // What still does not alternate is refused in the template's words.
        let mut request = two_results();
        let messages = request["messages"].as_array_mut().unwrap();
        messages.push(json!({"role": "user", "content": "and?"}));
        let error = rendered(ALTERNATES, request).unwrap_err();
        assert!(error.to_string().contains("must alternate"), "{error}");
    }

    #[test]
    fn without_a_choice_of_tools_the_model_hears_of_none() {
        let request = json!({"messages": [{"role": "user", "content": "hi"}], "tool_choice": "none",
                             "tools": [{"type": "function", "function": {"name": "f"}}]});
        let plain = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}";
        assert_eq!(rendered(plain, request).unwrap(), "<|user|>hi");
    }

    #[test]
    fn a_template_with_tools_gets_them_and_past_calls_as_they_are() {
        let template = "{{ tools | length }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\
                        {% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]\
                        {% endfor %}{% endfor %}";
        let request = json!({
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]}],
            "tools": [{"type": "function", "function": {"name": "f"}}],
        });
        let text = rendered(template, request).unwrap();
        assert_eq!(text, "1<|user|>hi<|assistant|>[f {\"a\": 1}]");
    }
}
