//! Who may ask: API keys, and protection of loopback servers from web pages.

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::app::App;
use crate::error::ApiError;
use crate::server::ApiKey;

/// Lets requests through that carry one of the keys; all when there are none.
pub(crate) async fn require_key(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if !app.config.api_keys.is_empty() {
        bearer(request.headers()).ok_or(ApiError::KeyMissing)?;
        key(&app, request.headers()).ok_or(ApiError::KeyWrong)?;
    }
    Ok(next.run(request).await)
}

/// The key that a request carries, if it is one of the server's.
pub(crate) fn key<'a>(app: &'a App, headers: &HeaderMap) -> Option<&'a ApiKey> {
    let given = bearer(headers)?;
    let keys = app.config.api_keys.iter();
    // No early exit: the time must not tell which key was nearly right.
    keys.fold(None, |found, key| {
        match same(key.secret.as_bytes(), given.as_bytes()) {
            true => Some(key),
            false => found,
        }
    })
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Equality in a time that depends on the lengths only.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differing = a
        .iter()
        .zip(b)
        .fold(0, |differing, (a, b)| black_box(differing | (a ^ b)));
    a.len() == b.len() && differing == 0
}

/// Refuses requests to a loopback server under a foreign name: a page's own name that was pointed
/// at this machine (DNS rebinding) would otherwise make the page and the server one origin. Keys
/// protect by themselves, and configured origins' hosts are fine.
pub(crate) async fn require_host(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let config = &app.config;
    let guarded = config.address.ip().is_loopback() && config.api_keys.is_empty();
    if guarded && let Some(host) = host(&request) {
        let configured = |origin: &String| {
            origin == "*" || origin.split_once("://").is_some_and(|(_, o)| o == host)
        };
        if !is_loopback(host) && !config.cors_origins.iter().any(configured) {
            return Err(ApiError::Host(host.chars().take(200).collect()));
        }
    }
    Ok(next.run(request).await)
}

/// The name under which the server is asked; HTTP/1.0 requests may have none.
fn host(request: &Request) -> Option<&str> {
    match request.headers().get(header::HOST) {
        // A name that is no text is nobody's name.
        Some(value) => Some(value.to_str().unwrap_or("?")),
        None => request
            .uri()
            .authority()
            .map(|authority| authority.as_str()),
    }
}

/// `localhost`, `127.x.y.z` or `[::1]`, with or without a port.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    name.trim_end_matches('.').eq_ignore_ascii_case("localhost")
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn keys_are_equal_only_when_whole() {
        assert!(same(b"secret", b"secret"));
        for other in ["secre", "secret1", "Secret", ""] {
            assert!(!same(b"secret", other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        let with = |value: &'static str| {
            HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))])
        };
        assert_eq!(bearer(&with("Bearer k")), Some("k"));
        assert_eq!(bearer(&with("bearer  k")), Some("k"));
        assert_eq!(bearer(&with("Basic k")), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[test]
    fn only_loopback_names_are_loopback() {
        for host in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:8080",
            "127.8.8.8",
            "[::1]",
            "[::1]:9",
            "localhost.",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example:80",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "",
            "?",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
