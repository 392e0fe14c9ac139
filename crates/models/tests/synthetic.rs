//! Random fine-tunes and adapters: what they change and what they leave.

mod common;

use std::path::Path;

use common::{Run, folder, golden};
use sedge_formats::gguf::Gguf;
use sedge_kernels::{DType, KvType, Team};
use sedge_models::{
    Adapter, AdapterFacts, AdapterPlan, Decoder, Model, Origin, convert, merge, open, perturb,
    synth_adapter, synth_methods,
};

fn decoder(path: &Path) -> Decoder {
    match open(path).unwrap().model {
        Model::Decoder(model) => model,
        Model::Encoder(_) => panic!("{} is an encoder", path.display()),
    }
}

fn plan(method: &str) -> AdapterPlan {
    AdapterPlan {
        method: method.into(),
        rank: 4,
        alpha: 8.0,
        targets: Vec::new(),
        positions: 5,
        dtype: DType::BF16,
        seed: 1,
        base: "some/base".into(),
    }
}

fn logits(path: &Path, ids: &[u32]) -> Vec<f32> {
    Run::of(open(path).unwrap(), KvType::F32).logits(ids, ids.len())
}

/// How far apart, over how large the first is.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
    let difference = square(&mut a.iter().zip(b).map(|(a, b)| a - b));
    (difference / square(&mut a.iter().copied())).sqrt()
}

#[test]
fn a_perturbed_model_differs_in_the_matrices_of_the_named_layers_alone() {
    let out = tempfile::tempdir().unwrap();
    let team = Team::new(2);
    for (model, dtype) in [
        ("llama", None),
        ("llama", Some(DType::Q8_0)),
        ("qwen2-moe", Some(DType::Q4_0)),
        ("phi3", Some(DType::BF16)),
    ] {
        let base = out.path().join("base.gguf");
        convert(&folder(model), &base, dtype, &team, &mut |_| {}).unwrap();
        let tuned = |origin: &Origin<'_>, layers: &[usize], seed| {
            let file = out.path().join("tuned.gguf");
            perturb(origin, layers, seed, &file, &team, &mut |_| {}).unwrap();
            file
        };
        let from = Origin::Path(&base);
        let (old, new) = (
            Gguf::open(&base).unwrap(),
            Gguf::open(&tuned(&from, &[0, 2], 7)).unwrap(),
        );
        assert_eq!(old.metadata(), new.metadata());
        assert!(old.tensors().keys().eq(new.tensors().keys()));
        let mut changed = 0;
        for (name, info) in old.tensors() {
            let other = &new.tensors()[name];
            assert_eq!(
                (info.dtype, &info.shape),
                (other.dtype, &other.shape),
                "{name}"
            );
            let named = name.starts_with("blk.0.") || name.starts_with("blk.2.");
            let matrix = info.shape.len() > 1;
            let differs = old.data(info) != new.data(other);
            assert_eq!(differs, named && matrix, "{model}: {name}");
            changed += usize::from(differs);
        }
        assert!(changed >= 8, "{changed}");

        // A layer's change is its own, and a seed's; a folder's is that of what it converts to.
        let alone = Gguf::open(&tuned(&from, &[2], 7)).unwrap();
        let other = Gguf::open(&tuned(&from, &[2], 8)).unwrap();
        let name = new
            .tensors()
            .keys()
            .find(|n| n.starts_with("blk.2.") && n.contains("down"));
        let name = name.unwrap();
        let data = |file: &Gguf| file.data(&file.tensors()[name]);
        assert!(data(&new) == data(&alone) && data(&new) != data(&other));
        if dtype.is_none() {
            let of_folder = tuned(&Origin::Path(&folder(model)), &[0, 2], 7);
            assert!(data(&Gguf::open(&of_folder).unwrap()) == data(&new));
        }

        let ids = golden(model).ids("input_ids");
        let off = apart(
            &logits(&base, &ids),
            &logits(&tuned(&from, &[0, 2], 7), &ids),
        );
        println!("{model}: logits move by {off}");
        assert!((0.001..0.5).contains(&off), "{off}");
    }
    let error = perturb(
        &Origin::Path(&folder("llama")),
        &[3],
        0,
        &out.path().join("none.gguf"),
        &team,
        &mut |_| {},
    );
    assert!(error.unwrap_err().to_string().contains("0 to 2"));
}

#[test]
fn random_adapters_of_every_method_are_read_and_change_the_model_a_little() {
    let out = tempfile::tempdir().unwrap();
    for model in ["llama", "gemma2", "phi3", "qwen3", "deepseek-v2", "mixtral"] {
        let gguf = out.path().join(format!("{model}.gguf"));
        convert(&folder(model), &gguf, None, &Team::new(2), &mut |_| {}).unwrap();
        let ids = golden(model).ids("input_ids");
        let bare = logits(&gguf, &ids);
        for method in synth_methods() {
            if (model, method) == ("deepseek-v2", "prefix") {
                continue;
            }
            let path = out.path().join(format!("{model}-{method}"));
            let report = synth_adapter(&decoder(&gguf), &plan(method), &path, &mut |_, _| {});
            let report = report.unwrap();
            let facts = AdapterFacts::read(&path).unwrap();
            assert_eq!(facts.base.as_deref(), Some("some/base"));
            assert_eq!(
                (facts.parameters, facts.bytes),
                (report.parameters, report.bytes)
            );
            for base in [&gguf, &folder(model)] {
                let adapter = Adapter::open(&path, &decoder(base)).unwrap();
                assert_eq!(adapter.method(), facts.method);
            }
            if !facts.merges {
                continue;
            }
            // From either base the same model comes out.
            let merged = |base: &Path| {
                let file = out.path().join("merged.gguf");
                let base = Origin::Path(base);
                merge(&base, &path, &file, None, &Team::new(2), &mut |_| {}).unwrap();
                logits(&file, &ids)
            };
            let (one, other) = (merged(&gguf), merged(&folder(model)));
            let off = apart(&bare, &one);
            println!("{model}: {method} moves logits by {off}");
            assert!((0.003..0.9).contains(&off), "{model}, {method}: {off}");
            assert!(apart(&one, &other) < 1e-4, "{model}, {method}");
        }
    }
}

#[test]
fn equal_plans_give_equal_files_and_targets_are_kept_to() {
    let out = tempfile::tempdir().unwrap();
    let model = decoder(&folder("llama"));
    let write = |name: &str, plan: &AdapterPlan| {
        let path = out.path().join(name);
        synth_adapter(&model, plan, &path, &mut |_, _| {}).unwrap();
        std::fs::read(path.join("adapter_model.safetensors")).unwrap()
    };
    let (a, b) = (write("a", &plan("lora")), write("b", &plan("lora")));
    let other = AdapterPlan {
        seed: 2,
        ..plan("lora")
    };
    assert!(a == b && a != write("c", &other));

    let some = AdapterPlan {
        targets: vec!["q_proj".into(), "v_proj".into()],
        ..plan("lora")
    };
    write("some", &some);
    let facts = AdapterFacts::read(&out.path().join("some")).unwrap();
    // A and B of query and value in three layers.
    assert_eq!(facts.parameters, 3 * 4 * (64 + 64 + 64 + 32));

    let refused = |plan: AdapterPlan| {
        let path = out.path().join("none");
        synth_adapter(&model, &plan, &path, &mut |_, _| {})
            .unwrap_err()
            .to_string()
    };
    let error = refused(AdapterPlan {
        targets: vec!["qkv_proj".into()],
        ..plan("lora")
    });
    assert!(
        error.contains("qkv_proj") && error.contains("q_proj, "),
        "{error}"
    );
    assert!(refused(plan("magic")).contains("lora, dora"));
    assert!(
        refused(AdapterPlan {
            dtype: DType::Q8_0,
            ..plan("lora")
        })
        .contains("bf16")
    );
    assert!(
        refused(AdapterPlan {
            rank: 0,
            ..plan("lora")
        })
        .contains("rank is 0")
    );
}
