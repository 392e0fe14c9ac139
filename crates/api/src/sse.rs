//! Server-sent events: one JSON text an event, `[DONE]` at the end, comments while nothing comes.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};

/// Proxies close connections that are silent for longer.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What OpenAI ends a stream with.
pub(crate) const DONE: &str = "[DONE]";

/// Sends each text as an event. When the client goes away, the stream is dropped.
pub(crate) fn respond(texts: impl Stream<Item = String> + Send + 'static) -> Response {
    let events = texts.map(|text| Ok::<_, Infallible>(Event::default().data(text)));
    let mut response = Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response();
    // nginx would otherwise collect the stream before passing it on.
    response.headers_mut().insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    response
}

/// An event's JSON.
pub(crate) fn text(value: &impl serde::Serialize) -> String {
    // Strings, numbers and lists of them: nothing that JSON cannot hold.
    serde_json::to_string(value).unwrap_or_default()
}
