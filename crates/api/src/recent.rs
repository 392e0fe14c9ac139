//! Latencies of the last minutes, for the live view.
//! A bounded number is kept: under a heavy load the view covers less time.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// How long latencies are looked at.
const WINDOW: Duration = Duration::from_secs(300);
/// Latencies that are kept of each kind.
const KEPT: usize = 16_384;

/// Latencies of one kind.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<VecDeque<(Instant, f32)>>);

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: f32,
    pub(crate) p90: f32,
    pub(crate) p99: f32,
    /// Of so many.
    pub(crate) count: usize,
}

impl Recent {
    /// Notes a latency.
    pub(crate) fn note(&self, now: Instant, latency: Duration) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back((now, latency.as_secs_f32() * 1e3));
    }

    /// Those within the window before `now`; `None` of none.
    pub(crate) fn percentiles(&self, now: Instant) -> Option<Percentiles> {
        let mut latencies: Vec<f32> = {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let old = |at: &Instant| now.saturating_duration_since(*at) > WINDOW;
            let first = kept.partition_point(|(at, _)| old(at));
            kept.drain(..first);
            kept.iter().map(|(_, latency)| *latency).collect()
        };
        latencies.sort_by(f32::total_cmp);
        let count = latencies.len();
        let last = count.checked_sub(1)?;
        let at = |share: f64| latencies[((count as f64 * share) as usize).min(last)];
        Some(Percentiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_last_minutes() {
        let recent = Recent::default();
        let start = Instant::now();
        assert_eq!(recent.percentiles(start), None);
        recent.note(start, Duration::from_secs(9));
        let later = start + WINDOW + Duration::from_secs(1);
        for ms in 1..=100 {
            recent.note(later, Duration::from_millis(ms));
        }
        let found = recent.percentiles(later).unwrap();
        assert_eq!((found.p50, found.p90, found.p99), (51.0, 91.0, 100.0));
        assert_eq!(found.count, 100);
        assert_eq!(recent.percentiles(later + 2 * WINDOW), None);
    }

    #[test]
    fn the_oldest_make_room() {
        let (recent, now) = (Recent::default(), Instant::now());
        recent.note(now, Duration::from_secs(99));
        (0..KEPT).for_each(|_| recent.note(now, Duration::from_millis(1)));
        let found = recent.percentiles(now).unwrap();
        assert_eq!((found.count, found.p99), (KEPT, 1.0));
    }
}
