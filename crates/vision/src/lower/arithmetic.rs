//! Operators that compute each value from values at the same place, or fold along axes.

use super::constant::{Constant, Data};
use super::{Known, Lowering, Reader, Refusal, axes_of, axis_of, unsupported, wrong};
use crate::op::{Activation, Binary, Function, LARGEST, Op, Reduction, Weights};

type Made = Result<Vec<Known>, Refusal>;

impl Lowering<'_> {
    /// `None` when the operator is not one of these.
    pub(super) fn arithmetic(&mut self, node: &Reader<'_>, op: &str) -> Option<Made> {
        let function = match op {
            "Abs" => Some(Function::Abs),
            "Ceil" => Some(Function::Ceil),
            "Cos" => Some(Function::Cos),
            "Erf" => Some(Function::Erf),
            "Exp" => Some(Function::Exp),
            "Floor" => Some(Function::Floor),
            "Log" => Some(Function::Log),
            "Mish" => Some(Function::Mish),
            "Neg" => Some(Function::Neg),
            "Reciprocal" => Some(Function::Reciprocal),
            "Round" => Some(Function::Round),
            "Sin" => Some(Function::Sin),
            "Softplus" => Some(Function::Softplus),
            "Sqrt" => Some(Function::Sqrt),
            _ => None,
        };
        if let Some(function) = function {
            return Some(self.unary(node, Op::Function(function)));
        }
        let binary = match op {
            "Add" | "Sum" => Some(Binary::Add),
            "Div" => Some(Binary::Div),
            "Max" => Some(Binary::Max),
            "Min" => Some(Binary::Min),
            "Mul" => Some(Binary::Mul),
            "Pow" => Some(Binary::Pow),
            "Sub" => Some(Binary::Sub),
            _ => None,
        };
        if let Some(binary) = binary {
            return Some(self.many(node, binary));
        }
        let reduction = match op {
            "ArgMax" => Some(Reduction::ArgMax),
            "ReduceMax" => Some(Reduction::Max),
            "ReduceMean" => Some(Reduction::Mean),
            "ReduceMin" => Some(Reduction::Min),
            "ReduceSum" => Some(Reduction::Sum),
            _ => None,
        };
        if let Some(reduction) = reduction {
            return Some(self.reduce(node, reduction));
        }
        Some(match op {
            "Relu" => self.unary(node, Op::Activation(Activation::Relu)),
            "Sigmoid" => self.unary(node, Op::Activation(Activation::Sigmoid)),
            "Tanh" => self.unary(node, Op::Activation(Activation::Tanh)),
            "HardSwish" => self.unary(node, Op::Activation(Activation::HardSwish)),
            "HardSigmoid" => self.hard_sigmoid(node),
            "LeakyRelu" => self.leaky(node),
            "Elu" => self.elu(node),
            "Gelu" => self.gelu(node),
            "PRelu" => self.prelu(node),
            "Clip" => self.clip(node),
            "Softmax" | "LogSoftmax" => self.softmax(node, op == "LogSoftmax"),
            "GlobalAveragePool" => self.global(node, Reduction::Mean),
            "GlobalMaxPool" => self.global(node, Reduction::Max),
            "MatMul" => self.matmul(node),
            "Gemm" => self.gemm(node),
            "Equal" | "Greater" | "Less" | "GreaterOrEqual" | "LessOrEqual" | "And" | "Or" => {
                self.compare(node, op)
            }
            "Not" => self.not(node),
            "Where" => self.choose(node),
            _ => return None,
        })
    }

    fn unary(&mut self, node: &Reader<'_>, op: Op) -> Made {
        let x = node.input(0)?;
        Ok(vec![self.apply(node, op, &[x])?])
    }

    fn hard_sigmoid(&mut self, node: &Reader<'_>) -> Made {
        let alpha = node.float("alpha", 0.2)?;
        let beta = node.float("beta", 0.5)?;
        self.unary(
            node,
            Op::Activation(Activation::HardSigmoid { alpha, beta }),
        )
    }

    fn leaky(&mut self, node: &Reader<'_>) -> Made {
        let slope = node.float("alpha", 0.01)?;
        self.unary(node, Op::Activation(Activation::LeakyRelu { slope }))
    }

    fn elu(&mut self, node: &Reader<'_>) -> Made {
        match node.float("alpha", 1.0)? {
            1.0 => self.unary(node, Op::Function(Function::Elu)),
            alpha => unsupported(format!("alpha {alpha}")),
        }
    }

    fn gelu(&mut self, node: &Reader<'_>) -> Made {
        match node.string("approximate", "none")?.as_str() {
            "none" => self.unary(node, Op::Function(Function::Gelu)),
            how => unsupported(format!("approximate {how:?}")),
        }
    }

    /// `max(x, 0) + slope · min(x, 0)`
    fn prelu(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let slope = node.input(1)?;
        let zero = || Known::Constant(Constant::floats(Vec::new(), vec![0.0]));
        let above = self.binary(node, Binary::Max, x.clone(), zero())?;
        let below = self.binary(node, Binary::Min, x, zero())?;
        let below = self.binary(node, Binary::Mul, below, slope)?;
        Ok(vec![self.binary(node, Binary::Add, above, below)?])
    }

    fn clip(&mut self, node: &Reader<'_>) -> Made {
        let bound = |name: &str, input: usize, default: f32| -> Result<f32, Refusal> {
            match node.constant(input)? {
                Some(constant) => match constant.single() {
                    Some(bound) => Ok(bound),
                    None => wrong(format!("{name} is not one value")),
                },
                None => node.float(name, default),
            }
        };
        let low = bound("min", 1, f32::NEG_INFINITY)?;
        let high = bound("max", 2, f32::INFINITY)?;
        if low.is_nan() || high.is_nan() {
            return wrong("a bound is not a number");
        }
        let activation = match (low, high) {
            (0.0, f32::INFINITY) => Activation::Relu,
            _ => Activation::Clip { low, high },
        };
        self.unary(node, Op::Activation(activation))
    }

    /// Two inputs or more, one after the other.
    fn many(&mut self, node: &Reader<'_>, binary: Binary) -> Made {
        if node.inputs() > super::MOST_INPUTS {
            return wrong(format!("{} inputs", node.inputs()));
        }
        let mut all = node.input(0)?;
        for i in 1..node.inputs() {
            all = self.binary(node, binary, all, node.input(i)?)?;
        }
        Ok(vec![all])
    }

    /// Of two values, of which one may be a constant.
    pub(super) fn binary(
        &mut self,
        node: &Reader<'_>,
        binary: Binary,
        a: Known,
        b: Known,
    ) -> Result<Known, Refusal> {
        let constant = |constant: &Constant, first| Op::Constant {
            binary,
            shape: constant.shape.clone(),
            values: constant.to_floats(),
            first,
        };
        match (&a, &b) {
            (Known::Value(_), Known::Constant(b)) => {
                let op = constant(b, false);
                self.apply(node, op, &[a])
            }
            (Known::Constant(a), Known::Value(_)) => {
                let op = constant(a, true);
                self.apply(node, op, &[b])
            }
            _ => self.apply(node, Op::Binary(binary, Activation::Identity), &[a, b]),
        }
    }

    fn reduce(&mut self, node: &Reader<'_>, reduction: Reduction) -> Made {
        let x = node.input(0)?;
        let rank = self.shape(&x).len();
        let keep = node.int("keepdims", 1)? != 0;
        let axes = match reduction {
            Reduction::ArgMax => {
                if node.int("select_last_index", 0)? != 0 {
                    return unsupported("select_last_index");
                }
                Some(vec![node.int("axis", 0)?])
            }
            _ => node.ints_of("axes", 1)?.filter(|axes| !axes.is_empty()),
        };
        let axes = match axes {
            Some(axes) => axes_of(&axes, rank)?,
            None if node.int("noop_with_empty_axes", 0)? != 0 => return Ok(vec![x]),
            None => (0..rank).collect(),
        };
        let op = Op::Reduce {
            reduction,
            axes,
            keep,
        };
        Ok(vec![self.apply(node, op, &[x])?])
    }

    fn global(&mut self, node: &Reader<'_>, reduction: Reduction) -> Made {
        let x = node.input(0)?;
        let axes = (2..self.shape(&x).len()).collect();
        let op = Op::Reduce {
            reduction,
            axes,
            keep: true,
        };
        Ok(vec![self.apply(node, op, &[x])?])
    }

    /// Before opset 13 all axes from the given one on are one.
    fn softmax(&mut self, node: &Reader<'_>, log: bool) -> Made {
        let x = node.input(0)?;
        let shape = self.shape(&x);
        let old = self.opset < 13;
        let axis = axis_of(node.int("axis", if old { 1 } else { -1 })?, shape.len())?;
        let flat = old && axis + 1 != shape.len();
        let inner = match flat {
            true => {
                let rows = shape[..axis].iter().product();
                let columns = shape[axis..].iter().product();
                self.apply(node, Op::Reshape(vec![rows, columns]), &[x])?
            }
            false => x,
        };
        let along = if flat { 1 } else { axis };
        let mut y = self.apply(node, Op::Softmax(along), &[inner])?;
        if log {
            y = self.apply(node, Op::Function(Function::Log), &[y])?;
        }
        if flat {
            y = self.apply(node, Op::Reshape(shape), &[y])?;
        }
        Ok(vec![y])
    }

    fn matmul(&mut self, node: &Reader<'_>) -> Made {
        let (a, b) = (node.input(0)?, node.input(1)?);
        if let (Known::Value(_), Known::Constant(b)) = (&a, &b)
            && let [k, n] = b.shape[..]
        {
            let op = linear(&b.to_floats(), k, n, false, Vec::new());
            return Ok(vec![self.apply(node, op, &[a])?]);
        }
        Ok(vec![self.apply(node, Op::MatMul, &[a, b])?])
    }

    fn gemm(&mut self, node: &Reader<'_>) -> Made {
        let a = node.input(0)?;
        let Some(b) = node.constant(1)? else {
            return wrong("its weights are missing");
        };
        let alpha = node.float("alpha", 1.0)?;
        let beta = node.float("beta", 1.0)?;
        if node.int("transA", 0)? != 0 {
            return unsupported("transA");
        }
        if self.shape(&a).len() != 2 {
            return wrong("its first input is no matrix");
        }
        let turned = node.int("transB", 0)? != 0;
        let (k, n) = match (&b.shape[..], turned) {
            (&[n, k], true) => (k, n),
            (&[k, n], false) => (k, n),
            _ => return wrong("its weights are no matrix"),
        };
        let bias = match node.constant(2)? {
            None => Vec::new(),
            Some(c) => {
                if !matches!(c.shape[..], [] | [_] | [1, _]) {
                    return unsupported("a C with values for each row");
                }
                let c = c.to_floats();
                match c.len() {
                    1 => vec![beta * c[0]; n],
                    len if len == n => c.iter().map(|x| beta * x).collect(),
                    len => return wrong(format!("{len} values of C for {n} outputs")),
                }
            }
        };
        let op = match self.stored(node, 1)?.weights(0) {
            // Integers stay integers.
            Ok(weights @ Weights::Int8 { .. }) if turned && alpha == 1.0 => Op::Linear {
                weights,
                bias: bias.into(),
                outputs: n,
                activation: Activation::Identity,
            },
            _ => {
                let weights: Vec<f32> = b.to_floats().iter().map(|x| alpha * x).collect();
                linear(&weights, k, n, turned, bias)
            }
        };
        Ok(vec![self.apply(node, op, &[a])?])
    }

    fn compare(&mut self, node: &Reader<'_>, op: &str) -> Made {
        let (Some(a), Some(b)) = (node.constant(0)?, node.constant(1)?) else {
            return wrong("it has two inputs");
        };
        let Some(shape) = crate::nd::broadcast(&a.shape, &b.shape) else {
            return wrong("sizes do not broadcast");
        };
        let Some(count) = crate::nd::count(&shape).filter(|&count| count <= LARGEST) else {
            return wrong(format!("{shape:?} is more than 4 GiB"));
        };
        self.spend(count)?;
        let mut out = vec![0i64; count];
        let (x, y) = (a.to_floats(), b.to_floats());
        let f = |a: f32, b: f32| match op {
            "Equal" => i64::from(a == b),
            "Greater" => i64::from(a > b),
            "GreaterOrEqual" => i64::from(a >= b),
            "Less" => i64::from(a < b),
            "LessOrEqual" => i64::from(a <= b),
            "And" => i64::from(a != 0.0 && b != 0.0),
            _ => i64::from(a != 0.0 || b != 0.0),
        };
        crate::nd::binary((&x, &a.shape), (&y, &b.shape), &shape, &mut out, f);
        Ok(vec![Known::Constant(Constant::ints(shape, out))])
    }

    fn not(&mut self, node: &Reader<'_>) -> Made {
        let Some(x) = node.constant_ints(0)? else {
            return wrong("it has one input");
        };
        let shape = self.shape(&node.input(0)?);
        let out = x.iter().map(|&x| i64::from(x == 0)).collect();
        Ok(vec![Known::Constant(Constant::ints(shape, out))])
    }

    fn choose(&mut self, node: &Reader<'_>) -> Made {
        let (Some(c), Some(a), Some(b)) = (node.constant(0)?, node.constant(1)?, node.constant(2)?)
        else {
            return wrong("it has three inputs");
        };
        let shape = crate::nd::broadcast(&a.shape, &b.shape);
        let shape = shape.and_then(|shape| crate::nd::broadcast(&c.shape, &shape));
        let Some(shape) = shape else {
            return wrong("sizes do not broadcast");
        };
        let spread = |x: &Constant| -> Result<Constant, Refusal> {
            super::fold(&Op::Expand(shape.clone()), &[x])
        };
        let (c, a, b) = (spread(&c)?, spread(&a)?, spread(&b)?);
        let which = c.to_floats();
        let chosen = match (&a.data, &b.data) {
            (Data::Int(a, _), Data::Int(b, _)) => {
                let pairs = a.iter().zip(b.iter()).zip(which.iter());
                let out = pairs
                    .map(|((a, b), &c)| if c != 0.0 { *a } else { *b })
                    .collect();
                Constant::ints(shape, out)
            }
            _ => {
                let (a, b) = (a.to_floats(), b.to_floats());
                let pairs = a.iter().zip(b.iter()).zip(which.iter());
                let out = pairs
                    .map(|((a, b), &c)| if c != 0.0 { *a } else { *b })
                    .collect();
                Constant::floats(shape, out)
            }
        };
        Ok(vec![Known::Constant(chosen)])
    }
}

/// A product with `[k, n]`, or `[n, k]` when turned.
fn linear(weights: &[f32], k: usize, n: usize, turned: bool, bias: Vec<f32>) -> Op {
    let mut rows = vec![0.0; weights.len()];
    match turned {
        true => rows.copy_from_slice(weights),
        false => crate::nd::transpose(weights, &[k, n], &[1, 0], &mut rows),
    }
    Op::Linear {
        weights: Weights::Float(rows.into()),
        bias: bias.into(),
        outputs: n,
        activation: Activation::Identity,
    }
}
