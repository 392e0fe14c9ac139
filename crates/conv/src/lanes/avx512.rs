//! AVX-512: sixteen lanes.

use std::arch::x86_64::*;

use super::{Kernel, Lanes};

/// Proof that the machine has AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The proof, if it holds.
    pub(crate) fn detect() -> Option<Avx512> {
        let present = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma");
        present.then_some(Avx512(()))
    }
}

/// A kernel, compiled for the set.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) fn run<K: Kernel>(proof: Avx512, kernel: K) {
    kernel.run(proof);
}

// SAFETY, of every block below: `self` exists only where the machine has the features; what loads
// and stores touch is the caller's promise.
#[allow(clippy::undocumented_unsafe_blocks)] // the line above
impl Lanes for Avx512 {
    const N: usize = 16;
    const ROWS: usize = 14;
    type V = __m512;
    type M = __mmask16;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(self, x: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(x) }
    }

    #[inline(always)]
    fn first(self, n: usize) -> __mmask16 {
        ((1u32 << n.min(16)) - 1) as __mmask16
    }

    #[inline(always)]
    unsafe fn load_part(self, x: *const f32, part: __mmask16) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(part, x) }
    }

    #[inline(always)]
    unsafe fn store_part(self, v: __m512, to: *mut f32, part: __mmask16) {
        unsafe { _mm512_mask_storeu_ps(to, part, v) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
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
    fn exp2_whole(self, n: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), n) }
    }

    /// An estimate of 14 bits and one of Newton's steps: a division takes four times as long.
    #[inline(always)]
    fn reciprocal(self, x: __m512) -> __m512 {
        unsafe {
            let y = _mm512_rcp14_ps(x);
            let error = _mm512_fnmadd_ps(x, y, _mm512_set1_ps(1.0));
            _mm512_fmadd_ps(y, error, y)
        }
    }
}
