//! A model that grows and shrinks while requests run.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use half::f16;
use sedge_engine::{
    CpuExecutor, Engine, EngineConfig, Event, FinishReason, MemoryError, Output, Request, Sampling,
};
use sedge_kernels::{KvType, StackBlock, Team};
use sedge_models::{Model, SharedModel, StackedMatrix, open};

const BLOCKS: usize = 4;

/// The tiny llama with random stacks in place of its matrices.
fn stacked() -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/golden/llama");
    let mut model = open(&folder).unwrap().model;
    let c = model.config().clone();
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let parts = [
        ("attn_q", q, c.hidden),
        ("attn_k", kv, c.hidden),
        ("attn_v", kv, c.hidden),
        ("attn_output", c.hidden, q),
        ("ffn_gate", c.intermediate, c.hidden),
        ("ffn_up", c.intermediate, c.hidden),
        ("ffn_down", c.hidden, c.intermediate),
    ];
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut matrices = Vec::new();
    for layer in 0..c.layers.len() {
        for (part, rows, cols) in parts {
            let blocks = (0..BLOCKS).map(|b| {
                let negative: Vec<bool> = (0..rows * cols).map(|_| next() < 0.0).collect();
                let size = 0.3 / (1 << b) as f32;
                let u: Vec<f16> = (0..rows)
                    .map(|_| f16::from_f32(next().abs() * size))
                    .collect();
                let v: Vec<f16> = (0..cols).map(|_| f16::from_f32(next().abs())).collect();
                let bytes = StackBlock::encode((rows, cols), &negative, &u, &v);
                StackBlock::new(rows, cols, bytes.into()).unwrap()
            });
            matrices.push(StackedMatrix {
                name: format!("blk.{layer}.{part}.weight"),
                rows,
                cols,
                blocks: blocks.collect(),
            });
        }
    }
    let order = (0..BLOCKS).flat_map(|_| 0..matrices.len() as u32).collect();
    model.put_stacks(matrices, order).unwrap();
    model.load_blocks().unwrap();
    model
}

fn engine() -> (Engine, Arc<SharedModel>) {
    let model = SharedModel::new(stacked());
    let executor = CpuExecutor::new(model.clone(), Team::new(2), KvType::F32, 400, 256);
    let config = EngineConfig {
        token_budget: 24,
        max_running: 6,
        ..EngineConfig::default()
    };
    (Engine::start(Box::new(executor), None, config), model)
}

fn request(seed: u32, tokens: usize) -> Request {
    Request {
        prompt: (0..40 + seed % 23)
            .map(|i| (i * 31 + seed * 7) % 512)
            .collect(),
        max_tokens: Some(tokens),
        ignore_eos: true,
        sampling: Sampling {
            temperature: 0.0,
            ..Sampling::default()
        },
        ..Request::default()
    }
}

/// The tokens of an answer, which come one by one.
fn answer(mut output: Output) -> Vec<u32> {
    let mut tokens = Vec::new();
    while let Some(event) = output.next_blocking() {
        match event {
            Event::Token(token) => tokens.push(token.id),
            Event::Finished(finish) => {
                assert_eq!(finish.reason, FinishReason::Length);
                assert_eq!(finish.usage.completion, tokens.len());
            }
            _ => {}
        }
    }
    tokens
}

#[test]
fn an_answer_is_that_of_its_size_whatever_sizes_were_between() {
    let (engine, model) = engine();
    let whole = engine.memory().unwrap();
    let sizes = [
        whole.largest,
        (whole.smallest + whole.largest) / 2,
        whole.smallest,
    ];
    let mut answers: HashMap<(u64, u32), Vec<u32>> = HashMap::new();
    // The same prompts at all sizes again and again: what is kept of one is no other's.
    for round in 0..6 {
        let size = sizes[(round * 2) % 3];
        engine.set_memory(size).unwrap();
        for seed in 0..3 {
            let found = answer(engine.submit(request(seed, 10)).unwrap());
            let first = answers.entry((size, seed)).or_insert_with(|| found.clone());
            assert_eq!(first, &found, "round {round}, {size} bytes, request {seed}");
        }
    }
    let of = |size: u64| {
        (0..3)
            .map(|seed| answers[&(size, seed)].clone())
            .collect::<Vec<_>>()
    };
    assert!(of(sizes[0]) != of(sizes[2]), "sizes make a difference");
    // They are those of a model that was never another size.
    let mut small = stacked();
    small.set_memory(whole.smallest).unwrap();
    let executor = CpuExecutor::new(SharedModel::new(small), Team::new(1), KvType::F32, 400, 256);
    let alone = Engine::start(Box::new(executor), None, EngineConfig::default());
    for seed in 0..3 {
        let found = answer(alone.submit(request(seed, 10)).unwrap());
        assert_eq!(answers[&(whole.smallest, seed)], found);
    }
    // Pages of a size are found again at that size.
    assert!(engine.stats().cache.reused_tokens > 0);
    drop(model);
}

#[test]
fn requests_go_on_while_the_model_changes_and_only_changed_blocks_move() {
    let (engine, _) = engine();
    let whole = engine.memory().unwrap();
    let reader = {
        let engine = engine.clone();
        std::thread::spawn(move || {
            let outputs: Vec<Output> = (0..12)
                .map(|seed| engine.submit(request(seed, 60)).unwrap())
                .collect();
            outputs.into_iter().map(answer).collect::<Vec<_>>()
        })
    };
    let mut moves = 0;
    while !reader.is_finished() {
        let part = (moves * 5) % 9;
        let bytes = whole.smallest + (whole.largest - whole.smallest) * part / 8;
        let before = engine.memory().unwrap();
        let moved = engine.set_memory(bytes).unwrap();
        let after = engine.memory().unwrap();
        assert_eq!(
            moved.into.bytes as i64 - moved.out.bytes as i64,
            after.bytes as i64 - before.bytes as i64
        );
        assert!(
            moved.into.count == 0 || moved.out.count == 0,
            "one way at a time"
        );
        assert_eq!(engine.memory_target(), Some(bytes));
        moves += 1;
    }
    let answers = reader.join().unwrap();
    assert!(moves > 0);
    assert!(answers.iter().all(|tokens| tokens.len() == 60));
    // Afterwards answers are those of the size again.
    engine.set_memory(whole.largest).unwrap();
    let found = answer(engine.submit(request(3, 20)).unwrap());
    let fresh = self::engine().0;
    assert_eq!(found, answer(fresh.submit(request(3, 20)).unwrap()));
}

#[test]
fn what_cannot_be_is_refused() {
    let (engine, _) = engine();
    let smallest = engine.memory().unwrap().smallest;
    let error = engine.set_memory(smallest - 1).unwrap_err();
    assert!(matches!(error, MemoryError::TooSmall { .. }));
    assert_eq!(engine.memory_target(), None);
    assert_eq!(
        engine.memory().unwrap().bytes,
        engine.stats().memory.unwrap().largest
    );
}
