//! Plays a workload against a server, in open loop: what comes is never held back by what is
//! still being answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::task::JoinSet;

use super::client::{Answer, Api, End, Prompt, Target};
use super::figures::{Outcome, Record};
use super::metrics::Sample;
use super::rng::Rng;
use super::workload::{Planned, Workload};

/// Purposes of random streams, one for each conversation from here on.
const PROMPTS: u64 = 1000;
/// Time between looks at the server.
const LOOK: Duration = Duration::from_millis(250);
/// Ids below are often special or single bytes.
const FIRST_ID: u32 = 300;

/// Words of about one token each.
const WORDS: [&str; 64] = [
    "the", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are",
    "as", "with", "his", "they", "at", "be", "this", "have", "from", "or", "one", "had", "by",
    "word", "but", "not", "what", "all", "were", "we", "when", "your", "can", "said", "there",
    "use", "an", "each", "which", "she", "do", "how", "their", "if", "will", "up", "other",
    "about", "out", "many", "then", "them", "these", "so", "some", "her", "would", "make", "like",
    "him",
];

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Requests that have ended.
    pub ended: usize,
    /// Requests of the workload.
    pub planned: usize,
    /// Time since the start.
    pub elapsed: Duration,
}

/// What came of a workload.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// Of every request that ended, in order of their ends.
    pub records: Vec<Record>,
    /// Looks at the server, if it has metrics.
    pub samples: Vec<Sample>,
    /// Requests of the workload that were not sent, since an earlier turn went wrong or the run
    /// was stopped, or whose answer was not awaited.
    pub missing: usize,
    /// Whether it was stopped early.
    pub stopped: bool,
}

/// Plays the workload to its end, or until `stop`.
///
/// Prompts are random, equal for equal seeds, and differ between requests; a later turn's prompt
/// is what was said before and new words. Needs a Tokio runtime with time and I/O.
pub async fn play(
    target: &Target,
    workload: &Workload,
    seed: u64,
    mut progress: impl FnMut(Progress),
    stop: impl Future<Output = ()>,
) -> Run {
    let start = Instant::now();
    let planned = workload.requests.len();
    let mut run = Run::default();
    let single = workload.conversations().all(|turns| turns.len() == 1);
    let (records, mut ended) = mpsc::unbounded_channel();
    let (samples, mut looks) = mpsc::unbounded_channel();
    let target = Arc::new(target.clone());
    // Dropped with this future, and the tasks with it.
    let mut tasks = JoinSet::new();
    for turns in workload.conversations() {
        let (turns, records) = (turns.to_vec(), records.clone());
        let target = target.clone();
        tasks.spawn(async move { converse(&target, &turns, seed, single, start, &records).await });
    }
    drop(records);
    tasks.spawn(watch(target, start, samples));

    let mut stop = std::pin::pin!(stop);
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            biased;
            () = &mut stop => {
                run.stopped = true;
                break;
            }
            record = ended.recv() => match record {
                Some(record) => run.records.push(record),
                None => break,
            },
            Some(sample) = looks.recv() => run.samples.push(sample),
            _ = tick.tick() => {}
        }
        progress(Progress {
            ended: run.records.len(),
            planned,
            elapsed: start.elapsed(),
        });
    }
    run.missing = planned - run.records.len();
    run
}

/// Holds a conversation to its end, or until something goes wrong.
async fn converse(
    target: &Target,
    turns: &[Planned],
    seed: u64,
    single: bool,
    start: Instant,
    records: &UnboundedSender<Record>,
) {
    let Some(first) = turns.first() else {
        return;
    };
    let mut rng = Rng::new(seed, PROMPTS + first.conversation as u64);
    let mut prompt = match target.api {
        Api::Completions if single => Prompt::Ids(Vec::new()),
        Api::Completions => Prompt::Text(String::new()),
        Api::Chat => Prompt::Messages(Vec::new()),
    };
    let mut before = start;
    for planned in turns {
        extend(&mut prompt, planned.prompt_tokens, target.vocab, &mut rng);
        let due = before + planned.at;
        tokio::time::sleep_until(due.into()).await;
        let sent = Instant::now();
        let answer = target
            .ask(
                (planned.tenant, planned.model),
                &prompt,
                planned.output_tokens,
            )
            .await;
        before = answer.ended.unwrap_or_else(Instant::now);
        let went_well = answer.end == End::Done;
        match &mut prompt {
            Prompt::Ids(_) => {}
            Prompt::Text(text) => text.push_str(&answer.text),
            Prompt::Messages(messages) => {
                messages.push(json!({"role": "assistant", "content": answer.text}));
            }
        }
        let since = |at: Instant| at.duration_since(start);
        let record = record(
            planned,
            since(due),
            since(sent),
            since(before),
            answer,
            since,
        );
        if records.send(record).is_err() || !went_well {
            return;
        }
    }
}

fn record(
    planned: &Planned,
    scheduled: Duration,
    sent: Duration,
    end: Duration,
    answer: Answer,
    since: impl Fn(Instant) -> Duration,
) -> Record {
    Record {
        conversation: planned.conversation,
        turn: planned.turn,
        tenant: planned.tenant,
        scheduled,
        sent,
        chunks: answer.chunks.into_iter().map(since).collect(),
        end,
        outcome: match answer.end {
            End::Done => Outcome::Done,
            End::Refused(retry_after) => Outcome::Refused { retry_after },
            End::Failed(why) => Outcome::Failed { why },
            End::Open => Outcome::Failed {
                why: "the answer broke off".to_owned(),
            },
        },
        prompt_tokens: answer.prompt_tokens,
        cached_tokens: answer.cached_tokens,
        output_tokens: answer.output_tokens,
    }
}

/// Adds about so many tokens.
fn extend(prompt: &mut Prompt, tokens: usize, vocab: u32, rng: &mut Rng) {
    match prompt {
        Prompt::Ids(ids) => {
            let first = FIRST_ID.min(vocab / 2);
            let count = (vocab - first).max(1) as usize;
            ids.extend((0..tokens).map(|_| first + rng.below(count) as u32));
        }
        Prompt::Text(text) => text.push_str(&words(tokens, rng)),
        Prompt::Messages(messages) => {
            let text = words(tokens, rng);
            messages.push(json!({"role": "user", "content": text.trim_start()}));
        }
    }
}

fn words(count: usize, rng: &mut Rng) -> String {
    (0..count).fold(String::new(), |mut text, _| {
        text.push(' ');
        text.push_str(WORDS[rng.below(WORDS.len())]);
        text
    })
}

/// Looks at the server again and again, if it has metrics.
async fn watch(target: Arc<Target>, start: Instant, samples: UnboundedSender<Sample>) {
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let at = start.elapsed().as_secs_f64();
        let Some(sample) = Sample::take(&target, at).await else {
            return;
        };
        if samples.send(sample).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_differ_and_are_within_the_vocabulary() {
        let ids = |seed, vocab| {
            let mut prompt = Prompt::Ids(Vec::new());
            extend(&mut prompt, 50, vocab, &mut Rng::new(seed, PROMPTS));
            match prompt {
                Prompt::Ids(ids) => ids,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(ids(1, 1000), ids(1, 1000));
        assert_ne!(ids(1, 1000), ids(2, 1000));
        assert!(ids(1, 1000).iter().all(|id| (300..1000).contains(id)));
        assert!(ids(1, 10).iter().all(|id| (5..10).contains(id)));
        let text = words(12, &mut Rng::new(1, 0));
        assert_eq!(text.split(' ').count(), 13);
    }
}
