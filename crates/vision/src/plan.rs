//! From a graph to steps: which kernel for each node, in which form values lie, where, and which
//! of them share memory.

use std::collections::HashMap;

use sedge_conv::{self as conv, ConvShape, Pooling, Shape, Window};
use sedge_kernels::Team;

use crate::graph::{Graph, Node, Value};
use crate::kernel::{Buffers, Form, Kernel, Place, as_picture, of_pixels, pixel_sizes};
use crate::op::{Binary, Conv, Op, Pool, Reduction};
use crate::program::{Options, ProgramError, StepName};

/// One kernel, what it reads and where it writes.
pub(crate) struct Step {
    pub(crate) kernel: Kernel,
    pub(crate) reads: Vec<Place>,
    pub(crate) write: Place,
}

/// A graph made ready.
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) names: Vec<StepName>,
    pub(crate) inputs: Vec<(Place, usize)>,
    pub(crate) outputs: Vec<(Place, Vec<usize>)>,
    pub(crate) buffers: Buffers,
}

/// Memory before it is shared: as many values as are needed, and by which steps.
struct Virtual {
    count: usize,
    /// The first step that writes it; inputs are there before all.
    born: usize,
    /// The last that reads it.
    dies: usize,
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
    steps: Vec<Step>,
    names: Vec<StepName>,
    memory: Vec<Virtual>,
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
        _options: Options,
        team: &'a Team,
    ) -> Result<Plan, ProgramError> {
        let mut planner = Planner {
            graph,
            team,
            steps: Vec::new(),
            names: Vec::new(),
            memory: Vec::new(),
            places: vec![HashMap::new(); graph.values()],
            parts: HashMap::new(),
            node: 0,
        };
        let mut inputs = Vec::new();
        for &input in graph.inputs() {
            let place = planner.fresh(input, Form::Plain);
            inputs.push((place, graph.shape(input).iter().product()));
            planner.places[input.index()].insert(Form::Plain, place);
        }
        planner.find_parts();
        for (i, node) in graph.nodes().iter().enumerate() {
            planner.node = i;
            planner.node(node)?;
        }
        let outputs: Vec<(Place, Vec<usize>)> = graph
            .outputs()
            .iter()
            .map(|&output| {
                let place = planner.want(output, Form::Plain);
                // Outputs stay until the next run.
                planner.memory[place.buffer].dies = usize::MAX;
                (place, graph.shape(output).to_vec())
            })
            .collect();
        // Inputs are written from outside, before any step.
        for (place, _) in &inputs {
            planner.memory[place.buffer].born = 0;
        }
        Ok(planner.lay_out(inputs, outputs))
    }

    /// Values that are joined along channels are made in their places, where each is read by
    /// nothing but kernels that know strides, is joined once, and is made by such a kernel.
    fn find_parts(&mut self) {
        let graph = self.graph;
        let makers = graph.makers();
        for node in graph.nodes() {
            if node.op != Op::Concat(1) || graph.shape(node.output).len() != 4 {
                continue;
            }
            let mut channel = 0;
            for &input in &node.inputs {
                let made_by_pixels = makers[input.index()].is_some_and(|maker| {
                    let maker = &graph.nodes()[maker];
                    writes_strided(&maker.op)
                        // A kernel cannot write where it reads.
                        && !maker.inputs.iter().any(|x| {
                            self.parts.get(x).is_some_and(|part| part.whole == node.output)
                        })
                });
                let once = node.inputs.iter().filter(|&&x| x == input).count() == 1;
                let free = !self.parts.contains_key(&input)
                    && !graph.outputs().contains(&input)
                    && self.alike(input, Form::Pixels) == Form::Pixels;
                if made_by_pixels && once && free {
                    let whole = node.output;
                    self.parts.insert(input, Part { whole, channel });
                }
                channel += graph.shape(input)[1];
            }
        }
    }

    fn shape(&self, value: Value) -> Shape {
        as_picture(self.graph.shape(value))
    }

    /// New memory for a value in a form.
    fn fresh(&mut self, value: Value, form: Form) -> Place {
        let shape = self.shape(value);
        let stride = match form {
            Form::Planes => unreachable!(),
            _ => shape.c,
        };
        let count = shape.values();
        self.memory.push(Virtual {
            count,
            born: self.steps.len(),
            dies: self.steps.len(),
        });
        Place {
            buffer: self.memory.len() - 1,
            offset: 0,
            stride,
            shape,
        }
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
                self.places[whole.index()].insert(Form::Pixels, place);
                place
            }
        };
        Place {
            buffer: outer.buffer,
            offset: outer.offset + channel,
            stride: outer.stride,
            shape: self.shape(value),
        }
    }

    /// Forms in which a value's memory would be the same.
    fn alike(&self, value: Value, form: Form) -> Form {
        let shape = self.graph.shape(value);
        let flat = match *shape {
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
        if let Some(&place) = self.places[value.index()].get(&form) {
            return place;
        }
        let (kernel, from) = match form {
            Form::Pixels => (Kernel::ToPixels, Form::Plain),
            Form::Plain => (Kernel::ToPlain, Form::Pixels),
            Form::Bytes | Form::Planes => unreachable!(),
        };
        let from = self.places[value.index()][&from];
        let to = self.fresh(value, form);
        let kind = match form {
            Form::Plain => "to planes",
            _ => "to pixels",
        };
        self.step(kernel, &[from], to, kind);
        self.places[value.index()].insert(form, to);
        to
    }

    /// A dense place for kernels that know no strides.
    fn want_whole(&mut self, value: Value, form: Form) -> Place {
        let place = self.want(value, form);
        if place.is_whole() {
            return place;
        }
        let to = self.fresh(value, form);
        self.step(Kernel::Copy, &[place], to, "copy");
        to
    }

    fn step(&mut self, kernel: Kernel, reads: &[Place], write: Place, kind: &str) {
        let at = self.steps.len();
        for place in reads.iter().chain([&write]) {
            let memory = &mut self.memory[place.buffer];
            memory.dies = memory.dies.max(at);
        }
        let node = self.graph.nodes().get(self.node);
        self.names.push(StepName {
            node: node.map_or_else(String::new, |node| node.name.clone()),
            kind: kind.to_owned(),
            shape: {
                let Shape { n, h, w, c } = write.shape;
                vec![n, c, h, w]
            },
            macs: match node {
                Some(node) if kind == node.op.kind() => {
                    let input = self.graph.shape(node.inputs[0]);
                    node.op.macs(input, self.graph.shape(node.output))
                }
                _ => 0,
            },
        });
        self.steps.push(Step {
            kernel,
            reads: reads.to_vec(),
            write,
        });
    }

    /// The node's result is what this step makes of these places, in pixels.
    fn pixels(&mut self, node: &Node, kernel: Kernel, reads: &[Place]) {
        let write = self.target(node.output);
        self.step(kernel, reads, write, node.op.kind());
        let form = self.alike(node.output, Form::Pixels);
        self.places[node.output.index()].insert(form, write);
    }

    /// The node's result is the same memory, seen with other sizes.
    fn view(&mut self, node: &Node, form: Form, mut place: Place) {
        place.shape = self.shape(node.output);
        place.stride = place.shape.c;
        let form = self.alike(node.output, form);
        self.places[node.output.index()].insert(form, place);
    }

    fn refuse<T>(&self, why: impl Into<String>) -> Result<T, ProgramError> {
        Err(ProgramError {
            node: self.graph.nodes()[self.node].name.clone(),
            why: why.into(),
        })
    }

    fn node(&mut self, node: &Node) -> Result<(), ProgramError> {
        let x = node.inputs[0];
        let picture = self.graph.shape(x).len() == 4;
        match &node.op {
            Op::Conv(conv) => self.conv(node, conv)?,
            Op::Linear {
                weights,
                bias,
                outputs,
                activation,
            } => {
                let reads = [self.want_whole(x, Form::Plain)];
                // Rows of a matrix are pixels in a line.
                let flat = rows(self.graph.shape(x));
                let shape = ConvShape {
                    outputs: *outputs,
                    inputs: flat.c,
                    groups: 1,
                    window: Window::pointwise(),
                };
                let bias = (!bias.is_empty()).then_some(&bias[..]);
                let made = conv::Conv::new(shape, &weights.to_float(), bias, *activation);
                let kernel = match made {
                    Ok(conv) => Kernel::Conv(conv),
                    Err(error) => return self.refuse(error.to_string()),
                };
                let mut read = reads[0];
                read.shape = flat;
                read.stride = flat.c;
                let mut write = self.fresh(node.output, Form::Plain);
                let seen = write;
                write.shape = rows(self.graph.shape(node.output));
                write.stride = write.shape.c;
                self.step(kernel, &[read], write, node.op.kind());
                self.places[node.output.index()].insert(Form::Plain, seen);
            }
            Op::Pool(pool, window) => {
                let pooling = match pool {
                    Pool::Max => Pooling::Max,
                    Pool::Average { padding } => Pooling::Average {
                        counted: match padding {
                            true => window.pads,
                            false => [0; 4],
                        },
                    },
                };
                let read = self.want(x, Form::Pixels);
                self.pixels(node, Kernel::Pool(pooling, *window), &[read]);
            }
            Op::Reduce {
                reduction: Reduction::Mean,
                axes,
                ..
            } if picture && axes[..] == [2, 3] => {
                let read = self.want(x, Form::Pixels);
                let place = self.fresh(node.output, Form::Plain);
                let Shape { n, c, .. } = read.shape;
                let mut write = place;
                write.shape = Shape { n, h: 1, w: 1, c };
                write.stride = c;
                self.step(Kernel::Mean, &[read], write, "average");
                self.places[node.output.index()].insert(Form::Plain, place);
            }
            Op::Scale(activation) => {
                let read = self.want(x, Form::Pixels);
                let scales = self.want_whole(node.inputs[1], Form::Plain);
                self.pixels(node, Kernel::Scale(*activation), &[read, scales]);
            }
            Op::Affine {
                scale,
                shift,
                activation,
            } if picture => {
                // One tap for each channel.
                let shape = ConvShape {
                    outputs: scale.len(),
                    inputs: scale.len(),
                    groups: scale.len(),
                    window: Window::pointwise(),
                };
                let kernel = match conv::Conv::new(shape, scale, Some(shift), *activation) {
                    Ok(conv) => Kernel::Conv(conv),
                    Err(error) => return self.refuse(error.to_string()),
                };
                let read = self.want(x, Form::Pixels);
                self.pixels(node, kernel, &[read]);
            }
            Op::Activation(activation) => self.each(node, Kernel::Activate(*activation)),
            Op::Function(function) => self.each(node, Kernel::Function(*function)),
            Op::Round => self.each(node, Kernel::Copy),
            Op::Binary(binary, activation)
                if self.graph.shape(x) == self.graph.shape(node.inputs[1]) =>
            {
                match elementwise(*binary) {
                    Some(binary) => {
                        let form = match picture {
                            true => Form::Pixels,
                            false => Form::Plain,
                        };
                        let reads = [self.want(x, form), self.want(node.inputs[1], form)];
                        self.same_form(node, Kernel::Binary(binary, *activation), form, &reads);
                    }
                    None => self.plain(node),
                }
            }
            Op::Reshape(_) => {
                let read = self.want_whole(x, Form::Plain);
                self.view(node, Form::Plain, read);
            }
            Op::Transpose(perm) if perm[..] == [0, 2, 3, 1] => {
                let read = self.want_whole(x, Form::Pixels);
                self.view(node, Form::Plain, read);
            }
            Op::Transpose(perm) if perm[..] == [0, 3, 1, 2] => {
                let read = self.want_whole(x, Form::Plain);
                self.view(node, Form::Pixels, read);
            }
            Op::Concat(1) if picture => self.concat(node),
            Op::Slice { start, step, size }
                if picture && step.iter().all(|&s| s == 1) && {
                    let shape = self.graph.shape(x);
                    size[0] == shape[0] && size[2..] == shape[2..]
                } =>
            {
                // Channels of each pixel, where they are.
                let mut place = self.want(x, Form::Pixels);
                if self.alike(node.output, Form::Pixels) == Form::Pixels
                    && self.alike(x, Form::Pixels) == Form::Pixels
                {
                    place.offset += start[1];
                    place.shape = self.shape(node.output);
                    self.places[node.output.index()].insert(Form::Pixels, place);
                } else {
                    self.moved(node);
                }
            }
            Op::Slice { .. } | Op::Pad { .. } | Op::Concat(_) if picture => self.moved(node),
            _ => self.plain(node),
        }
        Ok(())
    }

    fn conv(&mut self, node: &Node, conv: &Conv) -> Result<(), ProgramError> {
        let shape = ConvShape {
            outputs: conv.outputs,
            inputs: conv.inputs,
            groups: conv.groups,
            window: conv.window,
        };
        let bias = (!conv.bias.is_empty()).then_some(&conv.bias[..]);
        let made = conv::Conv::new(shape, &conv.weights.to_float(), bias, conv.activation);
        let kernel = match made {
            Ok(conv) => Kernel::Conv(conv),
            Err(error) => return self.refuse(error.to_string()),
        };
        let reads: Vec<Place> = node
            .inputs
            .iter()
            .map(|&x| self.want(x, Form::Pixels))
            .collect();
        self.pixels(node, kernel, &reads);
        Ok(())
    }

    /// A function of each value, in whatever form the value is.
    fn each(&mut self, node: &Node, kernel: Kernel) {
        let x = node.inputs[0];
        let form = match self.places[x.index()].contains_key(&Form::Pixels) {
            true => Form::Pixels,
            false => Form::Plain,
        };
        let read = self.want(x, form);
        self.same_form(node, kernel, form, &[read]);
    }

    fn same_form(&mut self, node: &Node, kernel: Kernel, form: Form, reads: &[Place]) {
        if form == Form::Pixels {
            return self.pixels(node, kernel, reads);
        }
        // Plain values are one long pixel.
        let place = self.fresh(node.output, Form::Plain);
        let line = |place: Place| Place {
            shape: line(place.shape),
            stride: place.shape.values(),
            ..place
        };
        let reads: Vec<Place> = reads.iter().copied().map(line).collect();
        self.step(kernel, &reads, line(place), node.op.kind());
        self.places[node.output.index()].insert(Form::Plain, place);
    }

    /// Parts that are not in their places yet are copied there.
    fn concat(&mut self, node: &Node) {
        let form = self.alike(node.output, Form::Pixels);
        if form == Form::Plain {
            return self.plain(node);
        }
        let whole = match self.places[node.output.index()].get(&form) {
            Some(&place) => place,
            None => self.target(node.output),
        };
        self.places[node.output.index()].insert(form, whole);
        let mut channel = 0;
        for &input in &node.inputs {
            let c = self.shape(input).c;
            let there = self
                .parts
                .get(&input)
                .is_some_and(|part| part.whole == node.output);
            if !there {
                let mut read = self.want(input, Form::Pixels);
                if read.buffer == whole.buffer {
                    // A kernel cannot write where it reads.
                    let copy = self.fresh(input, Form::Pixels);
                    self.step(Kernel::Copy, &[read], copy, "copy");
                    read = copy;
                }
                let write = Place {
                    offset: whole.offset + channel,
                    shape: self.shape(input),
                    ..whole
                };
                self.step(Kernel::Copy, &[read], write, node.op.kind());
            }
            channel += c;
        }
    }

    /// Moves values of pictures as they lie.
    fn moved(&mut self, node: &Node) {
        let Some(op) = of_pixels(&node.op) else {
            return self.plain(node);
        };
        let constant_pad = matches!(
            node.op,
            Op::Pad {
                fill: crate::op::Fill::Constant(_),
                ..
            }
        );
        let reads: Vec<Place> = node
            .inputs
            .iter()
            .map(|&x| self.want_whole(x, Form::Pixels))
            .collect();
        let place = self.fresh(node.output, Form::Pixels);
        let sizes = reads.iter().map(|place| pixel_sizes(place.shape)).collect();
        let shape = pixel_sizes(place.shape);
        let kernel = match constant_pad {
            true => Kernel::Plain(Box::new(op), sizes, shape),
            false => Kernel::Move(Box::new(op), sizes, shape),
        };
        self.step(kernel, &reads, place, node.op.kind());
        let form = self.alike(node.output, Form::Pixels);
        self.places[node.output.index()].insert(form, place);
    }

    fn plain(&mut self, node: &Node) {
        let reads: Vec<Place> = node
            .inputs
            .iter()
            .map(|&x| self.want_whole(x, Form::Plain))
            .collect();
        let sizes = node
            .inputs
            .iter()
            .map(|&x| self.graph.shape(x).to_vec())
            .collect();
        let shape = self.graph.shape(node.output).to_vec();
        let place = self.fresh(node.output, Form::Plain);
        let kernel = Kernel::Plain(Box::new(node.op.clone()), sizes, shape);
        self.step(kernel, &reads, place, node.op.kind());
        self.places[node.output.index()].insert(Form::Plain, place);
    }

    /// Gives values that are never there at once the same memory.
    fn lay_out(mut self, inputs: Vec<(Place, usize)>, outputs: Vec<(Place, Vec<usize>)>) -> Plan {
        let mut sizes: Vec<usize> = Vec::new();
        let mut free_from: Vec<usize> = Vec::new();
        let mut slots = vec![0; self.memory.len()];
        let mut order: Vec<usize> = (0..self.memory.len()).collect();
        order.sort_by_key(|&i| self.memory[i].born);
        for i in order {
            let memory = &self.memory[i];
            // The free slot that wastes least; one that must grow is taken before a new one.
            let best = (0..sizes.len())
                .filter(|&slot| free_from[slot] <= memory.born)
                .min_by_key(|&slot| sizes[slot].abs_diff(memory.count));
            let slot = best.unwrap_or_else(|| {
                sizes.push(0);
                free_from.push(0);
                sizes.len() - 1
            });
            sizes[slot] = sizes[slot].max(memory.count);
            free_from[slot] = memory.dies.saturating_add(1);
            slots[i] = slot;
        }
        let threads = self.team.threads();
        let needs = |step: &Step| step.kernel.scratch(&step.reads, threads);
        let scratch = self.steps.iter().map(needs).max().unwrap_or(0);
        for step in &mut self.steps {
            for place in step.reads.iter_mut().chain([&mut step.write]) {
                place.buffer = slots[place.buffer];
            }
        }
        let moved = |mut place: Place| {
            place.buffer = slots[place.buffer];
            place
        };
        let mut buffers = Buffers {
            floats: sizes.iter().map(|&count| vec![0.0; count]).collect(),
            ..Buffers::default()
        };
        buffers.scratch.floats = vec![0.0; scratch];
        Plan {
            steps: self.steps,
            names: self.names,
            inputs: inputs.into_iter().map(|(p, n)| (moved(p), n)).collect(),
            outputs: outputs.into_iter().map(|(p, s)| (moved(p), s)).collect(),
            buffers,
        }
    }
}

/// Operations whose kernels write pixels with any stride.
fn writes_strided(op: &Op) -> bool {
    match op {
        Op::Conv(_)
        | Op::Pool(..)
        | Op::Scale(_)
        | Op::Affine { .. }
        | Op::Activation(_)
        | Op::Binary(Binary::Add | Binary::Mul | Binary::Sub | Binary::Div, _)
        | Op::Concat(1) => true,
        _ => false,
    }
}

/// The kernel of a function of two values.
fn elementwise(binary: Binary) -> Option<conv::Binary> {
    Some(match binary {
        Binary::Add => conv::Binary::Add,
        Binary::Div => conv::Binary::Div,
        Binary::Max => conv::Binary::Max,
        Binary::Min => conv::Binary::Min,
        Binary::Mul => conv::Binary::Mul,
        Binary::Sub => conv::Binary::Sub,
        Binary::Pow => return None,
    })
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

/// All values as one pixel.
fn line(shape: Shape) -> Shape {
    Shape {
        n: 1,
        h: 1,
        w: 1,
        c: shape.values(),
    }
}
