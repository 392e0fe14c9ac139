//! `sedge sim serve`: a plan is tried on any number of nodes, in seconds.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sedge_bench::load::{Figures, Page, Quantiles, Run, Slo, Table, Trial, charts};
use sedge_engine::{EngineStats, SimMemory};
use serde_json::json;

use super::play::{self, Played};
use crate::costs;
use crate::failure::Failure;
use crate::launch;
use crate::load::LoadArgs;
use crate::machine::{self, MachineArgs};
use crate::output::{self, ProgressLine};
use crate::source::Source;
use crate::table::table;
use crate::time;
use crate::workload::WorkloadArgs;

const ABOUT: &str = "\
Examples:
  sedge bench costs -m 1b.gguf                           measures, once
  sedge sim serve -m 1b.gguf --rate 4 --requests 1000    a thousand requests on this machine
  sedge sim serve -m 1b.gguf --rate 60 --nodes 16 --policy prefill-first
  sedge sim serve --trace azure.csv --scale 16 --rate 20 --check

The engine's own loop runs: its queue, its policy, its cache. Only the model is left out; what
its steps would take is looked up in the costs. A request goes to the node with the fewest.
--check runs the same requests through the real engine as well, in real time, and prints how far
the simulation is off.";

#[derive(clap::Args)]
#[command(after_help = ABOUT)]
pub(super) struct Args {
    /// Model whose costs were measured: GGUF file, Hugging Face folder, stored model, or `seedling`
    #[arg(short, long, value_name = "MODEL", default_value = crate::source::BUILT_IN)]
    model: Source,

    /// Machines like this one
    #[arg(long, value_name = "N", default_value = "1")]
    nodes: NonZeroUsize,

    /// Seed of the requests
    #[arg(long, value_name = "SEED", default_value = "1")]
    seed: u64,

    /// Run the real engine too, and compare
    #[arg(long)]
    check: bool,

    /// Most time to the first token, for the goodput
    #[arg(long, value_name = "TIME", value_parser = time::parse, default_value = "2s")]
    ttft_slo: Duration,

    #[command(flatten)]
    workload: WorkloadArgs,

    #[command(flatten)]
    load: LoadArgs,

    #[command(flatten)]
    machine: MachineArgs,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Write a page with plots
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if args.check && args.nodes.get() > 1 {
        return Err(Failure::misused(
            "--check compares with this machine, which is one node",
            "--nodes 1",
        ));
    }
    let spec = args.workload.spec()?;
    let workload = spec
        .build(args.seed)
        .map_err(|e| Failure::misused(e, "sedge sim serve --help"))?;
    let costs = costs::kept(&args.model, &args.machine).ok_or_else(|| {
        Failure::new(format_args!(
            "what steps of {} cost with these settings was not measured",
            args.model.name
        ))
        .hint("sedge bench costs, with the same --threads, --kv and --arithmetic")
    })?;
    let costs = Arc::new(costs);
    let memory = memory(args)?;
    let mut config = args.load.config(memory.page_bytes);
    config.costs = Some(costs.clone());
    let start = Instant::now();
    let nodes = vec![config; args.nodes.get()];
    let simulated = play::simulated(&workload, &nodes, memory, &costs);
    let took = start.elapsed();
    let mut names = vec!["simulated".to_owned()];
    let mut played = vec![simulated];
    if args.check {
        names.push("real".to_owned());
        played.push(real(args, &workload)?);
    }
    print(args, &names, &played, took)
}

/// The memory of this machine's engine.
fn memory(args: &Args) -> Result<SimMemory, Failure> {
    let opened = args.model.open_within(args.machine.context)?;
    let config = opened.model.config();
    let (layers, shape, kv) = (
        config.layers.len(),
        config.kv_shape(),
        args.machine.kv().into(),
    );
    let limit = args.machine.context.map_or(usize::MAX, NonZeroUsize::get);
    Ok(SimMemory {
        pages: machine::pages(args.machine.kv_memory, layers, shape, kv),
        page_bytes: layers * shape.page_bytes(kv),
        page_blocks: layers,
        context: config.context.min(limit),
    })
}

fn real(args: &Args, workload: &sedge_bench::load::Workload) -> Result<Played, Failure> {
    let running = launch::launch(&args.model, &args.machine, Some(&args.load))?;
    let line = std::sync::Mutex::new(ProgressLine::new());
    let total = workload.requests.len() as u64;
    let progress = |done: usize| {
        if let Ok(mut line) = line.lock() {
            line.show(done as u64, total, "the real engine");
        }
    };
    Ok(play::real(workload, &running.engine, &progress))
}

/// Steps, their mean time, and the share of it that planning took.
struct Steps {
    count: usize,
    mean: f64,
    planning: f64,
}

impl Steps {
    fn of(played: &Played) -> Steps {
        let steps: Vec<_> = played.steps.iter().flatten().collect();
        let sum = |of: fn(&&sedge_engine::StepRecord) -> f64| steps.iter().map(of).sum::<f64>();
        let time = sum(|step| step.time.as_secs_f64());
        Steps {
            count: steps.len(),
            mean: time / steps.len().max(1) as f64,
            planning: sum(|step| step.planning.as_secs_f64()) / time.max(f64::MIN_POSITIVE),
        }
    }
}

/// A figure's name, and its value in each column.
type Line = (&'static str, Vec<Option<f64>>);

fn print(args: &Args, names: &[String], played: &[Played], took: Duration) -> Result<(), Failure> {
    let slo = Slo {
        ttft: args.ttft_slo,
        tbt: args.load.tbt_slo().unwrap_or(Duration::from_millis(200)),
    };
    let figures: Vec<Figures> = played
        .iter()
        .map(|p| Figures::of(&p.records, slo))
        .collect();
    let steps: Vec<Steps> = played.iter().map(Steps::of).collect();
    let of = |value: &dyn Fn(&Figures) -> Option<f64>| figures.iter().map(value).collect();
    let ms = |quantile: fn(&Quantiles) -> f64, of: fn(&Figures) -> Option<Quantiles>| {
        let value = |f: &Figures| of(f).map(|q| quantile(&q) * 1e3);
        figures.iter().map(value).collect::<Vec<_>>()
    };
    let count = |of: fn(&EngineStats) -> f64| {
        let sum = |p: &Played| Some(p.stats.iter().map(of).sum());
        played.iter().map(sum).collect::<Vec<_>>()
    };
    let lines: Vec<Line> = vec![
        (
            "step mean, ms",
            steps.iter().map(|s| Some(s.mean * 1e3)).collect(),
        ),
        ("TTFT p50, ms", ms(|q| q.p50, |f| f.ttft)),
        ("TTFT p99, ms", ms(|q| q.p99, |f| f.ttft)),
        ("TBT p50, ms", ms(|q| q.p50, |f| f.tbt)),
        ("TBT p99, ms", ms(|q| q.p99, |f| f.tbt)),
        ("E2E p99, ms", ms(|q| q.p99, |f| f.e2e)),
        ("output tokens/s", of(&|f| Some(f.output_per_second()))),
        ("goodput, %", of(&|f| Some(f.goodput * 100.0))),
        ("cached of prompts, %", of(&|f| f.cached.map(|c| c * 100.0))),
        ("refused", of(&|f| Some(f.refused as f64))),
        ("preempted", count(|s| s.preempted as f64)),
        ("moved out, MB", count(|s| s.cache.bytes_out as f64 / 1e6)),
        ("moved in, MB", count(|s| s.cache.bytes_in as f64 / 1e6)),
        ("moved in blocks", count(|s| s.cache.copies as f64)),
        (
            "waited for moves, ms",
            count(|s| s.cache.stalled.as_secs_f64() * 1e3),
        ),
        (
            "planning, % of steps",
            steps.iter().map(|s| Some(s.planning * 100.0)).collect(),
        ),
    ];
    let rows = rows(names, &lines);
    let facts = [
        ("model", args.model.name.clone()),
        ("requests", played[0].records.len().to_string()),
        ("nodes", args.nodes.to_string()),
        (
            "steps",
            format!(
                "{}, simulated in {:.2} s",
                steps[0].count,
                took.as_secs_f64()
            ),
        ),
    ];
    let text = if args.json {
        let columns = names.iter().enumerate().map(|(i, name)| {
            let values = lines
                .iter()
                .map(|(line, values)| (line.to_string(), json!(values[i])));
            let mut object: serde_json::Map<_, _> = values.collect();
            object.insert("steps".into(), json!(steps[i].count));
            object.insert("planning_share".into(), json!(steps[i].planning));
            (name.clone(), object.into())
        });
        let columns: serde_json::Map<String, serde_json::Value> = columns.collect();
        format!(
            "{:#}\n",
            json!({"model": args.model.name, "seconds": took.as_secs_f64(), "runs": columns})
        )
    } else {
        let facts: String = facts.iter().map(|(n, v)| format!("{n:<14}{v}\n")).collect();
        format!("{facts}\n{}", table(&rows))
    };
    output::print(&text)?;
    if let Some(path) = &args.report {
        let trials: Vec<Trial> = played
            .iter()
            .zip(figures)
            .enumerate()
            .map(|(server, (played, figures))| Trial {
                server,
                seed: args.seed,
                run: Run {
                    records: played.records.clone(),
                    ..Run::default()
                },
                figures,
            })
            .collect();
        let page = Page {
            title: "Simulated load".to_owned(),
            facts: facts.map(|(n, v)| (n.to_owned(), v)).into(),
            tables: vec![Table {
                title: "Figures".to_owned(),
                rows,
            }],
            charts: charts(names, &trials, slo),
        };
        std::fs::write(path, page.html()).map_err(|e| Failure::file(path, &e))?;
    }
    Ok(())
}

/// A table of figures; with two columns, how far the first is off.
fn rows(names: &[String], lines: &[Line]) -> Vec<Vec<String>> {
    let mut head = vec!["figure".to_owned()];
    head.extend(names.iter().cloned());
    if names.len() > 1 {
        head.push("off by".to_owned());
    }
    let cell = |value: &Option<f64>| value.map_or("–".to_owned(), |v| format!("{v:.2}"));
    let rows = lines.iter().map(|(name, values)| {
        let mut row = vec![name.to_string()];
        row.extend(values.iter().map(cell));
        if let [Some(simulated), Some(real)] = values[..] {
            let off = (simulated / real - 1.0) * 100.0;
            row.push(match off.is_finite() {
                true => format!("{off:+.1} %"),
                false => "–".to_owned(),
            });
        }
        row
    });
    std::iter::once(head).chain(rows).collect()
}
