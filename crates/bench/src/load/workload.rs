//! Who asks what and when, as plain data.
//! Equal specifications and seeds give equal workloads; what one tenant asks for depends on no
//! other.

use std::str::FromStr;
use std::time::Duration;

use super::rng::Rng;
use super::trace::Trace;

/// Purposes of random streams.
mod purpose {
    pub(super) const ARRIVALS: u64 = 1;
    pub(super) const LENGTHS: u64 = 2;
    pub(super) const TENANTS: u64 = 3;
    pub(super) const TURNS: u64 = 4;
    pub(super) const THINK: u64 = 5;
    pub(super) const MODELS: u64 = 6;
    /// Added for the flood's streams.
    pub(super) const FLOOD: u64 = 100;
}

/// A request to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// For a conversation's first turn, its arrival since the start; for a later one, the time
    /// that the user thinks after the end of the answer before.
    pub at: Duration,
    /// Conversation, from 0.
    pub conversation: usize,
    /// Turn in the conversation, from 0.
    pub turn: usize,
    /// Who asks, from 0.
    pub tenant: usize,
    /// What is asked, from 0: among several models of a server.
    pub model: usize,
    /// Tokens that this turn adds to the prompt; at least 1.
    pub prompt_tokens: usize,
    /// Tokens of the answer; at least 1.
    pub output_tokens: usize,
}

/// Requests: conversations in order of arrival, each with its turns in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// The requests.
    pub requests: Vec<Planned>,
}

impl Workload {
    /// The conversations, in order of arrival: the turns of each.
    pub fn conversations(&self) -> impl Iterator<Item = &[Planned]> {
        self.requests
            .chunk_by(|a, b| a.conversation == b.conversation)
    }
}

/// When conversations begin.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrivals {
    /// Independent of each other.
    Poisson {
        /// Conversations per second.
        rate: f64,
    },
    /// In bursts (`cv` above 1) or more evenly (below): gaps are Gamma distributed.
    Gamma {
        /// Conversations per second.
        rate: f64,
        /// Coefficient of variation of the gaps.
        cv: f64,
    },
    /// At equal gaps.
    Uniform {
        /// Conversations per second.
        rate: f64,
    },
    /// At the times of the trace.
    Trace {
        /// How many times as fast.
        speed: f64,
    },
}

/// A fixed length or a uniform range, ends included: `128` or `16-256`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Length {
    /// Least tokens.
    pub low: usize,
    /// Most tokens.
    pub high: usize,
}

impl FromStr for Length {
    type Err = String;

    fn from_str(text: &str) -> Result<Length, String> {
        let wrong = || format!("{text:?} is not a length such as 128 or 16-256");
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
        let (low, high) = (number(low)?, number(high)?);
        match 1 <= low && low <= high {
            true => Ok(Length { low, high }),
            false => Err(wrong()),
        }
    }
}

/// How long prompts and answers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lengths {
    /// As in a trace: rows in an order shuffled by the seed, or, if arrivals are the trace's,
    /// from its start on.
    Trace(Trace),
    /// Drawn, independently of each other.
    Drawn {
        /// Of the tokens that a turn adds to the prompt.
        prompt: Length,
        /// Of the answer.
        output: Length,
    },
}

/// What a workload is made from.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkloadSpec {
    /// Requests, those of the flood aside.
    pub requests: usize,
    /// When conversations begin.
    pub arrivals: Arrivals,
    /// How long prompts and answers are.
    pub lengths: Lengths,
    /// Lengths are divided by this, down to 1 at least.
    pub scale: f64,
    /// Most tokens that a turn adds to the prompt.
    pub prompt_cap: Option<usize>,
    /// Most tokens of an answer.
    pub output_cap: Option<usize>,
    /// Most tokens of a conversation: it ends before the turn that would exceed them.
    pub context: Option<usize>,
    /// Mean turns of a conversation; their number is geometric. 1 for single requests.
    pub turns: f64,
    /// Mean time between an answer and the next turn; exponential.
    pub think: Duration,
    /// Tenants, each with an equal share of the requests.
    pub tenants: usize,
    /// Models that are asked.
    pub models: usize,
    /// How unequal they are: the model of rank r gets a share of 1 / r to this power (Zipf), so 0
    /// asks all alike.
    pub skew: f64,
    /// Tenant 0 sends so many times the requests of each other; what is more than its share comes
    /// on top of the rate. 1 for no flood.
    pub flood: f64,
}

impl Default for WorkloadSpec {
    /// A hundred single requests at 1 per second, 128 tokens in and 32 out.
    fn default() -> WorkloadSpec {
        WorkloadSpec {
            requests: 100,
            arrivals: Arrivals::Poisson { rate: 1.0 },
            lengths: Lengths::Drawn {
                prompt: Length {
                    low: 128,
                    high: 128,
                },
                output: Length { low: 32, high: 32 },
            },
            scale: 1.0,
            prompt_cap: None,
            output_cap: None,
            context: None,
            turns: 1.0,
            think: Duration::from_secs(1),
            tenants: 1,
            models: 1,
            skew: 0.0,
            flood: 1.0,
        }
    }
}

/// Why no workload can be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WorkloadError {
    /// A number makes no sense.
    #[error("{what} is {value}; it must be {must}")]
    Number {
        /// Which.
        what: &'static str,
        /// What it is.
        value: f64,
        /// What it must be.
        must: &'static str,
    },
    /// Arrivals of a trace that has no times.
    #[error("arrivals are to be the trace's, and there is no trace with times")]
    NoTimes,
    /// Times of a trace are for single requests.
    #[error("a trace's arrivals are those of single requests: there are no turns")]
    TurnsOfTrace,
    /// Nothing fits.
    #[error("a conversation of {context} tokens has no room for a prompt and an answer")]
    Context {
        /// Tokens allowed.
        context: usize,
    },
}

impl WorkloadSpec {
    /// The workload of this seed.
    pub fn build(&self, seed: u64) -> Result<Workload, WorkloadError> {
        self.check()?;
        let mut conversations = self.conversations(seed, 0, self.arrivals, self.requests);
        let mut tenants = Rng::new(seed, purpose::TENANTS);
        for (conversation, turns) in conversations.iter_mut().enumerate() {
            let tenant = tenants.below(self.tenants);
            for turn in turns {
                (turn.conversation, turn.tenant) = (conversation, tenant);
            }
        }
        if self.flood > 1.0 {
            let end = conversations.last().map_or(0.0, |c| c[0].at.as_secs_f64());
            let rate = conversations.len() as f64 / end.max(f64::MIN_POSITIVE);
            let share = (self.flood - 1.0) / self.tenants as f64;
            let (base, most) = (conversations.len(), share * conversations.len() as f64);
            let arrivals = Arrivals::Poisson { rate: share * rate };
            // Twice as many as expected, of which those within the others' time count.
            let most = (2.0 * most * self.turns) as usize + 16;
            let mut flood = self.conversations(seed, purpose::FLOOD, arrivals, most);
            flood.retain(|c| c[0].at.as_secs_f64() <= end);
            for (i, turns) in flood.iter_mut().enumerate() {
                for turn in turns {
                    turn.conversation = base + i;
                }
            }
            conversations.append(&mut flood);
            conversations.sort_by_key(|c| c[0].at);
        }
        let mut models = Rng::new(seed, purpose::MODELS);
        let shares = self.shares();
        for turns in &mut conversations {
            let at = models.unit();
            let model = shares
                .partition_point(|&share| share < at)
                .min(self.models - 1);
            turns.iter_mut().for_each(|turn| turn.model = model);
        }
        let requests = conversations.into_iter().flatten().collect();
        Ok(Workload { requests })
    }

    /// The share of all models up to each.
    fn shares(&self) -> Vec<f64> {
        let weight = |rank: usize| (rank as f64).powf(-self.skew);
        let all: f64 = (1..=self.models).map(weight).sum();
        let mut sum = 0.0;
        let share = |rank| {
            sum += weight(rank) / all;
            sum
        };
        (1..=self.models).map(share).collect()
    }

    fn check(&self) -> Result<(), WorkloadError> {
        let number = |what, value: f64, valid: bool, must| match valid && value.is_finite() {
            true => Ok(()),
            false => Err(WorkloadError::Number { what, value, must }),
        };
        let positive = |what, value: f64| {
            // Beyond, times overflow.
            let valid = (1e-6..=1e9).contains(&value);
            number(what, value, valid, "above 0, from 1e-6 to 1e9")
        };
        let at_least_one = |what, value: f64| {
            let valid = (1.0..=1e9).contains(&value);
            number(what, value, valid, "1 or more")
        };
        match self.arrivals {
            Arrivals::Poisson { rate } | Arrivals::Uniform { rate } => positive("the rate", rate)?,
            Arrivals::Gamma { rate, cv } => {
                positive("the rate", rate)?;
                // Beyond, draws of Gamma underflow.
                number("the CV", cv, (0.01..=20.0).contains(&cv), "0.01 to 20")?;
            }
            Arrivals::Trace { speed } => {
                positive("the speed of the trace", speed)?;
                if self.turns > 1.0 {
                    return Err(WorkloadError::TurnsOfTrace);
                }
                match &self.lengths {
                    Lengths::Trace(trace) if trace.rows()[0].at.is_some() => {}
                    _ => return Err(WorkloadError::NoTimes),
                }
            }
        }
        at_least_one("the number of requests", self.requests as f64)?;
        at_least_one("the scale", self.scale)?;
        at_least_one("the mean of turns", self.turns)?;
        at_least_one("the number of tenants", self.tenants as f64)?;
        at_least_one("the number of models", self.models as f64)?;
        let skew = (0.0..=10.0).contains(&self.skew);
        number("the skew of models", self.skew, skew, "from 0 to 10")?;
        at_least_one("the flood", self.flood)?;
        let think = self.think.as_secs_f64();
        number(
            "the time to think",
            think,
            think <= 86_400.0,
            "a day at most",
        )?;
        match self.context {
            Some(context) if context < 2 => Err(WorkloadError::Context { context }),
            _ => Ok(()),
        }
    }

    /// So many requests in conversations, in order of arrival.
    fn conversations(
        &self,
        seed: u64,
        stream: u64,
        arrivals: Arrivals,
        requests: usize,
    ) -> Vec<Vec<Planned>> {
        let rng = |purpose| Rng::new(seed, purpose + stream);
        let mut gaps = rng(purpose::ARRIVALS);
        let mut turns = rng(purpose::TURNS);
        let mut think = rng(purpose::THINK);
        let mut lengths = self.lengths(rng(purpose::LENGTHS), arrivals);
        let mut now = 0.0;
        let (mut left, mut conversations) = (requests, Vec::new());
        while left > 0 {
            let at = match arrivals {
                Arrivals::Trace { speed } => {
                    let Lengths::Trace(trace) = &self.lengths else {
                        break;
                    };
                    let row = trace.rows().get(conversations.len());
                    let Some(at) = row.and_then(|r| r.at) else {
                        break; // The trace is shorter than asked for.
                    };
                    at.div_f64(speed)
                }
                Arrivals::Poisson { rate } => {
                    now += gaps.exponential() / rate;
                    Duration::from_secs_f64(now)
                }
                Arrivals::Gamma { rate, cv } => {
                    now += gaps.gamma(cv) / rate;
                    Duration::from_secs_f64(now)
                }
                Arrivals::Uniform { rate } => {
                    now += 1.0 / rate;
                    Duration::from_secs_f64(now)
                }
            };
            // Another turn follows with a chance of 1 − 1 / mean, so their number is geometric.
            let mut count = 1;
            while count < left && turns.unit() > 1.0 / self.turns {
                count += 1;
            }
            let mut conversation: Vec<Planned> = Vec::with_capacity(count);
            let mut context = self.context.unwrap_or(usize::MAX);
            for turn in 0..count {
                let (mut prompt, mut output) = lengths();
                if turn == 0 && prompt.saturating_add(output) > context {
                    output = output.min(context / 2);
                    prompt = prompt.min(context - output);
                }
                let Some(rest) = context.checked_sub(prompt.saturating_add(output)) else {
                    break;
                };
                context = rest;
                let pause = self.think.mul_f64(think.exponential());
                conversation.push(Planned {
                    at: if turn == 0 { at } else { pause },
                    conversation: conversations.len(),
                    turn,
                    tenant: 0,
                    model: 0,
                    prompt_tokens: prompt,
                    output_tokens: output,
                });
            }
            left -= conversation.len();
            conversations.push(conversation);
        }
        conversations
    }

    /// Lengths of a prompt and an answer, one request after another.
    fn lengths(&self, mut rng: Rng, arrivals: Arrivals) -> impl FnMut() -> (usize, usize) {
        let mut order: Vec<usize> = Vec::new();
        if let Lengths::Trace(trace) = &self.lengths {
            order = (0..trace.rows().len()).collect();
            let in_order = matches!(arrivals, Arrivals::Trace { .. });
            if !in_order {
                for i in (1..order.len()).rev() {
                    order.swap(i, rng.below(i + 1));
                }
            }
        }
        let mut next = 0;
        move || {
            let (prompt, output) = match &self.lengths {
                Lengths::Trace(trace) => {
                    let row = trace.rows()[order[next % order.len()]];
                    (row.prompt_tokens, row.output_tokens)
                }
                Lengths::Drawn { prompt, output } => {
                    let mut draw = |l: &Length| l.low + rng.below(l.high - l.low + 1);
                    (draw(prompt), draw(output))
                }
            };
            next += 1;
            let fit = |tokens: usize, cap: Option<usize>| {
                let scaled = (tokens as f64 / self.scale) as usize;
                scaled.min(cap.unwrap_or(usize::MAX)).max(1)
            };
            (fit(prompt, self.prompt_cap), fit(output, self.output_cap))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> WorkloadSpec {
        WorkloadSpec {
            requests: 300,
            arrivals: Arrivals::Gamma { rate: 2.0, cv: 2.0 },
            lengths: Lengths::Drawn {
                prompt: "16-256".parse().unwrap(),
                output: "1-32".parse().unwrap(),
            },
            turns: 3.0,
            tenants: 4,
            ..WorkloadSpec::default()
        }
    }

    fn trace(rows: &str) -> Trace {
        Trace::parse(&format!("TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")).unwrap()
    }

    #[test]
    fn equal_seeds_give_equal_workloads() {
        let workload = spec().build(7).unwrap();
        assert_eq!(workload, spec().build(7).unwrap());
        assert_ne!(workload, spec().build(8).unwrap());
        assert_eq!(workload.requests.len(), 300);
        let turns: Vec<usize> = workload.conversations().map(<[_]>::len).collect();
        let mean = 300.0 / turns.len() as f64;
        assert!((2.4..3.6).contains(&mean), "{mean}");
        for conversation in workload.conversations() {
            for (i, planned) in conversation.iter().enumerate() {
                assert_eq!((planned.turn, planned.tenant), (i, conversation[0].tenant));
                assert!((16..=256).contains(&planned.prompt_tokens));
                assert!((1..=32).contains(&planned.output_tokens));
            }
        }
        // The rate moves arrivals and nothing else.
        let faster = WorkloadSpec {
            arrivals: Arrivals::Gamma { rate: 4.0, cv: 2.0 },
            ..spec()
        };
        let faster = faster.build(7).unwrap();
        for (slow, fast) in workload.requests.iter().zip(&faster.requests) {
            assert_eq!(slow.prompt_tokens, fast.prompt_tokens);
            let twice = if slow.turn == 0 { 2 } else { 1 };
            assert!(slow.at.abs_diff(fast.at * twice) < Duration::from_nanos(10));
        }
    }

    #[test]
    fn arrivals_have_their_rate_and_variation() {
        let of = |arrivals| {
            let spec = WorkloadSpec {
                requests: 20_000,
                arrivals,
                ..WorkloadSpec::default()
            };
            let workload = spec.build(3).unwrap();
            let times: Vec<f64> = workload
                .requests
                .iter()
                .map(|r| r.at.as_secs_f64())
                .collect();
            let gaps: Vec<f64> = times.windows(2).map(|w| w[1] - w[0]).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let squares: f64 = gaps.iter().map(|g| (g - mean).powi(2)).sum();
            (1.0 / mean, (squares / gaps.len() as f64).sqrt() / mean)
        };
        let near = |(rate, cv): (f64, f64), expected: f64| {
            assert!((rate / 5.0 - 1.0).abs() < 0.06, "rate {rate}");
            assert!((cv - expected).abs() <= 0.06 * expected + 1e-6, "cv {cv}");
        };
        near(of(Arrivals::Poisson { rate: 5.0 }), 1.0);
        near(of(Arrivals::Gamma { rate: 5.0, cv: 3.0 }), 3.0);
        near(of(Arrivals::Gamma { rate: 5.0, cv: 0.5 }), 0.5);
        near(of(Arrivals::Uniform { rate: 5.0 }), 0.0);
    }

    #[test]
    fn models_are_asked_by_rank() {
        let of = |skew: f64| {
            let spec = WorkloadSpec {
                requests: 4000,
                models: 4,
                skew,
                ..WorkloadSpec::default()
            };
            let w = spec.build(7).unwrap();
            let count = |model| w.requests.iter().filter(|r| r.model == model).count() as f64;
            [0, 1, 2, 3].map(|model| count(model) / 4000.0)
        };
        for (found, expected) in of(0.0).iter().zip([0.25; 4]) {
            assert!((found - expected).abs() < 0.03, "{found}");
        }
        for (found, expected) in of(1.0).iter().zip([0.48, 0.24, 0.16, 0.12]) {
            assert!((found - expected).abs() < 0.03, "{found}");
        }
    }

    #[test]
    fn a_flood_leaves_the_other_tenants_as_they_are() {
        let calm = spec().build(7).unwrap();
        let flooded = WorkloadSpec {
            flood: 10.0,
            ..spec()
        };
        let flooded = flooded.build(7).unwrap();
        let others = |w: &Workload| -> Vec<Planned> {
            let requests = w.requests.iter().filter(|r| r.tenant != 0);
            requests.copied().collect()
        };
        assert_eq!(others(&calm), others(&flooded));
        let spec = WorkloadSpec {
            requests: 20_000,
            flood: 10.0,
            turns: 1.0,
            ..spec()
        };
        let flooded = spec.build(7).unwrap();
        let of = |tenant| {
            let requests = flooded.requests.iter().filter(|r| r.tenant == tenant);
            requests.count() as f64
        };
        let ratio = of(0) / of(1);
        assert!((9.0..11.0).contains(&ratio), "{ratio}");
    }

    #[test]
    fn a_trace_gives_lengths_scaled_and_bounded() {
        let rows: String = (1..=100).map(|i| format!("XXX,{},{i}\n", i * 32)).collect();
        let spec = WorkloadSpec {
            requests: 100,
            lengths: Lengths::Trace(trace(&rows)),
            scale: 16.0,
            output_cap: Some(4),
            ..WorkloadSpec::default()
        };
        let workload = spec.build(1).unwrap();
        let mut prompts: Vec<usize> = workload.requests.iter().map(|r| r.prompt_tokens).collect();
        assert!(!prompts.is_sorted());
        prompts.sort_unstable();
        assert!(prompts.into_iter().eq((1..=100).map(|i| 2 * i)));
        assert!(workload.requests.iter().all(|r| r.output_tokens <= 4));
        assert!(workload.requests.iter().any(|r| r.output_tokens == 1));
    }

    #[test]
    fn a_traces_own_times_can_be_played_faster() {
        let rows = "2023-11-16 18:15:46.5,374,44\n2023-11-16 18:15:50.5,396,109\n";
        let spec = WorkloadSpec {
            requests: 100,
            arrivals: Arrivals::Trace { speed: 2.0 },
            lengths: Lengths::Trace(trace(rows)),
            ..WorkloadSpec::default()
        };
        let requests = spec.build(1).unwrap().requests;
        assert_eq!(requests.len(), 2);
        assert_eq!(
            (requests[0].at, requests[0].prompt_tokens),
            (Duration::ZERO, 374)
        );
        assert_eq!(requests[1].at, Duration::from_secs(2));

        let without = WorkloadSpec {
            lengths: Lengths::Trace(trace("XXX,1,1\n")),
            ..spec
        };
        assert_eq!(without.build(1), Err(WorkloadError::NoTimes));
    }

    #[test]
    fn conversations_stay_within_the_context() {
        let spec = WorkloadSpec {
            context: Some(200),
            turns: 50.0,
            ..spec()
        };
        let workload = spec.build(1).unwrap();
        let mut longest = 0;
        for conversation in workload.conversations() {
            let tokens = conversation
                .iter()
                .map(|r| r.prompt_tokens + r.output_tokens);
            let sum: usize = tokens.sum();
            assert!(sum <= 200, "{sum}");
            longest = longest.max(sum);
        }
        assert!(longest > 150);
    }

    #[test]
    fn senseless_numbers_are_named() {
        let of = |spec: WorkloadSpec| spec.build(1).unwrap_err().to_string();
        let said = of(WorkloadSpec {
            arrivals: Arrivals::Poisson { rate: 0.0 },
            ..spec()
        });
        assert_eq!(said, "the rate is 0; it must be above 0, from 1e-6 to 1e9");
        let said = of(WorkloadSpec {
            flood: 0.5,
            ..spec()
        });
        assert_eq!(said, "the flood is 0.5; it must be 1 or more");
        for wrong in ["", "0", "9-3", "a", "1-", "-1"] {
            assert!(wrong.parse::<Length>().is_err(), "{wrong}");
        }
        assert_eq!("7".parse(), Ok(Length { low: 7, high: 7 }));
    }
}
