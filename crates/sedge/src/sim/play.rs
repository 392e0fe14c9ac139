//! A workload through simulated engines, and through the real one in this process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sedge_bench::load::{Outcome, Planned, Record, Workload};
use sedge_clock::Costs;
use sedge_engine::{
    Engine, EngineConfig, EngineStats, Event, FinishReason, Request, Rng, SIM_VOCAB, Sampling,
    SimMemory, SimRequest, StepRecord, simulate,
};

/// What came of a workload.
#[derive(Default)]
pub(super) struct Played {
    pub(super) records: Vec<Record>,
    /// Steps of each node.
    pub(super) steps: Vec<Vec<StepRecord>>,
    /// Counters of each node.
    pub(super) stats: Vec<EngineStats>,
}

/// Token ids that differ between conversations and turns.
fn tokens(planned: &Planned) -> Vec<u32> {
    let mut rng = Rng::new((planned.conversation as u64) << 20 | planned.turn as u64);
    let token = |_| (rng.bits() % SIM_VOCAB as u64) as u32;
    (0..planned.prompt_tokens).map(token).collect()
}

fn tenant(planned: &Planned) -> Arc<str> {
    format!("tenant-{}", planned.tenant).into()
}

/// On simulated nodes.
pub(super) fn simulated(
    workload: &Workload,
    nodes: &[EngineConfig],
    memory: SimMemory,
    costs: &Arc<Costs>,
) -> Played {
    let mut last = BTreeMap::new();
    let requests: Vec<SimRequest> = workload
        .requests
        .iter()
        .enumerate()
        .map(|(number, planned)| SimRequest {
            at: planned.at,
            after: last.insert(planned.conversation, number),
            prompt: tokens(planned),
            output: planned.output_tokens,
            tenant: tenant(planned),
            priority: 0,
        })
        .collect();
    let run = simulate(&requests, nodes, memory, costs);
    let records = workload.requests.iter().zip(run.outcomes);
    let records = records.map(|(planned, outcome)| Record {
        conversation: planned.conversation,
        turn: planned.turn,
        tenant: planned.tenant,
        scheduled: outcome.arrived,
        sent: outcome.arrived,
        end: outcome.tokens.last().copied().unwrap_or(outcome.arrived),
        outcome: match outcome.refused {
            None => Outcome::Done,
            Some(_) => Outcome::Refused { retry_after: None },
        },
        prompt_tokens: Some(outcome.prompt),
        cached_tokens: Some(outcome.cached),
        output_tokens: Some(outcome.tokens.len()),
        chunks: outcome.tokens,
    });
    Played {
        records: records.collect(),
        steps: run.steps,
        stats: run.stats,
    }
}

/// On the real engine, in real time.
pub(super) fn real(
    workload: &Workload,
    engine: &Engine,
    progress: &(dyn Fn(usize) + Sync),
) -> Played {
    let mut conversations: BTreeMap<usize, Vec<&Planned>> = BTreeMap::new();
    for planned in &workload.requests {
        conversations
            .entry(planned.conversation)
            .or_default()
            .push(planned);
    }
    let records = Mutex::new(Vec::new());
    let start = Instant::now();
    let mut steps = Vec::new();
    std::thread::scope(|scope| {
        for turns in conversations.values() {
            let records = &records;
            scope.spawn(move || {
                let mut text = Vec::new();
                let mut due = turns[0].at;
                for planned in turns {
                    std::thread::sleep(due.saturating_sub(start.elapsed()));
                    text.extend(tokens(planned));
                    let record = ask(planned, &mut text, engine, start, due);
                    due = record.end;
                    let mut records = records.lock().unwrap_or_else(PoisonError::into_inner);
                    records.push(record);
                    progress(records.len());
                }
            });
        }
        // Only the last steps are kept: they are fetched as they come.
        while records.lock().unwrap_or_else(PoisonError::into_inner).len() < workload.requests.len()
        {
            let last = steps.last().map_or(0, |step: &StepRecord| step.number);
            steps.extend(engine.steps(last));
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let last = steps.last().map_or(0, |step| step.number);
    steps.extend(engine.steps(last));
    Played {
        records: records.into_inner().unwrap_or_else(PoisonError::into_inner),
        steps: vec![steps],
        stats: vec![engine.stats()],
    }
}

/// One request; its answer is added to the text.
fn ask(
    planned: &Planned,
    text: &mut Vec<u32>,
    engine: &Engine,
    start: Instant,
    due: Duration,
) -> Record {
    let mut record = Record {
        conversation: planned.conversation,
        turn: planned.turn,
        tenant: planned.tenant,
        scheduled: due,
        sent: start.elapsed(),
        chunks: Vec::new(),
        end: due,
        outcome: Outcome::Done,
        prompt_tokens: Some(text.len()),
        cached_tokens: None,
        output_tokens: None,
    };
    let submitted = engine.submit(Request {
        prompt: text.clone(),
        max_tokens: Some(planned.output_tokens),
        ignore_eos: true,
        sampling: Sampling {
            temperature: 0.0,
            ..Sampling::default()
        },
        tenant: tenant(planned),
        ..Request::default()
    });
    let mut output = match submitted {
        Ok(output) => output,
        Err(_) => {
            record.outcome = Outcome::Refused { retry_after: None };
            return record;
        }
    };
    while let Some(event) = output.next_blocking() {
        match event {
            Event::Token(token) => {
                record.chunks.push(start.elapsed());
                text.push(token.id);
            }
            Event::Finished(finish) => {
                record.end = start.elapsed();
                record.cached_tokens = Some(finish.usage.cached);
                record.output_tokens = Some(finish.usage.completion);
                if let FinishReason::Error(why) = finish.reason {
                    record.outcome = Outcome::Failed { why };
                }
            }
            Event::Prompt(_) | Event::Embedding(_) => {}
        }
    }
    record
}
