//! The pages: files inside the binary, or a folder while working on it.

use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use crate::app::App;
use crate::error::ApiError;

/// A file of the page: its path in the address, and its bytes.
struct Asset {
    name: &'static str,
    bytes: &'static [u8],
}

macro_rules! assets {
    ($($name:literal),* $(,)?) => {
        [$(Asset { name: $name, bytes: include_bytes!(concat!("../web/", $name)) }),*]
    };
}

/// Every file there is. Nothing else is served, from the folder neither.
static ASSETS: [Asset; 21] = assets![
    "index.html",
    "api.js",
    "app.js",
    "copy.js",
    "dom.js",
    "favicon.svg",
    "inline.js",
    "live.css",
    "live.html",
    "live.js",
    "markdown.js",
    "models.js",
    "settings.js",
    "sidebar.js",
    "store.js",
    "style.css",
    "theme.js",
    "transcript.js",
    "vision.css",
    "vision.html",
    "vision.js",
];

/// The page loads only what this server sends, and talks only to it. No inline scripts or styles.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// Answers every address that is no API route: a file of the page, or 404.
pub(crate) async fn file(
    State(app): State<Arc<App>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let name = match uri.path() {
        // Where nothing chats, the first page is that of pictures.
        "/" if app.models.is_empty() => "vision.html",
        "/" => "index.html",
        "/vision" => "vision.html",
        path => path.trim_start_matches('/'),
    };
    let Some(asset) = ASSETS.iter().find(|asset| asset.name == name) else {
        return Err(ApiError::RouteNotFound(
            uri.path().chars().take(200).collect(),
        ));
    };
    if method != Method::GET && method != Method::HEAD {
        return Err(ApiError::Method(method.to_string()));
    }
    let bytes = match &app.config.web_folder {
        None => Bytes::from_static(asset.bytes),
        Some(folder) => from_folder(folder, asset.name).await?,
    };
    let tag = tag(&bytes);
    let fresh = headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|known| *known == tag);
    let mut response = if fresh {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        Body::from(bytes).into_response()
    };
    let sent = response.headers_mut();
    sent.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(media_type(asset.name)),
    );
    sent.insert(header::ETAG, tag);
    // Asked for again every time, but only sent when another version of the server has another page.
    sent.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    sent.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(POLICY),
    );
    sent.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    sent.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    Ok(response)
}

/// A file of the folder; `name` is one of the known names, never the request's text.
async fn from_folder(folder: &Path, name: &'static str) -> Result<Bytes, ApiError> {
    let path = folder.join(name);
    match tokio::task::spawn_blocking(move || std::fs::read(path)).await {
        Ok(Ok(bytes)) => Ok(bytes.into()),
        Ok(Err(error)) => Err(ApiError::Internal(format!("{name}: {error}"))),
        Err(error) => Err(ApiError::Internal(error.to_string())),
    }
}

fn media_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

/// A strong entity tag: the content's FNV-1a hash and length.
fn tag(bytes: &[u8]) -> HeaderValue {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let tag = format!("\"{hash:016x}{:x}\"", bytes.len());
    // Quotes and hexadecimal digits only.
    HeaderValue::from_str(&tag).unwrap_or(HeaderValue::from_static("\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_a_media_type() {
        for asset in &ASSETS {
            assert_ne!(
                media_type(asset.name),
                "application/octet-stream",
                "{}",
                asset.name
            );
        }
    }

    #[test]
    fn other_content_has_another_tag() {
        assert_eq!(tag(b"a"), tag(b"a"));
        assert_ne!(tag(b"a"), tag(b"b"));
    }

    #[test]
    fn the_page_needs_no_inline_script_or_style() {
        for page in ASSETS.iter().filter(|asset| asset.name.ends_with(".html")) {
            let html = std::str::from_utf8(page.bytes).unwrap();
            for inline in [" style=\"", " onclick=", "<script>", "<style"] {
                assert!(!html.contains(inline), "{}: {inline}", page.name);
            }
        }
    }

    /// What the folder has beside the known files would be missing from the binary.
    #[test]
    fn every_file_of_the_folder_is_served() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("web");
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let known = ASSETS.iter().any(|asset| asset.name == name);
            assert!(
                known || !name.contains('.') || name.ends_with(".md"),
                "{name}"
            );
        }
    }
}
