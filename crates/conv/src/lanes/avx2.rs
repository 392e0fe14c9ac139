//! AVX2 and FMA: eight lanes.

use std::arch::x86_64::*;

use super::{Kernel, Lanes};

/// Proof that the machine has AVX2 and FMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The proof, if it holds.
    pub(crate) fn detect() -> Option<Avx2> {
        let present = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        present.then_some(Avx2(()))
    }
}

/// A kernel, compiled for the set.
#[target_feature(enable = "avx2,fma")]
pub(super) fn run<K: Kernel>(proof: Avx2, kernel: K) {
    kernel.run(proof);
}

// SAFETY, of every block below: `self` exists only where the machine has the features; what loads
// and stores touch is the caller's promise.
#[allow(clippy::undocumented_unsafe_blocks)] // the line above
impl Lanes for Avx2 {
    const N: usize = 8;
    const ROWS: usize = 6;
    type V = __m256;
    type M = __m256i;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(self, x: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(x) }
    }

    #[inline(always)]
    fn first(self, n: usize) -> __m256i {
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_cmpgt_epi32(_mm256_set1_epi32(n.min(8) as i32), lanes)
        }
    }

    #[inline(always)]
    unsafe fn load_part(self, x: *const f32, part: __m256i) -> __m256 {
        unsafe { _mm256_maskload_ps(x, part) }
    }

    #[inline(always)]
    unsafe fn store_part(self, v: __m256, to: *mut f32, part: __m256i) {
        unsafe { _mm256_maskstore_ps(to, part, v) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
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
    fn exp2_whole(self, n: __m256) -> __m256 {
        unsafe {
            let n32 = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n32));
            // NaN has no whole number and must stay what it is.
            _mm256_add_ps(power, _mm256_sub_ps(n, n))
        }
    }
}
