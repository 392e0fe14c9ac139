//! What the engine's handles and its thread share: arrivals, closing, counters.
//! A request is in exactly one place: among the arrivals or with the loop.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use sedge_clock::Clock;

use crate::adapters::Adapters;
use crate::cache::{CacheStats, DiskTier};
use crate::live::Live;
use crate::sequence::{Asked, Sequence};
use crate::{EngineConfig, EngineStats, SubmitError};

/// Shared by handles and loop.
#[derive(Debug)]
pub(crate) struct Shared {
    inbox: Mutex<Inbox>,
    /// Rings for the loop: something arrived, or the engine closes.
    bell: Condvar,
    /// Rings for those who drain: nothing is left.
    empty: Condvar,
    max_waiting: usize,
    pub(crate) counters: Counters,
    pub(crate) live: Live,
    pub(crate) clock: Clock,
    cache: Mutex<Kept>,
    pub(crate) adapters: Arc<Adapters>,
    /// The disk tier, which works on while the loop sleeps.
    pub(crate) disk: OnceLock<DiskTier>,
}

/// What the cache holds and has done.
#[derive(Debug, Default)]
struct Kept {
    pages: usize,
    host: usize,
    stats: CacheStats,
}

#[derive(Debug)]
struct Inbox {
    arrivals: Vec<Sequence>,
    /// Requests taken so far.
    taken: u64,
    /// Requests that were taken and have not ended.
    live: usize,
    /// Those of them that do not run.
    waiting: usize,
    state: Door,
    /// When a request last ended, or the loop last woke up.
    last_end: Duration,
    /// Usual time between two ends while there is work.
    between_ends: Duration,
    /// Until when the places that come free were promised to callers who were refused.
    promised: Duration,
    /// Tenants of requests that have not ended, and how many of theirs wait.
    tenants: HashMap<Arc<str>, usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Open,
    /// Takes nothing more; what was taken goes on.
    Draining,
    /// Ends everything at the next step, for this reason.
    Closing(&'static str),
    /// The thread is gone.
    Closed,
}

/// Whether the loop goes on.
pub(crate) enum Closing {
    No,
    Now(&'static str),
}

/// The atomics behind [`EngineStats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) running: AtomicUsize,
    pub(crate) pages_used: AtomicUsize,
    pub(crate) pages: AtomicUsize,
    pub(crate) steps: AtomicU64,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) generated_tokens: AtomicU64,
    pub(crate) finished: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) preempted: AtomicU64,
}

/// Longest time that a caller is told to wait.
const LONGEST: Duration = Duration::from_secs(60);

impl Inbox {
    /// One end makes one place: each who is refused is promised the next one. Whole seconds, as
    /// HTTP wants them.
    fn promise(&mut self, now: Duration) -> Duration {
        let next = self.promised.max(now).saturating_add(self.between_ends);
        self.promised = next.min(now + LONGEST);
        let seconds = (self.promised - now).as_secs_f64().ceil();
        Duration::from_secs(seconds.max(1.0) as u64)
    }
}

impl Shared {
    pub(crate) fn new(config: &EngineConfig, clock: Clock) -> Shared {
        let inbox = Inbox {
            arrivals: Vec::new(),
            taken: 0,
            live: 0,
            waiting: 0,
            state: Door::Open,
            last_end: clock.now(),
            between_ends: Duration::ZERO,
            promised: Duration::ZERO,
            tenants: HashMap::new(),
        };
        Shared {
            inbox: Mutex::new(inbox),
            bell: Condvar::new(),
            empty: Condvar::new(),
            max_waiting: config.max_waiting.max(1),
            adapters: Adapters::new(config.adapter_memory),
            counters: Counters::default(),
            live: Live::default(),
            clock,
            cache: Mutex::default(),
            disk: OnceLock::new(),
        }
    }

    /// A panic while it is locked leaves counts that are still usable.
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn max_waiting(&self) -> usize {
        self.max_waiting
    }

    /// Whether a request would be taken now.
    pub(crate) fn admits(&self, asked: &Asked) -> Result<(), SubmitError> {
        self.check_door(&mut self.lock(), asked)
    }

    fn check_door(&self, inbox: &mut Inbox, asked: &Asked) -> Result<(), SubmitError> {
        if inbox.state != Door::Open {
            return Err(SubmitError::Closed);
        }
        let own = inbox.tenants.get(&asked.tenant).copied();
        let others = inbox.tenants.len() - usize::from(own.is_some());
        let own = own.unwrap_or(0);
        let left = self.max_waiting.saturating_sub(inbox.waiting);
        // Where several ask, none may have more of the queue than it leaves free (the dynamic
        // thresholds of Choudhury and Hahne, 1998): there is always a place for a newcomer.
        if left == 0 || (others > 0 && own >= left) {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            let retry_after = inbox.promise(self.clock.now());
            return Err(SubmitError::Busy {
                waiting: inbox.waiting,
                retry_after,
            });
        }
        if let Some(deadline) = asked.deadline {
            // Tenants are served in turn.
            let before = inbox.waiting.min((own + 1) * (others + 1));
            let before = u32::try_from(before).unwrap_or(u32::MAX);
            let wait = inbox.between_ends.saturating_mul(before);
            if wait > deadline {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                return Err(SubmitError::Late { wait });
            }
        }
        Ok(())
    }

    pub(crate) fn submit(&self, mut sequence: Sequence) -> Result<(), SubmitError> {
        let mut inbox = self.lock();
        self.check_door(&mut inbox, &sequence.asked)?;
        inbox.taken += 1;
        sequence.number = inbox.taken;
        *inbox
            .tenants
            .entry(sequence.asked.tenant.clone())
            .or_default() += 1;
        inbox.arrivals.push(sequence);
        inbox.live += 1;
        inbox.waiting += 1;
        self.bell.notify_one();
        Ok(())
    }

    /// Tells how many requests the loop has left and hands it those that arrived.
    fn trade(&self, inbox: &mut Inbox, sequences: &mut Vec<Sequence>) {
        sequences.append(&mut inbox.arrivals);
        inbox.live = sequences.len();
        inbox.waiting = sequences.iter().filter(|s| !s.running).count();
        inbox.tenants.clear();
        for sequence in sequences.iter() {
            match inbox.tenants.get_mut(&sequence.asked.tenant) {
                Some(waiting) => *waiting += usize::from(!sequence.running),
                None => {
                    let waiting = usize::from(!sequence.running);
                    inbox.tenants.insert(sequence.asked.tenant.clone(), waiting);
                }
            }
        }
        if inbox.live == 0 {
            self.empty.notify_all();
        }
    }

    /// Between two steps of the loop: trades, and waits while there is nothing to run.
    pub(crate) fn meet(&self, sequences: &mut Vec<Sequence>) -> Closing {
        let mut inbox = self.lock();
        self.trade(&mut inbox, sequences);
        loop {
            match inbox.state {
                Door::Closing(why) => return Closing::Now(why),
                _ if !sequences.is_empty() => return Closing::No,
                _ => {}
            }
            inbox = self
                .bell
                .wait(inbox)
                .unwrap_or_else(PoisonError::into_inner);
            inbox.last_end = self.clock.now();
            self.trade(&mut inbox, sequences);
        }
    }

    /// Trades without waiting.
    pub(crate) fn exchange(&self, sequences: &mut Vec<Sequence>) {
        self.trade(&mut self.lock(), sequences);
    }

    /// Requests ended by themselves: the basis of `Retry-After`.
    pub(crate) fn note_finished(&self, ended: usize, now: Duration) {
        self.counters
            .finished
            .fetch_add(ended as u64, Ordering::Relaxed);
        let mut inbox = self.lock();
        let between = now.saturating_sub(inbox.last_end) / u32::try_from(ended).unwrap_or(u32::MAX);
        inbox.between_ends = match inbox.between_ends {
            Duration::ZERO => between,
            usual => (usual * 4 + between) / 5,
        };
        inbox.last_end = now;
    }

    /// Takes no more, and waits until nothing is left or the time has passed. True when nothing is left.
    pub(crate) fn drain(&self, timeout: Duration) -> bool {
        let mut inbox = self.lock();
        if inbox.state == Door::Open {
            inbox.state = Door::Draining;
        }
        let (inbox, _) = self
            .empty
            .wait_timeout_while(inbox, timeout, |i| i.live > 0)
            .unwrap_or_else(PoisonError::into_inner);
        inbox.live == 0
    }

    /// Takes no more and ends what is left at the next step.
    pub(crate) fn close(&self, why: &'static str) {
        let mut inbox = self.lock();
        if !matches!(inbox.state, Door::Closing(_) | Door::Closed) {
            inbox.state = Door::Closing(why);
        }
        self.bell.notify_all();
    }

    /// The loop is gone, whatever the reason: nobody may wait for it.
    pub(crate) fn closed(&self) {
        let mut inbox = self.lock();
        inbox.state = Door::Closed;
        inbox.arrivals.clear();
        inbox.live = 0;
        inbox.waiting = 0;
        self.empty.notify_all();
    }

    /// What the cache holds and has done.
    pub(crate) fn note_cache(&self, [pages, host]: [usize; 2], stats: CacheStats) {
        *self.cache.lock().unwrap_or_else(PoisonError::into_inner) = Kept { pages, host, stats };
    }

    pub(crate) fn stats(&self) -> EngineStats {
        let c = &self.counters;
        let disk = self.disk.get();
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        EngineStats {
            pages_cached: cache.pages,
            pages_host: cache.host,
            pages_disk: disk.map_or(0, |disk| disk.0.stats().pages),
            cache: cache.stats,
            waiting: self.lock().waiting,
            running: c.running.load(Ordering::Relaxed),
            pages_used: c.pages_used.load(Ordering::Relaxed),
            pages: c.pages.load(Ordering::Relaxed),
            steps: c.steps.load(Ordering::Relaxed),
            prompt_tokens: c.prompt_tokens.load(Ordering::Relaxed),
            generated_tokens: c.generated_tokens.load(Ordering::Relaxed),
            finished: c.finished.load(Ordering::Relaxed),
            cancelled: c.cancelled.load(Ordering::Relaxed),
            refused: c.refused.load(Ordering::Relaxed),
            preempted: c.preempted.load(Ordering::Relaxed),
            adapters: self.adapters.stats(),
            memory: None,
        }
    }
}
