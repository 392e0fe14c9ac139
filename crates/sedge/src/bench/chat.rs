//! `sedge bench chat`: conversations of many turns through the engine, and how speed holds over
//! time. The protocol and its indicators follow MELT (Laskaridis et al., 2024): the same
//! conversations for every model, reading and writing timed apart, memory, energy where it is
//! metered.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::builder::NonEmptyStringValueParser;
use sedge_bench::{Spread, line_plot, sparkline};
use sedge_engine::{Request, Sampling};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{joules, peak_memory};
use crate::answer;
use crate::failure::Failure;
use crate::launch::{self, Running};
use crate::load::LoadArgs;
use crate::machine::MachineArgs;
use crate::output::{self, ProgressLine};
use crate::source::Source;

const ABOUT: &str = "\
Examples:
  sedge bench chat                                    the built-in model and conversations
  sedge bench chat -m 1b.gguf --conversations questions.jsonl
  sedge bench chat -m 1b.gguf --sustained 10m --plot speed.svg

Each conversation is held turn by turn; a turn's prompt is all that was said before, as the
model's chat template writes it. When a conversation outgrows the context, its oldest question
and answer are left out. Sampling is MELT's: temperature 0.7, top_p 0.95, top_k 40, here with a
fixed seed.

A file of conversations is JSON, a list of lists of questions, or JSON lines with \"turns\".

--sustained repeats the conversations for so long (s, m or h) and shows how the speed of
generation develops: a device that grows hot slows down.";

static EVERYDAY: &str = include_str!("../../../../assets/conversations/everyday.json");

#[derive(clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct ChatArgs {
    /// GGUF file, Hugging Face folder, stored model, or `seedling`, the built-in model
    #[arg(short, long, value_name = "MODEL", default_value = crate::source::BUILT_IN)]
    model: Source,

    /// Conversations to hold [default: six of everyday matters]
    #[arg(long, value_name = "FILE")]
    conversations: Option<PathBuf>,

    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value = "128")]
    max_tokens: usize,

    /// Repeat the conversations for so long
    #[arg(long, value_name = "TIME", value_parser = crate::time::parse)]
    sustained: Option<Duration>,

    /// Write a plot of the speed over time, as SVG
    #[arg(long, value_name = "FILE", value_parser = NonEmptyStringValueParser::new())]
    plot: Option<String>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    machine: MachineArgs,
}

/// One answer.
struct Turn {
    conversation: usize,
    /// Seconds from the start of the run to its end.
    at: f64,
    prompt: usize,
    generated: usize,
    /// Seconds to the first token.
    first: f64,
    /// Seconds of the tokens after the first.
    rest: f64,
}

impl Turn {
    /// Tokens per second of reading.
    fn reading(&self) -> f64 {
        self.prompt as f64 / self.first.max(1e-9)
    }

    /// Tokens per second of writing, if there was more than one.
    fn writing(&self) -> Option<f64> {
        (self.generated > 1).then(|| (self.generated - 1) as f64 / self.rest.max(1e-9))
    }
}

pub(crate) fn run(args: &ChatArgs) -> Result<(), Failure> {
    let conversations = match &args.conversations {
        Some(path) => read(path)?,
        None => parse(EVERYDAY).map_err(Failure::new)?,
    };
    let start = Instant::now();
    // Every turn is computed whole, so that reading is timed on all that is read.
    let running = launch::launch(&args.model, &args.machine, Some(&LoadArgs::without_cache()))?;
    let load = start.elapsed().as_secs_f64();
    if !running.generates {
        return Err(Failure::new(format_args!(
            "{} is an encoder: it holds no conversation",
            running.name
        )));
    }
    let mut line = ProgressLine::new();
    let mut turns: Vec<Turn> = Vec::new();
    let meter = joules();
    let start = Instant::now();
    let all: usize = conversations.iter().map(Vec::len).sum();
    for round in 0.. {
        for (index, questions) in conversations.iter().enumerate() {
            let mut progress = |turns: usize| match args.sustained {
                None => line.show(turns as u64, all as u64, "turns"),
                Some(time) => {
                    let note = format!("turn {turns}");
                    line.show(start.elapsed().as_secs(), time.as_secs(), &note);
                }
            };
            hold(&running, args.max_tokens, questions, &mut |answer| {
                progress(turns.len());
                let seed = (round * all + turns.len() % all) as u64;
                let Some(request) = answer else { return seed };
                turns.push(Turn {
                    conversation: index,
                    at: start.elapsed().as_secs_f64(),
                    ..request
                });
                seed
            })?;
            if args.sustained.is_some_and(|time| start.elapsed() >= time) {
                break;
            }
        }
        if args.sustained.is_none_or(|time| start.elapsed() >= time) {
            break;
        }
    }
    line.clear();
    let energy = meter.zip(joules()).map(|(before, after)| after - before);
    let energy = energy.filter(|joules| *joules >= 0.0);
    if let Some(path) = &args.plot {
        let points: Vec<_> = turns
            .iter()
            .filter_map(|t| Some((t.at, t.writing()?)))
            .collect();
        let title = format!(
            "{}: tokens per second of generation over seconds",
            running.name
        );
        let svg = line_plot(&title, &points);
        std::fs::write(path, svg).map_err(|e| Failure::file(Path::new(path), &e))?;
    }
    let text = match args.json {
        true => format!("{:#}\n", as_json(&running.name, load, &turns, energy)),
        false => as_text(
            &running.name,
            load,
            &turns,
            energy,
            args.sustained.is_some(),
        ),
    };
    Ok(output::print(&text)?)
}

/// Holds one conversation. `note` takes each answer, and gives the seed of the next one.
fn hold(
    running: &Running,
    max_tokens: usize,
    questions: &[String],
    note: &mut dyn FnMut(Option<Turn>) -> u64,
) -> Result<(), Failure> {
    let mut messages: Vec<Value> = Vec::new();
    let mut seed = note(None);
    for question in questions {
        messages.push(json!({"role": "user", "content": question}));
        let prompt = loop {
            let prompt = answer::conversation(running, &messages)?;
            if prompt.len() + max_tokens <= running.context || messages.len() < 3 {
                break prompt;
            }
            messages.drain(..2);
        };
        let request = Request {
            prompt,
            max_tokens: Some(max_tokens),
            sampling: Sampling {
                temperature: 0.7,
                top_p: 0.95,
                top_k: 40,
                seed: Some(seed),
                ..Sampling::default()
            },
            ..Request::default()
        };
        let answer = answer::stream(running, request, |_| Ok(()))?;
        let Some(finish) = answer.finish else {
            return Err(Failure::Interrupted);
        };
        let (first, total) = (finish.timings.first_token, finish.timings.total);
        seed = note(Some(Turn {
            conversation: 0,
            at: 0.0,
            prompt: finish.usage.prompt,
            generated: finish.usage.completion,
            first: first.as_secs_f64(),
            rest: total.saturating_sub(first).as_secs_f64(),
        }));
        messages.push(json!({"role": "assistant", "content": answer.text}));
    }
    Ok(())
}

/// A list of lists, or lines with turns.
fn parse(text: &str) -> Result<Vec<Vec<String>>, String> {
    #[derive(Deserialize)]
    struct Line {
        turns: Vec<String>,
    }
    let whole: Result<Vec<Vec<String>>, _> = serde_json::from_str(text);
    let conversations = match whole {
        Ok(conversations) => conversations,
        Err(whole) => {
            let lines = text
                .lines()
                .enumerate()
                .filter(|(_, l)| !l.trim().is_empty());
            lines
                .map(|(i, line)| match serde_json::from_str::<Line>(line) {
                    Ok(line) => Ok(line.turns),
                    Err(_) if i == 0 => Err(format!("no list of lists of questions: {whole}")),
                    Err(e) => Err(format!("line {}: {e}", i + 1)),
                })
                .collect::<Result<_, _>>()?
        }
    };
    match conversations.iter().all(Vec::is_empty) {
        true => Err("there is no question".to_owned()),
        false => Ok(conversations),
    }
}

fn read(path: &Path) -> Result<Vec<Vec<String>>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::file(path, &e))?;
    parse(&text).map_err(|e| Failure::new(format_args!("{}: {e}", path.display())))
}

/// Medians over some turns: reading, writing, and milliseconds to the first token.
fn medians<'a>(turns: impl Iterator<Item = &'a Turn> + Clone) -> [f64; 3] {
    let median = |figures: Vec<f64>| Spread::of(&figures).map_or(f64::NAN, |s| s.median);
    [
        median(turns.clone().map(Turn::reading).collect()),
        median(turns.clone().filter_map(Turn::writing).collect()),
        median(turns.map(|t| t.first * 1e3).collect()),
    ]
}

/// Speed of writing in the last tenth of the time over that in the first.
fn decay(turns: &[Turn]) -> Option<f64> {
    let end = turns.last()?.at;
    let of = |from: f64, to: f64| {
        let within = turns.iter().filter(|t| (from..=to).contains(&t.at));
        let [_, writing, _] = medians(within);
        writing
    };
    let ratio = of(end * 0.9, end) / of(0.0, end * 0.1);
    ratio.is_finite().then_some(ratio)
}

fn as_text(name: &str, load: f64, turns: &[Turn], energy: Option<f64>, sustained: bool) -> String {
    let generated: usize = turns.iter().map(|t| t.generated).sum();
    let per_token = energy.map(|joules| joules / generated.max(1) as f64);
    let mut text = format!(
        "model         {name}; loaded in {:.0} ms\n\
         memory        {} at most\n\
         energy        {}\n\n\
         {:<14} {:>6} {:>14} {:>10} {:>12} {:>12} {:>16}\n",
        load * 1e3,
        peak_memory().map_or_else(|| "unavailable".to_owned(), |m| m.to_string()),
        per_token.map_or_else(
            || "unavailable".to_owned(),
            |j| format!("{j:.3} J for each generated token")
        ),
        "conversation",
        "turns",
        "prompt tokens",
        "generated",
        "reading /s",
        "writing /s",
        "first token ms",
    );
    let mut row = |name: &str, part: &[&Turn]| {
        let [reading, writing, first] = medians(part.iter().copied());
        let sum = |of: fn(&Turn) -> usize| part.iter().map(|t| of(t)).sum::<usize>();
        text.push_str(&format!(
            "{name:<14} {:>6} {:>14} {:>10} {reading:>12.1} {writing:>12.1} {first:>16.1}\n",
            part.len(),
            sum(|t| t.prompt),
            sum(|t| t.generated),
        ));
    };
    let count = turns.iter().map(|t| t.conversation + 1).max().unwrap_or(0);
    for conversation in 0..count {
        let part: Vec<_> = turns
            .iter()
            .filter(|t| t.conversation == conversation)
            .collect();
        if !part.is_empty() {
            row(&(conversation + 1).to_string(), &part);
        }
    }
    row("all", &turns.iter().collect::<Vec<_>>());
    if sustained {
        let points: Vec<_> = turns
            .iter()
            .filter_map(|t| Some((t.at, t.writing()?)))
            .collect();
        text.push_str(&format!(
            "\nwriting over {:.0} s\n",
            turns.last().map_or(0.0, |t| t.at)
        ));
        text.push_str(&sparkline(&points, 64));
        if let Some(decay) = decay(turns) {
            text.push_str(&format!(
                "the last tenth is {decay:.2} × as fast as the first\n"
            ));
        }
    }
    text
}

fn as_json(name: &str, load: f64, turns: &[Turn], energy: Option<f64>) -> Value {
    let [reading, writing, first] = medians(turns.iter());
    let generated: usize = turns.iter().map(|t| t.generated).sum();
    let turns_json: Vec<_> = turns
        .iter()
        .map(|t| {
            json!({
                "conversation": t.conversation + 1,
                "at_seconds": t.at,
                "prompt_tokens": t.prompt,
                "generated_tokens": t.generated,
                "first_token_ms": t.first * 1e3,
                "reading_tokens_per_second": t.reading(),
                "writing_tokens_per_second": t.writing(),
            })
        })
        .collect();
    json!({
        "model": name,
        "load_seconds": load,
        "peak_memory_bytes": peak_memory().map(|m| m.0),
        "energy_joules": energy,
        "energy_joules_per_token": energy.map(|j| j / generated.max(1) as f64),
        "reading_tokens_per_second": reading,
        "writing_tokens_per_second": writing,
        "first_token_ms": first,
        "last_tenth_over_first": decay(turns),
        "turns": turns_json,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_come_as_lists_or_lines() {
        let expected = vec![vec!["a".to_owned(), "b".to_owned()], vec!["c".to_owned()]];
        assert_eq!(parse(r#"[["a", "b"], ["c"]]"#).unwrap(), expected);
        let lines = "{\"id\": 1, \"turns\": [\"a\", \"b\"]}\n\n{\"turns\": [\"c\"]}\n";
        assert_eq!(parse(lines).unwrap(), expected);
        assert_eq!(parse("[[]]").unwrap_err(), "there is no question");
        let bad = parse("{\"turns\": [\"a\"]}\n{\"turns\": 3}").unwrap_err();
        assert!(bad.starts_with("line 2: "), "{bad}");
        assert!(parse(EVERYDAY).unwrap().len() > 4);
    }

    #[test]
    fn a_run_that_slows_down_shows_it() {
        let turn = |at: f64, rest: f64| Turn {
            conversation: 0,
            at,
            prompt: 10,
            generated: 11,
            first: 0.1,
            rest,
        };
        let turns: Vec<Turn> = (1..=100)
            .map(|i| turn(f64::from(i), 1.0 + f64::from(i) / 100.0))
            .collect();
        let decay = decay(&turns).unwrap();
        assert!((0.5..0.6).contains(&decay), "{decay}");
        let text = as_text("m", 0.1, &turns, None, true);
        assert!(text.contains("writing over 100 s") && text.contains("energy        unavailable"));
    }
}
