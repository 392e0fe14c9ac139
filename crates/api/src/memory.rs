//! `/v1/models/{id}/memory`: how much memory a model's weights have, and giving it more or less
//! while it serves.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use sedge_engine::{MemoryError, Moved};
use serde_json::{Value, json};

use crate::app::{self, App};
use crate::body;
use crate::error::ApiError;
use crate::server::ServedModel;

/// What the model's name is followed by.
pub(crate) const SUFFIX: &str = "/memory";

/// What is known of a model's memory.
pub(crate) fn card(model: &ServedModel) -> Result<Value, ApiError> {
    let engine = &model.engine;
    let memory = engine.memory().ok_or_else(|| fixed(model))?;
    Ok(json!({
        "object": "model.memory",
        "model": model.name,
        "bytes": memory.bytes,
        "target": engine.memory_target(),
        "smallest": memory.smallest,
        "largest": memory.largest,
        "blocks": memory.blocks,
        "blocks_of": memory.of,
        "matrices": memory.matrices,
        "levels": [memory.levels.0, memory.levels.1],
    }))
}

/// `PUT /v1/models/{id}/memory`
pub(crate) async fn put(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let Some(name) = id.strip_suffix(SUFFIX) else {
        let path = app::shortened(&format!("/v1/models/{id}"));
        return Err(ApiError::RouteNotFound(path));
    };
    let mut fields = body::json(&app, request).await?;
    let bytes = fields.count("bytes", 1, usize::MAX)?;
    let bytes = bytes.ok_or_else(|| fields.missing("bytes"))? as u64;
    fields.end()?;
    if app.draining() {
        return Err(ApiError::Draining);
    }
    let model = app.model(name)?.1.clone();
    // Beside the connections: blocks are read from the disk.
    let changed = app::aside(move || {
        let moved = model.engine.set_memory(bytes);
        let moved = moved.map_err(|error| refused(&model, error))?;
        let mut card = card(&model)?;
        card["moved"] = moved_card(moved);
        Ok(card)
    });
    Ok(Json(changed.await?))
}

fn moved_card(moved: Moved) -> Value {
    json!({
        "loaded_blocks": moved.into.count,
        "loaded_bytes": moved.into.bytes,
        "released_blocks": moved.out.count,
        "released_bytes": moved.out.bytes,
    })
}

fn fixed(model: &ServedModel) -> ApiError {
    let message = format!(
        "The model '{}' has one size: its weights are not stacks of blocks. `sedge shrink MODEL --to stack` \
         makes such a file.",
        model.name
    );
    ApiError::invalid("model", message)
}

fn refused(model: &ServedModel, error: MemoryError) -> ApiError {
    match error {
        MemoryError::NotStacked => fixed(model),
        MemoryError::TooSmall { asked, smallest } => ApiError::invalid(
            "bytes",
            format!(
                "'bytes' is {asked}; the smallest that '{}' runs in is {smallest}.",
                model.name
            ),
        ),
        MemoryError::Block { .. } => ApiError::Internal(error.to_string()),
    }
}
