//! A request to `/v1/completions`.

use sedge_engine::Sampling;
use serde_json::Value;

use super::constraint::{self, Format};
use super::fields::{Fields, numbered, wrong};
use super::options::{MAX_CHOICES, MAX_LOGPROBS, Options, token_id};
use crate::error::ApiError;

/// Tokens of an answer when the request says nothing, as OpenAI has it.
const DEFAULT_TOKENS: usize = 16;

/// A text or its token ids.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Prompt {
    /// Text.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

/// A request to continue texts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CompletionRequest {
    /// What to continue; at least one.
    pub(crate) prompts: Vec<Prompt>,
    /// Begin the answer with the prompt.
    pub(crate) echo: bool,
    /// Most tokens of an answer.
    pub(crate) max_tokens: usize,
    /// Report log-probabilities with this many alternatives.
    pub(crate) logprobs: Option<usize>,
    /// What the answer must look like.
    pub(crate) format: Option<Format>,
    /// Sampling, stopping, streaming.
    pub(crate) options: Options,
}

impl CompletionRequest {
    /// Reads the fields other than `model`.
    pub(crate) fn read(
        mut fields: Fields,
        defaults: &Sampling,
    ) -> Result<CompletionRequest, ApiError> {
        fields.ignore(&["user", "metadata", "store"]);
        if fields
            .string("suffix")?
            .is_some_and(|suffix| !suffix.is_empty())
        {
            return Err(ApiError::invalid(
                "suffix",
                "'suffix' is not supported: texts are continued, not filled in.",
            ));
        }
        let best_of = fields.count("best_of", 1, MAX_CHOICES)?;
        let request = CompletionRequest {
            prompts: prompts(&mut fields, "prompt")?,
            echo: fields.flag("echo")?,
            max_tokens: fields
                .count("max_tokens", 0, usize::MAX)?
                .unwrap_or(DEFAULT_TOKENS),
            logprobs: fields.count("logprobs", 0, MAX_LOGPROBS)?,
            format: constraint::take(&mut fields)?,
            options: Options::take(&mut fields, defaults)?,
        };
        fields.end()?;
        if best_of.is_some_and(|best_of| best_of != request.options.n) {
            return Err(ApiError::invalid(
                "best_of",
                "'best_of' must equal 'n': all answers are returned.",
            ));
        }
        if request.prompts.len() * request.options.n > MAX_CHOICES {
            let message = format!("The prompts times 'n' come to more than {MAX_CHOICES} answers.");
            return Err(ApiError::invalid("prompt", message));
        }
        Ok(request)
    }
}

/// A text, token ids, or a list of either.
pub(crate) fn prompts(fields: &mut Fields, name: &str) -> Result<Vec<Prompt>, ApiError> {
    let path = fields.path(name);
    let items = match fields.take(name) {
        None => return Err(fields.missing(name)),
        Some(Value::String(text)) => return Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong(&path, "a string or an array", &other)),
    };
    match items.first() {
        None => Err(ApiError::invalid(&path, format!("'{path}' is empty."))),
        Some(Value::Number(_)) => Ok(vec![Prompt::Ids(ids(&path, items)?)]),
        Some(_) => numbered(&path, items)
            .into_iter()
            .map(|(path, item)| prompt(&path, item))
            .collect(),
    }
}

fn prompt(path: &str, value: Value) -> Result<Prompt, ApiError> {
    match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(items) => Ok(Prompt::Ids(ids(path, items)?)),
        other => Err(wrong(path, "a string or an array of token ids", &other)),
    }
}

fn ids(path: &str, items: Vec<Value>) -> Result<Vec<u32>, ApiError> {
    // The path of an element is only spelled out for the one that is wrong.
    let id = |(i, value): (usize, &Value)| {
        token_id("", value).or_else(|_| token_id(&format!("{path}[{i}]"), value))
    };
    items.iter().enumerate().map(id).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<CompletionRequest, ApiError> {
        CompletionRequest::read(Fields::open("", value)?, &Sampling::default())
    }

    #[test]
    fn a_prompt_is_text_or_ids_or_a_list_of_either() {
        let text = |text: &str| Prompt::Text(text.into());
        let cases = [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![Prompt::Ids(vec![1, 2])]),
            (
                json!([[1], [2, 3]]),
                vec![Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])],
            ),
        ];
        for (prompt, expected) in cases {
            assert_eq!(read(json!({"prompt": prompt})).unwrap().prompts, expected);
        }
    }

    #[test]
    fn mistakes_are_named_by_their_path() {
        let cases = [
            (json!({}), "prompt"),
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": [1, "a"]}), "prompt[1]"),
            (json!({"prompt": [[1], [-2]]}), "prompt[1][0]"),
            (json!({"prompt": "a", "suffix": "b"}), "suffix"),
            (json!({"prompt": "a", "best_of": 2}), "best_of"),
            (json!({"prompt": "a", "logprobs": 21}), "logprobs"),
            (json!({"prompt": ["a", "b"], "n": 65}), "prompt"),
        ];
        for (request, param) in cases {
            assert_eq!(read(request).unwrap_err().json()["error"]["param"], param);
        }
    }

    #[test]
    fn an_answer_has_16_tokens_unless_asked_otherwise() {
        assert_eq!(read(json!({"prompt": "a"})).unwrap().max_tokens, 16);
        assert_eq!(
            read(json!({"prompt": "a", "max_tokens": 0, "echo": true}))
                .unwrap()
                .max_tokens,
            0
        );
    }
}
