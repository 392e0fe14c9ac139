//! What a run has done so far, in a folder beside its output: a run that was interrupted goes on
//! from there. A file appears whole or not at all.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// The folder.
#[derive(Debug)]
pub(crate) struct Work {
    folder: PathBuf,
}

/// Why a run's folder is of no use.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// It could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// File or folder.
        path: String,
        /// Cause.
        source: io::Error,
    },
    /// It was left by a run with other settings, text or model.
    #[error(
        "{path} was left by an interrupted run with other settings, another text or another model"
    )]
    Other {
        /// The folder.
        path: String,
    },
}

impl Work {
    /// The folder of an output.
    pub(crate) fn beside(output: &Path) -> PathBuf {
        let mut name = output.file_name().unwrap_or_default().to_os_string();
        name.push(".shrinking");
        output.with_file_name(name)
    }

    /// Opens the folder of an output for a run that `key` names, or makes it.
    pub(crate) fn open(output: &Path, key: &str, anew: bool) -> Result<Work, WorkError> {
        let folder = Work::beside(output);
        let work = Work { folder };
        if anew {
            work.remove()?;
        }
        fs::create_dir_all(&work.folder).map_err(|e| work.io(&work.folder, e))?;
        let file = work.folder.join("run");
        match fs::read_to_string(&file) {
            Ok(found) if found == key => Ok(work),
            Ok(_) => Err(WorkError::Other {
                path: work.folder.display().to_string(),
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                work.keep("run", key.as_bytes())?;
                Ok(work)
            }
            Err(e) => Err(work.io(&file, e)),
        }
    }

    /// What was kept under a name, if it is of this length.
    pub(crate) fn find(&self, name: &str, len: usize) -> Result<Option<Bytes>, WorkError> {
        let path = self.path(name);
        match fs::metadata(&path) {
            Ok(facts) if facts.len() == len as u64 => {
                let bytes = sedge_formats::map(&path).map_err(|e| self.io(&path, e))?;
                Ok(Some(bytes))
            }
            Ok(_) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.io(&path, e)),
        }
    }

    /// Keeps something under a name, and gives it as it lies in its file.
    pub(crate) fn keep(&self, name: &str, bytes: &[u8]) -> Result<Bytes, WorkError> {
        let (path, new) = (self.path(name), self.path(&format!("{name}.new")));
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&new)?;
            file.write_all(bytes)?;
            file.sync_data()?;
            fs::rename(&new, &path)
        };
        write().map_err(|e| self.io(&path, e))?;
        if bytes.is_empty() {
            return Ok(Bytes::new());
        }
        sedge_formats::map(&path).map_err(|e| self.io(&path, e))
    }

    /// Forgets all.
    pub(crate) fn remove(&self) -> Result<(), WorkError> {
        match fs::remove_dir_all(&self.folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.io(&self.folder, e)),
            _ => Ok(()),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        // Names of tensors come from files; they do not choose folders.
        self.folder.join(name.replace(['/', '\\'], "_"))
    }

    fn io(&self, path: &Path, source: io::Error) -> WorkError {
        let path = path.display().to_string();
        WorkError::Io { path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_found_by_the_same_run_only() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out.gguf");
        let work = Work::open(&output, "a", false).unwrap();
        work.keep("blk.0/x", &[1, 2, 3]).unwrap();
        let again = Work::open(&output, "a", false).unwrap();
        assert_eq!(again.find("blk.0/x", 3).unwrap().unwrap(), [1u8, 2, 3][..]);
        assert!(again.find("blk.0/x", 4).unwrap().is_none());
        assert!(again.find("other", 3).unwrap().is_none());
        let other = Work::open(&output, "b", false);
        assert!(matches!(other, Err(WorkError::Other { .. })));
        let anew = Work::open(&output, "b", true).unwrap();
        assert!(anew.find("blk.0/x", 3).unwrap().is_none());
        anew.remove().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
