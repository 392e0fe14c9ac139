//! `sedge shrink` of networks that see: weights that are left out, and integers.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueEnum;
use sedge_formats::image::{self, Limits};
use sedge_formats::onnx;
use sedge_kernels::Team;
use sedge_shrink::vision::{
    Comparison, Pictures, Pruned, Pruning, Quantised, Ranges, VisionError, compare, noise, prune,
    quantise,
};
use sedge_vision::task::Task;
use sedge_vision::{Graph, Sizes, export, fuse, lower, nets};
use serde_json::json;

use super::Args;
use crate::failure::Failure;
use crate::machine;
use crate::output;
use crate::size::Bytes;
use crate::table::table;

/// Options of networks that see.
#[derive(clap::Args)]
#[command(next_help_heading = "Networks that see")]
pub(super) struct VisionArgs {
    /// Leave this share of the weights of pointwise convolutions out: 0.9, 0.9,block=4 or
    /// 0.3,group=8, whose outputs change places (,rearrange=off); scope=layer or scope=network
    #[arg(long, value_name = "SHARE[,block=N|,group=N]")]
    sparse: Option<Pruning>,

    /// Make weights and values 8-bit integers
    #[arg(long)]
    int8: bool,

    /// With --sparse, let what is left make good for what is left out, as pictures show it
    #[arg(long, requires = "sparse")]
    correct: bool,

    /// With --correct, leave out in so many steps, more at first
    #[arg(long, value_name = "N", default_value = "1", requires = "correct")]
    steps: NonZeroUsize,

    /// With --sparse, the classifier too
    #[arg(long, requires = "sparse")]
    classifier: bool,

    /// With --int8, how far grids reach
    #[arg(long, value_enum, value_name = "HOW", default_value = "squares")]
    ranges: Reach,

    /// Calibration pictures at most
    #[arg(long, value_name = "N", default_value = "32")]
    pictures: NonZeroUsize,

    /// How pictures are read, where the file does not tell
    #[arg(long, value_name = "PRESET")]
    preset: Option<String>,

    /// Rows and columns of the input, where the file leaves them open
    #[arg(long, value_name = "ROWSxCOLUMNS", value_parser = parse_size)]
    size: Option<[usize; 2]>,
}

impl VisionArgs {
    /// Refuses options that are not those of language models.
    pub(super) fn refuse(&self) -> Result<(), Failure> {
        let given = [
            (self.preset.is_some(), "--preset"),
            (self.size.is_some(), "--size"),
        ];
        match given.iter().find(|(given, _)| *given) {
            None => Ok(()),
            Some((_, option)) => Err(Failure::misused(
                format_args!("{option} is not for --to"),
                "--sparse or --int8, which are for networks that see",
            )),
        }
    }
}

/// See [`Ranges`].
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Reach {
    /// As far as makes the mean square error least
    Squares,
    /// To the least and the greatest number that were seen
    MinMax,
}

impl From<Reach> for Ranges {
    fn from(reach: Reach) -> Ranges {
        match reach {
            Reach::Squares => Ranges::Squares,
            Reach::MinMax => Ranges::MinMax,
        }
    }
}

fn parse_size(text: &str) -> Result<[usize; 2], String> {
    let sides = text.split_once('x');
    let sides = sides.and_then(|(h, w)| Some([h.parse().ok()?, w.parse().ok()?]));
    let fits = sides.filter(|sides| sides.iter().all(|x| (1..=8192).contains(x)));
    fits.ok_or_else(|| "a size is rows × columns, such as 320x320".to_owned())
}

/// Pictures that are made up when there are none, and what they are called.
const NOISE: usize = 8;
const NOISE_NAME: &str = "noise";

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    refuse_others(args)?;
    let start = Instant::now();
    let team = Team::new(machine::threads(args.threads));
    let (dense, bytes) = open(args)?;
    let seen = Seen::of(args, &dense)?;
    let mut graph = dense.clone();
    let failed = |error: VisionError| failure(args, error);

    let pruning = args.vision.sparse.map(|pruning| Pruning {
        classifier: args.vision.classifier,
        correct: args.vision.correct,
        steps: args.vision.steps.get(),
        ..pruning
    });
    let mut done = Done {
        pruned: None,
        quantised: None,
        sparse: None,
        all: None,
        bytes: [bytes, 0],
    };
    if let Some(pruning) = &pruning {
        let pruned = prune(&mut graph, pruning, &seen.calibration, &team);
        done.pruned = Some(pruned.map_err(failed)?);
        let compared = compare(&dense, &graph, &seen.compared, &team);
        done.sparse = Some(compared.map_err(failed)?);
    }
    if args.vision.int8 {
        let ranges = args.vision.ranges.into();
        let quantised = quantise(&mut graph, ranges, &seen.calibration, &team);
        done.quantised = Some(quantised.map_err(failed)?);
        let compared = compare(&dense, &graph, &seen.compared, &team);
        done.all = Some(compared.map_err(failed)?);
    }
    let model = export(&graph).map_err(|e| failure(args, e))?;
    let bytes = onnx::write(&model);
    done.bytes[1] = bytes.len() as u64;
    sedge_formats::replace(&args.output, |file| file.write_all(&bytes))
        .map_err(|e| Failure::file(&args.output, &e))?;

    if args.model.path().is_none() {
        output::note(format_args!(
            "{} has random weights: it is for measuring speed and knows nothing",
            args.model.name
        ));
    }
    if seen.is_noise() && (args.vision.int8 || args.vision.correct) {
        output::note("values are those of noise: --calibrate FOLDER, with pictures, is better");
    }
    let seconds = start.elapsed().as_secs_f64();
    let text = match args.json {
        true => format!("{:#}\n", as_json(args, &done, &seen, seconds)),
        false => as_text(args, &done, &seen, seconds),
    };
    Ok(output::print(&text)?)
}

/// Refuses options of language models.
fn refuse_others(args: &Args) -> Result<(), Failure> {
    let given = [
        (args.curve.is_some(), "--curve"),
        (args.eval.is_some(), "--eval"),
        (args.restart, "--restart"),
        (args.requantise, "--requantise"),
    ];
    match given.iter().find(|(given, _)| *given) {
        None => Ok(()),
        Some((_, option)) => Err(Failure::misused(
            format_args!("{option} is not for --sparse and --int8"),
            "--calibrate FOLDER, with pictures of the kind that the network will see",
        )),
    }
}

fn failure(args: &Args, error: impl std::fmt::Display) -> Failure {
    match args.model.path() {
        Some(path) => Failure::about(path, &error),
        None => Failure::new(format_args!("{}: {error}", args.model.name)),
    }
}

/// The network, fused, and the bytes of its file; of one with random weights, of what its file
/// would be.
fn open(args: &Args) -> Result<(Graph, u64), Failure> {
    let mut graph = match args.model.path() {
        Some(path) => {
            let same = path.canonicalize().ok();
            if same.is_some() && same == args.output.canonicalize().ok() {
                let what = format_args!("{} would be written over itself", path.display());
                return Err(Failure::new(what).hint("another -o"));
            }
            let model = onnx::Model::open(path).map_err(|e| Failure::about(path, &e))?;
            let sizes = Sizes {
                picture: args.vision.size,
                ..Sizes::default()
            };
            lower(&model, sizes).map_err(|e| {
                let failure = Failure::about(path, &e);
                match e {
                    sedge_vision::LowerError::Open { .. } => failure.hint("--size 320x320"),
                    _ => failure,
                }
            })?
        }
        None => {
            let options = nets::Options {
                size: args.vision.size,
                ..nets::Options::default()
            };
            let name = args.model.stored().unwrap_or(&args.model.name);
            nets::build(name, options)
                .map_err(|e| Failure::new(e).hint("an ONNX file, or one of these names"))?
        }
    };
    fuse(&mut graph);
    let bytes = match args.model.path() {
        Some(path) => std::fs::metadata(path)
            .map_err(|e| Failure::file(path, &e))?
            .len(),
        None => {
            let model = export(&graph).map_err(|e| failure(args, e))?;
            onnx::write(&model).len() as u64
        }
    };
    Ok((graph, bytes))
}

/// What the network looks at.
struct Seen {
    calibration: Pictures,
    compared: Pictures,
    /// What they are.
    what: &'static str,
}

impl Seen {
    fn is_noise(&self) -> bool {
        self.what == NOISE_NAME
    }

    fn of(args: &Args, graph: &Graph) -> Result<Seen, Failure> {
        if args.calibrate.as_os_str() == "self" {
            return Ok(Seen {
                calibration: noise(graph, NOISE, 1),
                compared: noise(graph, NOISE / 2, 2),
                what: NOISE_NAME,
            });
        }
        let task = Task::of(graph, args.vision.preset.as_deref()).map_err(|e| failure(args, e))?;
        let mut all = Pictures::new();
        for path in files(&args.calibrate)? {
            if all.len() == args.vision.pictures.get() + NOISE {
                break;
            }
            let bytes = std::fs::read(&path).map_err(|e| Failure::file(&path, &e))?;
            let image = image::decode(&bytes, Limits::default());
            let image = image.map_err(|e| Failure::about(&path, &e))?;
            let (input, _) = task.input(&image).map_err(|e| Failure::about(&path, &e))?;
            all.push(vec![input]);
        }
        if all.is_empty() {
            let what = format_args!("{}: no pictures", args.calibrate.display());
            return Err(Failure::new(what).hint("a folder of JPEG, PNG or WebP files"));
        }
        // What is compared on was not calibrated on, if there is more than one.
        let left = (all.len() / 4).clamp(usize::from(all.len() > 1), NOISE);
        let compared = match left {
            0 => all.clone(),
            left => all.split_off(all.len() - left),
        };
        all.truncate(args.vision.pictures.get());
        Ok(Seen {
            calibration: all,
            compared,
            what: "pictures",
        })
    }
}

/// A file, or the pictures of a folder by name.
fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(|e| Failure::file(path, &e))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Failure::file(path, &e))?.path();
        let kind = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default();
        if ["jpg", "jpeg", "png", "webp"].contains(&kind.to_lowercase().as_str()) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// What was done, and how the outputs compare with the network's before.
struct Done {
    pruned: Option<Pruned>,
    quantised: Option<Quantised>,
    sparse: Option<Comparison>,
    all: Option<Comparison>,
    bytes: [u64; 2],
}

fn percent(x: f64) -> String {
    format!("{:.1} %", x * 100.0)
}

fn as_text(args: &Args, done: &Done, seen: &Seen, seconds: f64) -> String {
    let mut text = String::new();
    if let Some(pruned) = &done.pruned {
        let head = ["layer", "weights", "left", "magnitude kept"];
        let mut rows = vec![head.map(String::from).to_vec()];
        for layer in &pruned.layers {
            rows.push(vec![
                layer.node.clone(),
                format!("{} × {}", layer.size[0], layer.size[1]),
                percent(layer.density()),
                percent(layer.kept),
            ]);
        }
        text.push_str(&table(&rows));
        let [before, after] = pruned.macs.map(|x| x as f64 / 1e6);
        text.push_str(&format!(
            "\n{} of {} layers' weights are left out; {} of their magnitude is kept\n\
             {before:.1} → {after:.1} million products; the outputs of {} nodes changed places\n",
            percent(pruned.sparsity()),
            pruned.layers.len(),
            percent(pruned.kept()),
            pruned.rearranged,
        ));
    }
    if let Some(quantised) = &done.quantised {
        text.push_str(&format!(
            "{} products are of integers, {} values on grids; {} weights stay real numbers\n",
            quantised.products, quantised.values, quantised.left
        ));
    }
    let mut error = |what: &str, compared: &Comparison| {
        let same = compared
            .same
            .map(|x| format!("; the same class of {}", percent(x)));
        text.push_str(&format!(
            "outputs of the {what} network are off by {} on {} {}{}\n",
            percent(compared.error),
            compared.pictures,
            seen.what,
            same.unwrap_or_default()
        ));
    };
    if let Some(compared) = &done.sparse {
        error("sparse", compared);
    }
    if let Some(compared) = &done.all {
        error("int8", compared);
    }
    let [before, after] = done.bytes.map(Bytes);
    text.push_str(&format!(
        "{}: {before} → {after} in {seconds:.1} s\n",
        args.output.display()
    ));
    text
}

fn as_json(args: &Args, done: &Done, seen: &Seen, seconds: f64) -> serde_json::Value {
    let comparison = |x: &Comparison| {
        json!({
            "seen": seen.what,
            "pictures": x.pictures,
            "relative_error": x.error,
            "top1_agreement": x.same,
        })
    };
    json!({
        "model": args.model.name,
        "output": args.output.display().to_string(),
        "seconds": seconds,
        "bytes": done.bytes,
        "sparse": done.pruned.as_ref().map(|pruned| json!({
            "sparsity": pruned.sparsity(),
            "magnitude_kept": pruned.kept(),
            "macs": pruned.macs,
            "rearranged": pruned.rearranged,
            "layers": pruned.layers.iter().map(|x| json!({
                "node": x.node,
                "outputs": x.size[0],
                "inputs": x.size[1],
                "density": x.density(),
                "magnitude_kept": x.kept,
                "macs": x.macs,
            })).collect::<Vec<_>>(),
            "compared": done.sparse.as_ref().map(comparison),
        })),
        "int8": done.quantised.map(|x| json!({
            "products": x.products,
            "values": x.values,
            "float_weights": x.left,
            "compared": done.all.as_ref().map(comparison),
        })),
    })
}
