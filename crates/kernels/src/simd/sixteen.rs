//! Sixteen lanes of f32: a vector of AVX-512, or two of eight.

use super::{LANES, Simd};

/// What attention needs of vectors of sixteen f32; as [`Simd`] in all else.
pub(crate) trait Sixteen: Copy {
    /// Sixteen f32.
    type W: Copy;
    /// Queries that are computed side by side, so that their sums fit the registers.
    const QUERIES: usize;

    fn splat(self, x: f32) -> Self::W;
    fn load(self, x: &[f32; 16]) -> Self::W;
    fn store(self, v: Self::W, out: &mut [f32; 16]);
    /// Sixteen f16, given as their bits.
    fn load_f16(self, x: &[u16; 16]) -> Self::W;
    /// Sixteen bf16, given as their bits.
    fn load_bf16(self, x: &[u16; 16]) -> Self::W;
    /// Sixteen integers.
    fn load_i8(self, x: &[i8; 16]) -> Self::W;
    /// Four bits of each word, those of the `place`-th four, as numbers.
    fn nibble(self, words: &[u32; 16], place: usize) -> Self::W;
    /// The low and the high halves of words, as f16.
    fn two_f16(self, words: &[u32; 16]) -> [Self::W; 2];
    /// As [`Simd::butterfly`], of sixteen lanes.
    fn butterfly<const STRIDE: usize>(self, v: Self::W) -> Self::W;
    fn add(self, a: Self::W, b: Self::W) -> Self::W;
    fn sub(self, a: Self::W, b: Self::W) -> Self::W;
    fn mul(self, a: Self::W, b: Self::W) -> Self::W;
    fn fma(self, a: Self::W, b: Self::W, c: Self::W) -> Self::W;
    fn max(self, a: Self::W, b: Self::W) -> Self::W;
    /// As [`Simd::exp`].
    fn exp(self, x: Self::W) -> Self::W;
    /// As [`Simd::tanh`].
    fn tanh(self, x: Self::W) -> Self::W;
    /// The largest lane.
    fn max_lane(self, v: Self::W) -> f32;
    /// The sum of all lanes, in one order.
    fn sum_lanes(self, v: Self::W) -> f32;
    /// Asks for a cache line; a hint.
    fn prefetch<T>(self, at: &T);
}

/// Two vectors of eight.
#[derive(Clone, Copy)]
pub(crate) struct Pair<S>(pub(crate) S);

#[inline(always)]
fn halves<T>(x: &[T; 16]) -> [&[T; LANES]; 2] {
    let [a, b] = x.as_chunks::<LANES>().0 else {
        unreachable!("sixteen are two times eight")
    };
    [a, b]
}

impl<S: Simd> Sixteen for Pair<S> {
    type W = [S::V; 2];
    const QUERIES: usize = 1;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::W {
        [self.0.splat(x); 2]
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::W {
        let [a, b] = halves(x);
        [self.0.load(a), self.0.load(b)]
    }

    #[inline(always)]
    fn store(self, [a, b]: Self::W, out: &mut [f32; 16]) {
        let (out, _) = out.as_chunks_mut::<LANES>();
        self.0.store(a, &mut out[0]);
        self.0.store(b, &mut out[1]);
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; 16]) -> Self::W {
        let [a, b] = halves(x);
        [self.0.load_f16(a), self.0.load_f16(b)]
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u16; 16]) -> Self::W {
        self.load(&x.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }

    #[inline(always)]
    fn load_i8(self, x: &[i8; 16]) -> Self::W {
        self.load(&x.map(f32::from))
    }

    #[inline(always)]
    fn nibble(self, words: &[u32; 16], place: usize) -> Self::W {
        self.load(&words.map(|word| (word >> (4 * place) & 15) as i32 as f32))
    }

    #[inline(always)]
    fn two_f16(self, words: &[u32; 16]) -> [Self::W; 2] {
        [
            self.load_f16(&words.map(|word| word as u16)),
            self.load_f16(&words.map(|word| (word >> 16) as u16)),
        ]
    }

    #[inline(always)]
    fn butterfly<const STRIDE: usize>(self, [a, b]: Self::W) -> Self::W {
        match STRIDE {
            LANES => [self.0.add(a, b), self.0.sub(a, b)],
            _ => [self.0.butterfly::<STRIDE>(a), self.0.butterfly::<STRIDE>(b)],
        }
    }

    #[inline(always)]
    fn add(self, a: Self::W, b: Self::W) -> Self::W {
        [self.0.add(a[0], b[0]), self.0.add(a[1], b[1])]
    }

    #[inline(always)]
    fn sub(self, a: Self::W, b: Self::W) -> Self::W {
        [self.0.sub(a[0], b[0]), self.0.sub(a[1], b[1])]
    }

    #[inline(always)]
    fn mul(self, a: Self::W, b: Self::W) -> Self::W {
        [self.0.mul(a[0], b[0]), self.0.mul(a[1], b[1])]
    }

    #[inline(always)]
    fn fma(self, a: Self::W, b: Self::W, c: Self::W) -> Self::W {
        [self.0.fma(a[0], b[0], c[0]), self.0.fma(a[1], b[1], c[1])]
    }

    #[inline(always)]
    fn max(self, a: Self::W, b: Self::W) -> Self::W {
        [self.0.max(a[0], b[0]), self.0.max(a[1], b[1])]
    }

    #[inline(always)]
    fn exp(self, x: Self::W) -> Self::W {
        [self.0.exp(x[0]), self.0.exp(x[1])]
    }

    #[inline(always)]
    fn tanh(self, x: Self::W) -> Self::W {
        [self.0.tanh(x[0]), self.0.tanh(x[1])]
    }

    #[inline(always)]
    fn max_lane(self, v: Self::W) -> f32 {
        self.0.max_lane(self.0.max(v[0], v[1]))
    }

    #[inline(always)]
    fn sum_lanes(self, v: Self::W) -> f32 {
        let zero = self.0.zero();
        let [low, high, ..] = self.0.sum4([v[0], v[1], zero, zero]);
        low + high
    }

    #[inline(always)]
    fn prefetch<T>(self, _: &T) {}
}
