//! `sedge shrink`: a model made smaller, to a scheme or into a budget, and what that cost.

mod stack;
mod vision;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueEnum;
use sedge_bench::{Agreement, Chart, Line, Task, agreement_between, sparkline, time};
use sedge_engine::CpuExecutor;
use sedge_formats::gguf::Value;
use sedge_formats::tokenizer::Tokenizer;
use sedge_kernels::{KvType, PAGE_TOKENS, Team};
use sedge_models::{ConvertError, KV_TYPE, Model, Origin, SharedModel, open};
use sedge_shrink::{
    Doing, Method, Options, Plan, ShrinkError, ShrinkReport, Target, Types, WorkError,
};
use serde_json::json;

use crate::failure::Failure;
use crate::machine;
use crate::output::{self, ProgressLine};
use crate::size::Bytes;
use crate::source::Source;
use crate::table::table;

const ABOUT: &str = "\
Examples:
  sedge shrink ./model-dir --to w4a16 -o small.gguf          four bits a weight
  sedge shrink ./model-dir --to fit:700MB -o small.gguf      the best that fits
  sedge shrink ./model-dir --to ppl:+2% -o small.gguf        the smallest that is as good
  sedge shrink model.gguf --to stack -o any-size.gguf        one file for any memory
  sedge shrink model.gguf --to q3_k --method awq --calibrate notes.txt -o small.gguf
  sedge shrink net.onnx --sparse 0.9 -o sparse.onnx          a network that sees, mostly zeros
  sedge shrink net.onnx --sparse 0.3,group=8 --int8 --calibrate photos/ -o small.onnx

TARGET is a scheme (w8a8, w4a16, w4a8kv4, w4a4kv4, w3a16, w2a16: bits of weights, activations,
keys and values), a type (q4_k, iq4_xs, q3_k …), fit:SIZE for a file of at most that size,
ppl:+N% for the least bytes at which perplexity grows by no more, or stack: a file of which as much
is used as there is memory for, which may change while it serves (sedge serve --memory).

The model reads a calibration text while it is rounded: one of yours, best of the kind that it
will see, or one that it writes itself. What is done is kept in OUT.gguf.shrinking until the file
is whole: the same command goes on where an interrupted one ended, but for stacks.

Networks that see (ONNX files, or names such as mobilenet-v1 for one with random weights) become
sparse, integers, or both; they look at pictures, or at noise, instead of a text.";

#[derive(clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    /// GGUF file, Hugging Face folder, `seedling`, the built-in model, or ONNX file
    #[arg(value_name = "MODEL")]
    model: Source,

    /// What it is to become
    #[arg(
        long,
        value_name = "TARGET",
        required_unless_present_any = ["sparse", "int8"],
        conflicts_with_all = ["sparse", "int8"]
    )]
    to: Option<Target>,

    #[command(flatten)]
    vision: vision::VisionArgs,

    /// File to write: GGUF, or ONNX of networks that see
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,

    /// How matrices are rounded
    #[arg(long, value_enum, value_name = "HOW", default_value = "gptq")]
    method: How,

    /// Text that the model reads, UTF-8; `self` for one that it writes. Of networks that see, a
    /// picture or a folder of some; `self` for noise
    #[arg(long, value_name = "FILE", default_value = "self")]
    calibrate: PathBuf,

    /// Most tokens of it
    #[arg(long, value_name = "TOKENS", default_value = "32768")]
    tokens: NonZeroUsize,

    /// Text on which the model is compared with what it was [default: what is left of the
    /// calibration text]
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,

    /// Write what each size was expected to cost, and what this one does, as an SVG
    #[arg(long, value_name = "FILE.svg")]
    curve: Option<PathBuf>,

    /// Shrink a model that is quantised already; what it has lost is lost twice
    #[arg(long)]
    requantise: bool,

    /// Forget what an interrupted run has done
    #[arg(long)]
    restart: bool,

    /// Replace OUT if it exists
    #[arg(short, long)]
    force: bool,

    /// Threads that compute [default: the machine's physical cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// See [`Method`].
#[derive(Debug, Clone, Copy, ValueEnum)]
enum How {
    /// Errors of each column made good in those after it
    Gptq,
    /// To the nearest, after columns that matter were made larger
    Awq,
    /// To the nearest
    Nearest,
}

impl From<How> for Method {
    fn from(how: How) -> Method {
        match how {
            How::Gptq => Method::Gptq,
            How::Awq => Method::Awq,
            How::Nearest => Method::Nearest,
        }
    }
}

/// Tokens of a sequence of calibration text.
const LENGTH: usize = 512;
/// Sequences on which models are compared, at most.
const COMPARED: usize = 32;

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    if args.output.exists() && !args.force {
        return Err(
            Failure::new(format_args!("{} exists", args.output.display()))
                .hint("--force, to replace it"),
        );
    }
    let Some(to) = args.to else {
        return vision::run(&args);
    };
    args.vision.refuse()?;
    let start = Instant::now();
    let team = Team::new(machine::threads(args.threads));
    let mut line = ProgressLine::new();
    let origin = args.model.origin()?;
    let refused = origin.refuse_same(&args.output);
    refused.map_err(|e| failure(&args, e.into()))?;
    if to == Target::Stack {
        stack::refuse_others(&args)?;
    }
    if !args.requantise {
        sedge_shrink::whole(&origin).map_err(|e| failure(&args, e))?;
    }
    let text = Text::of(&args, &team, &mut line)?;
    if to == Target::Stack {
        return stack::run(&args, &origin, &text, &team, &mut line, start);
    }
    let mut job = Job {
        args: &args,
        origin,
        team,
        text,
        line,
    };
    let done = match to {
        Target::Scheme(scheme) => {
            let types = sedge_shrink::by_scheme(&job.origin, &scheme);
            job.once(&types.map_err(|e| failure(&args, e))?, &args.output)?
        }
        Target::Fit { bytes } => {
            let plan = job.plan()?;
            let types = plan.within(bytes).map_err(|e| failure(&args, e))?;
            let mut done = job.once(&types, &args.output)?;
            done.plan = Some(plan);
            done
        }
        Target::Perplexity { growth } => job.until(growth)?,
        Target::Stack => unreachable!("a stack is made above"),
    };
    job.line.clear();
    let seconds = start.elapsed().as_secs_f64();
    if let Some(path) = &args.curve {
        let svg = chart(&done).svg();
        std::fs::write(path, svg).map_err(|e| Failure::file(path, &e))?;
    }
    let text = match args.json {
        true => format!("{:#}\n", as_json(&args, &done, seconds)),
        false => as_text(&args, &done, seconds),
    };
    Ok(output::print(&text)?)
}

/// A model that was shrunk, and how it compares.
struct Done {
    report: ShrinkReport,
    compared: Compared,
    /// Of budgets: what each size was expected to cost.
    plan: Option<Plan>,
}

/// What is needed to shrink a model, perhaps several times.
struct Job<'a> {
    args: &'a Args,
    origin: Origin<'a>,
    team: Team,
    text: Text,
    line: ProgressLine,
}

/// Bits of activations that are written into the file.
fn activations(target: Option<Target>) -> Option<(u8, bool)> {
    match target {
        Some(Target::Scheme(scheme)) if scheme.activations < 8 => {
            Some((scheme.activations as u8, scheme.mixed))
        }
        _ => None,
    }
}

/// The type of keys and values that is written into the file.
fn kv(target: Option<Target>) -> Option<&'static str> {
    match target {
        Some(Target::Scheme(scheme)) => match scheme.kv? {
            4 => Some("q4"),
            _ => Some("q8"),
        },
        _ => None,
    }
}

/// How matrices are rounded.
fn options(args: &Args) -> Options {
    Options {
        method: args.method.into(),
        activations: activations(args.to),
        anew: args.restart,
        ..Options::default()
    }
}

/// How often a perplexity is aimed at before the best try is taken.
const TRIES: usize = 5;

impl Job<'_> {
    fn plan(&mut self) -> Result<Plan, Failure> {
        let Job {
            args,
            origin,
            team,
            text,
            line,
        } = self;
        let plan = sedge_shrink::plan(origin, &text.calibration, team, &mut |done, all, tensor| {
            line.show(done as u64, all as u64, &format!("weighing {tensor}"));
        });
        plan.map_err(|e| failure(args, e))
    }

    fn once(&mut self, types: &Types, output: &Path) -> Result<Done, Failure> {
        let Job {
            args,
            origin,
            team,
            text,
            line,
        } = self;
        let options = options(args);
        let report = sedge_shrink::shrink(
            origin,
            types,
            &text.calibration,
            options,
            output,
            team,
            &|file| {
                if let Some(kv) = kv(args.to) {
                    file.set(KV_TYPE, Value::String(kv.into()));
                }
            },
            &mut |doing| match doing {
                Doing::Rounding {
                    done,
                    total,
                    tensor,
                } => line.show(done as u64, total as u64, tensor),
                Doing::Writing(p) => line.show(p.done, p.total, p.tensor),
            },
        );
        let report = report.map_err(|e| failure(args, e))?;
        let compared = compare(args, output, &text.compared, line)?;
        Ok(Done {
            report,
            compared,
            plan: None,
        })
    }

    /// Aims at a growth of perplexity, with what each try has shown of how far the plan's
    /// expectation is off. A try takes the output's place when it is good, and better than before.
    fn until(&mut self, growth: f64) -> Result<Done, Failure> {
        let plan = self.plan()?;
        let wanted = growth.ln_1p();
        let output = &self.args.output;
        let (mut off, mut best): (f64, Option<Done>) = (1.0, None);
        let mut tried: Vec<Types> = Vec::new();
        for number in 1..=TRIES {
            // Each of its own name, so that an interrupted one is found again when its turn comes.
            let trying = output.with_added_extension(format!("try{number}"));
            let types = plan.losing(wanted * 0.97 / off);
            if tried.contains(&types) {
                break;
            }
            tried.push(types.clone());
            let done = self.once(&types, &trying)?;
            let Some(found) = done.compared.agreement.as_ref().map(Agreement::increase) else {
                let _ = std::fs::remove_file(&trying);
                return Err(
                    Failure::new("there is no text to compare perplexities on").hint("--eval FILE")
                );
            };
            off = (found.max(1e-4).ln_1p() / plan.loss(&types).max(1e-9)).clamp(0.05, 20.0);
            let smaller = |best: &Done| done.report.file.bytes_out < best.report.file.bytes_out;
            if found > growth || !best.as_ref().is_none_or(smaller) {
                std::fs::remove_file(&trying).map_err(|e| Failure::file(&trying, &e))?;
                continue;
            }
            std::fs::rename(&trying, output).map_err(|e| Failure::file(output, &e))?;
            best = Some(done);
            if found > 0.85 * growth {
                break;
            }
        }
        let mut done = best.ok_or_else(|| {
            Failure::new(format_args!(
                "no choice of types was found with which perplexity grows by at most {:.2} %",
                growth * 100.0
            ))
            .hint("a larger growth, or more calibration text")
        })?;
        done.plan = Some(plan);
        Ok(done)
    }
}

/// What the model reads.
struct Text {
    calibration: Vec<Vec<u32>>,
    compared: Vec<Vec<u32>>,
}

impl Text {
    fn of(args: &Args, team: &Team, line: &mut ProgressLine) -> Result<Text, Failure> {
        let opened = args.model.open()?;
        let Model::Decoder(_) = &opened.model else {
            return Err(failure(args, ShrinkError::Encoder));
        };
        let tokenizer = opened.tokenizer.ok_or_else(|| {
            Failure::new(format_args!(
                "{}: the model has no tokenizer",
                args.model.name
            ))
        })?;
        let length = LENGTH.min(opened.model.config().context);
        // One type for all, each value to the nearest, needs no text.
        let looks = !matches!(args.to, Some(Target::Scheme(_))) || options(args).looks();
        let count = if looks {
            args.tokens.get().div_ceil(length)
        } else {
            0
        };
        let compared = args.eval.as_deref();
        let vocab = opened.model.config().vocab;
        let read = |path: &Path| tokens(&tokenizer, path, vocab);
        let compared = compared.map(read).transpose()?;
        let compared = compared.map(|tokens| sedge_shrink::pieces(&tokens, length, COMPARED));
        if args.calibrate.as_os_str() != "self" {
            let mut all = read(&args.calibrate)?;
            let compared = compared.unwrap_or_else(|| {
                // What is not calibrated on: the last tenth.
                let left = all.split_off(all.len() - all.len() / 10);
                sedge_shrink::pieces(&left, length, COMPARED)
            });
            return Ok(Text {
                calibration: sedge_shrink::pieces(&all, length, count),
                compared,
            });
        }
        let mut model = opened.model;
        let packed = model.pack(team);
        packed.map_err(|e| Failure::new(format_args!("the weights could not be packed: {e}")))?;
        // What documents began after, when the model learnt.
        let between = || tokenizer.id("<|endoftext|>");
        let start = tokenizer.bos().or_else(between);
        let start = start.or_else(|| tokenizer.eos().first().copied());
        let start = start.filter(|&token| (token as usize) < vocab);
        let start = [start.unwrap_or(0)];
        let mut write = |count: usize, seed: u64| {
            sedge_shrink::written(
                team,
                &model,
                &start,
                (count, length),
                seed,
                &mut |done, all| {
                    line.show(done as u64, all as u64, "the model writes a text");
                },
            )
        };
        let calibration = write(count, 1);
        let compared = compared.unwrap_or_else(|| match args.to {
            Some(Target::Stack) => Vec::new(),
            _ => write(COMPARED / 2, 2),
        });
        Ok(Text {
            calibration,
            compared,
        })
    }
}

/// A file's tokens.
fn tokens(tokenizer: &Tokenizer, path: &Path, vocab: usize) -> Result<Vec<u32>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::file(path, &e))?;
    let tokens = tokenizer.encode(&text, false, false);
    match tokens.iter().find(|&&token| token as usize >= vocab) {
        None => Ok(tokens),
        Some(token) => Err(Failure::new(format_args!(
            "{}: token {token} of the text is not among the model's {vocab}",
            path.display()
        ))),
    }
}

/// The model before and after.
struct Compared {
    agreement: Option<Agreement>,
    /// Tokens generated a second, of one sequence.
    speeds: [f64; 2],
}

fn compare(
    args: &Args,
    output: &Path,
    texts: &[Vec<u32>],
    line: &mut ProgressLine,
) -> Result<Compared, Failure> {
    const TASK: Task = Task::Generate {
        tokens: 32,
        depth: 64,
        batch: 1,
    };
    let after = open(output).map_err(|e| Failure::about(output, &e))?;
    let length = texts.iter().map(Vec::len).max().unwrap_or(0);
    let pages = length.div_ceil(PAGE_TOKENS).max(TASK.pages());
    let executor = |mut model: Model, kv: KvType| -> Result<CpuExecutor, Failure> {
        let team = Team::new(machine::threads(args.threads));
        model.round_prompts(sedge_kernels::rounds_fast());
        let packed = model.pack(&team);
        packed.map_err(|e| Failure::new(format_args!("the weights could not be packed: {e}")))?;
        let context = model.config().context;
        let model = SharedModel::new(model);
        Ok(CpuExecutor::new(model, team, kv, pages, context))
    };
    let kv = machine::shrunk_for(&after.info).map_or(KvType::F16, KvType::from);
    let mut first = executor(args.model.open()?.model, KvType::F16)?;
    let mut second = executor(after.model, kv)?;
    let agreement = agreement_between([&mut first, &mut second], texts, &mut |done, all| {
        line.show(done as u64, all as u64, "before and after");
    });
    // In turns, the best of three: a machine's other work disturbs both.
    let mut speeds = [0.0f64; 2];
    for _ in 0..3 {
        for (speed, executor) in speeds.iter_mut().zip([&mut first, &mut second]) {
            let seconds = time(executor, TASK).as_secs_f64();
            *speed = speed.max(TASK.tokens() as f64 / seconds);
        }
    }
    Ok(Compared { agreement, speeds })
}

fn failure(args: &Args, error: ShrinkError) -> Failure {
    let failure = match &error {
        ShrinkError::Work(_) | ShrinkError::TooSmall { .. } | ShrinkError::Text { .. } => {
            Failure::new(&error)
        }
        ShrinkError::Convert(ConvertError::Write { .. } | ConvertError::SameFile(_)) => {
            Failure::new(&error)
        }
        _ => match args.model.path() {
            Some(path) => Failure::about(path, &error),
            None => Failure::new(&error),
        },
    };
    match error {
        ShrinkError::Work(WorkError::Other { .. }) => failure.hint("--restart, to forget it"),
        ShrinkError::Quantised { .. } => failure
            .hint("the model as it was trained; --requantise, to shrink this one all the same"),
        ShrinkError::Text { .. } => failure.hint("--calibrate self, a text that the model writes"),
        _ => failure,
    }
}

/// What each size was expected to cost, and what this one does.
fn chart(done: &Done) -> Chart {
    let grown = |loss: f64| loss.exp_m1() * 100.0;
    let frontier = done.plan.iter().flat_map(Plan::frontier);
    let frontier = frontier.filter(|p| p.1 < 0.5);
    let expected = frontier.map(|(bytes, loss)| (bytes as f64 / 1e6, grown(loss)));
    let agreement = done.compared.agreement.as_ref();
    let found = agreement.map(|a| {
        (
            done.report.file.bytes_out as f64 / 1e6,
            a.increase() * 100.0,
        )
    });
    Chart {
        title: "what a size costs".into(),
        x: "MB of file".into(),
        y: "growth of perplexity, %".into(),
        lines: vec![
            Line {
                name: "expected, each value to the nearest".into(),
                points: expected.collect(),
            },
            Line {
                name: "measured".into(),
                points: found.into_iter().collect(),
            },
        ],
        log_x: false,
        mark: None,
    }
}

fn as_text(args: &Args, done: &Done, seconds: f64) -> String {
    let Done {
        report, compared, ..
    } = done;
    let mut rows = vec![vec![
        String::new(),
        "before".into(),
        "after".into(),
        String::new(),
    ]];
    let (before, after) = (report.file.bytes_in, report.file.bytes_out);
    rows.push(vec![
        "bytes".into(),
        Bytes(before).to_string(),
        Bytes(after).to_string(),
        format!("{:.2} ×", after as f64 / before.max(1) as f64),
    ]);
    if let Some(agreement) = &compared.agreement {
        let [a, b] = agreement.perplexities();
        rows.push(vec![
            "perplexity".into(),
            format!("{a:.3}"),
            format!("{b:.3}"),
            format!("{:+.2} %", agreement.increase() * 100.0),
        ]);
    }
    let [a, b] = compared.speeds;
    rows.push(vec![
        "tokens/s".into(),
        format!("{a:.1}"),
        format!("{b:.1}"),
        format!("{:.2} ×", b / a.max(f64::MIN_POSITIVE)),
    ]);
    let mut text = table(&rows);
    text.push_str(&format!(
        "\n{:.3} bits per weight",
        report.bits_per_weight()
    ));
    if let Some(agreement) = &compared.agreement {
        text.push_str(&format!(
            "; the same token is the most likely for {:.1} % of {}",
            agreement.top1() * 100.0,
            agreement.tokens
        ));
    }
    text.push_str(&format!(
        "\n{}: {} tensors in {seconds:.1} s",
        args.output.display(),
        report.file.tensors
    ));
    if report.resumed > 0 {
        text.push_str(&format!(
            ", {} of them from an interrupted run",
            report.resumed
        ));
    }
    text.push('\n');
    if let Some(plan) = &done.plan {
        let grown = |&(bytes, loss): &(u64, f64)| (bytes as f64, loss.exp_m1() * 100.0);
        let points: Vec<(f64, f64)> = plan.frontier().iter().map(grown).collect();
        // Where nothing is left of a model, a curve would show nothing else.
        let shown = points.iter().copied().filter(|p| p.1 <= 50.0);
        let shown: Vec<(f64, f64)> = shown.collect();
        if let [first, .., last] = &shown[..] {
            text.push_str(&format!(
                "\nexpected growth of perplexity in %, from {} to {}, each value to the nearest:\n{}",
                Bytes(first.0 as u64),
                Bytes(last.0 as u64),
                sparkline(&shown, 60)
            ));
        }
    }
    text
}

fn as_json(args: &Args, done: &Done, seconds: f64) -> serde_json::Value {
    let Done {
        report, compared, ..
    } = done;
    let agreement = compared.agreement.as_ref();
    json!({
        "model": args.model.name,
        "output": args.output.display().to_string(),
        "seconds": seconds,
        "bits_per_weight": report.bits_per_weight(),
        "bytes": [report.file.bytes_in, report.file.bytes_out],
        "perplexity": agreement.map(Agreement::perplexities),
        "top1_agreement": agreement.map(Agreement::top1),
        "compared_tokens": agreement.map(|a| a.tokens),
        "tokens_per_second": compared.speeds,
        "resumed": report.resumed,
        "expected": done.plan.as_ref().map(Plan::frontier),
        "tensors": report.matrices.iter().map(|m| json!({
            "name": m.tensor,
            "type": m.dtype.name(),
            "values": m.values,
        })).collect::<Vec<_>>(),
    })
}
