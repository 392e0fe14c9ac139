//! Safetensors checkpoints: one file, or shards with an index.
//!
//! A file is a u64 length (little-endian), that many bytes of JSON which map each tensor's name
//! to its type, shape and `[begin, end)` in the rest, and the rest. As the format demands, the
//! tensors cover the rest without gap or overlap. The `safetensors` crate is the oracle of this
//! module's tests and not its reader: its errors do not name the tensor, and it refuses a whole
//! file for one tensor of a type that it does not know.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use bytes::Bytes;
use indexmap::IndexMap;
use sedge_kernels::DType;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::map::map;

/// Most bytes of JSON in a header or an index, as in the reference implementation.
const MAX_JSON: u64 = 100_000_000;

/// One tensor.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Stored type.
    pub dtype: DType,
    /// Slowest dimension first. May be empty (one value) or hold a 0 (none).
    pub shape: Vec<usize>,
    /// Its bytes, mapped; as many as type and shape take, at any alignment.
    pub data: Bytes,
}

/// Why a checkpoint could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    /// A file could not be opened or mapped.
    #[error("{path}: {source}")]
    Io {
        /// File.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
    /// A file was opened and its content is not valid.
    #[error("{path}: {cause}")]
    InFile {
        /// File.
        path: String,
        /// What is wrong in it.
        cause: Box<SafetensorsError>,
    },
    /// The folder holds no checkpoint.
    #[error("{folder}: holds neither {SINGLE} nor {INDEX}")]
    NoCheckpoint {
        /// Folder.
        folder: String,
    },
    /// The header's length does not stand in the file, or is more than the file or the limit.
    #[error(
        "the header is said to have {size:?} bytes and the file has {file}; at most {MAX_JSON} are read"
    )]
    HeaderSize {
        /// The length given, if there is one.
        size: Option<u64>,
        /// The file's number of bytes.
        file: usize,
    },
    /// The header or the index is not the JSON that it should be.
    #[error("malformed JSON: {0}")]
    Json(serde_json::Error),
    /// An index larger than any real one.
    #[error("the index has {size} bytes; at most {MAX_JSON} are read")]
    IndexSize {
        /// Its number of bytes.
        size: usize,
    },
    /// A tensor's bytes lie outside the file.
    #[error("tensor {name:?} is bytes {begin} to {end} of {len} bytes of data")]
    Offsets {
        /// Tensor.
        name: String,
        /// First byte.
        begin: u64,
        /// One past the last byte.
        end: u64,
        /// Bytes of data in the file.
        len: usize,
    },
    /// A tensor's bytes are not as many as its type and shape take.
    #[error("tensor {name:?} of type {dtype} and shape {shape:?} cannot have {found} bytes")]
    Size {
        /// Tensor.
        name: String,
        /// Stored type.
        dtype: DType,
        /// Slowest dimension first.
        shape: Vec<usize>,
        /// Bytes that the header gives it.
        found: u64,
    },
    /// Data that belongs to no tensor or to two.
    #[error("bytes {expected} to {found} of the data belong to no tensor or to two")]
    Cover {
        /// Where the tensors before end.
        expected: u64,
        /// Where the next tensor begins, or the data ends.
        found: u64,
    },
    /// The index names a file that is not simply one in its folder.
    #[error("{name:?} is not the name of a file in the checkpoint's folder")]
    ShardName {
        /// Name in the index.
        name: String,
    },
    /// A tensor that the index promises is not in its shard.
    #[error("{shard:?} should hold tensor {name:?} and does not")]
    Missing {
        /// Tensor.
        name: String,
        /// File that the index names for it.
        shard: String,
    },
    /// Two shards hold the same tensor.
    #[error("tensor {name:?} is also in another shard")]
    Duplicate {
        /// Tensor.
        name: String,
    },
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// All tensors of a checkpoint by name.
#[derive(Debug, Clone, Default)]
pub struct Checkpoint {
    /// Name to tensor. Tensors of types that Sedge does not compute with are in `skipped`.
    pub tensors: IndexMap<String, Tensor>,
    /// Names and type names of the others (integer and f64 buffers).
    pub skipped: Vec<(String, String)>,
}

impl Checkpoint {
    /// Maps `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// When a file is missing or malformed, or a shard lies outside the folder.
    pub fn open(folder: &Path) -> Result<Checkpoint, SafetensorsError> {
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        if single.exists() {
            Checkpoint::open_file(&single)
        } else if index.exists() {
            Checkpoint::open_shards(folder, &index)
        } else {
            Err(SafetensorsError::NoCheckpoint {
                folder: folder.display().to_string(),
            })
        }
    }

    /// Maps one file.
    fn open_file(path: &Path) -> Result<Checkpoint, SafetensorsError> {
        Checkpoint::parse(map_file(path)?).map_err(in_file(path))
    }

    fn open_shards(folder: &Path, index: &Path) -> Result<Checkpoint, SafetensorsError> {
        let shards = parse_index(&map_file(index)?).map_err(in_file(index))?;
        let mut all = Checkpoint::default();
        let mut seen: HashSet<String> = HashSet::new();
        for (shard, promised) in shards {
            let path = folder.join(&shard);
            let part = Checkpoint::open_file(&path)?;
            let skipped = part.skipped.iter().map(|(name, _)| name);
            let names: HashSet<&String> = part.tensors.keys().chain(skipped).collect();
            if let Some(name) = promised.into_iter().find(|name| !names.contains(name)) {
                return Err(in_file(index)(SafetensorsError::Missing { name, shard }));
            }
            for name in names {
                if !seen.insert(name.clone()) {
                    return Err(in_file(&path)(SafetensorsError::Duplicate {
                        name: name.clone(),
                    }));
                }
            }
            all.tensors.extend(part.tensors);
            all.skipped.extend(part.skipped);
        }
        Ok(all)
    }

    /// Reads one file's bytes.
    ///
    /// # Errors
    /// When they are malformed.
    pub fn parse(bytes: Bytes) -> Result<Checkpoint, SafetensorsError> {
        let header = Header::parse(&bytes, bytes.len() as u64)?;
        let mut checkpoint = Checkpoint::default();
        for (name, place) in header.tensors {
            let Some(dtype) = place.dtype() else {
                checkpoint.skipped.push((name, place.type_name));
                continue;
            };
            let data = bytes.slice(place.begin as usize..place.end as usize);
            let shape = place.shape;
            checkpoint
                .tensors
                .insert(name, Tensor { dtype, shape, data });
        }
        Ok(checkpoint)
    }
}

/// Where one tensor lies in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The format's name of its type, which may be one that Sedge does not compute with.
    pub type_name: String,
    /// Slowest dimension first. May be empty (one value) or hold a 0 (none).
    pub shape: Vec<usize>,
    /// First byte in the file.
    pub begin: u64,
    /// One past the last byte in the file.
    pub end: u64,
}

impl Place {
    /// Its type, if Sedge computes with it; then its bytes are as many as type and shape take.
    pub fn dtype(&self) -> Option<DType> {
        computed(&self.type_name)
    }
}

/// What stands before the tensors' bytes.
#[derive(Debug, Clone)]
pub struct Header {
    /// All tensors, in the header's order.
    pub tensors: IndexMap<String, Place>,
}

impl Header {
    /// How many of a file's first bytes the header takes, from the first eight of `file` bytes.
    ///
    /// # Errors
    /// When there are fewer bytes, or the header would be larger than the file or the limit.
    pub fn len(bytes: &[u8], file: u64) -> Result<u64, SafetensorsError> {
        let size = bytes.first_chunk().map(|raw| u64::from_le_bytes(*raw));
        match size {
            Some(n) if n <= MAX_JSON && 8 + n <= file => Ok(8 + n),
            size => Err(SafetensorsError::HeaderSize {
                size,
                file: usize::try_from(file).unwrap_or(usize::MAX),
            }),
        }
    }

    /// Reads the header of a file of `file` bytes from as many of its first bytes as
    /// [`Header::len`] says.
    ///
    /// # Errors
    /// When it is malformed, or the tensors do not cover the rest of the file.
    pub fn parse(bytes: &[u8], file: u64) -> Result<Header, SafetensorsError> {
        let start = Header::len(bytes, file)?;
        let Some(json) = bytes.get(8..start as usize) else {
            return Err(SafetensorsError::HeaderSize {
                size: Some(start - 8),
                file: bytes.len(),
            });
        };
        let Unique(header) =
            serde_json::from_slice::<Unique<Entry>>(json).map_err(SafetensorsError::Json)?;
        let data = file - start;

        let mut spans: Vec<(u64, u64)> = Vec::with_capacity(header.len());
        let mut tensors = IndexMap::with_capacity(header.len());
        for (
            name,
            Entry {
                dtype: type_name,
                shape,
                data_offsets: (begin, end),
            },
        ) in header
        {
            if begin > end || end > data {
                return Err(SafetensorsError::Offsets {
                    name,
                    begin,
                    end,
                    len: usize::try_from(data).unwrap_or(usize::MAX),
                });
            }
            spans.push((begin, end));
            if let Some(dtype) = computed(&type_name) {
                let values = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
                if values.and_then(|n| dtype.bytes_for(n)).map(|n| n as u64) != Some(end - begin) {
                    return Err(SafetensorsError::Size {
                        name,
                        dtype,
                        shape,
                        found: end - begin,
                    });
                }
            }
            let place = Place {
                type_name,
                shape,
                begin: start + begin,
                end: start + end,
            };
            tensors.insert(name, place);
        }

        spans.sort_unstable();
        spans.push((data, data));
        let mut expected = 0;
        for (begin, end) in spans {
            if begin != expected {
                return Err(SafetensorsError::Cover {
                    expected,
                    found: begin,
                });
            }
            expected = end;
        }
        Ok(Header { tensors })
    }
}

/// A type that Sedge computes with, by the format's name.
fn computed(name: &str) -> Option<DType> {
    match name {
        "F32" => Some(DType::F32),
        "F16" => Some(DType::F16),
        "BF16" => Some(DType::BF16),
        _ => None,
    }
}

fn map_file(path: &Path) -> Result<Bytes, SafetensorsError> {
    map(path).map_err(|source| SafetensorsError::Io {
        path: path.display().to_string(),
        source,
    })
}

/// Says which file an error is about.
fn in_file(path: &Path) -> impl Fn(SafetensorsError) -> SafetensorsError {
    |cause| SafetensorsError::InFile {
        path: path.display().to_string(),
        cause: Box::new(cause),
    }
}

/// Reads `model.safetensors.index.json`: shards in the index's order, each with the tensors that
/// it should hold. Every shard is the name of a file, without a folder.
///
/// # Errors
/// When it is malformed, or a shard lies elsewhere.
pub fn parse_index(json: &[u8]) -> Result<IndexMap<String, Vec<String>>, SafetensorsError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: Unique<String>,
    }
    if json.len() as u64 > MAX_JSON {
        return Err(SafetensorsError::IndexSize { size: json.len() });
    }
    let Index {
        weight_map: Unique(weights),
    } = serde_json::from_slice(json).map_err(SafetensorsError::Json)?;
    let mut shards: IndexMap<String, Vec<String>> = IndexMap::new();
    for (name, shard) in weights {
        // `..`, `a/b`, `/a` and `C:a` are each more than a last component. A link is fine:
        // download caches are made of them.
        if Path::new(&shard).file_name() != Some(shard.as_ref()) {
            return Err(SafetensorsError::ShardName { name: shard });
        }
        shards.entry(shard).or_default().push(name);
    }
    Ok(shards)
}

/// A tensor in the header.
#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// A JSON object by tensor name in which no name stands twice. The free text under
/// `__metadata__`, which is never a tensor's name, is left out.
struct Unique<V>(IndexMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Unique<V>, D::Error> {
        deserializer.deserialize_map(UniqueVisitor(PhantomData))
    }
}

struct UniqueVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueVisitor<V> {
    type Value = Unique<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object by tensor name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Unique<V>, A::Error> {
        let mut map = IndexMap::new();
        while let Some(name) = access.next_key::<String>()? {
            if name == "__metadata__" {
                access.next_value::<IgnoredAny>()?;
            } else if map.contains_key(&name) {
                return Err(A::Error::custom(format_args!(
                    "tensor {name:?} stands twice"
                )));
            } else {
                map.insert(name, access.next_value()?);
            }
        }
        Ok(Unique(map))
    }
}
