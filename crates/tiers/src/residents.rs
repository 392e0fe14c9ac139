//! Things of different sizes in a memory of bounded size: those used least recently give way.
//! What is pinned, or on its way, stays; what is used never exceeds the capacity.

use std::collections::HashMap;
use std::hash::Hash;

/// Which things are in a memory; the things themselves are their owner's.
#[derive(Debug)]
pub struct Residents<K> {
    capacity: u64,
    used: u64,
    entries: HashMap<K, Entry>,
    /// Counts uses.
    now: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    bytes: u64,
    pins: usize,
    /// Room is taken for it; it is not there yet.
    arriving: bool,
    last: u64,
}

impl<K: Copy + Eq + Hash + Ord> Residents<K> {
    /// A memory of so many bytes.
    pub fn new(capacity: u64) -> Residents<K> {
        Residents {
            capacity,
            used: 0,
            entries: HashMap::new(),
            now: 0,
        }
    }

    /// Bytes there are.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes that are taken, those of what is on its way too.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Things that are there or on their way.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Nothing is there.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether it is there.
    pub fn holds(&self, key: K) -> bool {
        self.entries.get(&key).is_some_and(|e| !e.arriving)
    }

    /// Whether it is on its way.
    pub fn awaits(&self, key: K) -> bool {
        self.entries.get(&key).is_some_and(|e| e.arriving)
    }

    /// Whether it is there, or on its way, and not pinned.
    pub fn is_idle(&self, key: K) -> bool {
        self.entries.get(&key).is_some_and(|e| e.pins == 0)
    }

    /// Takes room for something that is brought in from now on, and names what had to give way
    /// for it. `None` where there is no room, or if it is there or on its way already; then
    /// nothing is changed.
    pub fn reserve(&mut self, key: K, bytes: u64) -> Option<Vec<K>> {
        if self.entries.contains_key(&key) || bytes > self.capacity {
            return None;
        }
        let mut leaving = Vec::new();
        let mut left = self.used;
        if left + bytes > self.capacity {
            let idle = self
                .entries
                .iter()
                .filter(|(_, e)| e.pins == 0 && !e.arriving);
            let mut idle: Vec<(u64, K, u64)> = idle.map(|(k, e)| (e.last, *k, e.bytes)).collect();
            idle.sort_unstable();
            for (_, key, freed) in idle {
                if left + bytes <= self.capacity {
                    break;
                }
                left -= freed;
                leaving.push(key);
            }
        }
        if left + bytes > self.capacity {
            return None;
        }
        for key in &leaving {
            self.entries.remove(key);
        }
        self.now += 1;
        let entry = Entry {
            bytes,
            pins: 0,
            arriving: true,
            last: self.now,
        };
        self.entries.insert(key, entry);
        self.used = left + bytes;
        Some(leaving)
    }

    /// It is there from now on.
    pub fn commit(&mut self, key: K) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.arriving = false;
        }
    }

    /// It is not there, and will not be: its room is free. Pins on it are void.
    pub fn remove(&mut self, key: K) {
        if let Some(entry) = self.entries.remove(&key) {
            self.used -= entry.bytes;
        }
    }

    /// Keeps something that is there until it is unpinned as often; counts as a use. False if it
    /// is not there.
    pub fn pin(&mut self, key: K) -> bool {
        self.now += 1;
        let found = self.entries.get_mut(&key).filter(|e| !e.arriving);
        found.is_some_and(|entry| {
            entry.pins += 1;
            entry.last = self.now;
            true
        })
    }

    /// Takes one pin away.
    pub fn unpin(&mut self, key: K) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.pins = entry.pins.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_used_least_recently_gives_way() {
        let mut all = Residents::new(10);
        for key in 0..3 {
            assert_eq!(all.reserve(key, 3), Some(vec![]));
            all.commit(key);
        }
        assert!(all.pin(0));
        all.unpin(0);
        assert_eq!(all.reserve(3, 4), Some(vec![1]));
        assert!(all.awaits(3) && !all.holds(3) && !all.pin(3));
        // Neither what arrives nor what is pinned gives way.
        assert!(all.pin(2));
        assert_eq!(all.reserve(4, 6), None);
        assert_eq!(all.reserve(4, 3), Some(vec![0]));
        assert_eq!(all.used(), 10);
        all.remove(3);
        assert_eq!((all.used(), all.len()), (6, 2));
        assert_eq!(all.reserve(5, 11), None);
    }

    #[derive(Debug, Clone)]
    enum Move {
        Reserve(u8, u64),
        Commit(u8),
        Remove(u8),
        Pin(u8),
        Unpin(u8),
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let key = 0..6u8;
        let one = prop_oneof![
            (key.clone(), 0..9u64).prop_map(|(k, b)| Move::Reserve(k, b)),
            key.clone().prop_map(Move::Commit),
            key.clone().prop_map(Move::Remove),
            key.clone().prop_map(Move::Pin),
            key.prop_map(Move::Unpin),
        ];
        proptest::collection::vec(one, 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn the_capacity_is_never_exceeded_and_the_pinned_stay(moves in moves()) {
            let mut all = Residents::new(16);
            let mut pins = [0usize; 6];
            for step in moves {
                match step {
                    Move::Reserve(key, bytes) => {
                        if let Some(left) = all.reserve(key, bytes) {
                            prop_assert!(left.iter().all(|&k| pins[usize::from(k)] == 0));
                            prop_assert!(left.iter().all(|&k| !all.holds(k)));
                        }
                    }
                    Move::Commit(key) => all.commit(key),
                    Move::Remove(key) => {
                        all.remove(key);
                        pins[usize::from(key)] = 0;
                    }
                    Move::Pin(key) => pins[usize::from(key)] += usize::from(all.pin(key)),
                    Move::Unpin(key) => {
                        all.unpin(key);
                        pins[usize::from(key)] = pins[usize::from(key)].saturating_sub(1);
                    }
                }
                let sum: u64 = all.entries.values().map(|e| e.bytes).sum();
                prop_assert_eq!(all.used(), sum);
                prop_assert!(sum <= 16);
                for (key, pins) in pins.iter().enumerate() {
                    prop_assert!(*pins == 0 || all.holds(key as u8));
                }
            }
        }
    }
}
