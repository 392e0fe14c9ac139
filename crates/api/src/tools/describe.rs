//! Tells a model of its functions in words where its chat template has no place for them,
//! and writes past calls and results as text.

use serde_json::{Value, json};

use crate::openai::chat::{Message, PastCall, Role};
use crate::openai::tools::Tool;

/// Between the texts of two results that one message holds.
pub(crate) const BETWEEN_RESULTS: &str = "\n</tool_response>\n<tool_response>\n";

/// The conversation in system, user and assistant messages alone: the functions are described in
/// the system message, calls stand in `<tool_call>` tags, results in `<tool_response>` tags.
pub(crate) fn in_words(messages: &[Message], tools: &[Tool]) -> Vec<Message> {
    let mut told: Vec<Message> = messages.iter().map(plain).collect();
    if tools.is_empty() {
        return told;
    }
    let description = description(tools);
    match told
        .first_mut()
        .filter(|first| matches!(first.role, Role::System | Role::Developer))
    {
        Some(system) => system.text = format!("{}\n\n{description}", system.text),
        None => told.insert(0, message(Role::System, description)),
    }
    told
}

/// What the system message says of the functions.
fn description(tools: &[Tool]) -> String {
    let list: Vec<String> = tools
        .iter()
        .map(|tool| tool.json["function"].to_string())
        .collect();
    format!(
        "You can call these functions, each given with the JSON schema of its arguments:\n{}\n\n\
         To call one, write its name and arguments as JSON in tags, and nothing after them:\n\
         <tool_call>\n{{\"name\": \"the function's name\", \"arguments\": {{}}}}\n</tool_call>\n\
         Its result then follows in <tool_response> tags. Call a function only if you need it.",
        list.join("\n")
    )
}

fn plain(original: &Message) -> Message {
    match original.role {
        Role::Tool => message(
            Role::User,
            format!("<tool_response>\n{}\n</tool_response>", original.text),
        ),
        Role::Assistant if !original.calls.is_empty() => {
            let mut text = original.text.clone();
            for call in &original.calls {
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(&written(call));
            }
            Message {
                text,
                calls: Vec::new(),
                ..original.clone()
            }
        }
        _ => original.clone(),
    }
}

fn written(call: &PastCall) -> String {
    let arguments: Value =
        serde_json::from_str(&call.arguments).unwrap_or_else(|_| call.arguments.clone().into());
    format!(
        "<tool_call>\n{}\n</tool_call>",
        json!({"name": call.name, "arguments": arguments})
    )
}

fn message(role: Role, text: String) -> Message {
    Message {
        role,
        text,
        name: None,
        calls: Vec::new(),
        call_id: None,
        reasoning: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::parse::{Piece, ToolStream};

    fn tool() -> Tool {
        let json = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
        Tool {
            name: "f".into(),
            parameters: json["function"]["parameters"].clone(),
            json,
        }
    }

    #[test]
    fn the_description_joins_the_system_message_or_becomes_it() {
        let user = message(Role::User, "hi".into());
        let told = in_words(std::slice::from_ref(&user), &[tool()]);
        assert_eq!((told.len(), told[0].role), (2, Role::System));
        let told = in_words(&[message(Role::System, "be brief".into()), user], &[tool()]);
        assert_eq!(told.len(), 2);
        assert!(
            told[0].text.starts_with("be brief\n\n") && told[0].text.contains("\"name\":\"f\"")
        );
    }

    #[test]
    fn past_calls_are_written_as_the_parser_reads_them() {
        let call = PastCall {
            id: "call_1".into(),
            name: "f".into(),
            arguments: "{\"a\":1}".into(),
        };
        let past = Message {
            calls: vec![call],
            ..message(Role::Assistant, "Let me see.".into())
        };
        let told = in_words(&[past], &[]);
        let mut stream = ToolStream::auto([tool()].into());
        let mut pieces = stream.push(&told[0].text);
        pieces.extend(stream.finish());
        let call = Piece::Call {
            name: "f".into(),
            arguments: "{\"a\":1}".into(),
        };
        assert_eq!(pieces, [Piece::Text("Let me see.".into()), call]);
    }

    #[test]
    fn results_become_the_users_words() {
        let result = Message {
            call_id: Some("call_1".into()),
            ..message(Role::Tool, "42".into())
        };
        let told = in_words(&[result], &[]);
        assert_eq!(told[0].role, Role::User);
        assert!(told[0].text.contains("42"));
    }
}
