//! `sedge adapter show`: what an adapter's folder holds, without its model.

use std::path::PathBuf;

use sedge_models::AdapterFacts;
use serde_json::json;

use crate::failure::Failure;
use crate::output;
use crate::size::{self, Bytes};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with adapter_config.json and adapter_model.safetensors
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let facts = AdapterFacts::read(&args.folder);
    let facts = facts.map_err(|e| Failure::about(&args.folder, &e))?;
    let text = match args.json {
        true => format!("{:#}\n", as_json(&facts)),
        false => as_text(&facts),
    };
    Ok(output::print(&text)?)
}

fn as_text(facts: &AdapterFacts) -> String {
    let mut lines = vec![
        ("method", facts.method.to_owned()),
        ("changes", facts.acts.name().to_owned()),
        (
            "base",
            facts.base.clone().unwrap_or_else(|| "not named".to_owned()),
        ),
    ];
    lines.extend(facts.rank.map(|rank| ("rank", rank.to_string())));
    if facts.positions > 0 {
        lines.push((
            "positions",
            format!("{} before every prompt", facts.positions),
        ));
    }
    let merges = match facts.acts.unmergeable() {
        None => "yes".to_owned(),
        Some(why) => format!("no: {why}"),
    };
    let batches = match facts.batches {
        true => "with other adapters",
        false => "alone",
    };
    lines.extend([
        ("parameters", size::count(facts.parameters)),
        ("tensors", Bytes(facts.bytes).to_string()),
        ("merges", merges),
        ("batches", batches.to_owned()),
    ]);
    let line = |(name, value)| format!("{name:<14}{value}\n");
    lines.into_iter().map(line).collect()
}

fn as_json(facts: &AdapterFacts) -> serde_json::Value {
    json!({
        "method": facts.method,
        "changes": facts.acts.name(),
        "base": facts.base,
        "rank": facts.rank,
        "positions": facts.positions,
        "parameters": facts.parameters,
        "bytes": facts.bytes,
        "merges": facts.merges,
        "batches": facts.batches,
    })
}
