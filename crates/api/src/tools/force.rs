//! Schemas that make a model call a function: the answer is `{"name": …, "arguments": …}`.

use sedge_engine::Constraint;
use serde_json::{Map, Value, json};

use crate::openai::constraint::Format;
use crate::openai::tools::{Tool, ToolChoice};

/// The constraint of an answer, given what the request asks of it and which tools it has.
///
/// - A call that is required, or of a named function: nothing but a call fits.
/// - Tools and a format: the answer is a call or has the format.
pub(crate) fn constraint(
    format: Option<Format>,
    tools: &[Tool],
    choice: &ToolChoice,
) -> Option<Format> {
    let call = |schema| {
        Some(Format {
            field: "tools",
            constraint: Constraint::JsonSchema(schema),
        })
    };
    match choice {
        ToolChoice::None => format,
        ToolChoice::Required => call(any_of(tools.iter(), None)),
        ToolChoice::Named(name) => call(any_of(tools.iter().filter(|t| t.name == *name), None)),
        ToolChoice::Auto => format.map(|format| Format {
            constraint: match format.constraint {
                Constraint::JsonSchema(schema) => {
                    Constraint::JsonSchema(any_of(tools.iter(), Some(schema)))
                }
                other => other,
            },
            ..format
        }),
    }
}

/// A schema for a call of any of the tools, or for `other`. Each part's schema moves below
/// `$defs`, and its references to itself move along.
fn any_of<'a>(tools: impl Iterator<Item = &'a Tool>, other: Option<Value>) -> Value {
    let (mut parts, mut definitions) = (Vec::new(), Map::new());
    let mut define = |schema: &Value| {
        let name = format!("part{}", definitions.len());
        let mut schema = schema.clone();
        if let Value::Object(map) = &mut schema {
            // An identity of its own would make references inside relative to it.
            map.remove("$id");
            map.remove("$schema");
        }
        move_references(&mut schema, &format!("#/$defs/{name}"));
        let reference = json!({"$ref": format!("#/$defs/{name}")});
        definitions.insert(name, schema);
        reference
    };
    for tool in tools {
        let mut arguments = tool.parameters.clone();
        if let Value::Object(map) = &mut arguments {
            // Without a type the schema would let through what is no call, such as `3`.
            map.entry("type").or_insert_with(|| "object".into());
        }
        parts.push(json!({
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": define(&arguments)},
            "required": ["name", "arguments"],
            "additionalProperties": false,
        }));
    }
    if let Some(schema) = other {
        parts.push(define(&schema));
    }
    json!({"anyOf": parts, "$defs": definitions})
}

/// Points `#…` references of a schema that moved from the root to `root`.
fn move_references(schema: &mut Value, root: &str) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match value {
                    Value::String(target) if key == "$ref" && target.starts_with('#') => {
                        *target = format!("{root}{}", &target[1..]);
                    }
                    Value::Object(_) | Value::Array(_) if key != "const" && key != "enum" => {
                        move_references(value, root);
                    }
                    _ => {}
                }
            }
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| move_references(item, root)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str, parameters: Value) -> Tool {
        Tool {
            name: name.into(),
            parameters,
            json: Value::Null,
        }
    }

    fn schema(format: Option<Format>) -> Value {
        match format.map(|format| format.constraint) {
            Some(Constraint::JsonSchema(schema)) => schema,
            other => panic!("no schema: {other:?}"),
        }
    }

    #[test]
    fn a_moved_schemas_references_move_along() {
        let list = json!({
            "$id": "list", "$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}, "all": {"$ref": "#"}}}},
            "properties": {"first": {"$ref": "#/$defs/node"}, "kind": {"const": {"$ref": "#"}}},
        });
        let schema = any_of([tool("f", json!({})), tool("g", list)].iter(), None);
        let moved = &schema["$defs"]["part1"];
        assert_eq!(
            moved["properties"]["first"]["$ref"],
            "#/$defs/part1/$defs/node"
        );
        assert_eq!(
            moved["$defs"]["node"]["properties"]["all"]["$ref"],
            "#/$defs/part1"
        );
        assert_eq!(moved["properties"]["kind"]["const"]["$ref"], "#");
        assert_eq!(moved.get("$id"), None);
        assert_eq!(
            schema["anyOf"][1]["properties"]["arguments"]["$ref"],
            "#/$defs/part1"
        );
    }

    #[test]
    fn a_named_function_is_the_only_one_that_fits() {
        let tools = [tool("f", json!({})), tool("g", json!({}))];
        let schema = schema(constraint(None, &tools, &ToolChoice::Named("g".into())));
        assert_eq!(schema["anyOf"].as_array().unwrap().len(), 1);
        assert_eq!(schema["anyOf"][0]["properties"]["name"]["const"], "g");
    }

    #[test]
    fn arguments_are_an_object_even_if_the_schema_does_not_say_so() {
        let loose = json!({"properties": {"a": {}}});
        let tools = [tool("f", json!({})), tool("g", loose)];
        let schema = any_of(tools.iter(), Some(json!({})));
        assert_eq!(schema["$defs"]["part0"], json!({"type": "object"}));
        assert_eq!(
            schema["$defs"]["part1"],
            json!({"type": "object", "properties": {"a": {}}})
        );
        // A format may be anything.
        assert_eq!(schema["$defs"]["part2"], json!({}));
    }

    #[test]
    fn with_a_format_and_tools_both_fit() {
        let format = Some(Format {
            field: "grammar",
            constraint: Constraint::JsonSchema(json!({"type": "integer"})),
        });
        let tools = [tool("f", json!({}))];
        let schema = schema(constraint(format.clone(), &tools, &ToolChoice::Auto));
        assert_eq!(schema["anyOf"].as_array().unwrap().len(), 2);
        assert_eq!(schema["$defs"]["part1"], json!({"type": "integer"}));
        assert_eq!(constraint(format.clone(), &[], &ToolChoice::None), format);
        assert_eq!(constraint(None, &tools, &ToolChoice::Auto), None);
    }
}
