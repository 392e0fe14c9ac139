use proptest::prelude::*;
use sedge_kernels::Team;
use sedge_vision::{
    Activation, Binary, Conv, Graph, Op, Reduction, Value, Weights, Window, fuse, nets, reference,
};

use super::channels::{Channels, Orders};
use super::*;
use crate::numbers::{Numbers, normal};

fn net(name: &str) -> Graph {
    let options = nets::Options {
        width: 0.25,
        size: Some([32, 32]),
        classes: Some(10),
        ..nets::Options::default()
    };
    let mut graph = nets::build(name, options).unwrap();
    fuse(&mut graph);
    graph
}

/// Another order of every run of channels that may have one.
fn shuffled(graph: &Graph, seed: u64) -> (Graph, usize) {
    let channels = Channels::of(graph);
    let mut numbers = Numbers::new(seed);
    let mut orders = Orders::new();
    for node in graph.nodes() {
        if let Some(run) = channels.free(node.output) {
            let mut order: Vec<usize> = (0..graph.shape(node.output)[1]).collect();
            for i in (1..order.len()).rev() {
                order.swap(i, (numbers.next() % (i as u64 + 1)) as usize);
            }
            orders.insert(run, order);
        }
    }
    let mut other = graph.clone();
    channels.rearrange(&mut other, &orders);
    (other, orders.len())
}

fn same(graph: &Graph, other: &Graph) {
    for picture in noise(graph, 1, 5) {
        let x: Vec<&[f32]> = picture.iter().map(|x| &x[..]).collect();
        let (a, b) = (reference(graph, &x), reference(other, &x));
        for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
            assert!((a - b).abs() <= 1e-3 * a.abs().max(1.0), "{a} became {b}");
        }
    }
}

#[test]
fn channels_change_places_and_nothing_else() {
    for (name, least) in [
        ("mobilenet-v1", 14),
        ("mobilenet-v2", 20),
        ("mobilenet-v3-small", 20),
        ("raspp-mobilenet-v2", 20),
        ("resnet-18", 8),
    ] {
        let graph = net(name);
        let (other, runs) = shuffled(&graph, 3);
        assert!(runs >= least, "{name}: {runs} orders");
        assert_ne!(graph, other);
        same(&graph, &other);
    }
}

fn conv(inputs: usize, outputs: usize, groups: usize, kernel: usize, seed: u64) -> Op {
    Op::Conv(Conv {
        weights: Weights::Float(normal(inputs / groups * outputs * kernel * kernel, seed).into()),
        bias: normal(outputs, seed + 1).into(),
        outputs,
        inputs,
        groups,
        window: Window::square(kernel, 1, kernel / 2),
        activation: Activation::Relu,
    })
}

/// A layer on what others have made.
fn layer(graph: &mut Graph, values: &[Value], kind: u8, at: usize) -> Option<Value> {
    let x = values[at % values.len()];
    let other = values[(at / 7) % values.len()];
    let (c, d) = (graph.shape(x)[1], graph.shape(other)[1]);
    let seed = values.len() as u64 * 31;
    let (op, inputs) = match kind % 9 {
        0 => (conv(c, 5, 1, 1, seed), vec![x]),
        1 => (conv(c, 8, 1, 3, seed), vec![x]),
        2 => (conv(c, c, c, 3, seed), vec![x]),
        3 if c == d => (Op::Binary(Binary::Add, Activation::Relu), vec![x, other]),
        4 => (Op::Concat(1), vec![x, other]),
        5 if c == d => (conv(c, c, 1, 1, seed), vec![x, other]),
        6 => {
            let mean = Op::Reduce {
                reduction: Reduction::Mean,
                axes: vec![2, 3],
                keep: true,
            };
            let mean = graph.push("mean", mean, &[x]).ok()?;
            (Op::Scale(Activation::HardSwish), vec![x, mean])
        }
        7 if c % 2 == 0 => {
            let mut size = graph.shape(x).to_vec();
            size[1] /= 2;
            let start = vec![0, c / 2, 0, 0];
            let step = vec![1; 4];
            (Op::Slice { start, step, size }, vec![x])
        }
        8 => {
            let values = normal(c, seed).into();
            let shape = vec![c, 1, 1];
            let binary = Binary::Mul;
            let first = false;
            let op = Op::Constant {
                binary,
                shape,
                values,
                first,
            };
            (op, vec![x])
        }
        _ => return None,
    };
    graph.push("layer", op, &inputs).ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn channels_of_any_network_change_places(
        layers in prop::collection::vec((any::<u8>(), 0usize..49), 1..14)
    ) {
        let mut graph = Graph::new();
        let x = graph.input("x", &[1, 3, 4, 4]);
        let mut values = vec![x];
        for (kind, at) in layers {
            if let Some(value) = layer(&mut graph, &values, kind, at) {
                values.push(value);
            }
        }
        let last = values[values.len() - 1];
        let c = graph.shape(last)[1];
        let last = graph.push("last", conv(c, 4, 1, 1, 9), &[last]).unwrap();
        graph.output(last);
        let (other, _) = shuffled(&graph, 11);
        same(&graph, &other);
    }

    #[test]
    fn masks_are_as_sparse_as_asked_and_of_whole_groups(
        sparsity in 0.05f64..0.95,
        group in 1usize..10,
        network in any::<bool>(),
        rearrange in any::<bool>(),
    ) {
        let mut graph = net("mobilenet-v1");
        // A random weight may be 0 by itself.
        for node in graph.nodes_mut() {
            if let Op::Conv(conv) = &mut node.op {
                let weights = conv.weights.to_float();
                let some = weights.iter().map(|&w| if w == 0.0 { 1e-6 } else { w });
                conv.weights = Weights::Float(some.collect());
            }
        }
        let pruning = Pruning {
            sparsity,
            group,
            rearrange,
            scope: if network { Scope::Network } else { Scope::Layer },
            ..Pruning::default()
        };
        let pruned = prune(&mut graph, &pruning, &Vec::new(), &Team::new(1)).unwrap();
        let weights: usize = pruned.layers.iter().map(|x| x.size[0] * x.size[1]).sum();
        let room = (group * pruned.layers.len()) as f64 / weights as f64;
        prop_assert!((pruned.sparsity() - sparsity).abs() <= room, "{}", pruned.sparsity());
        for layer in &pruned.layers {
            let found = graph.nodes().iter().find(|x| x.name == layer.node);
            let Op::Conv(conv) = &found.unwrap().op else {
                panic!("only convolutions are pruned here");
            };
            let weights = conv.weights.to_float();
            for rows in weights.chunks(conv.inputs * group) {
                for j in 0..conv.inputs {
                    let mut column = rows.iter().skip(j).step_by(conv.inputs).map(|w| *w == 0.0);
                    let first = column.next();
                    prop_assert!(column.all(|zero| Some(zero) == first));
                }
            }
        }
    }
}

#[test]
fn rearranged_groups_keep_more() {
    let kept = |rearrange: bool| {
        let mut graph = net("mobilenet-v2");
        let pruning = Pruning {
            sparsity: 0.3,
            group: 8,
            rearrange,
            scope: Scope::Network,
            ..Pruning::default()
        };
        let pruned = prune(&mut graph, &pruning, &Vec::new(), &Team::new(2)).unwrap();
        assert_eq!(pruned.rearranged > 0, rearrange);
        let notes = graph.metadata.iter();
        let notes = notes.filter(|(key, _)| key.starts_with("sedge.permutation."));
        assert_eq!(notes.count() > 0, rearrange);
        pruned.kept()
    };
    let (plain, rearranged) = (kept(false), kept(true));
    assert!(rearranged > plain + 0.005, "{rearranged} and {plain}");
}

#[test]
fn what_is_left_makes_good_for_what_is_not() {
    let dense = net("mobilenet-v1");
    let team = Team::new(2);
    let (seen, others) = (noise(&dense, 12, 1), noise(&dense, 4, 2));
    let error = |correct: bool, steps: usize| {
        let mut graph = dense.clone();
        let pruning = Pruning {
            sparsity: 0.5,
            correct,
            steps,
            ..Pruning::default()
        };
        let pruned = prune(&mut graph, &pruning, &seen, &team).unwrap();
        assert!((pruned.sparsity() - 0.5).abs() < 0.01);
        compare(&dense, &graph, &others, &team).unwrap().error
    };
    let (plain, corrected, steps) = (error(false, 1), error(true, 1), error(true, 4));
    assert!(corrected < 0.8 * plain, "{corrected} and {plain}");
    assert!(steps < 0.8 * plain, "{steps} and {plain}");
}

#[test]
fn integers_are_near_and_not_rounded_twice() {
    let team = Team::new(2);
    for name in ["mobilenet-v1", "resnet-18"] {
        let dense = net(name);
        let (seen, others) = (noise(&dense, 4, 1), noise(&dense, 2, 2));
        for ranges in [Ranges::MinMax, Ranges::Squares] {
            let mut graph = dense.clone();
            let done = quantise(&mut graph, ranges, &seen, &team).unwrap();
            assert!(done.products > 10 && done.left == 0, "{done:?}");
            let error = compare(&dense, &graph, &others, &team).unwrap().error;
            assert!(error > 0.0 && error < 0.15, "{name}: {error}");
            let twice = quantise(&mut graph, ranges, &seen, &team);
            assert!(matches!(twice, Err(VisionError::Quantised { .. })));
            let sparse = prune(&mut graph, &Pruning::default(), &seen, &team);
            assert!(matches!(sparse, Err(VisionError::Quantised { .. })));
        }
    }
}

#[test]
fn networks_without_such_layers_are_refused() {
    let team = Team::new(1);
    let mut graph = Graph::new();
    let x = graph.input("x", &[1, 3, 4, 4]);
    let y = graph.push("y", Op::Activation(Activation::Relu), &[x]);
    graph.output(y.unwrap());
    let pictures = noise(&graph, 1, 1);
    let pruned = prune(&mut graph, &Pruning::default(), &pictures, &team);
    assert!(matches!(pruned, Err(VisionError::NoLayers)));
    let rounded = quantise(&mut graph, Ranges::MinMax, &pictures, &team);
    assert!(matches!(rounded, Err(VisionError::NoConvolutions)));
}

#[test]
fn the_schedule_ends_where_it_should() {
    assert_eq!(cubic(0.0, 0.9, 0.0), 0.0);
    assert_eq!(cubic(0.0, 0.9, 1.0), 0.9);
    assert!((cubic(0.0, 0.8, 0.5) - 0.7).abs() < 1e-12);
}

#[test]
fn prunings_are_read_or_refused() {
    let read = |text: &str| text.parse::<Pruning>();
    let group: Pruning = read("0.3,group=8").unwrap();
    assert!(group.rearrange && group.group == 8 && group.scope == Scope::Network);
    assert!(!read("0.3,group=8,rearrange=off").unwrap().rearrange);
    assert!(!read("0.9,block=4").unwrap().rearrange);
    for text in [
        "",
        "0",
        "1",
        "1.5",
        "-1",
        "nan",
        "inf",
        "0.5,",
        "0.5,block=0",
        "0.5,group=65",
        "0.5,group=x",
        "0.5,rearrange=maybe",
        "0.5,speed=1",
    ] {
        assert!(read(text).is_err(), "{text:?}");
    }
}
