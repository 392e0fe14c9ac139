//! Where every sequence's keys and values lie: pages in use, pages kept for later, and their
//! copies in slower tiers.
//!
//! A full page belongs to the tree, under the name of its tokens, and whoever begins alike shares
//! it. So a later request, a conversation's next turn and a request that gave its pages up all
//! find what is left of them the same way. Pages that nobody uses stay until their room is needed;
//! with a host tier they are copied there before, once, and come back from there (FastSwitch,
//! 2024: contiguous runs, moves beside the computation, nothing copied twice).
//!
//! A page of the device tier is in one place: free, in one table, or in the tree.

mod config;
mod disk;
mod host;
mod tree;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use sedge_clock::Clock;
use sedge_kernels::PAGE_TOKENS;
use sedge_tiers::{Groups, Link, Owner, PageKey};

pub use self::config::{CacheConfig, CacheStats, DiskTier, HostConfig, Prefixes};
use self::disk::UNSTORED;
use self::host::{Host, Move, copies};
use self::tree::{Label, Moving, NodeId, Tree};
use crate::Executor;

/// A page is copied for its first tokens if it saves computing at least so many.
const WORTH_A_COPY: usize = 4;

/// A sequence's pages, oldest first: those of the tree, then its own.
///
/// Not `Clone`: its own pages are nobody else's. Give them back with [`Cache::release`].
#[derive(Debug, Default)]
pub(crate) struct Lease {
    pages: Vec<u32>,
    /// The tree's pages, which the first of `pages` are.
    nodes: Vec<NodeId>,
    owner: u64,
    /// Some of them were on their way when somebody last looked.
    arriving: bool,
    /// They were computed with more than one model's weights: nobody else's are alike.
    mixed: bool,
}

impl Lease {
    pub(crate) fn pages(&self) -> &[u32] {
        &self.pages
    }

    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    /// From now on its pages are computed with other weights than those before.
    pub(crate) fn mix(&mut self) {
        self.mixed = !self.pages.is_empty();
    }
}

/// A sequence, as far as its pages depend on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<'a> {
    pub(crate) tokens: &'a [u32],
    /// How many of them are the prompt.
    pub(crate) prompt: usize,
    pub(crate) tenant: &'a Arc<str>,
    /// Which weights compute it, if not the first ones.
    pub(crate) salt: &'a [u8],
    /// It needs no outputs of the tokens that are there already.
    pub(crate) reuses: bool,
}

/// What is there of a sequence that waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Tokens that need not be computed.
    pub(crate) tokens: usize,
    /// Their pages that others use at the moment.
    pub(crate) in_use: usize,
}

/// All pages of one engine.
#[derive(Debug)]
pub(crate) struct Cache {
    config: CacheConfig,
    groups: Groups,
    tree: Tree,
    host: Option<Host>,
    /// Pages of the disk tier on their way to the device tier, and those that did not come.
    reading: HashMap<PageKey, NodeId>,
    lost: HashSet<NodeId>,
    /// Pages that are to be kept on disk when there is time.
    unstored: VecDeque<NodeId>,
    owners: u64,
    /// What the weights are called that compute pages; 0 for the first ones.
    weights: u64,
    clock: Clock,
    stats: CacheStats,
    page_bytes: u64,
    /// Blocks of memory that a page has, one a layer.
    page_blocks: usize,
}

impl Cache {
    pub(crate) fn new(config: CacheConfig, executor: &dyn Executor, clock: Clock) -> Cache {
        let host = config.host.clone().filter(|h| h.pages > 0).map(|h| Host {
            slots: Groups::new(h.pages, config.group),
            memory: (0..h.pages).map(|_| None).collect(),
            out: Link::new(h.link),
            back: Link::new(h.link),
            moves: VecDeque::new(),
            config: h,
        });
        Cache {
            groups: Groups::new(executor.shape().pages, config.group),
            tree: Tree::default(),
            host,
            reading: HashMap::new(),
            lost: HashSet::new(),
            unstored: VecDeque::new(),
            owners: 0,
            weights: 0,
            clock,
            stats: CacheStats::default(),
            page_bytes: executor.page_bytes() as u64,
            page_blocks: executor.page_blocks().max(1),
            config,
        }
    }

    pub(crate) fn total(&self) -> usize {
        self.groups.total()
    }

    /// Whether pages are from now on computed with weights of another name. Those that are there
    /// are found again when the weights are what they were.
    pub(crate) fn compute_with(&mut self, weights: u64) -> bool {
        std::mem::replace(&mut self.weights, weights) != weights
    }

    /// Pages that can be had, if need be after waiting for some that are on their way out.
    pub(crate) fn free(&self) -> usize {
        self.groups.left() + self.tree.idle()
    }

    /// Pages that nobody uses and that are kept for later.
    pub(crate) fn cached(&self) -> usize {
        self.tree.idle()
    }

    /// Pages that running sequences use.
    pub(crate) fn used(&self) -> usize {
        self.total() - self.free()
    }

    pub(crate) fn stats(&self) -> CacheStats {
        self.stats
    }

    /// The name of a sequence's page.
    fn label(text: &Text<'_>, page: usize) -> Label {
        let start = page * PAGE_TOKENS;
        let mut tokens = [0; PAGE_TOKENS];
        tokens.copy_from_slice(&text.tokens[start..start + PAGE_TOKENS]);
        let prompt = text.prompt.clamp(start, start + PAGE_TOKENS) - start;
        Label {
            tokens,
            prompt: prompt as u8,
        }
    }

    /// Whose pages a sequence shares.
    fn namespace(&self, text: &Text<'_>) -> PageKey {
        let tenant = match self.config.isolate_tenants {
            true => text.tenant,
            false => "",
        };
        if self.weights == 0 {
            return tree::namespace(tenant, text.salt);
        }
        let weights = self.weights.to_le_bytes();
        tree::namespace(tenant, &[text.salt, b"weights", &weights].concat())
    }

    /// The last page of a lease that is the tree's, or where its sequence begins.
    fn parent(&mut self, lease: &Lease, text: &Text<'_>) -> NodeId {
        match lease.nodes.last() {
            Some(&last) => last,
            None => self.tree.root(self.namespace(text)),
        }
    }

    /// The page of the tree that goes on with a sequence, if it has a copy anywhere.
    fn next(&self, parent: NodeId, label: &Label) -> Option<NodeId> {
        let child = match self.config.prefixes {
            Prefixes::Off => return None,
            Prefixes::Prompts => self.tree.child(parent, label),
            Prefixes::All => self.tree.child_of_any_kind(parent, label),
        };
        child.filter(|&id| {
            let node = self.tree.node(id);
            (node.device().is_some() || node.host().is_some()) && !self.lost.contains(&id)
        })
    }

    /// The pages that a sequence begins with: those of the tree, then those that are only on disk.
    /// Its last token is computed in any case, since what comes after it is to be chosen.
    fn path(&self, text: &Text<'_>) -> (Vec<NodeId>, Vec<Label>) {
        let (mut path, mut on_disk) = (Vec::new(), Vec::new());
        if !text.reuses || self.config.prefixes == Prefixes::Off {
            return (path, on_disk);
        }
        let mut key = self.namespace(text);
        let mut last = self.tree.find_root(key);
        for page in 0..text.tokens.len().saturating_sub(1) / PAGE_TOKENS {
            let label = Self::label(text, page);
            last = last.and_then(|last| self.next(last, &label));
            key = match last {
                Some(next) => {
                    path.push(next);
                    self.tree.node(next).key()
                }
                None => {
                    let Some((label, found)) = self.find_on_disk(key, label) else {
                        break;
                    };
                    on_disk.push(label);
                    found
                }
            };
        }
        (path, on_disk)
    }

    /// What is there of a sequence that waits.
    pub(crate) fn find(&self, text: &Text<'_>) -> Found {
        let (path, on_disk) = self.path(text);
        let in_use = path.iter().filter(|&&id| self.tree.node(id).users() > 0);
        Found {
            tokens: (path.len() + on_disk.len()) * PAGE_TOKENS,
            in_use: in_use.count(),
        }
    }

    /// Gives a sequence all pages that it needs for its tokens, those first that are there: how
    /// many tokens need not be computed. `None`, and nothing changed, when too few pages are free.
    ///
    /// `recompute` tells the seconds that computing some tokens after others would take: pages
    /// that come later than that are computed instead.
    pub(crate) fn admit(
        &mut self,
        lease: &mut Lease,
        text: &Text<'_>,
        recompute: &dyn Fn(usize, usize) -> f64,
        executor: &mut dyn Executor,
    ) -> Option<usize> {
        debug_assert!(lease.pages.is_empty());
        self.owners += 1;
        lease.owner = self.owners;
        let (mut path, mut on_disk) = self.path(text);
        if self.leave_what_is_slow(&mut path, recompute) {
            on_disk.clear();
        }
        let absent = |cache: &Cache, id: &NodeId| cache.tree.node(*id).device().is_none();
        let wanted = text.tokens.len().div_ceil(PAGE_TOKENS);
        let idle = path.iter().filter(|&&id| {
            let node = self.tree.node(id);
            node.users() == 0 && node.device().is_some()
        });
        let there = path.iter().filter(|id| !absent(self, id)).count();
        if wanted - there + idle.count() > self.free() {
            return None;
        }
        for &id in &path {
            self.tree.pin(id);
        }
        for label in on_disk {
            let parent = match path.last() {
                Some(&last) => last,
                None => self.tree.root(self.namespace(text)),
            };
            let child = self.tree.child(parent, &label);
            // One that has come meanwhile, or that is lost and not yet given up, is let be.
            let there = |id: &NodeId| self.tree.node(*id).device().is_some();
            if child.as_ref().is_some_and(there) {
                break;
            }
            let id = child.unwrap_or_else(|| self.tree.add(parent, label));
            self.tree.pin(id);
            path.push(id);
        }
        lease.pages = path
            .iter()
            .map_while(|&id| self.tree.node(id).device())
            .collect();
        lease.nodes = path;
        let missing = lease.nodes[lease.pages.len()..].to_vec();
        let grown = self.grow(lease, wanted, executor);
        debug_assert!(grown, "pages were counted that are not free");
        for (&id, &page) in lease.nodes.iter().zip(&lease.pages).skip(there) {
            self.tree.set_device(id, Some(page));
        }
        // Pages that others wait for are not there either.
        lease.arriving = !lease.nodes.is_empty();
        self.bring(missing, executor);
        let mut computed = lease.nodes.len() * PAGE_TOKENS;
        computed += self.copy_beginning(lease, text, computed, executor);
        self.stats.asked_tokens += text.tokens.len() as u64;
        self.stats.reused_tokens += computed as u64;
        Some(computed)
    }

    /// The first tokens of a sequence's next page, from a page that begins alike.
    fn copy_beginning(
        &mut self,
        lease: &Lease,
        text: &Text<'_>,
        computed: usize,
        executor: &mut dyn Executor,
    ) -> usize {
        let rest = &text.tokens[computed..text.tokens.len() - 1];
        if self.config.prefixes != Prefixes::All || !text.reuses || rest.len() < WORTH_A_COPY {
            return 0;
        }
        let root = || self.tree.find_root(self.namespace(text));
        let parent = lease.nodes.last().copied().or_else(root);
        let own = lease.pages[lease.nodes.len()];
        match parent.and_then(|parent| self.tree.closest(parent, rest)) {
            Some((node, tokens)) if tokens >= WORTH_A_COPY => {
                if let Some(page) = self.tree.node(node).device() {
                    executor.copy_page(page, own);
                }
                tokens
            }
            _ => 0,
        }
    }

    /// Gives a sequence pages until it has `pages`. False, and nothing lost, when too few are free.
    pub(crate) fn grow(
        &mut self,
        lease: &mut Lease,
        pages: usize,
        executor: &mut dyn Executor,
    ) -> bool {
        while lease.pages.len() < pages {
            let Some(page) = self.page(lease.owner, lease.pages.last().copied(), executor) else {
                return false;
            };
            lease.pages.push(page);
        }
        true
    }

    /// One page of the device tier: a free one, the least recently used one that nobody uses, or
    /// the next one that leaves.
    fn page(&mut self, owner: u64, after: Option<u32>, executor: &mut dyn Executor) -> Option<u32> {
        loop {
            if let Some(page) = self.groups.take(Owner(owner), after) {
                return Some(page);
            }
            if let Some(oldest) = self.tree.oldest_device() {
                self.give_up(oldest, executor);
            } else if !self.wait_for_a_move(executor) {
                return None;
            }
        }
    }

    /// The device tier gives a page up that nobody uses.
    fn give_up(&mut self, id: NodeId, executor: &dyn Executor) {
        self.store(id, executor);
        let node = self.tree.node(id);
        let elsewhere = node.host().is_some() || self.is_on_disk(node.key());
        self.stats.dropped += u64::from(!elsewhere);
        if let Some(page) = node.device() {
            self.tree.set_device(id, None);
            self.groups.give(page);
        }
    }

    /// Waits for the first pages on their way, and for no others.
    fn wait_for_a_move(&mut self, executor: &mut dyn Executor) -> bool {
        if self.next_due().is_none() && self.reading.is_empty() {
            return false;
        }
        self.wait_for_pages(executor);
        true
    }

    fn wait_until(&mut self, due: Duration) {
        let now = self.clock.now();
        self.stats.stalled += due.saturating_sub(now);
        self.clock.wait_until(due);
    }

    /// Full pages of a sequence whose tokens are computed become the tree's. One that the tree has
    /// already is given back for it.
    pub(crate) fn publish(&mut self, lease: &mut Lease, text: &Text<'_>, computed: usize) {
        if self.config.prefixes == Prefixes::Off || lease.mixed {
            return;
        }
        while (lease.nodes.len() + 1) * PAGE_TOKENS <= computed {
            let index = lease.nodes.len();
            let parent = self.parent(lease, text);
            let label = Self::label(text, index);
            let own = lease.pages[index];
            let id = match self.tree.child(parent, &label) {
                Some(id) if self.tree.node(id).moving() == Moving::In => return,
                Some(id) => id,
                None => self.tree.add(parent, label),
            };
            self.tree.pin(id);
            match self.tree.node(id).device() {
                Some(page) => {
                    lease.pages[index] = page;
                    self.groups.give(own);
                }
                None => self.tree.set_device(id, Some(own)),
            }
            lease.nodes.push(id);
        }
    }

    /// Takes a sequence's pages: its own are free, the tree's are kept while there is room.
    pub(crate) fn release(&mut self, lease: &mut Lease) {
        for &own in &lease.pages[lease.nodes.len()..] {
            self.groups.give(own);
        }
        self.groups.set_free(Owner(lease.owner));
        if self.config.disk.is_some() {
            self.unstored.extend(&lease.nodes);
            let excess = self.unstored.len().saturating_sub(UNSTORED);
            self.unstored.drain(..excess);
        }
        for id in lease.nodes.drain(..).rev() {
            self.tree.unpin(id);
            self.forget_if_lost(id);
        }
        lease.pages.clear();
        lease.arriving = false;
        lease.mixed = false;
    }

    /// How many pages are free again when a sequence gives its own up.
    pub(crate) fn held(&self, lease: &Lease) -> usize {
        let shared = lease
            .nodes
            .iter()
            .filter(|&&id| self.tree.node(id).users() > 1);
        lease.pages.len() - shared.count()
    }

    /// Whether all pages of a sequence are there.
    pub(crate) fn is_there(&self, lease: &mut Lease) -> bool {
        let moving = |id: &NodeId| self.tree.node(*id).moving() == Moving::In;
        lease.arriving = lease.arriving && lease.nodes.iter().any(moving);
        !lease.arriving
    }

    /// Begins moving pages to the device tier.
    fn bring(&mut self, nodes: Vec<NodeId>, executor: &mut dyn Executor) {
        let in_host = |id: &NodeId| self.tree.node(*id).host().is_some();
        let (nodes, on_disk): (Vec<_>, Vec<_>) = nodes.into_iter().partition(in_host);
        for id in on_disk {
            let key = self.tree.node(id).key();
            self.tree.set_moving(id, Moving::In);
            self.reading.insert(key, id);
            if let Some(disk) = &self.config.disk {
                disk.0.fetch(key);
            }
        }
        let Some(host) = self.host.as_mut().filter(|_| !nodes.is_empty()) else {
            return;
        };
        let bytes = nodes.len() as u64 * self.page_bytes;
        let copies = copies(&self.tree, &nodes, self.config.group, self.page_blocks);
        for &id in &nodes {
            self.tree.set_moving(id, Moving::In);
        }
        let due = host.back.send(self.clock.now(), bytes, copies);
        self.stats.bytes_in += bytes;
        self.stats.copies += copies as u64;
        host.moves.push_back(Move {
            due,
            nodes,
            way: Moving::In,
        });
        self.after_send(due, executor);
    }

    /// Ends the moves whose time has come.
    pub(crate) fn settle(&mut self, executor: &mut dyn Executor) {
        self.take_what_was_read(executor);
        let now = self.clock.now();
        while let Some(host) = self.host.as_mut() {
            let Some(index) = host.moves.iter().position(|m| m.due <= now) else {
                return;
            };
            let Some(ended) = host.moves.remove(index) else {
                return;
            };
            for id in ended.nodes {
                self.settle_page(id, ended.way, executor);
            }
        }
    }

    /// Nothing to compute until pages have arrived: waits for the first.
    pub(crate) fn wait_for_pages(&mut self, executor: &mut dyn Executor) {
        match (self.next_due(), &self.config.disk) {
            (Some(due), _) => self.wait_until(due),
            (None, Some(disk)) if !self.reading.is_empty() => disk.0.wait(),
            _ => return,
        }
        self.settle(executor);
    }
}
