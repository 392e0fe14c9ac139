//! MODEL of commands that see: an ONNX file, or a network that is built by its name.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use sedge_api::{See, VisionModel, VisionTask, Wish};
use sedge_formats::image::Image;
use sedge_formats::onnx::Model;
use sedge_formats::safetensors::Checkpoint;
use sedge_kernels::Team;
use sedge_vision::nets::{self, NetError};
use sedge_vision::task::{self, Labels, Task, TaskError};
use sedge_vision::{Graph, LowerError, Sizes, fuse, lower};

use super::seer::Seer;
use crate::failure::Failure;
use crate::output;

/// Rows and columns, as `480x640` or `640` of a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) [usize; 2]);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let (rows, columns) = text.split_once(['x', '×']).unwrap_or((text, text));
        let side = |text: &str| text.parse().ok().filter(|n| (1..=8192).contains(n));
        let sides = side(rows).zip(side(columns));
        let sides = sides.ok_or("rows and columns, each 1 to 8192, as 480x640");
        Ok(sides.map(|(rows, columns)| Size([rows, columns]))?)
    }
}

/// What a model's file does not say.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct NetworkOptions {
    /// How pictures become inputs and what outputs are [default: seen from the model]
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    pub(crate) preset: Option<String>,

    /// Names of the classes, one a line [default: the model's, or its preset's]
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    pub(crate) labels: Option<PathBuf>,

    /// Rows and columns of the input, where the model leaves them open
    #[arg(long, value_name = "HxW", help_heading = "Network")]
    pub(crate) size: Option<Size>,

    /// Weights of a network that is built by its name: torchvision's, as safetensors
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    pub(crate) weights: Option<PathBuf>,

    /// Channels of a network that is built by its name, as a factor of its own
    #[arg(long, value_name = "FACTOR", help_heading = "Network")]
    pub(crate) width: Option<f32>,
}

/// A network, and what it is for.
pub(crate) struct Network {
    pub(crate) graph: Graph,
    pub(crate) task: Task,
    /// Whether its weights are random.
    pub(crate) random: bool,
}

impl Network {
    /// Opens an ONNX file or builds a network.
    pub(crate) fn open(model: &str, options: &NetworkOptions) -> Result<Network, Failure> {
        let (graph, random) = graph(model, options)?;
        let task = Task::of(&graph, options.preset.as_deref());
        let mut task = task.map_err(|error| untold(model, &error))?;
        if let Some(file) = &options.labels {
            let text = std::fs::read_to_string(file).map_err(|e| Failure::file(file, &e))?;
            task.labels = Labels::lines(&text);
        }
        Ok(Network {
            graph,
            task,
            random,
        })
    }

    /// Rows and columns of its input.
    fn size(&self) -> [usize; 2] {
        // A task is of one picture `[1, 3, rows, columns]`.
        let shape = self.graph.shape(self.graph.inputs()[0]);
        [shape[2], shape[3]]
    }

    /// Says so if what it sees means nothing.
    pub(crate) fn warn_of_random(&self, model: &str) {
        if self.random {
            output::note(format_args!(
                "sedge: {model} has random weights: it is good for measuring, and what it sees means nothing\n  \
                 try: --weights FILE.safetensors, with torchvision's"
            ));
        }
    }
}

/// The graph of an ONNX file or of a network that is built, fused, and whether its weights are
/// random.
pub(crate) fn graph(model: &str, options: &NetworkOptions) -> Result<(Graph, bool), Failure> {
    let path = Path::new(model);
    let named = match path.exists() {
        true => None,
        false => network_named(model),
    };
    let (mut graph, random) = match named {
        Some(name) => build(name, options)?,
        None => (read(path, options)?, false),
    };
    fuse(&mut graph);
    Ok((graph, random))
}

/// A network that Sedge can build.
pub(crate) fn network_named(name: &str) -> Option<&'static str> {
    nets::names().into_iter().find(|known| *known == name)
}

fn build(name: &str, options: &NetworkOptions) -> Result<(Graph, bool), Failure> {
    let weights = match &options.weights {
        None => nets::Weights::Random { seed: 0 },
        Some(file) => {
            let bytes = sedge_formats::map(file).map_err(|e| Failure::file(file, &e))?;
            let checkpoint = Checkpoint::parse(bytes);
            nets::Weights::Checkpoint(checkpoint.map_err(|e| Failure::about(file, &e))?)
        }
    };
    let random = options.weights.is_none();
    let options_of_net = nets::Options {
        size: options.size.map(|size| size.0),
        weights,
        width: options.width.unwrap_or(1.0),
        ..nets::Options::default()
    };
    let graph = nets::build(name, options_of_net).map_err(|error| {
        let of_file = matches!(
            error,
            NetError::Missing { .. } | NetError::Size { .. } | NetError::Codec { .. }
        );
        match options.weights.as_deref().filter(|_| of_file) {
            Some(file) => Failure::about(file, &error).hint(format_args!(
                "a checkpoint of torchvision's network that {name} is, as safetensors"
            )),
            None => Failure::new(format_args!("{name}: {error}")),
        }
    })?;
    Ok((graph, random))
}

fn read(path: &Path, options: &NetworkOptions) -> Result<Graph, Failure> {
    if !path.exists() {
        let what = format!("{}: no such file or network", path.display());
        let names = nets::names().join(", ");
        return Err(Failure::new(what).hint(format_args!("an ONNX file, or one of {names}")));
    }
    let given = [
        (options.weights.is_some(), "--weights"),
        (options.width.is_some(), "--width"),
    ];
    if let Some((_, option)) = given.iter().find(|(given, _)| *given) {
        let path = path.display();
        let what = format!("{option} with {path}: an ONNX file has its own");
        return Err(Failure::misused(what, format_args!("without {option}")));
    }
    let model = Model::open(path).map_err(|error| Failure::about(path, &error))?;
    let asked = options.size.map(|size| size.0);
    let sizes = Sizes {
        batch: 1,
        picture: asked,
    };
    let graph = lower(&model, sizes).map_err(|error| lowering(path, &error))?;
    let input = graph.inputs().first().map(|&x| graph.shape(x));
    if let (Some(asked), Some([_, _, rows, columns])) = (asked, input)
        && asked != [*rows, *columns]
    {
        let what = format!(
            "--size: the input of {} is {rows} × {columns}, which the file fixes",
            path.display()
        );
        return Err(Failure::new(what).hint("without --size: pictures of any size are resized"));
    }
    Ok(graph)
}

/// Why a file is no network, and what to try.
pub(crate) fn lowering(path: &Path, error: &LowerError) -> Failure {
    let failure = Failure::about(path, error);
    match error {
        LowerError::Open { .. } => failure.hint("--size 640x640, or what the model was trained on"),
        LowerError::Unsupported(_) => failure.hint(format_args!(
            "sedge show {}, which lists all",
            path.display()
        )),
        _ => failure,
    }
}

fn untold(model: &str, error: &TaskError) -> Failure {
    let failure = Failure::new(format_args!("{model}: {error}"));
    match error {
        TaskError::Ambiguous { .. } => failure.hint("--preset NAME"),
        TaskError::Outputs { .. } => failure.hint("another --preset, or none"),
        _ => failure,
    }
}

/// A network to serve: `[NAME=]MODEL[,preset=P][,labels=FILE][,size=HxW][,weights=FILE]`.
#[derive(Clone, Debug)]
pub(crate) struct ServedNetwork {
    pub(crate) name: String,
    model: String,
    options: NetworkOptions,
}

impl FromStr for ServedNetwork {
    type Err = String;

    fn from_str(text: &str) -> Result<ServedNetwork, String> {
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let (name, model) = match first.split_once('=') {
            Some((name, model)) if !Path::new(first).exists() => (name.to_owned(), model),
            _ => {
                let stem = Path::new(first).file_stem().unwrap_or_default();
                (stem.to_string_lossy().into_owned(), first)
            }
        };
        if name.is_empty() || model.is_empty() {
            return Err("NAME=MODEL, as dog=yolox.onnx".to_owned());
        }
        let mut options = NetworkOptions::default();
        for part in parts {
            match part.split_once('=') {
                Some(("preset", x)) => options.preset = Some(x.to_owned()),
                Some(("labels", x)) => options.labels = Some(x.into()),
                Some(("size", x)) => options.size = Some(x.parse()?),
                Some(("weights", x)) => options.weights = Some(x.into()),
                _ => {
                    return Err(format!(
                        "{part:?} is none of preset=NAME, labels=FILE, size=HxW, weights=FILE"
                    ));
                }
            }
        }
        Ok(ServedNetwork {
            name,
            model: model.to_owned(),
            options,
        })
    }
}

impl ServedNetwork {
    /// Readies it to be served.
    pub(crate) fn launch(&self, team: &Arc<Team>) -> Result<VisionModel, Failure> {
        let network = Network::open(&self.model, &self.options)?;
        network.warn_of_random(&self.model);
        let (task, size) = (&network.task.preset, network.size());
        let (preset, task) = (task.name, VisionTask::of(task.reads));
        let (parameters, random) = (network.graph.weights(), network.random);
        let seer = Mutex::new(Seer::new(network, team.clone())?);
        let see = move |image: &Image, wish: &Wish| -> Result<task::Answer, String> {
            let mut seer = seer.lock().unwrap_or_else(PoisonError::into_inner);
            seer.see(image, wish).map_err(|error| error.to_string())
        };
        Ok(VisionModel {
            name: self.name.clone(),
            task,
            preset,
            size,
            parameters,
            random,
            see: See(Arc::new(see)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rows_and_columns() {
        assert_eq!("480x640".parse(), Ok(Size([480, 640])));
        assert_eq!("224".parse(), Ok(Size([224, 224])));
        for text in ["", "x", "0x5", "5x", "9000", "1x2x3", "-1"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_served_network_is_named_and_has_options() {
        let network: ServedNetwork = "dog=a/b.onnx,preset=yolox,size=416".parse().unwrap();
        assert_eq!((&*network.name, &*network.model), ("dog", "a/b.onnx"));
        assert_eq!(network.options.preset.as_deref(), Some("yolox"));
        assert_eq!(network.options.size, Some(Size([416, 416])));
        let network: ServedNetwork = "a/b.onnx".parse().unwrap();
        assert_eq!((&*network.name, &*network.model), ("b", "a/b.onnx"));
        for text in ["", "=x", "x=", "a.onnx,b", "a.onnx,size=0"] {
            assert!(text.parse::<ServedNetwork>().is_err(), "{text}");
        }
    }
}
