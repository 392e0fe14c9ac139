//! The step loop: plan → move → forward → sample → emit, on a thread of its own.
//! After every step the pages of those that ended are free and their callers know.

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sedge_formats::tokenizer::Tokenizer;
use sedge_kernels::Segment;
use sedge_models::{Batch, Outputs};

use crate::pages::Pages;
use crate::plan::{Limits, State, Step};
use crate::sequence::{Sequence, Tools};
use crate::shared::{Closing, Shared};
use crate::{EngineConfig, Executor, FinishReason, Policy, Shape, StepRecord, TierPages};

/// Logits that the prompts of one step may ask for: 64 MiB of them.
const SCORED_LOGITS: usize = 16 << 20;

/// Everything that a step reads and changes.
pub(crate) struct Loop {
    executor: Box<dyn Executor>,
    shape: Shape,
    tokenizer: Option<Arc<Tokenizer>>,
    limits: Limits,
    policy: Policy,
    shared: Arc<Shared>,
    pages: Pages,
    /// Requests taken and not ended, in order of arrival; those that run before those that wait.
    sequences: Vec<Sequence>,
    started: Instant,
    // Reused in every step.
    state: State,
    batch: Batch,
    outputs: Outputs,
    spans: Vec<Span>,
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
        let pages = Pages::new(shape.pages);
        shared
            .counters
            .pages
            .store(pages.total(), Ordering::Relaxed);
        Loop {
            executor,
            shape,
            tokenizer,
            policy: config.policy,
            limits: Limits {
                tokens,
                // Every decode fits into a step.
                running: config.max_running.clamp(1, tokens),
                scored: (SCORED_LOGITS / shape.vocab.max(1)).max(16),
                watermark: pages.total() / 100,
            },
            shared,
            pages,
            sequences: Vec::new(),
            started: Instant::now(),
            state: State::default(),
            batch: Batch::default(),
            outputs: Outputs::default(),
            spans: Vec::new(),
        }
    }

    /// Steps until the engine closes; sleeps while there is nothing to do.
    pub(crate) fn run(mut self) {
        loop {
            match self.shared.meet(&mut self.sequences) {
                Closing::No => self.step(),
                Closing::Now(why) => return self.end_all(why),
            }
        }
    }

    /// Takes what arrived, without waiting, and runs one step.
    #[cfg(test)]
    pub(crate) fn poll(&mut self) {
        self.shared.exchange(&mut self.sequences);
        self.step();
        self.shared.exchange(&mut self.sequences);
    }

    /// One step.
    pub(crate) fn step(&mut self) {
        let start = Instant::now();
        self.forget_cancelled();
        let step = self.plan();
        self.move_pages(&step);
        self.gather(&step);
        let planning = start.elapsed();
        if !self.spans.is_empty() {
            match self.forward() {
                Ok(()) => self.sample_and_emit(),
                Err(why) => self.end_running(&why),
            }
        }
        self.forget_ended();
        self.publish();
        if !self.spans.is_empty() {
            self.record(&step, start, planning);
        }
    }

    /// Notes the step for those who watch.
    fn record(&self, step: &Step, start: Instant, planning: Duration) {
        let live = &self.shared.live;
        let number = self.shared.counters.steps.load(Ordering::Relaxed);
        let running = self.sequences.iter().filter(|s| s.running).count();
        live.note(StepRecord {
            number,
            start: start.saturating_duration_since(self.started),
            time: start.elapsed(),
            planning,
            predicted: None,
            generated: self.batch.generated,
            prompt: self.batch.tokens.len() - self.batch.generated,
            requests: self.spans.len(),
            running,
            waiting: self.sequences.len() - running,
            preempted: step.preempt.len(),
            pages: TierPages {
                running: self.pages.used(),
                ..TierPages::default()
            },
        });
        if live.is_watched(number) {
            let now = Instant::now();
            live.list(self.sequences.iter().map(|s| s.view(now)));
        }
    }

    fn forget_cancelled(&mut self) {
        let before = self.sequences.len();
        self.sequences.retain_mut(|s| {
            let cancelled = s.cancelled();
            if cancelled {
                self.pages.release(&mut s.table);
            }
            !cancelled
        });
        self.shared
            .counters
            .cancelled
            .fetch_add((before - self.sequences.len()) as u64, Ordering::Relaxed);
    }

    fn plan(&mut self) -> Step {
        self.state.tasks.clear();
        self.state
            .tasks
            .extend(self.sequences.iter().map(|s| s.task(&self.shape)));
        self.state.free = self.pages.free();
        self.policy.plan(&self.state, &self.limits)
    }

    /// Takes pages from those that are preempted and gives them to those that run.
    fn move_pages(&mut self, step: &Step) {
        for &index in &step.preempt {
            let sequence = &mut self.sequences[index];
            self.pages.release(&mut sequence.table);
            sequence.preempted();
        }
        self.shared
            .counters
            .preempted
            .fetch_add(step.preempt.len() as u64, Ordering::Relaxed);
        for chunk in &step.chunks {
            let sequence = &mut self.sequences[chunk.task];
            let wanted = sequence.wanted_pages(&self.shape);
            let grown = self.pages.grow(&mut sequence.table, wanted);
            debug_assert!(grown, "the plan counted pages that are not free");
        }
    }

    /// Lays the step's tokens out as one flat batch.
    fn gather(&mut self, step: &Step) {
        let now = Instant::now();
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
                batch.tables.extend_from_slice(sequence.table.as_slice());
                batch.segments.push(Segment {
                    rows: row..batch.tokens.len(),
                    position: positions.start,
                    pages: page..batch.tables.len(),
                });
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
        let now = Instant::now();
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
        }
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
            free_pages = self.pages.free(),
            "step"
        );
    }

    /// After a failed step the pages of all that run are in doubt.
    fn end_running(&mut self, why: &str) {
        let now = Instant::now();
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
        self.sequences.retain_mut(|s| {
            if s.ended {
                self.pages.release(&mut s.table);
            }
            !s.ended
        });
        let ended = before - self.sequences.len();
        if ended > 0 {
            self.shared.note_finished(ended, Instant::now());
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
            .store(self.pages.used(), Ordering::Relaxed);
    }

    fn end_all(&mut self, why: &str) {
        let now = Instant::now();
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
