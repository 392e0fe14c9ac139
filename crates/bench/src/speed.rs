//! Speed of a model: prompts, generation, and both far into a context, through an executor.
//! What is timed is whole steps, sampling by the largest logit included, as a server takes them.

use std::time::{Duration, Instant};

use sedge_engine::Executor;
use sedge_kernels::{PAGE_TOKENS, Segment, argmax};
use sedge_models::{Batch, Outputs, Variant};

/// Tokens of a prompt that a step takes.
const STEP: usize = 512;

/// One thing to time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Task {
    /// A prompt of so many tokens.
    Prompt {
        /// Tokens.
        tokens: usize,
        /// Tokens that are there before it.
        depth: usize,
    },
    /// Generation, one token a step in each of some sequences.
    Generate {
        /// Tokens of each sequence.
        tokens: usize,
        /// Tokens that each sequence has before.
        depth: usize,
        /// Sequences.
        batch: usize,
    },
}

impl Task {
    /// Tokens that are computed.
    pub fn tokens(&self) -> usize {
        match *self {
            Task::Prompt { tokens, .. } => tokens,
            Task::Generate { tokens, batch, .. } => tokens * batch,
        }
    }

    /// Positions of one sequence.
    pub fn positions(&self) -> usize {
        match *self {
            Task::Prompt { tokens, depth } | Task::Generate { tokens, depth, .. } => tokens + depth,
        }
    }

    /// Pages of keys and values that it takes.
    pub fn pages(&self) -> usize {
        let batch = match *self {
            Task::Prompt { .. } => 1,
            Task::Generate { batch, .. } => batch,
        };
        self.positions().div_ceil(PAGE_TOKENS) * batch
    }
}

impl std::fmt::Display for Task {
    /// As llama-bench calls it: `pp512`, `tg128`, `tg128 @ d8192`, `tg64 × 16`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let depth = match *self {
            Task::Prompt { tokens, depth } => {
                write!(f, "pp{tokens}")?;
                depth
            }
            Task::Generate {
                tokens,
                depth,
                batch,
            } => {
                write!(f, "tg{tokens}")?;
                if batch > 1 {
                    write!(f, " × {batch}")?;
                }
                depth
            }
        };
        if depth > 0 {
            write!(f, " @ d{depth}")?;
        }
        Ok(())
    }
}

/// Times one task. What comes before it is computed first, and not timed.
///
/// # Panics
/// When the executor has too few pages or positions: the caller has asked for [`Task::pages`].
pub fn time(executor: &mut dyn Executor, task: Task) -> Duration {
    time_of(executor, task, &[])
}

/// The same with what computes each sequence; the first member of the model where there is none.
///
/// # Panics
/// As [`time`].
pub fn time_of(executor: &mut dyn Executor, task: Task, variants: &[Variant]) -> Duration {
    let mut run = Run::new(executor, task);
    run.variants = variants;
    match task {
        Task::Prompt { tokens, depth } => {
            run.prompt(0, depth);
            let start = Instant::now();
            run.prompt(depth, tokens);
            start.elapsed()
        }
        Task::Generate {
            tokens,
            depth,
            batch,
        } => {
            for sequence in 0..batch {
                run.sequence = sequence;
                run.prompt(0, depth);
            }
            let start = Instant::now();
            for position in depth..depth + tokens {
                run.generate(position, batch);
            }
            start.elapsed()
        }
    }
}

/// Gives each sequence of a [`Task::Generate`] what comes before: the prompt is computed once, and
/// its pages are copied to the others', which are read as others are.
///
/// # Panics
/// As [`time`].
pub fn fill(executor: &mut dyn Executor, task: Task) {
    let Task::Generate { depth, batch, .. } = task else {
        return;
    };
    let mut run = Run::new(executor, task);
    run.prompt(0, depth);
    let from = run.pages_of(0);
    for sequence in 1..batch {
        for (from, to) in from.clone().zip(run.pages_of(sequence)) {
            run.executor.copy_page(from, to);
        }
    }
}

/// Times the generation of a task whose sequences are [filled](fill): of this task, or of one with
/// more of the same sequences.
///
/// # Panics
/// As [`time`].
pub fn generate(executor: &mut dyn Executor, task: Task) -> Duration {
    let start = Instant::now();
    if let Task::Generate {
        tokens,
        depth,
        batch,
    } = task
    {
        let mut run = Run::new(executor, task);
        for position in depth..depth + tokens {
            run.generate(position, batch);
        }
    }
    start.elapsed()
}

struct Run<'a> {
    executor: &'a mut dyn Executor,
    vocab: usize,
    /// Pages of one sequence.
    pages: usize,
    sequence: usize,
    /// The last token of each sequence.
    last: Vec<u32>,
    /// What computes each.
    variants: &'a [Variant],
    batch: Batch,
    out: Outputs,
}

impl<'a> Run<'a> {
    fn new(executor: &'a mut dyn Executor, task: Task) -> Run<'a> {
        let vocab = executor.shape().vocab;
        let pages = task.positions().div_ceil(PAGE_TOKENS);
        let sequences = task.pages() / pages.max(1);
        Run {
            executor,
            vocab,
            pages,
            sequence: 0,
            last: (0..sequences).map(|s| (s * 31 % vocab) as u32).collect(),
            variants: &[],
            batch: Batch::default(),
            out: Outputs::default(),
        }
    }

    fn variant(&self, sequence: usize) -> Variant {
        self.variants.get(sequence).cloned().unwrap_or_default()
    }

    fn pages_of(&self, sequence: usize) -> std::ops::Range<u32> {
        (sequence * self.pages) as u32..((sequence + 1) * self.pages) as u32
    }

    /// Computes a prompt of the current sequence; the last token's logits only.
    fn prompt(&mut self, position: usize, tokens: usize) {
        for start in (0..tokens).step_by(STEP) {
            let n = STEP.min(tokens - start);
            let first = position + start;
            self.batch.clear();
            // Any tokens do; these come from all of the vocabulary.
            let token = |i: usize| ((first + i) * 7919 % self.vocab) as u32;
            self.batch.tokens.extend((0..n).map(token));
            let pages = self.pages_of(self.sequence);
            self.batch.tables.extend(pages);
            self.batch.segments.push(Segment {
                rows: 0..n,
                position: first,
                pages: 0..self.pages,
            });
            self.batch.variants.push(self.variant(self.sequence));
            if start + n == tokens {
                self.batch.logits.push(n as u32 - 1);
            }
            self.executor.forward(&self.batch, &mut self.out);
        }
    }

    /// One token more in each sequence.
    fn generate(&mut self, position: usize, sequences: usize) {
        self.batch.clear();
        for s in 0..sequences {
            let pages = self.pages_of(s);
            self.batch.tokens.push(self.last[s]);
            self.batch.tables.extend(pages);
            self.batch.segments.push(Segment {
                rows: s..s + 1,
                position,
                pages: s * self.pages..(s + 1) * self.pages,
            });
            self.batch.variants.push(self.variant(s));
            self.batch.logits.push(s as u32);
        }
        self.batch.generated = sequences;
        self.executor.forward(&self.batch, &mut self.out);
        for (last, logits) in self.last.iter_mut().zip(self.out.logits.chunks(self.vocab)) {
            *last = argmax(logits) as u32;
        }
    }
}

/// Median and range of a figure over repeats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Half are below, half above.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of some figures; `None` of none.
    pub fn of(figures: &[f64]) -> Option<Spread> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
            _ => sorted[middle],
        };
        Some(Spread { median, min, max })
    }
}

#[cfg(test)]
mod tests {
    use sedge_engine::Shape;

    use super::*;

    /// Checks that every batch fits together, and says token 3.
    struct Checker {
        computed: usize,
        copied: Vec<(u32, u32)>,
        pages: usize,
    }

    impl Executor for Checker {
        fn shape(&self) -> Shape {
            Shape {
                vocab: 10,
                hidden: 1,
                context: 4096,
                pages: self.pages,
                bidirectional: false,
                pooling: Default::default(),
                members: 1,
            }
        }

        fn copy_page(&mut self, from: u32, to: u32) {
            self.copied.push((from, to));
        }

        fn forward(&mut self, batch: &Batch, out: &mut Outputs) {
            for segment in &batch.segments {
                let end = segment.position + segment.rows.len();
                assert!(segment.pages.len() * PAGE_TOKENS >= end);
                let tables = &batch.tables[segment.pages.clone()];
                assert!(tables.iter().all(|&page| (page as usize) < self.pages));
            }
            let mut tables = batch.tables.clone();
            tables.sort_unstable();
            tables.dedup();
            assert_eq!(tables.len(), batch.tables.len(), "sequences share no page");
            assert!(batch.tokens.iter().all(|&t| t < 10));
            self.computed += batch.tokens.len();
            out.logits = vec![0.0; 10 * batch.logits.len()];
            out.logits
                .iter_mut()
                .skip(3)
                .step_by(10)
                .for_each(|x| *x = 1.0);
        }
    }

    #[test]
    fn a_task_computes_its_tokens_and_those_before() {
        for (task, computed) in [
            (
                Task::Prompt {
                    tokens: 700,
                    depth: 100,
                },
                800,
            ),
            (
                Task::Generate {
                    tokens: 5,
                    depth: 17,
                    batch: 3,
                },
                66,
            ),
            (
                Task::Generate {
                    tokens: 5,
                    depth: 0,
                    batch: 1,
                },
                5,
            ),
        ] {
            let mut checker = Checker {
                computed: 0,
                copied: Vec::new(),
                pages: task.pages(),
            };
            time(&mut checker, task);
            assert_eq!(checker.computed, computed, "{task}");
        }
    }

    #[test]
    fn sequences_are_filled_once_and_generate_as_often_as_asked() {
        let task = |batch| Task::Generate {
            tokens: 5,
            depth: 40,
            batch,
        };
        let mut checker = Checker {
            computed: 0,
            copied: Vec::new(),
            pages: task(3).pages(),
        };
        fill(&mut checker, task(3));
        assert_eq!(checker.computed, 40);
        let copies = [(0, 3), (1, 4), (2, 5), (0, 6), (1, 7), (2, 8)];
        assert_eq!(checker.copied, copies);
        generate(&mut checker, task(3));
        generate(&mut checker, task(2));
        assert_eq!(checker.computed, 40 + 15 + 10);
    }

    #[test]
    fn tasks_are_called_as_elsewhere() {
        let names = [
            Task::Prompt {
                tokens: 512,
                depth: 0,
            },
            Task::Generate {
                tokens: 128,
                depth: 8192,
                batch: 1,
            },
            Task::Generate {
                tokens: 64,
                depth: 0,
                batch: 16,
            },
        ]
        .map(|t| t.to_string());
        assert_eq!(names, ["pp512", "tg128 @ d8192", "tg64 × 16"]);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = |x: &[f64]| Spread::of(x).unwrap();
        assert_eq!(
            spread(&[3.0, 1.0, 2.0]),
            Spread {
                median: 2.0,
                min: 1.0,
                max: 3.0
            }
        );
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of(&[]), None);
    }
}
