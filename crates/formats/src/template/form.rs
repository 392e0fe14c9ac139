//! The form in which one template takes messages, found by probing it.

use std::time::UNIX_EPOCH;

use serde_json::{Map, Value, json};

use super::environment::PROBE_FUEL;
use super::{ChatInput, ChatTemplate};

/// A word that no template prints by itself.
const MARK: &str = "sedgeprobe";

/// How messages are handed to a template.
#[derive(Debug, Clone, Default)]
pub(super) struct Form {
    /// Content must be a list of parts; a string would be lost.
    parts: bool,
    /// Arguments of tool calls must be JSON text; an object would be printed as Python prints it.
    text_arguments: bool,
    /// Content that is `null` would be printed or refused, so it becomes `""`.
    empty_for_null: bool,
    /// A leading system message is refused or lost, so it goes into the first user message.
    merge_system: bool,
    /// The template has no `developer` role: it becomes `system`.
    developer_is_system: bool,
    /// Absent tools must be an empty list; none would fail.
    lists_tools: bool,
}

impl Form {
    /// Finds out how a template takes messages.
    pub(super) fn probe(template: &mut ChatTemplate) {
        // What comes first decides how the rest is rendered, so each finding is kept at once.
        let hello = [json!({"role": "user", "content": "u"})];
        let renders = |template: &ChatTemplate| {
            template
                .render_raw(
                    hello.to_vec(),
                    &ChatInput::default(),
                    UNIX_EPOCH,
                    PROBE_FUEL,
                )
                .is_ok()
        };
        if !renders(template) {
            template.form.lists_tools = true;
            template.form.lists_tools = renders(template);
        }
        template.form = Form {
            lists_tools: template.form.lists_tools,
            ..Form::of(template)
        };
    }

    fn of(template: &ChatTemplate) -> Form {
        let render = |messages: Vec<Value>| {
            let input = ChatInput {
                add_generation_prompt: true,
                ..ChatInput::default()
            };
            template
                .render_raw(messages, &input, UNIX_EPOCH, PROBE_FUEL)
                .ok()
        };
        let shows = |text: &Option<String>| text.as_ref().is_some_and(|text| text.contains(MARK));
        let user = |content: Value| json!({"role": "user", "content": content});
        let mut form = Form {
            developer_is_system: !template.source().contains("developer"),
            ..Form::default()
        };

        let as_text = render(vec![user(json!(MARK))]);
        let as_parts = || render(vec![user(json!([{"type": "text", "text": MARK}]))]);
        form.parts = !shows(&as_text) && shows(&as_parts());
        let content = |text: &str| match form.parts {
            true => json!([{"type": "text", "text": text}]),
            false => json!(text),
        };

        let with_system = render(vec![
            json!({"role": "system", "content": content(MARK)}),
            user(content("u")),
        ]);
        form.merge_system = !shows(&with_system) && render(vec![user(content("u"))]).is_some();

        // An assistant that calls a tool, in each form, until one comes out right.
        let nones = |text: &str| text.matches("None").count();
        let usual_nones = render(vec![user(content("u"))]).map_or(0, |text| nones(&text));
        let calls_tools = template.source().contains("tool_calls");
        let fits = |&(empty_for_null, text_arguments): &(bool, bool)| {
            let arguments = json!({MARK: "v"});
            let arguments = if text_arguments {
                json!(arguments.to_string())
            } else {
                arguments
            };
            let call = json!({
                "role": "assistant",
                "content": if empty_for_null { json!("") } else { Value::Null },
                "tool_calls": [{
                    "id": "sedge0001", // some templates want nine letters and digits
                    "type": "function",
                    "function": {"name": "f", "arguments": arguments},
                }],
            });
            render(vec![user(content("u")), call]).is_some_and(|text| {
                text.contains(MARK) == calls_tools
                    && nones(&text) <= usual_nones
                    && !text.contains(&format!("'{MARK}'")) // Python's repr of a dictionary
                    && !text.contains(&format!("\\\"{MARK}")) // JSON text quoted as JSON
            })
        };
        let choices = [(false, false), (true, false), (false, true), (true, true)];
        if let Some(&(empty_for_null, text_arguments)) = choices.iter().find(|choice| fits(choice))
        {
            form.empty_for_null = empty_for_null;
            form.text_arguments = text_arguments;
        }
        form
    }

    /// Whether absent tools must be an empty list.
    pub(super) fn lists_tools(&self) -> bool {
        self.lists_tools
    }

    /// OpenAI's messages in this form.
    pub(super) fn apply(&self, messages: &[Value]) -> Vec<Value> {
        let mut messages: Vec<Value> = messages
            .iter()
            .map(|message| self.message(message))
            .collect();
        if self.merge_system
            && is_role(messages.first(), "system")
            && is_role(messages.get(1), "user")
        {
            let system = messages.remove(0);
            if let (Some(system), Some(user)) = (text(&system), text(&messages[0])) {
                messages[0]["content"] = self.content(json!(format!("{system}\n\n{user}")));
            }
        }
        messages
    }

    fn message(&self, message: &Value) -> Value {
        let Value::Object(message) = message else {
            return message.clone();
        };
        let mut message = message.clone();
        if self.developer_is_system && message.get("role").is_some_and(|role| role == "developer") {
            message["role"] = json!("system");
        }
        match message.get_mut("content") {
            Some(Value::Null) | None if self.empty_for_null => {
                message.insert("content".to_owned(), json!(""));
            }
            Some(content) => *content = self.content(content.take()),
            None => {}
        }
        if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
            for call in calls {
                if let Some(Value::Object(function)) = call.get_mut("function") {
                    self.arguments(function);
                }
            }
        }
        Value::Object(message)
    }

    fn content(&self, content: Value) -> Value {
        match content {
            Value::String(text) if self.parts => json!([{"type": "text", "text": text}]),
            Value::Array(parts) if !self.parts => {
                let texts: Option<Vec<&str>> = parts.iter().map(part_text).collect();
                match texts {
                    Some(texts) => json!(texts.join("\n")),
                    None => Value::Array(parts), // images are the template's to place
                }
            }
            content => content,
        }
    }

    fn arguments(&self, function: &mut Map<String, Value>) {
        let Some(arguments) = function.get_mut("arguments") else {
            return;
        };
        match arguments {
            Value::String(text) if !self.text_arguments => {
                if let Ok(object @ Value::Object(_)) = serde_json::from_str(text) {
                    *arguments = object;
                }
            }
            Value::Object(_) if self.text_arguments => *arguments = json!(arguments.to_string()),
            _ => {}
        }
    }
}

fn is_role(message: Option<&Value>, role: &str) -> bool {
    message.is_some_and(|message| message["role"] == role)
}

fn part_text(part: &Value) -> Option<&str> {
    match part["type"].as_str() {
        Some("text") | None => part["text"].as_str(),
        _ => None,
    }
}

/// The text of a message whose content is a string or text parts.
fn text(message: &Value) -> Option<String> {
    match &message["content"] {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let texts: Option<Vec<&str>> = parts.iter().map(part_text).collect();
            Some(texts?.join("\n"))
        }
        _ => None,
    }
}
