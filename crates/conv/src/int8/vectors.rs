//! AVX-512's vectors of 16, 32 and 64 bytes, so that a kernel is written once for few channels
//! and for many.

use std::arch::x86_64::*;

/// A vector of bytes, or of 32-bit integers, and its twin of f32.
pub(super) trait Vector: Copy {
    type Floats: Copy;
    fn zero() -> Self;
    /// # Safety
    /// The bytes of the mask can be read.
    unsafe fn load(from: *const u8, mask: u64) -> Self;
    /// # Safety
    /// The bytes of the mask can be written.
    unsafe fn store(self, to: *mut u8, mask: u64);
    /// All its bytes, of something longer.
    fn of<T: Copy>(from: &[T]) -> Self;
    fn floats(from: &[f32]) -> Self::Floats;
    fn splat_f32(x: f32) -> Self::Floats;
    fn splat_i16(x: i16) -> Self;
    fn splat_u8(x: u8) -> Self;
    /// Bytes, and pairs of bytes, in turns, of the lower and upper halves of 16 bytes.
    fn low8(self, other: Self) -> Self;
    fn high8(self, other: Self) -> Self;
    fn low16(self, other: Self) -> Self;
    fn high16(self, other: Self) -> Self;
    /// Of each 16 bytes those that `order` names, 0 for names from 128 on.
    fn shuffle(self, order: Self) -> Self;
    /// 16 bytes, for each 16.
    fn lanes(from: [u8; 16]) -> Self;
    /// `self + Σ u8 · i8` of four bytes.
    fn dot(self, x: Self, w: Self) -> Self;
    fn to_f32(self) -> Self::Floats;
    fn to_i32(x: Self::Floats) -> Self;
    fn fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn max(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn min(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// To half the bits, limited, in turns of 16 bytes.
    fn pack_i16(self, other: Self) -> Self;
    fn pack_u8(self, other: Self) -> Self;
    /// Limited sums.
    fn add_i16(self, other: Self) -> Self;
    fn max_u8(self, other: Self) -> Self;
}

macro_rules! vector {
    (
        $v:ty, $floats:ty, $bytes:literal, $mask:ty;
        $zero:ident $load:ident $store:ident $loadu:ident $loadu_ps:ident $set_ps:ident
        $set16:ident $set8:ident $low8:ident $high8:ident $low16:ident $high16:ident
        $shuffle:ident $dot:ident $to_f32:ident $to_i32:ident $fma:ident $mul:ident $max:ident
        $min:ident $pack16:ident $pack8:ident $add16:ident $max8:ident;
        $lanes:expr
    ) => {
        // SAFETY, of every block below: called only in functions of the set, which run where it
        // has been detected; loads are of as many bytes as the assertions say, or as masks say.
        #[allow(clippy::undocumented_unsafe_blocks)] // the line above
        impl Vector for $v {
            type Floats = $floats;

            #[inline(always)]
            fn zero() -> Self {
                unsafe { $zero() }
            }

            #[inline(always)]
            unsafe fn load(from: *const u8, mask: u64) -> Self {
                unsafe { $load(mask as $mask, from.cast()) }
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut u8, mask: u64) {
                unsafe { $store(to.cast(), mask as $mask, self) }
            }

            #[inline(always)]
            fn of<T: Copy>(from: &[T]) -> Self {
                assert!(size_of_val(from) >= $bytes);
                unsafe { $loadu(from.as_ptr().cast()) }
            }

            #[inline(always)]
            fn floats(from: &[f32]) -> $floats {
                assert!(size_of_val(from) >= $bytes);
                unsafe { $loadu_ps(from.as_ptr()) }
            }

            #[inline(always)]
            fn splat_f32(x: f32) -> $floats {
                unsafe { $set_ps(x) }
            }

            #[inline(always)]
            fn splat_i16(x: i16) -> Self {
                unsafe { $set16(x) }
            }

            #[inline(always)]
            fn splat_u8(x: u8) -> Self {
                unsafe { $set8(x as i8) }
            }

            #[inline(always)]
            fn low8(self, other: Self) -> Self {
                unsafe { $low8(self, other) }
            }

            #[inline(always)]
            fn high8(self, other: Self) -> Self {
                unsafe { $high8(self, other) }
            }

            #[inline(always)]
            fn low16(self, other: Self) -> Self {
                unsafe { $low16(self, other) }
            }

            #[inline(always)]
            fn high16(self, other: Self) -> Self {
                unsafe { $high16(self, other) }
            }

            #[inline(always)]
            fn shuffle(self, order: Self) -> Self {
                unsafe { $shuffle(self, order) }
            }

            #[inline(always)]
            fn lanes(from: [u8; 16]) -> Self {
                unsafe {
                    let lane = _mm_loadu_si128(from.as_ptr().cast());
                    $lanes(lane)
                }
            }

            #[inline(always)]
            fn dot(self, x: Self, w: Self) -> Self {
                unsafe { $dot(self, x, w) }
            }

            #[inline(always)]
            fn to_f32(self) -> $floats {
                unsafe { $to_f32(self) }
            }

            #[inline(always)]
            fn to_i32(x: $floats) -> Self {
                unsafe { $to_i32(x) }
            }

            #[inline(always)]
            fn fma(a: $floats, b: $floats, c: $floats) -> $floats {
                unsafe { $fma(a, b, c) }
            }

            #[inline(always)]
            fn mul(a: $floats, b: $floats) -> $floats {
                unsafe { $mul(a, b) }
            }

            #[inline(always)]
            fn max(a: $floats, b: $floats) -> $floats {
                unsafe { $max(a, b) }
            }

            #[inline(always)]
            fn min(a: $floats, b: $floats) -> $floats {
                unsafe { $min(a, b) }
            }

            #[inline(always)]
            fn pack_i16(self, other: Self) -> Self {
                unsafe { $pack16(self, other) }
            }

            #[inline(always)]
            fn pack_u8(self, other: Self) -> Self {
                unsafe { $pack8(self, other) }
            }

            #[inline(always)]
            fn add_i16(self, other: Self) -> Self {
                unsafe { $add16(self, other) }
            }

            #[inline(always)]
            fn max_u8(self, other: Self) -> Self {
                unsafe { $max8(self, other) }
            }
        }
    };
}

vector!(
    __m512i, __m512, 64, u64;
    _mm512_setzero_si512 _mm512_maskz_loadu_epi8 _mm512_mask_storeu_epi8 _mm512_loadu_si512
    _mm512_loadu_ps _mm512_set1_ps _mm512_set1_epi16 _mm512_set1_epi8 _mm512_unpacklo_epi8
    _mm512_unpackhi_epi8 _mm512_unpacklo_epi16 _mm512_unpackhi_epi16 _mm512_shuffle_epi8
    _mm512_dpbusd_epi32 _mm512_cvtepi32_ps _mm512_cvtps_epi32 _mm512_fmadd_ps _mm512_mul_ps
    _mm512_max_ps _mm512_min_ps _mm512_packs_epi32 _mm512_packus_epi16 _mm512_adds_epi16
    _mm512_max_epu8;
    _mm512_broadcast_i32x4
);
vector!(
    __m256i, __m256, 32, u32;
    _mm256_setzero_si256 _mm256_maskz_loadu_epi8 _mm256_mask_storeu_epi8 _mm256_loadu_si256
    _mm256_loadu_ps _mm256_set1_ps _mm256_set1_epi16 _mm256_set1_epi8 _mm256_unpacklo_epi8
    _mm256_unpackhi_epi8 _mm256_unpacklo_epi16 _mm256_unpackhi_epi16 _mm256_shuffle_epi8
    _mm256_dpbusd_epi32 _mm256_cvtepi32_ps _mm256_cvtps_epi32 _mm256_fmadd_ps _mm256_mul_ps
    _mm256_max_ps _mm256_min_ps _mm256_packs_epi32 _mm256_packus_epi16 _mm256_adds_epi16
    _mm256_max_epu8;
    _mm256_broadcastsi128_si256
);
vector!(
    __m128i, __m128, 16, u16;
    _mm_setzero_si128 _mm_maskz_loadu_epi8 _mm_mask_storeu_epi8 _mm_loadu_si128
    _mm_loadu_ps _mm_set1_ps _mm_set1_epi16 _mm_set1_epi8 _mm_unpacklo_epi8
    _mm_unpackhi_epi8 _mm_unpacklo_epi16 _mm_unpackhi_epi16 _mm_shuffle_epi8
    _mm_dpbusd_epi32 _mm_cvtepi32_ps _mm_cvtps_epi32 _mm_fmadd_ps _mm_mul_ps
    _mm_max_ps _mm_min_ps _mm_packs_epi32 _mm_packus_epi16 _mm_adds_epi16
    _mm_max_epu8;
    std::convert::identity
);
