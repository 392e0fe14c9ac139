//! A file of this machine into the store: read once, cut, hashed and copied.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::digest::{Digest, Digester};
use crate::layout::{Cut, Head, Layout};
use crate::pull::{Pull, PullError};
use crate::staging::{About, Finished, Leftover, Staging, finished};
use crate::store::StoreError;

/// Bytes that are copied at a time.
const BLOCK: usize = 1 << 20;

/// Copies a file, which goes by `path`. Where a digest is expected, the content must have it.
pub(crate) fn import<'s>(
    pull: &Pull<'s, '_>,
    from: &Path,
    path: &str,
    cut: Cut,
    expected: Option<Digest>,
) -> Result<(Leftover<'s>, Finished), PullError> {
    let failed = |source| {
        PullError::Store(StoreError::Io {
            path: from.display().to_string(),
            source,
        })
    };
    // A pipe would block, and a device has no length.
    if !std::fs::metadata(from).map_err(failed)?.is_file() {
        return Err(failed(std::io::Error::other("is not a regular file")));
    }
    let mut file = File::open(from).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let place = from.canonicalize().map_err(failed)?;
    let mut id = blake3::Hasher::new();
    id.update(b"import\0")
        .update(place.as_os_str().as_encoded_bytes());
    let about = About {
        path: path.to_owned(),
        size,
        etag: None,
    };
    let mut staging = Staging::open(pull.store, &id.finalize().to_hex()[..40], about)?;
    staging.reset()?;

    let mut head = Vec::new();
    let layout = loop {
        let in_file = |source| PullError::Layout {
            file: from.display().to_string(),
            source,
        };
        match Layout::read(cut, &head, size).map_err(in_file)? {
            Head::Whole(layout) => break layout,
            Head::Needs(need) => {
                let more = (need - head.len() as u64).max(64 << 10);
                let before = head.len();
                (&mut file)
                    .take(more)
                    .read_to_end(&mut head)
                    .map_err(failed)?;
                if head.len() == before {
                    return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
                }
            }
        }
    };
    drop(head);
    file.seek(SeekFrom::Start(0)).map_err(failed)?;

    let body = staging.body(&layout, None, false)?;
    let git = matches!(expected, Some(Digest::Git(_)));
    let mut digester = Digester::new(size, git);
    let mut copy = || -> Result<(), PullError> {
        let mut writer = body.writer(0);
        let mut block = vec![0; BLOCK];
        while writer.at() < size && !body.stopped() {
            let len = (size - writer.at()).min(BLOCK as u64) as usize;
            file.read_exact(&mut block[..len]).map_err(failed)?;
            writer.write(&block[..len])?;
            pull.arrived(len as u64, false);
        }
        Ok(writer.tell()?)
    };
    let hashes = std::thread::scope(|scope| {
        let copying = scope.spawn(|| {
            let copied = copy();
            if copied.is_err() {
                body.stop();
            }
            copied
        });
        let hashes = body.follow(&mut digester);
        if hashes.is_err() {
            body.stop();
        }
        // A thread that panicked has its panic passed on.
        copying
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        hashes.map_err(PullError::from)
    })?;
    let digests = digester.finish();
    if let Some(expected) = expected
        && expected != digests.0
        && Some(expected) != digests.1
    {
        return Err(PullError::Hash {
            file: from.display().to_string(),
            expected: expected.to_string(),
            found: digests.1.unwrap_or(digests.0).to_string(),
        });
    }
    let done = hashes.and_then(|hashes| finished(&layout, &hashes, path, None, digests));
    let done = done.ok_or(PullError::Stopped)?;
    drop(body);
    staging.publish(&done)?;
    Ok((staging.release(), done))
}
