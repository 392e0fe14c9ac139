//! How many tokens a step may have: as many as keep the time between two tokens of an answer.

use std::time::Duration;

use sedge_clock::{Costs, Load};

/// Prompts take at least this much of a step, so that they end.
const LEAST_PROMPT: usize = 16;

/// What answers may expect, and what steps cost.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    /// Most tokens of a step.
    pub(crate) most: usize,
    /// Most time of a step.
    pub(crate) limit: Option<Duration>,
    /// How much longer steps take than the costs say.
    drift: f64,
}

impl Budget {
    pub(crate) fn new(most: usize, limit: Option<Duration>) -> Budget {
        Budget {
            most,
            limit,
            drift: 1.0,
        }
    }

    /// A step took this long and was expected to take that long.
    pub(crate) fn learn(&mut self, took: Duration, expected: Duration) {
        let ratio = took.as_secs_f64() / expected.as_secs_f64().max(1e-6);
        self.drift += (ratio.clamp(0.5, 3.0) - self.drift) / 16.0;
    }

    /// Tokens of a step whose answers are `answers` and whose first prompt goes on at `position`.
    pub(crate) fn tokens(&self, costs: Option<&Costs>, answers: &Load, position: usize) -> usize {
        let (Some(costs), Some(limit)) = (costs, self.limit) else {
            return self.most;
        };
        let room = self.most.saturating_sub(answers.generated);
        let limit = limit.div_f64(self.drift);
        let prompt = costs.most_prompt(answers, position, limit, room);
        answers.generated + prompt.max(LEAST_PROMPT.min(room))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs() -> Costs {
        let table = vec![0.0, 16e-3, 1e-3, 17e-3];
        Costs::new(vec![0, 1], vec![0, 16], table, 0.0, 1e-6).unwrap()
    }

    fn answers(generated: usize) -> Load {
        Load {
            generated,
            ..Load::default()
        }
    }

    #[test]
    fn a_step_is_as_large_as_its_time_allows() {
        let costs = costs();
        let budget = Budget::new(512, Some(Duration::from_millis(50)));
        // 1 ms a token and 1 µs a position.
        let tokens = budget.tokens(Some(&costs), &answers(4), 0);
        assert!((44..=50).contains(&tokens), "{tokens}");
        assert!(budget.tokens(Some(&costs), &answers(4), 2000) < tokens);
        assert_eq!(budget.tokens(Some(&costs), &answers(100), 0), 116);
        assert_eq!(budget.tokens(None, &answers(4), 0), 512);
    }

    #[test]
    fn steps_that_take_longer_than_expected_become_smaller() {
        let costs = costs();
        let mut budget = Budget::new(512, Some(Duration::from_millis(50)));
        let before = budget.tokens(Some(&costs), &answers(1), 0);
        for _ in 0..100 {
            budget.learn(Duration::from_millis(20), Duration::from_millis(10));
        }
        let after = budget.tokens(Some(&costs), &answers(1), 0);
        assert!(
            (before / 2 - 2..=before / 2 + 2).contains(&after),
            "{before} {after}"
        );
    }
}
