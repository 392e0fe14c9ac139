//! Memory that a model gives back when the machine runs short of it, and takes again later.
//!
//! Linux tells for how much of the last ten seconds some task has waited for memory (pressure
//! stall information), and how much could be had without any waiting. A [`Watch`] turns readings
//! into the bytes that a model should have: less at once when memory is short, more only after it
//! has been plentiful for a while, so that one model's growth is not the next one's shortage.

use std::time::Duration;

use sedge_models::StackMemory;

/// A look at the machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// Share of the last ten seconds in which some task waited for memory, 0 to 1. 0 where the
    /// system does not tell.
    pub stalled: f64,
    /// Bytes that could be had without taking them from anybody.
    pub available: u64,
    /// Bytes that the machine has.
    pub total: u64,
}

/// Memory is short when so much time was spent waiting for it,
const STALLED: f64 = 0.1;
/// or when less than this share of it is available.
const SCARCE: f64 = 0.05;
/// It is plentiful when nobody to speak of waits,
const CALM: f64 = 0.01;
/// and this share would be left.
const AMPLE: f64 = 0.15;
/// Parts of a model's range that come or go at a time.
const PARTS: u64 = 8;
/// What is given back shows in the next readings only after this time.
const SETTLES: Duration = Duration::from_secs(3);
/// Memory must have been plentiful for so long before more is taken.
const PATIENCE: Duration = Duration::from_secs(30);

impl Reading {
    /// Reads the machine; `None` where there is no `/proc/meminfo`.
    pub fn now() -> Option<Reading> {
        let pressure = std::fs::read_to_string("/proc/pressure/memory").unwrap_or_default();
        Reading::parse(&pressure, &std::fs::read_to_string("/proc/meminfo").ok()?)
    }

    /// From the texts of `/proc/pressure/memory`, which may be empty, and `/proc/meminfo`.
    fn parse(pressure: &str, meminfo: &str) -> Option<Reading> {
        let some = pressure.lines().find(|line| line.starts_with("some "));
        let ten = some.and_then(|line| line.split(' ').find_map(|f| f.strip_prefix("avg10=")));
        let stalled = ten.and_then(|percent| percent.parse::<f64>().ok());
        let bytes = |name: &str| {
            let line = meminfo.lines().find(|line| line.starts_with(name))?;
            let kibibytes = line.split_whitespace().nth(1)?.parse::<u64>().ok()?;
            kibibytes.checked_mul(1024)
        };
        Some(Reading {
            stalled: stalled.unwrap_or(0.0) / 100.0,
            available: bytes("MemAvailable:")?,
            total: bytes("MemTotal:")?,
        })
    }

    /// The most that a model of these sizes should begin with.
    pub fn first(&self, memory: StackMemory) -> u64 {
        let ample = (self.total as f64 * AMPLE) as u64;
        let most = self.available.saturating_sub(ample);
        most.clamp(memory.smallest, memory.largest)
    }
}

/// Decides from readings how much memory a model should have.
#[derive(Debug, Default)]
pub struct Watch {
    /// When it last changed.
    changed: Option<Duration>,
    /// Since when memory has been plentiful.
    calm: Option<Duration>,
}

impl Watch {
    /// What the model should have from now on, if that is other than what it has.
    pub fn next(&mut self, now: Duration, reading: Reading, memory: StackMemory) -> Option<u64> {
        let total = reading.total as f64;
        let part = (memory.largest - memory.smallest).div_ceil(PARTS).max(1);
        let short = reading.stalled > STALLED || (reading.available as f64) < total * SCARCE;
        let left = reading.available.saturating_sub(part) as f64;
        let plentiful = reading.stalled < CALM && left > total * AMPLE;
        self.calm = match plentiful {
            true => self.calm.or(Some(now)),
            false => None,
        };
        let waited = |since: Option<Duration>, time: Duration| {
            since.is_none_or(|since| now.saturating_sub(since) >= time)
        };
        let target = if short && waited(self.changed, SETTLES) {
            memory.bytes.saturating_sub(part).max(memory.smallest)
        } else if plentiful && waited(self.calm, PATIENCE) && waited(self.changed, PATIENCE) {
            memory.bytes.saturating_add(part).min(memory.largest)
        } else {
            return None;
        };
        // At an end of the range already.
        let moves = match short {
            true => memory.bytes > memory.smallest,
            false => memory.blocks < memory.of,
        };
        if !moves {
            return None;
        }
        self.changed = Some(now);
        Some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn memory(bytes: u64) -> StackMemory {
        StackMemory {
            bytes,
            smallest: 100,
            largest: 900,
            blocks: bytes as usize / 100,
            of: 9,
            matrices: 1,
            levels: (1, 9),
        }
    }

    fn reading(stalled: f64, available: u64) -> Reading {
        Reading {
            stalled,
            available: available * GIB,
            total: 100 * GIB,
        }
    }

    #[test]
    fn the_systems_texts_are_read() {
        let pressure = "some avg10=12.50 avg60=1.00 avg300=0.00 total=1\nfull avg10=3.00 total=0\n";
        let meminfo = "MemTotal:       24000 kB\nMemFree:  10 kB\nMemAvailable:    6000 kB\n";
        let expected = Reading {
            stalled: 0.125,
            available: 6000 << 10,
            total: 24000 << 10,
        };
        assert_eq!(Reading::parse(pressure, meminfo), Some(expected));
        assert_eq!(Reading::parse("", meminfo).unwrap().stalled, 0.0);
        assert_eq!(Reading::parse(pressure, "MemTotal: 1 kB"), None);
    }

    #[test]
    fn shortage_shrinks_at_once_and_growth_waits() {
        let mut watch = Watch::default();
        let mut bytes = 900;
        let mut at = |second: u64, reading: Reading, bytes: &mut u64| {
            let next = watch.next(Duration::from_secs(second), reading, memory(*bytes));
            if let Some(next) = next {
                *bytes = next;
            }
            next.is_some()
        };
        // Either sign is enough; what was given back must first show.
        assert!(at(0, reading(0.2, 50), &mut bytes) && bytes == 800);
        assert!(!at(1, reading(0.2, 50), &mut bytes));
        assert!(at(3, reading(0.0, 4), &mut bytes) && bytes == 700);
        // Plenty must last, and a single bad reading begins the wait again.
        assert!(!at(4, reading(0.0, 50), &mut bytes));
        assert!(!at(30, reading(0.05, 50), &mut bytes));
        assert!(!at(31, reading(0.0, 50), &mut bytes));
        assert!(!at(60, reading(0.0, 50), &mut bytes));
        assert!(at(61, reading(0.0, 50), &mut bytes) && bytes == 800);
        assert!(!at(62, reading(0.0, 50), &mut bytes));
        assert!(at(91, reading(0.0, 50), &mut bytes) && bytes == 900);
        assert!(!at(200, reading(0.0, 50), &mut bytes));
    }

    #[test]
    fn between_shortage_and_plenty_nothing_moves() {
        let mut watch = Watch::default();
        for second in 0..300 {
            let middling = reading(0.05, 10);
            let next = watch.next(Duration::from_secs(second), middling, memory(500));
            assert_eq!(next, None);
        }
    }

    #[test]
    fn the_smallest_model_stays() {
        let mut watch = Watch::default();
        for second in 0..100 {
            let next = watch.next(Duration::from_secs(second), reading(0.9, 1), memory(100));
            assert_eq!(next, None);
        }
        assert_eq!(reading(0.0, 1).first(memory(900)), 100);
        assert_eq!(reading(0.0, 50).first(memory(900)), 900);
    }
}
