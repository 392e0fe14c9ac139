//! Sixteen f32 at a time: what turns sums into results is written once over this.
//! Each operation is a single rounding, so all sets have the same bits.

/// Sixteen values.
pub(super) trait Lanes: Copy {
    fn splat(x: f32) -> Self;
    fn load(x: &[f32; 16]) -> Self;
    fn from_i32(x: &[i32; 16]) -> Self;
    fn from_u8(x: &[u8; 16]) -> Self;
    fn store(self, out: &mut [f32; 16]);
    fn add(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// `self · a + b` in one rounding.
    fn fma(self, a: Self, b: Self) -> Self;
    /// `self` where it is greater, else `other`.
    fn max(self, other: Self) -> Self;
    /// `self` where it is less, else `other`.
    fn min(self, other: Self) -> Self;
    /// The nearest whole number, the even one of two.
    fn round(self) -> Self;
    /// `2ⁿ` of whole numbers from −126 to 127.
    fn exp2_whole(self) -> Self;
    /// Whole numbers from 0 to 255.
    fn to_u8(self) -> [u8; 16];
}

/// `eˣ`, to some 2 units in the last place; the ends of f32's range beyond them.
#[inline(always)]
pub(super) fn exp<L: Lanes>(x: L) -> L {
    let x = x.max(L::splat(-87.0)).min(L::splat(88.0));
    let n = x.mul(L::splat(std::f32::consts::LOG2_E)).round();
    // ln 2 in two parts, so that n · ln 2 is exact in the first.
    let r = n.fma(L::splat(-0.693_359_4), x);
    let r = n.fma(L::splat(2.121_944_4e-4), r);
    // Taylor's series to the sixth power: |r| ≤ ln 2 / 2, where the rest is below 1e-7.
    let mut sum = L::splat(1.0 / 720.0);
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum.fma(r, L::splat(c));
    }
    sum.mul(n.exp2_whole())
}

/// For every machine; compiled for a set, loops over lanes become its vectors.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 16]);

impl Portable {
    #[inline(always)]
    fn both(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        for (out, other) in out.iter_mut().zip(other.0) {
            *out = f(*out, other);
        }
        Portable(out)
    }
}

impl Lanes for Portable {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Portable([x; 16])
    }

    #[inline(always)]
    fn load(x: &[f32; 16]) -> Self {
        Portable(*x)
    }

    #[inline(always)]
    fn from_i32(x: &[i32; 16]) -> Self {
        Portable(x.map(|x| x as f32))
    }

    #[inline(always)]
    fn from_u8(x: &[u8; 16]) -> Self {
        Portable(x.map(f32::from))
    }

    #[inline(always)]
    fn store(self, out: &mut [f32; 16]) {
        *out = self.0;
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.both(other, |x, y| x + y)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.both(other, |x, y| x * y)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.both(other, |x, y| x / y)
    }

    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        let mut out = self.0;
        for ((out, a), b) in out.iter_mut().zip(a.0).zip(b.0) {
            *out = out.mul_add(a, b);
        }
        Portable(out)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.both(other, |x, y| if x > y { x } else { y })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.both(other, |x, y| if x < y { x } else { y })
    }

    #[inline(always)]
    fn round(self) -> Self {
        Portable(self.0.map(f32::round_ties_even))
    }

    #[inline(always)]
    fn exp2_whole(self) -> Self {
        Portable(
            self.0
                .map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23)),
        )
    }

    #[inline(always)]
    fn to_u8(self) -> [u8; 16] {
        self.0.map(|x| x as i32 as u8)
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::Avx512;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Lanes;

    /// One vector; only used in functions that are compiled for AVX-512.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(__m512);

    // SAFETY, of every block below: called only in functions of the set, which run where it has
    // been detected; loads and stores cover exactly the array behind the pointer.
    #[allow(clippy::undocumented_unsafe_blocks)] // the line above
    impl Lanes for Avx512 {
        #[inline(always)]
        fn splat(x: f32) -> Self {
            Avx512(unsafe { _mm512_set1_ps(x) })
        }

        #[inline(always)]
        fn load(x: &[f32; 16]) -> Self {
            Avx512(unsafe { _mm512_loadu_ps(x.as_ptr()) })
        }

        #[inline(always)]
        fn from_i32(x: &[i32; 16]) -> Self {
            Avx512(unsafe { _mm512_cvtepi32_ps(_mm512_loadu_si512(x.as_ptr().cast())) })
        }

        #[inline(always)]
        fn from_u8(x: &[u8; 16]) -> Self {
            let wide = unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast())) };
            Avx512(unsafe { _mm512_cvtepi32_ps(wide) })
        }

        #[inline(always)]
        fn store(self, out: &mut [f32; 16]) {
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            Avx512(unsafe { _mm512_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            Avx512(unsafe { _mm512_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn div(self, other: Self) -> Self {
            Avx512(unsafe { _mm512_div_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn fma(self, a: Self, b: Self) -> Self {
            Avx512(unsafe { _mm512_fmadd_ps(self.0, a.0, b.0) })
        }

        #[inline(always)]
        fn max(self, other: Self) -> Self {
            Avx512(unsafe { _mm512_max_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn min(self, other: Self) -> Self {
            Avx512(unsafe { _mm512_min_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn round(self) -> Self {
            Avx512(unsafe { _mm512_roundscale_ps::<0>(self.0) })
        }

        #[inline(always)]
        fn exp2_whole(self) -> Self {
            Avx512(unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), self.0) })
        }

        #[inline(always)]
        fn to_u8(self) -> [u8; 16] {
            let mut out = [0; 16];
            unsafe {
                let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(self.0));
                _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
            }
            out
        }
    }
}
