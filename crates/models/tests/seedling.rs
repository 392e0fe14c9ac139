//! The built-in model against another implementation, tests/golden/seedling.
//!
//! The repository carries it in q8_0. The float32 figures need the bfloat16 checkpoint:
//! `SEDGE_SEEDLING=folder cargo test -p sedge-models --test seedling`.

mod common;

use std::path::{Path, PathBuf};

use common::{Golden, Run, golden};
use sedge_kernels::{KvType, Team};
use sedge_models::open;

const END: u32 = 4;

struct Prompt {
    ids: Vec<u32>,
    greedy: Vec<u32>,
}

fn prompts() -> Vec<Prompt> {
    let text = std::fs::read_to_string(common::folder("seedling").join("golden.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let list = |v: &serde_json::Value| {
        v.as_array()
            .unwrap()
            .iter()
            .map(|i| i.as_u64().unwrap() as u32)
            .collect()
    };
    (0..5)
        .map(|i| &json[i.to_string()])
        .map(|p| Prompt {
            ids: list(&p["ids"]),
            greedy: list(&p["greedy"]),
        })
        .collect()
}

fn answer(run: &mut Run, prompt: &Prompt) -> Vec<u32> {
    let mut ids = run.greedy(&prompt.ids, prompt.greedy.len());
    if let Some(end) = ids.iter().position(|&id| id == END) {
        ids.truncate(end + 1);
    }
    ids
}

fn worst_logit(run: &mut Run, prompt: &Prompt, want: &Golden, index: usize) -> f32 {
    let want = want.f32s(&format!("logits.{index}"));
    let logits = run.logits(&prompt.ids, prompt.ids.len());
    let last = &logits[logits.len() - want.len()..];
    last.iter()
        .zip(&want)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
fn the_asset_answers_as_the_checkpoint_does() {
    let asset = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/seedling/seedling.gguf");
    let mut run = Run::of(open(&asset).unwrap(), KvType::F16);
    let want = golden("seedling");
    for (index, prompt) in prompts().iter().enumerate() {
        // 8-bit weights move logits of up to 20 by a few tenths; the answers stay.
        let worst = worst_logit(&mut run, prompt, &want, index);
        println!("prompt {index}: max |Δlogit| = {worst:.3}");
        assert!(worst < 1.0, "prompt {index}: {worst}");
        assert_eq!(answer(&mut run, prompt), prompt.greedy, "prompt {index}");
    }
}

/// The way in which models are served: packed weights, 8-bit activations, small keys and values.
#[test]
fn packed_the_asset_answers_as_the_checkpoint_does() {
    let asset = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/seedling/seedling.gguf");
    let want = golden("seedling");
    for (kv, round) in [KvType::F16, KvType::BF16, KvType::Q8, KvType::Q4]
        .into_iter()
        .flat_map(served)
    {
        let mut opened = open(&asset).unwrap();
        opened.model.round_prompts(round);
        opened.model.pack(&Team::new(2)).unwrap();
        let mut run = Run::of(opened, kv);
        for (index, prompt) in prompts().iter().enumerate() {
            let worst = worst_logit(&mut run, prompt, &want, index);
            println!("prompt {index}, {kv:?}, rounded {round}: max |Δlogit| = {worst:.3}");
            // What 8-bit activations add to 8-bit weights, on logits of up to 20.
            let most = if kv == KvType::Q4 { 6.0 } else { 2.0 };
            assert!(worst < most, "prompt {index}, {kv:?}: {worst}");
            // Where two tokens are nearly as likely, coarser keys and values may choose the other.
            if kv == KvType::F16 {
                let answer = answer(&mut run, prompt);
                assert_eq!(answer, prompt.greedy, "prompt {index}");
            }
        }
    }
}

/// On text, of which the model has outliers that rotation spreads.
#[test]
fn logits_with_4_bit_keys_and_values_are_near_and_rotated_ones_nearer() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/seedling");
    let text = std::fs::read_to_string(assets.join("heldout.txt")).unwrap();
    let logits = |kv, rotated| -> Vec<f32> {
        let mut opened = open(&assets.join("seedling.gguf")).unwrap();
        opened.model.pack(&Team::new(2)).unwrap();
        let tokenizer = opened.tokenizer.take().unwrap();
        let text: String = text.chars().take(8000).collect();
        let ids = tokenizer.encode(&text, false, false);
        let mut run = Run::kept(opened, kv, rotated);
        let windows = ids.chunks_exact(400).take(4);
        windows.flat_map(|ids| run.logits(ids, 400)).collect()
    };
    let exact = logits(KvType::F32, false);
    let off = |rotated| -> f64 {
        let pairs = logits(KvType::Q4, rotated).into_iter().zip(&exact);
        let sum: f64 = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum();
        (sum / exact.len() as f64).sqrt()
    };
    let (rotated, plain) = (off(true), off(false));
    println!("off by {rotated:.4} rotated, {plain:.4} not");
    assert!(rotated < plain && rotated < 0.7, "{rotated}, {plain}");
}

/// The ways of prompts on this machine: exact, and rounded where that is fast.
fn served(kv: KvType) -> Vec<(KvType, bool)> {
    if !sedge_kernels::rounds_fast() {
        println!("skipped: prompts rounded to bfloat16, since there are no tiles");
        return vec![(kv, false)];
    }
    vec![(kv, false), (kv, true)]
}

#[test]
fn packed_a_token_has_the_same_logits_in_any_batch_and_chunk() {
    let asset = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/seedling/seedling.gguf");
    for (kv, round) in served(KvType::F16) {
        let mut opened = open(&asset).unwrap();
        opened.model.round_prompts(round);
        opened.model.pack(&Team::new(2)).unwrap();
        let mut run = Run::of(opened, kv);
        let ids: Vec<u32> = (0..60).map(|i| 100 + i * 7 % 400).collect();
        let whole = run.logits(&ids, ids.len());
        for chunk in [1, 7, 16] {
            assert!(run.logits(&ids, chunk) == whole, "chunks of {chunk}");
        }
        assert!(run.logits_among_others(&ids, 5) == whole, "among others");
    }
}

#[test]
fn the_checkpoint_in_float32_agrees_to_the_last_digits() {
    let Some(folder) = std::env::var_os("SEDGE_SEEDLING").map(PathBuf::from) else {
        println!("skipped: SEDGE_SEEDLING does not name the bfloat16 checkpoint");
        return;
    };
    let mut run = Run::of(open(&folder).unwrap(), KvType::F32);
    let want = golden("seedling");
    for (index, prompt) in prompts().iter().enumerate() {
        let worst = worst_logit(&mut run, prompt, &want, index);
        println!("prompt {index}: max |Δlogit| = {worst:.2e}");
        assert!(worst <= 2e-3, "prompt {index}: {worst:e}");
        assert_eq!(answer(&mut run, prompt), prompt.greedy, "prompt {index}");
    }
}
