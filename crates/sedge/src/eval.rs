//! `sedge eval`: how well a model does.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Subcommand;
use sedge_bench::{Count, Perplexity, PerplexityOptions};
use sedge_engine::{CpuExecutor, Executor};
use sedge_kernels::{PAGE_TOKENS, Team};
use sedge_models::SharedModel;
use serde_json::json;

use crate::failure::Failure;
use crate::machine::{self, Kv, WeightsArgs};
use crate::output::{self, ProgressLine};
use crate::source::Source;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Perplexity of a text: how surprised the model is by it
    Perplexity(PerplexityArgs),
}

const ABOUT_PERPLEXITY: &str = "\
Example:
  sedge eval perplexity -m ./model.gguf text.txt

The text is encoded without special tokens and cut into windows of W tokens. Window k reads
tokens Wk … Wk+W-1 from an empty cache and is scored on tokens Wk+1 … Wk+W, all W of them.
Perplexity is exp of the mean negative log-likelihood. A rest shorter than a window is left out.

With --count second-half, tokens W/2+1 … W-1 of each window are scored, which starts with the
token that begins a text where the model has one: the figure of llama.cpp's llama-perplexity.";

#[derive(clap::Args)]
#[command(after_help = ABOUT_PERPLEXITY)]
struct PerplexityArgs {
    /// Text to score, UTF-8
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// GGUF file, Hugging Face folder, stored model, or `seedling`, the built-in model
    #[arg(short, long, value_name = "MODEL", default_value = crate::source::BUILT_IN)]
    model: Source,

    /// Tokens of a window
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    window: NonZeroUsize,

    /// Tokens of a window that count: all, or those of its second half, as llama.cpp counts
    #[arg(long, value_enum, value_name = "WHICH", default_value = "all")]
    count: Counted,

    /// Score the first N windows only
    #[arg(long, value_name = "N")]
    windows: Option<usize>,

    #[command(flatten)]
    weights: WeightsArgs,

    /// Type in which keys and values are kept
    #[arg(long, value_enum, value_name = "TYPE", default_value = "f32")]
    kv: Kv,

    /// Keep keys and values as they are, not multiplied by a Hadamard matrix: to see what that is
    /// good for
    #[arg(long)]
    no_kv_rotation: bool,

    /// Threads that compute [default: the machine's physical cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Tokens of a window that count.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Counted {
    All,
    SecondHalf,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    match args.what {
        What::Perplexity(args) => perplexity(args),
    }
}

fn perplexity(args: PerplexityArgs) -> Result<(), Failure> {
    let text = std::fs::read_to_string(&args.file).map_err(|e| Failure::file(&args.file, &e))?;
    let mut opened = args.model.open_within(Some(args.window))?;
    let tokenizer = opened.tokenizer.ok_or_else(|| {
        Failure::new(format_args!(
            "{}: the model has no tokenizer",
            args.model.name
        ))
    })?;
    let threads = machine::threads(args.threads);
    let team = Team::new(threads);
    args.weights.ready(&args.model, &mut opened.model, &team)?;
    let kv = args.kv.into();
    // No more than the model can use, whatever was asked for.
    let context = opened.model.config().context;
    let pages = args.window.get().min(context).div_ceil(PAGE_TOKENS);
    let model = SharedModel::new(opened.model);
    let mut executor = CpuExecutor::new(model, Team::new(threads), kv, pages, context);
    if args.no_kv_rotation {
        executor = executor.with_kv_rotation(false);
    }
    let stored = Stored {
        kv: args.kv,
        rotated: kv.rotates() && !args.no_kv_rotation,
        bytes: executor.page_bytes() / PAGE_TOKENS,
    };
    let options = PerplexityOptions {
        window: args.window.get(),
        windows: args.windows,
        count: match args.count {
            Counted::All => Count::All,
            Counted::SecondHalf => Count::SecondHalf,
        },
    };
    let mut line = ProgressLine::new();
    let result = sedge_bench::perplexity(
        &mut executor,
        &team,
        &tokenizer,
        &text,
        options,
        &mut |sum, windows| {
            let note = format!("perplexity {:.4} so far", sum.perplexity());
            line.show(sum.windows as u64, windows as u64, &note);
        },
    );
    line.clear();
    let result = result.map_err(Failure::new)?;
    let text = if args.json {
        format!("{:#}\n", as_json(&args, &stored, &result))
    } else {
        as_text(&stored, &result)
    };
    Ok(output::print(&text)?)
}

/// How keys and values were kept.
struct Stored {
    kv: Kv,
    rotated: bool,
    /// Of a token, in all layers.
    bytes: usize,
}

fn as_text(stored: &Stored, p: &Perplexity) -> String {
    format!(
        "tokens         {} in {} windows of {}\n\
         nats           {:.3} total, {:.6} per token\n\
         perplexity     {:.5}\n\
         bits per byte  {:.5} over {} bytes\n\
         keys, values   {}{}, {} bytes per token\n\
         time           {:.2} s, {:.1} tokens/s\n",
        p.tokens,
        p.windows,
        p.window,
        p.nats,
        p.mean(),
        p.perplexity(),
        p.bits_per_byte(),
        p.bytes,
        stored.kv,
        if stored.rotated { ", rotated" } else { "" },
        stored.bytes,
        p.time.as_secs_f64(),
        p.tokens_per_second(),
    )
}

fn as_json(args: &PerplexityArgs, stored: &Stored, p: &Perplexity) -> serde_json::Value {
    json!({
        "model": args.model.name,
        "file": args.file.display().to_string(),
        "window": p.window,
        "windows": p.windows,
        "tokens": p.tokens,
        "nats": p.nats,
        "nats_per_token": p.mean(),
        "perplexity": p.perplexity(),
        "bits_per_byte": p.bits_per_byte(),
        "bytes": p.bytes,
        "kv": {
            "type": stored.kv.to_string(),
            "rotated": stored.rotated,
            "bytes_per_token": stored.bytes,
        },
        "seconds": p.time.as_secs_f64(),
        "tokens_per_second": p.tokens_per_second(),
    })
}
