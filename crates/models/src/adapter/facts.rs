//! What there is to know of an adapter without its model.

use std::path::Path;

use indexmap::IndexMap;
use sedge_formats::safetensors::Tensor;

use super::error::AdapterError;
use super::method::{self, Acts};
use super::open::Stored;
use super::settings::Settings;

/// What a checkpoint says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterFacts {
    /// The method, as its authors write it.
    pub method: &'static str,
    /// Where it changes a model.
    pub acts: Acts,
    /// The base that it names.
    pub base: Option<String>,
    /// Rank, where the method has one and all modules start with it.
    pub rank: Option<usize>,
    /// Positions that it puts before every prompt.
    pub positions: usize,
    /// Values in all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Whether it can become part of a model's weights.
    pub merges: bool,
    /// Whether requests with it can share a step with those of other adapters.
    pub batches: bool,
}

impl AdapterFacts {
    /// Reads a folder in PEFT's layout.
    ///
    /// # Errors
    /// When a file is missing or malformed, or the method is not known.
    pub fn read(folder: &Path) -> Result<AdapterFacts, AdapterError> {
        let Stored { config, tensors } = Stored::open(folder)?;
        AdapterFacts::of(&config, &tensors)
    }

    /// The same of the text of an `adapter_config.json` and tensors by name.
    ///
    /// # Errors
    /// When the configuration is malformed, or the method is not known.
    pub fn of(
        config: &str,
        tensors: &IndexMap<String, Tensor>,
    ) -> Result<AdapterFacts, AdapterError> {
        let settings = Settings::parse(config)?;
        let method = method::of(&settings)?;
        let rank = method.rank_field().map(|field| settings.rank(field));
        let positions = match method.acts() {
            Acts::KeysValues | Acts::Embeddings => settings.rank("num_virtual_tokens")?,
            Acts::Weights | Acts::Activations | Acts::Norms => 0,
        };
        let values = |t: &Tensor| t.data.len() / t.dtype.block_bytes() * t.dtype.block_len();
        Ok(AdapterFacts {
            method: method.name(),
            acts: method.acts(),
            base: settings.base(),
            rank: rank.transpose()?,
            positions,
            parameters: tensors.values().map(|t| values(t) as u64).sum(),
            bytes: tensors.values().map(|t| t.data.len() as u64).sum(),
            merges: method.acts().unmergeable().is_none(),
            batches: method.batches(),
        })
    }
}
