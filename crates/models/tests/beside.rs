//! Adapters beside the weights: alone, all in one batch, and merged while the model serves.

mod common;

use std::sync::Arc;

use common::{ADAPTERS, adapter, folder, golden};
use sedge_kernels::{KvPages, KvType, PAGE_TOKENS, Segment, Team};
use sedge_models::{
    Adapter, Batch, Model, Outputs, SharedModel, Variant, Workspace, convert, open,
};

/// Another implementation's logits are summed in another order.
const MOST: f32 = 1e-3;

/// A sequence and what computes it.
struct Sequence {
    variant: Variant,
    ids: Vec<u32>,
}

/// Logits of all tokens of some sequences in one batch, cut into chunks of so many tokens each.
fn logits(model: &Model, sequences: &[Sequence], chunk: usize) -> Vec<Vec<f32>> {
    const PAGES: usize = 8;
    let config = model.config();
    let pages = PAGES * sequences.len();
    let mut kv = KvPages::new(config.layers.len(), pages, config.kv_shape(), KvType::F32);
    let (team, mut work) = (Team::new(2), Workspace::default());
    let mut all = vec![Vec::new(); sequences.len()];
    // What an adapter puts before a prompt has numbers beyond the vocabulary.
    let tokens: Vec<Vec<u32>> = sequences
        .iter()
        .map(|s| {
            let before = s.variant.adapter.as_ref().map_or(0, |a| a.positions());
            let before = (0..before).map(|i| (config.vocab + i) as u32);
            before.chain(s.ids.iter().copied()).collect()
        })
        .collect();
    let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
    for start in (0..longest).step_by(chunk) {
        let (mut batch, mut owners) = (Batch::default(), Vec::new());
        for (i, (sequence, tokens)) in sequences.iter().zip(&tokens).enumerate() {
            let end = tokens.len().min(start + chunk);
            if start >= end {
                continue;
            }
            let (row, table) = (batch.tokens.len(), batch.tables.len());
            batch.tokens.extend(&tokens[start..end]);
            for (at, &token) in tokens[start..end].iter().enumerate() {
                if (token as usize) < config.vocab {
                    batch.logits.push((row + at) as u32);
                    owners.push(i);
                }
            }
            assert!(end.div_ceil(PAGE_TOKENS) <= PAGES);
            batch
                .tables
                .extend((0..PAGES).map(|p| (i * PAGES + p) as u32));
            batch.segments.push(Segment {
                rows: row..batch.tokens.len(),
                position: start,
                pages: table..batch.tables.len(),
            });
            batch.variants.push(sequence.variant.clone());
        }
        let mut out = Outputs::default();
        model.forward(&team, &batch, &mut kv, &mut work, &mut out);
        for (row, owner) in out.logits.chunks(config.vocab).zip(owners) {
            all[owner].extend_from_slice(row);
        }
    }
    all
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    apart.fold(0.0, f32::max)
}

fn with(adapter: Option<Arc<Adapter>>, member: usize, ids: &[u32]) -> Sequence {
    Sequence {
        variant: Variant { member, adapter },
        ids: ids.to_vec(),
    }
}

/// Every adapter's sequence, and one of the model alone.
fn sequences(model: &Model) -> Vec<Sequence> {
    let Model::Decoder(decoder) = model else {
        panic!("llama is a decoder");
    };
    let mut all: Vec<Sequence> = ADAPTERS
        .iter()
        .map(|name| {
            let ids = golden(&format!("peft/{name}")).ids("input_ids");
            with(Some(Arc::new(adapter(name, decoder))), 0, &ids)
        })
        .collect();
    all.push(with(None, 0, &golden("llama").ids("input_ids")));
    all
}

/// The model as its makers store it, and as a GGUF file, whose rows are in another order.
fn bases() -> (tempfile::TempDir, [Model; 2]) {
    let out = tempfile::tempdir().unwrap();
    let gguf = out.path().join("llama.gguf");
    convert(&folder("llama"), &gguf, None, &Team::new(2), &mut |_| {}).unwrap();
    let models = [folder("llama"), gguf].map(|place| open(&place).unwrap().model);
    (out, models)
}

#[test]
fn adapters_compute_what_peft_does_alone_and_in_one_batch() {
    let (_out, models) = bases();
    for model in models {
        let sequences = sequences(&model);
        let together = logits(&model, &sequences, 64);
        for (i, name) in ADAPTERS.iter().enumerate() {
            let off = worst(
                &together[i],
                &golden(&format!("peft/{name}")).f32s("logits"),
            );
            println!("{name}: max |Δlogit| = {off:.2e}");
            assert!(off <= MOST, "{name}: {off:e}");
        }
        let off = worst(&together[ADAPTERS.len()], &golden("llama").f32s("logits"));
        assert!(off <= 2.0 * MOST, "the model alone: {off:e}");
        // Neither neighbours nor chunks change a bit.
        for (sequence, together) in sequences.iter().zip(&together) {
            assert!(logits(&model, std::slice::from_ref(sequence), 64)[0] == *together);
        }
        assert!(logits(&model, &sequences, 7) == together);
    }
}

#[test]
fn merging_while_serving_computes_the_same_and_unmerging_restores_every_bit() {
    let (_out, models) = bases();
    for model in models {
        let before = logits(&model, &sequences(&model), 64);
        let shared = SharedModel::new(model);
        let team = Team::new(2);
        // Those of LoRA on embeddings and head are merged into files only.
        let merging = ADAPTERS[..11]
            .iter()
            .filter(|name| **name != "lora-embed-head");
        for name in merging {
            let Model::Decoder(decoder) = &*shared.get() else {
                panic!("llama is a decoder");
            };
            let adapter = Arc::new(adapter(name, decoder));
            let want = golden(&format!("peft/{name}"));
            let ids = want.ids("input_ids");
            let merged = shared.merge(0, &adapter, &team).unwrap();
            assert!(merged.member > 0);
            let model = shared.get();
            let mut all = sequences(&model);
            all.push(with(None, merged.member, &ids));
            let mut found = logits(&model, &all, 64);
            let off = worst(&found.pop().unwrap(), &want.f32s("logits"));
            println!("{name}, merged: max |Δlogit| = {off:.2e}");
            assert!(off <= MOST, "{name}: {off:e}");
            // All others are what they were, beside it and after it.
            assert!(found == before);
            drop(model);
            drop(merged);
            let model = shared.get();
            assert!(logits(&model, &sequences(&model), 64) == before);
        }
    }
}

#[test]
fn what_does_not_merge_says_why() {
    let shared = SharedModel::new(open(&folder("llama")).unwrap().model);
    let model = shared.get();
    let Model::Decoder(decoder) = &*model else {
        panic!("llama is a decoder");
    };
    for (name, why) in [
        ("prefix", "keys and values"),
        ("prompt", "embeddings before"),
        ("ptuning", "embeddings before"),
        ("lora-embed-head", "into a file only"),
    ] {
        let error = shared
            .merge(0, &adapter(name, decoder), &Team::new(1))
            .unwrap_err();
        assert!(error.to_string().contains(why), "{name}: {error}");
    }
}

#[test]
fn a_merged_adapter_outlives_its_twin() {
    let shared = SharedModel::new(open(&folder("llama")).unwrap().model);
    let team = Team::new(1);
    // Tuned norms are equal without being the same memory.
    let of = |name: &str| {
        let Model::Decoder(decoder) = &*shared.get() else {
            panic!("llama is a decoder");
        };
        adapter(name, decoder)
    };
    let ids = golden("peft/ln").ids("input_ids");
    let first = shared.merge(0, &of("ln"), &team).unwrap();
    let twin = shared.merge(0, &of("ln"), &team).unwrap();
    let now = |member| logits(&shared.get(), &[with(None, member, &ids)], 64).remove(0);
    let expected = now(twin.member);
    assert!(now(first.member) == expected && now(0) != expected);
    drop(first);
    assert!(now(twin.member) == expected);
    let other = shared.merge(0, &of("lora"), &team).unwrap();
    assert!(now(twin.member) == expected && now(other.member) != expected);
}
