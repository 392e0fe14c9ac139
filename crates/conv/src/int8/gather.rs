//! The values of windows, brought together: a row for each window, tap after tap.

use std::ops::Range;

use crate::{Picture, Shape, Window};

/// From where windows are read.
pub(super) struct Gather<'a> {
    window: Window,
    x: Picture<'a, u8>,
    y: Shape,
    /// Channels of a group.
    inputs: usize,
    /// What is beyond the edges.
    zero: u8,
}

impl<'a> Gather<'a> {
    /// Windows on `x`, one for each pixel of `y`.
    pub(super) fn new(
        window: Window,
        x: Picture<'a, u8>,
        y: Shape,
        inputs: usize,
        zero: u8,
    ) -> Self {
        Gather {
            window,
            x,
            y,
            inputs,
            zero,
        }
    }

    /// Writes a group's rows of `columns` bytes; those past the last tap keep what they hold.
    pub(super) fn rows(&self, group: usize, pixels: Range<usize>, out: &mut [u8], columns: usize) {
        let mut first = pixels.start;
        let mut rest = out;
        while first < pixels.end {
            // As far as the row of results goes.
            let last = pixels.end.min((first / self.y.w + 1) * self.y.w);
            let (out, after) = rest.split_at_mut((last - first) * columns);
            self.row(group, first, out, columns);
            (first, rest) = (last, after);
        }
    }

    /// The windows of results from `first` on, of one row.
    fn row(&self, group: usize, first: usize, out: &mut [u8], columns: usize) {
        let Shape { h, w, c, .. } = self.x.shape();
        let [kh, kw] = self.window.kernel;
        let [sh, sw] = self.window.stride;
        let [dh, dw] = self.window.dilation;
        let [top, left, ..] = self.window.pads;
        let run = kw * self.inputs;
        // Taps beside each other lie beside each other, so that they can be copied at once.
        let dense = dw == 1 && self.inputs == c && self.x.stride() == c;
        let (row, first) = (first / self.y.w, first % self.y.w);
        let (picture, row) = (row / self.y.h, row % self.y.h);
        for ky in 0..kh {
            let row = (row * sh + ky * dh).checked_sub(top).filter(|row| *row < h);
            for (i, out) in out.chunks_exact_mut(columns).enumerate() {
                let out = &mut out[ky * run..][..run];
                let Some(row) = row else {
                    out.fill(self.zero);
                    continue;
                };
                let row = (picture * h + row) * w;
                // Of the first tap, `left` further than it is.
                let column = (first + i) * sw;
                if dense && column >= left && column - left + kw <= w {
                    copy(out, &self.x.values()[(row + column - left) * c..]);
                    continue;
                }
                for (kx, out) in out.chunks_exact_mut(self.inputs).enumerate() {
                    let column = (column + kx * dw).checked_sub(left).filter(|x| *x < w);
                    match column {
                        None => out.fill(self.zero),
                        Some(column) => out.copy_from_slice(
                            &self.x.pixel(row + column)[group * self.inputs..][..self.inputs],
                        ),
                    }
                }
            }
        }
    }
}

/// Fills `out` from the beginning of `from`. A copy whose size is known is some instructions:
/// three pixels of three channels are what the first layer of most nets reads.
#[inline(always)]
fn copy(out: &mut [u8], from: &[u8]) {
    match (<&mut [u8; 9]>::try_from(&mut *out), from.first_chunk()) {
        (Ok(out), Some(from)) => *out = *from,
        _ => out.copy_from_slice(&from[..out.len()]),
    }
}
