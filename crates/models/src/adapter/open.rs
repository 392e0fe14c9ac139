//! Opening an adapter: a folder in PEFT's layout, or the same two parts in memory.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use bytes::Bytes;
use indexmap::IndexMap;
use sedge_formats::safetensors::{Checkpoint, Tensor};
use sedge_kernels::{Arena, Matrix};

use super::error::AdapterError;
use super::method::{self, Acts};
use super::reader::Reader;
use super::settings::{CONFIG_LIMIT, Settings};
use super::{Adapter, Before, Change, LayerChange, Term};
use crate::decoder::Decoder;
use crate::open::Model;

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";

/// A checkpoint in PEFT's layout, read but not yet of a model.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) config: String,
    pub(crate) tensors: IndexMap<String, Tensor>,
}

impl Stored {
    pub(crate) fn open(folder: &Path) -> Result<Stored, AdapterError> {
        let (config, tensors) = (folder.join(CONFIG), folder.join(TENSORS));
        let shown = |path: &Path| path.display().to_string();
        let io = |path: &Path| {
            let path = shown(path);
            move |source| AdapterError::Io { path, source }
        };
        if !config.is_file() {
            return Err(AdapterError::NotAnAdapter {
                folder: shown(folder),
            });
        }
        let bytes = std::fs::metadata(&config).map_err(io(&config))?.len();
        if bytes > CONFIG_LIMIT as u64 {
            return Err(AdapterError::ConfigSize {
                bytes,
                limit: CONFIG_LIMIT as u64,
            });
        }
        let json = std::fs::read_to_string(&config).map_err(io(&config))?;
        let bytes = sedge_formats::map(&tensors).map_err(io(&tensors))?;
        let checkpoint = Checkpoint::parse(bytes).map_err(|source| AdapterError::Safetensors {
            path: shown(&tensors),
            source,
        })?;
        if let Some((tensor, dtype)) = checkpoint.skipped.into_iter().next() {
            return Err(AdapterError::Dtype { tensor, dtype });
        }
        Ok(Stored {
            config: json,
            tensors: checkpoint.tensors,
        })
    }
}

impl Adapter {
    /// Reads a folder in the layout of the Python package peft: `adapter_config.json` and
    /// `adapter_model.safetensors`. What it keeps is in memory of its own; DoRA's norms take a
    /// pass over the model's weights.
    ///
    /// # Errors
    /// When a file is missing or malformed, the method is not known, or the adapter is not one of
    /// this model.
    pub fn open(folder: &Path, model: &Decoder) -> Result<Adapter, AdapterError> {
        let Stored { config, tensors } = Stored::open(folder)?;
        Adapter::from_parts(&config, tensors, model)
    }

    /// The same for a fine-tune that has joined a model.
    ///
    /// # Errors
    /// As [`Adapter::open`].
    pub fn open_for(folder: &Path, model: &Model, member: usize) -> Result<Adapter, AdapterError> {
        let Stored { config, tensors } = Stored::open(folder)?;
        Adapter::from_parts_for(&config, tensors, model, member)
    }

    /// Makes an adapter for a fine-tune that has joined a model of the text of its
    /// `adapter_config.json` and its tensors by name.
    ///
    /// # Errors
    /// As [`Adapter::open`].
    pub fn from_parts_for(
        config: &str,
        tensors: IndexMap<String, Tensor>,
        model: &Model,
        member: usize,
    ) -> Result<Adapter, AdapterError> {
        let Model::Decoder(decoder) = model else {
            return Err(AdapterError::Encoder);
        };
        Adapter::read(config, tensors, (decoder, member))
    }

    /// Makes an adapter of the text of its `adapter_config.json` and its tensors by name.
    ///
    /// # Errors
    /// As [`Adapter::open`].
    pub fn from_parts(
        config: &str,
        tensors: IndexMap<String, Tensor>,
        model: &Decoder,
    ) -> Result<Adapter, AdapterError> {
        Adapter::read(config, tensors, (model, 0))
    }

    fn read(
        config: &str,
        tensors: IndexMap<String, Tensor>,
        (model, member): (&Decoder, usize),
    ) -> Result<Adapter, AdapterError> {
        let settings = Settings::parse(config)?;
        let method = method::of(&settings)?;
        let mut reader = Reader::new(&settings, tensors, (model, member))?;
        let mut adapter = Adapter {
            method,
            layers: vec![LayerChange::default(); model.config().layers.len()],
            ..Adapter::default()
        };
        reader.whole(&mut adapter)?;
        method.read(&mut reader, &mut adapter)?;
        reader.tensors.done(method.name())?;
        if adapter.bytes() == 0 {
            return Err(AdapterError::Empty {
                method: method.name(),
            });
        }
        Ok(adapter)
    }

    /// The same with its factors in an arena, in the order in which a step reads them, as far as
    /// there is room.
    pub fn kept_in(mut self, arena: &Arena) -> Adapter {
        let mut kept = HashMap::new();
        let parts = self.layers.iter_mut().flat_map(|layer| &mut layer.parts);
        for change in parts.chain([&mut self.head]).flatten() {
            for term in &mut change.terms {
                if let Term::LowRank(term) = term {
                    term.a = term.a.kept_in(arena, &mut kept);
                    term.b = term.b.kept_in(arena, &mut kept);
                }
            }
        }
        self
    }

    /// The method by which it was tuned, as its authors write it.
    pub fn method(&self) -> &'static str {
        self.method.name()
    }

    /// Where it changes the model.
    pub fn acts(&self) -> Acts {
        self.method.acts()
    }

    /// Whether it can become part of the model's weights.
    pub fn merges(&self) -> bool {
        self.acts().unmergeable().is_none()
    }

    /// Whether requests with it can share a step with those of other adapters.
    pub fn batches(&self) -> bool {
        self.method.batches()
    }

    /// Bytes that its values take in memory; what its parts share counts once.
    pub fn bytes(&self) -> usize {
        let mut sum = Sum::default();
        for layer in &self.layers {
            layer.parts.iter().flatten().for_each(|c| sum.change(c));
            layer.norms.iter().for_each(|n| sum.vector(n));
        }
        self.head.iter().for_each(|c| sum.change(c));
        sum.vector(&self.norm);
        if let Some(embedding) = &self.embedding {
            sum.matrix(&embedding.a);
            sum.matrix(&embedding.b);
        }
        match &self.before {
            Some(Before::Embeddings(rows)) => sum.matrix(rows),
            Some(Before::KeysValues { layers, .. }) => {
                let values: usize = layers.iter().flatten().map(Vec::len).sum();
                sum.bytes += values * size_of::<f32>();
            }
            None => {}
        }
        sum.bytes
    }
}

/// Bytes, of shared ones each once.
#[derive(Default)]
struct Sum {
    bytes: usize,
    seen: HashSet<*const u8>,
}

impl Sum {
    fn matrix(&mut self, m: &Matrix) {
        self.shared(m.bytes());
    }

    fn shared(&mut self, bytes: &Bytes) {
        if self.seen.insert(bytes.as_ptr()) {
            self.bytes += bytes.len();
        }
    }

    fn vector(&mut self, values: &Option<Vec<f32>>) {
        self.bytes += values.as_ref().map_or(0, |v| v.len() * size_of::<f32>());
    }

    fn change(&mut self, change: &Change) {
        for vector in [&change.inputs, &change.outputs, &change.bias] {
            self.vector(vector);
        }
        for term in &change.terms {
            match term {
                Term::LowRank(t) => {
                    self.shared(t.a.bytes());
                    self.shared(t.b.bytes());
                    self.bytes += t.between.len() * size_of::<f32>();
                    self.vector(&t.after);
                }
                Term::Kronecker(t) => {
                    self.matrix(&t.left);
                    self.matrix(&t.right);
                    if let Some(rows) = &t.rows
                        && self.seen.insert(rows.as_ptr().cast())
                    {
                        self.bytes += rows.len() * size_of::<u32>();
                    }
                }
            }
        }
    }
}
