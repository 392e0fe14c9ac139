//! `sedge see`: what pictures show, what is where in them, what each pixel is.

pub(crate) mod network;
mod pictures;
mod seer;

use std::collections::HashSet;
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Subcommand;
use sedge_api::{Seen, VisionTask, Wish};
use sedge_formats::image::{self, Image, Limits};
use sedge_kernels::Team;
use sedge_vision::task::{self, Answer};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::machine;
use crate::output;
use crate::table::table;
pub(crate) use network::{Network, NetworkOptions, ServedNetwork, Size, lowering, network_named};
pub(crate) use seer::Seer;

const EXAMPLES: &str = "\
Examples:
  sedge see classify -m mobilenetv2.onnx cat.jpg
  sedge see detect -m yolox_nano.onnx dog.jpg --draw boxes.png
  sedge see detect -m yolov8n.onnx frames/ --threshold 0.5 --json
  sedge see segment -m lraspp-mobilenet-v3-large --weights lraspp.safetensors street.jpg

What a network is for is seen from its outputs; where it is not, --preset says it.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// What pictures show, most likely first
    #[command(after_help = EXAMPLES)]
    Classify(Ranked),
    /// What is where: boxes with names
    #[command(after_help = EXAMPLES)]
    Detect(Ranked),
    /// What each pixel is
    #[command(after_help = EXAMPLES)]
    Segment(Look),
}

#[derive(clap::Args)]
struct Ranked {
    #[command(flatten)]
    look: Look,

    /// Most answers for a picture [default: the preset's]
    #[arg(long, value_name = "N")]
    top: Option<NonZeroUsize>,

    /// Leave out what is less likely than this, from 0 to 1 [default: the preset's]
    #[arg(long, value_name = "P", value_parser = probability)]
    threshold: Option<f32>,
}

#[derive(clap::Args)]
struct Look {
    /// JPEG, PNG or WebP pictures, and folders of them, read in the order of their names
    #[arg(value_name = "PICTURE", required = true)]
    pictures: Vec<PathBuf>,

    /// ONNX file, or the name of a network that Sedge can build
    #[arg(short, long, value_name = "MODEL")]
    model: String,

    #[command(flatten)]
    network: NetworkOptions,

    /// Write pictures with what was seen drawn on them: a PNG file, or a folder
    #[arg(long, value_name = "FILE|FOLDER")]
    draw: Option<PathBuf>,

    /// Threads that compute [default: the machine's physical cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn probability(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|x| (0.0..=1.0).contains(x));
    value.ok_or_else(|| "a number from 0 to 1, as 0.5".to_owned())
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let ranked = |args: &Ranked| Wish {
        top: args.top.map(NonZeroUsize::get),
        threshold: args.threshold,
    };
    match args.what {
        What::Classify(args) => see(VisionTask::Classify, ranked(&args), &args.look),
        What::Detect(args) => see(VisionTask::Detect, ranked(&args), &args.look),
        What::Segment(look) => see(VisionTask::Segment, Wish::default(), &look),
    }
}

fn see(verb: VisionTask, wish: Wish, look: &Look) -> Result<(), Failure> {
    let files = pictures::files(&look.pictures)?;
    let mut drawings = Drawings::new(look.draw.as_deref(), &files)?;
    let network = Network::open(&look.model, &look.network)?;
    let fits = VisionTask::of(network.task.preset.reads);
    if fits != verb {
        let (model, preset) = (&look.model, network.task.preset.name);
        let what = format!("{model} is not for {}: preset {preset}", verb.name());
        return Err(Failure::new(what).hint(format!("sedge see {} -m {model} …", fits.name())));
    }
    network.warn_of_random(&look.model);
    let team = Arc::new(Team::new(machine::threads(look.threads)));
    let (random, preset) = (network.random, network.task.preset.name);
    let mut seer = Seer::new(network, team)?;

    let mut times = Times::default();
    let mut reports = Vec::new();
    let mut failed = 0;
    for file in &files {
        match one(&mut seer, file, &wish, &mut drawings) {
            Ok((image, answer, time)) => {
                times.all.push(time);
                if look.json {
                    let seen = Seen::new(&image, &answer, time.iter().sum());
                    let mut report = serde_json::to_value(seen).map_err(Failure::new)?;
                    report["file"] = file.display().to_string().into();
                    reports.push(report);
                } else {
                    output::print(&as_text(file, &image, &answer))?;
                }
            }
            // A drawing that cannot be written will not be for the next one either.
            Err(Stop::All(failure)) => return Err(failure),
            Err(Stop::Picture(why)) => {
                failed += 1;
                output::note(format_args!("sedge: {}: {why}", file.display()));
                reports.push(json!({"file": file.display().to_string(), "error": why}));
            }
        }
    }
    if look.json {
        let object = json!({
            "model": look.model,
            "task": verb.name(),
            "preset": preset,
            "random_weights": random,
            "pictures": reports,
            "median_ms": times.json(),
        });
        output::print(&format!("{object:#}\n"))?;
    } else {
        output::print(&times.text())?;
    }
    match failed {
        0 => Ok(()),
        n => {
            let pictures = if files.len() == 1 {
                "picture"
            } else {
                "pictures"
            };
            let what = format!("{n} of {} {pictures} could not be read", files.len());
            Err(Failure::new(what))
        }
    }
}

/// Why there is no answer.
enum Stop {
    /// Of one picture.
    Picture(String),
    /// Of any more.
    All(Failure),
}

/// Reads a picture, says what is in it, and draws that; with the times of the first two.
fn one(
    seer: &mut Seer,
    file: &Path,
    wish: &Wish,
    drawings: &mut Drawings,
) -> Result<(Image, Answer, [Duration; 2]), Stop> {
    let start = Instant::now();
    let bytes = std::fs::read(file).map_err(|error| Stop::Picture(error.to_string()))?;
    let decoded = image::decode(&bytes, Limits::default());
    let mut image = decoded.map_err(|error| Stop::Picture(error.to_string()))?;
    let read = start.elapsed();
    let answer = seer.see(&image, wish);
    let answer = answer.map_err(|error| Stop::Picture(error.to_string()))?;
    let time = [read, start.elapsed() - read];
    if let Some(path) = drawings.next(file) {
        task::draw(&mut image, &answer);
        let written = std::fs::write(&path, image.encode_png());
        written.map_err(|error| Stop::All(Failure::file(&path, &error)))?;
    }
    Ok((image, answer, time))
}

/// A picture's heading and its rows.
fn as_text(file: &Path, image: &Image, answer: &Answer) -> String {
    let rows: Vec<Vec<String>> = match answer {
        Answer::Labels(labels) => {
            let label = |x: &task::Label| vec![x.name.clone(), format!("{:.3}", x.score)];
            labels.iter().map(label).collect()
        }
        Answer::Boxes(boxes) => {
            let found = |x: &task::Found| {
                let bounds = x.bounds.map(|x| format!("{x:.0}"));
                let cells = [x.name.clone(), format!("{:.3}", x.score)];
                cells.into_iter().chain(bounds).collect()
            };
            let heading = ["", "score", "left", "top", "right", "bottom"].map(str::to_owned);
            let heading = (!boxes.is_empty()).then(|| heading.to_vec());
            heading.into_iter().chain(boxes.iter().map(found)).collect()
        }
        Answer::Mask(mask) => {
            let share = |(class, share): (u16, f32)| {
                let name = mask.names[usize::from(class)].clone();
                vec![name, format!("{:.1} %", share * 100.0)]
            };
            mask.shares().into_iter().map(share).collect()
        }
    };
    let mut text = format!("{}  {} × {}\n", file.display(), image.width, image.height);
    if rows.is_empty() {
        text.push_str("  nothing\n");
    }
    for line in table(&rows).lines() {
        let _ = writeln!(text, "  {line}");
    }
    text
}

/// What pictures took: reading them, and seeing what is in them.
#[derive(Default)]
struct Times {
    all: Vec<[Duration; 2]>,
}

impl Times {
    /// Medians in milliseconds.
    fn medians(&self) -> Option<[f64; 2]> {
        if self.all.is_empty() {
            return None;
        }
        Some([0, 1].map(|part| {
            let mut times: Vec<Duration> = self.all.iter().map(|x| x[part]).collect();
            times.sort_unstable();
            times[times.len() / 2].as_secs_f64() * 1e3
        }))
    }

    fn text(&self) -> String {
        let Some([read, see]) = self.medians() else {
            return String::new();
        };
        let mut text = format!("{read:.1} ms to read, {see:.1} ms to see");
        if self.all.len() > 1 {
            let _ = write!(text, " (medians of {})", self.all.len());
        }
        text.push('\n');
        text
    }

    fn json(&self) -> Value {
        match self.medians() {
            Some([read, see]) => json!({"read": read, "see": see}),
            None => Value::Null,
        }
    }
}

/// Where drawings go.
enum Drawings {
    Nowhere,
    File(PathBuf),
    Folder(PathBuf, HashSet<String>),
}

impl Drawings {
    /// A name that ends in `.png` is a file's, any other a folder's, which is made. No picture
    /// is written over.
    fn new(draw: Option<&Path>, pictures: &[PathBuf]) -> Result<Drawings, Failure> {
        let Some(path) = draw else {
            return Ok(Drawings::Nowhere);
        };
        let png = path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("png"));
        let png = png && !path.is_dir();
        let taken = path.canonicalize().is_ok_and(|place| {
            let mut pictures = pictures.iter().filter_map(|x| x.canonicalize().ok());
            match png {
                true => pictures.any(|x| x == place),
                false => pictures.any(|x| x.parent() == Some(&place)),
            }
        });
        if taken {
            let what = format!(
                "--draw {}: the pictures themselves are there",
                path.display()
            );
            return Err(Failure::misused(what, "--draw OTHER"));
        }
        if png && pictures.len() > 1 {
            let (n, path) = (pictures.len(), path.display());
            let what = format!("--draw {path}: one file for {n} pictures");
            return Err(Failure::misused(what, "--draw FOLDER"));
        }
        if png {
            return Ok(Drawings::File(path.to_owned()));
        }
        std::fs::create_dir_all(path).map_err(|error| Failure::file(path, &error))?;
        Ok(Drawings::Folder(path.to_owned(), HashSet::new()))
    }

    /// The place of a picture's drawing: in a folder, its name with `.png`, and a number where
    /// another of this run has that.
    fn next(&mut self, picture: &Path) -> Option<PathBuf> {
        match self {
            Drawings::Nowhere => None,
            Drawings::File(path) => Some(path.clone()),
            Drawings::Folder(folder, taken) => {
                let stem = picture.file_stem().unwrap_or_default().to_string_lossy();
                let mut name = format!("{stem}.png");
                let mut n = 1;
                while !taken.insert(name.clone()) {
                    n += 1;
                    name = format!("{stem}-{n}.png");
                }
                Some(folder.join(name))
            }
        }
    }
}
