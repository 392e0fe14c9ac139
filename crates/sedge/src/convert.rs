//! `sedge convert`: a model as one GGUF file, quantised if asked.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use sedge_kernels::{DType, Team};
use sedge_models::ConvertError;

use crate::failure::Failure;
use crate::machine;
use crate::output::{self, ProgressLine};
use crate::size::Bytes;

const EXAMPLES: &str = "\
Examples:
  sedge convert ./model-dir model.gguf                the types that the weights have
  sedge convert ./model-dir model.gguf --type q8_0    about half the size of bf16
  sedge convert model.gguf smaller.gguf --type q4_k

Quantising turns the large matrices into TYPE; norms and other small tensors stay as they are.";

/// Types that files are written in.
const WRITTEN: [DType; 15] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q8_0,
    DType::Q4_0,
    DType::Q4K,
    DType::Q6K,
    DType::B1,
    DType::B2,
    DType::B3,
    DType::B4,
    DType::B5,
    DType::B6,
    DType::B7,
    DType::B8,
];

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Hugging Face folder or GGUF file
    #[arg(value_name = "IN")]
    input: PathBuf,

    /// GGUF file to write
    #[arg(value_name = "OUT.gguf")]
    output: PathBuf,

    /// Type of the large matrices: f32, f16, bf16, q8_0, q6_k, q4_k, q4_0, or b1 to b8
    /// [default: as they are]
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_type)]
    dtype: Option<DType>,

    /// Replace OUT if it exists
    #[arg(short, long)]
    force: bool,

    /// Threads that compute [default: the machine's physical cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

/// A type that files are written in.
pub(crate) fn parse_type(name: &str) -> Result<DType, String> {
    let known = DType::from_name(name).filter(|dtype| WRITTEN.contains(dtype));
    known.ok_or_else(|| {
        let names: Vec<&str> = WRITTEN.iter().map(|d| d.name()).collect();
        format!("the types that Sedge writes are {}", names.join(", "))
    })
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    if !args.input.exists() {
        return Err(Failure::new(format_args!(
            "{}: no such file or folder",
            args.input.display()
        )));
    }
    if args.output.exists() && !args.force {
        return Err(
            Failure::new(format_args!("{} exists", args.output.display()))
                .hint("--force, to replace it"),
        );
    }
    let start = Instant::now();
    let mut line = ProgressLine::new();
    let team = Team::new(machine::threads(args.threads));
    let report = sedge_models::convert(
        &args.input,
        &args.output,
        args.dtype,
        &team,
        &mut |progress| line.show(progress.done, progress.total, progress.tensor),
    );
    line.clear();
    let report = report.map_err(|e| match e {
        ConvertError::Write { .. } | ConvertError::SameFile(_) => Failure::new(e),
        e => Failure::about(&args.input, &e),
    })?;
    let mut text = format!(
        "{}: {} tensors, {} → {} in {:.1} s\n",
        args.output.display(),
        report.tensors,
        Bytes(report.bytes_in),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_types_that_can_be_written_are_taken() {
        assert_eq!(parse_type("Q8_0"), Ok(DType::Q8_0));
        assert!(parse_type("q2_k").is_err());
        assert!(parse_type("int3").is_err());
    }
}
