//! What steps of a model cost on this machine: a table for planning and simulation.
//! Steps are timed as the engine takes them, answers and a piece of a prompt in one batch.

use std::time::Instant;

use sedge_clock::{Costs, CostsError, Load};
use sedge_engine::{Executor, load};
use sedge_kernels::{PAGE_TOKENS, Segment, argmax};
use sedge_models::{Batch, Outputs};

use crate::Spread;

/// Tokens of answers and of prompts that are timed together. One token of a prompt costs nearly as
/// much as sixteen where prompts are computed in tiles.
const GENERATED: [usize; 9] = [0, 1, 2, 4, 8, 16, 32, 64, 128];
const PROMPT: [usize; 9] = [0, 1, 16, 32, 64, 128, 256, 512, 1024];
/// Answers, and tokens of a prompt, whose attention is timed far into a context.
const FAR: [usize; 2] = [8, 64];
/// Steps of answers before each one that is timed.
const BEFORE: usize = 4;
/// How far, at most.
const DEPTH: usize = 512;

/// Measures a cost model: each step `repeats` times, in turn. `progress` hears of each one, with
/// its number and how many there are.
///
/// # Errors
/// When the executor has too little memory for two different steps.
///
/// # Panics
/// When the executor does.
pub fn measure_costs(
    executor: &mut dyn Executor,
    repeats: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Costs, CostsError> {
    let shape = executor.shape();
    let room = shape.pages.min(usize::MAX / PAGE_TOKENS) * PAGE_TOKENS;
    // One page for each answer, and those of the prompt.
    let generated = up_to(&GENERATED, shape.pages / 2);
    let prompt = up_to(&PROMPT, shape.context.min(room / 2));
    let depth = DEPTH
        .min(shape.context.saturating_sub(FAR[1]))
        .min((room / FAR[0]).saturating_sub(PAGE_TOKENS))
        / PAGE_TOKENS
        * PAGE_TOKENS;

    let grid: Vec<(usize, usize)> = generated
        .iter()
        .flat_map(|&g| prompt.iter().map(move |&p| (g, p)))
        .collect();
    let total = (grid.len() + 2) * repeats;
    let mut steps = Steps {
        executor,
        batch: Batch::default(),
        out: Outputs::default(),
    };
    steps.time(1, 16, 0); // pages and code come to memory
    let mut times = vec![Vec::new(); grid.len()];
    let mut far = [Vec::new(), Vec::new()];
    for repeat in 0..repeats {
        for (i, &(g, p)) in grid.iter().enumerate() {
            progress(repeat * (grid.len() + 2) + i, total);
            if g + p > 0 {
                // Most steps are of answers: what they leave in the caches is what others find.
                for _ in 0..BEFORE {
                    steps.time(g.max(1), 0, 0);
                }
                times[i].push(steps.time(g, p, 0).0);
            }
        }
        for (i, (g, p)) in [(FAR[0], 0), (0, FAR[1])].into_iter().enumerate() {
            progress(repeat * (grid.len() + 2) + grid.len() + i, total);
            let (near, at_start) = steps.time(g, p, 0);
            let (distant, at_depth) = steps.time(g, p, depth);
            let looked_at = |load: &Load| load.context + load.pairs;
            let more = looked_at(&at_depth).saturating_sub(looked_at(&at_start));
            far[i].push((distant - near).max(0.0) / more.max(1) as f64);
        }
    }
    let median = |figures: &[f64]| Spread::of(figures).map_or(0.0, |s| s.median);
    let [context, pairs] = [median(&far[0]), median(&far[1])];
    let table = grid.iter().zip(&times).map(|(&(g, p), times)| {
        let load = steps.lay_out(g, p, 0);
        let attention = context * load.context as f64 + pairs * load.pairs as f64;
        (median(times) - attention).max(0.0)
    });
    let table = table.collect();
    Costs::new(generated, prompt, table, context, pairs)
}

/// Those of an axis that are not more than there is room for; at least two.
fn up_to(axis: &[usize], most: usize) -> Vec<usize> {
    let fitting = axis.iter().filter(|&&entry| entry <= most).count();
    axis[..fitting.max(2)].to_vec()
}

struct Steps<'a> {
    executor: &'a mut dyn Executor,
    batch: Batch,
    out: Outputs,
}

impl Steps<'_> {
    /// A step of answers in sequences of their own and a piece of one prompt, all from `position`.
    fn lay_out(&mut self, generated: usize, prompt: usize, position: usize) -> Load {
        let shape = self.executor.shape();
        let (batch, mut page) = (&mut self.batch, 0);
        batch.clear();
        let sequences = (0..generated).map(|_| 1);
        for (i, tokens) in sequences.chain((prompt > 0).then_some(prompt)).enumerate() {
            let pages = (position + tokens).div_ceil(PAGE_TOKENS);
            let (row, first) = (batch.tokens.len(), batch.tables.len());
            let token = |j: usize| ((i * 31 + j * 7919) % shape.vocab) as u32;
            batch.tokens.extend((0..tokens).map(token));
            batch.tables.extend(page..page + pages as u32);
            page += pages as u32;
            batch.segments.push(Segment {
                rows: row..row + tokens,
                position,
                pages: first..batch.tables.len(),
            });
            batch.logits.push((row + tokens - 1) as u32);
        }
        batch.generated = generated;
        load(batch)
    }

    /// Seconds of a step, the choice of its tokens included.
    fn time(&mut self, generated: usize, prompt: usize, position: usize) -> (f64, Load) {
        let load = self.lay_out(generated, prompt, position);
        let vocab = self.executor.shape().vocab;
        let start = Instant::now();
        self.executor.forward(&self.batch, &mut self.out);
        let rows = self.out.logits.chunks(vocab);
        std::hint::black_box(rows.map(argmax).sum::<usize>());
        (start.elapsed().as_secs_f64(), load)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sedge_clock::Clock;
    use sedge_engine::{SimExecutor, SimMemory};

    use super::*;

    /// A simulated machine that takes the time in earnest.
    struct Slow(SimExecutor, Clock);

    impl Executor for Slow {
        fn shape(&self) -> sedge_engine::Shape {
            self.0.shape()
        }

        fn forward(&mut self, batch: &Batch, out: &mut Outputs) {
            let before = self.1.now();
            self.0.forward(batch, out);
            let start = Instant::now();
            while start.elapsed() < self.1.now() - before {}
        }
    }

    #[test]
    fn the_costs_of_a_known_machine_are_found_again() {
        let table = vec![0.0, 2e-4, 1e-4, 3e-4];
        let known = Costs::new(vec![0, 8], vec![0, 64], table, 1e-8, 1e-9).unwrap();
        let memory = SimMemory {
            pages: 64,
            page_bytes: 1,
            page_blocks: 1,
            context: 128,
        };
        let clock = Clock::simulated();
        let sim = SimExecutor::new(memory, Arc::new(known.clone()), clock.clone());
        let found = measure_costs(&mut Slow(sim, clock), 3, &mut |_, _| {}).unwrap();
        for (generated, prompt) in [(1, 0), (8, 64), (4, 32), (32, 128)] {
            let load = Load {
                generated,
                prompt,
                ..Load::default()
            };
            let (known, found) = (known.seconds(&load), found.seconds(&load));
            // A busy machine makes steps longer, hardly ever shorter.
            assert!(found > 0.8 * known, "{generated} {prompt}: {found} {known}");
        }
    }
}
