//! Vectors of f32, as wide as the machine's; kernels are written once over [`Lanes`].
//!
//! A [`Kernel`] is work that is compiled once for each [`Set`] of instructions and run by the one
//! that was chosen. Everything between [`Set::run`] and the vectors is `#[inline(always)]`, and no
//! vector goes through a closure: it would not be compiled for the set.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use avx512::Avx512;
use portable::Portable;

/// Writes `$body` out for each number below `$n`, 17 at most. Vectors of an array stay in registers
/// only while constants number them, and the compiler unrolls only small loops by itself.
macro_rules! unroll {
    ($i:ident < $n:expr => $body:block) => {
        unroll!(@each $i, $n, $body; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16)
    };
    (@each $i:ident, $n:expr, $body:block; $($number:literal)*) => {
        $(if $number < $n {
            let $i: usize = const { $number };
            $body
        })*
    };
}
pub(crate) use unroll;

/// An instruction set; a value other than `Portable` is only made where the machine has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// Every machine.
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

/// Work on vectors. Results of different sets may differ in their last bits.
pub(crate) trait Kernel {
    /// Does it; to be `#[inline(always)]`.
    fn run<L: Lanes>(self, l: L);
}

impl Set {
    /// The best that this machine has.
    pub(crate) fn best() -> Set {
        static BEST: OnceLock<Set> = OnceLock::new();
        *BEST.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            {
                let wide = Avx512::detect().map(Set::Avx512);
                if let Some(set) = wide.or_else(|| Avx2::detect().map(Set::Avx2)) {
                    return set;
                }
            }
            Set::Portable
        })
    }

    /// All that this machine has.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Set> {
        let mut all = vec![Set::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Avx2::detect().map(Set::Avx2));
            all.extend(Avx512::detect().map(Set::Avx512));
        }
        all
    }

    /// f32 in a vector.
    pub(crate) fn lanes(self) -> usize {
        match self {
            Set::Portable => Portable::N,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => Avx2::N,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(_) => Avx512::N,
        }
    }

    /// See [`Lanes::ROWS`].
    pub(crate) fn rows(self) -> usize {
        match self {
            Set::Portable => Portable::ROWS,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => Avx2::ROWS,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(_) => Avx512::ROWS,
        }
    }

    /// Runs `kernel` as compiled for the set.
    #[inline(always)]
    pub(crate) fn run<K: Kernel>(self, kernel: K) {
        match self {
            Set::Portable => kernel.run(Portable),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the value in the set is the proof that the machine has it.
            Set::Avx2(proof) => unsafe { avx2::run(proof, kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Set::Avx512(proof) => unsafe { avx512::run(proof, kernel) },
        }
    }
}

/// An instruction set with vectors of [`Lanes::N`] f32. A value of the type is the proof that the
/// machine has the set.
pub(crate) trait Lanes: Copy {
    /// Values of one vector.
    const N: usize;
    /// Rows of a tile of two vectors that the registers hold with all that belongs to it.
    const ROWS: usize;
    /// `N` f32.
    type V: Copy;
    /// Which lanes take part.
    type M: Copy;

    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// `N` values can be read there.
    unsafe fn load(self, x: *const f32) -> Self::V;
    /// The first `n` lanes; all of them when there are no more.
    fn first(self, n: usize) -> Self::M;
    /// 0 in lanes that take no part.
    ///
    /// # Safety
    /// Values of the lanes that take part can be read there.
    unsafe fn load_part(self, x: *const f32, part: Self::M) -> Self::V;
    /// # Safety
    /// Values of the lanes that take part can be written there; the others stay.
    unsafe fn store_part(self, v: Self::V, to: *mut f32, part: Self::M);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`, fused where the machine can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a` where it is greater, else `b`: `b` also where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a` where it is less, else `b`: `b` also where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `2ⁿ` of whole numbers from −126 to 127.
    fn exp2_whole(self, n: Self::V) -> Self::V;
    /// `1 / x` of numbers from 1 to 2¹²⁰, to 2e-7 relative.
    #[inline(always)]
    fn reciprocal(self, x: Self::V) -> Self::V {
        self.div(self.splat(1.0), x)
    }

    /// `x` brought between two bounds; NaN stays.
    #[inline(always)]
    fn clamp(self, x: Self::V, low: Self::V, high: Self::V) -> Self::V {
        self.min(high, self.max(low, x))
    }

    /// `(2ⁿ, eʳ − 1)` with `eˣ = 2ⁿ eʳ` and `|r|` at most half of ln 2, of `|x|` at most 80.
    #[inline(always)]
    fn exp_parts(self, x: Self::V) -> (Self::V, Self::V) {
        const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to whole numbers
        let n = self.fma(x, self.splat(std::f32::consts::LOG2_E), self.splat(ROUND));
        let n = self.sub(n, self.splat(ROUND));
        // ln 2 in two parts; products of the first, of 10 bits, are exact.
        let r = self.fma(n, self.splat(-0.693_359_4), x);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        // The exponential's series: what follows the seventh power is below 6e-9.
        let mut p = self.splat(1.0 / 5040.0);
        for factorial in [720.0, 120.0, 24.0, 6.0, 2.0] {
            p = self.fma(p, r, self.splat(1.0 / factorial));
        }
        (self.exp2_whole(n), self.fma(self.mul(r, r), p, r))
    }

    /// The exponential, to 2e-7 relative; that of −80 and 80 beyond them.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        let x = self.clamp(x, self.splat(-80.0), self.splat(80.0));
        let (whole, rest) = self.exp_parts(x);
        self.fma(whole, rest, whole)
    }

    /// `1 / (1 + e⁻ˣ)`.
    #[inline(always)]
    fn sigmoid(self, x: Self::V) -> Self::V {
        let e = self.exp(self.sub(self.splat(0.0), x));
        self.reciprocal(self.add(self.splat(1.0), e))
    }

    /// The hyperbolic tangent: `d / (d + 2)` with `d = e²ˣ − 1`, which keeps the digits of small x.
    #[inline(always)]
    fn tanh(self, x: Self::V) -> Self::V {
        let x = self.clamp(x, self.splat(-20.0), self.splat(20.0));
        let (whole, rest) = self.exp_parts(self.add(x, x));
        let d = self.fma(whole, rest, self.sub(whole, self.splat(1.0)));
        self.div(d, self.add(d, self.splat(2.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Tanh,
        Sigmoid,
    }

    struct Each<'a>(Function, &'a [f32], &'a mut [f32]);

    impl Kernel for Each<'_> {
        #[inline(always)]
        fn run<L: Lanes>(self, l: L) {
            for (x, y) in self.1.chunks(L::N).zip(self.2.chunks_mut(L::N)) {
                let part = l.first(x.len());
                // SAFETY: the part is as long as the chunks.
                let v = unsafe { l.load_part(x.as_ptr(), part) };
                let v = match self.0 {
                    Function::Exp => l.exp(v),
                    Function::Tanh => l.tanh(v),
                    Function::Sigmoid => l.sigmoid(v),
                };
                // SAFETY: as above.
                unsafe { l.store_part(v, y.as_mut_ptr(), part) };
            }
        }
    }

    fn hold(function: Function, exact: fn(f64) -> f64, reach: i32, bound: f64) {
        let x: Vec<f32> = (-1000 * reach..=1000 * reach)
            .map(|i| i as f32 * 0.001 + 1e-5)
            .collect();
        for set in Set::all() {
            let mut y = vec![0.0; x.len()];
            set.run(Each(function, &x, &mut y));
            for (&x, &y) in x.iter().zip(&y) {
                let exact = exact(f64::from(x));
                let error = (f64::from(y) - exact).abs();
                assert!(error <= bound * exact.abs(), "{set:?}: {x} gives {y}");
            }
            let mut y = [0.0];
            set.run(Each(function, &[f32::NAN], &mut y));
            assert!(y[0].is_nan());
        }
    }

    #[test]
    fn exponentials_are_within_two_units_of_the_last_place() {
        hold(Function::Exp, f64::exp, 79, 2e-7);
        hold(Function::Sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 79, 3e-7);
        hold(Function::Tanh, f64::tanh, 25, 4e-7);
    }
}
