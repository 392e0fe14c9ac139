//! The running answers to one HTTP request, as one stream of events. Dropping it cancels them.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::{SelectAll, Stream, StreamExt, unfold};
use sedge_engine::{Event, FinishReason, Request};

use crate::app::App;
use crate::asker::Asker;
use crate::error::{ApiError, Origin};
use crate::openai::response::Usage;
use crate::server::ServedModel;
use crate::traces::{About, Span};

type Events = Pin<Box<dyn Stream<Item = (usize, Event)> + Send>>;

/// Answers that run.
pub(crate) struct Answers {
    app: Arc<App>,
    model: usize,
    tenant: Arc<str>,
    /// The request's span until all have ended, if spans are wanted.
    span: Option<Span>,
    /// Answers to each prompt.
    n: usize,
    events: SelectAll<Events>,
    /// When each answer's last token came.
    last: Vec<Option<Instant>>,
}

/// What an HTTP request asks for, for its span.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    /// `chat` or `text_completion`.
    pub(crate) operation: &'static str,
    /// The reply's id.
    pub(crate) id: &'a str,
    /// Answers to each prompt.
    pub(crate) n: usize,
}

/// Refuses more answers than the queue can ever hold; `field` asks for so many.
pub(crate) fn must_queue(model: &ServedModel, answers: usize, field: &str) -> Result<(), ApiError> {
    let most = model.engine.max_waiting();
    if answers <= most {
        return Ok(());
    }
    let message = format!(
        "'{field}' asks for {answers} answers; at most {most} requests wait at this server (--max-waiting)."
    );
    Err(ApiError::invalid(field, message))
}

impl Answers {
    /// Submits all requests or none.
    pub(crate) fn submit(
        app: Arc<App>,
        (model, served): (usize, &ServedModel),
        call: Call,
        requests: Vec<Request>,
        asker: &Asker,
        origin: Origin,
    ) -> Result<Answers, ApiError> {
        let last = vec![None; requests.len()];
        let first = requests.first();
        let mut span = app.traces.begin(requests.len(), || About {
            operation: call.operation,
            id: Some(call.id.to_owned()),
            model: served.name.clone(),
            tenant: asker.tenant.clone(),
            priority: asker.priority(first.map_or(0, |r| r.priority)),
            parent: asker.parent.clone(),
            max_tokens: first.and_then(|r| r.max_tokens),
            temperature: first.map(|r| r.sampling.temperature),
        });
        let mut events = SelectAll::new();
        for (choice, mut request) in requests.into_iter().enumerate() {
            asker.sign(&mut request);
            served.sign(&mut request);
            // An error drops, and thereby cancels, those already submitted.
            let output = served.engine.submit(request).map_err(|error| {
                let error = ApiError::submit(error, origin);
                if let Some(span) = &mut span {
                    span.refused(&error);
                }
                error
            })?;
            let stream: Events = Box::pin(unfold(output, move |mut output| async move {
                output.next().await.map(|event| ((choice, event), output))
            }));
            events.push(stream);
        }
        Ok(Answers {
            tenant: asker.tenant.clone(),
            span,
            n: call.n,
            app,
            model,
            events,
            last,
        })
    }

    /// The next event of any answer, with the answer's number; `None` when all have ended.
    pub(crate) async fn next(&mut self) -> Option<(usize, Event)> {
        let (choice, event) = self.events.next().await?;
        match &event {
            Event::Token(_) => {
                let now = Instant::now();
                if let Some(last) = self.last[choice].replace(now) {
                    self.app.metrics.gap(self.model, now - last);
                }
            }
            Event::Finished(finish) => {
                self.app.metrics.finished(self.model, &self.tenant, finish);
                let first = choice.is_multiple_of(self.n);
                if let Some(span) = &mut self.span
                    && span.answered(choice, finish, first)
                {
                    self.span = None; // sends it
                }
            }
            Event::Prompt(_) | Event::Embedding(_) => {}
        }
        Some((choice, event))
    }

    /// OpenAI's name of a reason, or the error that ended the answer.
    pub(crate) fn reason(&self, reason: FinishReason) -> Result<&'static str, ApiError> {
        match reason {
            FinishReason::Stop => Ok("stop"),
            FinishReason::Length => Ok("length"),
            FinishReason::Error(_) if self.app.draining() => Err(ApiError::Draining),
            FinishReason::Deadline => Err(ApiError::Deadline),
            FinishReason::Error(why) => Err(ApiError::Internal(why)),
        }
    }
}

impl Usage {
    /// Adds an answer's tokens; those of the prompt count for the first of its answers only.
    pub(crate) fn add(&mut self, usage: sedge_engine::Usage, first: bool) {
        if first {
            self.prompt_tokens += usage.prompt;
            self.prompt_tokens_details.cached_tokens += usage.cached;
        }
        self.completion_tokens += usage.completion;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}
