//! Slices, joins and turns that exporters write where kernels could read as it lies.

use super::{Change, Made, View};
use crate::graph::Node;
use crate::op::{Conv, Op, Weights};

/// A slice of a slice is a slice.
pub(super) fn slices(view: &View<'_>, node: &Node) -> Option<Change> {
    let Op::Slice { start, step, size } = &node.op else {
        return None;
    };
    let before = view.own(node.inputs[0])?;
    let Op::Slice {
        start: first,
        step: each,
        ..
    } = &before.op
    else {
        return None;
    };
    let at = |i: usize| first[i] as isize + start[i] as isize * each[i];
    let op = Op::Slice {
        start: (0..start.len()).map(|i| at(i).max(0) as usize).collect(),
        step: (0..step.len()).map(|i| step[i] * each[i]).collect(),
        size: size.clone(),
    };
    Some(Change::Node(op, before.inputs.clone()))
}

/// A convolution of every second pixel in four ways, joined as channels ("focus"), is one of
/// twice the size that goes two pixels at a time.
pub(super) fn focus(view: &View<'_>, node: &Node) -> Option<Change> {
    let Op::Conv(conv) = &node.op else {
        return None;
    };
    let Weights::Float(weights) = &conv.weights else {
        return None;
    };
    let window = conv.window;
    if conv.groups != 1 || window.stride != [1, 1] || window.dilation != [1, 1] {
        return None;
    }
    let joined = view.own(node.inputs[0])?;
    if joined.op != Op::Concat(1) || joined.inputs.len() != 4 {
        return None;
    }
    let mut source = None;
    // Which pixel of each four the channels of each part are.
    let mut places = Vec::with_capacity(4);
    for &part in &joined.inputs {
        let slice = view.own(part)?;
        let Op::Slice { start, step, size } = &slice.op else {
            return None;
        };
        let x = view.shape(slice.inputs[0]);
        let &[0, 0, down, along] = &start[..] else {
            return None;
        };
        let every_second = step[..] == [1, 1, 2, 2]
            && x.len() == 4
            && size[..2] == x[..2]
            && [2 * size[2], 2 * size[3]] == x[2..]
            && *source.get_or_insert(slice.inputs[0]) == slice.inputs[0];
        if !every_second {
            return None;
        }
        places.push((down, along));
    }
    let source = source?;
    let mut sorted = places.clone();
    sorted.sort_unstable();
    if sorted[..] != [(0, 0), (0, 1), (1, 0), (1, 1)] {
        return None;
    }
    let inputs = conv.inputs / 4;
    let [kh, kw] = window.kernel;
    let mut wide = vec![0.0; weights.len()];
    for output in 0..conv.outputs {
        for (part, &(down, along)) in places.iter().enumerate() {
            for channel in 0..inputs {
                for tap in 0..kh * kw {
                    let from = ((output * 4 + part) * inputs + channel) * kh * kw + tap;
                    let row = 2 * (tap / kw) + down;
                    let column = 2 * (tap % kw) + along;
                    let to = ((output * inputs + channel) * 2 * kh + row) * 2 * kw + column;
                    wide[to] = weights[from];
                }
            }
        }
    }
    let mut conv = Conv {
        weights: Weights::Float(wide.into()),
        inputs,
        ..conv.clone()
    };
    conv.window.kernel = [2 * kh, 2 * kw];
    conv.window.stride = [2, 2];
    conv.window.pads = window.pads.map(|pad| 2 * pad);
    let mut reads = node.inputs.clone();
    reads[0] = source;
    Some(Change::Node(Op::Conv(conv), reads))
}

/// Channels of pictures made the last axis: kernels have them there.
pub(super) fn turned(view: &View<'_>, node: &Node) -> Option<Change> {
    let Op::Transpose(perm) = &node.op else {
        return None;
    };
    if perm[..] != [0, 2, 1] {
        return None;
    }
    let flat = |value| {
        let reshape = view.own(value)?;
        let picture = view.shape(reshape.inputs[0]);
        let &[n, c, h, w] = picture else {
            return None;
        };
        let fits = matches!(reshape.op, Op::Reshape(_)) && view.shape(value) == [n, c, h * w];
        fits.then_some((reshape.inputs[0], [n, h * w, c]))
    };
    let x = node.inputs[0];
    let pictures: Vec<_> = match view.own(x) {
        Some(join) if join.op == Op::Concat(2) => join
            .inputs
            .iter()
            .map(|&part| flat(part))
            .collect::<Option<_>>()?,
        _ => vec![flat(x)?],
    };
    let mut made = Vec::new();
    let mut parts = Vec::new();
    for (picture, shape) in pictures {
        made.push((Op::Transpose(vec![0, 2, 3, 1]), vec![Made::There(picture)]));
        made.push((Op::Reshape(shape.to_vec()), vec![Made::New(made.len() - 1)]));
        parts.push(Made::New(made.len() - 1));
    }
    if parts.len() > 1 {
        made.push((Op::Concat(1), parts));
    }
    Some(Change::Nodes(made))
}
