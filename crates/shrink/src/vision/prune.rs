//! Pointwise convolutions that are mostly zeros: the smallest weights are left out, each alone
//! (Fast Sparse ConvNets: Elsen et al., 2019, arXiv 1911.09723), or so that groups of outputs do
//! without the same inputs (SparseByteNN: Xu et al., 2023, arXiv 2310.17212), whose outputs may
//! change places first so that less is lost. Kernels and stems stay dense, as papers found best.

use std::collections::{BTreeMap, HashSet};
use std::str::FromStr;

use sedge_kernels::Team;
use sedge_vision::{Conv, Graph, Op, Value, Weights};

use super::channels::{Channels, Orders};
use super::correct::{correct, spreads};
use super::rearrange::{Rows, grouped};
use super::watch::Pictures;
use super::{VisionError, cubic, whole};

/// Among which weights the smallest are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of each layer: all become equally sparse.
    Layer,
    /// Those of all layers, each layer's relative to its mean magnitude.
    Network,
}

/// How a network is to be pruned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pruning {
    /// Share of the weights that are left out, above 0 and below 1.
    pub sparsity: f64,
    /// Outputs that do without the same inputs. What is left over at the end is a smaller group.
    pub group: usize,
    /// Whether outputs may change places.
    pub rearrange: bool,
    /// Where the smallest weights are looked for.
    pub scope: Scope,
    /// Whether products after which no other follows are pruned too, and those of single pixels.
    pub classifier: bool,
    /// Whether what is left makes good for what is left out, as far as pictures show it.
    pub correct: bool,
    /// In how many steps: with correction, weights are chosen anew after each.
    pub steps: usize,
}

impl Default for Pruning {
    fn default() -> Pruning {
        Pruning {
            sparsity: 0.9,
            group: 1,
            rearrange: false,
            scope: Scope::Layer,
            classifier: false,
            correct: false,
            steps: 1,
        }
    }
}

/// Outputs in a group, at most.
const LARGEST_GROUP: usize = 64;

/// What is no way to prune.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PruningError {
    /// The sparsity.
    #[error("a sparsity of {0}: it must be above 0 and below 1, such as 0.9")]
    Sparsity(String),
    /// The group.
    #[error("groups of {0} outputs: from 1 to 64")]
    Group(String),
    /// Another part.
    #[error(
        "{0:?} is no part of it: block=N, group=N, rearrange=off, scope=layer or scope=network"
    )]
    Part(String),
}

/// `0.9`, `0.9,block=4` or `0.3,group=8`: groups are blocks that are rearranged and looked for in
/// the whole network; `rearrange=off`, `scope=layer` and `scope=network` say otherwise.
impl FromStr for Pruning {
    type Err = PruningError;

    fn from_str(text: &str) -> Result<Pruning, PruningError> {
        let mut parts = text.split(',');
        let sparsity = parts.next().unwrap_or_default();
        let mut pruning = Pruning {
            sparsity: sparsity.parse().unwrap_or(f64::NAN),
            ..Pruning::default()
        };
        if !(pruning.sparsity > 0.0 && pruning.sparsity < 1.0) {
            return Err(PruningError::Sparsity(sparsity.to_owned()));
        }
        let size = |n: &str| match n.parse() {
            Ok(n) if (1..=LARGEST_GROUP).contains(&n) => Ok(n),
            _ => Err(PruningError::Group(n.to_owned())),
        };
        for part in parts {
            match part.split_once('=') {
                Some(("block", n)) => pruning.group = size(n)?,
                Some(("group", n)) => {
                    pruning.group = size(n)?;
                    pruning.rearrange = true;
                    pruning.scope = Scope::Network;
                }
                Some(("rearrange", "on")) => pruning.rearrange = true,
                Some(("rearrange", "off")) => pruning.rearrange = false,
                Some(("scope", "layer")) => pruning.scope = Scope::Layer,
                Some(("scope", "network")) => pruning.scope = Scope::Network,
                _ => return Err(PruningError::Part(part.to_owned())),
            }
        }
        Ok(pruning)
    }
}

/// A layer that was pruned.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The node's name.
    pub node: String,
    /// Outputs and inputs.
    pub size: [usize; 2],
    /// Weights that are left.
    pub left: usize,
    /// The share of all weights' magnitude that those have that are left, before correction.
    pub kept: f64,
    /// Products of one pass before.
    pub macs: u64,
}

impl Layer {
    /// The share of weights that are left.
    pub fn density(&self) -> f64 {
        self.left as f64 / (self.size[0] * self.size[1]).max(1) as f64
    }
}

/// What was done to a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Pruned {
    /// The layers that were pruned.
    pub layers: Vec<Layer>,
    /// How many nodes' outputs are in another order now.
    pub rearranged: usize,
    /// Products of one pass, before and after.
    pub macs: [u64; 2],
}

impl Pruned {
    /// The share of weights of pruned layers that are left out.
    pub fn sparsity(&self) -> f64 {
        let all: usize = self.layers.iter().map(|x| x.size[0] * x.size[1]).sum();
        let left: usize = self.layers.iter().map(|x| x.left).sum();
        1.0 - left as f64 / all.max(1) as f64
    }

    /// The share of the magnitude of their weights that is left: of layers, each as much as
    /// another in a weight's mean.
    pub fn kept(&self) -> f64 {
        let weights = |x: &Layer| (x.size[0] * x.size[1]) as f64;
        let all: f64 = self.layers.iter().map(weights).sum();
        let kept: f64 = self.layers.iter().map(|x| x.kept * weights(x)).sum();
        kept / all.max(1.0)
    }
}

/// Leaves out weights of a fused network's pointwise convolutions. What was done is written into
/// its metadata: `sedge.sparse`, and for each layer whose outputs changed places
/// `sedge.permutation.NODE`, the old places in their new order. The masks are the zeros.
/// `pictures` are only looked at for correction.
///
/// # Errors
/// When there is no such layer, weights are integers or no numbers, or the network does not run.
///
/// # Panics
/// When the sparsity is not above 0 and below 1, or the group is 0.
pub fn prune(
    graph: &mut Graph,
    pruning: &Pruning,
    pictures: &Pictures,
    team: &Team,
) -> Result<Pruned, VisionError> {
    assert!(pruning.sparsity > 0.0 && pruning.sparsity < 1.0 && pruning.group > 0);
    whole(graph)?;
    let chosen = chosen(graph, pruning.classifier);
    if chosen.is_empty() {
        return Err(VisionError::NoLayers);
    }
    let before = graph.macs();
    let orders = match pruning.rearrange && pruning.group > 1 {
        true => rearrange(graph, &chosen, pruning, team),
        false => Vec::new(),
    };
    let reads: Vec<Value> = chosen.iter().map(|&i| graph.nodes()[i].inputs[0]).collect();
    let spreads = match pruning.correct {
        true => spreads(graph, &reads, pictures, team)?,
        false => Default::default(),
    };

    let mut products: Vec<Product> = chosen
        .iter()
        .map(|&i| Product::of(&graph.nodes()[i].op))
        .collect();
    let mut kept = vec![0.0; products.len()];
    for step in 1..=pruning.steps.max(1) {
        let share = step as f64 / pruning.steps.max(1) as f64;
        let sparsity = cubic(0.0, pruning.sparsity, share);
        let masks = masks(&products, sparsity, pruning);
        for (i, (product, mask)) in products.iter_mut().zip(&masks).enumerate() {
            let inputs = product.inputs;
            let out = |o: usize, j: usize| mask[o / pruning.group * inputs + j];
            kept[i] = product.kept(&out) / product.magnitude().max(f64::MIN_POSITIVE);
            match spreads.get(&reads[i]) {
                Some(spread) => correct(&mut product.rows, spread, &out, team),
                None => product.clear(&out),
            }
        }
    }

    let mut layers = Vec::with_capacity(chosen.len());
    let mut saved = 0;
    for ((&i, product), kept) in chosen.iter().zip(&products).zip(kept) {
        let node = &graph.nodes()[i];
        let macs = node
            .op
            .macs(graph.shape(node.inputs[0]), graph.shape(node.output));
        let weights = product.outputs * product.inputs;
        let left = product.left();
        saved += macs / weights.max(1) as u64 * (weights - left) as u64;
        layers.push(Layer {
            node: node.name.clone(),
            size: [product.outputs, product.inputs],
            left,
            kept,
            macs,
        });
    }
    let mut nodes = graph.nodes_mut().enumerate();
    for (&i, product) in chosen.iter().zip(&products) {
        if let Some((_, node)) = nodes.find(|(at, _)| *at == i) {
            product.write(&mut node.op);
        }
    }
    drop(nodes);
    note(graph, pruning, &orders);
    Ok(Pruned {
        layers,
        rearranged: orders.len(),
        macs: [before, before - saved],
    })
}

fn note(graph: &mut Graph, pruning: &Pruning, orders: &[(usize, Vec<usize>)]) {
    let names: Vec<String> = orders
        .iter()
        .map(|(i, _)| graph.nodes()[*i].name.clone())
        .collect();
    let mut note = |key: String, value: String| {
        graph.metadata.retain(|(old, _)| *old != key);
        graph.metadata.push((key, value));
    };
    let (sparsity, group) = (pruning.sparsity, pruning.group);
    note(
        "sedge.sparse".to_owned(),
        format!("{sparsity},block={group}"),
    );
    for (name, (_, order)) in names.into_iter().zip(orders) {
        let list: Vec<String> = order.iter().map(usize::to_string).collect();
        note(format!("sedge.permutation.{name}"), list.join(","));
    }
}

/// The nodes that are pruned, by their places.
fn chosen(graph: &Graph, classifier: bool) -> Vec<usize> {
    let last = last_products(graph);
    let of = |(i, node): (usize, &sedge_vision::Node)| match &node.op {
        Op::Conv(conv) if conv.is_pointwise() => {
            let pixels: usize = graph.shape(node.output)[2..].iter().product();
            (classifier || (pixels > 1 && !last.contains(&i))).then_some(i)
        }
        Op::Linear { .. } => (classifier && graph.shape(node.output).len() == 2).then_some(i),
        _ => None,
    };
    graph.nodes().iter().enumerate().filter_map(of).collect()
}

/// Products between which and the network's outputs there is no other.
fn last_products(graph: &Graph) -> HashSet<usize> {
    let mut reached: HashSet<Value> = graph.outputs().iter().copied().collect();
    let mut last = HashSet::new();
    for (i, node) in graph.nodes().iter().enumerate().rev() {
        if !reached.contains(&node.output) {
            continue;
        }
        match node.op {
            Op::Conv(_) | Op::ConvTranspose(_) | Op::Linear { .. } => {
                last.insert(i);
            }
            _ => reached.extend(&node.inputs),
        }
    }
    last
}

/// A layer's weights, the bias as one more column.
struct Product {
    outputs: usize,
    inputs: usize,
    /// `[outputs, inputs + 1]`.
    rows: Vec<f32>,
}

impl Product {
    fn of(op: &Op) -> Product {
        let (weights, bias, outputs) = match op {
            Op::Conv(conv) => (&conv.weights, &conv.bias, conv.outputs),
            Op::Linear {
                weights,
                bias,
                outputs,
                ..
            } => (weights, bias, *outputs),
            _ => unreachable!("only products are chosen"),
        };
        let weights = weights.to_float();
        let inputs = weights.len() / outputs.max(1);
        let mut rows = Vec::with_capacity(weights.len() + outputs);
        for o in 0..outputs {
            rows.extend_from_slice(&weights[o * inputs..][..inputs]);
            rows.push(bias.get(o).copied().unwrap_or(0.0));
        }
        Product {
            outputs,
            inputs,
            rows,
        }
    }

    fn write(&self, op: &mut Op) {
        let n = self.inputs;
        let rows = || self.rows.chunks_exact(n + 1);
        let new = Weights::Float(rows().flat_map(|row| row[..n].iter().copied()).collect());
        let shift = rows().map(|row| row[n]).collect();
        match op {
            Op::Conv(Conv { weights, bias, .. }) | Op::Linear { weights, bias, .. } => {
                *weights = new;
                *bias = shift;
            }
            _ => unreachable!("only products are chosen"),
        }
    }

    fn weights(&self) -> impl Iterator<Item = (usize, usize, f32)> {
        let rows = self.rows.chunks_exact(self.inputs + 1).enumerate();
        rows.flat_map(|(o, row)| {
            let row = row[..self.inputs].iter().enumerate();
            row.map(move |(j, &w)| (o, j, w))
        })
    }

    fn magnitude(&self) -> f64 {
        self.weights().map(|(_, _, w)| f64::from(w.abs())).sum()
    }

    fn kept(&self, out: &dyn Fn(usize, usize) -> bool) -> f64 {
        let kept = self.weights().filter(|&(o, j, _)| !out(o, j));
        kept.map(|(_, _, w)| f64::from(w.abs())).sum()
    }

    fn left(&self) -> usize {
        self.weights().filter(|&(_, _, w)| w != 0.0).count()
    }

    fn clear(&mut self, out: &dyn Fn(usize, usize) -> bool) {
        let n = self.inputs;
        for (o, row) in self.rows.chunks_exact_mut(n + 1).enumerate() {
            for (j, w) in row[..n].iter_mut().enumerate() {
                if out(o, j) {
                    *w = 0.0;
                }
            }
        }
    }

    /// The mean magnitude of each group's weights of each input, `[groups, inputs]`, relative to
    /// the layer's; and how many weights those are.
    fn cells(&self, group: usize) -> Vec<(f32, usize)> {
        let n = self.inputs;
        let mean = self.magnitude() / (self.outputs * n).max(1) as f64;
        let mean = mean.max(f64::from(f32::MIN_POSITIVE)) as f32;
        let groups = self.rows.chunks((n + 1) * group);
        let cells = groups.flat_map(|rows| {
            let count = rows.len() / (n + 1);
            (0..n).map(move |j| {
                let column = rows.iter().skip(j).step_by(n + 1);
                let sum: f32 = column.map(|w| w.abs()).sum();
                (sum / (count as f32 * mean), count)
            })
        });
        cells.collect()
    }
}

/// Which cells of each layer are left out: the smallest.
fn masks(products: &[Product], sparsity: f64, pruning: &Pruning) -> Vec<Vec<bool>> {
    let cells: Vec<Vec<(f32, usize)>> = products.iter().map(|x| x.cells(pruning.group)).collect();
    let mut masks: Vec<Vec<bool>> = cells.iter().map(|x| vec![false; x.len()]).collect();
    let layers: Vec<usize> = (0..products.len()).collect();
    let sets = match pruning.scope {
        Scope::Layer => layers.chunks(1),
        Scope::Network => layers.chunks(layers.len()),
    };
    for set in sets {
        for (layer, cell) in smallest(set, &cells, sparsity) {
            masks[layer][cell] = true;
        }
    }
    masks
}

/// Cells of some layers in ascending order, until they have the share of the weights.
fn smallest(set: &[usize], cells: &[Vec<(f32, usize)>], sparsity: f64) -> Vec<(usize, usize)> {
    let mut all: Vec<(f32, usize, usize)> = Vec::new();
    for &layer in set {
        let cells = cells[layer].iter().enumerate();
        all.extend(cells.map(|(cell, &(score, _))| (score, layer, cell)));
    }
    let count = |layer: usize, cell: usize| cells[layer][cell].1;
    let weights: usize = all.iter().map(|&(_, layer, cell)| count(layer, cell)).sum();
    let mut wanted = (weights as f64 * sparsity).round() as usize;
    all.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let fits = all.into_iter().map_while(|(_, layer, cell)| {
        wanted = wanted.checked_sub(count(layer, cell))?;
        Some((layer, cell))
    });
    fits.collect()
}

/// Gives each run of channels the order in which groups keep most.
fn rearrange(
    graph: &mut Graph,
    chosen: &[usize],
    pruning: &Pruning,
    team: &Team,
) -> Vec<(usize, Vec<usize>)> {
    let channels = Channels::of(graph);
    let products: Vec<Product> = chosen
        .iter()
        .map(|&i| Product::of(&graph.nodes()[i].op))
        .collect();
    let cells: Vec<Vec<(f32, usize)>> = products.iter().map(|x| x.cells(pruning.group)).collect();
    let masks = masks(&products, pruning.sparsity, pruning);
    // In each layer, the greatest of what would be left out now.
    let threshold = |layer: usize| {
        let out = cells[layer].iter().zip(&masks[layer]);
        let out = out.filter(|(_, out)| **out);
        out.map(|(cell, _)| cell.0).fold(0.0, f32::max)
    };
    let mut runs: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (layer, &i) in chosen.iter().enumerate() {
        if let Some(run) = channels.free(graph.nodes()[i].output) {
            runs.entry(run).or_default().push(layer);
        }
    }
    let runs: Vec<(usize, Vec<usize>)> = runs.into_iter().collect();
    let found: Vec<std::sync::OnceLock<Option<Vec<usize>>>> =
        runs.iter().map(|_| std::sync::OnceLock::new()).collect();
    team.run(runs.len(), &|at| {
        let layers = &runs[at].1;
        let mut rows = Rows {
            values: Vec::new(),
            thresholds: Vec::new(),
        };
        // Each output's weights in all layers of the run, side by side.
        let single: Vec<Vec<(f32, usize)>> = layers
            .iter()
            .map(|&layer| products[layer].cells(1))
            .collect();
        for o in 0..products[layers[0]].outputs {
            for (&layer, cells) in layers.iter().zip(&single) {
                let n = products[layer].inputs;
                rows.values.extend(cells[o * n..][..n].iter().map(|x| x.0));
            }
        }
        for &layer in layers {
            let n = products[layer].inputs;
            rows.thresholds
                .extend(std::iter::repeat_n(threshold(layer), n));
        }
        found[at].get_or_init(|| grouped(&rows, pruning.group));
    });
    let orders = runs.iter().zip(found);
    let orders: Orders = orders
        .filter_map(|((run, _), order)| Some((*run, order.into_inner()??)))
        .collect();
    channels.rearrange(graph, &orders)
}
