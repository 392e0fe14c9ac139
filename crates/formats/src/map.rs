//! Files mapped into memory.
//! The one place of this crate with `unsafe`: everything above it sees checked slices.

use std::fs::File;
use std::io;
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

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
pub(crate) fn map(path: &Path) -> io::Result<Bytes> {
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
    Ok(Bytes::from_owner(map))
}

#[cfg(test)]
mod tests {
    use super::map;

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
    fn a_folder_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(map(dir.path()).is_err());
    }
}
