//! The checks that make a graph sound, and the order in which it can be computed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::{Graph, OnnxError};

/// Checks that each value has one writer and each value read has a writer, and puts nodes after
/// those whose values they read. Nodes that are in such an order stay as they are.
pub(super) fn order(graph: &mut Graph) -> Result<(), OnnxError> {
    let order = sorted(graph)?;
    let mut nodes: Vec<_> = std::mem::take(&mut graph.nodes)
        .into_iter()
        .map(Some)
        .collect();
    graph.nodes = order.into_iter().filter_map(|i| nodes[i].take()).collect();
    Ok(())
}

fn sorted(graph: &Graph) -> Result<Vec<usize>, OnnxError> {
    let nodes = &graph.nodes;
    let writers = writers(graph)?;
    // Who reads what a node writes, and how many reads wait for a node that has not run.
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    let mut waits = vec![0usize; nodes.len()];
    for (index, node) in nodes.iter().enumerate() {
        for value in node.inputs.iter().filter(|value| !value.is_empty()) {
            match writers.get(value.as_str()) {
                Some(Some(writer)) => {
                    readers[*writer].push(index);
                    waits[index] += 1;
                }
                Some(None) => {}
                None => return Err(unwritten(node.label(), value)),
            }
        }
    }
    for output in &graph.outputs {
        if !writers.contains_key(output.name.as_str()) {
            return Err(unwritten("the graph's output".to_owned(), &output.name));
        }
    }

    // Of the nodes that can run the first in the file runs: an order that is right stays.
    let ready = (0..nodes.len()).filter(|i| waits[*i] == 0).map(Reverse);
    let mut ready: BinaryHeap<Reverse<usize>> = ready.collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(Reverse(index)) = ready.pop() {
        order.push(index);
        for &reader in &readers[index] {
            waits[reader] -= 1;
            if waits[reader] == 0 {
                ready.push(Reverse(reader));
            }
        }
    }
    match waits.iter().position(|waits| *waits > 0) {
        None => Ok(order),
        Some(stuck) => Err(cycle(graph, &writers, &waits, stuck)),
    }
}

/// Who writes each value: a node, or `None` for an input or an initializer.
type Writers<'a> = HashMap<&'a str, Option<usize>>;

fn writers(graph: &Graph) -> Result<Writers<'_>, OnnxError> {
    let mut writers = Writers::new();
    for tensor in &graph.initializers {
        let writer = || "an initializer".to_owned();
        add(&mut writers, &tensor.name, None, writer)?;
    }
    for input in &graph.inputs {
        let writer = || "the graph's input".to_owned();
        add(&mut writers, &input.name, None, writer)?;
    }
    for (index, node) in graph.nodes.iter().enumerate() {
        for value in node.outputs.iter().filter(|value| !value.is_empty()) {
            add(&mut writers, value, Some(index), || node.label())?;
        }
    }
    Ok(writers)
}

fn add<'a>(
    writers: &mut Writers<'a>,
    value: &'a str,
    node: Option<usize>,
    writer: impl FnOnce() -> String,
) -> Result<(), OnnxError> {
    match writers.insert(value, node) {
        None => Ok(()),
        Some(_) => Err(OnnxError::Twice {
            value: value.to_owned(),
            writer: writer(),
        }),
    }
}

/// Names a node of a cycle, given one that waits for it, perhaps through others.
fn cycle(graph: &Graph, writers: &Writers, waits: &[usize], stuck: usize) -> OnnxError {
    // Each node that waits has a writer that waits. As many steps as there are nodes end in a
    // cycle, wherever they began.
    let mut index = stuck;
    for _ in 0..graph.nodes.len() {
        let inputs = graph.nodes[index].inputs.iter();
        let mut before = inputs.filter_map(|value| writers.get(value.as_str()).copied().flatten());
        index = before.find(|i| waits[*i] > 0).unwrap_or(index);
    }
    OnnxError::Cycle {
        node: graph.nodes[index].label(),
    }
}

fn unwritten(reader: String, value: &str) -> OnnxError {
    OnnxError::Unwritten {
        reader,
        value: value.to_owned(),
    }
}
