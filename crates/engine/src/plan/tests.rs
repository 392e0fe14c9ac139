use proptest::prelude::*;

use super::*;

/// Every policy.
pub(crate) const POLICIES: [Policy; 5] = [
    Policy::StallFree,
    Policy::PrefillFirst,
    Policy::Orca,
    Policy::Alternate,
    Policy::Static,
];

const LIMITS: Limits = Limits {
    tokens: 8,
    running: 4,
    scored: 8,
    watermark: 0,
};

fn decode(held: usize, missing: usize) -> Task {
    Task {
        running: true,
        ready: true,
        fresh: false,
        left: 1,
        held,
        missing,
        whole: false,
        scored: false,
        level: Level::default(),
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
        ready: true,
        fresh: false,
        left,
        held: 0,
        missing,
        whole: false,
        scored: false,
        level: Level::default(),
    }
}

fn state(tasks: Vec<Task>, free: usize) -> State {
    State {
        tasks,
        free,
        prompts_last: false,
    }
}

fn plan(state: State, limits: &Limits) -> Step {
    Policy::StallFree.plan(&state, limits)
}

fn chunks(tasks: Vec<Task>, free: usize) -> Vec<(usize, usize)> {
    let step = plan(state(tasks, free), &LIMITS);
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
    let step = plan(state(tasks, 0), &LIMITS);
    assert_eq!(step.preempt, [2]);
    assert_eq!(
        step.chunks,
        [Chunk { task: 0, tokens: 1 }, Chunk { task: 1, tokens: 1 }]
    );
}

#[test]
fn the_youngest_gives_its_own_pages_up() {
    let step = plan(state(vec![decode(2, 0), decode(1, 1)], 0), &LIMITS);
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
        plan(state(tasks, free), &limits)
            .chunks
            .iter()
            .any(|c| c.task == 1)
    };
    assert!(!admitted(vec![decode(1, 0), waits(4, 1)], 2));
    assert!(admitted(vec![decode(1, 0), waits(4, 1)], 3));
    assert_eq!(plan(state(vec![waits(4, 1)], 1), &limits).chunks.len(), 1);
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
    let state = state(vec![scored(2), scored(9), prefill(9)], 0);
    let taken: Vec<usize> = plan(state, &limits)
        .chunks
        .iter()
        .map(|c| c.tokens)
        .collect();
    assert_eq!(taken, [2, 1, 5]);
}

/// What a policy computes of two answers and two prompts that wait.
fn composed(policy: Policy, prompts_last: bool) -> Vec<(usize, usize)> {
    let state = State {
        prompts_last,
        ..state(
            vec![decode(1, 0), decode(1, 0), waits(9, 1), waits(3, 1)],
            9,
        )
    };
    let step = policy.plan(&state, &LIMITS);
    step.chunks.iter().map(|c| (c.task, c.tokens)).collect()
}

#[test]
fn policies_compose_steps_as_their_papers_say() {
    let (answers, last) = (vec![(0, 1), (1, 1)], false);
    assert_eq!(composed(Policy::PrefillFirst, last), [(2, 9)]);
    assert_eq!(composed(Policy::Orca, last), [(0, 1), (1, 1), (2, 9)]);
    assert_eq!(composed(Policy::Alternate, false), [(2, 8)]);
    assert_eq!(composed(Policy::Alternate, true), answers);
    assert_eq!(composed(Policy::Static, last), answers);
    assert_eq!(
        Policy::Static
            .plan(&state(vec![waits(9, 1), waits(3, 1)], 9), &LIMITS)
            .chunks
            .len(),
        1
    );
}

#[test]
fn prompts_that_are_not_first_do_not_lengthen_a_prefill_first_step() {
    let state = state(vec![decode(1, 0), waits(3, 1), waits(4, 1), waits(2, 1)], 9);
    let step = Policy::PrefillFirst.plan(&state, &LIMITS);
    let taken: Vec<_> = step.chunks.iter().map(|c| (c.task, c.tokens)).collect();
    assert_eq!(taken, [(1, 3), (2, 4)]);
}

fn at(priority: i32, ahead: u32, task: Task) -> Task {
    Task {
        level: Level {
            priority,
            ahead,
            ..Level::default()
        },
        ..task
    }
}

#[test]
fn one_that_waits_takes_the_place_of_one_that_matters_less() {
    // Four run, as many as may; pages are free.
    let run = |priority, ahead| at(priority, ahead, decode(2, 0));
    let with = |last: Task, waiting: Task| {
        let tasks = vec![run(0, 0), run(0, 0), run(0, 0), waiting, last];
        plan(state(tasks, 9), &LIMITS)
    };
    let urgent = at(-1, 0, waits(2, 1));
    let step = with(run(0, 0), urgent);
    assert_eq!(step.preempt, [4]);
    assert!(step.chunks.contains(&Chunk { task: 3, tokens: 2 }));
    assert!(!step.chunks.iter().any(|c| c.task == 4));

    let equal = at(0, 0, waits(2, 1));
    assert!(with(run(0, 0), equal).preempt.is_empty());
    assert!(with(run(0, 1), equal).preempt.is_empty());
    assert_eq!(with(run(0, 2), equal).preempt, [4]);
    assert_eq!(with(run(1, 0), equal).preempt, [4]);

    let fresh = |task| Task {
        fresh: true,
        ..task
    };
    assert!(with(fresh(run(0, 2)), equal).preempt.is_empty());
    assert_eq!(with(fresh(run(1, 0)), equal).preempt, [4]);

    let beyond = |task: Task| Task {
        level: Level {
            beyond_share: true,
            ..task.level
        },
        ..task
    };
    assert_eq!(with(beyond(run(0, 0)), equal).preempt, [4]);
    assert!(with(beyond(run(0, 0)), beyond(equal)).preempt.is_empty());
}

#[test]
fn a_flood_of_answers_leaves_the_budget_to_others_prompts() {
    let beyond = |task: Task| Task {
        level: Level {
            beyond_share: true,
            ..task.level
        },
        ..task
    };
    let tasks = vec![
        decode(1, 0),
        beyond(decode(1, 0)),
        beyond(decode(1, 0)),
        beyond(prefill(9)),
        prefill(6),
    ];
    assert_eq!(chunks(tasks, 0), [(0, 1), (4, 6), (1, 1)]);
}

#[test]
fn nobody_is_preempted_for_one_that_still_would_not_fit() {
    let tasks = vec![
        decode(2, 0),
        at(-1, 0, waits(2, 11)),
        at(1, 0, decode(3, 0)),
        at(1, 0, decode(3, 0)),
    ];
    assert!(plan(state(tasks.clone(), 2), &LIMITS).preempt.is_empty());
    assert_eq!(plan(state(tasks, 3), &LIMITS).preempt, [3, 2, 0]);
}

#[test]
fn pages_on_their_way_hold_a_task_up_and_nobody_else() {
    let tasks = vec![
        Task {
            ready: false,
            ..prefill(5)
        },
        decode(1, 0),
        waits(3, 1),
    ];
    assert_eq!(chunks(tasks, 9), [(1, 1), (2, 3)]);
}

prop_compose! {
    fn task()(
        running in any::<bool>(), ready in prop::bool::weighted(0.8), left in 1usize..40,
        held in 1usize..5, missing in 0usize..4, scored in prop::bool::weighted(0.2),
        priority in 0i32..3, ahead in 0u32..4, beyond_share in any::<bool>(),
    ) -> Task {
        let left = if left < 20 { 1 } else { left };
        let level = Level { priority, ahead, beyond_share };
        match running {
            true => Task {
                ready, left, scored, level,
                ..decode(held, if left == 1 { missing.min(1) } else { 0 })
            },
            false => Task { scored, level, ..waits(left, missing + 1) },
        }
    }
}

proptest! {
    #[test]
    fn a_step_keeps_its_limits(
        tasks in prop::collection::vec(task(), 0..12), free in 0usize..8, tokens in 4usize..20,
        running in 1usize..5, watermark in 0usize..3, prompts_last in any::<bool>(),
        policy in prop::sample::select(&POLICIES),
    ) {
        let limits = Limits { tokens, running, scored: tokens, watermark };
        let state = State { tasks, free, prompts_last };
        let step = policy.plan(&state, &limits);
        prop_assert_eq!(&step, &policy.plan(&state, &limits));
        let of = |c: &Chunk| state.tasks[c.task];

        // Only the first whole prompt may lengthen a step.
        let sum = step.chunks.iter().map(|c| c.tokens).sum::<usize>();
        let whole = matches!(policy, Policy::PrefillFirst | Policy::Orca | Policy::Static);
        let longest = step.chunks.iter().map(|c| c.tokens).max().unwrap_or(0);
        let most = if whole { tokens + longest } else { tokens };
        prop_assert!(sum <= most);

        let given: usize = step.chunks.iter().map(|c| of(c).missing).sum();
        let back: usize = step.preempt.iter().map(|&i| state.tasks[i].held).sum();
        prop_assert!(given <= free + back);

        let mut seen: Vec<usize> = step.chunks.iter().map(|c| c.task).chain(step.preempt.clone()).collect();
        seen.sort_unstable();
        seen.dedup();
        prop_assert_eq!(seen.len(), step.chunks.len() + step.preempt.len());
        for chunk in &step.chunks {
            prop_assert!((1..=of(chunk).left).contains(&chunk.tokens));
            prop_assert!(of(chunk).ready);
        }

        // Nobody is admitted beyond the limit, and nobody past one that had to stay.
        let admitted = |i: usize| !state.tasks[i].running && step.chunks.iter().any(|c| c.task == i);
        let ran = state.tasks.iter().filter(|t| t.running).count();
        let runs = ran - step.preempt.len() + (0..state.tasks.len()).filter(|&i| admitted(i)).count();
        prop_assert!(runs <= running.max(ran));
        let waiting: Vec<usize> = (0..state.tasks.len()).filter(|&i| !state.tasks[i].running).collect();
        // What is beyond a share may stay where what is not, goes.
        for beyond in [false, true] {
            let alike = |&i: &usize| state.tasks[i].level.beyond_share == beyond;
            let waiting: Vec<usize> = waiting.iter().copied().filter(alike).collect();
            prop_assert!(waiting.windows(2).all(|w| admitted(w[0]) || !admitted(w[1])));
        }

        // Something is done where something can be: nobody is taken who could not run alone.
        let fits = |&i: &usize| state.tasks[i].missing <= free;
        let idle = ran == 0 && !waiting.is_empty() && waiting.iter().all(fits);
        prop_assert!(!idle || !step.chunks.is_empty());
    }
}
