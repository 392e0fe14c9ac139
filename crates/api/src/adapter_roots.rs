//! Which folders a request may have read.
//! Nothing outside the operator's folders is opened, whatever a path or a link in it says, and no
//! answer tells whether there is something.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The folder at `path` without links in its name, if it and all that it holds lie below one of
/// the roots. A relative path starts at a root.
pub(crate) fn allowed(roots: &[PathBuf], path: &Path) -> Option<PathBuf> {
    let mut roots = roots.iter().filter_map(|root| root.canonicalize().ok());
    roots.find_map(|root| below(&root, path).ok().flatten())
}

fn below(root: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    // What is absolute replaces the root here, and is held to it below.
    let folder = root.join(path).canonicalize()?;
    if !folder.starts_with(root) || !folder.is_dir() {
        return Ok(None);
    }
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        let leaves = || Ok::<_, io::Error>(!entry.path().canonicalize()?.starts_with(root));
        if entry.file_type()?.is_symlink() && leaves()? {
            return Ok(None);
        }
    }
    Ok(Some(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that is gone at the end, and its path without links.
    struct Place {
        path: PathBuf,
        _folder: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Place {
            let folder = tempfile::tempdir().unwrap();
            for inner in ["root/a", "root/b/c", "roots/a", "other/a"] {
                fs::create_dir_all(folder.path().join(inner)).unwrap();
            }
            let path = folder.path().canonicalize().unwrap();
            Place {
                path,
                _folder: folder,
            }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.path.join(path)
        }

        fn allows(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
            allowed(&[self.at("missing"), self.at("root")], path.as_ref())
        }
    }

    #[test]
    fn only_folders_below_a_root_are_allowed() {
        let place = Place::new();
        let a = place.at("root/a");
        assert_eq!(place.allows("a"), Some(a.clone()));
        assert_eq!(place.allows(&a), Some(a.clone()));
        assert_eq!(place.allows("b/c/../../a"), Some(a));
        for path in [
            "/",
            "..",
            "../other/a",
            "a/../../other/a",
            "../roots/a",
            "nothing",
            "a\0",
            "a/../../root/../other",
        ] {
            assert_eq!(place.allows(path), None, "{path:?}");
        }
        for path in ["other/a", "roots/a", "root/../other/a"] {
            assert_eq!(place.allows(place.at(path)), None, "{path}");
        }
        fs::write(place.at("root/file"), b"").unwrap();
        assert_eq!(place.allows("file"), None);
        assert_eq!(allowed(&[], &place.at("root/a")), None);
    }

    #[test]
    #[cfg(unix)]
    fn links_do_not_lead_out() {
        use std::os::unix::fs::symlink;
        let place = Place::new();
        let root = place.at("root");
        symlink(place.at("other"), root.join("out")).unwrap();
        symlink(root.join("a"), root.join("in")).unwrap();
        assert_eq!(place.allows("out/a"), None);
        assert_eq!(place.allows("out"), None);
        assert_eq!(place.allows("in"), Some(root.join("a")));
        // A file of a folder that is inside may not be outside either, or nowhere.
        fs::write(place.at("other/secret"), b"").unwrap();
        symlink(root.join("b/c"), root.join("a/stays")).unwrap();
        assert_eq!(place.allows("a"), Some(root.join("a")));
        symlink(place.at("other/secret"), root.join("a/adapter_config.json")).unwrap();
        assert_eq!(place.allows("a"), None);
        symlink("nowhere", root.join("b/adapter_config.json")).unwrap();
        assert_eq!(place.allows("b"), None);
        // The root itself may be a link.
        symlink(&root, place.at("linked")).unwrap();
        let linked = [place.at("linked")];
        assert_eq!(allowed(&linked, Path::new("b/c")), Some(root.join("b/c")));
    }
}
