//! The command line: parses, wires, and says what went wrong and what to try.

mod adapter;
mod adapters;
mod answer;
mod bench;
mod chat;
mod completions;
mod convert;
mod costs;
mod disk;
mod eval;
mod failure;
mod gc;
mod launch;
mod list;
mod load;
mod machine;
mod output;
mod pressure;
mod pull;
mod rm;
mod run;
mod sampling;
mod see;
mod serve;
mod share;
mod show;
mod shrink;
mod sim;
mod size;
mod source;
mod store;
mod synth;
mod table;
mod time;
mod verify;
mod workload;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use failure::Failure;

const EXAMPLES: &str = "\
Examples:
  sedge                                          serve the built-in model, with a chat page
  sedge run \"find all files larger than 100MB\"   one answer
  sedge run -m ./model.gguf                      a chat in the terminal
  sedge serve -m a.gguf -m fast=b/ --port 8000   several models, one process
  sedge see detect -m yolox.onnx dog.jpg         what is where in a picture
  sedge show ./model.gguf                        what a file holds
  sedge pull hf:ORG/NAME && sedge run -m NAME    a model of Hugging Face's hub

MODEL is a GGUF file, a Hugging Face folder, the name of a stored model, or `seedling`, the
built-in model.";

/// Runs language and vision models where the data is.
#[derive(Parser)]
#[command(name = "sedge", version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Cli {
    /// Without a command, serves the built-in model.
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve models over the OpenAI API, with a chat page
    Serve(Box<serve::Args>),
    /// Answer a prompt, or chat in the terminal
    Run(run::Args),
    /// Say what pictures show, with networks from ONNX files
    See(see::Args),
    /// Say what a model's file or folder holds
    Show(show::Args),
    /// Bring a model or an adapter into the store
    Pull(pull::Args),
    /// List what is stored
    List(list::Args),
    /// Take models or adapters out of the store
    Rm(rm::Args),
    /// Free what no stored model uses
    Gc(gc::Args),
    /// Hash all that is stored again
    Verify(verify::Args),
    /// Write a model as one GGUF file, quantised if asked
    Convert(convert::Args),
    /// Make a model smaller, into a scheme or a budget
    Shrink(shrink::Args),
    /// Look at adapters, merge them, and change those of a running server
    Adapter(adapter::Args),
    /// Write a model or an adapter with random weights
    Synth(synth::Args),
    /// Measure how well a model does
    Eval(eval::Args),
    /// Measure how fast a model runs
    Bench(bench::Args),
    /// Try a plan on simulated machines
    Sim(sim::Args),
    /// Print a shell's completion script
    Completions(completions::Args),
}

fn main() -> ExitCode {
    failure::report(try_main())
}

fn try_main() -> Result<(), Failure> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("SEDGE_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .with_writer(std::io::stderr)
        .init();
    match Cli::try_parse()?.command {
        None => serve::run(serve::Args::default_model()),
        Some(Command::Serve(args)) => serve::run(*args),
        Some(Command::Run(args)) => run::run(args),
        Some(Command::See(args)) => see::run(args),
        Some(Command::Show(args)) => show::run(args),
        Some(Command::Pull(args)) => pull::run(&args),
        Some(Command::List(args)) => list::run(&args),
        Some(Command::Rm(args)) => rm::run(&args),
        Some(Command::Gc(args)) => gc::run(&args),
        Some(Command::Verify(args)) => verify::run(&args),
        Some(Command::Convert(args)) => convert::run(args),
        Some(Command::Shrink(args)) => shrink::run(args),
        Some(Command::Adapter(args)) => adapter::run(args),
        Some(Command::Synth(args)) => synth::run(args),
        Some(Command::Eval(args)) => eval::run(args),
        Some(Command::Bench(args)) => bench::run(args),
        Some(Command::Sim(args)) => sim::run(args),
        Some(Command::Completions(args)) => completions::run(args, &mut Cli::command()),
    }
}
