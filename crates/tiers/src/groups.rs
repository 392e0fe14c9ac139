//! Pages handed out in contiguous runs, so that a sequence's pages can be copied as few blocks.
//! A page is in exactly one place: free, set aside for one owner's growth, or given out.
//!
//! Follows FastSwitch's block group manager (2024): an owner that starts a new run gets the pages
//! after it set aside; when pages run short, what is set aside and not used is taken away again.

use std::collections::BTreeMap;
use std::ops::Range;

/// Who pages are set aside for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(pub u64);

/// A tier's pages.
#[derive(Debug)]
pub struct Groups {
    total: usize,
    /// Pages that an owner gets set aside with the first of a run.
    group: u32,
    /// First page and length of each free run; no two of them touch.
    free: BTreeMap<u32, u32>,
    /// What is set aside for each owner: the pages after its last one.
    aside: BTreeMap<Owner, Range<u32>>,
    /// Pages free or set aside.
    left: usize,
}

impl Groups {
    /// All pages free. `group` pages are set aside when an owner begins a run; 1 sets none aside.
    pub fn new(pages: usize, group: usize) -> Groups {
        let total = u32::try_from(pages).unwrap_or(u32::MAX);
        let mut free = BTreeMap::new();
        if total > 0 {
            free.insert(0, total);
        }
        Groups {
            total: total as usize,
            group: u32::try_from(group).unwrap_or(u32::MAX),
            free,
            aside: BTreeMap::new(),
            left: total as usize,
        }
    }

    /// Pages there are.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Pages that can be had, those set aside for others too.
    pub fn left(&self) -> usize {
        self.left
    }

    /// A page for an owner whose last one is `after`, if it has one: the next in memory if that
    /// can be.
    pub fn take(&mut self, owner: Owner, after: Option<u32>) -> Option<u32> {
        let page = self
            .take_aside(owner, after)
            .or_else(|| self.take_next(after))
            .or_else(|| self.begin_run(owner))
            .or_else(|| self.take_away())?;
        self.left -= 1;
        Some(page)
    }

    /// From what is set aside for the owner; pages that its run does not reach go back.
    fn take_aside(&mut self, owner: Owner, after: Option<u32>) -> Option<u32> {
        let aside = self.aside.get_mut(&owner)?;
        if after.map(|page| page + 1) == Some(aside.start)
            && let Some(page) = aside.next()
        {
            return Some(page);
        }
        self.set_free(owner);
        None
    }

    /// The page after the owner's last, if it is free.
    fn take_next(&mut self, after: Option<u32>) -> Option<u32> {
        let page = after?.checked_add(1)?;
        let length = self.free.remove(&page)?;
        if length > 1 {
            self.free.insert(page + 1, length - 1);
        }
        Some(page)
    }

    /// The first page of the largest free run. Of what follows, the owner gets its group set
    /// aside, but not more than half: others want to begin runs as well.
    fn begin_run(&mut self, owner: Owner) -> Option<u32> {
        let (&start, &length) = self
            .free
            .iter()
            .max_by_key(|(start, length)| (**length, u32::MAX - **start))?;
        self.free.remove(&start);
        let aside = (self.group.saturating_sub(1)).min((length - 1) / 2);
        let end = start + 1 + aside;
        if end < start + length {
            self.free.insert(end, start + length - end);
        }
        if aside > 0 {
            self.aside.insert(owner, start + 1..end);
        }
        Some(start)
    }

    /// The last page of the most that is set aside for anybody.
    fn take_away(&mut self) -> Option<u32> {
        let (_, most) = self.aside.iter_mut().max_by_key(|(_, range)| range.len())?;
        let page = most.next_back();
        if most.start == most.end {
            self.aside.retain(|_, range| range.start < range.end);
        }
        page
    }

    /// Takes a page back.
    pub fn give(&mut self, page: u32) {
        self.insert(page..page + 1);
        self.left += 1;
    }

    /// An owner grows no more: what was set aside for it is free.
    pub fn set_free(&mut self, owner: Owner) {
        if let Some(aside) = self.aside.remove(&owner) {
            self.insert(aside);
        }
    }

    /// Adds free pages, joined with the runs beside them.
    fn insert(&mut self, pages: Range<u32>) {
        if pages.start == pages.end {
            return;
        }
        let (mut start, mut length) = (pages.start, pages.end - pages.start);
        if let Some((&before, &its)) = self.free.range(..pages.start).next_back() {
            debug_assert!(before + its <= start, "page {start} is given back twice");
            if before + its == start {
                self.free.remove(&before);
                (start, length) = (before, its + length);
            }
        }
        if let Some(its) = self.free.remove(&pages.end) {
            length += its;
        }
        self.free.insert(start, length);
    }
}

/// How many contiguous runs pages lie in, in their order.
pub fn runs(pages: &[u32]) -> usize {
    let breaks = pages.windows(2).filter(|pair| pair[1] != pair[0] + 1);
    usize::from(!pages.is_empty()) + breaks.count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn owners_that_grow_in_turn_keep_their_runs() {
        let mut groups = Groups::new(64, 16);
        let mut tables = [vec![], vec![], vec![]];
        for _ in 0..8 {
            for (owner, table) in tables.iter_mut().enumerate() {
                let page = groups.take(Owner(owner as u64), table.last().copied());
                table.push(page.unwrap());
            }
        }
        assert_eq!(tables.map(|table| runs(&table)), [1, 1, 1]);
    }

    #[test]
    fn what_is_set_aside_goes_to_those_in_need() {
        let mut groups = Groups::new(8, 8);
        let first = groups.take(Owner(0), None).unwrap();
        let others: Vec<u32> = (0..7)
            .map(|_| groups.take(Owner(1), None).unwrap())
            .collect();
        assert_eq!(
            (groups.left(), groups.take(Owner(0), Some(first))),
            (0, None)
        );
        let mut all = others;
        all.push(first);
        all.sort_unstable();
        assert_eq!(all, (0..8).collect::<Vec<_>>());
    }

    #[test]
    fn runs_are_counted_in_order() {
        assert_eq!(runs(&[]), 0);
        assert_eq!(runs(&[4, 5, 6]), 1);
        assert_eq!(runs(&[4, 5, 7, 6]), 3);
    }

    proptest! {
        #[test]
        fn no_page_is_lost_or_in_two_places(
            pages in 0usize..40, group in 1usize..9,
            moves in prop::collection::vec((0usize..5, 0u8..8), 0..200),
        ) {
            let mut groups = Groups::new(pages, group);
            let mut tables: [Vec<u32>; 5] = Default::default();
            for (which, what) in moves {
                let table = &mut tables[which];
                let owner = Owner(which as u64);
                match what {
                    0 => {
                        table.drain(..).for_each(|page| groups.give(page));
                        groups.set_free(owner);
                    }
                    1 => table.pop().into_iter().for_each(|page| groups.give(page)),
                    _ => {
                        let left = groups.left();
                        let page = groups.take(owner, table.last().copied());
                        prop_assert_eq!(page.is_some(), left > 0);
                        table.extend(page);
                    }
                }
                let mut all: Vec<u32> = tables.iter().flatten().copied().collect();
                prop_assert_eq!(all.len() + groups.left(), pages);
                all.extend(groups.free.iter().flat_map(|(&start, &length)| start..start + length));
                all.extend(groups.aside.values().flat_map(|range| range.clone()));
                all.sort_unstable();
                prop_assert_eq!(all, (0..pages as u32).collect::<Vec<_>>());
            }
        }
    }
}
