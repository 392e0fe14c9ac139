//! A fixed team of threads that share one job at a time.
//! A job never waits for a sleeping thread: who wakes up late finds the job closed.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Looks at the state this often (some 20 µs) before going to sleep: longer than the gap
/// between two products of a forward pass, short enough not to starve other processes.
const SPINS: u32 = 1000;

/// Set in `Shared::state` while threads may enter the job.
const OPEN: u64 = 1 << 63;
/// Step of the job number, in bits 32 to 62.
const NEXT_JOB: u64 = 1 << 32;
/// The part of the state that counts helpers inside the job.
const INSIDE: u64 = NEXT_JOB - 1;

thread_local! {
    /// Whether this thread is running a task of some team.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

type Task = dyn Fn(usize) + Sync;

/// Threads that wait for work; the caller is one of them.
pub struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// Held by the thread whose job runs.
    turn: Mutex<()>,
}

struct Shared {
    /// Open flag, job number, helpers inside.
    state: AtomicU64,
    /// Next task to claim.
    next: AtomicUsize,
    /// The job; written only by the holder of `turn` while the state is closed and empty.
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    /// The job's owner sleeps until the last helper leaves.
    owner_waits: AtomicBool,
    left: Condvar,
    stop: AtomicBool,
}

#[derive(Clone, Copy)]
struct Job {
    task: *const Task,
    tasks: usize,
}

// SAFETY: `job` is the only field that is not Sync. It is written while the state is closed
// with nobody inside, by the one thread that holds `turn`, and read by threads inside an open
// job; opening (release) and entering (acquire) order the two. The task itself is Sync.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` refers to a Sync closure, usable from any thread.
unsafe impl Send for Shared {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that panics runs under these locks, so a poisoned value is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Team {
    /// A team of `threads` (at least one, the caller's own).
    ///
    /// When the system refuses a thread, the team is smaller.
    pub fn new(threads: usize) -> Team {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            owner_waits: AtomicBool::new(false),
            left: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let helpers = (1..threads)
            .map_while(|i| {
                let shared = Arc::clone(&shared);
                let builder = std::thread::Builder::new().name(format!("team-{i}"));
                builder.spawn(move || shared.help()).ok()
            })
            .collect();
        Team {
            shared,
            helpers,
            turn: Mutex::new(()),
        }
    }

    /// How many threads share a job.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Runs `task(i)` for every `i` in `0..tasks`, each once, and returns when all are done.
    /// Tasks are claimed in order by whichever thread is free. Allocates nothing.
    ///
    /// Jobs of several callers take turns. A job started inside a task runs on that thread.
    ///
    /// # Panics
    /// When a task panicked, after all threads have left the job; tasks that nobody had
    /// claimed by then are not run.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.helpers.is_empty() || IN_TASK.get() {
            for i in 0..tasks {
                task(i);
            }
            return;
        }
        let turn = lock(&self.turn);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. Nobody enters the job once `close` has returned,
        // nobody is inside then, and this function calls it before `task`'s borrow ends: the
        // claims before it catch panics.
        let task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Task>(task) };
        let job = Job { task, tasks };
        // SAFETY: the state is closed and empty and this thread has the turn, see `Sync`.
        unsafe { *shared.job.get() = Some(job) };
        shared.next.store(0, Ordering::Relaxed);
        shared.open(tasks);
        shared.claim(job);
        shared.close();
        let panic = lock(&shared.panic).take();
        drop(turn);
        if let Some(payload) = panic {
            resume_unwind(payload);
        }
    }
}

impl Team {
    /// Calls `f(row, values)` for every row of `width` values, rows shared out in runs. One row
    /// is not worth waking anyone.
    ///
    /// # Panics
    /// When `x` is not whole rows.
    pub fn for_rows<T: Send>(
        &self,
        x: &mut [T],
        width: usize,
        f: &(dyn Fn(usize, &mut [T]) + Sync),
    ) {
        let rows = x.len() / width.max(1);
        assert_eq!(x.len(), rows * width, "x is not whole rows of {width}");
        let run = rows.div_ceil(4 * self.threads()).max(1);
        let x = Disjoint::new(x);
        self.run(rows.div_ceil(run), &|task| {
            for row in task * run..rows.min((task + 1) * run) {
                // SAFETY: each row belongs to one task.
                f(row, unsafe { x.part(row * width, width) });
            }
        });
    }
}

impl Shared {
    /// Lets helpers in, and wakes as many as there are tasks for.
    fn open(&self, tasks: usize) {
        let state = self.state.load(Ordering::Relaxed);
        self.state
            .store(((state + NEXT_JOB) & !INSIDE) | OPEN, Ordering::SeqCst);
        // A helper counts itself as asleep before it looks at the state a last time, and both
        // are sequentially consistent: either it sees the job or it is seen here.
        let sleepers = self.sleepers.load(Ordering::SeqCst);
        if sleepers > 0 {
            let _guard = lock(&self.sleep);
            for _ in 0..sleepers.min(tasks - 1) {
                self.wake.notify_one();
            }
        }
    }

    /// Keeps further helpers out and waits until those inside have left.
    fn close(&self) {
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        for _ in 0..SPINS {
            if self.state.load(Ordering::Acquire) & INSIDE == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        let mut guard = lock(&self.sleep);
        self.owner_waits.store(true, Ordering::SeqCst);
        while self.state.load(Ordering::SeqCst) & INSIDE != 0 {
            guard = self
                .left
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.owner_waits.store(false, Ordering::Relaxed);
    }

    /// Runs tasks until none is left to claim.
    fn claim(&self, job: Job) {
        IN_TASK.set(true);
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= job.tasks {
                break;
            }
            // SAFETY: this thread is inside the open job, so `run` has not returned and the
            // closure that it borrows is alive.
            let task = unsafe { &*job.task };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| task(i))) {
                // Far from overflow, whatever the number of threads that still add to it.
                self.next.store(usize::MAX / 2, Ordering::Relaxed);
                lock(&self.panic).get_or_insert(payload);
            }
        }
        IN_TASK.set(false);
    }

    /// A helper's life.
    fn help(&self) {
        let mut last = 0;
        while let Some(state) = self.wait_for_job(last) {
            let entered = state + 1;
            let entry =
                self.state
                    .compare_exchange(state, entered, Ordering::AcqRel, Ordering::Relaxed);
            if entry.is_err() {
                continue;
            }
            last = state >> 32;
            // SAFETY: inside an open job nobody writes the cell, see `Sync`.
            if let Some(job) = unsafe { *self.job.get() } {
                self.claim(job);
            }
            self.state.fetch_sub(1, Ordering::SeqCst);
            if self.owner_waits.load(Ordering::SeqCst) {
                let _guard = lock(&self.sleep);
                self.left.notify_all();
            }
        }
    }

    /// The state of an open job other than job `last`, or `None` when the team is dropped.
    fn wait_for_job(&self, last: u64) -> Option<u64> {
        let fresh = |state: u64| state & OPEN != 0 && state >> 32 != last;
        for _ in 0..SPINS {
            let state = self.state.load(Ordering::Acquire);
            if fresh(state) {
                return Some(state);
            }
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            std::hint::spin_loop();
        }
        let mut guard = lock(&self.sleep);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let found = loop {
            let state = self.state.load(Ordering::SeqCst);
            if fresh(state) {
                break Some(state);
            }
            if self.stop.load(Ordering::SeqCst) {
                break None;
            }
            guard = self
                .wake
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        found
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        {
            let _guard = lock(&self.shared.sleep);
            self.shared.wake.notify_all();
        }
        for helper in self.helpers.drain(..) {
            // A helper catches its tasks' panics, so there is nothing to learn from the result.
            let _ = helper.join();
        }
    }
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Team")
            .field("threads", &self.threads())
            .finish()
    }
}

/// A slice whose tasks write parts that do not overlap.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it only hands out parts, under the promise of `part` that they do not overlap.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Disjoint {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            borrow: std::marker::PhantomData,
        }
    }

    /// Asks for the value at `start`.
    pub(crate) fn prefetch(&self, start: usize) {
        crate::simd::prefetch(self.start.wrapping_add(start));
    }

    /// The `len` values from `start`.
    ///
    /// # Safety
    /// No other part in use at the same time may overlap this one.
    #[allow(clippy::mut_from_ref)] // parts are disjoint by the caller's promise
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: within the borrowed slice, by the check, and unshared, by the promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_exactly_once() {
        for threads in [1, 2, 3, 8] {
            let team = Team::new(threads);
            for tasks in [0, 1, 2, 7, 100, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                team.run(tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn many_short_jobs_all_finish() {
        let team = Team::new(4);
        let sum = AtomicUsize::new(0);
        for _ in 0..20_000 {
            team.run(5, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
        }
        assert_eq!(sum.into_inner(), 200_000);
    }

    #[test]
    fn callers_on_several_threads_take_turns() {
        let team = Team::new(3);
        let sum = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..500 {
                        team.run(10, &|_| {
                            sum.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 20_000);
    }

    #[test]
    fn a_job_inside_a_task_runs() {
        let team = Team::new(2);
        let sum = AtomicUsize::new(0);
        team.run(4, &|_| {
            team.run(3, &|_| {
                sum.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 12);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_still_works() {
        let team = Team::new(3);
        for bad in [0, 3, 63] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                team.run(64, &|i| assert_ne!(i, bad, "task {i} fails on purpose"));
            }));
            assert!(result.is_err());
            let done = AtomicUsize::new(0);
            team.run(64, &|_| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 64);
        }
    }
}
