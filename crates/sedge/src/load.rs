//! How much work a model takes on at once, in which order, and what it keeps of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use sedge_engine::{CacheConfig, EngineConfig, HostConfig, Policy, Prefixes};
use sedge_tiers::LinkConfig;

use crate::size::Bytes;
use crate::time;

/// Options of commands that serve many.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Load")]
pub(crate) struct LoadArgs {
    /// Most requests that run at once
    #[arg(long, value_name = "N", default_value_t = EngineConfig::default().max_running)]
    max_running: usize,

    /// Most requests that wait; further ones are answered 429
    #[arg(long, value_name = "N", default_value_t = EngineConfig::default().max_waiting)]
    max_waiting: usize,

    /// Most tokens of a step, answers first, then pieces of prompts
    #[arg(long, value_name = "N", default_value_t = EngineConfig::default().token_budget)]
    token_budget: usize,

    /// Cut steps so that an answer's next token takes at most this long, for example 50ms; what
    /// steps cost is measured at the first start
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    tbt_slo: Option<Duration>,

    /// How steps are composed
    #[arg(long, value_enum, value_name = "POLICY", default_value = "stall-free")]
    policy: PolicyName,

    /// A tenant's share of the service relative to others', which weigh 1 (repeatable)
    #[arg(long = "tenant", value_name = "NAME=WEIGHT")]
    weights: Vec<Weight>,

    /// A tenant with so much more service than another gives way to it
    #[arg(long, value_name = "TIME", value_parser = time::parse, default_value = "1s")]
    fair_quantum: Duration,

    /// Memory for adapters; those used least recently give way
    #[arg(long, value_name = "BYTES", default_value = "256MiB")]
    adapter_memory: Bytes,

    #[command(flatten)]
    cache: CacheArgs,
}

/// What is kept of keys and values.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Cache")]
struct CacheArgs {
    /// What later requests may share of earlier ones' keys and values
    #[arg(long, value_enum, value_name = "WHAT", default_value = "all")]
    prefix_cache: PrefixName,

    /// Tenants share nothing
    #[arg(long)]
    isolate_tenants: bool,

    /// Memory for keys and values that do not fit into --kv-memory: a second tier
    #[arg(long, value_name = "BYTES")]
    host_memory: Option<Bytes>,

    /// Bytes per second to and from the second tier [default: as fast as memory is]
    #[arg(long, value_name = "BYTES", requires = "host_memory")]
    host_rate: Option<Bytes>,

    /// Time that each block copied to or from the second tier takes besides
    #[arg(long, value_name = "TIME", value_parser = time::parse, default_value = "0s", requires = "host_memory")]
    host_copy_time: Duration,

    /// Keep keys and values in this folder, so that conversations go on quickly after a restart;
    /// safe to delete
    #[arg(long, value_name = "DIR")]
    disk_cache: Option<PathBuf>,

    /// Most bytes on disk for each model
    #[arg(
        long,
        value_name = "BYTES",
        default_value = "8GiB",
        requires = "disk_cache"
    )]
    disk_capacity: Bytes,

    /// Compute nothing while pages move (for comparison)
    #[arg(long, hide = true)]
    swap_waits: bool,

    /// Copy all of a request's pages whenever it moves (for comparison)
    #[arg(long, hide = true)]
    swap_whole: bool,

    /// Pages set aside for a sequence with the first of a run; 1 for none
    #[arg(long, value_name = "N", default_value_t = CacheConfig::default().group, hide = true)]
    page_group: usize,
}

impl LoadArgs {
    /// The time that a token should take at most.
    pub(crate) fn tbt_slo(&self) -> Option<Duration> {
        self.tbt_slo
    }

    /// The defaults, but nothing is kept.
    pub(crate) fn without_cache() -> LoadArgs {
        #[derive(clap::Parser)]
        struct Alone {
            #[command(flatten)]
            load: LoadArgs,
        }
        let args = ["sedge", "--prefix-cache=off"];
        <Alone as clap::Parser>::parse_from(args).load
    }

    /// Where pages are kept on disk, and how many bytes of them.
    pub(crate) fn disk(&self) -> Option<(&Path, Bytes)> {
        let folder = self.cache.disk_cache.as_deref()?;
        Some((folder, self.cache.disk_capacity))
    }

    /// The engine's settings for a model whose pages are of so many bytes.
    pub(crate) fn config(&self, page_bytes: usize) -> EngineConfig {
        let cache = &self.cache;
        let host = cache.host_memory.map(|memory| HostConfig {
            pages: memory.0 as usize / page_bytes.max(1),
            link: LinkConfig {
                rate: cache.host_rate.map_or(f64::INFINITY, |rate| rate.0 as f64),
                per_copy: cache.host_copy_time,
            },
            overlap: !cache.swap_waits,
            delta: !cache.swap_whole,
        });
        let weights: BTreeMap<String, f64> = self
            .weights
            .iter()
            .map(|tenant| (tenant.name.clone(), tenant.weight))
            .collect();
        EngineConfig {
            token_budget: self.token_budget.max(1),
            max_running: self.max_running.max(1),
            max_waiting: self.max_waiting,
            policy: self.policy.into(),
            costs: None,
            tbt_slo: self.tbt_slo,
            weights,
            fair_quantum: self.fair_quantum,
            cache: CacheConfig {
                prefixes: cache.prefix_cache.into(),
                isolate_tenants: cache.isolate_tenants,
                group: cache.page_group.max(1),
                host,
                disk: None,
            },
            adapter_memory: self.adapter_memory.0,
        }
    }
}

/// `NAME=WEIGHT`.
#[derive(Debug, Clone, PartialEq)]
struct Weight {
    name: String,
    weight: f64,
}

impl FromStr for Weight {
    type Err = String;

    fn from_str(text: &str) -> Result<Weight, String> {
        let wrong = || format!("{text:?} is not NAME=WEIGHT, such as batch=0.2");
        let (name, weight) = text.rsplit_once('=').ok_or_else(wrong)?;
        let weight: f64 = weight.parse().map_err(|_| wrong())?;
        let usable = weight.is_finite() && weight > 0.0;
        usable
            .then(|| Weight {
                name: name.to_owned(),
                weight,
            })
            .ok_or_else(|| format!("{text:?}: a weight is more than 0"))
    }
}

/// A policy, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PolicyName {
    /// No answer waits for a prompt
    StallFree,
    /// Whole prompts first; answers wait for them
    PrefillFirst,
    /// Whole prompts and answers together
    Orca,
    /// Pieces of prompts and answers in turn
    Alternate,
    /// One batch after the other
    Static,
}

impl From<PolicyName> for Policy {
    fn from(name: PolicyName) -> Policy {
        match name {
            PolicyName::StallFree => Policy::StallFree,
            PolicyName::PrefillFirst => Policy::PrefillFirst,
            PolicyName::Orca => Policy::Orca,
            PolicyName::Alternate => Policy::Alternate,
            PolicyName::Static => Policy::Static,
        }
    }
}

/// What is shared, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PrefixName {
    /// Prompts and answers
    All,
    /// What leaves answers the same to the last bit
    Prompts,
    /// Nothing
    Off,
}

impl From<PrefixName> for Prefixes {
    fn from(name: PrefixName) -> Prefixes {
        match name {
            PrefixName::All => Prefixes::All,
            PrefixName::Prompts => Prefixes::Prompts,
            PrefixName::Off => Prefixes::Off,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        load: LoadArgs,
    }

    fn config(args: &[&str]) -> EngineConfig {
        let args = std::iter::once("sedge").chain(args.iter().copied());
        Alone::parse_from(args).load.config(1 << 20)
    }

    #[test]
    fn without_options_the_engine_has_its_defaults() {
        assert_eq!(config(&[]), EngineConfig::default());
    }

    #[test]
    fn tiers_and_tenants_are_read() {
        let config = config(&[
            "--host-memory=1GiB",
            "--host-rate=2GB",
            "--tenant=a=2",
            "--tbt-slo=50ms",
        ]);
        let host = config.cache.host.unwrap();
        assert_eq!((host.pages, host.link.rate), (1024, 2e9));
        assert_eq!(config.weights["a"], 2.0);
        assert_eq!(config.tbt_slo, Some(Duration::from_millis(50)));
        assert!("a=0".parse::<Weight>().is_err() && "a".parse::<Weight>().is_err());
    }
}
