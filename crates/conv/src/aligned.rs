//! Values that begin at a cache line and lie in large pages together with others: a network's
//! weights and pictures are read all over in every run, and each costs a walk through page tables
//! where pages are small.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use sedge_kernels::ask_for_large_pages;

/// Bytes of a cache line.
const LINE: usize = 64;
/// Bytes of a large page.
const PAGE: usize = 2 << 20;
/// Bytes that are asked for at once.
const CHUNK: usize = 4 * PAGE;

/// Types of which all zeros are a value, and every other bit pattern too.
///
/// # Safety
/// They are.
pub unsafe trait Number: Copy {}

// SAFETY: numbers are.
unsafe impl Number for f32 {}
// SAFETY: as above.
unsafe impl Number for u8 {}
// SAFETY: as above.
unsafe impl Number for [i8; 64] {}

/// Memory that several values share; it is given back when the last of them is gone.
struct Chunk {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is memory and nothing else; who may touch which part, `Aligned` says.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl Chunk {
    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, PAGE).expect("more than memory can hold")
    }

    fn new(bytes: usize) -> Chunk {
        let layout = Chunk::layout(bytes);
        // SAFETY: the size is not 0.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout);
        };
        // SAFETY: it was allocated above, and nobody else has it. Pages are what they are from
        // their first use on, so they are asked for before the zeros are written.
        unsafe {
            let memory = start.cast::<MaybeUninit<u8>>();
            ask_for_large_pages(std::slice::from_raw_parts(memory.as_ptr(), bytes));
            start.write_bytes(0, bytes);
        }
        Chunk { start, bytes }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout.
        unsafe { dealloc(self.start.as_ptr(), Chunk::layout(self.bytes)) };
    }
}

/// The chunk from which the next values are cut, and how much of it is taken.
static OPEN: Mutex<Option<(Arc<Chunk>, usize)>> = Mutex::new(None);

/// Values from the beginning of a cache line.
pub struct Aligned<T: Number = f32> {
    chunk: Arc<Chunk>,
    /// In bytes.
    start: usize,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Number> Aligned<T> {
    /// A copy.
    pub fn of(values: &[T]) -> Self {
        let mut copy = Self::zeros(values.len());
        copy.values_mut().copy_from_slice(values);
        copy
    }

    /// So many zeros.
    pub fn zeros(len: usize) -> Self {
        let bytes = len
            .checked_mul(size_of::<T>())
            .and_then(|bytes| bytes.checked_next_multiple_of(LINE))
            .expect("more than memory can hold");
        let made = |chunk: &Arc<Chunk>, start| Aligned {
            chunk: Arc::clone(chunk),
            start,
            len,
            values: PhantomData,
        };
        // What fills half a chunk has one of its own, of whole pages.
        if bytes > CHUNK / 2 {
            let bytes = bytes.checked_next_multiple_of(PAGE);
            let chunk = Arc::new(Chunk::new(bytes.expect("more than memory can hold")));
            return made(&chunk, 0);
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = open
            .as_ref()
            .is_some_and(|(chunk, taken)| taken + bytes <= chunk.bytes);
        if !fits {
            *open = None;
        }
        let (chunk, taken) = open.get_or_insert_with(|| (Arc::new(Chunk::new(CHUNK)), 0));
        let start = *taken;
        *taken += bytes;
        made(chunk, start)
    }

    /// The values.
    pub fn values(&self) -> &[T] {
        // SAFETY: `len` numbers from `start` on are in the chunk, aligned to a cache line, and
        // this value's own: no other was cut from there.
        unsafe {
            let start = self.chunk.start.as_ptr().add(self.start);
            std::slice::from_raw_parts(start.cast(), self.len)
        }
    }

    /// The values, to write to.
    pub fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed by nobody else.
        unsafe {
            let start = self.chunk.start.as_ptr().add(self.start);
            std::slice::from_raw_parts_mut(start.cast(), self.len)
        }
    }
}

impl<T: Number> Clone for Aligned<T> {
    fn clone(&self) -> Self {
        Aligned::of(self.values())
    }
}

impl<T: Number> std::fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} values", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_zeros_of_their_own() {
        let sizes = [0, 1, 16, 17, 1000, 1 << 20, 3 << 20];
        let mut all: Vec<Aligned> = sizes.iter().map(|&len| Aligned::zeros(len)).collect();
        for (i, values) in all.iter_mut().enumerate() {
            assert_eq!(values.values().as_ptr() as usize % LINE, 0);
            assert!(values.values().iter().all(|&x| x == 0.0));
            values.values_mut().fill(i as f32);
        }
        for (i, (values, len)) in all.iter().zip(sizes).enumerate() {
            assert_eq!(values.values().len(), len);
            assert!(values.values().iter().all(|&x| x == i as f32));
        }
    }

    #[test]
    fn memory_outlives_what_was_cut_beside_it() {
        let kept: Aligned<u8> = Aligned::zeros(100);
        for _ in 0..100 {
            let mut other: Aligned = Aligned::zeros(100_000);
            other.values_mut().fill(1.0);
        }
        assert!(kept.values().iter().all(|&x| x == 0));
    }
}
