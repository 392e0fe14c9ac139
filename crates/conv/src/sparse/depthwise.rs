//! Convolutions of each plane with a small kernel of its own.
//! Vectors along a row, four rows at once, so that a row that is loaded serves all it touches.

use sedge_kernels::Team;

use super::SparseError;
use super::epilogue::Form;
use super::isa::{Isa, Work};
use super::lanes::{Lanes, first};
use super::planes::{Planes, PlanesMut, Target};
use crate::{Activation, Window};

/// Rows of results that are computed together.
const ROWS: usize = 4;

/// A depthwise convolution of planes, 3 × 3 or 5 × 5, with steps of 1 or 2.
#[derive(Clone, Debug)]
pub struct Depthwise {
    channels: usize,
    window: Window,
    /// Taps of each channel, rows first.
    weights: Vec<f32>,
    biases: Vec<f32>,
    form: Form,
    isa: Isa,
}

impl Depthwise {
    /// With weights `[channels, k, k]`.
    ///
    /// # Errors
    /// When there is no kernel for the window, or weights or biases are not as many as there
    /// should be.
    pub fn new(
        weights: &[f32],
        channels: usize,
        window: Window,
        bias: Option<&[f32]>,
        activation: Activation,
    ) -> Result<Depthwise, SparseError> {
        Depthwise::on(Isa::best(), weights, channels, window, bias, activation)
    }

    pub(super) fn on(
        isa: Isa,
        weights: &[f32],
        channels: usize,
        window: Window,
        bias: Option<&[f32]>,
        activation: Activation,
    ) -> Result<Depthwise, SparseError> {
        let [k, s] = [window.kernel, window.stride];
        let known = matches!(k, [3, 3] | [5, 5])
            && matches!(s, [1, 1] | [2, 2])
            && window.dilation == [1, 1]
            && window.pads.iter().all(|pad| *pad < k[0]);
        if !known {
            return Err(SparseError::Depthwise(window));
        }
        let expected = channels.checked_mul(window.taps());
        if expected != Some(weights.len()) {
            return Err(SparseError::Weights {
                found: weights.len(),
                expected: expected.unwrap_or(usize::MAX),
            });
        }
        if let Some(bias) = bias.filter(|bias| bias.len() != channels) {
            return Err(SparseError::Bias {
                found: bias.len(),
                expected: channels,
            });
        }
        Ok(Depthwise {
            channels,
            window,
            weights: weights.to_vec(),
            biases: bias.map_or_else(|| vec![0.0; channels], <[f32]>::to_vec),
            form: Form::new(activation),
            isa,
        })
    }

    /// Planes.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Rows and columns of the results of planes of `h × w`.
    ///
    /// # Errors
    /// When no window fits.
    pub fn output(&self, h: usize, w: usize) -> Result<[usize; 2], SparseError> {
        Ok(self.window.output(h, w)?)
    }

    /// Computes all planes of a picture. Allocates nothing.
    ///
    /// # Panics
    /// When `x` or `y` has other planes than this, or `y` not the size that [`Self::output`]
    /// says.
    pub fn run(&self, x: Planes<'_>, y: &mut PlanesMut<'_>, team: &Team) {
        assert_eq!(x.channels(), self.channels, "planes of inputs");
        assert_eq!(y.channels(), self.channels, "planes of outputs");
        let [h, w] = x.size();
        let out = y.size();
        assert_eq!(self.window.output(h, w), Ok(out), "size of outputs");
        let y = y.target();
        let run = self.channels.div_ceil(4 * team.threads()).max(1);
        team.run(self.channels.div_ceil(run), &|task| {
            self.isa.run(Task {
                depthwise: self,
                channels: (task * run, self.channels.min((task + 1) * run)),
                x,
                y,
                out,
            });
        });
    }
}

/// Some planes.
struct Task<'a> {
    depthwise: &'a Depthwise,
    channels: (usize, usize),
    x: Planes<'a>,
    y: Target<'a>,
    out: [usize; 2],
}

impl Work for Task<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let window = self.depthwise.window;
        match (window.kernel[0], window.stride[0]) {
            (3, 1) => self.planes::<L, 3, 1>(l),
            (3, _) => self.planes::<L, 3, 2>(l),
            (_, 1) => self.planes::<L, 5, 1>(l),
            (_, _) => self.planes::<L, 5, 2>(l),
        }
    }
}

impl Task<'_> {
    #[inline(always)]
    fn planes<L: Lanes, const K: usize, const S: usize>(&self, l: L) {
        let (d, [rows, columns]) = (self.depthwise, self.out);
        let [h, w] = self.x.size();
        for channel in self.channels.0..self.channels.1 {
            // SAFETY: no other task has this channel.
            let y = unsafe { self.y.plane(channel) };
            let plane = Plane {
                x: self.x.plane(channel),
                h,
                w,
                pads: [d.window.pads[0], d.window.pads[1]],
                weights: &d.weights[channel * K * K..][..K * K],
                bias: d.biases[channel],
                form: d.form,
                columns,
            };
            for column in (0..columns).step_by(L::LANES) {
                if rows < ROWS {
                    for row in 0..rows {
                        plane.tile::<L, K, S, 1, true>(l, [row, column], y);
                    }
                    continue;
                }
                for row in (0..rows).step_by(ROWS) {
                    // The last rows are computed with some that have been before.
                    let row = row.min(rows - ROWS);
                    let above = row * S >= plane.pads[0];
                    match above && row * S + (ROWS - 1) * S + K <= h + plane.pads[0] {
                        true => plane.tile::<L, K, S, ROWS, false>(l, [row, column], y),
                        false => plane.tile::<L, K, S, ROWS, true>(l, [row, column], y),
                    }
                }
            }
            y[rows * columns..].fill(0.0);
        }
    }
}

/// One plane and its kernel.
struct Plane<'a> {
    x: &'a [f32],
    h: usize,
    w: usize,
    /// Rows above and columns to the left.
    pads: [usize; 2],
    weights: &'a [f32],
    bias: f32,
    form: Form,
    /// Of the results.
    columns: usize,
}

impl Plane<'_> {
    /// `R` rows of a vector of results, the first at `[row, column]`; `EDGE` where their windows
    /// may reach beyond the first or the last row.
    #[inline(always)]
    fn tile<L: Lanes, const K: usize, const S: usize, const R: usize, const EDGE: bool>(
        &self,
        l: L,
        [row, column]: [usize; 2],
        y: &mut [f32],
    ) {
        // Two sums of each, so that additions wait less for each other.
        let mut sums = [[l.splat(self.bias); R], [l.splat(0.0); R]];
        for dx in 0..K {
            let mut weights = [l.splat(0.0); K];
            for (dy, weight) in weights.iter_mut().enumerate() {
                *weight = l.splat(self.weights[dy * K + dx]);
            }
            let left = (column * S + dx) as isize - self.pads[1] as isize;
            let mask = inside(left, self.w);
            for i in 0..(R - 1) * S + K {
                let from = (row * S + i).wrapping_sub(self.pads[0]);
                let mask = if EDGE && from >= self.h { 0 } else { mask };
                let start = self.x.as_ptr().wrapping_add(from.wrapping_mul(self.w));
                // SAFETY: `mask` names columns of a row that exists, or none.
                let x = unsafe { load_steps::<L, S>(l, start.wrapping_offset(left), mask) };
                for (r, sum) in sums[dx % 2].iter_mut().enumerate() {
                    if i >= r * S && i < r * S + K {
                        *sum = l.fma(weights[i - r * S], x, *sum);
                    }
                }
            }
        }
        let [mut sums, more] = sums;
        for (sum, more) in sums.iter_mut().zip(more) {
            *sum = l.add(*sum, more);
        }
        if let Form::Bounds { .. } | Form::Gate { .. } = self.form {
            for sum in &mut sums {
                *sum = self.form.apply(l, *sum);
            }
        }
        let n = (self.columns - column).min(L::LANES);
        let y = &mut y[row * self.columns + column..][..(R - 1) * self.columns + n];
        for (r, sum) in sums.into_iter().enumerate() {
            // SAFETY: the mask is as long as what the slice has of each row.
            unsafe {
                let y = y.as_mut_ptr().add(r * self.columns);
                l.store_masked(sum, y, first(n));
                self.form.finish(y, n);
            }
        }
    }
}

/// Which of the 32 columns from `left` on are among the `width` of a row.
#[inline(always)]
pub(super) fn inside(left: isize, width: usize) -> u32 {
    let before = left.min(0).unsigned_abs();
    let end = (width as isize - left).max(0) as usize;
    first(end) & !first(before)
}

/// A vector of every `S`th value from `x` on, `S` 1 or 2: of those whose bit in `mask` is set,
/// with one bit a value, those between included. The others are 0.
///
/// # Safety
/// Values whose bit is set can be read.
#[inline(always)]
pub(super) unsafe fn load_steps<L: Lanes, const S: usize>(l: L, x: *const f32, mask: u32) -> L::V {
    // SAFETY: the caller's promise.
    unsafe {
        let low = l.load_masked(x, mask);
        match S {
            1 => low,
            _ => {
                let high = l.load_masked(x.wrapping_add(L::LANES), mask >> L::LANES);
                l.even(low, high)
            }
        }
    }
}
