//! One answer of an engine, streamed; Ctrl-C ends it.

use std::io::{self, Write};
use std::time::Duration;

use sedge_engine::{Event, Finish, FinishReason, Request};
use sedge_formats::template::ChatInput;

use crate::failure::Failure;
use crate::launch::Running;

/// An answer and how it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
    /// `None` when Ctrl-C ended it.
    pub(crate) finish: Option<Finish>,
}

/// Runs a request. `sink` sees each piece of text as soon as it is complete; when it fails (its
/// reader went away), the request is cancelled.
pub(crate) fn stream(
    running: &Running,
    request: Request,
    mut sink: impl FnMut(&str) -> io::Result<()>,
) -> Result<Answer, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(Failure::new)?;
    runtime.block_on(async {
        let mut output = running.engine.submit(request).map_err(refused)?;
        let mut text = String::new();
        let mut take = |piece: &str| {
            text.push_str(piece);
            if piece.is_empty() { Ok(()) } else { sink(piece) }
        };
        let interrupt = tokio::signal::ctrl_c();
        tokio::pin!(interrupt);
        let finish = loop {
            tokio::select! {
                biased;
                _ = &mut interrupt => break None,
                event = output.next() => match event {
                    Some(Event::Token(token)) => take(&token.text)?,
                    Some(Event::Finished(finish)) => {
                        take(&finish.text)?;
                        break Some(finish);
                    }
                    Some(Event::Prompt(_) | Event::Embedding(_)) => {}
                    None => return Err(Failure::new("the engine stopped in the middle of an answer")),
                },
            }
        };
        if let Some(Finish { reason: FinishReason::Error(reason), .. }) = &finish {
            return Err(Failure::new(reason));
        }
        Ok(Answer { text, finish })
    })
}

fn refused(error: sedge_engine::SubmitError) -> Failure {
    let hint = match &error {
        sedge_engine::SubmitError::TooLong { .. } => "a shorter prompt, or /new in a chat",
        sedge_engine::SubmitError::Unsupported(_) => {
            "sedge serve and POST /v1/embeddings, for an encoder"
        }
        _ => return Failure::new(error),
    };
    Failure::new(error).hint(hint)
}

/// Token ids of a conversation, up to where the assistant speaks. Without a template the last
/// message's text is simply continued.
pub(crate) fn conversation(
    running: &Running,
    messages: &[serde_json::Value],
) -> Result<Vec<u32>, Failure> {
    let Some(template) = &running.template else {
        let last = messages.last().and_then(|m| m["content"].as_str());
        return Ok(plain(running, last.unwrap_or_default()));
    };
    let input = ChatInput {
        messages: messages.to_vec(),
        add_generation_prompt: true,
        ..ChatInput::default()
    };
    let text = template.render(&input).map_err(Failure::new)?;
    Ok(running.tokenizer.encode_chat(&text))
}

/// Token ids of a text that the model simply continues.
pub(crate) fn plain(running: &Running, text: &str) -> Vec<u32> {
    running.tokenizer.encode_prompt(text)
}

/// Prints pieces as they come.
pub(crate) fn to_stdout(piece: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(piece.as_bytes())?;
    out.flush()
}

/// `38 tokens at 95.2/s, the first after 31 ms, prompt of 12 tokens`
pub(crate) fn statistics(finish: &Finish) -> String {
    format!(
        "{} tokens at {:.1}/s, the first after {:.0} ms, prompt of {} tokens",
        finish.usage.completion,
        tokens_per_second(finish),
        milliseconds(finish.timings.first_token),
        finish.usage.prompt,
    )
}

/// Rate of the tokens after the first; 0 when there is no second.
pub(crate) fn tokens_per_second(finish: &Finish) -> f64 {
    let time = finish
        .timings
        .total
        .saturating_sub(finish.timings.first_token)
        .as_secs_f64();
    match finish.usage.completion {
        0 | 1 => 0.0,
        n if time > 0.0 => (n - 1) as f64 / time,
        _ => 0.0,
    }
}

/// A time in milliseconds.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
