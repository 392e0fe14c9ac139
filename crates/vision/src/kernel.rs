//! What a step of a program does: one kernel on values at known places.

use sedge_conv::{self as conv, Operand, Picture, PictureMut, Shape};
use sedge_kernels::Team;

use crate::nd;
use crate::op::{Activation, Function, Op};
use crate::plain;

/// Memory of a program: buffers that steps read and write, and scratch of single steps.
#[derive(Default)]
pub(crate) struct Buffers {
    pub(crate) floats: Vec<Vec<f32>>,
    pub(crate) bytes: Vec<Vec<u8>>,
    pub(crate) scratch: Scratch,
}

/// What a kernel needs while it runs.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) floats: Vec<f32>,
    pub(crate) bytes: Vec<u8>,
}

impl Buffers {
    pub(crate) fn bytes(&self) -> usize {
        let floats: usize = self.floats.iter().map(Vec::len).sum();
        let bytes: usize = self.bytes.iter().map(Vec::len).sum();
        4 * (floats + self.scratch.floats.len()) + bytes + self.scratch.bytes.len()
    }
}

/// How a value lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// As ONNX has it: the last axis together.
    Plain,
    /// A picture with the channels of each pixel together.
    Pixels,
    /// The same in 8 bits.
    Bytes,
    /// A picture with the pixels of each channel together, planes apart by whole cache lines.
    Planes,
}

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Which buffer, of those of its form's type.
    pub(crate) buffer: usize,
    /// Its first value.
    pub(crate) offset: usize,
    /// From a pixel (of planes: from a plane) to the next.
    pub(crate) stride: usize,
    /// Its sizes as pictures; of others, all values in `c`.
    pub(crate) shape: Shape,
}

impl Place {
    fn count(self) -> usize {
        self.shape.values()
    }

    fn picture<T>(self, values: &[T]) -> Picture<'_, T> {
        Picture::strided(&values[self.offset..], self.shape, self.stride)
    }

    fn picture_mut<T>(self, values: &mut [T]) -> PictureMut<'_, T> {
        PictureMut::strided(&mut values[self.offset..], self.shape, self.stride)
    }

    fn is_dense(self) -> bool {
        self.stride == self.shape.c
    }
}

/// What a step does.
pub(crate) enum Kernel {
    /// Reads pixels, and what is added.
    Conv(conv::Conv),
    Pool(conv::Pooling, sedge_conv::Window),
    /// The mean of each channel.
    Mean,
    /// Of two pictures.
    Binary(conv::Binary, Activation),
    /// A picture times a value for each of its channels.
    Scale(Activation),
    Activate(Activation),
    Function(Function),
    /// A copy, perhaps with another stride.
    Copy,
    ToPixels,
    ToPlain,
    /// Moves values of pixels: the operation with its axes in the order of pixels.
    Move(Box<Op>, Vec<Vec<usize>>, Vec<usize>),
    /// Any operation, on plain values; sizes of the inputs and of the output.
    Plain(Box<Op>, Vec<Vec<usize>>, Vec<usize>),
    /// Any that writes bytes.
    #[allow(dead_code)]
    Bytes(()),
}

impl Kernel {
    /// Values of scratch that it needs.
    pub(crate) fn scratch(&self, reads: &[Place], threads: usize) -> usize {
        match self {
            Kernel::Conv(conv) => conv.scratch(reads[0].shape, threads),
            _ => 0,
        }
    }

    pub(crate) fn run(
        &self,
        buffers: &Buffers,
        reads: &[Place],
        write: Place,
        out: &mut [f32],
        scratch: &mut Scratch,
        team: &Team,
    ) {
        let floats = |i: usize| &buffers.floats[reads[i].buffer][..];
        let x = |i: usize| reads[i].picture(floats(i));
        let plain = |i: usize| &floats(i)[reads[i].offset..][..reads[i].count()];
        let mut y = write.picture_mut(out);
        match self {
            Kernel::Conv(conv) => {
                let add = (reads.len() > 1).then(|| x(1));
                conv.run(x(0), add, &mut y, &mut scratch.floats, team);
            }
            Kernel::Pool(pooling, window) => {
                let pooled = conv::pool(*pooling, *window, x(0), &mut y, team);
                debug_assert_eq!(pooled, Ok(()), "the window was checked with the graph");
            }
            Kernel::Mean => conv::global_average(x(0), &mut y, team),
            Kernel::Binary(binary, activation) => {
                conv::binary(
                    *binary,
                    x(0),
                    Operand::Picture(x(1)),
                    *activation,
                    &mut y,
                    team,
                );
            }
            Kernel::Scale(activation) => {
                let scales = Operand::Pictures(plain(1));
                conv::binary(conv::Binary::Mul, x(0), scales, *activation, &mut y, team);
            }
            Kernel::Activate(activation) => conv::activate(x(0), *activation, &mut y, team),
            Kernel::Function(function) => each(x(0), &mut y, |x| function.of(x)),
            Kernel::Copy => each(x(0), &mut y, |x| x),
            Kernel::ToPixels => {
                let Shape { n, h, w, c } = write.shape;
                to_pixels(plain(0), [n, h * w, c], &mut y);
            }
            Kernel::ToPlain => {
                let count = write.count();
                to_plain(x(0), &mut out[write.offset..][..count]);
            }
            Kernel::Move(op, sizes, _) => {
                let inputs: Vec<plain::Array<'_, f32>> = (0..reads.len())
                    .map(|i| (plain(i), &sizes[i][..]))
                    .collect();
                let count = write.count();
                if !plain::rearrange(op, &inputs, &mut out[write.offset..][..count]) {
                    unreachable!("only operations that move values become moves");
                }
            }
            Kernel::Plain(op, sizes, shape) => {
                let inputs: Vec<plain::Array<'_, f32>> = (0..reads.len())
                    .map(|i| (plain(i), &sizes[i][..]))
                    .collect();
                let count = write.count();
                plain::run(op, &inputs, shape, &mut out[write.offset..][..count]);
            }
            Kernel::Bytes(()) => unreachable!("writes bytes"),
        }
    }

    pub(crate) fn run_bytes(
        &self,
        _buffers: &Buffers,
        _reads: &[Place],
        _write: Place,
        _out: &mut [u8],
        _scratch: &mut Scratch,
        _team: &Team,
    ) {
    }
}

/// `f` of each value.
fn each(x: Picture<'_>, y: &mut PictureMut<'_>, f: impl Fn(f32) -> f32) {
    let shape = x.shape();
    let dense = x.stride() == shape.c && y.stride() == shape.c;
    if dense {
        let values = &x.values()[..shape.values()];
        for (y, &x) in y.values().iter_mut().zip(values) {
            *y = f(x);
        }
        return;
    }
    for i in 0..shape.pixels() {
        for (y, &x) in y.pixel(i).iter_mut().zip(x.pixel(i)) {
            *y = f(x);
        }
    }
}

/// `[n, c, pixels]` to `[n, pixels, c]`, in blocks that stay in the first cache.
fn to_pixels(x: &[f32], [n, pixels, c]: [usize; 3], y: &mut PictureMut<'_>) {
    const BLOCK: usize = 16;
    let stride = y.stride();
    let y = y.values();
    for picture in 0..n {
        let x = &x[picture * c * pixels..][..c * pixels];
        for first in (0..pixels).step_by(BLOCK) {
            let block = BLOCK.min(pixels - first);
            for channel in 0..c {
                let x = &x[channel * pixels + first..][..block];
                let start = (picture * pixels + first) * stride + channel;
                for (i, &x) in x.iter().enumerate() {
                    y[start + i * stride] = x;
                }
            }
        }
    }
}

/// `[n, pixels, c]` to `[n, c, pixels]`.
fn to_plain(x: Picture<'_>, y: &mut [f32]) {
    const BLOCK: usize = 16;
    let shape = x.shape();
    let (pixels, c, stride) = (shape.h * shape.w, shape.c, x.stride());
    let x = x.values();
    for picture in 0..shape.n {
        let y = &mut y[picture * c * pixels..][..c * pixels];
        for first in (0..c).step_by(BLOCK) {
            let block = BLOCK.min(c - first);
            for pixel in 0..pixels {
                let x = &x[(picture * pixels + pixel) * stride + first..][..block];
                for (i, &x) in x.iter().enumerate() {
                    y[(first + i) * pixels + pixel] = x;
                }
            }
        }
    }
}

/// An operation that moves values, as it is for pictures whose channels are the last axis.
pub(crate) fn of_pixels(op: &Op) -> Option<Op> {
    // Axis `i` of pixels is axis `ORDER[i]` of ONNX's.
    const ORDER: [usize; 4] = [0, 2, 3, 1];
    fn turned<T: Copy>(x: &[T]) -> Option<Vec<T>> {
        (x.len() == 4).then(|| ORDER.iter().map(|&i| x[i]).collect())
    }
    Some(match op {
        Op::Slice { start, step, size } => Op::Slice {
            start: turned(start)?,
            step: turned(step)?,
            size: turned(size)?,
        },
        Op::Pad {
            before,
            after,
            fill,
        } => Op::Pad {
            before: turned(before)?,
            after: turned(after)?,
            fill: *fill,
        },
        Op::Concat(axis) => Op::Concat(ORDER.iter().position(|x| x == axis)?),
        _ => return None,
    })
}

/// Sizes of a picture in the order of pixels.
pub(crate) fn pixel_sizes(shape: Shape) -> Vec<usize> {
    vec![shape.n, shape.h, shape.w, shape.c]
}

/// A value's sizes as a picture's; those of other ranks are one pixel for each row.
pub(crate) fn as_picture(shape: &[usize]) -> Shape {
    match *shape {
        [n, c, h, w] => Shape { n, h, w, c },
        [ref rows @ .., c] => Shape {
            n: nd::count(rows).unwrap_or(0),
            h: 1,
            w: 1,
            c,
        },
        [] => Shape {
            n: 1,
            h: 1,
            w: 1,
            c: 1,
        },
    }
}

impl Place {
    /// Whether values lie without gaps.
    pub(crate) fn is_whole(self) -> bool {
        self.is_dense() || self.shape.pixels() <= 1
    }
}
