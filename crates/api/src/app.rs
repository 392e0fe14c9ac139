//! What every request handler sees.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sedge_engine::AdapterView;
use tokio::sync::Semaphore;

use crate::collector::Collector;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::openai::fields::Fields;
use crate::server::{ServedModel, ServerConfig};
use crate::traces::Traces;
use crate::vision::VisionModel;

/// Request bodies being read may take this many times the largest one's size together.
const BODIES_AT_ONCE: usize = 4;
/// Most names that an error lists.
const LISTED: usize = 20;

/// The served models and the server's state.
#[derive(Debug)]
pub(crate) struct App {
    /// Models, the first of which answers requests that name none.
    pub(crate) models: Vec<ServedModel>,
    /// Networks that see.
    pub(crate) vision: Vec<VisionModel>,
    /// Settings.
    pub(crate) config: ServerConfig,
    /// Counters and histograms.
    pub(crate) metrics: Metrics,
    /// Spans for a collector.
    pub(crate) traces: Traces,
    /// Bytes of bodies that may still be held.
    pub(crate) body_bytes: Semaphore,
    /// One picture is looked at at a time: each has all threads, and takes memory when decoded.
    pub(crate) vision_turn: Arc<Semaphore>,
    /// One adapter is read or merged at a time: each takes memory beside what serves.
    pub(crate) adapter_turns: Arc<Semaphore>,
    /// The server stops: it takes no new work.
    draining: AtomicBool,
}

impl App {
    /// Nothing served yet.
    pub(crate) fn new(
        models: Vec<ServedModel>,
        vision: Vec<VisionModel>,
        config: ServerConfig,
    ) -> App {
        let names = models.iter().map(|model| model.name.clone()).collect();
        let seeing = vision.iter().map(|model| model.name.clone()).collect();
        let endpoint = config.otlp_endpoint.as_deref();
        let collector = endpoint.and_then(|endpoint| Collector::parse(endpoint).ok());
        let bytes = config
            .max_body
            .saturating_mul(BODIES_AT_ONCE)
            .min(Semaphore::MAX_PERMITS);
        App {
            metrics: Metrics::new(names, seeing),
            traces: Traces::start(collector),
            body_bytes: Semaphore::new(bytes),
            vision_turn: Arc::new(Semaphore::new(1)),
            adapter_turns: Arc::new(Semaphore::new(1)),
            draining: AtomicBool::new(false),
            models,
            vision,
            config,
        }
    }

    /// Takes no new work from now on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the server stops.
    pub(crate) fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The model of this name with its number; the first one for the empty name.
    pub(crate) fn model(&self, name: &str) -> Result<(usize, &ServedModel), ApiError> {
        let found = self
            .models
            .iter()
            .enumerate()
            .find(|(_, model)| name.is_empty() || model.name == name);
        found.ok_or_else(|| ApiError::ModelNotFound {
            name: shortened(name),
            served: self.served(),
        })
    }

    /// The model that an adapter is of by its name, `MODEL:NAME`, with its number. Adapters' own
    /// names hold no colon.
    pub(crate) fn model_of_adapter(&self, name: &str) -> Option<(usize, &ServedModel)> {
        let (model, _) = name.rsplit_once(':')?;
        let mut models = self.models.iter().enumerate();
        models.find(|(_, served)| served.name == model)
    }

    /// The model of this name, or the model that an adapter of this name changes.
    fn model_or_adapter(&self, name: &str) -> Result<(usize, ServedModel), ApiError> {
        let unknown = match self.model(name) {
            Ok((number, model)) => return Ok((number, model.clone())),
            Err(unknown) => unknown,
        };
        if let Some(model) = self.vision.iter().find(|model| model.name == name) {
            let task = model.task.name();
            let message = format!("The model '{name}' sees; it is for /v1/vision/{task}.");
            return Err(ApiError::invalid("model", message));
        }
        let found = self.model_of_adapter(name);
        let found = found.filter(|(_, model)| model.engine.has_adapter(name));
        let (number, model) = found.ok_or(unknown)?;
        let adapted = ServedModel {
            name: name.to_owned(),
            adapter: Some(name.into()),
            ..model.clone()
        };
        Ok((number, adapted))
    }

    /// The engines, each once: its first model with its number. Models whose weights are shared
    /// share an engine.
    pub(crate) fn engines(&self) -> impl Iterator<Item = (usize, &ServedModel)> {
        let numbered = self.models.iter().enumerate();
        numbered.filter(|(number, model)| {
            let before = &self.models[..*number];
            !before
                .iter()
                .any(|other| other.engine.is_same(&model.engine))
        })
    }

    /// All adapters with their models, in the models' order and by name.
    pub(crate) fn adapters(&self) -> Vec<(&ServedModel, AdapterView)> {
        let views = self
            .engines()
            .flat_map(|(_, model)| model.engine.adapters());
        let mut all: Vec<_> = views
            .filter_map(|view| Some((self.model_of_adapter(&view.name)?, view)))
            .collect();
        all.sort_by_key(|((number, _), _)| *number);
        let named = all.into_iter();
        named.map(|((_, model), view)| (model, view)).collect()
    }

    /// Names that requests may ask for, for a message: all, or the first of too many.
    fn served(&self) -> String {
        let texts = self.models.iter().map(|model| model.name.clone());
        let seeing = self.vision.iter().map(|model| model.name.clone());
        let mut names: Vec<String> = texts.chain(seeing).collect();
        let adapters = |(_, model): (usize, &ServedModel)| model.engine.stats().adapters.registered;
        let adapters: usize = self.engines().map(adapters).sum();
        let all = names.len() + adapters;
        // Views of thousands are not made for a message.
        if all <= LISTED {
            let views = self.adapters().into_iter();
            names.extend(views.map(|(_, view)| view.name.to_string()));
        }
        names.truncate(LISTED);
        match all.saturating_sub(names.len()) {
            0 => names.join(", "),
            more => format!(
                "{} and {more} more, which GET /v1/models lists",
                names.join(", ")
            ),
        }
    }

    /// Takes `model` out of a request and finds it.
    pub(crate) fn requested_model(
        &self,
        fields: &mut Fields,
    ) -> Result<(usize, ServedModel), ApiError> {
        if self.draining() {
            return Err(ApiError::Draining);
        }
        let name = fields.string("model")?.unwrap_or_default();
        self.model_or_adapter(&name)
    }
}

impl ServedModel {
    /// Makes a request one of this model.
    pub(crate) fn sign(&self, request: &mut sedge_engine::Request) {
        request.member = self.member;
        request.adapter.clone_from(&self.adapter);
    }

    /// Refuses to generate with an encoder.
    pub(crate) fn must_generate(&self) -> Result<(), ApiError> {
        if self.generates {
            return Ok(());
        }
        let message = format!(
            "The model '{}' does not generate text; it is for /v1/embeddings.",
            self.name
        );
        Err(ApiError::invalid("model", message))
    }
}

/// Runs work that takes a while (templates, tokenising, grammars) beside the connections' threads.
pub(crate) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ApiError::Internal(error.to_string())),
    }
}

/// A name from a request as far as a message should repeat it.
pub(crate) fn shortened(name: &str) -> String {
    const MOST: usize = 200;
    if name.chars().count() <= MOST {
        name.to_string()
    } else {
        name.chars().take(MOST).chain(['…']).collect()
    }
}
