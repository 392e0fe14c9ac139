//! The values that a block's codes can have: fitted to what is to be stored before each value is
//! rounded to one of them. Rounding may then spread its error over values that are not rounded
//! yet, as GPTQ does (Frantar et al., 2022, arXiv 2210.17323).
#![allow(clippy::needless_range_loop)] // one index walks several arrays

use half::f16;

use crate::DType;
use crate::isa::isa;

use super::decode::IQ4;
use super::encode::{inverse as to_inverse, tame, to_half};
use super::write::{Header, write};

/// Most values of a block.
const MOST: usize = 256;

/// The grid of one block.
#[derive(Debug, Clone)]
pub struct Grid {
    shape: Shape,
    /// Of each sub-block: `value = scale · level − minimum`.
    scales: [f32; 16],
    inverses: [f32; 16],
    minima: [f32; 16],
    header: Header,
}

/// What a type's blocks look like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    dtype: DType,
    /// Values of a block, and of a sub-block, which has a scale of its own.
    len: usize,
    sub: usize,
    levels: Levels,
    minima: bool,
    /// The largest magnitudes of scales and minima that are small integers times one f16: of
    /// negative scales, of positive ones, of minima.
    nested: Option<(i32, i32, i32)>,
}

/// What codes stand for before they are scaled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Levels {
    /// All integers of a range.
    Whole(i32, i32),
    /// The sixteen values of [`IQ4`].
    Iq4,
}

impl Shape {
    fn of(dtype: DType) -> Option<Shape> {
        let shape = |len, sub, levels, minima, nested| {
            Some(Shape {
                dtype,
                len,
                sub,
                levels,
                minima,
                nested,
            })
        };
        let whole = Levels::Whole;
        match dtype {
            DType::Q8_0 => shape(32, 32, whole(-127, 127), false, None),
            DType::Q4_0 => shape(32, 32, whole(-8, 7), false, None),
            DType::Q5_0 => shape(32, 32, whole(-16, 15), false, None),
            DType::Q4_1 => shape(32, 32, whole(0, 15), true, None),
            DType::Q5_1 => shape(32, 32, whole(0, 31), true, None),
            DType::Iq4Nl => shape(32, 32, Levels::Iq4, false, None),
            DType::Q2K => shape(256, 16, whole(0, 3), true, Some((0, 15, 15))),
            DType::Q3K => shape(256, 16, whole(-4, 3), false, Some((32, 31, 0))),
            DType::Q4K => shape(256, 32, whole(0, 15), true, Some((0, 63, 63))),
            DType::Q5K => shape(256, 32, whole(0, 31), true, Some((0, 63, 63))),
            DType::Q6K => shape(256, 16, whole(-32, 31), false, Some((128, 127, 0))),
            DType::Iq4Xs => shape(256, 32, Levels::Iq4, false, Some((32, 31, 0))),
            DType::F32 | DType::F16 | DType::BF16 => None,
            _ => {
                let bits = dtype.bipolar_bits()?;
                shape(128, 128, whole(0, (1 << bits) - 1), false, None)
            }
        }
    }
}

impl Grid {
    /// Whether values of a type are rounded to a grid.
    pub fn is_of(dtype: DType) -> bool {
        Shape::of(dtype).is_some()
    }

    /// Fits a grid to a block's values, so that the squares of the errors, weighed by each
    /// value's importance, are small. Without importances larger values matter a little more.
    /// Values that are not finite count as the largest that can be stored, NaN as 0.
    ///
    /// # Panics
    /// When the type has no grid, or the values, or importances, are not a block's.
    pub fn fit(dtype: DType, x: &[f32], importance: Option<&[f32]>) -> Grid {
        let shape = Shape::of(dtype).expect("plain types have no grid");
        assert_eq!(x.len(), shape.len, "values of a block of {dtype}");
        assert!(importance.is_none_or(|w| w.len() == x.len()));
        (isa().fit)(shape, x, importance)
    }

    /// The code of the value nearest to `x` in a column of the block, and that value.
    #[inline(always)]
    pub fn round(&self, column: usize, x: f32) -> (u8, f32) {
        let block = column / self.shape.sub;
        let (scale, minimum) = (self.scales[block], self.minima[block]);
        let level = (x + minimum) * self.inverses[block];
        match self.shape.levels {
            Levels::Whole(low, high) => {
                let level = whole(level, low as f32, high as f32);
                ((level as i32 - low) as u8, scale * level - minimum)
            }
            Levels::Iq4 => {
                let code = iq4_code(level);
                (code, scale * f32::from(IQ4[usize::from(code)]) - minimum)
            }
        }
    }

    /// Appends the block with these codes.
    ///
    /// # Panics
    /// When there are fewer codes than values in a block.
    pub fn write(&self, codes: &[u8], out: &mut Vec<u8>) {
        write(self.shape.dtype, &self.header, codes, out);
    }

    /// Rounds a block's values one after the other, each one's error spread over those after it.
    ///
    /// `x` are the values of the block's columns and of some that follow, which take their share;
    /// `spread`, as many columns in rows `stride` apart, is those columns' part of the upper
    /// Cholesky factor of the inverse second moment of what they are multiplied with. The block's
    /// values become what is stored, `errors` what is to be spread over further columns.
    ///
    /// # Panics
    /// When the lengths do not fit.
    pub fn round_spreading(
        &self,
        x: &mut [f32],
        (spread, stride): (&[f32], usize),
        codes: &mut [u8],
        errors: &mut [f32],
    ) {
        let (len, columns) = (self.shape.len, x.len());
        assert!(columns >= len && codes.len() == len && errors.len() == len);
        assert!(spread.len() >= (len - 1) * stride + columns);
        (isa().round_spreading)(self, x, (spread, stride), codes, errors);
    }
}

/// The nearest integer of a range, ties to even. Adding and taking away 1.5 · 2²³ rounds.
#[inline(always)]
fn whole(x: f32, low: f32, high: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (x.max(low).min(high) + MAGIC) - MAGIC
}

/// The middles between neighbouring values of [`IQ4`].
const MIDDLES: [f32; 15] = {
    let mut middles = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        middles[i] = (IQ4[i] as f32 + IQ4[i + 1] as f32) / 2.0;
        i += 1;
    }
    middles
};

#[inline(always)]
fn iq4_code(x: f32) -> u8 {
    MIDDLES.iter().map(|&m| u8::from(x > m)).sum()
}

/// The nearest value of [`IQ4`], without a table.
#[inline(always)]
fn iq4(x: f32) -> f32 {
    let mut value = f32::from(IQ4[0]);
    for i in 0..15 {
        let step = f32::from(IQ4[i + 1]) - f32::from(IQ4[i]);
        value += if x > MIDDLES[i] { step } else { 0.0 };
    }
    value
}

/// Sums over `len` values, whole sixteens, in sixteen lanes each.
#[inline(always)]
fn sums<const N: usize>(len: usize, term: impl Fn(usize) -> [f32; N]) -> [f32; N] {
    let mut lanes = [[0.0f32; 16]; N];
    for start in (0..len).step_by(16) {
        for lane in 0..16 {
            let terms = term(start + lane);
            for n in 0..N {
                lanes[n][lane] += terms[n];
            }
        }
    }
    let mut sums = [0.0; N];
    for n in 0..N {
        let mut half = 8;
        while half > 0 {
            for lane in 0..half {
                lanes[n][lane] += lanes[n][lane + half];
            }
            half /= 2;
        }
        sums[n] = lanes[n][0];
    }
    sums
}

impl Levels {
    #[inline(always)]
    fn nearest(self, x: f32) -> f32 {
        match self {
            Levels::Whole(low, high) => whole(x, low as f32, high as f32),
            Levels::Iq4 => iq4(x),
        }
    }

    fn bounds(self) -> (f32, f32) {
        match self {
            Levels::Whole(low, high) => (low as f32, high as f32),
            Levels::Iq4 => (f32::from(IQ4[0]), f32::from(IQ4[15])),
        }
    }
}

/// One instruction set's way of [`Grid::fit`].
pub(crate) type Fit = fn(Shape, &[f32], Option<&[f32]>) -> Grid;
/// One instruction set's way of [`Grid::round_spreading`].
pub(crate) type RoundSpreading = fn(&Grid, &mut [f32], (&[f32], usize), &mut [u8], &mut [f32]);

/// The definition of [`Grid::fit`], compiled for each instruction set.
#[inline(always)]
pub(crate) fn fit(shape: Shape, given: &[f32], importance: Option<&[f32]>) -> Grid {
    let mut x = [0.0f32; MOST];
    let mut w = [0.0f32; MOST];
    let (x, w) = (&mut x[..shape.len], &mut w[..shape.len]);
    for (x, given) in x.iter_mut().zip(given) {
        *x = tame(*given);
    }
    weigh(shape, x, importance, w);
    if let Some(bits) = shape.dtype.bipolar_bits() {
        return bipolar(shape, bits, x, w);
    }
    let subs = shape.len / shape.sub;
    let mut fits = [(0.0f32, 0.0f32); 16];
    for i in 0..subs {
        let here = i * shape.sub..(i + 1) * shape.sub;
        fits[i] = match shape.minima {
            true => with_minimum(shape, &x[here.clone()], &w[here]),
            false => (symmetric(shape.levels, &x[here.clone()], &w[here]), 0.0),
        };
    }
    let mut header = Header::default();
    let (mut scales, mut minima) = ([0.0; 16], [0.0; 16]);
    match shape.nested {
        None => {
            let (scale, minimum) = (to_half(fits[0].0), to_half(fits[0].1));
            header.outer = [scale, minimum];
            (scales[0], minima[0]) = (scale.to_f32(), minimum.to_f32());
        }
        Some(range) => {
            nest(shape, range, x, w, &fits[..subs], &mut header);
            let [d, dmin] = header.outer.map(f16::to_f32);
            for i in 0..subs {
                scales[i] = d * f32::from(header.scales[i]);
                minima[i] = dmin * f32::from(header.minima[i]);
            }
        }
    }
    Grid {
        shape,
        scales,
        inverses: scales.map(to_inverse),
        minima,
        header,
    }
}

/// A grid of odd integers: `scale · (2 code − (2ᵖ − 1))`.
#[inline(always)]
fn bipolar(shape: Shape, bits: usize, x: &[f32], w: &[f32]) -> Grid {
    let (mut block, mut weights) = ([0.0; super::bipolar::BLOCK], [0.0; super::bipolar::BLOCK]);
    block.copy_from_slice(x);
    weights.copy_from_slice(w);
    let scale = to_half(super::bipolar::fit(bits, &block, &weights));
    let (mut scales, mut minima) = ([0.0; 16], [0.0; 16]);
    scales[0] = 2.0 * scale.to_f32();
    minima[0] = scale.to_f32() * ((1 << bits) - 1) as f32;
    let header = Header {
        outer: [scale, f16::ZERO],
        ..Header::default()
    };
    Grid {
        shape,
        scales,
        inverses: scales.map(to_inverse),
        minima,
        header,
    }
}

/// How much each value's error matters.
#[inline(always)]
fn weigh(shape: Shape, x: &[f32], importance: Option<&[f32]>, w: &mut [f32]) {
    let mean = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
    // With no zero and one scale for a long block, larger values are not to count more.
    let alike = shape.dtype.bipolar_bits().is_some();
    match importance {
        Some(importance) if alike => w.copy_from_slice(importance),
        None if alike => w.fill(1.0),
        Some(importance) => {
            for i in 0..x.len() {
                w[i] = importance[i] * (mean + x[i] * x[i]).sqrt();
            }
        }
        None => {
            let root = mean.sqrt();
            for i in 0..x.len() {
                w[i] = match shape.minima {
                    true => root + x[i].abs(),
                    false => mean + x[i] * x[i],
                };
            }
        }
    }
    // Of no use where nothing is important.
    if w.iter().all(|w| *w <= 0.0) {
        w.fill(1.0);
    }
    // Bounded, so that no sum of squares over- or underflows.
    let largest = w.iter().fold(0.0f32, |m, w| m.max(*w));
    let unit = to_inverse(largest);
    w.iter_mut().for_each(|w| *w = (*w * unit).max(1e-9));
}

/// The scale for which `scale · level` is near `x`. Tries to map the extreme value a little
/// within and beyond either end of the levels, and refines the best by least squares.
#[inline(always)]
fn symmetric(levels: Levels, x: &[f32], w: &[f32]) -> f32 {
    let mut extreme = 0.0f32;
    for &v in x {
        if v.abs() > extreme.abs() {
            extreme = v;
        }
    }
    let unit = to_inverse(extreme.abs());
    if unit == 0.0 {
        return 0.0;
    }
    let (low, high) = levels.bounds();
    // The best scale for the levels that an inverse scale gives, and by how much it lessens the
    // error, which is a constant less xq² / qq.
    let with = |inverse: f32| -> (f32, f32) {
        let [xq, qq] = sums(x.len(), |i| {
            let q = levels.nearest(inverse * x[i]);
            [w[i] * (x[i] * unit) * q, w[i] * q * q]
        });
        match qq > 0.0 {
            true => (xq * (xq / qq), xq / qq / unit),
            false => (f32::NEG_INFINITY, 0.0),
        }
    };
    // As fine as a tenth of a level where there are few.
    let levels = high - low;
    let (reach, step) = match levels < 40.0 {
        true => (9, (levels / 150.0).max(0.05)),
        false => (4, levels / 200.0),
    };
    let mut best = (f32::NEG_INFINITY, extreme / low);
    for end in [low, high] {
        for i in -reach..=reach {
            let found = with((end + i as f32 * step) / extreme);
            if found.0 > best.0 {
                best = found;
            }
        }
    }
    for _ in 0..2 {
        let found = with(to_inverse(best.1));
        if found.0 > best.0 {
            best = found;
        }
    }
    best.1
}

/// The scale and the minimum for which `scale · level − minimum` is near `x`; the minimum is not
/// negative where it is nested. Tries ranges a little narrower and wider than that of `x`; for
/// each, rounds, then solves the least-squares problem for the rounded levels.
#[inline(always)]
fn with_minimum(shape: Shape, x: &[f32], w: &[f32]) -> (f32, f32) {
    let (_, top) = shape.levels.bounds();
    let positive = shape.nested.is_some();
    let mut low = f32::INFINITY;
    let mut high = f32::NEG_INFINITY;
    for &v in x {
        low = low.min(v);
        high = high.max(v);
    }
    if positive {
        low = low.min(0.0);
    }
    if high <= low {
        return (0.0, -low);
    }
    let error = |scale: f32, minimum: f32, inverse: f32, from: f32| -> f32 {
        let [sum] = sums(x.len(), |i| {
            let q = whole((x[i] + from) * inverse, 0.0, top);
            let off = scale * q - minimum - x[i];
            [w[i] * off * off]
        });
        sum
    };
    let mut best = ((high - low) / top, -low);
    let mut least = error(best.0, best.1, to_inverse(best.0), best.1);
    let steps = if top < 8.0 { 24 } else { 20 };
    for step in 0..=steps {
        // From ranges a third narrower (few levels) to a little wider ones.
        let inverse = match top < 8.0 {
            true => (0.5 + 0.1 * step as f32 * top / 3.0 + top * 0.55) / (high - low),
            false => (top - 1.0 + 0.1 * step as f32) / (high - low),
        };
        if !inverse.is_finite() {
            break;
        }
        let from = best.1;
        let [w1, wx, wq, wqq, wxq] = sums(x.len(), |i| {
            let q = whole((x[i] + from) * inverse, 0.0, top);
            [w[i], w[i] * x[i], w[i] * q, w[i] * q * q, w[i] * x[i] * q]
        });
        let determinant = w1 * wqq - wq * wq;
        if determinant <= 0.0 {
            continue;
        }
        let mut fit = (
            (w1 * wxq - wx * wq) / determinant,
            (wq * wxq - wqq * wx) / determinant,
        );
        if positive && fit.1 < 0.0 {
            fit = (wxq / wqq, 0.0);
        }
        let here = error(fit.0, fit.1, to_inverse(fit.0), fit.1);
        if fit.0 > 0.0 && here < least {
            (least, best) = (here, fit);
        }
    }
    best
}

/// Stores scales and minima as small integers times an f16 each, every pair of integers the best
/// of its neighbours.
#[inline(always)]
fn nest(
    shape: Shape,
    (low, high, most): (i32, i32, i32),
    x: &[f32],
    w: &[f32],
    fits: &[(f32, f32)],
    header: &mut Header,
) {
    let mut extreme = 0.0f32;
    let mut largest = 0.0f32;
    for &(scale, minimum) in fits {
        if scale.abs() > extreme.abs() {
            extreme = scale;
        }
        largest = largest.max(minimum);
    }
    // The extreme scale becomes the end of the range that is further away.
    let d = to_half(match low > high {
        true => extreme / -(low as f32),
        false => extreme / high as f32,
    });
    let dmin = to_half(if most > 0 { largest / most as f32 } else { 0.0 });
    header.outer = [d, dmin];
    let (d, dmin) = (d.to_f32(), dmin.to_f32());
    let (to_scale, to_minimum) = (to_inverse(d), to_inverse(dmin));
    for (i, &(scale, minimum)) in fits.iter().enumerate() {
        let here = i * shape.sub..(i + 1) * shape.sub;
        let (x, w) = (&x[here.clone()], &w[here]);
        let middle = whole(scale * to_scale, -(low as f32), high as f32) as i32;
        let middle_min = whole(minimum * to_minimum, 0.0, most as f32) as i32;
        let around =
            |middle: i32, low: i32, high: i32| (middle - 1).max(low)..=(middle + 1).min(high);
        let mut least = f32::INFINITY;
        for s in around(middle, -low, high) {
            for m in around(middle_min, 0, most) {
                let (scale, minimum) = (d * s as f32, dmin * m as f32);
                let inverse = to_inverse(scale);
                let [sum] = sums(x.len(), |k| {
                    let q = shape.levels.nearest((x[k] + minimum) * inverse);
                    let off = scale * q - minimum - x[k];
                    [w[k] * off * off]
                });
                if sum < least {
                    least = sum;
                    (header.scales[i], header.minima[i]) = (s as i16, m as u8);
                }
            }
        }
    }
}

/// The definition of [`Grid::round_spreading`], compiled for each instruction set.
#[inline(always)]
pub(crate) fn round_spreading(
    grid: &Grid,
    x: &mut [f32],
    (spread, stride): (&[f32], usize),
    codes: &mut [u8],
    errors: &mut [f32],
) {
    let columns = x.len();
    for j in 0..grid.shape.len {
        let (code, value) = grid.round(j, x[j]);
        let row = &spread[j * stride..][..columns];
        let error = (x[j] - value) / row[j];
        (codes[j], errors[j]) = (code, error);
        x[j] = value;
        for (x, u) in x[j + 1..].iter_mut().zip(&row[j + 1..]) {
            *x -= error * u;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dequantize, isa};

    fn values(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 16_777_216.0 - 0.5
        };
        (0..n).map(|_| next() + next() + next()).collect()
    }

    fn types() -> impl Iterator<Item = DType> {
        DType::ALL.into_iter().filter(|d| Grid::is_of(*d))
    }

    #[test]
    fn what_is_rounded_to_is_what_is_decoded() {
        for dtype in types() {
            let x = values(dtype.block_len(), 7);
            let grid = Grid::fit(dtype, &x, None);
            let rounded: Vec<(u8, f32)> = x
                .iter()
                .enumerate()
                .map(|(i, &x)| grid.round(i, x))
                .collect();
            let codes: Vec<u8> = rounded.iter().map(|r| r.0).collect();
            let mut bytes = Vec::new();
            grid.write(&codes, &mut bytes);
            let mut decoded = vec![0.0; x.len()];
            dequantize(dtype, &bytes, &mut decoded).unwrap();
            for (decoded, (_, value)) in decoded.iter().zip(&rounded) {
                assert!(
                    (decoded - value).abs() <= 1e-6 * value.abs().max(0.1),
                    "{dtype}"
                );
            }
            // The nearest of all codes, for each value.
            for (i, (&x, (_, value))) in x.iter().zip(&rounded).enumerate() {
                let step = (grid.scales[i / grid.shape.sub] * 1.5).abs();
                let near = (x - value).abs() <= step * 20.0;
                assert!(near, "{dtype}: {x} became {value}");
            }
        }
    }

    #[test]
    fn every_instruction_set_fits_and_spreads_alike() {
        for dtype in types() {
            let len = dtype.block_len();
            let (x, importance) = (values(len, 3), values(len, 9));
            let importance: Vec<f32> = importance.iter().map(|w| w.abs()).collect();
            let mut spread = vec![0.0; len * len];
            for (i, row) in spread.chunks_exact_mut(len).enumerate() {
                row[i..].copy_from_slice(&values(len - i, i as u32));
                row[i] = 2.0;
            }
            let mut found = Vec::new();
            for set in isa::all() {
                let shape = Shape::of(dtype).unwrap();
                let grid = (set.fit)(shape, &x, Some(&importance));
                let (mut x, mut codes, mut errors) = (x.clone(), vec![0; len], vec![0.0; len]);
                let to = (&mut codes[..], &mut errors[..]);
                (set.round_spreading)(&grid, &mut x, (&spread, len), to.0, to.1);
                found.push((x, codes, errors));
            }
            assert!(found.iter().all(|f| *f == found[0]), "{dtype}");
        }
    }

    #[test]
    fn importance_moves_the_error_to_where_it_matters_less() {
        for dtype in [DType::Q2K, DType::Q3K, DType::Q4K, DType::Iq4Xs] {
            let x = values(256, 5);
            let importance: Vec<f32> = (0..256)
                .map(|i| if i % 4 == 0 { 100.0 } else { 0.01 })
                .collect();
            let error = |importance: Option<&[f32]>| -> f32 {
                let grid = Grid::fit(dtype, &x, importance);
                let off = |i: usize| (grid.round(i, x[i]).1 - x[i]).powi(2);
                (0..256).step_by(4).map(off).sum()
            };
            assert!(error(Some(&importance)) < error(None), "{dtype}");
        }
    }

    #[test]
    fn spreading_lessens_the_error_of_products() {
        // Inputs that are alike: an error in one column can be made good in the next.
        let (rows, n) = (64, 256);
        let inputs: Vec<f32> = values(rows, 1)
            .iter()
            .enumerate()
            .flat_map(|(i, base)| {
                let own = values(n, 100 + i as u32);
                own.into_iter()
                    .map(move |v| base + 0.3 * v)
                    .collect::<Vec<_>>()
            })
            .collect();
        let mut moment = vec![0.0f64; n * n];
        for row in inputs.chunks_exact(n) {
            for i in 0..n {
                for j in 0..n {
                    moment[i * n + j] += f64::from(row[i]) * f64::from(row[j]);
                }
            }
        }
        for i in 0..n {
            moment[i * n + i] += 0.1;
        }
        // H = R Rᵀ with R upper; the factor of the inverse is R⁻¹.
        let mut r = vec![0.0f64; n * n];
        for j in (0..n).rev() {
            let rest: f64 = (j + 1..n).map(|k| r[j * n + k].powi(2)).sum();
            r[j * n + j] = (moment[j * n + j] - rest).sqrt();
            for i in 0..j {
                let rest: f64 = (j + 1..n).map(|k| r[i * n + k] * r[j * n + k]).sum();
                r[i * n + j] = (moment[i * n + j] - rest) / r[j * n + j];
            }
        }
        let mut spread = vec![0.0f32; n * n];
        for j in 0..n {
            let mut column = vec![0.0f64; n];
            for i in (0..=j).rev() {
                let unit = if i == j { 1.0 } else { 0.0 };
                let rest: f64 = (i + 1..=j).map(|k| r[i * n + k] * column[k]).sum();
                column[i] = (unit - rest) / r[i * n + i];
                spread[i * n + j] = column[i] as f32;
            }
        }
        let weights = values(n, 77);
        let product_error = |rounded: &[f32]| -> f64 {
            let off = |row: &[f32]| -> f64 {
                let terms = row.iter().zip(rounded.iter().zip(&weights));
                terms.map(|(x, (a, b))| f64::from(x * (a - b))).sum()
            };
            inputs.chunks_exact(n).map(|row| off(row).powi(2)).sum()
        };
        let grid = Grid::fit(DType::Q3K, &weights, None);
        let nearest: Vec<f32> = (0..n).map(|i| grid.round(i, weights[i]).1).collect();
        let mut spreading = weights.clone();
        let (mut codes, mut errors) = (vec![0; n], vec![0.0; n]);
        grid.round_spreading(&mut spreading, (&spread, n), &mut codes, &mut errors);
        let (plain, spread) = (product_error(&nearest), product_error(&spreading));
        assert!(spread < 0.2 * plain, "{spread} against {plain}");
    }
}
