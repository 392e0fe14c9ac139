//! Memory that several tasks of a team write to, each its own part.

/// Where a picture to write to begins.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T);

// SAFETY: it is only an address; who writes through it states why no two tasks write to one place.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The address of `values`, which the caller keeps borrowed while tasks run.
    pub(crate) fn new(values: &mut [T]) -> Self {
        Shared(values.as_mut_ptr())
    }

    /// The address `offset` values on.
    ///
    /// # Safety
    /// It is inside the values, or one past them.
    #[inline(always)]
    pub(crate) unsafe fn at(self, offset: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

/// The `i`-th of `parts` parts of `0..all`, one after the other; the first are longer by one where
/// they cannot be equal.
#[inline]
pub(crate) fn part(i: usize, parts: usize, all: usize) -> std::ops::Range<usize> {
    let (each, longer) = (all / parts, all % parts);
    let start = i * each + i.min(longer);
    start..start + each + usize::from(i < longer)
}

/// How many tasks to cut `units` of work into: one a thread, so that threads mostly come back to
/// the rows that are in their caches.
pub(crate) fn tasks(units: usize, threads: usize) -> usize {
    units.min(threads)
}
