//! Adapters of a running model: where they come from and what they are called.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use sedge_api::{OpenAdapter, is_adapter_name};
use sedge_engine::{LoadAdapter, NewAdapter};
use sedge_formats::safetensors::Tensor;
use sedge_kernels::Team;
use sedge_models::{Adapter, SharedModel};
use sedge_store::{Kind, StoreError, check_model_name};

use crate::failure::Failure;
use crate::machine::{self, MachineArgs};
use crate::store;

/// What reads and merges a model's adapters.
#[derive(Debug, Clone)]
pub(crate) struct Adapters {
    model: Arc<SharedModel>,
    member: usize,
    threads: usize,
}

impl Adapters {
    pub(crate) fn new(model: Arc<SharedModel>, member: usize, machine: &MachineArgs) -> Adapters {
        Adapters {
            model,
            member,
            threads: machine::threads(machine.threads),
        }
    }

    /// The adapter in a folder or, where there is none, of this name in the store.
    pub(crate) fn of_place(&self, name: &str, place: &Path) -> Result<NewAdapter, Failure> {
        let stored = place.to_str().filter(|_| !place.exists());
        if let Some(stored) = stored.filter(|stored| check_model_name(stored).is_ok()) {
            return self.of_stored(name, stored);
        }
        self.of_folder(name, place).map_err(|e| {
            Failure::about(place, &e)
                .hint("a folder with adapter_config.json and adapter_model.safetensors")
        })
    }

    /// A stored adapter.
    fn of_stored(&self, name: &str, stored: &str) -> Result<NewAdapter, Failure> {
        let manifest = match store::store()?.manifest(stored) {
            Err(StoreError::NotFound { close, .. }) => {
                let what = format_args!("{stored}: no such folder or stored adapter");
                return Err(Failure::new(what).hint(match close.is_empty() {
                    true => "sedge pull hf:ORG/NAME, of an adapter".to_owned(),
                    false => close.join(", or "),
                }));
            }
            found => found.map_err(store::failure)?,
        };
        if manifest.kind != Kind::Adapter {
            let what = format_args!("{stored} is a model, not an adapter");
            return Err(Failure::new(what).hint(format_args!("sedge serve -m {stored}")));
        }
        let (model, member, stored) = (self.model.clone(), self.member, stored.to_owned());
        let identity = *manifest.content().as_bytes();
        let load = move || {
            let (config, tensors) = parts(&stored, &identity)?;
            let model = model.get();
            let adapter = Adapter::from_parts_for(&config, tensors, &model, member);
            adapter.map_err(|e| e.to_string())
        };
        Ok(self.new_adapter(name, identity, Arc::new(load)))
    }

    /// An adapter in a folder, for an engine to register under a name.
    pub(crate) fn of_folder(&self, name: &str, folder: &Path) -> io::Result<NewAdapter> {
        let (model, member, folder) = (self.model.clone(), self.member, folder.to_owned());
        let identity = identity(&folder)?;
        let load = move || {
            let adapter = Adapter::open_for(&folder, &model.get(), member);
            let adapter = adapter.map_err(|e| e.to_string())?;
            // What was computed with the old one is kept under the old one's hash.
            let now = self::identity(&folder).map_err(|e| e.to_string())?;
            match now == identity {
                true => Ok(adapter),
                false => Err(format!("{}: its files were changed", folder.display())),
            }
        };
        Ok(self.new_adapter(name, identity, Arc::new(load)))
    }

    fn new_adapter(&self, name: &str, identity: [u8; 32], load: LoadAdapter) -> NewAdapter {
        let (model, member, threads) = (self.model.clone(), self.member, self.threads);
        NewAdapter {
            name: name.into(),
            identity,
            member,
            load,
            merge: Arc::new(move |adapter| {
                let team = Team::new(threads);
                model
                    .merge(member, adapter, &team)
                    .map_err(|e| e.to_string())
            }),
        }
    }

    /// The same for the server, which opens adapters when it is asked to.
    pub(crate) fn opener(&self) -> OpenAdapter {
        let adapters = self.clone();
        OpenAdapter(Arc::new(move |name, folder| {
            adapters.of_folder(name, folder).map_err(|e| e.to_string())
        }))
    }
}

/// A stored adapter's configuration and tensors.
fn parts(name: &str, identity: &[u8; 32]) -> Result<(String, IndexMap<String, Tensor>), String> {
    let store = store::store().map_err(|_| "there is no store any more".to_owned())?;
    let stored = store.load(name).map_err(|e| e.to_string())?;
    if stored.manifest.content().as_bytes() != identity {
        return Err(format!("{name}: the stored adapter is another one now"));
    }
    let config = stored.files.get("adapter_config.json");
    let config = config.ok_or_else(|| format!("{name}: adapter_config.json is missing"))?;
    let config = String::from_utf8_lossy(config).into_owned();
    let mut tensors = IndexMap::new();
    for (entry, data) in stored.manifest.tensors.into_iter().zip(stored.tensors) {
        let dtype = entry.dtype();
        let dtype = dtype.ok_or_else(|| format!("{}: of type {}", entry.name, entry.dtype))?;
        let shape = entry.shape;
        tensors.insert(entry.name, Tensor { dtype, shape, data });
    }
    Ok((config, tensors))
}

/// The hash of what an adapter is read from.
fn identity(folder: &Path) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let path = folder.join(file);
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        // Opening what is no file, such as a pipe, may never end.
        if !path.metadata().map_err(named)?.is_file() {
            return Err(named(io::Error::other("not a file")));
        }
        let file = File::open(&path).map_err(named)?;
        hasher.update_reader(file).map_err(named)?;
    }
    Ok(*hasher.finalize().as_bytes())
}

/// `[MODEL:]NAME=FOLDER`, or a folder, which is then the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AdapterArg {
    /// The model that it is for; the first one without.
    pub(crate) model: Option<String>,
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
}

impl std::str::FromStr for AdapterArg {
    type Err = String;

    fn from_str(text: &str) -> Result<AdapterArg, String> {
        let whole = PathBuf::from(text);
        let (names, folder) = match text.split_once('=') {
            Some((names, folder)) if !whole.exists() => (names.to_owned(), folder.into()),
            _ => {
                let name = whole.file_name().map(|n| n.to_string_lossy().into_owned());
                (name.unwrap_or_default(), whole)
            }
        };
        let (model, name) = match names.rsplit_once(':') {
            Some((model, name)) => (Some(model.to_owned()), name.to_owned()),
            None => (None, names),
        };
        if name.is_empty() || model.as_deref() == Some("") {
            return Err(format!("{text:?} is not [MODEL:]NAME=FOLDER"));
        }
        check_name(&name)?;
        Ok(AdapterArg {
            model,
            name,
            folder,
        })
    }
}

/// Names are the API's: with the model's before it, each is read in one way.
fn check_name(name: &str) -> Result<(), String> {
    match is_adapter_name(name) {
        true => Ok(()),
        false => Err(format!(
            "an adapter cannot be named {name:?}: 1 to 64 of the characters A-Z a-z 0-9 . _ -"
        )),
    }
}

/// The adapters in a folder of folders, by name.
pub(crate) fn in_folder(folder: &Path) -> Result<Vec<AdapterArg>, Failure> {
    let failed = |e: io::Error| Failure::about(folder, &e);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.join("adapter_config.json").is_file() {
            let name = path.file_name().unwrap_or_default();
            let name = name.to_string_lossy().into_owned();
            check_name(&name).map_err(|e| {
                Failure::about(&path, &e)
                    .hint("another name for the folder, or --adapter NAME=FOLDER")
            })?;
            found.push(AdapterArg {
                model: None,
                name,
                folder: path,
            });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_is_named_or_named_after_its_folder() {
        let arg = |text: &str| text.parse::<AdapterArg>();
        let is = |model: Option<&str>, name: &str, folder: &str| {
            Ok(AdapterArg {
                model: model.map(String::from),
                name: name.into(),
                folder: folder.into(),
            })
        };
        assert_eq!(arg("sql=a/b"), is(None, "sql", "a/b"));
        assert_eq!(arg("base:sql=a/b"), is(Some("base"), "sql", "a/b"));
        assert_eq!(arg("a/b"), is(None, "b", "a/b"));
        assert!(arg(":x=a").is_err() && arg("=a").is_err());
        assert!(arg("s q l=a").is_err() && arg("..").is_err());
    }
}
