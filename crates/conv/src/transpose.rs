//! Transposed convolution, as ordinary products: one for each phase.
//!
//! With a stride of s, the output rows y with the same remainder of y by s meet the same taps, and
//! read neighbouring input rows for neighbouring outputs. So each of the s · s phases is a
//! convolution of stride 1 with a part of the taps, that writes every s-th pixel.

use sedge_kernels::Team;

use crate::conv::{pad, padded};
use crate::lanes::Set;
use crate::product::{Added, Panels, Steps, Walk};
use crate::shared::Shared;
use crate::{Activation, ConvError, ConvShape, Picture, PictureMut, Shape, WindowError};

/// A transposed convolution, its weights packed for this machine.
pub struct ConvTranspose {
    shape: ConvShape,
    /// Rows and columns that the result has beyond those that its windows need.
    extra: [usize; 2],
    activation: Activation,
    axes: [Vec<Phase>; 2],
    /// `[phase of rows][phase of columns]`
    panels: Vec<Panels>,
}

/// The taps that meet the outputs of one remainder, along one axis. They are numbered from the
/// one that reads the first input.
#[derive(Clone, Copy)]
struct Phase {
    taps: usize,
    /// The last tap of the kernel that belongs to it: the first that is walked.
    last: usize,
    /// From a tap to the one before it in the kernel.
    apart: usize,
    /// The input that the first output's first tap reads; it may be in the padding.
    first: isize,
    /// Inputs from a tap to the next.
    step: usize,
}

impl Phase {
    /// Of outputs `phase`, `phase + stride`, …
    fn of(phase: usize, kernel: usize, stride: usize, dilation: usize, pad: usize) -> Phase {
        // Tap k of output o reads input (o + pad − k · dilation) / stride, where that is whole.
        let met = |&k: &usize| (phase + pad + k * dilation * (stride - 1)).is_multiple_of(stride);
        let taps = (0..kernel).filter(met).count();
        let last = (0..kernel).rev().find(met).unwrap_or(0);
        let apart = match (0..last).rev().find(met) {
            Some(before) => last - before,
            None => 1,
        };
        let first = (phase + pad) as isize - (last * dilation) as isize;
        Phase {
            taps,
            last,
            apart,
            first: first.div_euclid(stride as isize),
            step: apart * dilation / stride,
        }
    }
}

impl ConvTranspose {
    /// Packs weights `[inputs, outputs / groups, kernel rows, kernel columns]` and a bias for each
    /// output. The window is that of the convolution which this one turns around; `extra` is ONNX's
    /// `output_padding`.
    ///
    /// # Errors
    /// When the shape is none, or weights or bias are not as long as it says.
    pub fn new(
        shape: ConvShape,
        extra: [usize; 2],
        weights: &[f32],
        bias: Option<&[f32]>,
        activation: Activation,
    ) -> Result<ConvTranspose, ConvError> {
        ConvTranspose::of(Set::best(), shape, extra, weights, bias, activation)
    }

    fn of(
        set: Set,
        shape: ConvShape,
        extra: [usize; 2],
        weights: &[f32],
        bias: Option<&[f32]>,
        activation: Activation,
    ) -> Result<ConvTranspose, ConvError> {
        shape.check(weights, bias)?;
        let window = shape.window;
        if extra.into_iter().any(|extra| extra > u16::MAX as usize) {
            return Err(WindowError::Large(window).into());
        }
        let axis = |axis: usize| -> Vec<Phase> {
            let [kernel, stride] = [window.kernel[axis], window.stride[axis]];
            let of = |phase| {
                Phase::of(
                    phase,
                    kernel,
                    stride,
                    window.dilation[axis],
                    window.pads[axis],
                )
            };
            (0..stride).map(of).collect()
        };
        let axes = [axis(0), axis(1)];
        let (inputs, outputs) = (shape.inputs / shape.groups, shape.outputs / shape.groups);
        let mut panels = Vec::new();
        for rows in &axes[0] {
            for columns in &axes[1] {
                let weight = |output: usize, input: usize, tap: usize| {
                    let row = rows.last - tap / columns.taps * rows.apart;
                    let column = columns.last - tap % columns.taps * columns.apart;
                    let input = output / outputs * inputs + input;
                    let at = (input * outputs + output % outputs) * window.kernel[0] + row;
                    weights[at * window.kernel[1] + column]
                };
                let taps = rows.taps * columns.taps;
                panels.push(Panels::new(
                    set,
                    shape.groups,
                    outputs,
                    inputs,
                    taps,
                    bias,
                    weight,
                ));
            }
        }
        Ok(ConvTranspose {
            shape,
            extra,
            activation,
            axes,
            panels,
        })
    }

    /// The result's shape.
    ///
    /// # Errors
    /// When the picture has other channels, or pads leave nothing of the result.
    pub fn output(&self, x: Shape) -> Result<Shape, ConvError> {
        self.shape.check_input(x)?;
        let window = self.shape.window;
        let along = |axis: usize, size: usize| {
            let reach = (window.kernel[axis] - 1) * window.dilation[axis] + 1 + self.extra[axis];
            let all = size.checked_sub(1)? * window.stride[axis] + reach;
            all.checked_sub(window.pads[axis] + window.pads[axis + 2])
                .filter(|&size| size > 0)
        };
        match (along(0, x.h), along(1, x.w)) {
            (Some(h), Some(w)) => Ok(Shape {
                n: x.n,
                h,
                w,
                c: self.shape.outputs,
            }),
            _ => Err(WindowError::NoRoom {
                window,
                h: x.h,
                w: x.w,
            }
            .into()),
        }
    }

    /// Pads of the input that all phases need, for a result of `size` rows and columns.
    fn pads(&self, x: Shape, size: [usize; 2]) -> [usize; 4] {
        let along = |axis: usize, inputs: usize| {
            let (mut before, mut behind) = (0, 0);
            for (number, phase) in self.axes[axis].iter().enumerate() {
                let outputs = self.outputs(axis, number, size[axis]);
                if phase.taps > 0 && outputs > 0 {
                    let last = phase.first + (outputs - 1 + (phase.taps - 1) * phase.step) as isize;
                    before = before.max(-phase.first);
                    behind = behind.max(last + 1 - inputs as isize);
                }
            }
            [before as usize, behind as usize]
        };
        let (rows, columns) = (along(0, x.h), along(1, x.w));
        [rows[0], columns[0], rows[1], columns[1]]
    }

    /// Outputs of a phase along an axis, of `size` of all.
    fn outputs(&self, axis: usize, phase: usize, size: usize) -> usize {
        size.saturating_sub(phase)
            .div_ceil(self.shape.window.stride[axis])
    }

    /// Values of scratch that [`ConvTranspose::run`] wants for this input. `threads` share it.
    pub fn scratch(&self, x: Shape, _threads: usize) -> usize {
        let Ok(y) = self.output(x) else { return 0 };
        match self.pads(x, [y.h, y.w]) {
            [0, 0, 0, 0] => 0,
            pads => padded(x, pads).values(),
        }
    }

    /// `y = activation(conv(x) + bias + add)`. Allocates nothing. Results do not depend on the
    /// team.
    ///
    /// # Panics
    /// When `y` or `add` is not shaped as [`ConvTranspose::output`] says, or scratch is shorter
    /// than [`ConvTranspose::scratch`].
    pub fn run(
        &self,
        x: Picture,
        add: Option<Picture>,
        y: &mut PictureMut,
        scratch: &mut [f32],
        team: &Team,
    ) {
        let shape = y.shape();
        assert_eq!(
            self.output(x.shape()),
            Ok(shape),
            "the result's shape differs"
        );
        if let Some(add) = add {
            assert_eq!(add.shape(), shape, "what is added has another shape");
        }
        let pads = self.pads(x.shape(), [shape.h, shape.w]);
        let x = match pads {
            [0, 0, 0, 0] => x,
            _ => pad(x, pads, scratch, team),
        };
        let stride = self.shape.window.stride;
        let (size, x_stride, y_stride) = (x.shape(), x.stride(), y.stride());
        let to = y.values();
        for (number, panels) in self.panels.iter().enumerate() {
            let phases = [number / stride[1], number % stride[1]];
            let [rows, columns] = [self.axes[0][phases[0]], self.axes[1][phases[1]]];
            let lines = self.outputs(0, phases[0], shape.h);
            let pixels = self.outputs(1, phases[1], shape.w);
            // A phase without taps reads nothing; every pixel has its bias.
            let taps = match rows.taps * columns.taps {
                0 => [0, 0],
                _ => [rows.taps, columns.taps],
            };
            let first = |phase: Phase, pad: usize| (phase.first + pad as isize).max(0) as usize;
            let from = match taps {
                [0, 0] => 0,
                _ => first(rows, pads[0]) * size.w + first(columns, pads[1]),
            };
            if lines * pixels == 0 {
                continue;
            }
            let walk = Walk {
                pictures: shape.n,
                lines,
                pixels,
                x: Steps::of(size.h, size.w, x_stride, [1, 1]),
                y: Steps::of(shape.h, shape.w, y_stride, stride),
                taps,
                pitch: [rows.step * size.w * x_stride, columns.step * x_stride],
            };
            let at = phases[0] * shape.w + phases[1];
            let add = add.map(|add| Added {
                values: &add.values()[at * add.stride()..],
                steps: Steps::of(shape.h, shape.w, add.stride(), stride),
            });
            let y = Shared::new(&mut to[at * y_stride..]);
            // SAFETY: a phase's windows are in the picture with its pads, and its outputs are
            // every `stride`-th of y's lines and pixels from `at` on; `y` is borrowed here alone.
            unsafe {
                panels.run(
                    &walk,
                    &x.values()[from * x_stride..],
                    add,
                    y,
                    self.activation,
                    team,
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Window;
    use crate::testing::{Random, close};

    /// Transposed convolution as it is written down: each input is spread over the result.
    fn plain(shape: ConvShape, weights: &[f32], bias: &[f32], x: Picture, y: &mut PictureMut) {
        let (window, out, size) = (shape.window, y.shape(), x.shape());
        let (inputs, outputs) = (shape.inputs / shape.groups, shape.outputs / shape.groups);
        for i in 0..out.pixels() {
            y.pixel(i).copy_from_slice(bias);
        }
        for i in 0..size.pixels() {
            let (n, h, w) = (i / size.w / size.h, i / size.w % size.h, i % size.w);
            for tap in 0..window.taps() {
                let at = |axis: usize, of: usize, tap: usize| {
                    (of * window.stride[axis] + tap * window.dilation[axis])
                        .wrapping_sub(window.pads[axis])
                };
                let row = at(0, h, tap / window.kernel[1]);
                let column = at(1, w, tap % window.kernel[1]);
                if row >= out.h || column >= out.w {
                    continue;
                }
                for o in 0..out.c {
                    for c in 0..inputs {
                        let c = o / outputs * inputs + c;
                        let weight = weights[(c * outputs + o % outputs) * window.taps() + tap];
                        y.pixel((n * out.h + row) * out.w + column)[o] += weight * x.pixel(i)[c];
                    }
                }
            }
        }
    }

    #[test]
    fn any_transposed_convolution_is_its_definition() {
        let mut random = Random(1);
        for round in 0..60 {
            let groups = 1 + random.below(2);
            let mut window = Window::square(2, 2, 0);
            if round > 5 {
                let mut two =
                    |from: usize, n: usize| std::array::from_fn(|_| from + random.below(n));
                window.kernel = two(1, 5);
                window.stride = two(1, 3);
                window.dilation = two(1, 2);
                let [above, below]: [usize; 2] = two(0, 2);
                window.pads = [above, below, below, above];
            }
            let shape = ConvShape {
                outputs: groups * (1 + random.below(20)),
                inputs: groups * (1 + random.below(6)),
                groups,
                window,
            };
            let extra = [0, 1].map(|axis| random.below(window.stride[axis]));
            let size = Shape {
                n: 1 + random.below(2),
                h: 3 + random.below(4),
                w: 3 + random.below(20),
                c: shape.inputs,
            };
            let weights = random.values(shape.weights().unwrap());
            let bias = random.values(shape.outputs);
            let x = random.values(size.values());
            let x = Picture::new(&x, size);
            for set in Set::all() {
                let activation = Activation::Identity;
                let conv = ConvTranspose::of(set, shape, extra, &weights, Some(&bias), activation)
                    .unwrap();
                let Ok(out) = conv.output(size) else { continue };
                let mut expected = vec![0.0; out.values()];
                let mut to = PictureMut::new(&mut expected, out);
                plain(shape, &weights, &bias, x, &mut to);
                let add = random.values(out.values());
                let expected: Vec<f32> = expected.iter().zip(&add).map(|(x, y)| x + y).collect();
                let mut y = vec![f32::NAN; out.values()];
                let mut scratch = vec![f32::NAN; conv.scratch(size, 2)];
                let add = Some(Picture::new(&add, out));
                let mut to = PictureMut::new(&mut y, out);
                conv.run(x, add, &mut to, &mut scratch, &Team::new(2));
                close(&y, &expected, 2e-5);
            }
        }
    }
}
