//! The loop, stepped by hand over a scripted model.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::logprob::logprob;
use crate::plan::tests::POLICIES;
use crate::run::{Handle, Output};
use crate::scripted::{
    NAN, ORDINARY, PANIC, PIECES, SHAPE, SHORT, Scripted, greedy, hidden, logits, tokenizer,
};
use crate::stop::tests::naive;
use crate::{
    CacheConfig, Constraint, DiskTier, Event, Finish, Goal, HostConfig, Prefixes, Request,
    Sampling, SubmitError, Usage,
};
use sedge_tiers::{Disk, DiskConfig, LinkConfig};

/// An engine without its thread.
struct Rig {
    handle: Handle,
    steps: Loop,
}

impl Rig {
    fn new(shape: Shape, config: EngineConfig) -> Rig {
        Rig::with(None, shape, config)
    }

    /// A model whose tokens have texts, and a few logits more than there are tokens.
    fn texts(pieces: &[&str], config: EngineConfig) -> Rig {
        let tokenizer = tokenizer(pieces);
        let shape = Shape {
            vocab: tokenizer.len() + 5,
            ..SHAPE
        };
        Rig::with(Some(Arc::new(tokenizer)), shape, config)
    }

    fn with(tokenizer: Option<Arc<Tokenizer>>, shape: Shape, config: EngineConfig) -> Rig {
        let most = match shape.bidirectional {
            true => usize::MAX,
            false => config.token_budget,
        };
        Rig::with_most(tokenizer, shape, config, most)
    }

    /// A model that panics at more than `most` tokens in a step.
    fn with_most(
        tokenizer: Option<Arc<Tokenizer>>,
        shape: Shape,
        config: EngineConfig,
        most: usize,
    ) -> Rig {
        let shared = Arc::new(Shared::new(&config, Clock::simulated()));
        let mut model = Scripted::new(shape);
        model.most_tokens = most;
        let steps = Loop::new(Box::new(model), tokenizer.clone(), &config, shared.clone());
        Rig {
            handle: Handle::new(shared, shape, tokenizer),
            steps,
        }
    }

    /// A model whose steps take time.
    fn paced(shape: Shape, config: EngineConfig, step: Duration) -> Rig {
        let shared = Arc::new(Shared::new(&config, Clock::simulated()));
        let mut model = Scripted::new(shape);
        model.pace = Some((shared.clock.clone(), step));
        Rig {
            steps: Loop::new(Box::new(model), None, &config, shared.clone()),
            handle: Handle::new(shared, shape, None),
        }
    }

    fn submit(&self, request: Request) -> Output {
        self.handle.submit(request).unwrap()
    }

    fn stats(&self) -> crate::EngineStats {
        self.steps.shared.stats()
    }

    /// Steps until nothing is left.
    fn finish(&mut self) {
        for _ in 0..20_000 {
            self.steps.poll();
            if self.steps.sequences.is_empty() {
                assert_eq!(self.steps.cache.used(), 0);
                return;
            }
        }
        panic!("requests are left after 20000 steps");
    }

    /// Runs one request to its end.
    fn run(&mut self, request: Request) -> Vec<Event> {
        let mut output = self.submit(request);
        self.finish();
        output.ready()
    }
}

fn rig(budget: usize) -> Rig {
    Rig::new(
        SHAPE,
        EngineConfig {
            token_budget: budget,
            ..EngineConfig::default()
        },
    )
}

fn tokens(events: &[Event]) -> Vec<u32> {
    events
        .iter()
        .filter_map(|e| {
            if let Event::Token(t) = e {
                Some(t.id)
            } else {
                None
            }
        })
        .collect()
}

fn finish(events: &[Event]) -> &Finish {
    match events {
        [.., Event::Finished(finish)] => finish,
        other => panic!("no end: {other:?}"),
    }
}

/// Events without their times.
fn timeless(mut events: Vec<Event>) -> Vec<Event> {
    for event in &mut events {
        if let Event::Finished(finish) = event {
            finish.timings = Default::default();
        }
    }
    events
}

#[test]
fn chunks_of_any_size_give_the_tokens_of_the_whole() {
    let prompt: Vec<u32> = (0..50).map(|i| i * 7 % ORDINARY).collect();
    let expected = Scripted::alone(&prompt, 20);
    for budget in [1, 3, 16, 17, 500] {
        let events = rig(budget).run(greedy(prompt.clone(), 20));
        assert_eq!(tokens(&events), expected);
        assert_eq!(
            finish(&events).usage,
            Usage {
                prompt: 50,
                completion: 20,
                cached: 0
            }
        );
    }
}

#[test]
fn a_dropped_output_frees_its_pages_within_one_step() {
    let mut rig = rig(64);
    let (kept, dropped) = (
        rig.submit(greedy(vec![1; 40], 100)),
        rig.submit(greedy(vec![2; 40], 100)),
    );
    let waits = rig.submit(greedy(vec![3; 200], 10));
    rig.steps.poll();
    rig.steps.poll();
    assert_eq!(rig.steps.sequences.len(), 3);
    drop(dropped);
    drop(waits);
    rig.steps.poll();
    assert_eq!(rig.steps.cache.used(), 3);
    assert_eq!(rig.stats().cancelled, 2);
    drop(kept);
    rig.steps.poll();
    assert_eq!(rig.steps.cache.used(), 0);
}

#[test]
fn a_panic_ends_what_runs_and_spares_what_waits() {
    let mut rig = Rig::new(
        SHAPE,
        EngineConfig {
            token_budget: 8,
            max_running: 2,
            max_waiting: 9,
            ..EngineConfig::default()
        },
    );
    let mut running = rig.submit(greedy(vec![4], 30));
    rig.steps.poll();
    let mut poisoned = rig.submit(greedy(vec![5, PANIC], 30));
    let mut waiting = rig.submit(greedy(vec![6], 3));
    rig.finish();
    for output in [&mut running, &mut poisoned] {
        assert!(
            matches!(&finish(&output.ready()).reason, FinishReason::Error(why) if why.contains("scripted"))
        );
    }
    let events = waiting.ready();
    assert_eq!(tokens(&events), Scripted::alone(&[6], 3));
    assert_eq!(finish(&events).reason, FinishReason::Length);
}

#[test]
fn logits_that_are_not_numbers_end_only_their_request() {
    for prompt_logprobs in [false, true] {
        let mut rig = rig(64);
        let mut good = rig.submit(greedy(vec![4], 5));
        let mut bad = rig.submit(Request {
            prompt_logprobs,
            ..greedy(vec![5, NAN], 5)
        });
        let mut worse = rig.submit(Request {
            prompt_logprobs,
            ..greedy(vec![NAN, 5], 5)
        });
        rig.finish();
        assert_eq!(tokens(&good.ready()), Scripted::alone(&[4], 5));
        let ends = [bad.ready(), worse.ready()].map(|e| finish(&e).reason.clone());
        assert!(matches!(&ends[0], FinishReason::Error(why) if why.contains("finite")));
        assert_eq!(matches!(&ends[1], FinishReason::Error(_)), prompt_logprobs);
    }
}

#[test]
fn outputs_of_a_wrong_size_are_an_error() {
    let events = rig(64).run(greedy(vec![SHORT], 5));
    assert!(matches!(&finish(&events).reason, FinishReason::Error(why) if why.contains("size")));
}

#[test]
fn an_answer_ends_at_the_context_or_where_all_pages_are_full() {
    for (context, pages, room) in [(20, 64, 17), (256, 1, 13), (256, 2, 29)] {
        let mut rig = Rig::new(
            Shape {
                context,
                pages,
                ..SHAPE
            },
            EngineConfig::default(),
        );
        let events = rig.run(Request {
            max_tokens: None,
            ..greedy(vec![1, 2, 3], 0)
        });
        assert_eq!(tokens(&events), Scripted::alone(&[1, 2, 3], room));
        assert_eq!(finish(&events).reason, FinishReason::Length);
        let refused = rig.handle.submit(greedy(vec![1; room + 3], 1)).unwrap_err();
        assert_eq!(
            refused,
            SubmitError::TooLong {
                prompt: room + 3,
                context: room + 3
            }
        );
    }
}

#[test]
fn a_stop_token_ends_the_answer_and_is_counted_but_not_sent() {
    let expected = Scripted::alone(&[9, 9], 6);
    let end = expected[5];
    let at = expected.iter().position(|&t| t == end).unwrap();
    let events = rig(64).run(Request {
        stop_tokens: vec![end],
        ..greedy(vec![9, 9], 50)
    });
    assert_eq!(tokens(&events), expected[..at]);
    assert_eq!(finish(&events).reason, FinishReason::Stop);
    assert_eq!(finish(&events).usage.completion, at + 1);
}

#[test]
fn no_tokens_asked_for_none_generated() {
    let mut rig = rig(64);
    let mut output = rig.submit(greedy(vec![1; 256], 0));
    let events = output.ready();
    assert_eq!(events.len(), 1);
    assert_eq!(finish(&events).reason, FinishReason::Length);
    assert!(rig.steps.sequences.is_empty());
    rig.finish();

    let events = rig.run(Request {
        prompt_logprobs: true,
        ..greedy(vec![1; 256], 0)
    });
    assert!(matches!(&events[..], [Event::Prompt(p), Event::Finished(_)] if p.len() == 255));
}

#[test]
fn logprobs_are_those_of_the_raw_logits() {
    let prompt: Vec<u32> = (0..30).map(|i| i * 5 % ORDINARY).collect();
    let sampling = Sampling {
        temperature: 0.3,
        top_k: 3,
        presence_penalty: 1.0,
        seed: Some(4),
        ..Sampling::default()
    };
    let request = Request {
        logprobs: Some(2),
        prompt_logprobs: true,
        sampling,
        ..greedy(prompt.clone(), 8)
    };
    let events = rig(7).run(request);

    let Event::Prompt(scored) = &events[0] else {
        panic!("{events:?}")
    };
    let expected =
        (1..30).map(|i| logprob(&logits(&prompt[..i], SHAPE.vocab), prompt[i], 2).unwrap());
    assert_eq!(scored, &expected.collect::<Vec<_>>());

    let mut text = prompt;
    for event in &events[1..9] {
        let Event::Token(token) = event else {
            panic!("{event:?}")
        };
        let expected = logprob(&logits(&text, SHAPE.vocab), token.id, 2).unwrap();
        assert_eq!(token.logprob, Some(expected));
        text.push(token.id);
    }
}

#[test]
fn an_embedding_is_the_mean_of_the_hidden_states() {
    let prompt: Vec<u32> = (0..40).map(|i| i * 3 % ORDINARY).collect();
    let request = Request {
        goal: Goal::Embed,
        prompt: prompt.clone(),
        ..Request::default()
    };
    for bidirectional in [false, true] {
        let pages = if bidirectional { 0 } else { 3 };
        let shape = Shape {
            bidirectional,
            pages,
            ..SHAPE
        };
        let mut rig = Rig::new(
            shape,
            EngineConfig {
                token_budget: 9,
                ..EngineConfig::default()
            },
        );
        let events = rig.run(request.clone());
        let [Event::Embedding(mean), Event::Finished(end)] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!(
            (&end.reason, end.usage.completion),
            (&FinishReason::Stop, 0)
        );
        for (i, found) in mean.iter().enumerate() {
            let text = |row: usize| match bidirectional {
                true => [&prompt[..], &[row as u32]].concat(),
                false => prompt[..=row].to_vec(),
            };
            let sum: f32 = (0..40).map(|row| hidden(&text(row), SHAPE.hidden)[i]).sum();
            assert!((sum / 40.0 - found).abs() < 1e-4);
        }
    }
}

#[test]
fn seeds_repeat_and_missing_seeds_do_not() {
    let ask = |seed| Request {
        sampling: Sampling {
            seed,
            temperature: 2.0,
            ..Sampling::default()
        },
        ..greedy(vec![1, 2, 3], 40)
    };
    let mut rig = rig(64);
    let mut outputs = [Some(1), Some(1), Some(2), None, None].map(|seed| rig.submit(ask(seed)));
    rig.finish();
    let [a, b, c, d, e] = outputs.each_mut().map(|o| tokens(&o.ready()));
    assert_eq!(a, b);
    assert!(a != c && d != e && a != d);
}

#[test]
fn a_full_queue_refuses_and_says_when_to_come_again() {
    let mut rig = Rig::new(
        SHAPE,
        EngineConfig {
            token_budget: 8,
            max_running: 1,
            max_waiting: 2,
            ..EngineConfig::default()
        },
    );
    let mut outputs = vec![
        rig.submit(greedy(vec![1], 9)),
        rig.submit(greedy(vec![1], 9)),
    ];
    let refused = |rig: &Rig| match rig.handle.submit(greedy(vec![1], 9)).unwrap_err() {
        SubmitError::Busy {
            waiting,
            retry_after,
        } => (waiting, retry_after.as_secs()),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&rig), (2, 1));
    rig.steps.poll(); // one runs now, so there is a place
    outputs.push(rig.submit(greedy(vec![1], 9)));
    assert_eq!(refused(&rig), (2, 1));
    assert_eq!(rig.stats().refused, 2);
    rig.finish();
    assert!(outputs.iter_mut().all(|o| tokens(&o.ready()).len() == 9));
}

/// A request, when it arrives, and when its caller goes away.
#[derive(Debug, Clone)]
struct Visit {
    request: Request,
    arrives: usize,
    leaves: Option<usize>,
}

fn visits() -> impl Strategy<Value = Vec<Visit>> {
    let prompt = prop::collection::vec(0..ORDINARY, 1..60);
    let flags = (
        any::<bool>(),
        any::<bool>(),
        prop::bool::weighted(0.2),
        any::<bool>(),
    );
    let visit = (
        prompt,
        prop::option::weighted(0.9, 0usize..40),
        flags,
        any::<u64>(),
        0usize..60,
    );
    let visit = (visit, prop::option::weighted(0.25, 0usize..40));
    let visit = visit.prop_map(
        |((prompt, max_tokens, (draws, scored, embeds, penalised), seed, arrives), stays)| {
            let sampling = Sampling {
                temperature: if draws { 0.8 } else { 0.0 },
                top_p: 0.95,
                frequency_penalty: if penalised { 0.3 } else { 0.0 },
                repetition_penalty: if penalised { 1.1 } else { 1.0 },
                seed: Some(seed),
                ..Sampling::default()
            };
            let request = Request {
                goal: if embeds { Goal::Embed } else { Goal::Generate },
                prompt,
                max_tokens,
                sampling,
                prompt_logprobs: scored,
                logprobs: scored.then_some(1),
                ..Request::default()
            };
            Visit {
                request,
                arrives,
                leaves: stays.map(|s| arrives + s),
            }
        },
    );
    prop::collection::vec(visit, 1..14)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Arrivals, departures and preemptions change nobody's answer; nothing is lost or kept.
    #[test]
    fn every_request_ends_once_as_if_it_were_alone(
        visits in visits(), pages in 5usize..16, budget in 1usize..40, max_running in 1usize..8,
    ) {
        let shape = Shape { pages, context: 90, ..SHAPE };
        let config = EngineConfig { token_budget: budget, max_running, max_waiting: 100, ..EngineConfig::default() };
        let mut rig = Rig::new(shape, config);
        let capacity = 90.min(pages * 16);
        let mut outputs: Vec<Option<Output>> = visits.iter().map(|_| None).collect();
        let mut events: Vec<Vec<Event>> = vec![Vec::new(); visits.len()];
        let mut first: Vec<Option<usize>> = vec![None; visits.len()];
        let mut order = Vec::new(); // of those that were taken

        let mut time = 0;
        while time <= 100 || !rig.steps.sequences.is_empty() {
            prop_assert!(time < 20_000, "requests are left after {time} steps");
            for (i, visit) in visits.iter().enumerate() {
                if visit.arrives == time {
                    outputs[i] = Some(rig.submit(visit.request.clone()));
                    order.push(i);
                }
                if visit.leaves == Some(time) {
                    outputs[i] = None;
                }
            }
            rig.steps.poll();
            for (i, output) in outputs.iter_mut().enumerate() {
                let new = output.as_mut().map(Output::ready).unwrap_or_default();
                if !new.is_empty() && visits[i].request.max_tokens != Some(0) {
                    first[i].get_or_insert(time);
                }
                events[i].extend(new);
            }
            let held: BTreeSet<u32> = rig.steps.sequences.iter().flat_map(|s| s.lease.pages()).copied().collect();
            prop_assert_eq!(held.len(), rig.steps.cache.used());
            time += 1;
        }
        prop_assert_eq!(rig.steps.cache.used(), 0);

        // First come, first served: among those that stayed, first outputs come in order of arrival.
        let starts: Vec<usize> = order.iter().filter_map(|&i| first[i]).collect();
        prop_assert!(starts.is_sorted(), "first outputs at {starts:?}");

        for (visit, events) in visits.iter().zip(events) {
            let mut alone = Rig::new(Shape { pages: 64, context: capacity, ..SHAPE }, EngineConfig::default());
            let expected = timeless(alone.run(visit.request.clone()));
            let events = timeless(events);
            if visit.leaves.is_some() {
                prop_assert!(expected.starts_with(&events));
            } else {
                prop_assert_eq!(events, expected);
            }
        }
    }
}

/// All text of an answer.
fn text(events: &[Event]) -> String {
    let text = |event: &Event| match event {
        Event::Token(token) => token.text.clone(),
        Event::Finished(finish) => finish.text.clone(),
        _ => String::new(),
    };
    events.iter().map(text).collect()
}

#[test]
fn the_models_end_token_ends_the_answer_unless_ignored() {
    let mut rig = Rig::texts(&["a"], EngineConfig::default());
    let mut request = greedy(vec![PIECES], 5);
    request.sampling.logit_bias = vec![(2, 50.0)];
    let events = rig.run(request.clone());
    assert_eq!(
        (tokens(&events), &finish(&events).reason),
        (vec![], &FinishReason::Stop)
    );
    assert_eq!(finish(&events).usage.completion, 1);

    let events = rig.run(Request {
        ignore_eos: true,
        ..request
    });
    assert_eq!(
        (tokens(&events), text(&events)),
        (vec![2; 5], String::new())
    );
    assert_eq!(finish(&events).reason, FinishReason::Length);
}

#[test]
fn an_answer_goes_on_where_the_prompt_ends() {
    let mut rig = Rig::texts(&["a", " b"], EngineConfig::default());
    let mut after = |prompt: Vec<u32>, constraint| {
        let mut request = Request {
            constraint,
            ..greedy(prompt, 1)
        };
        request.sampling.logit_bias = vec![(PIECES + 1, 50.0)];
        text(&rig.run(request))
    };
    assert_eq!(after(vec![PIECES], None), " b");
    assert_eq!(after(vec![PIECES, 1], None), "b");
    assert_eq!(
        after(vec![PIECES, 1], Some(Constraint::Regex(" b+".into()))),
        " b"
    );
    // Half a character, which nothing completes, then text.
    assert_eq!(after(vec![3 + 0xc3], None), "\u{fffd} b");
    assert_eq!(
        after(vec![3 + 0xc3], Some(Constraint::Regex(" b+".into()))),
        " b"
    );
}

#[test]
fn constrained_answers_are_valid_also_when_preempted() {
    let schema = serde_json::json!({
        "type": "object",
        "properties": { "ok": { "type": "boolean" }, "n": { "type": "integer" }, "s": { "enum": ["é", "日本", "x y"] } },
        "required": ["ok", "n", "s"],
        "additionalProperties": false,
    });
    let pieces = [
        "true", "false", "{\"", "\":", ",", "\"", "}", " ", "1", "é", "日本", "ok", "n", "s",
    ];
    let config = EngineConfig {
        token_budget: 24,
        max_running: 6,
        max_waiting: 100,
        ..EngineConfig::default()
    };
    let shape = Shape {
        vocab: PIECES as usize + pieces.len() + 5,
        pages: 6,
        ..SHAPE
    };
    let mut rig = Rig::with(Some(Arc::new(tokenizer(&pieces))), shape, config);
    let mut outputs: Vec<Output> = (0..12)
        .map(|seed| {
            let mut request = greedy(vec![PIECES, seed], 90);
            request.constraint = Some(Constraint::JsonSchema(schema.clone()));
            request.sampling = Sampling {
                seed: Some(u64::from(seed)),
                ..Sampling::default()
            };
            // Or they would mostly write blanks and long numbers.
            request.sampling.logit_bias = (3..PIECES)
                .chain([PIECES + 7])
                .map(|id| (id, -6.0))
                .collect();
            rig.submit(request)
        })
        .collect();
    rig.finish();
    assert!(rig.stats().preempted > 0);
    let mut valid = 0;
    for output in &mut outputs {
        let events = output.ready();
        match &finish(&events).reason {
            FinishReason::Stop => {
                let value: serde_json::Value = serde_json::from_str(&text(&events)).unwrap();
                assert!(
                    value["ok"].is_boolean() && value["n"].is_number() && value["s"].is_string()
                );
                valid += 1;
            }
            FinishReason::Length => assert_eq!(finish(&events).usage.completion, 90),
            other => panic!("{other:?}"),
        }
    }
    assert!(valid >= 6, "only {valid} of 12 ended");
}

#[test]
fn a_control_token_comes_after_the_text_before_it() {
    let mut rig = Rig::texts(&["a", "b"], EngineConfig::default());
    let mut request = greedy(vec![PIECES], 24);
    // 1 is a control token.
    request.sampling.logit_bias = [1, PIECES, PIECES + 1].map(|id| (id, 50.0)).to_vec();
    request.stop = vec!["ab!".into()];
    let events = rig.run(request);
    let mut pieces = events.iter().filter_map(|event| match event {
        Event::Token(token) => Some((token.id, token.text.len())),
        _ => None,
    });
    let (mut written, mut shown, mut controls) = (0, 0, 0);
    assert!(pieces.all(|(id, len)| {
        written += usize::from(id != 1);
        shown += len;
        controls += usize::from(id == 1);
        id != 1 || shown == written
    }));
    assert!(controls > 0 && written > controls, "{events:?}");
}

#[test]
fn without_a_tokenizer_texts_are_refused() {
    let rig = rig(8);
    let stop = Request {
        stop: vec!["x".into()],
        ..greedy(vec![1], 1)
    };
    let constraint = Request {
        constraint: Some(Constraint::JsonObject),
        ..greedy(vec![1], 1)
    };
    for request in [stop, constraint] {
        assert!(matches!(
            rig.handle.submit(request),
            Err(SubmitError::Unsupported(_))
        ));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Pieces, bytes and half characters: the streamed text is the whole text up to the stop text.
    #[test]
    fn stop_texts_cut_the_streamed_text_as_the_whole_text(
        stops in prop::collection::vec("[abé]{1,3}", 0..4), prompt in prop::collection::vec(0..4u32, 1..9),
    ) {
        let mut rig = Rig::texts(&["a", "b", "ab", "é"], EngineConfig::default());
        let mut request = greedy(prompt.iter().map(|id| PIECES + id).collect(), 40);
        request.sampling.logit_bias =
            [PIECES, PIECES + 1, PIECES + 2, PIECES + 3, 3 + 0xc3, 3 + 0xa9].map(|id| (id, 50.0)).to_vec();
        let whole = rig.run(request.clone());
        let bytes: Vec<u8> = tokens(&whole)
            .iter()
            .flat_map(|&id| rig.steps.tokenizer.as_ref().unwrap().bytes(id).to_vec())
            .collect();
        prop_assert_eq!(text(&whole), String::from_utf8_lossy(&bytes));

        let cut = rig.run(Request { stop: stops.clone(), ..request });
        let (expected, stopped) = naive(&text(&whole), &stops);
        prop_assert_eq!(text(&cut), expected);
        prop_assert_eq!(&finish(&cut).reason, if stopped { &FinishReason::Stop } else { &FinishReason::Length });
        prop_assert!(tokens(&whole).starts_with(&tokens(&cut)));
    }
}

/// Requests that begin alike, of several tenants and priorities.
fn conversations() -> impl Strategy<Value = Vec<Visit>> {
    let visit = (
        (0u32..3, 0usize..60),
        prop::collection::vec(0..ORDINARY, 1..20),
        1usize..40,
        (0u32..3, 0i32..2),
        0usize..120,
        prop::option::weighted(0.2, 0usize..30),
    );
    let visit = visit.prop_map(
        |((stem, shared), own, most, (tenant, priority), arrives, stays)| {
            let mut prompt: Vec<u32> = (0..shared as u32)
                .map(|i| (i * 7 + stem) % ORDINARY)
                .collect();
            prompt.extend(own);
            Visit {
                request: Request {
                    tenant: format!("tenant {tenant}").into(),
                    priority,
                    ..greedy(prompt, most)
                },
                arrives,
                leaves: stays.map(|s| arrives + s),
            }
        },
    );
    prop::collection::vec(visit, 1..16)
}

fn caches() -> impl Strategy<Value = CacheConfig> {
    let link = prop::sample::select(&[f64::INFINITY, 1e6, 1e4]);
    let host = (1usize..20, link, any::<bool>(), any::<bool>());
    let host = host.prop_map(|(pages, rate, overlap, delta)| HostConfig {
        pages,
        link: LinkConfig {
            rate,
            per_copy: Duration::from_micros(10),
        },
        overlap,
        delta,
    });
    let prefixes = prop::sample::select(&[Prefixes::Off, Prefixes::Prompts, Prefixes::All]);
    (
        prefixes,
        any::<bool>(),
        1usize..6,
        prop::option::weighted(0.7, host),
    )
        .prop_map(|(prefixes, isolate_tenants, group, host)| CacheConfig {
            prefixes,
            isolate_tenants,
            group,
            host,
            disk: None,
        })
}

/// A file of so many pages of the scripted model, in this folder.
fn disk(folder: &std::path::Path, pages: u64) -> DiskTier {
    let config = DiskConfig {
        folder: folder.to_owned(),
        capacity: pages * 8192,
        page_bytes: 16 * 8,
        identity: [1; 32],
    };
    DiskTier(Arc::new(Disk::open(config).unwrap()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Sharing, preemption for others' sake, and moves between tiers change nobody's answer, lose
    /// no page, and leave nobody out.
    #[test]
    fn answers_do_not_depend_on_where_pages_were(
        visits in conversations(), cache in caches(), pages in 7usize..24, budget in 4usize..40,
        max_running in 1usize..5, policy in prop::sample::select(&POLICIES),
        quantum in prop::sample::select(&[0.001, 0.05, 1e9]),
        on_disk in prop::option::weighted(0.3, (1u64..40, any::<prop::sample::Index>())),
    ) {
        // One byte of the file is damaged before each step.
        let folder = tempfile::tempdir().unwrap();
        let mut cache = cache;
        cache.disk = on_disk.map(|(pages, _)| disk(folder.path(), pages));
        let shape = Shape { pages, context: 112, ..SHAPE };
        let config = EngineConfig {
            token_budget: budget,
            max_running,
            max_waiting: 100,
            policy,
            cache,
            fair_quantum: Duration::from_secs_f64(quantum),
            ..EngineConfig::default()
        };
        let mut rig = Rig::with_most(None, shape, config, usize::MAX);
        let mut outputs: Vec<Option<Output>> = visits.iter().map(|_| None).collect();
        let mut events: Vec<Vec<Event>> = vec![Vec::new(); visits.len()];
        let mut time = 0;
        while time <= 160 || !rig.steps.sequences.is_empty() {
            prop_assert!(time < 20_000, "requests are left after {time} steps");
            for (i, visit) in visits.iter().enumerate() {
                if visit.arrives == time {
                    outputs[i] = Some(rig.submit(visit.request.clone()));
                }
                if visit.leaves == Some(time) {
                    outputs[i] = None;
                }
            }
            if let Some((_, at)) = &on_disk {
                damage(folder.path(), at, time);
            }
            rig.steps.clock.wait(Duration::from_millis(1));
            rig.steps.poll();
            let leases: Vec<_> = rig.steps.sequences.iter().map(|s| &s.lease).collect();
            rig.steps.cache.audit(&leases);
            for (output, events) in outputs.iter_mut().zip(&mut events) {
                events.extend(output.as_mut().map(Output::ready).unwrap_or_default());
            }
            time += 1;
        }
        prop_assert_eq!(rig.steps.cache.used(), 0);
        for (visit, events) in visits.iter().zip(events) {
            let most = visit.request.max_tokens.unwrap_or(0);
            let most = most.min(112.min(pages * 16) - visit.request.prompt.len());
            let expected = Scripted::alone(&visit.request.prompt, most);
            if visit.leaves.is_some() {
                prop_assert!(expected.starts_with(&tokens(&events)));
            } else {
                prop_assert_eq!(tokens(&events), expected);
                prop_assert_eq!(&finish(&events).reason, &FinishReason::Length);
            }
        }
    }
}

/// Flips a bit somewhere in the file of pages.
fn damage(folder: &std::path::Path, at: &prop::sample::Index, time: usize) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(folder.join("pages"))
        .unwrap();
    let length = file.metadata().unwrap().len() as usize;
    if length > 0 {
        // Most of a slot is padding: only the parts that are read.
        let slot = (at.index(length) + time * 8192) % length / 8192 * 8192;
        let offset = slot + [41, 100, 4096 + time % 128][time % 3];
        let mut byte = [0];
        if file.read_exact_at(&mut byte, offset as u64).is_ok() {
            byte[0] ^= 1 << (time % 8);
            file.write_all_at(&byte, offset as u64).unwrap();
        }
    }
}

/// What was computed before a restart is read instead of computed.
#[test]
fn prefixes_survive_a_restart_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let prompt: Vec<u32> = (0..70).map(|i| i * 7 % ORDINARY).collect();
    let mut turn = prompt.clone();
    for round in 0..2 {
        let config = EngineConfig {
            cache: CacheConfig {
                disk: Some(disk(folder.path(), 100)),
                ..CacheConfig::default()
            },
            ..EngineConfig::default()
        };
        let mut rig = Rig::new(SHAPE, config);
        let events = rig.run(greedy(turn.clone(), 30));
        assert_eq!(tokens(&events), Scripted::alone(&turn, 30));
        // The prompt and 29 tokens of the answer were computed, in six full pages.
        assert_eq!(finish(&events).usage.cached, [0, 96][round]);
        turn.extend(tokens(&events));
        turn.push(5);
        rig.steps.cache.close(rig.steps.executor.as_ref());
    }
}

/// A request that waits through its deadline ends then, and says so.
#[test]
fn a_deadline_ends_a_request() {
    let mut rig = rig(16);
    let mut late = rig.submit(Request {
        deadline: Some(Duration::from_millis(5)),
        ..greedy(vec![1, 2, 3], 200)
    });
    rig.steps.poll();
    assert!(matches!(late.ready()[..], [Event::Token(_)]));
    rig.steps.clock.wait(Duration::from_millis(6));
    rig.steps.poll();
    assert!(
        matches!(&late.ready()[..], [Event::Finished(f)] if f.reason == FinishReason::Deadline)
    );
    assert_eq!(rig.steps.cache.used(), 0);
}

/// The next turn of a conversation computes what is new in it.
#[test]
fn a_conversations_next_turn_computes_only_what_is_new() {
    let mut rig = rig(64);
    let first: Vec<u32> = (0..50).map(|i| i * 7 % ORDINARY).collect();
    let mut turn = first.clone();
    turn.extend(tokens(&rig.run(greedy(first, 30))));
    turn.extend([3, 1, 4]);
    let before = rig.stats().prompt_tokens;
    let events = rig.run(greedy(turn.clone(), 5));
    assert_eq!(tokens(&events), Scripted::alone(&turn, 5));
    // 79 of 83 tokens were computed, 64 of them in full pages; a page that begins alike is one
    // of the answer's, not yet full.
    assert_eq!(finish(&events).usage.cached, 64);
    assert_eq!(rig.stats().prompt_tokens - before, 83 - 64);
}

/// With pages for two and a host tier, three that take turns lose nothing of what was computed.
#[test]
fn pages_come_back_from_the_host_tier() {
    let host = HostConfig {
        pages: 64,
        link: LinkConfig::default(),
        overlap: true,
        delta: true,
    };
    let config = EngineConfig {
        cache: CacheConfig {
            host: Some(host),
            ..CacheConfig::default()
        },
        ..EngineConfig::default()
    };
    let mut rig = Rig::new(Shape { pages: 12, ..SHAPE }, config);
    let prompt = |i: u32| {
        (0..80)
            .map(|j| (i + j * (i + 2)) % ORDINARY)
            .collect::<Vec<u32>>()
    };
    for round in 0..3 {
        for i in 0..3 {
            let events = rig.run(greedy(prompt(i), 4));
            assert_eq!(tokens(&events), Scripted::alone(&prompt(i), 4));
            // The last of five pages holds the last token of the prompt, which is computed.
            let cached = finish(&events).usage.cached;
            assert!(if round == 0 {
                cached == 0
            } else {
                cached >= 64
            });
        }
    }
    let stats = rig.stats().cache;
    assert!(stats.bytes_in > 0 && stats.bytes_out > 0, "{stats:?}");
    assert_eq!(stats.dropped, 0);
}

/// Those whose tenant asks little overtake a flood, and nobody starves.
#[test]
fn a_flood_delays_others_by_a_step_only() {
    let config = EngineConfig {
        token_budget: 32,
        max_running: 4,
        ..EngineConfig::default()
    };
    let mut rig = Rig::paced(SHAPE, config, Duration::from_millis(10));
    let of = |tenant: &str, i: u32| Request {
        tenant: tenant.into(),
        ..greedy((0..20).map(|j| (i + j) % ORDINARY).collect(), 20)
    };
    let flood: Vec<Output> = (0..40).map(|i| rig.submit(of("flood", i))).collect();
    for _ in 0..30 {
        rig.steps.poll();
    }
    let mut other = rig.submit(of("other", 7));
    let mut steps = 0;
    while other.ready().is_empty() {
        rig.steps.poll();
        steps += 1;
    }
    assert_eq!(steps, 1);
    rig.finish();
    drop(flood);
}

/// A tenant that fills the queue leaves room for others, and is told to come again.
#[test]
fn a_full_queue_has_a_place_for_a_newcomer() {
    let config = EngineConfig {
        max_waiting: 8,
        ..EngineConfig::default()
    };
    let rig = Rig::new(SHAPE, config);
    let of = |tenant: &str| Request {
        tenant: tenant.into(),
        ..greedy(vec![1], 9)
    };
    let _first = rig.submit(of("other"));
    let mut flood = Vec::new();
    while let Ok(output) = rig.handle.submit(of("flood")) {
        flood.push(output);
    }
    assert_eq!(flood.len(), 4);
    let _other = rig.submit(of("other"));
    let _newcomer = rig.submit(of("newcomer"));
    assert!(matches!(
        rig.handle.submit(of("flood")),
        Err(SubmitError::Busy { .. })
    ));
}

/// Those who are refused are told different times, and one that would come too late is told so.
#[test]
fn refusals_say_how_long_the_queue_is() {
    let config = EngineConfig {
        max_waiting: 3,
        max_running: 1,
        ..EngineConfig::default()
    };
    let mut rig = Rig::paced(SHAPE, config, Duration::from_millis(500));
    for _ in 0..3 {
        let _ = rig.run(greedy(vec![1, 2], 4)); // two seconds each
    }
    let _waiting: Vec<Output> = (0..3).map(|_| rig.submit(greedy(vec![1], 4))).collect();
    let retry = || match rig.handle.submit(greedy(vec![1], 4)) {
        Err(SubmitError::Busy { retry_after, .. }) => retry_after.as_secs(),
        other => panic!("{other:?}"),
    };
    assert_eq!([retry(), retry(), retry()], [2, 4, 6]);
    // A promise that has passed binds nobody.
    rig.steps.clock.wait(Duration::from_secs(100));
    assert_eq!(retry(), 2);
    drop(_waiting);
    rig.finish();
    let _waiting: Vec<Output> = (0..2).map(|_| rig.submit(greedy(vec![1], 4))).collect();
    let late = Request {
        deadline: Some(Duration::from_secs(1)),
        ..greedy(vec![1], 4)
    };
    let refused = rig.handle.submit(late).unwrap_err();
    assert!(matches!(refused, SubmitError::Late { wait } if wait > Duration::from_secs(1)));
}

/// Tenants that come once leave nothing behind when their pages are given up.
#[test]
fn names_of_tenants_take_no_memory() {
    let config = EngineConfig {
        cache: CacheConfig {
            isolate_tenants: true,
            ..CacheConfig::default()
        },
        ..EngineConfig::default()
    };
    let mut rig = Rig::new(Shape { pages: 8, ..SHAPE }, config);
    for i in 0..200u32 {
        let prompt: Vec<u32> = (0..40).map(|j| (i + j) % ORDINARY).collect();
        let request = Request {
            tenant: format!("tenant {i}").into(),
            ..greedy(prompt.clone(), 3)
        };
        assert_eq!(tokens(&rig.run(request)), Scripted::alone(&prompt, 3));
    }
    assert!(rig.steps.cache.names() <= 2 * 8);
}
