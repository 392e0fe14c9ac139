//! Which pages of keys and values belong to which request.
//! A page is in exactly one place: the free list or one table.

use sedge_kernels::PAGE_TOKENS;

/// Pages that a sequence of `tokens` takes.
pub(crate) fn pages_for(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}

/// One request's pages, oldest first.
///
/// Not `Clone`: a table is the only owner of its pages. Give them back with [`Pages::release`].
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<u32>);

impl Table {
    pub(crate) fn as_slice(&self) -> &[u32] {
        &self.0
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The pages that no request holds.
#[derive(Debug)]
pub(crate) struct Pages {
    free: Vec<u32>,
    total: usize,
}

impl Pages {
    pub(crate) fn new(total: usize) -> Pages {
        let total = u32::try_from(total).unwrap_or(u32::MAX);
        Pages {
            free: (0..total).rev().collect(),
            total: total as usize,
        }
    }

    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn total(&self) -> usize {
        self.total
    }

    pub(crate) fn used(&self) -> usize {
        self.total - self.free.len()
    }

    /// Gives a table pages until it holds `pages`. False, and nothing changed, when too few are free.
    #[must_use]
    pub(crate) fn grow(&mut self, table: &mut Table, pages: usize) -> bool {
        let missing = pages.saturating_sub(table.len());
        let Some(kept) = self.free.len().checked_sub(missing) else {
            return false;
        };
        table.0.extend(self.free.drain(kept..).rev());
        true
    }

    /// Takes all pages of a table back.
    pub(crate) fn release(&mut self, table: &mut Table) {
        self.free.extend(table.0.drain(..).rev());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pages_round_up() {
        assert_eq!([0, 1, 16, 17].map(pages_for), [0, 1, 1, 2]);
    }

    proptest! {
        #[test]
        fn no_page_is_lost_or_in_two_places(
            total in 0usize..40,
            moves in prop::collection::vec((0usize..6, 0usize..20, any::<bool>()), 0..80),
        ) {
            let mut pages = Pages::new(total);
            let mut tables: [Table; 6] = Default::default();
            for (which, wanted, grow) in moves {
                let (held, free) = (tables[which].len(), pages.free());
                if grow {
                    let fits = wanted.saturating_sub(held) <= free;
                    prop_assert_eq!(pages.grow(&mut tables[which], wanted), fits);
                    prop_assert_eq!(tables[which].len(), if fits { held.max(wanted) } else { held });
                } else {
                    pages.release(&mut tables[which]);
                    prop_assert_eq!(pages.free(), free + held);
                }
                let mut everywhere: Vec<u32> = pages.free.clone();
                everywhere.extend(tables.iter().flat_map(|t| t.as_slice()));
                everywhere.sort_unstable();
                prop_assert_eq!(everywhere, (0..total as u32).collect::<Vec<_>>());
            }
        }
    }
}
