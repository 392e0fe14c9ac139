//! `sedge completions`: a shell's completion script on standard output.

use clap::ValueEnum;
use clap_complete::Shell;

use crate::failure::Failure;
use crate::output;

#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  sedge completions bash > ~/.local/share/bash-completion/completions/sedge"
)]
pub(crate) struct Args {
    /// Shell to complete in
    shell: Known,
}

#[derive(Clone, Copy, ValueEnum)]
enum Known {
    Bash,
    Zsh,
    Fish,
}

pub(crate) fn run(args: Args, command: &mut clap::Command) -> Result<(), Failure> {
    let shell = match args.shell {
        Known::Bash => Shell::Bash,
        Known::Zsh => Shell::Zsh,
        Known::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "sedge", &mut script);
    Ok(output::print(&String::from_utf8_lossy(&script))?)
}
