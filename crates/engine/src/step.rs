//! The step loop: plan → move → forward → sample → emit, on a thread of its own.
//! After every step the pages of those that ended are free and their callers know.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sedge_clock::{Clock, Costs, Load};
use sedge_formats::tokenizer::Tokenizer;
use sedge_kernels::Segment;
use sedge_models::{Batch, Outputs};

use crate::adapters::{Adapters, Wish};
use crate::budget::Budget;
use crate::cache::{Cache, Found};
use crate::fair::{Fair, Turn, Whole};
use crate::plan::{Limits, State, Step};
use crate::sequence::{Sequence, Tools};
use crate::shared::{Closing, Shared};
use crate::sim::load;
use crate::{
    EngineConfig, EngineStats, Executor, FinishReason, Policy, Shape, StepRecord, TierPages,
};

/// Logits that the prompts of one step may ask for: 64 MiB of them.
const SCORED_LOGITS: usize = 16 << 20;
/// Of those that wait, so many next ones are looked up in the cache before a step.
const LOOKED_UP: usize = 4;
/// Seconds of a token of a prompt and of an answer where nothing is measured: only their ratio
/// matters.
const PRICES: [f64; 2] = [1e-3, 4e-3];

/// Everything that a step reads and changes.
pub(crate) struct Loop {
    executor: Box<dyn Executor>,
    shape: Shape,
    tokenizer: Option<Arc<Tokenizer>>,
    limits: Limits,
    policy: Policy,
    budget: Budget,
    costs: Option<Arc<Costs>>,
    /// Seconds of a token of a prompt and of an answer.
    prices: [f64; 2],
    fair: Fair,
    shared: Arc<Shared>,
    clock: Clock,
    cache: Cache,
    /// Requests taken and not ended, in order of arrival.
    sequences: Vec<Sequence>,
    /// Some of them wait for adapters that are being read.
    adapters_coming: bool,
    /// Times that one had been read when they were asked for.
    adapters_read: u64,
    // Reused in every step.
    turns: Vec<Turn>,
    order: Vec<usize>,
    state: State,
    batch: Batch,
    outputs: Outputs,
    spans: Vec<Span>,
}

/// A sequence is gone: its pages, its adapter and its place among its tenant's are free.
fn leave(sequence: &mut Sequence, cache: &mut Cache, fair: &mut Fair, adapters: &Adapters) {
    cache.release(&mut sequence.lease);
    if let Some(entry) = sequence.let_go() {
        adapters.give_back(&entry);
    }
    if let Some(account) = sequence.account.take() {
        fair.leave(account);
    }
}

/// One sequence's part of the batch.
struct Span {
    sequence: usize,
    tokens: usize,
    /// First row of its prompt's tokens, and of those that were generated.
    rows: [usize; 2],
    /// Its rows of logits, and the first of its hidden states.
    logits: Range<usize>,
    hidden: usize,
}

impl Span {
    /// The positions that it computes of the prompt, or of what was generated.
    fn positions(&self, sequence: &Sequence, generated: bool) -> Range<usize> {
        let all = sequence.computed..sequence.computed + self.tokens;
        let border = sequence.prompt.clamp(all.start, all.end);
        match generated {
            true => border..all.end,
            false => all.start..border,
        }
    }
}

impl Loop {
    pub(crate) fn new(
        executor: Box<dyn Executor>,
        tokenizer: Option<Arc<Tokenizer>>,
        config: &EngineConfig,
        shared: Arc<Shared>,
    ) -> Loop {
        let shape = executor.shape();
        let tokens = config.token_budget.max(1);
        let clock = shared.clock.clone();
        let cache = Cache::new(config.cache.clone(), executor.as_ref(), clock.clone());
        shared
            .counters
            .pages
            .store(cache.total(), Ordering::Relaxed);
        if let Some(disk) = &config.cache.disk {
            // The only one to set it.
            let _ = shared.disk.set(disk.clone());
        }
        let prices = config.costs.as_deref().map_or(PRICES, |costs| {
            let time = |generated, prompt| {
                let load = Load {
                    generated,
                    prompt,
                    ..Load::default()
                };
                costs.seconds(&load)
            };
            [time(0, 64) / 64.0, time(8, 0) / 8.0].map(|price| price.max(1e-9))
        });
        Loop {
            executor,
            shape,
            tokenizer,
            policy: config.policy,
            budget: Budget::new(tokens, config.tbt_slo),
            costs: config.costs.clone(),
            prices,
            fair: Fair::new(config.weights.clone(), config.fair_quantum.as_secs_f64()),
            limits: Limits {
                tokens,
                // Every decode fits into a step.
                running: config.max_running.clamp(1, tokens),
                scored: (SCORED_LOGITS / shape.vocab.max(1)).max(16),
                watermark: cache.total() / 100,
            },
            clock,
            shared,
            cache,
            sequences: Vec::new(),
            adapters_coming: false,
            adapters_read: 0,
            turns: Vec::new(),
            order: Vec::new(),
            state: State::default(),
            batch: Batch::default(),
            outputs: Outputs::default(),
            spans: Vec::new(),
        }
    }

    /// Steps until the engine closes; sleeps while there is nothing to do.
    pub(crate) fn run(mut self) {
        loop {
            if self.sequences.is_empty() {
                self.cache.store_rest(self.executor.as_ref());
            }
            match self.shared.meet(&mut self.sequences) {
                Closing::No => self.step(),
                Closing::Now(why) => {
                    self.end_all(why);
                    return self.cache.close(self.executor.as_ref());
                }
            }
        }
    }

    /// Takes what arrived, without waiting, and runs one step.
    pub(crate) fn poll(&mut self) {
        self.shared.exchange(&mut self.sequences);
        self.step();
        self.shared.exchange(&mut self.sequences);
    }

    /// The last steps.
    pub(crate) fn records(&self) -> Vec<StepRecord> {
        self.shared.live.steps(0)
    }

    /// Counters now.
    pub(crate) fn stats(&self) -> EngineStats {
        self.shared.stats()
    }

    /// One step.
    pub(crate) fn step(&mut self) {
        let start = self.clock.now();
        self.cache.settle(self.executor.as_mut());
        self.note_weights(self.executor.weights_now());
        self.welcome();
        self.forget_cancelled();
        self.end_late(start);
        self.begin_again();
        let mut step = self.plan();
        self.move_pages(&mut step);
        self.gather(&step);
        let planning = self.clock.now() - start;
        let load = load(&self.batch);
        if !self.spans.is_empty() {
            match self.forward() {
                Ok(()) => {
                    // They may have changed since the step began.
                    self.note_weights(self.executor.weights_used());
                    self.sample_and_emit();
                }
                Err(why) => self.end_running(&why),
            }
            let time = self.clock.now() - start;
            self.account(&load, time);
            self.record(&step, start, planning, &load);
            // What has ended keeps no adapter in memory.
            self.batch.variants.clear();
        } else if self.adapters_coming {
            self.shared.adapters.wait(self.adapters_read);
        } else if !self.sequences.is_empty() {
            self.cache.wait_for_pages(self.executor.as_mut());
        }
        self.forget_ended();
        self.cache.copy_ahead(self.executor.as_mut());
        self.cache.store_some(self.executor.as_ref());
        self.publish();
    }

    /// Where the weights are others than before, what is computed from now on is not shared with
    /// what was; sequences that run go on with both.
    fn note_weights(&mut self, weights: u64) {
        if self.cache.compute_with(weights) {
            for sequence in self.sequences.iter_mut().filter(|s| s.running) {
                sequence.lease.mix();
            }
        }
    }

    /// Opens accounts for those that have just come.
    fn welcome(&mut self) {
        let new = self.sequences.iter_mut().rev();
        for sequence in new.take_while(|s| s.account.is_none()) {
            sequence.account = Some(self.fair.enter(&sequence.asked.tenant));
        }
    }

    /// Notes the step for those who watch.
    fn record(&self, step: &Step, start: Duration, planning: Duration, load: &Load) {
        let live = &self.shared.live;
        let number = self.shared.counters.steps.load(Ordering::Relaxed);
        let running = self.sequences.iter().filter(|s| s.running).count();
        let now = self.clock.now();
        live.note(StepRecord {
            number,
            start,
            time: now - start,
            planning,
            predicted: self.costs.as_ref().map(|costs| costs.time(load)),
            generated: load.generated,
            prompt: load.prompt,
            requests: self.spans.len(),
            running,
            waiting: self.sequences.len() - running,
            preempted: step.preempt.len(),
            pages: TierPages {
                running: self.cache.used(),
                cached: self.cache.cached(),
                host: self.cache.in_host(),
                disk: self.cache.on_disk(),
            },
        });
        if live.is_watched(number) {
            live.list(self.sequences.iter().map(|s| s.view(now)));
        }
    }

    /// Charges the step's time to those whose tokens it computed, and learns from it.
    fn account(&mut self, load: &Load, time: Duration) {
        let [prompt, generated] = self.prices;
        let all = load.prompt as f64 * prompt + load.generated as f64 * generated;
        for span in &self.spans {
            let sequence = &mut self.sequences[span.sequence];
            let price = match sequence.computed > sequence.prompt {
                true => generated,
                false => prompt,
            };
            let share = span.tokens as f64 * price / all.max(f64::MIN_POSITIVE);
            sequence.served(share * time.as_secs_f64());
            if let Some(account) = sequence.account {
                self.fair.charge(account, share * time.as_secs_f64());
            }
        }
        if let Some(costs) = &self.costs {
            self.budget.learn(time, costs.time(load));
        }
    }

    fn forget_cancelled(&mut self) {
        let before = self.sequences.len();
        let (cache, fair) = (&mut self.cache, &mut self.fair);
        let adapters = &self.shared.adapters;
        self.sequences.retain_mut(|s| {
            let cancelled = s.cancelled();
            if cancelled {
                leave(s, cache, fair, adapters);
            }
            !cancelled
        });
        self.shared
            .counters
            .cancelled
            .fetch_add((before - self.sequences.len()) as u64, Ordering::Relaxed);
    }

    /// Ends those whose deadline has passed.
    fn end_late(&mut self, now: Duration) {
        for sequence in self.sequences.iter_mut().filter(|s| s.is_late(now)) {
            sequence.finish(FinishReason::Deadline, self.tokenizer.as_deref(), now);
        }
        self.forget_ended();
    }

    /// Those whose pages could not be read wait again, to compute them.
    fn begin_again(&mut self) {
        for sequence in self.sequences.iter_mut().filter(|s| s.running) {
            if self.cache.is_lost(&sequence.lease) {
                self.cache.release(&mut sequence.lease);
                sequence.preempted();
            }
        }
    }

    /// Decides what the step does; its tasks are numbers of sequences.
    fn plan(&mut self) -> Step {
        self.put_in_order();
        self.bring_adapters();
        let several = self.order.len() > 1;
        let exact = several && self.cache.free() < 2 * self.limits.running
            || self
                .turns
                .windows(2)
                .any(|t| (t[0].tenant, t[0].priority) != (t[1].tenant, t[1].priority));
        let whole = Whole {
            requests: self.limits.running,
            pages: self.cache.total(),
        };
        self.fair.begin();
        let mut looked_up = 0;
        self.state.tasks.clear();
        for &index in &self.order {
            let sequence = &mut self.sequences[index];
            let wanted = sequence.wanted_pages(&self.shape);
            let (account, priority) = (sequence.account.unwrap_or(0), sequence.asked.priority);
            let level = self.fair.level(account, priority, wanted, whole);
            let task = if sequence.running {
                let ready = self.cache.is_there(&mut sequence.lease);
                let held = match exact {
                    true => self.cache.held(&sequence.lease),
                    false => sequence.lease.len(),
                };
                sequence.task(&self.shape, ready, held, level)
            } else {
                looked_up += 1;
                let found = match looked_up <= LOOKED_UP && !self.shape.bidirectional {
                    true => self.cache.find(&sequence.text()),
                    false => Found::default(),
                };
                sequence.waiting_task(&self.shape, found, level)
            };
            self.state.tasks.push(task);
        }
        self.state.free = self.cache.free();
        let limits = Limits {
            tokens: self.tokens(),
            watermark: self.limits.watermark + self.cache.leaving(),
            ..self.limits
        };
        let mut step = self.policy.plan(&self.state, &limits);
        for task in &mut step.preempt {
            *task = self.order[*task];
        }
        for chunk in &mut step.chunks {
            chunk.task = self.order[chunk.task];
        }
        step
    }

    /// Whose turn it is.
    fn put_in_order(&mut self) {
        let [prompt, generated] = self.prices;
        self.turns.clear();
        self.turns.extend(self.sequences.iter().map(|s| {
            let left = s.tokens.len() - s.computed;
            Turn {
                tenant: s.account.unwrap_or(0),
                priority: s.asked.priority,
                running: s.running,
                seconds: if left == 1 {
                    generated
                } else {
                    left as f64 * prompt
                },
            }
        }));
        self.fair.order(&self.turns, &mut self.order);
    }

    /// Asks for the adapters of those whose turn is next; who lacks one is not a part of the step.
    fn bring_adapters(&mut self) {
        self.adapters_coming = false;
        if self.sequences.iter().all(|s| s.lacks().is_none()) {
            return;
        }
        let (sequences, adapters) = (&mut self.sequences, &self.shared.adapters);
        let tokenizer = self.tokenizer.as_deref();
        let now = self.clock.now();
        // Where there is no room, those behind may not take it from who waits for it.
        self.adapters_read = adapters.loads();
        let (mut places, mut room, mut coming) = (self.limits.running, true, false);
        self.order.retain(|&index| {
            let sequence = &mut sequences[index];
            let here = places > 0;
            places = places.saturating_sub(1);
            let Some(entry) = sequence.lacks() else {
                return true;
            };
            if !room || !here {
                return false;
            }
            match adapters.wish(entry) {
                Wish::Here(adapter) => {
                    sequence.hold(adapter);
                    return true;
                }
                Wish::Coming => coming = true,
                Wish::NoRoom => room = false,
                Wish::Failed(why) => sequence.finish(FinishReason::Error(why), tokenizer, now),
            }
            false
        });
        // Without room, somebody's adapter must first come and go.
        self.adapters_coming = coming || !room;
    }

    /// The step's budget.
    fn tokens(&self) -> usize {
        if self.budget.limit.is_none() {
            return self.budget.most;
        }
        let mut answers = Load::default();
        let mut position = None;
        for &index in &self.order {
            let sequence = &self.sequences[index];
            if sequence.running && sequence.tokens.len() - sequence.computed == 1 {
                answers.add_generated(sequence.computed);
            } else if sequence.running {
                position = position.or(Some(sequence.computed));
            }
        }
        let costs = self.costs.as_deref();
        self.budget.tokens(costs, &answers, position.unwrap_or(0))
    }

    /// Takes pages from those that are preempted and gives them to those that run. What finds
    /// no pages after all, or whose pages are on their way, is not a part of the step.
    fn move_pages(&mut self, step: &mut Step) {
        for &index in &step.preempt {
            let recompute = self.recompute(0, self.sequences[index].computed);
            let sequence = &mut self.sequences[index];
            self.cache
                .suspend(&mut sequence.lease, recompute, self.executor.as_mut());
            sequence.preempted();
        }
        self.shared
            .counters
            .preempted
            .fetch_add(step.preempt.len() as u64, Ordering::Relaxed);
        let mut chunks = std::mem::take(&mut step.chunks);
        chunks.retain_mut(|chunk| {
            let admitted = self.give_pages(chunk.task);
            let sequence = &mut self.sequences[chunk.task];
            chunk.tokens = chunk.tokens.min(sequence.tokens.len() - sequence.computed);
            admitted && self.cache.is_there(&mut sequence.lease)
        });
        step.chunks = chunks;
    }

    /// Pages for all known tokens of a sequence; whether there were enough.
    fn give_pages(&mut self, index: usize) -> bool {
        let wanted = self.sequences[index].wanted_pages(&self.shape);
        if self.sequences[index].running {
            let lease = &mut self.sequences[index].lease;
            return self.cache.grow(lease, wanted, self.executor.as_mut());
        }
        let mut computed = Some(0);
        if !self.shape.bidirectional {
            let mut lease = std::mem::take(&mut self.sequences[index].lease);
            let (costs, chunk) = (self.costs.clone(), self.budget.most);
            let recompute = move |from: usize, tokens: usize| match &costs {
                Some(costs) => costs.prompt_seconds(from, tokens, chunk),
                None => f64::INFINITY,
            };
            let text = self.sequences[index].text();
            computed = self
                .cache
                .admit(&mut lease, &text, &recompute, self.executor.as_mut());
            self.sequences[index].lease = lease;
        }
        if let Some(computed) = computed {
            self.sequences[index].admitted(computed, self.prices[0]);
        }
        computed.is_some()
    }

    /// Seconds that computing some tokens after others takes, if that was measured.
    fn recompute(&self, from: usize, tokens: usize) -> f64 {
        match &self.costs {
            Some(costs) => costs.prompt_seconds(from, tokens, self.budget.most),
            None => f64::INFINITY,
        }
    }

    /// Lays the step's tokens out as one flat batch.
    fn gather(&mut self, step: &Step) {
        let now = self.clock.now();
        let batch = &mut self.batch;
        batch.clear();
        self.spans.clear();
        for chunk in &step.chunks {
            let sequence = &mut self.sequences[chunk.task];
            sequence.started(now);
            self.spans.push(Span {
                sequence: chunk.task,
                tokens: chunk.tokens,
                rows: [0; 2],
                logits: 0..0,
                hidden: 0,
            });
        }
        // Generated tokens come first, then those of prompts; a sequence that is computed again
        // may have both.
        for generated in [true, false] {
            for span in &mut self.spans {
                let sequence = &self.sequences[span.sequence];
                let positions = span.positions(sequence, generated);
                if positions.is_empty() {
                    continue;
                }
                let (row, page) = (batch.tokens.len(), batch.tables.len());
                span.rows[usize::from(generated)] = row;
                batch
                    .tokens
                    .extend_from_slice(&sequence.tokens[positions.clone()]);
                batch.tables.extend_from_slice(sequence.lease.pages());
                batch.segments.push(Segment {
                    rows: row..batch.tokens.len(),
                    position: positions.start,
                    pages: page..batch.tables.len(),
                });
                batch.variants.push(sequence.variant());
            }
            if generated {
                batch.generated = batch.tokens.len();
            }
        }
        for span in &mut self.spans {
            let sequence = &self.sequences[span.sequence];
            let logits = batch.logits.len();
            span.hidden = batch.hidden.len();
            for generated in [false, true] {
                let rows = span.rows[usize::from(generated)] as u32..;
                for (position, row) in span.positions(sequence, generated).zip(rows) {
                    if sequence.wants_logits(position) {
                        batch.logits.push(row);
                    }
                    if sequence.wants_hidden(position) {
                        batch.hidden.push(row);
                    }
                }
            }
            span.logits = logits..batch.logits.len();
        }
    }

    /// Runs the batch. A panic in the executor becomes an error.
    fn forward(&mut self) -> Result<(), String> {
        let (executor, batch, outputs) = (&mut self.executor, &self.batch, &mut self.outputs);
        // The outputs are overwritten before they are read again, and the executor promises to
        // take the next batch after a panic.
        let run = catch_unwind(AssertUnwindSafe(|| executor.forward(batch, outputs)));
        if let Err(panic) = run {
            let why = panic.downcast_ref::<&str>().map(|s| s.to_string());
            let why = why
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_default();
            tracing::error!("the executor panicked: {why}");
            return Err(format!("the model could not be run: {why}"));
        }
        let expected = (
            batch.logits.len() * self.shape.vocab,
            batch.hidden.len() * self.shape.hidden,
        );
        let found = (outputs.logits.len(), outputs.hidden.len());
        if expected != found {
            tracing::error!("the executor left {found:?} values; the batch asked for {expected:?}");
            return Err("the model could not be run: it left outputs of a wrong size".to_string());
        }
        Ok(())
    }

    /// Chooses the next token of each sequence that is ready for one, on all threads: over a
    /// large vocabulary that is long enough to hold the next step up.
    fn choose(&mut self) {
        let Some(team) = self.executor.idle_team() else {
            return; // each is chosen when it is emitted
        };
        let mut rows: Vec<_> = self
            .outputs
            .logits
            .chunks_mut(self.shape.vocab.max(1))
            .map(Some)
            .collect();
        let mut sequences: Vec<_> = self.sequences.iter_mut().map(Some).collect();
        let ready: Vec<_> = self
            .spans
            .iter()
            .filter_map(|span| {
                let sequence = sequences[span.sequence].take()?;
                let ready = sequence.chooses_after(span.tokens) && !span.logits.is_empty();
                let row = rows[span.logits.end.checked_sub(1)?]
                    .take()
                    .filter(|_| ready)?;
                Some(Mutex::new((sequence, row)))
            })
            .collect();
        team.run(ready.len(), &|i| {
            let mut ready = ready[i].lock().unwrap_or_else(PoisonError::into_inner);
            let (sequence, row) = &mut *ready;
            sequence.choose(row);
        });
    }

    /// Turns the outputs into tokens, embeddings and ends, and sends them.
    fn sample_and_emit(&mut self) {
        self.choose();
        let now = self.clock.now();
        let (mut prompt, mut generated) = (0, 0);
        let mut tools = Tools {
            tokenizer: self.tokenizer.as_deref(),
            shape: self.shape,
            outputs: &mut self.outputs,
            now,
        };
        for span in &self.spans {
            let sequence = &mut self.sequences[span.sequence];
            let (computed, known) = (sequence.computed, sequence.tokens.len());
            sequence.take(span.tokens, span.logits.start, span.hidden, &mut tools);
            prompt += sequence
                .computed
                .min(sequence.prompt)
                .saturating_sub(computed);
            generated += sequence.tokens.len() - known;
            if !self.shape.bidirectional {
                let mut lease = std::mem::take(&mut sequence.lease);
                let computed = sequence.computed;
                self.cache.publish(&mut lease, &sequence.text(), computed);
                sequence.lease = lease;
            }
        }
        self.state.prompts_last = prompt > 0;
        let counters = &self.shared.counters;
        counters.steps.fetch_add(1, Ordering::Relaxed);
        counters
            .prompt_tokens
            .fetch_add(prompt as u64, Ordering::Relaxed);
        counters
            .generated_tokens
            .fetch_add(generated as u64, Ordering::Relaxed);
        tracing::debug!(
            requests = self.spans.len(),
            tokens = self.batch.tokens.len(),
            generated,
            free_pages = self.cache.free(),
            "step"
        );
    }

    /// After a failed step the pages of all that run are in doubt.
    fn end_running(&mut self, why: &str) {
        let now = self.clock.now();
        for sequence in self.sequences.iter_mut().filter(|s| s.running) {
            sequence.finish(
                FinishReason::Error(why.to_string()),
                self.tokenizer.as_deref(),
                now,
            );
        }
    }

    fn forget_ended(&mut self) {
        let before = self.sequences.len();
        let (cache, fair) = (&mut self.cache, &mut self.fair);
        let adapters = &self.shared.adapters;
        self.sequences.retain_mut(|s| {
            if s.ended {
                leave(s, cache, fair, adapters);
            }
            !s.ended
        });
        let ended = before - self.sequences.len();
        if ended > 0 {
            self.shared.note_finished(ended, self.clock.now());
        }
    }

    fn publish(&self) {
        let running = self.sequences.iter().filter(|s| s.running).count();
        self.shared
            .counters
            .running
            .store(running, Ordering::Relaxed);
        self.shared
            .counters
            .pages_used
            .store(self.cache.used(), Ordering::Relaxed);
        let pages = [self.cache.cached(), self.cache.in_host()];
        self.shared.note_cache(pages, self.cache.stats());
    }

    fn end_all(&mut self, why: &str) {
        let now = self.clock.now();
        for sequence in &mut self.sequences {
            sequence.finish(
                FinishReason::Error(why.to_string()),
                self.tokenizer.as_deref(),
                now,
            );
        }
        self.forget_ended();
        self.publish();
    }
}
