//! `sedge bench adapters`: what adapters cost when a batch is full of different ones.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use sedge_bench::{Spread, Task, time_of};
use sedge_engine::CpuExecutor;
use sedge_kernels::{Arena, DType, Team};
use sedge_models::{
    Adapter, AdapterPlan, Merged, Model, SharedModel, Variant, synth_adapter, synth_methods,
};
use serde_json::json;

use crate::failure::Failure;
use crate::machine::{self, Kv, WeightsArgs};
use crate::output::{self, ProgressLine};
use crate::size::Bytes;
use crate::source::Source;
use crate::table::table;

const ABOUT: &str = "\
Examples:
  sedge bench adapters                                    64 LoRA adapters of the built-in model
  sedge bench adapters -m 1b.gguf --targets q_proj,v_proj --rank 16
  sedge bench adapters -n 8 --method dora

Adapters with random weights are made for the model. In turn, repeat by repeat:

  base        every sequence by the model alone
  different   every sequence with an adapter of its own, in one batch
  same        every sequence with the same adapter
  merged      each adapter merged into the weights, one after the other, each with the
              sequences that it has in `different`; merging itself is not counted, but shown

`of base` is a rate over the base's in the same repeat.";

#[derive(Debug, Args)]
#[command(after_help = ABOUT)]
pub(super) struct AdaptersArgs {
    /// GGUF file, Hugging Face folder, or `seedling`, the built-in model
    #[arg(short, long, value_name = "MODEL", default_value = crate::source::BUILT_IN)]
    model: Source,

    /// Adapters
    #[arg(short = 'n', long, value_name = "N", default_value = "64")]
    adapters: NonZeroUsize,

    /// Sequences that generate at once [default: one for each adapter]
    #[arg(short, long, value_name = "N")]
    batch: Option<NonZeroUsize>,

    /// Method of the adapters
    #[arg(long, default_value = "lora", value_parser = synth_methods().collect::<Vec<_>>())]
    method: String,

    /// Their rank
    #[arg(long, value_name = "N", default_value = "8")]
    rank: NonZeroUsize,

    /// Modules that they change, with commas between [default: all that the method can]
    #[arg(long, value_name = "MODULES", value_delimiter = ',')]
    targets: Vec<String>,

    /// Type of their weights
    #[arg(long = "type", value_name = "TYPE", default_value = "bf16", value_parser = parse_type)]
    dtype: DType,

    /// Tokens that each sequence generates
    #[arg(short, long, value_name = "TOKENS", default_value = "32")]
    tokens: NonZeroUsize,

    /// Tokens that each sequence has before
    #[arg(short, long, value_name = "TOKENS", default_value = "64")]
    depth: usize,

    /// Adapters that are merged; their time stands for all
    #[arg(long, value_name = "N", default_value = "4")]
    merge: usize,

    /// Repeats
    #[arg(short, long, value_name = "N", default_value = "5")]
    repeats: NonZeroUsize,

    /// Threads that compute [default: the machine's physical cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    #[command(flatten)]
    weights: WeightsArgs,

    /// Type in which keys and values are kept
    #[arg(long, value_enum, value_name = "TYPE", default_value = "f16")]
    kv: Kv,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn parse_type(name: &str) -> Result<DType, String> {
    match name {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::BF16),
        _ => Err("f32, f16 or bf16".into()),
    }
}

/// A way to compute the sequences, and its tokens per second, repeat by repeat.
struct Row {
    name: &'static str,
    rates: Vec<f64>,
    ratios: Vec<f64>,
}

pub(super) fn run(args: &AdaptersArgs) -> Result<(), Failure> {
    let count = args.adapters.get();
    let batch = args.batch.unwrap_or(args.adapters).get();
    let threads = machine::threads(args.threads);
    let mut line = ProgressLine::new();
    line.show(0, 1, "loading");
    let mut opened = args.model.open()?;
    let positions = args.depth + args.tokens.get();
    let context = opened.model.config().context;
    if positions > context {
        return Err(Failure::new(format_args!(
            "--depth and --tokens take {positions} positions; the model has {context}"
        )));
    }
    let adapters = make(args, &opened.model, &mut line)?;
    let bytes: u64 = adapters.iter().map(|a| a.bytes() as u64).sum();
    // As an engine keeps them.
    let arena = Arena::new(bytes as usize).map_err(Failure::new)?;
    let keep = |a: Arc<Adapter>| Arc::new(Adapter::clone(&a).kept_in(&arena));
    let adapters: Vec<Arc<Adapter>> = adapters.into_iter().map(keep).collect();
    let team = Team::new(threads);
    args.weights.ready(&args.model, &mut opened.model, &team)?;

    let task = |batch: usize| Task::Generate {
        tokens: args.tokens.get(),
        depth: args.depth,
        batch,
    };
    let model = SharedModel::new(opened.model);
    let (mut merged, mut merging) = (Vec::new(), 0.0);
    let merges = adapters[0].merges();
    for (i, adapter) in adapters
        .iter()
        .take(args.merge)
        .enumerate()
        .filter(|_| merges)
    {
        line.show(i as u64, args.merge as u64, "merging");
        let start = Instant::now();
        let done = model.merge(0, adapter, &team).map_err(Failure::new)?;
        merging += start.elapsed().as_secs_f64();
        merged.push(done);
    }
    let pages = task(batch).pages();
    let mut executor = CpuExecutor::new(model.clone(), team, args.kv.into(), pages, context);
    let with = |adapter: &Arc<Adapter>| Variant {
        member: 0,
        adapter: Some(adapter.clone()),
    };
    let different: Vec<Variant> = (0..batch).map(|s| with(&adapters[s % count])).collect();
    let same: Vec<Variant> = (0..batch).map(|_| with(&adapters[0])).collect();

    let names = ["base", "different", "same", "merged"];
    let shown = if merged.is_empty() { 3 } else { 4 };
    let mut rows: Vec<Row> = names[..shown]
        .iter()
        .map(|name| Row {
            name,
            rates: Vec::new(),
            ratios: Vec::new(),
        })
        .collect();
    let total = (args.repeats.get() * rows.len()) as u64;
    for repeat in 0..args.repeats.get() {
        for i in 0..rows.len() {
            let done = (repeat * rows.len() + i) as u64;
            line.show(done, total, rows[i].name);
            let seconds = match rows[i].name {
                "base" => time_of(&mut executor, task(batch), &[]).as_secs_f64(),
                "different" => time_of(&mut executor, task(batch), &different).as_secs_f64(),
                "same" => time_of(&mut executor, task(batch), &same).as_secs_f64(),
                _ => in_turn(&mut executor, &merged, (count, batch), &task),
            };
            rows[i].rates.push(task(batch).tokens() as f64 / seconds);
            let ratio = rows[i].rates[repeat] / rows[0].rates[repeat];
            rows[i].ratios.push(ratio);
        }
    }
    line.clear();
    let merged = merged
        .first()
        .map(|first| (merging / args.merge.min(count) as f64, first.bytes));
    let text = match args.json {
        true => format!("{:#}\n", as_json(args, batch, bytes, merged, &rows)),
        false => as_text(args, batch, bytes, merged, &rows),
    };
    Ok(output::print(&text)?)
}

/// Adapters for the model, each with random weights of its own.
fn make(
    args: &AdaptersArgs,
    model: &Model,
    line: &mut ProgressLine,
) -> Result<Vec<Arc<Adapter>>, Failure> {
    let Model::Decoder(decoder) = model else {
        return Err(Failure::new("the model is an encoder: it has no adapters"));
    };
    let folder = std::env::temp_dir().join(format!("sedge-bench-adapters-{}", std::process::id()));
    let result = (0..args.adapters.get())
        .map(|seed| {
            line.show(seed as u64, args.adapters.get() as u64, "making adapters");
            let plan = AdapterPlan {
                method: args.method.clone(),
                rank: args.rank.get(),
                alpha: 2.0 * args.rank.get() as f32,
                targets: args.targets.clone(),
                positions: 8,
                dtype: args.dtype,
                seed: seed as u64,
                base: args.model.name.clone(),
            };
            synth_adapter(decoder, &plan, &folder, &mut |_, _| {}).map_err(Failure::new)?;
            let adapter = Adapter::open(&folder, decoder).map_err(Failure::new);
            std::fs::remove_dir_all(&folder).map_err(Failure::new)?;
            Ok(Arc::new(adapter?))
        })
        .collect();
    let _ = std::fs::remove_dir_all(&folder);
    result
}

/// Seconds of all adapters' sequences, a merged adapter's after the other's.
fn in_turn(
    executor: &mut CpuExecutor,
    merged: &[Merged],
    (count, batch): (usize, usize),
    task: &dyn Fn(usize) -> Task,
) -> f64 {
    let own = (batch / count).max(1);
    let seconds: f64 = merged
        .iter()
        .map(|merged| {
            let variant = Variant {
                member: merged.member,
                adapter: None,
            };
            time_of(executor, task(own), &vec![variant; own]).as_secs_f64()
        })
        .sum();
    seconds / merged.len() as f64 * (batch as f64 / own as f64)
}

/// Seconds of one merge and bytes of its weights.
type MergedFacts = Option<(f64, u64)>;

fn as_text(
    args: &AdaptersArgs,
    batch: usize,
    bytes: u64,
    merged: MergedFacts,
    rows: &[Row],
) -> String {
    let spread = |figures: &[f64], digits: usize| {
        let Some(s) = Spread::of(figures) else {
            return String::new();
        };
        format!(
            "{:.digits$} ({:.digits$} to {:.digits$})",
            s.median, s.min, s.max
        )
    };
    let mut lines = vec![["", "tokens/s", "of base"].map(String::from).to_vec()];
    lines.extend(rows.iter().map(|row| {
        let (rates, ratios) = (spread(&row.rates, 0), spread(&row.ratios, 2));
        vec![row.name.to_string(), rates, ratios]
    }));
    let targets = match args.targets.is_empty() {
        true => "all modules".to_string(),
        false => args.targets.join(", "),
    };
    let mut text = format!(
        "{}: {} {} adapters of rank {} on {targets}, {} each; {batch} sequences at depth {}\n\n{}",
        args.model.name,
        args.adapters,
        args.method,
        args.rank,
        Bytes(bytes / args.adapters.get() as u64),
        args.depth,
        table(&lines),
    );
    if let Some((seconds, bytes)) = merged {
        text.push_str(&format!(
            "\nmerging takes {:.0} ms and {} an adapter\n",
            seconds * 1e3,
            Bytes(bytes)
        ));
    }
    text
}

fn as_json(
    args: &AdaptersArgs,
    batch: usize,
    bytes: u64,
    merged: MergedFacts,
    rows: &[Row],
) -> serde_json::Value {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| json!({"name": row.name, "tokens_per_second": row.rates, "of_base": row.ratios}))
        .collect();
    json!({
        "model": args.model.name,
        "adapters": args.adapters.get(),
        "method": args.method,
        "rank": args.rank.get(),
        "targets": args.targets,
        "bytes": bytes,
        "batch": batch,
        "depth": args.depth,
        "tokens": args.tokens.get(),
        "merging": merged.map(|(seconds, bytes)| json!({"seconds": seconds, "bytes": bytes})),
        "rows": rows,
    })
}
