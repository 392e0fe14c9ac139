//! Checkpoints as they are found in the wild: other names, biases, towers, ways of pooling.

mod common;

use std::path::Path;

use common::{Run, folder, golden};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use sedge_formats::gguf::{Gguf, Value};
use sedge_kernels::{KvType, Team};
use sedge_models::config::{Pooling, RopeScaling, from_hf};
use sedge_models::{convert, open, open_within};

type Tensors = Vec<(String, Vec<usize>, Vec<u8>)>;

/// Copies a golden checkpoint, its tensors and configuration changed.
fn variant(
    name: &str,
    to: &Path,
    config: impl Fn(String) -> String,
    tensors: impl Fn(Tensors) -> Tensors,
) {
    let text = std::fs::read_to_string(folder(name).join("config.json")).unwrap();
    std::fs::write(to.join("config.json"), config(text)).unwrap();
    let bytes = std::fs::read(folder(name).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let all = file
        .iter()
        .map(|(n, t)| (n.to_string(), t.shape().to_vec(), t.data().to_vec()));
    let all = tensors(all.collect());
    let views = all
        .iter()
        .map(|(n, shape, data)| (n, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    serialize_to_file(views, None, &to.join("model.safetensors")).unwrap();
}

fn values(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .flat_map(|i| ((((seed + i) * 37 % 101) as f32 - 50.0) / 50.0).to_le_bytes())
        .collect()
}

#[test]
fn biases_of_queries_and_keys_are_converted_with_their_rows() {
    let dir = tempfile::tempdir().unwrap();
    variant(
        "llama",
        dir.path(),
        |text| text.replace("\"attention_bias\": false", "\"attention_bias\": true"),
        |mut all| {
            for layer in 0..3 {
                for (part, rows) in [("q", 64), ("k", 32), ("v", 32), ("o", 64)] {
                    let name = format!("model.layers.{layer}.self_attn.{part}_proj.bias");
                    all.push((name, vec![rows], values(layer * 7 + rows, rows)));
                }
            }
            all
        },
    );
    let ids = golden("llama").ids("input_ids");
    let before = Run::of(open(dir.path()).unwrap(), KvType::F32).logits(&ids, ids.len());
    let plain = Run::open("llama", KvType::F32).logits(&ids, ids.len());
    assert_ne!(before, plain, "the biases count");

    let file = dir.path().join("out.gguf");
    convert(dir.path(), &file, None, &Team::new(1), &mut |_| {}).unwrap();
    let after = Run::of(open(&file).unwrap(), KvType::F32).logits(&ids, ids.len());
    for (a, b) in before.iter().zip(&after) {
        assert!((a - b).abs() <= 1e-4);
    }
}

/// YaRN as published for Qwen2.5, with a magnitude of its own or without.
fn yarn(text: String, factor: &str) -> String {
    let yarn = format!(
        r#""rope_parameters": {{"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
            "original_max_position_embeddings": 64{factor}}}, "was": {{"#
    );
    text.replace("\"rope_parameters\": {", &yarn)
}

#[test]
fn yarn_in_a_gguf_file_multiplies_the_usual_magnitude_as_llama_cpp_does() {
    let usual = 0.1 * 4f32.ln() + 1.0;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("out.gguf");
    for (stated, magnitude, written) in [
        ("", usual, None),
        (", \"attention_factor\": 1.0", 1.0, Some(1.0 / usual)),
        (", \"attention_factor\": 2.0", 2.0, Some(2.0 / usual)),
    ] {
        variant("qwen2", dir.path(), |text| yarn(text, stated), |all| all);
        let before = open(dir.path()).unwrap();
        let rope = before.model.config().ropes[0].clone();
        assert!((rope.magnitude - magnitude).abs() < 1e-6);
        convert(dir.path(), &file, None, &Team::new(1), &mut |_| {}).unwrap();
        let gguf = Gguf::open(&file).unwrap();
        let factor = gguf.get("qwen2.rope.scaling.attn_factor");
        let factor = factor.and_then(Value::as_f64).map(|f| f as f32);
        assert_eq!(factor.is_some(), written.is_some());
        assert!((factor.unwrap_or(1.0) - written.unwrap_or(1.0)).abs() < 1e-6);
        let after = open(&file).unwrap().model.config().ropes[0].clone();
        assert!((after.magnitude - magnitude).abs() < 1e-6);
        assert_eq!(after.frequencies, rope.frequencies);
    }
}

/// LongRoPE as Phi-3-mini-128k states it: trained on 64 positions, stretched to 256.
fn long_rope(text: String) -> String {
    let factors = |step: f32| {
        let each = (0..8).map(|i| (1.0 + step * i as f32).to_string());
        each.collect::<Vec<_>>().join(", ")
    };
    let (short, long) = (factors(0.125), factors(2.0));
    let scaling = format!(
        r#""rope_theta": 10000.0, "rope_scaling": {{"type": "longrope", "short_factor": [{short}],
            "long_factor": [{long}]}}, "was": {{"#
    );
    text.replace("\"rope_parameters\": {", &scaling).replace(
        "\"original_max_position_embeddings\": 4096",
        "\"original_max_position_embeddings\": 64",
    )
}

#[test]
fn long_rope_has_the_factors_of_the_context_that_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("out.gguf");
    variant("phi3", dir.path(), long_rope, |all| all);
    convert(dir.path(), &file, None, &Team::new(1), &mut |_| {}).unwrap();

    // What llama.cpp reads of such files.
    let gguf = Gguf::open(&file).unwrap();
    for (name, step) in [("short", 0.125), ("long", 2.0)] {
        let tensor = &gguf.tensors()[&format!("rope_factors_{name}.weight")];
        let bytes = gguf.data(tensor);
        let (fours, _) = bytes.as_chunks::<4>();
        let found: Vec<f32> = fours.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let expected: Vec<f32> = (0..8).map(|i| 1.0 + step * i as f32).collect();
        assert_eq!(found, expected);
    }
    assert!(!gguf.tensors().contains_key("rope_freqs.weight"));
    let number = |key: &str| {
        gguf.get(&format!("phi3.rope.scaling.{key}"))
            .unwrap()
            .as_f64()
    };
    assert_eq!(number("original_context_length"), Some(64.0));
    let magnitude = (1.0 + 4f64.ln() / 64f64.ln()).sqrt();
    assert!((number("attn_factor").unwrap() - magnitude).abs() < 1e-6);

    let ids = golden("phi3").ids("input_ids");
    let mut logits = Vec::new();
    for (limit, context, step) in [
        (None, 256, 2.0),
        (Some(65), 65, 2.0),
        (Some(64), 64, 0.125),
        (Some(1 << 30), 256, 2.0),
    ] {
        for path in [dir.path(), &file] {
            let opened = open_within(path, limit).unwrap();
            let config = opened.model.config();
            assert_eq!(config.context, context);
            let rope = &config.ropes[0];
            assert!((f64::from(rope.magnitude) - magnitude).abs() < 1e-6);
            for (i, f) in rope.frequencies.iter().enumerate() {
                let expected = 10_000f32.powf(-(i as f32) / 8.0) / (1.0 + step * i as f32);
                assert!(
                    (f - expected).abs() <= expected * 1e-6,
                    "{path:?} {limit:?} {i}"
                );
            }
            logits.push(Run::of(opened, KvType::F32).logits(&ids, ids.len()));
        }
    }
    assert_ne!(logits[0], logits[4], "the factors count");
    for pair in logits.chunks(2) {
        assert_eq!(pair[0], pair[1], "a folder and its file are the same model");
    }
}

#[test]
fn half_of_long_rope_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for key in ["short_factor", "long_factor"] {
        let without = |text: String| long_rope(text).replace(key, "other");
        variant("phi3", dir.path(), without, |all| all);
        let error = open(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with(&format!("{key} is missing")), "{error}");
    }
}

#[test]
fn old_names_of_an_encoder_are_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let old = |name: String| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        format!("bert.{}", name.replace("LayerNorm.bias", "LayerNorm.beta"))
    };
    variant(
        "bert",
        dir.path(),
        |text| text,
        |all| {
            all.into_iter()
                .map(|(name, shape, data)| (old(name), shape, data))
                .collect()
        },
    );
    let ids = golden("bert").ids("input_ids");
    let hidden = Run::of(open(dir.path()).unwrap(), KvType::F32).hidden(&ids);
    assert_eq!(hidden, Run::open("bert", KvType::F32).hidden(&ids));
}

#[test]
fn a_tower_beside_the_text_model_is_left_alone_and_a_stray_weight_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let with = |name: &'static str| {
        variant(
            "llama",
            dir.path(),
            |text| text,
            move |mut all| {
                all.push((name.into(), vec![4], values(1, 4)));
                all
            },
        );
        open(dir.path()).map(|_| ())
    };
    with("vision_tower.patch.weight").unwrap();
    let error = with("model.layers.0.self_attn.sinks")
        .unwrap_err()
        .to_string();
    assert!(error.contains("sinks"), "{error}");
}

/// The configuration that is published with gemma-3-4b-it, but for the towers' own keys.
const GEMMA_3_4B: &str = r#"{
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
    "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
        "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024},
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"}
}"#;

#[test]
fn what_gemma_3_leaves_unsaid_is_what_its_library_has() {
    let config = from_hf(GEMMA_3_4B).unwrap();
    assert_eq!((config.vocab, config.context), (262_208, 131_072));
    assert_eq!(
        (config.heads, config.kv_heads, config.head_dim),
        (8, 4, 256)
    );
    assert_eq!((config.norm_eps, config.attention_scale), (1e-6, 0.0625));
    assert_eq!(config.ropes[0].stated.base, 1e6);
    assert_eq!(
        config.ropes[0].stated.scaling,
        RopeScaling::Linear { factor: 8.0 }
    );
    assert_eq!(config.ropes[1].stated.base, 1e4);
    let windows: Vec<_> = config.layers[..7].iter().map(|l| l.window).collect();
    let near = Some(1024);
    assert_eq!(windows, [near, near, near, near, near, None, near]);

    // A null is said: no window. And no other architecture's keys are guessed.
    let text = GEMMA_3_4B.replace("_window\": 1024", "_window\": null");
    assert!(
        from_hf(&text)
            .unwrap()
            .layers
            .iter()
            .all(|l| l.window.is_none())
    );
    let text = GEMMA_3_4B.replace("gemma3_text", "gemma2");
    let error = from_hf(&text).unwrap_err().to_string();
    assert_eq!(error, "num_attention_heads is missing");
    let text = GEMMA_3_4B.replace("\"model_type\": \"gemma3_text\",", "");
    assert_eq!(from_hf(&text).unwrap(), config);
}

#[test]
fn the_language_model_of_a_vision_language_folder_is_the_same_model() {
    let ids = golden("gemma3").ids("input_ids");
    let plain = Run::open("gemma3", KvType::F32).logits(&ids, ids.len());
    for (prefix, head) in [
        ("language_model.model.", "language_model.lm_head.weight"),
        ("model.language_model.", "lm_head.weight"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        variant(
            "gemma3",
            dir.path(),
            |text| format!("{{\"model_type\": \"gemma3\", \"text_config\": {text}}}"),
            |all| {
                let mut all: Tensors = all
                    .into_iter()
                    .map(|(name, shape, data)| match name.strip_prefix("model.") {
                        Some(rest) => (format!("{prefix}{rest}"), shape, data),
                        None => (head.to_string(), shape, data),
                    })
                    .collect();
                for tower in ["vision_tower.a", "model.multi_modal_projector.b"] {
                    all.push((tower.into(), vec![4], values(1, 4)));
                }
                all
            },
        );
        let opened = open(dir.path()).unwrap();
        assert_eq!(opened.info.left_out, 2);
        let logits = Run::of(opened, KvType::F32).logits(&ids, ids.len());
        assert_eq!(logits, plain);
    }
}

#[test]
fn pooling_is_read_from_its_folder_and_kept_by_conversion() {
    let dir = tempfile::tempdir().unwrap();
    variant("bert", dir.path(), |text| text, |all| all);
    std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    let say = |json: &str| std::fs::write(dir.path().join("1_Pooling/config.json"), json).unwrap();
    for (json, expected) in [
        (
            r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}"#,
            Pooling::Mean,
        ),
        (r#"{"pooling_mode_cls_token": true}"#, Pooling::First),
        (r#"{"pooling_mode_lasttoken": true}"#, Pooling::Last),
    ] {
        say(json);
        assert_eq!(open(dir.path()).unwrap().model.config().pooling, expected);
        let file = dir.path().join("out.gguf");
        convert(dir.path(), &file, None, &Team::new(1), &mut |_| {}).unwrap();
        assert_eq!(open(&file).unwrap().model.config().pooling, expected);
    }
    say(r#"{"pooling_mode_max_tokens": true}"#);
    assert!(
        open(dir.path())
            .unwrap_err()
            .to_string()
            .contains("pooling_mode_max_tokens")
    );
}
