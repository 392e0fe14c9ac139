//! Requests to a hub: one hop at a time, so that the token goes to the hub alone.

use std::io::Read;
use std::ops::Range;
use std::time::Duration;

use ureq::http::{HeaderMap, Uri};

/// Most redirects that are followed.
const REDIRECTS: usize = 8;

/// Longest that a hub's wish to wait is granted.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// An answer other than what was asked for.
    #[error("{url} answered {status}{}", reason(*status))]
    Status {
        /// What was asked, without its query.
        url: String,
        /// HTTP status.
        status: u16,
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
    /// No answer, or it broke off.
    #[error("{url}: {source}")]
    Failed {
        /// What was asked, without its query.
        url: String,
        /// Cause.
        source: Box<ureq::Error>,
    },
    /// The answer's body broke off.
    #[error("{url}: the answer ended after {found} of {expected} bytes")]
    Truncated {
        /// What was asked, without its query.
        url: String,
        /// Bytes that came.
        found: u64,
        /// Bytes that were announced.
        expected: u64,
    },
    /// An answer that makes no sense.
    #[error("{url}: {reason}")]
    Malformed {
        /// What was asked, without its query.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

fn reason(status: u16) -> &'static str {
    match status {
        401 => " (unauthorised)",
        403 => " (forbidden)",
        404 => " (not found)",
        416 => " (no such range)",
        429 => " (too many requests)",
        500..=599 => " (the server failed)",
        _ => "",
    }
}

impl HttpError {
    /// Whether the same request may do better later.
    pub(crate) fn passes(&self) -> bool {
        match self {
            HttpError::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            HttpError::Failed { source, .. } => match &**source {
                ureq::Error::BadUri(_) | ureq::Error::Tls(_) | ureq::Error::InvalidProxyUrl => {
                    false
                }
                // A certificate that is not trusted comes so, and will not be in a second.
                ureq::Error::Io(error) => error.kind() != std::io::ErrorKind::InvalidData,
                _ => true,
            },
            HttpError::Truncated { .. } => true,
            HttpError::Malformed { .. } => false,
        }
    }

    /// Whether the hub was not reached at all.
    pub(crate) fn unreachable(&self) -> bool {
        matches!(self, HttpError::Failed { .. })
    }

    /// How long to wait before try `attempt`, the first being 0.
    pub(crate) fn pause(&self, first: Duration, attempt: u32) -> Duration {
        match self {
            HttpError::Status {
                retry_after: Some(wait),
                ..
            } => (*wait).min(LONGEST_WAIT),
            _ => first.saturating_mul(1 << attempt.min(6)),
        }
    }
}

/// A URL for people: the query may hold a signature.
fn shown(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}

/// Asks one hub.
#[derive(Debug)]
pub(crate) struct Client {
    agent: ureq::Agent,
    /// Scheme, host and port, and what stands before every path.
    pub(crate) endpoint: String,
    token: Option<String>,
}

/// An answer and the way to it.
#[derive(Debug)]
pub(crate) struct Answer {
    /// 200 or 206.
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// Headers of the hub's own answer, where it sent us elsewhere.
    pub(crate) first: Option<HeaderMap>,
    /// Where the content came from.
    pub(crate) url: String,
    pub(crate) body: ureq::Body,
}

impl Answer {
    /// A header's text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        text(&self.headers, name)
    }

    /// A malformed answer, of which this is wrong.
    pub(crate) fn wrong(&self, reason: impl Into<String>) -> HttpError {
        HttpError::Malformed {
            url: shown(&self.url),
            reason: reason.into(),
        }
    }

    /// First byte, and bytes of the whole, of a 206.
    pub(crate) fn range(&self) -> Option<(u64, u64)> {
        let (span, total) = self
            .header("content-range")?
            .strip_prefix("bytes ")?
            .split_once('/')?;
        Some((span.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
    }

    /// Bytes of the body, if they were announced.
    pub(crate) fn len(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }
}

/// A header's text.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

impl Client {
    /// Asks `endpoint`, with a token for it, through the proxies that the environment names.
    /// `roots` are certificates to trust, in PEM; without them, Mozilla's are.
    pub(crate) fn new(endpoint: &str, token: Option<String>, roots: Option<&[u8]>) -> Client {
        use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
        let mut tls = TlsConfig::builder();
        if let Some(pem) = roots {
            let certificates = parse_pem(pem).filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            });
            tls = tls.root_certs(RootCerts::from(certificates));
        }
        let config = ureq::Agent::config_builder()
            .tls_config(tls.build())
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(concat!("sedge/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .max_idle_connections_per_host(16)
            .input_buffer_size(256 << 10)
            .build();
        Client {
            agent: config.new_agent(),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token,
        }
    }

    /// Whether a URL is of the endpoint's scheme, host and port.
    fn is_ours(&self, url: &Uri) -> bool {
        let ours: Option<Uri> = self.endpoint.parse().ok();
        ours.is_some_and(|ours| {
            ours.scheme() == url.scheme() && ours.authority() == url.authority()
        })
    }

    /// Asks for all of a URL or for a range, which counts only while the ETag is still this one.
    /// Follows redirects, never from HTTPS to HTTP, and leaves the token at home.
    pub(crate) fn get(
        &self,
        url: &str,
        range: Option<Range<u64>>,
        etag: Option<&str>,
    ) -> Result<Answer, HttpError> {
        let mut url = url.to_owned();
        let mut first = None;
        for _ in 0..=REDIRECTS {
            let place = || shown(&url);
            let failed = |source: ureq::Error| HttpError::Failed {
                url: place(),
                source: Box::new(source),
            };
            let malformed = |reason: String| HttpError::Malformed {
                url: place(),
                reason,
            };
            let uri: Uri = url
                .parse()
                .map_err(|_| malformed("is not a URL".to_owned()))?;
            let mut request = self.agent.get(&uri).header("accept-encoding", "identity");
            if let (Some(token), true) = (&self.token, self.is_ours(&uri)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Some(range) = &range {
                let last = range.end.saturating_sub(1);
                request = request.header("range", format!("bytes={}-{last}", range.start));
                // A weak ETag does not promise equal bytes.
                if let Some(etag) = etag.filter(|etag| !etag.starts_with("W/")) {
                    request = request.header("if-range", etag);
                }
            }
            let (parts, body) = request.call().map_err(failed)?.into_parts();
            let status = parts.status.as_u16();
            match status {
                200 | 206 => {
                    return Ok(Answer {
                        status,
                        headers: parts.headers,
                        first,
                        url,
                        body,
                    });
                }
                301 | 302 | 303 | 307 | 308 => {
                    let location = text(&parts.headers, "location")
                        .ok_or_else(|| malformed("redirects to nowhere".to_owned()))?;
                    let to = join(&uri, location);
                    let to = to.ok_or_else(|| malformed(format!("redirects to {location:?}")))?;
                    if uri.scheme_str() == Some("https") && !to.starts_with("https://") {
                        return Err(malformed("redirects from HTTPS to HTTP".to_owned()));
                    }
                    first.get_or_insert(parts.headers);
                    url = to;
                }
                status => {
                    let wait = text(&parts.headers, "retry-after");
                    return Err(HttpError::Status {
                        url: place(),
                        status,
                        retry_after: wait
                            .and_then(|seconds| seconds.trim().parse().ok())
                            .map(Duration::from_secs),
                    });
                }
            }
        }
        Err(HttpError::Malformed {
            url: shown(&url),
            reason: format!("more than {REDIRECTS} redirects"),
        })
    }

    /// A whole body of at most `limit` bytes.
    pub(crate) fn read(&self, url: &str, limit: u64) -> Result<Vec<u8>, HttpError> {
        let answer = self.get(url, None, None)?;
        let announced = answer.len();
        let url = shown(&answer.url);
        let mut bytes = Vec::new();
        let read = answer
            .body
            .into_with_config()
            .limit(u64::MAX)
            .reader()
            .take(limit + 1)
            .read_to_end(&mut bytes);
        let found = bytes.len() as u64;
        if found > limit {
            return Err(HttpError::Malformed {
                url,
                reason: format!("the answer has more than {limit} bytes"),
            });
        }
        match (read, announced) {
            (Err(error), _) => Err(HttpError::Failed {
                url,
                source: Box::new(ureq::Error::Io(error)),
            }),
            (Ok(_), Some(expected)) if found < expected => Err(HttpError::Truncated {
                url,
                found,
                expected,
            }),
            _ => Ok(bytes),
        }
    }
}

/// Where a redirect leads.
fn join(from: &Uri, location: &str) -> Option<String> {
    let lower = location.get(..8).unwrap_or(location).to_ascii_lowercase();
    if lower.starts_with("http://") || lower.starts_with("https://") {
        return Some(location.to_owned());
    }
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    if location.starts_with('/') {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    if location.split(['/', '?', '#']).next()?.contains(':') {
        return None; // another scheme
    }
    let folder = from
        .path()
        .rsplit_once('/')
        .map_or("", |(folder, _)| folder);
    Some(format!("{scheme}://{authority}{folder}/{location}"))
}

/// A path for a URL: each component's odd bytes as `%XX`.
pub(crate) fn encode(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(byte as char);
            }
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_read_against_where_they_come_from() {
        let from: Uri = "https://hub.example:8443/a/resolve/main/f?x=1"
            .parse()
            .unwrap();
        let to = |location| join(&from, location);
        assert_eq!(to("https://cdn/x").as_deref(), Some("https://cdn/x"));
        assert_eq!(to("//cdn/x").as_deref(), Some("https://cdn/x"));
        assert_eq!(to("/b?y").as_deref(), Some("https://hub.example:8443/b?y"));
        assert_eq!(
            to("g").as_deref(),
            Some("https://hub.example:8443/a/resolve/main/g")
        );
        assert_eq!(to("file:///etc/passwd"), None);
    }

    #[test]
    fn odd_characters_of_a_path_are_encoded() {
        assert_eq!(encode("a/b c+%é?#.gguf"), "a/b%20c%2B%25%C3%A9%3F%23.gguf");
    }

    #[test]
    fn waiting_grows_unless_the_server_says_how_long() {
        let error = |retry_after| HttpError::Status {
            url: String::new(),
            status: 429,
            retry_after,
        };
        let first = Duration::from_millis(500);
        assert_eq!(error(None).pause(first, 0), first);
        assert_eq!(error(None).pause(first, 3), Duration::from_secs(4));
        let asked = Duration::from_secs(7);
        assert_eq!(error(Some(asked)).pause(first, 3), asked);
        assert_eq!(
            error(Some(Duration::from_secs(1 << 40))).pause(first, 0),
            LONGEST_WAIT
        );
    }
}
