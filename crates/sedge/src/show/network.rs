//! What an ONNX file, or a network that Sedge builds, holds.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use sedge_formats::onnx::{Dim, Model, ValueInfo};
use sedge_vision::task::Task;
use sedge_vision::{Graph, LowerError, Sizes, Unsupported, fuse, lower, nets};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::see::{Size, lowering};
use crate::size;
use sedge_api::VisionTask;

/// Facts of a network's file, and of the graph that it becomes if it can.
struct Facts {
    /// Key and value, in order.
    file: Vec<(&'static str, String)>,
    inputs: Vec<(String, String)>,
    outputs: Vec<(String, String)>,
    /// Operators as the file has them, most frequent first.
    operators: Vec<(String, usize)>,
    graph: Result<Lowered, Vec<Unsupported>>,
}

/// A graph that runs.
struct Lowered {
    task: Result<Task, String>,
    weights: u64,
    macs: u64,
    /// What runs after fusing, most frequent first.
    steps: Vec<(&'static str, usize)>,
}

/// Whether a file is to be read as ONNX.
pub(super) fn is_onnx(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("onnx"))
}

/// An ONNX file's facts as text or JSON.
pub(super) fn file(
    name: &str,
    path: &Path,
    size: Option<Size>,
    json: bool,
) -> Result<String, Failure> {
    let model = Model::open(path).map_err(|error| Failure::about(path, &error))?;
    let sizes = Sizes {
        batch: 1,
        picture: size.map(|size| size.0),
    };
    let graph = match lower(&model, sizes) {
        Ok(graph) => Ok(lowered(graph)),
        Err(LowerError::Unsupported(all)) => Err(all),
        Err(error) => return Err(lowering(path, &error)),
    };
    let mut file = vec![
        ("container", "onnx".to_owned()),
        ("opset", model.opset.to_string()),
    ];
    if !model.producer.is_empty() {
        file.push(("producer", model.producer.clone()));
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for node in &model.graph.nodes {
        let op = match node.domain.as_str() {
            "" | "ai.onnx" => node.op.clone(),
            domain => format!("{domain}.{}", node.op),
        };
        *counts.entry(op).or_default() += 1;
    }
    let mut operators: Vec<_> = counts.into_iter().collect();
    operators.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let named = |values: &[ValueInfo]| values.iter().map(|x| (x.name.clone(), shape(x))).collect();
    let facts = Facts {
        file,
        inputs: named(&model.graph.inputs),
        outputs: named(&model.graph.outputs),
        operators,
        graph,
    };
    Ok(facts.print(name, json))
}

/// The same of a network that Sedge builds.
pub(super) fn built(name: &str, size: Option<Size>, json: bool) -> Result<String, Failure> {
    let options = nets::Options {
        size: size.map(|size| size.0),
        ..nets::Options::default()
    };
    let graph = nets::build(name, options).map_err(Failure::new)?;
    let named = |values: &[sedge_vision::Value]| {
        let info = values.iter().map(|&x| graph.info(x));
        info.map(|x| (x.name.clone(), format!("{:?}", x.shape)))
            .collect()
    };
    let census = graph.census().into_iter();
    let facts = Facts {
        file: vec![("container", "none: Sedge builds it".to_owned())],
        inputs: named(graph.inputs()),
        outputs: named(graph.outputs()),
        operators: census.map(|(kind, n)| (kind.to_owned(), n)).collect(),
        graph: Ok(lowered(graph)),
    };
    Ok(facts.print(name, json))
}

fn lowered(mut graph: Graph) -> Lowered {
    fuse(&mut graph);
    Lowered {
        task: Task::of(&graph, None).map_err(|error| error.to_string()),
        weights: graph.weights(),
        macs: graph.macs(),
        steps: graph.census(),
    }
}

/// `[1, 3, height, width]`, open sizes by their names.
fn shape(value: &ValueInfo) -> String {
    let Some(dims) = &value.shape else {
        return "any".to_owned();
    };
    let dim = |dim: &Dim| match dim {
        Dim::Fixed(size) => size.to_string(),
        Dim::Symbol(name) => name.clone(),
        Dim::Unknown => "?".to_owned(),
    };
    let dims: Vec<String> = dims.iter().map(dim).collect();
    format!("[{}]", dims.join(", "))
}

fn counted<T: AsRef<str>>(counts: &[(T, usize)]) -> String {
    let each = counts
        .iter()
        .map(|(name, n)| format!("{} × {n}", name.as_ref()));
    each.collect::<Vec<_>>().join(", ")
}

impl Facts {
    fn print(&self, name: &str, json: bool) -> String {
        match json {
            true => format!("{:#}\n", self.json(name)),
            false => self.text(name),
        }
    }

    fn text(&self, name: &str) -> String {
        let mut text = format!("{name}\n");
        let mut line = |key: &str, value: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {key:<14} {value}");
        };
        for (key, value) in &self.file {
            line(key, value);
        }
        for (key, values) in [("input", &self.inputs), ("output", &self.outputs)] {
            for (name, shape) in values {
                line(key, &format!("{name} {shape}"));
            }
        }
        line("operators", &counted(&self.operators));
        match &self.graph {
            Ok(graph) => {
                line("fused", &counted(&graph.steps));
                let figure = |n: u64| format!("{} ({n})", size::count(n));
                line("weights", &figure(graph.weights));
                line(
                    "products",
                    &format!("{} for each picture", figure(graph.macs)),
                );
                match &graph.task {
                    Ok(task) => {
                        let verb = VisionTask::of(task.preset.reads).name();
                        line(
                            "task",
                            &format!("{verb}, preset {}: {}", task.preset.name, task.why),
                        );
                    }
                    Err(why) => line("task", &format!("unknown: {why}")),
                }
            }
            Err(unsupported) => {
                for one in unsupported {
                    let why = match one.why.is_empty() {
                        true => String::new(),
                        false => format!(": {}", one.why),
                    };
                    line(
                        "not supported",
                        &format!("{} (node {:?}){why}", one.op, one.node),
                    );
                }
            }
        }
        text
    }

    fn json(&self, name: &str) -> Value {
        let values = |values: &[(String, String)]| -> Vec<Value> {
            let value = |(name, shape): &(String, String)| json!({"name": name, "shape": shape});
            values.iter().map(value).collect()
        };
        let mut object = json!({
            "name": name,
            "inputs": values(&self.inputs),
            "outputs": values(&self.outputs),
            "operators": self.operators.iter().cloned().collect::<BTreeMap<_, _>>(),
            "unsupported": [],
        });
        for (key, value) in &self.file {
            object[*key] = value.as_str().into();
        }
        match &self.graph {
            Ok(graph) => {
                object["fused"] = json!(graph.steps.iter().copied().collect::<BTreeMap<_, _>>());
                object["weights"] = graph.weights.into();
                object["macs"] = graph.macs.into();
                if let Ok(task) = &graph.task {
                    object["task"] = VisionTask::of(task.preset.reads).name().into();
                    object["preset"] = task.preset.name.into();
                }
            }
            Err(unsupported) => {
                let one = |x: &Unsupported| json!({"operator": x.op, "node": x.node, "why": x.why});
                object["unsupported"] = unsupported.iter().map(one).collect();
            }
        }
        object
    }
}
