//! Networks of 8-bit integers, without training: each value's grid from what it was on some
//! pictures, and weights symmetric, with a scale for each output (Jacob et al., 2017, arXiv
//! 1712.05877).

use std::collections::{HashMap, HashSet};

use sedge_kernels::Team;
use sedge_vision::{Binary, Graph, Op, Pool, Quant, Reduction, Value, Weights};

use super::watch::{Pictures, watch};
use super::{VisionError, whole};

/// How far a value's grid reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ranges {
    /// To the least and the greatest number that were seen.
    MinMax,
    /// As far as makes the mean square error least.
    #[default]
    Squares,
}

/// What was rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantised {
    /// Products whose weights are integers now.
    pub products: usize,
    /// Values on grids.
    pub values: usize,
    /// Weights that stay real numbers.
    pub left: u64,
}

/// Gives a fused network's products weights of 8 bits, and the values around them grids. Sums and
/// scalings, pools and copies between them are on grids too, so that whole regions are of
/// integers; the network's outputs stay real numbers, but for those that a convolution makes.
///
/// # Errors
/// When there are no convolutions, weights are integers already or no numbers, or the network
/// does not run.
pub fn quantise(
    graph: &mut Graph,
    ranges: Ranges,
    pictures: &Pictures,
    team: &Team,
) -> Result<Quantised, VisionError> {
    whole(graph)?;
    if !graph
        .nodes()
        .iter()
        .any(|node| matches!(node.op, Op::Conv(_)))
    {
        return Err(VisionError::NoConvolutions);
    }
    let chosen = Chosen::of(graph);
    let grids = chosen.grids(graph, ranges, pictures, team)?;
    for (&value, &quant) in &grids {
        graph.set_quant(value, Some(quant));
    }
    let mut quantised = Quantised {
        products: 0,
        values: grids.len(),
        left: 0,
    };
    for node in graph.nodes_mut() {
        let read = grids.contains_key(&node.inputs[0]);
        match &mut node.op {
            Op::Conv(conv) if read => {
                conv.weights = integers(&conv.weights, conv.outputs);
                quantised.products += 1;
            }
            Op::Linear {
                weights, outputs, ..
            } if read => {
                *weights = integers(weights, *outputs);
                quantised.products += 1;
            }
            op => quantised.left += op.weights(),
        }
    }
    let how = match ranges {
        Ranges::MinMax => "min-max",
        Ranges::Squares => "squares",
    };
    graph.metadata.retain(|(key, _)| key != "sedge.int8");
    graph
        .metadata
        .push(("sedge.int8".to_owned(), how.to_owned()));
    Ok(quantised)
}

/// Each output's weights, from -127 to 127 of its scale.
fn integers(weights: &Weights, outputs: usize) -> Weights {
    let values = weights.to_float();
    let each = (values.len() / outputs.max(1)).max(1);
    let mut codes = Vec::with_capacity(values.len());
    let mut scales = Vec::with_capacity(outputs);
    for row in values.chunks(each) {
        let most = row.iter().fold(0.0f32, |most, w| most.max(w.abs()));
        // Too small to divide by is as good as nothing.
        let scale = match most / 127.0 {
            scale if scale >= f32::MIN_POSITIVE => scale,
            _ => 1.0,
        };
        scales.push(scale);
        codes.extend(row.iter().map(|w| (w / scale).round_ties_even() as i8));
    }
    Weights::Int8 {
        codes: codes.into(),
        scales: scales.into(),
    }
}

/// The values that get grids. Those of one class share theirs.
struct Chosen {
    values: Vec<Value>,
    /// The class of each, by the place of its first value.
    class: Vec<usize>,
}

impl Chosen {
    fn of(graph: &Graph) -> Chosen {
        let mut on: HashSet<Value> = HashSet::new();
        for node in graph.nodes() {
            if matches!(node.op, Op::Conv(_)) {
                on.extend(node.inputs.iter().chain([&node.output]));
            }
        }
        // What lies between convolutions, from the front.
        let outputs: HashSet<Value> = graph.outputs().iter().copied().collect();
        let mut copies = Vec::new();
        for node in graph.nodes() {
            let (x, y) = (node.inputs[0], node.output);
            let copied = matches!(
                node.op,
                Op::Pool(Pool::Max, _)
                    | Op::Slice { .. }
                    | Op::Resize { .. }
                    | Op::Reshape(_)
                    | Op::Transpose(_)
                    | Op::Gather { .. }
            );
            let between = copied
                || match &node.op {
                    Op::Pool(..) | Op::Scale(_) | Op::Concat(1) | Op::Activation(_) => true,
                    Op::Affine { .. } | Op::Linear { .. } => true,
                    Op::Binary(binary, _) => matches!(binary, Binary::Add | Binary::Mul),
                    Op::Reduce {
                        reduction: Reduction::Mean,
                        axes,
                        ..
                    } => axes[..] == [2, 3],
                    _ => false,
                };
            // Of matrices, those of a classifier.
            let drawn = |value: Value| matches!(graph.shape(value).len(), 2 | 4);
            let shaped = drawn(y);
            let reads = node.inputs.iter().all(|&x| drawn(x));
            if between && shaped && reads && on.contains(&x) && !outputs.contains(&y) {
                on.extend(node.inputs.iter().chain([&y]));
            }
            if copied && on.contains(&x) && on.contains(&y) {
                copies.push((x, y));
            }
        }
        let mut values: Vec<Value> = on.into_iter().collect();
        values.sort_unstable();
        let places: HashMap<Value, usize> = values.iter().copied().zip(0..).collect();
        let mut class: Vec<usize> = (0..values.len()).collect();
        for (x, y) in copies {
            let (from, to) = (class[places[&y]], class[places[&x]]);
            class
                .iter_mut()
                .filter(|c| **c == from)
                .for_each(|c| *c = to);
        }
        Chosen { values, class }
    }

    fn grids(
        &self,
        graph: &Graph,
        ranges: Ranges,
        pictures: &Pictures,
        team: &Team,
    ) -> Result<HashMap<Value, Quant>, VisionError> {
        let mut seen = vec![(0.0f32, 0.0f32); self.values.len()];
        watch(graph, &self.values, pictures, team, &mut |i, x| {
            let (low, high) = &mut seen[self.class[i]];
            for &x in x {
                *low = low.min(x);
                *high = high.max(x);
            }
        })?;
        if ranges == Ranges::Squares {
            let mut counts: Vec<Histogram> = seen
                .iter()
                .map(|&(low, high)| Histogram::new(low, high))
                .collect();
            watch(graph, &self.values, pictures, team, &mut |i, x| {
                counts[self.class[i]].add(x);
            })?;
            for (seen, counts) in seen.iter_mut().zip(&counts) {
                *seen = counts.best();
            }
        }
        let grids = self.values.iter().zip(&self.class);
        Ok(grids
            .map(|(&value, &class)| (value, grid(seen[class])))
            .collect())
    }
}

/// The grid of 256 numbers between two, one of which is 0.
fn grid((low, high): (f32, f32)) -> Quant {
    let scale = match (high - low) / 255.0 {
        scale if scale >= f32::MIN_POSITIVE && scale.is_finite() => scale,
        _ => 1.0,
    };
    let zero = (-low / scale).round_ties_even().clamp(0.0, 255.0) as u8;
    Quant { scale, zero }
}

/// How often a value was where; zeros, which every grid has, are not counted.
struct Histogram {
    low: f32,
    high: f32,
    counts: Vec<u64>,
}

impl Histogram {
    const BINS: usize = 1024;

    fn new(low: f32, high: f32) -> Histogram {
        Histogram {
            low,
            high,
            counts: vec![0; Histogram::BINS],
        }
    }

    fn add(&mut self, x: &[f32]) {
        let per = Histogram::BINS as f32 / (self.high - self.low).max(f32::MIN_POSITIVE);
        for &x in x.iter().filter(|x| **x != 0.0) {
            let bin = ((x - self.low) * per) as usize;
            self.counts[bin.min(Histogram::BINS - 1)] += 1;
        }
    }

    /// The ends of the grid whose mean square error is least: of rounding inside, of cutting off
    /// outside.
    fn best(&self) -> (f32, f32) {
        const STEPS: usize = 20;
        let width = f64::from(self.high - self.low) / Histogram::BINS as f64;
        let error = |low: f64, high: f64| {
            let step = (high - low) / 255.0;
            let counts = self.counts.iter().enumerate();
            counts.fold(0.0, |sum, (bin, &count)| {
                let x = f64::from(self.low) + (bin as f64 + 0.5) * width;
                let off = match x - x.clamp(low, high) {
                    0.0 => step * step / 12.0,
                    off => off * off,
                };
                sum + off * count as f64
            })
        };
        let shares = || (0..=STEPS).map(|i| 1.0 - 0.04 * i as f64);
        let (low, high) = (f64::from(self.low), f64::from(self.high));
        let mut best = (error(low, high), self.low, self.high);
        for down in shares() {
            for up in shares() {
                let found = error(low * down, high * up);
                if found < best.0 {
                    best = (found, (low * down) as f32, (high * up) as f32);
                }
            }
            if low == 0.0 {
                break;
            }
        }
        (best.1, best.2)
    }
}
