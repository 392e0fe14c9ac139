//! `sedge bench pull`: how fast a model comes into the store, beside curl from the same server.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sedge_bench::{BenchHub, Spread, write_weights};
use serde_json::json;

use crate::failure::Failure;
use crate::output::{self, ProgressLine};
use crate::size::Bytes;
use crate::table::table;

const ABOUT: &str = "\
Examples:
  sedge bench pull                           as fast as this machine sends to itself
  sedge bench pull --rate 125MB              over a line of a gigabit a second
  sedge bench pull --folder /dev/shm         without a disk

A server of this process sends a safetensors file of noise. In turn, round by round: `sedge pull`
into a new store, which checks SHA-256, hashes every tensor and makes all durable; curl into a
file, which does none of that; and curl, then sync and SHA-256 of the file (by openssl, else
sha256sum), which does the same but for the tensors. Ratios are sedge's rate over the other's,
round by round.";

#[derive(clap::Args)]
#[command(after_help = ABOUT)]
pub(super) struct PullArgs {
    /// Bytes of the file
    #[arg(long, value_name = "BYTES", default_value = "1GiB")]
    size: Bytes,

    /// Most bytes that the server sends in a second [default: as many as it can]
    #[arg(long, value_name = "BYTES")]
    rate: Option<Bytes>,

    /// Rounds
    #[arg(short, long, value_name = "N", default_value = "5")]
    repeats: NonZeroUsize,

    /// Connections of sedge pull for the file
    #[arg(long, value_name = "N", default_value = "4")]
    connections: NonZeroUsize,

    /// Folder on the disk to measure [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// One run of a contestant.
#[derive(Debug, Clone, Copy)]
struct Run {
    seconds: f64,
    /// Most memory that the process had, where the system tells.
    peak: Option<u64>,
}

const CONTESTANTS: [&str; 3] = ["sedge pull", "curl", "curl, sync, SHA-256"];

/// OpenSSL's SHA-256 uses the processor's instructions for it; that of coreutils does not always.
const CHECKED: &str = r#"curl -sSf -o "$0" "$1" && sync "$0" &&
    { openssl dgst -sha256 "$0" 2>/dev/null || sha256sum "$0"; }"#;

pub(super) fn run(args: &PullArgs) -> Result<(), Failure> {
    let base = args.folder.clone().unwrap_or_else(std::env::temp_dir);
    let folder = base.join(format!("sedge-bench-pull-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(|e| Failure::file(&folder, &e))?;
    let result = measure(args, &folder);
    // What cannot be removed is in a temporary folder.
    let _ = fs::remove_dir_all(&folder);
    let (runs, size) = result?;
    let rates: Vec<Vec<f64>> = runs
        .iter()
        .map(|runs| runs.iter().map(|run| size as f64 / run.seconds).collect())
        .collect();
    let mut rows = vec![
        [
            "",
            "rate, median",
            "least",
            "most",
            "sedge over it",
            "least",
            "most",
            "memory",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let mut objects = Vec::new();
    for (i, name) in CONTESTANTS.into_iter().enumerate() {
        let ratios: Vec<f64> = rates[0].iter().zip(&rates[i]).map(|(a, b)| a / b).collect();
        let (Some(rate), Some(ratio)) = (Spread::of(&rates[i]), Spread::of(&ratios)) else {
            continue;
        };
        let peak = runs[i].iter().filter_map(|run| run.peak).max();
        let mb = |rate: f64| format!("{:.0} MB/s", rate / 1e6);
        rows.push(vec![
            name.to_owned(),
            mb(rate.median),
            mb(rate.min),
            mb(rate.max),
            format!("{:.2}", ratio.median),
            format!("{:.2}", ratio.min),
            format!("{:.2}", ratio.max),
            peak.map_or_else(String::new, |peak| Bytes(peak).to_string()),
        ]);
        objects.push(json!({
            "name": name,
            "bytes_per_second": {"median": rate.median, "min": rate.min, "max": rate.max},
            "ratio": {"median": ratio.median, "min": ratio.min, "max": ratio.max},
            "peak_memory": peak,
        }));
    }
    let text = match args.json {
        true => format!("{:#}\n", json!({"bytes": size, "contestants": objects})),
        false => format!(
            "{} in {} rounds, {}\n\n{}",
            Bytes(size),
            args.repeats,
            match args.rate {
                Some(rate) => format!("sent at {:.0} MB/s", rate.0 as f64 / 1e6),
                None => "sent as fast as it goes".to_owned(),
            },
            table(&rows)
        ),
    };
    Ok(output::print(&text)?)
}

fn measure(args: &PullArgs, folder: &Path) -> Result<([Vec<Run>; 3], u64), Failure> {
    let weights = folder.join("weights");
    let failed = |e: std::io::Error| Failure::file(&weights, &e);
    write_weights(&weights, args.size.0).map_err(failed)?;
    let size = fs::metadata(&weights).map_err(failed)?.len();
    let hub = BenchHub::start(&weights, args.rate.map(|rate| rate.0)).map_err(failed)?;
    let sedge = std::env::current_exe().map_err(Failure::new)?;
    let (home, file) = (folder.join("home"), folder.join("file"));
    let shown = file.display().to_string();
    let mut runs = [const { Vec::new() }; 3];
    let mut line = ProgressLine::new();
    // The first round warms the file's pages and is not counted.
    let rounds = args.repeats.get() + 1;
    for round in 0..rounds {
        for (i, name) in CONTESTANTS.into_iter().enumerate() {
            line.show((round * 3 + i) as u64, (rounds * 3) as u64, name);
            let mut command = match i {
                0 => {
                    let mut command = Command::new(&sedge);
                    command
                        .args(["pull", "hf:bench/model", "--json", "--connections"])
                        .arg(args.connections.to_string())
                        .env("SEDGE_HOME", &home)
                        .env("HF_ENDPOINT", hub.endpoint())
                        .env("HF_HUB_CACHE", folder.join("no-cache"))
                        .env("NO_PROXY", "127.0.0.1");
                    command
                }
                1 => {
                    let mut command = Command::new("curl");
                    command.args(["-sSf", "-o", &shown, &hub.url()]);
                    command
                }
                _ => {
                    let mut command = Command::new("sh");
                    command.args(["-c", CHECKED]).args([&shown, &hub.url()]);
                    command
                }
            };
            let run = time(name, &mut command)?;
            if round > 0 {
                runs[i].push(run);
            }
            let _ = fs::remove_dir_all(&home);
            let _ = fs::remove_file(&file);
            // What one has left to be written must not slow the next.
            let _ = Command::new("sync").arg("-f").arg(folder).status();
        }
    }
    Ok((runs, size))
}

/// Runs a command to its end and watches its memory.
fn time(name: &str, command: &mut Command) -> Result<Run, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(format_args!("{name}: {error}"));
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = None;
    loop {
        peak = high_water(&status).or(peak);
        if let Some(exit) = child.try_wait().map_err(|error| failed(&error))? {
            let seconds = start.elapsed().as_secs_f64();
            if !exit.success() {
                let mut text = String::new();
                if let Some(mut errors) = child.stderr.take() {
                    let _ = std::io::Read::read_to_string(&mut errors, &mut text);
                }
                return Err(failed(&text.trim()));
            }
            return Ok(Run { seconds, peak });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Most memory that a process ever had.
fn high_water(status: &str) -> Option<u64> {
    let text = fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
