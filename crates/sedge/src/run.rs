//! `sedge run`: one answer, streamed; without a prompt on a terminal, a chat.

use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use sedge_engine::{Constraint, FinishReason, Request};
use serde_json::json;

use crate::answer::{self, Answer};
use crate::chat;
use crate::failure::Failure;
use crate::launch::{self, Running};
use crate::machine::MachineArgs;
use crate::output;
use crate::sampling::SamplingArgs;
use crate::source::Source;

const EXAMPLES: &str = "\
Examples:
  sedge run \"find all files larger than 100MB\"
  sedge run -m ./model.gguf --system \"Answer in French.\" \"What is a sedge?\"
  git diff | sedge run -m ./model.gguf \"Write a commit message for this change:\"
  sedge run -m ./model.gguf --json-schema person.json \"Invent a person.\"
  sedge run                                     a chat; /help says more";

/// Most bytes that are read from a pipe.
const MAX_PIPED: u64 = 16 << 20;

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// What to answer; a pipe on standard input is read as the prompt, or follows it
    #[arg(value_name = "PROMPT")]
    prompt: Vec<String>,

    /// GGUF file, Hugging Face folder, stored model, or `seedling`, the built-in model
    #[arg(short, long, value_name = "MODEL", default_value = crate::source::BUILT_IN)]
    model: Source,

    /// System prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,

    /// Continue the prompt's text itself, without the model's chat template
    #[arg(long)]
    raw: bool,

    /// Most tokens of the answer [default: what the context has left]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,

    /// End the answer before this text (repeatable)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,

    /// Answer with JSON that the schema in FILE accepts
    #[arg(long, value_name = "FILE", conflicts_with = "grammar")]
    json_schema: Option<PathBuf>,

    /// Answer in the language of the Lark grammar in FILE
    #[arg(long, value_name = "FILE")]
    grammar: Option<PathBuf>,

    /// Print one JSON object with text, usage and timings instead of the text
    #[arg(long)]
    json: bool,

    /// Print tokens per second and time to first token on standard error
    #[arg(short = 'v', long)]
    stats: bool,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    machine: MachineArgs,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let prompt = prompt(&args.prompt, piped()?)?;
    let constraint = constraint(&args)?;
    let running = launch::launch(&args.model, &args.machine, None)?;
    let request = Request {
        max_tokens: args.max_tokens,
        sampling: args.sampling.over(running.defaults.clone()),
        stop: args.stop.clone(),
        constraint,
        ..Request::default()
    };
    match prompt {
        None => chat::run(&running, request, args.system, args.stats),
        Some(prompt) => one_answer(&running, request, &prompt, &args),
    }
}

fn one_answer(
    running: &Running,
    request: Request,
    prompt: &str,
    args: &Args,
) -> Result<(), Failure> {
    let ids = if args.raw {
        answer::plain(running, prompt)
    } else {
        let mut messages = Vec::new();
        if let Some(system) = &args.system {
            messages.push(json!({"role": "system", "content": system}));
        }
        messages.push(json!({"role": "user", "content": prompt}));
        answer::conversation(running, &messages)?
    };
    let request = Request {
        prompt: ids,
        ..request
    };
    let answer = if args.json {
        let answer = answer::stream(running, request, |_| Ok(()))?;
        output::print(&format!("{:#}\n", as_json(&running.name, &answer)))?;
        answer
    } else {
        let answer = answer::stream(running, request, answer::to_stdout)?;
        if !answer.text.ends_with('\n') {
            answer::to_stdout("\n")?;
        }
        answer
    };
    match answer.finish {
        None => return Err(Failure::Interrupted),
        Some(finish) if args.stats => output::note(answer::statistics(&finish)),
        Some(_) => {}
    }
    Ok(())
}

fn as_json(model: &str, answer: &Answer) -> serde_json::Value {
    let mut object = json!({"model": model, "text": answer.text});
    if let Some(finish) = &answer.finish {
        object["finish_reason"] = match finish.reason {
            FinishReason::Length => "length",
            FinishReason::Stop | FinishReason::Deadline | FinishReason::Error(_) => "stop",
        }
        .into();
        object["usage"] = json!({
            "prompt_tokens": finish.usage.prompt,
            "completion_tokens": finish.usage.completion,
            "total_tokens": finish.usage.prompt + finish.usage.completion,
        });
        object["timings"] = json!({
            "queued_ms": answer::milliseconds(finish.timings.queued),
            "first_token_ms": answer::milliseconds(finish.timings.first_token),
            "total_ms": answer::milliseconds(finish.timings.total),
            "tokens_per_second": answer::tokens_per_second(finish),
        });
    } else {
        object["finish_reason"] = "interrupted".into();
    }
    object
}

fn constraint(args: &Args) -> Result<Option<Constraint>, Failure> {
    if let Some(path) = &args.json_schema {
        let schema = serde_json::from_str(&read(path)?)
            .map_err(|e| Failure::new(format_args!("{}: {e}", path.display())))?;
        return Ok(Some(Constraint::JsonSchema(schema)));
    }
    match &args.grammar {
        Some(path) => Ok(Some(Constraint::Lark(read(path)?))),
        None => Ok(None),
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|e| Failure::file(path, &e))
}

/// What a pipe or file on standard input holds; `None` on a terminal.
fn piped() -> Result<Option<String>, Failure> {
    let input = io::stdin();
    if input.is_terminal() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let read = input.lock().take(MAX_PIPED + 1).read_to_end(&mut bytes);
    match read {
        // Started with standard input closed: nothing was piped.
        Err(_) if bytes.is_empty() => return Ok(None),
        Err(e) => return Err(Failure::new(format_args!("standard input: {e}"))),
        Ok(n) if n as u64 > MAX_PIPED => {
            return Err(Failure::new(format_args!(
                "standard input has more than {} MiB",
                MAX_PIPED >> 20
            )));
        }
        Ok(_) => {}
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(e) => Err(Failure::new(format_args!(
            "standard input is not UTF-8 text: byte {} is not valid",
            e.utf8_error().valid_up_to()
        ))),
    }
}

/// The prompt from its words and the pipe; `None` means a chat.
fn prompt(words: &[String], piped: Option<String>) -> Result<Option<String>, Failure> {
    let words = words.join(" ");
    let Some(piped) = piped else {
        return Ok((!words.is_empty()).then_some(words));
    };
    // `echo` ends its line; the line end is no part of the question.
    let text = piped.strip_suffix('\n').unwrap_or(&piped);
    let text = text.strip_suffix('\r').unwrap_or(text);
    match (words.is_empty(), text.is_empty()) {
        (true, true) => Err(Failure::misused(
            "there is no prompt: no words, and standard input is empty",
            "sedge run \"find all files larger than 100MB\"",
        )),
        (true, false) => Ok(Some(text.to_owned())),
        (false, true) => Ok(Some(words)),
        (false, false) => Ok(Some(format!("{words}\n\n{text}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::prompt;

    #[test]
    fn a_pipe_is_the_prompt_or_follows_it() {
        let ask = |words: &[&str], piped: Option<&str>| {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            prompt(&words, piped.map(str::to_owned))
        };
        assert_eq!(ask(&[], None).unwrap(), None);
        assert_eq!(ask(&["a", "b"], None).unwrap().unwrap(), "a b");
        assert_eq!(ask(&[], Some("text\n")).unwrap().unwrap(), "text");
        assert_eq!(
            ask(&["sum up:"], Some("a\nb\r\n")).unwrap().unwrap(),
            "sum up:\n\na\nb"
        );
        assert_eq!(ask(&["a"], Some("")).unwrap().unwrap(), "a");
        assert!(ask(&[], Some("\n")).is_err());
    }
}
