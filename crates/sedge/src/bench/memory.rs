//! `sedge bench memory`: how many sequences fit a cap of memory, and how fast they generate.

use std::num::NonZeroUsize;
use std::sync::Arc;

use clap::Args;
use sedge_bench::{Spread, Task, fill, generate};
use sedge_engine::CpuExecutor;
use sedge_kernels::{PAGE_TOKENS, Team};
use sedge_models::{Config, SharedModel};
use serde_json::json;

use crate::failure::Failure;
use crate::machine::{self, Kv, WeightsArgs};
use crate::output::{self, ProgressLine};
use crate::size::Bytes;
use crate::source::Source;
use crate::table::table;

const ABOUT: &str = "\
Example:
  sedge bench memory --cap 2.8GB --depth 2048 \\
    -m 1b-bf16.gguf --kv f16 -m 1b-bf16.gguf --kv q4 -m 1b-q4.gguf --kv q4

Each -m with the --kv at the same place is a configuration. For each: how many sequences of
--depth and --tokens fit the cap, beside weights and working memory, and tokens per second of
all of them; then of as many as the first configuration holds. Configurations take turns, repeat
by repeat; ratios are to the first one in the same repeat.

Weights and keys and values are counted as they lie in memory. Working memory is reckoned from the
model's shape, for a step of all sequences or of 512 tokens of a prompt, whichever is more. All
configurations are in memory at once: that takes their number times --cap, less what models
named twice share. Every sequence is a copy of one, so that filling takes no longer than one.";

#[derive(Debug, Args)]
#[command(after_help = ABOUT)]
pub(super) struct MemoryArgs {
    /// GGUF file, Hugging Face folder, stored model, or `seedling`, the built-in model
    #[arg(short, long, value_name = "MODEL", required = true)]
    model: Vec<Source>,

    /// Type in which keys and values are kept, one for each model
    #[arg(long, value_enum, value_name = "TYPE", required = true)]
    kv: Vec<Kv>,

    /// Memory for weights, keys and values, and working memory
    #[arg(long, value_name = "BYTES")]
    cap: Bytes,

    /// Tokens that each sequence has before
    #[arg(short, long, value_name = "TOKENS", default_value = "2048")]
    depth: usize,

    /// Tokens that each sequence generates
    #[arg(short, long, value_name = "TOKENS", default_value = "8")]
    tokens: NonZeroUsize,

    /// Repeats
    #[arg(short, long, value_name = "N", default_value = "5")]
    repeats: NonZeroUsize,

    /// Threads that compute [default: the machine's physical cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    #[command(flatten)]
    weights: WeightsArgs,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A model as it is computed with, and its bytes.
struct Loaded {
    model: Arc<SharedModel>,
    weights: u64,
}

/// One configuration, and what was found.
struct Row {
    name: String,
    weights: u64,
    /// Bytes of keys and values of a token.
    token: u64,
    working: u64,
    /// Sequences that fit.
    batch: usize,
    executor: CpuExecutor,
    /// Tokens per second of all that fit, and of as many as fit the first.
    most: Rates,
    equal: Rates,
}

/// Figures repeat by repeat, and their ratios to the first configuration's.
#[derive(Default)]
struct Rates {
    rates: Vec<f64>,
    ratios: Vec<f64>,
}

pub(super) fn run(args: &MemoryArgs) -> Result<(), Failure> {
    if args.model.len() != args.kv.len() {
        return Err(Failure::misused(
            format_args!(
                "{} models and {} types of keys and values",
                args.model.len(),
                args.kv.len()
            ),
            "one --kv after each -m",
        ));
    }
    let mut line = ProgressLine::new();
    let mut rows: Vec<Row> = Vec::new();
    let mut loaded: Vec<(Source, Loaded)> = Vec::new();
    let total = args.model.len() as u64;
    for (i, (source, &kv)) in args.model.iter().zip(&args.kv).enumerate() {
        line.show(i as u64, total, &format!("filling {} {kv}", source.name));
        let place = match loaded.iter().position(|(of, _)| of == source) {
            Some(place) => place,
            None => {
                loaded.push((source.clone(), load(args, source)?));
                loaded.len() - 1
            }
        };
        let row = Row::new(args, source, &loaded[place].1, kv, rows.first())?;
        rows.push(row);
    }
    let equal = rows[0].batch;
    let steps = (args.repeats.get() * rows.len()) as u64;
    for repeat in 0..args.repeats.get() {
        for i in 0..rows.len() {
            let done = (repeat * rows.len() + i) as u64;
            line.show(done, steps, &rows[i].name);
            let (first, rest) = rows.split_at_mut(i);
            let (row, first) = (&mut rest[0], first.first());
            let rate = row.rate(args, row.batch);
            row.most.push(rate, first.map(|first| &first.most));
            let rate = match row.batch == equal {
                true => rate,
                false => row.rate(args, equal),
            };
            row.equal.push(rate, first.map(|first| &first.equal));
        }
    }
    line.clear();
    let text = match args.json {
        true => format!("{:#}\n", as_json(args, &rows)),
        false => as_text(args, &rows),
    };
    Ok(output::print(&text)?)
}

fn load(args: &MemoryArgs, source: &Source) -> Result<Loaded, Failure> {
    let mut opened = source.open()?;
    if opened.model.config().bidirectional() {
        return Err(Failure::new(format_args!(
            "{} is an encoder: it generates nothing",
            source.name
        )));
    }
    let positions = args.depth + args.tokens.get();
    let context = opened.model.config().context;
    if positions > context {
        return Err(Failure::new(format_args!(
            "--depth and --tokens take {positions} positions; {} has {context}",
            source.name
        )));
    }
    let team = Team::new(machine::threads(args.threads));
    args.weights.ready(source, &mut opened.model, &team)?;
    let weights = opened.model.weight_bytes();
    Ok(Loaded {
        model: SharedModel::new(opened.model),
        weights,
    })
}

impl Row {
    /// Counts the sequences that fit, and fills them.
    fn new(
        args: &MemoryArgs,
        source: &Source,
        loaded: &Loaded,
        kv: Kv,
        first: Option<&Row>,
    ) -> Result<Row, Failure> {
        let name = format!("{}, {kv}", source.name);
        let model = loaded.model.get();
        let config = model.config();
        let page = (config.layers.len() * config.kv_shape().page_bytes(kv.into())) as u64;
        let task = task(args, 1);
        let fits = |batch: usize| {
            let pages = page * (batch * task.pages()) as u64;
            loaded.weights + working(config, batch) + pages <= args.cap.0
        };
        let most = args.cap.0 / (page * task.pages() as u64) + 1;
        let batch = (1..most as usize).take_while(|&batch| fits(batch)).last();
        let batch = batch.ok_or_else(|| {
            let needed = loaded.weights + working(config, 1) + page * task.pages() as u64;
            Failure::new(format_args!(
                "{name}: one sequence takes {}, {} of it weights; --cap is {}",
                Bytes(needed),
                Bytes(loaded.weights),
                args.cap
            ))
            .hint("more --cap, or less --depth")
        })?;
        // As many as the first one's, for the equal comparison, may be more than fit.
        let held = first.map_or(batch, |first| first.batch.max(batch));
        let team = Team::new(machine::threads(args.threads));
        let pages = held * task.pages();
        let context = config.context;
        let mut executor = CpuExecutor::new(loaded.model.clone(), team, kv.into(), pages, context);
        fill(&mut executor, self::task(args, held));
        Ok(Row {
            name,
            weights: loaded.weights,
            token: page / PAGE_TOKENS as u64,
            working: working(config, batch),
            batch,
            executor,
            most: Rates::default(),
            equal: Rates::default(),
        })
    }

    /// Tokens per second of so many sequences.
    fn rate(&mut self, args: &MemoryArgs, batch: usize) -> f64 {
        let task = task(args, batch);
        let seconds = generate(&mut self.executor, task).as_secs_f64();
        task.tokens() as f64 / seconds
    }
}

impl Rates {
    fn push(&mut self, rate: f64, first: Option<&Rates>) {
        let base = first.and_then(|first| first.rates.last()).copied();
        self.rates.push(rate);
        self.ratios.push(rate / base.unwrap_or(rate));
    }
}

fn task(args: &MemoryArgs, batch: usize) -> Task {
    Task::Generate {
        tokens: args.tokens.get(),
        depth: args.depth,
        batch,
    }
}

/// Bytes of what a step keeps of each row, and of logits, all in f32.
fn working(config: &Config, batch: usize) -> u64 {
    const PROMPT: usize = 512;
    let shape = config.kv_shape();
    let queries = config.heads * (shape.k_dim + shape.v_dim);
    let keys = shape.heads * (shape.k_dim + shape.v_dim);
    let row = 4 * config.hidden + queries + keys + 3 * config.intermediate;
    let values = batch.max(PROMPT) * row + batch * config.vocab;
    (values * size_of::<f32>()) as u64
}

fn as_text(args: &MemoryArgs, rows: &[Row]) -> String {
    let spread = |figures: &[f64], digits: usize| {
        Spread::of(figures).map_or_else(String::new, |s| {
            format!(
                "{:.digits$} ({:.digits$} to {:.digits$})",
                s.median, s.min, s.max
            )
        })
    };
    let equal = rows.first().map_or(0, |row| row.batch);
    let mut lines = vec![
        [
            "",
            "weights",
            "a token's KV",
            "working",
            "sequences",
            "tokens/s",
            "of the first",
        ]
        .map(String::from)
        .to_vec(),
    ];
    lines[0].extend([format!("tokens/s of {equal}"), "of the first".to_owned()]);
    lines.extend(rows.iter().map(|row| {
        vec![
            row.name.clone(),
            Bytes(row.weights).to_string(),
            Bytes(row.token).to_string(),
            Bytes(row.working).to_string(),
            row.batch.to_string(),
            spread(&row.most.rates, 1),
            spread(&row.most.ratios, 2),
            spread(&row.equal.rates, 1),
            spread(&row.equal.ratios, 2),
        ]
    }));
    format!(
        "{} for sequences of {} tokens that generate {}\n\n{}",
        args.cap,
        args.depth,
        args.tokens,
        table(&lines)
    )
}

fn as_json(args: &MemoryArgs, rows: &[Row]) -> serde_json::Value {
    let rates = |r: &Rates| json!({"tokens_per_second": r.rates, "of_first": r.ratios});
    let rows: Vec<_> = args
        .model
        .iter()
        .zip(&args.kv)
        .zip(rows)
        .map(|((source, kv), row)| {
            json!({
                "model": source.name,
                "kv": kv.to_string(),
                "weight_bytes": row.weights,
                "kv_bytes_per_token": row.token,
                "working_bytes": row.working,
                "sequences": row.batch,
                "largest_batch": rates(&row.most),
                "equal_batch": rates(&row.equal),
            })
        })
        .collect();
    json!({
        "cap": args.cap.0,
        "depth": args.depth,
        "tokens": args.tokens.get(),
        "equal_batch": rows.first().map(|row| row["sequences"].clone()),
        "configurations": rows,
    })
}
