//! Tensors that lie in other files of the model's folder.
//! Nothing outside that folder is read, whatever a model says or links to.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

use super::OnnxError;
use super::proto::StringStringEntryProto;

/// The files that external data was read from.
pub(super) struct External<'a> {
    folder: Option<&'a Path>,
    /// By real path: the mapped file, and how many of its bytes tensors have taken.
    files: HashMap<PathBuf, (Bytes, usize)>,
}

impl<'a> External<'a> {
    /// Nothing read yet, in a folder or in none.
    pub(super) fn new(folder: Option<&'a Path>) -> External<'a> {
        External {
            folder,
            files: HashMap::new(),
        }
    }

    /// The `len` bytes that a tensor's `entries` point to.
    ///
    /// Tensors that share bytes are refused as soon as they take more together than their file
    /// has: a small file must not become large tensors.
    pub(super) fn load(
        &mut self,
        place: &str,
        entries: &[StringStringEntryProto],
        len: usize,
    ) -> Result<Bytes, OnnxError> {
        let value = |key: &str| {
            let entry = entries.iter().find(|entry| entry.key == key);
            entry.map(|entry| entry.value.as_str())
        };
        let number = |key: &'static str| match value(key).map(str::parse::<u64>) {
            None => Ok(None),
            Some(Ok(number)) => Ok(Some(number)),
            Some(Err(_)) => Err(wrong(place, key, value(key), "which is no number of bytes")),
        };
        let offset = number("offset")?.unwrap_or(0);
        if number("length")?.is_some_and(|length| length != len as u64) {
            let expected = "which is not what its type and shape take";
            return Err(wrong(place, "length", value("length"), expected));
        }

        let path = self.path(place, value("location"))?;
        let shown = path.display().to_string();
        let (bytes, taken) = match self.files.entry(path) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let bytes = crate::map(entry.key()).map_err(io(&shown))?;
                entry.insert((bytes, 0))
            }
        };
        let begin = usize::try_from(offset).ok();
        let end = begin.and_then(|begin| begin.checked_add(len));
        let (Some(begin), Some(end)) = (begin, end.filter(|end| *end <= bytes.len())) else {
            return Err(OnnxError::ExternalEnd {
                place: place.to_owned(),
                path: shown,
                offset,
                len,
                file: bytes.len(),
            });
        };
        *taken += len;
        if *taken > bytes.len() {
            return Err(OnnxError::ExternalOverlap {
                place: place.to_owned(),
                path: shown,
            });
        }
        Ok(bytes.slice(begin..end))
    }

    /// The real path of a location, which is inside the folder.
    fn path(&self, place: &str, location: Option<&str>) -> Result<PathBuf, OnnxError> {
        let Some(folder) = self.folder else {
            return Err(OnnxError::NoFolder {
                place: place.to_owned(),
            });
        };
        let outside = || {
            let expected = "which is no file inside the model's folder";
            wrong(place, "location", location, expected)
        };
        // `/a`, `C:a` and `a/../b` have components of other kinds; a link may lead out too.
        let name = Path::new(location.unwrap_or(""));
        let mut parts = name.components();
        if name.as_os_str().is_empty()
            || !parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        {
            return Err(outside());
        }
        // The parent of a bare file name is the empty path.
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        let real = |path: &Path| path.canonicalize().map_err(io(&path.display().to_string()));
        let path = real(&folder.join(name))?;
        if !path.starts_with(real(folder)?) {
            return Err(outside());
        }
        Ok(path)
    }
}

fn wrong(place: &str, key: &'static str, value: Option<&str>, expected: &'static str) -> OnnxError {
    OnnxError::External {
        place: place.to_owned(),
        key,
        value: value.unwrap_or_default().to_owned(),
        expected,
    }
}

fn io(path: &str) -> impl FnOnce(std::io::Error) -> OnnxError {
    let path = path.to_owned();
    |source| OnnxError::Io { path, source }
}
