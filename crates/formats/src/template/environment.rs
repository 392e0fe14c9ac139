//! The Jinja that transformers offers to templates, made from minijinja, with limits.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// The name under which the one template is kept.
const NAME: &str = "chat";

/// Marks an error that the template raised itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// Compiles the one template of an environment.
pub(super) fn compile(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(method);
    environment.set_debug(false);
    environment.add_filter("tojson", super::json::tojson);
    environment.add_function("raise_exception", |reason: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, reason.clone()).with_source(Raised(reason)))
    });
    environment.add_template_owned(NAME, without_generation_tags(source))?;
    Ok(environment)
}

/// Fuel for a conversation: a floor that is ample for any template, and shares for every message
/// and every 4 bytes. One unit pays for an instruction or 64 bytes of new data.
pub(super) fn fuel(messages: &[serde_json::Value], tools: &[serde_json::Value]) -> u64 {
    let bytes: usize = messages.iter().chain(tools).map(size).sum();
    1_000_000 + 2_000 * messages.len() as u64 + bytes as u64 / 4
}

fn size(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::String(text) => text.len(),
        serde_json::Value::Array(items) => items.iter().map(|item| 8 + size(item)).sum(),
        serde_json::Value::Object(items) => items.iter().map(|(key, item)| 8 + key.len() + size(item)).sum(),
        _ => 8,
    }
}

/// Renders with at most `fuel`.
pub(super) fn render(environment: &Environment<'static>, fuel: u64, context: Value) -> Result<String, Error> {
    // An environment shares its templates and functions with its clones.
    let mut environment = environment.clone();
    environment.set_fuel(Some(fuel));
    environment.get_template(NAME)?.render(context)
}

/// The reason that the template gave to `raise_exception`, if that ended it.
pub(super) fn refusal(error: &Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(Raised(reason)) = error.downcast_ref() {
            return Some(reason.clone());
        }
        cause = error.source();
    }
    None
}

/// Python's methods of strings, lists and dictionaries.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (name, value.as_str(), args) {
        ("removeprefix", Some(text), [affix]) if affix.as_str().is_some() => {
            let affix = affix.as_str().unwrap_or_default();
            Ok(text.strip_prefix(affix).unwrap_or(text).into())
        }
        ("removesuffix", Some(text), [affix]) if affix.as_str().is_some() => {
            let affix = affix.as_str().unwrap_or_default();
            Ok(text.strip_suffix(affix).unwrap_or(text).into())
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// Replaces `{% generation %}` … `{% endgeneration %}`, which mark the assistant's words for
/// training, by a condition that always holds: whitespace is trimmed as before.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inner = &tag[2..end];
        let name = inner.trim_matches(['-', '+', ' ', '\t', '\n', '\r']);
        match name {
            "generation" => out.push_str(&tag[..end].replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag[..end].replacen("endgeneration", "endif", 1)),
            _ => out.push_str(&tag[..end]),
        }
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}
