//! From a graph to steps: which kernel for each node, in which form values lie, where, and which
//! of them share memory.

mod bands;
mod bytes;
mod floats;
mod layout;
mod planes;

use std::collections::HashMap;

use sedge_conv::{self as conv, ConvShape, Shape};
use sedge_kernels::Team;

use crate::graph::{Graph, Node, Value};
use crate::kernel::{
    Buffers, ByteKernel, FloatKernel, Form, Kernel, Place, PlaneKernel, as_picture, plane_stride,
};
use crate::op::{Binary, Op};
use crate::program::{Options, ProgramError, Sparsity, StepName};
use layout::Memory;

/// One kernel, what it reads and where it writes.
pub(crate) struct Step {
    pub(crate) kernel: Kernel,
    pub(crate) reads: Vec<Place>,
    pub(crate) write: Place,
}

impl Step {
    /// Sees pictures without gaps as one pixel a row: kernels that go value by value do so pixel
    /// by pixel, which takes long where pixels have few channels.
    fn in_rows(&mut self) {
        let all = || self.reads.iter().chain([&self.write]);
        if all().all(|place| place.is_whole() && place.shape == self.write.shape) {
            let Shape { n, h, w, c } = self.write.shape;
            let (w, c) = (h, w * c);
            let rows = Shape { n, h: 1, w, c };
            for place in self.reads.iter_mut().chain([&mut self.write]) {
                *place = place.seen_as(place.form, rows);
            }
        }
    }
}

/// A graph made ready.
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) names: Vec<StepName>,
    pub(crate) inputs: Vec<(Place, usize)>,
    pub(crate) outputs: Vec<(Place, Vec<usize>)>,
    pub(crate) buffers: Buffers,
}

/// A part of the channels of a joined value, to be written where it belongs.
#[derive(Clone, Copy)]
struct Part {
    whole: Value,
    channel: usize,
}

pub(crate) struct Planner<'a> {
    graph: &'a Graph,
    team: &'a Team,
    options: Options,
    /// Whether pictures are in planes wherever there is a kernel.
    planes: bool,
    steps: Vec<Step>,
    names: Vec<StepName>,
    memory: Memory,
    /// Where each value lies, in the forms in which it does.
    places: Vec<HashMap<Form, Place>>,
    /// Values that are made where a concatenation wants them.
    parts: HashMap<Value, Part>,
    /// The node that is being planned, for names and errors.
    node: usize,
}

impl<'a> Planner<'a> {
    pub(crate) fn plan(
        graph: &'a Graph,
        options: Options,
        team: &'a Team,
    ) -> Result<Plan, ProgramError> {
        let mut planner = Planner {
            graph,
            team,
            options,
            planes: false,
            steps: Vec::new(),
            names: Vec::new(),
            memory: Memory::default(),
            places: vec![HashMap::new(); graph.values()],
            parts: HashMap::new(),
            node: 0,
        };
        planner.planes = match options.sparse {
            Sparsity::Never => false,
            Sparsity::Always => true,
            Sparsity::Measured => planner.sparse_pays(),
        };
        let mut inputs = Vec::new();
        for &input in graph.inputs() {
            let place = planner.fresh(input, Form::Plain);
            inputs.push((place, graph.shape(input).iter().product()));
            planner.put(input, place);
            planner.round(input);
        }
        if !planner.planes {
            planner.find_parts();
        }
        let chains = match planner.planes {
            true => vec![None; graph.nodes().len()],
            false => bands::find(graph, options.cache),
        };
        let mut done = vec![false; graph.nodes().len()];
        for (i, node) in graph.nodes().iter().enumerate() {
            planner.node = i;
            if let Some(chain) = &chains[i]
                && planner.in_bands(chain)?
            {
                chain.iter().for_each(|&node| done[node] = true);
            }
            if !done[i] {
                planner.node(node)?;
                planner.round(node.output);
            }
        }
        let outputs: Vec<(Place, Vec<usize>)> = graph
            .outputs()
            .iter()
            .map(|&output| {
                let place = planner.want_whole(output, Form::Plain);
                planner.memory.keep(place);
                (place, graph.shape(output).to_vec())
            })
            .collect();
        let (steps, buffers) = (planner.steps, Buffers::default());
        let plan = Plan {
            steps,
            names: planner.names,
            inputs,
            outputs,
            buffers,
        };
        Ok(planner.memory.lay_out(plan, team.threads()))
    }

    /// Values that are joined along channels are made in their places, where each is joined once
    /// and is made by a kernel that writes pixels with any stride.
    fn find_parts(&mut self) {
        let graph = self.graph;
        let makers = graph.makers();
        for node in graph.nodes() {
            if node.op != Op::Concat(1) || graph.shape(node.output).len() != 4 {
                continue;
            }
            let mut channel = 0;
            for &input in &node.inputs {
                let made_there = makers[input.index()].is_some_and(|maker| {
                    let maker = &graph.nodes()[maker];
                    writes_strided(&maker.op)
                        // A kernel cannot write where it reads.
                        && !maker.inputs.iter().any(|x| self.within(*x, node.output))
                });
                let once = node.inputs.iter().filter(|&&x| x == input).count() == 1;
                let free = !self.parts.contains_key(&input)
                    && !graph.outputs().contains(&input)
                    && graph.info(input).quant.is_none()
                    && self.alike(input, Form::Pixels) == Form::Pixels;
                if made_there && once && free {
                    let whole = node.output;
                    self.parts.insert(input, Part { whole, channel });
                }
                channel += graph.shape(input)[1];
            }
        }
    }

    /// Whether a value is a part of another, or a part of a part.
    fn within(&self, value: Value, whole: Value) -> bool {
        let mut at = value;
        while let Some(part) = self.parts.get(&at) {
            if part.whole == whole {
                return true;
            }
            at = part.whole;
        }
        false
    }

    fn shape(&self, value: Value) -> Shape {
        as_picture(self.graph.shape(value))
    }

    fn is_picture(&self, value: Value) -> bool {
        self.graph.shape(value).len() == 4
    }

    /// New memory for a value in a form.
    fn fresh(&mut self, value: Value, form: Form) -> Place {
        let shape = self.shape(value);
        let (stride, count) = match form {
            Form::Planes => {
                let stride = plane_stride(shape.h, shape.w);
                (stride, stride * shape.c)
            }
            _ => (shape.c, shape.values()),
        };
        Place {
            buffer: self.memory.take(form, count, self.steps.len()),
            form,
            offset: 0,
            stride,
            shape,
        }
    }

    /// A value lies here, too.
    fn put(&mut self, value: Value, place: Place) {
        let form = self.alike(value, place.form);
        let place = Place { form, ..place };
        self.places[value.index()].insert(form, place);
    }

    fn has(&self, value: Value, form: Form) -> bool {
        self.places[value.index()].contains_key(&self.alike(value, form))
    }

    /// Where a node's result in pixels goes: new memory, or a part of a joined value.
    fn target(&mut self, value: Value) -> Place {
        let Some(&Part { whole, channel }) = self.parts.get(&value) else {
            return self.fresh(value, Form::Pixels);
        };
        // The joined value may itself be a part.
        let outer = match self.places[whole.index()].get(&Form::Pixels) {
            Some(&place) => place,
            None => {
                let place = self.target(whole);
                self.put(whole, place);
                place
            }
        };
        Place {
            offset: outer.offset + channel,
            shape: self.shape(value),
            ..outer
        }
    }

    /// The form that stands for this one, where memory would be the same.
    fn alike(&self, value: Value, form: Form) -> Form {
        let flat = match *self.graph.shape(value) {
            [_, c, h, w] => h * w == 1 || c == 1,
            _ => true,
        };
        match form {
            Form::Pixels if flat => Form::Plain,
            form => form,
        }
    }

    /// The value in this form, converted if it is only there in another.
    fn want(&mut self, value: Value, form: Form) -> Place {
        let form = self.alike(value, form);
        let there = |planner: &Self, form| planner.places[value.index()].get(&form).copied();
        if let Some(place) = there(self, form) {
            return place;
        }
        let quant = self.graph.info(value).quant;
        let pixels = there(self, self.alike(value, Form::Pixels));
        let [plain, planes, bytes] =
            [Form::Plain, Form::Planes, Form::Bytes].map(|form| there(self, form));
        let (from, kernel, kind) = match (form, plain, pixels, planes, bytes, quant) {
            (Form::Planes, Some(from), ..) if from.is_whole() => {
                (from, Kernel::Plane(PlaneKernel::FromPlain), "to planes")
            }
            (Form::Planes, _, Some(from), ..) => {
                (from, Kernel::Plane(PlaneKernel::FromPixels), "to planes")
            }
            (Form::Planes, ..) => {
                self.want(value, Form::Pixels);
                return self.want(value, Form::Planes);
            }
            (Form::Pixels, Some(from), ..) => {
                (from, Kernel::Float(FloatKernel::ToPixels), "to pixels")
            }
            (Form::Pixels, _, _, Some(from), ..) => {
                (from, Kernel::Plane(PlaneKernel::ToPixels), "to pixels")
            }
            (Form::Pixels | Form::Plain, _, None, _, Some(from), Some(quant))
                if form == self.alike(value, Form::Pixels) =>
            {
                (
                    from,
                    Kernel::Byte(ByteKernel::Dequantize(quant)),
                    "dequantize",
                )
            }
            (Form::Plain, _, _, Some(from), ..) => {
                (from, Kernel::Plane(PlaneKernel::ToPlain), "to rows")
            }
            (Form::Plain, _, Some(from), ..) => {
                (from, Kernel::Float(FloatKernel::ToPlain), "to rows")
            }
            (Form::Bytes, _, Some(from), _, _, Some(quant)) => {
                (from, Kernel::Byte(ByteKernel::Quantize(quant)), "quantize")
            }
            _ => {
                // By way of pixels, from which and to which all conversions are.
                self.want(value, Form::Pixels);
                return self.want(value, form);
            }
        };
        let to = self.fresh(value, form);
        self.step(kernel, &[from], to, kind);
        self.put(value, to);
        to
    }

    /// The value in a place without gaps.
    fn want_whole(&mut self, value: Value, form: Form) -> Place {
        let place = self.want(value, form);
        if place.is_whole() {
            return place;
        }
        let to = self.fresh(value, place.form);
        self.step(Kernel::Float(FloatKernel::Copy), &[place], to, "copy");
        to
    }

    fn step(&mut self, kernel: Kernel, reads: &[Place], write: Place, kind: &str) {
        for &place in reads.iter().chain([&write]) {
            self.memory.used(place, self.steps.len());
        }
        let node = self.graph.nodes().get(self.node);
        let Shape { n, h, w, c } = write.shape;
        self.names.push(StepName {
            node: node.map_or_else(String::new, |node| node.name.clone()),
            kind: kind.to_owned(),
            shape: vec![n, c, h, w],
            macs: match node {
                Some(node) if kind == node.op.kind() => {
                    let input = self.graph.shape(node.inputs[0]);
                    node.op.macs(input, self.graph.shape(node.output))
                }
                _ => 0,
            },
        });
        let mut step = Step {
            kernel,
            reads: reads.to_vec(),
            write,
        };
        if matches!(&step.kernel, Kernel::Byte(kernel) if kernel.is_each()) {
            step.in_rows();
        }
        self.steps.push(step);
    }

    /// The node's result is what a step makes of these places, in `write`.
    fn made(&mut self, node: &Node, kernel: Kernel, reads: &[Place], write: Place) {
        self.step(kernel, reads, write, node.op.kind());
        self.put(node.output, write);
    }

    fn refuse<T>(&self, why: impl ToString) -> Result<T, ProgramError> {
        Err(ProgramError {
            node: self.graph.nodes()[self.node].name.clone(),
            why: why.to_string(),
        })
    }

    fn node(&mut self, node: &Node) -> Result<(), ProgramError> {
        if self.in_bytes(node)? || self.in_planes(node)? {
            return Ok(());
        }
        self.in_floats(node)
    }

    /// A value of a grid is kept as what it is rounded to.
    fn round(&mut self, value: Value) {
        if self.graph.info(value).quant.is_none() || self.has(value, Form::Bytes) {
            return;
        }
        let place = self.want(value, Form::Bytes);
        self.places[value.index()].clear();
        self.put(value, place);
    }
}

/// Operations whose kernels write pixels with any stride.
fn writes_strided(op: &Op) -> bool {
    match op {
        Op::Conv(_)
        | Op::ConvTranspose(_)
        | Op::Pool(..)
        | Op::Scale(_)
        | Op::Affine { .. }
        | Op::Activation(_)
        | Op::Resize { .. }
        | Op::Concat(1) => true,
        Op::Binary(binary, _) => *binary != Binary::Pow,
        _ => false,
    }
}

/// A convolution's sizes.
fn conv_shape(conv: &crate::op::Conv) -> ConvShape {
    ConvShape {
        outputs: conv.outputs,
        inputs: conv.inputs,
        groups: conv.groups,
        window: conv.window,
    }
}

/// A bias, if there is one.
fn given(bias: &[f32]) -> Option<&[f32]> {
    (!bias.is_empty()).then_some(bias)
}

/// Rows of a matrix, each a pixel.
fn rows(shape: &[usize]) -> Shape {
    let c = shape.last().copied().unwrap_or(1);
    let rows = shape.iter().rev().skip(1).product();
    Shape {
        n: 1,
        h: 1,
        w: rows,
        c,
    }
}

/// A convolution with packed weights.
fn pack(conv: &crate::op::Conv) -> Result<conv::Conv, conv::ConvError> {
    pack_as(conv, conv_shape(conv))
}

/// The same with other edges.
fn pack_as(conv: &crate::op::Conv, shape: ConvShape) -> Result<conv::Conv, conv::ConvError> {
    let weights = conv.weights.to_float();
    conv::Conv::new(shape, &weights, given(&conv.bias), conv.activation)
}
