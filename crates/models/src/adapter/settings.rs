//! An adapter's configuration: the fields of `adapter_config.json`.
//! A field that is absent or null has the meaning of its default.

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use super::error::AdapterError;

/// Most bytes of a configuration; real ones have some hundreds.
pub(crate) const CONFIG_LIMIT: usize = 1 << 20;

/// Most patterns in one field, and most bytes of one of them when it is compiled.
const PATTERN_LIMIT: usize = 1 << 10;
const PATTERN_BYTES: usize = 1 << 16;

/// Largest rank: the width of the widest models.
const RANK_LIMIT: usize = 1 << 16;

#[derive(Debug)]
pub(crate) struct Settings(Map<String, Value>);

impl Settings {
    pub(crate) fn parse(json: &str) -> Result<Settings, AdapterError> {
        if json.len() > CONFIG_LIMIT {
            return Err(AdapterError::ConfigSize {
                bytes: json.len() as u64,
                limit: CONFIG_LIMIT as u64,
            });
        }
        let fields = serde_json::from_str(json).map_err(|e| AdapterError::Json {
            reason: e.to_string(),
        })?;
        Ok(Settings(fields))
    }

    /// A field that is there and not null.
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|v| !v.is_null())
    }

    pub(crate) fn flag(&self, field: &str) -> Result<bool, AdapterError> {
        match self.get(field) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(invalid(field, other, "true or false")),
        }
    }

    pub(crate) fn text(&self, field: &str) -> Result<Option<&str>, AdapterError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(invalid(field, other, "a text")),
        }
    }

    pub(crate) fn number(&self, field: &str) -> Result<f32, AdapterError> {
        let value = self.get(field).ok_or_else(|| AdapterError::Field {
            field: field.into(),
        })?;
        number(field, value)
    }

    pub(crate) fn rank(&self, field: &str) -> Result<usize, AdapterError> {
        let value = self.get(field).ok_or_else(|| AdapterError::Field {
            field: field.into(),
        })?;
        rank(field, value)
    }

    /// The base that the checkpoint names.
    pub(crate) fn base(&self) -> Option<String> {
        let base = self.get("base_model_name_or_path")?.as_str()?;
        (!base.is_empty()).then(|| base.to_string())
    }

    /// The pattern of modules that a field holds: a regular expression for the whole name.
    pub(crate) fn matcher(&self, field: &str) -> Result<Option<Regex>, AdapterError> {
        let text = match self.get(field) {
            Some(Value::String(text)) => text,
            _ => return Ok(None),
        };
        compile(field, text, &format!("^(?:{text})$")).map(Some)
    }

    /// The texts of a list.
    pub(crate) fn list(&self, field: &str) -> Result<Option<Vec<&str>>, AdapterError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let texts = value
            .as_array()
            .and_then(|list| list.iter().map(Value::as_str).collect());
        match texts {
            Some(texts) => Ok(Some(texts)),
            None => Err(invalid(field, value, "a list of texts")),
        }
    }

    /// The values of a field by pattern of module.
    pub(crate) fn patterns(&self, field: &str) -> Result<Patterns, AdapterError> {
        let Some(value) = self.get(field) else {
            return Ok(Patterns::default());
        };
        let Some(object) = value.as_object() else {
            return Err(invalid(field, value, "an object by module"));
        };
        if object.len() > PATTERN_LIMIT {
            let found = format!("an object of {} patterns", object.len());
            let expected = format!("of at most {PATTERN_LIMIT}");
            return Err(AdapterError::Value {
                field: field.into(),
                found,
                expected,
            });
        }
        let each = object.iter().map(|(key, value)| {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let pattern = match key.chars().all(plain) {
                true => Pattern::Name(key.clone()),
                false => Pattern::Regex(compile(field, key, &format!(r"^(?:.*\.)?(?:{key})$"))?),
            };
            Ok((pattern, value.clone()))
        });
        Ok(Patterns {
            each: each.collect::<Result<_, _>>()?,
        })
    }
}

/// Values by pattern of module, in PEFT's way: the first pattern that matches the module's name,
/// or the part of it after some dot, up to its end.
#[derive(Debug, Default)]
pub(crate) struct Patterns {
    each: Vec<(Pattern, Value)>,
}

#[derive(Debug)]
enum Pattern {
    /// A last part of names, without anything that regular expressions give a meaning to.
    Name(String),
    Regex(Regex),
}

impl Patterns {
    pub(crate) fn of(&self, module: &str) -> Option<&Value> {
        let matches = |pattern: &Pattern| match pattern {
            Pattern::Name(name) => module.rsplit('.').next() == Some(name.as_str()),
            Pattern::Regex(regex) => regex.is_match(module),
        };
        let found = self.each.iter().find(|(pattern, _)| matches(pattern))?;
        Some(&found.1)
    }
}

fn compile(field: &str, stated: &str, pattern: &str) -> Result<Regex, AdapterError> {
    RegexBuilder::new(pattern)
        .size_limit(PATTERN_BYTES)
        .build()
        .map_err(|_| AdapterError::Value {
            field: field.into(),
            found: shortened(&Value::from(stated)),
            expected: "a regular expression without backtracking, of moderate size".into(),
        })
}

pub(crate) fn number(field: &str, value: &Value) -> Result<f32, AdapterError> {
    value
        .as_f64()
        .map(|v| v as f32)
        .filter(|v| v.is_finite())
        .ok_or_else(|| invalid(field, value, "a number"))
}

pub(crate) fn rank(field: &str, value: &Value) -> Result<usize, AdapterError> {
    value
        .as_u64()
        .filter(|&r| r >= 1 && r <= RANK_LIMIT as u64)
        .map(|r| r as usize)
        .ok_or_else(|| invalid(field, value, &format!("1 to {RANK_LIMIT}")))
}

pub(crate) fn invalid(field: &str, found: &Value, expected: &str) -> AdapterError {
    AdapterError::Value {
        field: field.into(),
        found: shortened(found),
        expected: expected.into(),
    }
}

/// A value as text for an error, cut where it is long.
pub(crate) fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_last_parts_as_peft_does() {
        let settings = Settings::parse(
            r#"{"rank_pattern": {"q_proj": 1, "layers\\.[01]\\..*k_proj": 2, "^model.lm_head": 3}}"#,
        )
        .unwrap();
        let patterns = settings.patterns("rank_pattern").unwrap();
        let of = |module| patterns.of(module).and_then(Value::as_u64);
        assert_eq!(of("model.layers.7.self_attn.q_proj"), Some(1));
        assert_eq!(of("q_proj"), Some(1));
        assert_eq!(of("model.layers.7.self_attn.eq_proj"), None);
        assert_eq!(of("model.layers.1.self_attn.k_proj"), Some(2));
        assert_eq!(of("model.layers.2.self_attn.k_proj"), None);
        assert_eq!(of("model.lm_head"), Some(3));
        assert_eq!(of("x.model.lm_head"), None);
    }

    #[test]
    fn hostile_patterns_are_refused() {
        for pattern in [r"(?=a)", r"((a{99}){99}){99}", "("] {
            let text = serde_json::json!({"rank_pattern": {pattern: 1}}).to_string();
            let error = Settings::parse(&text).unwrap().patterns("rank_pattern");
            assert!(error.unwrap_err().to_string().contains("rank_pattern"));
        }
    }
}
