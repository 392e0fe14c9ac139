//! Vectors of f32, of as many lanes as an instruction set has.
//! Kernels are written once over [`Lanes`]; `isa.rs` compiles them for each set.

/// A set of vectors. A value of the type is the proof that the machine has it.
///
/// Operations only become single instructions when inlined into a function that is compiled for
/// the set, so every function on the way is `#[inline(always)]`, and none passes vectors to
/// closures.
pub(super) trait Lanes: Copy {
    /// Values of a vector, at most 16.
    const LANES: usize;
    /// Vectors of accumulators that leave registers enough for the rest.
    const ACCUMULATORS: usize;
    /// A vector.
    type V: Copy;

    /// The value in all lanes.
    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// [`Lanes::LANES`] values can be read at `x`.
    unsafe fn load(self, x: *const f32) -> Self::V;
    /// Lanes whose bit in `mask` is set; the others are 0.
    ///
    /// # Safety
    /// The values of those lanes can be read; the others are not.
    unsafe fn load_masked(self, x: *const f32, mask: u32) -> Self::V;
    /// # Safety
    /// [`Lanes::LANES`] values can be written at `y`.
    unsafe fn store(self, v: Self::V, y: *mut f32);
    /// # Safety
    /// The values of the lanes whose bit is set can be written; the others are not.
    unsafe fn store_masked(self, v: Self::V, y: *mut f32, mask: u32);
    /// `a + b`
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b`
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger, `b` where one is not a number.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller, `b` where one is not a number.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// Every second value of `a` and then of `b`, from the first on.
    fn even(self, a: Self::V, b: Self::V) -> Self::V;
}

/// The first `n` lanes of 32, all where there are more.
#[inline(always)]
pub(super) fn first(n: usize) -> u32 {
    match n {
        0..32 => (1 << n) - 1,
        _ => u32::MAX,
    }
}

/// Every machine has this set: arrays, which compilers turn into what vectors there are.
#[derive(Clone, Copy)]
pub(super) struct Portable;

/// Lanes of the portable set.
const PORTABLE: usize = 8;

#[inline(always)]
fn zip(a: [f32; PORTABLE], b: [f32; PORTABLE], f: impl Fn(f32, f32) -> f32) -> [f32; PORTABLE] {
    let mut out = a;
    for (a, b) in out.iter_mut().zip(b) {
        *a = f(*a, b);
    }
    out
}

impl Lanes for Portable {
    const LANES: usize = PORTABLE;
    const ACCUMULATORS: usize = 4;
    type V = [f32; PORTABLE];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; PORTABLE]
    }

    #[inline(always)]
    unsafe fn load(self, x: *const f32) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { x.cast::<Self::V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_masked(self, x: *const f32, mask: u32) -> Self::V {
        let mut v = [0.0; PORTABLE];
        for (i, v) in v.iter_mut().enumerate() {
            if mask >> i & 1 == 1 {
                // SAFETY: the caller's promise.
                *v = unsafe { *x.wrapping_add(i) };
            }
        }
        v
    }

    #[inline(always)]
    unsafe fn store(self, v: Self::V, y: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { y.cast::<Self::V>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn store_masked(self, v: Self::V, y: *mut f32, mask: u32) {
        for (i, v) in v.into_iter().enumerate() {
            if mask >> i & 1 == 1 {
                // SAFETY: the caller's promise.
                unsafe { *y.wrapping_add(i) = v };
            }
        }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Two roundings: without the instruction, one is a slow library call.
        zip(zip(a, b, |a, b| a * b), c, |ab, c| ab + c)
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn even(self, a: Self::V, b: Self::V) -> Self::V {
        [a[0], a[2], a[4], a[6], b[0], b[2], b[4], b[6]]
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
// SAFETY, of every block below: the types exist only where the machine has the features, and
// callers promise what pointers may be read and written.
#[allow(clippy::undocumented_unsafe_blocks)] // the line above
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    /// Proof that the machine has AVX-512 F.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(());

    impl Avx512 {
        /// The proof, in a function that is compiled for the set.
        #[target_feature(enable = "avx512f")]
        pub(in super::super) fn here() -> Avx512 {
            Avx512(())
        }
    }

    impl Lanes for Avx512 {
        const LANES: usize = 16;
        const ACCUMULATORS: usize = 24;
        type V = __m512;

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(self, x: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(x) }
        }

        #[inline(always)]
        unsafe fn load_masked(self, x: *const f32, mask: u32) -> __m512 {
            unsafe { _mm512_maskz_loadu_ps(mask as u16, x) }
        }

        #[inline(always)]
        unsafe fn store(self, v: __m512, y: *mut f32) {
            unsafe { _mm512_storeu_ps(y, v) }
        }

        #[inline(always)]
        unsafe fn store_masked(self, v: __m512, y: *mut f32, mask: u32) {
            unsafe { _mm512_mask_storeu_ps(y, mask as u16, v) }
        }

        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }

        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }

        #[inline(always)]
        fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }

        #[inline(always)]
        fn min(self, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_min_ps(a, b) }
        }

        #[inline(always)]
        fn even(self, a: __m512, b: __m512) -> __m512 {
            unsafe {
                let which =
                    _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
                _mm512_permutex2var_ps(a, which, b)
            }
        }
    }

    /// Proof that the machine has AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(());

    impl Avx2 {
        /// The proof, in a function that is compiled for the set.
        #[target_feature(enable = "avx2,fma")]
        pub(in super::super) fn here() -> Avx2 {
            Avx2(())
        }

        /// All bits of the lanes whose bit in `mask` is set.
        #[inline(always)]
        fn mask(self, mask: u32) -> __m256i {
            unsafe {
                let bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
                let mask = _mm256_and_si256(_mm256_set1_epi32(mask as i32), bits);
                _mm256_cmpeq_epi32(mask, bits)
            }
        }
    }

    impl Lanes for Avx2 {
        const LANES: usize = 8;
        const ACCUMULATORS: usize = 12;
        type V = __m256;

        #[inline(always)]
        fn splat(self, x: f32) -> __m256 {
            unsafe { _mm256_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(self, x: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(x) }
        }

        #[inline(always)]
        unsafe fn load_masked(self, x: *const f32, mask: u32) -> __m256 {
            unsafe { _mm256_maskload_ps(x, self.mask(mask)) }
        }

        #[inline(always)]
        unsafe fn store(self, v: __m256, y: *mut f32) {
            unsafe { _mm256_storeu_ps(y, v) }
        }

        #[inline(always)]
        unsafe fn store_masked(self, v: __m256, y: *mut f32, mask: u32) {
            unsafe { _mm256_maskstore_ps(y, self.mask(mask), v) }
        }

        #[inline(always)]
        fn add(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }

        #[inline(always)]
        fn mul(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }

        #[inline(always)]
        fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        fn max(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_max_ps(a, b) }
        }

        #[inline(always)]
        fn min(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_min_ps(a, b) }
        }

        #[inline(always)]
        fn even(self, a: __m256, b: __m256) -> __m256 {
            unsafe {
                // The even ones of each half of both, then the quarters in order.
                let mixed = _mm256_castps_pd(_mm256_shuffle_ps::<0b10_00_10_00>(a, b));
                _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(mixed))
            }
        }
    }
}
