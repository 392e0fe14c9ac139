//! Memory of a plan: values that are never there at once share it.

use sedge_conv::Aligned;

use crate::kernel::{Form, Kernel, Place};
use crate::plan::{Plan, Step};

/// Values while a plan is made, each in memory of its own.
#[derive(Default)]
pub(crate) struct Memory {
    spans: Vec<Span>,
}

/// When a value is there.
struct Span {
    count: usize,
    bytes: bool,
    /// The first step that writes it.
    born: usize,
    /// The last that uses it.
    dies: usize,
}

impl Memory {
    /// New memory, from this step on.
    pub(crate) fn take(&mut self, form: Form, count: usize, step: usize) -> usize {
        self.spans.push(Span {
            count,
            bytes: form == Form::Bytes,
            born: step,
            dies: step,
        });
        self.spans.len() - 1
    }

    /// A step uses a place.
    pub(crate) fn used(&mut self, place: Place, step: usize) {
        let span = &mut self.spans[place.buffer];
        span.dies = span.dies.max(step);
    }

    /// A place that stays until the next run.
    pub(crate) fn keep(&mut self, place: Place) {
        self.spans[place.buffer].dies = usize::MAX;
    }

    /// Finds buffers for all, and says so in the plan. No step reads the buffer that it writes.
    pub(crate) fn lay_out(self, mut plan: Plan, threads: usize) -> Plan {
        let mut sizes: [Vec<usize>; 2] = [Vec::new(), Vec::new()];
        let mut free_from: [Vec<usize>; 2] = [Vec::new(), Vec::new()];
        let mut slots = Vec::with_capacity(self.spans.len());
        // Spans are in the order in which they are born.
        for span in &self.spans {
            let pool = usize::from(span.bytes);
            let (sizes, free_from) = (&mut sizes[pool], &mut free_from[pool]);
            // The free buffer whose size is nearest; it grows if it must.
            let best = (0..sizes.len())
                .filter(|&slot| free_from[slot] <= span.born)
                .min_by_key(|&slot| sizes[slot].abs_diff(span.count));
            let slot = best.unwrap_or_else(|| {
                sizes.push(0);
                free_from.push(0);
                sizes.len() - 1
            });
            sizes[slot] = sizes[slot].max(span.count);
            free_from[slot] = span.dies.saturating_add(1);
            slots.push(slot);
        }
        let moved = |place: &mut Place| place.buffer = slots[place.buffer];
        for step in &mut plan.steps {
            step.reads
                .iter_mut()
                .chain([&mut step.write])
                .for_each(moved);
        }
        plan.inputs.iter_mut().for_each(|(place, _)| moved(place));
        plan.outputs.iter_mut().for_each(|(place, _)| moved(place));

        let buffers = &mut plan.buffers;
        buffers.floats = sizes[0]
            .iter()
            .map(|&count| Some(Aligned::zeros(count)))
            .collect();
        buffers.bytes = sizes[1]
            .iter()
            .map(|&count| Some(Aligned::zeros(count)))
            .collect();
        let (mut floats, mut bytes) = (0, 0);
        for Step {
            kernel,
            reads,
            write,
        } in &plan.steps
        {
            match kernel {
                Kernel::Float(kernel) => {
                    floats = floats.max(kernel.scratch(reads[0].shape, threads));
                }
                Kernel::Plane(kernel) => floats = floats.max(kernel.scratch(write.shape, threads)),
                Kernel::Byte(kernel) => bytes = bytes.max(kernel.scratch(reads[0].shape, threads)),
            }
        }
        buffers.scratch.floats = Some(Aligned::zeros(floats));
        buffers.scratch.bytes = Some(Aligned::zeros(bytes));
        plan
    }
}
