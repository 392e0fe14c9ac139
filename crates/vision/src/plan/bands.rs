//! Which nodes run in bands of rows, and how a picture is cut into them.

use std::ops::Range;
use std::sync::Mutex;

use sedge_conv::{self as conv, Aligned, Shape, Window};

use super::{Planner, conv_shape, pack_as};
use crate::graph::{Graph, Value};
use crate::kernel::{Bands, FloatKernel, Form, Kernel, Memory, Move, Stage, Work, as_picture};
use crate::op::{Conv, Op, Weights};
use crate::program::ProgramError;

/// Weights of a chain: each band reads them all again, so they stay in the second cache.
const WEIGHTS: u64 = 64 << 10;
/// Weights that are not repeated for other paddings.
const FEW_WEIGHTS: usize = 16 << 10;

/// Nodes of a graph that run as one, by the first of them.
pub(super) type Chains = Vec<Option<Vec<usize>>>;

/// Finds chains: each node reads what the one before it makes, and nothing else does.
pub(super) fn find(graph: &Graph, worth: usize) -> Chains {
    let readers = graph.readers();
    let nodes = graph.nodes();
    let mut chains: Chains = vec![None; nodes.len()];
    let mut taken = vec![false; nodes.len()];
    for first in 0..nodes.len() {
        if taken[first] || !fits(graph, first) {
            continue;
        }
        let mut chain = vec![first];
        let mut weights = nodes[first].op.weights();
        loop {
            let last = chain[chain.len() - 1];
            let value = nodes[last].output;
            let &[next] = &readers[value.index()][..] else {
                break;
            };
            let bytes = 4 * as_picture(graph.shape(value)).values();
            let inner = bytes >= worth
                && !graph.outputs().contains(&value)
                && nodes[next].inputs[0] == value
                && nodes[next].inputs[1..].iter().all(|&side| side != value)
                && fits(graph, next)
                // What is added or multiplied with is there before the chain begins.
                && nodes[next].inputs[1..].iter().all(|&side| is_before(graph, side, first));
            weights += nodes[next].op.weights();
            if !inner || weights > WEIGHTS {
                break;
            }
            chain.push(next);
        }
        if chain.len() > 1 {
            chain.iter().for_each(|&node| taken[node] = true);
            chains[first] = Some(chain);
        }
    }
    chains
}

/// Whether a value is there when this node runs.
fn is_before(graph: &Graph, value: Value, node: usize) -> bool {
    graph.nodes()[node..]
        .iter()
        .all(|later| later.output != value)
}

/// Whether a node's kernel can make some rows of its result.
fn fits(graph: &Graph, node: usize) -> bool {
    let node = &graph.nodes()[node];
    let real = |&x: &Value| graph.info(x).quant.is_none();
    let picture = matches!(graph.shape(node.output), &[1, c, h, w] if h > 1 && w > 1 && c > 1)
        && matches!(graph.shape(node.inputs[0]), &[1, c, h, w] if h > 1 && w > 1 && c > 1);
    let known = match &node.op {
        Op::Conv(conv) => {
            let window = conv.window;
            conv.is_pointwise()
                || (window.dilation == [1, 1]
                    && window.pads[0] < window.kernel[0]
                    && window.pads[2] < window.kernel[0]
                    && matches!(&conv.weights, Weights::Float(x) if x.len() <= FEW_WEIGHTS))
        }
        Op::Scale(_) => true,
        _ => false,
    };
    picture && known && real(&node.output) && node.inputs.iter().all(real)
}

/// Rows that a window needs of what it reads.
fn needed(window: Window, rows: &Range<usize>, h: usize) -> Range<usize> {
    let (stride, kernel, pad) = (window.stride[0], window.kernel[0], window.pads[0]);
    let start = (rows.start * stride).saturating_sub(pad);
    let end = ((rows.end - 1) * stride + kernel).saturating_sub(pad);
    start.min(h)..end.min(h)
}

impl Planner<'_> {
    /// Plans a chain as one step. `false` when it cannot be cut.
    pub(super) fn in_bands(&mut self, chain: &[usize]) -> Result<bool, ProgramError> {
        let graph = self.graph;
        let nodes: Vec<_> = chain.iter().map(|&i| &graph.nodes()[i]).collect();
        let input = self.shape(nodes[0].inputs[0]);
        let shapes: Vec<Shape> = nodes.iter().map(|node| self.shape(node.output)).collect();
        let windows: Vec<Window> = nodes
            .iter()
            .map(|node| match &node.op {
                Op::Conv(conv) => conv.window,
                _ => Window::pointwise(),
            })
            .collect();
        let h = shapes[shapes.len() - 1].h;
        let between: usize = shapes[..shapes.len() - 1]
            .iter()
            .map(|s| 4 * s.w * s.c)
            .sum();
        // Rows of the result in a band: each wants about as many of what is between.
        let scale = (shapes[0].h / h.max(1)).max(1);
        let band = (self.options.band / (between * scale).max(1)).clamp(2, h.max(2));
        let tasks = self.team.threads().min(h / 4).max(1);

        let mut forms: Vec<Vec<[usize; 2]>> = vec![Vec::new(); nodes.len()];
        let mut plans = Vec::new();
        let mut rooms = vec![0; nodes.len()];
        for task in 0..tasks {
            let own = h * task / tasks..h * (task + 1) / tasks;
            let mut moves = Vec::new();
            let mut have: Vec<Range<usize>> = vec![0..0; nodes.len()];
            let mut at = own.start;
            while at < own.end {
                // No last band of a single row.
                let left = own.end - at;
                let rows = at..at + if left < 2 * band { left } else { band };
                let first = moves.len();
                let mut todo = rows.clone();
                for stage in (0..nodes.len()).rev() {
                    let from_h = if stage == 0 {
                        input.h
                    } else {
                        shapes[stage - 1].h
                    };
                    let from = needed(windows[stage], &todo, from_h);
                    let pads = pads(windows[stage], &todo, from_h);
                    let form = match forms[stage].iter().position(|&known| known == pads) {
                        Some(form) => form,
                        None => {
                            forms[stage].push(pads);
                            forms[stage].len() - 1
                        }
                    };
                    moves.push(Move {
                        stage,
                        form,
                        from: from.clone(),
                        rows: todo.clone(),
                        at: 0,
                        keep: 0..0,
                    });
                    if stage > 0 {
                        // Rows that are there stay; only those after them are made.
                        todo = have[stage - 1].end.max(from.start).min(from.end)..from.end;
                        if todo.is_empty() {
                            break;
                        }
                    }
                }
                moves[first..].reverse();
                // Now that the order is known, where rows lie.
                for i in first..moves.len() {
                    let stage = moves[i].stage;
                    let rows = moves[i].rows.clone();
                    if stage > 0 {
                        let base = have[stage - 1].start;
                        let from = &mut moves[i].from;
                        *from = from.start - base..from.end - base;
                    }
                    if stage + 1 == nodes.len() {
                        moves[i].at = rows.start - own.start;
                        continue;
                    }
                    let wanted = moves[i + 1].from.clone();
                    let old = have[stage].clone();
                    let kept = wanted.start.max(old.start).min(old.end)..old.end;
                    moves[i].keep = kept.start - old.start..kept.end - old.start;
                    moves[i].at = kept.len();
                    have[stage] = rows.start - kept.len()..rows.end;
                    rooms[stage] = rooms[stage].max(have[stage].len());
                }
                at = rows.end;
            }
            plans.push((own, moves));
        }

        let mut reads = vec![self.want(nodes[0].inputs[0], Form::Pixels)];
        let mut stages = Vec::new();
        for (i, node) in nodes.iter().enumerate() {
            let side = match (&node.op, node.inputs.get(1)) {
                (Op::Scale(_), Some(&side)) => Some(self.want_whole(side, Form::Plain)),
                (_, Some(&side)) => Some(self.want(side, Form::Pixels)),
                _ => None,
            };
            let side = side.map(|place| {
                reads.push(place);
                reads.len() - 1
            });
            let work = match &node.op {
                Op::Conv(conv) => {
                    let packed = forms[i].iter().map(|&pads| with_pads(conv, pads));
                    let packed: Result<Vec<conv::Conv>, _> = packed.collect();
                    Work::Conv(packed.or_else(|error| self.refuse(error))?)
                }
                Op::Scale(activation) => Work::Scale(*activation),
                _ => return Ok(false),
            };
            stages.push(Stage {
                work,
                side,
                shape: shapes[i],
            });
        }
        let last = nodes[nodes.len() - 1];
        let write = self.target(last.output);
        if reads.iter().any(|place| place.buffer == write.buffer) {
            return Ok(false);
        }
        let scratch = scratch(&stages, &plans, input);
        let memory = || Memory {
            values: (0..nodes.len() - 1)
                .map(|i| Aligned::zeros(rooms[i] * shapes[i].w * shapes[i].c))
                .collect(),
            scratch: Aligned::zeros(scratch),
        };
        let memory = (0..tasks).map(|_| Mutex::new(memory())).collect();
        let bands = Bands {
            stages,
            tasks: plans,
            memory,
        };
        let kinds: Vec<&str> = nodes.iter().map(|node| node.op.kind()).collect();
        let kernel = Kernel::Float(FloatKernel::Bands(Box::new(bands)));
        self.step(kernel, &reads, write, &kinds.join(" + "));
        let macs = nodes.iter().map(|node| {
            node.op
                .macs(graph.shape(node.inputs[0]), graph.shape(node.output))
        });
        if let Some(name) = self.names.last_mut() {
            name.macs = macs.sum();
        }
        self.put(last.output, write);
        Ok(true)
    }
}

/// Rows of padding above and below, for these rows of the result.
fn pads(window: Window, rows: &Range<usize>, h: usize) -> [usize; 2] {
    let (stride, kernel, pad) = (window.stride[0], window.kernel[0], window.pads[0]);
    let above = pad.saturating_sub(rows.start * stride);
    let end = (rows.end - 1) * stride + kernel;
    [above, end.saturating_sub(pad + h)]
}

fn with_pads(conv: &Conv, [above, below]: [usize; 2]) -> Result<conv::Conv, conv::ConvError> {
    let mut shape = conv_shape(conv);
    shape.window.pads[0] = above;
    shape.window.pads[2] = below;
    pack_as(conv, shape)
}

/// The most scratch that a stage wants for a band.
fn scratch(stages: &[Stage], plans: &[(Range<usize>, Vec<Move>)], input: Shape) -> usize {
    let each = plans.iter().flat_map(|(_, moves)| moves).map(|step| {
        let whole = match step.stage {
            0 => input,
            stage => stages[stage - 1].shape,
        };
        let shape = Shape {
            h: step.from.len(),
            ..whole
        };
        match &stages[step.stage].work {
            Work::Conv(forms) => forms[step.form].scratch(shape, 1),
            Work::Scale(_) => 0,
        }
    });
    each.max().unwrap_or(0)
}
