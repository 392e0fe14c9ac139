//! A pull from start to end: choose the files, bring each into the store, name them.
//! What is in the store already, or in the cache of another program, is not fetched.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::cache::Cached;
use crate::choice::{Choice, Offered, choose, name_of_gguf};
use crate::download::{download, pieces};
use crate::http::{Client, HttpError};
use crate::hub::{self, Listed, Repository};
use crate::import::import;
use crate::layout::{Cut, LayoutError};
use crate::manifest::{Container, Manifest, ManifestError, Origin};
use crate::name::{NameError, check_file_path, check_model_name};
use crate::reference::{HubReference, Reference};
use crate::staging::{Finished, Leftover};
use crate::store::{Store, StoreError};

/// Largest small file: a vocabulary, at most.
const MAX_SMALL: u64 = 256 << 20;

/// Why nothing was pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The store could not be read or written.
    #[error(transparent)]
    Store(StoreError),
    /// The hub did not give what was asked for.
    #[error("{what}: {source}")]
    Http {
        /// A file, or a repository.
        what: String,
        /// Cause.
        source: HttpError,
    },
    /// The content is not what it is said to be.
    #[error("{file} hashes to {found}; it should hash to {expected}")]
    Hash {
        /// The file.
        file: String,
        /// Its hash by its source.
        expected: String,
        /// Its hash.
        found: String,
    },
    /// The content is longer or shorter than it is said to be.
    #[error("{file} should have {expected} bytes and has {}", found.map_or("more".to_owned(), |n| n.to_string()))]
    Size {
        /// The file.
        file: String,
        /// Bytes by the list of files.
        expected: u64,
        /// Bytes by the answer.
        found: Option<u64>,
    },
    /// The file became another while it came.
    #[error("{file} changed at the hub while it was pulled")]
    Changed {
        /// The file.
        file: String,
    },
    /// The hub does not say how large a file is.
    #[error("the hub does not say how large {file} is")]
    Unknown {
        /// The file.
        file: String,
    },
    /// The server gives whole files only.
    #[error("{file}: the server gives whole files only")]
    NoRanges {
        /// The file.
        file: String,
    },
    /// The file's header is malformed.
    #[error("{file}: {source}")]
    Layout {
        /// The file.
        file: String,
        /// Cause.
        source: LayoutError,
    },
    /// A name cannot be used.
    #[error(transparent)]
    Name(#[from] NameError),
    /// What was pulled contradicts itself.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A path where nothing is.
    #[error("{path}: no such file or folder")]
    NoPath {
        /// The path.
        path: String,
    },
    /// A file that should be there is not.
    #[error("{place} has no file {file:?}")]
    NoFile {
        /// Repository or folder.
        place: String,
        /// The file.
        file: String,
        /// GGUF files that are there, with their sizes.
        choices: Vec<(String, Option<u64>)>,
    },
    /// A file that is no model.
    #[error("{file} is not a GGUF file")]
    NotGguf {
        /// The file.
        file: String,
    },
    /// More than one file could be meant.
    #[error("{place} has {} models", choices.len())]
    Several {
        /// Repository or folder.
        place: String,
        /// The files, with their sizes.
        choices: Vec<(String, Option<u64>)>,
    },
    /// Nothing that can be pulled.
    #[error("{place} has no model: neither safetensors nor GGUF files, nor an adapter{}", if *pickle { "; pickled weights are not read" } else { "" })]
    NoModel {
        /// Repository or folder.
        place: String,
        /// Whether there are weights that would have to be unpickled.
        pickle: bool,
    },
    /// The name is another's.
    #[error("{name:?} is stored already, from {by}")]
    Taken {
        /// The name.
        name: String,
        /// Where what has the name came from.
        by: String,
    },
    /// The name means something else.
    #[error("{name:?} is the name of something else, which is not stored")]
    Reserved {
        /// The name.
        name: String,
    },
    /// Another thread failed, and says why.
    #[error("the pull was stopped")]
    Stopped,
}

impl PullError {
    pub(crate) fn http(what: String, source: HttpError) -> PullError {
        PullError::Http { what, source }
    }
}

/// What is told while a pull goes on.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A file begins.
    File {
        /// Its path.
        path: String,
    },
    /// Bytes have arrived.
    Progress {
        /// Bytes that are there.
        done: u64,
        /// Bytes of all files.
        total: u64,
        /// Of these, bytes that came over the network in this pull.
        fetched: u64,
    },
    /// The hub is asked again after a while.
    Waiting {
        /// How long.
        seconds: f64,
        /// Why.
        why: String,
    },
    /// Something that was passed over.
    Note(String),
}

/// How to pull.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name to store under; else that of the repository, folder or file.
    pub name: Option<String>,
    /// Names that mean something else to whoever asks, and cannot be taken.
    pub reserved: Vec<String>,
    /// Give the name to this even if something else has it.
    pub replace: bool,
    /// The hub.
    pub endpoint: String,
    /// Token for the hub.
    pub token: Option<String>,
    /// Certificates to trust instead of Mozilla's, in PEM.
    pub roots: Option<Vec<u8>>,
    /// The hub cache of other programs.
    pub cache: Option<PathBuf>,
    /// Use that cache alone.
    pub offline: bool,
    /// Connections for one file.
    pub connections: usize,
    /// Pause before a request is tried again; doubles each time.
    pub pause: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            name: None,
            reserved: Vec::new(),
            replace: false,
            endpoint: "https://huggingface.co".to_owned(),
            token: None,
            roots: None,
            cache: None,
            offline: false,
            connections: 4,
            pause: Duration::from_millis(500),
        }
    }
}

impl Options {
    /// What the environment says, by a lookup in it: `HF_ENDPOINT`, `HF_TOKEN` (else the file
    /// that `huggingface-cli login` wrote), `HF_HUB_CACHE`, `HF_HOME`, `HF_HUB_OFFLINE`,
    /// `SSL_CERT_FILE`.
    pub fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Options {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let path = |name: &str| set(name).map(PathBuf::from);
        let home = path("HF_HOME").or_else(|| {
            let cache = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")))?;
            Some(cache.join("huggingface"))
        });
        let token = text("HF_TOKEN").or_else(|| {
            let file = path("HF_TOKEN_PATH").or_else(|| Some(home.as_ref()?.join("token")))?;
            std::fs::read_to_string(file).ok()
        });
        let token = token
            .map(|token| token.trim().to_owned())
            .filter(|token| !token.is_empty() && token.chars().all(|c| c.is_ascii_graphic()));
        let standard = Options::default();
        Options {
            endpoint: text("HF_ENDPOINT").unwrap_or(standard.endpoint),
            token,
            roots: path("SSL_CERT_FILE").and_then(|path| std::fs::read(path).ok()),
            cache: path("HF_HUB_CACHE").or_else(|| Some(home?.join("hub"))),
            offline: text("HF_HUB_OFFLINE")
                .is_some_and(|v| ["1", "true", "yes", "on"].contains(&v.to_lowercase().as_str())),
            ..Options::default()
        }
    }
}

/// What was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The name that it is stored under.
    pub name: String,
    /// What it is.
    pub manifest: Manifest,
    /// Bytes of its blobs.
    pub bytes: u64,
    /// Bytes that came over the network.
    pub fetched: u64,
}

/// Brings a model or adapter into the store. When this returns, it is durable; when it fails,
/// nothing has changed but what a next try need not fetch again. `tell` is called from several
/// threads.
///
/// # Errors
/// See [`PullError`].
pub fn pull(
    store: &Store,
    reference: &Reference,
    options: &Options,
    tell: &(dyn Fn(&Event) + Sync),
) -> Result<Pulled, PullError> {
    let client = Client::new(
        &options.endpoint,
        options.token.clone(),
        options.roots.as_deref(),
    );
    if let Some(name) = &options.name {
        check_model_name(name)?;
    }
    let _lock = store.share()?;
    let pull = Pull {
        store,
        client: &client,
        options,
        tell,
        done: AtomicU64::new(0),
        total: AtomicU64::new(0),
        fetched: AtomicU64::new(0),
    };
    match reference {
        Reference::Hub(reference) => pull.hub(reference),
        Reference::Path(path) => pull.path(path),
    }
}

/// A pull under way.
pub(crate) struct Pull<'s, 'e> {
    pub(crate) store: &'s Store,
    pub(crate) client: &'e Client,
    pub(crate) options: &'e Options,
    pub(crate) tell: &'e (dyn Fn(&Event) + Sync),
    done: AtomicU64,
    total: AtomicU64,
    fetched: AtomicU64,
}

/// A file in the store, and what is left in `partial` if it came now.
type Brought<'s> = (Option<Leftover<'s>>, Finished);

/// Brings a file by its path, given all files that the store knows.
type Bring<'f, 's> =
    dyn Fn(&str, Cut, &HashMap<String, Finished>) -> Result<Brought<'s>, PullError> + 'f;

impl<'s> Pull<'s, '_> {
    /// Counts bytes that are there.
    pub(crate) fn arrived(&self, bytes: u64, fetched: bool) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        if fetched {
            self.fetched(bytes);
        }
        (self.tell)(&Event::Progress {
            done: self.done.load(Ordering::Relaxed),
            total: self.total.load(Ordering::Relaxed),
            fetched: self.fetched.load(Ordering::Relaxed),
        });
    }

    /// Counts bytes that came over the network.
    pub(crate) fn fetched(&self, bytes: u64) {
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that are there.
    pub(crate) fn count(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Says that there are only so many after all.
    pub(crate) fn take_back(&self, count: u64) {
        self.done.store(count, Ordering::Relaxed);
    }

    fn hub(&self, reference: &HubReference) -> Result<Pulled, PullError> {
        let place = reference.source();
        let revision = reference.revision.as_deref().unwrap_or("main");
        let cached = self
            .options
            .cache
            .as_deref()
            .map(|cache| Cached::new(cache, &reference.repo));
        let listed = match self.options.offline {
            true => None,
            false => {
                let listed = self.patiently(|| hub::list(self.client, &reference.repo, revision));
                match listed {
                    Ok(listed) => Some(listed),
                    Err(error) if error.unreachable() && cached.is_some() => {
                        let snapshot = cached
                            .as_ref()
                            .and_then(|cached| cached.snapshot(&reference.repo, revision));
                        if snapshot.is_none() {
                            return Err(PullError::http(place, error));
                        }
                        (self.tell)(&Event::Note(format!("{error}; using the cache")));
                        None
                    }
                    Err(error) => return Err(PullError::http(place, error)),
                }
            }
        };
        let (repository, snapshot) = match listed {
            Some(repository) => (repository, None),
            None => cached
                .as_ref()
                .and_then(|cached| cached.snapshot(&reference.repo, revision))
                .map(|(repository, folder)| (repository, Some(folder)))
                .ok_or_else(|| PullError::NoPath {
                    path: format!("{place} in the cache"),
                })?,
        };
        let offered: Vec<Offered> = repository
            .files
            .iter()
            .map(|file| (file.path.clone(), file.size))
            .collect();
        let read = |path: &str| match &snapshot {
            Some(folder) => read_small(&folder.join(path)),
            None => self
                .patiently(|| {
                    self.client
                        .read(&repository.url(self.client, path), MAX_SMALL)
                })
                .map_err(|error| PullError::http(path.to_owned(), error)),
        };
        let choice = choose(&place, &offered, reference.file.as_deref(), &read)?;
        let default = match choice.container {
            Container::Gguf => name_of_gguf(&choice.files[0].0),
            Container::Safetensors => reference.repo.rsplit('/').next().unwrap_or_default(),
        };
        let mut source = place;
        if let Some(revision) = &reference.revision {
            source.push_str(&format!("@{revision}"));
        }
        if let Some(file) = &reference.file {
            source.push_str(&format!(":{file}"));
        }
        let origin = Origin {
            source,
            revision: Some(repository.commit.clone()),
        };
        self.all(&choice, origin, default, &offered, &|path, cut, known| {
            let listed = repository.find(path).ok_or_else(|| PullError::NoFile {
                place: reference.source(),
                file: path.to_owned(),
                choices: Vec::new(),
            })?;
            self.bring(
                &repository,
                listed,
                cut,
                known,
                cached.as_ref(),
                snapshot.as_deref(),
            )
        })
    }

    /// One file of a hub: from the store, from the cache, or over the network.
    fn bring(
        &self,
        repository: &Repository,
        listed: &Listed,
        cut: Cut,
        known: &HashMap<String, Finished>,
        cached: Option<&Cached>,
        snapshot: Option<&Path>,
    ) -> Result<Brought<'s>, PullError> {
        let known = listed
            .digest
            .and_then(|digest| known.get(&digest.to_string()))
            .filter(|known| fits(known, cut) && listed.size.is_none_or(|s| s == known.file.size));
        if let Some(known) = known
            && pieces(known).all(|(_, blob)| self.store.has(&blob))
        {
            self.arrived(known.file.size, false);
            let mut known = known.clone();
            known.file.path.clone_from(&listed.path);
            return Ok((None, known));
        }
        let copy = match snapshot {
            Some(folder) => Some(folder.join(&listed.path)),
            None => listed
                .digest
                .and_then(|digest| cached?.blob(digest, listed.size)),
        };
        if let Some(copy) = copy {
            let before = self.count();
            match import(self, &copy, &listed.path, cut, listed.digest) {
                Ok((left, done)) => return Ok((Some(left), done)),
                Err(error @ (PullError::Hash { .. } | PullError::Layout { .. }))
                    if snapshot.is_none() =>
                {
                    (self.tell)(&Event::Note(format!("the cache is damaged: {error}")));
                    self.take_back(before);
                }
                Err(error) => return Err(error),
            }
        }
        let (left, mut done) = download(self, repository, listed, cut, known)?;
        done.file.path.clone_from(&listed.path);
        Ok((Some(left), done))
    }

    fn path(&self, path: &Path) -> Result<Pulled, PullError> {
        let shown = path.display().to_string();
        let Ok(whole) = path.canonicalize() else {
            return Err(PullError::NoPath { path: shown });
        };
        let is_folder = whole.is_dir();
        let (folder, file) = match (is_folder, whole.parent(), path.file_name()) {
            (true, ..) => (path.to_owned(), None),
            (false, _, Some(name)) => {
                let folder = path.parent().unwrap_or(Path::new("")).to_owned();
                (folder, Some(name.to_string_lossy().into_owned()))
            }
            _ => return Err(PullError::NoPath { path: shown }),
        };
        let mut offered: Vec<Offered> = Vec::new();
        for inner in ["", "1_Pooling/"] {
            let list = folder.join(inner);
            let list = match list.as_os_str().is_empty() {
                true => Path::new("."),
                false => &list,
            };
            for entry in std::fs::read_dir(list).into_iter().flatten().flatten() {
                let found = entry.path();
                if let (Some(name), Ok(facts)) =
                    (entry.file_name().to_str(), std::fs::metadata(&found))
                    && facts.is_file()
                {
                    offered.push((format!("{inner}{name}"), Some(facts.len())));
                }
            }
        }
        offered.sort();
        let place = folder.display().to_string();
        let choice = match &file {
            // A name without a folder is the file's own: no quantisation is meant.
            Some(file) if !file.to_ascii_lowercase().ends_with(".gguf") => {
                return Err(PullError::NotGguf { file: shown });
            }
            file => choose(&place, &offered, file.as_deref(), &|path| {
                read_small(&folder.join(path))
            })?,
        };
        let default = match (choice.container, is_folder) {
            (Container::Gguf, _) => name_of_gguf(&choice.files[0].0).to_owned(),
            (Container::Safetensors, _) => whole
                .file_name()
                .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        };
        let origin = Origin {
            source: whole.display().to_string(),
            revision: None,
        };
        self.all(&choice, origin, &default, &offered, &|path, cut, _| {
            let (left, done) = import(self, &folder.join(path), path, cut, None)?;
            Ok((Some(left), done))
        })
    }

    /// Brings all files, and names them.
    fn all(
        &self,
        choice: &Choice,
        origin: Origin,
        default: &str,
        offered: &[Offered],
        bring: &Bring<'_, 's>,
    ) -> Result<Pulled, PullError> {
        let name = self.options.name.as_deref().unwrap_or(default);
        check_model_name(name)?;
        if self.options.reserved.iter().any(|taken| taken == name) {
            return Err(PullError::Reserved {
                name: name.to_owned(),
            });
        }
        if let Some(there) = self.store.find(name)?
            && !self.options.replace
            && !same_source(&there.origin.source, &origin.source)
        {
            return Err(PullError::Taken {
                name: name.to_owned(),
                by: there.origin.source,
            });
        }
        let size = |path: &String| {
            let found = offered.iter().find(|(known, _)| known == path);
            found.and_then(|(_, size)| *size)
        };
        let total = choice.files.iter().filter_map(|(path, _)| size(path)).sum();
        self.total.store(total, Ordering::Relaxed);
        let known = self.known()?;
        let (mut files, mut tensors, mut leftovers) = (Vec::new(), Vec::new(), Vec::new());
        for (path, cut) in &choice.files {
            check_file_path(path)?;
            (self.tell)(&Event::File { path: path.clone() });
            let (left, done) = bring(path, *cut, &known)?;
            leftovers.extend(left);
            tensors.extend(done.tensors.into_iter().map(|mut tensor| {
                tensor.file = files.len();
                tensor
            }));
            files.push(done.file);
        }
        let manifest = Manifest::new(choice.kind, choice.container, origin, files, tensors)?;
        self.store.commit(name, &manifest)?;
        // The model is there now, whether or not what is left of its way can be cleaned up.
        for left in leftovers {
            let _ = left.remove();
        }
        Ok(Pulled {
            name: name.to_owned(),
            bytes: manifest.blobs().values().sum(),
            manifest,
            fetched: self.fetched.load(Ordering::Relaxed),
        })
    }

    /// All files that anything stored was made of, by either of their hashes.
    pub(crate) fn known(&self) -> Result<HashMap<String, Finished>, PullError> {
        let mut known = HashMap::new();
        for (_, manifest) in self.store.manifests()? {
            for (index, file) in manifest.files.iter().enumerate() {
                let tensors = manifest.tensors.iter().filter(|t| t.file == index);
                let tensors = tensors.cloned().map(|mut tensor| {
                    tensor.file = 0;
                    tensor
                });
                let finished = Finished {
                    file: file.clone(),
                    tensors: tensors.collect(),
                };
                for hash in file.git.iter().chain([&file.sha256]) {
                    known.insert(hash.clone(), finished.clone());
                }
            }
        }
        Ok(known)
    }
}

/// Whether a stored file was cut so.
pub(crate) fn fits(known: &Finished, cut: Cut) -> bool {
    let whole = |blob: &crate::manifest::Blob| blob.len == known.file.size;
    match cut {
        Cut::Whole => known.tensors.is_empty() && known.file.blob.as_ref().is_some_and(whole),
        Cut::Tensors(Container::Safetensors) => known.file.blob.is_none(),
        Cut::Tensors(Container::Gguf) => {
            known.file.blob.is_some()
                && !(known.tensors.is_empty() && known.file.blob.as_ref().is_some_and(whole))
        }
    }
}

/// Whether two sources are one, at whatever revision.
fn same_source(a: &str, b: &str) -> bool {
    match (Reference::parse(a), Reference::parse(b)) {
        (Ok(Reference::Hub(a)), Ok(Reference::Hub(b))) => a.repo == b.repo && a.file == b.file,
        _ => a == b,
    }
}

/// A small file of this machine.
fn read_small(path: &Path) -> Result<Vec<u8>, PullError> {
    use std::io::Read;
    let failed = StoreError::io(path);
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_SMALL + 1).read_to_end(&mut bytes))
        .map_err(&failed)?;
    match bytes.len() as u64 > MAX_SMALL {
        true => Err(failed(std::io::Error::other("is too large")).into()),
        false => Ok(bytes),
    }
}
