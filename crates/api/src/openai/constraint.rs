//! What an answer must look like: `response_format`, and the `grammar` field of our own.

use sedge_engine::Constraint;
use serde_json::Value;

use super::fields::Fields;
use crate::error::ApiError;

/// A constraint and the field that it comes from, which is to blame for it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Format {
    pub(crate) field: &'static str,
    pub(crate) constraint: Constraint,
}

/// Takes `response_format` and `grammar`, of which a request may have one.
pub(crate) fn take(fields: &mut Fields) -> Result<Option<Format>, ApiError> {
    let format = response_format(fields)?;
    let grammar = grammar(fields)?;
    if format.is_some() && grammar.is_some() {
        return Err(ApiError::invalid(
            "grammar",
            "'grammar' and 'response_format' exclude each other.",
        ));
    }
    let from = |field| move |constraint| Format { field, constraint };
    Ok(format
        .map(from("response_format"))
        .or(grammar.map(from("grammar"))))
}

/// `{"type": "text" | "json_object" | "json_schema"}`. A schema is enforced whether `strict` or not.
fn response_format(fields: &mut Fields) -> Result<Option<Constraint>, ApiError> {
    let Some(mut format) = fields.object("response_format")? else {
        return Ok(None);
    };
    let constraint = match format.required_string("type")?.as_str() {
        "text" => None,
        "json_object" => Some(Constraint::JsonObject),
        "json_schema" => {
            let mut wrapper = format
                .object("json_schema")?
                .ok_or_else(|| format.missing("json_schema"))?;
            wrapper.required_string("name")?;
            wrapper.string("description")?;
            wrapper.boolean("strict")?;
            let schema = schema(&mut wrapper, "schema")?;
            wrapper.end()?;
            Some(schema.map_or(Constraint::JsonObject, Constraint::JsonSchema))
        }
        other => {
            let message = format!(
                "'{other}' is not a response format; there are text, json_object and json_schema."
            );
            return Err(ApiError::invalid(format.path("type"), message));
        }
    };
    format.end()?;
    Ok(constraint)
}

/// A Lark grammar as a string, or `{"type": "lark" | "regex" | "json_schema", "value": …}`.
fn grammar(fields: &mut Fields) -> Result<Option<Constraint>, ApiError> {
    let path = fields.path("grammar");
    let mut typed = match fields.take("grammar") {
        None => return Ok(None),
        Some(Value::String(lark)) => return Ok(Some(Constraint::Lark(lark))),
        Some(other) => Fields::open(path, other)?,
    };
    let constraint = match typed.required_string("type")?.as_str() {
        "lark" => Constraint::Lark(typed.required_string("value")?),
        "regex" => Constraint::Regex(typed.required_string("value")?),
        "json_schema" => Constraint::JsonSchema(
            schema(&mut typed, "value")?.ok_or_else(|| typed.missing("value"))?,
        ),
        other => {
            let message =
                format!("'{other}' is not a grammar type; there are lark, regex and json_schema.");
            return Err(ApiError::invalid(typed.path("type"), message));
        }
    };
    typed.end()?;
    Ok(Some(constraint))
}

/// A JSON schema: an object, or `true` for anything.
fn schema(fields: &mut Fields, name: &str) -> Result<Option<Value>, ApiError> {
    match fields.take(name) {
        None => Ok(None),
        Some(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Some(schema)),
        Some(other) => Err(super::fields::wrong(
            &fields.path(name),
            "a JSON schema",
            &other,
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Option<Constraint>, ApiError> {
        let mut fields = Fields::open("", value)?;
        let format = take(&mut fields)?;
        fields.end()?;
        Ok(format.map(|format| format.constraint))
    }

    #[test]
    fn formats_and_grammars_become_constraints() {
        let schema = json!({"type": "integer"});
        let format = json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}});
        let cases = [
            (json!({}), None),
            (json!({"response_format": {"type": "text"}}), None),
            (
                json!({"response_format": {"type": "json_object"}}),
                Some(Constraint::JsonObject),
            ),
            (
                json!({"response_format": format}),
                Some(Constraint::JsonSchema(schema.clone())),
            ),
            (
                json!({"grammar": "start: \"a\""}),
                Some(Constraint::Lark("start: \"a\"".into())),
            ),
            (
                json!({"grammar": {"type": "regex", "value": "a+"}}),
                Some(Constraint::Regex("a+".into())),
            ),
            (
                json!({"grammar": {"type": "json_schema", "value": schema}}),
                Some(Constraint::JsonSchema(schema)),
            ),
        ];
        for (request, constraint) in cases {
            assert_eq!(read(request), Ok(constraint));
        }
    }

    #[test]
    fn mistakes_are_named_by_their_path() {
        let cases = [
            (
                json!({"response_format": {"type": "xml"}}),
                "response_format.type",
            ),
            (
                json!({"response_format": {"type": "json_schema"}}),
                "response_format.json_schema",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {}}}),
                "response_format.json_schema.name",
            ),
            (
                json!({"grammar": {"type": "bnf", "value": "x"}}),
                "grammar.type",
            ),
            (json!({"grammar": 3}), "grammar"),
        ];
        for (request, param) in cases {
            assert_eq!(read(request).unwrap_err().json()["error"]["param"], param);
        }
    }
}
