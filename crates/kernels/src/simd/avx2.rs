//! AVX2 with FMA and F16C: x86 since 2013 (Intel) and 2015 (AMD).

use std::arch::x86_64::*;

use super::{LANES, Simd};

/// Proof that the machine has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The proof, if it holds.
    pub(crate) fn detect() -> Option<Avx2> {
        let present = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        present.then_some(Avx2(()))
    }

    /// The proof, in a function that is compiled for the set.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn here() -> Avx2 {
        Avx2(())
    }
}

// SAFETY, of every block below: `self` exists only where the machine has the features, and
// loads and stores cover exactly the array behind the pointer.
#[allow(clippy::undocumented_unsafe_blocks)] // the line above
impl Simd for Avx2 {
    type V = __m256;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m256 {
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m256, out: &mut [f32; LANES]) {
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())) }
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
    fn if_less(self, a: __m256, b: __m256, x: __m256, y: __m256) -> __m256 {
        unsafe { _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
    }

    #[inline(always)]
    fn exp2_whole(self, n: __m256) -> __m256 {
        unsafe {
            // 2²³ (n + 127), exact in f32, is the number's bits.
            let unit = _mm256_set1_ps(8_388_608.0);
            let bits = _mm256_fmadd_ps(n, unit, _mm256_set1_ps(127.0 * 8_388_608.0));
            _mm256_castsi256_ps(_mm256_cvtps_epi32(bits))
        }
    }

    #[inline(always)]
    fn sum4(self, [a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        unsafe {
            // [a0123, b0123, c0123, d0123, a4567, …]
            let v = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), v);
            sums
        }
    }
}
