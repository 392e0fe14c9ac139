//! The cache of other programs that use the hub: read, never written.
//! `models--ORG--NAME/` holds `refs/REVISION` (a commit), `snapshots/COMMIT/FILE` (links), and
//! `blobs/HASH`, named after SHA-256 or git's hash of their content.

use std::fs;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::hub::{Listed, Repository};

/// Folders of a repository in which files are looked for.
const FOLDERS: [&str; 2] = ["", "1_Pooling/"];

/// A repository in the cache.
#[derive(Debug)]
pub(crate) struct Cached {
    folder: PathBuf,
}

impl Cached {
    /// The cache of a repository, whose name was checked.
    pub(crate) fn new(cache: &Path, repo: &str) -> Cached {
        let name = format!("models--{}", repo.replace('/', "--"));
        Cached {
            folder: cache.join(name),
        }
    }

    /// The file with that content, as its name has it.
    pub(crate) fn blob(&self, digest: Digest, size: Option<u64>) -> Option<PathBuf> {
        let path = self.folder.join("blobs").join(digest.to_string());
        let facts = fs::metadata(&path).ok()?;
        let whole = facts.is_file() && size.is_none_or(|size| facts.len() == size);
        whole.then_some(path)
    }

    /// What the cache has of a revision, where the hub cannot be asked, and where it lies.
    pub(crate) fn snapshot(&self, repo: &str, revision: &str) -> Option<(Repository, PathBuf)> {
        let named = fs::read_to_string(self.folder.join("refs").join(revision)).ok();
        let commit = named.map_or_else(|| revision.to_owned(), |text| text.trim().to_owned());
        if commit.is_empty() || !commit.chars().all(|c| c.is_ascii_alphanumeric()) {
            return None;
        }
        let folder = self.folder.join("snapshots").join(&commit);
        let mut files = Vec::new();
        for inner in FOLDERS {
            for entry in fs::read_dir(folder.join(inner)).ok().into_iter().flatten() {
                let entry = entry.ok()?;
                let path = entry.path();
                let (Some(name), true) = (
                    entry.file_name().to_str().map(str::to_owned),
                    path.is_file(),
                ) else {
                    continue;
                };
                let target = fs::read_link(&path).ok();
                let target = target.as_deref().and_then(Path::file_name);
                files.push(Listed {
                    path: format!("{inner}{name}"),
                    size: fs::metadata(&path).ok().map(|facts| facts.len()),
                    digest: target
                        .and_then(|name| name.to_str())
                        .and_then(Digest::from_hex),
                });
            }
        }
        if files.is_empty() {
            return None;
        }
        let repository = Repository {
            repo: repo.to_owned(),
            commit,
            files,
        };
        Some((repository, folder))
    }
}
