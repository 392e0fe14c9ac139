//! Files that want more than there is: each is an error, soon and in little memory.

use sedge_formats::onnx::{
    Attribute, Dim, ElementType, Graph, Model, Node, Tensor, TensorData, ValueInfo,
};
use sedge_vision::{Sizes, lower};

/// A network of one input and these nodes, whose last value is the output.
fn refused(input: &[usize], constants: Vec<Tensor>, nodes: Vec<Node>) {
    let value = |name: &str, shape: Option<Vec<Dim>>| ValueInfo {
        name: name.to_owned(),
        element: ElementType::F32,
        shape,
    };
    let output = nodes[nodes.len() - 1].outputs[0].clone();
    let model = Model {
        ir_version: 8,
        opset: 17,
        domains: Vec::new(),
        producer: String::new(),
        metadata: Vec::new(),
        graph: Graph {
            name: String::new(),
            nodes,
            initializers: constants,
            inputs: vec![value(
                "x",
                Some(input.iter().map(|&n| Dim::Fixed(n)).collect()),
            )],
            outputs: vec![value(&output, None)],
        },
    };
    assert!(lower(&model, Sizes::default()).is_err());
}

fn node(op: &str, inputs: &[&str], output: &str, attributes: &[(&str, Attribute)]) -> Node {
    Node {
        name: output.to_owned(),
        op: op.to_owned(),
        domain: String::new(),
        inputs: inputs.iter().map(|x| (*x).to_owned()).collect(),
        outputs: vec![output.to_owned()],
        attributes: attributes
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.clone()))
            .collect(),
    }
}

fn ints(name: &str, values: &[i64]) -> Tensor {
    Tensor {
        name: name.to_owned(),
        shape: vec![values.len()],
        data: TensorData::I64(values.to_vec()),
    }
}

fn floats(name: &str, shape: &[usize]) -> Tensor {
    Tensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        data: TensorData::F32(vec![1.0; shape.iter().product()]),
    }
}

#[test]
fn a_million_axes() {
    let nodes = vec![
        node(
            "ConstantOfShape",
            &["n"],
            "ones",
            &[("value", Attribute::Tensor(ints("one", &[1])))],
        ),
        node("Reshape", &["x", "ones"], "y", &[]),
        node("Transpose", &["y"], "z", &[]),
    ];
    refused(&[1], vec![ints("n", &[1_000_000])], nodes);
}

#[test]
fn constants_of_constants() {
    let side = 1 << 24;
    let nodes = vec![
        node("ConstantOfShape", &["a"], "tall", &[]),
        node("ConstantOfShape", &["b"], "wide", &[]),
        node("Equal", &["tall", "wide"], "all", &[]),
        node("Reshape", &["x", "all"], "y", &[]),
    ];
    refused(
        &[1],
        vec![ints("a", &[side, 1]), ints("b", &[1, side])],
        nodes,
    );
    let nodes = vec![
        node("ConstantOfShape", &["a"], "square", &[]),
        node("MatMul", &["square", "square"], "product", &[]),
        node("Add", &["x", "product"], "y", &[]),
    ];
    refused(&[1], vec![ints("a", &[16384, 16384])], nodes);
}

#[test]
fn strides_of_transposed_convolutions() {
    let strides = [("strides", Attribute::Ints(vec![65535, 65535]))];
    let nodes = vec![node("ConvTranspose", &["x", "w"], "y", &strides)];
    refused(&[1, 1, 1, 1], vec![floats("w", &[1, 1, 1, 1])], nodes);
}

#[test]
fn pads_of_convolutions() {
    let attributes = [
        ("pads", Attribute::Ints(vec![65535; 4])),
        ("strides", Attribute::Ints(vec![65535, 65535])),
    ];
    let nodes = vec![node("Conv", &["x", "w"], "y", &attributes)];
    refused(&[1, 8, 224, 224], vec![floats("w", &[8, 8, 1, 1])], nodes);
    let attributes = [
        ("kernel_shape", Attribute::Ints(vec![2, 2])),
        ("pads", Attribute::Ints(vec![i64::MAX, 0, i64::MAX, 0])),
        ("ceil_mode", Attribute::Int(1)),
    ];
    refused(
        &[1, 1, 4, 4],
        Vec::new(),
        vec![node("MaxPool", &["x"], "y", &attributes)],
    );
}

#[test]
fn resizes_beyond_memory() {
    let nodes = vec![node("Resize", &["x", "", "", "to"], "y", &[])];
    refused(
        &[1, 3, 4, 4],
        vec![ints("to", &[1, 3, 1 << 30, 1 << 30])],
        nodes,
    );
}

#[test]
fn sums_of_a_million() {
    let inputs = vec!["x"; 1_000_000];
    refused(&[1], Vec::new(), vec![node("Sum", &inputs, "y", &[])]);
}

#[test]
fn no_channels_of_endless_pictures() {
    let nodes = vec![
        node("Slice", &["x", "from", "to", "axis"], "none", &[]),
        node(
            "Reshape",
            &["none", "shape"],
            "vast",
            &[("allowzero", Attribute::Int(1))],
        ),
        node("GlobalAveragePool", &["vast"], "y", &[]),
    ];
    let constants = vec![
        ints("from", &[0]),
        ints("to", &[0]),
        ints("axis", &[1]),
        ints("shape", &[1, 0, 1 << 31, 1 << 31]),
    ];
    refused(&[1, 3, 4, 4], constants, nodes);
}
