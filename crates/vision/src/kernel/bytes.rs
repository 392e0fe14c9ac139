//! Kernels of values in 8 bits.

use sedge_conv::int8::{self, Int8Conv, Pair, Quant, Table};
use sedge_conv::{Shape, Window};

use super::{Run, Scratch};

/// What a step does to 8-bit values.
pub(crate) enum ByteKernel {
    /// Reads bytes, and bytes that are added with the grid that they are on.
    Conv(Box<Int8Conv>, Option<Quant>),
    /// The same, but writes real numbers.
    ConvToFloat(Box<Int8Conv>, Option<Quant>),
    /// From real numbers.
    Quantize(Quant),
    /// To real numbers.
    Dequantize(Quant),
    /// A sum or product of two, the second perhaps one pixel a picture.
    Pair(Pair, [Quant; 3]),
    Table(Box<Table>),
    /// The mean of each channel.
    Mean(Quant, Quant),
    MaxPool(Window),
    /// A copy, perhaps with another stride.
    Copy,
}

impl ByteKernel {
    /// Bytes of scratch that it needs.
    pub(crate) fn scratch(&self, input: Shape, threads: usize) -> usize {
        match self {
            ByteKernel::Conv(conv, _) | ByteKernel::ConvToFloat(conv, _) => {
                conv.scratch(input, threads)
            }
            _ => 0,
        }
    }

    /// Whether each value is made of values at the same place alone.
    pub(crate) fn is_each(&self) -> bool {
        use ByteKernel::{Copy, Dequantize, Pair, Quantize, Table};
        matches!(
            self,
            Quantize(_) | Dequantize(_) | Pair(..) | Table(_) | Copy
        )
    }

    /// Whether it writes real numbers.
    pub(crate) fn writes_floats(&self) -> bool {
        matches!(
            self,
            ByteKernel::ConvToFloat(..) | ByteKernel::Dequantize(_)
        )
    }

    pub(crate) fn run_to_floats(&self, run: &Run<'_>, out: &mut [f32], scratch: &mut Scratch) {
        let mut y = run.write.picture_mut(out);
        match self {
            ByteKernel::ConvToFloat(conv, quant) => {
                let add = quant.map(|quant| (run.bytes(1), quant));
                conv.run_f32(run.bytes(0), add, &mut y, scratch.bytes(), run.team);
            }
            ByteKernel::Dequantize(quant) => {
                int8::dequantize(run.bytes(0), *quant, &mut y, run.team);
            }
            _ => unreachable!("writes bytes"),
        }
    }

    pub(crate) fn run(&self, run: &Run<'_>, out: &mut [u8], scratch: &mut Scratch) {
        let mut y = run.write.picture_mut(out);
        let x = |i: usize| run.bytes(i);
        match self {
            ByteKernel::Conv(conv, quant) => {
                let add = quant.map(|quant| (x(1), quant));
                conv.run(x(0), add, &mut y, scratch.bytes(), run.team);
            }
            ByteKernel::Quantize(quant) => {
                int8::quantize(run.pixels(0), *quant, &mut y, run.team);
            }
            ByteKernel::Pair(pair, [a, b, to]) => {
                int8::pair(*pair, (x(0), *a), (x(1), *b), (&mut y, *to), run.team);
            }
            ByteKernel::Table(table) => table.apply(x(0), &mut y, run.team),
            ByteKernel::Mean(from, to) => {
                int8::global_average((x(0), *from), (&mut y, *to), run.team);
            }
            ByteKernel::MaxPool(window) => int8::max_pool(x(0), *window, &mut y, run.team),
            ByteKernel::Copy => {
                let x = x(0);
                for i in 0..x.shape().pixels() {
                    y.pixel(i).copy_from_slice(x.pixel(i));
                }
            }
            ByteKernel::ConvToFloat(..) | ByteKernel::Dequantize(_) => {
                unreachable!("writes real numbers")
            }
        }
    }
}
