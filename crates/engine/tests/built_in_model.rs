//! The built-in model behind the engine: what its neighbours must not change, and valid answers.

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use sedge_engine::{
    Constraint, CpuExecutor, Engine, EngineConfig, EngineStats, Event, FinishReason, HostConfig,
    Output, Prefixes, Request, Sampling,
};
use sedge_formats::tokenizer::Tokenizer;
use sedge_kernels::{KvType, Team};
use sedge_models::{Model, SharedModel};
use sedge_tiers::LinkConfig;

static SEEDLING: LazyLock<(Arc<Model>, Arc<Tokenizer>)> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/seedling/seedling.gguf");
    let mut opened = sedge_models::open(&path).unwrap();
    // As it is served.
    opened.model.round_prompts(sedge_kernels::rounds_fast());
    opened.model.pack(&Team::new(2)).unwrap();
    (Arc::new(opened.model), opened.tokenizer.unwrap())
});

fn engine(pages: usize, config: EngineConfig) -> Engine {
    engine_with(KvType::F16, pages, config)
}

fn engine_with(kv: KvType, pages: usize, config: EngineConfig) -> Engine {
    let (model, tokenizer) = &*SEEDLING;
    let model = SharedModel::new(model.clone());
    let executor = CpuExecutor::new(model, Team::new(2), kv, pages, 512);
    Engine::start(Box::new(executor), Some(tokenizer.clone()), config)
}

fn ask(text: &str, max_tokens: usize) -> Request {
    Request {
        prompt: SEEDLING.1.encode(text, true, false),
        max_tokens: Some(max_tokens),
        sampling: Sampling {
            temperature: 0.0,
            ..Sampling::default()
        },
        ..Request::default()
    }
}

/// An answer of three or four pages, whatever the model would say.
fn long(text: &str) -> Request {
    Request {
        ignore_eos: true,
        ..ask(text, 40)
    }
}

/// Tokens, text and the end.
fn read(mut output: Output) -> (Vec<u32>, String, FinishReason) {
    let (mut tokens, mut text) = (Vec::new(), String::new());
    while let Some(event) = output.next_blocking() {
        match event {
            Event::Token(token) => {
                tokens.push(token.id);
                text.push_str(&token.text);
            }
            Event::Finished(finish) => {
                text.push_str(&finish.text);
                return (tokens, text, finish.reason);
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("the answer did not end");
}

const QUESTIONS: [&str; 16] = [
    "how do I extract a tar.gz archive?",
    "find all files larger than 100MB",
    "What is grep?",
    "count lines in a file",
    "show disk usage of a folder, sorted by size, largest first, in human readable units",
    "kill a process by name",
    "list open ports",
    "rename a file",
    "compress a folder",
    "show the last 20 lines of a log file and follow it as it grows",
    "what is my ip address",
    "change the owner of a file",
    "search a text in all files below this folder, but not in those that git ignores",
    "make a script executable",
    "print the second column",
    "sort numbers",
];

#[test]
fn sixteen_neighbours_change_no_token_nor_do_chunks_and_preemption() {
    let alone = engine(64, EngineConfig::default());
    let expected: Vec<_> = QUESTIONS
        .iter()
        .map(|q| read(alone.submit(long(q)).unwrap()))
        .collect();

    let run = |pages, config| -> EngineStats {
        let engine = engine(pages, config);
        let outputs: Vec<Output> = QUESTIONS
            .iter()
            .map(|q| engine.submit(long(q)).unwrap())
            .collect();
        for (output, expected) in outputs.into_iter().zip(&expected) {
            assert_eq!(&read(output), expected);
        }
        assert!(engine.drain(Duration::from_secs(60)));
        assert_eq!(engine.stats().pages_used, 0);
        engine.stats()
    };
    let together = run(200, EngineConfig::default());
    assert_eq!(together.preempted, 0);
    let tight = EngineConfig {
        token_budget: 19,
        ..EngineConfig::default()
    };
    assert!(run(14, tight).preempted > 0);
}

#[test]
fn pages_of_4_bits_come_back_from_the_second_tier_as_they_went() {
    // Long enough to fill pages.
    let questions: Vec<String> = (0..QUESTIONS.len())
        .map(|i| {
            let after = |n: usize| QUESTIONS[(i + n) % QUESTIONS.len()];
            format!("{}, then {}, then {}", after(0), after(1), after(2))
        })
        .collect();
    let alone = engine_with(KvType::Q4, 64, EngineConfig::default());
    let expected: Vec<_> = questions
        .iter()
        .map(|q| read(alone.submit(long(q)).unwrap()))
        .collect();
    let mut config = EngineConfig::default();
    // What an answer leaves is computed as an answer; only prompts are as a prompt would be.
    config.cache.prefixes = Prefixes::Prompts;
    config.cache.host = Some(HostConfig {
        pages: 200,
        link: LinkConfig::default(),
        overlap: true,
        delta: true,
    });
    // Room for two, so that each one's pages must go before it is asked again.
    let engine = engine_with(KvType::Q4, 12, config);
    for _ in 0..2 {
        for (question, expected) in questions.iter().zip(&expected) {
            assert_eq!(&read(engine.submit(long(question)).unwrap()), expected);
        }
    }
    let stats = engine.stats().cache;
    assert!(stats.bytes_out > 0 && stats.bytes_in > 0, "{stats:?}");
}

#[test]
fn a_schema_makes_every_answer_valid() {
    let schema = serde_json::json!({
        "type": "object",
        "properties": {
            "command": { "type": "string", "maxLength": 40 },
            "safe": { "type": "boolean" },
        },
        "required": ["command", "safe"],
        "additionalProperties": false,
    });
    let engine = engine(200, EngineConfig::default());
    let outputs: Vec<Output> = (0..8)
        .map(|seed| {
            let mut request = ask(QUESTIONS[seed as usize], 200);
            request.constraint = Some(Constraint::JsonSchema(schema.clone()));
            request.sampling = Sampling {
                seed: Some(seed),
                ..Sampling::default()
            };
            engine.submit(request).unwrap()
        })
        .collect();
    for output in outputs {
        let (_, text, reason) = read(output);
        assert_eq!(reason, FinishReason::Stop, "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(
            value["command"].is_string() && value["safe"].is_boolean(),
            "{text}"
        );
    }
}
