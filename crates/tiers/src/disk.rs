//! Pages in a file, by what they hold, across restarts.
//! What is read is exactly what was stored under its key for this identity, or nothing: a killed
//! process, a torn write, a bad sector or another model's file lose pages and never change one.
//!
//! Every slot of the file says itself what it is, under hashes, so there is no index to keep in
//! step: opening reads the headers. A slot that is written again first loses its header.

mod slot;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use slot::{HEADER, header, read_header, slot_bytes};

/// Bytes that may wait to be written; pages beyond are not kept, so that a slow disk holds
/// nobody up.
const QUEUED: usize = 64 << 20;
const FILE: &str = "pages";

/// Names a page by what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageKey(pub [u8; 16]);

/// Where pages are kept, and whose they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// Folder of the file; it is made if it is not there.
    pub folder: PathBuf,
    /// Most bytes of the file.
    pub capacity: u64,
    /// Bytes of a page.
    pub page_bytes: usize,
    /// What the pages' bytes depend on besides their tokens: the model, how it is computed, how
    /// keys and values are stored. Pages of another identity are never found.
    pub identity: [u8; 32],
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Another process has it.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be made, read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// A page that was asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Its name.
    pub key: PageKey,
    /// Its bytes; `None` if it is gone or was damaged.
    pub bytes: Option<Vec<u8>>,
}

/// Counted since the file was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Pages in the file.
    pub pages: usize,
    /// Pages written.
    pub written: u64,
    /// Pages read.
    pub read: u64,
    /// Pages that made room for others.
    pub evicted: u64,
    /// Pages that were not kept: the queue was full or writing failed.
    pub refused: u64,
    /// Pages whose bytes were not those that were stored.
    pub damaged: u64,
}

/// Pages in a file. Reading and writing is done by a thread of its own.
#[derive(Debug)]
pub struct Disk {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Rings for the thread: there is work, or the end.
    work: Condvar,
    /// Rings for those who wait: something was read or everything written.
    done: Condvar,
}

#[derive(Debug)]
struct State {
    slots: Slots,
    reads: VecDeque<PageKey>,
    writes: VecDeque<(PageKey, Arc<Vec<u8>>)>,
    queued: usize,
    /// Pages that wait to be written or are being written.
    unwritten: usize,
    /// The thread has taken work that it has not finished.
    busy: bool,
    fetched: Vec<Fetched>,
    stats: DiskStats,
    closing: bool,
}

/// Which page is in which slot.
#[derive(Debug)]
struct Slots {
    most: u32,
    next: u32,
    free: Vec<u32>,
    pages: HashMap<PageKey, Place>,
    /// Least recently used first.
    order: BTreeMap<u64, PageKey>,
    uses: u64,
}

#[derive(Debug)]
struct Place {
    /// `None` while it waits to be written.
    slot: Option<u32>,
    used: u64,
    /// Its bytes until they are written.
    bytes: Option<Arc<Vec<u8>>>,
}

impl Slots {
    fn touch(&mut self, key: PageKey) {
        self.uses += 1;
        if let Some(place) = self.pages.get_mut(&key) {
            self.order.remove(&place.used);
            place.used = self.uses;
            self.order.insert(self.uses, key);
        }
    }

    fn insert(&mut self, key: PageKey, slot: Option<u32>, bytes: Option<Arc<Vec<u8>>>) {
        self.uses += 1;
        let used = self.uses;
        self.order.insert(used, key);
        self.pages.insert(key, Place { slot, used, bytes });
    }

    fn remove(&mut self, key: PageKey) {
        if let Some(place) = self.pages.remove(&key) {
            self.order.remove(&place.used);
            self.free.extend(place.slot);
        }
    }

    /// A slot to write to; the least recently used page makes room if there is none.
    fn take(&mut self) -> Option<(u32, bool)> {
        if let Some(slot) = self.free.pop() {
            return Some((slot, false));
        }
        if self.next < self.most {
            self.next += 1;
            return Some((self.next - 1, false));
        }
        let written = |key: &&PageKey| self.pages.get(*key).is_some_and(|p| p.slot.is_some());
        let oldest = *self.order.values().find(written)?;
        self.remove(oldest);
        Some((self.free.pop()?, true))
    }
}

impl Shared {
    /// A panic while it is locked leaves a state that is still usable.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    /// Opens the file, or makes it. Reads the headers of its pages.
    ///
    /// # Errors
    /// When another process has it, or it cannot be read and written.
    pub fn open(config: DiskConfig) -> Result<Disk, DiskError> {
        let path = config.folder.join(FILE);
        let failed = |source| DiskError::Io {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(&config.folder).map_err(failed)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DiskError::Locked { path }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let length = file.metadata().map_err(failed)?.len();
        Ok(Disk::start(Box::new(file), length, &config))
    }

    /// The same over any storage, of which so many bytes are there.
    fn start(storage: Box<dyn Storage>, length: u64, config: &DiskConfig) -> Disk {
        let each = slot_bytes(config.page_bytes);
        let most = u32::try_from(config.capacity / each).unwrap_or(u32::MAX);
        let mut slots = Slots {
            most,
            next: u32::try_from(length.div_ceil(each))
                .unwrap_or(u32::MAX)
                .min(most),
            free: Vec::new(),
            pages: HashMap::new(),
            order: BTreeMap::new(),
            uses: 0,
        };
        let mut bytes = vec![0; HEADER];
        for slot in 0..slots.next {
            let found = storage
                .read(&mut bytes, u64::from(slot) * each)
                .ok()
                .and_then(|()| read_header(&bytes, &config.identity));
            match found {
                Some((key, _)) if !slots.pages.contains_key(&key) => {
                    slots.insert(key, Some(slot), None);
                }
                _ => slots.free.push(slot),
            }
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                slots,
                reads: VecDeque::new(),
                writes: VecDeque::new(),
                queued: 0,
                unwritten: 0,
                busy: false,
                fetched: Vec::new(),
                stats: DiskStats::default(),
                closing: false,
            }),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        let worker = Worker {
            storage,
            each,
            page_bytes: config.page_bytes,
            identity: config.identity,
            shared: shared.clone(),
        };
        let thread = std::thread::Builder::new().name("sedge-disk".into());
        let thread = thread.spawn(move || worker.run());
        if let Err(error) = &thread {
            tracing::warn!("pages are not kept on disk: no thread: {error}");
            shared.lock().slots.most = 0;
        }
        Disk {
            shared,
            thread: thread.ok(),
        }
    }

    /// Whether a page is there, or about to be written.
    pub fn contains(&self, key: PageKey) -> bool {
        self.shared.lock().slots.pages.contains_key(&key)
    }

    /// Keeps a page. Does not wait: it is written later, or not at all if too much waits already.
    pub fn store(&self, key: PageKey, bytes: Vec<u8>) {
        let mut state = self.shared.lock();
        if state.slots.pages.contains_key(&key) {
            state.slots.touch(key);
            return;
        }
        if self.thread.is_none() || state.queued + bytes.len() > QUEUED || state.slots.most == 0 {
            state.stats.refused += 1;
            return;
        }
        let bytes = Arc::new(bytes);
        state.queued += bytes.len();
        state.unwritten += 1;
        state.slots.insert(key, None, Some(bytes.clone()));
        state.writes.push_back((key, bytes));
        self.shared.work.notify_one();
    }

    /// Asks for a page; [`fetched`](Disk::fetched) hands it out.
    pub fn fetch(&self, key: PageKey) {
        let mut state = self.shared.lock();
        state.slots.touch(key);
        let waiting = state.slots.pages.get(&key).map(|place| place.bytes.clone());
        match waiting {
            Some(None) if self.thread.is_some() => {
                state.reads.push_back(key);
                self.shared.work.notify_one();
            }
            bytes => {
                let bytes = bytes.flatten().map(|bytes| bytes.to_vec());
                state.fetched.push(Fetched { key, bytes });
                self.shared.done.notify_all();
            }
        }
    }

    /// The pages that have been read since the last call.
    pub fn fetched(&self) -> Vec<Fetched> {
        std::mem::take(&mut self.shared.lock().fetched)
    }

    /// Waits until a page that was asked for has been read, if there is one.
    pub fn wait(&self) {
        let state = self.shared.lock();
        let nothing = |s: &mut State| s.fetched.is_empty() && (s.busy || !s.reads.is_empty());
        drop(self.shared.done.wait_while(state, nothing));
    }

    /// Waits until everything is written that was to be.
    pub fn flush(&self) {
        let state = self.shared.lock();
        let unwritten = |s: &mut State| s.busy || !s.writes.is_empty();
        drop(self.shared.done.wait_while(state, unwritten));
    }

    /// Counters now.
    pub fn stats(&self) -> DiskStats {
        let state = self.shared.lock();
        DiskStats {
            pages: state.slots.pages.len() - state.unwritten,
            ..state.stats
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.take() {
            // It has ended in any case; a panic of its own was its end too.
            let _ = thread.join();
        }
    }
}

/// A file, or what stands in for one in tests.
trait Storage: Send + std::fmt::Debug {
    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
}

impl Storage for File {
    #[cfg(unix)]
    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, bytes, offset)
    }

    #[cfg(unix)]
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, bytes, offset)
    }

    #[cfg(not(unix))]
    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        use std::io::{Read, Seek};
        let mut file = self;
        file.seek(io::SeekFrom::Start(offset))?;
        file.read_exact(bytes)
    }

    #[cfg(not(unix))]
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        use std::io::{Seek, Write};
        let mut file = self;
        file.seek(io::SeekFrom::Start(offset))?;
        file.write_all(bytes)
    }
}

/// The thread's part.
struct Worker {
    storage: Box<dyn Storage>,
    each: u64,
    page_bytes: usize,
    identity: [u8; 32],
    shared: Arc<Shared>,
}

/// What the thread does next.
enum Job {
    Read(PageKey, u32),
    Write(PageKey, Arc<Vec<u8>>, u32),
}

impl Worker {
    fn run(self) {
        while let Some(job) = self.next() {
            match job {
                Job::Read(key, slot) => {
                    let bytes = self.read(key, slot);
                    let mut state = self.shared.lock();
                    state.stats.read += 1;
                    if bytes.is_none() {
                        state.stats.damaged += 1;
                        state.slots.remove(key);
                    }
                    state.fetched.push(Fetched { key, bytes });
                    state.busy = false;
                }
                Job::Write(key, bytes, slot) => {
                    let written = self.write(key, &bytes, slot);
                    let mut state = self.shared.lock();
                    state.queued -= bytes.len();
                    state.unwritten -= 1;
                    match written {
                        Ok(()) => {
                            state.stats.written += 1;
                            if let Some(place) = state.slots.pages.get_mut(&key) {
                                (place.slot, place.bytes) = (Some(slot), None);
                            }
                        }
                        Err(error) => {
                            if state.stats.refused == 0 {
                                tracing::warn!("a page could not be kept on disk: {error}");
                            }
                            state.stats.refused += 1;
                            state.slots.remove(key);
                            state.slots.free.push(slot);
                        }
                    }
                    state.busy = false;
                }
            }
            self.shared.done.notify_all();
        }
    }

    /// Waits for work: what is to be read goes first. `None` at the end, when all is written.
    fn next(&self) -> Option<Job> {
        let mut state = self.shared.lock();
        loop {
            while let Some(key) = state.reads.pop_front() {
                let slot = state.slots.pages.get(&key).and_then(|place| place.slot);
                if let Some(slot) = slot {
                    state.busy = true;
                    return Some(Job::Read(key, slot));
                }
                state.fetched.push(Fetched { key, bytes: None });
                self.shared.done.notify_all();
            }
            if let Some((key, bytes)) = state.writes.pop_front() {
                if let Some((slot, evicted)) = state.slots.take() {
                    state.stats.evicted += u64::from(evicted);
                    state.busy = true;
                    return Some(Job::Write(key, bytes, slot));
                }
                state.queued -= bytes.len();
                state.unwritten -= 1;
                state.stats.refused += 1;
                state.slots.remove(key);
                self.shared.done.notify_all();
                continue;
            }
            if state.closing {
                return None;
            }
            state = self
                .shared
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn read(&self, key: PageKey, slot: u32) -> Option<Vec<u8>> {
        let offset = u64::from(slot) * self.each;
        let mut header = vec![0; HEADER];
        self.storage.read(&mut header, offset).ok()?;
        let (found, hash) = read_header(&header, &self.identity)?;
        let mut page = vec![0; self.page_bytes];
        self.storage.read(&mut page, offset + HEADER as u64).ok()?;
        (found == key && blake3::hash(&page).as_bytes() == &hash).then_some(page)
    }

    fn write(&self, key: PageKey, page: &[u8], slot: u32) -> io::Result<()> {
        if page.len() != self.page_bytes {
            return Err(io::Error::other("a page of another size"));
        }
        let offset = u64::from(slot) * self.each;
        // A header that is left from before must not stand before other bytes.
        self.storage.write(&vec![0; HEADER], offset)?;
        self.storage.write(page, offset + HEADER as u64)?;
        self.storage
            .write(&header(&self.identity, key, page), offset)
    }
}
