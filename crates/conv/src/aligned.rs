//! Values that begin at a cache line, so that no vector of them lies across two.

/// A cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [f32; 16]); // read as values, below

/// f32 from the beginning of a cache line.
pub(crate) struct Aligned(Vec<Line>);

impl Aligned {
    /// At least `len` zeros.
    pub(crate) fn zeros(len: usize) -> Aligned {
        Aligned(vec![Line([0.0; 16]); len.div_ceil(16)])
    }

    /// The values.
    pub(crate) fn values(&self) -> &[f32] {
        // SAFETY: lines are arrays of f32 without gaps: 64 bytes, and aligned to as many.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), 16 * self.0.len()) }
    }

    /// The values, to write to.
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), 16 * self.0.len()) }
    }
}
