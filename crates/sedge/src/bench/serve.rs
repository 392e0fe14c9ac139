//! `sedge bench serve`: a load of requests on servers of the OpenAI API, one after another, and
//! how they bear it.

use std::path::PathBuf;
use std::time::Duration;

use sedge_bench::load::{
    Api, Arrivals, Bisection, ClientError, Figures, Length, Page, Progress, ServerError,
    ServerSpec, Slo, Summary, Table, Target, TenantFigures, Trial, Unit, Workload, WorkloadSpec,
    charts, play, summarize,
};
use sedge_bench::{Chart, Line, Spread};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::failure::Failure;
use crate::output::{self, ProgressLine};
use crate::table::table;
use crate::time;
use crate::workload::WorkloadArgs;

const ABOUT: &str = "\
Examples:
  sedge bench serve                                    a server at http://127.0.0.1:8080
  sedge bench serve --rate 4 --trace azure.csv --scale 16 --report load.html
  sedge bench serve --rate 4 --server A='sedge serve --port 8080 --max-running 8' \\
                             --server B='sedge serve --port 8080 --max-running 64'
  sedge bench serve --server sedge='sedge serve -m 1b.gguf --port 8080' \\
                    --server llama='http://127.0.0.1:8081 llama-server -m 1b.gguf --port 8081'
  sedge bench serve --find-rate 0.5,32 --ttft-slo 2s --tbt-slo 100ms

Requests come when they are due, however slow the answers are. Times are measured from when a
request was due. TTFT: to the first text; TBT: between pieces of text, those of all answers
together; TPOT: per token after the first; E2E: to the end. Goodput is the share of all requests
that were answered with TTFT and their own 99th percentile of TBT within --ttft-slo and --tbt-slo.

A --server that is a command is started anew for every run and stopped after it. Several servers
take turns, with the same requests for each seed; figures are medians over the seeds with their
range, and ratios are to the first server, seed by seed.

--find-rate halves a range of rates six times, and reports the highest at which the 99th
percentile of TBT and the median of TTFT keep to the SLOs (the capacity of Sarathi-Serve), with at
most 1 % of the requests refused or failed.";

/// Probes of --find-rate.
const PROBES: usize = 6;
/// The generator's own lag, 99th percentile in seconds, above which figures are in doubt.
const LAG: f64 = 0.010;

#[derive(clap::Args)]
#[command(after_help = ABOUT)]
pub(super) struct ServeArgs {
    /// Server as NAME=URL, NAME=COMMAND or NAME='URL COMMAND' (repeatable) [default: --url]
    #[arg(long = "server", value_name = "SERVER")]
    servers: Vec<String>,

    /// Where servers without an address of their own answer
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: String,

    /// Models to ask for, with commas between; `all` that the server lists, or those that a
    /// pattern such as seedling:* names, by their names [default: the first]
    #[arg(short, long, value_name = "NAMES", value_delimiter = ',')]
    model: Vec<String>,

    /// Which way to ask
    #[arg(long, value_enum, value_name = "API", default_value = "completions")]
    api: ApiArg,

    /// Key to send as a bearer token
    #[arg(
        long,
        value_name = "KEY",
        env = "SEDGE_API_KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,

    /// Token ids of prompts are below this
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(2..))]
    vocab: u32,

    /// Most time that an answer may take
    #[arg(long, value_name = "TIME", value_parser = time::parse, default_value = "10m")]
    timeout: Duration,

    #[command(flatten)]
    workload: WorkloadArgs,

    #[command(flatten)]
    measure: MeasureArgs,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Write a page with plots
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum ApiArg {
    Completions,
    Chat,
}

/// How it is measured.
#[derive(clap::Args)]
#[command(next_help_heading = "Measurement")]
struct MeasureArgs {
    /// First seed
    #[arg(long, value_name = "SEED", default_value = "1")]
    seed: u64,

    /// Runs of each server, each with its own seed [default: 5 for several servers, else 1]
    #[arg(long, value_name = "N")]
    seeds: Option<std::num::NonZeroU64>,

    /// Requests before each run that do not count
    #[arg(long, value_name = "N", default_value = "1")]
    warmup: usize,

    /// Most time to the first text
    #[arg(long, value_name = "TIME", value_parser = time::parse, default_value = "2s")]
    ttft_slo: Duration,

    /// Most time between pieces of text, 99 % of the times
    #[arg(long, value_name = "TIME", value_parser = time::parse, default_value = "200ms")]
    tbt_slo: Duration,

    /// Find the highest rate between these that keeps to the SLOs
    #[arg(long, value_name = "LOW,HIGH", value_parser = parse_range)]
    find_rate: Option<(f64, f64)>,
}

fn parse_range(text: &str) -> Result<(f64, f64), String> {
    let wrong = || format!("{text:?} is not two rates such as 0.5,32");
    let (low, high) = text.split_once(',').ok_or_else(wrong)?;
    let rate = |text: &str| text.trim().parse::<f64>().map_err(|_| wrong());
    let (low, high) = (rate(low)?, rate(high)?);
    match 0.0 < low && low < high && high.is_finite() {
        true => Ok((low, high)),
        false => Err(wrong()),
    }
}

pub(super) fn run(args: &ServeArgs) -> Result<(), Failure> {
    let spec = args.workload.spec()?;
    let bad = |e| Failure::misused(e, "sedge bench serve --help");
    spec.build(args.measure.seed).map_err(bad)?;
    if args.measure.find_rate.is_some() && matches!(spec.arrivals, Arrivals::Trace { .. }) {
        return Err(Failure::misused(
            "--find-rate sets the rate, and --arrivals trace takes the trace's",
            "--arrivals poisson",
        ));
    }
    let servers: Vec<ServerSpec> = match args.servers.is_empty() {
        true => vec![args.url.clone()],
        false => args.servers.clone(),
    }
    .iter()
    .map(|text| ServerSpec::parse(text, &args.url))
    .collect::<Result<_, _>>()
    .map_err(|e| Failure::misused(e, "--server A=http://127.0.0.1:8080"))?;
    if let Some(path) = &args.report {
        // Before the work: that it cannot be written is better known now.
        let file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path);
        file.map_err(|e| Failure::file(path, &e))?;
    }
    // One thread: what the generator takes is not the server's.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::new)?;
    runtime.block_on(async {
        let bench = Bench {
            args,
            spec,
            servers,
            stop: stop(),
        };
        match args.measure.find_rate {
            Some(range) => bench.find_rates(range).await,
            None => bench.compare().await,
        }
    })
}

/// Becomes true with SIGINT or SIGTERM.
fn stop() -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        crate::serve::signal().await;
        let _ = sender.send(true);
        // Later signals find the same end under way.
        std::future::pending::<()>().await;
    });
    receiver
}

struct Bench<'a> {
    args: &'a ServeArgs,
    spec: WorkloadSpec,
    servers: Vec<ServerSpec>,
    stop: watch::Receiver<bool>,
}

impl Bench<'_> {
    fn slo(&self) -> Slo {
        Slo {
            ttft: self.args.measure.ttft_slo,
            tbt: self.args.measure.tbt_slo,
        }
    }

    fn seeds(&self) -> std::ops::Range<u64> {
        let default = if self.servers.len() > 1 { 5 } else { 1 };
        let count = self.args.measure.seeds.map_or(default, |n| n.get());
        let first = self.args.measure.seed;
        first..first.saturating_add(count)
    }

    async fn stopped(&self) {
        let mut stop = self.stop.clone();
        // The sender never goes.
        let _ = stop.wait_for(|stop| *stop).await;
    }

    /// Starts a server, plays a workload against it and stops it again.
    /// `salt` sets the prompts of several runs with the same workload apart.
    async fn trial(
        &self,
        server: usize,
        seed: u64,
        salt: u64,
        workload: &Workload,
        mut progress: impl FnMut(Progress),
    ) -> Result<Trial, Failure> {
        let spec = &self.servers[server];
        let launched = tokio::select! {
            launched = spec.launch() => launched.map_err(|e| {
                let way_out = match e {
                    ServerError::Taken { .. } => "to stop it, or NAME='URL COMMAND' with another port",
                    _ => "the command by itself; it must serve at the address that is asked",
                };
                Failure::new(e).hint(way_out)
            })?,
            () = self.stopped() => return Err(Failure::Interrupted),
        };
        let prompts = seed ^ salt.rotate_left(32);
        let run = tokio::select! {
            run = async {
                let target = self.target(spec).await?;
                if self.args.measure.warmup > 0 {
                    let warmup = self.warmup().map_err(Failure::new)?;
                    let seed = prompts ^ u64::MAX;
                    play(&target, &warmup, seed, |_| {}, std::future::pending()).await;
                }
                Ok(play(&target, workload, prompts, &mut progress, self.stopped()).await)
            } => run,
            // Within a run, its own stop comes first and keeps what was measured.
            () = async {
                self.stopped().await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            } => Err(Failure::Interrupted),
        };
        launched.stop().await;
        let run = run?;
        let figures = Figures::of(&run.records, self.slo());
        Ok(Trial {
            server,
            seed,
            run,
            figures,
        })
    }

    async fn target(&self, spec: &ServerSpec) -> Result<Target, Failure> {
        let args = self.args;
        let key = args.api_key.clone().filter(|key| !key.is_empty());
        let target = Target::new(&spec.url, key);
        let mut target = target.await.map_err(|e| match e {
            ClientError::Connect { .. } => Failure::new(e).hint(format_args!(
                "sedge serve, or --server NAME={} for another address",
                "http://HOST:PORT"
            )),
            ClientError::Address { .. } => Failure::new(e).hint("an address over plain HTTP"),
            ClientError::Status { status: 401, .. } => Failure::new(e).hint("--api-key KEY"),
            e => Failure::new(e).hint("the address of a server of the OpenAI API, without a path"),
        })?;
        if !args.model.is_empty() {
            target.models = self.models(&target).await?;
        }
        target.api = match args.api {
            ApiArg::Completions => Api::Completions,
            ApiArg::Chat => Api::Chat,
        };
        (target.vocab, target.timeout) = (args.vocab, args.timeout);
        Ok(target)
    }

    /// The models that are asked for.
    async fn models(&self, target: &Target) -> Result<Vec<String>, Failure> {
        let mut models: Vec<String> = Vec::new();
        let mut listed = None;
        for wanted in &self.args.model {
            let Some(start) = wanted.strip_suffix('*').or((wanted == "all").then_some("")) else {
                models.push(wanted.clone());
                continue;
            };
            if listed.is_none() {
                listed = Some(target.list().await.map_err(Failure::new)?);
            }
            let mut found: Vec<String> = listed.iter().flatten().cloned().collect();
            found.retain(|name| name.starts_with(start));
            if found.is_empty() {
                return Err(Failure::new(format_args!(
                    "no model of the server is like {wanted}"
                )));
            }
            found.sort();
            models.extend(found);
        }
        Ok(models)
    }

    fn warmup(&self) -> Result<Workload, sedge_bench::load::WorkloadError> {
        let spec = WorkloadSpec {
            requests: self.args.measure.warmup,
            arrivals: Arrivals::Uniform { rate: 20.0 },
            output_cap: Some(self.spec.output_cap.unwrap_or(4).min(4)),
            turns: 1.0,
            tenants: 1,
            flood: 1.0,
            ..self.spec.clone()
        };
        spec.build(self.args.measure.seed)
    }

    /// The servers in turn, seed by seed.
    async fn compare(&self) -> Result<(), Failure> {
        let mut line = ProgressLine::new();
        let mut trials: Vec<Trial> = Vec::new();
        let (seeds, count) = (self.seeds(), self.servers.len());
        let runs = (seeds.end - seeds.start) * count as u64;
        let (mut stopped, mut failed) = (false, None);
        'all: for seed in seeds {
            let workload = self.spec.build(seed).map_err(Failure::new)?;
            for (server, spec) in self.servers.iter().enumerate() {
                let before = trials.len() as u64;
                line.show(before, runs, &format!("starting {}", spec.name));
                let note = |p: Progress| {
                    let planned = p.planned as u64;
                    let done = before * planned + p.ended as u64;
                    let note = format!("{}, seed {seed}: {} / {}", spec.name, p.ended, p.planned);
                    line.show(done, runs * planned, &note);
                };
                match self.trial(server, seed, 0, &workload, note).await {
                    Ok(trial) => {
                        stopped = trial.run.stopped;
                        trials.push(trial);
                    }
                    Err(Failure::Interrupted) if !trials.is_empty() => stopped = true,
                    // What was measured is shown first.
                    Err(failure) if !trials.is_empty() => failed = Some(failure),
                    Err(failure) => return Err(failure),
                }
                if stopped || failed.is_some() {
                    break 'all;
                }
            }
        }
        line.clear();
        self.warn(&trials, stopped);
        let summaries = summarize(&trials);
        let mut tables = vec![Table {
            title: "Figures: medians over the seeds, with their range".to_owned(),
            rows: self.rows(&summaries),
        }];
        if self.args.workload.tenants > 1 {
            tables.push(Table {
                title: "Tenants".to_owned(),
                rows: self.tenant_rows(&trials),
            });
        }
        let text = match self.args.json {
            true => format!("{:#}\n", self.as_json(&trials, &summaries, stopped)),
            false => self.as_text(&trials, &summaries),
        };
        output::print(&text)?;
        self.report(tables, charts(&self.names(), &trials, self.slo()))?;
        failed.map_or_else(|| answered(&trials), Err)
    }

    fn warn(&self, trials: &[Trial], stopped: bool) {
        if stopped {
            output::note("sedge: stopped; these are the figures so far");
        }
        let lag = |t: &Trial| t.figures.lag.map(|q| q.p99);
        let lag = trials.iter().filter_map(lag).fold(0.0, f64::max);
        if lag > LAG {
            output::note(format_args!(
                "sedge: requests left up to {:.0} ms late (p99): the generator lacks time, and the \
                 figures include that\n  try: a lower rate, or the server on another machine",
                lag * 1e3
            ));
        }
        for (server, spec) in self.servers.iter().enumerate() {
            let mut runs = trials.iter().filter(|t| t.server == server);
            if let Some(why) = runs.find_map(|t| t.figures.failure.as_deref()) {
                output::note(format_args!(
                    "sedge: a request to {} failed: {why}",
                    spec.name
                ));
            }
            let whole = trials
                .iter()
                .filter(|t| t.server == server && !t.run.stopped);
            let missing: usize = whole.map(|t| t.run.missing).sum();
            if missing > 0 {
                output::note(format_args!(
                    "sedge: {missing} turns were not asked of {}: one before was refused or failed",
                    spec.name
                ));
            }
        }
    }

    /// The highest rate that each server bears, seed by seed.
    async fn find_rates(&self, (low, high): (f64, f64)) -> Result<(), Failure> {
        let mut line = ProgressLine::new();
        let mut probes: Vec<Probe> = Vec::new();
        let mut capacities: Vec<Capacity> = Vec::new();
        let (seeds, count) = (self.seeds(), self.servers.len());
        let total = (seeds.end - seeds.start) * (count * PROBES) as u64;
        let mut stopped = false;
        'all: for seed in seeds {
            let mut searches = vec![Bisection::new(low, high, PROBES); count];
            for number in 0..PROBES {
                for (server, search) in searches.iter_mut().enumerate() {
                    let Some(rate) = search.next_rate() else {
                        continue;
                    };
                    let spec = WorkloadSpec {
                        arrivals: self.args.workload.arrivals(rate),
                        ..self.spec.clone()
                    };
                    let workload = spec.build(seed).map_err(Failure::new)?;
                    let (before, name) = (probes.len() as u64, &self.servers[server].name);
                    let note = |p: Progress| {
                        let planned = p.planned as u64;
                        let note = format!("{name}, seed {seed}: {rate:.2} /s");
                        line.show(before * planned + p.ended as u64, total * planned, &note);
                    };
                    let salt = number as u64 + 1;
                    let trial = match self.trial(server, seed, salt, &workload, note).await {
                        Err(Failure::Interrupted) if !probes.is_empty() => {
                            stopped = true;
                            break 'all;
                        }
                        trial => trial?,
                    };
                    if trial.run.stopped {
                        stopped = true;
                        break 'all;
                    }
                    line.clear();
                    let probe = Probe {
                        rate,
                        bears: trial.figures.bears(self.slo()),
                        trial,
                    };
                    search.tell(probe.bears);
                    if !self.args.json {
                        if probes.is_empty() {
                            let head = Probe::line(&Probe::head());
                            output::print(&format!("{}\n{head}", self.head()))?;
                        }
                        output::print(&Probe::line(&probe.row(name)))?;
                    }
                    probes.push(probe);
                }
            }
            for (server, search) in searches.iter().enumerate() {
                capacities.push(Capacity {
                    server,
                    seed,
                    rate: search.capacity(),
                    bounded: search.bounded(),
                });
            }
        }
        let trials: Vec<Trial> = probes.iter().map(|p| p.trial.clone()).collect();
        self.warn(&trials, stopped);
        let tables = vec![
            Table {
                title: "Highest rates borne".to_owned(),
                rows: self.rate_rows(&capacities),
            },
            Table {
                title: "Rates tried".to_owned(),
                rows: std::iter::once(Probe::head())
                    .chain(
                        probes
                            .iter()
                            .map(|p| p.row(&self.servers[p.trial.server].name)),
                    )
                    .map(|row| row.to_vec())
                    .collect(),
            },
        ];
        let text = match self.args.json {
            true => format!("{:#}\n", self.rates_as_json(&probes, &capacities, stopped)),
            false => format!("\n{}", table(&self.rate_rows(&capacities))),
        };
        output::print(&text)?;
        self.report(tables, self.rate_charts(&probes))?;
        answered(&trials)
    }
}

/// Fails if there is nothing to judge by.
fn answered(trials: &[Trial]) -> Result<(), Failure> {
    match trials.iter().any(|t| t.figures.done > 0) {
        true => Ok(()),
        false => Err(Failure::new("no request was answered")),
    }
}

/// One rate tried.
struct Probe {
    rate: f64,
    bears: bool,
    trial: Trial,
}

impl Probe {
    fn head() -> [String; 7] {
        let names = [
            "server",
            "seed",
            "rate /s",
            "TTFT p50 ms",
            "TBT p99 ms",
            "refused",
            "borne",
        ];
        names.map(str::to_owned)
    }

    fn row(&self, name: &str) -> [String; 7] {
        let f = &self.trial.figures;
        let ms = |s: Option<f64>| s.map_or_else(|| "-".to_owned(), |s| Unit::Seconds.show(s));
        [
            name.to_owned(),
            self.trial.seed.to_string(),
            format!("{:.3}", self.rate),
            ms(f.ttft.map(|q| q.p50)),
            ms(f.tbt.map(|q| q.p99)),
            (f.refused + f.failed).to_string(),
            if self.bears { "yes" } else { "no" }.to_owned(),
        ]
    }

    /// Shown as soon as it is known, so the columns have fixed widths.
    fn line([server, seed, rate, ttft, tbt, refused, borne]: &[String; 7]) -> String {
        format!("{server:<16} {seed:>5} {rate:>9} {ttft:>12} {tbt:>12} {refused:>8} {borne:>7}\n")
    }
}

/// The highest rate that a server bears.
struct Capacity {
    server: usize,
    seed: u64,
    rate: Option<f64>,
    /// Whether a higher rate was tried and not borne.
    bounded: bool,
}

/// Text.
impl Bench<'_> {
    fn names(&self) -> Vec<String> {
        self.servers.iter().map(|s| s.name.clone()).collect()
    }

    /// What was asked.
    fn head(&self) -> String {
        let rows = self.head_rows();
        let lines = rows
            .iter()
            .map(|(name, value)| format!("{name:<13} {value}\n"));
        lines.collect()
    }

    fn head_rows(&self) -> Vec<(String, String)> {
        let w = &self.args.workload;
        let mut rows = Vec::new();
        let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
        row("requests", self.facts_of_requests());
        row("lengths", self.facts_of_lengths());
        if w.tenants > 1 {
            let flood = match w.flood > 1.0 {
                true => format!(
                    ", the first with {} times the requests of each other",
                    w.flood
                ),
                false => String::new(),
            };
            row("tenants", format!("{}{flood}", w.tenants));
        }
        let slo = self.slo();
        row(
            "within",
            format!(
                "TTFT {} ms, TBT {} ms",
                slo.ttft.as_secs_f64() * 1e3,
                slo.tbt.as_secs_f64() * 1e3
            ),
        );
        rows
    }

    /// Writes the page, if one is asked for.
    fn report(&self, tables: Vec<Table>, charts: Vec<Chart>) -> Result<(), Failure> {
        let Some(path) = &self.args.report else {
            return Ok(());
        };
        let mut facts = self.head_rows();
        facts.extend(self.servers.iter().map(|s| {
            let how = s
                .command
                .as_ref()
                .map_or_else(String::new, |c| format!(", started by {c}"));
            (s.name.clone(), format!("{}{how}", s.url))
        }));
        let page = Page {
            title: format!("Load on {}", self.names().join(", ")),
            facts,
            tables,
            charts,
        };
        std::fs::write(path, page.html()).map_err(|e| Failure::file(path, &e))
    }

    /// The two times that decide, by rate.
    fn rate_charts(&self, probes: &[Probe]) -> Vec<Chart> {
        let chart = |title: &str, of: fn(&Figures) -> Option<f64>| Chart {
            title: title.to_owned(),
            x: "requests per second".to_owned(),
            y: "ms".to_owned(),
            lines: self
                .names()
                .into_iter()
                .enumerate()
                .map(|(server, name)| {
                    let of_server = probes.iter().filter(|p| p.trial.server == server);
                    let mut points: Vec<(f64, f64)> = of_server
                        .filter_map(|p| Some((p.rate, of(&p.trial.figures)? * 1e3)))
                        .collect();
                    points.sort_by(|a, b| a.0.total_cmp(&b.0));
                    Line { name, points }
                })
                .collect(),
            log_x: true,
            mark: None,
        };
        vec![
            chart("TTFT p50", |f| f.ttft.map(|q| q.p50)),
            chart("TBT p99", |f| f.tbt.map(|q| q.p99)),
        ]
    }

    fn facts_of_requests(&self) -> String {
        let (w, count) = (&self.args.workload, self.spec.requests);
        let of = match w.turns > 1.0 {
            true => format!(" in conversations of {} turns on average", w.turns),
            false => String::new(),
        };
        let rate = match (self.args.measure.find_rate, self.spec.arrivals) {
            (Some((low, high)), _) => format!("{low} to {high} /s"),
            (_, Arrivals::Poisson { rate }) => format!("{rate} /s, Poisson"),
            (_, Arrivals::Gamma { rate, cv }) => format!("{rate} /s, Gamma with CV {cv}"),
            (_, Arrivals::Uniform { rate }) => format!("{rate} /s, at equal gaps"),
            (_, Arrivals::Trace { speed }) => format!("as in the trace, {speed} times as fast"),
        };
        format!("{count}{of}, {rate}")
    }

    fn facts_of_lengths(&self) -> String {
        let w = &self.args.workload;
        let range = |l: Length| match l.low == l.high {
            true => l.low.to_string(),
            false => format!("{}-{}", l.low, l.high),
        };
        let mut text = match &w.trace {
            Some(path) => path.file_name().unwrap_or_default().display().to_string(),
            None => format!("prompts {}, answers {}", range(w.prompt), range(w.output)),
        };
        if w.scale != 1.0 {
            text.push_str(&format!(", divided by {}", w.scale));
        }
        for (cap, what) in [
            (w.max_prompt, "prompts"),
            (w.max_output, "answers"),
            (w.max_context, "conversations"),
        ] {
            if let Some(cap) = cap {
                text.push_str(&format!(", {what} at most {cap}"));
            }
        }
        text
    }

    fn as_text(&self, trials: &[Trial], summaries: &[Summary]) -> String {
        let mut text = self.head();
        let runs: Vec<_> = summaries
            .iter()
            .map(|s| format!("{} × {}", s.runs, self.servers[s.server].name))
            .collect();
        text.push_str(&format!("{:<13} {}\n\n", "runs", runs.join(", ")));
        text.push_str(&table(&self.rows(summaries)));
        let tenants = self.tenant_rows(trials);
        if tenants.len() > 1 {
            text.push('\n');
            text.push_str(&table(&tenants));
        }
        text
    }

    /// Names and figures, a column for each server and one for each ratio.
    fn rows(&self, summaries: &[Summary]) -> Vec<Vec<String>> {
        let mut head = vec!["figure".to_owned(), String::new()];
        for summary in summaries {
            let name = &self.servers[summary.server].name;
            head.push(name.clone());
            if summary.server > 0 {
                head.push(format!("over {}", self.servers[0].name));
            }
        }
        let mut rows = vec![head];
        let Some(first) = summaries.first() else {
            return rows;
        };
        for (i, figure) in first.figures.iter().enumerate() {
            if summaries.iter().all(|s| s.figures[i].spread.is_none()) {
                continue;
            }
            let mut row = vec![figure.name.to_owned(), figure.unit.sign().to_owned()];
            for summary in summaries {
                let figure = &summary.figures[i];
                row.push(range(figure.spread, |v| figure.unit.show(v)));
                if summary.server > 0 {
                    row.push(ratio(figure.ratio));
                }
            }
            rows.push(row);
        }
        rows
    }

    /// Each tenant's part, with the median over the seeds.
    fn tenant_rows(&self, trials: &[Trial]) -> Vec<Vec<String>> {
        let head = [
            "tenant",
            "",
            "requests",
            "answered",
            "TTFT p50 ms",
            "TTFT p99 ms",
            "tokens /s",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        if self.args.workload.tenants < 2 {
            return rows;
        }
        for (server, spec) in self.servers.iter().enumerate() {
            for tenant in 0..self.args.workload.tenants {
                let parts: Vec<&TenantFigures> = trials
                    .iter()
                    .filter(|t| t.server == server)
                    .flat_map(|t| &t.figures.tenants)
                    .filter(|t| t.tenant == tenant)
                    .collect();
                let spread = |of: &dyn Fn(&TenantFigures) -> Option<f64>| {
                    Spread::of(&parts.iter().filter_map(|t| of(t)).collect::<Vec<_>>())
                };
                let ms = |v| Unit::Seconds.show(v);
                let count = |v| Unit::Count.show(v);
                rows.push(vec![
                    format!("tenant-{tenant}"),
                    spec.name.clone(),
                    range(spread(&|t| Some(t.requests as f64)), count),
                    range(spread(&|t| Some(t.done as f64)), count),
                    range(spread(&|t| t.ttft.map(|q| q.p50)), ms),
                    range(spread(&|t| t.ttft.map(|q| q.p99)), ms),
                    range(spread(&|t| Some(t.service)), |v| format!("{v:.1}")),
                ]);
            }
        }
        rows
    }

    fn rate_rows(&self, capacities: &[Capacity]) -> Vec<Vec<String>> {
        let mut rows = vec![vec!["server".to_owned(), "capacity /s".to_owned()]];
        if self.servers.len() > 1 {
            rows[0].push(format!("over {}", self.servers[0].name));
        }
        for (server, spec) in self.servers.iter().enumerate() {
            let mut row = vec![spec.name.clone()];
            let rates = self.rates(capacities, server);
            let of = || capacities.iter().filter(|c| c.server == server);
            let mut rate = range(Spread::of(&rates), |v| format!("{v:.3}"));
            if of().any(|c| c.rate.is_none()) {
                rate.push_str(", and less than the range");
            }
            if of().any(|c| !c.bounded) {
                rate.push_str(", and more than the range");
            }
            row.push(rate);
            if server > 0 {
                let ratios = self.rate_ratios(capacities, server);
                row.push(ratio(Spread::of(&ratios)));
            } else if self.servers.len() > 1 {
                row.push(String::new());
            }
            rows.push(row);
        }
        rows
    }

    fn rates(&self, capacities: &[Capacity], server: usize) -> Vec<f64> {
        let of = capacities.iter().filter(|c| c.server == server);
        of.filter_map(|c| c.rate).collect()
    }

    fn rate_ratios(&self, capacities: &[Capacity], server: usize) -> Vec<f64> {
        let of = |server, seed| {
            let mut all = capacities.iter();
            all.find(|c| c.server == server && c.seed == seed)?.rate
        };
        let seeds = capacities.iter().filter(|c| c.server == server);
        seeds
            .filter_map(|c| Some(c.rate? / of(0, c.seed)?))
            .collect()
    }
}

/// The median, and the range if there is one.
fn range(spread: Option<Spread>, show: impl Fn(f64) -> String) -> String {
    match spread {
        None => "-".to_owned(),
        Some(s) if s.min == s.max => show(s.median),
        Some(s) => format!("{} ({} – {})", show(s.median), show(s.min), show(s.max)),
    }
}

fn ratio(spread: Option<Spread>) -> String {
    let Some(s) = spread else {
        return "-".to_owned();
    };
    match s.min == s.max {
        true => format!("{:.2} ×", s.median),
        false => format!("{:.2} × ({:.2} – {:.2})", s.median, s.min, s.max),
    }
}

/// JSON.
impl Bench<'_> {
    fn facts(&self) -> Value {
        let slo = self.slo();
        json!({
            "requests": self.facts_of_requests(),
            "lengths": self.facts_of_lengths(),
            "tenants": self.args.workload.tenants,
            "flood": self.args.workload.flood,
            "ttft_slo_seconds": slo.ttft.as_secs_f64(),
            "tbt_slo_seconds": slo.tbt.as_secs_f64(),
        })
    }

    fn as_json(&self, trials: &[Trial], summaries: &[Summary], stopped: bool) -> Value {
        let servers: Vec<Value> = summaries
            .iter()
            .map(|summary| {
                let spec = &self.servers[summary.server];
                let (mut figures, mut ratios) = (Map::new(), Map::new());
                for figure in &summary.figures {
                    figures.insert(figure.key.to_owned(), spread_json(figure.spread));
                    if summary.server > 0 {
                        ratios.insert(figure.key.to_owned(), spread_json(figure.ratio));
                    }
                }
                let runs = trials.iter().filter(|t| t.server == summary.server);
                json!({
                    "name": spec.name,
                    "url": spec.url,
                    "command": spec.command,
                    "figures": figures,
                    "over_first": (summary.server > 0).then_some(ratios),
                    "runs": runs.map(trial_json).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({"workload": self.facts(), "stopped": stopped, "servers": servers})
    }

    fn rates_as_json(&self, probes: &[Probe], capacities: &[Capacity], stopped: bool) -> Value {
        let servers: Vec<Value> = self
            .servers
            .iter()
            .enumerate()
            .map(|(server, spec)| {
                let of = probes.iter().filter(|p| p.trial.server == server);
                let ratios = self.rate_ratios(capacities, server);
                json!({
                    "name": spec.name,
                    "url": spec.url,
                    "command": spec.command,
                    "capacity_per_second": spread_json(Spread::of(&self.rates(capacities, server))),
                    "over_first": (server > 0).then(|| spread_json(Spread::of(&ratios))),
                    "probes": of.map(|p| json!({
                        "rate": p.rate,
                        "borne": p.bears,
                        "run": trial_json(&p.trial),
                    })).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({"workload": self.facts(), "stopped": stopped, "servers": servers})
    }
}

fn spread_json(spread: Option<Spread>) -> Value {
    spread.map_or(
        Value::Null,
        |s| json!({"median": s.median, "min": s.min, "max": s.max}),
    )
}

fn trial_json(trial: &Trial) -> Value {
    let f = &trial.figures;
    let own = summarize(&[Trial {
        server: 0,
        ..trial.clone()
    }]);
    let mut figures = Map::new();
    for figure in own.iter().flat_map(|s| &s.figures) {
        let value = figure.spread.map(|s| s.median);
        figures.insert(figure.key.to_owned(), json!(value));
    }
    json!({
        "seed": trial.seed,
        "seconds": f.seconds,
        "requests": f.requests,
        "missing": trial.run.missing,
        "prompt_tokens": f.prompt_tokens,
        "output_tokens": f.output_tokens,
        "failure": f.failure,
        "retry_after_p50": f.retry_after.map(|q| q.p50),
        "figures": figures,
        "tenants": f.tenants.iter().map(|t| json!({
            "tenant": format!("tenant-{}", t.tenant),
            "requests": t.requests,
            "done": t.done,
            "ttft_p50": t.ttft.map(|q| q.p50),
            "ttft_p99": t.ttft.map(|q| q.p99),
            "tokens_per_busy_second": t.service,
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_rates_rise() {
        assert_eq!(parse_range("0.5, 32"), Ok((0.5, 32.0)));
        for wrong in ["", "1", "2,1", "0,1", "a,b", "1,inf", "1,1"] {
            assert!(parse_range(wrong).is_err(), "{wrong}");
        }
    }
}
