//! Kernels of real numbers in pixels, and any operation on plain values.

use sedge_conv::{self as conv, Mix, Operand, Picture, PictureMut, Pooling, Window};

use super::{Bands, Run, Scratch};
use crate::op::{Activation, Function, Op};
use crate::plain;

/// What a step does to real numbers.
pub(crate) enum FloatKernel {
    /// Reads pixels, and what is added.
    Conv(conv::Conv),
    /// A chain of operations in bands of rows.
    Bands(Box<Bands>),
    ConvTranspose(conv::ConvTranspose),
    Pool(Pooling, Window),
    /// The mean of each channel.
    Mean,
    /// Of two pictures.
    Binary(conv::Binary, Activation),
    /// A picture times a value for each of its channels.
    Scale(Activation),
    Activate(Activation),
    Function(Function),
    /// Over the last axis.
    Softmax,
    Resize(Vec<Mix>, Vec<Mix>),
    /// A copy, perhaps with another stride.
    Copy,
    ToPixels,
    ToPlain,
    /// Any operation, on values without gaps; sizes of the inputs and of the output.
    Any(Box<Op>, Vec<Vec<usize>>, Vec<usize>),
}

impl FloatKernel {
    /// Values of scratch that it needs.
    pub(crate) fn scratch(&self, input: conv::Shape, threads: usize) -> usize {
        match self {
            FloatKernel::Conv(conv) => conv.scratch(input, threads),
            FloatKernel::ConvTranspose(conv) => conv.scratch(input, threads),
            _ => 0,
        }
    }

    pub(crate) fn run(&self, run: &Run<'_>, out: &mut [f32], scratch: &mut Scratch) {
        let Run { write, team, .. } = *run;
        let x = |i: usize| run.pixels(i);
        let count = write.count();
        match self {
            FloatKernel::Bands(bands) => return bands.run(run, out),
            FloatKernel::ToPlain => {
                return conv::to_planes(x(0), &mut out[write.offset..][..count], team);
            }
            FloatKernel::Any(op, sizes, shape) => {
                let inputs: Vec<plain::Array<'_, f32>> = (0..run.reads.len())
                    .map(|i| (run.plain(i), &sizes[i][..]))
                    .collect();
                return plain::run(op, &inputs, shape, &mut out[write.offset..][..count]);
            }
            _ => {}
        }
        let mut y = write.picture_mut(out);
        match self {
            FloatKernel::Conv(conv) => {
                let add = (run.reads.len() > 1).then(|| x(1));
                conv.run(x(0), add, &mut y, scratch.floats(), team);
            }
            FloatKernel::ConvTranspose(conv) => {
                conv.run(x(0), None, &mut y, scratch.floats(), team);
            }
            FloatKernel::Pool(pooling, window) => {
                let pooled = conv::pool(*pooling, *window, x(0), &mut y, team);
                debug_assert_eq!(pooled, Ok(()), "the window was checked with the graph");
            }
            FloatKernel::Mean => conv::global_average(x(0), &mut y, team),
            FloatKernel::Binary(binary, activation) => {
                conv::binary(
                    *binary,
                    x(0),
                    Operand::Picture(x(1)),
                    *activation,
                    &mut y,
                    team,
                );
            }
            FloatKernel::Scale(activation) => {
                let scales = Operand::Pictures(run.plain(1));
                conv::binary(conv::Binary::Mul, x(0), scales, *activation, &mut y, team);
            }
            FloatKernel::Activate(activation) => conv::activate(x(0), *activation, &mut y, team),
            FloatKernel::Function(function) => each(x(0), &mut y, |x| function.of(x)),
            FloatKernel::Softmax => conv::softmax(x(0), &mut y, team),
            FloatKernel::Resize(rows, columns) => conv::resize(x(0), rows, columns, &mut y, team),
            FloatKernel::Copy => each(x(0), &mut y, |x| x),
            FloatKernel::ToPixels => conv::from_planes(run.plain(0), &mut y, team),
            FloatKernel::Bands(_) | FloatKernel::ToPlain | FloatKernel::Any(..) => {
                unreachable!("done above")
            }
        }
    }
}

/// `f` of each value.
fn each(x: Picture<'_>, y: &mut PictureMut<'_>, f: impl Fn(f32) -> f32) {
    for i in 0..x.shape().pixels() {
        for (y, &x) in y.pixel(i).iter_mut().zip(x.pixel(i)) {
            *y = f(x);
        }
    }
}
