//! Merging an adapter: into its base as a new file, or into the weights of a running server.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use sedge_kernels::{DType, Team};
use sedge_models::{ConvertError, MergeError};

use super::server::{self, ServerArgs};
use crate::convert::parse_type;
use crate::failure::Failure;
use crate::machine;
use crate::output::{self, ProgressLine};
use crate::size::Bytes;
use crate::source::Source;

const USAGE: &str = "\
sedge adapter merge [OPTIONS] <MODEL:NAME>
       sedge adapter merge [OPTIONS] <BASE> <ADAPTER> --output <OUT.gguf>";

const EXAMPLES: &str = "\
Examples:
  sedge adapter merge seedling:sql                                  on a running server
  sedge adapter merge ./llama-3.2-1b ./my-lora -o merged.gguf       into a file
  sedge adapter merge base.gguf ./my-lora -o merged.gguf --type q8_0

On a server, requests for MODEL:NAME are computed with weights of their own from then on, until
`sedge adapter unmerge`; other requests are not touched. With --output no server is asked.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES, override_usage = USAGE)]
pub(crate) struct Args {
    /// Adapter of a running server; with --output the base: a GGUF file, a Hugging Face folder or
    /// `seedling`
    #[arg(value_name = "MODEL:NAME|BASE")]
    what: String,

    /// Folder of the adapter that --output gets
    #[arg(value_name = "ADAPTER", requires = "output")]
    adapter: Option<PathBuf>,

    #[command(flatten)]
    server: ServerArgs,

    /// GGUF file to write
    #[arg(
        short,
        long,
        value_name = "OUT.gguf",
        requires = "adapter",
        help_heading = "Into a file"
    )]
    output: Option<PathBuf>,

    /// Type of the large matrices: f32, f16, bf16, q8_0, q6_k, q4_k or q4_0 [default: as in BASE]
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_type, requires = "output", help_heading = "Into a file")]
    dtype: Option<DType>,

    /// Replace OUT if it exists
    #[arg(short, long, requires = "output", help_heading = "Into a file")]
    force: bool,

    /// Threads that compute [default: the machine's physical cores]
    #[arg(
        long,
        value_name = "N",
        requires = "output",
        help_heading = "Into a file"
    )]
    threads: Option<NonZeroUsize>,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    match (&args.adapter, &args.output) {
        (Some(adapter), Some(output)) => merge(&args, adapter, output),
        _ => server::merge(&args.server, &args.what),
    }
}

/// Writes the base with the adapter in its weights.
fn merge(args: &Args, adapter: &Path, output: &Path) -> Result<(), Failure> {
    let Ok(base) = args.what.parse::<Source>();
    let origin = base.origin()?;
    if output.exists() && !args.force {
        return Err(Failure::new(format_args!("{} exists", output.display()))
            .hint("--force, to replace it"));
    }
    let start = Instant::now();
    let mut line = ProgressLine::new();
    let report = sedge_models::merge(
        &origin,
        adapter,
        output,
        args.dtype,
        &Team::new(machine::threads(args.threads)),
        &mut |p| line.show(p.done, p.total, p.tensor),
    );
    line.clear();
    let report = report.map_err(|e| failure(&base, adapter, e))?;
    let mut text = format!(
        "{}: {} tensors, {} in {:.1} s\n",
        output.display(),
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

fn failure(base: &Source, adapter: &Path, error: MergeError) -> Failure {
    match error {
        MergeError::Adapter(e) => Failure::about(adapter, &e),
        MergeError::Unmergeable { .. } => {
            Failure::about(adapter, &error).hint("sedge serve, which computes with it as it is")
        }
        MergeError::Convert(ConvertError::Write { .. } | ConvertError::SameFile(_)) => {
            Failure::new(error)
        }
        error => match base.path() {
            Some(path) => Failure::about(path, &error),
            None => Failure::new(error),
        },
    }
}
