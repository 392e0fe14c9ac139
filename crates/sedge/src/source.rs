//! MODEL on the command line: a GGUF file, a Hugging Face folder, a stored model, or the one built in.

use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bytes::Bytes;
use sedge_models::{Opened, Origin, Parts, Piece};
use sedge_store::{Container, Kind, StoreError, Stored, check_model_name};

use crate::failure::Failure;
use crate::store;

/// Name of the model that the binary carries.
pub(crate) const BUILT_IN: &str = "seedling";

static SEEDLING: &[u8] = include_bytes!("../../../assets/seedling/seedling.gguf");

/// Where a model comes from and what it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// Name in the API.
    pub(crate) name: String,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    BuiltIn,
    Path(PathBuf),
    /// Under this name in the store, if anywhere.
    Stored(String),
}

impl Source {
    /// The model that answers when none is named.
    pub(crate) fn built_in() -> Source {
        Source {
            name: BUILT_IN.to_owned(),
            place: Place::BuiltIn,
        }
    }

    /// Its name in the store, if it is looked for there.
    pub(crate) fn stored(&self) -> Option<&str> {
        match &self.place {
            Place::Stored(name) => Some(name),
            _ => None,
        }
    }

    /// One hash of all that a stored model is made of.
    pub(crate) fn content(&self) -> Result<Option<blake3::Hash>, Failure> {
        let Some(name) = self.stored() else {
            return Ok(None);
        };
        let manifest = store::store()?.manifest(name).map_err(store::failure)?;
        Ok(Some(manifest.content()))
    }

    /// Its file or folder.
    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::BuiltIn | Place::Stored(_) => None,
            Place::Path(path) => Some(path),
        }
    }

    /// The bytes of a model that the binary carries; none of others.
    pub(crate) fn bytes(&self) -> &'static [u8] {
        match self.place {
            Place::BuiltIn => SEEDLING,
            Place::Path(_) | Place::Stored(_) => &[],
        }
    }

    /// What is read of it when another checkpoint is made of it.
    pub(crate) fn origin(&self) -> Result<Origin<'_>, Failure> {
        match &self.place {
            Place::BuiltIn => Ok(Origin::Memory(Bytes::from_static(SEEDLING), BUILT_IN)),
            Place::Path(path) if path.exists() => Ok(Origin::Path(path)),
            Place::Path(path) => Err(missing(path)),
            Place::Stored(name) => Err(Failure::new(format_args!(
                "{name} is a stored model, and another checkpoint is made of a file or a folder"
            ))
            .hint("the file or folder that it was pulled from")),
        }
    }

    /// Opens the model; weights are mapped, not read.
    pub(crate) fn open(&self) -> Result<Opened, Failure> {
        self.open_within(None)
    }

    /// Opens the model for sequences of at most `limit` tokens.
    pub(crate) fn open_within(&self, limit: Option<NonZeroUsize>) -> Result<Opened, Failure> {
        match &self.place {
            Place::BuiltIn => sedge_models::open_bytes(Bytes::from_static(SEEDLING), BUILT_IN)
                .map_err(|e| Failure::new(format_args!("the built-in model: {e}"))),
            Place::Path(path) => {
                if !path.exists() {
                    return Err(missing(path));
                }
                if path
                    .extension()
                    .is_some_and(|e| e.eq_ignore_ascii_case("onnx"))
                {
                    let what = format!(
                        "{} is an ONNX file, which is for pictures here",
                        path.display()
                    );
                    return Err(Failure::new(what).hint("sedge see, or sedge serve --vision"));
                }
                sedge_models::open_within(path, limit.map(NonZeroUsize::get))
                    .map_err(|e| Failure::about(path, &e))
            }
            Place::Stored(name) => open_stored(name, limit.map(NonZeroUsize::get)),
        }
    }
}

fn missing(path: &Path) -> Failure {
    let failure = Failure::new(format_args!("{}: no such file or folder", path.display()));
    failure.hint(format_args!(
        "a GGUF file, a Hugging Face folder, a stored model (sedge list, sedge pull), or `{BUILT_IN}`, the built-in model"
    ))
}

/// Maps a stored model's blobs.
fn open_stored(name: &str, limit: Option<usize>) -> Result<Opened, Failure> {
    let stored = match store::store()?.load(name) {
        // It may have been meant as a path as well.
        Err(StoreError::NotFound { close, .. }) if close.is_empty() => {
            return Err(missing(Path::new(name)));
        }
        Err(StoreError::NotFound { close, .. }) => {
            let what = format_args!("{name}: no such file, folder or stored model");
            return Err(Failure::new(what).hint(format_args!(
                "{}; or sedge pull hf:ORG/NAME",
                close.join(", ")
            )));
        }
        stored => stored.map_err(store::failure)?,
    };
    if stored.manifest.kind == Kind::Adapter {
        return Err(Failure::new(format_args!(
            "{name} is an adapter, not a model that runs by itself"
        ))
        .hint("the model that it was made for; sedge list shows what is stored"));
    }
    sedge_models::open_parts(parts(stored), limit)
        .map_err(|error| Failure::new(format_args!("{name}: {error}")))
}

/// A stored model as the models' crate opens it.
pub(crate) fn parts(stored: Stored) -> Parts {
    let Stored {
        name,
        manifest,
        mut files,
        tensors,
    } = stored;
    // Of a model in several files, the first has the metadata.
    let gguf = match manifest.container {
        Container::Gguf => manifest.files.first().and_then(|file| {
            let header = files.remove(&file.path)?;
            Some((header, file.size))
        }),
        Container::Safetensors => None,
    };
    let tensors = manifest.tensors.into_iter().zip(tensors);
    let tensors = tensors.map(|(entry, bytes)| Piece {
        name: entry.name,
        type_name: entry.dtype,
        shape: entry.shape,
        bytes,
        key: entry.blob.hash,
    });
    Parts {
        name,
        gguf,
        files,
        tensors: tensors.collect(),
    }
}

/// `seedling`, a path, a stored model's name, or `name=` before either. A path that exists is
/// never read as a name; what could be both and is no path is looked for in the store.
impl FromStr for Source {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Source, Infallible> {
        if text == BUILT_IN {
            return Ok(Source::built_in());
        }
        let whole = PathBuf::from(text);
        if let (false, Some((name, rest))) = (whole.exists(), text.split_once('='))
            && !name.is_empty()
            && !rest.is_empty()
        {
            let Ok(mut source) = Source::from_str(rest);
            source.name = name.to_owned();
            return Ok(source);
        }
        if !whole.exists() && check_model_name(text).is_ok() {
            return Ok(Source {
                name: text.to_owned(),
                place: Place::Stored(text.to_owned()),
            });
        }
        Ok(Source {
            name: name_of(&whole),
            place: Place::Path(whole),
        })
    }
}

/// A file's stem or a folder's name.
fn name_of(path: &Path) -> String {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let part = match real.extension() {
        Some(e) if e.eq_ignore_ascii_case("gguf") => real.file_stem(),
        _ => real.file_name(),
    };
    part.map_or_else(|| "model".to_owned(), |p| p.to_string_lossy().into_owned())
}

/// Makes names unique: the second `a` becomes `a-2`.
pub(crate) fn distinguish(sources: &mut [Source]) {
    for i in 1..sources.len() {
        let (before, rest) = sources.split_at_mut(i);
        let taken = |name: &str| before.iter().any(|s| s.name == name);
        let base = rest[0].name.clone();
        let mut n = 2;
        while taken(&rest[0].name) {
            rest[0].name = format!("{base}-{n}");
            n += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        let Ok(source) = text.parse();
        source
    }

    #[test]
    fn a_model_is_named_after_its_file_or_alias() {
        assert_eq!(source("seedling"), Source::built_in());
        assert_eq!(source("dir/some.q8_0.gguf").name, "some.q8_0");
        assert_eq!(source("dir/llama-3.2/").name, "llama-3.2");
        let aliased = source("fast=dir/a.gguf");
        assert_eq!(aliased.name, "fast");
        assert_eq!(aliased.place, Place::Path("dir/a.gguf".into()));
        assert_eq!(source("mine=seedling").place, Place::BuiltIn);
        assert_eq!(source("mine=qwen3-0.6b").stored(), Some("qwen3-0.6b"));
        assert_eq!(source("qwen3-0.6b").name, "qwen3-0.6b");
        // The tests run in the crate's folder: what exists is a path.
        assert_eq!(source("src").stored(), None);
    }

    #[test]
    fn equal_names_get_a_suffix() {
        let mut sources: Vec<Source> = ["a.gguf", "x/a.gguf", "a-2=b", "y/a.gguf"]
            .map(source)
            .into();
        distinguish(&mut sources);
        let names: Vec<&str> = sources.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["a", "a-2", "a-2-2", "a-3"]);
    }
}
