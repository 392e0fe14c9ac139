//! Eight lanes of f32, on whatever instruction set the machine has.
//! Kernels are written once over [`Simd`]; `isa.rs` compiles them for each set.
//! They pass no vectors to closures, which would not be compiled for the set.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
mod sixteen;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;
pub(crate) use sixteen::{Pair, Sixteen};

/// Lanes of one vector.
pub(crate) const LANES: usize = 8;

/// An instruction set with vectors of eight f32. A value of the type is the proof that the
/// machine has the set, so the operations are safe.
///
/// They only become single instructions when inlined into a function that is compiled for the
/// set: everything between that function and them is `#[inline(always)]`.
pub(crate) trait Simd: Copy {
    /// Eight f32.
    type V: Copy;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, x: &[f32; LANES]) -> Self::V;
    fn store(self, v: Self::V, out: &mut [f32; LANES]);
    /// Eight f16, given as their bits.
    fn load_f16(self, x: &[u16; LANES]) -> Self::V;
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
    /// `x` where `a < b`, else `y`.
    fn if_less(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// `2ⁿ` of whole numbers from −126 to 127; 0 of −127, infinity of 128.
    fn exp2_whole(self, n: Self::V) -> Self::V;
    /// Where a lane's number has the bit `STRIDE`, the lane without it minus this one; elsewhere
    /// the sum of the two.
    #[inline(always)]
    fn butterfly<const STRIDE: usize>(self, v: Self::V) -> Self::V {
        let mut from = [0.0; LANES];
        self.store(v, &mut from);
        let mut to = [0.0; LANES];
        for (i, to) in to.iter_mut().enumerate() {
            *to = match i & STRIDE {
                0 => from[i] + from[i ^ STRIDE],
                _ => from[i ^ STRIDE] - from[i],
            };
        }
        self.load(&to)
    }
    /// Sums of the lanes of four vectors, each `((0+1)+(2+3)) + ((4+5)+(6+7))`.
    fn sum4(self, v: [Self::V; 4]) -> [f32; 4];

    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// Loads fewer than eight values; the other lanes are 0.
    #[inline(always)]
    fn load_part(self, x: &[f32]) -> Self::V {
        let mut lanes = [0.0; LANES];
        lanes[..x.len()].copy_from_slice(x);
        self.load(&lanes)
    }

    /// The largest lane.
    #[inline(always)]
    fn max_lane(self, v: Self::V) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        let [a, b, c, d, e, f, g, h] = lanes;
        a.max(b).max(c.max(d)).max(e.max(f).max(g.max(h)))
    }

    /// The exponential, to 2e-7 relative; 0 below −87.7, infinity above 88.4.
    ///
    /// Range reduction and polynomial after Cephes' `expf` (S. Moshier).
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to whole numbers
        let x = self.max(self.splat(-88.0), self.min(self.splat(89.0), x));
        let n = self.fma(x, self.splat(std::f32::consts::LOG2_E), self.splat(ROUND));
        let n = self.sub(n, self.splat(ROUND));
        // ln 2 in two parts, the first with few bits so that its products are exact.
        let r = self.fma(n, self.splat(-0.693_359_4), x);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_1e-4);
        for k in [
            1.398_2e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            0.5,
        ] {
            p = self.fma(p, r, self.splat(k));
        }
        let y = self.add(self.fma(p, self.mul(r, r), r), self.splat(1.0));
        self.mul(y, self.exp2_whole(n))
    }

    /// `1 / (1 + e⁻ˣ)`.
    #[inline(always)]
    fn sigmoid(self, x: Self::V) -> Self::V {
        let one = self.splat(1.0);
        self.div(one, self.add(one, self.exp(self.sub(self.zero(), x))))
    }

    /// The hyperbolic tangent, to 3e-7 relative. Polynomial near 0 after Cephes' `tanhf`.
    #[inline(always)]
    fn tanh(self, x: Self::V) -> Self::V {
        let z = self.mul(x, x);
        let mut p = self.splat(-5.704_988_7e-3);
        for k in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
            p = self.fma(p, z, self.splat(k));
        }
        let near = self.fma(self.mul(p, z), x, x);
        let e = self.exp(self.add(x, x));
        let far = self.sub(
            self.splat(1.0),
            self.div(self.splat(2.0), self.add(e, self.splat(1.0))),
        );
        self.if_less(z, self.splat(0.625 * 0.625), near, far)
    }
}

/// Asks for the cache line of an address, which need not be a valid one.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction is on every such machine, and never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `check` on every set that this machine has.
    fn on_all(check: impl Fn(&dyn Fn(Op, [f32; 8]) -> [f32; 8])) {
        check(&|op, x| apply(Portable, op, x));
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = Avx2::detect() {
            check(&|op, x| apply(avx2, op, x));
        }
    }

    #[derive(Clone, Copy)]
    enum Op {
        Exp,
        Tanh,
        Sum,
        Max,
    }

    fn apply<S: Simd>(s: S, op: Op, x: [f32; 8]) -> [f32; 8] {
        let mut out = [0.0; 8];
        let v = s.load(&x);
        match op {
            Op::Exp => s.store(s.exp(v), &mut out),
            Op::Tanh => s.store(s.tanh(v), &mut out),
            Op::Sum => out[..4].copy_from_slice(&s.sum4([v, s.zero(), v, v])),
            Op::Max => out = [s.max_lane(v); 8],
        }
        out
    }

    #[test]
    fn exp_is_within_two_units_of_the_last_place() {
        on_all(|run| {
            for i in -8700..=8800 {
                let x = i as f32 * 0.01 + 0.003;
                let (y, exact) = (run(Op::Exp, [x; 8])[5], f64::from(x).exp());
                assert!(
                    (f64::from(y) - exact).abs() <= 2.5e-7 * exact,
                    "exp({x}) = {y}"
                );
            }
            let strange = [
                0.0,
                f32::NEG_INFINITY,
                f32::INFINITY,
                -1e30,
                1e30,
                -88.0,
                89.0,
                f32::NAN,
            ];
            let y = run(Op::Exp, strange);
            assert_eq!(
                y[..7],
                [
                    1.0,
                    0.0,
                    f32::INFINITY,
                    0.0,
                    f32::INFINITY,
                    0.0,
                    f32::INFINITY
                ]
            );
            assert!(y[7].is_nan());
        });
    }

    #[test]
    fn tanh_is_close_and_odd_enough() {
        on_all(|run| {
            for i in -2000..=2000 {
                let x = i as f32 * 0.01 + 1e-5;
                let (y, exact) = (run(Op::Tanh, [x; 8])[0], f64::from(x).tanh());
                assert!(
                    (f64::from(y) - exact).abs() <= 4e-7 * exact.abs(),
                    "tanh({x}) = {y}"
                );
            }
            let y = run(
                Op::Tanh,
                [
                    0.0,
                    100.0,
                    -100.0,
                    f32::INFINITY,
                    f32::NEG_INFINITY,
                    1e-30,
                    0.0,
                    f32::NAN,
                ],
            );
            assert_eq!(y[..6], [0.0, 1.0, -1.0, 1.0, -1.0, 1e-30]);
            assert!(y[7].is_nan());
        });
    }

    #[test]
    fn lanes_sum_in_the_stated_order() {
        on_all(|run| {
            let x = [1e8, 1.0, -1e8, 0.5, 3e7, 0.25, -3e7, 7.0];
            let expected = ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
            assert_eq!(run(Op::Sum, x)[..4], [expected, 0.0, expected, expected]);
            assert_eq!(run(Op::Max, x)[0], 1e8);
        });
    }
}
