use proptest::prelude::*;
use sedge_conv::{Quant, Window};

use super::*;
use crate::nets;
use crate::op::{Axis, Fill};
use crate::{Sizes, fuse, lower, reference};

/// Writes the file and reads it again.
fn again(graph: &Graph) -> Graph {
    let bytes = onnx::write(&export(graph).unwrap());
    let model = onnx::read(bytes.into(), None).unwrap();
    let mut graph = lower(&model, Sizes::default()).unwrap();
    fuse(&mut graph);
    graph
}

fn inputs(graph: &Graph) -> Vec<Vec<f32>> {
    let count = |&x: &Value| graph.shape(x).iter().product();
    let value = |i: usize| ((i * 53 % 41) as f32 - 20.0) / 9.0;
    let all = graph.inputs().iter();
    all.map(|x| (0..count(x)).map(value).collect()).collect()
}

/// Results of the graph that was read are those of the graph that was written.
fn same(graph: &Graph) -> Graph {
    let read = again(graph);
    let x = inputs(graph);
    let x: Vec<&[f32]> = x.iter().map(|x| &x[..]).collect();
    let (a, b) = (reference(graph, &x), reference(&read, &x));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
        let near = (a - b).abs() <= 1e-4 * a.abs().max(1.0);
        assert!(near || a.is_nan() && b.is_nan(), "{a} became {b}");
    }
    read
}

fn conv(inputs: usize, outputs: usize, groups: usize, window: Window, act: Activation) -> Conv {
    let count = inputs / groups * outputs * window.taps();
    let weight = |i: usize| ((i * 37 % 19) as f32 - 9.0) / 20.0;
    Conv {
        weights: Weights::Float((0..count).map(weight).collect()),
        bias: (0..outputs).map(|i| i as f32 / 7.0).collect(),
        outputs,
        inputs,
        groups,
        window,
        activation: act,
    }
}

const ACTIVATIONS: [Activation; 10] = [
    Activation::Identity,
    Activation::Relu,
    Activation::Clip {
        low: 0.0,
        high: 6.0,
    },
    Activation::Clip {
        low: f32::NEG_INFINITY,
        high: 1.0,
    },
    Activation::LeakyRelu { slope: 0.1 },
    Activation::HardSigmoid {
        alpha: 0.2,
        beta: 0.4,
    },
    Activation::HardSwish,
    Activation::Sigmoid,
    Activation::Silu,
    Activation::Tanh,
];

#[test]
fn every_network_is_read_as_what_was_written() {
    for name in [
        "mobilenet-v3-small",
        "ssdlite-mobilenet-v2",
        "lraspp-mobilenet-v3-small",
    ] {
        let options = nets::Options {
            width: 0.25,
            size: Some([64, 64]),
            classes: Some(4),
            ..nets::Options::default()
        };
        let Ok(mut graph) = nets::build(name, options) else {
            continue;
        };
        fuse(&mut graph);
        let read = same(&graph);
        assert_eq!(read.census(), graph.census(), "{name}");
        assert_eq!(read.metadata, graph.metadata);
    }
}

#[test]
fn every_activation_and_function_survives() {
    for activation in ACTIVATIONS {
        let mut graph = Graph::new();
        let x = graph.input("x", &[1, 2, 3, 3]);
        let window = Window::square(3, 1, 1);
        let op = Op::Conv(conv(2, 2, 1, window, activation));
        let y = graph.push("y", op, &[x, x]).unwrap();
        let z = graph.push("z", Op::Activation(activation), &[y]);
        graph.output(z.unwrap());
        same(&graph);
    }
    use Function::*;
    for function in [
        Abs, Ceil, Cos, Elu, Erf, Exp, Floor, Gelu, Log, Mish, Neg, Reciprocal, Round, Sin,
        Softplus, Sqrt,
    ] {
        let mut graph = Graph::new();
        let x = graph.input("x", &[2, 5]);
        let y = graph.push("y", Op::Function(function), &[x]).unwrap();
        graph.output(y);
        same(&graph);
    }
}

#[test]
fn every_other_operation_survives() {
    let window = Window {
        kernel: [3, 2],
        stride: [2, 1],
        dilation: [1, 1],
        pads: [1, 0, 0, 1],
    };
    let mean = |axes: &[usize], keep, reduction| Op::Reduce {
        reduction,
        axes: axes.to_vec(),
        keep,
    };
    let ops = [
        Op::Pool(Pool::Max, window),
        Op::Pool(Pool::Average { padding: true }, window),
        Op::Pool(Pool::Average { padding: false }, window),
        Op::Affine {
            scale: vec![0.5, -2.0, 1.0, 0.0].into(),
            shift: vec![0.1, 0.2, 0.3, 0.4].into(),
            activation: Activation::Relu,
        },
        Op::Constant {
            binary: Binary::Sub,
            shape: vec![4, 1, 6],
            values: (0..24).map(|i| i as f32).collect(),
            first: true,
        },
        Op::Slice {
            start: vec![0, 3, 4, 0],
            step: vec![1, -1, -2, 1],
            size: vec![1, 4, 2, 6],
        },
        Op::Reshape(vec![4, 30]),
        Op::Transpose(vec![0, 2, 3, 1]),
        mean(&[2, 3], true, Reduction::Mean),
        mean(&[1], false, Reduction::Sum),
        mean(&[3], true, Reduction::Max),
        mean(&[0, 2], true, Reduction::Min),
        mean(&[1], true, Reduction::ArgMax),
        Op::Softmax(1),
        Op::Pad {
            before: vec![0, 0, 1, 2],
            after: vec![0, 0, 0, 1],
            fill: Fill::Constant(0.5),
        },
        Op::Pad {
            before: vec![0, 0, 1, 2],
            after: vec![0, 0, 0, 1],
            fill: Fill::Reflect,
        },
        Op::Gather {
            axis: 1,
            indices: vec![2, 0].into(),
            shape: vec![2],
        },
        Op::Expand(vec![3, 4, 5, 6]),
        Op::Linear {
            weights: Weights::Float((0..18).map(|i| i as f32 / 9.0).collect()),
            bias: vec![1.0, 2.0, 3.0].into(),
            outputs: 3,
            activation: Activation::Relu,
        },
        Op::ConvTranspose(crate::ConvTranspose {
            weights: (0..4 * 3 * 6).map(|i| (i % 7) as f32 - 3.0).collect(),
            bias: vec![1.0, 2.0, 3.0].into(),
            outputs: 3,
            inputs: 4,
            groups: 1,
            window,
            more: [1, 0],
            activation: Activation::Relu,
        }),
        Op::Round,
    ];
    for op in ops {
        let mut graph = Graph::new();
        let x = graph.input("x", &[1, 4, 5, 6]);
        let y = graph.push("y", op, &[x]).unwrap();
        graph.output(y);
        graph.output(x);
        graph.output(y);
        same(&graph);
    }
}

#[test]
fn resizing_is_said_in_words_or_refused() {
    let taps = |taps: &[(u32, u32, f32)]| Axis { taps: taps.into() };
    let graph = |rows: Axis, columns: Axis| {
        let mut graph = Graph::new();
        let x = graph.input("x", &[1, 2, 2, 2]);
        let y = graph.push("y", Op::Resize { rows, columns }, &[x]);
        graph.output(y.unwrap());
        graph
    };
    let twice = taps(&[(0, 0, 0.0), (0, 0, 0.0), (1, 1, 0.0), (1, 1, 0.0)]);
    let smooth = taps(&[(0, 1, 0.0), (0, 1, 0.25), (0, 1, 0.75), (1, 1, 0.0)]);
    same(&graph(twice.clone(), twice.clone()));
    same(&graph(smooth.clone(), smooth.clone()));
    let odd = taps(&[(1, 1, 0.0), (0, 0, 0.0)]);
    for (rows, columns) in [(twice.clone(), smooth), (odd.clone(), odd)] {
        let error = export(&graph(rows, columns)).unwrap_err();
        assert_eq!(error.node, "y");
    }
}

#[test]
fn grids_and_integers_survive() {
    let mut graph = Graph::new();
    let x = graph.input("x", &[1, 2, 4, 4]);
    let quant = |scale, zero| Some(Quant { scale, zero });
    graph.set_quant(x, quant(0.02, 128));
    let mut conv = conv(2, 3, 1, Window::square(3, 1, 1), Activation::HardSwish);
    conv.weights = Weights::Int8 {
        codes: (0..54).map(|i| (i * 5 % 255 - 127) as i8).collect(),
        scales: vec![0.01, 0.02, 0.03].into(),
    };
    let y = graph.push("y", Op::Conv(conv), &[x]).unwrap();
    graph.set_quant(y, quant(0.03, 10));
    graph.output(y);
    // Also before it is fused, when rounded values have names that look like ours.
    let unfused = lower(&export(&graph).unwrap(), Sizes::default()).unwrap();
    same(&unfused);
    let read = same(&graph);
    let whole = |graph: &Graph| {
        let mut convs = graph.nodes().iter().filter_map(|node| match &node.op {
            Op::Conv(conv) => Some((conv.weights.clone(), graph.info(node.output).quant)),
            _ => None,
        });
        convs.next().unwrap()
    };
    assert_eq!(whole(&read), whole(&graph));
    assert_eq!(read.info(read.outputs()[0]).quant, quant(0.03, 10));
}

/// Layers of a random network, each on what the last has made.
fn layer(graph: &mut Graph, i: usize, kind: u8, size: u8, last: Value) -> Value {
    let channels = graph.shape(last)[1];
    let outputs = 1 + usize::from(size % 5);
    let activation = ACTIVATIONS[usize::from(size) % ACTIVATIONS.len()];
    let small = Window::square(3, 1 + usize::from(size % 2), 1);
    let (op, inputs) = match kind % 7 {
        0 => (
            Op::Conv(conv(channels, outputs, 1, Window::pointwise(), activation)),
            vec![last],
        ),
        1 => (
            Op::Conv(conv(channels, channels, channels, small, activation)),
            vec![last],
        ),
        2 => (
            Op::Conv(conv(channels, channels, 1, Window::pointwise(), activation)),
            vec![last, last],
        ),
        3 => (Op::Pool(Pool::Max, small), vec![last]),
        4 => (Op::Concat(1), vec![last, last]),
        5 => (Op::Binary(Binary::Mul, activation), vec![last, last]),
        _ => (Op::Activation(activation), vec![last]),
    };
    graph.push(&format!("layer{i}"), op, &inputs).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn random_networks_survive(layers in prop::collection::vec((any::<u8>(), any::<u8>()), 1..6)) {
        let mut graph = Graph::new();
        let mut last = graph.input("x", &[1, 3, 6, 5]);
        for (i, (kind, size)) in layers.into_iter().enumerate() {
            last = layer(&mut graph, i, kind, size, last);
        }
        graph.output(last);
        same(&graph);
    }
}
