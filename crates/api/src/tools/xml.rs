//! Calls in Qwen3-Coder's tags, whose values have no types of their own: the tool's schema tells.
//! A value that does not fit its schema is passed on as the text that it is.

use serde_json::{Map, Value};

use super::parse::Piece;
use crate::openai::tools::Tool;

/// Schemas within a parameter's schema that are looked into: they may refer to each other for ever.
const MOST_SCHEMAS: usize = 64;

/// The calls that a text consists of: `<function=name>` with `<parameter=key>value</parameter>`
/// inside, divided by white space. `None` when it is anything else.
pub(super) fn calls(text: &str, tools: &[Tool]) -> Option<Vec<Piece>> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (name, mut inside) = rest.strip_prefix("<function=")?.split_once('>')?;
        let tool = tools.iter().find(|tool| tool.name == name);
        let mut arguments = Map::new();
        rest = loop {
            inside = inside.trim_start();
            if let Some(after) = inside.strip_prefix("</function>") {
                break after.trim_start();
            }
            let (key, after) = inside.strip_prefix("<parameter=")?.split_once('>')?;
            let (text, after) = after.split_once("</parameter>")?;
            inside = after;
            arguments.insert(key.to_string(), value(unframed(text), key, tool));
        };
        found.push(Piece::Call {
            name: name.to_string(),
            arguments: Value::Object(arguments).to_string(),
        });
    }
    (!found.is_empty()).then_some(found)
}

/// A value stands on lines of its own: one line end before and after it is not part of it.
fn unframed(text: &str) -> &str {
    let text = text.strip_prefix('\n').unwrap_or(text);
    text.strip_suffix('\n').unwrap_or(text)
}

/// A text as the tool's schema has the parameter.
fn value(text: &str, key: &str, tool: Option<&Tool>) -> Value {
    let (mut types, mut left) = (Vec::new(), MOST_SCHEMAS);
    if let Some(root) = tool.map(|tool| &tool.parameters) {
        add_types(&root["properties"][key], root, &mut left, &mut types);
    }
    let is_text = types.is_empty() || types.contains(&"string");
    // Some write the constants as Python has them.
    let word = match text.trim() {
        "True" => "true",
        "False" => "false",
        "None" => "null",
        word => word,
    };
    match serde_json::from_str(word) {
        Ok(Value::Null) if types.contains(&"null") => Value::Null,
        Ok(value) if !is_text => value,
        _ => Value::String(text.to_string()),
    }
}

/// Adds the types that a schema allows; none if it does not say.
fn add_types<'a>(schema: &'a Value, root: &'a Value, left: &mut usize, types: &mut Vec<&'a str>) {
    if *left == 0 {
        return;
    }
    *left -= 1;
    match &schema["type"] {
        Value::String(one) => types.push(one),
        Value::Array(several) => types.extend(several.iter().filter_map(Value::as_str)),
        _ => {}
    }
    let target = schema["$ref"].as_str().and_then(|to| to.strip_prefix('#'));
    if let Some(schema) = target.and_then(|to| root.pointer(to)) {
        add_types(schema, root, left, types);
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        for schema in schema[key].as_array().into_iter().flatten() {
            add_types(schema, root, left, types);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn arguments(text: &str) -> Option<Value> {
        let parameters = json!({
            "type": "object",
            "properties": {
                "path": {"type": "string"},
                "lines": {"type": "integer"},
                "share": {"anyOf": [{"type": "number"}, {"type": "null"}]},
                "all": {"type": "boolean"},
                "edit": {"$ref": "#/$defs/edit"},
                "names": {"type": ["array", "null"]},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "any": {},
                "loop": {"$ref": "#/properties/loop"},
            },
            "$defs": {"edit": {"type": "object"}},
        });
        let tool = Tool {
            name: "f".into(),
            parameters,
            json: Value::Null,
        };
        match &calls(text, &[tool])?[..] {
            [Piece::Call { name, arguments }] if name == "f" => {
                serde_json::from_str(arguments).ok()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_have_the_types_of_the_schema() {
        for (key, text, value) in [
            ("path", "\na.rs\n", json!("a.rs")),
            ("path", "7", json!("7")),
            ("path", "\n  a <b>\n\nc\n\n", json!("  a <b>\n\nc\n")),
            ("lines", "\n7\n", json!(7)),
            ("lines", "seven", json!("seven")),
            ("share", "0.5", json!(0.5)),
            ("share", "null", Value::Null),
            ("all", "True", json!(true)),
            ("all", "false", json!(false)),
            ("edit", "{\"a\": [1]}", json!({"a": [1]})),
            ("names", "[\"x\", 2]", json!(["x", 2])),
            ("note", "3", json!("3")),
            ("note", "null", Value::Null),
            ("any", "3", json!("3")),
            ("loop", "3", json!("3")),
            ("unknown", "true", json!("true")),
        ] {
            let call = format!("<function=f><parameter={key}>{text}</parameter></function>");
            assert_eq!(arguments(&call), Some(json!({key: value})), "{call}");
        }
    }

    #[test]
    fn what_is_not_whole_is_no_call() {
        for text in [
            "",
            "f",
            "<function=f>",
            "<function=f",
            "<function=f></function> and more",
            "<function=f><parameter=a>1</function>",
            "<function=f>1</function>",
        ] {
            assert_eq!(arguments(text), None, "{text}");
        }
    }
}
