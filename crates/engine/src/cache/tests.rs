//! Every page in one place, whatever happens.

use std::collections::BTreeSet;

use super::*;

impl Cache {
    /// Pages and namespaces that have a name.
    pub(crate) fn names(&self) -> usize {
        self.tree.len()
    }

    /// Checks that each page is free, in one sequence's own part, or in the tree, that counts of
    /// users are right, and that so are the host tier's slots.
    pub(crate) fn audit(&self, leases: &[&Lease]) {
        let mut seen = BTreeSet::new();
        let mut users = std::collections::BTreeMap::new();
        for lease in leases {
            for &own in &lease.pages[lease.nodes.len()..] {
                assert!(seen.insert(own), "page {own} has two owners");
            }
            for (&page, &id) in lease.pages.iter().zip(&lease.nodes) {
                assert_eq!(self.tree.node(id).device(), Some(page));
                *users.entry(id).or_insert(0) += 1;
            }
        }
        let (mut idle, mut slots) = (0, BTreeSet::new());
        for (id, node) in self.tree.nodes() {
            assert_eq!(node.users(), users.get(&id).copied().unwrap_or(0));
            if let Some(page) = node.device() {
                assert!(seen.insert(page), "page {page} has two owners");
                idle += usize::from(node.users() == 0);
            }
            if let Some(slot) = node.host() {
                assert!(slots.insert(slot), "slot {slot} has two owners");
            }
            let somewhere = node.device().is_some() || node.host().is_some();
            assert!(somewhere || node.users() > 0 || node.has_children());
        }
        assert_eq!(idle, self.tree.idle());
        assert_eq!(seen.len() + self.groups.left(), self.groups.total());
        assert_eq!(slots.len(), self.in_host());
    }
}
