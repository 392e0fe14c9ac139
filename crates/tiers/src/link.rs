//! What it takes to move bytes between two tiers.
//! Moves over a link come one after the other; none arrives before its bytes can have passed.

use std::time::Duration;

/// Rate and latency of a link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkConfig {
    /// Bytes per second; infinite for no limit.
    pub rate: f64,
    /// Time that each copied block takes whatever its size.
    pub per_copy: Duration,
}

impl Default for LinkConfig {
    fn default() -> LinkConfig {
        LinkConfig {
            rate: f64::INFINITY,
            per_copy: Duration::ZERO,
        }
    }
}

/// One direction of a link.
#[derive(Debug)]
pub struct Link {
    config: LinkConfig,
    busy_until: Duration,
}

impl Link {
    /// An idle link.
    pub fn new(config: LinkConfig) -> Link {
        Link {
            config,
            busy_until: Duration::ZERO,
        }
    }

    /// Time that bytes in so many blocks take when the link is idle.
    pub fn time(&self, bytes: u64, copies: usize) -> Duration {
        let bytes = bytes as f64 / self.config.rate;
        let bytes = Duration::try_from_secs_f64(bytes).unwrap_or(Duration::MAX / 4);
        let copies = u32::try_from(copies).unwrap_or(u32::MAX);
        bytes.saturating_add(self.config.per_copy.saturating_mul(copies))
    }

    /// When bytes that are sent at `now` would have arrived.
    pub fn arrival(&self, now: Duration, bytes: u64, copies: usize) -> Duration {
        self.busy_until
            .max(now)
            .saturating_add(self.time(bytes, copies))
    }

    /// Sends bytes; when they will have arrived.
    pub fn send(&mut self, now: Duration, bytes: u64, copies: usize) -> Duration {
        self.busy_until = self.arrival(now, bytes, copies);
        self.busy_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_queue_behind_each_other() {
        let ms = Duration::from_millis;
        let mut link = Link::new(LinkConfig {
            rate: 1e6,
            per_copy: ms(1),
        });
        assert_eq!(link.send(ms(10), 4000, 2), ms(16));
        assert_eq!(link.arrival(ms(12), 1000, 1), ms(18));
        assert_eq!(link.send(ms(12), 1000, 1), ms(18));
        assert_eq!(link.send(ms(30), 0, 0), ms(30));
    }

    #[test]
    fn a_link_without_a_limit_takes_no_time() {
        let mut link = Link::new(LinkConfig::default());
        assert_eq!(link.send(Duration::ZERO, 1 << 40, 9), Duration::ZERO);
    }

    #[test]
    fn a_rate_of_nothing_is_never_done_and_never_overflows() {
        let mut link = Link::new(LinkConfig {
            rate: 0.0,
            per_copy: Duration::MAX,
        });
        assert!(link.send(Duration::ZERO, 1, 1) > Duration::from_secs(1 << 40));
        assert!(link.send(Duration::MAX, 1, 1) == Duration::MAX);
    }
}
