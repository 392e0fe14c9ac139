//! Models split into several GGUF files.
//! The first holds the metadata; each says which of how many it is (`split.no`, `split.count`)
//! and is named for it (`NAME-00001-of-00003.gguf`), as gguf-split writes them.

use std::path::{Path, PathBuf};

use indexmap::map::Entry;

use super::{Gguf, GgufError};
use crate::map::map;

/// Maps a file and, if it is the first of several, the others beside it.
pub(super) fn open(path: &Path) -> Result<Gguf, GgufError> {
    let mut gguf = open_one(path)?;
    let number = |gguf: &Gguf, key| gguf.get(key).and_then(super::Value::as_u64);
    let count = number(&gguf, "split.count").unwrap_or(1);
    if count <= 1 {
        return Ok(gguf);
    }
    let in_file = |path: &Path, reason: String| GgufError::InFile {
        path: path.display().to_string(),
        cause: Box::new(GgufError::Split { reason }),
    };
    let no = number(&gguf, "split.no");
    let Some(stem) = stem(path, no.unwrap_or(0), count) else {
        let reason = match no {
            Some(no) => format!(
                "holds part {} of {count} of a model; its name must end in {}",
                no.saturating_add(1),
                ending(no, count)
            ),
            None => "has split.count but no split.no".to_owned(),
        };
        return Err(in_file(path, reason));
    };
    if no != Some(0) {
        let first = sibling(path, &stem, 0, count);
        return Err(in_file(
            path,
            format!(
                "is not the first part of the model; open {}",
                first.display()
            ),
        ));
    }
    for no in 1..count {
        let path = sibling(path, &stem, no, count);
        let part = open_one(&path)?;
        if (number(&part, "split.no"), number(&part, "split.count")) != (Some(no), Some(count)) {
            return Err(in_file(
                &path,
                format!("does not say that it is part {} of {count}", no + 1),
            ));
        }
        let shard = gguf.shards.len();
        gguf.shards.extend(part.shards);
        for (name, mut tensor) in part.tensors {
            tensor.shard = shard;
            match gguf.tensors.entry(name) {
                Entry::Occupied(entry) => {
                    return Err(GgufError::InFile {
                        path: path.display().to_string(),
                        cause: Box::new(GgufError::DuplicateTensor {
                            name: entry.key().clone(),
                        }),
                    });
                }
                Entry::Vacant(entry) => entry.insert(tensor),
            };
        }
    }
    match number(&gguf, "split.tensors.count") {
        Some(expected) if expected != gguf.tensors.len() as u64 => {
            let found = gguf.tensors.len();
            Err(in_file(
                path,
                format!("says that the model has {expected} tensors; its parts have {found}"),
            ))
        }
        _ => Ok(gguf),
    }
}

fn open_one(path: &Path) -> Result<Gguf, GgufError> {
    let name = || path.display().to_string();
    let bytes = map(path).map_err(|source| GgufError::Io {
        path: name(),
        source,
    })?;
    Gguf::parse(bytes).map_err(|cause| GgufError::InFile {
        path: name(),
        cause: Box::new(cause),
    })
}

/// How the name of part `no` (from 0) ends.
fn ending(no: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", no.saturating_add(1))
}

fn stem(path: &Path, no: u64, count: u64) -> Option<String> {
    Some(
        path.file_name()?
            .to_str()?
            .strip_suffix(&ending(no, count))?
            .to_owned(),
    )
}

fn sibling(path: &Path, stem: &str, no: u64, count: u64) -> PathBuf {
    path.with_file_name(format!("{stem}{}", ending(no, count)))
}
