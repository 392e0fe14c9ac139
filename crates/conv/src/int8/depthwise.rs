//! Depthwise convolution: each channel by itself, so vectors go along channels.

use std::ops::Range;

use sedge_kernels::Team;

use crate::{Picture, Shape, Window};

use super::PANEL;
use super::gemm::{BLOCK, Span, Sums, share};
use super::sets::Set;

#[cfg(target_arch = "x86_64")]
pub(super) mod quads;

/// One row of results of up to [`PANEL`] channels.
pub(super) struct Line<'a> {
    depthwise: &'a Depthwise,
    panel: usize,
    /// The picture's first pixel.
    x: *const u8,
    stride: usize,
    h: usize,
    w: usize,
    /// Which row of a picture's results it is, and its first pixel of all.
    row: usize,
    pixel: usize,
}

impl Line<'_> {
    /// Channels of the panel.
    fn channels(&self) -> usize {
        (self.depthwise.channels - self.panel * PANEL).min(PANEL)
    }

    /// Where row `ky` of the windows' taps lies, if it is on the picture: the panel's channels
    /// of its first pixel.
    #[inline(always)]
    fn tap_row(&self, ky: usize) -> Option<*const u8> {
        let window = &self.depthwise.window;
        let row = self.row * window.stride[0] + ky * window.dilation[0];
        let row = row.checked_sub(window.pads[0])?;
        // SAFETY: the row is on the picture, and the panel's channels are a pixel's.
        (row < self.h)
            .then(|| unsafe { self.x.add(row * self.w * self.stride + self.panel * PANEL) })
    }

    /// Where a tap's channels lie, `column` being counted from the left pad.
    #[inline(always)]
    fn tap(&self, row: Option<*const u8>, column: usize) -> *const u8 {
        let column = column.wrapping_sub(self.depthwise.window.pads[1]);
        match row {
            // SAFETY: the pixel is on the picture.
            Some(row) if column < self.w => unsafe { row.add(column * self.stride) },
            _ => self.depthwise.beyond.as_ptr(),
        }
    }
}

/// Sums of pixels `columns` of a line, at most [`BLOCK`]: defines what the others compute.
///
/// # Safety
/// The line's picture is there.
#[inline(always)]
pub(super) unsafe fn portable(line: &Line<'_>, columns: Range<usize>, sums: &mut Sums) {
    let d = line.depthwise;
    let window = &d.window;
    let [kh, kw] = window.kernel;
    let weights = &d.weights[line.panel * window.taps()..][..window.taps()];
    for strip in 0..line.channels().div_ceil(16) {
        let channels = (line.channels() - 16 * strip).min(16);
        for (pixel, column) in columns.clone().enumerate() {
            let mut sum = [0; 16];
            sum.copy_from_slice(&d.start[line.panel][16 * strip..][..16]);
            for ky in 0..kh {
                let row = line.tap_row(ky);
                for kx in 0..kw {
                    let from = line.tap(row, column * window.stride[1] + kx * window.dilation[1]);
                    let mut x = [0u8; 16];
                    // SAFETY: the tap has the panel's channels.
                    unsafe {
                        let from = from.add(16 * strip);
                        match channels {
                            16 => x = from.cast::<[u8; 16]>().read(),
                            n => std::ptr::copy_nonoverlapping(from, x.as_mut_ptr(), n),
                        }
                    }
                    let w = &weights[ky * kw + kx][16 * strip..][..16];
                    for ((sum, x), w) in sum.iter_mut().zip(x).zip(w) {
                        *sum += i32::from(x) * i32::from(*w);
                    }
                }
            }
            sums.0[strip][pixel] = sum;
        }
    }
}

/// Weights of a depthwise convolution.
#[derive(Debug)]
pub(super) struct Depthwise {
    window: Window,
    channels: usize,
    /// `[panel][tap]`
    weights: Vec<[i8; PANEL]>,
    start: Vec<[i32; PANEL]>,
    /// A panel's channels of a pixel beyond the edges.
    beyond: [u8; PANEL],
}

impl Depthwise {
    /// `weights`: `[channels, 1, kh, kw]`; `zero` is what padding holds.
    pub(super) fn new(channels: usize, window: Window, weights: &[i8], zero: u8) -> Depthwise {
        let taps = window.taps();
        let panels = channels.div_ceil(PANEL);
        let mut packed = vec![[0; PANEL]; panels * taps];
        let mut start = vec![[0; PANEL]; panels];
        for (c, w) in weights.chunks_exact(taps).enumerate() {
            let (panel, i) = (c / PANEL, c % PANEL);
            for (tap, w) in w.iter().enumerate() {
                packed[panel * taps + tap][i] = *w;
                start[panel][i] -= i32::from(zero) * i32::from(*w);
            }
        }
        Depthwise {
            window,
            channels,
            weights: packed,
            start,
            beyond: [zero; PANEL],
        }
    }

    /// For each channel, `f`'s number in its place of a panel, and 0 in the others.
    pub(super) fn place(&self, f: &dyn Fn(usize) -> f32) -> Vec<[f32; PANEL]> {
        let mut out = vec![[0.0; PANEL]; self.channels.div_ceil(PANEL)];
        for c in 0..self.channels {
            out[c / PANEL][c % PANEL] = f(c);
        }
        out
    }

    /// Calls `finish` with all sums of `y`'s pixels.
    pub(super) fn run(
        &self,
        set: &Set,
        x: Picture<'_, u8>,
        y: Shape,
        team: &Team,
        finish: &(dyn Fn(&Sums, Span) + Sync),
    ) {
        self.lines(x, y, team, &|line| {
            let mut sums = Sums::new();
            for first in (0..y.w).step_by(BLOCK) {
                let columns = first..y.w.min(first + BLOCK);
                let span = Span {
                    panel: line.panel,
                    pixel: line.pixel + first,
                    rows: columns.len(),
                    output: line.panel * PANEL,
                    outputs: line.channels(),
                };
                // SAFETY: the picture is there.
                unsafe { (set.line)(&line, columns, &mut sums) };
                finish(&sums, span);
            }
        });
    }

    /// Calls `f` with every line, as tasks of the team.
    pub(super) fn lines(
        &self,
        x: Picture<'_, u8>,
        y: Shape,
        team: &Team,
        f: &(dyn Fn(Line<'_>) + Sync),
    ) {
        let Shape { n, h, w, .. } = x.shape();
        let panels = self.channels.div_ceil(PANEL);
        let lines = y.n * y.h * panels;
        let tasks = match team.threads() {
            1 => 1,
            threads => lines.min(4 * threads),
        };
        assert!(n == y.n);
        team.run(tasks, &|task| {
            for i in share(lines, task, tasks) {
                let (row, panel) = (i / panels, i % panels);
                let picture = x.pixel(row / y.h * h * w).as_ptr();
                f(Line {
                    depthwise: self,
                    panel,
                    x: picture,
                    stride: x.stride(),
                    h,
                    w,
                    row: row % y.h,
                    pixel: row * y.w,
                });
            }
        });
    }
}
