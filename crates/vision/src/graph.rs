//! A network as data: nodes in the order in which they run, each an [`Op`] on values of known
//! shape. Whatever a network came from, an ONNX file or a table written here, it is this, and
//! everything that changes networks (fusing, pruning, rounding, cutting) works on it.

use std::collections::HashMap;

use crate::op::{Op, OpError};

/// A value of a graph: what an input gives or a node makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub(crate) u32);

impl Value {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// What is known of a value.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueInfo {
    /// Its name, unique in the graph.
    pub name: String,
    /// Its sizes. Pictures are `[n, channels, height, width]`, however they lie in memory.
    pub shape: Vec<usize>,
    /// The 8-bit grid that it is rounded to, if it is.
    pub quant: Option<sedge_conv::Quant>,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name, for errors and tables.
    pub name: String,
    /// What it does.
    pub op: Op,
    /// What it reads.
    pub inputs: Vec<Value>,
    /// What it makes.
    pub output: Value,
}

/// A network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    nodes: Vec<Node>,
    values: Vec<ValueInfo>,
    names: HashMap<String, Value>,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    /// Facts that travel with it: presets, labels, masks.
    pub metadata: Vec<(String, String)>,
}

/// Why a graph cannot be built or changed so.
#[derive(Debug, thiserror::Error)]
#[error("node {node:?}: {error}")]
pub struct GraphError {
    /// The node's name.
    pub node: String,
    /// What is wrong with it.
    #[source]
    pub error: Box<OpError>,
}

impl Graph {
    /// A graph of nothing.
    pub fn new() -> Graph {
        Graph::default()
    }

    /// Nodes, each after those that make what it reads.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What the graph reads, in order.
    pub fn inputs(&self) -> &[Value] {
        &self.inputs
    }

    /// What it gives, in order.
    pub fn outputs(&self) -> &[Value] {
        &self.outputs
    }

    /// What is known of a value.
    pub fn info(&self, value: Value) -> &ValueInfo {
        &self.values[value.index()]
    }

    /// The sizes of a value.
    pub fn shape(&self, value: Value) -> &[usize] {
        &self.info(value).shape
    }

    /// How many values there have been, used ones and others.
    pub(crate) fn values(&self) -> usize {
        self.values.len()
    }

    /// Says on which grid a value's numbers are.
    pub fn set_quant(&mut self, value: Value, quant: Option<sedge_conv::Quant>) {
        self.values[value.index()].quant = quant;
    }

    /// The value of this name.
    pub fn find(&self, name: &str) -> Option<Value> {
        self.names.get(name).copied()
    }

    /// A new input.
    pub fn input(&mut self, name: &str, shape: &[usize]) -> Value {
        let value = self.value(name, shape.to_vec());
        self.inputs.push(value);
        value
    }

    /// Adds a node at the end; its output is named after it.
    pub fn push(&mut self, name: &str, op: Op, inputs: &[Value]) -> Result<Value, GraphError> {
        let shapes: Vec<&[usize]> = inputs.iter().map(|&x| self.shape(x)).collect();
        let shape = op.shape(&shapes).map_err(|error| GraphError {
            node: name.to_owned(),
            error: Box::new(error),
        })?;
        let output = self.value(name, shape);
        self.nodes.push(Node {
            name: name.to_owned(),
            op,
            inputs: inputs.to_vec(),
            output,
        });
        Ok(output)
    }

    /// Makes a value one that the graph gives.
    pub fn output(&mut self, value: Value) {
        self.outputs.push(value);
    }

    /// Gives a value another name, unless another value has it.
    pub fn rename(&mut self, value: Value, name: &str) {
        if self.find(name).is_none() {
            let old = std::mem::replace(&mut self.values[value.index()].name, name.to_owned());
            self.names.remove(&old);
            self.names.insert(name.to_owned(), value);
        }
    }

    /// Nodes that read each value, by value.
    pub(crate) fn readers(&self) -> Vec<Vec<usize>> {
        let mut readers = vec![Vec::new(); self.values.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for &input in &node.inputs {
                readers[input.index()].push(i);
            }
        }
        readers
    }

    /// The node that makes each value, by value.
    pub(crate) fn makers(&self) -> Vec<Option<usize>> {
        let mut makers = vec![None; self.values.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            makers[node.output.index()] = Some(i);
        }
        makers
    }

    /// Replaces all nodes. The new ones must be in order.
    pub(crate) fn set_nodes(&mut self, nodes: Vec<Node>) {
        self.nodes = nodes;
    }

    /// Changes what nodes compute but not the shapes of what they make.
    pub fn nodes_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.iter_mut()
    }

    /// Reads `to` wherever `from` was read.
    pub(crate) fn replace(&mut self, from: Value, to: Value) {
        for node in &mut self.nodes {
            for input in &mut node.inputs {
                if *input == from {
                    *input = to;
                }
            }
        }
        for output in &mut self.outputs {
            if *output == from {
                *output = to;
            }
        }
    }

    /// Leaves out nodes whose values nobody reads.
    pub(crate) fn sweep(&mut self) {
        let mut used = vec![false; self.values.len()];
        for output in &self.outputs {
            used[output.index()] = true;
        }
        let mut kept = Vec::with_capacity(self.nodes.len());
        for node in std::mem::take(&mut self.nodes).into_iter().rev() {
            if used[node.output.index()] {
                for input in &node.inputs {
                    used[input.index()] = true;
                }
                kept.push(node);
            }
        }
        kept.reverse();
        self.nodes = kept;
    }

    /// Multiplications and additions of one pass, each counted as one.
    pub fn macs(&self) -> u64 {
        let of = |node: &Node| {
            node.op
                .macs(self.shape(node.inputs[0]), self.shape(node.output))
        };
        self.nodes.iter().map(of).sum()
    }

    /// Weights of all nodes.
    pub fn weights(&self) -> u64 {
        self.nodes.iter().map(|node| node.op.weights()).sum()
    }

    /// Cuts the graph in two: the head computes `at` from the inputs, the tail the outputs from
    /// `at`. `None` when the outputs need more than these values.
    pub fn cut(&self, at: &[Value]) -> Option<(Graph, Graph)> {
        let mut head = self.clone();
        head.outputs = at.to_vec();
        head.sweep();

        let mut tail = self.clone();
        tail.inputs = at.to_vec();
        tail.nodes.retain(|node| !at.contains(&node.output));
        tail.sweep();
        let mut known: Vec<bool> = vec![false; self.values.len()];
        for value in at {
            known[value.index()] = true;
        }
        for node in &tail.nodes {
            if !node.inputs.iter().all(|x| known[x.index()]) {
                return None;
            }
            known[node.output.index()] = true;
        }
        let whole = tail.outputs.iter().all(|x| known[x.index()]);
        whole.then_some((head, tail))
    }

    pub(crate) fn value(&mut self, name: &str, shape: Vec<usize>) -> Value {
        let mut unique = name.to_owned();
        let mut n = 1;
        while self.find(&unique).is_some() {
            n += 1;
            unique = format!("{name}.{n}");
        }
        let value = Value(self.values.len() as u32);
        self.names.insert(unique.clone(), value);
        self.values.push(ValueInfo {
            name: unique,
            shape,
            quant: None,
        });
        value
    }

    /// How often each kind of operation is there, most frequent first.
    pub fn census(&self) -> Vec<(&'static str, usize)> {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for node in &self.nodes {
            *counts.entry(node.op.kind()).or_default() += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|&(kind, count)| (std::cmp::Reverse(count), kind));
        counts
    }
}
