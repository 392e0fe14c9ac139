//! Four lanes in plain Rust: what the compiler makes vectors of on any machine.

use super::Lanes;

/// Every machine has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Portable;

const N: usize = 4;

/// One operation on each lane.
#[inline(always)]
fn each(a: [f32; N], b: [f32; N], f: impl Fn(f32, f32) -> f32) -> [f32; N] {
    let mut out = [0.0; N];
    for (out, (&a, &b)) in out.iter_mut().zip(a.iter().zip(&b)) {
        *out = f(a, b);
    }
    out
}

impl Lanes for Portable {
    const N: usize = N;
    const ROWS: usize = 4;
    type V = [f32; N];
    type M = usize;

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; N] {
        [x; N]
    }

    #[inline(always)]
    unsafe fn load(self, x: *const f32) -> [f32; N] {
        // SAFETY: the caller's promise; arrays of f32 need no other alignment.
        unsafe { x.cast::<[f32; N]>().read() }
    }

    #[inline(always)]
    fn first(self, n: usize) -> usize {
        n.min(N)
    }

    #[inline(always)]
    unsafe fn load_part(self, x: *const f32, part: usize) -> [f32; N] {
        let mut v = [0.0; N];
        for (i, v) in v.iter_mut().enumerate().take(part) {
            // SAFETY: the caller's promise.
            *v = unsafe { *x.add(i) };
        }
        v
    }

    #[inline(always)]
    unsafe fn store_part(self, v: [f32; N], to: *mut f32, part: usize) {
        for (i, &v) in v.iter().enumerate().take(part) {
            // SAFETY: the caller's promise.
            unsafe { *to.add(i) = v };
        }
    }

    #[inline(always)]
    fn add(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each(a, b, |a, b| a / b)
    }

    /// Not fused: a machine without the instruction would call a function for it.
    #[inline(always)]
    fn fma(self, a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        self.add(self.mul(a, b), c)
    }

    #[inline(always)]
    fn max(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        each(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn exp2_whole(self, n: [f32; N]) -> [f32; N] {
        each(n, n, |n, _| {
            // NaN has no whole number and must stay what it is.
            f32::from_bits(((n as i32 + 127) as u32) << 23) + n * 0.0
        })
    }
}
