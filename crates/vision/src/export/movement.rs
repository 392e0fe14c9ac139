//! Operations that move values, and resizing.

use sedge_formats::onnx::{self, Attribute, Dim, ElementType, Tensor, TensorData};

use super::{Exporter, Made, OPSET, int, signed};
use crate::graph::Node;
use crate::lower::{Sizes, lower};
use crate::op::{Axis, Fill, Op};

impl Exporter<'_> {
    pub(super) fn movement(
        &mut self,
        node: &Node,
        op: &Op,
        mut reads: Vec<String>,
        to: String,
    ) -> Made<()> {
        let shape = self.graph.shape(node.inputs[0]);
        match op {
            Op::Concat(axis) => self.emit("Concat", reads, to, vec![("axis", int(*axis))]),
            Op::Slice { start, step, size } => {
                let end = |i: usize| {
                    let last = size[i]
                        .checked_sub(1)
                        .map_or(0, |n| n as i64 * step[i] as i64);
                    match (size[i], step[i] > 0) {
                        (0, _) => start[i] as i64,
                        (_, true) => start[i] as i64 + last + 1,
                        // One before the first is written as it is counted from the end.
                        (_, false) => match start[i] as i64 + last - 1 {
                            -1 => -1 - shape[i] as i64,
                            end => end,
                        },
                    }
                };
                let ends = (0..shape.len()).map(end).collect();
                let axes = (0..shape.len() as i64).collect();
                let steps = step.iter().map(|&x| x as i64).collect();
                reads.push(self.ints(&format!("{to}/starts"), signed(start)));
                reads.push(self.ints(&format!("{to}/ends"), ends));
                reads.push(self.ints(&format!("{to}/axes"), axes));
                reads.push(self.ints(&format!("{to}/steps"), steps));
                self.emit("Slice", reads, to, vec![]);
            }
            Op::Reshape(shape) => {
                reads.push(self.ints(&format!("{to}/shape"), signed(shape)));
                let zeros = ("allowzero", int(usize::from(shape.contains(&0))));
                self.emit("Reshape", reads, to, vec![zeros]);
            }
            Op::Transpose(perm) => {
                let perm = vec![("perm", Attribute::Ints(signed(perm)))];
                self.emit("Transpose", reads, to, perm);
            }
            Op::Pad {
                before,
                after,
                fill,
            } => {
                let pads = [&before[..], &after[..]].concat();
                reads.push(self.ints(&format!("{to}/pads"), signed(&pads)));
                let mode = match fill {
                    Fill::Constant(value) => {
                        reads.push(self.floats(&format!("{to}/value"), &[], &[*value]));
                        "constant"
                    }
                    Fill::Edge => "edge",
                    Fill::Reflect => "reflect",
                };
                let mode = vec![("mode", Attribute::String(mode.to_owned()))];
                self.emit("Pad", reads, to, mode);
            }
            Op::Gather {
                axis,
                indices,
                shape,
            } => {
                let indices = TensorData::I64(signed(indices));
                reads.push(self.tensor(&format!("{to}/indices"), shape, indices));
                self.emit("Gather", reads, to, vec![("axis", int(*axis))]);
            }
            Op::Expand(shape) => {
                reads.push(self.ints(&format!("{to}/shape"), signed(shape)));
                self.emit("Expand", reads, to, vec![]);
            }
            Op::Resize { .. } => {
                let attributes = mode(op, shape).ok_or("its taps are those of no mode")?;
                let sizes = signed(self.graph.shape(node.output));
                reads.extend([String::new(), String::new()]);
                reads.push(self.ints(&format!("{to}/sizes"), sizes));
                self.emit("Resize", reads, to, attributes);
            }
            // All others compute, and are written elsewhere.
            _ => return Err("it is no movement of values"),
        }
        Ok(())
    }
}

/// How a resized picture's taps are said in words: of all ways, one that is read as these taps.
fn mode(op: &Op, shape: &[usize]) -> Option<Vec<(&'static str, Attribute)>> {
    let Op::Resize { rows, columns } = op else {
        return None;
    };
    const COORDINATES: [&str; 4] = [
        "half_pixel",
        "align_corners",
        "asymmetric",
        "pytorch_half_pixel",
    ];
    const NEAREST: [&str; 4] = ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"];
    let linear = COORDINATES.map(|c| ("linear", c, "floor"));
    let nearest = NEAREST.map(|n| COORDINATES.map(|c| ("nearest", c, n)));
    // Exporters write doubling as asymmetric and floor, which programs have fast ways for.
    let plain = ("nearest", "asymmetric", "floor");
    let ways = [plain].into_iter().chain(linear);
    let mut ways = ways.chain(nearest.into_iter().flatten());
    ways.find_map(|(mode, coordinates, nearest)| {
        let text = |x: &str| Attribute::String(x.to_owned());
        let attributes = vec![
            ("mode", text(mode)),
            ("coordinate_transformation_mode", text(coordinates)),
            ("nearest_mode", text(nearest)),
        ];
        let to = [rows.taps.len(), columns.taps.len()];
        let (r, c) = read(shape, to, &attributes)?;
        (alike(&r, rows) && alike(&c, columns)).then_some(attributes)
    })
}

/// What a resizing with these attributes is read as.
fn read(
    shape: &[usize],
    [rows, columns]: [usize; 2],
    attributes: &[(&str, Attribute)],
) -> Option<(Axis, Axis)> {
    // One channel of one picture: the others are alike.
    let sizes = vec![1, 1, rows as i64, columns as i64];
    let value = |name: &str, shape: &[usize]| onnx::ValueInfo {
        name: name.to_owned(),
        element: ElementType::F32,
        shape: Some(shape.iter().map(|&x| Dim::Fixed(x)).collect()),
    };
    let attributes = attributes.iter();
    let node = onnx::Node {
        name: "resize".to_owned(),
        op: "Resize".to_owned(),
        domain: String::new(),
        inputs: ["x", "", "", "sizes"].map(str::to_owned).to_vec(),
        outputs: vec!["y".to_owned()],
        attributes: attributes
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect(),
    };
    let model = onnx::Model {
        ir_version: 8,
        opset: OPSET,
        domains: Vec::new(),
        producer: String::new(),
        metadata: Vec::new(),
        graph: onnx::Graph {
            name: String::new(),
            nodes: vec![node],
            initializers: vec![Tensor {
                name: "sizes".to_owned(),
                shape: vec![4],
                data: TensorData::I64(sizes),
            }],
            inputs: vec![value("x", &[1, 1, shape[2], shape[3]])],
            outputs: vec![value("y", &[1, 1, rows, columns])],
        },
    };
    let graph = lower(&model, Sizes::default()).ok()?;
    match &graph.nodes().first()?.op {
        Op::Resize { rows, columns } => Some((rows.clone(), columns.clone())),
        _ => None,
    }
}

/// Whether taps mix the same values in the same shares.
fn alike(a: &Axis, b: &Axis) -> bool {
    const NEAR: f32 = 1e-4;
    // A share of nothing or all is a single tap.
    let plain = |(first, second, share): (u32, u32, f32)| match share {
        share if share < NEAR || first == second => (first, first, 0.0),
        share if share > 1.0 - NEAR => (second, second, 0.0),
        share => (first, second, share),
    };
    let near = |a: (u32, u32, f32), b: (u32, u32, f32)| {
        let (a, b) = (plain(a), plain(b));
        (a.0, a.1) == (b.0, b.1) && (a.2 - b.2).abs() < NEAR
    };
    a.taps.len() == b.taps.len() && a.taps.iter().zip(&*b.taps).all(|(&a, &b)| near(a, b))
}
