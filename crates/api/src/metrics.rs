//! What happened so far, as Prometheus reads it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use sedge_engine::{EngineStats, Finish, FinishReason, StackMemory};

use crate::app::App;
use crate::ids;
use crate::recent::{Percentiles, Recent};

/// Upper bounds in seconds: from a fast token to a long answer.
const SECONDS: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0,
    160.0, 320.0,
];

/// Counters and histograms since the start.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Start of the process's server, seconds since 1970.
    pub(crate) started: u64,
    /// Open connections.
    pub(crate) connections: AtomicU64,
    models: Vec<ModelMetrics>,
    /// Networks that see: names and times.
    vision: Vec<(String, Histogram)>,
    responses: Mutex<BTreeMap<(String, u16), u64>>,
    tenants: Mutex<BTreeMap<String, TenantMetrics>>,
}

/// Tenants with counters of their own; those after them share one.
const TENANTS: usize = 100;
const OTHERS: &str = "other";

/// What one tenant got.
#[derive(Debug, Default)]
struct TenantMetrics {
    finished: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    first_token: Histogram,
}

/// What one model did.
#[derive(Debug, Default)]
struct ModelMetrics {
    name: String,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    queued: Histogram,
    first_token: Histogram,
    gap: Histogram,
    per_token: Histogram,
    duration: Histogram,
    recent_first_token: Recent,
    recent_gap: Recent,
}

impl Metrics {
    /// Nothing has happened yet.
    pub(crate) fn new(models: Vec<String>, vision: Vec<String>) -> Metrics {
        let models = models
            .into_iter()
            .map(|name| ModelMetrics {
                name,
                ..ModelMetrics::default()
            })
            .collect();
        Metrics {
            started: ids::now(),
            connections: AtomicU64::new(0),
            models,
            vision: vision
                .into_iter()
                .map(|name| (name, Histogram::default()))
                .collect(),
            responses: Mutex::default(),
            tenants: Mutex::default(),
        }
    }

    /// A response went out, at least its head.
    pub(crate) fn responded(&self, route: &str, status: u16) {
        let mut responses = self
            .responses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match responses.get_mut(&(route.to_string(), status)) {
            Some(count) => *count += 1,
            None => drop(responses.insert((route.to_string(), status), 1)),
        }
    }

    /// Time between two tokens of an answer.
    pub(crate) fn gap(&self, model: usize, gap: Duration) {
        if let Some(model) = self.models.get(model) {
            model.gap.record(gap);
            model.recent_gap.note(Instant::now(), gap);
        }
    }

    /// An answer or an embedding has ended.
    pub(crate) fn finished(&self, model: usize, tenant: &str, finish: &Finish) {
        self.finished_of(tenant, finish);
        let Some(model) = self.models.get(model) else {
            return;
        };
        let (usage, timings) = (finish.usage, finish.timings);
        model
            .prompt_tokens
            .fetch_add(usage.prompt as u64, Ordering::Relaxed);
        model
            .cached_tokens
            .fetch_add(usage.cached as u64, Ordering::Relaxed);
        model
            .completion_tokens
            .fetch_add(usage.completion as u64, Ordering::Relaxed);
        model.queued.record(timings.queued);
        model.duration.record(timings.total);
        if has_begun(finish) {
            model.first_token.record(timings.first_token);
            let now = Instant::now();
            model.recent_first_token.note(now, timings.first_token);
        }
        if let Some(later) = usage.completion.checked_sub(1).filter(|later| *later > 0) {
            let time = timings.total.saturating_sub(timings.first_token);
            model.per_token.record(time.div_f64(later as f64));
        }
    }

    /// A network has seen a picture.
    pub(crate) fn saw(&self, model: usize, time: Duration) {
        if let Some((_, times)) = self.vision.get(model) {
            times.record(time);
        }
    }

    /// Counts an answer for its tenant, if it has a name.
    fn finished_of(&self, tenant: &str, finish: &Finish) {
        if tenant.is_empty() {
            return;
        }
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let known = tenants.contains_key(tenant) || tenants.len() < TENANTS;
        let name = if known { tenant } else { OTHERS };
        if !tenants.contains_key(name) {
            tenants.insert(name.to_owned(), TenantMetrics::default());
        }
        if let Some(tenant) = tenants.get_mut(name) {
            tenant.finished += 1;
            tenant.prompt_tokens += finish.usage.prompt as u64;
            tenant.completion_tokens += finish.usage.completion as u64;
            if has_begun(finish) {
                tenant.first_token.record(finish.timings.first_token);
            }
        }
    }

    /// Times to the first token and between tokens of the last minutes.
    pub(crate) fn recent(&self, model: usize, now: Instant) -> [Option<Percentiles>; 2] {
        match self.models.get(model) {
            Some(model) => {
                [&model.recent_first_token, &model.recent_gap].map(|r| r.percentiles(now))
            }
            None => [None, None],
        }
    }

    fn tenant_text(&self, out: &mut Text) {
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        type Count = fn(&TenantMetrics) -> u64;
        let counters: [(&str, &str, Count); 3] = [
            (
                "sedge_tenant_requests_finished_total",
                "Requests of a tenant that ended.",
                |t| t.finished,
            ),
            (
                "sedge_tenant_prompt_tokens_total",
                "Prompt tokens of a tenant's ended requests.",
                |t| t.prompt_tokens,
            ),
            (
                "sedge_tenant_completion_tokens_total",
                "Generated tokens of a tenant's ended requests.",
                |t| t.completion_tokens,
            ),
        ];
        for (name, help, count) in counters {
            out.family(name, "counter", help);
            for (tenant, metrics) in tenants.iter() {
                out.sample(name, &[("tenant", tenant)], count(metrics));
            }
        }
        let name = "sedge_tenant_time_to_first_token_seconds";
        out.family(name, "histogram", "From submission to the first token.");
        for (tenant, metrics) in tenants.iter() {
            metrics.first_token.write(name, ("tenant", tenant), out);
        }
    }

    /// Everything in Prometheus' text format; of each engine its first model's name.
    fn text(&self, engines: &[(&str, EngineStats)], lost_spans: u64) -> String {
        let mut out = Text::default();
        out.family("sedge_build_info", "gauge", "Version of the server.");
        out.sample(
            "sedge_build_info",
            &[("version", env!("CARGO_PKG_VERSION"))],
            1,
        );
        out.family(
            "sedge_start_time_seconds",
            "gauge",
            "When the server started, seconds since 1970.",
        );
        out.sample("sedge_start_time_seconds", &[], self.started);
        out.family("sedge_http_connections", "gauge", "Open connections.");
        out.sample(
            "sedge_http_connections",
            &[],
            self.connections.load(Ordering::Relaxed),
        );
        out.family(
            "sedge_http_responses_total",
            "counter",
            "Responses by route and status.",
        );
        for ((route, status), count) in self
            .responses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            let labels = [("route", route.as_str()), ("status", &status.to_string())];
            out.sample("sedge_http_responses_total", &labels, count);
        }
        out.family(
            "sedge_traces_lost_total",
            "counter",
            "Requests whose spans did not reach the collector.",
        );
        out.sample("sedge_traces_lost_total", &[], lost_spans);
        engine_text(engines, &mut out);
        adapter_text(engines, &mut out);
        memory_text(engines, &mut out);
        self.model_text(&mut out);
        self.tenant_text(&mut out);
        let name = "sedge_vision_seconds";
        out.family(name, "histogram", "From a picture's bytes to what is seen.");
        for (model, times) in &self.vision {
            times.write(name, ("model", model), &mut out);
        }
        out.0
    }

    fn model_text(&self, out: &mut Text) {
        type Count = fn(&ModelMetrics) -> &AtomicU64;
        let counters: [(&str, &str, Count); 3] = [
            (
                "sedge_prompt_tokens_total",
                "Prompt tokens of ended requests.",
                |m| &m.prompt_tokens,
            ),
            (
                "sedge_cached_prompt_tokens_total",
                "Prompt tokens that were not computed again.",
                |m| &m.cached_tokens,
            ),
            (
                "sedge_completion_tokens_total",
                "Generated tokens of ended requests.",
                |m| &m.completion_tokens,
            ),
        ];
        for (name, help, count) in counters {
            out.family(name, "counter", help);
            for model in &self.models {
                out.sample(
                    name,
                    &[("model", &model.name)],
                    count(model).load(Ordering::Relaxed),
                );
            }
        }
        type Times = fn(&ModelMetrics) -> &Histogram;
        let histograms: [(&str, &str, Times); 5] = [
            (
                "sedge_queue_seconds",
                "From submission to the first step.",
                |m| &m.queued,
            ),
            (
                "sedge_time_to_first_token_seconds",
                "From submission to the first token.",
                |m| &m.first_token,
            ),
            (
                "sedge_inter_token_seconds",
                "Between two tokens of an answer.",
                |m| &m.gap,
            ),
            (
                "sedge_time_per_output_token_seconds",
                "An answer's mean after its first token.",
                |m| &m.per_token,
            ),
            (
                "sedge_request_duration_seconds",
                "From submission to the end.",
                |m| &m.duration,
            ),
        ];
        for (name, help, histogram) in histograms {
            out.family(name, "histogram", help);
            for model in &self.models {
                histogram(model).write(name, ("model", &model.name), out);
            }
        }
    }
}

/// What an engine did for all its models together.
fn engine_text(engines: &[(&str, EngineStats)], out: &mut Text) {
    let families: [(&str, &str, &str, Value<u64>); 19] = [
        (
            "sedge_requests_waiting",
            "gauge",
            "Requests in the queue.",
            |s| s.waiting as u64,
        ),
        (
            "sedge_requests_running",
            "gauge",
            "Requests that hold pages.",
            |s| s.running as u64,
        ),
        (
            "sedge_kv_pages",
            "gauge",
            "Pages of keys and values there are.",
            |s| s.pages as u64,
        ),
        (
            "sedge_kv_pages_used",
            "gauge",
            "Pages of keys and values in use.",
            |s| s.pages_used as u64,
        ),
        (
            "sedge_kv_pages_cached",
            "gauge",
            "Pages that nobody uses and that are kept for later requests.",
            |s| s.pages_cached as u64,
        ),
        (
            "sedge_kv_pages_host",
            "gauge",
            "Pages in the host tier.",
            |s| s.pages_host as u64,
        ),
        (
            "sedge_kv_pages_disk",
            "gauge",
            "Pages in the disk tier.",
            |s| s.pages_disk as u64,
        ),
        (
            "sedge_prefix_reused_tokens_total",
            "counter",
            "Tokens whose keys and values were there when their request was admitted.",
            |s| s.cache.reused_tokens,
        ),
        (
            "sedge_prefix_asked_tokens_total",
            "counter",
            "Tokens of admitted requests, of which those could be reused.",
            |s| s.cache.asked_tokens,
        ),
        (
            "sedge_swap_out_bytes_total",
            "counter",
            "Bytes of keys and values moved to the host tier.",
            |s| s.cache.bytes_out,
        ),
        (
            "sedge_swap_in_bytes_total",
            "counter",
            "Bytes of keys and values moved from the host tier.",
            |s| s.cache.bytes_in,
        ),
        (
            "sedge_swap_copies_total",
            "counter",
            "Blocks that were copied for it.",
            |s| s.cache.copies,
        ),
        ("sedge_steps_total", "counter", "Batches run.", |s| s.steps),
        (
            "sedge_computed_prompt_tokens_total",
            "counter",
            "Prompt tokens computed.",
            |s| s.prompt_tokens,
        ),
        (
            "sedge_generated_tokens_total",
            "counter",
            "Tokens generated.",
            |s| s.generated_tokens,
        ),
        (
            "sedge_requests_finished_total",
            "counter",
            "Requests that ended by themselves.",
            |s| s.finished,
        ),
        (
            "sedge_requests_cancelled_total",
            "counter",
            "Requests whose client went away.",
            |s| s.cancelled,
        ),
        (
            "sedge_requests_refused_total",
            "counter",
            "Requests refused by a full queue.",
            |s| s.refused,
        ),
        (
            "sedge_requests_preempted_total",
            "counter",
            "Times that a request gave its pages up.",
            |s| s.preempted,
        ),
    ];
    for (name, kind, help, value) in families {
        of_engines((name, kind, help), engines, value, out);
    }
}

/// Adapters of an engine, of all its models together.
fn adapter_text(engines: &[(&str, EngineStats)], out: &mut Text) {
    let families: [(&str, &str, &str, Value<u64>); 7] = [
        (
            "sedge_adapters_registered",
            "gauge",
            "Adapters that requests may name.",
            |s| s.adapters.registered as u64,
        ),
        (
            "sedge_adapters_resident",
            "gauge",
            "Adapters in memory or on their way.",
            |s| s.adapters.resident as u64,
        ),
        (
            "sedge_adapters_bytes",
            "gauge",
            "Bytes that adapters in memory take.",
            |s| s.adapters.bytes,
        ),
        (
            "sedge_adapters_capacity_bytes",
            "gauge",
            "Bytes there are for adapters.",
            |s| s.adapters.capacity,
        ),
        (
            "sedge_adapter_loads_total",
            "counter",
            "Times that an adapter was read because a request needed it.",
            |s| s.adapters.loads,
        ),
        (
            "sedge_adapter_evictions_total",
            "counter",
            "Times that an adapter gave way to another.",
            |s| s.adapters.evictions,
        ),
        (
            "sedge_adapter_hits_total",
            "counter",
            "Requests that found their adapter in memory.",
            |s| s.adapters.hits,
        ),
    ];
    for (name, kind, help, value) in families {
        of_engines((name, kind, help), engines, value, out);
    }
    let family = (
        "sedge_adapter_load_seconds_total",
        "counter",
        "Time in which adapters were read for requests.",
    );
    let seconds: Value<f64> = |s| s.adapters.loading.as_secs_f64();
    of_engines(family, engines, seconds, out);
}

/// Memory of those engines whose models' sizes may change.
fn memory_text(engines: &[(&str, EngineStats)], out: &mut Text) {
    type Figure = fn(&StackMemory) -> u64;
    let families: [(&str, &str, Figure); 4] = [
        ("sedge_weights_bytes", "Bytes of weights in memory.", |m| {
            m.bytes
        }),
        (
            "sedge_weights_smallest_bytes",
            "Fewest bytes of weights that the model runs with.",
            |m| m.smallest,
        ),
        (
            "sedge_weights_largest_bytes",
            "Bytes of weights with all blocks.",
            |m| m.largest,
        ),
        (
            "sedge_weights_blocks",
            "Blocks of weights in memory.",
            |m| m.blocks as u64,
        ),
    ];
    for (name, help, value) in families {
        let stacked = engines
            .iter()
            .filter_map(|(model, stats)| Some((model, stats.memory.as_ref()?)));
        let mut stacked = stacked.peekable();
        if stacked.peek().is_none() {
            return;
        }
        out.family(name, "gauge", help);
        for (model, memory) in stacked {
            out.sample(name, &[("model", model)], value(memory));
        }
    }
}

/// A figure of an engine.
type Value<T> = fn(&EngineStats) -> T;

fn of_engines<T: std::fmt::Display>(
    (name, kind, help): (&str, &str, &str),
    engines: &[(&str, EngineStats)],
    value: Value<T>,
    out: &mut Text,
) {
    out.family(name, kind, help);
    for (model, stats) in engines {
        out.sample(name, &[("model", model)], value(stats));
    }
}

/// Whether anything came; of an answer that ended before, the engine reports its end as the time
/// of its first token.
fn has_begun(finish: &Finish) -> bool {
    let whole = matches!(finish.reason, FinishReason::Stop | FinishReason::Length);
    whole || finish.usage.completion > 0
}

/// `GET /metrics`
pub(crate) async fn show(State(app): State<Arc<App>>) -> impl IntoResponse {
    let engines = app.engines();
    let engines: Vec<(&str, EngineStats)> = engines
        .map(|(_, model)| (model.name.as_str(), model.engine.stats()))
        .collect();
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        app.metrics.text(&engines, app.traces.lost()),
    )
}

/// Counts of times below each bound.
#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; SECONDS.len()],
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Histogram {
    fn record(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        if let Some(bucket) = SECONDS.iter().position(|bound| seconds <= *bound) {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    fn write(&self, name: &str, whose: (&str, &str), out: &mut Text) {
        // Read first: a count that grows meanwhile must not be below a bucket's.
        let buckets: Vec<u64> = self
            .buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed))
            .collect();
        let mut below = 0;
        for (bound, count) in SECONDS.iter().zip(buckets) {
            below += count;
            out.sample(
                &format!("{name}_bucket"),
                &[whose, ("le", &bound.to_string())],
                below,
            );
        }
        let count = self.count.load(Ordering::Relaxed).max(below);
        out.sample(&format!("{name}_bucket"), &[whose, ("le", "+Inf")], count);
        let sum = Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed)).as_secs_f64();
        out.sample(&format!("{name}_sum"), &[whose], sum);
        out.sample(&format!("{name}_count"), &[whose], count);
    }
}

/// Text in Prometheus' format.
#[derive(Debug, Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.0.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let text = text
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(
                self.0,
                "{}{label}=\"{text}\"",
                if i == 0 { '{' } else { ',' }
            );
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }
}

#[cfg(test)]
mod tests {
    use sedge_engine::{AdapterStats, Timings, Usage};

    use super::*;

    #[test]
    fn an_ended_answer_is_counted_and_timed() {
        let metrics = Metrics::new(vec!["a\"b".into()], vec![]);
        metrics.responded("/v1/models", 200);
        metrics.responded("/v1/models", 200);
        metrics.finished(
            0,
            "team",
            &Finish {
                reason: FinishReason::Stop,
                text: String::new(),
                usage: Usage {
                    prompt: 5,
                    completion: 3,
                    cached: 2,
                },
                timings: Timings {
                    queued: Duration::from_millis(1),
                    first_token: Duration::from_millis(100),
                    total: Duration::from_millis(300),
                },
            },
        );
        let text = metrics.text(
            &[(
                "a\"b",
                EngineStats {
                    running: 7,
                    adapters: AdapterStats {
                        registered: 4,
                        loading: Duration::from_millis(1500),
                        ..AdapterStats::default()
                    },
                    memory: Some(StackMemory {
                        bytes: 20,
                        smallest: 10,
                        largest: 40,
                        blocks: 5,
                        of: 9,
                        matrices: 3,
                        levels: (1, 2),
                    }),
                    ..EngineStats::default()
                },
            )],
            0,
        );
        for line in [
            "sedge_http_responses_total{route=\"/v1/models\",status=\"200\"} 2",
            "sedge_prompt_tokens_total{model=\"a\\\"b\"} 5",
            "sedge_completion_tokens_total{model=\"a\\\"b\"} 3",
            "sedge_requests_running{model=\"a\\\"b\"} 7",
            "sedge_time_per_output_token_seconds_bucket{model=\"a\\\"b\",le=\"0.05\"} 0",
            "sedge_time_per_output_token_seconds_bucket{model=\"a\\\"b\",le=\"0.1\"} 1",
            "sedge_time_per_output_token_seconds_bucket{model=\"a\\\"b\",le=\"+Inf\"} 1",
            "sedge_request_duration_seconds_sum{model=\"a\\\"b\"} 0.3",
            "sedge_request_duration_seconds_count{model=\"a\\\"b\"} 1",
            "sedge_adapters_registered{model=\"a\\\"b\"} 4",
            "sedge_adapter_load_seconds_total{model=\"a\\\"b\"} 1.5",
            "sedge_weights_bytes{model=\"a\\\"b\"} 20",
            "sedge_weights_blocks{model=\"a\\\"b\"} 5",
            "sedge_tenant_requests_finished_total{tenant=\"team\"} 1",
            "sedge_tenant_time_to_first_token_seconds_count{tenant=\"team\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn an_answer_that_never_began_has_no_time_to_its_first_token() {
        let metrics = Metrics::new(vec!["m".into()], vec![]);
        let finish = Finish {
            reason: FinishReason::Deadline,
            text: String::new(),
            usage: Usage::default(),
            timings: Timings::default(),
        };
        metrics.finished(0, "team", &finish);
        assert_eq!(metrics.recent(0, Instant::now())[0], None);
        let text = metrics.text(&[("m", EngineStats::default())], 0);
        for line in [
            "sedge_tenant_requests_finished_total{tenant=\"team\"} 1",
            "sedge_tenant_time_to_first_token_seconds_count{tenant=\"team\"} 0",
            "sedge_time_to_first_token_seconds_count{model=\"m\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
