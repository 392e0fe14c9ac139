//! Operators that move values, or say something of shapes.

use super::constant::{Constant, Data, Kind};
use super::{Known, Lowering, Reader, Refusal, axes_of, axis_of, unsupported, wrong};
use crate::nd;
use crate::op::{Axis, Fill, LARGEST, MOST_AXES, Op};

type Made = Result<Vec<Known>, Refusal>;

impl Lowering<'_> {
    /// `None` when the operator is not one of these.
    pub(super) fn movement(&mut self, node: &Reader<'_>, op: &str) -> Option<Made> {
        Some(match op {
            "Identity" | "Dropout" => node.input(0).map(|x| vec![x]),
            "Constant" => self.constant(node),
            "ConstantOfShape" => self.constant_of_shape(node),
            "Range" => self.range(node),
            "Shape" => self.shape_of(node),
            "Size" => self.size_of(node),
            "Cast" => self.cast(node),
            "Concat" => self.concat(node),
            "Slice" => self.slice(node),
            "Split" => self.split(node),
            "Reshape" => self.reshape(node),
            "Flatten" => self.flatten(node),
            "Squeeze" => self.squeeze(node),
            "Unsqueeze" => self.unsqueeze(node),
            "Transpose" => self.transpose(node),
            "Gather" => self.gather(node),
            "Expand" => self.expand(node),
            "Tile" => self.tile(node),
            "Pad" => self.pad(node),
            "Resize" => self.resize(node),
            "Upsample" => self.upsample(node),
            "DepthToSpace" => self.depth_to_space(node),
            "SpaceToDepth" => self.space_to_depth(node),
            _ => return None,
        })
    }

    fn constant(&mut self, node: &Reader<'_>) -> Made {
        let onnx = node.node;
        let constant = if let Some(tensor) = onnx.tensor("value")? {
            match Constant::of(tensor) {
                Some(constant) => constant,
                None => return unsupported("whole numbers beyond 63 bits"),
            }
        } else if let Some(x) = onnx.float("value_float")? {
            Constant::floats(Vec::new(), vec![x])
        } else if let Some(x) = onnx.floats("value_floats")? {
            Constant::floats(vec![x.len()], x.to_vec())
        } else if let Some(x) = onnx.int("value_int")? {
            Constant::ints(Vec::new(), vec![x])
        } else if let Some(x) = onnx.ints("value_ints")? {
            Constant::ints(vec![x.len()], x.to_vec())
        } else {
            return unsupported("its value is no tensor and no number");
        };
        Ok(vec![Known::Constant(constant)])
    }

    fn constant_of_shape(&mut self, node: &Reader<'_>) -> Made {
        let shape = sizes(&required(node.constant_ints(0)?, "its shape")?)?;
        let count = counted(&shape)?;
        self.spend(count)?;
        let made = match node.node.tensor("value")? {
            None => Constant::floats(shape, vec![0.0; count]),
            Some(tensor) => match Constant::of(tensor).filter(|x| x.len() == 1) {
                Some(one) => match one.to_ints() {
                    Some(ints) => Constant::ints(shape, vec![ints[0]; count]),
                    None => Constant::floats(shape, vec![one.to_floats()[0]; count]),
                },
                None => return wrong("its value is not one number"),
            },
        };
        Ok(vec![Known::Constant(made)])
    }

    fn range(&mut self, node: &Reader<'_>) -> Made {
        let parts = [0, 1, 2].map(|i| node.constant(i));
        let [Ok(Some(start)), Ok(Some(end)), Ok(Some(step))] = parts else {
            return unsupported("bounds that depend on the network's inputs");
        };
        let whole = [&start, &end, &step].map(|x| x.to_ints());
        let made = match whole {
            [Some(start), Some(end), Some(step)] => {
                let (Some(&start), Some(&end), Some(&step)) =
                    (start.first(), end.first(), step.first())
                else {
                    return wrong("a bound is empty");
                };
                if step == 0 {
                    return wrong("its step is 0");
                }
                let count = (i128::from(end) - i128::from(start)).max(0) / i128::from(step).max(1);
                if count > LARGEST as i128 || step < 0 {
                    return unsupported("a range that is too long or goes backwards");
                }
                let all: Vec<i64> = (start..end).step_by(step as usize).collect();
                Constant::ints(vec![all.len()], all)
            }
            _ => {
                let (Some(start), Some(end), Some(step)) =
                    (start.single(), end.single(), step.single())
                else {
                    return wrong("a bound is not one number");
                };
                let count = ((end - start) / step).ceil();
                if !(0.0..=LARGEST as f32).contains(&count) {
                    return wrong("its bounds and step make no range");
                }
                let all: Vec<f32> = (0..count as usize)
                    .map(|i| start + i as f32 * step)
                    .collect();
                Constant::floats(vec![all.len()], all)
            }
        };
        Ok(vec![Known::Constant(made)])
    }

    fn shape_of(&mut self, node: &Reader<'_>) -> Made {
        let shape = self.shape(&node.input(0)?);
        let rank = shape.len() as i64;
        let bound = |at: i64| {
            let from_start = if at < 0 { at.saturating_add(rank) } else { at };
            from_start.clamp(0, rank) as usize
        };
        let (start, end) = (
            bound(node.int("start", 0)?),
            bound(node.int("end", i64::MAX)?),
        );
        let part = shape.get(start..end).unwrap_or(&[]);
        let sizes: Vec<i64> = part.iter().map(|&x| x as i64).collect();
        Ok(vec![Known::Constant(Constant::ints(
            vec![sizes.len()],
            sizes,
        ))])
    }

    fn size_of(&mut self, node: &Reader<'_>) -> Made {
        let count = nd::count(&self.shape(&node.input(0)?)).unwrap_or(0);
        Ok(vec![Known::Constant(Constant::ints(
            Vec::new(),
            vec![count as i64],
        ))])
    }

    /// Between types of real numbers nothing changes; whole numbers of values do not occur here.
    fn cast(&mut self, node: &Reader<'_>) -> Made {
        const FLOATS: [i64; 4] = [1, 10, 11, 16];
        let to = node.int("to", 0)?;
        let x = node.input(0)?;
        let real = FLOATS.contains(&to);
        let made = match &x {
            Known::Value(_) if real => x,
            Known::Value(_) => return unsupported("a cast of values to whole numbers"),
            Known::Constant(constant) => Known::Constant(match (&constant.data, real) {
                (Data::Float(_), true) => constant.clone(),
                (Data::Int(values, _), false) => {
                    let kind = match to {
                        2 => Kind::U8,
                        3 => Kind::I8,
                        _ => Kind::Other,
                    };
                    let values = match to {
                        9 => values.iter().map(|&x| i64::from(x != 0)).collect(),
                        _ => values.clone(),
                    };
                    Constant {
                        shape: constant.shape.clone(),
                        data: Data::Int(values, kind),
                        grid: None,
                    }
                }
                (Data::Int(..), true) => {
                    Constant::floats(constant.shape.clone(), constant.to_floats().to_vec())
                }
                (Data::Float(values), false) => {
                    let whole = values.iter().map(|&x| match to {
                        9 => i64::from(x != 0.0),
                        _ => x as i64,
                    });
                    Constant::ints(constant.shape.clone(), whole.collect())
                }
            }),
            Known::Missing => return Err(Refusal::Missing),
        };
        Ok(vec![made])
    }

    fn concat(&mut self, node: &Reader<'_>) -> Made {
        let mut inputs = Vec::new();
        for i in 0..node.inputs() {
            inputs.push(node.input(i)?);
        }
        if inputs.is_empty() {
            return wrong("it has no inputs");
        }
        let axis = axis_of(node.int("axis", 0)?, self.shape(&inputs[0]).len())?;
        Ok(vec![self.apply(node, Op::Concat(axis), &inputs)?])
    }

    fn slice(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let shape = self.shape(&x);
        let starts = required(node.ints_of("starts", 1)?, "its starts")?;
        let ends = required(node.ints_of("ends", 2)?, "its ends")?;
        let axes = match node.ints_of("axes", 3)? {
            Some(axes) => axes,
            None => (0..starts.len() as i64).collect(),
        };
        let steps = node
            .constant_ints(4)?
            .unwrap_or_else(|| vec![1; starts.len()]);
        if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
            return wrong("starts, ends, axes and steps are not as many");
        }
        let mut start = vec![0; shape.len()];
        let mut step = vec![1isize; shape.len()];
        let mut size = shape.clone();
        for i in 0..starts.len() {
            let axis = axis_of(axes[i], shape.len())?;
            let n = shape[axis] as i64;
            let place = |at: i64| if at < 0 { at.saturating_add(n) } else { at };
            let by = steps[i];
            // Where it begins, and one beyond where it ends, as numpy cuts them.
            let (from, to) = match by {
                0 => return wrong("a step is 0"),
                1.. => (place(starts[i]).clamp(0, n), place(ends[i]).clamp(0, n)),
                _ => (
                    place(starts[i]).clamp(-1, n - 1),
                    place(ends[i]).clamp(-1, n - 1),
                ),
            };
            let span = if by > 0 { to - from } else { from - to };
            let count = span.max(0).unsigned_abs().div_ceil(by.unsigned_abs());
            size[axis] = count as usize;
            start[axis] = if count == 0 { 0 } else { from as usize };
            step[axis] = by.clamp(-(n.max(1)), n.max(1)) as isize;
        }
        let op = Op::Slice { start, step, size };
        Ok(vec![self.apply(node, op, &[x])?])
    }

    fn split(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let shape = self.shape(&x);
        let axis = axis_of(node.int("axis", 0)?, shape.len())?;
        let parts = node.node.outputs.len();
        let sizes = match node.ints_of("split", 1)? {
            Some(split) => sizes(&split)?,
            None => {
                let each = shape[axis].div_ceil(parts.max(1));
                let part = |i: usize| each.min(shape[axis].saturating_sub(i * each));
                (0..parts).map(part).collect()
            }
        };
        if sizes.len() != parts
            || sizes.iter().try_fold(0usize, |a, &b| a.checked_add(b)) != Some(shape[axis])
        {
            return wrong(format!("{sizes:?} are not parts of {}", shape[axis]));
        }
        let mut made = Vec::with_capacity(parts);
        let mut at = 0;
        for part in sizes {
            let mut start = vec![0; shape.len()];
            let mut size = shape.clone();
            start[axis] = if part == 0 { 0 } else { at };
            size[axis] = part;
            at += part;
            let step = vec![1; shape.len()];
            let op = Op::Slice { start, step, size };
            made.push(self.apply(node, op, std::slice::from_ref(&x))?);
        }
        Ok(made)
    }

    fn reshape(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let shape = self.shape(&x);
        let wanted = required(node.ints_of("shape", 1)?, "its shape")?;
        let zero = node.int("allowzero", 0)? != 0;
        let mut to = Vec::with_capacity(wanted.len());
        let mut open = None;
        for (i, &size) in wanted.iter().enumerate() {
            to.push(match size {
                -1 if open.replace(i).is_none() => 1,
                0 if !zero => match shape.get(i) {
                    Some(&size) => size,
                    None => return wrong("a size of 0 copies one that is not there"),
                },
                0.. => size as usize,
                _ => return wrong(format!("{wanted:?} is no shape")),
            });
        }
        if let Some(open) = open {
            let (all, known) = (nd::count(&shape), nd::count(&to));
            to[open] = match (all, known) {
                (Some(all), Some(known)) if known > 0 && all % known == 0 => all / known,
                _ => return wrong(format!("{shape:?} does not become {wanted:?}")),
            };
        }
        Ok(vec![self.apply(node, Op::Reshape(to), &[x])?])
    }

    fn flatten(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let shape = self.shape(&x);
        let axis = match node.int("axis", 1)? {
            axis if axis == shape.len() as i64 => shape.len(),
            axis => axis_of(axis, shape.len())?,
        };
        let to = vec![
            shape[..axis].iter().product(),
            shape[axis..].iter().product(),
        ];
        Ok(vec![self.apply(node, Op::Reshape(to), &[x])?])
    }

    fn squeeze(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let shape = self.shape(&x);
        let axes = match node.ints_of("axes", 1)? {
            Some(axes) => axes_of(&axes, shape.len())?,
            None => (0..shape.len()).filter(|&i| shape[i] == 1).collect(),
        };
        if axes.iter().any(|&i| shape[i] != 1) {
            return wrong(format!("{shape:?} has sizes other than 1 along {axes:?}"));
        }
        let left = (0..shape.len()).filter(|i| !axes.contains(i));
        let to = left.map(|i| shape[i]).collect();
        Ok(vec![self.apply(node, Op::Reshape(to), &[x])?])
    }

    fn unsqueeze(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let mut rest = self.shape(&x).into_iter();
        let axes = required(node.ints_of("axes", 1)?, "its axes")?;
        let rank = rest.len() + axes.len();
        if rank > MOST_AXES {
            return wrong(format!("{rank} axes are more than {MOST_AXES}"));
        }
        let axes = axes_of(&axes, rank)?;
        let to = (0..rank).map(|i| match axes.contains(&i) {
            true => 1,
            false => rest.next().unwrap_or(1),
        });
        let op = Op::Reshape(to.collect());
        Ok(vec![self.apply(node, op, &[x])?])
    }

    fn transpose(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let rank = self.shape(&x).len();
        let perm = match node.ints("perm")? {
            Some(perm) => perm
                .iter()
                .map(|&i| axis_of(i, rank))
                .collect::<Result<_, _>>()?,
            None => (0..rank).rev().collect(),
        };
        Ok(vec![self.apply(node, Op::Transpose(perm), &[x])?])
    }

    fn gather(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let shape = self.shape(&x);
        let axis = axis_of(node.int("axis", 0)?, shape.len())?;
        let chosen = required(node.constant_ints(1)?, "its indices")?;
        let indices: Vec<usize> = chosen
            .iter()
            .map(|&i| axis_of(i, shape[axis]))
            .collect::<Result<_, _>>()?;
        let op = Op::Gather {
            axis,
            indices: indices.into(),
            shape: self.shape(&node.input(1)?),
        };
        Ok(vec![self.apply(node, op, &[x])?])
    }

    fn expand(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let to = sizes(&required(node.constant_ints(1)?, "its shape")?)?;
        let Some(to) = nd::broadcast(&self.shape(&x), &to) else {
            return wrong("sizes do not broadcast");
        };
        Ok(vec![self.apply(node, Op::Expand(to), &[x])?])
    }

    fn tile(&mut self, node: &Reader<'_>) -> Made {
        let mut x = node.input(0)?;
        let repeats = sizes(&required(node.constant_ints(1)?, "its repeats")?)?;
        if repeats.len() != self.shape(&x).len() {
            return wrong("its repeats are not for each axis");
        }
        for (axis, &times) in repeats.iter().enumerate() {
            match times {
                1 => {}
                2..=4096 => {
                    let copies = vec![x; times];
                    x = self.apply(node, Op::Concat(axis), &copies)?;
                }
                _ => return unsupported(format!("{times} repeats")),
            }
        }
        Ok(vec![x])
    }

    fn pad(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let rank = self.shape(&x).len();
        let fill = match node.string("mode", "constant")?.as_str() {
            "constant" => Fill::Constant(match node.constant(2)? {
                Some(value) => match value.single() {
                    Some(value) => value,
                    None => return wrong("what it fills with is not one number"),
                },
                None => node.float("value", 0.0)?,
            }),
            "edge" => Fill::Edge,
            "reflect" => Fill::Reflect,
            mode => return unsupported(format!("mode {mode:?}")),
        };
        let pads = required(node.ints_of("pads", 1)?, "its pads")?;
        let axes = match node.constant_ints(3)? {
            Some(axes) => axes
                .iter()
                .map(|&i| axis_of(i, rank))
                .collect::<Result<_, _>>()?,
            None => (0..rank).collect::<Vec<_>>(),
        };
        if pads.iter().any(|&x| x < 0) {
            return unsupported("negative pads");
        }
        let pads = sizes(&pads)?;
        if pads.len() != 2 * axes.len() {
            return wrong(format!("{pads:?} are not pads of {} axes", axes.len()));
        }
        let (mut before, mut after) = (vec![0; rank], vec![0; rank]);
        for (i, &axis) in axes.iter().enumerate() {
            before[axis] = pads[i];
            after[axis] = pads[i + axes.len()];
        }
        let op = Op::Pad {
            before,
            after,
            fill,
        };
        Ok(vec![self.apply(node, op, &[x])?])
    }

    fn upsample(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let scales = match node.node.floats("scales")? {
            Some(scales) => scales.to_vec(),
            None => match node.constant(1)? {
                Some(scales) => scales.to_floats().to_vec(),
                None => return wrong("its scales are missing"),
            },
        };
        let how = Resizing {
            mode: node.string("mode", "nearest")?,
            coordinates: "asymmetric".to_owned(),
            nearest: "floor".to_owned(),
        };
        self.resized(node, x, None, Some(scales), how)
    }

    fn resize(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let old = self.opset < 11;
        let (scales, sizes_at) = if old { (1, usize::MAX) } else { (2, 3) };
        let given = |constant: Option<Constant>| constant.filter(|x| x.len() > 0);
        let scales = given(node.constant(scales)?).map(|x| x.to_floats().to_vec());
        let to = given(node.constant(sizes_at)?).and_then(|x| x.to_ints());
        if node.int("antialias", 0)? != 0 {
            return unsupported("antialias");
        }
        if node.ints("axes")?.is_some() {
            return unsupported("axes");
        }
        if node.string("keep_aspect_ratio_policy", "stretch")? != "stretch" {
            return unsupported("keep_aspect_ratio_policy");
        }
        let default = if old { "asymmetric" } else { "half_pixel" };
        let nearest = if old { "floor" } else { "round_prefer_floor" };
        let how = Resizing {
            mode: node.string("mode", "nearest")?,
            coordinates: node.string("coordinate_transformation_mode", default)?,
            nearest: node.string("nearest_mode", nearest)?,
        };
        self.resized(node, x, to, scales, how)
    }

    fn resized(
        &mut self,
        node: &Reader<'_>,
        x: Known,
        to: Option<Vec<i64>>,
        scales: Option<Vec<f32>>,
        how: Resizing,
    ) -> Made {
        let shape = self.shape(&x);
        let &[n, c, h, w] = &shape[..] else {
            return unsupported("only pictures [n, channels, height, width] are resized");
        };
        let (to, scales) = match (to, scales) {
            (Some(to), _) => {
                let to = sizes(&to)?;
                if to.len() != 4 || to[..2] != [n, c] {
                    return unsupported(format!("{shape:?} to {to:?}"));
                }
                let scale = |i: usize| to[i] as f32 / shape[i] as f32;
                ([to[2], to[3]], [scale(2), scale(3)])
            }
            (None, Some(scales)) => {
                let &[1.0, 1.0, down, along] = &scales[..] else {
                    return unsupported(format!("scales {scales:?}"));
                };
                let size = |n: usize, scale: f32| (n as f64 * f64::from(scale)).floor() as usize;
                ([size(h, down), size(w, along)], [down, along])
            }
            _ => return wrong("it has neither scales nor sizes"),
        };
        if to.iter().any(|&x| x == 0 || x > LARGEST) || h == 0 || w == 0 {
            return wrong(format!("{shape:?} to {to:?}"));
        }
        counted(&[n, c, to[0], to[1]])?;
        let rows = how.axis(h, to[0], scales[0])?;
        let columns = how.axis(w, to[1], scales[1])?;
        Ok(vec![self.apply(
            node,
            Op::Resize { rows, columns },
            &[x],
        )?])
    }

    fn depth_to_space(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let shape = self.shape(&x);
        let b = usize::try_from(node.int("blocksize", 0)?).unwrap_or(0);
        let &[n, c, h, w] = &shape[..] else {
            return wrong("it works on pictures");
        };
        if b == 0 || b > 256 || c % (b * b) != 0 {
            return wrong(format!("{c} channels are no blocks of {b} × {b}"));
        }
        let d = c / (b * b);
        let (split, perm) = match node.string("mode", "DCR")?.as_str() {
            "DCR" => (vec![n, b, b, d, h, w], vec![0, 3, 4, 1, 5, 2]),
            _ => (vec![n, d, b, b, h, w], vec![0, 1, 4, 2, 5, 3]),
        };
        let x = self.apply(node, Op::Reshape(split), &[x])?;
        let x = self.apply(node, Op::Transpose(perm), &[x])?;
        Ok(vec![self.apply(
            node,
            Op::Reshape(vec![n, d, h * b, w * b]),
            &[x],
        )?])
    }

    fn space_to_depth(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let shape = self.shape(&x);
        let b = usize::try_from(node.int("blocksize", 0)?).unwrap_or(0);
        let &[n, c, h, w] = &shape[..] else {
            return wrong("it works on pictures");
        };
        if b == 0 || b > 256 || h % b != 0 || w % b != 0 {
            return wrong(format!("{h} × {w} pixels are no blocks of {b} × {b}"));
        }
        let x = self.apply(node, Op::Reshape(vec![n, c, h / b, b, w / b, b]), &[x])?;
        let x = self.apply(node, Op::Transpose(vec![0, 3, 5, 1, 2, 4]), &[x])?;
        let to = vec![n, c * b * b, h / b, w / b];
        Ok(vec![self.apply(node, Op::Reshape(to), &[x])?])
    }
}

/// How a picture is resized, in the words of the specification.
struct Resizing {
    mode: String,
    coordinates: String,
    nearest: String,
}

impl Resizing {
    /// Which inputs each output along an axis is made of.
    fn axis(&self, from: usize, to: usize, scale: f32) -> Result<Axis, Refusal> {
        let linear = match self.mode.as_str() {
            "nearest" => false,
            "linear" | "bilinear" => true,
            mode => return unsupported(format!("mode {mode:?}")),
        };
        let last = from - 1;
        let mut taps = Vec::with_capacity(to);
        for i in 0..to {
            let x = i as f32;
            let at = match self.coordinates.as_str() {
                "half_pixel" => (x + 0.5) / scale - 0.5,
                "pytorch_half_pixel" if to > 1 => (x + 0.5) / scale - 0.5,
                "pytorch_half_pixel" => 0.0,
                "align_corners" if to > 1 => x * last as f32 / (to - 1) as f32,
                "align_corners" => 0.0,
                "asymmetric" => x / scale,
                mode => return unsupported(format!("coordinates {mode:?}")),
            };
            taps.push(match linear {
                true => {
                    let at = at.clamp(0.0, last as f32);
                    let low = (at.floor() as usize).min(last);
                    (low as u32, (low + 1).min(last) as u32, at - low as f32)
                }
                false => {
                    let nearest = match self.nearest.as_str() {
                        "floor" => at.floor(),
                        "ceil" => at.ceil(),
                        "round_prefer_floor" => (at - 0.5).ceil(),
                        "round_prefer_ceil" => (at + 0.5).floor(),
                        mode => return unsupported(format!("nearest_mode {mode:?}")),
                    };
                    let nearest = nearest.clamp(0.0, last as f32) as u32;
                    (nearest, nearest, 0.0)
                }
            });
        }
        Ok(Axis { taps: taps.into() })
    }
}

fn required<T>(given: Option<T>, what: &str) -> Result<T, Refusal> {
    match given {
        Some(given) => Ok(given),
        None => wrong(format!("{what} are missing")),
    }
}

fn sizes(ints: &[i64]) -> Result<Vec<usize>, Refusal> {
    let all: Option<Vec<usize>> = ints.iter().map(|&x| usize::try_from(x).ok()).collect();
    match all {
        Some(all) => Ok(all),
        None => wrong(format!("{ints:?} are not sizes")),
    }
}

fn counted(shape: &[usize]) -> Result<usize, Refusal> {
    match nd::count(shape) {
        Some(count) if count <= LARGEST && shape.len() <= MOST_AXES => Ok(count),
        _ => wrong(format!("{shape:?} is more than 4 GiB")),
    }
}
