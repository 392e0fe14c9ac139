//! `sedge synth`: a file with random weights in the shape of a known model.

use std::path::PathBuf;
use std::time::Instant;

use sedge_models::{Mixture, likes};

use crate::failure::Failure;
use crate::output::{self, ProgressLine};
use crate::size::Bytes;

const EXAMPLES: &str = "\
Examples:
  sedge synth --like llama-3.2-1b --type q4_0 1b.gguf
  sedge bench model -m 1b.gguf

The weights are random: the file says how fast a model of this shape is, and nothing else.
It loads wherever GGUF files do.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Model whose shape to take
    #[arg(long, value_name = "MODEL", value_parser = likes().collect::<Vec<_>>())]
    like: String,

    /// Type of the large matrices: q4_k_m, f32, f16, bf16, q8_0, q6_k, q4_k or q4_0
    #[arg(long = "type", value_name = "TYPE", default_value = "q8_0", value_parser = parse_type)]
    mixture: Mixture,

    /// Start of the random numbers
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,

    /// GGUF file to write
    #[arg(value_name = "OUT.gguf")]
    output: PathBuf,

    /// Replace OUT if it exists
    #[arg(short, long)]
    force: bool,
}

fn parse_type(name: &str) -> Result<Mixture, String> {
    Mixture::from_name(name).ok_or_else(|| {
        "the types that can be written are q4_k_m, f32, f16, bf16, q8_0, q6_k, q4_k and q4_0".into()
    })
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    if args.output.exists() && !args.force {
        return Err(
            Failure::new(format_args!("{} exists", args.output.display()))
                .hint("--force, to replace it"),
        );
    }
    let start = Instant::now();
    let mut line = ProgressLine::new();
    let report = sedge_models::synth(
        &args.like,
        args.mixture,
        args.seed,
        &args.output,
        &mut |p| {
            line.show(p.done, p.total, p.tensor);
        },
    );
    line.clear();
    let report = report.map_err(Failure::new)?;
    Ok(output::print(&format!(
        "{}: random weights like {}, {:.1} M parameters, {} in {:.1} s\n",
        args.output.display(),
        args.like,
        report.parameters as f64 / 1e6,
        Bytes(report.bytes),
        start.elapsed().as_secs_f64()
    ))?)
}
