//! The Jinja that transformers offers to templates, made from minijinja, with limits.

use std::fmt::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};

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
    environment.set_formatter(print);
    environment.add_filter("tojson", super::json::tojson);
    environment.add_function("raise_exception", |reason: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, reason.clone()).with_source(Raised(reason)))
    });
    environment.add_template_owned(NAME, without_generation_tags(source))?;
    Ok(environment)
}

/// Fuel for a probe of a few words.
pub(super) const PROBE_FUEL: u64 = 100_000;

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

/// Prints a value, and stops when the fuel that is left could not pay for it: sums of lists are
/// lazy, so a small one may print without end.
fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        return Ok(out.write_str(text)?);
    }
    let left = state.fuel_levels().map_or(0, |(_, left)| left.saturating_mul(BYTES_PER_FUEL));
    let mut bounded = Bounded { out, left: left.min(PRINT_LIMIT) };
    write!(bounded, "{value}").map_err(|_| Error::from(ErrorKind::OutOfFuel))
}

/// minijinja's price of new data.
const BYTES_PER_FUEL: u64 = 64;

/// Most bytes that a list or dictionary prints.
const PRINT_LIMIT: u64 = 4 << 20;

struct Bounded<'a, 'o> {
    out: &'a mut Output<'o>,
    left: u64,
}

impl Write for Bounded<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.left = self.left.checked_sub(text.len() as u64).ok_or(fmt::Error)?;
        self.out.write_str(text)
    }
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
        // Past `{%`: in `{%}` the two must not share the percent sign.
        let Some(end) = tag[2..].find("%}").map(|end| end + 2) else {
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
