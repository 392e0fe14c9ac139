//! The disk tier: pages of requests that have ended, for later ones and for after a restart.
//! A page that cannot be read is computed again.

use sedge_kernels::PAGE_TOKENS;
use sedge_tiers::{Fetched, PageKey};

use super::tree::{Label, Moving, NodeId};
use super::{Cache, Lease, Prefixes};
use crate::Executor;

/// Pages that are handed to the disk after one step.
const STORED: usize = 4;
/// Pages that wait for that; the oldest are left out when there are more.
pub(super) const UNSTORED: usize = 1 << 14;

impl Cache {
    /// A page on disk of these tokens; of its own kind, or else of any if that will do.
    pub(super) fn find_on_disk(&self, parent: PageKey, label: Label) -> Option<(Label, PageKey)> {
        let disk = &self.config.disk.as_ref()?.0;
        let own = [label.prompt];
        let all: [u8; PAGE_TOKENS + 1] = std::array::from_fn(|kind| kind as u8);
        let others: &[u8] = match self.config.prefixes {
            Prefixes::All => &all,
            Prefixes::Prompts | Prefixes::Off => &[],
        };
        for &prompt in own.iter().chain(others) {
            let mut label = label;
            label.prompt = prompt;
            let key = label.key(parent);
            if disk.contains(key) {
                return Some((label, key));
            }
        }
        None
    }

    /// Gives up the place of a page that could not be read, when nobody waits for it any more.
    pub(super) fn forget_if_lost(&mut self, id: NodeId) {
        if !self.lost.contains(&id) || self.tree.node(id).users() > 0 {
            return;
        }
        self.lost.remove(&id);
        let page = self.tree.node(id).device();
        self.tree.set_device(id, None);
        self.tree.set_moving(id, Moving::No);
        page.into_iter().for_each(|page| self.groups.give(page));
    }

    /// Whether a page of a sequence will not come: it is to begin again.
    pub(crate) fn is_lost(&self, lease: &Lease) -> bool {
        lease.arriving && lease.nodes.iter().any(|id| self.lost.contains(id))
    }

    pub(super) fn is_on_disk(&self, key: PageKey) -> bool {
        let disk = self.config.disk.as_ref();
        disk.is_some_and(|disk| disk.0.contains(key))
    }

    /// Hands a page to the disk tier, if there is one and it is there.
    pub(super) fn store(&self, id: NodeId, executor: &dyn Executor) {
        let (Some(disk), Some(node)) = (&self.config.disk, self.tree.get(id)) else {
            return;
        };
        if let (Some(page), true) = (node.device(), node.moving() != Moving::In)
            && !disk.0.contains(node.key())
        {
            disk.0.store(node.key(), executor.read_page(page));
        }
    }

    /// Hands some pages of requests that have ended to the disk tier.
    pub(crate) fn store_some(&mut self, executor: &dyn Executor) {
        for _ in 0..STORED {
            let Some(id) = self.unstored.pop_front() else {
                return;
            };
            self.store(id, executor);
        }
    }

    /// There is nothing to compute: hands the rest to the disk tier.
    pub(crate) fn store_rest(&mut self, executor: &dyn Executor) {
        while !self.unstored.is_empty() {
            self.store_some(executor);
        }
    }

    /// Nothing will be computed any more: waits until the disk tier has what is left.
    pub(crate) fn close(&mut self, executor: &dyn Executor) {
        while !self.unstored.is_empty() {
            self.store_some(executor);
            if let Some(disk) = &self.config.disk {
                disk.0.flush();
            }
        }
    }

    /// Pages in the disk tier.
    pub(crate) fn on_disk(&self) -> usize {
        let disk = self.config.disk.as_ref();
        disk.map_or(0, |disk| disk.0.stats().pages)
    }

    pub(super) fn take_what_was_read(&mut self, executor: &mut dyn Executor) {
        let fetched = match &self.config.disk {
            Some(disk) if !self.reading.is_empty() => disk.0.fetched(),
            _ => return,
        };
        for Fetched { key, bytes } in fetched {
            let Some(id) = self.reading.remove(&key) else {
                continue;
            };
            match (bytes, self.tree.node(id).device()) {
                (Some(bytes), Some(page)) => {
                    executor.write_page(page, &bytes);
                    self.tree.set_moving(id, Moving::No);
                }
                _ => {
                    self.lost.insert(id);
                    self.forget_if_lost(id);
                }
            }
        }
    }
}
