//! Adapters through a running engine: more of them than memory holds, added, merged and removed
//! while requests run. See crates/models/tests/golden/README.md for the checkpoints.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sedge_engine::{
    AdapterError, CpuExecutor, Engine, EngineConfig, Event, FinishReason, NewAdapter, Output,
    Request, Sampling, SubmitError,
};
use sedge_kernels::{KvType, Team};
use sedge_models::{Adapter, SharedModel, open};

/// Adapters of the tiny llama, one of each way to act.
const NAMES: [&str; 8] = [
    "lora", "dora", "ia3", "vera", "ln", "prefix", "prompt", "lokr",
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../models/tests/golden")
        .join(name)
}

fn new(model: &Arc<SharedModel>, name: &str, reads: &Arc<AtomicUsize>) -> NewAdapter {
    let (for_loads, for_merges, reads) = (model.clone(), model.clone(), reads.clone());
    let place = folder(&format!("peft/{name}"));
    let mut identity = [0; 32];
    identity[..name.len()].copy_from_slice(name.as_bytes());
    NewAdapter {
        name: name.into(),
        identity,
        member: 0,
        load: Arc::new(move || {
            reads.fetch_add(1, Ordering::SeqCst);
            Adapter::open_for(&place, &for_loads.get(), 0).map_err(|e| e.to_string())
        }),
        merge: Arc::new(move |adapter| {
            for_merges
                .merge(0, adapter, &Team::new(1))
                .map_err(|e| e.to_string())
        }),
    }
}

/// An engine with all adapters, of which memory holds those of so many bytes.
fn engine(memory: u64) -> (Engine, Arc<SharedModel>, Arc<AtomicUsize>) {
    let model = SharedModel::new(open(&folder("llama")).unwrap().model);
    let executor = CpuExecutor::new(model.clone(), Team::new(2), KvType::F32, 200, 256);
    let config = EngineConfig {
        token_budget: 24,
        max_running: 6,
        adapter_memory: memory,
        ..EngineConfig::default()
    };
    let engine = Engine::start(Box::new(executor), None, config);
    let reads = Arc::default();
    for name in NAMES {
        engine.add_adapter(new(&model, name, &reads)).unwrap();
    }
    (engine, model, reads)
}

fn request(adapter: Option<&str>, seed: u32) -> Request {
    Request {
        prompt: (0..9 + seed % 23)
            .map(|i| (i * 31 + seed * 7) % 512)
            .collect(),
        max_tokens: Some(12),
        adapter: adapter.map(Arc::from),
        ignore_eos: true,
        sampling: Sampling {
            temperature: 0.0,
            ..Sampling::default()
        },
        ..Request::default()
    }
}

/// The tokens of an answer, and what it says of its prompt.
fn answer(mut output: Output) -> (Vec<u32>, usize) {
    let mut tokens = Vec::new();
    while let Some(event) = output.next_blocking() {
        match event {
            Event::Token(token) => tokens.push(token.id),
            Event::Finished(finish) => {
                assert_eq!(finish.reason, FinishReason::Length, "{finish:?}");
                return (tokens, finish.usage.prompt);
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("an answer without an end")
}

#[test]
fn answers_do_not_depend_on_which_adapters_are_in_memory() {
    let sizes: Vec<u64> = {
        let (engine, ..) = engine(64 << 20);
        engine.adapters().iter().map(|a| a.bytes).collect()
    };
    let alone: Vec<(Vec<u32>, usize)> = {
        let (engine, ..) = engine(64 << 20);
        let one = |i: u32| {
            let adapter = NAMES.get(i as usize % 9).copied();
            answer(engine.submit(request(adapter, i)).unwrap())
        };
        (0..36).map(one).collect()
    };
    // Room for the largest and little more: they take turns.
    let memory = sizes.iter().max().unwrap() * 3 / 2;
    let (engine, _, reads) = engine(memory);
    for _ in 0..3 {
        let outputs: Vec<Output> = (0..36)
            .map(|i| {
                engine
                    .submit(request(NAMES.get(i as usize % 9).copied(), i))
                    .unwrap()
            })
            .collect();
        for (i, (output, alone)) in outputs.into_iter().zip(&alone).enumerate() {
            let found = answer(output);
            assert_eq!(found, *alone, "request {i}");
            assert_eq!(found.1, request(None, i as u32).prompt.len());
        }
    }
    let stats = engine.stats().adapters;
    assert!(stats.evictions > 0 && stats.loads > 0, "{stats:?}");
    assert!(stats.bytes <= memory && stats.registered == 8, "{stats:?}");
    assert_eq!(reads.load(Ordering::SeqCst) as u64, 8 + stats.loads);
}

#[test]
fn merged_or_not_an_answer_is_its_adapters() {
    let (engine, ..) = engine(64 << 20);
    let ask = |adapter: &str| answer(engine.submit(request(Some(adapter), 3)).unwrap()).0;
    let base = || answer(engine.submit(request(None, 3)).unwrap()).0;
    let (before, bare) = (NAMES.map(ask), base());
    // Some change too little for twelve tokens to show.
    assert!(before.iter().filter(|answer| **answer != bare).count() >= 5);
    for (name, before) in NAMES.iter().zip(&before) {
        match *name {
            "prefix" | "prompt" => {
                let error = engine.merge_adapter(name).unwrap_err();
                assert!(matches!(error, AdapterError::Merge { .. }), "{error}");
                continue;
            }
            _ => assert!(engine.merge_adapter(name).unwrap().merged.is_some()),
        }
        // In float32 the two ways differ in last digits, which these answers do not turn on.
        assert_eq!(ask(name), *before, "{name}, merged");
        assert_eq!(base(), bare);
    }
    for name in NAMES {
        match engine.unmerge_adapter(name) {
            Ok(view) => assert_eq!(view.merged, None),
            Err(error) => assert!(matches!(error, AdapterError::NotMerged(_))),
        }
    }
    assert_eq!(NAMES.map(ask), before);
    assert_eq!(base(), bare);
}

#[test]
fn names_come_and_go_while_requests_run() {
    let (engine, model, reads) = engine(64 << 20);
    let error = engine.submit(request(Some("nobody"), 1)).unwrap_err();
    assert_eq!(error, SubmitError::Adapter("nobody".into()));
    assert!(matches!(
        engine.add_adapter(new(&model, "lora", &reads)),
        Err(AdapterError::Exists(_))
    ));
    let expected = answer(engine.submit(request(Some("lora"), 5)).unwrap());
    let running = engine.submit(request(Some("lora"), 5)).unwrap();
    engine.remove_adapter("lora").unwrap();
    assert!(!engine.has_adapter("lora"));
    assert!(engine.submit(request(Some("lora"), 5)).is_err());
    // Whoever has begun ends with it; whoever has not says that it is gone.
    let mut running = running;
    let mut tokens = Vec::new();
    loop {
        match running.next_blocking().unwrap() {
            Event::Token(token) => tokens.push(token.id),
            Event::Finished(finish) => match finish.reason {
                FinishReason::Length => break assert_eq!(tokens, expected.0),
                FinishReason::Error(why) => break assert!(why.contains("removed"), "{why}"),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
    engine.add_adapter(new(&model, "lora", &reads)).unwrap();
    assert_eq!(
        answer(engine.submit(request(Some("lora"), 5)).unwrap()),
        expected
    );

    let wrong = NewAdapter {
        name: "wrong".into(),
        load: Arc::new(|| Err("made for another base".into())),
        ..new(&model, "lora", &reads)
    };
    let error = engine.add_adapter(wrong).unwrap_err();
    assert_eq!(error.to_string(), "wrong: made for another base");
}

#[test]
fn one_place_is_enough_for_a_request_with_an_adapter() {
    let model = SharedModel::new(open(&folder("llama")).unwrap().model);
    let executor = CpuExecutor::new(model.clone(), Team::new(1), KvType::F32, 50, 256);
    let config = EngineConfig {
        max_running: 1,
        ..EngineConfig::default()
    };
    let engine = Engine::start(Box::new(executor), None, config);
    engine
        .add_adapter(new(&model, "lora", &Arc::default()))
        .unwrap();
    let outputs = [1, 2, 3].map(|i| engine.submit(request(Some("lora"), i)).unwrap());
    for output in outputs {
        assert_eq!(answer(output).0.len(), 12);
    }
}
