//! The index: which names there are, and the manifest of each.
//!
//! `index.redb` is a redb database of format 1 with two tables:
//!
//! ```text
//! "meta"       &str → u64      "format" → 1
//! "manifests"  &str → &[u8]    name → manifest, as `manifest.rs` draws it
//! ```
//!
//! A process opens the database only for the moment of one transaction and holds a lock on
//! `index.lock` meanwhile, so that any number of processes take turns. Reading does so too: a
//! database that a dead process left is repaired by whoever comes next. A transaction is durable
//! when [`Index::change`] returns.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};

use crate::disk::{Disk, Step};
use crate::manifest::Manifest;
use crate::store::StoreError;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const MANIFESTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("manifests");

/// Version of the tables.
const FORMAT: u64 = 1;

/// The open database. It is closed before the lock goes: fields are dropped in this order.
struct Session {
    database: Database,
    _lock: File,
}

/// The names and manifests of a store.
#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
    lock: PathBuf,
    disk: Disk,
}

impl Index {
    pub(crate) fn new(root: &Path, disk: Disk) -> Index {
        Index {
            path: root.join("index.redb"),
            lock: root.join("index.lock"),
            disk,
        }
    }

    fn damaged(&self, error: impl Into<redb::Error>) -> StoreError {
        StoreError::Index {
            path: self.path.display().to_string(),
            source: Box::new(error.into()),
        }
    }

    /// Opens the database and keeps others out until it is closed.
    fn open(&self) -> Result<Session, StoreError> {
        let lock = lock_file(&self.lock).map_err(StoreError::io(&self.lock))?;
        lock.lock().map_err(StoreError::io(&self.lock))?;
        let database = Database::create(&self.path).map_err(|e| self.damaged(e))?;
        Ok(Session {
            database,
            _lock: lock,
        })
    }

    /// Reads the table of manifests; nothing if nothing was ever written.
    fn read<T>(
        &self,
        read: impl FnOnce(&ReadOnlyTable<&str, &[u8]>) -> Result<T, redb::Error>,
    ) -> Result<Option<T>, StoreError> {
        if !self.path.exists() {
            return Ok(None);
        }
        let session = self.open()?;
        let tables = || -> Result<_, redb::Error> {
            let transaction = session.database.begin_read()?;
            let meta = match transaction.open_table(META) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                meta => meta?,
            };
            let format = meta.get("format")?.map(|format| format.value());
            Ok(Some((format, transaction.open_table(MANIFESTS)?)))
        };
        match tables().map_err(|e| self.damaged(e))? {
            None => Ok(None),
            Some((Some(FORMAT), table)) => read(&table).map(Some).map_err(|e| self.damaged(e)),
            Some((found, _)) => Err(StoreError::Format {
                path: self.path.display().to_string(),
                found,
            }),
        }
    }

    /// All names with their manifests' bytes, in order of the names.
    pub(crate) fn all(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let all = self.read(|table| {
            table
                .iter()?
                .map(|entry| {
                    let (name, bytes) = entry?;
                    Ok((name.value().to_owned(), bytes.value().to_vec()))
                })
                .collect()
        })?;
        Ok(all.unwrap_or_default())
    }

    /// The manifest's bytes under a name.
    pub(crate) fn get(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.read(|table| Ok(table.get(name)?.map(|bytes| bytes.value().to_vec())))?;
        Ok(found.flatten())
    }

    /// One durable transaction: puts some manifests and takes some names away.
    pub(crate) fn change(
        &self,
        put: &[(&str, &Manifest)],
        take: &[&str],
    ) -> Result<(), StoreError> {
        let session = self.open()?;
        let bytes: Vec<Vec<u8>> = put
            .iter()
            .map(|(_, manifest)| manifest.to_bytes())
            .collect::<Result<_, _>>()
            .map_err(|source| StoreError::Manifest {
                name: put.first().map_or("", |(name, _)| name).to_owned(),
                source,
            })?;
        let prepare = || -> Result<_, redb::Error> {
            let transaction = session.database.begin_write()?;
            transaction.open_table(META)?.insert("format", FORMAT)?;
            {
                let mut table = transaction.open_table(MANIFESTS)?;
                for ((name, _), bytes) in put.iter().zip(&bytes) {
                    table.insert(*name, bytes.as_slice())?;
                }
                for name in take {
                    table.remove(*name)?;
                }
            }
            Ok(transaction)
        };
        let transaction = prepare().map_err(|e| self.damaged(e))?;
        let failed = StoreError::io(&self.path);
        self.disk.step(Step::Commit).map_err(&failed)?;
        transaction.commit().map_err(|e| self.damaged(e))?;
        self.disk.step(Step::Committed).map_err(&failed)
    }
}

/// A file that is locked and never read.
pub(crate) fn lock_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

/// Takes a lock for itself if nobody else holds it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
