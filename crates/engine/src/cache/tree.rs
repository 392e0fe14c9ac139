//! What pages hold, as a tree: a page's name is its tokens after those of the pages before it.
//! A page that somebody uses has only used pages before it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sedge_kernels::PAGE_TOKENS;
use sedge_tiers::PageKey;

/// A page's place in the tree.
pub(crate) type NodeId = u32;

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Label {
    pub(crate) tokens: [u32; PAGE_TOKENS],
    /// How many of them were computed as a prompt's. The others, which come after them, were
    /// generated, and some arithmetic treats the two differently.
    pub(crate) prompt: u8,
}

/// A page of one or more copies, or of none for the moment.
#[derive(Debug)]
pub(crate) struct Node {
    /// `None` for a root.
    parent: Option<NodeId>,
    label: Label,
    children: BTreeMap<Label, NodeId>,
    /// Children with a page in the device tier.
    device_children: u32,
    /// Sequences whose table has this page.
    users: u32,
    /// When it was last used, in uses.
    used: u64,
    device: Option<u32>,
    host: Option<u32>,
    moving: Moving,
    /// Names it in other tiers: a hash over all tokens up to its end, and whose they are.
    key: PageKey,
    listed: Listed,
}

/// What is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moving {
    No,
    /// From the device tier; the device's copy is good.
    Out,
    /// To the device tier; the device's copy is not there yet.
    In,
}

/// In which lists a node is, and under which use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Listed {
    used: u64,
    device_leaf: bool,
    uncopied: bool,
    host: bool,
    idle: bool,
}

/// All pages by name.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    nodes: Vec<Option<Node>>,
    vacant: Vec<NodeId>,
    /// Of namespaces that have pages, by their names' hashes.
    roots: HashMap<PageKey, NodeId>,
    uses: u64,
    /// Pages of the device tier that can be given up, least recently used first.
    device_leaves: BTreeSet<(u64, NodeId)>,
    /// Unused pages of the device tier without another copy.
    uncopied: BTreeSet<(u64, NodeId)>,
    /// Copies in the host tier that can be given up.
    host: BTreeSet<(u64, NodeId)>,
    /// Pages of the device tier that nobody uses.
    idle: usize,
}

impl Label {
    /// The name of a page with this label after the one of `parent`.
    pub(crate) fn key(&self, parent: PageKey) -> PageKey {
        let mut bytes = [0; 17 + 4 * PAGE_TOKENS];
        bytes[..16].copy_from_slice(&parent.0);
        bytes[16] = self.prompt;
        for (to, token) in bytes[17..].chunks_exact_mut(4).zip(self.tokens) {
            to.copy_from_slice(&token.to_le_bytes());
        }
        hash(&bytes)
    }
}

/// The name of what a namespace's sequences begin with: those of a tenant, computed with the same
/// weights.
pub(crate) fn namespace(tenant: &str, salt: &[u8]) -> PageKey {
    if salt.is_empty() {
        return hash(tenant.as_bytes());
    }
    let mut name = tenant.as_bytes().to_vec();
    name.extend((tenant.len() as u64).to_le_bytes());
    name.extend(salt);
    hash(&name)
}

/// The first 16 bytes of BLAKE3.
fn hash(bytes: &[u8]) -> PageKey {
    let mut key = [0; 16];
    key.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    PageKey(key)
}

impl Tree {
    /// A page that may have been forgotten.
    pub(crate) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id as usize)?.as_ref()
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        self.nodes[id as usize].as_ref().expect("ids are of nodes")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id as usize].as_mut().expect("ids are of nodes")
    }

    /// Pages of the device tier that nobody uses.
    pub(crate) fn idle(&self) -> usize {
        self.idle
    }

    /// Unused pages of the device tier that have a copy in the host tier or are on their way.
    pub(crate) fn copied(&self) -> usize {
        self.idle - self.uncopied.len()
    }

    /// Where a namespace's sequences begin, if it has any pages.
    pub(crate) fn find_root(&self, namespace: PageKey) -> Option<NodeId> {
        self.roots.get(&namespace).copied()
    }

    /// The same, to add pages to.
    pub(crate) fn root(&mut self, namespace: PageKey) -> NodeId {
        if let Some(root) = self.find_root(namespace) {
            return root;
        }
        let label = Label {
            tokens: [0; PAGE_TOKENS],
            prompt: 0,
        };
        let root = self.insert(None, label, namespace);
        self.roots.insert(namespace, root);
        root
    }

    /// The page of exactly this name.
    pub(crate) fn child(&self, parent: NodeId, label: &Label) -> Option<NodeId> {
        self.node(parent).children.get(label).copied()
    }

    /// A page of these tokens, however they were computed; `label`'s own way if there is one.
    pub(crate) fn child_of_any_kind(&self, parent: NodeId, label: &Label) -> Option<NodeId> {
        let children = &self.node(parent).children;
        let all = |prompt| Label { prompt, ..*label };
        children.get(label).copied().or_else(|| {
            let mut alike = children.range(all(0)..=all(u8::MAX));
            alike.next_back().map(|(_, &id)| id)
        })
    }

    /// A page in the device tier that begins with the most of `tokens`, and how many those are.
    pub(crate) fn closest(&self, parent: NodeId, tokens: &[u32]) -> Option<(NodeId, usize)> {
        let mut wanted = Label {
            tokens: [0; PAGE_TOKENS],
            prompt: 0,
        };
        let known = tokens.len().min(PAGE_TOKENS);
        wanted.tokens[..known].copy_from_slice(&tokens[..known]);
        let children = &self.node(parent).children;
        // In lexicographic order the neighbours have the longest prefixes in common.
        let neighbours = [
            children.range(..wanted).next_back(),
            children.range(wanted..).next(),
        ];
        let shared = |label: &Label| {
            let pairs = label.tokens.iter().zip(&tokens[..known]);
            pairs.take_while(|(a, b)| a == b).count()
        };
        let usable = neighbours.into_iter().flatten().filter(|(_, id)| {
            let node = self.node(**id);
            node.device.is_some() && node.moving != Moving::In
        });
        usable
            .map(|(label, &id)| (id, shared(label)))
            .max_by_key(|(_, shared)| *shared)
            .filter(|(_, shared)| *shared > 0)
    }

    fn insert(&mut self, parent: Option<NodeId>, label: Label, key: PageKey) -> NodeId {
        let node = Node {
            parent,
            label,
            children: BTreeMap::new(),
            device_children: 0,
            users: 0,
            used: self.uses,
            device: None,
            host: None,
            moving: Moving::No,
            key,
            listed: Listed::default(),
        };
        match self.vacant.pop() {
            Some(id) => {
                self.nodes[id as usize] = Some(node);
                id
            }
            None => {
                self.nodes.push(Some(node));
                (self.nodes.len() - 1) as NodeId
            }
        }
    }

    /// A new page, so far without a copy.
    pub(crate) fn add(&mut self, parent: NodeId, label: Label) -> NodeId {
        let key = label.key(self.node(parent).key);
        let id = self.insert(Some(parent), label, key);
        self.node_mut(parent).children.insert(label, id);
        self.list(parent);
        id
    }

    /// A sequence uses a page from now on.
    pub(crate) fn pin(&mut self, id: NodeId) {
        self.uses += 1;
        let uses = self.uses;
        let node = self.node_mut(id);
        node.users += 1;
        node.used = uses;
        self.list(id);
    }

    /// A sequence uses a page no more.
    pub(crate) fn unpin(&mut self, id: NodeId) {
        self.uses += 1;
        let uses = self.uses;
        let node = self.node_mut(id);
        debug_assert!(node.users > 0, "page {id} is unpinned twice");
        node.users -= 1;
        node.used = uses;
        self.list(id);
        self.forget_if_empty(id);
    }

    pub(crate) fn set_device(&mut self, id: NodeId, page: Option<u32>) {
        let before = std::mem::replace(&mut self.node_mut(id).device, page);
        if before.is_some() != page.is_some()
            && let Some(parent) = self.node(id).parent
        {
            let count = &mut self.node_mut(parent).device_children;
            *count = if page.is_some() {
                *count + 1
            } else {
                *count - 1
            };
            self.list(parent);
        }
        self.list(id);
        self.forget_if_empty(id);
    }

    pub(crate) fn set_host(&mut self, id: NodeId, slot: Option<u32>) {
        self.node_mut(id).host = slot;
        self.list(id);
        self.forget_if_empty(id);
    }

    pub(crate) fn set_moving(&mut self, id: NodeId, moving: Moving) {
        self.node_mut(id).moving = moving;
        self.list(id);
        self.forget_if_empty(id);
    }

    /// The least recently used page that the device tier can give up.
    pub(crate) fn oldest_device(&self) -> Option<NodeId> {
        self.device_leaves.first().map(|entry| entry.1)
    }

    /// The least recently used page of the device tier without another copy.
    pub(crate) fn oldest_uncopied(&self) -> Option<NodeId> {
        self.uncopied.first().map(|entry| entry.1)
    }

    /// The least recently used copy that the host tier can give up.
    pub(crate) fn oldest_host(&self) -> Option<NodeId> {
        self.host.first().map(|entry| entry.1)
    }

    /// Brings the lists up to date with a node.
    fn list(&mut self, id: NodeId) {
        let node = self.node(id);
        let idle = node.device.is_some() && node.users == 0;
        let still = node.moving == Moving::No;
        let new = Listed {
            used: node.used,
            device_leaf: idle && still && node.device_children == 0,
            uncopied: idle && still && node.host.is_none(),
            host: node.host.is_some()
                && still
                && (node.device.is_some() || (node.children.is_empty() && node.users == 0)),
            idle,
        };
        let old = std::mem::replace(&mut self.node_mut(id).listed, new);
        if old == new {
            return;
        }
        let mut relist = |set: fn(&mut Tree) -> &mut BTreeSet<(u64, NodeId)>, was, is| {
            let set = set(self);
            if was {
                set.remove(&(old.used, id));
            }
            if is {
                set.insert((new.used, id));
            }
        };
        relist(
            |tree| &mut tree.device_leaves,
            old.device_leaf,
            new.device_leaf,
        );
        relist(|tree| &mut tree.uncopied, old.uncopied, new.uncopied);
        relist(|tree| &mut tree.host, old.host, new.host);
        self.idle = self.idle + usize::from(new.idle) - usize::from(old.idle);
    }

    /// Forgets a page without copies, users and pages after it, and then perhaps the one before;
    /// a root when it has no pages.
    fn forget_if_empty(&mut self, mut id: NodeId) {
        loop {
            let node = self.node(id);
            let needed = node.users > 0
                || node.device.is_some()
                || node.host.is_some()
                || node.moving != Moving::No
                || !node.children.is_empty();
            if needed {
                return;
            }
            let (parent, label, key) = (node.parent, node.label, node.key);
            self.nodes[id as usize] = None;
            self.vacant.push(id);
            let Some(parent) = parent else {
                self.roots.remove(&key);
                return;
            };
            self.node_mut(parent).children.remove(&label);
            self.list(parent);
            id = parent;
        }
    }

    /// Nodes and roots that are kept.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.nodes.len() - self.vacant.len()
    }

    /// Nodes that are not roots, for tests.
    #[cfg(test)]
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter_map(|(id, node)| {
            let node = node.as_ref()?;
            node.parent?;
            Some((id as NodeId, node))
        })
    }
}

impl Node {
    pub(crate) fn device(&self) -> Option<u32> {
        self.device
    }

    pub(crate) fn host(&self) -> Option<u32> {
        self.host
    }

    pub(crate) fn moving(&self) -> Moving {
        self.moving
    }

    pub(crate) fn users(&self) -> u32 {
        self.users
    }

    pub(crate) fn key(&self) -> PageKey {
        self.key
    }

    #[cfg(test)]
    pub(crate) fn has_children(&self) -> bool {
        !self.children.is_empty()
    }
}
