//! What a step of a language model costs on one machine: a table that was measured there.
//! More work never costs less.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A step, as far as its time depends on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Tokens of answers.
    pub generated: usize,
    /// Tokens of prompts.
    pub prompt: usize,
    /// Positions that the tokens of answers look at, all together.
    pub context: u64,
    /// Positions that the tokens of prompts look at, all together.
    pub pairs: u64,
}

impl Load {
    /// Adds a token of an answer at `position`.
    pub fn add_generated(&mut self, position: usize) {
        self.generated += 1;
        self.context += position as u64 + 1;
    }

    /// Adds `tokens` tokens of a prompt from `position` on.
    pub fn add_prompt(&mut self, position: usize, tokens: usize) {
        self.prompt += tokens;
        self.pairs += pairs(position, tokens);
    }
}

/// Positions that `tokens` tokens from `position` on look at.
fn pairs(position: usize, tokens: usize) -> u64 {
    let (position, tokens) = (position as u64, tokens as u64);
    tokens * position + tokens * (tokens + 1) / 2
}

/// Seconds of a step by its load: a table over tokens of answers and of prompts, between whose
/// entries times are interpolated, and a price for each position that attention looks at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Costs(Stored);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Stored {
    /// Tokens of answers, ascending from 0.
    generated: Vec<usize>,
    /// Tokens of prompts, ascending from 0.
    prompt: Vec<usize>,
    /// `[generated][prompt]` seconds without attention's share.
    table: Vec<f64>,
    /// Seconds for each position that a token of an answer looks at.
    context: f64,
    /// Seconds for each position that a token of a prompt looks at.
    pairs: f64,
}

/// Why figures are no cost model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CostsError {
    /// An axis does not start at 0, does not ascend, or has fewer than two entries.
    #[error("the {axis} axis must ascend from 0 and have at least two entries")]
    Axis {
        /// Which.
        axis: &'static str,
    },
    /// The table is not of the axes' size.
    #[error("the table has {found} entries; its axes say {expected}")]
    Size {
        /// Entries there are.
        found: usize,
        /// Entries there should be.
        expected: usize,
    },
    /// A time is negative or no number.
    #[error("{value} is not a time")]
    Time {
        /// The value.
        value: f64,
    },
}

impl Costs {
    /// From measured seconds `[generated][prompt]` that contain attention over `loads`' positions,
    /// and attention's seconds for each position. Noise that makes more work cheaper is smoothed
    /// away: an entry is at least as large as those of less work.
    ///
    /// # Errors
    /// When an axis or the table's size is wrong or a time is not one.
    pub fn new(
        generated: Vec<usize>,
        prompt: Vec<usize>,
        mut table: Vec<f64>,
        context: f64,
        pairs: f64,
    ) -> Result<Costs, CostsError> {
        let columns = prompt.len().max(1);
        for i in 0..table.len() {
            let above = i.checked_sub(columns).map_or(0.0, |j| table[j]);
            let left = if i % columns > 0 { table[i - 1] } else { 0.0 };
            table[i] = table[i].max(above).max(left);
        }
        Costs::try_from(Stored {
            generated,
            prompt,
            table,
            context,
            pairs,
        })
    }

    /// Expected time of a step.
    pub fn time(&self, load: &Load) -> Duration {
        Duration::from_secs_f64(self.seconds(load).min(1e9))
    }

    /// The same in seconds.
    pub fn seconds(&self, load: &Load) -> f64 {
        let costs = &self.0;
        let (row, y) = place(&costs.generated, load.generated);
        let (column, x) = place(&costs.prompt, load.prompt);
        let columns = costs.prompt.len();
        let at = |i: usize, j: usize| costs.table[(row + i) * columns + column + j];
        let mix = |a: f64, b: f64, share: f64| a + (b - a) * share;
        let (down, right) = (y.min(1.0), x.min(1.0));
        let low = mix(at(0, 0), at(1, 0), down);
        let high = mix(at(0, 1), at(1, 1), down);
        // Beyond the table each axis goes on as it ended beside the most of the other.
        let last = costs.table.len() - 1;
        let end = |before: usize| costs.table[last] - costs.table[last - before];
        let more = (x - right) * end(1) + (y - down) * end(columns);
        let table = mix(low, high, right) + more;
        table + costs.context * load.context as f64 + costs.pairs * load.pairs as f64
    }

    /// Most tokens of a prompt, from `position` on, that fit into a step beside `load` within
    /// `limit`; at most `most`.
    pub fn most_prompt(&self, load: &Load, position: usize, limit: Duration, most: usize) -> usize {
        let limit = limit.as_secs_f64();
        let fits = |tokens: usize| {
            let mut load = *load;
            load.add_prompt(position, tokens);
            self.seconds(&load) <= limit
        };
        if fits(most) {
            return most;
        }
        let (mut fitting, mut not) = (0, most);
        while not - fitting > 1 {
            let middle = fitting + (not - fitting) / 2;
            if fits(middle) {
                fitting = middle;
            } else {
                not = middle;
            }
        }
        fitting
    }

    /// Expected time to compute a whole prompt alone, in steps of `chunk` tokens.
    pub fn prompt_seconds(&self, from: usize, tokens: usize, chunk: usize) -> f64 {
        let chunk = chunk.max(1);
        let (whole, rest) = (tokens / chunk, tokens % chunk);
        let step = |position: usize, tokens: usize| {
            let mut load = Load::default();
            load.add_prompt(position, tokens);
            self.seconds(&load)
        };
        // Attention is linear in the positions: the middle step stands for all.
        let middle = from + whole.saturating_sub(1) * chunk / 2;
        let last = match rest {
            0 => 0.0,
            rest => step(from + whole * chunk, rest),
        };
        whole as f64 * step(middle, chunk) + last
    }
}

/// The entry at or below a value, and how far it is to the next; past the end, beyond 1.
fn place(axis: &[usize], value: usize) -> (usize, f64) {
    let above = axis.partition_point(|&entry| entry <= value);
    let at = (above.max(1) - 1).min(axis.len() - 2);
    let (low, high) = (axis[at] as f64, axis[at + 1] as f64);
    (at, (value as f64 - low) / (high - low))
}

impl TryFrom<Stored> for Costs {
    type Error = CostsError;

    fn try_from(stored: Stored) -> Result<Costs, CostsError> {
        let ascends = |axis: &[usize]| {
            axis.len() >= 2 && axis[0] == 0 && axis.windows(2).all(|pair| pair[0] < pair[1])
        };
        for (axis, name) in [(&stored.generated, "generated"), (&stored.prompt, "prompt")] {
            if !ascends(axis) {
                return Err(CostsError::Axis { axis: name });
            }
        }
        let expected = stored.generated.len() * stored.prompt.len();
        if stored.table.len() != expected {
            let found = stored.table.len();
            return Err(CostsError::Size { found, expected });
        }
        let attention = [stored.context, stored.pairs];
        let mut times = stored.table.iter().copied().chain(attention);
        match times.find(|t| !(t.is_finite() && *t >= 0.0)) {
            Some(value) => Err(CostsError::Time { value }),
            None => Ok(Costs(stored)),
        }
    }
}

impl From<Costs> for Stored {
    fn from(costs: Costs) -> Stored {
        costs.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2 ms for any weights read, then 1 ms a token of an answer and 0.1 ms one of a prompt.
    fn costs() -> Costs {
        let (generated, prompt) = (vec![0, 1, 8], vec![0, 16, 64]);
        let table = generated
            .iter()
            .flat_map(|&g| prompt.iter().map(move |&p| (g, p)))
            .map(|(g, p)| match g + p {
                0 => 0.0,
                _ => 2e-3 + 1e-3 * g as f64 + 1e-4 * p as f64,
            })
            .collect();
        Costs::new(generated, prompt, table, 1e-6, 1e-7).unwrap()
    }

    fn load(generated: usize, prompt: usize) -> Load {
        Load {
            generated,
            prompt,
            ..Load::default()
        }
    }

    #[test]
    fn entries_are_kept_and_between_them_times_are_linear() {
        let costs = costs();
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        near(costs.seconds(&load(0, 0)), 0.0);
        near(costs.seconds(&load(8, 64)), 2e-3 + 8e-3 + 6.4e-3);
        near(costs.seconds(&load(4, 40)), 2e-3 + 4e-3 + 4e-3);
        near(costs.seconds(&load(16, 128)), 2e-3 + 16e-3 + 12.8e-3);
        let mut long = load(0, 0);
        long.add_generated(999);
        long.add_prompt(10, 4);
        assert_eq!((long.context, long.pairs), (1000, 40 + 10));
        near(
            costs.seconds(&long),
            costs.seconds(&load(1, 4)) + 1e-3 + 5e-6,
        );
    }

    #[test]
    fn the_largest_prompt_within_a_limit_is_found() {
        let costs = costs();
        let beside = load(4, 0);
        let limit = Duration::from_millis(9);
        let most = costs.most_prompt(&beside, 100, limit, 512);
        let time = |tokens| {
            let mut load = beside;
            load.add_prompt(100, tokens);
            costs.time(&load)
        };
        assert!(time(most) <= limit && time(most + 1) > limit, "{most}");
        assert_eq!(costs.most_prompt(&beside, 0, limit, 3), 3);
        assert_eq!(costs.most_prompt(&load(8, 0), 0, limit, 512), 0);
    }

    #[test]
    fn a_prompt_in_chunks_costs_the_sum_of_its_steps() {
        let costs = costs();
        let mut sum = 0.0;
        for (position, tokens) in [(5, 16), (21, 16), (37, 16), (53, 2)] {
            let mut load = Load::default();
            load.add_prompt(position, tokens);
            sum += costs.seconds(&load);
        }
        let found = costs.prompt_seconds(5, 50, 16);
        assert!((found - sum).abs() < 1e-9, "{found} {sum}");
    }

    #[test]
    fn figures_that_are_no_costs_are_refused() {
        let new = |g: &[usize], p: &[usize], table: &[f64]| {
            Costs::new(g.to_vec(), p.to_vec(), table.to_vec(), 0.0, 0.0).unwrap_err()
        };
        let axis = |axis| CostsError::Axis { axis };
        assert_eq!(new(&[1, 2], &[0, 1], &[0.0; 4]), axis("generated"));
        assert_eq!(new(&[0, 2], &[0], &[0.0; 2]), axis("prompt"));
        let size = CostsError::Size {
            found: 3,
            expected: 4,
        };
        assert_eq!(new(&[0, 2], &[0, 1], &[0.0; 3]), size);
        let bad = new(&[0, 2], &[0, 1], &[0.0, f64::INFINITY, 0.0, 0.0]);
        assert!(matches!(bad, CostsError::Time { .. }));
    }

    proptest! {
        #[test]
        fn more_work_never_costs_less(
            table in prop::collection::vec(0.0f64..1.0, 12),
            a in (0usize..40, 0usize..100), more in (0usize..9, 0usize..9),
        ) {
            let costs = Costs::new(vec![0, 1, 8, 16], vec![0, 16, 64], table, 1e-6, 1e-6).unwrap();
            let (less, more) = (load(a.0, a.1), load(a.0 + more.0, a.1 + more.1));
            prop_assert!(costs.seconds(&less) <= costs.seconds(&more) + 1e-12);
        }
    }
}
