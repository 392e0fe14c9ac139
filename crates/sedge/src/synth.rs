//! `sedge synth`: files with random weights: in the shape of a known model, as a fine-tune of
//! another, or as an adapter.

use std::path::{Path, PathBuf};
use std::time::Instant;

use sedge_kernels::{DType, Team};
use sedge_models::{AdapterPlan, Mixture, Model, SynthError, SynthReport, likes, synth_methods};

use crate::failure::Failure;
use crate::machine;
use crate::output::{self, ProgressLine};
use crate::size::Bytes;
use crate::source::Source;

const EXAMPLES: &str = "\
Examples:
  sedge synth --like llama-3.2-1b --type q4_0 1b.gguf
  sedge bench model -m 1b.gguf
  sedge synth --from 1b.gguf --perturb layers=3,7 --seed 1 tuned.gguf
  sedge synth --from 1b.gguf --adapter lora --rank 8 --targets q_proj,v_proj my-lora

The weights are random: the files say how fast such models are and what they take, and nothing
else. They load wherever GGUF files and peft's adapters do.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["like", "perturb", "adapter"]))]
pub(crate) struct Args {
    /// Model whose shape to take
    #[arg(long, value_name = "MODEL", value_parser = likes().collect::<Vec<_>>())]
    like: Option<String>,

    /// Model to fine-tune or adapt: a GGUF file, a Hugging Face folder or `seedling`
    #[arg(long, value_name = "MODEL", conflicts_with = "like")]
    from: Option<Source>,

    /// Change all matrices of these layers a little, and nothing else
    #[arg(long, value_name = "layers=N,N…", requires = "from", value_parser = parse_layers)]
    perturb: Option<Layers>,

    /// Write an adapter of this method into the folder OUT
    #[arg(
        long,
        value_name = "METHOD",
        requires = "from",
        value_parser = synth_methods().collect::<Vec<_>>()
    )]
    adapter: Option<String>,

    /// Rank of the adapter
    #[arg(long, value_name = "N", default_value = "8", conflicts_with_all = ["like", "perturb"])]
    rank: usize,

    /// Numerator of the adapter's scaling, over its rank
    #[arg(long, value_name = "X", default_value = "16", conflicts_with_all = ["like", "perturb"])]
    alpha: f32,

    /// Modules that the adapter changes, or `all`
    #[arg(
        long,
        value_name = "NAME,NAME…",
        default_value = "all",
        value_delimiter = ',',
        conflicts_with_all = ["like", "perturb"]
    )]
    targets: Vec<String>,

    /// Positions that the adapter puts before every prompt
    #[arg(long, value_name = "N", default_value = "16", conflicts_with_all = ["like", "perturb"])]
    positions: usize,

    /// Type of the large matrices: q4_k_m, f32, f16, bf16, q8_0, q6_k, q4_k, q4_0, or b1 to
    /// b8; of adapters f32, f16 or bf16 [default: q8_0, of adapters bf16]
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_type, conflicts_with = "perturb")]
    mixture: Option<Mixture>,

    /// Start of the random numbers
    #[arg(long, value_name = "N", default_value = "0")]
    seed: u64,

    /// GGUF file to write, or the adapter's folder
    #[arg(value_name = "OUT")]
    output: PathBuf,

    /// Replace OUT if it exists
    #[arg(short, long)]
    force: bool,
}

/// Layers by index.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layers(Vec<usize>);

fn parse_layers(text: &str) -> Result<Layers, String> {
    let numbers = text.strip_prefix("layers=").and_then(|list| {
        list.split(',')
            .map(|n| n.trim().parse().ok())
            .collect::<Option<Vec<usize>>>()
    });
    numbers
        .map(Layers)
        .ok_or_else(|| "expected layers=N,N…, such as layers=3,7; the first is 0".into())
}

fn parse_type(name: &str) -> Result<Mixture, String> {
    Mixture::from_name(name).ok_or_else(|| {
        "the types that can be written are q4_k_m, f32, f16, bf16, q8_0, q6_k, q4_k, q4_0 \
         and b1 to b8"
            .into()
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
    let (report, what) = match (&args.like, &args.from) {
        (Some(like), _) => (
            of_shape(&args, like)?,
            format!("random weights like {like}"),
        ),
        (None, Some(from)) => match (&args.perturb, &args.adapter) {
            (Some(Layers(layers)), _) => {
                let report = fine_tune(&args, from, layers)?;
                let list: Vec<String> = layers.iter().map(usize::to_string).collect();
                let what = format!("{}, changed in layers {}", from.name, list.join(", "));
                (report, what)
            }
            (None, Some(method)) => {
                let report = adapter(&args, from, method)?;
                (
                    report,
                    format!("a random {method} adapter of {}", from.name),
                )
            }
            (None, None) => unreachable!("clap demands one of the group"),
        },
        (None, None) => unreachable!("clap demands one of the group, and --from with it"),
    };
    Ok(output::print(&format!(
        "{}: {what}, {:.1} M parameters, {} in {:.1} s\n",
        args.output.display(),
        report.parameters as f64 / 1e6,
        Bytes(report.bytes),
        start.elapsed().as_secs_f64()
    ))?)
}

fn of_shape(args: &Args, like: &str) -> Result<SynthReport, Failure> {
    let mut line = ProgressLine::new();
    let mixture = args.mixture.unwrap_or(Mixture::Plain(DType::Q8_0));
    let report = sedge_models::synth(like, mixture, args.seed, &args.output, &mut |p| {
        line.show(p.done, p.total, p.tensor);
    });
    line.clear();
    report.map_err(Failure::new)
}

fn fine_tune(args: &Args, from: &Source, layers: &[usize]) -> Result<SynthReport, Failure> {
    let mut line = ProgressLine::new();
    let report = sedge_models::perturb(
        &from.origin()?,
        layers,
        args.seed,
        &args.output,
        &Team::new(machine::threads(None)),
        &mut |p| line.show(p.done, p.total, p.tensor),
    );
    line.clear();
    report.map_err(|e| about(from.path(), &e))
}

fn adapter(args: &Args, from: &Source, method: &str) -> Result<SynthReport, Failure> {
    let Model::Decoder(model) = from.open()?.model else {
        let what = format_args!("{} is an encoder", from.name).to_string();
        return Err(Failure::new(what).hint("adapters are of models that generate text"));
    };
    let dtype = match args.mixture {
        None => DType::BF16,
        Some(Mixture::Plain(dtype)) => dtype,
        Some(Mixture::Q4KM) => DType::Q4K,
    };
    let targets = match &args.targets[..] {
        [all] if all == "all" => Vec::new(),
        targets => targets.to_vec(),
    };
    let plan = AdapterPlan {
        method: method.into(),
        rank: args.rank,
        alpha: args.alpha,
        targets,
        positions: args.positions,
        dtype,
        seed: args.seed,
        base: from.name.clone(),
    };
    let mut line = ProgressLine::new();
    let report = sedge_models::synth_adapter(&model, &plan, &args.output, &mut |done, total| {
        line.show(done, total, method);
    });
    line.clear();
    report.map_err(|e| about(None, &e))
}

fn about(path: Option<&Path>, error: &SynthError) -> Failure {
    match (path, error) {
        (Some(path), SynthError::Convert(e)) => Failure::about(path, e),
        _ => Failure::new(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_a_list_of_numbers() {
        assert_eq!(parse_layers("layers=3,7"), Ok(Layers(vec![3, 7])));
        for wrong in ["3,7", "layers=", "layers=a", "layers=-1", "layer=1"] {
            assert!(parse_layers(wrong).is_err(), "{wrong}");
        }
    }
}
