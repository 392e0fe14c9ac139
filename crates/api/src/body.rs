//! Reads a request's body: JSON or a picture of a limited size that arrives in time.

use std::time::Duration;

use axum::body::{BodyDataStream, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use futures_util::StreamExt;
use tokio::sync::SemaphorePermit;

use crate::app::App;
use crate::error::ApiError;
use crate::openai::fields::Fields;

/// The whole body must have arrived by then.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the rest of a body that is too large is read and forgotten.
const FORGET: Duration = Duration::from_secs(2);

/// A body that has arrived.
pub(crate) struct Arrived<'a> {
    pub(crate) bytes: Vec<u8>,
    /// All bodies that are held share a budget of bytes, so that many large ones at once are
    /// refused instead of filling the memory.
    pub(crate) share: SemaphorePermit<'a>,
}

impl Arrived<'_> {
    /// As JSON.
    pub(crate) fn json(&self) -> Result<serde_json::Value, ApiError> {
        serde_json::from_slice(&self.bytes).map_err(|error| ApiError::Json(error.to_string()))
    }
}

/// The request's JSON object.
pub(crate) async fn json(app: &App, request: Request) -> Result<Fields, ApiError> {
    if !is_json(request.headers()) {
        return Err(ApiError::MediaType);
    }
    Fields::open("", bytes(app, request).await?.json()?)
}

/// The request's body, whatever it is.
pub(crate) async fn bytes(app: &App, request: Request) -> Result<Arrived<'_>, ApiError> {
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
    let body = read.map_err(|_| ApiError::BodyTimeout(BODY_TIMEOUT.as_secs()))?;
    if matches!(body, Err(ApiError::BodyTooLarge(_))) && !asks_first {
        // Closing a connection on which bytes still come would take the answer with it.
        let forget = async { while let Some(Ok(_)) = chunks.next().await {} };
        let _ = tokio::time::timeout(FORGET, forget).await;
    }
    body
}

/// The same as [`json`] of a request that needs no body: without one, an object without fields.
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

async fn read<'a>(app: &'a App, chunks: &mut BodyDataStream) -> Result<Arrived<'a>, ApiError> {
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
    Ok(Arrived { bytes, share })
}

/// JSON, by its media type. Other types are refused rather than guessed: a web page of another
/// origin can send them without the browser asking this server first.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let media = media(headers);
    media == "application/json" || (media.starts_with("application/") && media.ends_with("+json"))
}

/// A picture of a kind that is read, by its media type. Browsers ask before they send one to
/// another origin.
pub(crate) fn is_picture(headers: &HeaderMap) -> bool {
    ["image/jpeg", "image/png", "image/webp"].contains(&media(headers).as_str())
}

/// The media type without its parameters; empty when there is none.
fn media(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE);
    let value = value.and_then(|value| value.to_str().ok());
    let media = value.and_then(|value| value.split(';').next());
    media.unwrap_or_default().trim().to_ascii_lowercase()
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
        assert!(is_picture(&with("image/PNG; x=y")));
        for value in ["image/gif", "image/svg+xml", "application/json"] {
            assert!(!is_picture(&with(value)), "{value}");
        }
    }
}
