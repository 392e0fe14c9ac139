//! The fields that chat and text completions share: sampling, stopping, streaming.

use sedge_engine::{Request, Sampling};
use serde_json::Value;

use super::fields::{Fields, numbered, wrong};
use super::urgency::Urgency;
use crate::error::ApiError;

/// Most answers to one request.
pub(crate) const MAX_CHOICES: usize = 128;
/// Most alternatives reported with a token.
pub(crate) const MAX_LOGPROBS: usize = 20;
/// Between the seeds of a request's answers, so that requests with neighbouring seeds share none:
/// 2⁶⁴ divided by the golden ratio.
const SEED_DISTANCE: u64 = 0x9E37_79B9_7F4A_7C15;
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;
const MAX_BIASES: usize = 1024;

/// How answers are made and sent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Options {
    /// How tokens are chosen.
    pub(crate) sampling: Sampling,
    /// Texts that end an answer.
    pub(crate) stop: Vec<String>,
    /// Tokens that end an answer.
    pub(crate) stop_tokens: Vec<u32>,
    /// Go on past the model's end tokens.
    pub(crate) ignore_eos: bool,
    /// How soon the answer is wanted.
    pub(crate) urgency: Urgency,
    /// Answers to each prompt.
    pub(crate) n: usize,
    /// Send the answer as it comes.
    pub(crate) stream: bool,
    /// End a stream with the tokens counted.
    pub(crate) include_usage: bool,
}

impl Options {
    /// Takes the shared fields; `defaults` hold where the request says nothing.
    pub(crate) fn take(fields: &mut Fields, defaults: &Sampling) -> Result<Options, ApiError> {
        let stream = fields.flag("stream")?;
        let (stop, stop_tokens) = (stops(fields)?, stop_tokens(fields)?);
        Ok(Options {
            sampling: sampling(fields, defaults)?,
            stop,
            stop_tokens,
            ignore_eos: fields.flag("ignore_eos")?,
            urgency: Urgency::take(fields)?,
            n: fields.count("n", 1, MAX_CHOICES)?.unwrap_or(1),
            stream,
            include_usage: include_usage(fields, stream)?,
        })
    }

    /// The engine's request for the `choice`-th answer to a prompt: a seeded request repeats all
    /// its answers, and they differ from each other.
    pub(crate) fn request(&self, prompt: Vec<u32>, choice: usize) -> Request {
        let mut sampling = self.sampling.clone();
        let distance = (choice as u64).wrapping_mul(SEED_DISTANCE);
        sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(distance));
        Request {
            prompt,
            sampling,
            stop: self.stop.clone(),
            stop_tokens: self.stop_tokens.clone(),
            ignore_eos: self.ignore_eos,
            priority: self.urgency.priority,
            deadline: self.urgency.deadline,
            ..Request::default()
        }
    }
}

fn sampling(fields: &mut Fields, defaults: &Sampling) -> Result<Sampling, ApiError> {
    Ok(Sampling {
        temperature: fields
            .number("temperature")?
            .unwrap_or(defaults.temperature),
        top_p: fields.number("top_p")?.unwrap_or(defaults.top_p),
        top_k: top_k(fields)?.unwrap_or(defaults.top_k),
        min_p: fields.number("min_p")?.unwrap_or(defaults.min_p),
        presence_penalty: fields
            .number("presence_penalty")?
            .unwrap_or(defaults.presence_penalty),
        frequency_penalty: fields
            .number("frequency_penalty")?
            .unwrap_or(defaults.frequency_penalty),
        repetition_penalty: fields
            .number("repetition_penalty")?
            .unwrap_or(defaults.repetition_penalty),
        logit_bias: logit_bias(fields)?.unwrap_or_else(|| defaults.logit_bias.clone()),
        seed: seed(fields)?.or(defaults.seed),
    })
}

/// `top_k`, where -1 keeps all, as other servers have it.
fn top_k(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    match fields.take("top_k") {
        None => Ok(None),
        Some(value) if value.as_i64() == Some(-1) => Ok(Some(0)),
        Some(value) => match value.as_u64().and_then(|k| usize::try_from(k).ok()) {
            Some(k) => Ok(Some(k)),
            None => Err(wrong("top_k", "an integer that is not negative", &value)),
        },
    }
}

/// Any 64-bit integer.
fn seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    match fields.take("seed") {
        None => Ok(None),
        Some(value) => match value
            .as_u64()
            .or_else(|| value.as_i64().map(i64::cast_unsigned))
        {
            Some(seed) => Ok(Some(seed)),
            None => Err(wrong("seed", "an integer", &value)),
        },
    }
}

/// `{"token id": bias}`.
fn logit_bias(fields: &mut Fields) -> Result<Option<Vec<(u32, f32)>>, ApiError> {
    let map = match fields.take("logit_bias") {
        None => return Ok(None),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong("logit_bias", "an object", &other)),
    };
    if map.len() > MAX_BIASES {
        return Err(ApiError::invalid(
            "logit_bias",
            format!("'logit_bias' has more than {MAX_BIASES} tokens."),
        ));
    }
    let bias = |(token, value): (String, Value)| {
        let path = format!("logit_bias.{token}");
        let Ok(id) = token.parse::<u32>() else {
            return Err(ApiError::invalid(
                &path,
                format!("'{token}' in 'logit_bias' is not a token id."),
            ));
        };
        match value
            .as_f64()
            .filter(|bias| (-100.0..=100.0).contains(bias))
        {
            Some(bias) => Ok((id, bias as f32)),
            None => Err(ApiError::invalid(
                &path,
                format!("'{path}' is {value}; it must be -100 to 100."),
            )),
        }
    };
    map.into_iter()
        .map(bias)
        .collect::<Result<Vec<_>, _>>()
        .map(Some)
}

/// One text or a list of them.
fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let items = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => numbered("stop", items),
        Some(one) => vec![("stop".to_string(), one)],
    };
    if items.len() > MAX_STOPS {
        return Err(ApiError::invalid(
            "stop",
            format!("'stop' has more than {MAX_STOPS} texts."),
        ));
    }
    let stop = |(path, value): (String, Value)| match value {
        Value::String(text) if text.is_empty() => {
            Err(ApiError::invalid(&path, format!("'{path}' is empty.")))
        }
        Value::String(text) if text.len() > MAX_STOP_BYTES => Err(ApiError::invalid(
            &path,
            format!("'{path}' has more than {MAX_STOP_BYTES} bytes."),
        )),
        Value::String(text) => Ok(text),
        other => Err(wrong(&path, "a string", &other)),
    };
    items.into_iter().map(stop).collect()
}

fn stop_tokens(fields: &mut Fields) -> Result<Vec<u32>, ApiError> {
    let Some(items) = fields.list("stop_token_ids")? else {
        return Ok(Vec::new());
    };
    if items.len() > MAX_STOPS {
        return Err(ApiError::invalid(
            "stop_token_ids",
            format!("'stop_token_ids' has more than {MAX_STOPS} ids."),
        ));
    }
    items
        .into_iter()
        .map(|(path, value)| token_id(&path, &value))
        .collect()
}

/// A token id.
pub(crate) fn token_id(path: &str, value: &Value) -> Result<u32, ApiError> {
    match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok(id),
        None => Err(wrong(path, "a token id", value)),
    }
}

/// `stream_options.include_usage`, which only a stream may have.
fn include_usage(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(mut options) = fields.object("stream_options")? else {
        return Ok(false);
    };
    if !stream {
        return Err(ApiError::invalid(
            "stream_options",
            "'stream_options' is only allowed when 'stream' is true.",
        ));
    }
    let usage = options.flag("include_usage")?;
    options.ignore(&["include_obfuscation"]);
    options.end()?;
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn take(value: Value) -> Result<Options, ApiError> {
        let mut fields = Fields::open("", value)?;
        let options = Options::take(&mut fields, &Sampling::default())?;
        fields.end()?;
        Ok(options)
    }

    #[test]
    fn the_models_defaults_hold_where_the_request_says_nothing() {
        let defaults = Sampling {
            temperature: 0.3,
            top_k: 20,
            ..Sampling::default()
        };
        let mut fields = Fields::open("", json!({"top_k": -1, "min_p": 0.1})).unwrap();
        let options = Options::take(&mut fields, &defaults).unwrap();
        assert_eq!(
            options.sampling,
            Sampling {
                temperature: 0.3,
                top_k: 0,
                min_p: 0.1,
                ..Sampling::default()
            }
        );
    }

    #[test]
    fn each_choice_of_a_seeded_request_has_a_seed_of_its_own() {
        let options = take(json!({"seed": -1, "n": 2})).unwrap();
        assert_eq!(options.request(vec![1], 0).sampling.seed, Some(u64::MAX));
        assert_eq!(
            options.request(vec![1], 1).sampling.seed,
            Some(SEED_DISTANCE - 1)
        );
    }

    #[test]
    fn stop_is_a_text_or_a_list() {
        assert_eq!(take(json!({"stop": "a"})).unwrap().stop, ["a"]);
        assert_eq!(take(json!({"stop": ["a", "b"]})).unwrap().stop, ["a", "b"]);
        assert_eq!(
            take(json!({"stop": ["a", 1]})).unwrap_err().json()["error"]["param"],
            "stop[1]"
        );
        assert!(take(json!({"stop": [""]})).is_err());
        assert!(take(json!({"stop": vec!["a"; 17]})).is_err());
    }

    #[test]
    fn biases_name_tokens_by_number() {
        assert_eq!(
            take(json!({"logit_bias": {"7": -100}}))
                .unwrap()
                .sampling
                .logit_bias,
            [(7, -100.0)]
        );
        let error = take(json!({"logit_bias": {"seven": 1}})).unwrap_err();
        assert_eq!(error.json()["error"]["param"], "logit_bias.seven");
        assert!(take(json!({"logit_bias": {"7": 101}})).is_err());
    }

    #[test]
    fn stream_options_need_a_stream() {
        assert!(
            take(json!({"stream": true, "stream_options": {"include_usage": true}}))
                .unwrap()
                .include_usage
        );
        assert!(take(json!({"stream_options": {"include_usage": true}})).is_err());
    }
}
