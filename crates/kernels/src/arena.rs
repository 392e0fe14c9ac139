//! A run of memory in large pages, lent out in pieces.
//! What is read once in every step, a little here and a little there, costs fewer walks through
//! page tables in it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use memmap2::MmapMut;

/// Pieces begin on a cache line.
const LINE: usize = 64;

/// The memory; clones share it. It is given back when the last piece and the last clone are gone.
#[derive(Debug, Clone)]
pub struct Arena(Arc<Run>);

#[derive(Debug)]
struct Run {
    /// Written only by `keep`, in pieces that nobody has yet.
    start: *mut u8,
    len: usize,
    /// Free ranges that do not touch, by their starts.
    free: Mutex<BTreeMap<usize, usize>>,
    /// Owns the memory behind `start`.
    _memory: MmapMut,
}

// SAFETY: `start` is of memory that lives as long as the run. A range of it is either free, and
// then nobody reads it, or a piece's, and then nobody writes it; `free` decides under its lock.
unsafe impl Send for Run {}
// SAFETY: as above.
unsafe impl Sync for Run {}

/// A range that is lent; free again when this is dropped.
struct Piece {
    run: Arc<Run>,
    start: usize,
    len: usize,
}

impl Arena {
    /// An arena of so many bytes; memory is taken as it is used, in large pages where the system
    /// gives them.
    ///
    /// # Errors
    /// When the address space cannot be had.
    pub fn new(bytes: usize) -> std::io::Result<Arena> {
        let len = bytes.max(1).next_multiple_of(LINE);
        let mut memory = MmapMut::map_anon(len)?;
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage); // a hint; it may fail
        Ok(Arena(Arc::new(Run {
            start: memory.as_mut_ptr(),
            len,
            free: Mutex::new(BTreeMap::from([(0, len)])),
            _memory: memory,
        })))
    }

    /// A copy of some bytes in the arena; `None` where no free range is long enough.
    pub fn keep(&self, bytes: &[u8]) -> Option<Bytes> {
        let run = &self.0;
        let len = bytes.len().max(1).next_multiple_of(LINE);
        let start = run.take(len)?;
        let piece = Piece {
            run: run.clone(),
            start,
            len,
        };
        assert!(start + len <= run.len && bytes.len() <= len);
        // SAFETY: the range is within the memory, and this piece's alone: nobody reads it yet.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), run.start.add(start), bytes.len());
        }
        Some(Bytes::from_owner(piece).slice(..bytes.len()))
    }

    /// Bytes that are lent.
    pub fn used(&self) -> usize {
        self.0.len - self.0.lock().values().sum::<usize>()
    }
}

impl Run {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, usize>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The start of the first free range of this length.
    fn take(&self, len: usize) -> Option<usize> {
        let mut free = self.lock();
        let (&start, &found) = free.iter().find(|&(_, &found)| found >= len)?;
        free.remove(&start);
        if found > len {
            free.insert(start + len, found - len);
        }
        Some(start)
    }

    fn give_back(&self, mut start: usize, mut len: usize) {
        let mut free = self.lock();
        if let Some((&before, &found)) = free.range(..start).next_back()
            && before + found == start
        {
            free.remove(&before);
            (start, len) = (before, found + len);
        }
        if let Some(found) = free.remove(&(start + len)) {
            len += found;
        }
        free.insert(start, len);
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the range is within the memory and this piece's: written before it was made,
        // and by nobody while it is there; fresh memory is zero.
        unsafe { std::slice::from_raw_parts(self.run.start.add(self.start), self.len) }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.run.give_back(self.start, self.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_keep_their_bytes_and_give_their_room_back() {
        let arena = Arena::new(4096).unwrap();
        let mut state = 1u32;
        let mut next = |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        let mut pieces: Vec<(u8, Bytes)> = Vec::new();
        for round in 0..4000 {
            let value = round as u8;
            match arena.keep(&vec![value; 1 + next(700)]) {
                Some(piece) => {
                    assert_eq!(piece.as_ptr() as usize % LINE, 0);
                    pieces.push((value, piece));
                }
                None => assert!(!pieces.is_empty()),
            }
            while pieces.len() > 3 + next(6) {
                pieces.swap_remove(next(pieces.len()));
            }
            let lent: usize = pieces
                .iter()
                .map(|(_, p)| p.len().next_multiple_of(LINE))
                .sum();
            assert_eq!(arena.used(), lent);
            assert!(
                pieces
                    .iter()
                    .all(|(value, piece)| piece.iter().all(|b| b == value))
            );
        }
        pieces.clear();
        assert_eq!(arena.used(), 0);
        // All of it is one range again.
        assert!(arena.keep(&[1; 4096]).is_some());
    }

    #[test]
    fn what_does_not_fit_is_not_kept_and_pieces_outlive_the_arena() {
        let arena = Arena::new(100).unwrap();
        assert!(arena.keep(&[0; 129]).is_none());
        let piece = arena.keep(b"kept").unwrap();
        assert!(arena.keep(&[0; 65]).is_none());
        assert_eq!(arena.keep(&[]).unwrap().len(), 0);
        drop(arena);
        assert_eq!(&piece[..], b"kept");
    }
}
