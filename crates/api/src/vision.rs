//! `POST /v1/vision/{task}`: a picture comes in, and what a network sees in it goes out.

mod model;
mod seen;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Path, Query, Request, State};
use axum::http::header;
use axum::response::IntoResponse;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sedge_formats::image::{self, Limits};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::app::{App, aside, shortened};
use crate::body;
use crate::error::ApiError;
use crate::openai::fields::Fields;

pub(crate) use model::card;
pub use model::{See, SeeFn, VisionModel, VisionTask, Wish};
pub use seen::Seen;

/// Most pixels of a picture: those of large phones' photographs. One at a time is decoded, in
/// some twelve bytes a pixel.
const PIXELS: usize = 50_000_000;
/// Most answers that can be asked for.
const TOP: usize = 10_000;

/// What a request asks for, besides its picture.
struct Asked {
    model: String,
    wish: Wish,
}

/// A picture as it came.
enum Picture {
    File(Vec<u8>),
    /// `data:…;base64,…`
    Url(String),
}

/// The handler.
pub(crate) async fn see(
    State(app): State<Arc<App>>,
    Path(task): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
    request: Request,
) -> Result<impl IntoResponse, ApiError> {
    let unknown = || ApiError::RouteNotFound(format!("/v1/vision/{}", shortened(&task)));
    let task = VisionTask::named(&task).ok_or_else(unknown)?;
    if app.draining() {
        return Err(ApiError::Draining);
    }
    let query = of_query(query);
    // The bytes' share of the budget is held until the answer is there.
    let (asked, picture, _share) = if body::is_json(request.headers()) {
        let body = body::bytes(&app, request).await?;
        Fields::open("", query)?.end()?;
        let mut fields = Fields::open("", body.json()?)?;
        let url = fields.required_string("image")?;
        (asked(fields, task)?, Picture::Url(url), body.share)
    } else if body::is_picture(request.headers()) {
        let body = body::bytes(&app, request).await?;
        let asked = asked(Fields::open("", query)?, task)?;
        (asked, Picture::File(body.bytes), body.share)
    } else {
        return Err(ApiError::PictureType);
    };
    let (number, model) = found(&app, &asked.model, task)?;
    let model = model.clone();

    // A picture at a time: each has all threads.
    let turn = app.vision_turn.clone().acquire_owned().await;
    let turn = turn.map_err(|_| ApiError::Draining)?;
    let (answer, time) = aside(move || {
        let answer = answer(&model, &asked.wish, picture);
        drop(turn);
        answer
    })
    .await?;
    app.metrics.saw(number, time);
    Ok(([(header::CONTENT_TYPE, "application/json")], answer))
}

/// An answer.
#[derive(Serialize)]
struct Reply<'a> {
    model: &'a str,
    task: &'static str,
    #[serde(flatten)]
    seen: Seen,
}

/// What the model sees, as JSON, and how long that took.
fn answer(
    model: &VisionModel,
    wish: &Wish,
    picture: Picture,
) -> Result<(Vec<u8>, Duration), ApiError> {
    let start = Instant::now();
    let bytes = picture.bytes()?;
    let image = image::decode(&bytes, Limits { pixels: PIXELS })
        .map_err(|error| ApiError::invalid("image", error.to_string()))?;
    drop(bytes);
    let answer = (model.see.0)(&image, wish).map_err(ApiError::Internal)?;
    let time = start.elapsed();
    let reply = Reply {
        model: &model.name,
        task: model.task.name(),
        seen: Seen::new(&image, &answer, time),
    };
    let json = serde_json::to_vec(&reply);
    let json = json.map_err(|error| ApiError::Internal(error.to_string()))?;
    Ok((json, time))
}

impl Picture {
    /// The file's bytes.
    fn bytes(self) -> Result<Vec<u8>, ApiError> {
        let url = match self {
            Picture::File(bytes) => return Ok(bytes),
            Picture::Url(url) => url,
        };
        let data = url.strip_prefix("data:").and_then(|x| x.split_once(','));
        let Some((_, data)) = data.filter(|(kind, _)| kind.ends_with(";base64")) else {
            let message = "'image' must be the picture itself, as 'data:image/jpeg;base64,…'; \
                           nothing is fetched.";
            return Err(ApiError::invalid("image", message));
        };
        let decoded = STANDARD.decode(data);
        decoded.map_err(|error| ApiError::invalid("image", format!("'image': {error}")))
    }
}

/// A query's parameters as an object; what reads like a number is one.
fn of_query(query: BTreeMap<String, String>) -> Value {
    let value = |(name, text): (String, String)| {
        let number = text.parse().ok().filter(|_| name != "model");
        (name, number.map_or(Value::String(text), Value::Number))
    };
    Value::Object(query.into_iter().map(value).collect::<Map<_, _>>())
}

fn asked(mut fields: Fields, task: VisionTask) -> Result<Asked, ApiError> {
    let model = fields.string("model")?.unwrap_or_default();
    let mut wish = Wish::default();
    // A mask has a class for each pixel, likely or not.
    if task != VisionTask::Segment {
        wish.top = fields.count("top", 1, TOP)?;
        wish.threshold = fields.number("threshold")?;
    }
    fields.end()?;
    match wish.threshold {
        Some(x) if !(0.0..=1.0).contains(&x) => {
            let message = format!("'threshold' is {x}; it must be 0 to 1.");
            Err(ApiError::invalid("threshold", message))
        }
        _ => Ok(Asked { model, wish }),
    }
}

/// The model of this name, or the first for the task, with its number.
fn found<'a>(
    app: &'a App,
    name: &str,
    task: VisionTask,
) -> Result<(usize, &'a VisionModel), ApiError> {
    let mut models = app.vision.iter().enumerate();
    if name.is_empty() {
        let first = models.find(|(_, model)| model.task == task);
        return first.ok_or(ApiError::NoVision(task.name()));
    }
    match models.find(|(_, model)| model.name == name) {
        Some((_, model)) if model.task != task => {
            let route = model.task.name();
            let message = format!("The model '{name}' is for /v1/vision/{route}.");
            Err(ApiError::invalid("model", message))
        }
        Some(found) => Ok(found),
        None => match app.model(name) {
            Ok(_) => {
                let message = format!("The model '{name}' reads text, not pictures.");
                Err(ApiError::invalid("model", message))
            }
            Err(unknown) => Err(unknown),
        },
    }
}
