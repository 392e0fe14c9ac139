//! A folder converted to GGUF is the same model.

mod common;

use common::{Run, folder, golden};
use sedge_kernels::{DType, KvType, Team};
use sedge_models::{convert, open};

const DECODERS: [&str; 14] = [
    "deepseek-v2",
    "gemma2",
    "gemma3",
    "llama",
    "llama31-rope",
    "mistral-window",
    "mixtral",
    "olmoe",
    "phi3",
    "qwen2",
    "qwen2-moe",
    "qwen3",
    "qwen3-moe",
    "smollm3",
];

#[test]
fn a_converted_model_computes_the_same() {
    let out = tempfile::tempdir().unwrap();
    for name in DECODERS {
        let file = out.path().join(format!("{name}.gguf"));
        let report = convert(&folder(name), &file, None, &Team::new(2), &mut |_| {}).unwrap();
        assert!(
            report.bytes_out >= report.bytes_in,
            "{name}: float32 stays float32"
        );

        let ids = golden(name).ids("input_ids");
        let before = Run::open(name, KvType::F32).logits(&ids, ids.len());
        let after = Run::of(open(&file).unwrap(), KvType::F32).logits(&ids, ids.len());
        let worst = before
            .iter()
            .zip(&after)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        // Rotated pairs lie elsewhere in a row, so sums run in another order.
        assert!(worst <= 5e-5, "{name}: max |Δlogit| = {worst:e}");
    }
}

#[test]
fn a_converted_encoder_computes_the_same() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("bert.gguf");
    convert(&folder("bert"), &file, None, &Team::new(1), &mut |_| {}).unwrap();
    let ids = golden("bert").ids("input_ids");
    let before = Run::open("bert", KvType::F32).hidden(&ids);
    assert_eq!(
        before,
        Run::of(open(&file).unwrap(), KvType::F32).hidden(&ids)
    );
}

#[test]
fn each_type_that_can_be_written_stays_near() {
    let out = tempfile::tempdir().unwrap();
    let ids = golden("llama").ids("input_ids");
    let exact = Run::open("llama", KvType::F32).logits(&ids, ids.len());
    let size = exact.iter().map(|x| x * x).sum::<f32>().sqrt();
    // Random weights are the worst case: nothing in them is redundant.
    for (dtype, most) in [
        (DType::F32, 1e-5),
        (DType::BF16, 0.01),
        (DType::F16, 0.002),
        (DType::Q8_0, 0.03),
        (DType::Q4_0, 0.4),
    ] {
        let file = out.path().join(format!("{dtype}.gguf"));
        let report = convert(
            &folder("llama"),
            &file,
            Some(dtype),
            &Team::new(2),
            &mut |_| {},
        )
        .unwrap();
        assert_eq!(report.exceptions, [], "{dtype}");
        let logits = Run::of(open(&file).unwrap(), KvType::F32).logits(&ids, ids.len());
        let error = exact
            .iter()
            .zip(&logits)
            .map(|(a, b)| (a - b).powi(2))
            .sum::<f32>()
            .sqrt();
        assert!(
            error <= most * size,
            "{dtype}: relative error {}",
            error / size
        );
    }
}

#[test]
fn rows_too_short_for_a_type_are_named() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("k.gguf");
    let report = convert(
        &folder("llama"),
        &file,
        Some(DType::Q6K),
        &Team::new(1),
        &mut |_| {},
    )
    .unwrap();
    assert!(
        report
            .exceptions
            .iter()
            .any(|(name, to)| name == "blk.0.attn_q.weight" && *to == DType::Q8_0)
    );
    open(&file).unwrap();
}

#[test]
fn the_input_is_never_overwritten() {
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("a.gguf");
    convert(&folder("llama"), &file, None, &Team::new(1), &mut |_| {}).unwrap();
    let before = std::fs::read(&file).unwrap();
    assert!(convert(&file, &file, Some(DType::Q4_0), &Team::new(1), &mut |_| {}).is_err());
    assert_eq!(std::fs::read(&file).unwrap(), before);
}
