//! A network that the server sees with.

use std::sync::Arc;

use sedge_formats::image::Image;
use sedge_vision::task::{Answer, Reads};
use serde_json::{Value, json};

use crate::app::App;

/// What a network is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VisionTask {
    /// What a picture shows.
    Classify,
    /// What is where.
    Detect,
    /// What each pixel is.
    Segment,
}

impl VisionTask {
    /// All there are.
    const ALL: [VisionTask; 3] = [
        VisionTask::Classify,
        VisionTask::Detect,
        VisionTask::Segment,
    ];

    /// What a network is for whose outputs are these.
    pub fn of(reads: Reads) -> VisionTask {
        match reads {
            Reads::Classes => VisionTask::Classify,
            Reads::YoloX | Reads::YoloV5 | Reads::YoloV8 | Reads::Ssd | Reads::Text => {
                VisionTask::Detect
            }
            Reads::Pixels => VisionTask::Segment,
        }
    }

    /// Its verb, in routes and commands.
    pub fn name(self) -> &'static str {
        match self {
            VisionTask::Classify => "classify",
            VisionTask::Detect => "detect",
            VisionTask::Segment => "segment",
        }
    }

    pub(super) fn named(name: &str) -> Option<VisionTask> {
        VisionTask::ALL.into_iter().find(|task| task.name() == name)
    }
}

/// What a request may ask for; what it leaves out is the model's own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish {
    /// Most answers.
    pub top: Option<usize>,
    /// Answers that are less likely are left out, from 0 to 1.
    pub threshold: Option<f32>,
}

/// Says what a picture shows; the text says why it cannot.
#[derive(Clone)]
pub struct See(pub Arc<SeeFn>);

/// What is behind [`See`]. It blocks while it computes.
pub type SeeFn = dyn Fn(&Image, &Wish) -> Result<Answer, String> + Send + Sync;

impl std::fmt::Debug for See {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("See")
    }
}

/// A network that pictures are given to.
#[derive(Debug, Clone)]
pub struct VisionModel {
    /// Name in the API, none of another model's.
    pub name: String,
    /// What it is for.
    pub task: VisionTask,
    /// How pictures become its inputs and what its outputs are, as `sedge see --preset` has it.
    pub preset: &'static str,
    /// Rows and columns of its input.
    pub size: [usize; 2],
    /// Number of its weights.
    pub parameters: u64,
    /// Whether they are random: its answers then mean nothing.
    pub random: bool,
    /// Runs it.
    pub see: See,
}

/// A model in the list of models.
pub(crate) fn card(app: &App, model: &VisionModel) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": app.metrics.started,
        "owned_by": "sedge",
        "parent": null,
        "architecture": model.preset,
        "parameters": model.parameters,
        "generates": false,
        "chat": false,
        "task": model.task.name(),
        "input": model.size,
        "random": model.random,
    })
}
