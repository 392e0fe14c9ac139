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
        let Shape { h, w, c, .. } = self.x.shape();
        let [kh, kw] = self.window.kernel;
        let [sh, sw] = self.window.stride;
        let [dh, dw] = self.window.dilation;
        let [top, left, ..] = self.window.pads;
        // Taps beside each other lie beside each other, so that they can be copied at once.
        let dense = dw == 1 && self.inputs == c && self.x.stride() == c;
        for (pixel, out) in pixels.zip(out.chunks_exact_mut(columns)) {
            let (row, column) = (pixel / self.y.w, pixel % self.y.w);
            let (picture, row) = (row / self.y.h, row % self.y.h);
            // Of the first tap, `top` and `left` further than it is.
            let (row, column) = (row * sh, column * sw);
            for ky in 0..kh {
                let out = &mut out[ky * kw * self.inputs..][..kw * self.inputs];
                let Some(row) = (row + ky * dh).checked_sub(top).filter(|row| *row < h) else {
                    out.fill(self.zero);
                    continue;
                };
                let row = (picture * h + row) * w;
                if dense && column >= left && column - left + kw <= w {
                    let from = (row + column - left) * c;
                    copy(out, &self.x.values()[from..]);
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
