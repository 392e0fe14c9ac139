//! Who asks: a key's name, or what a trusted client says of itself.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName};
use axum::middleware::Next;
use axum::response::Response;

use crate::app::App;
use crate::auth;
use crate::error::ApiError;
use crate::traces::Parent;

const TENANT: HeaderName = HeaderName::from_static("x-sedge-tenant");
/// Longest name of a tenant.
const MOST: usize = 64;

/// Who asks, and what it may ask for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asker {
    /// Whose share of the service it gets.
    pub(crate) tenant: Arc<str>,
    /// It may ask to go before others.
    may_hurry: bool,
    /// The caller's span.
    pub(crate) parent: Option<Parent>,
}

impl Asker {
    /// Of a request that has passed [`identify`].
    pub(crate) fn of(request: &Request) -> Asker {
        let known = request.extensions().get::<Asker>();
        known.cloned().unwrap_or_default()
    }

    /// Puts the name on a request; one that may not hurry others does not.
    pub(crate) fn sign(&self, request: &mut sedge_engine::Request) {
        request.tenant = self.tenant.clone();
        request.priority = self.priority(request.priority);
    }

    /// The priority that it gets when it asks for this one.
    pub(crate) fn priority(&self, asked: i32) -> i32 {
        match self.may_hurry {
            true => asked,
            false => asked.max(0),
        }
    }
}

/// Finds out who asks. With keys it is the key's name, and a header counts only from gateways
/// that are trusted; without keys everyone is who they say.
pub(crate) async fn identify(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let config = &app.config;
    let keyed = !config.api_keys.is_empty();
    let said = match !keyed || config.trust_tenant_header {
        true => header(request.headers())?,
        false => None,
    };
    let key = auth::key(&app, request.headers());
    let tenant = said.or_else(|| key.map(|key| key.name.clone()));
    let parent = request.headers().get("traceparent");
    let parent = parent.and_then(|header| Parent::parse(header.to_str().ok()?));
    request.extensions_mut().insert(Asker {
        tenant: tenant.unwrap_or_default().into(),
        may_hurry: !keyed || config.trust_priority,
        parent,
    });
    Ok(next.run(request).await)
}

/// The tenant that a client names.
fn header(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(TENANT) else {
        return Ok(None);
    };
    let name = value.as_bytes();
    let plain = (1..=MOST).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic);
    match value.to_str() {
        Ok(name) if plain => Ok(Some(name.to_owned())),
        _ => Err(ApiError::invalid(
            TENANT.as_str(),
            format!("The header '{TENANT}' must be 1 to {MOST} visible ASCII characters."),
        )),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn read(name: &[u8]) -> Result<Option<String>, ApiError> {
        let value = HeaderValue::from_bytes(name).unwrap();
        header(&HeaderMap::from_iter([(TENANT, value)]))
    }

    #[test]
    fn a_tenants_name_is_short_and_visible() {
        assert_eq!(read(b"team-7/batch"), Ok(Some("team-7/batch".into())));
        assert_eq!(header(&HeaderMap::new()), Ok(None));
        for wrong in [&b""[..], b"a b", b"\xff", &[b'x'; 65]] {
            assert!(
                matches!(read(wrong), Err(ApiError::Invalid { param, .. }) if param == TENANT.as_str())
            );
        }
    }

    #[test]
    fn only_those_who_may_go_before_others() {
        let mut request = sedge_engine::Request {
            priority: -3,
            ..Default::default()
        };
        let hurried = Asker {
            may_hurry: true,
            ..Asker::default()
        };
        hurried.sign(&mut request);
        assert_eq!(request.priority, -3);
        Asker::default().sign(&mut request);
        assert_eq!(request.priority, 0);
    }
}
