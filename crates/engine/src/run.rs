//! The engine's handle: takes requests, hands out their events.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sedge_clock::{Clock, Costs};
use sedge_formats::tokenizer::{TextStream, Tokenizer};
use sedge_models::{MemoryError, Moved, SharedModel, StackMemory};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::adapters::{AdapterError, AdapterStats, AdapterView, Adapters, NewAdapter};
use crate::check::{capacity, check};
use crate::constraint::{Grammars, Vocabulary};
use crate::rng::split_mix;
use crate::sample::Sampler;
use crate::sequence::{Answer, Asked, Mean, Sequence, Which, Work};
use crate::shared::Shared;
use crate::step::Loop;
use crate::stop::StopTexts;
use crate::{
    CacheConfig, CacheStats, Event, Executor, Finish, FinishReason, Goal, Policy, Request,
    RequestView, Shape, StepRecord, SubmitError, Timings, Usage,
};

/// How long `drain` waits for the step in progress after it has ended the rest.
const LAST_STEP: Duration = Duration::from_secs(5);

/// Limits of an engine.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Most tokens in a step, decodes first, then prefill chunks. Only an encoder's sequence,
    /// which must be whole, may exceed it, alone.
    pub token_budget: usize,
    /// Most requests that run at once; no more than `token_budget`.
    pub max_running: usize,
    /// Most requests that wait.
    pub max_waiting: usize,
    /// How steps are composed.
    pub policy: Policy,
    /// What steps cost on this machine, if it was measured.
    pub costs: Option<Arc<Costs>>,
    /// Most time that a step should take, by its costs: its prompts are cut for it.
    pub tbt_slo: Option<Duration>,
    /// Weights of tenants; others weigh 1.
    pub weights: BTreeMap<String, f64>,
    /// A tenant that has had so much more service than another, over its weight, gives way to it.
    pub fair_quantum: Duration,
    /// What is kept of keys and values.
    pub cache: CacheConfig,
    /// Bytes for adapters; those that are not in use may be registered beyond it.
    pub adapter_memory: u64,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            token_budget: 512,
            max_running: 64,
            max_waiting: 256,
            policy: Policy::default(),
            costs: None,
            tbt_slo: None,
            weights: BTreeMap::new(),
            fair_quantum: Duration::from_secs(1),
            cache: CacheConfig::default(),
            adapter_memory: 256 << 20,
        }
    }
}

/// Counters and gauges of an engine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EngineStats {
    /// Requests in the queue.
    pub waiting: usize,
    /// Requests that hold pages.
    pub running: usize,
    /// Pages in use.
    pub pages_used: usize,
    /// Pages there are.
    pub pages: usize,
    /// Pages that nobody uses and that are kept for later requests.
    pub pages_cached: usize,
    /// Pages in the host tier.
    pub pages_host: usize,
    /// Pages in the disk tier.
    pub pages_disk: usize,
    /// What the cache has done.
    pub cache: CacheStats,
    /// Steps run.
    pub steps: u64,
    /// Prompt tokens computed, those again that a preemption threw away.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Requests that ended by themselves.
    pub finished: u64,
    /// Requests whose caller went away.
    pub cancelled: u64,
    /// Requests refused because the queue was full.
    pub refused: u64,
    /// Requests that were preempted to free pages.
    pub preempted: u64,
    /// Adapters, in memory and not.
    pub adapters: AdapterStats,
    /// How much of the model is in memory, where that may change.
    pub memory: Option<StackMemory>,
}

/// A running engine; clones share it. The last clone's drop ends its thread after the step in
/// progress, and every request that has not ended with an error.
#[derive(Clone)]
pub struct Engine(Arc<Handle>);

/// All of an engine but its thread.
pub(crate) struct Handle {
    shared: Arc<Shared>,
    adapters: Arc<Adapters>,
    /// The model, where its memory may change.
    model: Option<Arc<SharedModel>>,
    shape: Shape,
    tokenizer: Option<Arc<Tokenizer>>,
    grammars: Option<Grammars>,
    /// Where seeds come from that a request does not give.
    seeds: AtomicU64,
}

/// One request's events. Dropping it cancels the request within one step.
#[derive(Debug)]
pub struct Output {
    events: UnboundedReceiver<Event>,
    ended: bool,
}

impl Engine {
    /// Starts the step loop on a thread of its own. The tokenizer turns tokens into text for
    /// streaming and stop texts and feeds constraints; without one, texts are empty.
    ///
    /// A panic in the executor ends the requests that run with an error; the engine goes on.
    pub fn start(
        executor: Box<dyn Executor>,
        tokenizer: Option<Arc<Tokenizer>>,
        config: EngineConfig,
    ) -> Engine {
        let shape = executor.shape();
        let model = executor.model();
        let shared = Arc::new(Shared::new(&config, Clock::real()));
        let steps = Loop::new(executor, tokenizer.clone(), &config, shared.clone());
        let thread = std::thread::Builder::new().name("sedge-engine".into());
        let last = Last(shared.clone());
        let started = thread.spawn(move || {
            let _last = last; // dropped after the loop, even in a panic
            steps.run();
        });
        if let Err(error) = started {
            // `Last` went with the closure: the engine is closed and says so to every caller.
            tracing::error!("the engine's thread could not be started: {error}");
        }
        let mut handle = Handle::new(shared, shape, tokenizer);
        handle.model = model;
        Engine(Arc::new(handle))
    }

    /// Checks a request and puts it into the queue.
    ///
    /// A constraint is compiled here, on the caller's thread: usually a few milliseconds, the
    /// first time a fraction of a second.
    ///
    /// # Errors
    /// When it can never run, or not now ([`SubmitError::Busy`]).
    pub fn submit(&self, request: Request) -> Result<Output, SubmitError> {
        self.0.submit(request)
    }

    /// Registers an adapter that requests may name from now on. It is read once, on the caller's
    /// thread, which proves that it is for this model.
    ///
    /// # Errors
    /// When it cannot be read, its name is taken, or it can never be used.
    pub fn add_adapter(&self, new: NewAdapter) -> Result<AdapterView, AdapterError> {
        if self.0.shape.bidirectional {
            return Err(AdapterError::Unsupported);
        }
        self.0.adapters.add(new, capacity(&self.0.shape))
    }

    /// Takes an adapter's name away. Requests that have begun with it end with it; those that
    /// still wait for it to be read end with an error.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn remove_adapter(&self, name: &str) -> Result<(), AdapterError> {
        self.0.adapters.remove(name)
    }

    /// Makes an adapter part of weights of its own: from now on its requests take no more time
    /// than the model's, and more memory. Nothing that other requests are computed with is
    /// touched. Blocks its thread while the weights are made.
    ///
    /// # Errors
    /// When there is none of this name, or it does not merge.
    pub fn merge_adapter(&self, name: &str) -> Result<AdapterView, AdapterError> {
        self.0.adapters.merge(name)
    }

    /// Takes an adapter out of the weights again, which is exact: they were made for it. Requests
    /// that have begun end with them.
    ///
    /// # Errors
    /// When there is none of this name, or it is not merged.
    pub fn unmerge_adapter(&self, name: &str) -> Result<AdapterView, AdapterError> {
        self.0.adapters.unmerge(name)
    }

    /// All adapters, by name.
    pub fn adapters(&self) -> Vec<AdapterView> {
        self.0.adapters.views()
    }

    /// The adapter of this name, if there is one.
    pub fn adapter(&self, name: &str) -> Option<AdapterView> {
        self.0.adapters.named(name)
    }

    /// Whether both are handles of one engine.
    pub fn is_same(&self, other: &Engine) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether there is an adapter of this name.
    pub fn has_adapter(&self, name: &str) -> bool {
        self.0.adapters.has(name)
    }

    /// Most requests that wait at once.
    pub fn max_waiting(&self) -> usize {
        self.0.shared.max_waiting()
    }

    /// Counters now.
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            memory: self.memory(),
            ..self.0.shared.stats()
        }
    }

    /// How much of the model is in memory; `None` where that does not change.
    pub fn memory(&self) -> Option<StackMemory> {
        self.0.model.as_ref()?.memory()
    }

    /// Bytes of weights that were asked for last, if anybody has asked.
    pub fn memory_target(&self) -> Option<u64> {
        self.0.model.as_ref()?.memory_target()
    }

    /// Lets the model have so many bytes of weights. Requests go on meanwhile: a step is computed
    /// with the weights that are there when it begins. Blocks its thread while blocks are read.
    /// What was computed before is shared only with requests that are computed
    /// with the same weights; one that runs goes on, with both.
    ///
    /// # Errors
    /// As [`SharedModel::set_memory`].
    pub fn set_memory(&self, bytes: u64) -> Result<Moved, MemoryError> {
        let model = self.0.model.as_ref();
        model.ok_or(MemoryError::NotStacked)?.set_memory(bytes)
    }

    /// The steps after number `after` that are still kept, oldest first: up to some thousand.
    pub fn steps(&self, after: u64) -> Vec<StepRecord> {
        self.0.shared.live.steps(after)
    }

    /// The requests that have not ended, as they were some steps ago. Asking makes the engine
    /// list them for a while; the first call may find none.
    pub fn requests(&self) -> Vec<RequestView> {
        self.0.shared.live.requests()
    }

    /// Takes no more requests; waits until those taken have ended or `timeout` has passed, then
    /// ends the rest with an error. True when all ended by themselves. Blocks its thread.
    pub fn drain(&self, timeout: Duration) -> bool {
        let all = self.0.shared.drain(timeout);
        if !all {
            self.0.shared.close("the server is shutting down");
            self.0.shared.drain(LAST_STEP);
        }
        all
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("shape", &self.0.shape)
            .field("stats", &self.stats())
            .finish()
    }
}

impl Handle {
    pub(crate) fn new(
        shared: Arc<Shared>,
        shape: Shape,
        tokenizer: Option<Arc<Tokenizer>>,
    ) -> Handle {
        let grammars = tokenizer
            .clone()
            .map(|t| Grammars::new(Vocabulary::Model(t, shape.vocab)));
        let seeds = AtomicU64::new(RandomState::new().hash_one(Instant::now()));
        Handle {
            adapters: shared.adapters.clone(),
            shared,
            model: None,
            shape,
            tokenizer,
            grammars,
            seeds,
        }
    }

    pub(crate) fn submit(&self, request: Request) -> Result<Output, SubmitError> {
        let submitted = self.shared.clock.now();
        let adapter = match &request.adapter {
            Some(name) => {
                let found = self.adapters.find(name);
                Some(found.ok_or_else(|| SubmitError::Adapter(name.clone()))?)
            }
            None => None,
        };
        let which = Which::new(request.member, adapter);
        let before = which.before();
        check(&request, &self.shape, self.tokenizer.is_some(), before)?;
        let asked = Asked {
            tenant: request.tenant.clone(),
            priority: request.priority,
            deadline: request.deadline,
        };
        self.shared.admits(&asked)?; // before the work of compiling a constraint
        let (sender, events) = unbounded_channel();
        let output = Output {
            events,
            ended: false,
        };
        let computes =
            request.goal == Goal::Embed || request.max_tokens != Some(0) || request.prompt_logprobs;
        let (work, mut prompt) = self.work(request, before)?;
        // What an adapter puts before every prompt has numbers beyond the vocabulary.
        let vocab = self.shape.vocab as u32;
        prompt.splice(0..0, (0..before as u32).map(|place| vocab + place));
        let mut sequence = Sequence::new(prompt, work, asked, which, sender, submitted);
        if computes {
            self.shared.submit(sequence)?;
        } else {
            sequence.finish(FinishReason::Length, None, self.shared.clock.now());
        }
        Ok(output)
    }

    /// What a checked request asks for, and its prompt.
    fn work(&self, request: Request, before: usize) -> Result<(Work, Vec<u32>), SubmitError> {
        if request.goal == Goal::Embed {
            return Ok((
                Work::Embedding(Mean::new(self.shape.pooling)),
                request.prompt,
            ));
        }
        let grammar = match (&request.constraint, &self.grammars) {
            (Some(constraint), Some(grammars)) => Some(grammars.compile(constraint)?),
            _ => None,
        };
        let mut ends = request.stop_tokens;
        if let Some(tokenizer) = self
            .tokenizer
            .as_ref()
            .filter(|_| !request.ignore_eos || grammar.is_some())
        {
            ends.extend_from_slice(tokenizer.eos());
        }
        let stream = self
            .tokenizer
            .as_ref()
            .map(|tokenizer| text_after(tokenizer, &request.prompt, grammar.is_some()));
        let room = capacity(&self.shape) - before - request.prompt.len();
        let answer = Answer {
            chosen: None,
            limit: request.max_tokens.map_or(room, |most| most.min(room)),
            ends,
            sampler: Sampler::new(request.sampling, &request.prompt, self.seed()),
            grammar,
            stream,
            stop: StopTexts::new(request.stop),
            logprobs: request.logprobs,
            scored: request.prompt_logprobs.then(Vec::new),
        };
        Ok((Work::Answer(Box::new(answer)), request.prompt))
    }

    fn seed(&self) -> u64 {
        split_mix(&mut self.seeds.fetch_add(1, Ordering::Relaxed))
    }
}

/// The text of an answer goes on where the prompt ends, perhaps within a character. A vocabulary
/// that drops the first space of a text does so only after a control token, and never in the
/// text of a grammar, which counts every byte.
fn text_after(tokenizer: &Tokenizer, prompt: &[u32], grammar: bool) -> TextStream {
    let letter = || {
        (0..tokenizer.len() as u32)
            .find(|&id| tokenizer.bytes(id).is_ascii() && !tokenizer.bytes(id).is_empty())
    };
    let before = if grammar {
        letter()
    } else {
        prompt.last().copied()
    };
    let mut stream = tokenizer.stream();
    if let Some(id) = before {
        stream.push(tokenizer, id);
    }
    stream
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close("the engine was closed");
    }
}

/// Tells everybody that the loop is gone.
struct Last(Arc<Shared>);

impl Drop for Last {
    fn drop(&mut self) {
        self.0.closed();
    }
}

impl Output {
    /// The next event, waiting for it; `None` after `Finished`. Nothing is lost when the wait is
    /// given up and begun again.
    pub async fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.recv().await;
        self.checked(event)
    }

    /// The same on a thread that may block (never inside an async runtime).
    pub fn next_blocking(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.blocking_recv();
        self.checked(event)
    }

    /// The events that are there.
    pub(crate) fn ready(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }

    /// Makes sure of the promised end, also when the engine's thread has died.
    fn checked(&mut self, event: Option<Event>) -> Option<Event> {
        let event = event.unwrap_or_else(|| {
            Event::Finished(Finish {
                reason: FinishReason::Error("the engine stopped".to_string()),
                text: String::new(),
                usage: Usage::default(),
                timings: Timings::default(),
            })
        });
        self.ended = matches!(event, Event::Finished(_));
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::{PANIC, SHAPE, Scripted, greedy};

    fn engine(shape: Shape, config: EngineConfig) -> Engine {
        Engine::start(Box::new(Scripted::new(shape)), None, config)
    }

    fn all(mut output: Output) -> (Vec<u32>, Finish) {
        let mut tokens = Vec::new();
        while let Some(event) = output.next_blocking() {
            match event {
                Event::Token(token) => tokens.push(token.id),
                Event::Finished(finish) => {
                    assert_eq!(output.next_blocking(), None);
                    return (tokens, finish);
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("the events ended without `Finished`");
    }

    const ENDLESS: Shape = Shape {
        context: 1 << 24,
        pages: 1 << 20,
        ..SHAPE
    };

    #[test]
    fn requests_stream_to_their_end_on_many_threads() {
        let engine = engine(
            SHAPE,
            EngineConfig {
                token_budget: 16,
                max_running: 5,
                max_waiting: 100,
                ..EngineConfig::default()
            },
        );
        std::thread::scope(|scope| {
            for caller in 0..8u32 {
                let engine = engine.clone();
                scope.spawn(move || {
                    for i in 0..5 {
                        let (prompt, most) = (
                            vec![caller + 2, i, 7],
                            3 + (caller as usize + i as usize) % 9,
                        );
                        let (tokens, finish) =
                            all(engine.submit(greedy(prompt.clone(), most)).unwrap());
                        assert_eq!(tokens, Scripted::alone(&prompt, most));
                        assert_eq!(finish.reason, FinishReason::Length);
                        assert_eq!(
                            finish.usage,
                            Usage {
                                prompt: 3,
                                completion: most,
                                cached: 0
                            }
                        );
                        let t = finish.timings;
                        assert!(t.queued <= t.first_token && t.first_token <= t.total);
                    }
                });
            }
        });
        assert!(engine.drain(Duration::from_secs(60)));
        let stats = engine.stats();
        assert_eq!(
            (
                stats.finished,
                stats.pages_used,
                stats.running,
                stats.waiting
            ),
            (40, 0, 0, 0)
        );
        assert_eq!(stats.prompt_tokens, 120);
    }

    #[test]
    fn events_can_be_awaited() {
        let engine = engine(SHAPE, EngineConfig::default());
        let mut output = engine.submit(greedy(vec![3, 4], 5)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let mut events = Vec::new();
        runtime.block_on(async {
            while let Some(event) = output.next().await {
                events.push(event);
            }
        });
        assert_eq!(events.len(), 6);
        assert!(matches!(events.last(), Some(Event::Finished(_))));
    }

    #[test]
    fn a_drained_engine_takes_nothing_more_and_ends_the_rest() {
        let engine = engine(ENDLESS, EngineConfig::default());
        let endless = engine
            .submit(Request {
                max_tokens: None,
                ..greedy(vec![1], 1)
            })
            .unwrap();
        assert!(!engine.drain(Duration::ZERO));
        assert!(
            matches!(all(endless).1.reason, FinishReason::Error(why) if why.contains("shutting down"))
        );
        assert_eq!(
            engine.submit(greedy(vec![1], 1)).unwrap_err(),
            SubmitError::Closed
        );
    }

    #[test]
    fn the_last_handle_ends_everything() {
        let engine = engine(ENDLESS, EngineConfig::default());
        let endless = engine
            .submit(Request {
                max_tokens: None,
                ..greedy(vec![1], 1)
            })
            .unwrap();
        drop(engine.clone());
        drop(engine);
        assert!(matches!(all(endless).1.reason, FinishReason::Error(_)));
    }

    #[test]
    fn the_engine_goes_on_after_the_executor_panicked() {
        let engine = engine(SHAPE, EngineConfig::default());
        for _ in 0..3 {
            let failed = all(engine.submit(greedy(vec![1, PANIC], 4)).unwrap()).1;
            assert!(matches!(failed.reason, FinishReason::Error(why) if why.contains("scripted")));
        }
        assert_eq!(
            all(engine.submit(greedy(vec![5], 4)).unwrap()).0,
            Scripted::alone(&[5], 4)
        );
        assert!(engine.drain(Duration::from_secs(60)));
    }
}
