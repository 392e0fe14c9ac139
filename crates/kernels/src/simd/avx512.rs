//! AVX-512: sixteen lanes in one vector.

use std::arch::x86_64::*;

use super::Sixteen;

/// Proof that the machine has AVX-512 F, BW, DQ and VL.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The proof, if it holds.
    pub(crate) fn detect() -> Option<Avx512> {
        let present = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        present.then_some(Avx512(()))
    }

    /// The proof, in a function that is compiled for the set.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(crate) fn here() -> Avx512 {
        Avx512(())
    }

    /// `2ⁿ` of whole numbers, 0 far below and infinity far above.
    #[inline(always)]
    fn exp2_whole(self, n: __m512) -> __m512 {
        // SAFETY: as below.
        unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), n) }
    }
}

// SAFETY, of every block below: `self` exists only where the machine has the features, and
// loads and stores cover exactly the array behind the pointer.
#[allow(clippy::undocumented_unsafe_blocks)] // the line above
impl Sixteen for Avx512 {
    type W = __m512;
    const QUERIES: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> __m512 {
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m512, out: &mut [f32; 16]) {
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; 16]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u16; 16]) -> __m512 {
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    fn load_i8(self, x: &[i8; 16]) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn nibble(self, words: &[u32; 16], place: usize) -> __m512 {
        unsafe {
            let numbers = _mm512_setr_ps(
                0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0,
                15.0,
            );
            let words = _mm512_loadu_si512(words.as_ptr().cast());
            let by = _mm512_set1_epi32(4 * place as i32);
            // The choice looks at four bits of a word only.
            _mm512_permutexvar_ps(_mm512_srlv_epi32(words, by), numbers)
        }
    }

    #[inline(always)]
    fn two_f16(self, words: &[u32; 16]) -> [__m512; 2] {
        unsafe {
            let words = _mm512_loadu_si512(words.as_ptr().cast());
            let high = _mm512_srli_epi32::<16>(words);
            [
                _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words)),
                _mm512_cvtph_ps(_mm512_cvtepi32_epi16(high)),
            ]
        }
    }

    #[inline(always)]
    fn butterfly<const STRIDE: usize>(self, v: __m512) -> __m512 {
        unsafe {
            // The other lane of each pair, and the lanes whose number has the bit.
            let (other, second) = match STRIDE {
                1 => (_mm512_permute_ps::<0b10_11_00_01>(v), 0xaaaa),
                2 => (_mm512_permute_ps::<0b01_00_11_10>(v), 0xcccc),
                4 => (_mm512_shuffle_f32x4::<0b10_11_00_01>(v, v), 0xf0f0),
                8 => (_mm512_shuffle_f32x4::<0b01_00_11_10>(v, v), 0xff00),
                _ => unreachable!("strides of sixteen lanes"),
            };
            _mm512_mask_sub_ps(_mm512_add_ps(other, v), second, other, v)
        }
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
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn exp(self, x: __m512) -> __m512 {
        // Range reduction and polynomial as in `Simd::exp`, rounding by its own instruction.
        unsafe {
            let x = _mm512_max_ps(
                _mm512_set1_ps(-104.0),
                _mm512_min_ps(_mm512_set1_ps(89.0), x),
            );
            let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
                _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)),
            );
            let r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693_359_4), x);
            let r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.121_944_4e-4), r);
            let mut p = _mm512_set1_ps(1.987_569_1e-4);
            for k in [
                1.398_2e-3,
                8.333_452e-3,
                4.166_579_6e-2,
                1.666_666_5e-1,
                0.5,
            ] {
                p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(k));
            }
            let y = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r);
            _mm512_mul_ps(_mm512_add_ps(y, _mm512_set1_ps(1.0)), self.exp2_whole(n))
        }
    }

    #[inline(always)]
    fn tanh(self, x: __m512) -> __m512 {
        // As `Simd::tanh`.
        unsafe {
            let z = _mm512_mul_ps(x, x);
            let mut p = _mm512_set1_ps(-5.704_988_7e-3);
            for k in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
                p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(k));
            }
            let near = _mm512_fmadd_ps(_mm512_mul_ps(p, z), x, x);
            let e = self.exp(_mm512_add_ps(x, x));
            let two = _mm512_set1_ps(2.0);
            let one = _mm512_set1_ps(1.0);
            let far = _mm512_sub_ps(one, _mm512_div_ps(two, _mm512_add_ps(e, one)));
            let small = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(z, _mm512_set1_ps(0.625 * 0.625));
            _mm512_mask_blend_ps(small, far, near)
        }
    }

    #[inline(always)]
    fn max_lane(self, v: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(v) }
    }

    #[inline(always)]
    fn sum_lanes(self, v: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(v) }
    }

    #[inline(always)]
    fn prefetch<T>(self, at: &T) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn exp_and_tanh(x: [f32; 16]) -> [[f32; 16]; 2] {
        let s = Avx512::here();
        let mut out = [[0.0; 16]; 2];
        s.store(s.exp(s.load(&x)), &mut out[0]);
        s.store(s.tanh(s.load(&x)), &mut out[1]);
        out
    }

    #[test]
    fn exp_and_tanh_are_as_close_as_those_of_eight_lanes() {
        if Avx512::detect().is_none() {
            return println!("skipped: this machine has no AVX-512");
        }
        for i in -8700..=8800 {
            let x = i as f32 * 0.01 + 0.003;
            // SAFETY: the features are there.
            let [exp, tanh] = unsafe { exp_and_tanh([x; 16]) };
            let exact = f64::from(x).exp();
            assert!(
                (f64::from(exp[9]) - exact).abs() <= 2.5e-7 * exact,
                "exp({x}) = {}",
                exp[9]
            );
            let exact = f64::from(x).tanh();
            assert!(
                (f64::from(tanh[9]) - exact).abs() <= 4e-7 * exact.abs(),
                "tanh({x})"
            );
        }
        let mut strange = [0.0; 16];
        strange[..6].copy_from_slice(&[
            f32::NEG_INFINITY,
            f32::INFINITY,
            -1e30,
            1e30,
            f32::NAN,
            -200.0,
        ]);
        // SAFETY: the features are there.
        let [exp, _] = unsafe { exp_and_tanh(strange) };
        assert_eq!(exp[..4], [0.0, f32::INFINITY, 0.0, f32::INFINITY]);
        assert!(exp[4].is_nan() && exp[5] == 0.0);
    }
}
