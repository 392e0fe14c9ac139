//! `sedge rm`: takes names out of the store.

use crate::failure::Failure;
use crate::output;
use crate::size::Bytes;
use crate::store;

#[derive(clap::Args)]
#[command(after_help = "\
Blobs stay until `sedge gc`: other models may use them, and a server may have them mapped.")]
pub(crate) struct Args {
    /// Stored models or adapters
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let names: Vec<&str> = args.names.iter().map(String::as_str).collect();
    let freed = store::store()?.remove(&names).map_err(store::failure)?;
    Ok(output::print(&format!(
        "{} removed; sedge gc frees {}\n",
        names.join(", "),
        Bytes(freed)
    ))?)
}
