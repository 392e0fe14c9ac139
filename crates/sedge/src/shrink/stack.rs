//! `sedge shrink --to stack`: one file that runs in any memory.

use std::time::Instant;

use sedge_kernels::Team;
use sedge_models::Origin;
use sedge_shrink::stack::{StackBuildError, StackDoing, StackOptions, StackReport, build};
use serde_json::json;

use super::{Args, How, Text};
use crate::failure::Failure;
use crate::output::{self, ProgressLine};
use crate::size::Bytes;
use crate::table::table;

/// Refuses options that are not those of a stack.
pub(super) fn refuse_others(args: &Args) -> Result<(), Failure> {
    let given = [
        (!matches!(args.method, How::Gptq), "--method"),
        (args.curve.is_some(), "--curve"),
        (args.eval.is_some(), "--eval"),
        (args.restart, "--restart"),
    ];
    match given.iter().find(|(given, _)| *given) {
        None => Ok(()),
        Some((_, option)) => Err(Failure::misused(
            format_args!("{option} is not for --to stack"),
            "sedge eval perplexity --memory, which measures a stack at a size",
        )),
    }
}

pub(super) fn run(
    args: &Args,
    origin: &Origin<'_>,
    text: &Text,
    team: &Team,
    line: &mut ProgressLine,
    start: Instant,
) -> Result<(), Failure> {
    let options = StackOptions::default();
    let report = build(
        origin,
        &text.calibration,
        options,
        &args.output,
        team,
        &mut |doing| match doing {
            StackDoing::Decomposing {
                done,
                total,
                tensor,
            } => line.show(done as u64, total as u64, tensor),
            StackDoing::Measuring { done, total } => {
                line.show(done as u64, total as u64, "what each block is worth");
            }
            StackDoing::Writing(p) => line.show(p.done, p.total, p.tensor),
        },
    );
    let report = report.map_err(|error| failure(args, error))?;
    line.clear();
    let seconds = start.elapsed().as_secs_f64();
    let text = match args.json {
        true => format!("{:#}\n", as_json(args, &report, seconds)),
        false => as_text(args, &report, seconds),
    };
    Ok(output::print(&text)?)
}

fn failure(args: &Args, error: StackBuildError) -> Failure {
    let failure = match args.model.path() {
        Some(path) => Failure::about(path, &error),
        None => Failure::new(&error),
    };
    match error {
        StackBuildError::Shrink(error) => super::failure(args, error),
        StackBuildError::Folder => {
            failure.hint("sedge convert, which makes a GGUF file of the folder")
        }
        _ => failure,
    }
}

fn as_text(args: &Args, report: &StackReport, seconds: f64) -> String {
    let memory = &report.memory;
    let head = ["weights in memory", "predictions are off by, nats a token"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for &(bytes, distance) in &report.curve {
        rows.push(vec![Bytes(bytes).to_string(), format!("{distance:.4}")]);
    }
    let mut text = table(&rows);
    text.push_str(&format!(
        "\n{}: {} blocks of {} matrices, for any memory from {} to {}, in {seconds:.1} s\n",
        args.output.display(),
        memory.of,
        memory.matrices,
        Bytes(memory.smallest),
        Bytes(memory.largest),
    ));
    text
}

fn as_json(args: &Args, report: &StackReport, seconds: f64) -> serde_json::Value {
    json!({
        "model": args.model.name,
        "output": args.output.display().to_string(),
        "seconds": seconds,
        "smallest_bytes": report.memory.smallest,
        "largest_bytes": report.memory.largest,
        "blocks": report.memory.of,
        "matrices": report.memory.matrices,
        "sizes": report.curve.iter().map(|(bytes, distance)| json!({
            "bytes": bytes,
            "divergence": distance,
        })).collect::<Vec<_>>(),
    })
}
