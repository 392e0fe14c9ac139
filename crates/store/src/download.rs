//! One file of a hub into the store: resumed, in parallel ranges, hashed behind the writing.

use std::collections::VecDeque;
use std::io::Read;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::digest::{Digest, Digester};
use crate::http::{Answer, HttpError};
use crate::hub::{Facts, Listed, Repository};
use crate::layout::{Cut, Head, Layout, Piece, TensorFacts};
use crate::pull::{Event, Pull, PullError, fits};
use crate::staging::{About, Body, Finished, Leftover, Staging, finished};
use crate::store::StoreError;

/// Bytes of a range that one request asks for.
const CHUNK: u64 = 32 << 20;

/// Bytes that are read from a connection at a time.
const BLOCK: usize = 256 << 10;

/// First bytes that are asked for to read a header.
const HEAD: u64 = 1 << 20;

/// Requests in a row that may fail.
const TRIES: u32 = 6;

/// Bytes after which a connection counts as one that works.
const PROGRESS: u64 = 64 << 10;

/// How often a file that changes underfoot is begun again.
const RESTARTS: u32 = 3;

/// Fetches one file. `known` is a stored file with the same content of which blobs are lost:
/// then those pieces alone are fetched.
pub(crate) fn download<'s>(
    pull: &Pull<'s, '_>,
    repository: &Repository,
    listed: &Listed,
    cut: Cut,
    known: Option<&Finished>,
) -> Result<(Leftover<'s>, Finished), PullError> {
    let url = repository.url(pull.client, &listed.path);
    let facts = facts(pull, listed, &url)?;
    let size = facts.size.ok_or_else(|| PullError::Unknown {
        file: listed.path.clone(),
    })?;
    let id = match facts.digest {
        Some(digest) => digest.to_string(),
        None => blake3::hash(format!("{url}\0{:?}", facts.etag).as_bytes()).to_hex()[..40].into(),
    };
    let about = About {
        path: listed.path.clone(),
        size,
        etag: None,
    };
    let mut staging = Staging::open(pull.store, &id, about)?;
    // Without a hash to hold it against in the end, nothing is resumed across processes.
    if facts.digest.is_none() && staging.resumed {
        staging.reset()?;
    }
    if let Some(mut done) = staging.finished()? {
        done.file.path.clone_from(&listed.path);
        pull.arrived(size, false);
        return Ok((staging.release(), done));
    }
    // Another pull may have brought it meanwhile.
    if staging.waited
        && let Some(digest) = facts.digest
        && let Some(done) = pull.known()?.remove(&digest.to_string())
        && fits(&done, cut)
        && pieces(&done).all(|(_, blob)| pull.store.has(&blob))
    {
        pull.arrived(size, false);
        return Ok((staging.release(), done));
    }
    let mut file = Download {
        pull,
        url,
        path: &listed.path,
        size,
        digest: facts.digest,
        etag: Mutex::new(staging.etag().map(str::to_owned)),
        place: Mutex::default(),
        alone: false,
    };
    let mut restarts = 0;
    loop {
        let was_resumed = staging.resumed;
        let arrived = pull.count();
        match file.fill(&mut staging, cut, known) {
            Ok(done) => return Ok((staging.release(), done)),
            Err(PullError::NoRanges { .. }) if !file.alone => file.alone = true,
            // What was there before may have been damaged: once more, from nothing.
            Err(PullError::Hash { .. }) if was_resumed && restarts == 0 => {}
            Err(PullError::Changed { .. }) if restarts < RESTARTS => {}
            Err(error @ PullError::Hash { .. }) => {
                staging.reset()?;
                return Err(error);
            }
            Err(error) => return Err(error),
        }
        restarts += 1;
        pull.take_back(arrived);
        staging.reset()?;
        file.etag = Mutex::default();
        file.place = Mutex::default();
    }
}

/// What the list says of a file, and where it is silent, the hub's headers.
fn facts(pull: &Pull<'_, '_>, listed: &Listed, url: &str) -> Result<Facts, PullError> {
    if let (Some(size), Some(digest)) = (listed.size, listed.digest) {
        return Ok(Facts {
            size: Some(size),
            digest: Some(digest),
            etag: None,
        });
    }
    let answer = pull.patiently(|| pull.client.get(url, Some(0..1), None));
    let facts = match answer {
        Ok(answer) => Facts::of(&answer),
        // An empty file has no first byte.
        Err(HttpError::Status { status: 416, .. }) => Facts {
            size: Some(0),
            ..Facts::default()
        },
        Err(error) => return Err(PullError::http(listed.path.clone(), error)),
    };
    Ok(Facts {
        size: listed.size.or(facts.size),
        digest: listed.digest.or(facts.digest),
        etag: facts.etag,
    })
}

/// A file that is being fetched.
struct Download<'p, 's, 'e> {
    pull: &'p Pull<'s, 'e>,
    /// At the hub.
    url: String,
    path: &'p str,
    size: u64,
    digest: Option<Digest>,
    /// ETag of the content, from the first answer with any.
    etag: Mutex<Option<String>>,
    /// Where the hub sent us.
    place: Mutex<Option<String>>,
    /// The server knows no ranges: one connection, from the first byte.
    alone: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Download<'_, '_, '_> {
    /// Fetches what is missing, hashes all, and puts it into the store.
    fn fill(
        &self,
        staging: &mut Staging<'_>,
        cut: Cut,
        known: Option<&Finished>,
    ) -> Result<Finished, PullError> {
        let mut head = Vec::new();
        let (layout, wanted) = match known {
            Some(known) => {
                let wanted: Vec<bool> = pieces(known)
                    .map(|(_, blob)| !self.pull.store.has(&blob))
                    .collect();
                let pieces = pieces(known).map(|(piece, _)| piece).collect();
                let layout = Layout {
                    size: self.size,
                    pieces,
                };
                (layout, Some(wanted))
            }
            None => (self.layout(staging, cut, &mut head)?, None),
        };
        staging.set_etag(lock(&self.etag).clone())?;
        let body = staging.body(&layout, wanted.as_deref(), self.digest.is_some())?;
        if !head.is_empty() {
            let mut writer = body.writer(0);
            writer.write(&head)?;
            writer.tell()?;
            drop(head);
        }
        self.pull.arrived(body.count(), false);
        let git = matches!(self.digest, Some(Digest::Git(_)));
        let mut digester = Digester::new(self.size, git);
        let hashes = self.fetch(&body, &mut digester)?;
        let digests = digester.finish();
        let wrong = |expected: String, found: String| PullError::Hash {
            file: self.path.to_owned(),
            expected,
            found,
        };
        let done = match known {
            Some(known) => {
                for ((_, blob), hash) in pieces(known).zip(&hashes) {
                    if let Some(hash) = hash.filter(|hash| *hash != blob.hash) {
                        return Err(wrong(blob.hash.to_string(), hash.to_string()));
                    }
                }
                known.clone()
            }
            None => {
                if let Some(expected) = self.digest
                    && expected != digests.0
                    && Some(expected) != digests.1
                {
                    let found = digests.1.unwrap_or(digests.0);
                    return Err(wrong(expected.to_string(), found.to_string()));
                }
                let etag = lock(&self.etag).clone();
                finished(&layout, &hashes, self.path, etag, digests).ok_or(PullError::Stopped)?
            }
        };
        drop(body);
        staging.publish(&done)?;
        Ok(done)
    }

    /// Reads the file's first bytes until they say how to cut it. Those that were fetched for it
    /// are left in `head`.
    fn layout(
        &self,
        staging: &Staging<'_>,
        cut: Cut,
        head: &mut Vec<u8>,
    ) -> Result<Layout, PullError> {
        let in_file = |source| PullError::Layout {
            file: self.path.to_owned(),
            source,
        };
        if let Some(kept) = staging.head().filter(|_| staging.resumed)
            && let Ok(Head::Whole(layout)) = Layout::read(cut, &kept, self.size)
        {
            return Ok(layout);
        }
        loop {
            match Layout::read(cut, head, self.size).map_err(in_file)? {
                Head::Whole(layout) => {
                    if cut != Cut::Whole {
                        staging.set_head(head)?;
                    }
                    return Ok(layout);
                }
                Head::Needs(need) => {
                    let at = head.len() as u64;
                    let end = need.max(at + HEAD).min(self.size);
                    self.range(at..end, |bytes| {
                        head.extend_from_slice(bytes);
                        Ok(true)
                    })?;
                    self.pull.fetched(end - at);
                }
            }
        }
    }

    /// Fetches ranges on some connections while this thread hashes.
    fn fetch(
        &self,
        body: &Body<'_>,
        digester: &mut Digester,
    ) -> Result<Vec<Option<blake3::Hash>>, PullError> {
        let chunks: VecDeque<Range<u64>> = match self.alone {
            true => body
                .missing()
                .first()
                .map(|first| first.start..self.size)
                .into_iter()
                .collect(),
            false => body
                .missing()
                .into_iter()
                .flat_map(|run| {
                    let starts = run.clone().step_by(CHUNK as usize);
                    starts.map(move |start| start..run.end.min(start + CHUNK))
                })
                .collect(),
        };
        let connections = self.pull.options.connections.clamp(1, 16);
        let connections = connections.min(chunks.len());
        let chunks = Mutex::new(chunks);
        let first_error: Mutex<Option<PullError>> = Mutex::default();
        let work = || {
            loop {
                let next = lock(&chunks).pop_front();
                let Some(chunk) = next.filter(|_| !body.stopped()) else {
                    return;
                };
                if let Err(error) = self.chunk(body, chunk) {
                    lock(&first_error).get_or_insert(error);
                    body.stop();
                    return;
                }
            }
        };
        let hashes = std::thread::scope(|scope| {
            for _ in 0..connections {
                scope.spawn(work);
            }
            let hashes = body.follow(digester);
            if !matches!(hashes, Ok(Some(_))) {
                body.stop();
            }
            hashes
        });
        if let Some(error) = first_error
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
        {
            return Err(error);
        }
        hashes?.ok_or(PullError::Stopped)
    }

    fn chunk(&self, body: &Body<'_>, chunk: Range<u64>) -> Result<(), PullError> {
        let mut writer = body.writer(chunk.start);
        let result = self.range(chunk, |bytes| {
            writer.write(bytes)?;
            self.pull.arrived(bytes.len() as u64, true);
            Ok(!body.stopped())
        });
        // What came before it broke off need not come again.
        writer.tell()?;
        result
    }

    /// Brings a range, in as many requests as it takes. `take` gets its bytes in order and says
    /// whether to go on.
    fn range(
        &self,
        range: Range<u64>,
        mut take: impl FnMut(&[u8]) -> Result<bool, PullError>,
    ) -> Result<(), PullError> {
        let (mut at, mut tries) = (range.start, 0);
        let mut block = vec![0; BLOCK];
        while at < range.end {
            let began = at;
            let result = self.once(&mut at, range.end, &mut block, &mut take);
            let error = match result {
                Ok(true) => continue,
                Ok(false) => return Ok(()),
                Err(PullError::Http { source, .. }) => source,
                Err(error) => return Err(error),
            };
            if at - began >= PROGRESS {
                tries = 0;
            }
            // The place where the hub sent us may have been for some time only.
            let stale = matches!(
                error,
                HttpError::Status {
                    status: 400 | 401 | 403 | 404 | 410,
                    ..
                }
            ) && lock(&self.place).take().is_some();
            if tries + 1 >= TRIES || !(error.passes() || stale) {
                return Err(PullError::http(self.path.to_owned(), error));
            }
            self.pull.wait(&error, tries, at > began);
            tries += 1;
        }
        Ok(())
    }

    /// One request. Returns whether to go on.
    fn once(
        &self,
        at: &mut u64,
        end: u64,
        block: &mut [u8],
        take: &mut impl FnMut(&[u8]) -> Result<bool, PullError>,
    ) -> Result<bool, PullError> {
        let http = |source| PullError::http(self.path.to_owned(), source);
        let place = lock(&self.place).clone();
        let etag = lock(&self.etag).clone();
        let whole = *at == 0 && end == self.size;
        let range = (!whole && !self.alone).then_some(*at..end);
        let answer = self.pull.client.get(
            place.as_deref().unwrap_or(&self.url),
            range,
            etag.as_deref(),
        );
        let answer = match answer {
            Err(HttpError::Status { status: 416, .. }) => return Err(self.changed()),
            answer => answer.map_err(http)?,
        };
        let skip = self.check(&answer, *at)?;
        if answer.first.is_some() {
            *lock(&self.place) = Some(answer.url.clone());
        }
        let broke_off = |answer_url: &str, found, source: std::io::Error| {
            let url = answer_url.split('?').next().unwrap_or_default().to_owned();
            match source.kind() {
                std::io::ErrorKind::UnexpectedEof => HttpError::Truncated {
                    url,
                    found,
                    expected: self.size,
                },
                _ => HttpError::Failed {
                    url,
                    source: Box::new(ureq::Error::Io(source)),
                },
            }
        };
        let url = answer.url;
        let mut reader = answer.body.into_with_config().limit(u64::MAX).reader();
        let mut skip = skip;
        while *at < end {
            let want = match skip {
                0 => end - *at,
                skip => skip,
            };
            let want = want.min(block.len() as u64) as usize;
            let read = match reader.read(&mut block[..want]) {
                Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
                read => read,
            };
            let read = read.map_err(|error| http(broke_off(&url, *at, error)))?;
            if skip > 0 {
                skip -= read as u64;
                continue;
            }
            *at += read as u64;
            if !take(&block[..read])? {
                return Ok(false);
            }
        }
        // A server that knows no length must not go on after it either.
        if end == self.size {
            match reader.read(&mut block[..1]) {
                Ok(0) => {}
                Ok(_) => return Err(self.wrong_size(None)),
                Err(error) => drop(error), // all that is wanted has come
            }
        }
        Ok(true)
    }

    /// Whether an answer is of the file that was asked for. Returns how many bytes of it come
    /// before byte `at`.
    fn check(&self, answer: &Answer, at: u64) -> Result<u64, PullError> {
        if let Some(first) = &answer.first {
            // The hub says it twice: in its list, and in the headers of the redirect.
            let linked = crate::http::text(first, "x-linked-etag").and_then(Digest::from_hex);
            if let (Some(linked), Some(digest)) = (linked, self.digest)
                && linked != digest
            {
                return Err(self.changed());
            }
            let size = crate::http::text(first, "x-linked-size").and_then(|s| s.parse().ok());
            if size.is_some_and(|size: u64| size != self.size) {
                return Err(self.wrong_size(size));
            }
        }
        let etag = answer.header("etag").map(str::to_owned);
        {
            let mut known = lock(&self.etag);
            match (&*known, etag) {
                (Some(known), Some(etag)) if *known != etag => {
                    return Err(self.changed());
                }
                (None, etag) => *known = etag,
                _ => {}
            }
        }
        if answer.status == 206 {
            let Some((start, total)) = answer.range() else {
                let wrong = answer.wrong("a part of the file comes without saying which");
                return Err(PullError::http(self.path.to_owned(), wrong));
            };
            if total != self.size {
                return Err(self.wrong_size(Some(total)));
            }
            if start != at {
                let wrong = answer.wrong(format!("byte {at} was asked for; {start} came"));
                return Err(PullError::http(self.path.to_owned(), wrong));
            }
            return Ok(0);
        }
        match answer.len() {
            Some(len) if len != self.size => Err(self.wrong_size(Some(len))),
            _ if at > 0 && !self.alone => Err(PullError::NoRanges {
                file: self.path.to_owned(),
            }),
            _ => Ok(at),
        }
    }

    fn changed(&self) -> PullError {
        PullError::Changed {
            file: self.path.to_owned(),
        }
    }

    fn wrong_size(&self, found: Option<u64>) -> PullError {
        PullError::Size {
            file: self.path.to_owned(),
            expected: self.size,
            found,
        }
    }
}

/// The pieces of a stored file and their blobs, in the order of its layout.
pub(crate) fn pieces(
    known: &Finished,
) -> impl Iterator<Item = (Piece, crate::manifest::Blob)> + '_ {
    let first = known.file.blob.map(|blob| {
        let piece = Piece {
            start: 0,
            len: blob.len,
            tensor: None,
        };
        (piece, blob)
    });
    let tensors = known.tensors.iter().map(|tensor| {
        let piece = Piece {
            start: tensor.offset,
            len: tensor.blob.len,
            tensor: Some(TensorFacts {
                name: tensor.name.clone(),
                dtype: tensor.dtype.clone(),
                shape: tensor.shape.clone(),
            }),
        };
        (piece, tensor.blob)
    });
    first.into_iter().chain(tensors)
}

impl Pull<'_, '_> {
    /// Asks until it works, or there is no more sense in it.
    pub(crate) fn patiently<T>(
        &self,
        mut ask: impl FnMut() -> Result<T, HttpError>,
    ) -> Result<T, HttpError> {
        let mut tries = 0;
        loop {
            match ask() {
                Err(error) if error.passes() && tries + 1 < TRIES => {
                    self.wait(&error, tries, false);
                    tries += 1;
                }
                result => return result,
            }
        }
    }

    /// Waits before the next try; not at all where bytes came and the server asks for nothing.
    fn wait(&self, error: &HttpError, tries: u32, moved: bool) {
        let asked = matches!(
            error,
            HttpError::Status {
                retry_after: Some(_),
                ..
            }
        );
        if moved && !asked && tries == 0 {
            return;
        }
        let pause = error.pause(self.options.pause, tries);
        (self.tell)(&Event::Waiting {
            seconds: pause.as_secs_f64(),
            why: error.to_string(),
        });
        std::thread::sleep(pause);
    }
}

impl From<StoreError> for PullError {
    fn from(error: StoreError) -> PullError {
        PullError::Store(error)
    }
}
