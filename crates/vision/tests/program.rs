//! Programs against plain loops, for networks that are built here.

use sedge_kernels::Team;
use sedge_vision::{Graph, Options, Program, Sparsity, fuse, nets, reference};

fn net(name: &str, size: usize) -> Graph {
    let options = nets::Options {
        width: 0.25,
        classes: Some(5),
        size: Some([size, size + 32]),
        ..nets::Options::default()
    };
    let mut graph = nets::build(name, options).unwrap();
    fuse(&mut graph);
    graph
}

fn input(graph: &Graph) -> Vec<f32> {
    let count = graph.shape(graph.inputs()[0]).iter().product();
    (0..count)
        .map(|i: usize| ((i * 7919 % 1013) as f32 / 506.0) - 1.0)
        .collect()
}

fn check(name: &str, size: usize) {
    let graph = net(name, size);
    let x = input(&graph);
    let expected = reference(&graph, &[&x]);
    let ways = [
        ("default", Options::default()),
        (
            "bands",
            Options {
                cache: 1,
                band: 4096,
                ..Options::default()
            },
        ),
        (
            "narrow bands",
            Options {
                cache: 1,
                band: 1,
                ..Options::default()
            },
        ),
        (
            "planes",
            Options {
                sparse: Sparsity::Always,
                ..Options::default()
            },
        ),
    ];
    for (how, options) in ways {
        for threads in [1, 3] {
            let team = Team::new(threads);
            let mut program = Program::new(&graph, options, &team).unwrap();
            program.run(&[&x], &team);
            for (i, expected) in expected.iter().enumerate() {
                let (found, _) = program.output(i);
                let largest = expected.iter().fold(0f32, |max, x| max.max(x.abs()));
                for (a, b) in found.iter().zip(expected) {
                    let off = (a - b).abs() / largest;
                    assert!(
                        off < 1e-4,
                        "{name}, {how}, {threads} threads, output {i}: {a}, not {b}"
                    );
                }
            }
        }
    }
}

#[test]
fn mobilenets_are_what_plain_loops_make() {
    for name in [
        "mobilenet-v1",
        "mobilenet-v2",
        "mobilenet-v3-large",
        "mobilenet-v3-small",
    ] {
        check(name, 64);
    }
}

#[test]
fn detectors_are_what_plain_loops_make() {
    check("ssdlite-mobilenet-v3-large", 64);
}

#[test]
fn segmenters_are_what_plain_loops_make() {
    check("lraspp-mobilenet-v3-large", 64);
    check("raspp-mobilenet-v3-large", 64);
}

#[test]
fn residual_networks_are_what_plain_loops_make() {
    check("resnet-18", 64);
}

#[test]
fn a_graph_that_is_cut_anywhere_computes_the_same() {
    let graph = net("mobilenet-v3-small", 32);
    let x = input(&graph);
    let whole = reference(&graph, &[&x]);
    let mut cuts = 0;
    for node in graph.nodes() {
        let Some((head, tail)) = graph.cut(&[node.output]) else {
            continue;
        };
        let between = reference(&head, &[&x]);
        assert_eq!(
            reference(&tail, &[&between[0]]),
            whole,
            "cut after {}",
            node.name
        );
        cuts += 1;
    }
    assert!(cuts > 10, "{cuts} places to cut");
}

/// What is joined reads what is joined: no kernel writes where it reads.
#[test]
fn joined_values_may_be_made_of_each_other() {
    use sedge_vision::{Activation, Conv, Op, Pool, Value, Weights, Window};
    let conv = |graph: &mut Graph, x: Value, outputs: usize| {
        let inputs = graph.shape(x)[1];
        let count = inputs * outputs * 9;
        let op = Op::Conv(Conv {
            weights: Weights::Float(
                (0..count)
                    .map(|i| (i * 37 % 19) as f32 / 90.0 - 0.1)
                    .collect(),
            ),
            bias: Vec::new().into(),
            outputs,
            inputs,
            groups: 1,
            window: Window::square(3, 1, 1),
            activation: Activation::Relu,
        });
        graph.push("conv", op, &[x]).unwrap()
    };
    let mut graph = Graph::new();
    let x = graph.input("x", &[1, 3, 9, 7]);
    // Of a value that is joined after what is made of it.
    let a = conv(&mut graph, x, 4);
    let f = conv(&mut graph, a, 5);
    let pool = graph
        .push("pool", Op::Pool(Pool::Max, Window::square(5, 1, 2)), &[a])
        .unwrap();
    let first = graph.push("first", Op::Concat(1), &[f, pool, a]).unwrap();
    // Of channels that are cut out of what is joined.
    let cut = Op::Slice {
        start: vec![0, 1, 0, 0],
        step: vec![1; 4],
        size: vec![1, 2, 9, 7],
    };
    let some = graph.push("some", cut, &[a]).unwrap();
    let g = conv(&mut graph, some, 3);
    let second = graph.push("second", Op::Concat(1), &[a, g]).unwrap();
    // Of what is joined twice over.
    let h = conv(&mut graph, first, 2);
    let inner = graph.push("inner", Op::Concat(1), &[h, second]).unwrap();
    let third = graph
        .push("third", Op::Concat(1), &[first, inner, x])
        .unwrap();
    graph.output(third);
    let x = input(&graph);
    let expected = reference(&graph, &[&x]);
    let team = Team::new(2);
    for options in [
        Options::default(),
        Options {
            cache: 1,
            band: 1,
            ..Options::default()
        },
    ] {
        let mut program = Program::new(&graph, options, &team).unwrap();
        program.run(&[&x], &team);
        for (a, b) in program.output(0).0.iter().zip(&expected[0]) {
            assert!((a - b).abs() < 1e-4, "{a}, not {b}");
        }
    }
}
