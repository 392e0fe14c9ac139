//! A repository of a hub: which files it has, and where each is.

use serde::Deserialize;

use crate::digest::Digest;
use crate::http::{Client, HttpError, encode, text};

/// Most bytes of a list of files.
const MAX_LIST: u64 = 64 << 20;

/// A repository at one commit.
#[derive(Debug)]
pub(crate) struct Repository {
    pub(crate) repo: String,
    pub(crate) commit: String,
    pub(crate) files: Vec<Listed>,
}

/// A file of a repository, as its list has it. None of it is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) path: String,
    pub(crate) size: Option<u64>,
    pub(crate) digest: Option<Digest>,
}

#[derive(Deserialize)]
struct List {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

/// Asks for the files of a repository.
pub(crate) fn list(client: &Client, repo: &str, revision: &str) -> Result<Repository, HttpError> {
    // One component of the path: a slash in it is encoded.
    let revision_part = encode(revision).replace('/', "%2F");
    let url = format!(
        "{}/api/models/{repo}/revision/{revision_part}?blobs=true",
        client.endpoint
    );
    let bytes = client.read(&url, MAX_LIST)?;
    let list: List = serde_json::from_slice(&bytes).map_err(|error| HttpError::Malformed {
        url: url.clone(),
        reason: format!("the list of files is malformed: {error}"),
    })?;
    let files = list.siblings.into_iter().map(|file| {
        let lfs = file.lfs.as_ref();
        let digest = match lfs {
            Some(lfs) => lfs.sha256.as_deref(),
            None => file.blob_id.as_deref(),
        };
        Listed {
            size: lfs.and_then(|lfs| lfs.size).or(file.size),
            digest: digest.and_then(Digest::from_hex),
            path: file.rfilename,
        }
    });
    Ok(Repository {
        repo: repo.to_owned(),
        commit: list.sha.unwrap_or_else(|| revision.to_owned()),
        files: files.collect(),
    })
}

impl Repository {
    /// Where a file's content is.
    pub(crate) fn url(&self, client: &Client, path: &str) -> String {
        let commit = encode(&self.commit).replace('/', "%2F");
        format!(
            "{}/{}/resolve/{commit}/{}",
            client.endpoint,
            self.repo,
            encode(path)
        )
    }

    pub(crate) fn find(&self, path: &str) -> Option<&Listed> {
        self.files.iter().find(|file| file.path == path)
    }
}

/// What the headers of a file say of it: its size, its hash, and the ETag of its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) size: Option<u64>,
    pub(crate) digest: Option<Digest>,
    pub(crate) etag: Option<String>,
}

impl Facts {
    /// Of an answer to a request for the first byte or for all.
    pub(crate) fn of(answer: &crate::http::Answer) -> Facts {
        let first = answer.first.as_ref().unwrap_or(&answer.headers);
        let linked = text(first, "x-linked-etag");
        let own = text(first, "etag");
        let size = text(first, "x-linked-size").and_then(|size| size.parse().ok());
        let size = size.or(match answer.status {
            206 => answer.range().map(|(_, total)| total),
            _ => answer.len(),
        });
        Facts {
            size,
            // An ETag of the hub itself is a hash; one of another server may look like one.
            digest: linked
                .and_then(Digest::from_hex)
                .or_else(|| match answer.first {
                    None => own.and_then(Digest::from_hex),
                    Some(_) => None,
                }),
            etag: answer.header("etag").map(str::to_owned),
        }
    }
}
