//! Which address is answered by what, and what every request passes on its way.

use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::app::App;
use crate::error::ApiError;
use crate::{
    adapters, asker, auth, chat, completions, embeddings, ids, live, memory, metrics, models,
    vision, web,
};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// All routes. The page, `/health` and `/ready` need no key.
pub(crate) fn router(app: Arc<App>) -> Router {
    let keyed = Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/vision/{task}", post(vision::see))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::show).put(memory::put))
        .route("/v1/adapters", get(adapters::list).post(adapters::add))
        .route(
            "/v1/adapters/{*id}",
            get(adapters::show)
                .post(adapters::act)
                .delete(adapters::remove),
        )
        .route("/metrics", get(metrics::show))
        .route("/live", get(live::show))
        .layer(from_fn_with_state(app.clone(), asker::identify))
        .layer(from_fn_with_state(app.clone(), auth::require_key));
    Router::new()
        .merge(keyed)
        .route("/health", get(models::health))
        .route("/ready", get(models::ready))
        .method_not_allowed_fallback(wrong_method)
        .fallback(web::file)
        .layer(cors(&app.config.cors_origins))
        .layer(from_fn_with_state(app.clone(), auth::require_host))
        .layer(from_fn_with_state(app.clone(), observe))
        .with_state(app)
}

async fn wrong_method(method: Method) -> ApiError {
    ApiError::Method(method.to_string())
}

/// Pages of these origins may call; without any, browsers let only the server's own page.
fn cors(origins: &[String]) -> CorsLayer {
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(
            origins
                .iter()
                .filter_map(|origin| HeaderValue::from_str(origin).ok()),
        )
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID, header::RETRY_AFTER])
}

/// Gives each request an id, the client's own if it sent one, and counts the response.
async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(REQUEST_ID)
        .filter(|id| is_plain(id))
        .cloned();
    let id = id.or_else(|| HeaderValue::from_str(&ids::unique("req_")).ok());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map(|path| path.as_str().to_string());
    let mut response = next.run(request).await;
    app.metrics.responded(
        route.as_deref().unwrap_or("other"),
        response.status().as_u16(),
    );
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Short and of visible characters, so that it may be repeated.
fn is_plain(id: &HeaderValue) -> bool {
    (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}
