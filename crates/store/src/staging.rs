//! Files on their way into the store: cut into pieces while they come, hashed behind the writing.
//!
//! Each has a folder in `partial`, named after what the whole will hash to:
//!
//! ```text
//! lock        held by the process that writes here
//! about.json  path, size, ETag: if these differ, what is here is of another file
//! head        the file's first bytes, from which it is known how to cut it
//! p0, p1, …   the pieces, each of which becomes a blob
//! between     what lies between the pieces, kept until the whole is hashed
//! journal     which bytes are there: a line `START END` for each run
//! done.json   the hashes of all, once the whole was found right and is durable
//! ```
//!
//! Nothing here is believed: a run that the journal names is hashed again before it is used. Only
//! `done.json` is, which is written after all that it speaks of was synced; then the pieces are
//! renamed to their blobs. The folder goes when a manifest names the blobs.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, mpsc};

use blake3::Hash;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Digester};
use crate::index::{lock_file, try_lock};
use crate::layout::{Layout, Place, Segment};
use crate::manifest::{Blob, SourceFile, TensorEntry};
use crate::ranges::Ranges;
use crate::store::{Store, StoreError};

/// Bytes after which those who wait are told what was written.
const BLOCK: usize = 1 << 20;

/// Bytes of a file that are mapped to be hashed.
const WINDOW: u64 = 4 << 20;

/// Bytes that go through one hash and then the other, so few that the second finds them in the
/// nearest cache.
const HASHED: usize = 128 << 10;

/// What a folder is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    /// Path in the repository or folder.
    pub(crate) path: String,
    /// Bytes of the whole file.
    pub(crate) size: u64,
    /// ETag of the content, where it was sent from.
    pub(crate) etag: Option<String>,
}

/// A file that is in the store, all but named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finished {
    pub(crate) file: SourceFile,
    /// Their `file` is 0.
    pub(crate) tensors: Vec<TensorEntry>,
}

impl Finished {
    /// The blobs, in the order of the layout's pieces.
    fn blobs(&self) -> impl Iterator<Item = Blob> + '_ {
        self.file
            .blob
            .into_iter()
            .chain(self.tensors.iter().map(|t| t.blob))
    }
}

/// The blobs that a folder of `partial` has put into the store.
pub(crate) fn kept_blobs(folder: &Path) -> BTreeSet<[u8; 32]> {
    let done = fs::read(folder.join("done.json")).ok();
    let done = done.and_then(|bytes| serde_json::from_slice::<Finished>(&bytes).ok());
    let blobs = done.iter().flat_map(Finished::blobs);
    blobs.map(|blob| *blob.hash.as_bytes()).collect()
}

/// The folder of one file.
#[derive(Debug)]
pub(crate) struct Staging<'s> {
    store: &'s Store,
    folder: PathBuf,
    _lock: File,
    about: About,
    /// Whether there was something of the file already.
    pub(crate) resumed: bool,
    /// Whether another process or thread wrote here meanwhile.
    pub(crate) waited: bool,
}

/// The folder of a file whose blobs are in the store, until a manifest names them.
#[derive(Debug)]
pub(crate) struct Leftover<'s> {
    store: &'s Store,
    folder: PathBuf,
}

impl Leftover<'_> {
    /// Removes it, unless somebody else has begun to use it.
    pub(crate) fn remove(self) -> Result<(), StoreError> {
        let failed = StoreError::io(&self.folder);
        let Ok(lock) = File::open(self.folder.join("lock")) else {
            return Ok(()); // somebody else has removed it
        };
        match try_lock(&lock).map_err(&failed)? {
            true => self.store.disk.remove_folder(&self.folder).map_err(failed),
            false => Ok(()),
        }
    }
}

impl<'s> Staging<'s> {
    /// Opens the folder and waits for another process that writes there.
    pub(crate) fn open(
        store: &'s Store,
        id: &str,
        about: About,
    ) -> Result<Staging<'s>, StoreError> {
        let folder = store.partial().join(id);
        let mut waited = false;
        let lock = loop {
            if let Some(lock) = lock_folder(store, &folder, &mut waited)? {
                break lock;
            }
            // Whoever had the lock has removed the folder.
            waited = true;
        };
        let mut staging = Staging {
            store,
            folder,
            _lock: lock,
            about,
            resumed: false,
            waited,
        };
        let known = fs::read(staging.file("about.json")).ok();
        let known = known.and_then(|bytes| serde_json::from_slice::<About>(&bytes).ok());
        let same = known.as_ref().is_some_and(|known| {
            known.size == staging.about.size
                && (staging.about.etag.is_none() || known.etag == staging.about.etag)
        });
        match known {
            Some(known) if same => {
                staging.about.etag = known.etag;
                staging.resumed = true;
            }
            _ => staging.reset()?,
        }
        Ok(staging)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The ETag that the bytes here came with.
    pub(crate) fn etag(&self) -> Option<&str> {
        self.about.etag.as_deref()
    }

    /// Keeps the ETag that the first bytes came with.
    pub(crate) fn set_etag(&mut self, etag: Option<String>) -> Result<(), StoreError> {
        if etag != self.about.etag {
            self.about.etag = etag;
            self.write_about()?;
        }
        Ok(())
    }

    fn write_about(&self) -> Result<(), StoreError> {
        let path = self.file("about.json");
        // A struct of strings and numbers has a JSON form.
        let bytes = serde_json::to_vec(&self.about).unwrap_or_default();
        self.store
            .disk
            .replace(&path, &bytes)
            .map_err(StoreError::io(&path))
    }

    /// Throws all away that is here of the file.
    pub(crate) fn reset(&mut self) -> Result<(), StoreError> {
        let disk = &self.store.disk;
        // What is believed goes first.
        let first = ["done.json", "journal"].map(|name| self.file(name));
        for path in &first {
            disk.remove(path).map_err(StoreError::io(path))?;
        }
        let failed = StoreError::io(&self.folder);
        for entry in fs::read_dir(&self.folder).map_err(&failed)? {
            let path = entry.map_err(&failed)?.path();
            if path.file_name().is_some_and(|name| name != "lock") {
                disk.remove(&path).map_err(StoreError::io(&path))?;
            }
        }
        self.resumed = false;
        self.about.etag = None;
        self.write_about()
    }

    /// The file's first bytes, if they were kept.
    pub(crate) fn head(&self) -> Option<Vec<u8>> {
        fs::read(self.file("head")).ok()
    }

    /// Keeps the file's first bytes.
    pub(crate) fn set_head(&self, head: &[u8]) -> Result<(), StoreError> {
        let path = self.file("head");
        self.store
            .disk
            .replace(&path, head)
            .map_err(StoreError::io(&path))
    }

    /// What an earlier try has finished, if all of it is still there.
    pub(crate) fn finished(&self) -> Result<Option<Finished>, StoreError> {
        let done = fs::read(self.file("done.json")).ok();
        let done = done.and_then(|bytes| serde_json::from_slice::<Finished>(&bytes).ok());
        let Some(done) = done else { return Ok(None) };
        let there = |(i, blob): (usize, Blob)| {
            self.store.has(&blob)
                || fs::metadata(self.piece(i)).is_ok_and(|facts| facts.len() == blob.len)
        };
        let whole = done.blobs().enumerate().all(there);
        if whole {
            self.place(&done)?;
        }
        Ok(whole.then_some(done))
    }

    fn piece(&self, index: usize) -> PathBuf {
        self.file(&format!("p{index}"))
    }

    fn path_of(&self, place: Place) -> PathBuf {
        match place {
            Place::Piece(index) => self.piece(index),
            Place::Between(_) => self.file("between"),
        }
    }

    /// Puts a whole file that was found right into the store. Every piece has been synced by
    /// [`Body::follow`].
    pub(crate) fn publish(&self, done: &Finished) -> Result<(), StoreError> {
        let disk = &self.store.disk;
        disk.sync_folder(&self.folder)
            .map_err(StoreError::io(&self.folder))?;
        let path = self.file("done.json");
        let bytes = serde_json::to_vec(done).unwrap_or_default();
        disk.replace(&path, &bytes).map_err(StoreError::io(&path))?;
        self.place(done)
    }

    /// Renames pieces to their blobs, and makes the names durable.
    fn place(&self, done: &Finished) -> Result<(), StoreError> {
        let disk = &self.store.disk;
        let mut touched: BTreeSet<PathBuf> = BTreeSet::new();
        for (index, blob) in done.blobs().enumerate() {
            let from = self.piece(index);
            let to = self.store.blob(&blob.hash);
            // A rename that another process, or this one before, made may not be durable yet.
            let folder = to.parent().unwrap_or(Path::new(".")).to_owned();
            if self.store.has(&blob) {
                disk.remove(&from).map_err(StoreError::io(&from))?;
            } else {
                disk.folder(&folder).map_err(StoreError::io(&folder))?;
                disk.rename(&from, &to).map_err(StoreError::io(&to))?;
            }
            touched.extend(folder.parent().map(Path::to_owned));
            touched.insert(folder);
        }
        for folder in touched {
            disk.sync_folder(&folder).map_err(StoreError::io(&folder))?;
        }
        Ok(())
    }

    /// Lets others in: the blobs are in the store.
    pub(crate) fn release(self) -> Leftover<'s> {
        Leftover {
            store: self.store,
            folder: self.folder,
        }
    }

    /// Begins or goes on to fill the pieces. Those that are not `wanted` are left out, and with
    /// `whole` so is nothing. What the journal says to be there counts where `trusted`.
    pub(crate) fn body<'a>(
        &'a self,
        layout: &'a Layout,
        wanted: Option<&[bool]>,
        trusted: bool,
    ) -> Result<Body<'a>, StoreError> {
        let segments = layout.segments();
        let wants = |segment: &Segment| match (wanted, segment.place) {
            (None, _) => true,
            (Some(wanted), Place::Piece(i)) => wanted[i],
            (Some(_), Place::Between(_)) => false,
        };
        let path = self.file("journal");
        let mut done = Ranges::default();
        if trusted && let Ok(text) = fs::read_to_string(&path) {
            for line in text.lines() {
                let run = line.split_once(' ').and_then(|(start, end)| {
                    let run = start.parse().ok()?..end.parse().ok()?;
                    (run.start < run.end && run.end <= layout.size).then_some(run)
                });
                run.into_iter().for_each(|run| done.insert(run));
            }
        }
        for segment in &segments {
            let end = segment.start + segment.len;
            if !wants(segment) {
                done.insert(segment.start..end);
                continue;
            }
            // A run that the file is too short for is not there, whatever the journal says.
            let base = match segment.place {
                Place::Piece(_) => 0,
                Place::Between(base) => base,
            };
            let len = fs::metadata(self.path_of(segment.place)).map_or(0, |facts| facts.len());
            let have = len.saturating_sub(base).min(segment.len);
            done.remove(segment.start + have..end);
        }
        let journal = match trusted {
            true => Some(
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(&path)
                    .map_err(StoreError::io(&path))?,
            ),
            false => None,
        };
        let segments = segments.into_iter().filter(wants).collect();
        Ok(Body {
            staging: self,
            layout,
            segments,
            journal,
            state: Mutex::new(State {
                done,
                stopped: false,
            }),
            changed: Condvar::new(),
        })
    }
}

/// Makes a folder and locks it, waiting for others; nothing when it went away meanwhile.
fn lock_folder(
    store: &Store,
    folder: &Path,
    waited: &mut bool,
) -> Result<Option<File>, StoreError> {
    for path in [folder.parent().unwrap_or(folder), folder] {
        if fs::symlink_metadata(path).is_ok_and(|facts| !facts.is_dir()) {
            return Err(StoreError::io(path)(std::io::Error::other(
                "is there and is not a folder",
            )));
        }
        store.disk.folder(path).map_err(StoreError::io(path))?;
    }
    let path = folder.join("lock");
    let failed = StoreError::io(&path);
    let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let lock = match lock_file(&path) {
        Err(error) if gone(&error) => return Ok(None),
        lock => lock.map_err(&failed)?,
    };
    if !try_lock(&lock).map_err(&failed)? {
        *waited = true;
        lock.lock().map_err(&failed)?;
    }
    // A lock on a file that is no longer there keeps nobody out.
    let same = match (lock.metadata(), fs::metadata(&path)) {
        (Ok(ours), Ok(there)) => same_file(&ours, &there),
        _ => false,
    };
    Ok(same.then_some(lock))
}

#[cfg(unix)]
fn same_file(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn same_file(_: &fs::Metadata, _: &fs::Metadata) -> bool {
    true // a file that is open cannot be removed there
}

/// The pieces of one file while they come.
#[derive(Debug)]
pub(crate) struct Body<'a> {
    staging: &'a Staging<'a>,
    layout: &'a Layout,
    /// Those that are wanted, in order.
    segments: Vec<Segment>,
    journal: Option<File>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Bytes that are there, or not wanted.
    done: Ranges,
    stopped: bool,
}

impl Body<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is still to come.
    pub(crate) fn missing(&self) -> Vec<Range<u64>> {
        self.state().done.missing(self.layout.size)
    }

    /// Bytes that are there or not wanted.
    pub(crate) fn count(&self) -> u64 {
        self.state().done.count()
    }

    /// Tells whoever writes or hashes that there is no more use in it.
    pub(crate) fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_all();
    }

    pub(crate) fn stopped(&self) -> bool {
        self.state().stopped
    }

    /// Writes from a byte of the file on.
    pub(crate) fn writer(&self, at: u64) -> Writer<'_> {
        Writer {
            body: self,
            at,
            told: at,
            open: None,
        }
    }

    fn record(&self, run: Range<u64>) -> Result<(), StoreError> {
        if let Some(mut journal) = self.journal.as_ref() {
            let path = self.staging.file("journal");
            let line = format!("{} {}\n", run.start, run.end);
            self.staging
                .store
                .disk
                .step(crate::disk::Step::Write(&path))
                .and_then(|()| journal.write_all(line.as_bytes()))
                .map_err(StoreError::io(&path))?;
        }
        self.state().done.insert(run);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until a byte is there, and says how far they go on from it. Nothing when stopped.
    fn wait(&self, at: u64) -> Option<u64> {
        let mut state = self.state();
        loop {
            let reach = state.done.reach(at);
            if reach > at {
                return Some(reach);
            }
            if state.stopped {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Hashes all pieces as they come, in the order of the file, and makes them durable beside.
    /// Returns when the last is; or nothing when stopped. The digester sees all wanted bytes.
    pub(crate) fn follow(
        &self,
        digester: &mut Digester,
    ) -> Result<Option<Vec<Option<Hash>>>, StoreError> {
        let threads = if self.segments.len() > 64 { 4 } else { 1 };
        let (send, receive) = mpsc::channel::<(usize, Blob)>();
        let receive = Mutex::new(receive);
        let sync = || -> Result<(), StoreError> {
            loop {
                let next = receive
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .recv();
                let Ok((index, blob)) = next else {
                    return Ok(());
                };
                if !self.staging.store.has(&blob) {
                    let path = self.staging.piece(index);
                    let synced = self.staging.store.disk.sync(&path);
                    if let Err(error) = synced {
                        self.stop();
                        return Err(StoreError::io(&path)(error));
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            let syncing: Vec<_> = (0..threads).map(|_| scope.spawn(sync)).collect();
            let hashes = self.hash(digester, &send);
            drop(send);
            for thread in syncing {
                // A thread that panicked has its panic passed on.
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            hashes
        })
    }

    fn hash(
        &self,
        digester: &mut Digester,
        ready: &mpsc::Sender<(usize, Blob)>,
    ) -> Result<Option<Vec<Option<Hash>>>, StoreError> {
        let mut hashes = vec![None; self.layout.pieces.len()];
        for segment in &self.segments {
            let path = self.staging.path_of(segment.place);
            let failed = StoreError::io(&path);
            let mut hasher = blake3::Hasher::new();
            let (start, end) = (segment.start, segment.start + segment.len);
            let base = match segment.place {
                Place::Piece(_) => 0,
                Place::Between(base) => base,
            };
            if segment.len == 0 {
                self.staging.store.disk.open(&path).map_err(&failed)?;
            }
            let mut at = start;
            while at < end {
                let to = end.min(at + WINDOW);
                let mut reach = at;
                while reach < to {
                    let Some(further) = self.wait(reach) else {
                        return Ok(None);
                    };
                    reach = further;
                }
                // Mapped, so that what was just written is not copied once more. Runs are
                // recorded after they are written, so the file is as long as this by now.
                let bytes = sedge_formats::map(&path).map_err(&failed)?;
                let span = (base + at - start) as usize..(base + to - start) as usize;
                let bytes = bytes
                    .get(span)
                    .ok_or_else(|| failed(std::io::ErrorKind::UnexpectedEof.into()))?;
                for block in bytes.chunks(HASHED) {
                    digester.update(block);
                    if let Place::Piece(_) = segment.place {
                        hasher.update(block);
                    }
                }
                at = to;
            }
            if let Place::Piece(index) = segment.place {
                let blob = Blob {
                    hash: hasher.finalize(),
                    len: segment.len,
                };
                hashes[index] = Some(blob.hash);
                // Nobody listens when syncing has failed, which is told there.
                let _ = ready.send((index, blob));
            }
        }
        Ok(Some(hashes))
    }
}

/// Writes a run of a file's bytes to the pieces that they belong to.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    body: &'a Body<'a>,
    at: u64,
    /// Up to where the journal knows.
    told: u64,
    open: Option<(usize, PathBuf, File)>,
}

impl Writer<'_> {
    /// Where the next byte goes.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Writes the next bytes. Those of pieces that are not wanted are passed over.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        let (staging, segments) = (self.body.staging, &self.body.segments);
        while !bytes.is_empty() {
            let next = segments.partition_point(|s| s.start + s.len <= self.at);
            let Some(segment) = segments.get(next) else {
                self.at += bytes.len() as u64;
                break;
            };
            if self.at < segment.start {
                let skip = (segment.start - self.at).min(bytes.len() as u64);
                self.at += skip;
                bytes = &bytes[skip as usize..];
                continue;
            }
            let end = segment.start + segment.len;
            let (now, later) = bytes.split_at((end - self.at).min(bytes.len() as u64) as usize);
            if self.open.as_ref().is_none_or(|(open, _, _)| *open != next) {
                let path = staging.path_of(segment.place);
                let base = match segment.place {
                    Place::Piece(_) => 0,
                    Place::Between(base) => base,
                };
                let mut file = staging
                    .store
                    .disk
                    .open(&path)
                    .map_err(StoreError::io(&path))?;
                file.seek(SeekFrom::Start(base + self.at - segment.start))
                    .map_err(StoreError::io(&path))?;
                self.open = Some((next, path, file));
            }
            if let Some((_, path, file)) = &self.open {
                staging
                    .store
                    .disk
                    .write(file, path, now)
                    .map_err(StoreError::io(path))?;
            }
            self.at += now.len() as u64;
            bytes = later;
        }
        if self.at - self.told >= BLOCK as u64 {
            self.tell()?;
        }
        Ok(())
    }

    /// Makes known what was written.
    pub(crate) fn tell(&mut self) -> Result<(), StoreError> {
        let run = self.told..self.at;
        self.told = self.at;
        match run.is_empty() {
            true => Ok(()),
            false => self.body.record(run),
        }
    }
}

/// What a file became, from its layout and hashes.
pub(crate) fn finished(
    layout: &Layout,
    hashes: &[Option<Hash>],
    path: &str,
    etag: Option<String>,
    (sha256, git): (Digest, Option<Digest>),
) -> Option<Finished> {
    let mut blob = None;
    let mut tensors = Vec::new();
    for (piece, hash) in layout.pieces.iter().zip(hashes) {
        let made = Blob {
            hash: (*hash)?,
            len: piece.len,
        };
        match &piece.tensor {
            None => blob = Some(made),
            Some(facts) => tensors.push(TensorEntry {
                name: facts.name.clone(),
                dtype: facts.dtype.clone(),
                shape: facts.shape.clone(),
                blob: made,
                file: 0,
                offset: piece.start,
            }),
        }
    }
    Some(Finished {
        file: SourceFile {
            path: path.to_owned(),
            size: layout.size,
            sha256: sha256.to_string(),
            git: git.map(|git| git.to_string()),
            etag,
            blob,
        },
        tensors,
    })
}
