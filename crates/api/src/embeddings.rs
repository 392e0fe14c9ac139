//! `POST /v1/embeddings`

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::stream::{FuturesUnordered, StreamExt};
use sedge_engine::{Event, Finish, FinishReason, Goal, Output, SubmitError};
use serde::Serialize;

use crate::app::{App, aside};
use crate::asker::Asker;
use crate::body;
use crate::error::{ApiError, Origin};
use crate::openai::embeddings::{EmbeddingRequest, Encoding};
use crate::openai::urgency::Urgency;
use crate::prompt;
use crate::server::ServedModel;
use crate::traces::About;

/// Inputs of one request that wait in the engine at once, so that a large request leaves room.
const AT_ONCE: usize = 32;

/// A vector as it is sent.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Debug, Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Debug, Serialize)]
struct Embeddings<'a> {
    object: &'static str,
    data: Vec<Embedding>,
    model: &'a str,
    usage: EmbeddingUsage,
}

#[derive(Debug, Default, Serialize)]
struct EmbeddingUsage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// The handler.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let asker = Asker::of(&request);
    let mut fields = body::json(&app, request).await?;
    let (model, served) = app.requested_model(&mut fields)?;
    let request = EmbeddingRequest::read(fields)?;
    let tokenizer = served.tokenizer.clone();
    let inputs = request.inputs;
    let prompts = aside(move || {
        Ok(inputs
            .iter()
            .map(|input| prompt::of_input(&tokenizer, input))
            .collect())
    })
    .await?;
    let (vectors, tokens) = embed(&app, (model, &served), prompts, &asker, request.urgency).await?;
    let data = vectors.into_iter().enumerate().map(|(index, vector)| {
        let vector = normalised(vector, request.dimensions)?;
        let embedding = match request.encoding {
            Encoding::Float => Vector::Float(vector),
            Encoding::Base64 => {
                let bytes: Vec<u8> = vector
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect();
                Vector::Base64(BASE64_STANDARD.encode(bytes))
            }
        };
        Ok(Embedding {
            object: "embedding",
            index,
            embedding,
        })
    });
    let data = data.collect::<Result<Vec<_>, ApiError>>()?;
    let usage = EmbeddingUsage {
        prompt_tokens: tokens,
        total_tokens: tokens,
    };
    Ok(axum::Json(Embeddings {
        object: "list",
        data,
        model: &served.name,
        usage,
    })
    .into_response())
}

/// The vectors of all prompts, in order, and how many tokens were read.
async fn embed(
    app: &App,
    (model, served): (usize, &ServedModel),
    prompts: Vec<Vec<u32>>,
    asker: &Asker,
    urgency: Urgency,
) -> Result<(Vec<Vec<f32>>, usize), ApiError> {
    let mut span = app.traces.begin(prompts.len(), || About {
        operation: "embeddings",
        id: None,
        model: served.name.clone(),
        tenant: asker.tenant.clone(),
        priority: asker.priority(urgency.priority),
        parent: asker.parent.clone(),
        max_tokens: None,
        temperature: None,
    });
    let origin = Origin {
        prompt: "input",
        constraint: "",
    };
    let mut vectors = vec![Vec::new(); prompts.len()];
    let mut tokens = 0;
    let mut running = FuturesUnordered::new();
    let mut waiting = prompts.into_iter().enumerate().peekable();
    loop {
        while running.len() < AT_ONCE
            && let Some((index, prompt)) = waiting.peek()
        {
            let mut request = sedge_engine::Request {
                goal: Goal::Embed,
                prompt: prompt.clone(),
                priority: urgency.priority,
                deadline: urgency.deadline,
                ..Default::default()
            };
            asker.sign(&mut request);
            served.sign(&mut request);
            match served.engine.submit(request) {
                Ok(output) => running.push(one(app, model, asker, *index, output)),
                // A place comes free when one of our own ends.
                Err(SubmitError::Busy { .. }) if !running.is_empty() => break,
                Err(error) => {
                    let error = ApiError::submit(error, origin);
                    if let Some(span) = &mut span {
                        span.refused(&error);
                    }
                    return Err(error);
                }
            }
            waiting.next();
        }
        match running.next().await {
            None => return Ok((vectors, tokens)),
            Some(result) => {
                let (index, vector, finish) = result?;
                if let Some(span) = &mut span {
                    span.answered(index, &finish, true);
                }
                tokens += finish.usage.prompt;
                vectors[index] = vector_of(app, vector, finish.reason)?;
            }
        }
    }
}

/// An input's vector, if it was computed.
fn vector_of(app: &App, vector: Vec<f32>, reason: FinishReason) -> Result<Vec<f32>, ApiError> {
    match reason {
        FinishReason::Stop | FinishReason::Length => Ok(vector),
        FinishReason::Deadline => Err(ApiError::Deadline),
        FinishReason::Error(_) if app.draining() => Err(ApiError::Draining),
        FinishReason::Error(why) => Err(ApiError::Internal(why)),
    }
}

/// Waits for one input's vector and its end.
async fn one(
    app: &App,
    model: usize,
    asker: &Asker,
    index: usize,
    mut output: Output,
) -> Result<(usize, Vec<f32>, Finish), ApiError> {
    let mut vector = Vec::new();
    while let Some(event) = output.next().await {
        match event {
            Event::Embedding(values) => vector = values,
            Event::Finished(finish) => {
                app.metrics.finished(model, &asker.tenant, &finish);
                return Ok((index, vector, finish));
            }
            Event::Token(_) | Event::Prompt(_) => {}
        }
    }
    Err(ApiError::Internal("the engine stopped".into()))
}

/// The first `dimensions` values, scaled to length 1.
fn normalised(mut vector: Vec<f32>, dimensions: Option<usize>) -> Result<Vec<f32>, ApiError> {
    if let Some(dimensions) = dimensions {
        if dimensions > vector.len() {
            let message = format!(
                "'dimensions' is {dimensions}; this model's vectors have {}.",
                vector.len()
            );
            return Err(ApiError::invalid("dimensions", message));
        }
        vector.truncate(dimensions);
    }
    let length = vector
        .iter()
        .map(|value| f64::from(*value).powi(2))
        .sum::<f64>()
        .sqrt();
    if !length.is_finite() {
        return Err(ApiError::Internal("the vector is not finite".into()));
    }
    if length > 0.0 {
        vector
            .iter_mut()
            .for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
    Ok(vector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortened_vectors_have_length_1_again() {
        assert_eq!(
            normalised(vec![3.0, 4.0, 12.0], Some(2)),
            Ok(vec![0.6, 0.8])
        );
        assert_eq!(normalised(vec![0.0, 0.0], None), Ok(vec![0.0, 0.0]));
        assert!(normalised(vec![1.0], Some(2)).is_err());
        assert!(normalised(vec![f32::NAN], None).is_err());
    }
}
