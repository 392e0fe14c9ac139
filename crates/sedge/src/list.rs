//! `sedge list`: what is stored, and what it takes.

use sedge_store::Usages;
use serde_json::json;

use crate::failure::Failure;
use crate::output;
use crate::size::Bytes;
use crate::store;
use crate::table::table;

#[derive(clap::Args)]
#[command(after_help = "\
A tensor that several models have is kept once: `own` is what nothing else uses, and what
`sedge rm` and `sedge gc` would free.")]
pub(crate) struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let store = store::store()?;
    let usages = store.usage().map_err(store::failure)?;
    let text = match args.json {
        true => {
            let each = usages.each.iter().map(|usage| {
                json!({
                    "name": usage.name,
                    "kind": usage.manifest.kind.name(),
                    "source": usage.manifest.origin.source,
                    "revision": usage.manifest.origin.revision,
                    "tensors": usage.manifest.tensors.len(),
                    "own": usage.own,
                    "shared": usage.shared,
                })
            });
            let object = json!({
                "stored": each.collect::<Vec<_>>(),
                "bytes": usages.blobs,
                "unused": usages.unused,
                "partial": usages.partial,
                "folder": store.root(),
            });
            format!("{object:#}\n")
        }
        false => as_text(&usages, &store.root().display().to_string()),
    };
    Ok(output::print(&text)?)
}

fn as_text(usages: &Usages, folder: &str) -> String {
    if usages.each.is_empty() && usages.blobs + usages.partial == 0 {
        return format!("nothing is stored in {folder}; sedge pull hf:ORG/NAME brings a model\n");
    }
    let head = ["name", "kind", "own", "shared", "source"].map(str::to_owned);
    let mut rows = vec![head.to_vec()];
    for usage in &usages.each {
        rows.push(vec![
            usage.name.clone(),
            usage.manifest.kind.name().to_owned(),
            Bytes(usage.own).to_string(),
            Bytes(usage.shared).to_string(),
            usage.manifest.origin.source.clone(),
        ]);
    }
    let mut text = match usages.each.is_empty() {
        true => String::new(),
        false => table(&rows) + "\n",
    };
    text.push_str(&format!("{} in {folder}", Bytes(usages.blobs)));
    if usages.unused > 0 {
        text.push_str(&format!(
            ", {} of it unused (sedge gc)",
            Bytes(usages.unused)
        ));
    }
    if usages.partial > 0 {
        text.push_str(&format!(
            "; {} of pulls that have not ended",
            Bytes(usages.partial)
        ));
    }
    text + "\n"
}
