//! Depthwise convolution: each channel by itself, vectors over channels.
//!
//! Seven output pixels of a row are made at a time, so that each loaded value serves all windows
//! that it is in. Taps in rows beyond the picture are left out; columns beyond it are read from
//! a row of zeros. Both are chosen before the loop over channels.

use sedge_kernels::Team;

use crate::aligned::Aligned;
use crate::lanes::{Kernel, Lanes, Set};
use crate::shared::{Shared, part, tasks};
use crate::{Activation, Picture, PictureMut, Window};

/// Output pixels of one pass.
const PIXELS: usize = 7;

/// What is read for columns beyond a picture.
static ZEROS: [f32; 16] = [0.0; 16];

/// Weights `[tap][channel]`, padded to whole vectors.
pub(crate) struct Depthwise {
    set: Set,
    window: Window,
    weights: Aligned,
    bias: Aligned,
    /// Channels with the padding.
    padded: usize,
}

impl Depthwise {
    /// Packs weights `[channel][tap]`.
    pub(crate) fn new(
        set: Set,
        channels: usize,
        window: Window,
        weights: &[f32],
        bias: Option<&[f32]>,
    ) -> Depthwise {
        let padded = channels.next_multiple_of(16);
        let taps = window.taps();
        let mut packed = Aligned::zeros(taps * padded);
        let mut all_bias = Aligned::zeros(padded);
        for (channel, weights) in weights.chunks_exact(taps).enumerate() {
            for (tap, &weight) in weights.iter().enumerate() {
                packed.values_mut()[tap * padded + channel] = weight;
            }
        }
        if let Some(bias) = bias {
            all_bias.values_mut()[..channels].copy_from_slice(bias);
        }
        Depthwise {
            set,
            window,
            weights: packed,
            bias: all_bias,
            padded,
        }
    }

    /// `y = activation(conv(x) + bias + add)`; shapes are as they must be.
    pub(crate) fn run(
        &self,
        x: Picture,
        add: Option<Picture>,
        y: &mut PictureMut,
        activation: Activation,
        team: &Team,
    ) {
        let ([xs, ys], y_stride) = ([x.shape(), y.shape()], y.stride());
        let lines = ys.n * ys.h;
        // A few lines are cut along their channels too.
        let vectors = xs.c.div_ceil(self.set.lanes());
        let cuts = match lines < 8 * team.threads() && team.threads() > 1 {
            true => vectors.min(4),
            false => 1,
        };
        let units = lines * cuts;
        let tasks = tasks(units, team.threads());
        let to = Shared::new(y.values());
        team.run(tasks, &|task| {
            for unit in part(task, tasks, units) {
                let (cut, line) = (unit / lines, unit % lines);
                let channels = part(cut, cuts, vectors);
                let first = channels.start * self.set.lanes();
                let last = (channels.end * self.set.lanes()).min(xs.c);
                let pixel = line * ys.w;
                self.set.run(Line {
                    conv: self,
                    picture: &x.values()[line / ys.h * xs.h * xs.w * x.stride()..],
                    size: [xs.h, xs.w],
                    stride: x.stride(),
                    row: line % ys.h,
                    pixels: ys.w,
                    channels: [first, last],
                    // SAFETY: the picture has this pixel.
                    y: unsafe { to.at(pixel * y_stride) },
                    y_stride,
                    add: add.map(|add| (&add.values()[pixel * add.stride()..], add.stride())),
                    activation,
                });
            }
        });
    }
}

/// One row of output pixels, some of the channels.
struct Line<'a> {
    conv: &'a Depthwise,
    picture: &'a [f32],
    /// Rows and columns.
    size: [usize; 2],
    stride: usize,
    row: usize,
    pixels: usize,
    channels: [usize; 2],
    /// Of the row's first pixel; all pixels' `channels` are this work's own.
    y: *mut f32,
    y_stride: usize,
    add: Option<(&'a [f32], usize)>,
    activation: Activation,
}

/// The taps along one axis that lie in a picture of `size`, of the window that begins at `start`.
#[inline(always)]
pub(crate) fn inside(
    start: isize,
    taps: usize,
    dilation: usize,
    size: usize,
) -> std::ops::Range<usize> {
    let low = start.min(0).unsigned_abs().div_ceil(dilation);
    let left = (size as isize - start).max(0).unsigned_abs();
    low..left.div_ceil(dilation).min(taps).max(low)
}

impl Kernel for Line<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let window = self.conv.window;
        let along = (window.kernel, window.stride[1], window.dilation);
        if self.pixels >= PIXELS {
            match along {
                ([3, 3], 1, [_, 1]) => return self.passes::<L, 3, 1>(l),
                ([3, 3], 2, [_, 1]) => return self.passes::<L, 3, 2>(l),
                ([5, 5], 1, [_, 1]) => return self.passes::<L, 5, 1>(l),
                ([5, 5], 2, [_, 1]) => return self.passes::<L, 5, 2>(l),
                _ => {}
            }
        }
        for pixel in 0..self.pixels {
            self.one(l, pixel);
        }
    }
}

impl Line<'_> {
    /// The first row of the picture that the windows reach, and their taps that are inside.
    #[inline(always)]
    fn rows(&self) -> (isize, std::ops::Range<usize>) {
        let window = self.conv.window;
        let start = (self.row * window.stride[0]) as isize - window.pads[0] as isize;
        let taps = inside(start, window.kernel[0], window.dilation[0], self.size[0]);
        (start, taps)
    }

    /// All pixels by windows of `K` columns `S` apart; the last pass overlaps the one before.
    #[inline(always)]
    fn passes<L: Lanes, const K: usize, const S: usize>(&self, l: L) {
        let pad = self.conv.window.pads[1] as isize;
        let mut pixel = 0;
        loop {
            let from = (pixel * S) as isize - pad;
            let reach = ((PIXELS - 1) * S + K) as isize;
            match from >= 0 && from + reach <= self.size[1] as isize {
                true => self.pass::<L, K, S, false>(l, pixel, from),
                false => self.pass::<L, K, S, true>(l, pixel, from),
            }
            if pixel + PIXELS == self.pixels {
                return;
            }
            pixel = (pixel + PIXELS).min(self.pixels - PIXELS);
        }
    }

    /// `PIXELS` pixels, the first window beginning in column `from`; with `EDGE`, some columns
    /// are beyond the picture.
    #[inline(always)]
    fn pass<L: Lanes, const K: usize, const S: usize, const EDGE: bool>(
        &self,
        l: L,
        pixel: usize,
        from: isize,
    ) {
        let (start, taps) = self.rows();
        let dilation = self.conv.window.dilation[0];
        let padded = self.conv.padded;
        let (x, stride) = (self.picture.as_ptr(), self.stride);
        let mut c = self.channels[0];
        // SAFETY, of the whole: rows and columns inside the picture are in its values, and so
        // are channels below the last; weights and bias have whole vectors; the output pixels
        // are this work's own.
        unsafe {
            while c < self.channels[1] {
                let part = l.first(self.channels[1] - c);
                let mut sums = [l.load(self.conv.bias.values().as_ptr().add(c)); PIXELS];
                for tap in taps.clone() {
                    let row = (start + (tap * dilation) as isize) as usize * self.size[1];
                    let row = x.wrapping_offset((row as isize + from) * stride as isize);
                    let row = row.wrapping_add(c);
                    let weights = self.conv.weights.values().as_ptr();
                    let weights = weights.add(tap * K * padded + c);
                    let mut w = [l.splat(0.0); K];
                    for (k, w) in w.iter_mut().enumerate() {
                        *w = l.load(weights.add(k * padded));
                    }
                    for column in 0..(PIXELS - 1) * S + K {
                        let mut at = row.wrapping_add(column * stride);
                        if EDGE && (from + column as isize) as usize >= self.size[1] {
                            at = ZEROS.as_ptr();
                        }
                        let x = l.load_part(at, part);
                        for (k, &w) in w.iter().enumerate() {
                            if column >= k && (column - k) % S == 0 && (column - k) / S < PIXELS {
                                let sum = &mut sums[(column - k) / S];
                                *sum = l.fma(x, w, *sum);
                            }
                        }
                    }
                }
                for (i, &sum) in sums.iter().enumerate() {
                    self.finish(l, sum, pixel + i, c, part);
                }
                c += L::N;
            }
        }
    }

    /// One pixel of any window.
    #[inline(always)]
    fn one<L: Lanes>(&self, l: L, pixel: usize) {
        let window = self.conv.window;
        let (start, rows) = self.rows();
        let from = (pixel * window.stride[1]) as isize - window.pads[1] as isize;
        let columns = inside(from, window.kernel[1], window.dilation[1], self.size[1]);
        let mut c = self.channels[0];
        // SAFETY, of the whole: as in `pass`; only taps inside the picture are walked.
        unsafe {
            while c < self.channels[1] {
                let part = l.first(self.channels[1] - c);
                let mut sum = l.load(self.conv.bias.values().as_ptr().add(c));
                for i in rows.clone() {
                    let row = (start + (i * window.dilation[0]) as isize) as usize;
                    for j in columns.clone() {
                        let column = (from + (j * window.dilation[1]) as isize) as usize;
                        let x = (row * self.size[1] + column) * self.stride + c;
                        let w = (i * window.kernel[1] + j) * self.conv.padded + c;
                        let x = l.load_part(self.picture.as_ptr().add(x), part);
                        sum = l.fma(x, l.load(self.conv.weights.values().as_ptr().add(w)), sum);
                    }
                }
                self.finish(l, sum, pixel, c, part);
                c += L::N;
            }
        }
    }

    /// Stores a vector of sums.
    ///
    /// # Safety
    /// The pixel is in the row, and has the channels of `part` from `c` on.
    #[inline(always)]
    unsafe fn finish<L: Lanes>(&self, l: L, sum: L::V, pixel: usize, c: usize, part: L::M) {
        // SAFETY: the caller's promise; `add` has the shape of y.
        unsafe {
            let sum = match self.add {
                Some((add, stride)) => {
                    let add = add.as_ptr().add(pixel * stride + c);
                    l.add(sum, l.load_part(add, part))
                }
                None => sum,
            };
            let y = self.y.add(pixel * self.y_stride + c);
            l.store_part(self.activation.on(l, sum), y, part);
        }
    }
}
