//! What the engine did in its last steps, for whoever watches.
//! Nothing is kept longer than [`KEPT`] steps; requests are listed only while somebody asks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Steps that are kept.
const KEPT: usize = 4096;
/// Steps for which requests go on being listed after somebody asked.
const WATCHED: u64 = 64;

/// One step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepRecord {
    /// Number of the step, from 1.
    pub number: u64,
    /// When it began, since the engine's start.
    pub start: Duration,
    /// Time from its plan to its last event.
    pub time: Duration,
    /// Part of `time` that planning and moving pages took.
    pub planning: Duration,
    /// What the cost model expected of the batch, if there is one.
    pub predicted: Option<Duration>,
    /// Tokens of answers that it computed.
    pub generated: usize,
    /// Tokens of prompts that it computed.
    pub prompt: usize,
    /// Requests that it was for.
    pub requests: usize,
    /// Requests that run, after it.
    pub running: usize,
    /// Requests that wait, after it.
    pub waiting: usize,
    /// Requests that gave their pages up for it.
    pub preempted: usize,
    /// Pages of keys and values, after it.
    pub pages: TierPages,
}

/// Where pages of keys and values lie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TierPages {
    /// In use by running requests.
    pub running: usize,
    /// In the executor's memory for later requests that begin alike.
    pub cached: usize,
    /// In the host tier.
    pub host: usize,
    /// In the disk tier.
    pub disk: usize,
}

/// One request that was taken and has not ended.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestView {
    /// Number of the request, by arrival.
    pub number: u64,
    /// Who asks.
    pub tenant: Arc<str>,
    /// Its priority; lower is sooner.
    pub priority: i32,
    /// Time since it was submitted.
    pub age: Duration,
    /// It is in the running batch; otherwise it waits.
    pub running: bool,
    /// Tokens of its prompt.
    pub prompt: usize,
    /// Tokens of prompt and answer whose keys and values are there.
    pub computed: usize,
    /// Tokens generated.
    pub generated: usize,
    /// Number of the fine-tune that answers.
    pub member: usize,
    /// Name of its adapter.
    pub adapter: Option<Arc<str>>,
}

/// What is kept of the steps.
#[derive(Debug, Default)]
pub(crate) struct Live {
    steps: Mutex<VecDeque<StepRecord>>,
    requests: Mutex<Vec<RequestView>>,
    /// Requests are listed until this step.
    watched_until: AtomicU64,
}

impl Live {
    /// Notes a step.
    pub(crate) fn note(&self, step: StepRecord) {
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        if steps.len() == KEPT {
            steps.pop_front();
        }
        steps.push_back(step);
    }

    /// Whether requests are to be listed after this step.
    pub(crate) fn is_watched(&self, step: u64) -> bool {
        step <= self.watched_until.load(Ordering::Relaxed)
    }

    /// Lists the requests.
    pub(crate) fn list(&self, requests: impl Iterator<Item = RequestView>) {
        let mut listed = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        listed.clear();
        listed.extend(requests);
    }

    /// Steps after number `after`, oldest first.
    pub(crate) fn steps(&self, after: u64) -> Vec<StepRecord> {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let first = steps.partition_point(|step| step.number <= after);
        steps.range(first..).copied().collect()
    }

    /// The requests as they were after the last step that listed them.
    pub(crate) fn requests(&self) -> Vec<RequestView> {
        let last = {
            let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
            steps.back().map_or(0, |step| step.number)
        };
        self.watched_until.store(last + WATCHED, Ordering::Relaxed);
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_steps_are_kept_and_found_by_number() {
        let live = Live::default();
        for number in 1..=KEPT as u64 + 10 {
            live.note(StepRecord {
                number,
                ..StepRecord::default()
            });
        }
        let all = live.steps(0);
        assert_eq!((all.len(), all[0].number), (KEPT, 11));
        let last: Vec<u64> = live.steps(4104).iter().map(|s| s.number).collect();
        assert_eq!(last, [4105, 4106]);
        assert!(live.steps(u64::MAX).is_empty());
    }

    #[test]
    fn requests_are_listed_only_while_somebody_asks() {
        let live = Live::default();
        assert!(!live.is_watched(1));
        assert!(live.requests().is_empty());
        assert!(live.is_watched(WATCHED) && !live.is_watched(WATCHED + 1));
    }
}
