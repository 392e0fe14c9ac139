//! Nodes on planes, and whether a network is faster there.

use std::time::{Duration, Instant};

use sedge_conv::sparse::{Depthwise, PlaneConv, Planes, PlanesMut, Sparse};
use sedge_conv::{Picture, PictureMut, Shape};

use super::{Planner, given, pack};
use crate::graph::Node;
use crate::kernel::{Form, Kernel, Place, PlaneKernel, as_picture, plane_stride};
use crate::op::{Binary, Conv, Op, Pool, Reduction, Weights};
use crate::program::ProgramError;

/// Fewer zeros than this among the weights of pointwise convolutions are not worth measuring.
const WORTH_MEASURING: f64 = 0.2;

impl Planner<'_> {
    /// Whether a node was planned in planes.
    pub(super) fn in_planes(&mut self, node: &Node) -> Result<bool, ProgramError> {
        let picture = |x| matches!(self.graph.shape(x), &[1, _, h, w] if h * w > 1);
        let x = node.inputs[0];
        let on_grid = self.graph.info(node.output).quant.is_some();
        if !self.planes || on_grid || !picture(x) {
            return Ok(false);
        }
        let whole = picture(node.output);
        let kernel = match &node.op {
            Op::Conv(conv) if whole => match self.plane_conv(node, conv)? {
                Some(kernel) => kernel,
                None => return Ok(false),
            },
            Op::Scale(activation) => {
                let reads = [
                    self.want(x, Form::Planes),
                    self.want_whole(node.inputs[1], Form::Plain),
                ];
                self.planes(node, PlaneKernel::Scale(*activation), &reads);
                return Ok(true);
            }
            Op::Binary(Binary::Add, activation)
                if self.graph.shape(x) == self.graph.shape(node.inputs[1]) =>
            {
                PlaneKernel::Add(*activation)
            }
            Op::Activation(activation) => PlaneKernel::Activate(*activation),
            Op::Reduce {
                reduction: Reduction::Mean,
                axes,
                ..
            } if axes[..] == [2, 3] => return Ok(self.mean(node)),
            Op::Pool(Pool::Average { .. }, window)
                if window.kernel[..] == self.graph.shape(x)[2..] && window.pads == [0; 4] =>
            {
                return Ok(self.mean(node));
            }
            _ => return Ok(false),
        };
        let reads: Vec<Place> = node
            .inputs
            .iter()
            .map(|&x| self.want(x, Form::Planes))
            .collect();
        self.planes(node, kernel, &reads);
        Ok(true)
    }

    fn planes(&mut self, node: &Node, kernel: PlaneKernel, reads: &[Place]) {
        let write = self.fresh(node.output, Form::Planes);
        self.made(node, Kernel::Plane(kernel), reads, write);
    }

    fn mean(&mut self, node: &Node) -> bool {
        let read = self.want(node.inputs[0], Form::Planes);
        let Shape { n, c, .. } = read.shape;
        let place = self.fresh(node.output, Form::Plain);
        let write = place.seen_as(Form::Plain, Shape { n, h: 1, w: 1, c });
        self.step(Kernel::Plane(PlaneKernel::Mean), &[read], write, "average");
        self.put(node.output, place);
        true
    }

    /// The kernel of a convolution, if there is one of planes.
    fn plane_conv(&self, node: &Node, conv: &Conv) -> Result<Option<PlaneKernel>, ProgramError> {
        let adds = node.inputs.len() > 1;
        let bias = given(&conv.bias);
        let weights = conv.weights.to_float();
        let (outputs, inputs) = (conv.outputs, conv.inputs);
        let made = if conv.is_pointwise() {
            let block = Sparse::best_block(&weights, outputs, inputs);
            Sparse::new(&weights, outputs, inputs, bias, conv.activation, block)
                .map(PlaneKernel::Product)
        } else if conv.is_depthwise() && !adds {
            match Depthwise::new(&weights, outputs, conv.window, bias, conv.activation) {
                Ok(kernel) => Ok(PlaneKernel::Depthwise(kernel)),
                // Other windows are done in pixels.
                Err(_) => return Ok(None),
            }
        } else if conv.groups == 1 && !adds {
            let each = inputs * conv.window.taps();
            let block = Sparse::best_block(&weights, outputs, each);
            PlaneConv::new(
                &weights,
                [outputs, inputs],
                conv.window,
                bias,
                conv.activation,
                block,
            )
            .map(PlaneKernel::Conv)
        } else {
            return Ok(None);
        };
        made.map(Some).or_else(|error| self.refuse(error))
    }

    /// Whether pointwise convolutions are faster in planes, all together, as measured here and
    /// now. Networks without many zeros are not measured.
    pub(super) fn sparse_pays(&self) -> bool {
        let products = || {
            self.graph.nodes().iter().filter_map(|node| match &node.op {
                Op::Conv(conv) if conv.is_pointwise() => {
                    let shape = as_picture(self.graph.shape(node.inputs[0]));
                    let fits = shape.n == 1 && shape.h * shape.w > 1;
                    fits.then_some((conv, shape))
                }
                _ => None,
            })
        };
        let (mut zeros, mut all) = (0, 0);
        for (conv, _) in products() {
            if let Weights::Float(values) = &conv.weights {
                zeros += values.iter().filter(|&&x| x == 0.0).count();
                all += values.len();
            }
        }
        if all == 0 || (zeros as f64) < WORTH_MEASURING * all as f64 {
            return false;
        }
        let (mut dense, mut sparse) = (Duration::ZERO, Duration::ZERO);
        for (conv, shape) in products() {
            if let Some((a, b)) = self.time_both(conv, shape) {
                dense += a;
                sparse += b;
            }
        }
        sparse < dense
    }

    /// The least times of the two kernels of a pointwise convolution.
    fn time_both(&self, conv: &Conv, shape: Shape) -> Option<(Duration, Duration)> {
        const REPEATS: usize = 3;
        let weights = conv.weights.to_float();
        let block = Sparse::best_block(&weights, conv.outputs, conv.inputs);
        let (bias, act) = (given(&conv.bias), conv.activation);
        let sparse = Sparse::new(&weights, conv.outputs, conv.inputs, bias, act, block).ok()?;
        let dense = pack(conv).ok()?;
        let to = Shape {
            c: conv.outputs,
            ..shape
        };
        let stride = plane_stride(shape.h, shape.w);
        let x = vec![0.5; shape.c * stride.max(shape.h * shape.w)];
        let mut y = vec![0.0; to.c * stride.max(shape.h * shape.w)];
        let mut scratch = vec![0.0; dense.scratch(shape, self.team.threads())];
        let least = |run: &mut dyn FnMut()| {
            run();
            let mut least = Duration::MAX;
            for _ in 0..REPEATS {
                let start = Instant::now();
                run();
                least = least.min(start.elapsed());
            }
            least
        };
        let dense = least(&mut || {
            let x = Picture::new(&x, shape);
            dense.run(
                x,
                None,
                &mut PictureMut::new(&mut y, to),
                &mut scratch,
                self.team,
            );
        });
        let sparse = least(&mut || {
            let x = Planes::new(&x, shape.c, shape.h, shape.w, stride);
            let mut y = PlanesMut::new(&mut y, to.c, shape.h, shape.w, stride);
            sparse.run(x, None, &mut y, self.team);
        });
        Some((dense, sparse))
    }
}
