//! A request to `/v1/embeddings`.

use super::completions::{Prompt, prompts};
use super::fields::Fields;
use super::urgency::Urgency;
use crate::error::ApiError;

/// Most inputs of a request.
const MAX_INPUTS: usize = 2048;

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// A list of numbers.
    Float,
    /// Base64 of little-endian f32, which the `openai` package asks for by default.
    Base64,
}

/// A request for vectors.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EmbeddingRequest {
    /// What to embed; at least one.
    pub(crate) inputs: Vec<Prompt>,
    /// How vectors are written.
    pub(crate) encoding: Encoding,
    /// How soon they are wanted.
    pub(crate) urgency: Urgency,
    /// Keep this many values.
    pub(crate) dimensions: Option<usize>,
}

impl EmbeddingRequest {
    /// Reads the fields other than `model`.
    pub(crate) fn read(mut fields: Fields) -> Result<EmbeddingRequest, ApiError> {
        fields.ignore(&["user"]);
        let inputs = prompts(&mut fields, "input")?;
        if inputs.len() > MAX_INPUTS {
            return Err(ApiError::invalid(
                "input",
                format!("'input' has more than {MAX_INPUTS} texts."),
            ));
        }
        let encoding = match fields.string("encoding_format")?.as_deref() {
            None | Some("float") => Encoding::Float,
            Some("base64") => Encoding::Base64,
            Some(other) => {
                let message =
                    format!("'{other}' is not an encoding format; there are float and base64.");
                return Err(ApiError::invalid("encoding_format", message));
            }
        };
        let dimensions = fields.count("dimensions", 1, usize::MAX)?;
        let urgency = Urgency::take(&mut fields)?;
        fields.end()?;
        Ok(EmbeddingRequest {
            urgency,
            inputs,
            encoding,
            dimensions,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(value: Value) -> Result<EmbeddingRequest, ApiError> {
        EmbeddingRequest::read(Fields::open("", value)?)
    }

    #[test]
    fn every_field_is_read() {
        let request = read(
            json!({"input": ["a"], "encoding_format": "base64", "dimensions": 3, "user": "u"}),
        )
        .unwrap();
        let inputs = vec![Prompt::Text("a".into())];
        assert_eq!(
            request,
            EmbeddingRequest {
                urgency: Urgency::default(),
                inputs,
                encoding: Encoding::Base64,
                dimensions: Some(3)
            }
        );
    }

    #[test]
    fn mistakes_are_named_by_their_path() {
        let cases = [
            (json!({}), "input"),
            (json!({"input": vec!["a"; 2049]}), "input"),
            (
                json!({"input": "a", "encoding_format": "int8"}),
                "encoding_format",
            ),
            (json!({"input": "a", "dimensions": 0}), "dimensions"),
        ];
        for (request, param) in cases {
            assert_eq!(read(request).unwrap_err().json()["error"]["param"], param);
        }
    }
}
