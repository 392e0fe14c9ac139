//! The request's `tools` and `tool_choice`.

use serde_json::Value;

use super::fields::{Fields, wrong};
use crate::error::ApiError;

const MAX_TOOLS: usize = 128;
const MAX_NAME: usize = 64;

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tool {
    /// Its name: letters, digits, `_` and `-`.
    pub(crate) name: String,
    /// JSON schema of its arguments, an object's.
    pub(crate) parameters: Value,
    /// The tool as the request has it, for the template.
    pub(crate) json: Value,
}

/// Whether the model calls functions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    /// It answers in text.
    None,
    /// It decides.
    Auto,
    /// It calls one of them.
    Required,
    /// It calls this one.
    Named(String),
}

/// Takes both fields. Without tools the choice is none.
pub(crate) fn take_tools(fields: &mut Fields) -> Result<(Vec<Tool>, ToolChoice), ApiError> {
    let items = fields.list("tools")?.unwrap_or_default();
    if items.len() > MAX_TOOLS {
        return Err(ApiError::invalid(
            "tools",
            format!("'tools' has more than {MAX_TOOLS} tools."),
        ));
    }
    let tools = items
        .into_iter()
        .map(|(path, value)| tool(path, value))
        .collect::<Result<Vec<_>, _>>()?;
    let choice = choice(fields)?;
    if tools.is_empty() {
        return match choice {
            None | Some(ToolChoice::None | ToolChoice::Auto) => Ok((tools, ToolChoice::None)),
            Some(_) => Err(ApiError::invalid(
                "tool_choice",
                "'tool_choice' needs 'tools' to choose from.",
            )),
        };
    }
    match choice {
        Some(ToolChoice::Named(name)) if !tools.iter().any(|tool| tool.name == name) => {
            Err(ApiError::invalid(
                "tool_choice.function.name",
                format!("'{name}' is not among the tools."),
            ))
        }
        choice => Ok((tools, choice.unwrap_or(ToolChoice::Auto))),
    }
}

fn tool(path: String, value: Value) -> Result<Tool, ApiError> {
    let json = value.clone();
    let mut fields = Fields::open(path, value)?;
    function_type(&mut fields)?;
    let mut function = fields
        .object("function")?
        .ok_or_else(|| fields.missing("function"))?;
    let name = function.required_string("name")?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(allowed) {
        let message = format!(
            "{name:?} is not a function's name: 1 to {MAX_NAME} letters, digits, '_' and '-'."
        );
        return Err(ApiError::invalid(function.path("name"), message));
    }
    function.string("description")?;
    function.boolean("strict")?;
    let parameters = match function.take("parameters") {
        None => Value::Object(serde_json::Map::from_iter([(
            "type".to_string(),
            Value::from("object"),
        )])),
        Some(schema @ Value::Object(_)) => schema,
        Some(other) => return Err(wrong(&function.path("parameters"), "a JSON schema", &other)),
    };
    function.end()?;
    fields.end()?;
    Ok(Tool {
        name,
        parameters,
        json,
    })
}

fn choice(fields: &mut Fields) -> Result<Option<ToolChoice>, ApiError> {
    let mut fields = match fields.take("tool_choice") {
        None => return Ok(None),
        Some(Value::String(word)) => {
            return match word.as_str() {
                "none" => Ok(Some(ToolChoice::None)),
                "auto" => Ok(Some(ToolChoice::Auto)),
                "required" => Ok(Some(ToolChoice::Required)),
                other => Err(ApiError::invalid(
                    "tool_choice",
                    format!(
                        "'{other}' is not a tool choice; there are none, auto, required and a function."
                    ),
                )),
            };
        }
        Some(other) => Fields::open("tool_choice", other)?,
    };
    function_type(&mut fields)?;
    let mut function = fields
        .object("function")?
        .ok_or_else(|| fields.missing("function"))?;
    let name = function.required_string("name")?;
    function.end()?;
    fields.end()?;
    Ok(Some(ToolChoice::Named(name)))
}

fn function_type(fields: &mut Fields) -> Result<(), ApiError> {
    match fields.required_string("type")?.as_str() {
        "function" => Ok(()),
        other => {
            let message = format!("'{other}' is not supported here; the only type is 'function'.");
            Err(ApiError::invalid(fields.path("type"), message))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<(Vec<Tool>, ToolChoice), ApiError> {
        let mut fields = Fields::open("", value)?;
        let tools = take_tools(&mut fields)?;
        fields.end()?;
        Ok(tools)
    }

    fn f() -> Value {
        json!([{"type": "function", "function": {"name": "f", "description": "d", "strict": true}}])
    }

    #[test]
    fn the_choice_is_auto_with_tools_and_none_without() {
        assert_eq!(read(json!({"tools": f()})).unwrap().1, ToolChoice::Auto);
        assert_eq!(read(json!({})).unwrap().1, ToolChoice::None);
        assert_eq!(read(json!({"tools": []})).unwrap().1, ToolChoice::None);
    }

    #[test]
    fn a_function_can_be_named() {
        let named = |name| json!({"tools": f(), "tool_choice": {"type": "function", "function": {"name": name}}});
        assert_eq!(read(named("f")).unwrap().1, ToolChoice::Named("f".into()));
        assert!(read(named("g")).is_err());
    }

    #[test]
    fn mistakes_are_named_by_their_path() {
        let cases = [
            (json!({"tools": [{"type": "custom"}]}), "tools[0].type"),
            (
                json!({"tools": [{"type": "function"}]}),
                "tools[0].function",
            ),
            (
                json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}),
                "tools[0].function.name",
            ),
            (json!({"tools": f(), "tool_choice": "maybe"}), "tool_choice"),
            (json!({"tool_choice": "required"}), "tool_choice"),
        ];
        for (request, param) in cases {
            assert_eq!(read(request).unwrap_err().json()["error"]["param"], param);
        }
    }
}
