//! Adapters by name, more of them than memory holds: those that requests ask for are brought in
//! beside other requests' steps, those used least recently give way.
//! A request holds its adapter from when it is there until the request ends.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sedge_kernels::Arena;
use sedge_models::{Adapter, Merged};
use sedge_tiers::Residents;

/// Reads an adapter; the text says why it cannot.
pub type LoadAdapter = Arc<dyn Fn() -> Result<Adapter, String> + Send + Sync>;
/// Makes an adapter part of the weights of a member of its own, until what it gives is dropped.
pub type MergeAdapter = Arc<dyn Fn(&Adapter) -> Result<Merged, String> + Send + Sync>;

/// An adapter that requests may name.
#[derive(Clone)]
pub struct NewAdapter {
    /// Name in [`Request::adapter`](crate::Request::adapter).
    pub name: Arc<str>,
    /// What its keys and values are cached under: adapters of equal identity compute the same.
    pub identity: [u8; 32],
    /// The fine-tune that it changes.
    pub member: usize,
    /// Reads it, perhaps often: whenever it is needed and not in memory.
    pub load: LoadAdapter,
    /// Merges it.
    pub merge: MergeAdapter,
}

/// Why an adapter was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    /// The name is taken.
    #[error("an adapter named {0:?} is there already")]
    Exists(Arc<str>),
    /// No such adapter.
    #[error("there is no adapter named {0:?}")]
    Unknown(Arc<str>),
    /// It cannot be read, or is not for this model.
    #[error("{name}: {why}")]
    Load {
        /// Its name.
        name: Arc<str>,
        /// The reader's words.
        why: String,
    },
    /// It alone is larger than the memory for adapters.
    #[error("{name} takes {bytes} bytes; all adapters together have {capacity}")]
    TooLarge {
        /// Its name.
        name: Arc<str>,
        /// Bytes it takes.
        bytes: u64,
        /// Bytes there are.
        capacity: u64,
    },
    /// Its prefix leaves no room for a prompt.
    #[error("{name} puts {positions} positions before a prompt; the context has {context}")]
    TooLong {
        /// Its name.
        name: Arc<str>,
        /// Positions.
        positions: usize,
        /// Most positions of a sequence.
        context: usize,
    },
    /// It does not become part of the weights.
    #[error("{name}: {why}")]
    Merge {
        /// Its name.
        name: Arc<str>,
        /// Why not.
        why: String,
    },
    /// It is no part of the weights.
    #[error("{0} is not merged")]
    NotMerged(Arc<str>),
    /// The engine does not run a model that takes adapters.
    #[error("this model takes no adapters")]
    Unsupported,
}

/// What is known of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterView {
    /// Name.
    pub name: Arc<str>,
    /// Method, as `peft` calls it.
    pub method: String,
    /// Bytes in memory.
    pub bytes: u64,
    /// Positions that it puts before every prompt.
    pub positions: usize,
    /// It is in memory now.
    pub resident: bool,
    /// Bytes of weights that have it in them, if it is merged.
    pub merged: Option<u64>,
    /// Requests that asked for it.
    pub requests: u64,
    /// Times that it was read.
    pub loads: u64,
}

/// Counters and gauges of all adapters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AdapterStats {
    /// Adapters that requests may name.
    pub registered: usize,
    /// Those in memory or on their way.
    pub resident: usize,
    /// Bytes that they take.
    pub bytes: u64,
    /// Bytes there are.
    pub capacity: u64,
    /// Times that one was read because a request needed it.
    pub loads: u64,
    /// Times that one gave way.
    pub evictions: u64,
    /// Requests that found theirs in memory.
    pub hits: u64,
    /// Time in which adapters were read, of all of them together.
    pub loading: Duration,
}

/// One of them. A request keeps it, also when its name is taken away.
pub(crate) struct Entry {
    id: u64,
    pub(crate) name: Arc<str>,
    pub(crate) identity: [u8; 32],
    pub(crate) member: usize,
    pub(crate) positions: usize,
    method: String,
    bytes: u64,
    load: LoadAdapter,
    merge: MergeAdapter,
    /// Why it is not to be had any more.
    failed: OnceLock<String>,
}

/// How a request's tokens are computed with an adapter.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    /// With the adapter beside the weights.
    Beside(Arc<Entry>),
    /// With the adapter in the weights, which stay for as long as this does.
    Merged(Arc<Entry>, Arc<Merged>),
}

impl Entry {
    /// The same under another number, not failed.
    fn again(&self, id: u64) -> Entry {
        Entry {
            id,
            name: self.name.clone(),
            identity: self.identity,
            member: self.member,
            positions: self.positions,
            method: self.method.clone(),
            bytes: self.bytes,
            load: self.load.clone(),
            merge: self.merge.clone(),
            failed: OnceLock::new(),
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "adapter {:?}", self.name)
    }
}

/// What became of a wish for an adapter.
#[derive(Debug)]
pub(crate) enum Wish {
    /// It is there, and stays until it is given back.
    Here(Arc<Adapter>),
    /// It is being read.
    Coming,
    /// All memory is in use.
    NoRoom,
    /// It cannot be read any more.
    Failed(String),
}

/// All adapters of an engine, shared by its handles and its loop.
#[derive(Debug)]
pub(crate) struct Adapters {
    pool: Mutex<Pool>,
    /// Rings when one was read, or could not be.
    read: Condvar,
    /// Where those in memory lie, made for the first; `None` where it cannot be had.
    arena: OnceLock<Option<Arena>>,
}

#[derive(Debug)]
struct Pool {
    names: BTreeMap<Arc<str>, Named>,
    residents: Residents<u64>,
    here: HashMap<u64, Arc<Adapter>>,
    next: u64,
    reader: Option<Sender<Arc<Entry>>>,
    stats: AdapterStats,
}

#[derive(Debug)]
struct Named {
    entry: Arc<Entry>,
    merged: Option<Arc<Merged>>,
    requests: u64,
    loads: u64,
}

impl Adapters {
    pub(crate) fn new(memory: u64) -> Arc<Adapters> {
        Arc::new(Adapters {
            pool: Mutex::new(Pool {
                names: BTreeMap::new(),
                residents: Residents::new(memory),
                here: HashMap::new(),
                next: 0,
                reader: None,
                stats: AdapterStats::default(),
            }),
            read: Condvar::new(),
            arena: OnceLock::new(),
        })
    }

    /// Moves an adapter to where those in memory lie.
    fn settle(&self, adapter: Adapter) -> Adapter {
        let capacity = || usize::try_from(self.lock().residents.capacity()).ok();
        let arena = self.arena.get_or_init(|| Arena::new(capacity()?).ok());
        match arena {
            Some(arena) => adapter.kept_in(arena),
            None => adapter,
        }
    }

    /// A panic while it is locked leaves a pool that is still usable.
    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers an adapter: reads it once, and keeps it if there is room.
    pub(crate) fn add(&self, new: NewAdapter, context: usize) -> Result<AdapterView, AdapterError> {
        let NewAdapter {
            name,
            identity,
            member,
            load,
            merge,
        } = new;
        if self.lock().names.contains_key(&name) {
            return Err(AdapterError::Exists(name));
        }
        let adapter = load().map_err(|why| AdapterError::Load {
            name: name.clone(),
            why,
        })?;
        let (bytes, positions) = (size(&adapter), adapter.positions());
        if positions + 2 > context {
            return Err(AdapterError::TooLong {
                name,
                positions,
                context,
            });
        }
        let mut pool = self.lock();
        let capacity = pool.residents.capacity();
        if bytes > capacity {
            return Err(AdapterError::TooLarge {
                name,
                bytes,
                capacity,
            });
        }
        if pool.names.contains_key(&name) {
            return Err(AdapterError::Exists(name));
        }
        let id = pool.next;
        pool.next += 1;
        let entry = Arc::new(Entry {
            id,
            name: name.clone(),
            identity,
            member,
            positions,
            method: adapter.method().to_string(),
            bytes,
            load,
            merge,
            failed: OnceLock::new(),
        });
        // Where memory is full, those that are there are as likely to be asked for next.
        let room = pool.residents.used() + bytes <= capacity;
        if room && pool.residents.reserve(id, bytes).is_some() {
            drop(pool);
            let adapter = Arc::new(self.settle(adapter));
            pool = self.lock();
            if pool.names.contains_key(&name) {
                pool.residents.remove(id);
                return Err(AdapterError::Exists(name));
            }
            pool.residents.commit(id);
            pool.here.insert(id, adapter);
        }
        let named = Named {
            entry,
            merged: None,
            requests: 0,
            loads: 0,
        };
        let view = pool.view(&named);
        pool.names.insert(name, named);
        Ok(view)
    }

    /// Takes a name away. Requests that hold the adapter keep it; its memory is free after them.
    pub(crate) fn remove(&self, name: &str) -> Result<(), AdapterError> {
        let mut pool = self.lock();
        let Some(named) = pool.names.remove(name) else {
            return Err(AdapterError::Unknown(name.into()));
        };
        let id = named.entry.id;
        // Another reason may be there already.
        let _ = named
            .entry
            .failed
            .set(format!("the adapter {name:?} was removed"));
        if !pool.residents.awaits(id) {
            pool.drop_if_idle(id);
        }
        // Weights that it was merged into are given back with nobody waiting.
        drop(pool);
        drop(named);
        Ok(())
    }

    /// The adapter of a request.
    pub(crate) fn find(&self, name: &str) -> Option<Way> {
        let mut pool = self.lock();
        let (fresh, pool) = (pool.next, &mut *pool);
        let named = pool.names.get_mut(name)?;
        named.requests += 1;
        if named.entry.failed.get().is_some() {
            // It may be there again now; whoever has seen it fail, keeps what it saw.
            pool.next += 1;
            named.entry = Arc::new(named.entry.again(fresh));
        }
        let entry = named.entry.clone();
        if let Some(merged) = named.merged.clone() {
            return Some(Way::Merged(entry, merged));
        }
        pool.stats.hits += u64::from(pool.residents.holds(entry.id));
        Some(Way::Beside(entry))
    }

    /// Makes an adapter part of weights of its own: requests that come from now on are computed
    /// with them. Other requests' weights stay what and where they are.
    pub(crate) fn merge(&self, name: &str) -> Result<AdapterView, AdapterError> {
        let entry = {
            let pool = self.lock();
            let named = pool.names.get(name);
            let named = named.ok_or_else(|| AdapterError::Unknown(name.into()))?;
            if named.merged.is_some() {
                return Ok(pool.view(named));
            }
            named.entry.clone()
        };
        let failed = |why| AdapterError::Merge {
            name: entry.name.clone(),
            why,
        };
        let adapter = (entry.load)().map_err(failed)?;
        let merged = (entry.merge)(&adapter).map_err(failed)?;
        let mut pool = self.lock();
        match pool.names.get_mut(name) {
            Some(named) if named.entry.id == entry.id => named.merged = Some(Arc::new(merged)),
            _ => return Err(AdapterError::Unknown(name.into())),
        }
        Ok(pool.view(&pool.names[name]))
    }

    /// Computes with an adapter beside the weights again. Those that had it in them are gone when
    /// the last request that was computed with them has ended.
    pub(crate) fn unmerge(&self, name: &str) -> Result<AdapterView, AdapterError> {
        let mut pool = self.lock();
        let named = pool.names.get_mut(name);
        let named = named.ok_or_else(|| AdapterError::Unknown(name.into()))?;
        let merged = named.merged.take();
        let view = pool.view(&pool.names[name]);
        drop(pool);
        match merged {
            Some(_) => Ok(view),
            None => Err(AdapterError::NotMerged(name.into())),
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.lock().names.contains_key(name)
    }

    pub(crate) fn named(&self, name: &str) -> Option<AdapterView> {
        let pool = self.lock();
        pool.names.get(name).map(|named| pool.view(named))
    }

    pub(crate) fn views(&self) -> Vec<AdapterView> {
        let pool = self.lock();
        pool.names.values().map(|named| pool.view(named)).collect()
    }

    pub(crate) fn stats(&self) -> AdapterStats {
        let pool = self.lock();
        AdapterStats {
            registered: pool.names.len(),
            resident: pool.residents.len(),
            bytes: pool.residents.used(),
            capacity: pool.residents.capacity(),
            ..pool.stats
        }
    }

    /// Asks for an adapter: it is pinned, or brought in if there is room for it.
    pub(crate) fn wish(self: &Arc<Self>, entry: &Arc<Entry>) -> Wish {
        let mut pool = self.lock();
        if pool.residents.pin(entry.id) {
            return Wish::Here(pool.here[&entry.id].clone());
        }
        if let Some(why) = entry.failed.get() {
            return Wish::Failed(why.clone());
        }
        if pool.residents.awaits(entry.id) {
            return Wish::Coming;
        }
        let Some(leaving) = pool.residents.reserve(entry.id, entry.bytes) else {
            return Wish::NoRoom;
        };
        pool.stats.evictions += leaving.len() as u64;
        for id in leaving {
            pool.here.remove(&id);
        }
        pool.read(self, entry.clone());
        Wish::Coming
    }

    /// A request that held it has ended.
    pub(crate) fn give_back(&self, entry: &Entry) {
        let mut pool = self.lock();
        pool.residents.unpin(entry.id);
        if entry.failed.get().is_some() {
            pool.drop_if_idle(entry.id);
        }
    }

    /// Times that one was read so far.
    pub(crate) fn loads(&self) -> u64 {
        self.lock().stats.loads
    }

    /// Waits until one more than `before` was read.
    pub(crate) fn wait(&self, before: u64) {
        let pool = self.lock();
        // Bounded: whoever waits also has other things to look after.
        let most = Duration::from_millis(2);
        let _ = self
            .read
            .wait_timeout_while(pool, most, |pool| pool.stats.loads == before);
    }

    /// One was read, or could not be.
    fn arrived(&self, entry: &Entry, found: Result<Adapter, String>, time: Duration) {
        let found = found.map(|adapter| self.settle(adapter));
        let mut pool = self.lock();
        pool.stats.loads += 1;
        pool.stats.loading += time;
        if let Some(named) = pool.names.get_mut(&entry.name) {
            named.loads += 1;
        }
        let found = found.and_then(|adapter| {
            let same = (size(&adapter), adapter.positions()) == (entry.bytes, entry.positions);
            same.then_some(adapter)
                .ok_or_else(|| format!("{}: its files were changed", entry.name))
        });
        match found {
            Ok(adapter) if entry.failed.get().is_none() => {
                pool.residents.commit(entry.id);
                pool.here.insert(entry.id, Arc::new(adapter));
            }
            Ok(_) => pool.residents.remove(entry.id),
            Err(why) => {
                tracing::error!("an adapter could not be read: {why}");
                pool.residents.remove(entry.id);
                let _ = entry.failed.set(why);
            }
        }
        self.read.notify_all();
    }
}

/// Bytes of an adapter; it has some.
fn size(adapter: &Adapter) -> u64 {
    adapter.bytes().max(1) as u64
}

impl Pool {
    fn view(&self, named: &Named) -> AdapterView {
        AdapterView {
            name: named.entry.name.clone(),
            method: named.entry.method.clone(),
            bytes: named.entry.bytes,
            positions: named.entry.positions,
            resident: self.residents.holds(named.entry.id),
            merged: named.merged.as_ref().map(|merged| merged.bytes),
            requests: named.requests,
            loads: named.loads,
        }
    }

    fn drop_if_idle(&mut self, id: u64) {
        if self.residents.is_idle(id) {
            self.residents.remove(id);
            self.here.remove(&id);
        }
    }

    /// Hands an adapter to the thread that reads, which is started for the first.
    fn read(&mut self, all: &Arc<Adapters>, entry: Arc<Entry>) {
        let reader = self.reader.get_or_insert_with(|| {
            let (sender, wishes) = channel::<Arc<Entry>>();
            let all = Arc::downgrade(all);
            let thread = std::thread::Builder::new().name("sedge-adapters".into());
            let started = thread.spawn(move || {
                for entry in wishes {
                    let start = Instant::now();
                    // A reader that panics has failed, and spares those behind it.
                    let load = AssertUnwindSafe(|| (entry.load)());
                    let found = catch_unwind(load)
                        .unwrap_or_else(|_| Err(format!("{}: reading it panicked", entry.name)));
                    let Some(all) = all.upgrade() else { return };
                    all.arrived(&entry, found, start.elapsed());
                }
            });
            if let Err(error) = started {
                // The wishes went with the closure: sending fails, and says so below.
                tracing::error!("the thread that reads adapters could not be started: {error}");
            }
            sender
        });
        if reader.send(entry.clone()).is_err() {
            self.reader = None;
            self.residents.remove(entry.id);
            let why = "adapters cannot be read at the moment".to_string();
            let _ = entry.failed.set(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(
        name: &str,
        load: impl Fn() -> Result<Adapter, String> + Send + Sync + 'static,
    ) -> NewAdapter {
        NewAdapter {
            name: name.into(),
            identity: [0; 32],
            member: 0,
            load: Arc::new(load),
            merge: Arc::new(|_| Err("not here".into())),
        }
    }

    fn find(all: &Adapters, name: &str) -> Arc<Entry> {
        match all.find(name) {
            Some(Way::Beside(entry)) => entry,
            other => panic!("{other:?}"),
        }
    }

    fn wait_for(all: &Arc<Adapters>, entry: &Arc<Entry>) -> Wish {
        loop {
            let before = all.loads();
            match all.wish(entry) {
                Wish::Coming => all.wait(before),
                other => return other,
            }
        }
    }

    /// Adapters of equal size, of which `room` fit.
    fn pool(room: u64, names: &[&str]) -> (Arc<Adapters>, Vec<Arc<Entry>>) {
        let bytes = size(&Adapter::default());
        let all = Adapters::new(bytes * room);
        for name in names {
            all.add(new(name, || Ok(Adapter::default())), 100).unwrap();
        }
        let entries = names.iter().map(|name| find(&all, name)).collect();
        (all, entries)
    }

    #[test]
    fn those_used_least_recently_give_way_and_held_ones_stay() {
        let (all, entries) = pool(2, &["a", "b", "c"]);
        let resident = || {
            let views = all.views();
            views.iter().map(|v| v.resident).collect::<Vec<_>>()
        };
        assert_eq!(resident(), [true, true, false]);
        assert!(matches!(wait_for(&all, &entries[0]), Wish::Here(_)));
        assert!(matches!(wait_for(&all, &entries[2]), Wish::Here(_)));
        assert_eq!(resident(), [true, false, true]);
        assert!(matches!(wait_for(&all, &entries[1]), Wish::NoRoom));
        all.give_back(&entries[0]);
        assert!(matches!(wait_for(&all, &entries[1]), Wish::Here(_)));
        assert_eq!(resident(), [false, true, true]);
        let stats = all.stats();
        assert_eq!(
            (
                stats.registered,
                stats.resident,
                stats.loads,
                stats.evictions
            ),
            (3, 2, 2, 2)
        );
        assert!(stats.bytes <= stats.capacity);
    }

    #[test]
    fn a_removed_adapter_stays_for_those_that_hold_it() {
        let (all, entries) = pool(1, &["a"]);
        assert!(matches!(all.wish(&entries[0]), Wish::Here(_)));
        all.remove("a").unwrap();
        assert_eq!(all.stats().resident, 1);
        assert!(all.find("a").is_none());
        all.give_back(&entries[0]);
        assert_eq!(all.stats().resident, 0);
        assert!(matches!(all.wish(&entries[0]), Wish::Failed(_)));
        assert_eq!(all.remove("a"), Err(AdapterError::Unknown("a".into())));
        all.add(new("a", || Ok(Adapter::default())), 100).unwrap();
        assert!(matches!(all.wish(&find(&all, "a")), Wish::Here(_)));
    }

    #[test]
    fn what_cannot_be_read_is_refused_at_once_and_fails_later() {
        let bytes = size(&Adapter::default());
        let all = Adapters::new(bytes);
        let error = all
            .add(new("bad", || Err("no such file".into())), 100)
            .unwrap_err();
        assert_eq!(error.to_string(), "bad: no such file");
        let gone = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flag = gone.clone();
        let load = move || match flag.load(std::sync::atomic::Ordering::SeqCst) {
            true => Err("the file is gone".to_string()),
            false => Ok(Adapter::default()),
        };
        all.add(new("a", load), 100).unwrap();
        all.add(new("b", || Ok(Adapter::default())), 100).unwrap();
        assert!(matches!(
            all.add(new("b", || Ok(Adapter::default())), 100),
            Err(AdapterError::Exists(_))
        ));
        gone.store(true, std::sync::atomic::Ordering::SeqCst);
        // The other one takes its place, and it is not to be had again.
        let b = find(&all, "b");
        assert!(matches!(wait_for(&all, &b), Wish::Here(_)));
        all.give_back(&b);
        let a = find(&all, "a");
        assert!(matches!(wait_for(&all, &a), Wish::Failed(why) if why.contains("gone")));
        // A later request finds it when it is there again; who saw it fail keeps to that.
        gone.store(false, std::sync::atomic::Ordering::SeqCst);
        let again = find(&all, "a");
        assert!(matches!(wait_for(&all, &again), Wish::Here(_)));
        assert!(matches!(all.wish(&a), Wish::Failed(_)));
        all.give_back(&again);
        assert!(matches!(wait_for(&all, &b), Wish::Here(_)));
    }

    #[test]
    fn one_that_never_fits_is_refused() {
        let all = Adapters::new(0);
        let error = all.add(new("a", || Ok(Adapter::default())), 100);
        assert!(matches!(error, Err(AdapterError::TooLarge { .. })));
    }
}
