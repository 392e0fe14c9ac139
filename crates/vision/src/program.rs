//! A graph made ready to run: kernels with packed weights, and a plan of memory that is laid out
//! once. Running takes no memory for values, only for short lists of places.

use std::mem::take;
use std::time::{Duration, Instant};

use sedge_conv::Aligned;
use sedge_kernels::Team;

use crate::graph::Graph;
use crate::kernel::{Buffers, Kernel, Place, Run};
use crate::plan::{Planner, Step};

/// Why a graph cannot be made ready.
#[derive(Debug, thiserror::Error)]
#[error("node {node:?}: {why}")]
pub struct ProgramError {
    /// The node.
    pub node: String,
    /// What no kernel takes.
    pub why: String,
}

/// How a graph is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether sparse weights may run in planes.
    pub sparse: Sparsity,
    /// Values of this many bytes do not stay in the second cache from one operation to the next:
    /// operations between which there are such run in bands of rows.
    pub cache: usize,
    /// Bytes of all that lies between the operations that run in bands.
    pub band: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            sparse: Sparsity::default(),
            cache: 64 << 10,
            band: 64 << 10,
        }
    }
}

/// When networks run in planes, where zeros among weights are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sparsity {
    /// When it is faster, as measured.
    #[default]
    Measured,
    /// Always, where there is a kernel.
    Always,
    /// Never.
    Never,
}

/// A network that is ready to run, on values of one shape.
pub struct Program {
    steps: Vec<Step>,
    names: Vec<StepName>,
    inputs: Vec<(Place, usize)>,
    outputs: Vec<(Place, Vec<usize>)>,
    buffers: Buffers,
}

/// What a step is called in tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepName {
    /// The node, by name.
    pub node: String,
    /// What is done.
    pub kind: String,
    /// The shape of what it makes.
    pub shape: Vec<usize>,
    /// Products that it sums.
    pub macs: u64,
}

impl Program {
    /// Chooses kernels, packs weights and lays out memory. `team` measures choices.
    ///
    /// # Errors
    /// When a node has no kernel for what it is given.
    pub fn new(graph: &Graph, options: Options, team: &Team) -> Result<Program, ProgramError> {
        let plan = Planner::plan(graph, options, team)?;
        Ok(Program {
            steps: plan.steps,
            names: plan.names,
            inputs: plan.inputs,
            outputs: plan.outputs,
            buffers: plan.buffers,
        })
    }

    /// Bytes of values between nodes, and of what kernels need besides.
    pub fn memory(&self) -> usize {
        self.buffers.size()
    }

    /// Runs the network on arrays as ONNX has them (`[n, c, h, w]`), one for each input.
    ///
    /// # Panics
    /// When inputs are not as many, or not as large, as the graph's.
    pub fn run(&mut self, inputs: &[&[f32]], team: &Team) {
        self.take_in(inputs);
        for step in &self.steps {
            run(&mut self.buffers, step, team);
        }
    }

    /// The same, with the time of each step added to `times`.
    ///
    /// # Panics
    /// As [`Program::run`].
    pub fn run_timed(&mut self, inputs: &[&[f32]], team: &Team, times: &mut [Duration]) {
        self.take_in(inputs);
        for (step, time) in self.steps.iter().zip(times) {
            let start = Instant::now();
            run(&mut self.buffers, step, team);
            *time += start.elapsed();
        }
    }

    /// The steps, in order.
    pub fn steps(&self) -> &[StepName] {
        &self.names
    }

    /// How many outputs there are.
    pub fn outputs(&self) -> usize {
        self.outputs.len()
    }

    /// What the last run gave: values as ONNX has them, and their sizes.
    ///
    /// # Panics
    /// When there is no such output.
    pub fn output(&self, i: usize) -> (&[f32], &[usize]) {
        let (place, shape) = &self.outputs[i];
        let count: usize = shape.iter().product();
        let values = self.buffers.floats[place.buffer]
            .as_ref()
            .map_or(&[][..], Aligned::values);
        (&values[place.offset..][..count], shape)
    }

    fn take_in(&mut self, inputs: &[&[f32]]) {
        assert_eq!(inputs.len(), self.inputs.len(), "inputs");
        for (&(place, count), x) in self.inputs.iter().zip(inputs) {
            assert_eq!(x.len(), count, "values of an input");
            if let Some(values) = &mut self.buffers.floats[place.buffer] {
                values.values_mut()[place.offset..][..count].copy_from_slice(x);
            }
        }
    }
}

/// Runs a step. What it writes is taken out of the buffers meanwhile: the plan lets no step read
/// the buffer that it writes.
fn run(buffers: &mut Buffers, step: &Step, team: &Team) {
    let buffer = step.write.buffer;
    let mut scratch = take(&mut buffers.scratch);
    let bytes = matches!(&step.kernel, Kernel::Byte(kernel) if !kernel.writes_floats());
    if bytes {
        let mut out = take(&mut buffers.bytes[buffer]);
        if let (Kernel::Byte(kernel), Some(out)) = (&step.kernel, &mut out) {
            kernel.run(&step.on(buffers, team), out.values_mut(), &mut scratch);
        }
        buffers.bytes[buffer] = out;
    } else {
        let mut out = take(&mut buffers.floats[buffer]);
        if let Some(out) = &mut out {
            let (on, out) = (step.on(buffers, team), out.values_mut());
            match &step.kernel {
                Kernel::Float(kernel) => kernel.run(&on, out, &mut scratch),
                Kernel::Plane(kernel) => kernel.run(&on, out, &mut scratch),
                Kernel::Byte(kernel) => kernel.run_to_floats(&on, out, &mut scratch),
            }
        }
        buffers.floats[buffer] = out;
    }
    buffers.scratch = scratch;
}

impl Step {
    fn on<'a>(&'a self, buffers: &'a Buffers, team: &'a Team) -> Run<'a> {
        Run {
            buffers,
            reads: &self.reads,
            write: self.write,
            team,
        }
    }
}
