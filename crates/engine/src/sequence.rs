//! One request on its way: its tokens, its pages, and what becomes of a step's outputs.
//! Whatever happens to it, it sends `Finished` at most once, and last.

use std::sync::Arc;
use std::time::Duration;

use sedge_formats::tokenizer::{TextStream, Tokenizer};
use sedge_kernels::PAGE_TOKENS;
use sedge_models::config::Pooling;
use sedge_models::{Adapter, Merged, Outputs, Variant};
use tokio::sync::mpsc::UnboundedSender;

use crate::adapters::{Entry, Way};
use crate::cache::{Found, Lease, Text};
use crate::constraint::Grammar;
use crate::logprob::logprob;
use crate::plan::{Level, Task};
use crate::sample::Sampler;
use crate::stop::StopTexts;
use crate::{Event, Finish, FinishReason, Logprob, RequestView, Shape, Timings, TokenEvent, Usage};

/// A request that was taken.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// The prompt, then what was generated.
    pub(crate) tokens: Vec<u32>,
    /// How many of them are the prompt.
    pub(crate) prompt: usize,
    /// How many are computed: their keys and values lie in the pages.
    pub(crate) computed: usize,
    pub(crate) lease: Lease,
    /// Its tenant's number in the loop's accounts.
    pub(crate) account: Option<usize>,
    /// Tokens of the prompt that did not have to be computed when it first ran.
    cached: Option<usize>,
    pub(crate) running: bool,
    /// Nothing was computed since it was admitted.
    fresh: bool,
    /// Tokens that were computed before it gave its pages up.
    had: usize,
    /// Seconds of service until it has got on by what its admission cost.
    owed: f64,
    pub(crate) ended: bool,
    /// Number by arrival.
    pub(crate) number: u64,
    pub(crate) asked: Asked,
    which: Which,
    /// Its adapter, from when it is in memory.
    adapter: Option<Arc<Adapter>>,
    work: Work,
    events: UnboundedSender<Event>,
    submitted: Duration,
    first_run: Option<Duration>,
    first_output: Option<Duration>,
}

/// Who asks, and how urgently.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) tenant: Arc<str>,
    /// Lower is sooner.
    pub(crate) priority: i32,
    /// From submission.
    pub(crate) deadline: Option<Duration>,
}

/// Which weights compute it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Which {
    member: usize,
    /// What changes them, unless it is in them.
    adapter: Option<Arc<Entry>>,
    /// Its name.
    name: Option<Arc<str>>,
    /// What its keys and values depend on besides its tokens; empty for the first member alone.
    pub(crate) salt: Vec<u8>,
    /// Keeps the weights that an adapter is in.
    _merged: Option<Arc<Merged>>,
}

impl Which {
    pub(crate) fn new(member: usize, way: Option<Way>) -> Which {
        let mut which = Which {
            member,
            ..Which::default()
        };
        match way {
            None if member == 0 => {}
            None => which.salt.extend((member as u64).to_le_bytes()),
            Some(Way::Beside(entry)) => {
                which.member = entry.member;
                which.salt_with(&entry, b"beside");
                which.adapter = Some(entry);
            }
            Some(Way::Merged(entry, merged)) => {
                which.member = merged.member;
                which.salt_with(&entry, b"merged");
                which._merged = Some(merged);
            }
        }
        which
    }

    fn salt_with(&mut self, entry: &Entry, way: &[u8]) {
        self.name = Some(entry.name.clone());
        self.salt.extend((entry.member as u64).to_le_bytes());
        self.salt.extend(entry.identity);
        self.salt.extend(way);
    }

    /// Positions before every prompt.
    pub(crate) fn before(&self) -> usize {
        self.adapter.as_ref().map_or(0, |entry| entry.positions)
    }
}

/// What the steps make.
#[derive(Debug)]
pub(crate) enum Work {
    Answer(Box<Answer>),
    Embedding(Mean),
}

/// A text that grows by a token at a time.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Most tokens.
    pub(crate) limit: usize,
    /// Tokens that end it.
    pub(crate) ends: Vec<u32>,
    pub(crate) sampler: Sampler,
    pub(crate) grammar: Option<Grammar>,
    pub(crate) stream: Option<TextStream>,
    pub(crate) stop: StopTexts,
    /// The next token, from when it is chosen to when it is sent.
    pub(crate) chosen: Option<Choice>,
    /// Alternatives to report with each token.
    pub(crate) logprobs: Option<usize>,
    /// Log-probabilities of the prompt's tokens from the second on, until they are sent.
    pub(crate) scored: Option<Vec<Logprob>>,
}

/// A token and its log-probability, or why there is none.
pub(crate) type Choice = Result<(u32, Option<Logprob>), String>;

/// A mean of hidden states that are added one at a time: of all, of the first or of the last.
#[derive(Debug, Default)]
pub(crate) struct Mean {
    sum: Vec<f64>,
    rows: usize,
    pooling: Pooling,
}

/// What a sequence needs to take a step's outputs.
pub(crate) struct Tools<'a> {
    pub(crate) tokenizer: Option<&'a Tokenizer>,
    pub(crate) shape: Shape,
    pub(crate) outputs: &'a mut Outputs,
    pub(crate) now: Duration,
}

impl Sequence {
    /// A request's sequence; `prompt` begins with what its adapter puts before every prompt.
    pub(crate) fn new(
        prompt: Vec<u32>,
        work: Work,
        asked: Asked,
        which: Which,
        events: UnboundedSender<Event>,
        submitted: Duration,
    ) -> Sequence {
        Sequence {
            asked,
            which,
            adapter: None,
            number: 0,
            prompt: prompt.len(),
            tokens: prompt,
            computed: 0,
            lease: Lease::default(),
            account: None,
            cached: None,
            running: false,
            fresh: false,
            had: 0,
            owed: 0.0,
            ended: false,
            work,
            events,
            submitted,
            first_run: None,
            first_output: None,
        }
    }

    /// What those who watch see of it.
    pub(crate) fn view(&self, now: Duration) -> RequestView {
        RequestView {
            number: self.number,
            tenant: self.asked.tenant.clone(),
            priority: self.asked.priority,
            age: now.saturating_sub(self.submitted),
            running: self.running,
            prompt: self.prompt - self.which.before(),
            computed: self.computed.saturating_sub(self.which.before()),
            generated: self.generated(),
            member: self.which.member,
            adapter: self.which.name.clone(),
        }
    }

    /// The adapter that it asks for and does not hold.
    pub(crate) fn lacks(&self) -> Option<&Arc<Entry>> {
        self.which
            .adapter
            .as_ref()
            .filter(|_| self.adapter.is_none())
    }

    /// Its adapter is there.
    pub(crate) fn hold(&mut self, adapter: Arc<Adapter>) {
        self.adapter = Some(adapter);
    }

    /// The adapter that it held and gives back.
    pub(crate) fn let_go(&mut self) -> Option<Arc<Entry>> {
        self.adapter.take()?;
        self.which.adapter.clone()
    }

    /// What computes its tokens.
    pub(crate) fn variant(&self) -> Variant {
        Variant {
            member: self.which.member,
            adapter: self.adapter.clone(),
        }
    }

    /// Nobody listens any more.
    pub(crate) fn cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// Tokens generated.
    pub(crate) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// Pages for all tokens that are known.
    pub(crate) fn wanted_pages(&self, shape: &Shape) -> usize {
        if shape.bidirectional {
            0
        } else {
            self.tokens.len().div_ceil(PAGE_TOKENS)
        }
    }

    /// Whether its deadline has passed.
    pub(crate) fn is_late(&self, now: Duration) -> bool {
        let age = now.saturating_sub(self.submitted);
        self.asked.deadline.is_some_and(|deadline| age > deadline)
    }

    /// What its pages hold.
    pub(crate) fn text(&self) -> Text<'_> {
        Text {
            tokens: &self.tokens,
            prompt: self.prompt,
            tenant: &self.asked.tenant,
            salt: &self.which.salt,
            // The outputs of all tokens are needed for an embedding or a prompt's scores.
            reuses: matches!(&self.work, Work::Answer(a) if a.scored.is_none()),
        }
    }

    /// The task of a running sequence, of which `held` pages are its own.
    pub(crate) fn task(&self, shape: &Shape, ready: bool, held: usize, level: Level) -> Task {
        Task {
            running: true,
            ready,
            fresh: self.fresh || self.owed > 0.0,
            left: self.tokens.len() - self.computed,
            held,
            missing: self.wanted_pages(shape).saturating_sub(self.lease.len()),
            ..self.waiting_task(shape, Found::default(), level)
        }
    }

    /// The task of a sequence that waits.
    pub(crate) fn waiting_task(&self, shape: &Shape, found: Found, level: Level) -> Task {
        Task {
            running: false,
            ready: true,
            fresh: false,
            left: self.tokens.len() - found.tokens,
            held: 0,
            missing: self.wanted_pages(shape) - found.in_use,
            whole: shape.bidirectional,
            scored: matches!(&self.work, Work::Answer(a) if a.scored.is_some()),
            level,
        }
    }

    /// It runs from now on; so many of its tokens are there already. `price` is the seconds of a
    /// token that is computed again.
    pub(crate) fn admitted(&mut self, computed: usize, price: f64) {
        // What is computed again takes its time, and then it shall get on for as long.
        self.owed = 2.0 * price * self.had.saturating_sub(computed) as f64;
        self.running = true;
        self.fresh = true;
        self.computed = computed;
        self.cached.get_or_insert(computed.min(self.prompt));
    }

    /// The step after this call runs a part of it.
    pub(crate) fn started(&mut self, now: Duration) {
        self.first_run.get_or_insert(now);
    }

    /// It got service.
    pub(crate) fn served(&mut self, seconds: f64) {
        self.owed -= seconds;
    }

    /// Forgets what is computed; it will be computed again.
    pub(crate) fn preempted(&mut self) {
        self.running = false;
        self.had = self.computed;
        self.computed = 0;
    }

    /// Whether the logits of a position are wanted.
    pub(crate) fn wants_logits(&self, position: usize) -> bool {
        let Work::Answer(answer) = &self.work else {
            return false;
        };
        if position + 1 == self.tokens.len() {
            return answer.limit > 0;
        }
        let before = self.which.before();
        answer
            .scored
            .as_ref()
            .is_some_and(|s| position + 1 < self.prompt && position >= before + s.len())
    }

    /// Whether the hidden state of a position is wanted.
    pub(crate) fn wants_hidden(&self, position: usize) -> bool {
        let Work::Embedding(mean) = &self.work else {
            return false;
        };
        let before = self.which.before();
        position >= before && mean.wants(position - before, self.tokens.len() - before)
    }

    /// Whether a token is to be chosen once its next `tokens` are computed.
    pub(crate) fn chooses_after(&self, tokens: usize) -> bool {
        let last = self.computed + tokens == self.tokens.len();
        last && !self.ended && matches!(&self.work, Work::Answer(answer) if answer.limit > 0)
    }

    /// Chooses the next token from its logits, for [`take`](Sequence::take) to send.
    pub(crate) fn choose(&mut self, logits: &mut [f32]) {
        if let Work::Answer(answer) = &mut self.work {
            answer.chosen = Some(answer.choose(logits));
        }
    }

    /// Takes the outputs of its next `tokens`: rows from `logits` and `hidden` on, those that
    /// `wants_logits` and `wants_hidden` named. Sends what they make; may end.
    pub(crate) fn take(
        &mut self,
        tokens: usize,
        mut logits: usize,
        mut hidden: usize,
        tools: &mut Tools<'_>,
    ) {
        let from = self.computed;
        self.computed += tokens;
        self.fresh = false;
        let last = self.computed == self.tokens.len();
        for position in from..self.computed {
            if self.wants_hidden(position) {
                let width = tools.shape.hidden;
                if let Work::Embedding(mean) = &mut self.work {
                    mean.add(&tools.outputs.hidden[hidden * width..][..width]);
                }
                hidden += 1;
            }
            if position + 1 < self.tokens.len() && self.wants_logits(position) {
                self.score(position, logits, tools);
                logits += 1;
            }
        }
        if !last || self.ended {
            return;
        }
        match &mut self.work {
            Work::Embedding(mean) => {
                let event = Event::Embedding(mean.value());
                self.first_output = Some(tools.now);
                self.send(event);
                self.finish(FinishReason::Stop, tools.tokenizer, tools.now);
            }
            Work::Answer(answer) => {
                let (limit, scored) = (answer.limit, answer.scored.take());
                if let Some(scored) = scored {
                    self.send(Event::Prompt(scored));
                }
                match limit {
                    0 => self.finish(FinishReason::Length, tools.tokenizer, tools.now),
                    _ => self.next_token(logits, tools),
                }
            }
        }
    }

    /// Notes the log-probability of the prompt's token after `position`.
    fn score(&mut self, position: usize, row: usize, tools: &mut Tools<'_>) {
        let Work::Answer(answer) = &mut self.work else {
            return;
        };
        if self.ended {
            return;
        }
        let logits = &tools.outputs.logits[row * tools.shape.vocab..][..tools.shape.vocab];
        match logprob(
            logits,
            self.tokens[position + 1],
            answer.logprobs.unwrap_or(0),
        ) {
            Ok(found) => answer.scored.get_or_insert_default().push(found),
            Err(bad) => self.finish(
                FinishReason::Error(bad.to_string()),
                tools.tokenizer,
                tools.now,
            ),
        }
    }

    /// Chooses the next token from a row of logits and sends it.
    fn next_token(&mut self, row: usize, tools: &mut Tools<'_>) {
        let Work::Answer(answer) = &mut self.work else {
            return;
        };
        let logits = &mut tools.outputs.logits[row * tools.shape.vocab..][..tools.shape.vocab];
        let chosen = answer.chosen.take();
        let event = match chosen.unwrap_or_else(|| answer.choose(logits)) {
            Ok((token, logprob)) => {
                self.tokens.push(token);
                self.first_output.get_or_insert(tools.now);
                if answer.ends.contains(&token) {
                    return self.finish(FinishReason::Stop, tools.tokenizer, tools.now);
                }
                answer.write(token, logprob, tools.tokenizer)
            }
            Err(why) => Err(why),
        };
        match event {
            Ok((event, stopped)) => {
                let full = answer.limit == self.tokens.len() - self.prompt;
                self.send(Event::Token(event));
                if stopped {
                    self.finish(FinishReason::Stop, tools.tokenizer, tools.now);
                } else if full {
                    self.finish(FinishReason::Length, tools.tokenizer, tools.now);
                }
            }
            Err(why) => self.finish(FinishReason::Error(why), tools.tokenizer, tools.now),
        }
    }

    /// Ends it. Its pages are not yet given back.
    pub(crate) fn finish(
        &mut self,
        reason: FinishReason,
        tokenizer: Option<&Tokenizer>,
        now: Duration,
    ) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let text = match &mut self.work {
            Work::Answer(answer) => answer.close(tokenizer),
            Work::Embedding(_) => String::new(),
        };
        let since = |at: Option<Duration>| at.unwrap_or(now).saturating_sub(self.submitted);
        let finish = Finish {
            reason,
            text,
            usage: Usage {
                prompt: self.prompt - self.which.before(),
                completion: self.generated(),
                cached: self.cached.unwrap_or(0).saturating_sub(self.which.before()),
            },
            timings: Timings {
                queued: since(self.first_run),
                first_token: since(self.first_output),
                total: since(Some(now)),
            },
        };
        self.send(Event::Finished(finish));
    }

    /// A receiver that went away is noticed before the next step.
    fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }
}

impl Answer {
    /// Chooses a token; reports its log-probability before any rule changed it.
    fn choose(&mut self, logits: &mut [f32]) -> Choice {
        let raw = self.logprobs.map(|_| logits.to_vec());
        if let Some(grammar) = &mut self.grammar {
            grammar.mask(logits)?;
        }
        let token = self.sampler.choose(logits).map_err(|e| e.to_string())?;
        let logprob = match raw {
            Some(raw) => {
                Some(logprob(&raw, token, self.logprobs.unwrap_or(0)).map_err(|e| e.to_string())?)
            }
            None => None,
        };
        Ok((token, logprob))
    }

    /// Adds a token to the text; whether a stop text or the grammar ends it here.
    fn write(
        &mut self,
        id: u32,
        logprob: Option<Logprob>,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<(TokenEvent, bool), String> {
        let text = match (&mut self.stream, tokenizer) {
            (Some(stream), Some(tokenizer)) => stream.push(tokenizer, id),
            _ => String::new(),
        };
        let (text, mut stopped) = match tokenizer.is_some_and(|t| t.is_special(id)) {
            // A control token has no text, but a place: what is held back came before it.
            true => (self.stop.finish(), false),
            false => self.stop.push(text),
        };
        if stopped {
            self.stream = None; // what may be left of a character comes after the stop text
        } else if let Some(grammar) = &mut self.grammar {
            grammar.advance(id)?;
            stopped = grammar.complete();
        }
        Ok((TokenEvent { id, text, logprob }, stopped))
    }

    /// What was held back.
    fn close(&mut self, tokenizer: Option<&Tokenizer>) -> String {
        let rest = match (&mut self.stream, tokenizer) {
            (Some(stream), Some(_)) => stream.finish(),
            _ => String::new(),
        };
        let (mut text, stopped) = self.stop.push(rest);
        if !stopped {
            text.push_str(&self.stop.finish());
        }
        text
    }
}

impl Mean {
    pub(crate) fn new(pooling: Pooling) -> Mean {
        Mean {
            pooling,
            ..Mean::default()
        }
    }

    /// Whether a position's state is part of it and not yet added.
    fn wants(&self, position: usize, tokens: usize) -> bool {
        match self.pooling {
            Pooling::Mean => position >= self.rows,
            Pooling::First => position == 0 && self.rows == 0,
            Pooling::Last => position + 1 == tokens,
        }
    }

    fn add(&mut self, row: &[f32]) {
        self.sum.resize(row.len(), 0.0);
        self.sum
            .iter_mut()
            .zip(row)
            .for_each(|(sum, &x)| *sum += f64::from(x));
        self.rows += 1;
    }

    fn value(&self) -> Vec<f32> {
        self.sum
            .iter()
            .map(|&sum| (sum / self.rows as f64) as f32)
            .collect()
    }
}
