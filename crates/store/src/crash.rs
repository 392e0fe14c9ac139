//! The store after a crash, a loss of power or a full disk at any step.
//!
//! A kill ends all steps from one on. A loss of power also takes what was not made durable: a
//! file that was written and not synced is left half, and a rename in a folder that was not
//! synced has not happened. A full disk refuses one step and lets the process go on.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use crate::disk::{Disk, Step};
use crate::pull::{Options, pull};
use crate::reference::Reference;
use crate::store::Store;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Kill,
    PowerLoss,
    DiskFull,
}

/// What a disk has done, and when it stops.
#[derive(Debug, Default)]
struct Machine {
    taken: usize,
    unsynced: BTreeSet<PathBuf>,
    renamed: Vec<(PathBuf, PathBuf)>,
    refused: bool,
}

fn disk(at: usize, fault: Fault) -> (Disk, Arc<Mutex<Machine>>) {
    let machine = Arc::new(Mutex::new(Machine::default()));
    let seen = machine.clone();
    let disk = Disk::watched(move |step| {
        let mut machine = seen.lock().unwrap();
        let now = machine.taken;
        machine.taken += 1;
        match fault {
            Fault::DiskFull if now == at && !matches!(step, Step::Remove(_)) => {
                machine.refused = true;
                return Err(io::ErrorKind::StorageFull.into());
            }
            Fault::Kill | Fault::PowerLoss if now >= at => {
                machine.refused = true;
                return Err(io::Error::other("the process is gone"));
            }
            _ => {}
        }
        match step {
            Step::Write(path) => {
                machine.unsynced.insert(path.to_owned());
            }
            Step::Sync(path) => {
                machine.unsynced.remove(path);
            }
            Step::Rename(from, to) => {
                if machine.unsynced.remove(from) {
                    machine.unsynced.insert(to.to_owned());
                }
                machine.renamed.push((from.to_owned(), to.to_owned()));
            }
            Step::SyncFolder(folder) => {
                machine
                    .renamed
                    .retain(|(_, to)| to.parent() != Some(folder));
            }
            Step::Remove(_) | Step::Commit | Step::Committed => {}
        }
        Ok(())
    });
    (disk, machine)
}

impl Machine {
    fn lose_power(&self) {
        for (from, to) in self.renamed.iter().rev() {
            if to.exists() && !from.exists() && from.parent().is_some_and(Path::exists) {
                fs::rename(to, from).unwrap();
            }
        }
        for path in &self.unsynced {
            if let Ok(bytes) = fs::read(path) {
                fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
            }
        }
    }
}

fn safetensors(seeds: &[u8]) -> Vec<u8> {
    let entries: Vec<String> = (0..seeds.len())
        .map(|i| {
            let (begin, end) = (i * 64, i * 64 + 64);
            format!(r#""t{i}":{{"dtype":"F32","shape":[16],"data_offsets":[{begin},{end}]}}"#)
        })
        .collect();
    let json = format!("{{{}}}", entries.join(","));
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.extend(seeds.iter().flat_map(|seed| [*seed; 64]));
    bytes
}

fn take(store: &Store, folder: &Path) -> bool {
    let reference = Reference::Path(folder.to_owned());
    pull(store, &reference, &Options::default(), &|_| {}).is_ok()
}

/// What is stored under `name` is the model of these seeds.
fn assert_is(store: &Store, name: &str, seeds: &[u8]) {
    let stored = store.load(name).unwrap();
    assert_eq!(stored.files["config.json"], "{}");
    assert_eq!(stored.tensors.len(), seeds.len());
    for (bytes, seed) in stored.tensors.iter().zip(seeds) {
        assert_eq!(bytes[..], [*seed; 64]);
    }
}

/// Does something at every step of which the machine fails, with a model `a` in the store, and a
/// folder `b` of another. `allowed` says whether the names and what was told go together.
fn fails_at_every_step(
    fault: Fault,
    work: impl Fn(&Store, &Path) -> bool,
    allowed: impl Fn(&[String], bool) -> bool,
) {
    // In memory where that can be: hundreds of stores are made, synced and thrown away.
    let dir = match Path::new("/dev/shm").is_dir() {
        true => tempfile::tempdir_in("/dev/shm").unwrap(),
        false => tempfile::tempdir().unwrap(),
    };
    // Both share a tensor.
    for (name, seeds) in [("a", [1, 2]), ("b", [2, 3])] {
        let folder = dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("config.json"), "{}").unwrap();
        fs::write(folder.join("model.safetensors"), safetensors(&seeds)).unwrap();
    }
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    for at in 0.. {
        let home = dir.path().join(format!("home-{at}"));
        assert!(take(&Store::new(&home), &a));
        let (disk, machine) = disk(at, fault);
        let acknowledged = work(&Store::on(home.clone(), disk), &b);
        let machine = machine.lock().unwrap();
        if fault == Fault::PowerLoss {
            machine.lose_power();
        }
        let store = Store::new(&home);
        let names = store.names().unwrap();
        assert!(
            allowed(&names, acknowledged),
            "step {at}: {names:?}, acknowledged: {acknowledged}"
        );
        for (name, seeds) in [("a", [1, 2]), ("b", [2, 3])] {
            if names.iter().any(|known| known == name) {
                assert_is(&store, name, &seeds);
            }
        }
        let verified = store.verify(&|_, _| {}).unwrap();
        assert_eq!(verified.damaged, [], "step {at}");
        // Everything goes on from here.
        assert!(take(&store, &b), "step {at}");
        assert_is(&store, "b", &[2, 3]);
        store.collect(SystemTime::now(), Duration::ZERO).unwrap();
        assert_is(&store, "b", &[2, 3]);
        if names.iter().any(|name| name == "a") {
            assert_is(&store, "a", &[1, 2]);
        }
        let usage = store.usage().unwrap();
        assert_eq!((usage.unused, usage.partial), (0, 0), "step {at}");
        fs::remove_dir_all(&home).unwrap();
        if !machine.refused && machine.taken <= at {
            assert!(acknowledged);
            return;
        }
    }
}

fn a_pull_fails_at_every_step(fault: Fault) {
    fails_at_every_step(
        fault,
        take,
        // Told means there. Not told may still be there: the last step before the telling.
        |names, told| names == ["a", "b"] || (!told && names == ["a"]),
    );
}

#[test]
fn a_pull_that_is_killed_at_any_step_loses_nothing() {
    a_pull_fails_at_every_step(Fault::Kill);
}

#[test]
fn a_pull_that_loses_power_at_any_step_loses_nothing() {
    a_pull_fails_at_every_step(Fault::PowerLoss);
}

#[test]
fn a_pull_that_fills_the_disk_at_any_step_loses_nothing() {
    a_pull_fails_at_every_step(Fault::DiskFull);
}

#[test]
fn removing_and_collecting_that_are_killed_at_any_step_lose_nothing_else() {
    for fault in [Fault::Kill, Fault::PowerLoss] {
        fails_at_every_step(
            fault,
            |store, _| {
                store.remove(&["a"]).is_ok()
                    && store.collect(SystemTime::now(), Duration::ZERO).is_ok()
            },
            |names, told| names.is_empty() || (!told && names == ["a"]),
        );
    }
}
