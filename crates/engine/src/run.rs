//! The engine's handle: takes requests, hands out their events.

use std::sync::Arc;
use std::time::Duration;

use sedge_formats::tokenizer::Tokenizer;

use crate::{Event, Executor, Request, SubmitError};

/// Limits of an engine.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Most tokens in a step, decodes first, then prefill chunks.
    pub token_budget: usize,
    /// Most requests that run at once.
    pub max_running: usize,
    /// Most requests that wait.
    pub max_waiting: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig { token_budget: 512, max_running: 64, max_waiting: 256 }
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
    /// Steps run.
    pub steps: u64,
    /// Prompt tokens computed.
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
}

/// A running engine; clones share it. The last clone's drop ends its thread.
#[derive(Debug, Clone)]
pub struct Engine {}

/// One request's events. Dropping it cancels the request within one step.
#[derive(Debug)]
pub struct Output {}

impl Engine {
    /// Starts the step loop on a thread of its own. The tokenizer turns tokens into text for
    /// streaming and stop texts and feeds constraints; without one, texts are empty.
    pub fn start(executor: Box<dyn Executor>, tokenizer: Option<Arc<Tokenizer>>, config: EngineConfig) -> Engine {
        let _ = (executor, tokenizer, config);
        unimplemented!()
    }

    /// Checks a request and puts it into the queue.
    ///
    /// # Errors
    /// When it can never run, or not now ([`SubmitError::Busy`]).
    pub fn submit(&self, request: Request) -> Result<Output, SubmitError> {
        let _ = request;
        unimplemented!()
    }

    /// Counters now.
    pub fn stats(&self) -> EngineStats {
        unimplemented!()
    }

    /// Takes no more requests; waits until those taken have ended or `timeout` has passed, then
    /// ends the rest with an error. True when all ended by themselves.
    pub fn drain(&self, timeout: Duration) -> bool {
        let _ = timeout;
        unimplemented!()
    }
}

impl Output {
    /// The next event, waiting for it; `None` after `Finished`.
    pub async fn next(&mut self) -> Option<Event> {
        unimplemented!()
    }

    /// The same on a thread that may block (never inside an async runtime).
    pub fn next_blocking(&mut self) -> Option<Event> {
        unimplemented!()
    }
}
