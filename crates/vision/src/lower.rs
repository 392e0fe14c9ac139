//! From an ONNX file to a [`Graph`]: one walk over the nodes that knows each value as a constant
//! or by its shape. What can be computed is computed, so shapes of any origin are numbers by the
//! time a node needs them.

mod arithmetic;
mod constant;
mod convolution;
mod movement;
mod quantised;

use std::collections::HashMap;

use sedge_formats::onnx;

use crate::graph::{Graph, GraphError, Value};
use crate::nd;
use crate::op::{LARGEST, Op, OpError};
use crate::plain;
use constant::{Constant, Data, Kind};

/// What a file leaves open.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Pictures at once.
    pub batch: usize,
    /// Height and width of pictures, where the file does not say.
    pub picture: Option<[usize; 2]>,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes {
            batch: 1,
            picture: None,
        }
    }
}

/// An operator that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// Its name, with its domain if it has one.
    pub op: String,
    /// The node.
    pub node: String,
    /// What about it, if not all.
    pub why: String,
}

/// Why a file is no graph.
#[derive(Debug, thiserror::Error)]
pub enum LowerError {
    /// Operators that are not there, all of them.
    #[error("{}", list(.0))]
    Unsupported(Vec<Unsupported>),
    /// A node that makes no sense.
    #[error("node {node:?} ({op}): {why}")]
    Node {
        /// Its name.
        node: String,
        /// Its operator.
        op: String,
        /// What is wrong.
        why: String,
    },
    /// Shapes that do not fit.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// An input whose sizes are open.
    #[error("input {input:?} is {shape}: its height and width are needed")]
    Open {
        /// The input's name.
        input: String,
        /// What is known of it.
        shape: String,
    },
    /// An input that is not of real numbers.
    #[error("input {input:?} has values of type {found}, not f32")]
    Type {
        /// The input's name.
        input: String,
        /// Its type.
        found: String,
    },
    /// More nodes than any network that sees has.
    #[error("{0} nodes; networks of more than {MOST} are not read")]
    Large(usize),
    /// An output that is a constant or is not made.
    #[error("output {0:?} does not depend on any input")]
    Output(String),
}

/// Inputs of one operator, which become as many nodes.
pub(crate) const MOST_INPUTS: usize = 1024;
/// Values of all constants that a file makes of others, and products summed for them.
const BUDGET: u64 = 1 << 30;

/// Rewriting a graph takes time quadratic in its nodes: this bounds it to seconds.
const MOST: usize = 20_000;

fn list(unsupported: &[Unsupported]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for one in unsupported {
        let why = match one.why.is_empty() {
            true => String::new(),
            false => format!(": {}", one.why),
        };
        lines.push(format!("{} (node {:?}{why})", one.op, one.node));
    }
    let (first, more) = lines.split_at(lines.len().min(8));
    let more = match more.len() {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    format!(
        "operators that are not supported: {}{more}",
        first.join(", ")
    )
}

/// What is known of a value.
#[derive(Clone, Debug)]
pub(crate) enum Known {
    Constant(Constant),
    Value(Value),
    /// Made by an operator that is not there.
    Missing,
}

/// Why a node could not be read.
pub(crate) enum Refusal {
    /// The operator, or this use of it, is not there.
    Unsupported(String),
    /// The node makes no sense.
    Wrong(String),
    /// Shapes do not fit.
    Op(OpError),
    /// It reads what a missing operator would have made.
    Missing,
}

impl From<GraphError> for Refusal {
    fn from(error: GraphError) -> Refusal {
        Refusal::Op(*error.error)
    }
}

impl From<onnx::OnnxError> for Refusal {
    fn from(error: onnx::OnnxError) -> Refusal {
        Refusal::Wrong(error.to_string())
    }
}

impl From<OpError> for Refusal {
    fn from(error: OpError) -> Refusal {
        Refusal::Op(error)
    }
}

pub(crate) fn wrong<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Wrong(why.into()))
}

pub(crate) fn unsupported<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Unsupported(why.into()))
}

/// Reads a file's graph. Sizes that the file leaves open are taken from `sizes`; of its channels
/// three are taken.
pub fn lower(model: &onnx::Model, sizes: Sizes) -> Result<Graph, LowerError> {
    if model.graph.nodes.len() > MOST {
        return Err(LowerError::Large(model.graph.nodes.len()));
    }
    let mut lowering = Lowering {
        graph: Graph::new(),
        known: HashMap::new(),
        opset: model.opset,
        budget: BUDGET,
    };
    lowering.graph.metadata = model.metadata.clone();
    for tensor in &model.graph.initializers {
        let constant = Constant::of(tensor);
        let known = constant.map_or(Known::Missing, Known::Constant);
        lowering.known.insert(&tensor.name, known);
    }
    for input in &model.graph.inputs {
        if input.element != onnx::ElementType::F32 {
            return Err(LowerError::Type {
                input: input.name.clone(),
                found: format!("{:?}", input.element),
            });
        }
        let shape = input_shape(input, sizes)?;
        let value = lowering.graph.input(&input.name, &shape);
        lowering.known.insert(&input.name, Known::Value(value));
    }

    let mut missing = Vec::new();
    for node in &model.graph.nodes {
        let op = match node.domain.as_str() {
            "" | "ai.onnx" => node.op.clone(),
            domain => format!("{domain}.{}", node.op),
        };
        let made = match lowering.node(node, &op) {
            Ok(made) => made,
            Err(refusal) => {
                let refused = |why| LowerError::Node {
                    node: node.name.clone(),
                    op: op.clone(),
                    why,
                };
                match refusal {
                    Refusal::Wrong(why) => return Err(refused(why)),
                    Refusal::Op(error) => return Err(refused(error.to_string())),
                    Refusal::Missing => {}
                    Refusal::Unsupported(why) => missing.push(Unsupported {
                        op: op.clone(),
                        node: node.name.clone(),
                        why,
                    }),
                }
                vec![Known::Missing; node.outputs.len()]
            }
        };
        for (name, known) in node.outputs.iter().zip(made) {
            if let Known::Value(value) = known
                && !model
                    .graph
                    .inputs
                    .iter()
                    .any(|input| lowering.is(&input.name, value))
            {
                lowering.graph.rename(value, name);
            }
            lowering.known.insert(name, known);
        }
    }
    if !missing.is_empty() {
        return Err(LowerError::Unsupported(missing));
    }
    for output in &model.graph.outputs {
        match lowering.known.get(output.name.as_str()) {
            Some(&Known::Value(value)) => lowering.graph.output(value),
            _ => return Err(LowerError::Output(output.name.clone())),
        }
    }
    lowering.graph.sweep();
    Ok(lowering.graph)
}

fn input_shape(input: &onnx::ValueInfo, sizes: Sizes) -> Result<Vec<usize>, LowerError> {
    let dims = input.shape.as_deref().unwrap_or(&[]);
    let picture = dims.len() == 4;
    let open = || {
        let sizes = dims.iter().map(|dim| match dim {
            onnx::Dim::Fixed(size) => size.to_string(),
            onnx::Dim::Symbol(name) => name.clone(),
            onnx::Dim::Unknown => "?".to_owned(),
        });
        LowerError::Open {
            input: input.name.clone(),
            shape: format!("[{}]", sizes.collect::<Vec<_>>().join(", ")),
        }
    };
    let shape: Vec<usize> = dims
        .iter()
        .enumerate()
        .map(|(axis, dim)| match (dim, axis) {
            (onnx::Dim::Fixed(size), _) => Ok(*size),
            (_, 0) => Ok(sizes.batch),
            (_, 1) if picture => Ok(3),
            (_, 2 | 3) if picture => Ok(sizes.picture.ok_or_else(open)?[axis - 2]),
            _ => Err(open()),
        })
        .collect::<Result<_, _>>()?;
    match nd::count(&shape) {
        Some(1..=LARGEST) => Ok(shape),
        _ => Err(open()),
    }
}

pub(crate) struct Lowering<'a> {
    graph: Graph,
    known: HashMap<&'a str, Known>,
    opset: i64,
    /// What is left of [`BUDGET`].
    budget: u64,
}

impl<'a> Lowering<'a> {
    /// Takes the work of folding a constant from the budget.
    pub(crate) fn spend(&mut self, work: usize) -> Result<(), Refusal> {
        match self.budget.checked_sub(work as u64) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => wrong("its constants take more than a network's"),
        }
    }

    fn is(&self, name: &str, value: Value) -> bool {
        matches!(self.known.get(name), Some(Known::Value(known)) if *known == value)
    }

    /// What a node makes of what is known.
    fn node(&mut self, node: &'a onnx::Node, op: &str) -> Result<Vec<Known>, Refusal> {
        let node = Reader {
            node,
            inputs: node
                .inputs
                .iter()
                .map(|name| match name.as_str() {
                    "" => None,
                    name => Some(self.known.get(name).cloned().unwrap_or(Known::Missing)),
                })
                .collect(),
        };
        let found = self.arithmetic(&node, op);
        let found = found.or_else(|| self.convolution(&node, op));
        let found = found.or_else(|| self.movement(&node, op));
        let found = found.or_else(|| self.quantised(&node, op));
        let made = found.unwrap_or_else(|| unsupported(""))?;
        Ok(made)
    }

    /// Adds an operation, or folds it when all that it reads is known.
    pub(crate) fn apply(
        &mut self,
        node: &Reader<'_>,
        op: Op,
        inputs: &[Known],
    ) -> Result<Known, Refusal> {
        let constants: Option<Vec<&Constant>> = inputs
            .iter()
            .map(|known| match known {
                Known::Constant(constant) => Some(constant),
                _ => None,
            })
            .collect();
        if let Some(constants) = constants {
            let shapes: Vec<&[usize]> = constants.iter().map(|x| &x.shape[..]).collect();
            let shape = op.shape(&shapes)?;
            let macs = op.macs(shapes[0], &shape);
            let values: usize = shape.iter().product();
            self.spend(values.saturating_add(usize::try_from(macs).unwrap_or(usize::MAX)))?;
            return Ok(Known::Constant(fold(&op, &constants)?));
        }
        if self.graph.nodes().len() >= MOST {
            return wrong(format!("the network has more than {MOST} operations"));
        }
        let values: Vec<Value> = inputs
            .iter()
            .map(|known| self.value(node, known))
            .collect::<Result<_, _>>()?;
        Ok(Known::Value(self.graph.push(&node.name(), op, &values)?))
    }

    /// The value, of a constant too where it must be one: rare, so a node repeats it.
    fn value(&mut self, node: &Reader<'_>, known: &Known) -> Result<Value, Refusal> {
        match known {
            Known::Value(value) => Ok(*value),
            Known::Missing => Err(Refusal::Missing),
            Known::Constant(_) => unsupported(format!(
                "a constant where {} reads what inputs determine",
                node.node.op
            )),
        }
    }

    pub(crate) fn shape(&self, known: &Known) -> Vec<usize> {
        match known {
            Known::Value(value) => self.graph.shape(*value).to_vec(),
            Known::Constant(constant) => constant.shape.clone(),
            Known::Missing => Vec::new(),
        }
    }
}

/// Computes an operation on constants.
fn fold(op: &Op, inputs: &[&Constant]) -> Result<Constant, Refusal> {
    let shapes: Vec<&[usize]> = inputs.iter().map(|x| &x.shape[..]).collect();
    let shape = op.shape(&shapes)?;
    let count = shape.iter().product();
    let ints: Option<Vec<Vec<i64>>> = inputs.iter().map(|x| x.to_ints()).collect();
    if let Some(ints) = ints {
        let arrays: Vec<_> = ints
            .iter()
            .map(|x| &x[..])
            .zip(shapes.iter().copied())
            .collect();
        let mut out = vec![0; count];
        if plain::rearrange(op, &arrays, &mut out) {
            let kind = match &inputs[0].data {
                Data::Int(_, kind) => *kind,
                Data::Float(_) => Kind::Other,
            };
            let data = Data::Int(out.into(), kind);
            return Ok(Constant {
                shape,
                data,
                grid: None,
            });
        }
        if let Op::Binary(binary, _) = op {
            let mut whole = vec![None; count];
            nd::binary(arrays[0], arrays[1], &shape, &mut whole, |a, b| {
                plain::fold_ints(*binary, a, b)
            });
            return match whole.into_iter().collect() {
                Some(values) => Ok(Constant::ints(shape, values)),
                None => wrong("whole numbers overflow, or are divided by 0"),
            };
        }
    }
    let floats: Vec<_> = inputs.iter().map(|x| x.to_floats()).collect();
    let arrays: Vec<_> = floats
        .iter()
        .map(|x| &x[..])
        .zip(shapes.iter().copied())
        .collect();
    let mut out = vec![0.0; count];
    plain::run(op, &arrays, &shape, &mut out);
    // Reductions and the like of whole numbers are whole numbers.
    Ok(match (inputs[0].to_ints(), op) {
        (Some(_), Op::Reduce { .. } | Op::Activation(_) | Op::Function(_)) => {
            Constant::ints(shape, out.iter().map(|&x| x as i64).collect())
        }
        _ => Constant::floats(shape, out),
    })
}

/// A node, with what is known of its inputs.
pub(crate) struct Reader<'a> {
    pub(crate) node: &'a onnx::Node,
    inputs: Vec<Option<Known>>,
}

impl Reader<'_> {
    /// Its name, or its output's, since many nodes have none.
    fn name(&self) -> String {
        match self.node.name.as_str() {
            "" => self.node.outputs.first().cloned().unwrap_or_default(),
            name => name.to_owned(),
        }
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs.len()
    }

    pub(crate) fn input(&self, i: usize) -> Result<Known, Refusal> {
        match self.inputs.get(i) {
            Some(Some(Known::Missing)) => Err(Refusal::Missing),
            Some(Some(known)) => Ok(known.clone()),
            _ => wrong(format!("input {i} is missing")),
        }
    }

    pub(crate) fn optional(&self, i: usize) -> Result<Option<Known>, Refusal> {
        match self.inputs.get(i) {
            Some(Some(_)) => self.input(i).map(Some),
            _ => Ok(None),
        }
    }

    /// A constant, if the input is given.
    pub(crate) fn constant(&self, i: usize) -> Result<Option<Constant>, Refusal> {
        match self.optional(i)? {
            None => Ok(None),
            Some(Known::Constant(constant)) => Ok(Some(constant)),
            Some(_) => unsupported(format!("input {i} depends on the network's inputs")),
        }
    }

    /// Whole numbers, if the input is given.
    pub(crate) fn constant_ints(&self, i: usize) -> Result<Option<Vec<i64>>, Refusal> {
        match self.constant(i)? {
            None => Ok(None),
            Some(constant) => match constant.to_ints() {
                Some(ints) => Ok(Some(ints)),
                None => wrong(format!("input {i} is not of whole numbers")),
            },
        }
    }

    pub(crate) fn int(&self, name: &str, default: i64) -> Result<i64, Refusal> {
        Ok(self.node.int(name)?.unwrap_or(default))
    }

    pub(crate) fn ints(&self, name: &str) -> Result<Option<Vec<i64>>, Refusal> {
        Ok(self.node.ints(name)?.map(<[i64]>::to_vec))
    }

    pub(crate) fn float(&self, name: &str, default: f32) -> Result<f32, Refusal> {
        Ok(self.node.float(name)?.unwrap_or(default))
    }

    pub(crate) fn string(&self, name: &str, default: &str) -> Result<String, Refusal> {
        Ok(self.node.string(name)?.unwrap_or(default).to_owned())
    }

    /// Whole numbers: an attribute in old sets of operators, an input in newer ones.
    pub(crate) fn ints_of(&self, name: &str, input: usize) -> Result<Option<Vec<i64>>, Refusal> {
        match self.ints(name)? {
            Some(ints) => Ok(Some(ints)),
            None => self.constant_ints(input),
        }
    }
}

pub(crate) fn axis_of(axis: i64, rank: usize) -> Result<usize, Refusal> {
    let from_start = match axis < 0 {
        true => axis.checked_add(rank as i64),
        false => Some(axis),
    };
    match from_start.and_then(|x| usize::try_from(x).ok()) {
        Some(axis) if axis < rank => Ok(axis),
        _ => wrong(format!("there is no axis {axis} of {rank}")),
    }
}

pub(crate) fn axes_of(axes: &[i64], rank: usize) -> Result<Vec<usize>, Refusal> {
    let mut all: Vec<usize> = axes
        .iter()
        .map(|&x| axis_of(x, rank))
        .collect::<Result<_, _>>()?;
    all.sort_unstable();
    all.dedup();
    match all.len() == axes.len() {
        true => Ok(all),
        false => wrong("an axis is named twice"),
    }
}
