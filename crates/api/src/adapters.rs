//! `/v1/adapters`: which there are, and adding, merging and removing them while models serve.
//! What takes a while runs beside the connections; requests that have begun end as they began.

use std::path::Path as FilePath;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use sedge_engine::AdapterView;
use serde_json::{Value, json};

use crate::app::{self, App};
use crate::error::ApiError;
use crate::server::ServedModel;
use crate::{adapter_roots, body};

/// Whether an adapter may be called so: 1 to 64 letters, digits, `.`, `_` and `-`. With its
/// model's name before it, `MODEL:NAME` is read in one way only.
pub fn is_adapter_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

/// `GET /v1/adapters`
pub(crate) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    let all = app.adapters();
    let data: Vec<Value> = all.iter().map(|(model, view)| card(model, view)).collect();
    Json(json!({"object": "list", "data": data}))
}

/// `GET /v1/adapters/{id}`
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let model = model_of(&app, &id)?;
    let view = model.engine.adapter(&id).ok_or_else(|| unknown(&id))?;
    Ok(Json(card(model, &view)))
}

/// `POST /v1/adapters`
pub(crate) async fn add(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let mut fields = body::json(&app, request).await?;
    let model = fields.string("model")?.unwrap_or_default();
    let name = fields.required_string("name")?;
    let path = fields.required_string("path")?;
    fields.end()?;
    if app.config.adapter_roots.is_empty() {
        return Err(ApiError::PathsClosed);
    }
    if !is_adapter_name(&name) {
        let message = format!(
            "'name' is '{}'; it must be 1 to 64 of the characters A-Z a-z 0-9 . _ -",
            app::shortened(&name)
        );
        return Err(ApiError::invalid("name", message));
    }
    let (number, model) = app.model(&model)?;
    let full = format!("{}:{name}", model.name);
    if app.models.iter().any(|served| served.name == full) || model.engine.has_adapter(&full) {
        return Err(ApiError::AdapterExists(full));
    }
    let view = in_turn(&app, move |app| {
        let model = &app.models[number];
        let Some(open) = &model.open_adapter else {
            let message = format!("The model '{}' takes no adapters.", model.name);
            return Err(ApiError::invalid("model", message));
        };
        let folder = adapter_roots::allowed(&app.config.adapter_roots, FilePath::new(&path));
        let refused = || ApiError::PathNotAllowed(app::shortened(&path));
        let folder = folder.ok_or_else(refused)?;
        let opened = (open.0)(&full, &folder).map_err(|why| ApiError::invalid("path", why))?;
        let view = model
            .engine
            .add_adapter(opened)
            .map_err(ApiError::adapter)?;
        Ok(card(model, &view))
    });
    Ok((StatusCode::CREATED, Json(view.await?)))
}

/// `DELETE /v1/adapters/{id}`
pub(crate) async fn remove(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let engine = model_of(&app, &id)?.engine.clone();
    let gone = json!({"id": id, "object": "adapter", "deleted": true});
    // Beside the connections: weights that it was merged into may go with it.
    app::aside(move || engine.remove_adapter(&id).map_err(ApiError::adapter)).await?;
    Ok(Json(gone))
}

/// `POST /v1/adapters/{id}/merge` and `/unmerge`
pub(crate) async fn act(
    State(app): State<Arc<App>>,
    Path(rest): Path<String>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let (id, merges) = match rest.rsplit_once('/') {
        Some((id, "merge")) => (id.to_owned(), true),
        Some((id, "unmerge")) => (id.to_owned(), false),
        _ => {
            let path = app::shortened(&format!("/v1/adapters/{rest}"));
            return Err(ApiError::RouteNotFound(path));
        }
    };
    body::json_or_nothing(&app, request).await?.end()?;
    model_of(&app, &id)?;
    let changed = in_turn(&app, move |app| {
        let model = model_of(app, &id)?;
        let view = match merges {
            true => model.engine.merge_adapter(&id),
            false => model.engine.unmerge_adapter(&id),
        };
        Ok(card(model, &view.map_err(ApiError::adapter)?))
    });
    Ok(Json(changed.await?))
}

/// Runs work on adapters beside the connections, after that which others asked for before. It
/// ends even if its client goes away.
async fn in_turn<T: Send + 'static>(
    app: &Arc<App>,
    work: impl FnOnce(&App) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let turn = app.adapter_turns.clone().acquire_owned().await;
    let turn = turn.map_err(|_| ApiError::Draining)?;
    if app.draining() {
        return Err(ApiError::Draining);
    }
    let app = app.clone();
    app::aside(move || {
        let _turn = turn;
        work(&app)
    })
    .await
}

fn unknown(id: &str) -> ApiError {
    ApiError::AdapterNotFound(app::shortened(id))
}

fn model_of<'a>(app: &'a App, id: &str) -> Result<&'a ServedModel, ApiError> {
    let found = app.model_of_adapter(id);
    found.map(|(_, model)| model).ok_or_else(|| unknown(id))
}

/// What is known of an adapter.
fn card(model: &ServedModel, view: &AdapterView) -> Value {
    let name = view
        .name
        .rsplit_once(':')
        .map_or(&*view.name, |(_, name)| name);
    json!({
        "id": &*view.name,
        "object": "adapter",
        "name": name,
        "model": model.name,
        "method": view.method,
        "bytes": view.bytes,
        "positions": view.positions,
        "resident": view.resident,
        "merged": view.merged,
        "requests": view.requests,
        "loads": view.loads,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for name in ["a", "sql-v1.2_x", "..", &"x".repeat(64)] {
            assert!(is_adapter_name(name), "{name}");
        }
        for name in ["", "a:b", "a/b", "a b", "ä", "a\n", "%2e", &"x".repeat(65)] {
            assert!(!is_adapter_name(name), "{name}");
        }
    }
}
