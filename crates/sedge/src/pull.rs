//! `sedge pull`: a model or an adapter into the store, from a hub or from this machine.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sedge_store::{Event, Reference};
use serde_json::json;

use crate::failure::Failure;
use crate::output::{self, ProgressLine};
use crate::size::Bytes;
use crate::store;

const ABOUT: &str = "\
Examples:
  sedge pull hf:Qwen/Qwen3-0.6B                       safetensors, configuration and tokenizer
  sedge pull hf:Qwen/Qwen3-0.6B@main                  a branch, tag or commit
  sedge pull hf:bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M   the GGUF file that is quantised so
  sedge pull ./model-dir --name mine                  a folder, an adapter's folder or a GGUF file
  sedge run -m Qwen3-0.6B                             then its name is a MODEL

What was interrupted goes on where it stopped. Files that are in the store already, or in the
cache of Hugging Face's own programs, are not fetched again, and what is damaged is repaired.
Tensors that models share are kept once.

HF_TOKEN is for private and gated models, HF_ENDPOINT for another hub, HTTPS_PROXY, HTTP_PROXY
and NO_PROXY for proxies, SSL_CERT_FILE for certificates, SEDGE_HOME for another place on the disk.";

#[derive(clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    /// `hf:ORG/NAME[@REVISION][:FILE]`, or a GGUF file or folder of this machine
    #[arg(value_name = "SOURCE")]
    source: String,

    /// Name to store it under [default: the repository's, folder's or file's]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Replace what has the name
    #[arg(short, long)]
    force: bool,

    /// Connections for one file
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u8).range(1..=16))]
    connections: u8,

    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let store = store::store()?;
    let reference = Reference::parse(&args.source).map_err(|error| {
        Failure::misused(
            error,
            "sedge pull hf:ORG/NAME, or hf:ORG/NAME@REVISION:FILE; sedge pull --help",
        )
    })?;
    let mut options = store::options();
    options.name.clone_from(&args.name);
    options.replace = args.force;
    options.connections = args.connections.into();
    let start = Instant::now();
    let progress = Mutex::new(Progress::new());
    let pulled = sedge_store::pull(store, &reference, &options, &|event| {
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.tell(event, Instant::now());
    });
    drop(progress);
    let pulled = pulled.map_err(|error| store::pull_failure(error, &args.source))?;
    let seconds = start.elapsed().as_secs_f64();
    let usage = store.usage().map_err(store::failure)?;
    let usage = usage.each.iter().find(|usage| usage.name == pulled.name);
    let shared = usage.map_or(0, |usage| usage.shared);
    let manifest = &pulled.manifest;
    if args.json {
        let object = json!({
            "name": pulled.name,
            "kind": manifest.kind.name(),
            "source": manifest.origin.source,
            "revision": manifest.origin.revision,
            "files": manifest.files.len(),
            "tensors": manifest.tensors.len(),
            "bytes": pulled.bytes,
            "shared": shared,
            "fetched": pulled.fetched,
            "seconds": seconds,
        });
        return Ok(output::print(&format!("{object:#}\n"))?);
    }
    let mut text = format!(
        "{}: {}, {} tensors, {}",
        pulled.name,
        manifest.kind.name(),
        manifest.tensors.len(),
        Bytes(pulled.bytes)
    );
    if shared > 0 {
        text.push_str(&format!(", {} of it shared with others", Bytes(shared)));
    }
    text.push_str(&match pulled.fetched {
        0 => format!("; nothing fetched, {seconds:.1} s\n"),
        fetched => format!(
            "; {} fetched in {seconds:.1} s, {}/s\n",
            Bytes(fetched),
            Bytes((fetched as f64 / seconds.max(1e-3)) as u64)
        ),
    });
    Ok(output::print(&text)?)
}

/// The progress line of a pull.
struct Progress {
    line: ProgressLine,
    file: String,
    /// When how many bytes had come, over the last seconds.
    window: VecDeque<(Instant, u64)>,
}

/// Over how long the rate is taken.
const WINDOW: Duration = Duration::from_secs(8);

impl Progress {
    fn new() -> Progress {
        Progress {
            line: ProgressLine::new(),
            file: String::new(),
            window: VecDeque::new(),
        }
    }

    fn tell(&mut self, event: &Event, now: Instant) {
        match event {
            Event::File { path } => {
                self.file = path.rsplit('/').next().unwrap_or(path).to_owned();
            }
            Event::Progress { done, total, .. } => {
                let note = self.note(*done, *total, now);
                self.line.show(*done, *total, &note);
            }
            Event::Waiting { seconds, why } => {
                self.line.clear();
                if *seconds >= 1.0 {
                    output::note(format_args!("sedge: {why}; again in {seconds:.0} s"));
                }
            }
            Event::Note(text) => {
                self.line.clear();
                output::note(format_args!("sedge: {text}"));
            }
        }
    }

    /// `12.5 MiB/s, 3 min left  model.safetensors`
    fn note(&mut self, done: u64, total: u64, now: Instant) -> String {
        let sample = Duration::from_millis(200);
        if self
            .window
            .back()
            .is_none_or(|(at, _)| now.duration_since(*at) >= sample)
        {
            self.window.push_back((now, done));
        }
        while self.window.len() > 2
            && self
                .window
                .front()
                .is_some_and(|(at, _)| now.duration_since(*at) > WINDOW)
        {
            self.window.pop_front();
        }
        let rate = self.window.front().and_then(|(at, before)| {
            let seconds = now.duration_since(*at).as_secs_f64();
            (seconds >= 0.5).then(|| done.saturating_sub(*before) as f64 / seconds)
        });
        match rate.filter(|rate| *rate >= 1.0) {
            Some(rate) => format!(
                "{}/s, {} left  {}",
                Bytes(rate as u64),
                left(total.saturating_sub(done) as f64 / rate),
                self.file
            ),
            None => self.file.clone(),
        }
    }
}

/// A time to wait, to two digits.
fn left(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.0} s"),
        s if s < 3600.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut progress = Progress::new();
        progress.file = "f".into();
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        assert_eq!(progress.note(0, 100 << 20, at(0)), "f");
        assert_eq!(
            progress.note(10 << 20, 100 << 20, at(1)),
            "10.0 MiB/s, 9 s left  f"
        );
        // Then it slows down, and what was fast is forgotten.
        for s in 2..40 {
            progress.note((10 << 20) + (s << 20), 100 << 20, at(s));
        }
        assert_eq!(
            progress.note(50 << 20, 100 << 20, at(40)),
            "1.0 MiB/s, 50 s left  f"
        );
        assert_eq!(left(7200.0), "2.0 h");
    }
}
