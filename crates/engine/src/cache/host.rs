//! The second tier: pages move to it and back over links that take time.
//! A page that moves stays readable where it was until the move has ended.

use std::collections::VecDeque;
use std::time::Duration;

use sedge_kernels::PAGE_TOKENS;
use sedge_tiers::{Groups, Link, Owner, runs};

use super::tree::{Moving, NodeId, Tree};
use super::{Cache, HostConfig, Lease, tree};
use crate::Executor;

/// Pages that move to the host tier together.
const PART: usize = 8;

/// Pages on their way.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) due: Duration,
    pub(super) nodes: Vec<NodeId>,
    pub(super) way: Moving,
}

/// The second tier and the links to it.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) config: HostConfig,
    pub(super) slots: Groups,
    pub(super) memory: Vec<Option<Vec<u8>>>,
    pub(super) out: Link,
    pub(super) back: Link,
    pub(super) moves: VecDeque<Move>,
}

impl Cache {
    /// Pages that are on their way out and nobody can have at once.
    pub(crate) fn leaving(&self) -> usize {
        let Some(host) = &self.host else { return 0 };
        let out = host.moves.iter().filter(|m| m.way == Moving::Out);
        out.map(|m| m.nodes.len()).sum()
    }

    /// Pages in the host tier.
    pub(crate) fn in_host(&self) -> usize {
        let host = self.host.as_ref();
        host.map_or(0, |host| host.slots.total() - host.slots.left())
    }

    /// Drops from a path's end what would come later than computing it would take. Whether
    /// anything was dropped.
    pub(super) fn leave_what_is_slow(
        &self,
        path: &mut Vec<NodeId>,
        recompute: &dyn Fn(usize, usize) -> f64,
    ) -> bool {
        let Some(host) = &self.host else { return false };
        let there = path
            .iter()
            .take_while(|&&id| self.tree.node(id).device().is_some())
            .count();
        let absent = path.len() - there;
        if absent == 0 {
            return false;
        }
        let now = self.clock.now();
        let arrival = host.back.arrival(now, absent as u64 * self.page_bytes, 1);
        let seconds = recompute(there * PAGE_TOKENS, absent * PAGE_TOKENS);
        let slow = (arrival - now).as_secs_f64() > seconds;
        if slow {
            path.truncate(there);
        }
        slow
    }

    /// A sequence gives its pages up and will come back. If moving them to the host tier and back
    /// takes less than `recompute` seconds, that begins now.
    pub(crate) fn suspend(
        &mut self,
        lease: &mut Lease,
        recompute: f64,
        executor: &mut dyn Executor,
    ) {
        let nodes = lease.nodes.clone();
        self.release(lease);
        let Some(host) = &self.host else { return };
        let (bytes, now) = (nodes.len() as u64 * self.page_bytes, self.clock.now());
        let there = host.out.arrival(now, bytes, 1) - now;
        let back = host.back.time(bytes, 1);
        if (there + back).as_secs_f64() > recompute {
            return;
        }
        let uncopied = nodes.into_iter().filter(|&id| {
            let node = self.tree.node(id);
            node.users() == 0 && node.host().is_none() && node.moving() == Moving::No
        });
        let uncopied = uncopied.collect();
        self.copy_out(uncopied, executor);
    }

    /// Begins copying pages to the host tier, as far as there is room.
    pub(super) fn copy_out(&mut self, mut nodes: Vec<NodeId>, executor: &mut dyn Executor) {
        let mut after = None;
        let mut placed = 0;
        for &id in &nodes {
            let Some(slot) = self.slot(after) else { break };
            self.tree.set_host(id, Some(slot));
            self.tree.set_moving(id, Moving::Out);
            after = Some(slot);
            placed += 1;
        }
        nodes.truncate(placed);
        let Some(host) = self.host.as_mut().filter(|_| !nodes.is_empty()) else {
            return;
        };
        let bytes = nodes.len() as u64 * self.page_bytes;
        let copies = copies(&self.tree, &nodes, self.config.group, self.page_blocks);
        self.stats.bytes_out += bytes;
        self.stats.copies += copies as u64;
        // In parts, so that whoever waits for a page does not wait for all of them.
        let mut due = self.clock.now();
        let part = match host.config.overlap {
            true => PART,
            false => nodes.len(),
        };
        let parts = nodes.len().div_ceil(part);
        for part in nodes.chunks(part) {
            let bytes = part.len() as u64 * self.page_bytes;
            due = host
                .out
                .send(self.clock.now(), bytes, copies.div_ceil(parts));
            host.moves.push_back(Move {
                due,
                nodes: part.to_vec(),
                way: Moving::Out,
            });
        }
        self.after_send(due, executor);
    }

    /// Where moves take no time, or the computation waits for them, they are done at once.
    pub(super) fn after_send(&mut self, due: Duration, executor: &mut dyn Executor) {
        if self.host.as_ref().is_some_and(|h| !h.config.overlap) {
            self.wait_until(due);
        }
        self.settle(executor);
    }

    /// A slot of the host tier: a free one, or that of the least recently used copy.
    pub(super) fn slot(&mut self, after: Option<u32>) -> Option<u32> {
        loop {
            let host = self.host.as_mut()?;
            if let Some(slot) = host.slots.take(Owner(0), after) {
                return Some(slot);
            }
            let oldest = self.tree.oldest_host()?;
            self.drop_host_copy(oldest);
        }
    }

    pub(super) fn drop_host_copy(&mut self, id: NodeId) {
        let (Some(host), Some(slot)) = (self.host.as_mut(), self.tree.node(id).host()) else {
            return;
        };
        host.memory[slot as usize] = None;
        host.slots.give(slot);
        self.tree.set_host(id, None);
    }

    pub(super) fn settle_page(&mut self, id: NodeId, way: Moving, executor: &mut dyn Executor) {
        let node = self.tree.node(id);
        let (Some(page), Some(slot)) = (node.device(), node.host()) else {
            return;
        };
        let Some(host) = self.host.as_mut() else {
            return;
        };
        match way {
            Moving::Out => host.memory[slot as usize] = Some(executor.read_page(page)),
            _ => {
                if let Some(bytes) = &host.memory[slot as usize] {
                    executor.write_page(page, bytes);
                }
            }
        }
        let keep = host.config.delta;
        self.tree.set_moving(id, Moving::No);
        if way == Moving::In && !keep {
            self.drop_host_copy(id);
        }
    }

    /// Copies the pages that were used least to the host tier before their room is needed, while
    /// the link has nothing else to do.
    pub(crate) fn copy_ahead(&mut self, executor: &mut dyn Executor) {
        let now = self.clock.now();
        let Some(host) = &self.host else { return };
        let idle = host.config.overlap && host.out.arrival(now, 0, 0) <= now;
        let low = (self.total() / 8).max(8);
        if !idle || self.groups.left() + self.tree.copied() >= low {
            return;
        }
        let mut nodes = Vec::new();
        while nodes.len() < PART {
            let Some(oldest) = self.tree.oldest_uncopied() else {
                break;
            };
            // Out of the list, so that the next one is found; `copy_out` sets it again.
            self.tree.set_moving(oldest, Moving::Out);
            nodes.push(oldest);
        }
        for &id in &nodes {
            self.tree.set_moving(id, Moving::No);
        }
        self.copy_out(nodes, executor);
    }

    /// When the next move ends.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        let host = self.host.as_ref()?;
        host.moves.iter().map(|m| m.due).min()
    }
}

/// As how many blocks pages are copied: one a layer for each run, or for each page where pages
/// are not kept in groups.
pub(super) fn copies(tree: &Tree, nodes: &[NodeId], group: usize, blocks: usize) -> usize {
    if group <= 1 {
        return nodes.len() * blocks;
    }
    let pages = |of: fn(&tree::Node) -> Option<u32>| -> Vec<u32> {
        nodes.iter().filter_map(|&id| of(tree.node(id))).collect()
    };
    runs(&pages(tree::Node::device)).max(runs(&pages(tree::Node::host))) * blocks
}
