//! From a [`Graph`] to an ONNX file: what [`crate::lower`] and [`crate::fuse`] make the same
//! graph of, in operators that every other program knows.
//!
//! What is fused is written as nodes of its own. A value on a grid is written as rounding and
//! back (`QuantizeLinear`, `DequantizeLinear`), weights of 8 bits as their integers and scales, so
//! that programs that compute in integers find what they look for. Biases stay real numbers.

mod movement;

use std::collections::{HashMap, HashSet};

use sedge_formats::onnx::{self, Attribute, Dim, ElementType, Tensor, TensorData};

use crate::graph::{Graph, Node, Value};
use crate::op::{Activation, Binary, Conv, Function, Op, Pool, Reduction, Weights};

/// Why a graph cannot be written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("node {node:?} ({kind}) cannot be written as ONNX: {why}")]
pub struct ExportError {
    /// The node's name.
    pub node: String,
    /// Its operation.
    pub kind: &'static str,
    /// What ONNX has no word for.
    pub why: &'static str,
}

/// The version of the standard operators that files are written in.
const OPSET: i64 = 17;

/// A graph as an ONNX model, its metadata as the file's.
///
/// # Errors
/// When an operation has no counterpart: resizing with taps of no mode, averages of windows with
/// dilation.
pub fn export(graph: &Graph) -> Result<onnx::Model, ExportError> {
    let names = (0..graph.values()).map(|i| graph.info(Value(i as u32)).name.clone());
    let mut exporter = Exporter {
        graph,
        taken: names.collect(),
        unrounded: HashMap::new(),
        made: onnx::Graph {
            name: "sedge".to_owned(),
            nodes: Vec::new(),
            initializers: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
        },
    };
    for &input in graph.inputs() {
        let name = exporter.unrounded(input);
        let info = value_info(graph, input, name);
        exporter.made.inputs.push(info);
        exporter.round(input);
    }
    for node in graph.nodes() {
        exporter.node(node).map_err(|why| ExportError {
            node: node.name.clone(),
            kind: node.op.kind(),
            why,
        })?;
    }
    exporter.outputs();
    Ok(onnx::Model {
        ir_version: 8,
        opset: OPSET,
        domains: Vec::new(),
        producer: "sedge".to_owned(),
        metadata: graph.metadata.clone(),
        graph: exporter.made,
    })
}

fn value_info(graph: &Graph, value: Value, name: String) -> onnx::ValueInfo {
    let sizes = graph.shape(value).iter();
    onnx::ValueInfo {
        name,
        element: ElementType::F32,
        shape: Some(sizes.map(|&size| Dim::Fixed(size)).collect()),
    }
}

struct Exporter<'a> {
    graph: &'a Graph,
    /// Names of values in the file.
    taken: HashSet<String>,
    /// What values on grids are called before they are rounded.
    unrounded: HashMap<Value, String>,
    made: onnx::Graph,
}

/// What a node could not be written for.
type Made<T> = Result<T, &'static str>;

impl Exporter<'_> {
    fn name(&self, value: Value) -> String {
        self.graph.info(value).name.clone()
    }

    /// A name that no value has.
    fn fresh(&mut self, base: &str) -> String {
        let mut name = base.to_owned();
        let mut n = 1;
        while !self.taken.insert(name.clone()) {
            n += 1;
            name = format!("{base}.{n}");
        }
        name
    }

    /// What a value is called before it is rounded: its own name where it is not.
    fn unrounded(&mut self, value: Value) -> String {
        if self.graph.info(value).quant.is_none() {
            return self.name(value);
        }
        if let Some(name) = self.unrounded.get(&value) {
            return name.clone();
        }
        let name = self.fresh(&format!("{}/float", self.name(value)));
        self.unrounded.insert(value, name.clone());
        name
    }

    fn emit(
        &mut self,
        op: &str,
        inputs: Vec<String>,
        output: String,
        attributes: Vec<(&str, Attribute)>,
    ) {
        let attributes = attributes.into_iter();
        self.made.nodes.push(onnx::Node {
            name: output.clone(),
            op: op.to_owned(),
            domain: String::new(),
            inputs,
            outputs: vec![output],
            attributes: attributes.map(|(k, v)| (k.to_owned(), v)).collect(),
        });
    }

    /// A node whose result is between others.
    fn between(
        &mut self,
        op: &str,
        inputs: Vec<String>,
        base: &str,
        attributes: Vec<(&str, Attribute)>,
    ) -> String {
        let name = self.fresh(&format!("{base}/{}", op.to_lowercase()));
        self.emit(op, inputs, name.clone(), attributes);
        name
    }

    fn tensor(&mut self, base: &str, shape: &[usize], data: TensorData) -> String {
        let name = self.fresh(base);
        self.made.initializers.push(Tensor {
            name: name.clone(),
            shape: shape.to_vec(),
            data,
        });
        name
    }

    fn floats(&mut self, base: &str, shape: &[usize], values: &[f32]) -> String {
        self.tensor(base, shape, TensorData::F32(values.to_vec()))
    }

    fn ints(&mut self, base: &str, values: Vec<i64>) -> String {
        self.tensor(base, &[values.len()], TensorData::I64(values))
    }

    /// Rounds a value to its grid, and back.
    fn round(&mut self, value: Value) {
        let Some(quant) = self.graph.info(value).quant else {
            return;
        };
        let name = self.name(value);
        let scale = self.floats(&format!("{name}/scale"), &[], &[quant.scale]);
        let zero = self.tensor(
            &format!("{name}/zero"),
            &[],
            TensorData::U8(vec![quant.zero]),
        );
        let from = self.unrounded(value);
        let grid = vec![from, scale.clone(), zero.clone()];
        let codes = self.between("QuantizeLinear", grid, &name, vec![]);
        self.emit("DequantizeLinear", vec![codes, scale, zero], name, vec![]);
    }

    /// Weights `shape`, outputs first; their value's name.
    fn weights(&mut self, base: &str, shape: &[usize], weights: &Weights) -> String {
        match weights {
            Weights::Float(values) => self.floats(&format!("{base}/weight"), shape, values),
            Weights::Int8 { codes, scales } => {
                let base = format!("{base}/weight");
                let scale = self.floats(&format!("{base}/scale"), &[scales.len()], scales);
                let zeros = TensorData::I8(vec![0; scales.len()]);
                let zero = self.tensor(&format!("{base}/zero"), &[scales.len()], zeros);
                let codes = TensorData::I8(codes.to_vec());
                let codes = self.tensor(&format!("{base}/codes"), shape, codes);
                let axis = vec![("axis", Attribute::Int(0))];
                self.between("DequantizeLinear", vec![codes, scale, zero], &base, axis)
            }
        }
    }

    /// The graph's outputs; each has a name of its own, which no input has.
    fn outputs(&mut self) {
        let mut named = HashSet::new();
        for &value in self.graph.outputs() {
            let mut name = self.name(value);
            if self.graph.inputs().contains(&value) || !named.insert(value) {
                name = self.between("Identity", vec![name.clone()], &name, vec![]);
            }
            let info = value_info(self.graph, value, name);
            self.made.outputs.push(info);
        }
    }

    fn node(&mut self, node: &Node) -> Made<()> {
        let to = self.unrounded(node.output);
        let inputs: Vec<String> = node.inputs.iter().map(|&x| self.name(x)).collect();
        let shape = self.graph.shape(node.inputs[0]).to_vec();
        match &node.op {
            Op::Conv(conv) => self.conv(conv, inputs, to),
            Op::ConvTranspose(conv) => {
                let [kh, kw] = conv.window.kernel;
                let sizes = [conv.inputs, conv.outputs / conv.groups, kh, kw];
                let weights = self.floats(&format!("{to}/weight"), &sizes, &conv.weights);
                let mut reads = vec![inputs[0].clone(), weights];
                if !conv.bias.is_empty() {
                    reads.push(self.floats(&format!("{to}/bias"), &[conv.outputs], &conv.bias));
                }
                let mut attributes = window(&conv.window, true);
                attributes.push(("group", int(conv.groups)));
                attributes.push(("output_padding", ints(conv.more)));
                self.then("ConvTranspose", reads, attributes, conv.activation, to);
            }
            Op::Linear {
                weights,
                bias,
                outputs,
                activation,
            } => self.linear(
                (weights, bias, *outputs),
                *activation,
                &inputs[0],
                &shape,
                to,
            ),
            Op::MatMul => self.emit("MatMul", inputs, to, vec![]),
            Op::Pool(Pool::Max, w) => self.emit("MaxPool", inputs, to, window(w, true)),
            Op::Pool(Pool::Average { padding }, w) => {
                if w.dilation != [1, 1] {
                    return Err("averages of windows with dilation");
                }
                let mut attributes = window(w, false);
                attributes.push(("count_include_pad", int(usize::from(*padding))));
                self.emit("AveragePool", inputs, to, attributes);
            }
            Op::Scale(activation) => self.then("Mul", inputs, vec![], *activation, to),
            Op::Affine {
                scale,
                shift,
                activation,
            } => {
                // A norm of mean 0 and variance 1.
                let c = scale.len();
                let scale = self.floats(&format!("{to}/factor"), &[c], scale);
                let shift = self.floats(&format!("{to}/summand"), &[c], shift);
                let mean = self.floats(&format!("{to}/mean"), &[c], &vec![0.0; c]);
                let variance = self.floats(&format!("{to}/variance"), &[c], &vec![1.0; c]);
                let reads = vec![inputs[0].clone(), scale, shift, mean, variance];
                let epsilon = vec![("epsilon", Attribute::Float(0.0))];
                self.then("BatchNormalization", reads, epsilon, *activation, to);
            }
            Op::Activation(activation) => self.activation(*activation, &inputs[0], to),
            Op::Function(function) => self.function(*function, &inputs[0], to),
            Op::Binary(binary, activation) => {
                self.then(operator(*binary), inputs, vec![], *activation, to);
            }
            Op::Constant {
                binary,
                shape,
                values,
                first,
            } => {
                let constant = self.floats(&format!("{to}/constant"), shape, values);
                let reads = match first {
                    true => vec![constant, inputs[0].clone()],
                    false => vec![inputs[0].clone(), constant],
                };
                self.emit(operator(*binary), reads, to, vec![]);
            }
            Op::Reduce {
                reduction,
                axes,
                keep,
            } => self.reduce(*reduction, axes, *keep, &inputs[0], &shape, to),
            Op::Softmax(axis) => self.emit("Softmax", inputs, to, vec![("axis", int(*axis))]),
            // Where it is on a grid, the rounding is written with the value; elsewhere it does
            // nothing.
            Op::Round => self.emit("Identity", inputs, to, vec![]),
            op => self.movement(node, op, inputs, to)?,
        }
        self.round(node.output);
        Ok(())
    }

    /// A node, and its activation.
    fn then(
        &mut self,
        op: &str,
        inputs: Vec<String>,
        attributes: Vec<(&str, Attribute)>,
        activation: Activation,
        to: String,
    ) {
        match activation {
            Activation::Identity => self.emit(op, inputs, to, attributes),
            activation => {
                let before = self.between(op, inputs, &to, attributes);
                self.activation(activation, &before, to);
            }
        }
    }

    fn conv(&mut self, conv: &Conv, inputs: Vec<String>, to: String) {
        let [kh, kw] = conv.window.kernel;
        let shape = [conv.outputs, conv.inputs / conv.groups, kh, kw];
        let weights = self.weights(&to, &shape, &conv.weights);
        let mut reads = vec![inputs[0].clone(), weights];
        if !conv.bias.is_empty() {
            reads.push(self.floats(&format!("{to}/bias"), &[conv.outputs], &conv.bias));
        }
        let mut attributes = window(&conv.window, true);
        attributes.push(("group", int(conv.groups)));
        match inputs.get(1) {
            None => self.then("Conv", reads, attributes, conv.activation, to),
            Some(add) => {
                let product = self.between("Conv", reads, &to, attributes);
                let both = vec![product, add.clone()];
                self.then("Add", both, vec![], conv.activation, to);
            }
        }
    }

    fn linear(
        &mut self,
        (weights, bias, outputs): (&Weights, &[f32], usize),
        activation: Activation,
        input: &str,
        shape: &[usize],
        to: String,
    ) {
        let k = shape.last().copied().unwrap_or(1);
        let weights = self.weights(&to, &[outputs, k], weights);
        let bias = (!bias.is_empty()).then(|| self.floats(&format!("{to}/bias"), &[outputs], bias));
        if shape.len() == 2 {
            let reads = [input.to_owned(), weights].into_iter().chain(bias);
            let turned = vec![("transB", Attribute::Int(1))];
            return self.then("Gemm", reads.collect(), turned, activation, to);
        }
        let turn = vec![("perm", ints([1, 0]))];
        let weights = self.between("Transpose", vec![weights], &to, turn);
        let reads = vec![input.to_owned(), weights];
        match bias {
            None => self.then("MatMul", reads, vec![], activation, to),
            Some(bias) => {
                let product = self.between("MatMul", reads, &to, vec![]);
                self.then("Add", vec![product, bias], vec![], activation, to);
            }
        }
    }

    fn activation(&mut self, activation: Activation, input: &str, to: String) {
        let x = vec![input.to_owned()];
        match activation {
            Activation::Identity => self.emit("Identity", x, to, vec![]),
            Activation::Relu => self.emit("Relu", x, to, vec![]),
            Activation::Clip { low, high } => {
                let mut bound = |name: &str, x: f32| match x.is_finite() {
                    true => self.floats(&format!("{to}/{name}"), &[], &[x]),
                    false => String::new(),
                };
                let bounds = [bound("low", low), bound("high", high)];
                let reads = x.into_iter().chain(bounds).collect();
                self.emit("Clip", reads, to, vec![]);
            }
            Activation::LeakyRelu { slope } => {
                let alpha = vec![("alpha", Attribute::Float(slope))];
                self.emit("LeakyRelu", x, to, alpha);
            }
            Activation::HardSigmoid { alpha, beta } => {
                let attributes = vec![
                    ("alpha", Attribute::Float(alpha)),
                    ("beta", Attribute::Float(beta)),
                ];
                self.emit("HardSigmoid", x, to, attributes);
            }
            Activation::HardSwish => self.emit("HardSwish", x, to, vec![]),
            Activation::Sigmoid => self.emit("Sigmoid", x, to, vec![]),
            Activation::Silu => {
                let gate = self.between("Sigmoid", x.clone(), &to, vec![]);
                self.emit("Mul", vec![x[0].clone(), gate], to, vec![]);
            }
            Activation::Tanh => self.emit("Tanh", x, to, vec![]),
        }
    }

    fn function(&mut self, function: Function, input: &str, to: String) {
        let x = vec![input.to_owned()];
        let op = match function {
            Function::Abs => "Abs",
            Function::Ceil => "Ceil",
            Function::Cos => "Cos",
            Function::Elu => "Elu",
            Function::Erf => "Erf",
            Function::Exp => "Exp",
            Function::Floor => "Floor",
            Function::Log => "Log",
            Function::Neg => "Neg",
            Function::Reciprocal => "Reciprocal",
            Function::Round => "Round",
            Function::Sin => "Sin",
            Function::Softplus => "Softplus",
            Function::Sqrt => "Sqrt",
            // Operators of later sets: x/2 · (1 + erf(x/√2)), and x · tanh(softplus(x)).
            Function::Gelu => {
                let mut number = |x: f32| self.floats(&format!("{to}/number"), &[], &[x]);
                let (root, one) = (number(std::f32::consts::FRAC_1_SQRT_2), number(1.0));
                let half = number(0.5);
                let inner = self.between("Mul", vec![x[0].clone(), root], &to, vec![]);
                let erf = self.between("Erf", vec![inner], &to, vec![]);
                let sum = self.between("Add", vec![erf, one], &to, vec![]);
                let halved = self.between("Mul", vec![x[0].clone(), half], &to, vec![]);
                return self.emit("Mul", vec![halved, sum], to, vec![]);
            }
            Function::Mish => {
                let soft = self.between("Softplus", x.clone(), &to, vec![]);
                let gate = self.between("Tanh", vec![soft], &to, vec![]);
                return self.emit("Mul", vec![x[0].clone(), gate], to, vec![]);
            }
        };
        self.emit(op, x, to, vec![]);
    }

    fn reduce(
        &mut self,
        reduction: Reduction,
        axes: &[usize],
        keep: bool,
        input: &str,
        shape: &[usize],
        to: String,
    ) {
        let x = vec![input.to_owned()];
        let pooled = keep && shape.len() == 4 && axes == [2, 3];
        let keep = ("keepdims", int(usize::from(keep)));
        let op = match reduction {
            Reduction::Mean if pooled => return self.emit("GlobalAveragePool", x, to, vec![]),
            Reduction::Max if pooled => return self.emit("GlobalMaxPool", x, to, vec![]),
            Reduction::ArgMax => {
                let attributes = vec![("axis", int(axes[0])), keep];
                let index = self.between("ArgMax", x, &to, attributes);
                let float = vec![("to", Attribute::Int(ElementType::F32 as i64))];
                return self.emit("Cast", vec![index], to, float);
            }
            // Without axes the operators reduce all; here none are reduced.
            _ if axes.is_empty() => return self.emit("Identity", x, to, vec![]),
            Reduction::Sum => {
                let axes = self.ints(&format!("{to}/axes"), signed(axes));
                let reads = vec![x[0].clone(), axes];
                return self.emit("ReduceSum", reads, to, vec![keep]);
            }
            Reduction::Max => "ReduceMax",
            Reduction::Mean => "ReduceMean",
            Reduction::Min => "ReduceMin",
        };
        let attributes = vec![("axes", Attribute::Ints(signed(axes))), keep];
        self.emit(op, x, to, attributes);
    }
}

fn operator(binary: Binary) -> &'static str {
    match binary {
        Binary::Add => "Add",
        Binary::Div => "Div",
        Binary::Max => "Max",
        Binary::Min => "Min",
        Binary::Mul => "Mul",
        Binary::Pow => "Pow",
        Binary::Sub => "Sub",
    }
}

fn signed(sizes: &[usize]) -> Vec<i64> {
    sizes.iter().map(|&x| x as i64).collect()
}

fn int(x: usize) -> Attribute {
    Attribute::Int(x as i64)
}

fn ints<const N: usize>(x: [usize; N]) -> Attribute {
    Attribute::Ints(signed(&x))
}

fn window(window: &sedge_conv::Window, dilated: bool) -> Vec<(&'static str, Attribute)> {
    let mut attributes = vec![
        ("kernel_shape", ints(window.kernel)),
        ("strides", ints(window.stride)),
        ("pads", ints(window.pads)),
    ];
    if dilated {
        attributes.push(("dilations", ints(window.dilation)));
    }
    attributes
}

#[cfg(test)]
mod tests;
