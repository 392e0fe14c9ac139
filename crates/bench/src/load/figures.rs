//! What a run's records say: latencies, throughput, fairness and goodput.
//! Times are in seconds; quantiles are nearest ranks, so each is a time that was measured.

use std::collections::BTreeMap;
use std::time::Duration;

/// What came of a request. Times are since the start of the run.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Conversation, from 0.
    pub conversation: usize,
    /// Turn in the conversation, from 0.
    pub turn: usize,
    /// Who asked, from 0.
    pub tenant: usize,
    /// When it was due.
    pub scheduled: Duration,
    /// When it was sent.
    pub sent: Duration,
    /// When each piece of text came.
    pub chunks: Vec<Duration>,
    /// When the answer ended.
    pub end: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// Tokens of the prompt, as the server counts them.
    pub prompt_tokens: Option<usize>,
    /// Tokens of the prompt that the server had in its cache.
    pub cached_tokens: Option<usize>,
    /// Tokens of the answer, as the server counts them.
    pub output_tokens: Option<usize>,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// With an answer.
    Done,
    /// The server has too much to do (429).
    Refused {
        /// Seconds after which it may be asked again.
        retry_after: Option<f64>,
    },
    /// Otherwise.
    Failed {
        /// What happened.
        why: String,
    },
}

impl Record {
    /// Seconds from when the request was due to the first piece of text, or to the end if the
    /// answer has no text.
    pub fn ttft(&self) -> f64 {
        let first = self.chunks.first().copied().unwrap_or(self.end);
        first.saturating_sub(self.scheduled).as_secs_f64()
    }

    /// Seconds from when the request was due to the end of the answer.
    pub fn e2e(&self) -> f64 {
        self.end.saturating_sub(self.scheduled).as_secs_f64()
    }

    /// Seconds between pieces of text.
    pub fn gaps(&self) -> impl Iterator<Item = f64> {
        self.chunks
            .windows(2)
            .map(|w| w[1].saturating_sub(w[0]).as_secs_f64())
    }

    /// Seconds for each token after the first, if there are any.
    pub fn tpot(&self) -> Option<f64> {
        let (first, last) = (self.chunks.first()?, self.chunks.last()?);
        let rest = self.tokens().checked_sub(1).filter(|n| *n > 0)?;
        Some(last.saturating_sub(*first).as_secs_f64() / rest as f64)
    }

    /// Tokens of the answer; pieces of text where the server does not count.
    pub fn tokens(&self) -> usize {
        self.output_tokens.unwrap_or(self.chunks.len())
    }

    fn done(&self) -> bool {
        self.outcome == Outcome::Done
    }
}

/// What an answer must keep to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slo {
    /// Most time to the first piece of text.
    pub ttft: Duration,
    /// Most time between pieces, 99 % of the times.
    pub tbt: Duration,
}

/// Quantiles, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantiles {
    /// Half are at most this.
    pub p50: f64,
    /// 90 % are at most this.
    pub p90: f64,
    /// 99 % are at most this.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Quantiles {
    /// Of some figures; `None` of none.
    pub fn of(mut figures: Vec<f64>) -> Option<Quantiles> {
        figures.sort_by(f64::total_cmp);
        let max = *figures.last()?;
        // Nearest rank: the least figure that so many hundredths do not exceed.
        let rank = |percent: usize| figures[(percent * figures.len()).div_ceil(100).max(1) - 1];
        Some(Quantiles {
            p50: rank(50),
            p90: rank(90),
            p99: rank(99),
            max,
        })
    }
}

/// A tenant's part.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantFigures {
    /// Who, from 0.
    pub tenant: usize,
    /// Requests that ended.
    pub requests: usize,
    /// Requests that were answered.
    pub done: usize,
    /// To the first piece of text.
    pub ttft: Option<Quantiles>,
    /// Tokens, of prompts and answers, for each second in which a request of the tenant was under
    /// way.
    pub service: f64,
}

/// What a run's records say.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Figures {
    /// Requests that ended.
    pub requests: usize,
    /// Those that were answered.
    pub done: usize,
    /// Those that were refused (429).
    pub refused: usize,
    /// Seconds after which those refused may come again, where the server says so.
    pub retry_after: Option<Quantiles>,
    /// Those that failed otherwise.
    pub failed: usize,
    /// The first failure.
    pub failure: Option<String>,
    /// From the first arrival to the last end.
    pub seconds: f64,
    /// From due to the first piece of text.
    pub ttft: Option<Quantiles>,
    /// Between pieces of text, those of all answers together.
    pub tbt: Option<Quantiles>,
    /// For each token after an answer's first.
    pub tpot: Option<Quantiles>,
    /// From due to the end of the answer.
    pub e2e: Option<Quantiles>,
    /// Tokens of the prompts answered.
    pub prompt_tokens: usize,
    /// Tokens of answers.
    pub output_tokens: usize,
    /// Share of the prompts' tokens that the server had in its cache, if it says so.
    pub cached: Option<f64>,
    /// Jain's index of the tenants' service: 1 if it is equal, 1 / tenants if one gets all.
    pub jain: Option<f64>,
    /// Share of all requests that were answered within the SLO.
    pub goodput: f64,
    /// From due to sent: the generator's own lag.
    pub lag: Option<Quantiles>,
    /// Each tenant's part.
    pub tenants: Vec<TenantFigures>,
}

/// All times between pieces of text.
fn gaps(records: &[Record]) -> Vec<f64> {
    records
        .iter()
        .filter(|r| r.done())
        .flat_map(Record::gaps)
        .collect()
}

impl Figures {
    /// Of the records of a run.
    pub fn of(records: &[Record], slo: Slo) -> Figures {
        let of_done = |figure: fn(&Record) -> f64| {
            let done = records.iter().filter(|r| r.done());
            Quantiles::of(done.map(figure).collect())
        };
        let done = || records.iter().filter(|r| r.done());
        let start = records.iter().map(|r| r.scheduled).min();
        let end = records.iter().map(|r| r.end).max();
        let refused = |r: &&Record| matches!(r.outcome, Outcome::Refused { .. });
        let why = |r: &Record| match &r.outcome {
            Outcome::Failed { why } => Some(why.clone()),
            _ => None,
        };
        let sum = |of: fn(&Record) -> usize| done().map(of).sum::<usize>();
        let prompt_tokens = sum(|r| r.prompt_tokens.unwrap_or(0));
        let says = done().any(|r| r.cached_tokens.is_some());
        let cached = sum(|r| r.cached_tokens.unwrap_or(0));
        let good = done().filter(|r| within(r, slo)).count();
        let tenants = tenants(records);
        let service: Vec<f64> = tenants.iter().map(|t| t.service).collect();
        Figures {
            requests: records.len(),
            done: done().count(),
            refused: records.iter().filter(refused).count(),
            retry_after: Quantiles::of(records.iter().filter_map(retry_after).collect()),
            failed: records.iter().filter_map(why).count(),
            failure: records.iter().find_map(why),
            seconds: start
                .zip(end)
                .map_or(0.0, |(s, e)| e.saturating_sub(s).as_secs_f64()),
            ttft: of_done(Record::ttft),
            tbt: Quantiles::of(gaps(records)),
            tpot: Quantiles::of(done().filter_map(Record::tpot).collect()),
            e2e: of_done(Record::e2e),
            prompt_tokens,
            output_tokens: sum(Record::tokens),
            cached: (says && prompt_tokens > 0).then(|| cached as f64 / prompt_tokens as f64),
            jain: jain(&service),
            goodput: good as f64 / records.len().max(1) as f64,
            lag: Quantiles::of(
                records
                    .iter()
                    .map(|r| r.sent.saturating_sub(r.scheduled).as_secs_f64())
                    .collect(),
            ),
            tenants,
        }
    }

    /// Tokens of answers per second.
    pub fn output_per_second(&self) -> f64 {
        self.output_tokens as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Answers per second.
    pub fn requests_per_second(&self) -> f64 {
        self.done as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Whether the server bears this load, as Sarathi-Serve defines it: the 99th percentile of
    /// the times between pieces and the median of the times to the first keep to the SLO. Here
    /// at most 1 % of the requests may be refused or fail besides.
    pub fn bears(&self, slo: Slo) -> bool {
        let within = |q: Option<f64>, most: Duration| q.is_some_and(|q| q <= most.as_secs_f64());
        // Answers of one piece have no gap to be judged.
        let gaps = self.tbt.is_none() || within(self.tbt.map(|q| q.p99), slo.tbt);
        gaps && within(self.ttft.map(|q| q.p50), slo.ttft)
            && (self.refused + self.failed) * 100 <= self.requests
    }
}

fn retry_after(record: &Record) -> Option<f64> {
    match record.outcome {
        Outcome::Refused { retry_after } => retry_after,
        _ => None,
    }
}

fn within(record: &Record, slo: Slo) -> bool {
    let gaps = Quantiles::of(record.gaps().collect());
    record.ttft() <= slo.ttft.as_secs_f64() && gaps.is_none_or(|q| q.p99 <= slo.tbt.as_secs_f64())
}

fn tenants(records: &[Record]) -> Vec<TenantFigures> {
    let mut parts: BTreeMap<usize, Vec<&Record>> = BTreeMap::new();
    for record in records {
        parts.entry(record.tenant).or_default().push(record);
    }
    let figures = parts.into_iter().map(|(tenant, records)| {
        let done: Vec<&Record> = records.iter().copied().filter(|r| r.done()).collect();
        let tokens = |r: &&Record| r.prompt_tokens.unwrap_or(0) + r.tokens();
        let tokens: usize = done.iter().map(tokens).sum();
        let mut times: Vec<_> = done.iter().map(|r| (r.scheduled, r.end)).collect();
        times.sort_unstable();
        let (mut busy, mut until) = (Duration::ZERO, Duration::ZERO);
        for (from, to) in times {
            busy += to.saturating_sub(from.max(until));
            until = until.max(to);
        }
        TenantFigures {
            tenant,
            requests: records.len(),
            done: done.len(),
            ttft: Quantiles::of(done.iter().map(|r| r.ttft()).collect()),
            service: tokens as f64 / busy.as_secs_f64().max(f64::MIN_POSITIVE),
        }
    });
    figures.collect()
}

/// Jain's index: the squared sum over the number of figures times the sum of squares.
fn jain(figures: &[f64]) -> Option<f64> {
    let sum: f64 = figures.iter().sum();
    let squares: f64 = figures.iter().map(|x| x * x).sum();
    (figures.len() > 1 && squares > 0.0).then(|| sum * sum / (figures.len() as f64 * squares))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn record(tenant: usize, scheduled: u64, chunks: &[u64]) -> Record {
        Record {
            conversation: 0,
            turn: 0,
            tenant,
            scheduled: ms(scheduled),
            sent: ms(scheduled + 1),
            chunks: chunks.iter().map(|&c| ms(c)).collect(),
            end: ms(chunks.last().copied().unwrap_or(scheduled)),
            outcome: Outcome::Done,
            prompt_tokens: Some(10),
            cached_tokens: Some(5),
            output_tokens: Some(chunks.len()),
        }
    }

    const SLO: Slo = Slo {
        ttft: Duration::from_millis(200),
        tbt: Duration::from_millis(50),
    };

    #[test]
    fn figures_are_those_computed_by_hand() {
        let refused = Record {
            outcome: Outcome::Refused {
                retry_after: Some(1.0),
            },
            ..record(1, 2000, &[])
        };
        let failed = Record {
            outcome: Outcome::Failed { why: "x".into() },
            ..record(1, 2000, &[])
        };
        let records = [
            record(0, 0, &[100, 140, 200]),   // gaps 40 and 60: too long
            record(0, 500, &[600, 650, 700]), // gaps 50 and 50: good
            record(1, 1000, &[1300, 1310]),   // first after 300: too late
            record(1, 1000, &[2000]),         // one piece, too late
            refused,
            failed,
        ];
        let f = Figures::of(&records, SLO);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}");
        assert_eq!((f.requests, f.done, f.refused, f.failed), (6, 4, 1, 1));
        assert_eq!(f.failure.as_deref(), Some("x"));
        near(f.retry_after.unwrap().p50, 1.0);
        near(f.seconds, 2.0);
        let ttft = f.ttft.unwrap(); // 100, 100, 300, 1000
        near(ttft.p50, 0.1);
        near(ttft.p90, 1.0);
        near(ttft.max, 1.0);
        let tbt = f.tbt.unwrap(); // 10, 40, 50, 50, 60
        near(tbt.p50, 0.05);
        near(tbt.p99, 0.06);
        let tpot = f.tpot.unwrap(); // 10, 50, 50
        near(tpot.p50, 0.05);
        near(f.e2e.unwrap().p50, 0.2); // 200, 200, 310, 1000
        near(f.output_per_second(), 4.5);
        near(f.requests_per_second(), 2.0);
        near(f.cached.unwrap(), 0.5);
        near(f.goodput, 1.0 / 6.0);
        near(f.lag.unwrap().p99, 0.001);
        // 26 tokens in 0.4 s and 23 in 1 s, the shorter answer within the longer.
        near(f.tenants[0].service, 65.0);
        near(f.tenants[1].service, 23.0);
        near(
            f.jain.unwrap(),
            88.0 * 88.0 / (2.0 * (65.0 * 65.0 + 23.0 * 23.0)),
        );
        near(f.tenants[1].ttft.unwrap().p50, 0.3);
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let q = Quantiles::of((1..=200).rev().map(f64::from).collect()).unwrap();
        assert_eq!((q.p50, q.p90, q.p99, q.max), (100.0, 180.0, 198.0, 200.0));
        let one = Quantiles::of(vec![7.0]).unwrap();
        assert_eq!((one.p50, one.p99), (7.0, 7.0));
        assert_eq!(Quantiles::of(Vec::new()), None);
    }

    #[test]
    fn a_load_is_borne_within_the_slo_and_without_refusals() {
        let good = record(0, 0, &[100, 150, 200]);
        assert!(Figures::of(std::slice::from_ref(&good), SLO).bears(SLO));
        let slow = record(0, 0, &[100, 151, 200]);
        assert!(!Figures::of(&[slow], SLO).bears(SLO));
        let refused = Record {
            outcome: Outcome::Refused { retry_after: None },
            ..good.clone()
        };
        assert!(!Figures::of(&[good, refused], SLO).bears(SLO));
        assert!(!Figures::of(&[], SLO).bears(SLO));
    }

    #[test]
    fn jain_is_1_for_equals_and_a_share_for_one() {
        assert_eq!(jain(&[3.0, 3.0, 3.0]), Some(1.0));
        assert_eq!(jain(&[5.0, 0.0, 0.0, 0.0]), Some(0.25));
        assert_eq!(jain(&[1.0]), None);
        assert_eq!(jain(&[0.0, 0.0]), None);
    }
}
