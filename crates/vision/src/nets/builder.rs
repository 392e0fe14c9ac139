//! Layers put one after the other, with their weights read or left for later.

use std::sync::Arc;

use sedge_formats::safetensors::Checkpoint;

use super::{NetError, checkpoint};
use crate::graph::{Graph, Value};
use crate::op::{Activation, Axis, Conv, Op, Pool, Weights};
use sedge_conv::Window;

/// `min(max(x, 0), 6)`
pub(super) const RELU6: Activation = Activation::Clip {
    low: 0.0,
    high: 6.0,
};

/// `min(max(x / 6 + 1/2, 0), 1)`
pub(super) const HARD_SIGMOID: Activation = Activation::HardSigmoid {
    alpha: 1.0 / 6.0,
    beta: 0.5,
};

/// A convolution without its place in the network.
#[derive(Clone, Copy)]
pub(super) struct Layer {
    /// Channels that it makes.
    pub(super) outputs: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) dilation: usize,
    /// Each channel alone; `outputs` is then what it reads.
    pub(super) depthwise: bool,
    pub(super) activation: Activation,
}

impl Layer {
    /// All channels of windows of `kernel` × `kernel`.
    pub(super) fn dense(
        outputs: usize,
        kernel: usize,
        stride: usize,
        activation: Activation,
    ) -> Layer {
        Layer {
            outputs,
            kernel,
            stride,
            dilation: 1,
            depthwise: false,
            activation,
        }
    }

    /// All channels of one pixel.
    pub(super) fn pointwise(outputs: usize, activation: Activation) -> Layer {
        Layer::dense(outputs, 1, 1, activation)
    }

    /// Each of `channels` alone.
    pub(super) fn depthwise(
        channels: usize,
        kernel: usize,
        stride: usize,
        activation: Activation,
    ) -> Layer {
        Layer {
            depthwise: true,
            ..Layer::dense(channels, kernel, stride, activation)
        }
    }
}

/// What follows a product in the checkpoint.
pub(super) enum After<'a> {
    /// Nothing.
    Nothing,
    /// A bias of its own.
    Bias,
    /// A batch norm of this name.
    Norm(&'a str),
}

/// A network that grows.
pub(super) struct Builder {
    pub(super) graph: Graph,
    checkpoint: Option<Checkpoint>,
    /// What batch norms add to variances.
    pub(super) eps: f32,
    /// The checkpoint's name of a part: networks that share a trunk name its parts differently.
    pub(super) rename: fn(&str) -> String,
}

impl Builder {
    /// Reads weights from a checkpoint; they are 0 without one.
    pub(super) fn new(checkpoint: Option<Checkpoint>) -> Builder {
        Builder {
            graph: Graph::new(),
            checkpoint,
            eps: 1e-5,
            rename: str::to_owned,
        }
    }

    /// The picture that the network reads.
    pub(super) fn picture(&mut self, [h, w]: [usize; 2]) -> Value {
        self.graph.input("input", &[1, 3, h, w])
    }

    pub(super) fn channels(&self, x: Value) -> usize {
        self.graph.shape(x)[1]
    }

    /// A convolution `name.0` with a batch norm `name.1`, as torchvision groups them.
    pub(super) fn unit(&mut self, name: &str, x: Value, layer: Layer) -> Result<Value, NetError> {
        let norm = format!("{name}.1");
        self.conv(&format!("{name}.0"), After::Norm(&norm), &[x], layer)
    }

    /// A convolution of the first input, to which the second is added if there is one.
    pub(super) fn conv(
        &mut self,
        name: &str,
        after: After<'_>,
        inputs: &[Value],
        layer: Layer,
    ) -> Result<Value, NetError> {
        let reads = self.channels(inputs[0]);
        let groups = if layer.depthwise { reads } else { 1 };
        let shape = [layer.outputs, reads / groups, layer.kernel, layer.kernel];
        let (weights, bias) = self.weights(name, after, &shape)?;
        let pad = (layer.kernel - 1) / 2 * layer.dilation;
        let conv = Conv {
            weights,
            bias,
            outputs: layer.outputs,
            inputs: reads,
            groups,
            window: Window {
                dilation: [layer.dilation; 2],
                ..Window::square(layer.kernel, layer.stride, pad)
            },
            activation: layer.activation,
        };
        Ok(self.graph.push(name, Op::Conv(conv), inputs)?)
    }

    /// A product of all channels, with a bias.
    pub(super) fn linear(
        &mut self,
        name: &str,
        x: Value,
        outputs: usize,
        activation: Activation,
    ) -> Result<Value, NetError> {
        let shape = [outputs, self.channels(x)];
        let (weights, bias) = self.weights(name, After::Bias, &shape)?;
        let op = Op::Linear {
            weights,
            bias,
            outputs,
            activation,
        };
        Ok(self.graph.push(name, op, &[x])?)
    }

    fn weights(
        &self,
        name: &str,
        after: After<'_>,
        shape: &[usize],
    ) -> Result<(Weights, Arc<[f32]>), NetError> {
        let Some(checkpoint) = &self.checkpoint else {
            let values = vec![0.0; shape.iter().product()];
            let bias = match after {
                After::Nothing => vec![],
                _ => vec![0.0; shape[0]],
            };
            return Ok((Weights::Float(values.into()), bias.into()));
        };
        let read =
            |part: &str, shape: &[usize]| checkpoint::read(checkpoint, &(self.rename)(part), shape);
        let mut values = read(&format!("{name}.weight"), shape)?;
        let bias = match after {
            After::Nothing => vec![],
            After::Bias => read(&format!("{name}.bias"), &shape[..1])?,
            After::Norm(norm) => {
                let part = |part| read(&format!("{norm}.{part}"), &shape[..1]);
                let norm = checkpoint::Norm {
                    weight: part("weight")?,
                    bias: part("bias")?,
                    mean: part("running_mean")?,
                    var: part("running_var")?,
                    eps: self.eps,
                };
                norm.fold(&mut values)
            }
        };
        Ok((Weights::Float(values.into()), bias.into()))
    }

    /// The mean of each channel, `[n, channels, 1, 1]`.
    pub(super) fn mean(&mut self, name: &str, x: Value) -> Result<Value, NetError> {
        let window = Window {
            kernel: [self.graph.shape(x)[2], self.graph.shape(x)[3]],
            ..Window::pointwise()
        };
        let op = Op::Pool(Pool::Average { padding: false }, window);
        Ok(self.graph.push(name, op, &[x])?)
    }

    /// The mean of each channel, `[n, channels]`.
    pub(super) fn flat_mean(&mut self, x: Value) -> Result<Value, NetError> {
        let mean = self.mean("mean", x)?;
        let shape = self.graph.shape(mean)[..2].to_vec();
        Ok(self.graph.push("flat", Op::Reshape(shape), &[mean])?)
    }

    /// A picture of other rows and columns, each mixed of the nearest.
    pub(super) fn resize(
        &mut self,
        name: &str,
        x: Value,
        [h, w]: [usize; 2],
    ) -> Result<Value, NetError> {
        let &[_, _, rows, columns] = self.graph.shape(x) else {
            unreachable!("only pictures are resized");
        };
        let op = Op::Resize {
            rows: bilinear(rows, h),
            columns: bilinear(columns, w),
        };
        Ok(self.graph.push(name, op, &[x])?)
    }

    /// Gives the value out under this name.
    pub(super) fn output(&mut self, name: &str, value: Value) {
        self.graph.rename(value, name);
        self.graph.output(value);
    }
}

/// Pixels have their places in the middle, and those at the edge go on outside.
fn bilinear(from: usize, to: usize) -> Axis {
    let last = from.saturating_sub(1);
    let tap = |i: usize| {
        let at = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
        let first = (at as usize).min(last);
        let share = match first == last {
            true => 0.0,
            false => at - first as f64,
        };
        (first as u32, (first + 1).min(last) as u32, share as f32)
    };
    Axis {
        taps: (0..to).map(tap).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bilinear_taps_are_where_pixels_are() {
        assert_eq!(
            *bilinear(2, 4).taps,
            [(0, 1, 0.0), (0, 1, 0.25), (0, 1, 0.75), (1, 1, 0.0)]
        );
        assert_eq!(*bilinear(4, 2).taps, [(0, 1, 0.5), (2, 3, 0.5)]);
        assert_eq!(*bilinear(1, 2).taps, [(0, 0, 0.0), (0, 0, 0.0)]);
    }
}
