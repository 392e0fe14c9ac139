//! Files that appear whole or not at all.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Writes a file beside `path` and renames it, so that a crash leaves no half file; returns when
/// file and name are on the disk. A mapping of a file that `path` named before stays valid.
///
/// # Errors
/// When the file cannot be made, kept or renamed, and those of `write`.
pub fn replace<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), E> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".sedge-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any new file has them; the crate's own choice would lock others out of the file.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder)?;
    write(file.as_file_mut())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    Ok(())
}
