//! Adapters of a running model: where they come from and what they are called.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sedge_api::{OpenAdapter, is_adapter_name};
use sedge_engine::NewAdapter;
use sedge_kernels::Team;
use sedge_models::{Adapter, SharedModel};

use crate::failure::Failure;
use crate::machine::{self, MachineArgs};

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

    /// An adapter in a folder, for an engine to register under a name.
    pub(crate) fn of_folder(&self, name: &str, folder: &Path) -> io::Result<NewAdapter> {
        let (model, member, threads) = (self.model.clone(), self.member, self.threads);
        let (for_loads, folder) = (model.clone(), folder.to_owned());
        Ok(NewAdapter {
            name: name.into(),
            identity: identity(&folder)?,
            member,
            load: Arc::new(move || {
                Adapter::open_for(&folder, &for_loads.get(), member).map_err(|e| e.to_string())
            }),
            merge: Arc::new(move |adapter| {
                let team = Team::new(threads);
                model
                    .merge(member, adapter, &team)
                    .map_err(|e| e.to_string())
            }),
        })
    }

    /// The same for the server, which opens adapters when it is asked to.
    pub(crate) fn opener(&self) -> OpenAdapter {
        let adapters = self.clone();
        OpenAdapter(Arc::new(move |name, folder| {
            adapters.of_folder(name, folder).map_err(|e| e.to_string())
        }))
    }
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
