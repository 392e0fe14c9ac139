//! Adapters in PEFT's layout, read for the model that they were made for.
//! See tests/golden/README.md for what the files hold.

mod common;

use std::path::Path;

use common::{ADAPTERS, Run, adapter, folder, golden};
use sedge_kernels::{DType, KvType, Team};
use sedge_models::{Acts, AdapterFacts, Model, Origin, convert, merge, open};

#[test]
fn every_checkpoint_is_read() {
    let Model::Decoder(llama) = open(&folder("llama")).unwrap().model else {
        panic!("llama is a decoder");
    };
    for name in ADAPTERS {
        let facts = AdapterFacts::read(&folder(&format!("peft/{name}"))).unwrap();
        let adapter = adapter(name, &llama);
        println!("{name}: {facts:?}, {} bytes in memory", adapter.bytes());
        assert_eq!(facts.base.as_deref(), Some("golden/llama"), "{name}");
        assert_eq!(facts.method, adapter.method(), "{name}");
        assert_eq!(facts.positions, adapter.positions(), "{name}");
        let before = matches!(facts.acts, Acts::KeysValues | Acts::Embeddings);
        assert_eq!(facts.merges, !before, "{name}");
        assert_eq!(adapter.merges(), !before, "{name}");
        assert!(adapter.bytes() > 0);
    }
}

/// Largest difference of the logits of a merged model from what another implementation computes.
fn off(name: &str, base: &Path, key: &str) -> f32 {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("merged.gguf");
    let from = folder(&format!("peft/{name}"));
    merge(
        &Origin::Path(base),
        &from,
        &file,
        None,
        &Team::new(2),
        &mut |_| {},
    )
    .unwrap();
    let want = golden(&format!("peft/{name}"));
    let ids = want.ids("input_ids");
    let logits = Run::of(open(&file).unwrap(), KvType::F32).logits(&ids, ids.len());
    assert_eq!(logits.len(), want.f32s(key).len());
    worst(&logits, &want.f32s(key))
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    apart.fold(0.0, f32::max)
}

#[test]
fn merged_models_compute_what_peft_does() {
    let out = tempfile::tempdir().unwrap();
    // Its rows of queries and keys are in another order than the adapters'.
    let gguf = out.path().join("llama.gguf");
    convert(&folder("llama"), &gguf, None, &Team::new(2), &mut |_| {}).unwrap();
    for name in &ADAPTERS[..11] {
        let bare = {
            let want = golden(&format!("peft/{name}"));
            let ids = want.ids("input_ids");
            let logits = Run::open("llama", KvType::F32).logits(&ids, ids.len());
            worst(&logits, &want.f32s("logits"))
        };
        for base in [folder("llama"), gguf.clone()] {
            let off = off(name, &base, "logits");
            println!("{name}: max |Δlogit| = {off:.2e}, unchanged {bare:.2e}");
            assert!(off <= 1e-3 && bare > 10.0 * off, "{name}: {off:e}");
        }
    }
    for name in ["lora", "dora", "ia3"] {
        let off = off(name, &gguf, "merged_logits");
        println!("{name}: max |Δlogit| = {off:.2e} from merged");
        assert!(off <= 1e-3, "{name}: {off:e}");
    }
}

#[test]
fn what_is_no_change_of_weights_is_not_merged() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("merged.gguf");
    for name in &ADAPTERS[11..] {
        let from = folder(&format!("peft/{name}"));
        let error = merge(
            &Origin::Path(&folder("llama")),
            &from,
            &file,
            None,
            &Team::new(1),
            &mut |_| {},
        );
        let error = error.unwrap_err().to_string();
        assert!(error.contains("cannot be merged: "), "{error}");
        assert!(!file.exists());
    }
}

#[test]
fn a_merged_file_takes_any_type_that_is_written() {
    let out = tempfile::tempdir().unwrap();
    let from = folder("peft/lora-embed-head");
    let want = golden("peft/lora-embed-head");
    let (ids, logits) = (want.ids("input_ids"), want.f32s("logits"));
    let size = logits.iter().map(|x| x * x).sum::<f32>().sqrt();
    for (dtype, most) in [
        (DType::BF16, 0.01),
        (DType::F16, 0.002),
        (DType::Q8_0, 0.03),
    ] {
        let file = out.path().join(format!("{dtype}.gguf"));
        let base = folder("llama");
        merge(
            &Origin::Path(&base),
            &from,
            &file,
            Some(dtype),
            &Team::new(2),
            &mut |_| {},
        )
        .unwrap();
        let found = Run::of(open(&file).unwrap(), KvType::F32).logits(&ids, ids.len());
        let apart = found.iter().zip(&logits).map(|(a, b)| (a - b).powi(2));
        let off = apart.sum::<f32>().sqrt() / size;
        assert!(off <= most, "{dtype}: relative error {off}");
    }
}
