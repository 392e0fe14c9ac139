//! Depthwise convolution: each channel by itself, vectors over channels.
//!
//! Seven output pixels of a row are made at a time, so that each loaded value serves all windows
//! that it is in. Taps in rows beyond the picture are left out; columns beyond it are read from
//! a row of zeros. Both are chosen before the loop over channels.

use sedge_kernels::Team;

use crate::aligned::Aligned;
use crate::lanes::{Kernel, Lanes, Set, unroll};
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
                let line = Line {
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
                };
                line.run(self.set);
            }
        });
    }
}

/// One row of output pixels, some of the channels.
#[derive(Clone, Copy)]
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

impl Line<'_> {
    fn run(self, set: Set) {
        let window = self.conv.window;
        if self.pixels >= PIXELS {
            match (window.kernel, window.stride[1], window.dilation[1]) {
                ([3, 3], 1, 1) => return self.passes::<3, 1>(set),
                ([3, 3], 2, 1) => return self.passes::<3, 2>(set),
                ([5, 5], 1, 1) => return self.passes::<5, 1>(set),
                ([5, 5], 2, 1) => return self.passes::<5, 2>(set),
                _ => {}
            }
        }
        set.run(Single(self));
    }

    /// All pixels by windows of `K` columns `S` apart; the last pass overlaps the one before.
    fn passes<const K: usize, const S: usize>(self, set: Set) {
        let pad = self.conv.window.pads[1] as isize;
        let mut pixel = 0;
        loop {
            let from = (pixel * S) as isize - pad;
            let reach = ((PIXELS - 1) * S + K) as isize;
            let line = self;
            match from >= 0 && from + reach <= self.size[1] as isize {
                true => set.run(Pass::<K, S, false> { line, pixel, from }),
                false => set.run(Pass::<K, S, true> { line, pixel, from }),
            }
            if pixel + PIXELS == self.pixels {
                return;
            }
            pixel = (pixel + PIXELS).min(self.pixels - PIXELS);
        }
    }

    /// The first row of the picture that the windows reach, and their taps that are inside.
    #[inline(always)]
    fn rows(&self) -> (isize, std::ops::Range<usize>) {
        let window = self.conv.window;
        let start = (self.row * window.stride[0]) as isize - window.pads[0] as isize;
        let taps = inside(start, window.kernel[0], window.dilation[0], self.size[0]);
        (start, taps)
    }
}

/// `PIXELS` pixels from `pixel` on, the first window beginning in column `from`; with `EDGE`, some
/// columns are beyond the picture.
struct Pass<'a, const K: usize, const S: usize, const EDGE: bool> {
    line: Line<'a>,
    pixel: usize,
    from: isize,
}

impl<const K: usize, const S: usize, const EDGE: bool> Kernel for Pass<'_, K, S, EDGE> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (line, from) = (self.line, self.from);
        let (start, taps) = line.rows();
        let dilation = line.conv.window.dilation[0];
        let padded = line.conv.padded;
        let (stride, width) = (line.stride, line.size[1]);
        let mut c = line.channels[0];
        // SAFETY: rows and columns inside the picture are in its values, and so
        // are channels below the last; weights and bias have whole vectors; the output pixels
        // are this work's own.
        unsafe {
            while c < line.channels[1] {
                let part = l.first(line.channels[1] - c);
                let mut sums = [l.load(line.conv.bias.values().as_ptr().add(c)); PIXELS];
                for tap in taps.clone() {
                    let row = start + (tap * dilation) as isize;
                    let at = (row * width as isize + from) * stride as isize;
                    let x = line.picture.as_ptr().wrapping_offset(at).wrapping_add(c);
                    let weights = line.conv.weights.values().as_ptr();
                    let weights = weights.add(tap * K * padded + c);
                    let mut w = [l.splat(0.0); K];
                    unroll!(k < K => { w[k] = l.load(weights.add(k * padded)); });
                    unroll!(column < (PIXELS - 1) * S + K => {
                        let mut at = x.wrapping_add(column * stride);
                        if EDGE && (from + column as isize) as usize >= width {
                            at = ZEROS.as_ptr();
                        }
                        let x = l.load_part(at, part);
                        // The windows that the column is in.
                        unroll!(i < PIXELS => {
                            if column >= i * S && column < i * S + K {
                                sums[i] = l.fma(x, w[column - i * S], sums[i]);
                            }
                        });
                    });
                }
                if let Some((add, stride)) = line.add {
                    let add = add.as_ptr().add(self.pixel * stride + c);
                    unroll!(i < PIXELS => {
                        sums[i] = l.add(sums[i], l.load_part(add.add(i * stride), part));
                    });
                }
                let y = line.y.add(self.pixel * line.y_stride + c);
                if let Some((low, high)) = line.activation.bounds() {
                    let (low, high) = (l.splat(low), l.splat(high));
                    unroll!(i < PIXELS => {
                        l.store_part(l.clamp(sums[i], low, high), y.add(i * line.y_stride), part);
                    });
                } else {
                    // Long functions are not written out for each vector: the sums go to memory.
                    let kept = sums;
                    let mut i = 0;
                    while i < std::hint::black_box(PIXELS) {
                        let y = y.add(i * line.y_stride);
                        l.store_part(line.activation.on(l, kept[i]), y, part);
                        i += 1;
                    }
                }
                c += L::N;
            }
        }
    }
}

/// All pixels of a line one by one, of any window.
struct Single<'a>(Line<'a>);

impl Kernel for Single<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let line = self.0;
        let window = line.conv.window;
        let (start, rows) = line.rows();
        for pixel in 0..line.pixels {
            let from = (pixel * window.stride[1]) as isize - window.pads[1] as isize;
            let columns = inside(from, window.kernel[1], window.dilation[1], line.size[1]);
            let mut c = line.channels[0];
            // SAFETY: as in `Pass`; only taps inside the picture are walked.
            unsafe {
                while c < line.channels[1] {
                    let part = l.first(line.channels[1] - c);
                    let mut sum = l.load(line.conv.bias.values().as_ptr().add(c));
                    for i in rows.clone() {
                        let row = (start + (i * window.dilation[0]) as isize) as usize;
                        for j in columns.clone() {
                            let column = (from + (j * window.dilation[1]) as isize) as usize;
                            let x = (row * line.size[1] + column) * line.stride + c;
                            let w = (i * window.kernel[1] + j) * line.conv.padded + c;
                            let x = l.load_part(line.picture.as_ptr().add(x), part);
                            let w = l.load(line.conv.weights.values().as_ptr().add(w));
                            sum = l.fma(x, w, sum);
                        }
                    }
                    if let Some((add, stride)) = line.add {
                        let add = add.as_ptr().add(pixel * stride + c);
                        sum = l.add(sum, l.load_part(add, part));
                    }
                    let y = line.y.add(pixel * line.y_stride + c);
                    l.store_part(line.activation.on(l, sum), y, part);
                    c += L::N;
                }
            }
        }
    }
}
