//! Which channels of a network can change places with each other.
//!
//! The channels of a value are runs, one after the other where values were joined. A run has one
//! order wherever it is read: values that are added, scaled, pooled or convolved channel by
//! channel share runs. The runs of the network's inputs and outputs, and of whatever is not
//! understood, stay as they are.

use std::collections::HashMap;
use std::sync::Arc;

use sedge_vision::{Graph, Node, Op, Value, Weights};

/// Orders of runs: `order[new]` is the channel's old place.
pub(super) type Orders = HashMap<usize, Vec<usize>>;

/// The runs of every value.
pub(super) struct Channels {
    values: HashMap<Value, Vec<usize>>,
    /// Of each run, one that it is the same as; itself, where that is all.
    same: Vec<usize>,
    sizes: Vec<usize>,
    fixed: Vec<bool>,
}

impl Channels {
    pub(super) fn of(graph: &Graph) -> Channels {
        let mut channels = Channels {
            values: HashMap::new(),
            same: Vec::new(),
            sizes: Vec::new(),
            fixed: Vec::new(),
        };
        for &input in graph.inputs() {
            let runs = channels.fresh(graph.shape(input), true);
            channels.values.insert(input, runs);
        }
        for node in graph.nodes() {
            let runs = channels.made(graph, node).unwrap_or_else(|| {
                for input in &node.inputs {
                    channels.fix(*input);
                }
                channels.fresh(graph.shape(node.output), true)
            });
            channels.values.insert(node.output, runs);
        }
        for &output in graph.outputs() {
            channels.fix(output);
        }
        channels
    }

    /// The run that is all of a value's channels, if they can change places.
    pub(super) fn free(&self, value: Value) -> Option<usize> {
        match self.values[&value][..] {
            [run] => Some(self.root(run)).filter(|&run| !self.fixed[run]),
            _ => None,
        }
    }

    fn root(&self, mut run: usize) -> usize {
        while self.same[run] != run {
            run = self.same[run];
        }
        run
    }

    fn fresh(&mut self, shape: &[usize], fixed: bool) -> Vec<usize> {
        let run = self.same.len();
        self.same.push(run);
        self.sizes.push(shape.get(1).copied().unwrap_or(1));
        self.fixed.push(fixed);
        vec![run]
    }

    fn fix(&mut self, value: Value) {
        for run in self.values[&value].clone() {
            let run = self.root(run);
            self.fixed[run] = true;
        }
    }

    /// Two lists of runs are in the same order; where they are cut differently, both stay.
    fn join(&mut self, a: &[usize], b: &[usize]) {
        let sizes =
            |runs: &[usize]| -> Vec<usize> { runs.iter().map(|&x| self.sizes[x]).collect() };
        let alike = sizes(a) == sizes(b);
        for (&a, &b) in a.iter().zip(b) {
            if alike {
                let (a, b) = (self.root(a), self.root(b));
                self.fixed[a] |= self.fixed[b];
                self.same[b] = a;
            }
        }
        if !alike {
            for &run in a.iter().chain(b) {
                let run = self.root(run);
                self.fixed[run] = true;
            }
        }
    }

    /// The runs of what a node makes; `None` when that is not understood.
    fn made(&mut self, graph: &Graph, node: &Node) -> Option<Vec<usize>> {
        let x = graph.shape(node.inputs[0]);
        let y = graph.shape(node.output);
        let runs = self.values[&node.inputs[0]].clone();
        let kept = x.len() >= 2 && y.len() >= 2 && x[1] == y[1];
        let keeps = match &node.op {
            Op::Conv(conv) => {
                let made = match (conv.groups, conv.is_depthwise()) {
                    (1, _) => self.fresh(y, false),
                    (_, true) => runs,
                    _ => return None,
                };
                if let Some(add) = node.inputs.get(1) {
                    let add = self.values[add].clone();
                    self.join(&made, &add);
                }
                return Some(made);
            }
            Op::ConvTranspose(conv) if conv.groups == 1 => return Some(self.fresh(y, false)),
            Op::Linear { .. } if x.len() == 2 => return Some(self.fresh(y, false)),
            // A product along the last axis.
            Op::Linear { .. } => x.len() > 2,
            Op::Pool(..)
            | Op::Resize { .. }
            | Op::Activation(_)
            | Op::Function(_)
            | Op::Affine { .. }
            | Op::Softmax(_)
            | Op::Round => true,
            Op::Scale(_) | Op::Binary(..) => {
                let shapes: Vec<&[usize]> = node.inputs.iter().map(|&x| graph.shape(x)).collect();
                if y.len() < 2 || shapes.iter().any(|x| x.len() != y.len()) {
                    return None;
                }
                let wide = (0..shapes.len()).filter(|&i| shapes[i][1] == y[1]);
                let wide: Vec<Value> = wide.map(|i| node.inputs[i]).collect();
                return self.joined(&wide);
            }
            Op::Constant { shape, .. } => {
                let along = channels_of(shape, y.len());
                x.len() == y.len() && kept && (along == 1 || along == y[1])
            }
            Op::Concat(1) => {
                let all = node.inputs.iter().flat_map(|x| self.values[x].clone());
                return Some(all.collect());
            }
            Op::Concat(_) if kept => return self.joined(&node.inputs.clone()),
            Op::Slice { start, step, size } if y.len() >= 2 => {
                if step[1] != 1 {
                    return None;
                }
                return self.part(&runs, start[1], size[1]);
            }
            Op::Reshape(_) => kept && x[0] == y[0],
            Op::Transpose(perm) => perm.starts_with(&[0, 1]),
            Op::Reduce { axes, keep, .. } => !axes.contains(&1) && (*keep || !axes.contains(&0)),
            Op::Pad { before, after, .. } => before[1..2] == [0] && after[1..2] == [0],
            Op::Gather { axis, .. } => *axis >= 2,
            Op::Expand(_) => x.len() == y.len(),
            _ => false,
        };
        (keeps && kept).then_some(runs)
    }

    /// The runs of the first value, which those of the others are the same as.
    fn joined(&mut self, values: &[Value]) -> Option<Vec<usize>> {
        let (first, rest) = values.split_first()?;
        let runs = self.values[first].clone();
        for value in rest {
            let other = self.values[value].clone();
            self.join(&runs, &other);
        }
        Some(runs)
    }

    /// The runs of some of the channels, if they are whole ones.
    fn part(&self, runs: &[usize], start: usize, size: usize) -> Option<Vec<usize>> {
        let (mut at, mut part) = (0, Vec::new());
        for &run in runs {
            let end = at + self.sizes[run];
            match (start <= at, end <= start + size) {
                (true, true) => part.push(run),
                _ if end <= start || at >= start + size => {}
                _ => return None,
            }
            at = end;
        }
        Some(part)
    }

    /// The order of a value's channels, if it is another one.
    fn order(&self, value: Value, orders: &Orders) -> Option<Vec<usize>> {
        let (mut all, mut other) = (Vec::new(), false);
        for &run in &self.values[&value] {
            let at = all.len();
            match orders.get(&self.root(run)) {
                Some(order) => {
                    all.extend(order.iter().map(|old| at + old));
                    other = true;
                }
                None => all.extend(at..at + self.sizes[run]),
            }
        }
        other.then_some(all)
    }

    /// Puts channels in other orders; the network computes the same. The orders of what each node
    /// makes, by the node's place.
    pub(super) fn rearrange(&self, graph: &mut Graph, orders: &Orders) -> Vec<(usize, Vec<usize>)> {
        let of = |value: Value| self.order(value, orders);
        let nodes = graph.nodes().iter();
        let all: Vec<_> = nodes.map(|x| (of(x.inputs[0]), of(x.output))).collect();
        let ranks: Vec<usize> = graph
            .nodes()
            .iter()
            .map(|node| graph.shape(node.output).len())
            .collect();
        for (i, node) in graph.nodes_mut().enumerate() {
            let (reads, makes) = (all[i].0.as_deref(), all[i].1.as_deref());
            match &mut node.op {
                Op::Conv(conv) => {
                    let columns = if conv.groups == 1 { reads } else { None };
                    let sizes = [conv.outputs, conv.inputs / conv.groups, conv.window.taps()];
                    if let Weights::Float(weights) = &mut conv.weights {
                        *weights = reordered(weights, sizes, makes, columns);
                    }
                    reorder(&mut conv.bias, makes);
                }
                Op::ConvTranspose(conv) => {
                    let sizes = [conv.inputs, conv.outputs / conv.groups, conv.window.taps()];
                    conv.weights = reordered(&conv.weights, sizes, reads, makes);
                    reorder(&mut conv.bias, makes);
                }
                Op::Linear {
                    weights: Weights::Float(weights),
                    bias,
                    outputs,
                    ..
                } if ranks[i] == 2 => {
                    let sizes = [*outputs, weights.len() / (*outputs).max(1), 1];
                    *weights = reordered(weights, sizes, makes, reads);
                    reorder(bias, makes);
                }
                Op::Affine { scale, shift, .. } => {
                    reorder(scale, makes);
                    reorder(shift, makes);
                }
                Op::Constant { shape, values, .. } => {
                    let c = channels_of(shape, ranks[i]);
                    if c > 1 {
                        let inner: usize = shape[shape.len() + 2 - ranks[i]..].iter().product();
                        let outer = values.len() / (c * inner).max(1);
                        *values = reordered(values, [outer, c, inner], None, makes);
                    }
                }
                _ => {}
            }
        }
        let made = all.into_iter().enumerate();
        made.filter_map(|(i, (_, order))| Some((i, order?)))
            .collect()
    }
}

/// The size of a constant along the axis that is the second of a value's `rank`.
fn channels_of(shape: &[usize], rank: usize) -> usize {
    match (shape.len() + 1).checked_sub(rank) {
        Some(axis) if rank >= 2 => shape[axis],
        _ => 1,
    }
}

fn reorder(values: &mut Arc<[f32]>, order: Option<&[usize]>) {
    if let (Some(order), false) = (order, values.is_empty()) {
        *values = order.iter().map(|&old| values[old]).collect();
    }
}

/// `[rows, columns, inner]` with rows and columns in other orders.
fn reordered(
    values: &Arc<[f32]>,
    [rows, columns, inner]: [usize; 3],
    row: Option<&[usize]>,
    column: Option<&[usize]>,
) -> Arc<[f32]> {
    if row.is_none() && column.is_none() {
        return Arc::clone(values);
    }
    let at = |order: Option<&[usize]>, i: usize| order.map_or(i, |order| order[i]);
    let mut out = Vec::with_capacity(values.len());
    for i in 0..rows {
        for j in 0..columns {
            let from = (at(row, i) * columns + at(column, j)) * inner;
            out.extend_from_slice(&values[from..from + inner]);
        }
    }
    out.into()
}
