//! `sedge adapter`: adapters as folders, and those of a running server.

mod merge;
mod server;
mod show;

use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  sedge adapter show ./my-lora                      what a folder holds
  sedge serve --adapter-root .                      in another terminal
  sedge adapter add seedling:sql=./my-lora          requests may now name the model seedling:sql
  sedge adapter list
  sedge adapter rm seedling:sql

An adapter's FOLDER holds adapter_config.json and adapter_model.safetensors, as the Python package
peft writes them. The server must have been started with an --adapter-root above it.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Say what an adapter's folder holds
    Show(show::Args),
    /// Add an adapter to a running server
    Add(server::Add),
    /// List the adapters of a running server
    List(server::List),
    /// Remove an adapter from a running server; what has begun with it ends with it
    Rm(server::Named),
    /// Merge an adapter into weights: of a running server, or in a new file with --output
    Merge(merge::Args),
    /// Take an adapter out of the weights of a running server again
    Unmerge(server::Named),
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Show(args) => show::run(&args),
        Command::Add(args) => server::add(&args),
        Command::List(args) => server::list(&args),
        Command::Rm(args) => server::remove(&args),
        Command::Merge(args) => merge::run(args),
        Command::Unmerge(args) => server::unmerge(&args),
    }
}
