//! Nodes on values in 8 bits: those whose inputs and output are on grids.

use sedge_conv::int8::{Int8Conv, Pair, Quant, Table};
use sedge_conv::{Shape, Window};

use super::{Planner, given, rows};
use crate::graph::Node;
use crate::kernel::{ByteKernel, Form, Kernel, Place};
use crate::op::{Activation, Binary, Op, Pool, Reduction, Weights};
use crate::program::ProgramError;

impl Planner<'_> {
    /// Whether a node was planned in 8 bits.
    pub(super) fn in_bytes(&mut self, node: &Node) -> Result<bool, ProgramError> {
        let grids: Option<Vec<Quant>> = node
            .inputs
            .iter()
            .map(|&x| self.graph.info(x).quant)
            .collect();
        let to = self.graph.info(node.output).quant;
        let x = node.inputs[0];
        if let (Op::Round, None, Some(quant)) = (&node.op, &grids, to) {
            let read = self.want(x, Form::Pixels);
            self.bytes(node, ByteKernel::Quantize(quant), &[read]);
            return Ok(true);
        }
        let Some(grids) = grids else {
            return Ok(false);
        };
        let from = grids[0];
        let same = self.graph.shape(x) == self.graph.shape(node.output);
        let kernel = match (&node.op, to) {
            (Op::Conv(conv), _) => {
                let Weights::Int8 { codes, scales } = &conv.weights else {
                    return Ok(false);
                };
                let made = Int8Conv::new(
                    conv.outputs,
                    conv.inputs,
                    conv.groups,
                    conv.window,
                    codes,
                    scales,
                    given(&conv.bias),
                    from,
                    conv.activation,
                    to.unwrap_or(from),
                );
                let kernel = Box::new(made.or_else(|error| self.refuse(error))?);
                let add = grids.get(1).copied();
                match to {
                    Some(_) => ByteKernel::Conv(kernel, add),
                    None => {
                        let reads = self.read_bytes(node);
                        let write = self.fresh(node.output, Form::Pixels);
                        let kernel = Kernel::Byte(ByteKernel::ConvToFloat(kernel, add));
                        self.made(node, kernel, &reads, write);
                        return Ok(true);
                    }
                }
            }
            (
                Op::Linear {
                    weights: Weights::Int8 { codes, scales },
                    bias,
                    outputs,
                    activation,
                },
                _,
            ) => {
                let shape = rows(self.graph.shape(x));
                let made = Int8Conv::new(
                    *outputs,
                    shape.c,
                    1,
                    Window::pointwise(),
                    codes,
                    scales,
                    given(bias),
                    from,
                    *activation,
                    to.unwrap_or(from),
                );
                let kernel = Box::new(made.or_else(|error| self.refuse(error))?);
                let read = self.want(x, Form::Bytes).seen_as(Form::Bytes, shape);
                let (kernel, form) = match to {
                    Some(_) => (ByteKernel::Conv(kernel, None), Form::Bytes),
                    None => (ByteKernel::ConvToFloat(kernel, None), Form::Plain),
                };
                let place = self.fresh(node.output, form);
                let write = place.seen_as(form, rows(self.graph.shape(node.output)));
                self.step(Kernel::Byte(kernel), &[read], write, node.op.kind());
                self.put(node.output, place);
                return Ok(true);
            }
            (Op::Binary(binary @ (Binary::Add | Binary::Mul), Activation::Identity), Some(to))
                if same && self.graph.shape(x) == self.graph.shape(node.inputs[1]) =>
            {
                let pair = match binary {
                    Binary::Add => Pair::Add,
                    _ => Pair::Mul,
                };
                ByteKernel::Pair(pair, [from, grids[1], to])
            }
            (Op::Scale(Activation::Identity), Some(to)) => {
                ByteKernel::Pair(Pair::Mul, [from, grids[1], to])
            }
            (Op::Activation(activation), Some(to)) => {
                ByteKernel::Table(Box::new(Table::new(|x| activation.of(x), from, to)))
            }
            (Op::Function(function), Some(to)) => {
                ByteKernel::Table(Box::new(Table::new(|x| function.of(x), from, to)))
            }
            (Op::Round, Some(to)) => ByteKernel::Table(Box::new(Table::new(|x| x, from, to))),
            (Op::Pool(Pool::Max, window), Some(to)) if to == from => ByteKernel::MaxPool(*window),
            (
                Op::Reduce {
                    reduction: Reduction::Mean,
                    axes,
                    ..
                },
                Some(to),
            ) if self.is_picture(x) && axes[..] == [2, 3] && self.sums_fit(x) => {
                return Ok(self.byte_mean(node, from, to));
            }
            (Op::Pool(Pool::Average { .. }, window), Some(to))
                if window.kernel[..] == self.graph.shape(x)[2..]
                    && window.pads == [0; 4]
                    && self.sums_fit(x) =>
            {
                return Ok(self.byte_mean(node, from, to));
            }
            (Op::Reshape(_), Some(to)) if to == from && self.is_flat(node) => {
                let place = self.want(x, Form::Bytes);
                let place = place.seen_as(Form::Bytes, self.shape(node.output));
                self.put(node.output, place);
                return Ok(true);
            }
            (Op::Concat(1), Some(to)) if self.is_picture(x) && grids.iter().all(|&q| q == to) => {
                return Ok(self.byte_concat(node));
            }
            _ => return Ok(false),
        };
        let reads = self.read_bytes(node);
        self.bytes(node, kernel, &reads);
        Ok(true)
    }

    fn read_bytes(&mut self, node: &Node) -> Vec<Place> {
        node.inputs
            .iter()
            .map(|&x| self.want(x, Form::Bytes))
            .collect()
    }

    fn bytes(&mut self, node: &Node, kernel: ByteKernel, reads: &[Place]) {
        let write = self.fresh(node.output, Form::Bytes);
        self.made(node, Kernel::Byte(kernel), reads, write);
    }

    /// Whether sums of a picture's bytes are 32-bit integers.
    fn sums_fit(&self, x: crate::graph::Value) -> bool {
        let Shape { h, w, .. } = self.shape(x);
        h * w <= 1 << 23
    }

    /// Whether values lie alike before and after: all of one pixel.
    fn is_flat(&self, node: &Node) -> bool {
        [node.inputs[0], node.output].iter().all(|&value| {
            let Shape { h, w, .. } = self.shape(value);
            h * w == 1
        })
    }

    fn byte_mean(&mut self, node: &Node, from: Quant, to: Quant) -> bool {
        let read = self.want(node.inputs[0], Form::Bytes);
        let Shape { n, c, .. } = read.shape;
        let place = self.fresh(node.output, Form::Bytes);
        let write = place.seen_as(Form::Bytes, Shape { n, h: 1, w: 1, c });
        let kernel = Kernel::Byte(ByteKernel::Mean(from, to));
        self.step(kernel, &[read], write, "average");
        self.put(node.output, place);
        true
    }

    fn byte_concat(&mut self, node: &Node) -> bool {
        let whole = self.fresh(node.output, Form::Bytes);
        let mut channel = 0;
        for &input in &node.inputs {
            let read = self.want(input, Form::Bytes);
            let write = Place {
                offset: channel,
                shape: read.shape,
                ..whole
            };
            let copy = Kernel::Byte(ByteKernel::Copy);
            self.step(copy, &[read], write, node.op.kind());
            channel += read.shape.c;
        }
        self.put(node.output, whole);
        true
    }
}
