//! The store: blobs in files, manifests in an index, and what may be done with both.
//! Whatever is named by a manifest stays; a lock keeps collecting and pulling apart.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use blake3::Hash;
use bytes::Bytes;

use crate::disk::Disk;
use crate::index::{Index, lock_file, try_lock};
use crate::manifest::{Blob, Kind, Manifest, ManifestError};
use crate::name::{NameError, check_model_name, close_names};
use crate::staging;

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file of the store could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// File or folder.
        path: String,
        /// Cause.
        source: io::Error,
    },
    /// The index cannot be read or written.
    #[error("{path}: {source}")]
    Index {
        /// The index.
        path: String,
        /// Cause.
        source: Box<redb::Error>,
    },
    /// The index is of another version.
    #[error("{path}: the store has format {found:?}, which this version of Sedge does not read")]
    Format {
        /// The index.
        path: String,
        /// Its format.
        found: Option<u64>,
    },
    /// A manifest is of no use.
    #[error("{name}: {source}")]
    Manifest {
        /// Whose.
        name: String,
        /// Cause.
        source: ManifestError,
    },
    /// A name cannot be used.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Nothing is stored under a name.
    #[error("no model or adapter {name:?} is stored")]
    NotFound {
        /// The name.
        name: String,
        /// Stored names that are close to it.
        close: Vec<String>,
    },
    /// Blobs that a manifest names are not there, or not whole.
    #[error("{name}: {count} of its blobs are missing or damaged, that of {first:?} among them")]
    Missing {
        /// Whose.
        name: String,
        /// How many.
        count: usize,
        /// The tensor or file of the first.
        first: String,
        /// Where it came from, to pull it again.
        origin: String,
    },
    /// Another process uses the store.
    #[error("{path}: a pull or another command uses the store")]
    Busy {
        /// The lock.
        path: String,
    },
}

impl StoreError {
    /// Says which file an error is about.
    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> StoreError + use<> {
        let path = path.display().to_string();
        move |source| StoreError::Io {
            path: path.clone(),
            source,
        }
    }
}

/// Models and adapters on this machine.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    pub(crate) disk: Disk,
    index: Index,
    /// Blobs that are mapped by this process.
    mapped: Mutex<HashMap<Hash, Weak<Bytes>>>,
}

/// Keeps a mapping that is shared by its hash.
struct Shared(Arc<Bytes>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A stored model or adapter with its bytes mapped.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// What it is made of.
    pub manifest: Manifest,
    /// By path: small files, and headers of GGUF files.
    pub files: BTreeMap<String, Bytes>,
    /// One for each tensor of the manifest, in its order.
    pub tensors: Vec<Bytes>,
}

/// What one name takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Its name.
    pub name: String,
    /// What it is.
    pub manifest: Manifest,
    /// Bytes of blobs that nothing else uses.
    pub own: u64,
    /// Bytes of blobs that others use too.
    pub shared: u64,
}

/// What the store takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usages {
    /// Each name.
    pub each: Vec<Usage>,
    /// Bytes of all blobs on the disk.
    pub blobs: u64,
    /// Of these, bytes of blobs that no manifest names.
    pub unused: u64,
    /// Bytes of downloads that have not ended.
    pub partial: u64,
}

/// What collecting freed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freed {
    /// Blobs that no manifest names.
    pub blobs: usize,
    /// Downloads that have not ended.
    pub partial: usize,
    /// Blobs that were found damaged.
    pub damaged: usize,
    /// Bytes of all.
    pub bytes: u64,
}

/// A blob that is not what its name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The blob.
    pub hash: Hash,
    /// In a word or two: "missing", "wrong length" or "wrong content".
    pub what: &'static str,
    /// Names of the models and adapters that use it.
    pub used_by: Vec<String>,
}

/// What verifying found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Blobs read.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What is wrong; empty where all is well.
    pub damaged: Vec<Damage>,
}

impl Store {
    /// The store in a folder, which is made when it is first written to.
    pub fn new(root: impl Into<PathBuf>) -> Store {
        Store::on(root.into(), Disk::default())
    }

    pub(crate) fn on(root: PathBuf, disk: Disk) -> Store {
        Store {
            index: Index::new(&root, disk.clone()),
            root,
            disk,
            mapped: Mutex::default(),
        }
    }

    /// Where the store is, by a lookup in the environment: `SEDGE_HOME`, else `sedge` in
    /// `XDG_DATA_HOME`, else in `.local/share` of `HOME`.
    pub fn place(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
        let set = |name| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        set("SEDGE_HOME").or_else(|| {
            let data = set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")))?;
            Some(data.join("sedge"))
        })
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn partial(&self) -> PathBuf {
        self.root.join("partial")
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    fn damaged(&self) -> PathBuf {
        self.root.join("damaged")
    }

    /// The file of a blob.
    pub(crate) fn blob(&self, hash: &Hash) -> PathBuf {
        let hex = hash.to_hex();
        self.blobs().join(&hex[..2]).join(hex.as_str())
    }

    /// Whether a blob is there with its length.
    pub(crate) fn has(&self, blob: &Blob) -> bool {
        let facts = fs::symlink_metadata(self.blob(&blob.hash));
        facts.is_ok_and(|facts| facts.is_file() && facts.len() == blob.len)
    }

    /// Keeps collecting away until the lock is dropped; waits for it to end.
    pub(crate) fn share(&self) -> Result<File, StoreError> {
        self.disk
            .folder(&self.root)
            .map_err(StoreError::io(&self.root))?;
        let path = self.root.join("lock");
        let lock = lock_file(&path).map_err(StoreError::io(&path))?;
        lock.lock_shared().map_err(StoreError::io(&path))?;
        Ok(lock)
    }

    /// The names of all that is stored, in order.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn names(&self) -> Result<Vec<String>, StoreError> {
        let all = self.index.all()?;
        Ok(all.into_iter().map(|(name, _)| name).collect())
    }

    /// All names and manifests, in order of the names.
    ///
    /// # Errors
    /// When the index or a manifest cannot be read.
    pub fn manifests(&self) -> Result<Vec<(String, Manifest)>, StoreError> {
        self.index
            .all()?
            .into_iter()
            .map(|(name, bytes)| match Manifest::parse(&bytes) {
                Ok(manifest) => Ok((name, manifest)),
                Err(source) => Err(StoreError::Manifest { name, source }),
            })
            .collect()
    }

    /// What is stored under a name, if anything is.
    ///
    /// # Errors
    /// When the index or the manifest cannot be read.
    pub fn find(&self, name: &str) -> Result<Option<Manifest>, StoreError> {
        let Some(bytes) = self.index.get(name)? else {
            return Ok(None);
        };
        Manifest::parse(&bytes)
            .map(Some)
            .map_err(|source| StoreError::Manifest {
                name: name.to_owned(),
                source,
            })
    }

    /// What is stored under a name.
    ///
    /// # Errors
    /// As [`Store::find`], and [`StoreError::NotFound`].
    pub fn manifest(&self, name: &str) -> Result<Manifest, StoreError> {
        match self.find(name)? {
            Some(manifest) => Ok(manifest),
            None => Err(self.not_found(name)?),
        }
    }

    fn not_found(&self, name: &str) -> Result<StoreError, StoreError> {
        let names = self.names()?;
        let close = close_names(name, names.iter().map(String::as_str));
        Ok(StoreError::NotFound {
            name: name.to_owned(),
            close: close.into_iter().map(str::to_owned).collect(),
        })
    }

    /// Makes a manifest visible under a name, in place of what was there. Its blobs must be
    /// durable, and the shared lock held since they were found to be there.
    pub(crate) fn commit(&self, name: &str, manifest: &Manifest) -> Result<(), StoreError> {
        check_model_name(name)?;
        self.index.change(&[(name, manifest)], &[])
    }

    /// Takes names away, all or none. Their blobs stay until [`Store::collect`]; returns how
    /// many bytes of them nothing else uses.
    ///
    /// # Errors
    /// When a name is not stored, or the index cannot be changed.
    pub fn remove(&self, names: &[&str]) -> Result<u64, StoreError> {
        let all = self.manifests()?;
        for name in names {
            if !all.iter().any(|(known, _)| known == name) {
                return Err(self.not_found(name)?);
            }
        }
        self.index.change(&[], names)?;
        let (gone, kept): (Vec<_>, Vec<_>) = all
            .iter()
            .partition(|(name, _)| names.contains(&name.as_str()));
        let kept: HashSet<[u8; 32]> = kept
            .iter()
            .flat_map(|(_, m)| m.blobs().into_keys())
            .collect();
        let gone: BTreeMap<[u8; 32], u64> = gone.iter().flat_map(|(_, m)| m.blobs()).collect();
        let freed = gone.iter().filter(|(hash, _)| !kept.contains(*hash));
        Ok(freed.map(|(_, len)| len).sum())
    }

    /// What each name and the whole take.
    ///
    /// # Errors
    /// When the index or a folder cannot be read.
    pub fn usage(&self) -> Result<Usages, StoreError> {
        let all = self.manifests()?;
        let mut users: HashMap<[u8; 32], usize> = HashMap::new();
        for (_, manifest) in &all {
            for hash in manifest.blobs().into_keys() {
                *users.entry(hash).or_default() += 1;
            }
        }
        let each = all.into_iter().map(|(name, manifest)| {
            let (mut own, mut shared) = (0, 0);
            for (hash, len) in manifest.blobs() {
                match users.get(&hash) {
                    Some(1) => own += len,
                    _ => shared += len,
                }
            }
            Usage {
                name,
                manifest,
                own,
                shared,
            }
        });
        let each = each.collect();
        let (mut blobs, mut unused) = (0, 0);
        for (hash, _, len) in self.walk()? {
            blobs += len;
            if !users.contains_key(hash.as_bytes()) {
                unused += len;
            }
        }
        let mut partial = 0;
        for folder in entries(&self.partial())? {
            partial += size(&folder)?;
        }
        Ok(Usages {
            each,
            blobs,
            unused,
            partial,
        })
    }

    /// Every blob on the disk: hash, file, length.
    fn walk(&self) -> Result<Vec<(Hash, PathBuf, u64)>, StoreError> {
        let mut found = Vec::new();
        for folder in entries(&self.blobs())? {
            if !folder.is_dir() {
                continue;
            }
            for path in entries(&folder)? {
                let name = path.file_name().and_then(|name| name.to_str());
                let Some(hash) = name.and_then(|name| Hash::from_hex(name).ok()) else {
                    continue;
                };
                let facts = fs::symlink_metadata(&path).map_err(StoreError::io(&path))?;
                found.push((hash, path, facts.len()));
            }
        }
        Ok(found)
    }

    /// Frees blobs that no manifest names, damaged ones, and downloads that have not ended and
    /// were last written before `now` by more than `stale`.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while a pull runs, and when something cannot be read or removed; a
    /// manifest that cannot be read stops it, since what it names is not known.
    pub fn collect(&self, now: SystemTime, stale: Duration) -> Result<Freed, StoreError> {
        if !self.root.exists() {
            return Ok(Freed::default());
        }
        let path = self.root.join("lock");
        let lock = lock_file(&path).map_err(StoreError::io(&path))?;
        if !try_lock(&lock).map_err(StoreError::io(&path))? {
            return Err(StoreError::Busy {
                path: path.display().to_string(),
            });
        }
        let mut used: HashSet<[u8; 32]> = HashSet::new();
        for (_, manifest) in self.manifests()? {
            used.extend(manifest.blobs().into_keys());
        }
        let mut freed = Freed::default();
        for folder in entries(&self.partial())? {
            let age = now
                .duration_since(last_change(&folder)?)
                .unwrap_or_default();
            if age >= stale {
                freed.bytes += size(&folder)?;
                freed.partial += 1;
                self.disk
                    .remove_folder(&folder)
                    .map_err(StoreError::io(&folder))?;
            } else {
                used.extend(staging::kept_blobs(&folder));
            }
        }
        for path in entries(&self.damaged())? {
            freed.bytes += size(&path)?;
            freed.damaged += 1;
            self.disk.remove(&path).map_err(StoreError::io(&path))?;
        }
        for (hash, path, len) in self.walk()? {
            if !used.contains(hash.as_bytes()) {
                self.disk.remove(&path).map_err(StoreError::io(&path))?;
                freed.bytes += len;
                freed.blobs += 1;
            }
        }
        Ok(freed)
    }

    /// Hashes every blob again, on as many threads as there are cores up to four. What is
    /// damaged is put aside, so that whoever opens a model with it is told, and the next pull
    /// fetches exactly that again. `progress` gets bytes done and bytes in all.
    ///
    /// # Errors
    /// When the index or a folder cannot be read, or a damaged blob cannot be put aside.
    pub fn verify(&self, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Verified, StoreError> {
        let _lock = self.share()?;
        let all = self.manifests()?;
        let there = self.walk()?;
        let total: u64 = there.iter().map(|(_, _, len)| len).sum();
        let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
        let broken: Mutex<Vec<usize>> = Mutex::default();
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some((hash, path, len)) = there.get(at) else {
                    return;
                };
                let mut hasher = blake3::Hasher::new();
                let read =
                    File::open(path).and_then(|file| Ok(hasher.update_reader(file)?.finalize()));
                if read.map_or(true, |found| found != *hash) {
                    let mut broken = broken.lock().unwrap_or_else(PoisonError::into_inner);
                    broken.push(at);
                }
                progress(done.fetch_add(*len, Ordering::Relaxed) + len, total);
            }
        };
        std::thread::scope(|scope| {
            let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
            for _ in 1..cores.min(4) {
                scope.spawn(work);
            }
            work();
        });
        let mut wrong: BTreeMap<[u8; 32], &'static str> = BTreeMap::new();
        for at in broken.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let (hash, path, _) = &there[at];
            let aside = self.damaged();
            self.disk.folder(&aside).map_err(StoreError::io(&aside))?;
            let to = aside.join(hash.to_hex().as_str());
            self.disk.rename(path, &to).map_err(StoreError::io(path))?;
            wrong.insert(*hash.as_bytes(), "wrong content");
        }
        let lens: HashMap<[u8; 32], u64> = there
            .iter()
            .map(|(hash, _, len)| (*hash.as_bytes(), *len))
            .collect();
        let mut users: BTreeMap<[u8; 32], Vec<String>> = BTreeMap::new();
        for (name, manifest) in &all {
            for (hash, len) in manifest.blobs() {
                users.entry(hash).or_default().push(name.clone());
                match lens.get(&hash) {
                    None => drop(wrong.insert(hash, "missing")),
                    Some(&found) if found != len => drop(wrong.insert(hash, "wrong length")),
                    Some(_) => {}
                }
            }
        }
        let damaged = wrong.into_iter().map(|(hash, what)| Damage {
            hash: Hash::from_bytes(hash),
            what,
            used_by: users.remove(&hash).unwrap_or_default(),
        });
        Ok(Verified {
            blobs: there.len(),
            bytes: total,
            damaged: damaged.collect(),
        })
    }

    /// Maps all of a stored model or adapter; nothing is read. A blob that is mapped already is
    /// mapped no second time in this process.
    ///
    /// # Errors
    /// As [`Store::manifest`], and [`StoreError::Missing`] when blobs are not there or not whole.
    pub fn load(&self, name: &str) -> Result<Stored, StoreError> {
        let manifest = self.manifest(name)?;
        let _lock = self.share()?;
        let small = manifest.files.iter();
        let small = small.filter_map(|file| Some((&file.path, file.blob?)));
        let tensors = manifest.tensors.iter().map(|t| (&t.name, t.blob));
        let mut lost = small
            .clone()
            .chain(tensors.clone())
            .filter(|(_, blob)| !self.has(blob));
        if let Some((first, _)) = lost.next() {
            return Err(StoreError::Missing {
                name: name.to_owned(),
                count: 1 + lost.count(),
                first: first.clone(),
                origin: manifest.origin.source.clone(),
            });
        }
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        mapped.retain(|_, bytes| bytes.strong_count() > 0);
        let files = small
            .map(|(path, blob)| Ok((path.clone(), self.map(&blob, &mut mapped)?)))
            .collect::<Result<_, StoreError>>()?;
        let tensors = tensors
            .map(|(_, blob)| self.map(&blob, &mut mapped))
            .collect::<Result<_, StoreError>>()?;
        drop(mapped);
        Ok(Stored {
            name: name.to_owned(),
            manifest,
            files,
            tensors,
        })
    }

    /// The first name of that kind that something from this source is stored under.
    ///
    /// # Errors
    /// When the index or a manifest cannot be read.
    pub fn named_after(&self, kind: Kind, source: &str) -> Result<Option<String>, StoreError> {
        let all = self.manifests()?;
        let mut same = all
            .into_iter()
            .filter(|(_, m)| m.kind == kind && m.origin.source == source);
        Ok(same.next().map(|(name, _)| name))
    }

    fn map(
        &self,
        blob: &Blob,
        mapped: &mut HashMap<Hash, Weak<Bytes>>,
    ) -> Result<Bytes, StoreError> {
        let shared = match mapped.get(&blob.hash).and_then(Weak::upgrade) {
            Some(shared) => shared,
            None => {
                let path = self.blob(&blob.hash);
                let bytes = sedge_formats::map(&path).map_err(StoreError::io(&path))?;
                if bytes.len() as u64 != blob.len {
                    return Err(StoreError::io(&path)(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "its length changed while it was opened",
                    )));
                }
                let shared = Arc::new(bytes);
                mapped.insert(blob.hash, Arc::downgrade(&shared));
                shared
            }
        };
        Ok(Bytes::from_owner(Shared(shared)))
    }
}

/// What is in a folder; nothing where there is none.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = StoreError::io(folder);
    match fs::read_dir(folder) {
        Ok(all) => all
            .map(|entry| entry.map(|entry| entry.path()).map_err(&failed))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// Bytes of a file, or of a folder's files.
fn size(path: &Path) -> Result<u64, StoreError> {
    let facts = fs::symlink_metadata(path).map_err(StoreError::io(path))?;
    if !facts.is_dir() {
        return Ok(facts.len());
    }
    entries(path)?.iter().map(|path| size(path)).sum()
}

/// When a folder or a file in it was last changed.
fn last_change(folder: &Path) -> Result<SystemTime, StoreError> {
    let changed = |path: &Path| {
        fs::symlink_metadata(path)
            .and_then(|facts| facts.modified())
            .map_err(StoreError::io(path))
    };
    let mut last = changed(folder)?;
    if folder.is_dir() {
        for path in entries(folder)? {
            last = last.max(changed(&path)?);
        }
    }
    Ok(last)
}
