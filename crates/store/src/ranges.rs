//! Which bytes of a file are there: runs in order, apart from each other.

use std::ops::Range;

/// A set of bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Adds a run.
    pub(crate) fn insert(&mut self, run: Range<u64>) {
        if run.is_empty() {
            return;
        }
        // Those that touch it become one with it.
        let first = self.0.partition_point(|r| r.end < run.start);
        let last = self.0.partition_point(|r| r.start <= run.end);
        let mut whole = run;
        if let (Some(a), Some(b)) = (self.0.get(first), last.checked_sub(1))
            && first < last
        {
            whole = whole.start.min(a.start)..whole.end.max(self.0[b].end);
        }
        self.0.splice(first..last, [whole]);
    }

    /// Takes a run away.
    pub(crate) fn remove(&mut self, run: Range<u64>) {
        if run.is_empty() {
            return;
        }
        let mut left = Vec::with_capacity(self.0.len() + 1);
        for r in &self.0 {
            let before = r.start..r.end.min(run.start);
            let after = r.start.max(run.end)..r.end;
            left.extend([before, after].into_iter().filter(|r| !r.is_empty()));
        }
        self.0 = left;
    }

    /// The end of the run that holds `at`; `at` itself if none does.
    pub(crate) fn reach(&self, at: u64) -> u64 {
        let next = self.0.partition_point(|r| r.end <= at);
        match self.0.get(next) {
            Some(r) if r.start <= at => r.end,
            _ => at,
        }
    }

    /// What lacks to all of `0..size`.
    pub(crate) fn missing(&self, size: u64) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = 0;
        for r in &self.0 {
            missing.push(at..r.start.min(size));
            at = r.end;
        }
        missing.push(at..size);
        missing.retain(|r| !r.is_empty());
        missing
    }

    /// How many bytes are there.
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|r| r.end - r.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_are_the_set_that_they_stand_for(
            steps in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 0..40)
        ) {
            let (mut ranges, mut naive) = (Ranges::default(), [false; 80]);
            for (add, start, len) in steps {
                let run = start..start + len;
                naive[start as usize..(start + len) as usize].fill(add);
                match add {
                    true => ranges.insert(run),
                    false => ranges.remove(run),
                }
            }
            prop_assert_eq!(ranges.count(), naive.iter().filter(|&&b| b).count() as u64);
            for at in 0..80 {
                let run = naive[at..].iter().take_while(|&&b| b).count();
                prop_assert_eq!(ranges.reach(at as u64), (at + run) as u64);
            }
            let mut rest = Ranges::default();
            ranges.missing(80).into_iter().for_each(|r| rest.insert(r));
            prop_assert_eq!(rest.count() + ranges.count(), 80);
            for r in rest.0 {
                prop_assert!(!naive[r.start as usize] && !naive[r.end as usize - 1]);
            }
        }
    }
}
