//! What went wrong, as OpenAI's clients expect to read it: `{"error": {message, type, param, code}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sedge_engine::{AdapterError, SubmitError};
use sedge_formats::template::TemplateError;
use serde_json::{Value, json};

/// A request that cannot be answered.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("{message}")]
    Invalid { param: String, message: String },
    #[error("Missing required parameter: '{0}'.")]
    Missing(String),
    #[error("Unrecognized request argument supplied: {0}")]
    Unknown(String),
    #[error("The body is not valid JSON: {0}")]
    Json(String),
    #[error("{message}")]
    ContextLength { param: String, message: String },
    #[error("The body must be JSON: send the header 'Content-Type: application/json'.")]
    MediaType,
    #[error(
        "The body must be a picture or JSON: send the header 'Content-Type: image/jpeg', image/png, image/webp or \
         application/json."
    )]
    PictureType,
    #[error("The body has more than {0} bytes, the most that this server takes.")]
    BodyTooLarge(usize),
    #[error("The body did not arrive within {0} s.")]
    BodyTimeout(u64),
    #[error("The body could not be read: {0}")]
    BodyBroken(String),
    #[error("The model '{name}' is not served here. Served: {served}.")]
    ModelNotFound { name: String, served: String },
    #[error("No model here can {0}. Start the server with --vision MODEL.")]
    NoVision(&'static str),
    #[error("There is no adapter '{0}' here. GET /v1/adapters lists those there are.")]
    AdapterNotFound(String),
    #[error("'{0}' is served already: choose another name, or DELETE /v1/adapters/{0} first.")]
    AdapterExists(String),
    #[error("The adapter '{0}' is not merged, so there is nothing to take out of the weights.")]
    AdapterNotMerged(String),
    #[error("{0}")]
    AdapterNotMergeable(String),
    #[error("{0}. Start the server with more --adapter-memory.")]
    AdapterTooLarge(String),
    #[error(
        "This server reads no adapters because a request asks for it. Start it with --adapter-root FOLDER, and \
         give a path below that folder."
    )]
    PathsClosed,
    #[error(
        "'{0}' is not a folder that may be read. It must lie below one that the server was given as \
         --adapter-root, and no link may lead out of there."
    )]
    PathNotAllowed(String),
    #[error(
        "{0} does not exist. See /v1/models, /v1/chat/completions, /v1/completions, /v1/embeddings \
         and /v1/vision/classify, detect or segment."
    )]
    RouteNotFound(String),
    #[error("{0} is not allowed here.")]
    Method(String),
    #[error("This server needs an API key: send the header 'Authorization: Bearer KEY'.")]
    KeyMissing,
    #[error("Incorrect API key provided.")]
    KeyWrong,
    #[error(
        "The Host header {0:?} does not name this server. It listens on loopback and answers only as localhost, \
         127.0.0.1 or [::1], so that web pages cannot reach it through a name of theirs. Allow the origin, set an \
         API key, or listen on another address."
    )]
    Host(String),
    #[error("{message}")]
    Busy { message: String, seconds: u64 },
    #[error("The request's 'timeout' passed before its answer was complete.")]
    Deadline,
    #[error("The server is shutting down.")]
    Draining,
    #[error("The server failed: {0}")]
    Internal(String),
}

/// The fields that an engine's request was made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    /// Where its tokens came from.
    pub(crate) prompt: &'static str,
    /// Where its constraint came from, if it has one.
    pub(crate) constraint: &'static str,
}

impl ApiError {
    /// A field's value is wrong.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError::Invalid {
            param: param.into(),
            message: message.into(),
        }
    }

    /// A prompt that came from `field` does not fit.
    pub(crate) fn too_long(tokens: usize, context: usize, field: &str) -> ApiError {
        ApiError::ContextLength {
            param: field.into(),
            message: format!(
                "This model's context is {context} tokens, one of which the answer needs. Your {field} came to \
                 {tokens} tokens."
            ),
        }
    }

    /// The engine did not take a request.
    pub(crate) fn submit(error: SubmitError, origin: Origin) -> ApiError {
        let message = error.to_string();
        match error {
            SubmitError::TooLong { prompt, context } => {
                ApiError::too_long(prompt, context, origin.prompt)
            }
            SubmitError::Empty | SubmitError::Token { .. } => {
                ApiError::invalid(origin.prompt, message)
            }
            SubmitError::Parameter { name, .. } => ApiError::invalid(name, message),
            SubmitError::Constraint(_) => ApiError::invalid(origin.constraint, message),
            SubmitError::Adapter(name) => ApiError::AdapterNotFound(name.to_string()),
            SubmitError::Member { .. } => ApiError::invalid("model", message),
            SubmitError::Unsupported(_) => ApiError::invalid("model", message),
            SubmitError::Busy { retry_after, .. } => ApiError::Busy {
                message,
                seconds: retry_after.as_secs().max(1),
            },
            SubmitError::Late { wait } => ApiError::Busy {
                message,
                seconds: wait.as_secs().max(1),
            },
            SubmitError::Closed => ApiError::Draining,
        }
    }

    /// The engine did not take an adapter, or not change it.
    pub(crate) fn adapter(error: AdapterError) -> ApiError {
        let message = error.to_string();
        match error {
            AdapterError::Exists(name) => ApiError::AdapterExists(name.to_string()),
            AdapterError::Unknown(name) => ApiError::AdapterNotFound(name.to_string()),
            AdapterError::NotMerged(name) => ApiError::AdapterNotMerged(name.to_string()),
            AdapterError::Merge { .. } => ApiError::AdapterNotMergeable(message),
            AdapterError::TooLarge { .. } => ApiError::AdapterTooLarge(message),
            AdapterError::Load { .. } | AdapterError::TooLong { .. } => {
                ApiError::invalid("path", message)
            }
            AdapterError::Unsupported => ApiError::invalid("model", message),
        }
    }

    /// The chat template could not render the messages.
    pub(crate) fn template(error: &TemplateError) -> ApiError {
        ApiError::invalid("messages", error.to_string())
    }

    /// HTTP status, OpenAI's `type`, and its `code`.
    fn parts(&self) -> (StatusCode, &'static str, Option<&'static str>) {
        const INVALID: &str = "invalid_request_error";
        match self {
            ApiError::Invalid { .. } => (StatusCode::BAD_REQUEST, INVALID, Some("invalid_value")),
            ApiError::Missing(_) => (
                StatusCode::BAD_REQUEST,
                INVALID,
                Some("missing_required_parameter"),
            ),
            ApiError::Unknown(_) => (StatusCode::BAD_REQUEST, INVALID, Some("unknown_parameter")),
            ApiError::Json(_) => (StatusCode::BAD_REQUEST, INVALID, Some("invalid_json")),
            ApiError::BodyBroken(_) => (StatusCode::BAD_REQUEST, INVALID, None),
            ApiError::ContextLength { .. } => (
                StatusCode::BAD_REQUEST,
                INVALID,
                Some("context_length_exceeded"),
            ),
            ApiError::MediaType | ApiError::PictureType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                INVALID,
                Some("unsupported_media_type"),
            ),
            ApiError::BodyTooLarge(_) => (
                StatusCode::PAYLOAD_TOO_LARGE,
                INVALID,
                Some("request_too_large"),
            ),
            ApiError::BodyTimeout(_) => (StatusCode::REQUEST_TIMEOUT, INVALID, Some("timeout")),
            ApiError::ModelNotFound { .. } | ApiError::NoVision(_) => {
                (StatusCode::NOT_FOUND, INVALID, Some("model_not_found"))
            }
            ApiError::AdapterNotFound(_) => {
                (StatusCode::NOT_FOUND, INVALID, Some("adapter_not_found"))
            }
            ApiError::AdapterExists(_) => (StatusCode::CONFLICT, INVALID, Some("adapter_exists")),
            ApiError::AdapterNotMerged(_) => {
                (StatusCode::CONFLICT, INVALID, Some("adapter_not_merged"))
            }
            ApiError::AdapterNotMergeable(_) => (
                StatusCode::BAD_REQUEST,
                INVALID,
                Some("adapter_not_mergeable"),
            ),
            ApiError::AdapterTooLarge(_) => {
                (StatusCode::BAD_REQUEST, INVALID, Some("adapter_too_large"))
            }
            ApiError::PathsClosed | ApiError::PathNotAllowed(_) => {
                (StatusCode::FORBIDDEN, INVALID, Some("path_not_allowed"))
            }
            ApiError::RouteNotFound(_) => (StatusCode::NOT_FOUND, INVALID, Some("unknown_url")),
            ApiError::Method(_) => (
                StatusCode::METHOD_NOT_ALLOWED,
                INVALID,
                Some("method_not_supported"),
            ),
            ApiError::KeyMissing | ApiError::KeyWrong => {
                (StatusCode::UNAUTHORIZED, INVALID, Some("invalid_api_key"))
            }
            ApiError::Host(_) => (StatusCode::FORBIDDEN, INVALID, Some("host_not_allowed")),
            ApiError::Busy { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                Some("queue_full"),
            ),
            ApiError::Deadline => (
                StatusCode::GATEWAY_TIMEOUT,
                "timeout_error",
                Some("deadline_exceeded"),
            ),
            ApiError::Draining => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                Some("shutting_down"),
            ),
            ApiError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "server_error", None),
        }
    }

    /// OpenAI's code of the error.
    pub(crate) fn code(&self) -> Option<&'static str> {
        self.parts().2
    }

    /// The field that is to blame.
    fn param(&self) -> Option<&str> {
        match self {
            ApiError::Invalid { param, .. } | ApiError::ContextLength { param, .. } => Some(param),
            ApiError::Missing(param) | ApiError::Unknown(param) => Some(param),
            ApiError::ModelNotFound { .. } | ApiError::NoVision(_) => Some("model"),
            ApiError::AdapterExists(_) => Some("name"),
            ApiError::AdapterTooLarge(_) | ApiError::PathsClosed | ApiError::PathNotAllowed(_) => {
                Some("path")
            }
            _ => None,
        }
    }

    /// Seconds after which another try may succeed.
    fn retry_after(&self) -> Option<u64> {
        match self {
            ApiError::Busy { seconds, .. } => Some(*seconds),
            ApiError::Draining => Some(5),
            _ => None,
        }
    }

    /// The error's JSON, which a stream that has begun sends as an event.
    pub(crate) fn json(&self) -> Value {
        let (_, kind, code) = self.parts();
        json!({"error": {"message": self.to_string(), "type": kind, "param": self.param(), "code": code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, _, _) = self.parts();
        let mut response = (status, Json(self.json())).into_response();
        if let Some(seconds) = self.retry_after() {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_full_queue_is_429_and_says_when_to_retry() {
        let error = SubmitError::Busy {
            waiting: 3,
            retry_after: Duration::from_millis(200),
        };
        let origin = Origin {
            prompt: "messages",
            constraint: "grammar",
        };
        let response = ApiError::submit(error, origin).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }

    #[test]
    fn a_long_prompt_names_the_field_it_came_from() {
        let error = ApiError::too_long(9, 8, "messages").json();
        assert_eq!(error["error"]["code"], "context_length_exceeded");
        assert_eq!(error["error"]["param"], "messages");
        assert_eq!(error["error"]["type"], "invalid_request_error");
    }
}
