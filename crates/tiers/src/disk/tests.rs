use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

const PAGE: usize = 5000;

fn config(folder: &std::path::Path, pages: u64) -> DiskConfig {
    DiskConfig {
        folder: folder.to_owned(),
        capacity: pages * slot_bytes(PAGE),
        page_bytes: PAGE,
        identity: [7; 32],
    }
}

fn key(n: u32) -> PageKey {
    let mut key = [0; 16];
    key[..4].copy_from_slice(&n.to_le_bytes());
    PageKey(key)
}

fn page(n: u32) -> Vec<u8> {
    (0..PAGE as u32)
        .map(|i| (i.wrapping_mul(n * 2 + 1) >> 3) as u8)
        .collect()
}

fn get(disk: &Disk, n: u32) -> Option<Vec<u8>> {
    disk.fetch(key(n));
    loop {
        disk.wait();
        if let Some(found) = disk.fetched().pop() {
            assert_eq!(found.key, key(n));
            return found.bytes;
        }
    }
}

#[test]
fn pages_are_found_again_after_a_restart_and_before_they_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::open(config(folder.path(), 8)).unwrap();
    for n in 0..5 {
        disk.store(key(n), page(n));
        assert_eq!(get(&disk, n), Some(page(n)));
    }
    assert!(matches!(
        Disk::open(config(folder.path(), 8)),
        Err(DiskError::Locked { .. })
    ));
    drop(disk);
    let disk = Disk::open(config(folder.path(), 8)).unwrap();
    assert_eq!(disk.stats().pages, 5);
    for n in 0..5 {
        assert_eq!(get(&disk, n), Some(page(n)));
    }
    assert_eq!(get(&disk, 9), None);
}

#[test]
fn the_least_recently_used_page_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::open(config(folder.path(), 3)).unwrap();
    for n in 0..3 {
        disk.store(key(n), page(n));
        disk.flush();
    }
    assert!(get(&disk, 0).is_some());
    disk.store(key(3), page(3));
    disk.flush();
    assert_eq!(
        [0, 1, 2, 3].map(|n| disk.contains(key(n))),
        [true, false, true, true]
    );
    assert_eq!(disk.stats().evicted, 1);
    drop(disk);
    let length = std::fs::metadata(folder.path().join(FILE)).unwrap().len();
    assert!(length <= 3 * slot_bytes(PAGE));
}

#[test]
fn pages_of_another_identity_are_not_found() {
    let folder = tempfile::tempdir().unwrap();
    drop(Disk::open(config(folder.path(), 4)).map(|disk| disk.store(key(1), page(1))));
    let other = DiskConfig {
        identity: [8; 32],
        ..config(folder.path(), 4)
    };
    let disk = Disk::open(other).unwrap();
    assert!(!disk.contains(key(1)) && get(&disk, 1).is_none());
}

/// A file whose writes stop, in their middle, after so many bytes.
#[derive(Debug, Clone)]
struct Torn {
    bytes: Arc<Mutex<Vec<u8>>>,
    left: Arc<Mutex<usize>>,
}

impl Storage for Torn {
    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let file = self.bytes.lock().unwrap();
        let from = (offset as usize).min(file.len());
        let there = file[from..]
            .get(..bytes.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(there);
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (mut file, mut left) = (self.bytes.lock().unwrap(), self.left.lock().unwrap());
        let written = bytes.len().min(*left);
        *left -= written;
        let end = offset as usize + written;
        if file.len() < end {
            file.resize(end, 0);
        }
        file[offset as usize..end].copy_from_slice(&bytes[..written]);
        if written < bytes.len() {
            return Err(io::Error::other("torn"));
        }
        Ok(())
    }
}

#[test]
fn a_write_that_is_torn_anywhere_never_shows_other_bytes() {
    let whole = 3 * slot_bytes(PAGE) as usize + 2 * HEADER;
    for left in (0..whole)
        .step_by(997)
        .chain([HEADER, HEADER + PAGE, 2 * HEADER + PAGE])
    {
        let file = Torn {
            bytes: Arc::default(),
            left: Arc::new(Mutex::new(left)),
        };
        let settings = config(std::path::Path::new(""), 2);
        let disk = Disk::start(Box::new(file.clone()), 0, &settings);
        for n in 0..4 {
            disk.store(key(n), page(n)); // two slots: the later ones overwrite the first
            disk.flush();
        }
        drop(disk);
        let length = file.bytes.lock().unwrap().len() as u64;
        let disk = Disk::start(Box::new(file), length, &settings);
        for n in 0..4 {
            assert!(get(&disk, n).is_none_or(|bytes| bytes == page(n)), "{left}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn damage_loses_pages_and_changes_none(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(), cuts in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(config(folder.path(), 4)).unwrap();
        (0..4).for_each(|n| disk.store(key(n), page(n)));
        drop(disk);
        let path = folder.path().join(FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        std::fs::write(&path, bytes).unwrap();
        let disk = Disk::open(config(folder.path(), 4)).unwrap();
        for n in 0..4 {
            prop_assert!(get(&disk, n).is_none_or(|bytes| bytes == page(n)));
        }
        // And the file can be used.
        disk.store(key(9), page(9));
        prop_assert_eq!(get(&disk, 9), Some(page(9)));
    }
}

/// Not a test by itself: the process that the next test kills.
#[test]
fn child_that_stores_until_it_is_killed() {
    let Some(folder) = std::env::var_os("SEDGE_DISK_CHILD") else {
        return;
    };
    let disk = Disk::open(config(std::path::Path::new(&folder), 16)).unwrap();
    for n in 0.. {
        disk.store(key(n), page(n));
        disk.flush();
        println!("stored {n}");
    }
}

#[test]
fn a_killed_process_loses_nothing_that_it_said_was_stored() {
    use std::io::{BufRead, BufReader};
    for said in [1u32, 7, 40] {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "disk::tests::child_that_stores_until_it_is_killed",
                "--exact",
                "--nocapture",
            ])
            .env("SEDGE_DISK_CHILD", folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut stored = lines.filter_map(|line| line.ok()?.split("stored ").nth(1)?.parse().ok());
        let last: u32 = stored.nth(said as usize).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let disk = Disk::open(config(folder.path(), 16)).unwrap();
        // Pages after the last that we heard of may have taken the oldest ones' places.
        let found: Vec<u32> = (0..last + 200).filter(|&n| disk.contains(key(n))).collect();
        for &n in &found {
            assert_eq!(get(&disk, n), Some(page(n)));
        }
        assert!(found.iter().max() >= Some(&last), "{last}: {found:?}");
        assert!(found.len() >= 15.min(last as usize));
    }
}
