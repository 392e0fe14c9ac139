//! Files mapped into memory.
//! The one place of this crate with `unsafe`: everything above it sees checked slices.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use memmap2::{Mmap, UncheckedAdvice};

/// Keeps a mapping alive for the bytes over it.
struct Mapped(Arc<Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The mappings of this process by their first address, for [`release`]. A stored model is one
/// mapping a tensor, so that there may be tens of thousands.
static LIVE: Mutex<BTreeMap<usize, Weak<Mmap>>> = Mutex::new(BTreeMap::new());

/// Maps a whole regular file for reading; an empty file gives empty bytes.
///
/// Pages are read when first touched and shared with other processes that map the same file, so
/// opening costs nothing per byte. The price: if another process truncates the file while it is
/// mapped, touching the lost part ends this process with SIGBUS, and if one overwrites it, the
/// bytes change underfoot. That is the operator's to avoid (replace model files by renaming, as
/// Sedge's own writer does); a copy of every model in memory, the only full protection, would
/// cost far more than it saves. Nothing here relies on bytes staying equal between two reads
/// for memory safety: all that is parsed from them is copied before it is checked.
///
/// # Errors
/// When the path cannot be opened, is no regular file (a pipe would block, a device has no
/// length), or cannot be mapped.
#[allow(unsafe_code)]
pub fn map(path: &Path) -> io::Result<Bytes> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is private to `Bytes`, which keeps it alive and only ever reads it.
    // What other processes do to the file is discussed above.
    let map = unsafe { Mmap::map(&file)? };
    let map = Arc::new(map);
    let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    if live.len().is_power_of_two() {
        live.retain(|_, map| map.strong_count() > 0);
    }
    // An address that is given again belongs to the newer mapping.
    live.insert(map.as_ptr() as usize, Arc::downgrade(&map));
    drop(live);
    Ok(Bytes::from_owner(Mapped(map)))
}

/// Gives the memory back that holds these bytes of a mapped file. They stay readable: the next
/// access reads them from the file again. Does nothing for bytes that are not of a mapped file.
pub fn release(bytes: &Bytes) {
    let start = bytes.as_ptr() as usize;
    let live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((&first, map)) = live.range(..=start).next_back() else {
        return;
    };
    if let Some(map) = map.upgrade()
        && start + bytes.len() <= first + map.len()
        && !bytes.is_empty()
    {
        // A hint: where it is refused, the memory stays.
        give_back(&map, start - first, bytes.len());
    }
}

#[allow(unsafe_code)]
fn give_back(map: &Mmap, offset: usize, len: usize) {
    // SAFETY: the mapping is of a file and nothing writes to it, so that a page that is dropped
    // comes back with what it had; that the file itself may change is discussed at `map`.
    let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, len) };
}

#[cfg(test)]
mod tests {
    use super::{map, release};

    #[test]
    fn a_mapping_has_the_files_bytes_and_an_empty_file_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"sedge").unwrap();
        assert_eq!(map(&path).unwrap(), "sedge");
        std::fs::write(&path, b"").unwrap();
        assert!(map(&path).unwrap().is_empty());
    }

    #[test]
    fn released_bytes_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let content: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let bytes = map(&path).unwrap();
        release(&bytes.slice(5000..70_000));
        release(&bytes);
        assert_eq!(bytes, content);
        let owned = bytes::Bytes::from(content.clone());
        release(&owned);
        assert_eq!(owned, content);
    }

    #[test]
    fn a_folder_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(map(dir.path()).is_err());
    }
}
