//! `POST /v1/chat/completions`

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use sedge_engine::{Event, Finish, TokenEvent};
use sedge_formats::tokenizer::Tokenizer;

use crate::answers::{Answers, Call, must_queue};
use crate::app::{App, aside};
use crate::asker::Asker;
use crate::error::{ApiError, Origin};
use crate::openai::chat::ChatRequest;
use crate::openai::response::{
    CalledFunction, ChatChoice, ChatChunkChoice, ChatDelta, ChatLogprobs, ChatMessage, Envelope,
    Reply, ToolCall, Usage,
};
use crate::openai::tools::{Tool, ToolChoice};
use crate::server::ServedModel;
use crate::tools::force;
use crate::tools::parse::{CONTROL_TOKENS, Piece, ToolStream};
use crate::{body, ids, logprobs, prompt, sse};

/// What answers say of the software that made them.
pub(crate) const FINGERPRINT: &str = concat!("sedge-", env!("CARGO_PKG_VERSION"));

/// The handler.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let asker = Asker::of(&request);
    let mut fields = body::json(&app, request).await?;
    let (model, served) = app.requested_model(&mut fields)?;
    served.must_generate()?;
    let request = ChatRequest::read(fields, &served.defaults)?;
    let (stream, include_usage) = (request.options.stream, request.options.include_usage);
    let chat = aside(move || Chat::start(app, (model, served), request, &asker)).await?;
    if stream {
        let stream = ChatStream::new(chat, include_usage);
        Ok(sse::respond(unfold(stream, |mut stream| async move {
            stream.next().await.map(|text| (text, stream))
        })))
    } else {
        chat.whole().await
    }
}

/// A chat's running answers.
struct Chat {
    answers: Answers,
    choices: Vec<Choice>,
    tokenizer: Arc<Tokenizer>,
    envelope: Envelope,
    usage: Usage,
}

impl Chat {
    fn start(
        app: Arc<App>,
        (model, served): (usize, ServedModel),
        mut request: ChatRequest,
        asker: &Asker,
    ) -> Result<Chat, ApiError> {
        let served = &served;
        let n = request.options.n;
        must_queue(served, n, "n")?;
        let prompt = prompt::of_chat(served, &request)?;
        prompt::must_fit(served, &prompt, request.max_tokens, "messages")?;
        let format = request.format.take();
        let format = force::constraint(format, &request.tools, &request.tool_choice);
        let origin = Origin {
            prompt: "messages",
            constraint: format.as_ref().map_or("", |format| format.field),
        };
        let requests = (0..n).map(|choice| sedge_engine::Request {
            max_tokens: request.max_tokens,
            logprobs: request.logprobs,
            constraint: format.as_ref().map(|format| format.constraint.clone()),
            ..request.options.request(prompt.clone(), choice)
        });
        let requests = requests.collect();
        let envelope = Envelope {
            id: ids::unique("chatcmpl-"),
            object: if request.options.stream {
                "chat.completion.chunk"
            } else {
                "chat.completion"
            },
            created: ids::now(),
            model: served.name.clone(),
            system_fingerprint: FINGERPRINT,
        };
        let tokenizer = served.tokenizer.clone();
        let call = Call {
            operation: "chat",
            id: &envelope.id,
            n,
        };
        let answers = Answers::submit(app, (model, served), call, requests, asker, origin)?;
        let tools: Arc<[Tool]> = std::mem::take(&mut request.tools).into();
        let choices = (0..n).map(|_| Choice::new(&request, &tools)).collect();
        Ok(Chat {
            answers,
            choices,
            tokenizer,
            envelope,
            usage: Usage::default(),
        })
    }

    /// Waits for all answers.
    async fn whole(mut self) -> Result<Response, ApiError> {
        let mut parts: Vec<Part> = self.choices.iter().map(|_| Part::default()).collect();
        let mut reasons = vec!["stop"; parts.len()];
        while let Some((index, event)) = self.answers.next().await {
            match event {
                Event::Token(token) => {
                    parts[index].extend(self.choices[index].token(&self.tokenizer, &token))
                }
                Event::Finished(finish) => {
                    let (part, reason) = self.finish(index, finish)?;
                    parts[index].extend(part);
                    reasons[index] = reason;
                }
                Event::Prompt(_) | Event::Embedding(_) => {}
            }
        }
        let choices =
            parts
                .into_iter()
                .zip(reasons)
                .enumerate()
                .map(|(index, (part, finish_reason))| ChatChoice {
                    index,
                    logprobs: part.logprobs,
                    finish_reason,
                    message: ChatMessage {
                        role: "assistant",
                        content: (!part.text.is_empty() || part.calls.is_empty())
                            .then_some(part.text),
                        refusal: None,
                        tool_calls: part
                            .calls
                            .into_iter()
                            .map(|call| ToolCall {
                                index: None,
                                ..call
                            })
                            .collect(),
                    },
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
        self.usage.add(finish.usage, index == 0);
        let reason = self.answers.reason(finish.reason)?;
        let choice = &mut self.choices[index];
        let part = choice.finish(&finish.text);
        let called = reason == "stop" && choice.calls > 0;
        Ok((part, if called { "tool_calls" } else { reason }))
    }
}

/// The state of one answer.
struct Choice {
    stream: ToolStream,
    /// Calls so far, and how many there may be.
    calls: usize,
    most_calls: usize,
    logprobs: bool,
}

/// What an event adds to an answer.
#[derive(Debug, Default)]
struct Part {
    text: String,
    calls: Vec<ToolCall>,
    logprobs: Option<ChatLogprobs>,
}

impl Choice {
    fn new(request: &ChatRequest, tools: &Arc<[Tool]>) -> Choice {
        let stream = match request.tool_choice {
            ToolChoice::None => ToolStream::text(),
            _ => ToolStream::auto(tools.clone()),
        };
        let most_calls = if request.parallel_tool_calls {
            usize::MAX
        } else {
            1
        };
        Choice {
            stream,
            calls: 0,
            most_calls,
            logprobs: request.logprobs.is_some(),
        }
    }

    fn token(&mut self, tokenizer: &Tokenizer, token: &TokenEvent) -> Part {
        let mut pieces = self.stream.push(&token.text);
        if self.stream.looks_for_calls()
            && tokenizer.is_special(token.id)
            && let Some(mark) = tokenizer
                .token(token.id)
                .filter(|text| CONTROL_TOKENS.contains(text))
        {
            pieces.extend(self.stream.push(mark));
        }
        let mut part = self.part(pieces);
        if let (true, Some(logprob)) = (self.logprobs, &token.logprob) {
            part.logprobs = Some(ChatLogprobs {
                content: vec![logprobs::of_chat(tokenizer, logprob)],
                refusal: None,
            });
        }
        part
    }

    fn finish(&mut self, rest: &str) -> Part {
        let mut pieces = self.stream.push(rest);
        pieces.extend(self.stream.finish());
        self.part(pieces)
    }

    fn part(&mut self, pieces: Vec<Piece>) -> Part {
        let mut part = Part::default();
        for piece in pieces {
            match piece {
                Piece::Text(text) => part.text.push_str(&text),
                Piece::Call { name, arguments } if self.calls < self.most_calls => {
                    part.calls.push(ToolCall {
                        index: Some(self.calls),
                        id: ids::call(),
                        kind: "function",
                        function: CalledFunction { name, arguments },
                    });
                    self.calls += 1;
                }
                // One more than the request allows.
                Piece::Call { .. } => {}
            }
        }
        part
    }
}

impl Part {
    fn extend(&mut self, more: Part) {
        self.text.push_str(&more.text);
        self.calls.extend(more.calls);
        if let Some(logprobs) = more.logprobs {
            self.logprobs.get_or_insert_default().extend(logprobs);
        }
    }
}

/// A chat as events.
struct ChatStream {
    chat: Chat,
    include_usage: bool,
    ready: VecDeque<String>,
    ended: bool,
}

impl ChatStream {
    /// Every answer opens with its role.
    fn new(chat: Chat, include_usage: bool) -> ChatStream {
        let mut stream = ChatStream {
            chat,
            include_usage,
            ready: VecDeque::new(),
            ended: false,
        };
        for index in 0..stream.chat.choices.len() {
            let delta = ChatDelta {
                role: Some("assistant"),
                content: Some(String::new()),
                ..ChatDelta::default()
            };
            stream.send(index, delta, None, None);
        }
        stream
    }

    /// The next event's text.
    async fn next(&mut self) -> Option<String> {
        while self.ready.is_empty() && !self.ended {
            match self.chat.answers.next().await {
                Some((index, Event::Token(token))) => {
                    let part = self.chat.choices[index].token(&self.chat.tokenizer, &token);
                    self.send_part(index, part);
                }
                Some((index, Event::Finished(finish))) => match self.chat.finish(index, finish) {
                    Ok((part, reason)) => {
                        self.send_part(index, part);
                        self.send(index, ChatDelta::default(), None, Some(reason));
                    }
                    Err(error) => {
                        self.ready.push_back(error.json().to_string());
                        self.ended = true;
                    }
                },
                Some((_, Event::Prompt(_) | Event::Embedding(_))) => {}
                None => {
                    if self.include_usage {
                        let usage = Some(Some(self.chat.usage));
                        let envelope = &self.chat.envelope;
                        let choices = Vec::<ChatChunkChoice>::new();
                        self.ready.push_back(sse::text(&Reply {
                            envelope,
                            choices,
                            usage,
                        }));
                    }
                    self.ready.push_back(sse::DONE.to_string());
                    self.ended = true;
                }
            }
        }
        self.ready.pop_front()
    }

    fn send_part(&mut self, index: usize, part: Part) {
        if part.text.is_empty() && part.calls.is_empty() && part.logprobs.is_none() {
            return;
        }
        let content = (part.calls.is_empty() || !part.text.is_empty()).then_some(part.text);
        let delta = ChatDelta {
            role: None,
            content,
            tool_calls: part.calls,
        };
        self.send(index, delta, part.logprobs, None);
    }

    fn send(
        &mut self,
        index: usize,
        delta: ChatDelta,
        logprobs: Option<ChatLogprobs>,
        finish_reason: Option<&'static str>,
    ) {
        let choices = vec![ChatChunkChoice {
            index,
            delta,
            logprobs,
            finish_reason,
        }];
        let usage = self.include_usage.then_some(None);
        self.ready.push_back(sse::text(&Reply {
            envelope: &self.chat.envelope,
            choices,
            usage,
        }));
    }
}
