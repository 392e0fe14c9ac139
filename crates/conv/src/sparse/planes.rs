//! One picture as planes: all pixels of a channel, then those of the next.

use std::marker::PhantomData;

/// From one plane to the next, in values, where planes of `h × w` are to be read quickly.
///
/// Whole cache lines, and an odd number of them where a plane is larger than a few, so that a
/// pixel's channels fall into different sets of the cache.
pub fn plane_stride(h: usize, w: usize) -> usize {
    let lines = (h * w).div_ceil(ALIGN);
    match lines {
        0..=8 => lines * ALIGN,
        _ => (lines | 1) * ALIGN,
    }
}

/// Values of a cache line; planes are multiples of it apart.
pub(super) const ALIGN: usize = 16;

/// Planes `[channels, h, w]`, each `stride` values after the one before it.
///
/// What lies between the last pixel of a plane and the next plane belongs to nobody: kernels
/// read it and write to it, and no pixel depends on it. Numbers there should be ordinary ones
/// (zeros at first), since arithmetic on denormal ones is slow. Values are read fastest where
/// they begin at a multiple of 64 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Planes<'a> {
    values: &'a [f32],
    channels: usize,
    h: usize,
    w: usize,
    stride: usize,
}

/// [`Planes`] to write to.
#[derive(Debug)]
pub struct PlanesMut<'a> {
    values: &'a mut [f32],
    channels: usize,
    h: usize,
    w: usize,
    stride: usize,
}

fn check(len: usize, [channels, h, w]: [usize; 3], stride: usize) {
    assert!(
        stride.is_multiple_of(ALIGN) && stride >= h * w,
        "planes of {h} × {w} are {stride} apart, which is too close or not whole cache lines"
    );
    assert!(
        len >= channels * stride,
        "{len} values are not {channels} planes of {stride}"
    );
}

impl<'a> Planes<'a> {
    /// Planes at the beginning of `values`.
    ///
    /// # Panics
    /// When there are fewer than `channels · stride` values, planes overlap, or `stride` is not
    /// a multiple of 16.
    pub fn new(values: &'a [f32], channels: usize, h: usize, w: usize, stride: usize) -> Self {
        check(values.len(), [channels, h, w], stride);
        Planes {
            values,
            channels,
            h,
            w,
            stride,
        }
    }

    /// Planes.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Rows of pixels and pixels of a row.
    pub fn size(&self) -> [usize; 2] {
        [self.h, self.w]
    }

    /// Pixels of a plane.
    pub fn pixels(&self) -> usize {
        self.h * self.w
    }

    /// From a plane to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The pixels of a channel.
    pub fn plane(&self, channel: usize) -> &'a [f32] {
        assert!(channel < self.channels);
        &self.values[channel * self.stride..][..self.pixels()]
    }

    /// Asks for some pixels of a plane, as far as there are any.
    #[inline(always)]
    pub(super) fn prefetch(&self, channel: usize, begin: usize, end: usize) {
        for pixel in (begin..end.min(self.pixels())).step_by(ALIGN) {
            let at = self
                .values
                .as_ptr()
                .wrapping_add(channel * self.stride + pixel);
            #[cfg(target_arch = "x86_64")]
            // SAFETY: every such processor has the instruction, which reads nothing.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T1>(at.cast());
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = at;
        }
    }

    pub(super) fn start(&self) -> *const f32 {
        self.values.as_ptr()
    }
}

impl<'a> PlanesMut<'a> {
    /// Planes at the beginning of `values`.
    ///
    /// # Panics
    /// When there are fewer than `channels · stride` values, planes overlap, or `stride` is not
    /// a multiple of 16.
    pub fn new(values: &'a mut [f32], channels: usize, h: usize, w: usize, stride: usize) -> Self {
        check(values.len(), [channels, h, w], stride);
        PlanesMut {
            values,
            channels,
            h,
            w,
            stride,
        }
    }

    /// Planes.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Rows of pixels and pixels of a row.
    pub fn size(&self) -> [usize; 2] {
        [self.h, self.w]
    }

    /// From a plane to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The pixels of a channel.
    pub fn plane(&mut self, channel: usize) -> &mut [f32] {
        assert!(channel < self.channels);
        &mut self.values[channel * self.stride..][..self.h * self.w]
    }

    /// The same planes, to read.
    pub fn as_ref(&self) -> Planes<'_> {
        Planes {
            values: self.values,
            channels: self.channels,
            h: self.h,
            w: self.w,
            stride: self.stride,
        }
    }

    /// Where tasks write, each other pixels.
    pub(super) fn target(&mut self) -> Target<'_> {
        Target {
            start: self.values.as_mut_ptr(),
            channels: self.channels,
            stride: self.stride,
            borrow: PhantomData,
        }
    }
}

/// Planes that several tasks write to at once.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    start: *mut f32,
    channels: usize,
    pub(super) stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a borrow of f32 values, which any thread may write; that no two write the same
// one is what those promise who do.
unsafe impl Send for Target<'_> {}
// SAFETY: as above.
unsafe impl Sync for Target<'_> {}

impl<'a> Target<'a> {
    /// Where value `offset` of a plane is.
    pub(super) fn at(self, channel: usize, offset: usize) -> *mut f32 {
        debug_assert!(channel < self.channels && offset < self.stride);
        self.start.wrapping_add(channel * self.stride + offset)
    }

    /// All of a plane with what lies behind its last pixel.
    ///
    /// # Safety
    /// Nobody else may use the plane meanwhile.
    #[allow(clippy::mut_from_ref)] // planes are disjoint by the caller's promise
    pub(super) unsafe fn plane(self, channel: usize) -> &'a mut [f32] {
        assert!(channel < self.channels);
        // SAFETY: within the borrowed values, by the checks of `PlanesMut::new`, and unshared, by
        // the promise.
        unsafe { std::slice::from_raw_parts_mut(self.at(channel, 0), self.stride) }
    }
}
