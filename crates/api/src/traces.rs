//! A span for each request, and below it one for each of its parts, with the names of
//! OpenTelemetry's semantic conventions for generative AI.
//! Requests never wait for it: what does not fit into the queue is dropped and counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sedge_engine::{Finish, FinishReason, Timings, Usage};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::sync::mpsc::{self, Sender};
use tokio::task::JoinHandle;

use crate::collector::{Collector, deliver};
use crate::error::ApiError;
use crate::ids;

/// Requests that may wait to be sent.
const QUEUED: usize = 2048;
/// How long the server's end waits for the last of them.
const LAST: Duration = Duration::from_secs(2);

/// A caller's span, from a W3C `traceparent` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parent {
    trace: String,
    span: String,
    /// The caller records its trace; otherwise spans below it are not sent either.
    sampled: bool,
}

impl Parent {
    /// `00-<32 hex>-<16 hex>-<2 hex>`; anything else is nobody's. Later versions may go on.
    pub(crate) fn parse(header: &str) -> Option<Parent> {
        let mut parts = header.trim().split('-');
        let [version, trace, span, flags] = [(); 4].map(|()| parts.next().unwrap_or_default());
        let hex = |text: &str, digits: usize| {
            let digit = |b| matches!(b, b'0'..=b'9' | b'a'..=b'f');
            text.len() == digits && text.bytes().all(digit)
        };
        let named = |text: &str| text.bytes().any(|b| b != b'0');
        let known = hex(version, 2) && version != "ff" && hex(flags, 2);
        let ends = version != "00" || parts.next().is_none();
        let valid = known && ends && hex(trace, 32) && hex(span, 16) && named(trace) && named(span);
        valid.then(|| Parent {
            trace: trace.to_owned(),
            span: span.to_owned(),
            sampled: u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1),
        })
    }
}

/// What a request's span tells from the start.
#[derive(Debug, Clone)]
pub(crate) struct About {
    /// `chat`, `text_completion` or `embeddings`.
    pub(crate) operation: &'static str,
    /// The answer's id, if it has one.
    pub(crate) id: Option<String>,
    pub(crate) model: String,
    pub(crate) tenant: Arc<str>,
    pub(crate) priority: i32,
    pub(crate) parent: Option<Parent>,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) temperature: Option<f32>,
}

/// The way to the collector, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    queue: Option<Queue>,
    close: Arc<Notify>,
    delivery: Mutex<Option<JoinHandle<()>>>,
}

/// Where spans wait to be sent.
#[derive(Debug, Clone)]
struct Queue {
    sender: Sender<Value>,
    lost: Arc<AtomicU64>,
}

impl Traces {
    /// Starts sending. Needs a Tokio runtime.
    pub(crate) fn start(collector: Option<Collector>) -> Traces {
        let Some(collector) = collector else {
            return Traces::default();
        };
        let (sender, spans) = mpsc::channel(QUEUED);
        let (lost, close) = (Arc::<AtomicU64>::default(), Arc::<Notify>::default());
        let delivery = tokio::spawn(deliver(collector, spans, close.clone(), lost.clone()));
        Traces {
            queue: Some(Queue { sender, lost }),
            close,
            delivery: Mutex::new(Some(delivery)),
        }
    }

    /// Requests whose spans were not delivered.
    pub(crate) fn lost(&self) -> u64 {
        let lost = |queue: &Queue| queue.lost.load(Ordering::Relaxed);
        self.queue.as_ref().map_or(0, lost)
    }

    /// Begins the span of a request that has `answers` answers (or inputs); `None` if nobody wants it.
    pub(crate) fn begin(&self, answers: usize, about: impl FnOnce() -> About) -> Option<Span> {
        let queue = self.queue.clone()?;
        let about = about();
        let wanted = about.parent.as_ref().is_none_or(|parent| parent.sampled);
        wanted.then(|| Span {
            queue,
            about,
            start: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
            began: Instant::now(),
            reasons: vec![None; answers],
            usage: Usage::default(),
            timings: None,
            failed: None,
        })
    }

    /// Sends what waits; the server ends.
    pub(crate) async fn finish(&self) {
        let delivery = {
            let mut delivery = self.delivery.lock().unwrap_or_else(PoisonError::into_inner);
            delivery.take()
        };
        if let Some(delivery) = delivery {
            self.close.notify_one();
            let _ = tokio::time::timeout(LAST, delivery).await;
        }
    }
}

/// A request's span. It is sent when it is dropped, which before all answers have ended means
/// that the client went away.
#[derive(Debug)]
pub(crate) struct Span {
    queue: Queue,
    about: About,
    /// Since 1970.
    start: Duration,
    began: Instant,
    /// Why each answer ended.
    reasons: Vec<Option<&'static str>>,
    usage: Usage,
    /// Of all answers together: the first to run, the first token, the last end.
    timings: Option<Timings>,
    /// The error's kind and what it says.
    failed: Option<(&'static str, String)>,
}

impl Span {
    /// An answer has ended; `counts_prompt` if no other answer counts the same prompt's tokens.
    /// True when it was the last.
    pub(crate) fn answered(&mut self, answer: usize, finish: &Finish, counts_prompt: bool) -> bool {
        let (reason, failed) = match &finish.reason {
            FinishReason::Stop => ("stop", None),
            FinishReason::Length => ("length", None),
            FinishReason::Deadline => {
                let why = ApiError::Deadline.to_string();
                ("error", Some(("deadline_exceeded", why)))
            }
            FinishReason::Error(why) => ("error", Some(("server_error", why.clone()))),
        };
        self.failed = self.failed.take().or(failed);
        if let Some(known) = self.reasons.get_mut(answer) {
            *known = Some(reason);
        }
        if counts_prompt {
            self.usage.prompt += finish.usage.prompt;
            self.usage.cached += finish.usage.cached;
        }
        self.usage.completion += finish.usage.completion;
        let new = finish.timings;
        self.timings = Some(self.timings.map_or(new, |known| Timings {
            queued: known.queued.min(new.queued),
            first_token: known.first_token.min(new.first_token),
            total: known.total.max(new.total),
        }));
        self.reasons.iter().all(Option::is_some)
    }

    /// The request was refused.
    pub(crate) fn refused(&mut self, error: &ApiError) {
        self.failed = Some((error.code().unwrap_or("_OTHER"), error.to_string()));
    }

    /// The request's span and those of its parts: waiting, prefill, decode.
    fn spans(&mut self) -> Value {
        let hex = |digits: usize| ids::unique("")[..digits].to_owned();
        let about = &self.about;
        let own = hex(16);
        let trace = match &about.parent {
            Some(parent) => parent.trace.clone(),
            None => hex(16) + &hex(16),
        };
        let ended = self.reasons.iter().all(Option::is_some);
        if !ended && self.failed.is_none() {
            self.failed = Some(("cancelled", "the client went away".to_owned()));
        }
        let total = match self.timings {
            Some(timings) if ended => timings.total,
            _ => self.began.elapsed(),
        };
        let at = |time: Duration| (self.start + time).as_nanos().to_string();
        let (status, kind) = match &self.failed {
            None => (json!({}), None),
            Some((kind, why)) => (json!({"code": 2, "message": why}), Some(*kind)),
        };
        let parent = about.parent.as_ref().map_or("", |parent| &parent.span);
        let mut spans = vec![json!({
            "traceId": trace, "spanId": own, "parentSpanId": parent,
            "name": format!("{} {}", about.operation, about.model),
            "kind": 2,
            "startTimeUnixNano": at(Duration::ZERO),
            "endTimeUnixNano": at(total),
            "attributes": self.attributes(kind),
            "status": status,
        })];
        if let Some(Timings {
            queued,
            first_token,
            ..
        }) = self.timings
        {
            let parts = [
                ("queue", Duration::ZERO, queued),
                ("prefill", queued, first_token),
                ("decode", first_token, total),
            ];
            let parts = parts.into_iter().filter(|(_, from, to)| from < to);
            spans.extend(parts.map(|(name, from, to)| {
                json!({
                    "traceId": trace, "spanId": hex(16), "parentSpanId": own, "name": name, "kind": 1,
                    "startTimeUnixNano": at(from), "endTimeUnixNano": at(to),
                })
            }));
        }
        spans.into()
    }

    fn attributes(&self, failed: Option<&str>) -> Vec<Value> {
        let (about, usage) = (&self.about, self.usage);
        let mut all = vec![
            text("gen_ai.operation.name", about.operation),
            text("gen_ai.provider.name", "sedge"),
            text("gen_ai.request.model", &about.model),
            text("gen_ai.response.model", &about.model),
            integer("gen_ai.usage.input_tokens", usage.prompt),
            integer("gen_ai.usage.output_tokens", usage.completion),
            integer("sedge.cached_tokens", usage.cached),
            text("sedge.tenant", &about.tenant),
            integer("sedge.priority", about.priority),
        ];
        // An embedding has no reason to end.
        let reasons = self.reasons.iter().flatten();
        let reasons: Vec<Value> = reasons.map(|r| json!({"stringValue": r})).collect();
        if about.operation != "embeddings" && !reasons.is_empty() {
            all.push(json!({"key": "gen_ai.response.finish_reasons",
                            "value": {"arrayValue": {"values": reasons}}}));
        }
        all.extend(about.id.as_ref().map(|id| text("gen_ai.response.id", id)));
        let most = about.max_tokens;
        all.extend(most.map(|most| integer("gen_ai.request.max_tokens", most)));
        all.extend(about.temperature.map(|temperature| {
            json!({"key": "gen_ai.request.temperature",
                   "value": {"doubleValue": f64::from(temperature)}})
        }));
        all.extend(failed.map(|kind| text("error.type", kind)));
        all
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let spans = self.spans();
        if self.queue.sender.try_send(spans).is_err() {
            self.queue.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

fn integer(key: &str, value: impl std::fmt::Display) -> Value {
    // OTLP's JSON has 64-bit integers as strings.
    json!({"key": key, "value": {"intValue": value.to_string()}})
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::Receiver;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn about(parent: Option<&str>) -> About {
        About {
            operation: "chat",
            id: Some("chatcmpl-1".into()),
            model: "m".into(),
            tenant: "team".into(),
            priority: -1,
            parent: parent.and_then(Parent::parse),
            max_tokens: Some(9),
            temperature: Some(0.5),
        }
    }

    fn finish(reason: FinishReason, times: [u64; 3]) -> Finish {
        let [queued, first_token, total] = times.map(Duration::from_millis);
        Finish {
            reason,
            text: String::new(),
            usage: Usage {
                prompt: 7,
                completion: 3,
                cached: 4,
            },
            timings: Timings {
                queued,
                first_token,
                total,
            },
        }
    }

    /// A queue that nobody empties but the test.
    fn traces(room: usize) -> (Traces, Receiver<Value>) {
        let (sender, spans) = mpsc::channel(room);
        let queue = Some(Queue {
            sender,
            lost: Arc::default(),
        });
        let traces = Traces {
            queue,
            ..Traces::default()
        };
        (traces, spans)
    }

    fn attribute(span: &Value, key: &str) -> Option<Value> {
        let all = span["attributes"].as_array()?;
        let found = all.iter().find(|attribute| attribute["key"] == key)?;
        Some(found["value"].clone())
    }

    #[test]
    fn only_whole_parents_count() {
        let good = format!("00-{TRACE}-{SPAN}-01");
        let parent = Parent::parse(&good).unwrap();
        assert_eq!((parent.trace.as_str(), parent.span.as_str()), (TRACE, SPAN));
        assert!(parent.sampled);
        assert!(
            !Parent::parse(&format!("00-{TRACE}-{SPAN}-00"))
                .unwrap()
                .sampled
        );
        assert!(Parent::parse(&format!("01-{TRACE}-{SPAN}-01-more")).is_some());
        let zero = format!("00-{}-{SPAN}-01", "0".repeat(32));
        for wrong in [
            "",
            "00-1-2-01",
            &good[..50],
            &zero,
            &good.replace("4b", "4B"),
            &format!("{good}-more"),
            &good.replace("00-", "zz-"),
        ] {
            assert_eq!(Parent::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_request_is_one_span_however_many_answers_it_has() {
        let (traces, mut queue) = traces(8);
        let header = format!("00-{TRACE}-{SPAN}-01");
        let mut span = traces.begin(2, || about(Some(&header))).unwrap();
        assert!(!span.answered(1, &finish(FinishReason::Length, [10, 30, 50]), false));
        assert!(span.answered(0, &finish(FinishReason::Stop, [12, 32, 60]), true));
        let start = span.start;
        drop(span);
        let spans = queue.try_recv().unwrap();
        let names: Vec<&Value> = spans
            .as_array()
            .unwrap()
            .iter()
            .map(|s| &s["name"])
            .collect();
        assert_eq!(names, ["chat m", "queue", "prefill", "decode"]);
        assert_eq!(spans[0]["traceId"], TRACE);
        assert_eq!(spans[0]["parentSpanId"], SPAN);
        assert_eq!(spans[3]["parentSpanId"], spans[0]["spanId"]);
        let at = |ms| (start + Duration::from_millis(ms)).as_nanos().to_string();
        assert_eq!(spans[3]["startTimeUnixNano"], at(30));
        assert_eq!(spans[0]["endTimeUnixNano"], at(60));
        assert_eq!(spans[0]["status"], json!({}));
        for (key, value) in [
            ("gen_ai.usage.input_tokens", json!({"intValue": "7"})),
            ("gen_ai.usage.output_tokens", json!({"intValue": "6"})),
            ("gen_ai.operation.name", json!({"stringValue": "chat"})),
            ("gen_ai.response.id", json!({"stringValue": "chatcmpl-1"})),
            ("gen_ai.request.temperature", json!({"doubleValue": 0.5})),
            ("sedge.priority", json!({"intValue": "-1"})),
        ] {
            assert_eq!(attribute(&spans[0], key), Some(value), "{key}");
        }
        let reasons = attribute(&spans[0], "gen_ai.response.finish_reasons").unwrap();
        let expected = json!([{"stringValue": "stop"}, {"stringValue": "length"}]);
        assert_eq!(reasons["arrayValue"]["values"], expected);
    }

    #[test]
    fn what_went_wrong_is_told() {
        let (traces, mut queue) = traces(8);
        let mut late = traces.begin(1, || about(None)).unwrap();
        late.answered(0, &finish(FinishReason::Deadline, [50, 50, 50]), true);
        drop(late);
        let mut refused = traces.begin(1, || about(None)).unwrap();
        refused.refused(&ApiError::Busy {
            message: "full".into(),
            seconds: 1,
        });
        drop(refused);
        drop(traces.begin(1, || about(None)));
        for kind in ["deadline_exceeded", "queue_full", "cancelled"] {
            let spans = queue.try_recv().unwrap();
            assert_eq!(spans[0]["status"]["code"], 2);
            let expected = json!({"stringValue": kind});
            assert_eq!(attribute(&spans[0], "error.type"), Some(expected));
            assert_eq!(spans[0]["traceId"].as_str().unwrap().len(), 32);
        }
    }

    #[test]
    fn what_the_caller_does_not_record_is_not_sent_and_a_full_queue_is_counted() {
        let (traces, mut queue) = traces(1);
        let unsampled = format!("00-{TRACE}-{SPAN}-00");
        assert!(traces.begin(1, || about(Some(&unsampled))).is_none());
        assert!(queue.try_recv().is_err());
        drop(traces.begin(1, || about(None)));
        drop(traces.begin(1, || about(None)));
        assert_eq!(traces.lost(), 1);
    }
}
