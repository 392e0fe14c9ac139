//! The engine on a clock that costs nothing: the same loop, over an executor that only tells how
//! long the model would take. A day of many nodes' traffic passes in seconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sedge_clock::{Clock, Costs, Load};
use sedge_models::config::Pooling;
use sedge_models::{Batch, Outputs};

use crate::run::{Handle, Output};
use crate::shared::Shared;
use crate::step::Loop;
use crate::{
    EngineConfig, EngineStats, Event, Executor, FinishReason, Request, Sampling, Shape, StepRecord,
    SubmitError,
};

/// Token ids of simulated prompts are below this.
pub const SIM_VOCAB: usize = 256;

/// What a batch costs by.
pub fn load(batch: &Batch) -> Load {
    let mut load = Load::default();
    for segment in &batch.segments {
        if segment.rows.start < batch.generated {
            let positions = segment.position..segment.position + segment.rows.len();
            positions.for_each(|position| load.add_generated(position));
        } else {
            load.add_prompt(segment.position, segment.rows.len());
        }
    }
    load
}

/// Memory of a simulated node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimMemory {
    /// Pages of 16 tokens.
    pub pages: usize,
    /// Bytes of a page.
    pub page_bytes: usize,
    /// Blocks that a page's bytes lie in: the model's layers.
    pub page_blocks: usize,
    /// Most positions of a sequence.
    pub context: usize,
}

/// Takes as long for a batch as its costs say, on a simulated clock, and computes nothing.
#[derive(Debug)]
pub struct SimExecutor {
    memory: SimMemory,
    costs: Arc<Costs>,
    clock: Clock,
}

impl SimExecutor {
    /// On this clock.
    pub fn new(memory: SimMemory, costs: Arc<Costs>, clock: Clock) -> SimExecutor {
        SimExecutor {
            memory,
            costs,
            clock,
        }
    }
}

impl Executor for SimExecutor {
    fn shape(&self) -> Shape {
        Shape {
            vocab: SIM_VOCAB,
            hidden: 1,
            context: self.memory.context,
            pages: self.memory.pages,
            bidirectional: false,
            pooling: Pooling::default(),
            members: 1,
        }
    }

    fn forward(&mut self, batch: &Batch, out: &mut Outputs) {
        self.clock.wait(self.costs.time(&load(batch)));
        out.logits.clear();
        out.logits.resize(batch.logits.len() * SIM_VOCAB, 0.0);
        out.hidden.clear();
        out.hidden.resize(batch.hidden.len(), 0.0);
    }

    fn page_bytes(&self) -> usize {
        self.memory.page_bytes
    }

    fn page_blocks(&self) -> usize {
        self.memory.page_blocks
    }
}

/// A request of a simulation.
#[derive(Debug, Clone, PartialEq)]
pub struct SimRequest {
    /// When it comes; of a later turn, how long after the end of the one before.
    pub at: Duration,
    /// The number of the conversation's turn before, if there is one: its prompt and answer come
    /// before `prompt`.
    pub after: Option<usize>,
    /// New tokens, below [`SIM_VOCAB`].
    pub prompt: Vec<u32>,
    /// Tokens that are generated.
    pub output: usize,
    /// Who asks.
    pub tenant: Arc<str>,
    /// Lower is sooner.
    pub priority: i32,
}

/// What became of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SimOutcome {
    /// When it came.
    pub arrived: Duration,
    /// When its tokens came.
    pub tokens: Vec<Duration>,
    /// Tokens of its prompt, the turns before among them.
    pub prompt: usize,
    /// Tokens of the prompt that were not computed.
    pub cached: usize,
    /// The node that served it.
    pub node: usize,
    /// Why it was not, or not wholly.
    pub refused: Option<String>,
}

/// What a simulation came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SimRun {
    /// In the order of the requests.
    pub outcomes: Vec<SimOutcome>,
    /// The last steps of each node.
    pub steps: Vec<Vec<StepRecord>>,
    /// Counters of each node.
    pub stats: Vec<EngineStats>,
}

/// A node of a simulation.
struct Node {
    handle: Handle,
    steps: Loop,
    clock: Clock,
    live: Vec<Live>,
}

/// A request that runs.
struct Live {
    number: usize,
    output: Output,
    answer: Vec<u32>,
}

/// Runs requests through as many engines as there are configurations, each on its own machine
/// with the same costs and memory. A request goes to the node with the fewest that have not
/// ended; a conversation stays where it began.
pub fn simulate(
    requests: &[SimRequest],
    nodes: &[EngineConfig],
    memory: SimMemory,
    costs: &Arc<Costs>,
) -> SimRun {
    let mut nodes: Vec<Node> = nodes
        .iter()
        .map(|config| Node::new(config, memory, costs))
        .collect();
    let mut run = SimRun {
        outcomes: vec![SimOutcome::default(); requests.len()],
        ..SimRun::default()
    };
    // What comes when, and then in order of number.
    let mut coming: BTreeMap<(Duration, usize), Vec<u32>> = BTreeMap::new();
    let mut next_turn = BTreeMap::new();
    for (number, request) in requests.iter().enumerate() {
        match request.after {
            Some(before) => drop(next_turn.insert(before, number)),
            None => drop(coming.insert((request.at, number), Vec::new())),
        }
    }
    loop {
        let busy = (0..nodes.len()).filter(|&i| !nodes[i].live.is_empty());
        let next = busy.min_by_key(|&i| nodes[i].clock.now());
        let arrival = coming.first_key_value().map(|(key, _)| *key);
        match (next, arrival) {
            (None, None) => break,
            (Some(node), arrival) if arrival.is_none_or(|(at, _)| nodes[node].clock.now() < at) => {
                for (number, text) in nodes[node].step(&mut run.outcomes) {
                    if let Some(&after) = next_turn.get(&number) {
                        let at = nodes[node].clock.now() + requests[after].at;
                        coming.insert((at, after), text);
                    }
                }
            }
            _ => {
                let Some(((at, number), before)) = coming.pop_first() else {
                    break;
                };
                let request = &requests[number];
                let stays = request.after.map(|before| run.outcomes[before].node);
                let least = (0..nodes.len()).min_by_key(|&i| nodes[i].live.len());
                let node = stays.or(least).unwrap_or(0);
                run.outcomes[number].node = node;
                run.outcomes[number].arrived = at;
                nodes[node].submit(number, request, before, at, &mut run.outcomes[number]);
            }
        }
    }
    run.steps = nodes.iter().map(|node| node.steps.records()).collect();
    run.stats = nodes.iter().map(|node| node.steps.stats()).collect();
    run
}

impl Node {
    fn new(config: &EngineConfig, memory: SimMemory, costs: &Arc<Costs>) -> Node {
        let clock = Clock::simulated();
        let executor = SimExecutor::new(memory, costs.clone(), clock.clone());
        let shape = executor.shape();
        let shared = Arc::new(Shared::new(config, clock.clone()));
        Node {
            steps: Loop::new(Box::new(executor), None, config, shared.clone()),
            handle: Handle::new(shared, shape, None),
            clock,
            live: Vec::new(),
        }
    }

    fn submit(
        &mut self,
        number: usize,
        request: &SimRequest,
        mut prompt: Vec<u32>,
        at: Duration,
        outcome: &mut SimOutcome,
    ) {
        if self.live.is_empty() {
            self.clock.wait_until(at);
        }
        prompt.extend(&request.prompt);
        outcome.prompt = prompt.len();
        let submitted = self.handle.submit(Request {
            prompt: prompt.clone(),
            max_tokens: Some(request.output),
            ignore_eos: true,
            sampling: Sampling {
                temperature: 0.0,
                ..Sampling::default()
            },
            tenant: request.tenant.clone(),
            priority: request.priority,
            ..Request::default()
        });
        match submitted {
            Ok(output) => self.live.push(Live {
                number,
                output,
                answer: prompt,
            }),
            Err(why @ (SubmitError::Busy { .. } | SubmitError::TooLong { .. })) => {
                outcome.refused = Some(why.to_string());
            }
            Err(why) => outcome.refused = Some(format!("unexpected: {why}")),
        }
    }

    /// One step; the numbers and whole texts of the requests that ended in it.
    fn step(&mut self, outcomes: &mut [SimOutcome]) -> Vec<(usize, Vec<u32>)> {
        self.steps.poll();
        let now = self.clock.now();
        let mut ended = Vec::new();
        self.live.retain_mut(|live| {
            let outcome = &mut outcomes[live.number];
            for event in live.output.ready() {
                match event {
                    Event::Token(token) => {
                        outcome.tokens.push(now);
                        live.answer.push(token.id);
                    }
                    Event::Finished(finish) => {
                        outcome.cached = finish.usage.cached;
                        if let FinishReason::Error(why) = finish.reason {
                            outcome.refused = Some(why);
                        }
                        ended.push((live.number, std::mem::take(&mut live.answer)));
                        return false;
                    }
                    Event::Prompt(_) | Event::Embedding(_) => {}
                }
            }
            true
        });
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Policy;

    const MEMORY: SimMemory = SimMemory {
        pages: 256,
        page_bytes: 1 << 16,
        page_blocks: 4,
        context: 2048,
    };

    fn costs() -> Arc<Costs> {
        // 5 ms a step, 1 ms an answer's token, 0.25 ms a prompt's.
        let table = vec![0.0, 5e-3 + 16e-3, 6e-3, 6e-3 + 16e-3];
        Arc::new(Costs::new(vec![0, 1], vec![0, 64], table, 1e-6, 1e-6).unwrap())
    }

    fn request(at: u64, prompt: usize, output: usize) -> SimRequest {
        SimRequest {
            at: Duration::from_millis(at),
            after: None,
            prompt: (0..prompt)
                .map(|i| ((at as usize + i * 7) % 251) as u32)
                .collect(),
            output,
            tenant: Arc::default(),
            priority: 0,
        }
    }

    fn gaps(run: &SimRun) -> Vec<Duration> {
        let tokens = run.outcomes.iter().map(|o| &o.tokens);
        tokens
            .flat_map(|t| t.windows(2).map(|pair| pair[1] - pair[0]))
            .collect()
    }

    #[test]
    fn the_same_requests_have_the_same_outcome_and_times_are_the_costs() {
        let requests = [request(3, 64, 3)];
        let config = EngineConfig::default();
        let run = simulate(&requests, std::slice::from_ref(&config), MEMORY, &costs());
        let (costs, mut load) = (costs(), Load::default());
        load.add_prompt(0, 64);
        let first = Duration::from_millis(3) + costs.time(&load);
        let mut load = Load::default();
        load.add_generated(64);
        let second = first + costs.time(&load);
        assert_eq!(run.outcomes[0].tokens[..2], [first, second]);
        let again = simulate(&requests, &[config], MEMORY, &costs);
        assert_eq!(run, again);
    }

    #[test]
    fn no_answer_stalls_for_a_prompt_but_where_prompts_go_first() {
        let mut requests = vec![request(0, 32, 200)];
        requests.extend((1..10).map(|i| request(i * 60, 512, 4)));
        let worst = |policy| {
            let config = EngineConfig {
                policy,
                token_budget: 64,
                ..EngineConfig::default()
            };
            let run = simulate(&requests, &[config], MEMORY, &costs());
            assert!(run.outcomes.iter().all(|o| o.refused.is_none()));
            gaps(&run).into_iter().max().unwrap()
        };
        let (ours, theirs) = (worst(Policy::StallFree), worst(Policy::PrefillFirst));
        assert!(ours * 3 < theirs, "{ours:?} {theirs:?}");
    }

    #[test]
    fn a_step_time_is_kept_where_costs_are_known() {
        let mut requests = vec![request(0, 32, 100)];
        requests.extend((1..5).map(|i| request(i * 100, 512, 4)));
        let config = EngineConfig {
            costs: Some(costs()),
            tbt_slo: Some(Duration::from_millis(20)),
            ..EngineConfig::default()
        };
        let run = simulate(&requests, &[config], MEMORY, &costs());
        let worst = gaps(&run).into_iter().max().unwrap();
        assert!(worst <= Duration::from_millis(21), "{worst:?}");
    }

    #[test]
    fn conversations_stay_on_their_node_and_reuse_what_they_said() {
        let mut requests: Vec<SimRequest> = (0..4).map(|i| request(i, 160, 33)).collect();
        for i in 0..4 {
            requests.push(SimRequest {
                after: Some(i),
                ..request(500 + i as u64, 20, 5)
            });
        }
        let nodes = vec![EngineConfig::default(); 2];
        let run = simulate(&requests, &nodes, MEMORY, &costs());
        for i in 0..4 {
            let (first, second) = (&run.outcomes[i], &run.outcomes[i + 4]);
            assert_eq!(first.node, second.node);
            assert_eq!(second.prompt, 160 + 33 + 20);
            assert_eq!(second.cached, (160 + 32) / 16 * 16);
        }
        assert!((0..2).all(|node| run.outcomes.iter().any(|o| o.node == node)));
    }
}
