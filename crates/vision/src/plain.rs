//! Every operation in plain loops over rows-last arrays: what defines the results of the fast
//! ways, and what folds constants and runs operations that are too rare for a kernel.

use sedge_conv::Quant;

use crate::graph::{Graph, Value};
use crate::nd;
use crate::op::{Binary, Conv, ConvTranspose, Fill, Op, Pool, Reduction};

/// An array and its sizes.
pub(crate) type Array<'a, T> = (&'a [T], &'a [usize]);

/// Moves values without computing; `false` when the operation computes.
pub(crate) fn rearrange<T: Copy>(op: &Op, inputs: &[Array<'_, T>], out: &mut [T]) -> bool {
    let (x, shape) = inputs[0];
    match op {
        Op::Concat(axis) => nd::concat(inputs, *axis, out),
        Op::Slice { start, step, size } => nd::slice(x, shape, start, step, size, out),
        Op::Reshape(_) => out.copy_from_slice(x),
        Op::Transpose(perm) => nd::transpose(x, shape, perm, out),
        Op::Gather { axis, indices, .. } => nd::gather(x, shape, *axis, indices, out),
        Op::Expand(to) => nd::expand(x, shape, to, out),
        Op::Pad {
            before,
            after,
            fill: fill @ (Fill::Edge | Fill::Reflect),
        } => {
            let size: Vec<usize> = (0..shape.len())
                .map(|i| shape[i] + before[i] + after[i])
                .collect();
            let around = match fill {
                Fill::Edge => nd::Around::Edge,
                _ => nd::Around::Reflect,
            };
            nd::pad(x, shape, before, around, &size, out);
        }
        _ => return false,
    }
    true
}

/// Runs one operation. `shape` is that of the output.
pub(crate) fn run(op: &Op, inputs: &[Array<'_, f32>], shape: &[usize], out: &mut [f32]) {
    if rearrange(op, inputs, out) {
        return;
    }
    let (x, x_shape) = inputs[0];
    let each = |out: &mut [f32], f: &dyn Fn(f32) -> f32| {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = f(x);
        }
    };
    match op {
        Op::Conv(conv) => convolve(conv, inputs, shape, out),
        Op::ConvTranspose(conv) => transposed(conv, inputs[0], shape, out),
        Op::Linear {
            weights,
            bias,
            outputs,
            activation,
        } => {
            let weights = weights.to_float();
            let k = x_shape[x_shape.len() - 1];
            for (i, out) in out.iter_mut().enumerate() {
                let (row, o) = (i / outputs, i % outputs);
                let pairs = x[row * k..][..k].iter().zip(&weights[o * k..][..k]);
                let sum: f32 = pairs.map(|(a, b)| a * b).sum();
                *out = activation.of(sum + bias.get(o).unwrap_or(&0.0));
            }
        }
        Op::MatMul => nd::matmul(inputs[0], inputs[1], shape, out),
        Op::Pool(pool, window) => {
            let [n, c, h, w] = four(x_shape);
            let [rows, columns] = [shape[2], shape[3]];
            for plane in 0..n * c {
                let x = &x[plane * h * w..][..h * w];
                for row in 0..rows {
                    for column in 0..columns {
                        let (mut max, mut sum, mut count) = (f32::NEG_INFINITY, 0.0, 0usize);
                        for ky in 0..window.kernel[0] {
                            for kx in 0..window.kernel[1] {
                                let y = inside(row, ky, h, window, 0);
                                let z = inside(column, kx, w, window, 1);
                                if let (Some(y), Some(z)) = (y, z) {
                                    let value = x[y * w + z];
                                    max = max.max(value);
                                    sum += value;
                                    count += 1;
                                }
                            }
                        }
                        out[(plane * rows + row) * columns + column] = match pool {
                            Pool::Max => max,
                            Pool::Average { padding: true } => sum / window.taps() as f32,
                            Pool::Average { padding: false } => sum / count.max(1) as f32,
                        };
                    }
                }
            }
        }
        Op::Scale(activation) => {
            nd::binary(inputs[0], inputs[1], shape, out, |a, b| {
                activation.of(a * b)
            });
        }
        Op::Affine {
            scale,
            shift,
            activation,
        } => {
            let inner: usize = x_shape[2..].iter().product();
            for (i, (out, &x)) in out.iter_mut().zip(x).enumerate() {
                let c = i / inner.max(1) % scale.len();
                *out = activation.of(scale[c] * x + shift[c]);
            }
        }
        Op::Activation(activation) => each(out, &|x| activation.of(x)),
        Op::Function(function) => each(out, &|x| function.of(x)),
        Op::Round => out.copy_from_slice(x),
        Op::Binary(binary, activation) => {
            let f = |a, b| activation.of(binary.of(a, b));
            nd::binary(inputs[0], inputs[1], shape, out, f);
        }
        Op::Constant {
            binary,
            shape: sizes,
            values,
            first,
        } => {
            let constant = (&values[..], &sizes[..]);
            match first {
                true => nd::binary(constant, inputs[0], shape, out, |a, b| binary.of(a, b)),
                false => nd::binary(inputs[0], constant, shape, out, |a, b| binary.of(a, b)),
            }
        }
        Op::Resize { rows, columns } => {
            let [n, c, h, w] = four(x_shape);
            let mut at = out.iter_mut();
            for plane in 0..n * c {
                let x = &x[plane * h * w..][..h * w];
                for &(top, bottom, down) in &*rows.taps {
                    for &(left, right, along) in &*columns.taps {
                        let row = |y: u32| {
                            let (a, b) = (
                                x[y as usize * w + left as usize],
                                x[y as usize * w + right as usize],
                            );
                            mix(a, b, along)
                        };
                        *at.next().expect("as many as the shape says") =
                            mix(row(top), row(bottom), down);
                    }
                }
            }
        }
        Op::Reduce {
            reduction, axes, ..
        } => {
            let folded: usize = axes.iter().map(|&axis| x_shape[axis]).product();
            let mut reduce =
                |start, f: fn(f32, f32) -> f32| nd::reduce(x, x_shape, axes, out, start, f);
            match reduction {
                Reduction::Sum => reduce(0.0, |a, b| a + b),
                Reduction::Max => reduce(f32::NEG_INFINITY, f32::max),
                Reduction::Min => reduce(f32::INFINITY, f32::min),
                Reduction::Mean => {
                    reduce(0.0, |a, b| a + b);
                    out.iter_mut().for_each(|x| *x /= folded as f32);
                }
                Reduction::ArgMax => nd::arg_max(x, x_shape, axes[0], out),
            }
        }
        Op::Softmax(axis) => nd::softmax(x, x_shape, *axis, out),
        Op::Pad { before, fill, .. } => {
            if let Fill::Constant(value) = fill {
                nd::pad(x, x_shape, before, nd::Around::Constant(*value), shape, out);
            }
        }
        Op::Concat(_)
        | Op::Slice { .. }
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Gather { .. }
        | Op::Expand(_) => unreachable!("rearranging is done"),
    }
}

/// `a` and the share `t` of `b`.
fn mix(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

fn four(shape: &[usize]) -> [usize; 4] {
    shape.try_into().expect("pictures have four axes")
}

/// The index that a tap reads along an axis, if it is inside.
fn inside(
    at: usize,
    tap: usize,
    size: usize,
    window: &sedge_conv::Window,
    axis: usize,
) -> Option<usize> {
    let i = at * window.stride[axis] + tap * window.dilation[axis];
    i.checked_sub(window.pads[axis]).filter(|&i| i < size)
}

fn convolve(conv: &Conv, inputs: &[Array<'_, f32>], shape: &[usize], out: &mut [f32]) {
    let (x, x_shape) = inputs[0];
    let [n, c, h, w] = four(x_shape);
    let [_, _, rows, columns] = four(shape);
    let weights = conv.weights.to_float();
    let (own, made) = (c / conv.groups, conv.outputs / conv.groups);
    let [kh, kw] = conv.window.kernel;
    for (i, out) in out.iter_mut().enumerate() {
        let (column, row) = (i % columns, i / columns % rows);
        let (o, picture) = (
            i / (columns * rows) % conv.outputs,
            i / (columns * rows * conv.outputs),
        );
        debug_assert!(picture < n);
        let mut sum = 0.0;
        for channel in 0..own {
            let plane = (picture * c + o / made * own + channel) * h * w;
            for ky in 0..kh {
                let Some(y) = inside(row, ky, h, &conv.window, 0) else {
                    continue;
                };
                for kx in 0..kw {
                    if let Some(z) = inside(column, kx, w, &conv.window, 1) {
                        let weight = weights[((o * own + channel) * kh + ky) * kw + kx];
                        sum += weight * x[plane + y * w + z];
                    }
                }
            }
        }
        sum += conv.bias.get(o).unwrap_or(&0.0);
        if let Some((add, _)) = inputs.get(1) {
            sum += add[i];
        }
        *out = conv.activation.of(sum);
    }
}

fn transposed(
    conv: &ConvTranspose,
    (x, x_shape): Array<'_, f32>,
    shape: &[usize],
    out: &mut [f32],
) {
    let [n, c, h, w] = four(x_shape);
    let [_, _, rows, columns] = four(shape);
    let (own, made) = (c / conv.groups, conv.outputs / conv.groups);
    let [kh, kw] = conv.window.kernel;
    out.fill(0.0);
    for picture in 0..n {
        for channel in 0..c {
            for o in 0..made {
                let plane = (picture * conv.outputs + channel / own * made + o) * rows * columns;
                for tap in 0..kh * kw {
                    let weight = conv.weights[(channel * made + o) * kh * kw + tap];
                    for i in 0..h * w {
                        // What the convolution reads is written there.
                        let y = inside(i / w, tap / kw, rows, &conv.window, 0);
                        let z = inside(i % w, tap % kw, columns, &conv.window, 1);
                        if let (Some(y), Some(z)) = (y, z) {
                            let value = x[(picture * c + channel) * h * w + i];
                            out[plane + y * columns + z] += weight * value;
                        }
                    }
                }
            }
        }
    }
    for (i, out) in out.iter_mut().enumerate() {
        let o = i / (rows * columns) % conv.outputs;
        *out = conv.activation.of(*out + conv.bias.get(o).unwrap_or(&0.0));
    }
}

/// The number of a grid that is nearest.
pub(crate) fn to_grid(x: f32, quant: Quant) -> f32 {
    let q = (x / quant.scale).round_ties_even() + f32::from(quant.zero);
    (q.clamp(0.0, 255.0) - f32::from(quant.zero)) * quant.scale
}

/// Runs a whole graph so: slow, and the reference of [`crate::Program`]. `inputs` and outputs
/// are arrays as ONNX has them (`[n, c, h, w]`).
///
/// # Panics
/// When the inputs are not as many, or not as large, as the graph says.
pub fn reference(graph: &Graph, inputs: &[&[f32]]) -> Vec<Vec<f32>> {
    let mut values: Vec<Vec<f32>> = vec![Vec::new(); graph.values()];
    let round = |value: Value, x: &mut [f32]| {
        if let Some(quant) = graph.info(value).quant {
            x.iter_mut().for_each(|x| *x = to_grid(*x, quant));
        }
    };
    assert_eq!(inputs.len(), graph.inputs().len());
    for (&value, &x) in graph.inputs().iter().zip(inputs) {
        assert_eq!(Some(x.len()), nd::count(graph.shape(value)));
        let mut x = x.to_vec();
        round(value, &mut x);
        values[value.index()] = x;
    }
    for node in graph.nodes() {
        let shape = graph.shape(node.output);
        let mut out = vec![0.0; shape.iter().product()];
        let arrays: Vec<Array<'_, f32>> = node
            .inputs
            .iter()
            .map(|&x| (&values[x.index()][..], graph.shape(x)))
            .collect();
        run(&node.op, &arrays, shape, &mut out);
        round(node.output, &mut out);
        values[node.output.index()] = out;
    }
    let outputs = graph.outputs().iter();
    outputs.map(|x| values[x.index()].clone()).collect()
}

/// `f` of constants, for folding.
pub(crate) fn fold_ints(binary: Binary, a: i64, b: i64) -> Option<i64> {
    match binary {
        Binary::Add => a.checked_add(b),
        Binary::Div => a.checked_div(b),
        Binary::Max => Some(a.max(b)),
        Binary::Min => Some(a.min(b)),
        Binary::Mul => a.checked_mul(b),
        Binary::Pow => a.checked_pow(u32::try_from(b).ok()?),
        Binary::Sub => a.checked_sub(b),
    }
}
