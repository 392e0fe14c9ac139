//! `/v1/models`, and whether the server is alive and ready.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::server::ServedModel;

/// `GET /v1/models`
pub(crate) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    let data: Vec<Value> = app.models.iter().map(|model| card(&app, model)).collect();
    Json(json!({"object": "list", "data": data}))
}

/// `GET /v1/models/{id}`
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let (_, model) = app.model(&name)?;
    Ok(Json(card(&app, model)))
}

/// A model as OpenAI has it, and what is known of it besides.
fn card(app: &App, model: &ServedModel) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": app.metrics.started,
        "owned_by": "sedge",
        "architecture": model.architecture,
        "parameters": model.parameters,
        "context": model.context,
        "generates": model.generates,
        "chat": model.generates && model.template.is_some(),
    })
}

/// `GET /health`: the process answers.
pub(crate) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// `GET /ready`: new requests are taken.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    if app.draining() {
        Err(ApiError::Draining)
    } else {
        Ok(Json(json!({"status": "ready"})))
    }
}
