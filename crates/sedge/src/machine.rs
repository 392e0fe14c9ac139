//! What of the machine a model may use: threads, and memory for keys and values.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use sedge_kernels::{KvShape, KvType, PAGE_TOKENS, Team};
use sedge_models::{Cached, Info, Model, PackedCache};

use crate::failure::Failure;
use crate::output;
use crate::pressure::{self, Memory};
use crate::size::Bytes;
use crate::source::Source;

/// Options that every command with a running model shares.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Machine")]
pub(crate) struct MachineArgs {
    /// Threads that compute [default: the machine's physical cores]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,

    #[command(flatten)]
    pub(crate) weights: WeightsArgs,

    /// Type in which keys and values are kept [default: what the model was shrunk for, else f16]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) kv: Option<Kv>,

    /// Memory for each model's keys and values
    #[arg(long, value_name = "BYTES", default_value = "512MiB")]
    pub(crate) kv_memory: Bytes,

    /// Most tokens of a conversation [default: the model's own limit]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) context: Option<NonZeroUsize>,
}

impl MachineArgs {
    /// The type of keys and values.
    pub(crate) fn kv(&self) -> Kv {
        self.kv.unwrap_or(Kv::F16)
    }

    /// The same for a model that was shrunk for a type of keys and values, if no other is asked for.
    pub(crate) fn of(&self, info: &Info) -> MachineArgs {
        MachineArgs {
            kv: self.kv.or(shrunk_for(info)),
            ..self.clone()
        }
    }
}

/// The type of keys and values that a model was shrunk for, if it is one that there is.
pub(crate) fn shrunk_for(info: &Info) -> Option<Kv> {
    Kv::from_str(info.kv.as_deref()?, true).ok()
}

/// What is made of a model's weights before it runs.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Machine")]
pub(crate) struct WeightsArgs {
    /// How quantised weights are multiplied
    #[arg(long, value_enum, value_name = "HOW", default_value = "auto")]
    arithmetic: Arithmetic,

    /// Keep packed weights in this folder, so that the next start maps them; as large as the
    /// model, safe to delete [without DIR: sedge/packed in the user's cache folder]
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true,
          default_missing_value = "", env = "SEDGE_PACKED_CACHE")]
    packed_cache: Option<PathBuf>,

    /// Memory for the weights of a model whose matrices are stacks of blocks (sedge shrink --to
    /// stack), all other weights counted: as many blocks are used as fit. `auto` takes what the
    /// machine can spare; a server then follows it
    #[arg(long, value_name = "BYTES|auto")]
    memory: Option<Memory>,
}

impl WeightsArgs {
    /// The arithmetic, in a word.
    pub(crate) fn arithmetic_name(&self) -> &'static str {
        match self.arithmetic {
            Arithmetic::Auto => "auto",
            Arithmetic::Int8 => "int8",
            Arithmetic::F32 => "f32",
        }
    }

    /// Readies a model that was opened from a source.
    pub(crate) fn ready(
        &self,
        source: &Source,
        model: &mut Model,
        team: &Team,
    ) -> Result<(), Failure> {
        self.ready_file(source.path(), model, team)
    }

    /// Readies a model whose weights are all of one file, or of several.
    pub(crate) fn ready_file(
        &self,
        file: Option<&Path>,
        model: &mut Model,
        team: &Team,
    ) -> Result<(), Failure> {
        self.ready_blocks(model)?;
        if self.arithmetic == Arithmetic::F32 {
            return Ok(());
        }
        model.round_prompts(self.arithmetic == Arithmetic::Auto && sedge_kernels::rounds_fast());
        let failed = |error: std::io::Error| {
            Failure::new(format_args!("the weights could not be packed: {error}"))
                .hint("--arithmetic f32, which uses them as they lie in the file")
        };
        let Some(folder) = &self.packed_cache else {
            return model.pack(team).map_err(failed);
        };
        let folder = match folder.as_os_str().is_empty() {
            true => cache_folder("packed").ok_or_else(|| {
                Failure::new("there is no cache folder: neither XDG_CACHE_HOME nor HOME is set")
                    .hint("--packed-cache=DIR")
            })?,
            false => folder.clone(),
        };
        let cached = PackedCache::new(folder.clone()).pack(model, team, file);
        if let Cached::NotWritten(error) = cached.map_err(failed)? {
            output::note(format_args!(
                "sedge: packed weights could not be kept in {}: {error}",
                folder.display()
            ));
        }
        Ok(())
    }
}

impl WeightsArgs {
    /// Loads as many blocks of stacked matrices as there is memory for.
    fn ready_blocks(&self, model: &mut Model) -> Result<(), Failure> {
        if let Some(memory) = self.memory {
            memory.begin(model)?;
        }
        model.load_blocks().map_err(pressure::failure)
    }

    /// Whether the machine decides how much memory weights have.
    pub(crate) fn follows_machine(&self) -> bool {
        self.memory == Some(Memory::Auto)
    }
}

/// A folder under `$XDG_CACHE_HOME/sedge`, else under `~/.cache/sedge`.
pub(crate) fn cache_folder(name: &str) -> Option<PathBuf> {
    let set = |name: &str| {
        let value = std::env::var_os(name).filter(|v| !v.is_empty());
        value.map(PathBuf::from)
    };
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(cache.join("sedge").join(name))
}

/// How quantised weights are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Arithmetic {
    /// As int8, but prompts in bfloat16 where the processor has tiles for it
    Auto,
    /// Packed, with activations rounded to 8 bits
    Int8,
    /// Decoded to f32, with f32 activations: the reference
    F32,
}

/// A type of stored keys and values, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kv {
    /// Half precision
    F16,
    /// Single precision
    F32,
    /// The first half of single precision
    Bf16,
    /// 8 bits, and a scale for each token and head
    Q8,
    /// 4 bits, and a scale and a minimum for each 32 dimensions; rotated
    Q4,
}

impl std::fmt::Display for Kv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

impl From<Kv> for KvType {
    fn from(kv: Kv) -> KvType {
        match kv {
            Kv::F16 => KvType::F16,
            Kv::F32 => KvType::F32,
            Kv::Bf16 => KvType::BF16,
            Kv::Q8 => KvType::Q8,
            Kv::Q4 => KvType::Q4,
        }
    }
}

/// How many threads compute: as many as asked for, else one for each physical core that this
/// process may use (a core's second thread shares its arithmetic units and adds little).
pub(crate) fn threads(asked: Option<NonZeroUsize>) -> usize {
    asked.map_or_else(
        || num_cpus::get_physical().min(num_cpus::get()).max(1),
        NonZeroUsize::get,
    )
}

/// How many pages of all layers fit into `memory`; at least one.
pub(crate) fn pages(memory: Bytes, layers: usize, shape: KvShape, kv: KvType) -> usize {
    let page = (shape.page_bytes(kv) * layers).max(1);
    (memory.0 as usize / page).max(1)
}

/// How many tokens that many pages hold.
pub(crate) fn tokens(pages: usize) -> usize {
    pages * PAGE_TOKENS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_never_take_more_than_the_memory() {
        let shape = KvShape {
            heads: 4,
            k_dim: 64,
            v_dim: 64,
            v_in_k: false,
        };
        // 16 tokens × 4 heads × 128 values × 2 bytes × 8 layers = 128 KiB.
        assert_eq!(pages(Bytes(512 << 20), 8, shape, KvType::F16), 4096);
        assert_eq!(pages(Bytes((512 << 20) - 1), 8, shape, KvType::F16), 4095);
        assert_eq!(pages(Bytes(0), 8, shape, KvType::F16), 1);
    }
}
