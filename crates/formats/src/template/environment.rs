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

/// Most unary operators in a row: minijinja's compiler takes time quadratic in them.
const UNARY_LIMIT: usize = 1000;

/// Compiles the one template of an environment.
pub(super) fn compile(source: &str) -> Result<Environment<'static>, Error> {
    if longest_unary_run(source) > UNARY_LIMIT {
        return Err(Error::new(
            ErrorKind::SyntaxError,
            "too many unary operators in a row",
        ));
    }
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(method);
    environment.set_debug(false);
    environment.set_formatter(print);
    environment.add_filter("tojson", super::json::tojson);
    environment.add_function(
        "raise_exception",
        |reason: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, reason.clone()).with_source(Raised(reason)))
        },
    );
    environment.add_template_owned(NAME, without_generation_tags(source))?;
    Ok(environment)
}

/// The longest run of `not`, `-` and `+`.
fn longest_unary_run(source: &str) -> usize {
    let (mut longest, mut run) = (0, 0);
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let len = match c {
            '-' | '+' => 1,
            'n' if rest.starts_with("not") => 3,
            _ => {
                run = if c.is_whitespace() { run } else { 0 };
                rest = &rest[c.len_utf8()..];
                continue;
            }
        };
        run += 1;
        longest = longest.max(run);
        rest = &rest[len..];
    }
    longest
}

/// Stack for compiling and rendering. Neither minijinja's compiler nor the drop of a value bounds
/// its recursion: a template of 1 MiB may nest 350,000 operators, and one with a few hundred
/// thousand units of fuel as many lists. Only pages that are touched take memory.
const STACK: usize = 512 << 20;

/// Runs on a stack that no template overflows.
pub(super) fn on_deep_stack<T: Send>(run: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, run)?;
        thread
            .join()
            .map_err(|_| std::io::Error::other("the template engine panicked"))
    })
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
        serde_json::Value::Object(items) => items
            .iter()
            .map(|(key, item)| 8 + key.len() + size(item))
            .sum(),
        _ => 8,
    }
}

/// Renders with at most `fuel`.
pub(super) fn render(
    environment: &Environment<'static>,
    fuel: u64,
    context: Value,
) -> Result<String, Error> {
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
    let left = state
        .fuel_levels()
        .map_or(0, |(_, left)| left.saturating_mul(BYTES_PER_FUEL));
    let mut bounded = Bounded {
        out,
        left: left.min(PRINT_LIMIT),
    };
    write!(bounded, "{value}").map_err(|_| Error::from(ErrorKind::OutOfFuel))
}

/// minijinja's price of new data.
const BYTES_PER_FUEL: u64 = 64;

/// Most bytes that a list or dictionary prints.
const PRINT_LIMIT: u64 = 1 << 20;

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

/// Python's methods of strings, lists and dictionaries; those that can make much of little are
/// paid for before they run.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        let argument = |i: usize| args.get(i).and_then(Value::as_str);
        match (name, argument(0), argument(1)) {
            ("removeprefix", Some(affix), None) => {
                return Ok(text.strip_prefix(affix).unwrap_or(text).into());
            }
            ("removesuffix", Some(affix), None) => {
                return Ok(text.strip_suffix(affix).unwrap_or(text).into());
            }
            ("replace", Some(old), Some(new)) => {
                let grown = text.matches(old).count().saturating_mul(new.len());
                state.consume_fuel(text.len().saturating_add(grown) as u64 / BYTES_PER_FUEL)?;
            }
            ("join", _, _) => {
                if let Some(items) = args.first() {
                    for item in items.try_iter()? {
                        let len = text.len() + item.as_str().map_or(0, str::len);
                        state.consume_fuel(1 + len as u64 / BYTES_PER_FUEL)?;
                    }
                }
            }
            // A width of five digits and more.
            ("format", _, _)
                if text
                    .as_bytes()
                    .windows(5)
                    .any(|run| run.iter().all(u8::is_ascii_digit)) =>
            {
                return Err(ErrorKind::OutOfFuel.into());
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
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
