//! `sedge bench`: how fast a model runs, beside what the machine could do.

mod adapters;
mod chat;
mod costs;
mod memory;
mod products;
mod pull;
mod serve;
mod vision;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::process::Command;
use std::time::Instant;

use clap::Subcommand;
use sedge_bench::{Spread, Task, read_peer, time};
use sedge_engine::CpuExecutor;
use sedge_kernels::{Peak, Team, bf16_peak, f32_peak, int8_peak, packed_kernels, read_bandwidth};
use sedge_models::{Model, SharedModel, Work};
use serde_json::json;

use crate::failure::Failure;
use crate::machine::{self, Kv, WeightsArgs};
use crate::output::{self, ProgressLine};
use crate::size::Bytes;
use crate::source::Source;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Tokens per second of prompts and of generation
    Model(Box<ModelArgs>),
    /// Conversations of many turns, and how speed holds over time
    Chat(Box<chat::ChatArgs>),
    /// What steps of a model cost, for planning and simulation
    Costs(Box<costs::CostsArgs>),
    /// Many adapters in one batch, beside the model alone and merged ones in turn
    Adapters(Box<adapters::AdaptersArgs>),
    /// Sequences that fit a cap of memory, and how fast they generate
    Memory(Box<memory::MemoryArgs>),
    /// Products alone, by type of weights, bits of activations and rows
    Products(products::ProductsArgs),
    /// Networks that see, beside onnxruntime
    Vision(vision::VisionArgs),
    /// Load on servers of the OpenAI API, and how they bear it
    Serve(Box<serve::ServeArgs>),
    /// Pulls from a hub on this machine, beside curl
    Pull(pull::PullArgs),
}

const ABOUT_MODEL: &str = "\
Examples:
  sedge bench model                                   the built-in model
  sedge bench model -m 1b.gguf -p 512 -n 128 -d 0,8192
  sedge bench model -m 1b.gguf -n 64 -b 1,16          sixteen sequences at once
  sedge bench model -m 1b.gguf --peer 'llama-bench -m 1b.gguf -p 512 -n 128 -t 2 -r 1 -o json'

pp512 is a prompt of 512 tokens, tg128 the generation of 128, each in steps as the server takes
them; @ d8192 has so many tokens in the cache before; × 16 generates in so many sequences at once
and counts the tokens of all. Each figure is the median of the repeats, with their range.

`of limit` compares with this machine, measured in the same run: for prompts, multiply-adds with
its best instruction for the numbers that they are computed in, bfloat16 where there are tiles and
8-bit integers elsewhere; for generation, bytes of weights, keys and values with what it reads
from memory in a second (a model that stays in the caches can exceed that).

A peer's command runs once after each of our repeats; its ratio is ours over its, repeat by
repeat. llama-bench (-o json) and llama-batched-bench (--output-format jsonl) are understood.";

#[derive(clap::Args)]
#[command(after_help = ABOUT_MODEL)]
struct ModelArgs {
    /// GGUF file, Hugging Face folder, stored model, or `seedling`, the built-in model
    #[arg(short, long, value_name = "MODEL", default_value = crate::source::BUILT_IN)]
    model: Source,

    /// Lengths of prompts, with commas between; 0 for none
    #[arg(
        short,
        long,
        value_name = "TOKENS",
        value_delimiter = ',',
        default_value = "512"
    )]
    prompt: Vec<usize>,

    /// Numbers of tokens to generate; 0 for none
    #[arg(
        short = 'n',
        long,
        value_name = "TOKENS",
        value_delimiter = ',',
        default_value = "128"
    )]
    generate: Vec<usize>,

    /// Tokens in the cache before
    #[arg(
        short,
        long,
        value_name = "TOKENS",
        value_delimiter = ',',
        default_value = "0"
    )]
    depth: Vec<usize>,

    /// Sequences that generate at once
    #[arg(
        short,
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1"
    )]
    batch: Vec<NonZeroUsize>,

    /// Repeats
    #[arg(short, long, value_name = "N", default_value = "5")]
    repeats: NonZeroUsize,

    /// Threads that compute [default: the machine's physical cores]
    #[arg(short, long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    #[command(flatten)]
    weights: WeightsArgs,

    /// Type in which keys and values are kept
    #[arg(long, value_enum, value_name = "TYPE", default_value = "f16")]
    kv: Kv,

    /// Another program's benchmark, run in turn with ours
    #[arg(long, value_name = "COMMAND")]
    peer: Option<String>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    match args.what {
        What::Model(args) => model(&args),
        What::Chat(args) => chat::run(&args),
        What::Costs(args) => costs::run(&args),
        What::Adapters(args) => adapters::run(&args),
        What::Memory(args) => memory::run(&args),
        What::Products(args) => products::run(&args),
        What::Vision(args) => vision::run(&args),
        What::Serve(args) => serve::run(&args),
        What::Pull(args) => pull::run(&args),
    }
}

/// What the machine could do at best.
struct Limits {
    read: Peak,
    int8: Peak,
    bf16: Peak,
    f32: Peak,
}

/// A task's figures, repeat by repeat.
struct Row {
    task: Task,
    rates: Vec<f64>,
    ratios: Vec<f64>,
    /// Share of the machine's limit.
    share: f64,
}

struct Facts {
    name: String,
    parameters: u64,
    bytes: u64,
    threads: usize,
    load: f64,
    first_token: f64,
    memory: Option<Bytes>,
    /// Joules of the package over all repeats, if the machine has a meter.
    energy: Option<f64>,
}

fn model(args: &ModelArgs) -> Result<(), Failure> {
    let threads = machine::threads(args.threads);
    let tasks = tasks(args);
    let mut line = ProgressLine::new();
    line.show(0, 1, "loading");
    let start = Instant::now();
    let mut opened = args.model.open()?;
    let team = Team::new(threads);
    args.weights.ready(&args.model, &mut opened.model, &team)?;
    let load = start.elapsed().as_secs_f64();
    let Model::Decoder(decoder) = &opened.model else {
        return Err(Failure::new(
            "the model is an encoder: it generates nothing",
        ));
    };
    let (work, rounded) = (decoder.work(), decoder.rounds_prompts());
    let config = opened.model.config();
    if let Some(task) = tasks.iter().find(|t| t.positions() > config.context) {
        return Err(Failure::new(format_args!(
            "{task} takes {} positions; the model has {}",
            task.positions(),
            config.context
        )));
    }
    let (layers, page) = (
        config.layers.len(),
        config.kv_shape().page_bytes(args.kv.into()),
    );
    let pages = tasks.iter().map(Task::pages).max().unwrap_or(0).max(1);
    let context = config.context;
    let model = SharedModel::new(opened.model);
    let mut executor = CpuExecutor::new(model, team, args.kv.into(), pages, context);
    time(
        &mut executor,
        Task::Prompt {
            tokens: 8.min(context),
            depth: 0,
        },
    );
    let first_token = start.elapsed().as_secs_f64();

    let mut rows: Vec<Row> = tasks
        .into_iter()
        .map(|task| Row {
            task,
            rates: Vec::new(),
            ratios: Vec::new(),
            share: 0.0,
        })
        .collect();
    let count = rows.len();
    let total = (args.repeats.get() * count) as u64;
    let meter = joules();
    for repeat in 0..args.repeats.get() {
        for (i, row) in rows.iter_mut().enumerate() {
            line.show((repeat * count + i) as u64, total, &row.task.to_string());
            let seconds = time(&mut executor, row.task).as_secs_f64();
            row.rates.push(row.task.tokens() as f64 / seconds);
        }
        if let Some(command) = &args.peer {
            line.show(((repeat + 1) * count) as u64, total, "the peer");
            let peer = peer(command)?;
            for row in &mut rows {
                if let (Some(theirs), Some(ours)) = (peer.get(&row.task), row.rates.last()) {
                    row.ratios.push(ours / theirs);
                }
            }
        }
    }
    let energy = meter.zip(joules()).map(|(before, after)| after - before);
    let energy = energy.filter(|joules| *joules >= 0.0 && args.peer.is_none());
    drop(executor);
    let memory = peak_memory();
    line.show(total, total, "the machine's limits");
    let team = Team::new(threads);
    let limits = Limits {
        read: read_bandwidth(&team)
            .map_err(|e| Failure::new(format_args!("memory to measure reading with: {e}")))?,
        int8: int8_peak(&team),
        bf16: bf16_peak(&team),
        f32: f32_peak(&team),
    };
    line.clear();
    let kv = (layers * page) as f64 / sedge_kernels::PAGE_TOKENS as f64;
    for row in &mut rows {
        row.share = share(row, work, kv, rounded, &limits);
    }
    let facts = Facts {
        name: args.model.name.clone(),
        parameters: opened.info.parameters,
        bytes: opened.info.bytes,
        threads,
        load,
        first_token,
        memory,
        energy,
    };
    let text = match args.json {
        true => format!("{:#}\n", as_json(&facts, &rows, &limits)),
        false => as_text(&facts, &rows, &limits),
    };
    Ok(output::print(&text)?)
}

fn tasks(args: &ModelArgs) -> Vec<Task> {
    let mut tasks = Vec::new();
    for &depth in &args.depth {
        let prompts = args.prompt.iter().filter(|&&tokens| tokens > 0);
        tasks.extend(prompts.map(|&tokens| Task::Prompt { tokens, depth }));
        for &tokens in args.generate.iter().filter(|&&tokens| tokens > 0) {
            tasks.extend(args.batch.iter().map(|batch| Task::Generate {
                tokens,
                depth,
                batch: batch.get(),
            }));
        }
    }
    tasks
}

/// Runs a peer's benchmark once.
fn peer(command: &str) -> Result<HashMap<Task, f64>, Failure> {
    let about = |what: &dyn std::fmt::Display| Failure::new(format_args!("the peer: {what}"));
    let output = Command::new("sh")
        .args(["-c", command])
        .output()
        .map_err(|e| about(&e))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let last = errors.trim().lines().last().unwrap_or("").to_owned();
        return Err(about(&format_args!("{}: {last}", output.status)));
    }
    let figures = read_peer(&String::from_utf8_lossy(&output.stdout)).map_err(|e| about(&e))?;
    Ok(figures.into_iter().map(|f| (f.task, f.rate)).collect())
}

/// The share of the machine's limit that a task's median is.
fn share(row: &Row, [layers, head]: [Work; 2], kv: f64, rounded: bool, limits: &Limits) -> f64 {
    let rate = Spread::of(&row.rates).map_or(0.0, |s| s.median);
    match row.task {
        Task::Prompt { .. } => {
            let best = if rounded { limits.bf16 } else { limits.int8 };
            rate * layers.products as f64 / best.per_second
        }
        Task::Generate {
            tokens,
            depth,
            batch,
        } => {
            let context = depth as f64 + tokens as f64 / 2.0;
            let weights = (layers.bytes + head.bytes) as f64 / batch as f64;
            rate * (weights + context * kv) / limits.read.per_second
        }
    }
}

/// What the processor's meter shows, where there is one that may be read. It wraps around after
/// hours; a difference below 0 is not shown.
fn joules() -> Option<f64> {
    let path = "/sys/class/powercap/intel-rapl:0/energy_uj";
    let micro: f64 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
    Some(micro / 1e6)
}

/// Most memory that the process has had, where the system tells.
fn peak_memory() -> Option<Bytes> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(Bytes(kib << 10))
}

fn as_text(facts: &Facts, rows: &[Row], limits: &Limits) -> String {
    let memory = facts
        .memory
        .map_or_else(|| "unavailable".to_owned(), |m| m.to_string());
    let mut text = format!(
        "model         {}, {:.1} M parameters, {}\n\
         machine       {} threads, {} kernels; reads {:.1} GB/s\n\
         at best       {:.0} G int8 multiply-adds/s ({}), {:.0} G bf16 ({}), {:.0} G f32 ({})\n\
         load          {:.0} ms; first token after {:.0} ms\n\
         memory        {memory} at most\n\
         energy        {}\n\n\
         {:<20} {:>10} {:>19} {:>9}{}\n",
        facts.name,
        facts.parameters as f64 / 1e6,
        Bytes(facts.bytes),
        facts.threads,
        packed_kernels(),
        limits.read.per_second / 1e9,
        limits.int8.per_second / 1e9,
        limits.int8.by,
        limits.bf16.per_second / 1e9,
        limits.bf16.by,
        limits.f32.per_second / 1e9,
        limits.f32.by,
        facts.load * 1e3,
        facts.first_token * 1e3,
        facts
            .energy
            .map_or_else(|| "unavailable".to_owned(), |j| format!("{j:.1} J in all")),
        "task",
        "tokens/s",
        "range",
        "of limit",
        if rows.iter().any(|r| !r.ratios.is_empty()) {
            "   over the peer"
        } else {
            ""
        },
    );
    for row in rows {
        let Some(s) = Spread::of(&row.rates) else {
            continue;
        };
        let range = format!("{:.1} – {:.1}", s.min, s.max);
        let peer = Spread::of(&row.ratios).map_or_else(String::new, |r| {
            format!("   {:.2} × ({:.2} – {:.2})", r.median, r.min, r.max)
        });
        text.push_str(&format!(
            "{:<20} {:>10.1} {:>19} {:>7.0} %{peer}\n",
            row.task.to_string(),
            s.median,
            range,
            row.share * 100.0
        ));
    }
    text
}

fn as_json(facts: &Facts, rows: &[Row], limits: &Limits) -> serde_json::Value {
    let spread = |figures: &[f64]| {
        Spread::of(figures).map(|s| json!({"median": s.median, "min": s.min, "max": s.max}))
    };
    let peak = |p: &Peak| json!({"per_second": p.per_second, "by": p.by});
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "task": row.task.to_string(),
                "tokens_per_second": spread(&row.rates),
                "share_of_limit": row.share,
                "over_peer": spread(&row.ratios),
            })
        })
        .collect();
    json!({
        "model": facts.name,
        "parameters": facts.parameters,
        "bytes": facts.bytes,
        "threads": facts.threads,
        "kernels": packed_kernels(),
        "load_seconds": facts.load,
        "first_token_seconds": facts.first_token,
        "peak_memory_bytes": facts.memory.map(|m| m.0),
        "energy_joules": facts.energy,
        "limits": {
            "read_bytes": peak(&limits.read),
            "int8": peak(&limits.int8),
            "bf16": peak(&limits.bf16),
            "f32": peak(&limits.f32),
        },
        "tasks": rows,
    })
}
