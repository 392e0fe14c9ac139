//! `/v1/models`, and whether the server is alive and ready.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use sedge_engine::AdapterView;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::memory;
use crate::server::ServedModel;
use crate::vision;

/// `GET /v1/models`
pub(crate) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    let mut data: Vec<Value> = app.models.iter().map(|model| card(&app, model)).collect();
    data.extend(app.vision.iter().map(|model| vision::card(&app, model)));
    let adapters = app.adapters();
    data.extend(
        adapters
            .iter()
            .map(|(model, view)| adapted(&app, model, view)),
    );
    Json(json!({"object": "list", "data": data}))
}

/// `GET /v1/models/{id}` and `/memory` after it
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let unknown = match app.model(&name) {
        Ok((_, model)) => return Ok(Json(card(&app, model))),
        Err(unknown) => unknown,
    };
    if let Some(model) = app.vision.iter().find(|model| model.name == name) {
        return Ok(Json(vision::card(&app, model)));
    }
    // A name may end like this too.
    if let Some(model) = name.strip_suffix(memory::SUFFIX) {
        return Ok(Json(memory::card(app.model(model)?.1)?));
    }
    let found = app.model_of_adapter(&name).and_then(|(_, model)| {
        let view = model.engine.adapter(&name)?;
        Some(adapted(&app, model, &view))
    });
    Ok(Json(found.ok_or(unknown)?))
}

/// A model as OpenAI has it, and what is known of it besides.
fn card(app: &App, model: &ServedModel) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": app.metrics.started,
        "owned_by": "sedge",
        "parent": null,
        "architecture": model.architecture,
        "parameters": model.parameters,
        "context": model.context,
        "generates": model.generates,
        "chat": model.generates && model.template.is_some(),
    })
}

/// A model with an adapter: its card with what the adapter is, under the adapter's name.
fn adapted(app: &App, model: &ServedModel, view: &AdapterView) -> Value {
    let mut card = card(app, model);
    card["id"] = json!(&*view.name);
    card["parent"] = json!(model.name);
    card["method"] = json!(view.method);
    card["bytes"] = json!(view.bytes);
    card["resident"] = json!(view.resident);
    card["merged"] = json!(view.merged);
    card
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
