//! How many connections there may be. When all seats are taken, the connection that has been idle
//! longest gives its seat up, so that many idle ones cannot keep a busy one out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// File descriptors kept for everything else: models, the log, the listener.
const OTHER_FILES: u64 = 64;

/// All seats.
#[derive(Debug)]
pub(crate) struct Seats {
    most: u32,
    free: Arc<Semaphore>,
    idle: Mutex<Idle>,
    /// A connection became idle, or did not leave when it was told to.
    rested: Notify,
}

/// Connections between requests, the one that is longest so first.
#[derive(Debug, Default)]
struct Idle {
    turn: u64,
    waiting: BTreeMap<u64, Arc<Notify>>,
}

/// A connection's seat; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    /// Told to close.
    leave: Arc<Notify>,
    /// Its place among the idle, if it is.
    turn: Mutex<Option<u64>>,
    _permit: OwnedSemaphorePermit,
}

impl Seats {
    /// At least one seat.
    pub(crate) fn new(most: usize) -> Arc<Seats> {
        let most = u32::try_from(most.clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        let free = Arc::new(Semaphore::new(most as usize));
        Arc::new(Seats {
            most,
            free,
            idle: Mutex::default(),
            rested: Notify::new(),
        })
    }

    /// Waits for a seat, making an idle connection leave if there is none. The new connection
    /// counts as idle.
    pub(crate) async fn take(self: &Arc<Seats>) -> Seat {
        loop {
            // Before looking: a connection that rests from here on is not missed.
            let rested = self.rested.notified();
            if self.free.available_permits() == 0 {
                self.let_oldest_leave();
            }
            let permit = tokio::select! {
                biased;
                permit = self.free.clone().acquire_owned() => permit,
                () = rested => continue,
            };
            // The semaphore is never closed.
            let Ok(permit) = permit else { continue };
            let leave = Arc::new(Notify::new());
            let seat = Seat {
                seats: self.clone(),
                leave,
                turn: Mutex::default(),
                _permit: permit,
            };
            seat.rest();
            return seat;
        }
    }

    /// Waits until all seats are free; false when it takes longer than `most`.
    pub(crate) async fn emptied(&self, most: Duration) -> bool {
        tokio::time::timeout(most, self.free.acquire_many(self.most))
            .await
            .is_ok()
    }

    fn let_oldest_leave(&self) {
        let oldest = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .waiting
            .pop_first();
        if let Some((_, leave)) = oldest {
            leave.notify_one();
        }
    }
}

impl Seat {
    /// A request has come. A connection that was told to leave stays after all.
    pub(crate) fn work(&self) {
        if self.give_up_turn() {
            // Another is to leave instead.
            self.seats.rested.notify_waiters();
        }
    }

    /// It is not idle any more. True if it had been told to leave.
    fn give_up_turn(&self) -> bool {
        let mut place = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(turn) = place.take() else {
            return false;
        };
        let mut idle = self
            .seats
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        idle.waiting.remove(&turn).is_none()
    }

    /// Whether it is idle and was told to leave since it became so.
    fn is_told(&self) -> bool {
        let place = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = self
            .seats
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        place.is_some_and(|turn| !idle.waiting.contains_key(&turn))
    }

    /// The answer is sent.
    pub(crate) fn rest(&self) {
        let mut place = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut idle = self
            .seats
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let turn = idle.turn;
        idle.turn += 1;
        idle.waiting.insert(turn, self.leave.clone());
        if let Some(before) = place.replace(turn) {
            idle.waiting.remove(&before);
        }
        self.seats.rested.notify_waiters();
    }

    /// Waits to be told to close while it is idle.
    pub(crate) async fn must_leave(&self) {
        loop {
            self.leave.notified().await;
            if self.is_told() {
                return;
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.give_up_turn();
    }
}

/// How many of `wanted` connections the process may open: raises its limit of file descriptors if
/// that is too low and may be raised.
#[cfg(unix)]
pub(crate) fn allowed_by_system(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let needed = (wanted as u64).saturating_add(OTHER_FILES);
    let limit = getrlimit(Resource::Nofile);
    let mut current = limit.current.unwrap_or(u64::MAX);
    let raised = needed.min(limit.maximum.unwrap_or(u64::MAX));
    if current < raised {
        let new = Rlimit {
            current: Some(raised),
            maximum: limit.maximum,
        };
        if setrlimit(Resource::Nofile, new).is_ok() {
            current = raised;
        }
    }
    let room = usize::try_from(current.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX);
    if room < wanted {
        tracing::warn!(
            "file descriptors are limited to {current}: at most {room} connections instead of {wanted}"
        );
    }
    wanted.min(room.max(1))
}

/// How many of `wanted` connections the process may open.
#[cfg(not(unix))]
pub(crate) fn allowed_by_system(wanted: usize) -> usize {
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_longest_idle_connection_leaves_first() {
        let seats = Seats::new(2);
        let (first, second) = (seats.take().await, seats.take().await);
        first.work();
        first.rest();
        // The second is now idle for longer.
        let third = tokio::spawn({
            let seats = seats.clone();
            async move { seats.take().await }
        });
        second.must_leave().await;
        drop(second);
        third.await.unwrap();
    }

    #[tokio::test]
    async fn busy_connections_stay_until_they_rest() {
        let seats = Seats::new(1);
        let first = seats.take().await;
        first.work();
        let mut second = Box::pin(seats.take());
        tokio::select! {
            biased;
            _ = &mut second => panic!("two connections on one seat"),
            () = tokio::task::yield_now() => {}
        }
        first.rest();
        tokio::select! {
            biased;
            _ = &mut second => panic!("two connections on one seat"),
            () = first.must_leave() => {}
        }
        drop(first);
        second.await;
    }

    #[tokio::test]
    async fn a_request_that_comes_in_time_keeps_its_seat_and_another_leaves() {
        let seats = Seats::new(2);
        let (first, second) = (seats.take().await, seats.take().await);
        let mut third = Box::pin(seats.take());
        tokio::select! {
            biased;
            _ = &mut third => panic!("three connections on two seats"),
            () = tokio::task::yield_now() => {}
        }
        // The first has been told to leave.
        first.work();
        tokio::select! {
            biased;
            _ = &mut third => panic!("three connections on two seats"),
            () = first.must_leave() => panic!("a busy connection left"),
            () = second.must_leave() => {}
        }
        drop(second);
        third.await;
    }
}
