//! Several operations one after the other on bands of rows, so that what is between them stays
//! in the processor's caches: large pictures are otherwise written to memory and read again.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use sedge_conv::{self as conv, Aligned, Operand, Picture, PictureMut, Shape};

use super::Run;
use crate::op::Activation;

/// One of the operations.
pub(crate) struct Stage {
    pub(crate) work: Work,
    /// Which of the step's inputs is added or multiplied with.
    pub(crate) side: Option<usize>,
    /// Of a whole picture that it makes.
    pub(crate) shape: Shape,
}

pub(crate) enum Work {
    /// The same convolution with other rows of padding: bands inside of a picture have none.
    Conv(Vec<conv::Conv>),
    Scale(Activation),
}

/// Rows that a stage makes of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) stage: usize,
    /// Which of a convolution's forms.
    pub(crate) form: usize,
    /// Rows of what it reads, as they lie there.
    pub(crate) from: Range<usize>,
    /// Rows of what it makes, of the whole picture.
    pub(crate) rows: Range<usize>,
    /// Where they lie in the stage's buffer; of the last stage, in the task's part.
    pub(crate) at: usize,
    /// Rows of the buffer that go to its beginning before: they are needed again.
    pub(crate) keep: Range<usize>,
}

/// A chain of operations, and in which order their rows are made by each task.
pub(crate) struct Bands {
    pub(crate) stages: Vec<Stage>,
    /// For each task, the rows of the result that are its own, and what it does.
    pub(crate) tasks: Vec<(Range<usize>, Vec<Move>)>,
    /// For each task, a buffer for each stage but the last, and scratch.
    pub(crate) memory: Vec<Mutex<Memory>>,
}

pub(crate) struct Memory {
    pub(crate) values: Vec<Aligned>,
    pub(crate) scratch: Aligned,
}

impl Bands {
    pub(crate) fn run(&self, run: &Run<'_>, out: &mut [f32]) {
        let place = run.write;
        let line = place.stride * place.shape.w;
        // Each task writes rows of its own.
        let mut rest = &mut out[place.offset..];
        let mut parts = Vec::with_capacity(self.tasks.len());
        for (rows, _) in &self.tasks {
            let last = rows.end == place.shape.h;
            let (part, after) = rest.split_at_mut(match last {
                true => rest.len(),
                false => rows.len() * line,
            });
            parts.push(Mutex::new(part));
            rest = after;
        }
        run.team.run(self.tasks.len(), &|task| {
            // Nobody else has these; a lock is how they become mutable here.
            let mut part = parts[task].lock().unwrap_or_else(PoisonError::into_inner);
            let mut memory = self.memory[task]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            for step in &self.tasks[task].1 {
                self.step(run, step, &mut memory, &mut part);
            }
        });
    }

    fn step(&self, run: &Run<'_>, step: &Move, memory: &mut Memory, part: &mut [f32]) {
        let stage = &self.stages[step.stage];
        let last = step.stage + 1 == self.stages.len();
        let (before, own) = memory.values.split_at_mut(step.stage);
        let x = match before.last() {
            None => rows(run.pixels(0), step.from.clone()),
            Some(values) => {
                let shape = self.stages[step.stage - 1].shape;
                let line = shape.w * shape.c;
                let h = step.from.len();
                Picture::new(
                    &values.values()[step.from.start * line..],
                    Shape { h, ..shape },
                )
            }
        };
        let shape = Shape {
            h: step.rows.len(),
            ..stage.shape
        };
        let mut y = match own.first_mut().filter(|_| !last) {
            Some(values) => {
                let line = shape.w * shape.c;
                let values = values.values_mut();
                values.copy_within(step.keep.start * line..step.keep.end * line, 0);
                PictureMut::new(&mut values[step.at * line..], shape)
            }
            None => {
                let stride = run.write.stride;
                PictureMut::strided(&mut part[step.at * shape.w * stride..], shape, stride)
            }
        };
        match &stage.work {
            Work::Conv(forms) => {
                let add = stage
                    .side
                    .map(|side| rows(run.pixels(side), step.rows.clone()));
                forms[step.form].run(x, add, &mut y, memory.scratch.values_mut(), run.team);
            }
            Work::Scale(activation) => {
                let side = stage.side.expect("a scale has factors");
                let scales = Operand::Pictures(run.plain(side));
                conv::binary(conv::Binary::Mul, x, scales, *activation, &mut y, run.team);
            }
        }
    }
}

/// Some rows of a picture.
fn rows(x: Picture<'_>, rows: Range<usize>) -> Picture<'_> {
    let shape = x.shape();
    let start = rows.start * shape.w * x.stride();
    let h = rows.len();
    Picture::strided(&x.values()[start..], Shape { h, ..shape }, x.stride())
}
