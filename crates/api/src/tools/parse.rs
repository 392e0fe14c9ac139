//! Finds function calls in what a model writes, as it writes it. However the text is cut into
//! pieces, the same text and calls come out.
//!
//! Known ways of calling, `{…}` being `{"name": …, "arguments" or "parameters": {…}}`:
//!
//! | model family | text |
//! |---|---|
//! | Hermes, Qwen, SmolLM3, and what [`super::describe`] asks for | `<tool_call>{…}</tool_call>` |
//! | Qwen3-Coder | `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>` |
//! | Mistral | `[TOOL_CALLS][{…}, …]`, or `[TOOL_CALLS]name[ARGS]{arguments}` |
//! | Llama 3.1 and later | `<|python_tag|>{…}; {…}` |
//! | Llama 3.2, forced calls | `{…}` or `[{…}, …]` as the whole answer, if the name is a tool's |

use std::sync::Arc;

use serde_json::{Map, Value};

use super::xml;
use crate::openai::tools::Tool;

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    /// Text.
    Text(String),
    /// A call; the arguments are JSON text.
    Call {
        /// The function.
        name: String,
        /// Its arguments.
        arguments: String,
    },
}

const HERMES: &str = "<tool_call>";
const HERMES_END: &str = "</tool_call>";
const MISTRAL: &str = "[TOOL_CALLS]";
const MISTRAL_ARGUMENTS: &str = "[ARGS]";
const PYTHON: &str = "<|python_tag|>";
const OPENERS: [&str; 3] = [HERMES, MISTRAL, PYTHON];

/// Texts of control tokens that mean something here, though control tokens have no text.
pub(crate) const CONTROL_TOKENS: [&str; 5] =
    [HERMES, HERMES_END, MISTRAL, MISTRAL_ARGUMENTS, PYTHON];

/// Reads an answer piece by piece.
#[derive(Debug)]
pub(crate) struct ToolStream {
    /// Functions that there are; empty when calls are not looked for.
    tools: Arc<[Tool]>,
    /// What the buffer's text is part of.
    state: State,
    /// Text that may yet become a call.
    buffer: String,
    /// A call was found, or text was let through.
    begun: bool,
    /// The text follows a call directly: its leading white space goes.
    after_call: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Text in which a call may begin.
    Text,
    /// After `<tool_call>`.
    Hermes,
    /// After an opener whose calls last until the end of the answer.
    Rest(&'static str),
    /// An answer that began like a bare call.
    Bare,
}

impl ToolStream {
    /// Lets all text through.
    pub(crate) fn text() -> ToolStream {
        ToolStream::auto(Vec::new().into())
    }

    /// Looks for calls of these functions.
    pub(crate) fn auto(tools: Arc<[Tool]>) -> ToolStream {
        ToolStream {
            tools,
            state: State::Text,
            buffer: String::new(),
            begun: false,
            after_call: false,
        }
    }

    /// Whether calls are looked for.
    pub(crate) fn looks_for_calls(&self) -> bool {
        !self.tools.is_empty()
    }

    /// Takes the next text and returns what it settles.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        if !self.looks_for_calls() {
            return if text.is_empty() {
                Vec::new()
            } else {
                vec![Piece::Text(text.to_string())]
            };
        }
        self.buffer.push_str(text);
        let mut out = Vec::new();
        while self.step(&mut out) {}
        out
    }

    /// The answer has ended: what was held back is a call or text after all.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        let mut out = Vec::new();
        let rest = std::mem::take(&mut self.buffer);
        match self.state {
            State::Text => self.let_through(&rest, &mut out),
            State::Hermes => self.close(&rest, HERMES, "", &mut out),
            State::Rest(opener) => self.close(&rest, opener, "", &mut out),
            State::Bare => {
                match calls(&rest).filter(|calls| calls.iter().all(|call| self.knows(call))) {
                    Some(calls) => out.extend(calls),
                    None => out.push(Piece::Text(rest)),
                }
            }
        }
        out
    }

    /// Settles one thing; false when more text is needed.
    fn step(&mut self, out: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Text => self.step_text(out),
            State::Hermes => {
                let Some(end) = self.buffer.find(HERMES_END) else {
                    return false;
                };
                let inside = self.buffer[..end].to_string();
                self.buffer.drain(..end + HERMES_END.len());
                self.state = State::Text;
                self.close(&inside, HERMES, HERMES_END, out);
                true
            }
            State::Rest(_) => false,
            State::Bare => {
                let bare = may_be_bare_call(&self.buffer);
                if !bare {
                    self.state = State::Text;
                    self.begun = true;
                }
                !bare
            }
        }
    }

    fn step_text(&mut self, out: &mut Vec<Piece>) -> bool {
        if !self.begun {
            match self.buffer.trim_start().chars().next() {
                None => return false,
                // `[` may also open `[TOOL_CALLS]`.
                Some('{' | '[') if may_be_bare_call(&self.buffer) => {
                    self.state = State::Bare;
                    return true;
                }
                Some(_) => {}
            }
        }
        let opener = OPENERS
            .iter()
            .filter_map(|opener| self.buffer.find(opener).map(|at| (at, *opener)))
            .min_by_key(|(at, _)| *at);
        if let Some((at, opener)) = opener {
            let before = self.buffer[..at].to_string();
            self.buffer.drain(..at + opener.len());
            self.let_through(before.trim_end(), out);
            self.state = if opener == HERMES {
                State::Hermes
            } else {
                State::Rest(opener)
            };
            return true;
        }
        let held = held_back(&self.buffer);
        let free: String = self.buffer.drain(..self.buffer.len() - held).collect();
        self.let_through(&free, out);
        false
    }

    /// Text that is no part of a call.
    fn let_through(&mut self, text: &str, out: &mut Vec<Piece>) {
        let text = if self.after_call {
            text.trim_start()
        } else {
            text
        };
        if text.is_empty() {
            return;
        }
        self.begun = true;
        self.after_call = false;
        out.push(Piece::Text(text.to_string()));
    }

    /// The text between an opener and its end, or the answer's: calls, or text after all.
    fn close(&mut self, inside: &str, opener: &str, end: &str, out: &mut Vec<Piece>) {
        self.begun = true;
        let found = match opener {
            MISTRAL => named_calls(inside).or_else(|| calls(inside)),
            HERMES => calls(inside).or_else(|| xml::calls(inside, &self.tools)),
            _ => calls(inside),
        };
        match found {
            Some(calls) => {
                self.after_call = true;
                out.extend(calls);
            }
            None => {
                self.after_call = false;
                out.push(Piece::Text(format!("{opener}{inside}{end}")));
            }
        }
    }

    fn knows(&self, piece: &Piece) -> bool {
        matches!(piece, Piece::Call { name, .. } if self.tools.iter().any(|tool| tool.name == *name))
    }
}

/// Bytes at the end of the text that may yet become an opener, or the white space before one.
fn held_back(text: &str) -> usize {
    let opener = OPENERS
        .iter()
        .flat_map(|opener| (1..opener.len()).map(move |len| &opener[..len]))
        .filter(|start| text.ends_with(start))
        .map(str::len)
        .max()
        .unwrap_or(0);
    text.len() - text[..text.len() - opener].trim_end().len()
}

/// Whether the answer, as far as it goes, may be a bare call: an object, or a list of them, whose
/// first key is one that calls have.
fn may_be_bare_call(text: &str) -> bool {
    let mut rest = text.trim_start();
    if let Some(list) = rest.strip_prefix('[') {
        rest = list.trim_start();
    }
    let Some(object) = rest.strip_prefix('{') else {
        return rest.is_empty();
    };
    let Some(key) = object.trim_start().strip_prefix('"') else {
        return object.trim_start().is_empty();
    };
    [
        "name\"",
        "arguments\"",
        "parameters\"",
        "type\"",
        "function\"",
        "id\"",
    ]
    .iter()
    .any(|known| key.starts_with(known) || known.starts_with(key))
}

/// The calls that a text consists of: JSON objects or lists of them, divided by white space or
/// semicolons. `None` when it is anything else.
fn calls(text: &str) -> Option<Vec<Piece>> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        match values.next()?.ok()? {
            Value::Array(items) => {
                for item in items {
                    found.push(call(item)?);
                }
            }
            other => found.push(call(other)?),
        }
        rest = rest[values.byte_offset()..]
            .trim_start_matches([';', ','])
            .trim();
    }
    (!found.is_empty()).then_some(found)
}

/// Mistral's newer form: `name[ARGS]{…}`, several in a row, with or without `[TOOL_CALLS]` between.
fn named_calls(text: &str) -> Option<Vec<Piece>> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        rest = rest.strip_prefix(MISTRAL).unwrap_or(rest).trim_start();
        let open = rest.find('{')?;
        let name = rest[..open].trim_end();
        let name = name.strip_suffix(MISTRAL_ARGUMENTS).unwrap_or(name).trim();
        if name.is_empty() || name.contains(['[', ']', '"']) {
            return None;
        }
        let mut values =
            serde_json::Deserializer::from_str(&rest[open..]).into_iter::<Map<String, Value>>();
        let arguments = Value::Object(values.next()?.ok()?).to_string();
        found.push(Piece::Call {
            name: name.to_string(),
            arguments,
        });
        rest = rest[open + values.byte_offset()..].trim();
    }
    (!found.is_empty()).then_some(found)
}

/// `{"name": …, "arguments" | "parameters": …}`, or the same below `"function"`.
fn call(value: Value) -> Option<Piece> {
    let Value::Object(mut map) = value else {
        return None;
    };
    if let Some(function @ Value::Object(_)) = map.remove("function") {
        return call(function);
    }
    let Some(Value::String(name)) = map.remove("name") else {
        return None;
    };
    let arguments = match map.remove("arguments").or_else(|| map.remove("parameters")) {
        None | Some(Value::Null) => "{}".to_string(),
        Some(arguments @ Value::Object(_)) => arguments.to_string(),
        // Some models write the arguments as JSON text, as the API has them.
        Some(Value::String(text)) => {
            serde_json::from_str::<Map<String, Value>>(&text).ok()?;
            text
        }
        Some(_) => return None,
    };
    Some(Piece::Call { name, arguments })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn tools(names: &[&str]) -> Arc<[Tool]> {
        let parameters = json!({"type": "object", "properties": {"n": {"type": "integer"}}});
        let tool = |name: &&str| Tool {
            name: name.to_string(),
            parameters: parameters.clone(),
            json: Value::Null,
        };
        names.iter().map(tool).collect()
    }

    fn read(pieces: &[&str]) -> Vec<Piece> {
        let mut stream = ToolStream::auto(tools(&["f", "g"]));
        let mut out: Vec<Piece> = pieces.iter().flat_map(|piece| stream.push(piece)).collect();
        out.extend(stream.finish());
        joined(out)
    }

    /// Neighbouring texts as one.
    fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
        let mut out: Vec<Piece> = Vec::new();
        for piece in pieces {
            match (out.last_mut(), piece) {
                (Some(Piece::Text(before)), Piece::Text(text)) => before.push_str(&text),
                (_, piece) => out.push(piece),
            }
        }
        out
    }

    fn f(arguments: &str) -> Piece {
        Piece::Call {
            name: "f".into(),
            arguments: arguments.into(),
        }
    }

    fn g(arguments: &str) -> Piece {
        Piece::Call {
            name: "g".into(),
            arguments: arguments.into(),
        }
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.into())
    }

    const CALL: &str = r#"{"name": "f", "arguments": {"a": [1, "}"]}}"#;
    const ARGUMENTS: &str = r#"{"a":[1,"}"]}"#;

    fn answers() -> Vec<(String, Vec<Piece>)> {
        vec![
            (String::new(), vec![]),
            ("Hello, world.".into(), vec![text("Hello, world.")]),
            ("  a < b and [x] \n".into(), vec![text("  a < b and [x] \n")]),
            (format!("<tool_call>\n{CALL}\n</tool_call>"), vec![f(ARGUMENTS)]),
            (
                format!("Let me see.\n\n<tool_call>{CALL}</tool_call>\n<tool_call>{{\"name\":\"g\"}}</tool_call>\n"),
                vec![text("Let me see."), f(ARGUMENTS), g("{}")],
            ),
            (format!("<tool_call>{CALL}</tool_call> done "), vec![f(ARGUMENTS), text("done ")]),
            (format!("<tool_call>{CALL}"), vec![f(ARGUMENTS)]),
            (
                "Now.\n<tool_call>\n<function=f>\n<parameter=n>\n1\n</parameter>\n</function>\n</tool_call>".into(),
                vec![text("Now."), f("{\"n\":1}")],
            ),
            (
                "<tool_call><function=f></function></tool_call>\n<tool_call><function=g></function></tool_call>".into(),
                vec![f("{}"), g("{}")],
            ),
            ("<tool_call><function=f>".into(), vec![text("<tool_call><function=f>")]),
            ("<tool_call>oh no</tool_call> x".into(), vec![text("<tool_call>oh no</tool_call> x")]),
            ("<tool_call>{\"name\": \"f\"".into(), vec![text("<tool_call>{\"name\": \"f\"")]),
            (format!("[TOOL_CALLS][{CALL}]"), vec![f(ARGUMENTS)]),
            (format!("[TOOL_CALLS] [{CALL}, {CALL}]"), vec![f(ARGUMENTS), f(ARGUMENTS)]),
            ("[TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]g{}".into(), vec![f("{\"a\":1}"), g("{}")]),
            (
                "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\", \"parameters\": {}}".into(),
                vec![f("{}"), g("{}")],
            ),
            ("<|python_tag|>print(1)".into(), vec![text("<|python_tag|>print(1)")]),
            ("\n{\"name\": \"f\", \"parameters\": {\"x\": 1}}".into(), vec![f("{\"x\":1}")]),
            (format!("[{CALL}]"), vec![f(ARGUMENTS)]),
            ("{\"type\": \"function\", \"function\": {\"name\": \"g\"}}".into(), vec![g("{}")]),
            ("{\"name\": \"f\", \"arguments\": \"{\\\"a\\\":1}\"}".into(), vec![f("{\"a\":1}")]),
            // A name that is no tool's, and JSON that is no call.
            ("{\"name\": \"Ann\", \"age\": 3}".into(), vec![text("{\"name\": \"Ann\", \"age\": 3}")]),
            ("{\"answer\": 42}".into(), vec![text("{\"answer\": 42}")]),
            ("[1, 2, 3]".into(), vec![text("[1, 2, 3]")]),
            ("{".into(), vec![text("{")]),
        ]
    }

    #[test]
    fn calls_are_found_and_all_else_is_text() {
        for (answer, pieces) in answers() {
            assert_eq!(read(&[&answer]), pieces, "{answer}");
        }
    }

    #[test]
    fn text_is_not_held_back_longer_than_needed() {
        let mut stream = ToolStream::auto(tools(&["f"]));
        assert_eq!(stream.push("Hello"), [text("Hello")]);
        assert_eq!(stream.push(" <"), []);
        assert_eq!(stream.push("b> "), [text(" <b>")]);
        let mut stream = ToolStream::auto(tools(&["f"]));
        assert_eq!(stream.push("{\"n"), []);
        assert_eq!(stream.push("o"), [text("{\"no")]);
    }

    #[test]
    fn without_tools_everything_is_text_at_once() {
        let mut stream = ToolStream::text();
        assert_eq!(stream.push("<tool_call> "), [text("<tool_call> ")]);
        assert_eq!(stream.finish(), []);
    }

    proptest! {
        #[test]
        fn cutting_the_text_changes_nothing(which in 0..25usize, cuts in prop::collection::vec(0..80usize, 0..8)) {
            let (answer, pieces) = &answers()[which];
            prop_assert_eq!(&read_cut(answer, cuts), pieces);
        }

        #[test]
        fn cutting_any_text_changes_nothing(
            parts in prop::collection::vec(prop::sample::select(vec![
                "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "{\"name\": \"f\"", ", ",
                "\"arguments\": {}", "<function=f>", "</function>", "<parameter=n>", "</parameter>", "}", "[", "]", " ", "\n", "<", "ä", "word", "{", "f",
            ]), 0..12),
            cuts in prop::collection::vec(0..120usize, 0..8),
        ) {
            let answer = parts.concat();
            prop_assert_eq!(read_cut(&answer, cuts), read(&[&answer]));
        }
    }

    fn read_cut(answer: &str, mut cuts: Vec<usize>) -> Vec<Piece> {
        cuts.retain(|&at| at < answer.len() && answer.is_char_boundary(at));
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for at in cuts {
            pieces.push(&answer[from..at]);
            from = at;
        }
        pieces.push(&answer[from..]);
        read(&pieces)
    }
}
