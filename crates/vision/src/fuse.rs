//! Fewer, larger operations that compute the same: norms in weights, activations and sums in the
//! products that they follow, and the shapes in which exporters write hard-swish and its like.

mod shapes;

use std::sync::Arc;

use crate::graph::{Graph, Node, Value};
use crate::op::{Activation, Binary, Conv, Fill, Op, Weights};

/// Fuses what can be fused. Results differ in last bits only.
pub fn fuse(graph: &mut Graph) {
    for rewrite in [
        pads as Rewrite,
        channelwise,
        affine,
        hard_sigmoid,
        gates,
        hard_swish,
        scale,
        nothing,
        shapes::slices,
        shapes::turned,
        into_weights,
        activation,
        sum,
        activation,
        shapes::focus,
        rounding,
    ] {
        // Each rewrite makes the graph smaller or simpler, so this ends.
        while pass(graph, rewrite) {}
    }
    graph.sweep();
}

/// What to do about a node: a change, or nothing.
type Rewrite = fn(&View<'_>, &Node) -> Option<Change>;

/// The node becomes another one, reading other values, or its value is that of another.
enum Change {
    Node(Op, Vec<Value>),
    /// It becomes several, of which the last makes its value.
    Nodes(Vec<(Op, Vec<Made>)>),
    Same(Value),
    /// It becomes the node that makes this value, with the grid of its own output.
    Grid(Value),
}

/// What a new node reads: a value that is there, or what another new node makes.
enum Made {
    There(Value),
    New(usize),
}

/// A graph with who makes and who reads what.
struct View<'a> {
    graph: &'a Graph,
    makers: Vec<Option<usize>>,
    reads: Vec<usize>,
}

impl View<'_> {
    fn new(graph: &Graph) -> View<'_> {
        let mut reads: Vec<usize> = graph.readers().iter().map(Vec::len).collect();
        for output in graph.outputs() {
            reads[output.index()] += 1;
        }
        View {
            graph,
            makers: graph.makers(),
            reads,
        }
    }

    /// What makes a value.
    fn maker(&self, value: Value) -> Option<&Node> {
        self.makers[value.index()].map(|i| &self.graph.nodes()[i])
    }

    /// What makes a value that only one node reads and that is on no grid.
    fn own(&self, value: Value) -> Option<&Node> {
        let free = self.reads[value.index()] == 1 && self.graph.info(value).quant.is_none();
        self.maker(value).filter(|_| free)
    }

    fn shape(&self, value: Value) -> &[usize] {
        self.graph.shape(value)
    }
}

/// Applies a rewrite once to each node; whether anything changed.
fn pass(graph: &mut Graph, rewrite: Rewrite) -> bool {
    let mut changed = false;
    let mut at = 0;
    while at < graph.nodes().len() {
        let view = View::new(graph);
        // The first node from here on that changes; the view is made anew after each change.
        let found = graph.nodes()[at..]
            .iter()
            .enumerate()
            .find_map(|(i, node)| rewrite(&view, node).map(|change| (at + i, change)));
        let Some((i, change)) = found else {
            break;
        };
        changed = true;
        match change {
            Change::Node(op, inputs) => {
                let mut nodes = graph.nodes().to_vec();
                nodes[i].op = op;
                nodes[i].inputs = inputs;
                graph.set_nodes(nodes);
            }
            Change::Nodes(made) => insert(graph, i, made),
            Change::Same(value) => {
                let node = graph.nodes()[i].clone();
                graph.replace(node.output, value);
            }
            Change::Grid(value) => {
                let node = graph.nodes()[i].clone();
                let quant = graph.info(node.output).quant;
                graph.set_quant(value, quant);
                graph.replace(node.output, value);
            }
        }
        graph.sweep();
        at = 0;
    }
    changed
}

/// Puts new nodes in a node's place.
fn insert(graph: &mut Graph, at: usize, made: Vec<(Op, Vec<Made>)>) {
    let old = graph.nodes()[at].clone();
    let mut nodes = graph.nodes().to_vec();
    let last = made.len() - 1;
    let mut values: Vec<Value> = Vec::with_capacity(made.len());
    let mut new = Vec::with_capacity(made.len());
    for (i, (op, inputs)) in made.into_iter().enumerate() {
        let inputs: Vec<Value> = inputs
            .into_iter()
            .map(|input| match input {
                Made::There(value) => value,
                Made::New(i) => values[i],
            })
            .collect();
        let output = match i == last {
            true => old.output,
            false => {
                let shapes: Vec<&[usize]> = inputs.iter().map(|&x| graph.shape(x)).collect();
                let shape = op.shape(&shapes).expect("a rewrite's shapes fit");
                graph.value(&old.name, shape)
            }
        };
        values.push(output);
        new.push(Node {
            name: old.name.clone(),
            op,
            inputs,
            output,
        });
    }
    nodes.splice(at..=at, new);
    graph.set_nodes(nodes);
}

/// Padding with zeros that the convolution could do itself.
fn pads(view: &View<'_>, node: &Node) -> Option<Change> {
    let Op::Conv(conv) = &node.op else {
        return None;
    };
    let pad = view.own(node.inputs[0])?;
    let Op::Pad {
        before,
        after,
        fill: Fill::Constant(0.0),
    } = &pad.op
    else {
        return None;
    };
    let small = |pads: &[usize]| pads.iter().all(|&pad| pad <= 1024);
    let pixels_only = before.len() == 4
        && before[..2] == [0, 0]
        && after[..2] == [0, 0]
        && [before, after].iter().all(|pads| small(pads))
        && small(&conv.window.pads);
    pixels_only.then(|| {
        let mut conv = conv.clone();
        for (pad, more) in conv
            .window
            .pads
            .iter_mut()
            .zip([before[2], before[3], after[2], after[3]])
        {
            *pad += more;
        }
        let mut inputs = node.inputs.clone();
        inputs[0] = pad.inputs[0];
        Change::Node(Op::Conv(conv), inputs)
    })
}

/// A constant for each channel, or one for all, is a factor or a summand.
fn channelwise(view: &View<'_>, node: &Node) -> Option<Change> {
    let Op::Constant {
        binary,
        shape,
        values,
        first,
    } = &node.op
    else {
        return None;
    };
    let x = view.shape(node.inputs[0]);
    if x != view.shape(node.output) || !matches!(x.len(), 2 | 4) {
        return None;
    }
    let channels = x[1];
    let rank = x.len();
    // Where the constant's sizes stand among the value's: all 1, but for the channels.
    let per_channel = shape.len() <= rank
        && shape
            .iter()
            .enumerate()
            .all(|(i, &size)| size == 1 || (i + rank - shape.len() == 1 && size == channels));
    if !per_channel {
        return None;
    }
    let spread = |f: &dyn Fn(f32) -> f32| -> Arc<[f32]> {
        (0..channels).map(|c| f(values[c % values.len()])).collect()
    };
    let (scale, shift) = match (binary, first) {
        (Binary::Add, _) => (spread(&|_| 1.0), spread(&|x| x)),
        (Binary::Mul, _) => (spread(&|x| x), spread(&|_| 0.0)),
        (Binary::Sub, false) => (spread(&|_| 1.0), spread(&|x| -x)),
        (Binary::Sub, true) => (spread(&|_| -1.0), spread(&|x| x)),
        (Binary::Div, false) => (spread(&|x| 1.0 / x), spread(&|_| 0.0)),
        _ => return None,
    };
    let op = Op::Affine {
        scale,
        shift,
        activation: Activation::Identity,
    };
    Some(Change::Node(op, node.inputs.clone()))
}

/// The factors and summands of an affine map without an activation.
fn parts(op: &Op) -> Option<(&[f32], &[f32])> {
    match op {
        Op::Affine {
            scale,
            shift,
            activation: Activation::Identity,
        } => Some((scale, shift)),
        _ => None,
    }
}

/// The one factor and summand of an affine map that does the same to all channels.
fn uniform(op: &Op) -> Option<(f32, f32)> {
    let (scale, shift) = parts(op)?;
    let alike = |x: &[f32]| {
        let first = *x.first()?;
        x.iter().all(|&y| y == first).then_some(first)
    };
    Some((alike(scale)?, alike(shift)?))
}

/// Two maps are one.
fn affine(view: &View<'_>, node: &Node) -> Option<Change> {
    let Op::Affine {
        scale,
        shift,
        activation,
    } = &node.op
    else {
        return None;
    };
    let before = view.own(node.inputs[0])?;
    let (a, b) = parts(&before.op)?;
    let op = Op::Affine {
        scale: a.iter().zip(scale.iter()).map(|(a, c)| a * c).collect(),
        shift: (0..a.len()).map(|i| b[i] * scale[i] + shift[i]).collect(),
        activation: *activation,
    };
    Some(Change::Node(op, before.inputs.clone()))
}

/// `clip(a·x + b) · c` from 0 to 1.
fn hard_sigmoid(view: &View<'_>, node: &Node) -> Option<Change> {
    let (c, zero) = uniform(&node.op)?;
    let clip = view.own(node.inputs[0])?;
    let Op::Activation(Activation::Clip { low, high }) = clip.op else {
        return None;
    };
    let inner = view.own(clip.inputs[0])?;
    let (a, b) = uniform(&inner.op)?;
    if zero != 0.0 || low != 0.0 || (high * c - 1.0).abs() > 1e-6 {
        return None;
    }
    let activation = Activation::HardSigmoid {
        alpha: a * c,
        beta: b * c,
    };
    Some(Change::Node(
        Op::Activation(activation),
        inner.inputs.clone(),
    ))
}

/// The two inputs of a product, either way round.
fn product(node: &Node) -> Option<[(Value, Value); 2]> {
    match (&node.op, &node.inputs[..]) {
        (Op::Binary(Binary::Mul, Activation::Identity), &[a, b]) => Some([(a, b), (b, a)]),
        _ => None,
    }
}

/// Whether it is the one of hard-swish.
fn is_hard_swish(alpha: f32, beta: f32) -> bool {
    (alpha - 1.0 / 6.0).abs() < 1e-6 && (beta - 0.5).abs() < 1e-6
}

/// `x · sigmoid(x)` and `x · hardsigmoid(x)`.
fn gates(view: &View<'_>, node: &Node) -> Option<Change> {
    product(node)?.into_iter().find_map(|(x, gate)| {
        let gate = view.own(gate)?;
        if gate.inputs[..] != [x] {
            return None;
        }
        let activation = match gate.op {
            Op::Activation(Activation::Sigmoid) => Activation::Silu,
            Op::Activation(Activation::HardSigmoid { alpha, beta })
                if is_hard_swish(alpha, beta) =>
            {
                Activation::HardSwish
            }
            _ => return None,
        };
        Some(Change::Node(Op::Activation(activation), vec![x]))
    })
}

/// `x · clip(x + 3, 0, 6) / 6`, the division last.
fn hard_swish(view: &View<'_>, node: &Node) -> Option<Change> {
    let (sixth, zero) = uniform(&node.op)?;
    if (sixth - 1.0 / 6.0).abs() > 1e-6 || zero != 0.0 {
        return None;
    }
    let times = view.own(node.inputs[0])?;
    product(times)?.into_iter().find_map(|(x, gate)| {
        let clip = view.own(gate)?;
        let Op::Activation(Activation::Clip {
            low: 0.0,
            high: 6.0,
        }) = clip.op
        else {
            return None;
        };
        let inner = view.own(clip.inputs[0])?;
        let moved = uniform(&inner.op)? == (1.0, 3.0) && inner.inputs[..] == [x];
        moved.then(|| Change::Node(Op::Activation(Activation::HardSwish), vec![x]))
    })
}

/// A picture times a value for each of its channels.
fn scale(view: &View<'_>, node: &Node) -> Option<Change> {
    product(node)?.into_iter().find_map(|(x, factor)| {
        let &[n, c, ..] = view.shape(x) else {
            return None;
        };
        let fits = view.shape(x).len() == 4 && view.shape(factor) == [n, c, 1, 1];
        fits.then(|| Change::Node(Op::Scale(Activation::Identity), vec![x, factor]))
    })
}

/// What changes nothing.
fn nothing(view: &View<'_>, node: &Node) -> Option<Change> {
    let same = match &node.op {
        Op::Activation(Activation::Identity) => true,
        Op::Reshape(to) => view.shape(node.inputs[0]) == &to[..],
        Op::Transpose(perm) => perm.iter().copied().eq(0..perm.len()),
        Op::Slice { size, step, .. } => {
            view.shape(node.inputs[0]) == &size[..] && step.iter().all(|&x| x == 1)
        }
        Op::Concat(_) => node.inputs.len() == 1,
        op => uniform(op) == Some((1.0, 0.0)),
    };
    // An output that is an input stays a node, so that it has a value of its own.
    let plain = view.graph.info(node.output).quant.is_none()
        && !(view.graph.outputs().contains(&node.output) && view.maker(node.inputs[0]).is_none());
    (same && plain).then(|| Change::Same(node.inputs[0]))
}

/// Factors and summands of channels, in the weights that make the channels.
fn into_weights(view: &View<'_>, node: &Node) -> Option<Change> {
    let Op::Affine {
        scale,
        shift,
        activation,
    } = &node.op
    else {
        return None;
    };
    let product = view.own(node.inputs[0])?;
    let scaled = |weights: &Weights| -> Option<Weights> {
        match weights {
            Weights::Float(values) => {
                let each = values.len() / scale.len().max(1);
                let rows = values.chunks_exact(each.max(1)).zip(scale.iter());
                let values = rows.flat_map(|(row, &s)| row.iter().map(move |x| x * s));
                Some(Weights::Float(values.collect()))
            }
            Weights::Int8 { codes, scales } => {
                // A negative factor has no place in a scale.
                let scales = scales.iter().zip(scale.iter()).map(|(a, b)| a * b);
                let scales: Arc<[f32]> = scales.collect();
                scales.iter().all(|&x| x > 0.0).then(|| Weights::Int8 {
                    codes: Arc::clone(codes),
                    scales,
                })
            }
        }
    };
    let biased = |bias: &[f32]| -> Arc<[f32]> {
        let bias = |i: usize| bias.get(i).copied().unwrap_or(0.0);
        (0..scale.len())
            .map(|i| bias(i) * scale[i] + shift[i])
            .collect()
    };
    let op = match &product.op {
        // What was added to the products would need the factor too.
        Op::Conv(conv) if conv.activation == Activation::Identity && product.inputs.len() == 1 => {
            Op::Conv(Conv {
                weights: scaled(&conv.weights)?,
                bias: biased(&conv.bias),
                activation: *activation,
                ..conv.clone()
            })
        }
        Op::ConvTranspose(conv) if conv.activation == Activation::Identity && conv.groups == 1 => {
            let mut conv = conv.clone();
            let taps = conv.window.taps();
            let weights = conv.weights.iter().enumerate();
            let weights = weights.map(|(i, x)| x * scale[i / taps % conv.outputs]);
            conv.weights = weights.collect();
            conv.bias = biased(&conv.bias);
            conv.activation = *activation;
            Op::ConvTranspose(conv)
        }
        Op::Linear {
            weights,
            bias,
            outputs,
            activation: Activation::Identity,
        } if view.shape(node.output).len() == 2 => Op::Linear {
            weights: scaled(weights)?,
            bias: biased(bias),
            outputs: *outputs,
            activation: *activation,
        },
        _ => return None,
    };
    Some(Change::Node(op, product.inputs.clone()))
}

/// A function of what a product makes is applied by the product.
fn activation(view: &View<'_>, node: &Node) -> Option<Change> {
    let Op::Activation(activation) = node.op else {
        return None;
    };
    let before = view.own(node.inputs[0])?;
    let mut op = before.op.clone();
    let place = op.activation_mut()?;
    if *place != Activation::Identity {
        return None;
    }
    *place = activation;
    Some(Change::Node(op, before.inputs.clone()))
}

/// What is added to a convolution's results is added by it.
fn sum(view: &View<'_>, node: &Node) -> Option<Change> {
    let (Op::Binary(Binary::Add, activation), &[a, b]) = (&node.op, &node.inputs[..]) else {
        return None;
    };
    if view.shape(a) != view.shape(b) || a == b {
        return None;
    }
    // The later one, so that the other is there.
    let later = |x: Value| view.makers[x.index()];
    let pairs = match later(a) > later(b) {
        true => [(a, b), (b, a)],
        false => [(b, a), (a, b)],
    };
    pairs.into_iter().find_map(|(product, add)| {
        let product = view.own(product)?;
        let Op::Conv(conv) = &product.op else {
            return None;
        };
        if conv.activation != Activation::Identity || product.inputs.len() != 1 {
            return None;
        }
        let mut conv = conv.clone();
        conv.activation = *activation;
        Some(Change::Node(Op::Conv(conv), vec![product.inputs[0], add]))
    })
}

/// Rounding to a grid is done by what makes the value.
fn rounding(view: &View<'_>, node: &Node) -> Option<Change> {
    if node.op != Op::Round {
        return None;
    }
    view.graph.info(node.output).quant?;
    view.own(node.inputs[0])?;
    Some(Change::Grid(node.inputs[0]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plain::reference;
    use sedge_conv::Window;

    fn conv(inputs: usize, outputs: usize, kernel: usize) -> Op {
        let count = inputs * outputs * kernel * kernel;
        let weights = (0..count)
            .map(|i| ((i * 37 % 19) as f32 - 9.0) / 20.0)
            .collect();
        Op::Conv(Conv {
            weights: Weights::Float(weights),
            bias: (0..outputs).map(|i| i as f32 / 7.0).collect(),
            outputs,
            inputs,
            groups: 1,
            window: Window::square(kernel, 1, kernel / 2),
            activation: Activation::Identity,
        })
    }

    fn constant(binary: Binary, shape: &[usize], values: &[f32]) -> Op {
        Op::Constant {
            binary,
            shape: shape.to_vec(),
            values: values.into(),
            first: false,
        }
    }

    /// Fuses, and checks that results stay.
    fn fused(mut graph: Graph, expected: &[&str]) -> Graph {
        let shape = graph.shape(graph.inputs()[0]).to_vec();
        let count: usize = shape.iter().product();
        let x: Vec<f32> = (0..count)
            .map(|i| ((i * 53 % 41) as f32 - 20.0) / 5.0)
            .collect();
        let before = reference(&graph, &[&x]);
        fuse(&mut graph);
        let kinds: Vec<&str> = graph.nodes().iter().map(|node| node.op.kind()).collect();
        assert_eq!(kinds, expected);
        for (a, b) in before
            .iter()
            .flatten()
            .zip(reference(&graph, &[&x]).iter().flatten())
        {
            assert!((a - b).abs() <= 1e-4 * a.abs().max(1.0), "{a} became {b}");
        }
        graph
    }

    #[test]
    fn norms_and_activations_become_part_of_convolutions() {
        let mut graph = Graph::new();
        let x = graph.input("x", &[1, 2, 3, 3]);
        let y = graph.push("conv", conv(2, 3, 3), &[x]).unwrap();
        let norm = Op::Affine {
            scale: vec![0.5, 2.0, -1.0].into(),
            shift: vec![0.1, 0.2, 0.3].into(),
            activation: Activation::Identity,
        };
        let y = graph.push("norm", norm, &[y]).unwrap();
        let y = graph
            .push("relu", Op::Activation(Activation::Relu), &[y])
            .unwrap();
        graph.output(y);
        fused(graph, &["conv"]);
    }

    #[test]
    fn hard_swish_is_found_in_its_parts() {
        for last in [false, true] {
            let mut graph = Graph::new();
            let x = graph.input("x", &[1, 2, 3, 3]);
            let y = graph.push("conv", conv(2, 2, 1), &[x]).unwrap();
            let clip = Op::Activation(Activation::Clip {
                low: 0.0,
                high: 6.0,
            });
            let six = constant(Binary::Div, &[1], &[6.0]);
            let mut gate = graph
                .push("add", constant(Binary::Add, &[], &[3.0]), &[y])
                .unwrap();
            gate = graph.push("clip", clip, &[gate]).unwrap();
            if !last {
                gate = graph.push("div", six.clone(), &[gate]).unwrap();
            }
            let times = Op::Binary(Binary::Mul, Activation::Identity);
            let mut z = graph.push("mul", times, &[y, gate]).unwrap();
            if last {
                z = graph.push("div", six, &[z]).unwrap();
            }
            graph.output(z);
            let graph = fused(graph, &["pointwise"]);
            let mut op = graph.nodes()[0].op.clone();
            assert_eq!(op.activation_mut(), Some(&mut Activation::HardSwish));
        }
    }

    #[test]
    fn residuals_are_added_by_the_convolution_before_them() {
        let mut graph = Graph::new();
        let x = graph.input("x", &[1, 2, 3, 3]);
        let y = graph.push("conv", conv(2, 2, 3), &[x]).unwrap();
        let add = Op::Binary(Binary::Add, Activation::Identity);
        let y = graph.push("add", add, &[x, y]).unwrap();
        let y = graph
            .push("relu", Op::Activation(Activation::Relu), &[y])
            .unwrap();
        graph.output(y);
        let graph = fused(graph, &["conv"]);
        assert_eq!(graph.nodes()[0].inputs.len(), 2);
    }

    #[test]
    fn focus_is_a_wider_convolution() {
        let mut graph = Graph::new();
        let x = graph.input("x", &[1, 2, 8, 6]);
        // As YOLOX writes it: rows first, then columns.
        let cut = |axis: usize, start: usize, size: [usize; 4]| {
            let mut op = (vec![0; 4], vec![1; 4]);
            op.0[axis] = start;
            op.1[axis] = 2;
            Op::Slice {
                start: op.0,
                step: op.1,
                size: size.to_vec(),
            }
        };
        let mut parts = Vec::new();
        for (down, along) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            let rows = graph
                .push("rows", cut(2, down, [1, 2, 4, 6]), &[x])
                .unwrap();
            parts.push(
                graph
                    .push("columns", cut(3, along, [1, 2, 4, 3]), &[rows])
                    .unwrap(),
            );
        }
        let y = graph.push("concat", Op::Concat(1), &parts).unwrap();
        let y = graph.push("conv", conv(8, 3, 3), &[y]).unwrap();
        graph.output(y);
        fused(graph, &["conv"]);
    }

    #[test]
    fn heads_are_joined_as_they_lie() {
        let mut graph = Graph::new();
        let x = graph.input("x", &[1, 3, 4, 2]);
        let y = graph
            .push("a", Op::Activation(Activation::Relu), &[x])
            .unwrap();
        let z = graph
            .push("b", Op::Activation(Activation::Sigmoid), &[x])
            .unwrap();
        let y = graph.push("y", Op::Reshape(vec![1, 3, 8]), &[y]).unwrap();
        let z = graph.push("z", Op::Reshape(vec![1, 3, 8]), &[z]).unwrap();
        let all = graph.push("all", Op::Concat(2), &[y, z]).unwrap();
        let all = graph
            .push("turned", Op::Transpose(vec![0, 2, 1]), &[all])
            .unwrap();
        graph.output(all);
        let kinds = [
            "activation",
            "activation",
            "transpose",
            "reshape",
            "transpose",
            "reshape",
            "concat",
        ];
        fused(graph, &kinds);
    }

    #[test]
    fn a_value_that_others_read_is_not_changed() {
        let mut graph = Graph::new();
        let x = graph.input("x", &[1, 2, 3, 3]);
        let y = graph.push("conv", conv(2, 2, 3), &[x]).unwrap();
        let z = graph
            .push("relu", Op::Activation(Activation::Relu), &[y])
            .unwrap();
        graph.output(y);
        graph.output(z);
        fused(graph, &["conv", "activation"]);
    }
}
