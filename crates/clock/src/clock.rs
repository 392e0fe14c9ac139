//! A clock that runs by itself, or one that is told how late it is.
//! Clones of a clock show the same time, and no clock ever goes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Tells the time since it was made.
#[derive(Debug, Clone)]
pub struct Clock(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Real(Instant),
    /// Nanoseconds.
    Virtual(Arc<AtomicU64>),
}

impl Clock {
    /// The machine's own time.
    pub fn real() -> Clock {
        Clock(Kind::Real(Instant::now()))
    }

    /// A time that passes only when somebody waits.
    pub fn simulated() -> Clock {
        Clock(Kind::Virtual(Arc::default()))
    }

    /// Time since the clock was made.
    pub fn now(&self) -> Duration {
        match &self.0 {
            Kind::Real(start) => start.elapsed(),
            Kind::Virtual(now) => Duration::from_nanos(now.load(Ordering::Acquire)),
        }
    }

    /// Returns when it is `time`, at once if it is later. A simulated clock is then that late.
    pub fn wait_until(&self, time: Duration) {
        match &self.0 {
            Kind::Real(_) => {
                let left = time.saturating_sub(self.now());
                if !left.is_zero() {
                    std::thread::sleep(left);
                }
            }
            Kind::Virtual(now) => {
                let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                now.fetch_max(nanoseconds, Ordering::AcqRel);
            }
        }
    }

    /// Lets time pass.
    pub fn wait(&self, time: Duration) {
        self.wait_until(self.now() + time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_clock_stands_still_unless_somebody_waits() {
        let clock = Clock::simulated();
        let twin = clock.clone();
        assert_eq!(clock.now(), Duration::ZERO);
        clock.wait(Duration::from_secs(3600));
        clock.wait_until(Duration::from_secs(5));
        assert_eq!(twin.now(), Duration::from_secs(3600));
    }

    #[test]
    fn a_real_clock_is_never_early() {
        let clock = Clock::real();
        let time = clock.now() + Duration::from_millis(2);
        clock.wait_until(time);
        assert!(clock.now() >= time);
    }
}
