//! Requests to a server that speaks OpenAI's API, one connection each, over plain HTTP/1.1.

use std::pin::Pin;
use std::time::{Duration, Instant};

use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, RETRY_AFTER};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::sse::Events;

/// Where requests go and how they are written.
#[derive(Debug, Clone)]
pub struct Target {
    /// `http://host:port`, without a path.
    pub url: String,
    /// Models to ask for, by the number that a request has.
    pub models: Vec<String>,
    /// Which way to ask.
    pub api: Api,
    /// Key to send as a bearer token.
    pub key: Option<String>,
    /// Prompts of token ids take them below this.
    pub vocab: u32,
    /// Most time that an answer may take.
    pub timeout: Duration,
}

/// A way to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `/v1/completions`: token ids for single requests, text where there are turns.
    Completions,
    /// `/v1/chat/completions`: messages of text.
    Chat,
}

/// Why a server cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none, or a kind that is not spoken.
    #[error("{url:?} is not an address such as http://127.0.0.1:8080")]
    Address {
        /// What was given.
        url: String,
    },
    /// Nobody listens there.
    #[error("cannot connect to {url}: {source}")]
    Connect {
        /// The server's address.
        url: String,
        /// Why.
        source: std::io::Error,
    },
    /// The exchange broke off.
    #[error("{0}")]
    Exchange(#[from] hyper::Error),
    /// The request cannot be written.
    #[error("the request cannot be written: {0}")]
    Request(#[from] hyper::http::Error),
    /// The server answered something else than 200.
    #[error("{url} answers {status}: {body}")]
    Status {
        /// What was asked.
        url: String,
        /// The status.
        status: u16,
        /// The answer's start.
        body: String,
    },
    /// The answer is not what it should be.
    #[error("{url} does not list a model: {body}")]
    NoModel {
        /// What was asked.
        url: String,
        /// The answer's start.
        body: String,
    },
}

impl Target {
    /// The server at this address, asked in the simplest way for the first model that it lists.
    pub async fn new(url: &str, key: Option<String>) -> Result<Target, ClientError> {
        let mut target = Target::at(url, key);
        target.models = target.list().await?;
        target.models.truncate(1);
        Ok(target)
    }

    /// The server at this address, of which no model is known.
    pub fn at(url: &str, key: Option<String>) -> Target {
        Target {
            url: url.trim_end_matches('/').to_owned(),
            models: Vec::new(),
            api: Api::Completions,
            key,
            vocab: 1000,
            timeout: Duration::from_secs(600),
        }
    }

    /// The models that the server lists, at least one.
    pub async fn list(&self) -> Result<Vec<String>, ClientError> {
        let url = format!("{}/v1/models", self.url);
        let (status, whole) = self.get("/v1/models").await?;
        let body = start_of(&whole);
        if status != 200 {
            return Err(ClientError::Status { url, status, body });
        }
        let list: Option<Value> = serde_json::from_str(&whole).ok();
        let data = list.as_ref().and_then(|l| l["data"].as_array());
        let ids = data.into_iter().flatten().filter_map(|m| m["id"].as_str());
        let names: Vec<String> = ids.map(String::from).collect();
        match names.is_empty() {
            false => Ok(names),
            true => Err(ClientError::NoModel { url, body }),
        }
    }

    /// Status and body of a path.
    pub(crate) async fn get(&self, path: &str) -> Result<(u16, String), ClientError> {
        self.request("GET", path, String::new()).await
    }

    /// Sends JSON, or nothing, to a path; the answer's status and body. Waits as long as it takes.
    ///
    /// # Errors
    /// When there is no answer. One that says what went wrong is an answer.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        body: String,
    ) -> Result<(u16, String), ClientError> {
        let (response, connection) = self.send(method, path, body, &[]).await?;
        let status = response.status().as_u16();
        let body = read(response.into_body()).await?;
        connection.abort();
        Ok((status, body))
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: String,
        headers: &[(&str, &str)],
    ) -> Result<(Response<Incoming>, tokio::task::JoinHandle<()>), ClientError> {
        let (host, port) = self.address()?;
        let stream = TcpStream::connect((host.trim_matches(['[', ']']), port))
            .await
            .and_then(|s| s.set_nodelay(true).map(|()| s))
            .map_err(|source| ClientError::Connect {
                url: self.url.clone(),
                source,
            })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(async move {
            // What breaks the connection is told to the one who reads the answer.
            let _ = connection.await;
        });
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, format!("{host}:{port}"))
            .header(CONNECTION, "close")
            .header(ACCEPT, "*/*")
            .header(CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(body)?).await?;
        Ok((response, connection))
    }

    fn address(&self) -> Result<(String, u16), ClientError> {
        let wrong = || ClientError::Address {
            url: self.url.clone(),
        };
        let uri: Uri = self.url.parse().map_err(|_| wrong())?;
        if uri.scheme_str() != Some("http") || !matches!(uri.path(), "" | "/") {
            return Err(wrong());
        }
        let host = uri.host().ok_or_else(wrong)?;
        Ok((host.to_owned(), uri.port_u16().unwrap_or(80)))
    }

    /// Asks, and notes when each piece of the answer came. Never fails: what goes wrong is what
    /// came of it.
    pub(crate) async fn ask(
        &self,
        who: (usize, usize),
        prompt: &Prompt,
        max_tokens: usize,
    ) -> Answer {
        let mut answer = Answer::default();
        let asking = self.stream(who, prompt, max_tokens, &mut answer);
        match tokio::time::timeout(self.timeout, asking).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => answer.end = End::Failed(error.to_string()),
            Err(_) => {
                let seconds = self.timeout.as_secs_f64();
                answer.end = End::Failed(format!("no end within {seconds} s"));
            }
        }
        answer
    }

    async fn stream(
        &self,
        (tenant, model): (usize, usize),
        prompt: &Prompt,
        max_tokens: usize,
        answer: &mut Answer,
    ) -> Result<(), ClientError> {
        let (path, field, value) = match prompt {
            Prompt::Ids(ids) => ("/v1/completions", "prompt", json!(ids)),
            Prompt::Text(text) => ("/v1/completions", "prompt", json!(text)),
            Prompt::Messages(messages) => ("/v1/chat/completions", "messages", json!(messages)),
        };
        let body = json!({
            "model": self.models.get(model % self.models.len().max(1)),
            field: value,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let tenant = format!("tenant-{tenant}");
        let headers = [("x-sedge-tenant", tenant.as_str())];
        let (response, connection) = self.send("POST", path, body.to_string(), &headers).await?;
        let status = response.status();
        if status != StatusCode::OK {
            let retry = response.headers().get(RETRY_AFTER);
            let retry = retry.and_then(|v| v.to_str().ok()?.parse().ok());
            let body = read(response.into_body()).await.unwrap_or_default();
            connection.abort();
            answer.end = match status {
                StatusCode::TOO_MANY_REQUESTS => End::Refused(retry),
                _ => End::Failed(format!("{}: {}", status.as_u16(), start_of(&body))),
            };
            return Ok(());
        }
        let (mut events, mut body) = (Events::default(), response.into_body());
        while let Some(frame) = next_frame(&mut body).await {
            let frame = frame?;
            let Some(bytes) = frame.data_ref() else {
                continue;
            };
            let now = Instant::now();
            events.push(bytes, |data| answer.take(data, now));
        }
        connection.abort();
        if answer.end == End::Open {
            answer.end = End::Failed("the answer broke off".to_owned());
        }
        Ok(())
    }
}

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) enum Prompt {
    Ids(Vec<u32>),
    Text(String),
    Messages(Vec<Value>),
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) text: String,
    /// When each piece of text came.
    pub(crate) chunks: Vec<Instant>,
    pub(crate) end: End,
    /// When the server said that the answer is whole.
    pub(crate) ended: Option<Instant>,
    pub(crate) prompt_tokens: Option<usize>,
    pub(crate) cached_tokens: Option<usize>,
    pub(crate) output_tokens: Option<usize>,
}

#[derive(Debug, Default, PartialEq)]
pub(crate) enum End {
    /// It has not ended.
    #[default]
    Open,
    Done,
    /// 429, with the seconds to wait.
    Refused(Option<f64>),
    Failed(String),
}

impl Answer {
    /// Takes the data of an event.
    fn take(&mut self, data: &str, now: Instant) {
        if data == "[DONE]" {
            if self.end == End::Open {
                (self.end, self.ended) = (End::Done, Some(now));
            }
            return;
        }
        let Ok(event) = serde_json::from_str::<Value>(data) else {
            self.end = End::Failed(format!("an event is no JSON: {}", start_of(data)));
            return;
        };
        if let Some(error) = event.get("error").filter(|e| !e.is_null()) {
            let message = error["message"].as_str().map(str::to_owned);
            self.end = End::Failed(message.unwrap_or_else(|| error.to_string()));
            return;
        }
        let choice = &event["choices"][0];
        let delta = &choice["delta"];
        let pieces = [
            &choice["text"],
            &delta["content"],
            &delta["reasoning_content"],
        ];
        let text: String = pieces.into_iter().filter_map(Value::as_str).collect();
        if !text.is_empty() {
            self.chunks.push(now);
            self.text.push_str(&text);
        }
        let usage = &event["usage"];
        let number = |value: &Value| value.as_u64().map(|n| n as usize);
        if usage.is_object() {
            self.prompt_tokens = number(&usage["prompt_tokens"]);
            self.output_tokens = number(&usage["completion_tokens"]);
            let cached = number(&usage["prompt_tokens_details"]["cached_tokens"]);
            // Where usage does not say, llama-server's timings do.
            self.cached_tokens = cached.or_else(|| number(&event["timings"]["cache_n"]));
        }
    }
}

async fn next_frame(
    body: &mut Incoming,
) -> Option<Result<hyper::body::Frame<hyper::body::Bytes>, hyper::Error>> {
    std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
}

async fn read(mut body: Incoming) -> Result<String, ClientError> {
    let mut bytes = Vec::new();
    while let Some(frame) = next_frame(&mut body).await {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The first words of an answer, in one line.
fn start_of(body: &str) -> String {
    let message = serde_json::from_str::<Value>(body).ok();
    let message = message
        .as_ref()
        .and_then(|m| m["error"]["message"].as_str());
    let line = message.unwrap_or(body).split_whitespace();
    let line = line.collect::<Vec<_>>().join(" ");
    line.chars().take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_collected_event_by_event() {
        let (mut answer, now) = (Answer::default(), Instant::now());
        for data in [
            r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"choices":[{"delta":{"content":"a"}}],"usage":null}"#,
            r#"{"choices":[{"text":"b","finish_reason":"length"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,
                "prompt_tokens_details":{"cached_tokens":4}}}"#,
        ] {
            answer.take(data, now);
        }
        assert_eq!(answer.end, End::Open);
        answer.take("[DONE]", now);
        assert_eq!((answer.text.as_str(), answer.chunks.len()), ("ab", 2));
        assert_eq!(answer.end, End::Done);
        let usage = (
            answer.prompt_tokens,
            answer.cached_tokens,
            answer.output_tokens,
        );
        assert_eq!(usage, (Some(9), Some(4), Some(2)));

        answer.take(r#"{"error":{"message":"too late"}}"#, now);
        assert_eq!(answer.end, End::Failed("too late".to_owned()));
    }

    #[test]
    fn addresses_are_plain_http() {
        let target = |url: &str| Target {
            url: url.to_owned(),
            models: Vec::new(),
            api: Api::Chat,
            key: None,
            vocab: 1000,
            timeout: Duration::from_secs(1),
        };
        let of = |url: &str| target(url).address().ok();
        assert_eq!(of("http://h:81"), Some(("h".to_owned(), 81)));
        assert_eq!(of("http://h"), Some(("h".to_owned(), 80)));
        assert_eq!(of("http://[::1]:8080"), Some(("[::1]".to_owned(), 8080)));
        for wrong in ["https://h", "h:81", "http://h/v1", ""] {
            assert!(of(wrong).is_none(), "{wrong}");
        }
    }
}
