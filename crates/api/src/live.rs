//! `GET /live`: what the engines do, for the live view.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Query, State};
use axum::response::IntoResponse;
use sedge_engine::{RequestView, StepRecord};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::server::ServedModel;

/// Requests that are listed of each model.
const LISTED: usize = 200;
/// Steps that one answer holds of each model.
const STEPS: usize = 1000;

/// What a viewer has seen.
#[derive(Debug, Deserialize)]
pub(crate) struct Seen {
    /// The number of the last step, of the model whose steps are wanted.
    #[serde(default)]
    since: u64,
    /// The model's number.
    #[serde(default)]
    model: usize,
}

/// The handler.
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Query(seen): Query<Seen>,
) -> impl IntoResponse {
    let names: Vec<&str> = app.models.iter().map(|m| m.name.as_str()).collect();
    let number = seen.model.min(app.models.len().saturating_sub(1));
    let model = app.models.get(number).map(|served| {
        let engine = &served.engine;
        let stats = engine.stats();
        let steps = engine.steps(seen.since);
        let steps = &steps[steps.len().saturating_sub(STEPS)..];
        // Asking keeps the list alive; one that no step has followed since may be of the past.
        let mut requests = engine.requests();
        if stats.running + stats.waiting == 0 {
            requests.clear();
        }
        let [ttft, tbt] = app.metrics.recent(number, Instant::now());
        json!({
            "number": number,
            // A viewer that has seen later steps has seen another server.
            "last_step": stats.steps,
            "waiting": stats.waiting,
            "running": stats.running,
            "pages": {
                "all": stats.pages,
                "running": stats.pages_used,
                "cached": stats.pages_cached,
                "host": stats.pages_host,
                "disk": stats.pages_disk,
            },
            "counts": {
                "finished": stats.finished,
                "refused": stats.refused,
                "cancelled": stats.cancelled,
                "preempted": stats.preempted,
                "reused_tokens": stats.cache.reused_tokens,
                "asked_tokens": stats.cache.asked_tokens,
            },
            "adapters": {
                "registered": stats.adapters.registered,
                "resident": stats.adapters.resident,
                "bytes": stats.adapters.bytes,
                "capacity": stats.adapters.capacity,
                "loads": stats.adapters.loads,
                "evictions": stats.adapters.evictions,
                "hits": stats.adapters.hits,
            },
            "memory": stats.memory.map(|m| json!({
                "bytes": m.bytes,
                "target": engine.memory_target(),
                "smallest": m.smallest,
                "largest": m.largest,
                "blocks": m.blocks,
                "blocks_of": m.of,
            })),
            "latency": {"ttft_ms": ttft, "tbt_ms": tbt},
            "steps": steps.iter().map(step).collect::<Vec<_>>(),
            "requests": requests.iter().take(LISTED).map(|r| request(&app, served, r)).collect::<Vec<_>>(),
            "unlisted": requests.len().saturating_sub(LISTED),
        })
    });
    Json(json!({"started": app.metrics.started, "models": names, "model": model}))
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

fn step(step: &StepRecord) -> Value {
    json!({
        "number": step.number,
        "at": milliseconds(step.start),
        "ms": milliseconds(step.time),
        "planning_ms": milliseconds(step.planning),
        "predicted_ms": step.predicted.map(milliseconds),
        "generated": step.generated,
        "prompt": step.prompt,
        "running": step.running,
        "waiting": step.waiting,
        "preempted": step.preempted,
        "pages": [step.pages.running, step.pages.cached, step.pages.host, step.pages.disk],
    })
}

fn request(app: &App, asked: &ServedModel, request: &RequestView) -> Value {
    let member = app
        .models
        .iter()
        .find(|model| model.engine.is_same(&asked.engine) && model.member == request.member);
    let model = member.unwrap_or(asked).name.as_str();
    json!({
        "number": request.number,
        "model": request.adapter.as_deref().unwrap_or(model),
        "tenant": &*request.tenant,
        "priority": request.priority,
        "seconds": request.age.as_secs_f64(),
        "running": request.running,
        "prompt": request.prompt,
        "computed": request.computed,
        "generated": request.generated,
    })
}
