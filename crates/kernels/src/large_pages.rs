//! Memory in large pages, where the machine gives them: what is read all over in every step then
//! costs fewer walks through page tables.

/// Asks for large pages for memory that has not been touched yet. A hint: it may do nothing.
pub fn ask<T>(memory: &[T]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let range = memory.as_ptr_range();
        let start = (range.start as usize).next_multiple_of(PAGE);
        let end = range.end as usize / PAGE * PAGE;
        if start < end {
            // SAFETY: the advice changes no byte of the range, which is this memory's own; what
            // is wrong with it is answered with an error, which does not matter.
            unsafe {
                let skipped = start - range.start as usize;
                let start = range.start.cast::<u8>().wrapping_add(skipped);
                let len = end - start as usize;
                libc::madvise(start.cast_mut().cast(), len, libc::MADV_HUGEPAGE);
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_changes_nothing() {
        for len in [0, 1, 5000, 3 << 20] {
            let mut memory = vec![0u8; len];
            ask(&memory);
            memory.iter_mut().for_each(|b| *b = 7);
            ask(&memory);
            assert!(memory.iter().all(|&b| b == 7));
        }
    }
}
