//! Servers beside each other: each figure over the seeds, and its ratio to the first server's,
//! seed by seed.

use super::figures::Figures;
use super::play::Run;
use crate::Spread;

/// One run of one server.
#[derive(Debug, Clone)]
pub struct Trial {
    /// Which server, from 0.
    pub server: usize,
    /// Seed of the workload.
    pub seed: u64,
    /// What came of it.
    pub run: Run,
    /// What that says.
    pub figures: Figures,
}

/// What a figure is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds, shown as milliseconds.
    Seconds,
    /// Per second.
    PerSecond,
    /// Of 1, shown in percent.
    Share,
    /// Things.
    Count,
    /// No unit.
    Index,
}

impl Unit {
    /// The value for a reader, without the unit.
    pub fn show(self, value: f64) -> String {
        match self {
            Unit::Seconds => format!("{:.1}", value * 1e3),
            Unit::PerSecond => format!("{value:.2}"),
            Unit::Share => format!("{:.1}", value * 100.0),
            Unit::Count => format!("{value:.0}"),
            Unit::Index => format!("{value:.3}"),
        }
    }

    /// What stands behind values.
    pub fn sign(self) -> &'static str {
        match self {
            Unit::Seconds => "ms",
            Unit::PerSecond => "/s",
            Unit::Share => "%",
            Unit::Count | Unit::Index => "",
        }
    }
}

/// A figure over the seeds.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// For readers: `TTFT p50`.
    pub name: &'static str,
    /// For programs: `ttft_p50`.
    pub key: &'static str,
    /// What it is counted in.
    pub unit: Unit,
    /// Its median and range; `None` if no run has it.
    pub spread: Option<Spread>,
    /// Its ratio to the first server's, seed by seed.
    pub ratio: Option<Spread>,
}

/// A server's figures over the seeds.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Which server, from 0.
    pub server: usize,
    /// Runs.
    pub runs: usize,
    /// The figures, the same ones in the same order for every server.
    pub figures: Vec<Figure>,
}

/// Each server that has runs, in order.
pub fn summarize(trials: &[Trial]) -> Vec<Summary> {
    let servers = trials.iter().map(|t| t.server + 1).max().unwrap_or(0);
    let of = |server: usize| trials.iter().filter(move |t| t.server == server);
    (0..servers)
        .filter(|&server| of(server).next().is_some())
        .map(|server| Summary {
            server,
            runs: of(server).count(),
            figures: values(&Figures::default())
                .into_iter()
                .enumerate()
                .map(|(i, (name, key, unit, _))| {
                    let value = |t: &Trial| values(&t.figures)[i].3;
                    let figures: Vec<f64> = of(server).filter_map(value).collect();
                    let ratios: Vec<f64> = of(server)
                        .filter_map(|t| {
                            let first = of(0).find(|f| f.seed == t.seed)?;
                            let ratio = value(t)? / value(first)?;
                            ratio.is_finite().then_some(ratio)
                        })
                        .collect();
                    Figure {
                        name,
                        key,
                        unit,
                        spread: Spread::of(&figures),
                        ratio: (server > 0).then(|| Spread::of(&ratios)).flatten(),
                    }
                })
                .collect(),
        })
        .collect()
}

type Named = (&'static str, &'static str, Unit, Option<f64>);

/// The figures of a run, in the order in which they are shown.
fn values(f: &Figures) -> Vec<Named> {
    use Unit::{Count, Index, PerSecond, Seconds, Share};
    let q = |name, key, value| (name, key, Seconds, value);
    let some = |unit, name, key, value| (name, key, unit, Some(value));
    vec![
        q("TTFT p50", "ttft_p50", f.ttft.map(|q| q.p50)),
        q("TTFT p90", "ttft_p90", f.ttft.map(|q| q.p90)),
        q("TTFT p99", "ttft_p99", f.ttft.map(|q| q.p99)),
        q("TTFT max", "ttft_max", f.ttft.map(|q| q.max)),
        q("TBT p50", "tbt_p50", f.tbt.map(|q| q.p50)),
        q("TBT p90", "tbt_p90", f.tbt.map(|q| q.p90)),
        q("TBT p99", "tbt_p99", f.tbt.map(|q| q.p99)),
        q("TBT max", "tbt_max", f.tbt.map(|q| q.max)),
        q("TPOT p50", "tpot_p50", f.tpot.map(|q| q.p50)),
        q("TPOT p90", "tpot_p90", f.tpot.map(|q| q.p90)),
        q("TPOT p99", "tpot_p99", f.tpot.map(|q| q.p99)),
        q("TPOT max", "tpot_max", f.tpot.map(|q| q.max)),
        q("E2E p50", "e2e_p50", f.e2e.map(|q| q.p50)),
        q("E2E p90", "e2e_p90", f.e2e.map(|q| q.p90)),
        q("E2E p99", "e2e_p99", f.e2e.map(|q| q.p99)),
        q("E2E max", "e2e_max", f.e2e.map(|q| q.max)),
        some(
            PerSecond,
            "output tokens",
            "output_tokens_per_second",
            f.output_per_second(),
        ),
        some(
            PerSecond,
            "requests",
            "requests_per_second",
            f.requests_per_second(),
        ),
        some(Share, "goodput", "goodput", f.goodput),
        ("cached of prompts", "cached_share", Share, f.cached),
        ("Jain's index", "jain", Index, f.jain),
        some(Count, "answered", "done", f.done as f64),
        some(Count, "refused", "refused", f.refused as f64),
        some(Count, "failed", "failed", f.failed as f64),
        q("own lag p99", "lag_p99", f.lag.map(|q| q.p99)),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::figures::Quantiles;
    use super::*;

    fn trial(server: usize, seed: u64, p50: f64) -> Trial {
        let ttft = Some(Quantiles {
            p50,
            p90: p50,
            p99: p50,
            max: p50,
        });
        Trial {
            server,
            seed,
            run: Run::default(),
            figures: Figures {
                ttft,
                ..Figures::default()
            },
        }
    }

    #[test]
    fn ratios_are_paired_by_seed() {
        let trials = [
            trial(0, 1, 1.0),
            trial(1, 1, 2.0),
            trial(0, 2, 10.0),
            trial(1, 2, 30.0),
            trial(1, 3, 7.0), // has no pair
        ];
        let summaries = summarize(&trials);
        let spread = |min, median, max| Some(Spread { min, median, max });
        assert_eq!(summaries[0].figures[0].spread, spread(1.0, 5.5, 10.0));
        assert_eq!(summaries[0].figures[0].ratio, None);
        assert_eq!(summaries[1].figures[0].spread, spread(2.0, 7.0, 30.0));
        assert_eq!(summaries[1].figures[0].ratio, spread(2.0, 2.5, 3.0));
        // Nothing was cached, and nothing over nothing is no ratio.
        assert!(
            summaries[1]
                .figures
                .iter()
                .all(|f| f.name != "goodput" || f.ratio.is_none())
        );
    }
}
