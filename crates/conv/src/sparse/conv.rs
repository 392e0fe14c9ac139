//! Convolutions of few planes with any kernel, such as a network's first.
//! A row of results is a pointwise convolution of the window's taps, which are laid out as planes
//! of one row each.

use std::sync::atomic::{AtomicUsize, Ordering};

use sedge_kernels::Team;

use super::SparseError;
use super::depthwise::{inside, load_steps};
use super::isa::{Isa, Work};
use super::lanes::Lanes;
use super::planes::{ALIGN, Planes, PlanesMut, Target};
use super::pointwise::Sparse;
use crate::{Activation, Window};

/// A convolution of planes whose weights may be mostly zero.
///
/// Each tap of each input is copied once for every row of results, which is little beside the
/// products where outputs are many.
#[derive(Clone, Debug)]
pub struct PlaneConv {
    inputs: usize,
    window: Window,
    /// Over taps: `[outputs, inputs · kh · kw]`.
    taps: Sparse,
    isa: Isa,
}

impl PlaneConv {
    /// With weights `[outputs, inputs, kh, kw]` and lists as [`Sparse::new`] has.
    ///
    /// # Errors
    /// When there is no such block, or weights or biases are not as many as there should be.
    pub fn new(
        weights: &[f32],
        [outputs, inputs]: [usize; 2],
        window: Window,
        bias: Option<&[f32]>,
        activation: Activation,
        block: usize,
    ) -> Result<PlaneConv, SparseError> {
        let isa = Isa::best();
        PlaneConv::on(
            isa,
            weights,
            [outputs, inputs],
            window,
            bias,
            activation,
            block,
        )
    }

    pub(super) fn on(
        isa: Isa,
        weights: &[f32],
        [outputs, inputs]: [usize; 2],
        window: Window,
        bias: Option<&[f32]>,
        activation: Activation,
        block: usize,
    ) -> Result<PlaneConv, SparseError> {
        let large = SparseError::Large { outputs, inputs };
        let taps = window.kernel[0].checked_mul(window.kernel[1]);
        let taps = taps
            .and_then(|taps| taps.checked_mul(inputs))
            .ok_or(large)?;
        Ok(PlaneConv {
            inputs,
            window,
            taps: Sparse::on(isa, weights, [outputs, taps], bias, activation, block)?,
            isa,
        })
    }

    /// Outputs.
    pub fn outputs(&self) -> usize {
        self.taps.outputs()
    }

    /// Rows and columns of the results of planes of `h × w`.
    ///
    /// # Errors
    /// When no window fits, or there is no such window.
    pub fn output(&self, h: usize, w: usize) -> Result<[usize; 2], SparseError> {
        Ok(self.window.output(h, w)?)
    }

    /// Values of scratch that [`Self::run`] wants for results of `columns` columns, for a team
    /// of `threads`.
    pub fn scratch(&self, columns: usize, threads: usize) -> usize {
        // And room to begin at a cache line.
        threads * self.share(columns) + ALIGN
    }

    /// Of one thread.
    fn share(&self, columns: usize) -> usize {
        self.taps.inputs() * columns.next_multiple_of(ALIGN)
    }

    /// Computes all planes of a picture. Allocates nothing.
    ///
    /// # Panics
    /// When `x` has not the inputs as planes, `y` not the outputs or not the size that
    /// [`Self::output`] says, or `scratch` is shorter than [`Self::scratch`] says.
    pub fn run(&self, x: Planes<'_>, y: &mut PlanesMut<'_>, scratch: &mut [f32], team: &Team) {
        assert_eq!(x.channels(), self.inputs, "planes of inputs");
        assert_eq!(y.channels(), self.outputs(), "planes of outputs");
        let [h, w] = x.size();
        let [rows, columns] = y.size();
        assert_eq!(
            self.window.output(h, w),
            Ok([rows, columns]),
            "size of outputs"
        );
        let threads = team.threads();
        assert!(
            scratch.len() >= self.scratch(columns, threads),
            "{} values of scratch for {threads} threads",
            scratch.len()
        );
        let skip = scratch.as_ptr().align_offset(ALIGN * size_of::<f32>()) % ALIGN;
        let share = self.share(columns);
        let scratch = Shares(scratch[skip..].as_mut_ptr());
        let next = AtomicUsize::new(0);
        let y = y.target();
        team.run(threads, &|thread| {
            // SAFETY: every task has its own share of the scratch, which is long enough.
            let taps = unsafe { scratch.of(thread, share) };
            self.isa.run(Task {
                conv: self,
                next: &next,
                taps,
                x,
                y,
                size: [rows, columns],
            });
        });
    }
}

/// Scratch of several threads.
struct Shares(*mut f32);

// SAFETY: it only hands out parts, under the promise of `of` that they do not overlap.
unsafe impl Sync for Shares {}

impl Shares {
    /// # Safety
    /// The scratch has this share, and nobody else uses it.
    #[allow(clippy::mut_from_ref)] // shares are disjoint by the caller's promise
    unsafe fn of(&self, thread: usize, share: usize) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(thread * share), share) }
    }
}

/// Rows, as long as there are some that nobody has begun.
struct Task<'a> {
    conv: &'a PlaneConv,
    next: &'a AtomicUsize,
    taps: &'a mut [f32],
    x: Planes<'a>,
    y: Target<'a>,
    size: [usize; 2],
}

impl Work for Task<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (sparse, [rows, columns]) = (&self.conv.taps, self.size);
        let stride = columns.next_multiple_of(ALIGN);
        loop {
            let row = self.next.fetch_add(1, Ordering::Relaxed);
            if row >= rows {
                break;
            }
            self.conv.lay(l, self.x, row, self.taps, stride);
            let y = (self.y.at(0, row * columns), self.y.stride);
            for list in 0..sparse.lists() {
                // SAFETY: taps are whole vectors, and no other task has this row.
                unsafe {
                    sparse.list(l, list, (self.taps.as_ptr(), stride), None, y, columns);
                }
            }
        }
    }
}

impl PlaneConv {
    /// What each tap sees along a row of results, `stride` values for each, and zeros where that
    /// is outside.
    #[inline(always)]
    fn lay<L: Lanes>(&self, l: L, x: Planes<'_>, row: usize, taps: &mut [f32], stride: usize) {
        let Window {
            kernel: [kh, kw],
            stride: [down, right],
            dilation,
            pads,
        } = self.window;
        let [h, w] = x.size();
        let mut taps = taps.chunks_exact_mut(kw * stride);
        for input in 0..self.inputs {
            for (dy, taps) in (0..kh).zip(taps.by_ref()) {
                let from = (row * down + dy * dilation[0]).wrapping_sub(pads[0]);
                if from >= h {
                    taps.fill(0.0);
                    continue;
                }
                let from = &x.plane(input)[from * w..][..w];
                for (dx, values) in taps.chunks_exact_mut(stride).enumerate() {
                    let left = (dx * dilation[1]) as isize - pads[1] as isize;
                    match right {
                        1 => lay_tap::<L, 1>(l, from, left, values),
                        2 => lay_tap::<L, 2>(l, from, left, values),
                        _ => lay_far(from, left, right, values),
                    }
                }
            }
        }
    }
}

/// Every `S`th value of a row, from column `left` on.
#[inline(always)]
fn lay_tap<L: Lanes, const S: usize>(l: L, from: &[f32], left: isize, values: &mut [f32]) {
    for (i, values) in values.chunks_exact_mut(L::LANES).enumerate() {
        let left = left + (i * L::LANES * S) as isize;
        let start = from.as_ptr().wrapping_offset(left);
        // SAFETY: the mask names values of the row, and the vector fills the chunk.
        unsafe {
            let seen = load_steps::<L, S>(l, start, inside(left, from.len()));
            l.store(seen, values.as_mut_ptr());
        }
    }
}

/// Values that are `step` apart, of a row, from column `left` on.
fn lay_far(from: &[f32], left: isize, step: usize, values: &mut [f32]) {
    for (column, value) in values.iter_mut().enumerate() {
        let at = left.wrapping_add_unsigned(column * step) as usize;
        // A column before the first is, without its sign, one far behind the last.
        *value = from.get(at).copied().unwrap_or(0.0);
    }
}
