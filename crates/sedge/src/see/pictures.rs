//! Pictures that the command line names: files as they stand, folders' in the order of names.

use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// How the names of pictures in folders end. A file that is named itself may end as it likes.
const ENDINGS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// All pictures' files. A file that is not there is its picture's failure; a folder without
/// pictures is one of the command.
pub(super) fn files(named: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for path in named {
        match path.is_dir() {
            true => files.extend(in_folder(path)?),
            false => files.push(path.clone()),
        }
    }
    Ok(files)
}

fn in_folder(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |error: std::io::Error| Failure::file(folder, &error);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let ending = path.extension().map(|e| e.to_ascii_lowercase());
        if ending.is_some_and(|e| ENDINGS.iter().any(|known| e == *known)) && path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        let what = format!("{}: no pictures in this folder", folder.display());
        return Err(Failure::new(what).hint("a folder of .jpg, .png or .webp files"));
    }
    files.sort();
    Ok(files)
}
