//! Reads a request's body: JSON of a limited size that arrives in time.

use std::time::Duration;

use axum::body::{BodyDataStream, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use futures_util::StreamExt;

use crate::app::App;
use crate::error::ApiError;
use crate::openai::fields::Fields;

/// The whole body must have arrived by then.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the rest of a body that is too large is read and forgotten.
const FORGET: Duration = Duration::from_secs(2);

/// The request's JSON object.
///
/// All bodies being read share a budget of bytes, so that many large ones at once are refused
/// instead of filling the memory.
pub(crate) async fn json(app: &App, request: Request) -> Result<Fields, ApiError> {
    if !is_json(request.headers()) {
        return Err(ApiError::MediaType);
    }
    // Such a client sends nothing before its body is asked for.
    let asks_first = request.headers().contains_key(header::EXPECT);
    let body = request.into_body();
    let too_large = body.size_hint().lower() > app.config.max_body as u64;
    let mut chunks = body.into_data_stream();
    let read = async {
        match too_large {
            true => Err(ApiError::BodyTooLarge(app.config.max_body)),
            false => read(app, &mut chunks).await,
        }
    };
    let read = tokio::time::timeout(BODY_TIMEOUT, read).await;
    let value = read.map_err(|_| ApiError::BodyTimeout(BODY_TIMEOUT.as_secs()))?;
    if matches!(value, Err(ApiError::BodyTooLarge(_))) && !asks_first {
        // Closing a connection on which bytes still come would take the answer with it.
        let forget = async { while let Some(Ok(_)) = chunks.next().await {} };
        let _ = tokio::time::timeout(FORGET, forget).await;
    }
    Fields::open("", value?)
}

/// The same of a request that needs no body: without one, an object without fields.
pub(crate) async fn json_or_nothing(app: &App, request: Request) -> Result<Fields, ApiError> {
    if request.body().size_hint().exact() != Some(0) {
        return json(app, request).await;
    }
    // Also a request without a body must be one that a foreign web page cannot send unasked.
    match is_json(request.headers()) {
        true => Fields::open("", serde_json::json!({})),
        false => Err(ApiError::MediaType),
    }
}

async fn read(app: &App, chunks: &mut BodyDataStream) -> Result<serde_json::Value, ApiError> {
    let most = app.config.max_body;
    let mut bytes = Vec::new();
    // Nothing is waited for while a share is held, so that readers cannot block each other.
    let mut share = app
        .body_bytes
        .try_acquire_many(0)
        .map_err(|_| ApiError::Draining)?;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| ApiError::BodyBroken(error.to_string()))?;
        if chunk.len() > most - bytes.len() {
            return Err(ApiError::BodyTooLarge(most));
        }
        let wanted = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        let more = app
            .body_bytes
            .try_acquire_many(wanted)
            .map_err(|_| ApiError::Busy {
                message: "Too many large requests at once; try again in 1 s.".into(),
                seconds: 1,
            })?;
        share.merge(more);
        bytes.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&bytes).map_err(|error| ApiError::Json(error.to_string()))
}

/// JSON, by its media type. Other types are refused rather than guessed: a web page of another
/// origin can send them without the browser asking this server first.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
    else {
        return false;
    };
    let media = value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    media == "application/json" || (media.starts_with("application/") && media.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_json_is_json() {
        let with = |value: &'static str| {
            HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(value))])
        };
        for value in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/problem+json",
        ] {
            assert!(is_json(&with(value)), "{value}");
        }
        for value in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; application/json",
        ] {
            assert!(!is_json(&with(value)), "{value}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
