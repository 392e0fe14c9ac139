//! What a step of a program does: one kernel on values at known places.

mod bands;
mod bytes;
mod floats;
mod planes;

use sedge_conv::{Aligned, Picture, PictureMut, Shape};
use sedge_kernels::Team;

use crate::nd;
use crate::op::Op;

pub(crate) use bands::{Bands, Memory, Move, Stage, Work};
pub(crate) use bytes::ByteKernel;
pub(crate) use floats::FloatKernel;
pub(crate) use planes::{PlaneKernel, plane_stride};

/// Memory of a program: buffers that steps read and write, and scratch of single steps.
#[derive(Default)]
pub(crate) struct Buffers {
    pub(crate) floats: Vec<Option<Aligned>>,
    pub(crate) bytes: Vec<Option<Aligned<u8>>>,
    pub(crate) scratch: Scratch,
}

/// What a kernel needs while it runs.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) floats: Option<Aligned>,
    pub(crate) bytes: Option<Aligned<u8>>,
}

impl Scratch {
    pub(crate) fn floats(&mut self) -> &mut [f32] {
        self.floats.as_mut().map_or(&mut [], Aligned::values_mut)
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        self.bytes.as_mut().map_or(&mut [], Aligned::values_mut)
    }
}

impl Buffers {
    pub(crate) fn size(&self) -> usize {
        let floats = self.floats.iter().chain([&self.scratch.floats]).flatten();
        let bytes = self.bytes.iter().chain([&self.scratch.bytes]).flatten();
        let floats: usize = floats.map(|x| size_of_val(x.values())).sum();
        floats + bytes.map(|x| x.values().len()).sum::<usize>()
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
    /// Which buffer, of bytes or of floats.
    pub(crate) buffer: usize,
    /// How it lies there.
    pub(crate) form: Form,
    /// Its first value.
    pub(crate) offset: usize,
    /// From a pixel (of planes: from a plane) to the next.
    pub(crate) stride: usize,
    /// Its sizes as a picture's.
    pub(crate) shape: Shape,
}

impl Place {
    pub(crate) fn count(self) -> usize {
        self.shape.values()
    }

    fn picture<T>(self, values: &[T]) -> Picture<'_, T> {
        Picture::strided(&values[self.offset..], self.shape, self.stride)
    }

    fn picture_mut<T>(self, values: &mut [T]) -> PictureMut<'_, T> {
        PictureMut::strided(&mut values[self.offset..], self.shape, self.stride)
    }

    /// Whether values lie without gaps.
    pub(crate) fn is_whole(self) -> bool {
        self.stride == self.shape.c || self.shape.pixels() <= 1
    }

    /// The same values in other sizes, without gaps.
    pub(crate) fn seen_as(self, form: Form, shape: Shape) -> Place {
        Place {
            form,
            shape,
            stride: shape.c,
            ..self
        }
    }
}

/// What a step does.
pub(crate) enum Kernel {
    /// Reads and writes pixels or plain values.
    Float(FloatKernel),
    /// Writes planes, or reads them.
    Plane(PlaneKernel),
    /// Reads or writes 8-bit values.
    Byte(ByteKernel),
}

/// What a step runs on.
pub(crate) struct Run<'a> {
    pub(crate) buffers: &'a Buffers,
    pub(crate) reads: &'a [Place],
    pub(crate) write: Place,
    pub(crate) team: &'a Team,
}

impl<'a> Run<'a> {
    fn floats(&self, i: usize) -> &'a [f32] {
        let buffer = &self.buffers.floats[self.reads[i].buffer];
        buffer.as_ref().map_or(&[], Aligned::values)
    }

    /// An input as pixels.
    fn pixels(&self, i: usize) -> Picture<'a> {
        self.reads[i].picture(self.floats(i))
    }

    /// An input as values without gaps.
    fn plain(&self, i: usize) -> &'a [f32] {
        &self.floats(i)[self.reads[i].offset..][..self.reads[i].count()]
    }

    /// An input in 8 bits.
    fn bytes(&self, i: usize) -> Picture<'a, u8> {
        let buffer = &self.buffers.bytes[self.reads[i].buffer];
        self.reads[i].picture(buffer.as_ref().map_or(&[], Aligned::values))
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
        Op::Expand(to) => Op::Expand(turned(to)?),
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
