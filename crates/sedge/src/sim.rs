//! `sedge sim`: the engine's own scheduler on a clock that costs nothing.

mod play;
mod serve;

use clap::Subcommand;

use crate::failure::Failure;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// A load on one or many nodes, by the costs that were measured here
    Serve(Box<serve::Args>),
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    match args.what {
        What::Serve(args) => serve::run(&args),
    }
}
