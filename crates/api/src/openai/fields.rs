//! Reads a JSON object field by field and blames wrong values by their path.
//! Every field is taken once; a field that nobody took is an error.

use serde_json::{Map, Value};

use crate::error::ApiError;

/// What is left of an object of the request.
#[derive(Debug)]
pub(crate) struct Fields {
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Opens the object at `path`; the request itself has the empty path.
    pub(crate) fn open(path: impl Into<String>, value: Value) -> Result<Fields, ApiError> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Fields { path, map }),
            other if path.is_empty() => Err(ApiError::Json(format!(
                "the request must be an object, not {}",
                kind(&other)
            ))),
            other => Err(wrong(&path, "an object", &other)),
        }
    }

    /// Path of a field of this object.
    pub(crate) fn path(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// The error that a field is missing.
    pub(crate) fn missing(&self, name: &str) -> ApiError {
        ApiError::Missing(self.path(name))
    }

    /// Takes a field whatever its type; `null` counts as absent.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Accepts fields without reading them.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        self.map.retain(|name, _| !names.contains(&name.as_str()));
    }

    /// A string.
    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(&self.path(name), "a string", &other)),
        }
    }

    /// A string that must be there.
    pub(crate) fn required_string(&mut self, name: &str) -> Result<String, ApiError> {
        self.string(name)?.ok_or_else(|| self.missing(name))
    }

    /// A truth value; false when absent.
    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        Ok(self.boolean(name)?.unwrap_or(false))
    }

    /// A truth value.
    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong(&self.path(name), "a boolean", &other)),
        }
    }

    /// A number. Its range is the engine's to check.
    pub(crate) fn number(&mut self, name: &str) -> Result<Option<f32>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number as f32)),
                None => Err(wrong(&self.path(name), "a number", &value)),
            },
        }
    }

    /// A whole number from `least` to `most`.
    pub(crate) fn count(
        &mut self,
        name: &str,
        least: usize,
        most: usize,
    ) -> Result<Option<usize>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let path = self.path(name);
        if !value.is_i64() && !value.is_u64() {
            return Err(wrong(&path, "an integer", &value));
        }
        match value
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| (least..=most).contains(n))
        {
            Some(count) => Ok(Some(count)),
            None if most == usize::MAX => Err(ApiError::invalid(
                &path,
                format!("'{path}' is {value}; it must be at least {least}."),
            )),
            None => Err(ApiError::invalid(
                &path,
                format!("'{path}' is {value}; it must be {least} to {most}."),
            )),
        }
    }

    /// A list, each element with its path.
    pub(crate) fn list(&mut self, name: &str) -> Result<Option<Vec<(String, Value)>>, ApiError> {
        let path = self.path(name);
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(numbered(&path, items))),
            Some(other) => Err(wrong(&path, "an array", &other)),
        }
    }

    /// An object.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Fields>, ApiError> {
        let path = self.path(name);
        self.take(name)
            .map(|value| Fields::open(path, value))
            .transpose()
    }

    /// Ends the reading: nothing may be left.
    pub(crate) fn end(self) -> Result<(), ApiError> {
        // `null` says the same as leaving the field out, whatever its name.
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => Err(ApiError::Unknown(self.path(name))),
        }
    }
}

/// The elements of the list at `path` with their paths.
pub(crate) fn numbered(path: &str, items: Vec<Value>) -> Vec<(String, Value)> {
    items
        .into_iter()
        .enumerate()
        .map(|(i, value)| (format!("{path}[{i}]"), value))
        .collect()
}

/// The value at `path` has the wrong type.
pub(crate) fn wrong(path: &str, expected: &str, found: &Value) -> ApiError {
    ApiError::invalid(
        path,
        format!(
            "Invalid type for '{path}': expected {expected}, but got {}.",
            kind(found)
        ),
    )
}

/// A value's type in words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(n) if n.is_f64() => "a decimal number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wrong_values_are_blamed_by_path() {
        let mut root = Fields::open("", json!({"a": {"b": "x"}, "n": 9, "f": 1.5})).unwrap();
        let mut inner = root.object("a").unwrap().unwrap();
        let error = inner.number("b").unwrap_err();
        assert_eq!(error.json()["error"]["param"], "a.b");
        assert_eq!(
            error.to_string(),
            "Invalid type for 'a.b': expected a number, but got a string."
        );
        assert!(
            root.count("n", 1, 8)
                .unwrap_err()
                .to_string()
                .contains("1 to 8")
        );
        assert!(
            root.count("f", 1, 8)
                .unwrap_err()
                .to_string()
                .contains("decimal")
        );
    }

    #[test]
    fn a_field_that_nobody_takes_is_an_error_unless_null() {
        let root = Fields::open("", json!({"unheard_of": 1, "nothing": null})).unwrap();
        assert_eq!(root.end(), Err(ApiError::Unknown("unheard_of".into())));
        assert_eq!(
            Fields::open("", json!({"nothing": null})).unwrap().end(),
            Ok(())
        );
    }

    #[test]
    fn negative_and_huge_counts_are_refused() {
        for value in [
            json!(-1),
            json!(u64::MAX),
            json!(1e30),
            json!("3"),
            json!([3]),
        ] {
            let mut root = Fields::open("", json!({"n": value})).unwrap();
            assert!(root.count("n", 0, 100).is_err());
        }
    }
}
