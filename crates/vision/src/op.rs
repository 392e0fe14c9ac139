//! The operations of a graph: what they are made of, and the shape of what they make.

use std::sync::Arc;

pub use sedge_conv::Activation;
use sedge_conv::{Window, WindowError};

use crate::nd;

/// Weights of a product, shared when graphs are copied.
#[derive(Clone, Debug, PartialEq)]
pub enum Weights {
    /// As they are.
    Float(Arc<[f32]>),
    /// 8-bit integers, each output's multiplied by a scale of its own.
    Int8 {
        /// The integers.
        codes: Arc<[i8]>,
        /// For each output.
        scales: Arc<[f32]>,
    },
}

impl Weights {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Weights::Float(values) => values.len(),
            Weights::Int8 { codes, .. } => codes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As real numbers. Each output's lie together.
    pub fn to_float(&self) -> Arc<[f32]> {
        match self {
            Weights::Float(values) => Arc::clone(values),
            Weights::Int8 { codes, scales } => {
                let each = codes.len() / scales.len().max(1);
                let rows = codes.chunks(each.max(1)).zip(scales.iter());
                rows.flat_map(|(row, &scale)| row.iter().map(move |&q| f32::from(q) * scale))
                    .collect()
            }
        }
    }
}

/// A convolution, with what is done to its results before they are stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    /// `[outputs, inputs / groups, kernel height, kernel width]`.
    pub weights: Weights,
    /// For each output; empty for none.
    pub bias: Arc<[f32]>,
    /// Channels that are made.
    pub outputs: usize,
    /// Channels that are read.
    pub inputs: usize,
    /// Groups of channels that see nothing of each other.
    pub groups: usize,
    /// Where it looks.
    pub window: Window,
    /// Applied to the sum of products, bias and the second input, if there is one.
    pub activation: Activation,
}

impl Conv {
    /// Whether each output looks at one channel of its own.
    pub fn is_depthwise(&self) -> bool {
        self.groups == self.inputs && self.groups == self.outputs && self.groups > 1
    }

    /// Whether it is a product of matrices: one tap, every pixel, all channels.
    pub fn is_pointwise(&self) -> bool {
        self.window.is_pointwise() && self.groups == 1
    }
}

/// A transposed convolution: what a convolution would read, from what it would make.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvTranspose {
    /// `[inputs, outputs / groups, kernel height, kernel width]`.
    pub weights: Arc<[f32]>,
    /// For each output; empty for none.
    pub bias: Arc<[f32]>,
    /// Channels that are made.
    pub outputs: usize,
    /// Channels that are read.
    pub inputs: usize,
    /// Groups of channels that see nothing of each other.
    pub groups: usize,
    /// Of the convolution.
    pub window: Window,
    /// Rows and columns more than the least that it could have read.
    pub more: [usize; 2],
    /// Applied to each result.
    pub activation: Activation,
}

/// A function of each value that is no [`Activation`]: these are rare, and are not fused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// `|x|`
    Abs,
    /// The least whole number that is not less.
    Ceil,
    /// The cosine.
    Cos,
    /// `x` where it is positive, else `exp(x) − 1`.
    Elu,
    /// The error function.
    Erf,
    /// `exp(x)`
    Exp,
    /// The greatest whole number that is not greater.
    Floor,
    /// `x` times the share of a normal distribution below it.
    Gelu,
    /// The natural logarithm.
    Log,
    /// `x · tanh(ln(1 + exp(x)))`
    Mish,
    /// `−x`
    Neg,
    /// `1 / x`
    Reciprocal,
    /// The nearest whole number, the even one of two.
    Round,
    /// The sine.
    Sin,
    /// `ln(1 + exp(x))`
    Softplus,
    /// The square root.
    Sqrt,
}

impl Function {
    /// The function of one value.
    pub fn of(self, x: f32) -> f32 {
        match self {
            Function::Abs => x.abs(),
            Function::Ceil => x.ceil(),
            Function::Cos => x.cos(),
            Function::Elu => match x < 0.0 {
                true => x.exp_m1(),
                false => x,
            },
            Function::Erf => erf(x),
            Function::Exp => x.exp(),
            Function::Floor => x.floor(),
            Function::Gelu => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
            Function::Log => x.ln(),
            Function::Mish => x * softplus(x).tanh(),
            Function::Neg => -x,
            Function::Reciprocal => 1.0 / x,
            Function::Round => x.round_ties_even(),
            Function::Sin => x.sin(),
            Function::Softplus => softplus(x),
            Function::Sqrt => x.sqrt(),
        }
    }
}

fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// By the rational approximation 7.1.26 of Abramowitz and Stegun in double precision, whose
/// error is below 1.5e-7.
fn erf(x: f32) -> f32 {
    let a = f64::from(x.abs());
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let terms = [
        1.061_405_429,
        -1.453_152_027,
        1.421_413_741,
        -0.284_496_736,
        0.254_829_592,
    ];
    let sum = terms.iter().fold(0.0, |sum, term| (sum + term) * t);
    (1.0 - sum * (-a * a).exp()).copysign(f64::from(x)) as f32
}

/// A function of two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`
    Add,
    /// `a / b`
    Div,
    /// The greater.
    Max,
    /// The less.
    Min,
    /// `a · b`
    Mul,
    /// `a` to the power of `b`.
    Pow,
    /// `a − b`
    Sub,
}

impl Binary {
    /// The function of two values.
    pub fn of(self, a: f32, b: f32) -> f32 {
        match self {
            Binary::Add => a + b,
            Binary::Div => a / b,
            Binary::Max => a.max(b),
            Binary::Min => a.min(b),
            Binary::Mul => a * b,
            Binary::Pow => a.powf(b),
            Binary::Sub => a - b,
        }
    }
}

/// What is made of several values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// The index of the first greatest value.
    ArgMax,
    /// The greatest.
    Max,
    /// The mean.
    Mean,
    /// The least.
    Min,
    /// The sum.
    Sum,
}

/// Which values of the input a resized picture's rows (or columns) are made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// For each output: the two inputs, and the second one's share, from 0 to 1.
    pub taps: Arc<[(u32, u32, f32)]>,
}

/// What a pooling makes of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// The greatest value; padding is never it.
    Max,
    /// The mean.
    Average {
        /// Whether padding counts as values of 0.
        padding: bool,
    },
}

/// An operation. Values are f32 or on an 8-bit grid ([`crate::ValueInfo::quant`]).
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Inputs: the picture, and if there are two, what is added to the products.
    Conv(Conv),
    /// Input: the picture.
    ConvTranspose(ConvTranspose),
    /// `[…, k] · [k, n]`, weights as `[n, k]`: each output's together.
    Linear {
        /// `[n, k]`.
        weights: Weights,
        /// For each output; empty for none.
        bias: Arc<[f32]>,
        /// Outputs.
        outputs: usize,
        /// Applied to each result.
        activation: Activation,
    },
    /// `[…, m, k] · […, k, n]`.
    MatMul,
    /// Windows of a picture, each channel alone.
    Pool(Pool, Window),
    /// A picture times one value for each channel (`[n, c, 1, 1]`), then a function.
    Scale(Activation),
    /// `a · x + b` with numbers for each channel, then a function.
    Affine {
        /// What each channel is multiplied with.
        scale: Arc<[f32]>,
        /// What is added.
        shift: Arc<[f32]>,
        /// Applied to each result.
        activation: Activation,
    },
    /// A function of each value.
    Activation(Activation),
    /// A function of each value.
    Function(Function),
    /// Of two inputs, shapes broadcast as numpy does.
    Binary(Binary, Activation),
    /// Of an input and a constant, shapes broadcast.
    Constant {
        /// What is computed.
        binary: Binary,
        /// The constant's sizes.
        shape: Vec<usize>,
        /// The constant.
        values: Arc<[f32]>,
        /// Whether the constant comes first.
        first: bool,
    },
    /// Inputs one after the other along an axis.
    Concat(usize),
    /// From `start`, every `step`th, `size` of them, along each axis.
    Slice {
        /// First index along each axis.
        start: Vec<usize>,
        /// From one to the next; may be negative.
        step: Vec<isize>,
        /// The output's sizes.
        size: Vec<usize>,
    },
    /// The same values in other sizes.
    Reshape(Vec<usize>),
    /// Axis `i` of the output is axis `perm[i]` of the input.
    Transpose(Vec<usize>),
    /// Rows and columns of a picture.
    Resize {
        /// Of rows.
        rows: Axis,
        /// Of columns.
        columns: Axis,
    },
    /// Over these axes, which are kept with size 1 or left out.
    Reduce {
        /// What is made of the values.
        reduction: Reduction,
        /// Which axes, ascending.
        axes: Vec<usize>,
        /// Whether they stay, as sizes of 1.
        keep: bool,
    },
    /// `exp(x) / Σ exp(x)` along an axis.
    Softmax(usize),
    /// Values around the input: the edge's, or a constant.
    Pad {
        /// Before the first, along each axis.
        before: Vec<usize>,
        /// After the last.
        after: Vec<usize>,
        /// What is put there.
        fill: Fill,
    },
    /// Chosen indices along an axis.
    Gather {
        /// Which axis.
        axis: usize,
        /// Which indices.
        indices: Arc<[usize]>,
        /// The sizes that take the axis's place; none for a single index without an axis.
        shape: Vec<usize>,
    },
    /// Repeated along axes of size 1, as numpy broadcasts.
    Expand(Vec<usize>),
    /// Rounds to the output's grid ([`crate::ValueInfo::quant`]); real numbers stay real numbers.
    Round,
}

/// What is put around a padded value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// This number.
    Constant(f32),
    /// The nearest value.
    Edge,
    /// Mirrored at the edge, which is not repeated.
    Reflect,
}

/// Why an operation does not fit what it is given.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// A window and a picture.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// Shapes that the operation has no meaning for.
    #[error("{kind} of {shapes:?}: {why}")]
    Shape {
        /// The operation.
        kind: &'static str,
        /// What it was given.
        shapes: Vec<Vec<usize>>,
        /// What is wrong.
        why: String,
    },
    /// Weights are not as many as its sizes say.
    #[error("{what}: {found} values, its sizes say {expected}")]
    Weights {
        /// Weights or bias.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there must be.
        expected: usize,
    },
}

/// More values than this (4 GiB of f32) in one value of a graph are taken for a mistake.
pub(crate) const LARGEST: usize = 1 << 30;
/// Axes of a value.
pub(crate) const MOST_AXES: usize = 32;
/// Steps of a transposed convolution, rows times columns: each has weights of its own.
const MOST_PHASES: usize = 4096;

impl Op {
    /// Its name in tables and errors.
    pub fn kind(&self) -> &'static str {
        match self {
            Op::Conv(conv) if conv.is_depthwise() => "depthwise",
            Op::Conv(conv) if conv.is_pointwise() => "pointwise",
            Op::Conv(_) => "conv",
            Op::ConvTranspose(_) => "transposed conv",
            Op::Linear { .. } => "linear",
            Op::MatMul => "matmul",
            Op::Pool(Pool::Max, _) => "max pool",
            Op::Pool(Pool::Average { .. }, _) => "average pool",
            Op::Scale(_) => "scale",
            Op::Affine { .. } => "affine",
            Op::Activation(_) => "activation",
            Op::Function(_) => "function",
            Op::Binary(..) => "binary",
            Op::Constant { .. } => "binary with a constant",
            Op::Concat(_) => "concat",
            Op::Slice { .. } => "slice",
            Op::Reshape(_) => "reshape",
            Op::Transpose(_) => "transpose",
            Op::Resize { .. } => "resize",
            Op::Reduce { .. } => "reduce",
            Op::Softmax(_) => "softmax",
            Op::Pad { .. } => "pad",
            Op::Gather { .. } => "gather",
            Op::Expand(_) => "expand",
            Op::Round => "round",
        }
    }

    /// Weights that it multiplies with.
    pub fn weights(&self) -> u64 {
        match self {
            Op::Conv(conv) => conv.weights.len() as u64,
            Op::ConvTranspose(conv) => conv.weights.len() as u64,
            Op::Linear { weights, .. } => weights.len() as u64,
            _ => 0,
        }
    }

    /// Products that it sums, given the first input's shape and the output's.
    pub fn macs(&self, input: &[usize], output: &[usize]) -> u64 {
        let product = |sizes: &[usize]| sizes.iter().map(|&x| x as u64).product::<u64>();
        match self {
            Op::Conv(conv) => {
                product(output) * (conv.inputs / conv.groups * conv.window.taps()) as u64
            }
            Op::ConvTranspose(conv) => {
                product(input) * (conv.outputs / conv.groups * conv.window.taps()) as u64
            }
            Op::Linear { .. } | Op::MatMul => {
                product(output) * input.last().copied().unwrap_or(1) as u64
            }
            _ => 0,
        }
    }

    /// The function that is applied last, if the operation can have one.
    pub(crate) fn activation_mut(&mut self) -> Option<&mut Activation> {
        match self {
            Op::Conv(conv) => Some(&mut conv.activation),
            Op::ConvTranspose(conv) => Some(&mut conv.activation),
            Op::Linear { activation, .. }
            | Op::Affine { activation, .. }
            | Op::Scale(activation)
            | Op::Binary(_, activation) => Some(activation),
            _ => None,
        }
    }

    /// The shape of what it makes of inputs of these shapes.
    pub fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, OpError> {
        let wrong = |why: &str| OpError::Shape {
            kind: self.kind(),
            shapes: inputs.iter().map(|x| x.to_vec()).collect(),
            why: why.to_owned(),
        };
        let count = match self {
            Op::Concat(_) => inputs.len().max(1),
            Op::MatMul | Op::Binary(..) | Op::Scale(_) => 2,
            Op::Conv(_) => inputs.len().clamp(1, 2),
            _ => 1,
        };
        if inputs.len() != count {
            return Err(wrong(&format!("it has {count} inputs")));
        }
        let x = inputs[0];
        let picture = || match *x {
            [n, c, h, w] => Ok((n, c, h, w)),
            _ => Err(wrong("it works on pictures [n, channels, height, width]")),
        };
        let exactly = |what, found: usize, expected: Option<usize>| match expected {
            Some(expected) if found == expected => Ok(()),
            expected => Err(OpError::Weights {
                what,
                found,
                expected: expected.unwrap_or(usize::MAX),
            }),
        };
        let shape = match self {
            Op::Conv(conv) => {
                let (n, c, h, w) = picture()?;
                if c != conv.inputs {
                    return Err(wrong(&format!("it reads {} channels", conv.inputs)));
                }
                let groups = conv.groups;
                if groups == 0 || conv.inputs % groups != 0 || conv.outputs % groups != 0 {
                    return Err(wrong(&format!(
                        "channels do not divide into {groups} groups"
                    )));
                }
                let [rows, columns] = conv.window.output(h, w)?;
                // The picture with its pads, which kernels may copy.
                let pads = conv.window.pads;
                let padded = [n, c, h + pads[0] + pads[2], w + pads[1] + pads[3]];
                if nd::count(&padded).is_none_or(|count| count > LARGEST) {
                    return Err(wrong("its pads are more than 4 GiB"));
                }
                let each = (conv.inputs / groups).checked_mul(conv.window.taps());
                exactly(
                    "weights",
                    conv.weights.len(),
                    each.and_then(|x| x.checked_mul(conv.outputs)),
                )?;
                if !conv.bias.is_empty() {
                    exactly("bias", conv.bias.len(), Some(conv.outputs))?;
                }
                if let Weights::Int8 { scales, .. } = &conv.weights {
                    exactly("scales", scales.len(), Some(conv.outputs))?;
                }
                let shape = vec![n, conv.outputs, rows, columns];
                if inputs.get(1).is_some_and(|add| *add != shape) {
                    return Err(wrong(&format!("what is added is not {shape:?}")));
                }
                shape
            }
            Op::ConvTranspose(conv) => {
                let (n, c, h, w) = picture()?;
                if c != conv.inputs {
                    return Err(wrong(&format!("it reads {} channels", conv.inputs)));
                }
                let groups = conv.groups;
                if groups == 0 || conv.inputs % groups != 0 || conv.outputs % groups != 0 {
                    return Err(wrong(&format!(
                        "channels do not divide into {groups} groups"
                    )));
                }
                if conv.window.stride[0].saturating_mul(conv.window.stride[1]) > MOST_PHASES {
                    return Err(wrong("its strides are larger than any network's"));
                }
                // Refuses what no convolution has, before sizes are multiplied.
                conv.window
                    .output(usize::from(u16::MAX) * 2, usize::from(u16::MAX) * 2)?;
                let each = (conv.outputs / groups).checked_mul(conv.window.taps());
                exactly(
                    "weights",
                    conv.weights.len(),
                    each.and_then(|x| x.checked_mul(conv.inputs)),
                )?;
                if !conv.bias.is_empty() {
                    exactly("bias", conv.bias.len(), Some(conv.outputs))?;
                }
                let along = |axis: usize, size: usize| {
                    let window = conv.window;
                    let reach = (window.kernel[axis] - 1) * window.dilation[axis] + 1;
                    let full = size.checked_sub(1)? * window.stride[axis] + reach + conv.more[axis];
                    let left = full.checked_sub(window.pads[axis] + window.pads[axis + 2]);
                    left.filter(|&size| size > 0)
                };
                match (along(0, h), along(1, w)) {
                    (Some(rows), Some(columns)) => vec![n, conv.outputs, rows, columns],
                    _ => return Err(wrong("nothing is left after the pads")),
                }
            }
            Op::Linear {
                weights,
                bias,
                outputs,
                ..
            } => {
                let Some((&k, rest)) = x.split_last() else {
                    return Err(wrong("a single value has no rows"));
                };
                exactly("weights", weights.len(), k.checked_mul(*outputs))?;
                if !bias.is_empty() {
                    exactly("bias", bias.len(), Some(*outputs))?;
                }
                [rest, &[*outputs]].concat()
            }
            Op::MatMul => {
                let (a, b) = (x, inputs[1]);
                let ([a_rest @ .., m, k], [b_rest @ .., k2, n]) = (a, b) else {
                    return Err(wrong("both have at least two axes"));
                };
                if k != k2 {
                    return Err(wrong("rows and columns do not meet"));
                }
                let rest = nd::broadcast(a_rest, b_rest).ok_or_else(|| wrong("batches differ"))?;
                [&rest[..], &[*m, *n]].concat()
            }
            Op::Pool(_, window) => {
                let (n, c, h, w) = picture()?;
                let [rows, columns] = window.output(h, w)?;
                vec![n, c, rows, columns]
            }
            Op::Scale(_) => {
                let (n, c, ..) = picture()?;
                if inputs[1] != [n, c, 1, 1] {
                    return Err(wrong("there is not one factor for each channel"));
                }
                x.to_vec()
            }
            Op::Affine { scale, shift, .. } => {
                let channels = x.get(1).copied();
                exactly("scale", scale.len(), channels)?;
                exactly("shift", shift.len(), channels)?;
                x.to_vec()
            }
            Op::Activation(_) | Op::Function(_) | Op::Round => x.to_vec(),
            Op::Binary(..) => {
                nd::broadcast(x, inputs[1]).ok_or_else(|| wrong("sizes do not broadcast"))?
            }
            Op::Constant { shape, values, .. } => {
                exactly("constant", values.len(), nd::count(shape))?;
                nd::broadcast(x, shape)
                    .ok_or_else(|| wrong(&format!("a constant of {shape:?} does not broadcast")))?
            }
            Op::Concat(axis) => {
                let mut shape = x.to_vec();
                if *axis >= shape.len() {
                    return Err(wrong(&format!("there is no axis {axis}")));
                }
                for other in &inputs[1..] {
                    let alike = other.len() == shape.len()
                        && (0..shape.len()).all(|i| i == *axis || other[i] == shape[i]);
                    if !alike {
                        return Err(wrong("sizes differ along other axes"));
                    }
                    shape[*axis] += other[*axis];
                }
                shape
            }
            Op::Slice { start, step, size } => {
                let fits = [start.len(), step.len(), size.len()] == [x.len(); 3]
                    && (0..x.len()).all(|i| {
                        let last = size[i].checked_sub(1).map_or(Some(0), |n| {
                            (n as isize)
                                .checked_mul(step[i])?
                                .checked_add(start[i] as isize)
                        });
                        size[i] == 0
                            || (start[i] < x[i]
                                && last.is_some_and(|last| 0 <= last && last < x[i] as isize))
                    });
                if !fits {
                    return Err(wrong(&format!(
                        "{start:?} + {step:?} × {size:?} is outside"
                    )));
                }
                size.clone()
            }
            Op::Reshape(shape) => {
                if nd::count(shape) != nd::count(x) {
                    return Err(wrong(&format!("{shape:?} has another number of values")));
                }
                shape.clone()
            }
            Op::Transpose(perm) => {
                let mut seen = perm.clone();
                seen.sort_unstable();
                if !seen.iter().copied().eq(0..x.len()) {
                    return Err(wrong(&format!("{perm:?} is no order of its axes")));
                }
                perm.iter().map(|&i| x[i]).collect()
            }
            Op::Resize { rows, columns } => {
                let (n, c, h, w) = picture()?;
                let inside = |axis: &Axis, size: usize| {
                    axis.taps
                        .iter()
                        .all(|&(a, b, _)| (a.max(b) as usize) < size)
                };
                if !inside(rows, h) || !inside(columns, w) {
                    return Err(wrong("it looks outside of the picture"));
                }
                vec![n, c, rows.taps.len(), columns.taps.len()]
            }
            Op::Reduce {
                axes,
                keep,
                reduction,
            } => {
                if axes.iter().any(|&axis| axis >= x.len()) {
                    return Err(wrong(&format!("there are no axes {axes:?}")));
                }
                if *reduction == Reduction::ArgMax && axes.len() != 1 {
                    return Err(wrong("an index is along one axis"));
                }
                if *reduction != Reduction::Sum && axes.iter().any(|&axis| x[axis] == 0) {
                    return Err(wrong("there is nothing to reduce"));
                }
                let sizes = x.iter().enumerate();
                sizes
                    .filter_map(|(i, &size)| match axes.contains(&i) {
                        true => keep.then_some(1),
                        false => Some(size),
                    })
                    .collect()
            }
            Op::Softmax(axis) => match *axis < x.len() {
                true => x.to_vec(),
                false => return Err(wrong(&format!("there is no axis {axis}"))),
            },
            Op::Pad {
                before,
                after,
                fill,
            } => {
                if [before.len(), after.len()] != [x.len(); 2] {
                    return Err(wrong("pads are not for each axis"));
                }
                for i in 0..x.len() {
                    let around = before[i].max(after[i]);
                    let room = match fill {
                        Fill::Constant(_) => usize::MAX,
                        Fill::Edge if x[i] > 0 => usize::MAX,
                        Fill::Edge => 0,
                        Fill::Reflect => x[i].saturating_sub(1),
                    };
                    if around > room {
                        return Err(wrong("pads are larger than what they mirror"));
                    }
                }
                let sizes =
                    (0..x.len()).map(|i| x[i].saturating_add(before[i]).saturating_add(after[i]));
                sizes.collect()
            }
            Op::Gather {
                axis,
                indices,
                shape,
            } => {
                if *axis >= x.len() || indices.iter().any(|&i| i >= x[*axis]) {
                    return Err(wrong("indices are outside"));
                }
                exactly("indices", indices.len(), nd::count(shape))?;
                [&x[..*axis], shape, &x[axis + 1..]].concat()
            }
            Op::Expand(shape) => match nd::broadcast(x, shape) {
                Some(all) if all == *shape => all,
                _ => return Err(wrong(&format!("it does not broadcast to {shape:?}"))),
            },
        };
        if shape.len() > MOST_AXES {
            return Err(wrong(&format!(
                "{} axes are more than {MOST_AXES}",
                shape.len()
            )));
        }
        // A size of 0 hides the others from a product, not from loops over them.
        let sizes: Vec<usize> = shape.iter().map(|&size| size.max(1)).collect();
        match nd::count(&sizes) {
            Some(count) if count <= LARGEST => Ok(shape),
            _ => Err(wrong(&format!("{shape:?} is more than 4 GiB"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_near_what_tables_say() {
        for (x, y) in [
            (0.0, 0.0),
            (0.5, 0.520_499_9),
            (1.0, 0.842_700_8),
            (-2.0, -0.995_322_3),
        ] {
            assert!((erf(x) - y).abs() < 3e-7, "erf({x}) = {}", erf(x));
        }
    }

    #[test]
    fn slices_may_go_backwards() {
        let op = Op::Slice {
            start: vec![3],
            step: vec![-1],
            size: vec![4],
        };
        assert_eq!(op.shape(&[&[4]]).unwrap(), [4]);
        assert!(op.shape(&[&[3]]).is_err());
    }
}
