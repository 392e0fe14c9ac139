//! Every architecture against another implementation's logits and greedy ids.
//! See tests/golden/README.md for what the files hold.

mod common;

use common::{Golden, Run, folder, golden};
use sedge_kernels::KvType;
use sedge_models::open;

/// The bound is on logits of random models in float32, summed in another order.
const MOST: f32 = 2e-3;

fn agrees(name: &str) {
    check(name, &golden(name), Run::open(name, KvType::F32));
}

fn check(name: &str, want: &Golden, mut run: Run) {
    let ids = want.ids("input_ids");

    let logits = run.logits(&ids, ids.len());
    let worst = logits
        .iter()
        .zip(want.f32s("logits"))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    println!("{name}: max |Δlogit| = {worst:.2e}");
    assert!(worst <= MOST, "{name}: max |Δlogit| = {worst:e}");

    let greedy = want.ids("greedy");
    assert_eq!(
        run.greedy(&greedy[..16], 24),
        greedy[16..],
        "{name}: greedy ids"
    );

    // Any chunks give the same bits: a token does not see how its prompt was cut.
    for chunk in [1, 7, 16] {
        assert!(
            run.logits(&ids, chunk) == logits,
            "{name}: chunks of {chunk} differ"
        );
    }
}

macro_rules! agree {
    ($($test:ident: $folder:literal),* $(,)?) => {
        $(#[test]
        fn $test() {
            agrees($folder);
        })*
    };
}

agree! {
    deepseek_v2: "deepseek-v2",
    gemma3: "gemma3",
    llama: "llama",
    llama31_rope: "llama31-rope",
    mistral_window: "mistral-window",
    mixtral: "mixtral",
    olmoe: "olmoe",
    phi3: "phi3",
    qwen2: "qwen2",
    qwen2_moe: "qwen2-moe",
    qwen3: "qwen3",
    qwen3_moe: "qwen3-moe",
    smollm3: "smollm3",
}

/// The golden file was computed without the cap of the scores: see tests/golden/README.md.
#[test]
fn gemma2() {
    let copy = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(folder("gemma2").join("config.json")).unwrap();
    let without = config.replace(
        "\"attn_logit_softcapping\": 50.0",
        "\"attn_logit_softcapping\": null",
    );
    assert_ne!(config, without);
    std::fs::write(copy.path().join("config.json"), without).unwrap();
    std::fs::copy(
        folder("gemma2").join("model.safetensors"),
        copy.path().join("model.safetensors"),
    )
    .unwrap();
    check(
        "gemma2",
        &golden("gemma2"),
        Run::of(open(copy.path()).unwrap(), KvType::F32),
    );
}

#[test]
fn gemma2_with_its_score_cap() {
    check(
        "gemma2-capped",
        &golden("gemma2-capped"),
        Run::open("gemma2", KvType::F32),
    );
}

#[test]
fn bert() {
    let want = golden("bert");
    let hidden = Run::open("bert", KvType::F32).hidden(&want.ids("input_ids"));
    let worst = hidden
        .iter()
        .zip(want.f32s("hidden"))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    println!("bert: max |Δhidden| = {worst:.2e}");
    assert!(worst <= 1e-4, "max |Δhidden| = {worst:e}");

    let mut mean = vec![0.0; 64];
    for row in hidden.chunks_exact(64) {
        mean.iter_mut().zip(row).for_each(|(m, x)| *m += x);
    }
    let norm = mean.iter().map(|m| m * m).sum::<f32>().sqrt();
    for (m, want) in mean.iter().zip(want.f32s("mean_pooled")) {
        assert!((m / norm - want).abs() <= 1e-4);
    }
}

#[test]
fn a_sequence_does_not_see_its_batch() {
    for name in ["llama", "gemma2", "qwen2-moe", "deepseek-v2"] {
        for kv in [KvType::F16, KvType::Q4] {
            let ids = golden(name).ids("input_ids");
            let mut run = Run::open(name, kv);
            let alone = run.logits(&ids, ids.len());
            assert!(run.logits_among_others(&ids, 16) == alone, "{name}");
            assert!(run.logits(&ids, 7) == alone, "{name}: chunks");
        }
    }
}

/// Means of squares of what two runs' logits differ by, and of the logits.
fn off(a: &[f32], b: &[f32]) -> f32 {
    let mean = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>();
    mean(&mut a.iter().zip(b).map(|(a, b)| a - b)) / mean(&mut b.iter().copied())
}

/// Queries, keys and values are turned alike and results back, so that f32 shows nothing of it;
/// with values in keys, scores of latent attention too.
#[test]
fn rotation_alone_changes_nothing_and_4_bits_change_little() {
    for name in ["llama", "gemma2", "gemma3", "qwen2-moe", "deepseek-v2"] {
        let ids = golden(name).ids("input_ids");
        let logits = |kv, rotated| {
            let opened = open(&folder(name)).unwrap();
            Run::kept(opened, kv, rotated).logits(&ids, ids.len())
        };
        let exact = logits(KvType::F32, false);
        let rotated = off(&logits(KvType::F32, true), &exact);
        let four = off(&logits(KvType::Q4, true), &exact);
        let eight = off(&logits(KvType::Q8, true), &exact);
        println!("{name}: rotated f32 {rotated:.1e}, q8 {eight:.1e}, q4 {four:.1e} of squares");
        assert!(rotated < 1e-9, "{name}: {rotated:e}");
        // A step is some 17 times as wide, and its square 300 times: how much a model makes of it
        // is its own.
        assert!(
            four < 400.0 * eight && four < 0.2,
            "{name}: {four:e}, {eight:e}"
        );
    }
}
