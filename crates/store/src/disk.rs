//! Every step that changes files, in one place, so that tests can end the process before any.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

/// A step that is about to be taken.
#[derive(Debug, Clone, Copy)]
#[allow(dead_code)] // watchers, which tests have alone, read what is in them
pub(crate) enum Step<'a> {
    /// Bytes are written to a file, which may not have been there.
    Write(&'a Path),
    /// A file's content is made durable.
    Sync(&'a Path),
    /// A file takes another's place.
    Rename(&'a Path, &'a Path),
    /// The names in a folder are made durable.
    SyncFolder(&'a Path),
    /// A file or folder goes away.
    Remove(&'a Path),
    /// A transaction of the index is about to be committed.
    Commit,
    /// It was committed, and nobody has been told yet.
    Committed,
}

type Watch = dyn Fn(Step<'_>) -> io::Result<()> + Send + Sync;

/// The disk. A watcher sees each step before it is taken and can refuse it, and all after it.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    watch: Option<Arc<Watch>>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

impl Disk {
    #[cfg(test)]
    pub(crate) fn watched(
        watch: impl Fn(Step<'_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Disk {
        Disk {
            watch: Some(Arc::new(watch)),
        }
    }

    pub(crate) fn step(&self, step: Step<'_>) -> io::Result<()> {
        match &self.watch {
            Some(watch) => watch(step),
            None => Ok(()),
        }
    }

    /// Makes a folder and those above it.
    pub(crate) fn folder(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(path)?;
        match path.parent() {
            Some(parent) => self.sync_folder(parent),
            None => Ok(()),
        }
    }

    /// Opens a file to write into it, and makes it if it is not there. Links are not followed
    /// out of the store: nothing in it is one.
    pub(crate) fn open(&self, path: &Path) -> io::Result<File> {
        if fs::symlink_metadata(path).is_ok_and(|facts| !facts.is_file()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "is there and is not a regular file",
            ));
        }
        self.step(Step::Write(path))?;
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
    }

    pub(crate) fn write(&self, mut file: &File, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.step(Step::Write(path))?;
        file.write_all(bytes)
    }

    /// Makes a file's content durable.
    pub(crate) fn sync(&self, path: &Path) -> io::Result<()> {
        self.step(Step::Sync(path))?;
        File::open(path)?.sync_all()
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(Step::Rename(from, to))?;
        fs::rename(from, to)
    }

    /// Makes the names in a folder durable.
    pub(crate) fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.step(Step::SyncFolder(path))?;
        #[cfg(unix)]
        File::open(path)?.sync_all()?;
        Ok(())
    }

    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(Step::Remove(path))?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes a folder with all in it.
    pub(crate) fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.step(Step::Remove(path))?;
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes a small file that is there whole or not at all, and is durable on return.
    pub(crate) fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let beside = path.with_extension("new");
        self.remove(&beside)?;
        let file = self.open(&beside)?;
        self.write(&file, &beside, bytes)?;
        self.sync(&beside)?;
        self.rename(&beside, path)?;
        self.sync_folder(path.parent().unwrap_or(Path::new(".")))
    }
}
