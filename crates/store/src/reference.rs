//! What a user names to pull: `hf:ORG/NAME[@REVISION][:FILE]`, or a path.

use std::path::PathBuf;

use crate::name::check_file_path;

/// What to pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A repository of a hub.
    Hub(HubReference),
    /// A file or folder on this machine.
    Path(PathBuf),
}

/// A repository of a hub, or a file in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubReference {
    /// `ORG/NAME`, or `NAME` for the oldest ones.
    pub repo: String,
    /// Branch, tag or commit; `main` if none is said.
    pub revision: Option<String>,
    /// A file, or what of its name says how it is quantised.
    pub file: Option<String>,
}

/// Why something is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no model of a hub: {reason}")]
pub struct ReferenceError {
    /// What was given.
    pub text: String,
    /// What is wrong.
    pub reason: &'static str,
}

impl Reference {
    /// Reads `hf:ORG/NAME[@REVISION][:FILE]`; everything else is a path.
    ///
    /// # Errors
    /// When it begins with `hf:` and does not go on so.
    pub fn parse(text: &str) -> Result<Reference, ReferenceError> {
        let Some(rest) = text.strip_prefix("hf:") else {
            return Ok(Reference::Path(text.into()));
        };
        let wrong = |reason| ReferenceError {
            text: text.to_owned(),
            reason,
        };
        let (rest, file) = match rest.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (rest, None),
        };
        let (repo, revision) = match rest.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (rest, None),
        };
        let plain = |part: &str, also: &str| {
            !part.is_empty()
                && part.len() <= 128
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c) || also.contains(c))
                && part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && !part.contains("..")
        };
        let parts: Vec<&str> = repo.split('/').collect();
        if parts.len() > 2 || !parts.iter().all(|part| plain(part, "")) {
            return Err(wrong(
                "expected hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:ORG/NAME:FILE",
            ));
        }
        if revision.is_some_and(|revision| !plain(revision, "/")) {
            return Err(wrong("what follows @ is no branch, tag or commit"));
        }
        if file.is_some_and(|file| check_file_path(file).is_err()) {
            return Err(wrong(
                "what follows the second colon is no file of a repository",
            ));
        }
        Ok(Reference::Hub(HubReference {
            repo: repo.to_owned(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        }))
    }
}

impl HubReference {
    /// The repository, without revision and file: what a model came from.
    pub fn source(&self) -> String {
        format!("hf:{}", self.repo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_in_their_parts() {
        let hub = |repo: &str, revision: Option<&str>, file: Option<&str>| {
            Ok(Reference::Hub(HubReference {
                repo: repo.into(),
                revision: revision.map(Into::into),
                file: file.map(Into::into),
            }))
        };
        assert_eq!(Reference::parse("hf:a/b"), hub("a/b", None, None));
        assert_eq!(Reference::parse("hf:gpt2"), hub("gpt2", None, None));
        assert_eq!(
            Reference::parse("hf:a/b.c@refs/pr/1:q/x y.gguf"),
            hub("a/b.c", Some("refs/pr/1"), Some("q/x y.gguf"))
        );
        assert_eq!(
            Reference::parse("hf:a/b:Q4_K_M"),
            hub("a/b", None, Some("Q4_K_M"))
        );
        assert_eq!(
            Reference::parse("./hf:a"),
            Ok(Reference::Path("./hf:a".into()))
        );
        for bad in [
            "hf:",
            "hf:/",
            "hf:a/",
            "hf:/b",
            "hf:a/b/c",
            "hf:../b",
            "hf:a/..",
            "hf:-a/b",
            "hf:a/b@",
            "hf:a/b@../x",
            "hf:a/b@-x",
            "hf:a/b:",
            "hf:a/b:../x",
            "hf:a/b:/x",
            "hf:a b/c",
            "hf:a/b?x",
            "hf:a/b#x",
            "hf:a/b%2e",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }
}
