//! What the next step runs: facts in, decision out.
//! Equal states give equal steps; a step never exceeds its limits or the free pages.

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
    /// It holds pages and has been in a step; otherwise it waits.
    pub(crate) running: bool,
    /// Tokens that are known but not computed: 1 decodes, more prefill.
    pub(crate) left: usize,
    /// Pages that it holds.
    pub(crate) held: usize,
    /// Pages that it must get before a step, for all known tokens.
    pub(crate) missing: usize,
    /// All its tokens must be in one step.
    pub(crate) whole: bool,
    /// Its prompt's logits are wanted.
    pub(crate) scored: bool,
}

/// What a step is planned from.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    /// All requests in order of arrival. Those that run arrived before those that wait.
    pub(crate) tasks: Vec<Task>,
    /// Pages that nobody holds.
    pub(crate) free: usize,
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
    /// Running tasks that give back all pages and wait again, youngest first. Comes before `chunks`.
    pub(crate) preempt: Vec<usize>,
    /// What is computed.
    pub(crate) chunks: Vec<Chunk>,
}

/// First come, first served, with chunked prefill: no decode waits for a prompt.
///
/// Follows Sarathi-Serve (Agrawal et al., OSDI 2024): running decodes take one token each;
/// what is left of the budget goes to prompts that have begun, then to those that wait, while
/// all pages of a prompt fit above the watermark. A decode that finds no page takes those of
/// the youngest running request, which is computed again later.
pub(crate) fn plan(state: &State, limits: &Limits) -> Step {
    let tasks = &state.tasks;
    let mut step = Step::default();
    let mut left = Left {
        tokens: limits.tokens,
        scored: limits.scored,
        free: state.free,
        untouched: true,
    };
    let mut running: Vec<usize> = (0..tasks.len()).filter(|&i| tasks[i].running).collect();

    let mut next = 0;
    while next < running.len() && left.tokens > 0 {
        let task = &tasks[running[next]];
        if !task.decodes() {
            next += 1;
            continue;
        }
        while task.missing > left.free && running.len() > next {
            if let Some(youngest) = running.pop() {
                left.free += tasks[youngest].held;
                step.preempt.push(youngest);
            }
        }
        if let Some(&index) = running.get(next) {
            step.chunks.extend(left.take(index, task));
            next += 1;
        }
    }

    for &index in running.iter().filter(|&&i| !tasks[i].decodes()) {
        step.chunks.extend(left.take(index, &tasks[index]));
    }

    if !step.preempt.is_empty() {
        return step;
    }
    let waiting = tasks.iter().enumerate().filter(|(_, task)| !task.running);
    for (runs, (index, task)) in (running.len()..).zip(waiting) {
        let watermark = if runs == 0 { 0 } else { limits.watermark };
        if runs >= limits.running || task.missing + watermark > left.free {
            break;
        }
        let Some(chunk) = left.take(index, task) else {
            break;
        };
        step.chunks.push(chunk);
    }
    step
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
    /// Nothing was taken: a sequence that must be whole may be longer than the budget.
    untouched: bool,
}

impl Left {
    /// As much of a task as fits; its missing pages must be free.
    fn take(&mut self, index: usize, task: &Task) -> Option<Chunk> {
        let room = if task.scored {
            self.tokens.min(self.scored)
        } else {
            self.tokens
        };
        let tokens = match task.whole {
            true if task.left <= room || self.untouched => task.left,
            true => 0,
            false => task.left.min(room),
        };
        if tokens == 0 || task.missing > self.free {
            return None;
        }
        self.untouched = false;
        self.tokens = self.tokens.saturating_sub(tokens);
        if task.scored {
            self.scored = self.scored.saturating_sub(tokens);
        }
        self.free -= task.missing;
        Some(Chunk {
            task: index,
            tokens,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        tokens: 8,
        running: 4,
        scored: 8,
        watermark: 0,
    };

    fn decode(held: usize, missing: usize) -> Task {
        Task {
            running: true,
            left: 1,
            held,
            missing,
            whole: false,
            scored: false,
        }
    }

    fn prefill(left: usize) -> Task {
        Task {
            left,
            ..decode(4, 0)
        }
    }

    fn waits(left: usize, missing: usize) -> Task {
        Task {
            running: false,
            left,
            held: 0,
            missing,
            whole: false,
            scored: false,
        }
    }

    fn chunks(tasks: Vec<Task>, free: usize) -> Vec<(usize, usize)> {
        let step = plan(&State { tasks, free }, &LIMITS);
        step.chunks.iter().map(|c| (c.task, c.tokens)).collect()
    }

    #[test]
    fn decodes_come_first_then_begun_prompts_then_waiting_ones() {
        let tasks = vec![prefill(5), decode(1, 0), waits(9, 1), waits(9, 1)];
        assert_eq!(chunks(tasks, 9), [(1, 1), (0, 5), (2, 2)]);
    }

    #[test]
    fn a_long_prompt_delays_no_decode() {
        let tasks = vec![prefill(8000), decode(1, 0), decode(1, 0), decode(1, 0)];
        assert_eq!(chunks(tasks, 0), [(1, 1), (2, 1), (3, 1), (0, 5)]);
    }

    #[test]
    fn a_decode_without_a_page_takes_the_youngest_requests() {
        let tasks = vec![decode(1, 1), decode(2, 0), decode(3, 0), waits(1, 1)];
        let step = plan(&State { tasks, free: 0 }, &LIMITS);
        assert_eq!(step.preempt, [2]);
        assert_eq!(
            step.chunks,
            [Chunk { task: 0, tokens: 1 }, Chunk { task: 1, tokens: 1 }]
        );
    }

    #[test]
    fn the_youngest_gives_its_own_pages_up() {
        let step = plan(
            &State {
                tasks: vec![decode(2, 0), decode(1, 1)],
                free: 0,
            },
            &LIMITS,
        );
        assert_eq!(
            step,
            Step {
                preempt: vec![1],
                chunks: vec![Chunk { task: 0, tokens: 1 }]
            }
        );
    }

    #[test]
    fn nobody_overtakes_the_first_that_waits() {
        assert_eq!(
            chunks(vec![decode(1, 0), waits(20, 2), waits(1, 1)], 1),
            [(0, 1)]
        );
    }

    #[test]
    fn admission_leaves_the_watermark_unless_nothing_runs() {
        let limits = Limits {
            watermark: 2,
            ..LIMITS
        };
        let admitted = |tasks, free| {
            plan(&State { tasks, free }, &limits)
                .chunks
                .iter()
                .any(|c| c.task == 1)
        };
        assert!(!admitted(vec![decode(1, 0), waits(4, 1)], 2));
        assert!(admitted(vec![decode(1, 0), waits(4, 1)], 3));
        assert_eq!(
            plan(
                &State {
                    tasks: vec![waits(4, 1)],
                    free: 1
                },
                &limits
            )
            .chunks
            .len(),
            1
        );
    }

    #[test]
    fn a_sequence_that_must_be_whole_may_exceed_the_budget_alone() {
        let whole = |left| Task {
            whole: true,
            ..waits(left, 0)
        };
        assert_eq!(chunks(vec![whole(20), whole(3)], 0), [(0, 20)]);
        assert_eq!(chunks(vec![whole(3), whole(20), whole(1)], 0), [(0, 3)]);
    }

    #[test]
    fn scored_prompts_share_their_own_limit() {
        let limits = Limits {
            scored: 3,
            ..LIMITS
        };
        let scored = |left| Task {
            scored: true,
            ..prefill(left)
        };
        let state = State {
            tasks: vec![scored(2), scored(9), prefill(9)],
            free: 0,
        };
        let taken: Vec<usize> = plan(&state, &limits)
            .chunks
            .iter()
            .map(|c| c.tokens)
            .collect();
        assert_eq!(taken, [2, 1, 5]);
    }

    prop_compose! {
        fn tasks()(running in 0usize..6, kinds in prop::collection::vec((1usize..40, 0usize..4, 0usize..3), 0..12))
            -> Vec<Task> {
            kinds.into_iter().enumerate().map(|(i, (left, held, missing))| {
                if i < running {
                    let left = if left < 20 { 1 } else { left };
                    Task { left, ..decode(held + 1, if left == 1 { missing.min(1) } else { 0 }) }
                } else {
                    waits(left, missing + 1)
                }
            }).collect()
        }
    }

    proptest! {
        #[test]
        fn a_step_keeps_its_limits(
            tasks in tasks(), free in 0usize..8, tokens in 1usize..20, running in 1usize..8, watermark in 0usize..3,
        ) {
            let limits = Limits { tokens, running, scored: tokens, watermark };
            let state = State { tasks, free };
            let step = plan(&state, &limits);

            prop_assert!(step.chunks.iter().map(|c| c.tokens).sum::<usize>() <= tokens);
            let given: usize = step.chunks.iter().map(|c| state.tasks[c.task].missing).sum();
            let back: usize = step.preempt.iter().map(|&i| state.tasks[i].held).sum();
            prop_assert!(given <= free + back);

            let mut seen: Vec<usize> = step.chunks.iter().map(|c| c.task).chain(step.preempt.clone()).collect();
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), step.chunks.len() + step.preempt.len());
            for chunk in &step.chunks {
                prop_assert!((1..=state.tasks[chunk.task].left).contains(&chunk.tokens));
            }
            // Those that run stay older than those that wait.
            let runs = |i: usize| {
                let admitted = step.chunks.iter().any(|c| c.task == i);
                (state.tasks[i].running || admitted) && !step.preempt.contains(&i)
            };
            prop_assert!((1..state.tasks.len()).all(|i| runs(i - 1) || !runs(i)));
        }
    }
}
