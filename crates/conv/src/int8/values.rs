//! Value by value: between bytes and real numbers, sums, products, and tables.

use sedge_kernels::Team;

use crate::{Picture, PictureMut};

use super::finish::quantised;
use super::lanes::Lanes;
use super::{Quant, pixels, sets};

/// What is made of two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pair {
    /// Their sum.
    Add,
    /// Their product.
    Mul,
}

/// `y`'s bytes are those nearest to `x`'s numbers, as [`Quant::of`].
///
/// # Panics
/// When the shapes differ.
pub fn quantize(x: Picture<'_>, quant: Quant, y: &mut PictureMut<'_, u8>, team: &Team) {
    assert_eq!(x.shape(), y.shape());
    let set = sets::best();
    pixels::each(y, team, &|pixel, out| {
        // SAFETY: the set is this machine's.
        unsafe { (set.quantize)(x.pixel(pixel), quant, out) }
    });
}

/// `y` is what `x`'s bytes mean.
///
/// # Panics
/// When the shapes differ.
pub fn dequantize(x: Picture<'_, u8>, quant: Quant, y: &mut PictureMut<'_>, team: &Team) {
    assert_eq!(x.shape(), y.shape());
    let set = sets::best();
    pixels::each(y, team, &|pixel, out| {
        // SAFETY: the set is this machine's.
        unsafe { (set.dequantize)(x.pixel(pixel), quant, out) }
    });
}

/// The sum or product of `a` and `b`, each with what its bytes mean. `b` has `a`'s shape, or is
/// one pixel of each picture, for all of its pixels: so a product with it excites what a net has
/// squeezed.
///
/// # Panics
/// When shapes do not fit.
pub fn pair(
    pair: Pair,
    a: (Picture<'_, u8>, Quant),
    b: (Picture<'_, u8>, Quant),
    y: (&mut PictureMut<'_, u8>, Quant),
    team: &Team,
) {
    let (shape, one) = (a.0.shape(), b.0.shape());
    assert_eq!(shape, y.0.shape());
    assert!(one == shape || (one.n, one.h, one.w, one.c) == (shape.n, 1, 1, shape.c));
    let set = sets::best();
    let each = if one == shape { 1 } else { shape.h * shape.w };
    let quants = [a.1, b.1, y.1];
    pixels::each(y.0, team, &|pixel, out| {
        let (a, b) = (a.0.pixel(pixel), b.0.pixel(pixel / each));
        // SAFETY: the set is this machine's.
        unsafe { (set.pair)(pair, [a, b], quants, out) }
    });
}

/// Values of which there are 16, or as many as are left.
fn sixteen<T: Copy + Default>(from: &[T]) -> [T; 16] {
    match from.first_chunk() {
        Some(from) => *from,
        None => {
            let mut out = [T::default(); 16];
            out[..from.len()].copy_from_slice(from);
            out
        }
    }
}

/// Defines [`quantize`].
#[inline(always)]
pub(super) unsafe fn quantize_row<L: Lanes>(x: &[f32], quant: Quant, out: &mut [u8]) {
    for (x, out) in x.chunks(16).zip(out.chunks_mut(16)) {
        let steps = L::load(&sixteen(x)).div(L::splat(quant.scale));
        out.copy_from_slice(&quantised(steps, quant.zero, 0, 255)[..out.len()]);
    }
}

/// Defines [`dequantize`].
#[inline(always)]
pub(super) unsafe fn dequantize_row<L: Lanes>(x: &[u8], quant: Quant, out: &mut [f32]) {
    for (x, out) in x.chunks(16).zip(out.chunks_mut(16)) {
        let steps = L::from_u8(&sixteen(x)).add(L::splat(-f32::from(quant.zero)));
        let mut real = [0.0; 16];
        steps.mul(L::splat(quant.scale)).store(&mut real);
        out.copy_from_slice(&real[..out.len()]);
    }
}

/// Defines [`pair`]: scales are in steps of the result beforehand.
#[inline(always)]
pub(super) unsafe fn pair_row<L: Lanes>(
    pair: Pair,
    [a, b]: [&[u8]; 2],
    [of_a, of_b, of_out]: [Quant; 3],
    out: &mut [u8],
) {
    let whole = |x: &[u8], zero: u8| L::from_u8(&sixteen(x)).add(L::splat(-f32::from(zero)));
    let (step_a, step_b) = (of_a.scale / of_out.scale, of_b.scale / of_out.scale);
    let step = of_a.scale * of_b.scale / of_out.scale;
    let rows = a.chunks(16).zip(b.chunks(16));
    for ((a, b), out) in rows.zip(out.chunks_mut(16)) {
        let (a, b) = (whole(a, of_a.zero), whole(b, of_b.zero));
        let steps = match pair {
            Pair::Add => a.fma(L::splat(step_a), b.mul(L::splat(step_b))),
            Pair::Mul => a.mul(b).mul(L::splat(step)),
        };
        out.copy_from_slice(&quantised(steps, of_out.zero, 0, 255)[..out.len()]);
    }
}
