//! A load on the command line: what is asked, when, and by whom.

use std::path::PathBuf;
use std::time::Duration;

use sedge_bench::load::{Arrivals, Length, Lengths, Trace, WorkloadSpec};

use crate::failure::Failure;
use crate::time;

/// What is asked, when, and by whom.
#[derive(clap::Args)]
#[command(next_help_heading = "Workload")]
pub(crate) struct WorkloadArgs {
    /// Requests, those of a flood aside
    #[arg(long, value_name = "N", default_value = "100")]
    pub(crate) requests: usize,

    /// Arrivals per second; of conversations, if there are turns
    #[arg(long, value_name = "RATE", default_value = "1")]
    pub(crate) rate: f64,

    /// How arrivals are spread in time
    #[arg(long, value_enum, value_name = "HOW", default_value = "poisson")]
    pub(crate) arrivals: ArrivalsArg,

    /// Coefficient of variation of the gaps between Gamma arrivals
    #[arg(long, value_name = "CV", default_value = "2")]
    pub(crate) cv: f64,

    /// CSV with lengths, and times for --arrivals trace: TIMESTAMP,ContextTokens,GeneratedTokens
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,

    /// How many times as fast a trace's arrivals are played
    #[arg(long, value_name = "X", default_value = "1")]
    pub(crate) speed: f64,

    /// Tokens of prompts, N or A-B, without a trace
    #[arg(long, value_name = "LENGTH", default_value = "128")]
    pub(crate) prompt: Length,

    /// Tokens of answers, N or A-B, without a trace
    #[arg(long, value_name = "LENGTH", default_value = "32")]
    pub(crate) output: Length,

    /// Divide lengths by this
    #[arg(long, value_name = "X", default_value = "1")]
    pub(crate) scale: f64,

    /// Most tokens that a turn adds to the prompt
    #[arg(long, value_name = "N")]
    pub(crate) max_prompt: Option<usize>,

    /// Most tokens of an answer
    #[arg(long, value_name = "N")]
    pub(crate) max_output: Option<usize>,

    /// Most tokens of a conversation
    #[arg(long, value_name = "N")]
    pub(crate) max_context: Option<usize>,

    /// Mean turns of a conversation; each takes up what was said before
    #[arg(long, value_name = "MEAN", default_value = "1")]
    pub(crate) turns: f64,

    /// Mean time between an answer and the next turn
    #[arg(long, value_name = "TIME", value_parser = time::parse, default_value = "1s")]
    pub(crate) think: Duration,

    /// Tenants that ask, as x-sedge-tenant: tenant-0 and so on
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) tenants: usize,

    /// Models of the server that are asked, the first ones of --model
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) models: usize,

    /// How unequal they are: the one of rank r gets a share of 1 / r to this power
    #[arg(long, value_name = "POWER", default_value = "0")]
    pub(crate) model_skew: f64,

    /// tenant-0 sends so many times the requests of each other, on top of the rate
    #[arg(long, value_name = "X", default_value = "1")]
    pub(crate) flood: f64,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum ArrivalsArg {
    /// Independent of each other
    Poisson,
    /// In bursts, by --cv
    Gamma,
    /// At equal gaps
    Uniform,
    /// At the trace's times
    Trace,
}

impl WorkloadArgs {
    pub(crate) fn spec(&self) -> Result<WorkloadSpec, Failure> {
        let lengths = match &self.trace {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| Failure::file(path, &e))?;
                Lengths::Trace(Trace::parse(&text).map_err(|e| Failure::about(path, &e))?)
            }
            None => Lengths::Drawn {
                prompt: self.prompt,
                output: self.output,
            },
        };
        Ok(WorkloadSpec {
            requests: self.requests,
            arrivals: self.arrivals(self.rate),
            lengths,
            scale: self.scale,
            prompt_cap: self.max_prompt,
            output_cap: self.max_output,
            context: self.max_context,
            turns: self.turns,
            think: self.think,
            tenants: self.tenants,
            models: self.models,
            skew: self.model_skew,
            flood: self.flood,
        })
    }

    /// Arrivals at another rate than `--rate`.
    pub(crate) fn arrivals(&self, rate: f64) -> Arrivals {
        match self.arrivals {
            ArrivalsArg::Poisson => Arrivals::Poisson { rate },
            ArrivalsArg::Gamma => Arrivals::Gamma { rate, cv: self.cv },
            ArrivalsArg::Uniform => Arrivals::Uniform { rate },
            ArrivalsArg::Trace => Arrivals::Trace { speed: self.speed },
        }
    }
}
