//! `sedge verify`: hashes all that is stored again.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use crate::failure::Failure;
use crate::output::{self, ProgressLine};
use crate::size::Bytes;
use crate::store;

#[derive(clap::Args)]
#[command(after_help = "\
Reads every blob. One that is damaged is put aside; pulling a model that uses it again fetches
exactly that. The exit code is 1 where something is damaged or missing.")]
pub(crate) struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let store = store::store()?;
    let line = Mutex::new(ProgressLine::new());
    let verified = store.verify(&|done, total| {
        let mut line = line.lock().unwrap_or_else(PoisonError::into_inner);
        line.show(done, total, "");
    });
    drop(line);
    let verified = verified.map_err(store::failure)?;
    if args.json {
        let damaged = verified.damaged.iter().map(|damage| {
            json!({
                "blob": damage.hash.to_hex().as_str(),
                "what": damage.what,
                "used_by": damage.used_by,
            })
        });
        let object = json!({
            "blobs": verified.blobs,
            "bytes": verified.bytes,
            "damaged": damaged.collect::<Vec<_>>(),
        });
        output::print(&format!("{object:#}\n"))?;
    }
    if verified.damaged.is_empty() {
        return match args.json {
            true => Ok(()),
            false => Ok(output::print(&format!(
                "{} blobs, {}: all as they should be\n",
                verified.blobs,
                Bytes(verified.bytes)
            ))?),
        };
    }
    let mut text = format!(
        "{} of {} blobs are damaged or missing:",
        verified.damaged.len(),
        verified.blobs
    );
    let mut users: BTreeMap<&str, usize> = BTreeMap::new();
    for damage in &verified.damaged {
        let used_by = match damage.used_by.is_empty() {
            true => "nothing".to_owned(),
            false => damage.used_by.join(", "),
        };
        let hex = damage.hash.to_hex();
        text.push_str(&format!(
            "\n  {}… {}, used by {used_by}",
            &hex[..16],
            damage.what
        ));
        for name in &damage.used_by {
            *users.entry(name).or_default() += 1;
        }
    }
    let failure = Failure::new(text);
    let mut pulls = Vec::new();
    for name in users.keys() {
        let manifest = store.manifest(name).map_err(store::failure)?;
        pulls.push(format!(
            "sedge pull {} --name {name}",
            manifest.origin.source
        ));
    }
    Err(match pulls.is_empty() {
        true => failure.hint("sedge gc: nothing uses them"),
        false => failure.hint(pulls.join("\n       ")),
    })
}
