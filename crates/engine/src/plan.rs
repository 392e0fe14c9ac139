//! What the next step runs: facts in, decision out.
//! Equal states give equal steps; a step never exceeds its limits or the free pages.

mod alternate;
mod orca;
mod prefill_first;
mod stall_free;
mod static_batch;
#[cfg(test)]
pub(crate) mod tests;

/// How a step is composed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Every answer goes on in every step; prompts take what is left of the budget, in pieces
    /// (Sarathi-Serve, Agrawal et al., OSDI 2024).
    #[default]
    StallFree,
    /// Whole prompts first, alone; answers wait meanwhile (as vLLM 0.2 had it).
    PrefillFirst,
    /// Whole prompts and answers in one step (Orca, Yu et al., OSDI 2022).
    Orca,
    /// Steps of pieces of prompts and steps of answers in turn.
    Alternate,
    /// A batch is taken when the last one has ended; nothing joins it.
    Static,
}

impl Policy {
    pub(crate) fn plan(self, state: &State, limits: &Limits) -> Step {
        let compose: &dyn Compose = match self {
            Policy::StallFree => &stall_free::StallFree,
            Policy::PrefillFirst => &prefill_first::PrefillFirst,
            Policy::Orca => &orca::Orca,
            Policy::Alternate => &alternate::Alternate,
            Policy::Static => &static_batch::Static,
        };
        let mut draft = Draft::new(state, limits);
        compose.compose(state, &mut draft);
        draft.step
    }
}

/// A policy: chooses with a draft's few moves what a step does.
trait Compose {
    fn compose(&self, state: &State, draft: &mut Draft<'_>);
}

/// Limits of every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Most tokens of all requests together.
    pub(crate) tokens: usize,
    /// Most requests that run at once.
    pub(crate) running: usize,
    /// Most prompt tokens whose logits are wanted, of all requests together.
    pub(crate) scored: usize,
    /// Free pages that admission leaves, so that a new request does not at once push out an old one.
    pub(crate) watermark: usize,
}

/// A request as the plan sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Task {
    /// It holds pages; otherwise it waits.
    pub(crate) running: bool,
    /// Its pages are all there. One that runs may have some still on their way.
    pub(crate) ready: bool,
    /// It has not got on since it was admitted by what its admission cost: it does not give way
    /// to its equals before it has, or they would take each other's pages in turn for ever.
    pub(crate) fresh: bool,
    /// Tokens that are known but not computed: 1 decodes, more prefill.
    pub(crate) left: usize,
    /// Pages that are free again when it gives up its own.
    pub(crate) held: usize,
    /// Free pages that it takes before a step, for all known tokens.
    pub(crate) missing: usize,
    /// All its tokens must be in one step.
    pub(crate) whole: bool,
    /// Its prompt's logits are wanted.
    pub(crate) scored: bool,
    /// How little it matters: it gives way to one that waits with a lower one.
    pub(crate) level: Level,
}

/// What a request gives way for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Level {
    /// Its caller's priority; lower is sooner.
    pub(crate) priority: i32,
    /// Its tenant has more places or pages than its share, this one's counted.
    pub(crate) beyond_share: bool,
    /// Quanta of service that its tenant is ahead of the one that has had least.
    pub(crate) ahead: u32,
}

impl Level {
    /// Among equals, what is beyond its share gives way to what is not. One that is within it
    /// must be more than a whole quantum ahead, or two would take each other's pages in turn.
    fn yields_to(self, other: Level) -> bool {
        let unfair = (self.beyond_share && !other.beyond_share) || self.ahead > other.ahead + 1;
        self.priority > other.priority || (self.priority == other.priority && unfair)
    }
}

/// What a step is planned from.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    /// All requests, the one to be served soonest first.
    pub(crate) tasks: Vec<Task>,
    /// Pages that can be had at once.
    pub(crate) free: usize,
    /// The last step computed prompts.
    pub(crate) prompts_last: bool,
}

/// One request's part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Index of the task; one that waits is admitted by this.
    pub(crate) task: usize,
    /// Its next tokens.
    pub(crate) tokens: usize,
}

/// The decision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// Running tasks that give back all pages and wait again, the last in order first. Comes
    /// before `chunks`.
    pub(crate) preempt: Vec<usize>,
    /// What is computed.
    pub(crate) chunks: Vec<Chunk>,
}

/// Whether prompts may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prompts {
    Pieces,
    Whole,
}

/// A step in the making.
struct Draft<'a> {
    tasks: &'a [Task],
    limits: &'a Limits,
    /// Tasks that run and can be computed, in order.
    running: Vec<usize>,
    /// All that run, those whose pages are on their way too.
    runs: usize,
    left: Left,
    /// Nobody more is admitted: the next one does not fit, or a running task had to give its
    /// pages to another.
    short: bool,
    step: Step,
}

impl<'a> Draft<'a> {
    fn new(state: &'a State, limits: &'a Limits) -> Draft<'a> {
        let tasks = &state.tasks;
        Draft {
            tasks,
            limits,
            running: (0..tasks.len())
                .filter(|&i| tasks[i].running && tasks[i].ready)
                .collect(),
            runs: tasks.iter().filter(|task| task.running).count(),
            left: Left {
                tokens: limits.tokens,
                scored: limits.scored,
                free: state.free,
                whole: false,
            },
            short: false,
            step: Step::default(),
        }
    }

    /// The running task at this place gives its pages up.
    fn preempt(&mut self, place: usize) {
        let task = self.running.remove(place);
        self.left.free += self.tasks[task].held;
        self.runs -= 1;
        self.step.preempt.push(task);
    }

    /// Free pages that a task which waits must find.
    fn needed(&self, task: &Task, runs: usize) -> usize {
        task.missing + if runs == 0 { 0 } else { self.limits.watermark }
    }

    /// Makes room for those that wait and matter more than the last ones that run.
    fn make_room(&mut self) {
        let (mut taken, mut runs) = (0, self.runs);
        let tasks = self.tasks;
        for task in tasks.iter().filter(|task| !task.running) {
            let yielding = self.running.iter().rev();
            let mut yielding = yielding.take_while(|&&last| {
                let last = &tasks[last];
                let equal = last.level.priority == task.level.priority;
                last.level.yields_to(task.level) && !(equal && last.fresh)
            });
            let (mut preempted, mut free) = (0, self.left.free);
            loop {
                let needed = self.needed(task, runs - preempted) + taken;
                if runs - preempted < self.limits.running && needed <= free {
                    break;
                }
                let Some(&last) = yielding.next() else {
                    return;
                };
                free += tasks[last].held;
                preempted += 1;
            }
            for _ in 0..preempted {
                self.preempt(self.running.len() - 1);
            }
            runs = runs - preempted + 1;
            taken += task.missing;
        }
    }

    /// The next token of every answer. One that finds no page takes those of the last in order.
    fn answers(&mut self) {
        self.answers_of(&|_| true);
    }

    /// The same for some tasks.
    fn answers_of(&mut self, whose: &dyn Fn(&Task) -> bool) {
        let mut next = 0;
        while next < self.running.len() && self.left.tokens > 0 {
            let task = &self.tasks[self.running[next]];
            if !task.decodes() || !whose(task) {
                next += 1;
                continue;
            }
            let index = self.running[next];
            while task.missing > self.left.free && self.running.get(next) == Some(&index) {
                self.short = true;
                let taken = |task| self.step.chunks.iter().any(|chunk| chunk.task == task);
                let last = (next..self.running.len()).rev();
                // Itself at the latest.
                let last = last.into_iter().find(|&place| !taken(self.running[place]));
                self.preempt(last.unwrap_or(next));
            }
            if self.running.get(next) == Some(&index) {
                self.take(index, Prompts::Pieces);
                next += 1;
            }
        }
    }

    /// Prompts in order, begun or waiting; those that wait are admitted while they find a place
    /// and all their pages. Nobody overtakes the first that does not.
    fn prompts(&mut self, prompts: Prompts) {
        self.prompts_of(&|_| true, prompts);
    }

    /// The same for some tasks.
    fn prompts_of(&mut self, whose: &dyn Fn(&Task) -> bool, prompts: Prompts) {
        let tasks = self.tasks;
        for (index, task) in tasks.iter().enumerate().filter(|(_, task)| whose(task)) {
            if task.running {
                let runs = task.ready && !task.decodes();
                if runs && !self.step.preempt.contains(&index) {
                    self.take(index, prompts);
                }
            } else if !self.short {
                let admitted = self.runs < self.limits.running
                    && self.needed(task, self.runs) <= self.left.free
                    && self.take(index, prompts);
                self.short = !admitted;
                self.runs += usize::from(admitted);
            }
        }
    }

    /// As much of a task as fits; its missing pages must be free.
    fn take(&mut self, index: usize, prompts: Prompts) -> bool {
        let tokens = self.left.take(&self.tasks[index], prompts);
        if let Some(tokens) = tokens {
            self.step.chunks.push(Chunk {
                task: index,
                tokens,
            });
        }
        tokens.is_some()
    }

    /// Nothing has been chosen so far.
    fn is_empty(&self) -> bool {
        self.step.chunks.is_empty()
    }
}

impl Task {
    fn decodes(&self) -> bool {
        self.left == 1 && !self.whole
    }
}

/// What the step has not given away yet.
struct Left {
    tokens: usize,
    scored: usize,
    free: usize,
    /// Something whole was taken. The first such thing may be longer than the budget.
    whole: bool,
}

impl Left {
    fn take(&mut self, task: &Task, prompts: Prompts) -> Option<usize> {
        let room = if task.scored {
            self.tokens.min(self.scored)
        } else {
            self.tokens
        };
        // Rows of logits are bounded whatever the policy.
        let whole = task.whole || (prompts == Prompts::Whole && !task.scored);
        let tokens = match whole {
            true if task.left <= room || !self.whole => task.left,
            true => 0,
            false => task.left.min(room),
        };
        if tokens == 0 || task.missing > self.free {
            return None;
        }
        self.whole |= whole;
        self.tokens = self.tokens.saturating_sub(tokens);
        if task.scored {
            self.scored = self.scored.saturating_sub(tokens);
        }
        self.free -= task.missing;
        Some(tokens)
    }
}
