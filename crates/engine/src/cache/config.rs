//! What is kept of keys and values, where, and what came of it.

use std::sync::Arc;
use std::time::Duration;

use sedge_tiers::{Disk, LinkConfig};

/// What is kept of keys and values, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct CacheConfig {
    /// Which pages later requests may share.
    pub prefixes: Prefixes,
    /// A tenant finds only what its own requests left.
    pub isolate_tenants: bool,
    /// Pages of the device tier that are set aside for a sequence with the first of a run; 1 for
    /// none.
    pub group: usize,
    /// The second tier.
    pub host: Option<HostConfig>,
    /// Pages that survive the process.
    pub disk: Option<DiskTier>,
}

impl Default for CacheConfig {
    fn default() -> CacheConfig {
        CacheConfig {
            prefixes: Prefixes::All,
            isolate_tenants: false,
            group: 16,
            host: None,
            disk: None,
        }
    }
}

/// Which pages later requests may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefixes {
    /// None: everything is computed again.
    Off,
    /// Those that were computed as the request would compute them, so that its answer is the same
    /// to the last bit: prompts share prompts' pages.
    Prompts,
    /// All. A page of an answer may differ in last digits from what the same tokens give as a
    /// prompt, where the machine rounds prompts.
    #[default]
    All,
}

/// A tier of memory beside the executor's own.
#[derive(Debug, Clone, PartialEq)]
pub struct HostConfig {
    /// Pages that it holds.
    pub pages: usize,
    /// How fast pages move, each way.
    pub link: LinkConfig,
    /// Moves go on beside the computation; otherwise it waits for each of them.
    pub overlap: bool,
    /// What the tier holds already is not copied again.
    pub delta: bool,
}

/// An opened file of pages. Copies of it are the same file.
#[derive(Debug, Clone)]
pub struct DiskTier(pub Arc<Disk>);

impl PartialEq for DiskTier {
    fn eq(&self, other: &DiskTier) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Tokens that were not computed because their page was there.
    pub reused_tokens: u64,
    /// Tokens that admitted requests had in all: what could at most have been reused.
    pub asked_tokens: u64,
    /// Bytes moved to the host tier.
    pub bytes_out: u64,
    /// Bytes moved from the host tier.
    pub bytes_in: u64,
    /// Blocks that they were copied as.
    pub copies: u64,
    /// Time that steps waited for pages on their way.
    pub stalled: Duration,
    /// Pages given up without a copy.
    pub dropped: u64,
}
