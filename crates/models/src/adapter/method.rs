//! The methods of tuning, one trait for all: where each acts, and how its checkpoint is read.

use std::fmt::Debug;

use super::Adapter;
use super::adalora::AdaLora;
use super::before::{PTuning, Prefix, Prompt};
use super::dora::Dora;
use super::error::AdapterError;
use super::ia3::Ia3;
use super::loha::LoHa;
use super::lokr::LoKr;
use super::lora::Lora;
use super::norms::Norms;
use super::reader::Reader;
use super::settings::Settings;
use super::vera::Vera;

/// Where a method changes a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acts {
    /// A term is added to weights.
    Weights,
    /// What weights read or give is scaled.
    Activations,
    /// Weights of norms are replaced.
    Norms,
    /// Keys and values stand before every prompt.
    KeysValues,
    /// Embeddings stand before every prompt.
    Embeddings,
}

impl Acts {
    /// In a word or two, to show.
    pub fn name(self) -> &'static str {
        match self {
            Acts::Weights => "weights",
            Acts::Activations => "activations",
            Acts::Norms => "norms",
            Acts::KeysValues => "keys and values",
            Acts::Embeddings => "embeddings",
        }
    }

    /// Why such a change is no change of weights, if it is none.
    pub fn unmergeable(self) -> Option<&'static str> {
        match self {
            Acts::Weights | Acts::Activations | Acts::Norms => None,
            Acts::KeysValues => Some("keys and values before the prompt are part of no weight"),
            Acts::Embeddings => Some("embeddings before the prompt are part of no weight"),
        }
    }
}

/// A method of parameter-efficient tuning.
pub(crate) trait Method: Debug + Sync {
    /// As its authors write it.
    fn name(&self) -> &'static str;

    /// `peft_type` of its checkpoints.
    fn peft_type(&self) -> &'static str;

    /// Whether a checkpoint of its type is its own, and not a variant's.
    fn takes(&self, _settings: &Settings) -> Result<bool, AdapterError> {
        Ok(true)
    }

    fn acts(&self) -> Acts;

    /// Whether requests with different adapters of this method can share a step.
    fn batches(&self) -> bool {
        true
    }

    /// The field that states the rank, if the method has one.
    fn rank_field(&self) -> Option<&'static str> {
        None
    }

    /// Reads what is the method's own.
    fn read(&self, reader: &mut Reader<'_>, adapter: &mut Adapter) -> Result<(), AdapterError>;
}

const METHODS: [&dyn Method; 11] = [
    &Lora, &Dora, &AdaLora, &Ia3, &Vera, &LoHa, &LoKr, &Norms, &Prefix, &Prompt, &PTuning,
];

/// The method of a checkpoint.
pub(crate) fn of(settings: &Settings) -> Result<&'static dyn Method, AdapterError> {
    let found = settings
        .text("peft_type")?
        .ok_or_else(|| AdapterError::Field {
            field: "peft_type".into(),
        })?;
    for method in METHODS {
        if method.peft_type() == found && method.takes(settings)? {
            return Ok(method);
        }
    }
    Err(AdapterError::Method {
        found: found.into(),
    })
}

/// All types, for an error.
pub(crate) fn list() -> String {
    let mut types: Vec<&str> = METHODS.iter().map(|m| m.peft_type()).collect();
    types.dedup();
    types.join(", ")
}

impl Default for &'static dyn Method {
    fn default() -> Self {
        &Lora
    }
}
