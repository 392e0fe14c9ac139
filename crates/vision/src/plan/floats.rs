//! Nodes on real numbers, in pixels where there is a kernel for it.

use sedge_conv::{self as conv, ConvShape, Mix, Pooling, Shape, Window};

use super::{Planner, given, pack, rows};
use crate::graph::{Node, Value};
use crate::kernel::{FloatKernel, Form, Kernel, Place, of_pixels, pixel_sizes};
use crate::op::{Axis, Binary, Op, Pool, Reduction};
use crate::program::ProgramError;

impl Planner<'_> {
    pub(super) fn in_floats(&mut self, node: &Node) -> Result<(), ProgramError> {
        let x = node.inputs[0];
        let picture = self.is_picture(x);
        match &node.op {
            Op::Conv(conv) => {
                let kernel = pack(conv).or_else(|error| self.refuse(error))?;
                let reads: Vec<Place> = node
                    .inputs
                    .iter()
                    .map(|&x| self.want(x, Form::Pixels))
                    .collect();
                self.pixels(node, FloatKernel::Conv(kernel), &reads);
            }
            Op::ConvTranspose(conv) => {
                let shape = ConvShape {
                    outputs: conv.outputs,
                    inputs: conv.inputs,
                    groups: conv.groups,
                    window: conv.window,
                };
                let bias = given(&conv.bias);
                let (more, weights) = (conv.more, &conv.weights);
                let kernel = conv::ConvTranspose::new(shape, more, weights, bias, conv.activation)
                    .or_else(|error| self.refuse(error))?;
                let read = self.want(x, Form::Pixels);
                self.pixels(node, FloatKernel::ConvTranspose(kernel), &[read]);
            }
            Op::Linear {
                weights,
                bias,
                outputs,
                activation,
            } => {
                // Rows of a matrix are pixels in a line.
                let from = rows(self.graph.shape(x));
                let shape = ConvShape {
                    outputs: *outputs,
                    inputs: from.c,
                    groups: 1,
                    window: Window::pointwise(),
                };
                let kernel = conv::Conv::new(shape, &weights.to_float(), given(bias), *activation)
                    .or_else(|error| self.refuse(error))?;
                let read = self.want_whole(x, Form::Plain).seen_as(Form::Plain, from);
                let to = rows(self.graph.shape(node.output));
                let place = self.fresh(node.output, Form::Plain);
                let write = place.seen_as(Form::Plain, to);
                let kernel = Kernel::Float(FloatKernel::Conv(kernel));
                self.step(kernel, &[read], write, node.op.kind());
                self.put(node.output, place);
            }
            Op::Pool(pool, window) => {
                let pooling = match pool {
                    Pool::Max => Pooling::Max,
                    Pool::Average { padding: true } => Pooling::Average {
                        counted: window.pads,
                    },
                    Pool::Average { padding: false } => Pooling::Average { counted: [0; 4] },
                };
                let read = self.want(x, Form::Pixels);
                let Shape { h, w, .. } = read.shape;
                let whole = window.kernel == [h, w] && window.pads == [0; 4];
                let kernel = match pool {
                    Pool::Average { .. } if whole => FloatKernel::Mean,
                    _ => FloatKernel::Pool(pooling, *window),
                };
                self.pixels(node, kernel, &[read]);
            }
            Op::Reduce {
                reduction: Reduction::Mean,
                axes,
                ..
            } if picture && axes[..] == [2, 3] => {
                let read = self.want(x, Form::Pixels);
                let Shape { n, c, .. } = read.shape;
                let place = self.fresh(node.output, Form::Plain);
                let write = place.seen_as(Form::Plain, Shape { n, h: 1, w: 1, c });
                self.step(Kernel::Float(FloatKernel::Mean), &[read], write, "average");
                self.put(node.output, place);
            }
            Op::Scale(activation) => {
                let read = self.want(x, Form::Pixels);
                let scales = self.want_whole(node.inputs[1], Form::Plain);
                self.pixels(node, FloatKernel::Scale(*activation), &[read, scales]);
            }
            Op::Affine {
                scale,
                shift,
                activation,
            } if picture => {
                // One tap for each channel.
                let shape = ConvShape {
                    outputs: scale.len(),
                    inputs: scale.len(),
                    groups: scale.len(),
                    window: Window::pointwise(),
                };
                let kernel = conv::Conv::new(shape, scale, Some(shift), *activation)
                    .or_else(|error| self.refuse(error))?;
                let read = self.want(x, Form::Pixels);
                self.pixels(node, FloatKernel::Conv(kernel), &[read]);
            }
            Op::Resize { rows, columns } => {
                let mixes = |axis: &Axis| -> Vec<Mix> {
                    let taps = axis.taps.iter();
                    taps.map(|&(a, b, weight)| Mix {
                        from: [a as usize, b as usize],
                        weight,
                    })
                    .collect()
                };
                let read = self.want(x, Form::Pixels);
                let kernel = FloatKernel::Resize(mixes(rows), mixes(columns));
                self.pixels(node, kernel, &[read]);
            }
            Op::Softmax(axis) if *axis + 1 == self.graph.shape(x).len() && !picture => {
                self.softmax(node, Form::Plain, rows(self.graph.shape(x)));
            }
            Op::Softmax(1) if picture => {
                let read = self.want(x, Form::Pixels);
                self.pixels(node, FloatKernel::Softmax, &[read]);
            }
            Op::Activation(activation) => self.each(node, FloatKernel::Activate(*activation)),
            Op::Function(function) => self.each(node, FloatKernel::Function(*function)),
            Op::Round => self.each(node, FloatKernel::Copy),
            Op::Binary(binary, activation)
                if self.graph.shape(x) == self.graph.shape(node.inputs[1])
                    && elementwise(*binary).is_some() =>
            {
                let binary = elementwise(*binary).unwrap_or(conv::Binary::Add);
                let form = if picture { Form::Pixels } else { Form::Plain };
                let reads = [self.want(x, form), self.want(node.inputs[1], form)];
                self.same(node, FloatKernel::Binary(binary, *activation), form, &reads);
            }
            Op::Reshape(_) => {
                let read = self.want_whole(x, Form::Plain);
                self.view(node.output, read, Form::Plain);
            }
            Op::Transpose(perm) if perm[..] == [0, 2, 3, 1] => {
                let read = self.want_whole(x, Form::Pixels);
                self.view(node.output, read, Form::Plain);
            }
            Op::Transpose(perm) if perm[..] == [0, 3, 1, 2] => {
                let read = self.want_whole(x, Form::Plain);
                self.view(node.output, read, Form::Pixels);
            }
            Op::Concat(1) if self.alike(node.output, Form::Pixels) == Form::Pixels => {
                self.concat(node);
            }
            Op::Slice { start, step, size } if self.cuts_channels(x, step, size) => {
                // Channels of each pixel, where they are.
                let place = self.want(x, Form::Pixels);
                let place = Place {
                    offset: place.offset + start[1],
                    shape: self.shape(node.output),
                    ..place
                };
                self.put(node.output, place);
            }
            Op::Slice { .. } | Op::Pad { .. } | Op::Concat(_) | Op::Expand(_) if picture => {
                self.moved(node);
            }
            _ => self.any(node),
        }
        Ok(())
    }

    /// The node's result is what a kernel makes of these places, in pixels.
    fn pixels(&mut self, node: &Node, kernel: FloatKernel, reads: &[Place]) {
        let mut write = self.target(node.output);
        if reads.iter().any(|place| place.buffer == write.buffer) {
            // A kernel cannot write where it reads: what is joined is then copied.
            write = self.fresh(node.output, Form::Pixels);
        }
        self.made(node, Kernel::Float(kernel), reads, write);
    }

    /// The value is the same memory, seen with its own sizes.
    fn view(&mut self, value: Value, place: Place, form: Form) {
        let place = place.seen_as(form, self.shape(value));
        self.put(value, place);
    }

    /// Whether a slice takes some channels of all pixels, and none of these is a value alone.
    fn cuts_channels(&self, x: Value, step: &[isize], size: &[usize]) -> bool {
        let shape = self.graph.shape(x);
        shape.len() == 4
            && step.iter().all(|&s| s == 1)
            && size[0] == shape[0]
            && size[2..] == shape[2..]
            && size[1] > 1
            && self.alike(x, Form::Pixels) == Form::Pixels
    }

    fn softmax(&mut self, node: &Node, form: Form, shape: Shape) {
        let read = self.want_whole(node.inputs[0], form).seen_as(form, shape);
        let place = self.fresh(node.output, form);
        let kernel = Kernel::Float(FloatKernel::Softmax);
        self.step(kernel, &[read], place.seen_as(form, shape), node.op.kind());
        self.put(node.output, place);
    }

    /// A function of each value, in whatever form the value is.
    fn each(&mut self, node: &Node, kernel: FloatKernel) {
        let x = node.inputs[0];
        let form = match self.is_picture(x) && !self.has(x, Form::Plain) {
            true => Form::Pixels,
            false => Form::Plain,
        };
        let read = self.want(x, form);
        self.same(node, kernel, form, &[read]);
    }

    /// What a kernel makes of each value by itself, in the form of what it reads.
    fn same(&mut self, node: &Node, kernel: FloatKernel, form: Form, reads: &[Place]) {
        let whole = reads.iter().all(|place| place.is_whole());
        if self.alike(node.output, form) == Form::Pixels || !whole {
            return self.pixels(node, kernel, reads);
        }
        // Values without gaps are one long pixel.
        let line = |place: Place| {
            let c = place.count();
            place.seen_as(
                place.form,
                Shape {
                    n: 1,
                    h: 1,
                    w: 1,
                    c,
                },
            )
        };
        let place = self.fresh(node.output, Form::Plain);
        let reads: Vec<Place> = reads.iter().copied().map(line).collect();
        self.step(Kernel::Float(kernel), &reads, line(place), node.op.kind());
        self.put(node.output, place);
    }

    /// Parts that are not in their places yet are copied there.
    fn concat(&mut self, node: &Node) {
        let whole = match self.places[node.output.index()].get(&Form::Pixels) {
            Some(&place) => place,
            None => self.target(node.output),
        };
        self.put(node.output, whole);
        let mut channel = 0;
        for &input in &node.inputs {
            let shape = self.shape(input);
            // A part may have been made elsewhere, where its kernel wanted it plain.
            let there = self.places[input.index()]
                .get(&Form::Pixels)
                .is_some_and(|place| {
                    (place.buffer, place.offset) == (whole.buffer, whole.offset + channel)
                });
            if !there {
                let mut read = self.want(input, Form::Pixels);
                if read.buffer == whole.buffer {
                    // A kernel cannot write where it reads.
                    let copy = self.fresh(input, Form::Pixels);
                    self.step(Kernel::Float(FloatKernel::Copy), &[read], copy, "copy");
                    read = copy;
                }
                let write = Place {
                    offset: whole.offset + channel,
                    shape,
                    ..whole
                };
                let copy = Kernel::Float(FloatKernel::Copy);
                self.step(copy, &[read], write, node.op.kind());
            }
            channel += shape.c;
        }
    }

    /// Moves values of pictures as they lie.
    fn moved(&mut self, node: &Node) {
        let pictures = node.inputs.iter().all(|&x| self.is_picture(x));
        let Some(op) = of_pixels(&node.op).filter(|_| pictures && self.is_picture(node.output))
        else {
            return self.any(node);
        };
        let reads: Vec<Place> = node
            .inputs
            .iter()
            .map(|&x| self.want_whole(x, Form::Pixels))
            .collect();
        let place = self.fresh(node.output, Form::Pixels);
        let sizes = reads.iter().map(|place| pixel_sizes(place.shape)).collect();
        let kernel = FloatKernel::Any(Box::new(op), sizes, pixel_sizes(place.shape));
        self.made(node, Kernel::Float(kernel), &reads, place);
    }

    /// Any operation, in plain loops.
    fn any(&mut self, node: &Node) {
        let reads: Vec<Place> = node
            .inputs
            .iter()
            .map(|&x| self.want_whole(x, Form::Plain))
            .collect();
        let sizes = node
            .inputs
            .iter()
            .map(|&x| self.graph.shape(x).to_vec())
            .collect();
        let shape = self.graph.shape(node.output).to_vec();
        let place = self.fresh(node.output, Form::Plain);
        let kernel = FloatKernel::Any(Box::new(node.op.clone()), sizes, shape);
        self.made(node, Kernel::Float(kernel), &reads, place);
    }
}

/// The kernel of a function of two values.
fn elementwise(binary: Binary) -> Option<conv::Binary> {
    Some(match binary {
        Binary::Add => conv::Binary::Add,
        Binary::Div => conv::Binary::Div,
        Binary::Max => conv::Binary::Max,
        Binary::Min => conv::Binary::Min,
        Binary::Mul => conv::Binary::Mul,
        Binary::Sub => conv::Binary::Sub,
        Binary::Pow => return None,
    })
}
