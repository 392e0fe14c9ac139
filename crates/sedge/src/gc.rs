//! `sedge gc`: frees what no stored model uses.

use std::time::{Duration, SystemTime};

use crate::failure::Failure;
use crate::output;
use crate::size::Bytes;
use crate::store;

/// Pulls that were interrupted longer ago than this are given up.
const STALE: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(clap::Args)]
#[command(after_help = "\
Pulls that were interrupted within the last seven days are kept, so that they can go on. While a
pull runs, nothing is freed.")]
pub(crate) struct Args {
    /// Give up interrupted pulls too, however new
    #[arg(long)]
    partial: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let stale = match args.partial {
        true => Duration::ZERO,
        false => STALE,
    };
    let freed = store::store()?
        .collect(SystemTime::now(), stale)
        .map_err(store::failure)?;
    Ok(output::print(&format!(
        "{} freed: {} unused blobs, {} damaged ones, {} interrupted pulls\n",
        Bytes(freed.bytes),
        freed.blobs,
        freed.damaged,
        freed.partial
    ))?)
}
