//! `sedge bench vision`: networks that see, beside onnxruntime and what the machine computes.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sedge_bench::{OnnxRuntime, OnnxRuntimeError, Spread, VisionFigure, relative_error, vision};
use sedge_kernels::{Team, f32_peak, int8_peak};
use sedge_vision::{Graph, Op, Options, Program, Sparsity, StepName, Weights, export};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::{self, ProgressLine};
use crate::see::network::{self, NetworkOptions};
use crate::table::table;

const ABOUT: &str = "\
Examples:
  sedge bench vision -m mobilenet-v3-large --peer python3
  sedge bench vision -m a.onnx -m b.onnx -t 1,2 --peer .venv/bin/python
  sedge bench vision -m mobilenet-v1 --layers

--peer is a Python for which onnxruntime is installed (pip install onnxruntime). It gets the same
file (of a network that is built here, one that is written for it), the same input of seeded noise,
and as many threads, and runs in turns with Sedge; the ratio is its time over Sedge's, turn by turn,
so more than 1 is faster than onnxruntime. `off by` is the largest difference of an output, over
the largest value.

`of peak` is products in a second beside what this machine computes at best, in f32 or, for
networks in 8 bits, in int8, measured in the same run.";

#[derive(clap::Args)]
#[command(after_help = ABOUT)]
pub(super) struct VisionArgs {
    /// ONNX file, or a network that is built by its name (sedge see --help)
    #[arg(
        short,
        long,
        value_name = "MODEL",
        default_value = "mobilenet-v3-large"
    )]
    model: Vec<String>,

    /// Threads that compute, with commas between
    #[arg(
        short,
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1,2"
    )]
    threads: Vec<NonZeroUsize>,

    /// A Python with onnxruntime, which runs the same in turns
    #[arg(long, value_name = "PYTHON")]
    peer: Option<PathBuf>,

    /// Turns
    #[arg(short, long, value_name = "N", default_value = "9")]
    repeats: NonZeroUsize,

    /// Least time of a turn, in milliseconds
    #[arg(long, value_name = "MS", default_value = "300")]
    turn: u64,

    /// The time of each operation, too
    #[arg(long)]
    layers: bool,

    /// Whether sparse weights run in planes
    #[arg(long, value_name = "WHEN", default_value = "measured")]
    sparse: When,

    #[command(flatten)]
    network: NetworkOptions,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum When {
    /// Where that is faster
    Measured,
    Always,
    Never,
}

/// A network on some threads.
struct Figure {
    model: String,
    threads: usize,
    figure: VisionFigure,
    macs: u64,
    /// Of the machine, products a second.
    peak: f64,
    error: Option<f64>,
    memory: usize,
    layers: Vec<(StepName, Spread)>,
}

pub(super) fn run(args: &VisionArgs) -> Result<(), Failure> {
    let mut peer = match &args.peer {
        Some(python) => {
            let started = OnnxRuntime::start(python);
            Some(started.map_err(|error| peerless(python, &error))?)
        }
        None => None,
    };
    let mut line = ProgressLine::new();
    let mut figures = Vec::new();
    let mut version = None;
    let total = (args.model.len() * args.threads.len()) as u64;
    for model in &args.model {
        let (graph, _) = network::graph(model, &args.network)?;
        let file = file_for(model, &graph, peer.is_some())?;
        for &threads in &args.threads {
            line.show(figures.len() as u64, total, model);
            let team = Team::new(threads.get());
            let program = Program::new(&graph, options(args), &team);
            let program = program.map_err(|e| Failure::new(format_args!("{model}: {e}")))?;
            let peer = peer.as_mut();
            let figure = one(args, model, &graph, program, &team, peer, file.path());
            let (figure, seen) = figure.map_err(|error| match &args.peer {
                Some(python) => peerless(python, &error),
                None => Failure::new(&error),
            })?;
            version = version.or(seen);
            figures.push(figure);
        }
    }
    line.clear();
    let text = match args.json {
        true => {
            let all: Vec<Value> = figures.iter().map(as_json).collect();
            format!("{:#}\n", json!({ "onnxruntime": version, "figures": all }))
        }
        false => as_text(&figures, version.as_deref()),
    };
    Ok(output::print(&text)?)
}

fn peerless(python: &Path, error: &OnnxRuntimeError) -> Failure {
    Failure::about(python, error).hint("pip install onnxruntime numpy, for this Python")
}

/// The file that a peer opens: the model's own, or one that is written for it.
enum ModelFile {
    Own(PathBuf),
    Written(tempfile::TempPath),
    None,
}

impl ModelFile {
    fn path(&self) -> Option<&Path> {
        match self {
            ModelFile::Own(path) => Some(path),
            ModelFile::Written(path) => Some(path),
            ModelFile::None => None,
        }
    }
}

fn file_for(model: &str, graph: &Graph, wanted: bool) -> Result<ModelFile, Failure> {
    let path = Path::new(model);
    if !wanted {
        return Ok(ModelFile::None);
    }
    if path.exists() {
        return Ok(ModelFile::Own(path.to_owned()));
    }
    let written = export(graph).map_err(|error| Failure::new(format_args!("{model}: {error}")))?;
    let file = tempfile::Builder::new().suffix(".onnx").tempfile()?;
    std::fs::write(file.path(), sedge_formats::onnx::write(&written))?;
    Ok(ModelFile::Written(file.into_temp_path()))
}

fn options(args: &VisionArgs) -> Options {
    Options {
        sparse: match args.sparse {
            When::Measured => Sparsity::Measured,
            When::Always => Sparsity::Always,
            When::Never => Sparsity::Never,
        },
        ..Options::default()
    }
}

fn one(
    args: &VisionArgs,
    model: &str,
    graph: &Graph,
    mut program: Program,
    team: &Team,
    mut peer: Option<&mut OnnxRuntime>,
    file: Option<&Path>,
) -> Result<(Figure, Option<String>), OnnxRuntimeError> {
    let threads = team.threads();
    let inputs: Vec<Vec<f32>> = graph
        .inputs()
        .iter()
        .map(|&x| noise(graph.shape(x).iter().product()))
        .collect();
    let inputs: Vec<&[f32]> = inputs.iter().map(|x| &x[..]).collect();
    let (mut version, mut error) = (None, None);
    if let (Some(peer), Some(file)) = (&mut peer, file) {
        version = Some(peer.open(file, threads)?);
        let shapes = graph.inputs().iter().map(|&x| graph.shape(x));
        let pairs: Vec<(&[f32], &[usize])> = inputs.iter().copied().zip(shapes).collect();
        let outputs = peer.outputs(&pairs)?;
        program.run(&inputs, team);
        let off = outputs
            .iter()
            .enumerate()
            .map(|(i, theirs)| relative_error(program.output(i).0, theirs));
        error = off.reduce(f64::max);
    }
    let turn = Duration::from_millis(args.turn);
    let figure = vision(&mut program, &inputs, team, peer, args.repeats.get(), turn)?;
    let layers = match args.layers {
        true => layers(&mut program, &inputs, team),
        false => Vec::new(),
    };
    let in_bytes = graph.nodes().iter().any(
        |node| matches!(&node.op, Op::Conv(conv) if matches!(conv.weights, Weights::Int8 { .. })),
    );
    let peak = match in_bytes {
        true => int8_peak(team),
        false => f32_peak(team),
    };
    let figure = Figure {
        model: model.to_owned(),
        threads,
        figure,
        macs: graph.macs(),
        peak: peak.per_second,
        error,
        memory: program.memory(),
        layers,
    };
    Ok((figure, version))
}

/// Seeded values like those of a normalised picture.
fn noise(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1u64 << 23) as f32 * 2.0 - 2.0
        })
        .collect()
}

/// The time of each step, over some runs.
fn layers(program: &mut Program, inputs: &[&[f32]], team: &Team) -> Vec<(StepName, Spread)> {
    const RUNS: usize = 30;
    let names = program.steps().to_vec();
    let mut all = vec![Vec::with_capacity(RUNS); names.len()];
    for _ in 0..RUNS {
        let mut times = vec![Duration::ZERO; names.len()];
        program.run_timed(inputs, team, &mut times);
        for (all, time) in all.iter_mut().zip(times) {
            all.push(time.as_secs_f64());
        }
    }
    let spreads = all.iter().filter_map(|times| Spread::of(times));
    names.into_iter().zip(spreads).collect()
}

fn as_text(figures: &[Figure], version: Option<&str>) -> String {
    let ms = |spread: Spread| format!("{:.2} ms", spread.median * 1e3);
    let mut rows = vec![
        [
            "network",
            "threads",
            "sedge",
            "of peak",
            "onnxruntime",
            "ratio",
            "range",
            "off by",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for one in figures {
        let share = one.macs as f64 / one.figure.seconds.median / one.peak;
        let range = |s: Spread| format!("{:.2} – {:.2}", s.min, s.max);
        rows.push(vec![
            one.model.clone(),
            one.threads.to_string(),
            ms(one.figure.seconds),
            format!("{:.0} %", share * 100.0),
            one.figure.peer.map_or_else(String::new, ms),
            one.figure
                .ratio
                .map_or_else(String::new, |s| format!("{:.2} ×", s.median)),
            one.figure.ratio.map_or_else(String::new, range),
            one.error
                .map_or_else(String::new, |error| format!("{error:.1e}")),
        ]);
    }
    let mut text = table(&rows);
    if let Some(version) = version {
        text += &format!("onnxruntime {version}\n");
    }
    for one in figures.iter().filter(|one| !one.layers.is_empty()) {
        text += &format!("\n{}, {} threads\n", one.model, one.threads);
        let mut rows = vec![
            ["operation", "node", "shape", "µs", "GMAC/s", "of peak"]
                .map(str::to_owned)
                .to_vec(),
        ];
        for (step, time) in &one.layers {
            let rate = step.macs as f64 / time.median;
            let given = |text: String| if step.macs > 0 { text } else { String::new() };
            rows.push(vec![
                step.kind.clone(),
                step.node.clone(),
                step.shape
                    .iter()
                    .map(usize::to_string)
                    .collect::<Vec<_>>()
                    .join("×"),
                format!("{:.1}", time.median * 1e6),
                given(format!("{:.1}", rate / 1e9)),
                given(format!("{:.0} %", rate / one.peak * 100.0)),
            ]);
        }
        text += &table(&rows);
    }
    text
}

fn as_json(one: &Figure) -> Value {
    let spread = |s: Spread| json!({ "median": s.median, "min": s.min, "max": s.max });
    let layers: Vec<Value> = one
        .layers
        .iter()
        .map(|(step, time)| {
            json!({
                "operation": step.kind,
                "node": step.node,
                "shape": step.shape,
                "macs": step.macs,
                "seconds": spread(*time),
            })
        })
        .collect();
    json!({
        "model": one.model,
        "threads": one.threads,
        "seconds": spread(one.figure.seconds),
        "macs": one.macs,
        "peak_macs_per_second": one.peak,
        "onnxruntime_seconds": one.figure.peer.map(spread),
        "ratio": one.figure.ratio.map(spread),
        "relative_error": one.error,
        "memory_bytes": one.memory,
        "layers": layers,
    })
}
