//! GGUF: one file (or a split into several) with metadata, tokenizer and tensors.
//!
//! Follows ggml's specification of the format, versions 2 and 3, little-endian. A file is
//!
//! ```text
//! "GGUF"  version u32  tensors u64  entries u64
//! entry   × entries   key string, type u32, value
//! tensor  × tensors   name string, dims u32, dim u64 × dims (fastest first), type u32, offset u64
//! padding to general.alignment (32 unless said), then the data that the offsets count from
//! ```
//!
//! where a string is a u64 length and that many bytes, and an array is an element type u32, a
//! u64 count and the elements. Opening checks all of it, so that what a [`Gguf`] hands out is in
//! range; memory stays within a few times the size of the header, whatever the header claims.

mod read;
mod split;
mod types;
mod value;
mod write;

use std::path::Path;

use bytes::Bytes;
use indexmap::IndexMap;
use sedge_kernels::DType;

pub use value::{Array, Value};
pub use write::{TensorPlan, write, write_to};

/// Alignment of tensor data unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;

/// Where one tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Stored type.
    pub dtype: DType,
    /// Slowest dimension first (the reverse of the file's order): a weight is `[rows, cols]`.
    /// One to four dimensions, none of them 0; the last fills whole blocks of the type.
    pub shape: Vec<usize>,
    /// First byte in the file.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
    /// Which file of a split model it lies in; 0 where there is one file.
    pub shard: usize,
}

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file could not be opened or mapped.
    #[error("{path}: {source}")]
    Io {
        /// File.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
    /// The file was opened and its content is not valid.
    #[error("{path}: {cause}")]
    InFile {
        /// File.
        path: String,
        /// What is wrong in it.
        cause: Box<GgufError>,
    },
    /// The first bytes are not those of the format.
    #[error("not a GGUF file: it begins with {found:02x?}, not \"GGUF\"")]
    Magic {
        /// Up to four first bytes.
        found: Vec<u8>,
    },
    /// A version of the format that is not read.
    #[error("GGUF version {found} is not supported; versions 2 and 3 are")]
    Version {
        /// The file's version.
        found: u32,
    },
    /// Written for a big-endian machine.
    #[error("the file is big-endian; only little-endian GGUF files are supported")]
    BigEndian,
    /// The file ends too early.
    #[error("the file ends inside {what} at byte {offset}: {need} bytes needed, {left} left")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it begins.
        offset: usize,
        /// Bytes needed.
        need: u64,
        /// Bytes left.
        left: usize,
    },
    /// Of a file whose first bytes alone are there: the header goes on after them.
    #[error("the header goes on to byte {need} at least")]
    Unfinished {
        /// How many of the file's first bytes are needed to read on.
        need: u64,
    },
    /// A count that the rest of the file cannot hold.
    #[error("{count} {what} announced at byte {offset} cannot fit in the {left} bytes that follow")]
    Count {
        /// What is counted.
        what: &'static str,
        /// Where the count stands.
        offset: usize,
        /// The count.
        count: u64,
        /// Bytes after it.
        left: usize,
    },
    /// Text that is not UTF-8.
    #[error("{what} at byte {offset} is not valid UTF-8")]
    Utf8 {
        /// Which text.
        what: &'static str,
        /// Where its first byte is.
        offset: usize,
    },
    /// A metadata type that the format does not have.
    #[error("unknown metadata type {id} at byte {offset}")]
    ValueType {
        /// Number found.
        id: u32,
        /// Where.
        offset: usize,
    },
    /// A truth value that is neither 0 nor 1.
    #[error("truth value {found} at byte {offset} is neither 0 nor 1")]
    Bool {
        /// Byte found.
        found: u8,
        /// Where.
        offset: usize,
    },
    /// Arrays of arrays of arrays without end.
    #[error("metadata array nested more than {limit} deep", limit = read::MAX_DEPTH)]
    Depth,
    /// A metadata key that stands twice.
    #[error("metadata key {key:?} stands twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A tensor name that stands twice.
    #[error("tensor {name:?} stands twice")]
    DuplicateTensor {
        /// The name.
        name: String,
    },
    /// `general.alignment` makes no sense.
    #[error("general.alignment is {found:?}, not a power of two from 8 to 65536")]
    Alignment {
        /// Its value, if it is an unsigned integer.
        found: Option<u64>,
    },
    /// Too few or too many dimensions.
    #[error("tensor {name:?} has {found} dimensions; 1 to 4 are possible")]
    Dimensions {
        /// Tensor.
        name: String,
        /// Number of dimensions.
        found: usize,
    },
    /// A tensor type that Sedge does not compute with.
    #[error(
        "tensor {name:?} has type {id} ({type_name}), which is not supported; supported: {known}",
        type_name = types::name(*id),
        known = types::known()
    )]
    TensorType {
        /// Tensor.
        name: String,
        /// ggml's number of the type.
        id: u32,
    },
    /// A shape that is empty, overflows, or whose rows do not fill whole blocks.
    #[error("tensor {name:?} cannot have shape {shape:?} as {dtype}, which comes in blocks of {block}", block = dtype.block_len())]
    Shape {
        /// Tensor.
        name: String,
        /// Slowest dimension first.
        shape: Vec<u64>,
        /// Stored type.
        dtype: DType,
    },
    /// An offset that is not aligned.
    #[error("tensor {name:?} is at offset {offset}, no multiple of {alignment}")]
    Misaligned {
        /// Tensor.
        name: String,
        /// Its offset in the data.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// A tensor past the end of the file.
    #[error("tensor {name:?} of {len} bytes at byte {offset} ends past the file's {file} bytes")]
    OutOfFile {
        /// Tensor.
        name: String,
        /// Its first byte in the file, or `u64::MAX` where that overflows.
        offset: u64,
        /// Its number of bytes.
        len: u64,
        /// The file's number of bytes.
        file: usize,
    },
    /// Two tensors share bytes.
    #[error("tensors {first:?} and {second:?} overlap")]
    Overlap {
        /// The one that begins first.
        first: String,
        /// The other.
        second: String,
    },
    /// A file of a split model does not fit the others.
    #[error("{reason}")]
    Split {
        /// What does not fit.
        reason: String,
    },
    /// A tensor's bytes, to write or given apart, are not as many as its type and shape take.
    #[error("tensor {name:?} takes {expected} bytes; {found} were given")]
    Size {
        /// Tensor.
        name: String,
        /// Bytes that its type and shape take.
        expected: u64,
        /// Bytes given.
        found: u64,
    },
}

/// What stands before the tensors' bytes.
#[derive(Debug, Clone)]
pub struct Header {
    /// All metadata, in the file's order.
    pub metadata: IndexMap<String, Value>,
    /// All tensors, in the file's order.
    pub tensors: IndexMap<String, TensorInfo>,
    /// Where the tensors' bytes begin, or the file ends.
    pub len: u64,
}

impl Header {
    /// Reads the header of a file of `file` bytes from its first bytes.
    ///
    /// # Errors
    /// When it is not that of a valid GGUF v2 or v3 file; [`GgufError::Unfinished`] when it goes
    /// on after the bytes that are given.
    pub fn parse(bytes: &[u8], file: u64) -> Result<Header, GgufError> {
        let file = usize::try_from(file).unwrap_or(usize::MAX);
        read::parse(&bytes[..bytes.len().min(file)], file)
    }
}

/// An open GGUF file.
#[derive(Debug, Clone)]
pub struct Gguf {
    metadata: IndexMap<String, Value>,
    tensors: IndexMap<String, TensorInfo>,
    /// The files of a split model in order; one otherwise.
    shards: Vec<Bytes>,
}

impl Gguf {
    /// Maps a file. Given the first file of a split model (`…-00001-of-0000N.gguf`), maps the
    /// others beside it too and joins them.
    ///
    /// # Errors
    /// When it cannot be opened or is not a valid GGUF v2 or v3 file, or a file of the split is
    /// missing or belongs to another model.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        split::open(path)
    }

    /// Reads a whole file's bytes, mapped or in memory. Of a split model this is one file alone.
    ///
    /// # Errors
    /// When they are not a valid GGUF v2 or v3 file.
    pub fn parse(bytes: Bytes) -> Result<Gguf, GgufError> {
        let header = read::parse(&bytes, bytes.len())?;
        Ok(Gguf {
            metadata: header.metadata,
            tensors: header.tensors,
            shards: vec![bytes],
        })
    }

    /// A file whose tensors lie apart: each is given as name, type, shape and bytes.
    ///
    /// # Errors
    /// When a name stands twice, or bytes do not fit type and shape.
    pub fn assemble(
        metadata: IndexMap<String, Value>,
        tensors: impl IntoIterator<Item = (String, DType, Vec<usize>, Bytes)>,
    ) -> Result<Gguf, GgufError> {
        let mut gguf = Gguf {
            metadata,
            tensors: IndexMap::new(),
            shards: Vec::new(),
        };
        for (name, dtype, shape, bytes) in tensors {
            let expected = tensor_len(&name, dtype, &shape)? as u64;
            let found = bytes.len() as u64;
            if expected != found {
                return Err(GgufError::Size {
                    name,
                    expected,
                    found,
                });
            }
            let info = TensorInfo {
                dtype,
                shape,
                offset: 0,
                len: found,
                shard: gguf.shards.len(),
            };
            gguf.shards.push(bytes);
            if gguf.tensors.insert(name.clone(), info).is_some() {
                return Err(GgufError::DuplicateTensor { name });
            }
        }
        Ok(gguf)
    }

    /// All metadata, in the file's order.
    pub fn metadata(&self) -> &IndexMap<String, Value> {
        &self.metadata
    }

    /// One metadata value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// All tensors, in the file's order.
    pub fn tensors(&self) -> &IndexMap<String, TensorInfo> {
        &self.tensors
    }

    /// A tensor's bytes, sharing the mapping.
    ///
    /// # Panics
    /// When `tensor` is not one of [`Gguf::tensors`] and lies outside this file.
    pub fn data(&self, tensor: &TensorInfo) -> Bytes {
        self.shards[tensor.shard]
            .slice(tensor.offset as usize..(tensor.offset + tensor.len) as usize)
    }
}

/// Bytes of a tensor, or why there can be none of this shape (slowest dimension first).
fn tensor_len(name: &str, dtype: DType, shape: &[usize]) -> Result<usize, GgufError> {
    let wrong = || GgufError::Shape {
        name: name.to_owned(),
        shape: shape.iter().map(|&d| d as u64).collect(),
        dtype,
    };
    let Some((&cols, rows)) = shape.split_last().filter(|_| shape.len() <= 4) else {
        return Err(GgufError::Dimensions {
            name: name.to_owned(),
            found: shape.len(),
        });
    };
    // Blocks never straddle rows, so the row is what must fill whole blocks.
    let row = dtype.bytes_for(cols).ok_or_else(wrong)?;
    rows.iter()
        .try_fold(row, |bytes, &d| bytes.checked_mul(d))
        // Values may overflow where bytes do not: most types take less than a byte.
        .filter(|&bytes| {
            bytes > 0
                && shape
                    .iter()
                    .try_fold(1usize, |n, &d| n.checked_mul(d))
                    .is_some()
        })
        .ok_or_else(wrong)
}

/// The alignment of the data of a file with this metadata.
fn alignment(metadata: &IndexMap<String, Value>) -> Result<u64, GgufError> {
    let Some(value) = metadata.get("general.alignment") else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    match value.as_u64() {
        Some(a) if a.is_power_of_two() && (8..=65536).contains(&a) => Ok(a),
        found => Err(GgufError::Alignment { found }),
    }
}
