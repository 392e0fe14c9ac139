//! `POST /v1/completions`

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use sedge_engine::{Event, Finish, Logprob, TokenEvent};
use sedge_formats::tokenizer::Tokenizer;

use crate::answers::{Answers, Call, must_queue};
use crate::app::{App, aside};
use crate::asker::Asker;
use crate::chat::FINGERPRINT;
use crate::error::{ApiError, Origin};
use crate::openai::completions::{CompletionRequest, Prompt};
use crate::openai::response::{Envelope, Reply, TextChoice, TextLogprobs, Usage};
use crate::server::ServedModel;
use crate::{body, ids, prompt, sse};

/// The handler.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let asker = Asker::of(&request);
    let mut fields = body::json(&app, request).await?;
    let (model, served) = app.requested_model(&mut fields)?;
    served.must_generate()?;
    let request = CompletionRequest::read(fields, &served.defaults)?;
    let (stream, include_usage) = (request.options.stream, request.options.include_usage);
    let completion =
        aside(move || Completion::start(app, (model, served), &request, &asker)).await?;
    if stream {
        let stream = CompletionStream {
            completion,
            include_usage,
            ready: VecDeque::new(),
            ended: false,
        }
        .opened();
        Ok(sse::respond(unfold(stream, |mut stream| async move {
            stream.next().await.map(|text| (text, stream))
        })))
    } else {
        completion.whole().await
    }
}

/// The running answers: those to the first prompt, then those to the second, ….
struct Completion {
    answers: Answers,
    choices: Vec<Choice>,
    /// Answers to each prompt.
    n: usize,
    tokenizer: Arc<Tokenizer>,
    envelope: Envelope,
    usage: Usage,
}

/// The state of one answer.
struct Choice {
    /// The prompt's text, which the answer begins with.
    echo: Option<String>,
    /// The prompt's tokens, while their log-probabilities are still to come.
    scored: Option<Vec<u32>>,
    logprobs: bool,
    /// Characters so far.
    offset: usize,
}

/// What an event adds to an answer.
#[derive(Debug, Default)]
struct Part {
    text: String,
    logprobs: Option<TextLogprobs>,
}

impl Completion {
    fn start(
        app: Arc<App>,
        (model, served): (usize, ServedModel),
        request: &CompletionRequest,
        asker: &Asker,
    ) -> Result<Completion, ApiError> {
        let served = &served;
        let tokenizer = served.tokenizer.clone();
        let n = request.options.n;
        let field = if n > 1 { "n" } else { "prompt" };
        must_queue(served, request.prompts.len() * n, field)?;
        let scored = request.echo && request.logprobs.is_some();
        let format = request.format.as_ref();
        let origin = Origin {
            prompt: "prompt",
            constraint: format.map_or("", |format| format.field),
        };
        let (mut requests, mut choices) = (Vec::new(), Vec::new());
        for text in &request.prompts {
            let ids = prompt::of_text(&tokenizer, text);
            prompt::must_fit(served, &ids, Some(request.max_tokens), "prompt")?;
            let echo = request.echo.then(|| match text {
                Prompt::Text(text) => text.clone(),
                Prompt::Ids(ids) => tokenizer.decode(ids),
            });
            for choice in 0..n {
                choices.push(Choice {
                    echo: echo.clone(),
                    scored: scored.then(|| ids.clone()),
                    logprobs: request.logprobs.is_some(),
                    offset: 0,
                });
                requests.push(sedge_engine::Request {
                    max_tokens: Some(request.max_tokens),
                    logprobs: request.logprobs,
                    prompt_logprobs: scored,
                    constraint: format.map(|format| format.constraint.clone()),
                    ..request.options.request(ids.clone(), choice)
                });
            }
        }
        let envelope = Envelope {
            id: ids::unique("cmpl-"),
            object: "text_completion",
            created: ids::now(),
            model: served.name.clone(),
            system_fingerprint: FINGERPRINT,
        };
        let call = Call {
            operation: "text_completion",
            id: &envelope.id,
            n,
        };
        let answers = Answers::submit(app, (model, served), call, requests, asker, origin)?;
        Ok(Completion {
            answers,
            choices,
            n,
            tokenizer,
            envelope,
            usage: Usage::default(),
        })
    }

    /// Waits for all answers.
    async fn whole(mut self) -> Result<Response, ApiError> {
        let mut parts: Vec<Part> = self.choices.iter_mut().map(Choice::open).collect();
        let mut reasons = vec![None; parts.len()];
        while let Some((index, event)) = self.answers.next().await {
            let part = match event {
                Event::Prompt(scores) => self.choices[index].prompt(&self.tokenizer, &scores),
                Event::Token(token) => self.choices[index].token(&self.tokenizer, token),
                Event::Finished(finish) => {
                    let (part, reason) = self.finish(index, finish)?;
                    reasons[index] = Some(reason);
                    part
                }
                Event::Embedding(_) => Part::default(),
            };
            parts[index].extend(part);
        }
        let choices =
            parts
                .into_iter()
                .zip(reasons)
                .enumerate()
                .map(|(index, (part, finish_reason))| TextChoice {
                    index,
                    text: part.text,
                    logprobs: part.logprobs,
                    finish_reason,
                });
        let choices = choices.collect();
        Ok(Json(Reply {
            envelope: &self.envelope,
            choices,
            usage: Some(Some(self.usage)),
        })
        .into_response())
    }

    /// The end of an answer: what was held back, and why it ended.
    fn finish(&mut self, index: usize, finish: Finish) -> Result<(Part, &'static str), ApiError> {
        self.usage.add(finish.usage, index.is_multiple_of(self.n));
        let reason = self.answers.reason(finish.reason)?;
        Ok((
            Part {
                text: finish.text,
                logprobs: None,
            },
            reason,
        ))
    }
}

impl Choice {
    /// What the answer begins with before the model has done anything. An echo with
    /// log-probabilities waits for them.
    fn open(&mut self) -> Part {
        let text = if self.scored.is_some() {
            None
        } else {
            self.echo.take()
        };
        Part {
            text: text.unwrap_or_default(),
            logprobs: self.logprobs.then(TextLogprobs::default),
        }
    }

    fn prompt(&mut self, tokenizer: &Tokenizer, scores: &[Logprob]) -> Part {
        let mut logprobs = TextLogprobs::default();
        if let Some(first) = self.scored.take().and_then(|ids| ids.first().copied()) {
            logprobs.push_first(tokenizer, first, &mut self.offset);
        }
        for score in scores {
            logprobs.push(tokenizer, score, &mut self.offset);
        }
        Part {
            text: self.echo.take().unwrap_or_default(),
            logprobs: Some(logprobs),
        }
    }

    fn token(&mut self, tokenizer: &Tokenizer, token: TokenEvent) -> Part {
        let logprobs = token.logprob.filter(|_| self.logprobs).map(|logprob| {
            let mut logprobs = TextLogprobs::default();
            logprobs.push(tokenizer, &logprob, &mut self.offset);
            logprobs
        });
        Part {
            text: token.text,
            logprobs,
        }
    }
}

impl Part {
    fn is_empty(&self) -> bool {
        self.text.is_empty()
            && self
                .logprobs
                .as_ref()
                .is_none_or(|logprobs| logprobs.tokens.is_empty())
    }

    fn extend(&mut self, more: Part) {
        self.text.push_str(&more.text);
        if let Some(logprobs) = more.logprobs {
            self.logprobs.get_or_insert_default().extend(logprobs);
        }
    }
}

/// Completions as events.
struct CompletionStream {
    completion: Completion,
    include_usage: bool,
    ready: VecDeque<String>,
    ended: bool,
}

impl CompletionStream {
    fn opened(mut self) -> CompletionStream {
        for index in 0..self.completion.choices.len() {
            let part = self.completion.choices[index].open();
            self.send_part(index, part);
        }
        self
    }

    /// The next event's text.
    async fn next(&mut self) -> Option<String> {
        while self.ready.is_empty() && !self.ended {
            let Some((index, event)) = self.completion.answers.next().await else {
                self.end();
                break;
            };
            let choice = &mut self.completion.choices[index];
            match event {
                Event::Prompt(scores) => {
                    let part = choice.prompt(&self.completion.tokenizer, &scores);
                    self.send_part(index, part);
                }
                Event::Token(token) => {
                    let part = choice.token(&self.completion.tokenizer, token);
                    self.send_part(index, part);
                }
                Event::Finished(finish) => match self.completion.finish(index, finish) {
                    Ok((part, reason)) => self.send(index, part, Some(reason)),
                    Err(error) => {
                        self.ready.push_back(error.json().to_string());
                        self.ended = true;
                    }
                },
                Event::Embedding(_) => {}
            }
        }
        self.ready.pop_front()
    }

    fn end(&mut self) {
        if self.include_usage {
            let usage = Some(Some(self.completion.usage));
            let envelope = &self.completion.envelope;
            self.ready.push_back(sse::text(&Reply {
                envelope,
                choices: Vec::<TextChoice>::new(),
                usage,
            }));
        }
        self.ready.push_back(sse::DONE.to_string());
        self.ended = true;
    }

    fn send_part(&mut self, index: usize, part: Part) {
        if !part.is_empty() {
            self.send(index, part, None);
        }
    }

    fn send(&mut self, index: usize, part: Part, finish_reason: Option<&'static str>) {
        let choices = vec![TextChoice {
            index,
            text: part.text,
            logprobs: part.logprobs,
            finish_reason,
        }];
        let usage = self.include_usage.then_some(None);
        self.ready.push_back(sse::text(&Reply {
            envelope: &self.completion.envelope,
            choices,
            usage,
        }));
    }
}
