//! What a stored model or adapter is made of: which blobs are its tensors and small files.
//!
//! A manifest is one JSON object, the value of the index under the model's name:
//!
//! ```text
//! { "format": 1,
//!   "kind": "model" | "adapter",
//!   "container": "safetensors" | "gguf",
//!   "origin": { "source": "hf:ORG/NAME" or a path, "revision": commit or null },
//!   "files": [ { "path": in the repository or folder, "size": bytes,
//!                "sha256": hex, "git": hex or null, "etag": text or null,
//!                "blob": { "hash": hex, "len": bytes } or null } ],
//!   "tensors": [ { "name", "dtype", "shape": [..], "hash": hex, "len": bytes,
//!                  "file": index into files, "offset": first byte in that file } ] }
//! ```
//!
//! `hash` is BLAKE3 of the bytes, which is the blob's name. A file's `blob` is the whole of a
//! small file, or the header of a GGUF file (its first `len` bytes); a safetensors file has none,
//! since its header says nothing that is not here. Offsets say where a tensor lay in its file, so
//! that a lost blob is fetched again by a range. Keys that are not known are passed over.

use std::collections::{BTreeMap, HashSet};

use blake3::Hash;
use sedge_kernels::DType;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::name::{NameError, check_file_path};

/// Version of the manifest's format.
const FORMAT: u32 = 1;

/// Larger manifests are neither written nor read: a model of a hundred thousand tensors has 20 MB.
const LIMIT: usize = 256 << 20;

/// What a manifest describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A model that runs by itself.
    Model,
    /// A small change of a model.
    Adapter,
}

impl Kind {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::Adapter => "adapter",
        }
    }
}

/// What kind of file the tensors came in, whose names and metadata they go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Container {
    /// A Hugging Face folder.
    Safetensors,
    /// One GGUF file, or the parts of one.
    Gguf,
}

/// Where something came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// `hf:ORG/NAME`, or the path of a file or folder.
    pub source: String,
    /// Commit of the repository.
    #[serde(default)]
    pub revision: Option<String>,
}

/// Content by its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Blob {
    /// BLAKE3 of the bytes.
    #[serde(with = "hash_as_hex")]
    pub hash: Hash,
    /// Number of bytes.
    pub len: u64,
}

/// One of the files that something was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Path in the repository or folder.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the whole file, in hexadecimal digits.
    pub sha256: String,
    /// Git's hash of the file, if the source names it so.
    #[serde(default)]
    pub git: Option<String>,
    /// The ETag that came with it.
    #[serde(default)]
    pub etag: Option<String>,
    /// The whole of a small file, or the header of a GGUF file.
    #[serde(default)]
    pub blob: Option<Blob>,
}

/// A tensor and its blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Name in the file.
    pub name: String,
    /// Stored type: the name of a [`DType`], or the container's name of another type.
    pub dtype: String,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// Its bytes.
    #[serde(flatten)]
    pub blob: Blob,
    /// Index of the file that it lay in.
    pub file: usize,
    /// First byte in that file.
    pub offset: u64,
}

impl TensorEntry {
    /// Its type, if Sedge computes with it.
    pub fn dtype(&self) -> Option<DType> {
        DType::from_name(&self.dtype)
    }
}

/// A stored model or adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// What it is.
    pub kind: Kind,
    /// What its tensors came in.
    pub container: Container,
    /// Where it came from.
    pub origin: Origin,
    /// The files that it was made of.
    pub files: Vec<SourceFile>,
    /// Its tensors, in the order of the files.
    pub tensors: Vec<TensorEntry>,
}

/// Why a manifest is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Larger than any real one.
    #[error("the manifest has {len} bytes; at most {LIMIT} are read")]
    Large {
        /// Its bytes.
        len: usize,
    },
    /// Not the JSON that it should be.
    #[error("the manifest is malformed: {0}")]
    Json(#[from] serde_json::Error),
    /// Written by a newer version.
    #[error("the manifest has format {found}; this version of Sedge reads format {FORMAT}")]
    Format {
        /// Its format.
        found: u32,
    },
    /// A file's path is not one.
    #[error(transparent)]
    Path(#[from] NameError),
    /// Two files or two tensors have one name.
    #[error("{name:?} stands twice in the manifest")]
    Twice {
        /// The name.
        name: String,
    },
    /// A hash is none.
    #[error("the hash of file {path:?} is malformed")]
    Digest {
        /// The file.
        path: String,
    },
    /// A tensor's entry contradicts itself or its file.
    #[error("tensor {name:?}: {reason}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
}

impl Manifest {
    /// A manifest, checked.
    ///
    /// # Errors
    /// When it contradicts itself.
    pub fn new(
        kind: Kind,
        container: Container,
        origin: Origin,
        files: Vec<SourceFile>,
        tensors: Vec<TensorEntry>,
    ) -> Result<Manifest, ManifestError> {
        let manifest = Manifest {
            format: FORMAT,
            kind,
            container,
            origin,
            files,
            tensors,
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// Reads what [`Manifest::to_bytes`] wrote.
    ///
    /// # Errors
    /// When it is malformed, contradicts itself, or is of a newer format.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        if bytes.len() > LIMIT {
            return Err(ManifestError::Large { len: bytes.len() });
        }
        let Version { format } = serde_json::from_slice(bytes)?;
        if format != FORMAT {
            return Err(ManifestError::Format { found: format });
        }
        let manifest: Manifest = serde_json::from_slice(bytes)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The JSON that is kept.
    ///
    /// # Errors
    /// When it is larger than what is read.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        let bytes = serde_json::to_vec(self)?;
        match bytes.len() > LIMIT {
            true => Err(ManifestError::Large { len: bytes.len() }),
            false => Ok(bytes),
        }
    }

    fn check(&self) -> Result<(), ManifestError> {
        let mut paths = HashSet::new();
        for file in &self.files {
            check_file_path(&file.path)?;
            if !paths.insert(&file.path) {
                return Err(ManifestError::Twice {
                    name: file.path.clone(),
                });
            }
            let sha256 = Digest::from_hex(&file.sha256);
            let git = file.git.as_deref().map(Digest::from_hex);
            if !matches!(sha256, Some(Digest::Sha256(_)))
                || !matches!(git, None | Some(Some(Digest::Git(_))))
                || file.blob.is_some_and(|blob| blob.len > file.size)
            {
                return Err(ManifestError::Digest {
                    path: file.path.clone(),
                });
            }
        }
        let mut names = HashSet::new();
        for tensor in &self.tensors {
            let wrong = |reason| ManifestError::Tensor {
                name: tensor.name.clone(),
                reason,
            };
            if !names.insert(&tensor.name) {
                return Err(ManifestError::Twice {
                    name: tensor.name.clone(),
                });
            }
            let values = tensor
                .shape
                .iter()
                .try_fold(1usize, |n, &d| n.checked_mul(d))
                .ok_or_else(|| wrong("its shape overflows"))?;
            if let Some(dtype) = tensor.dtype()
                && dtype.bytes_for(values).map(|n| n as u64) != Some(tensor.blob.len)
            {
                return Err(wrong("its type and shape take another number of bytes"));
            }
            let file = self.files.get(tensor.file);
            let file = file.ok_or_else(|| wrong("it lies in no file"))?;
            if tensor
                .offset
                .checked_add(tensor.blob.len)
                .is_none_or(|end| end > file.size)
            {
                return Err(wrong("it ends past its file"));
            }
        }
        Ok(())
    }

    /// Every blob once.
    pub fn blobs(&self) -> BTreeMap<[u8; 32], u64> {
        let files = self.files.iter().filter_map(|file| file.blob);
        let tensors = self.tensors.iter().map(|tensor| tensor.blob);
        files
            .chain(tensors)
            .map(|blob| (*blob.hash.as_bytes(), blob.len))
            .collect()
    }

    /// One hash of all that the model computes with: its tensors' names, types, shapes and
    /// bytes, and its small files. Equal for equal content, wherever it came from.
    pub fn content(&self) -> Hash {
        let mut hasher = blake3::Hasher::new();
        let mut put = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        for file in self.files.iter() {
            let Some(blob) = file.blob else { continue };
            put(file.path.as_bytes());
            put(blob.hash.as_bytes());
        }
        for tensor in &self.tensors {
            put(tensor.name.as_bytes());
            put(tensor.dtype.as_bytes());
            tensor.shape.iter().for_each(|d| put(&d.to_le_bytes()));
            put(tensor.blob.hash.as_bytes());
        }
        hasher.finalize()
    }
}

/// A BLAKE3 hash as hexadecimal digits.
mod hash_as_hex {
    use blake3::Hash;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(hash: &Hash, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hash.to_hex())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Hash, D::Error> {
        let text = String::deserialize(from)?;
        Hash::from_hex(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn example() -> Manifest {
        let blob = |bytes: &[u8]| Blob {
            hash: blake3::hash(bytes),
            len: bytes.len() as u64,
        };
        let file = |path: &str, size, blob| SourceFile {
            path: path.to_owned(),
            size,
            sha256: "ab".repeat(32),
            git: None,
            etag: None,
            blob,
        };
        Manifest::new(
            Kind::Model,
            Container::Safetensors,
            Origin {
                source: "hf:a/b".into(),
                revision: None,
            },
            vec![
                file("config.json", 2, Some(blob(b"{}"))),
                file("model.safetensors", 24, None),
            ],
            vec![TensorEntry {
                name: "w".into(),
                dtype: "f32".into(),
                shape: vec![1, 2],
                blob: blob(&[0; 8]),
                file: 1,
                offset: 16,
            }],
        )
        .unwrap()
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written() {
        let manifest = example();
        let bytes = manifest.to_bytes().unwrap();
        assert_eq!(Manifest::parse(&bytes).unwrap(), manifest);
        assert_eq!(manifest.blobs().len(), 2);
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_refused() {
        let text = String::from_utf8(example().to_bytes().unwrap()).unwrap();
        for (from, to) in [
            ("\"format\":1", "\"format\":2"),
            ("config.json", "../config.json"),
            ("config.json", "model.safetensors"),
            ("abab", "xyxy"),
            ("[1,2]", "[1,3]"),
            ("[1,2]", "[18446744073709551615,18446744073709551615]"),
            ("\"file\":1", "\"file\":2"),
            ("\"offset\":16", "\"offset\":17"),
            ("\"offset\":16", "\"offset\":18446744073709551615"),
            ("\"size\":2,", "\"size\":1,"),
            ("\"kind\":\"model\"", "\"kind\":\"pickle\""),
        ] {
            assert!(text.contains(from), "{from}");
            let text = text.replacen(from, to, 1);
            assert!(Manifest::parse(text.as_bytes()).is_err(), "{text}");
        }
        for end in 0..text.len() {
            assert!(Manifest::parse(&text.as_bytes()[..end]).is_err());
        }
    }
}
