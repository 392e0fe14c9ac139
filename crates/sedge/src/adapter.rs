//! `sedge adapter`: what can be done with an adapter without serving it.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use sedge_kernels::{CodecError, DType, Team};
use sedge_models::{ConvertError, MergeError};

use crate::convert::parse_type;
use crate::failure::Failure;
use crate::machine;
use crate::output::{self, ProgressLine};
use crate::size::Bytes;
use crate::source::Source;

const EXAMPLES: &str = "\
Examples:
  sedge adapter merge ./llama-3.2-1b ./my-lora -o merged.gguf
  sedge adapter merge base.gguf ./my-lora -o merged.gguf --type q8_0

ADAPTER is a folder with adapter_config.json and adapter_model.safetensors, as the Python package
peft writes it.";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Write a model with an adapter in its weights as one GGUF file
    Merge(Merge),
}

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
struct Merge {
    /// GGUF file, Hugging Face folder or `seedling`
    #[arg(value_name = "BASE")]
    base: Source,

    /// Folder of the adapter
    #[arg(value_name = "ADAPTER")]
    adapter: PathBuf,

    /// GGUF file to write
    #[arg(short, long, value_name = "OUT.gguf")]
    output: PathBuf,

    /// Type of the large matrices: f32, f16, bf16, q8_0, q6_k, q4_k or q4_0 [default: as in BASE]
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_type)]
    dtype: Option<DType>,

    /// Replace OUT if it exists
    #[arg(short, long)]
    force: bool,

    /// Threads that compute [default: the machine's physical cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Merge(args) => merge(args),
    }
}

fn merge(args: Merge) -> Result<(), Failure> {
    let base = args.base.origin()?;
    if args.output.exists() && !args.force {
        return Err(
            Failure::new(format_args!("{} exists", args.output.display()))
                .hint("--force, to replace it"),
        );
    }
    let start = Instant::now();
    let mut line = ProgressLine::new();
    let report = sedge_models::merge(
        &base,
        &args.adapter,
        &args.output,
        args.dtype,
        &Team::new(machine::threads(args.threads)),
        &mut |p| line.show(p.done, p.total, p.tensor),
    );
    line.clear();
    let report = report.map_err(|e| failure(&args, e))?;
    let mut text = format!(
        "{}: {} tensors, {} in {:.1} s\n",
        args.output.display(),
        report.tensors,
        Bytes(report.bytes_out),
        start.elapsed().as_secs_f64()
    );
    for (tensor, dtype) in &report.exceptions {
        text.push_str(&format!(
            "  {tensor} is {dtype}: its rows do not fill blocks of the type\n"
        ));
    }
    Ok(output::print(&text)?)
}

fn failure(args: &Merge, error: MergeError) -> Failure {
    match error {
        MergeError::Adapter(e) => Failure::about(&args.adapter, &e),
        MergeError::Unmergeable { .. } => Failure::about(&args.adapter, &error)
            .hint("sedge serve, which computes with it as it is"),
        MergeError::Convert(ConvertError::Codec {
            source: CodecError::NotWritable(_),
            ..
        }) => Failure::new(error).hint("--type, to write another one"),
        MergeError::Convert(ConvertError::Write { .. } | ConvertError::SameFile(_)) => {
            Failure::new(error)
        }
        error => match args.base.path() {
            Some(path) => Failure::about(path, &error),
            None => Failure::new(error),
        },
    }
}
