//! A checkpoint that is written anew: some tensors replaced or added, the rest as they are.

use std::path::Path;

use bytes::Bytes;
use sedge_formats::gguf::{Array, Value};
use sedge_kernels::{DType, Team};

use crate::convert::{self, ConvertError, ConvertReport, Origin, Part, Progress, order};
use crate::open::Opened;
use crate::tensors::Stored;

/// A checkpoint, and what its copy will have in place of what it has.
pub struct Rewriting<'a> {
    metadata: indexmap::IndexMap<String, Value>,
    parts: Vec<Part<'a>>,
}

/// A tensor of a checkpoint, under its name in GGUF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Name.
    pub name: String,
    /// How it is stored.
    pub dtype: DType,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// Whether it is a matrix of products, or of embeddings; others stay f32.
    pub weight: bool,
}

impl Tensor {
    /// Number of values.
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }

    /// Values in a row.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

impl Rewriting<'_> {
    /// Reads a checkpoint's metadata, and where its tensors are.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(origin: &Origin<'_>) -> Result<Self, ConvertError> {
        let (metadata, parts) = convert::typed(origin.parts()?, None);
        Ok(Rewriting { metadata, parts })
    }

    /// The tensors, in the order in which they will be written.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor> {
        self.parts.iter().map(|part| Tensor {
            name: part.name.clone(),
            dtype: part.stored.dtype,
            shape: part.stored.shape.clone(),
            weight: part.weight(),
        })
    }

    /// A tensor's bytes as they are stored, in pieces of whole rows; none where it is not there.
    pub fn pieces(&self, name: &str) -> Vec<Bytes> {
        let part = self.parts.iter().find(|p| p.name == name);
        part.map_or_else(Vec::new, |p| p.stored.pieces.clone())
    }

    /// Metadata.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// Puts metadata in place of what is there, or beside it.
    pub fn set(&mut self, key: &str, value: Value) {
        self.metadata.insert(key.into(), value);
    }

    /// Bytes of the metadata and of the tensors' descriptions, nearly.
    pub fn overhead(&self) -> u64 {
        let metadata = self.metadata.iter().map(|(k, v)| k.len() + 12 + size(v));
        let tensors = self.parts.iter().map(|p| p.name.len() + 60);
        (metadata.sum::<usize>() + tensors.sum::<usize>()) as u64
    }

    /// Whether a tensor is there.
    pub fn has(&self, name: &str) -> bool {
        self.parts.iter().any(|p| p.name == name)
    }

    /// Puts other bytes in place of a tensor's, in the order of rows in which the checkpoint has
    /// them, or adds a tensor.
    ///
    /// # Panics
    /// When the bytes are not those of the shape.
    pub fn put(&mut self, name: &str, dtype: DType, shape: Vec<usize>, bytes: Bytes) {
        let expected = dtype.bytes_for(shape.iter().product());
        assert_eq!(expected, Some(bytes.len()), "bytes of {name}");
        let stored = Stored {
            dtype,
            shape,
            pieces: vec![bytes],
            key: None,
            original: name.to_owned(),
        };
        match self.parts.iter_mut().find(|p| p.name == name) {
            Some(part) => part.replace(stored),
            None => {
                self.parts.push(Part::new(name.to_owned(), stored, None));
                self.parts.sort_by_key(|p| order(&p.name));
            }
        }
    }

    /// Leaves a tensor out.
    pub fn remove(&mut self, name: &str) {
        self.parts.retain(|p| p.name != name);
    }

    /// Writes the copy as a GGUF file, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(
        mut self,
        output: &Path,
        team: &Team,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<ConvertReport, ConvertError> {
        let commonest = convert::commonest(&self.parts);
        if let Some(dtype) = commonest {
            let file_type = Value::U32(convert::file_type(dtype));
            self.set("general.file_type", file_type);
        }
        convert::write((self.metadata, self.parts), output, None, team, progress)
    }
}

/// Bytes of a value in a file.
fn size(value: &Value) -> usize {
    match value {
        Value::String(s) => 8 + s.len(),
        Value::Array(all) => 12 + array_size(all),
        Value::U8(_) | Value::I8(_) | Value::Bool(_) => 1,
        Value::U16(_) | Value::I16(_) => 2,
        Value::U32(_) | Value::I32(_) | Value::F32(_) => 4,
        Value::U64(_) | Value::I64(_) | Value::F64(_) => 8,
    }
}

fn array_size(array: &Array) -> usize {
    let each = match array {
        Array::String(all) => return all.iter().map(|s| 8 + s.len()).sum(),
        Array::Array(all) => return all.iter().map(|a| 12 + array_size(a)).sum(),
        Array::U8(_) | Array::I8(_) | Array::Bool(_) => 1,
        Array::U16(_) | Array::I16(_) => 2,
        Array::U32(_) | Array::I32(_) | Array::F32(_) => 4,
        Array::U64(_) | Array::I64(_) | Array::F64(_) => 8,
    };
    each * array.len()
}

impl Origin<'_> {
    /// Opens the model.
    ///
    /// # Errors
    /// As [`open`](crate::open()).
    pub fn model(&self) -> Result<Opened, crate::OpenError> {
        self.open()
    }
}
