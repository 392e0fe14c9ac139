//! Pooling: the greatest value or the mean of each window, and of whole pictures.

use sedge_kernels::Team;

use crate::depthwise::inside;
use crate::lanes::{Kernel, Lanes, Set};
use crate::shared::{Shared, part, tasks};
use crate::{Picture, PictureMut, Shape, Window, WindowError};

/// What a window gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The greatest value; padding is none.
    Max,
    /// The mean.
    Average {
        /// Rows above, columns to the left, rows below and columns to the right that count as
        /// values 0: the window's pads to count padding, zeros to count pixels only.
        counted: [usize; 4],
    },
}

/// Pools each channel by itself. A result that covers less than a whole window at the end
/// (ONNX's `ceil_mode`) is one of a window with wider pads.
///
/// # Errors
/// When the window is none or does not fit.
///
/// # Panics
/// When `y` is not as large as the windows are many.
pub fn pool(
    pooling: Pooling,
    window: Window,
    x: Picture,
    y: &mut PictureMut,
    team: &Team,
) -> Result<(), WindowError> {
    pool_by(Set::best(), pooling, window, x, y, team)
}

fn pool_by(
    set: Set,
    pooling: Pooling,
    window: Window,
    x: Picture,
    y: &mut PictureMut,
    team: &Team,
) -> Result<(), WindowError> {
    let (xs, ys, stride) = (x.shape(), y.shape(), y.stride());
    let [h, w] = window.output(xs.h, xs.w)?;
    assert_eq!(ys, Shape { h, w, ..xs }, "the result's shape differs");
    let lines = ys.n * ys.h;
    let tasks = tasks(lines, team.threads());
    let to = Shared::new(y.values());
    team.run(tasks, &|task| {
        set.run(Lines {
            pooling,
            window,
            x,
            lines: part(task, tasks, lines),
            size: [ys.h, ys.w],
            y: to,
            stride,
        });
    });
    Ok(())
}

struct Lines<'a> {
    pooling: Pooling,
    window: Window,
    x: Picture<'a>,
    lines: std::ops::Range<usize>,
    /// Rows and columns of y.
    size: [usize; 2],
    /// The lines are this work's own.
    y: Shared<f32>,
    stride: usize,
}

impl Kernel for Lines<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (shape, window) = (self.x.shape(), self.window);
        let start =
            |axis: usize, i: usize| (i * window.stride[axis]) as isize - window.pads[axis] as isize;
        let taps = |axis: usize, start: isize, size: usize| {
            inside(start, window.kernel[axis], window.dilation[axis], size)
        };
        // Taps that count, along one axis.
        let counted = |axis: usize, start: isize, size: usize| match self.pooling {
            Pooling::Max => 1,
            Pooling::Average { counted } => {
                let size = size + counted[axis] + counted[axis + 2];
                taps(axis, start + counted[axis] as isize, size).len()
            }
        };
        for line in self.lines.clone() {
            let picture = line / self.size[0] * shape.h;
            let top = start(0, line % self.size[0]);
            let rows = taps(0, top, shape.h);
            for pixel in 0..self.size[1] {
                let left = start(1, pixel);
                let columns = taps(1, left, shape.w);
                let count = counted(0, top, shape.h) * counted(1, left, shape.w);
                let scale = l.splat(1.0 / count as f32);
                let mut c = 0;
                while c < shape.c {
                    let part = l.first(shape.c - c);
                    let mut sum = match self.pooling {
                        Pooling::Max => l.splat(f32::NEG_INFINITY),
                        Pooling::Average { .. } => l.splat(0.0),
                    };
                    // SAFETY: only taps inside the picture are read, which has its
                    // channels, and y has the pixel.
                    unsafe {
                        for i in rows.clone() {
                            let row = (top + (i * window.dilation[0]) as isize) as usize;
                            let row = (picture + row) * shape.w;
                            for j in columns.clone() {
                                let column = (left + (j * window.dilation[1]) as isize) as usize;
                                let x = (row + column) * self.x.stride() + c;
                                let x = l.load_part(self.x.values().as_ptr().add(x), part);
                                sum = match self.pooling {
                                    Pooling::Max => l.max(sum, x),
                                    Pooling::Average { .. } => l.add(sum, x),
                                };
                            }
                        }
                        if let Pooling::Average { .. } = self.pooling {
                            sum = l.mul(sum, scale);
                        }
                        let y = self.y.at((line * self.size[1] + pixel) * self.stride + c);
                        l.store_part(sum, y, part);
                    }
                    c += L::N;
                }
            }
        }
    }
}

/// The mean of each channel of each picture; `y` is `[n, 1, 1, c]`.
///
/// # Panics
/// When it is not, or pictures have no pixels.
pub fn global_average(x: Picture, y: &mut PictureMut, team: &Team) {
    average(Set::best(), x, y, team);
}

fn average(set: Set, x: Picture, y: &mut PictureMut, team: &Team) {
    let shape = x.shape();
    let one = Shape {
        h: 1,
        w: 1,
        ..shape
    };
    assert_eq!(y.shape(), one, "the result's shape differs");
    assert!(shape.h * shape.w > 0, "the mean of nothing");
    // Work is cut along channels, by whole cache lines.
    let lines = shape.c.div_ceil(16);
    let tasks = tasks(lines, team.threads());
    let stride = y.stride();
    let to = Shared::new(y.values());
    for n in 0..shape.n {
        team.run(tasks, &|task| {
            let lines = part(task, tasks, lines);
            set.run(Mean {
                x: &x.values()[n * shape.h * shape.w * x.stride()..],
                pixels: shape.h * shape.w,
                stride: x.stride(),
                channels: lines.start * 16..(lines.end * 16).min(shape.c),
                // SAFETY: y has a pixel for each picture.
                y: unsafe { to.at(n * stride) },
            });
        });
    }
}

struct Mean<'a> {
    x: &'a [f32],
    pixels: usize,
    stride: usize,
    channels: std::ops::Range<usize>,
    /// These channels are this work's own.
    y: *mut f32,
}

impl Kernel for Mean<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let mut c = self.channels.start;
        while c < self.channels.end {
            let part = l.first(self.channels.end - c);
            // Four sums: the next addition need not wait for the one before.
            let mut sums = [l.splat(0.0); 4];
            // SAFETY: pixels and channels are in the picture, channels in y.
            unsafe {
                let x = self.x.as_ptr().add(c);
                for pixel in 0..self.pixels / 4 {
                    for (i, sum) in sums.iter_mut().enumerate() {
                        let x = x.add((4 * pixel + i) * self.stride);
                        *sum = l.add(*sum, l.load_part(x, part));
                    }
                }
                for pixel in self.pixels / 4 * 4..self.pixels {
                    sums[0] = l.add(sums[0], l.load_part(x.add(pixel * self.stride), part));
                }
                let sum = l.add(l.add(sums[0], sums[1]), l.add(sums[2], sums[3]));
                let mean = l.mul(sum, l.splat(1.0 / self.pixels as f32));
                l.store_part(mean, self.y.add(c), part);
            }
            c += L::N;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, close};

    /// Pooling as it is written down: over a picture with its padding.
    fn plain(pooling: Pooling, window: Window, x: Picture, y: &mut PictureMut) {
        let (out, size) = (y.shape(), x.shape());
        for i in 0..out.pixels() {
            let (n, h, w) = (i / out.w / out.h, i / out.w % out.h, i % out.w);
            for c in 0..out.c {
                let (mut max, mut sum, mut count) = (f32::NEG_INFINITY, 0.0, 0);
                for tap in 0..window.taps() {
                    let at = |axis: usize, of: usize, tap: usize| {
                        (of * window.stride[axis] + tap * window.dilation[axis]) as isize
                            - window.pads[axis] as isize
                    };
                    let row = at(0, h, tap / window.kernel[1]);
                    let column = at(1, w, tap % window.kernel[1]);
                    let within = |more: [usize; 4]| {
                        row >= -(more[0] as isize)
                            && column >= -(more[1] as isize)
                            && row < (size.h + more[2]) as isize
                            && column < (size.w + more[3]) as isize
                    };
                    if within([0; 4]) {
                        let pixel = (n * size.h + row as usize) * size.w + column as usize;
                        max = max.max(x.pixel(pixel)[c]);
                        sum += x.pixel(pixel)[c];
                    }
                    if let Pooling::Average { counted } = pooling {
                        count += usize::from(within(counted));
                    }
                }
                y.pixel(i)[c] = match pooling {
                    Pooling::Max => max,
                    Pooling::Average { .. } => sum / count as f32,
                };
            }
        }
    }

    #[test]
    fn pooling_is_its_definition() {
        let mut random = Random(1);
        for round in 0..60 {
            let kernel = 1 + random.below(4);
            let mut window = Window::square(kernel, 1 + random.below(3), random.below(kernel));
            window.pads[2] += random.below(2).min(kernel - 1 - window.pads[2]);
            window.dilation[1] = 1 + random.below(2) * usize::from(window.pads == [0; 4]);
            let shape = Shape {
                n: 1 + random.below(2),
                h: 7 + random.below(6),
                w: 7 + random.below(6),
                c: 1 + random.below(40),
            };
            let stride = shape.c + random.below(3);
            let x = random.values(shape.pixels() * stride);
            let x = Picture::strided(&x, shape, stride);
            let [h, w] = window.output(shape.h, shape.w).unwrap();
            let out = Shape { h, w, ..shape };
            let pooling = match round % 3 {
                0 => Pooling::Max,
                1 => Pooling::Average { counted: [0; 4] },
                _ => Pooling::Average {
                    counted: window.pads,
                },
            };
            let mut expected = vec![0.0; out.values()];
            plain(pooling, window, x, &mut PictureMut::new(&mut expected, out));
            for set in Set::all() {
                let mut y = vec![0.0; out.values()];
                let mut to = PictureMut::new(&mut y, out);
                pool_by(set, pooling, window, x, &mut to, &Team::new(2)).unwrap();
                close(&y, &expected, 1e-6);
            }
        }
    }

    #[test]
    fn a_global_average_is_one_of_a_window_as_large_as_the_picture() {
        let mut random = Random(2);
        for c in [1, 15, 16, 40, 129] {
            let shape = Shape {
                n: 2,
                h: 5,
                w: 7,
                c,
            };
            let x = random.values(shape.values());
            let x = Picture::new(&x, shape);
            let mut window = Window::square(5, 1, 0);
            window.kernel[1] = 7;
            let out = Shape {
                n: 2,
                h: 1,
                w: 1,
                c,
            };
            let mut expected = vec![0.0; 2 * c];
            let mut to = PictureMut::new(&mut expected, out);
            plain(Pooling::Average { counted: [0; 4] }, window, x, &mut to);
            for set in Set::all() {
                let mut y = vec![0.0; 2 * c];
                average(set, x, &mut PictureMut::new(&mut y, out), &Team::new(2));
                close(&y, &expected, 1e-6);
            }
        }
    }
}
