//! Weights and activations of few bits: what the file says is computed, on every path alike.

mod common;

use std::path::Path;

use common::Run;
use sedge_formats::gguf::{self, Gguf, TensorPlan, Value};
use sedge_kernels::{DType, KvType, Team};
use sedge_models::{Mixture, activation_bits, open, synth};

/// A file with random weights in 4 bits.
fn weights(dir: &Path) -> Gguf {
    let file = dir.join("b4.gguf");
    synth("seedling", Mixture::Plain(DType::B4), 1, &file, &mut |_| {}).unwrap();
    Gguf::open(&file).unwrap()
}

/// The same file with more metadata.
fn with(weights: &Gguf, to: &Path, more: impl IntoIterator<Item = (String, Value)>) {
    let mut metadata = weights.metadata().clone();
    metadata.extend(more);
    let plan = |(name, info): (&String, &gguf::TensorInfo)| TensorPlan {
        name: name.clone(),
        dtype: info.dtype,
        shape: info.shape.clone(),
    };
    let plans: Vec<TensorPlan> = weights.tensors().iter().map(plan).collect();
    let data = |i: usize| Ok::<_, std::io::Error>(weights.data(&weights.tensors()[i]));
    gguf::write(to, &metadata, &plans, data).unwrap();
}

/// The same file, which says of each matrix of a layer with how many bits its activations are
/// multiplied.
fn with_bits(weights: &Gguf, to: &Path, bits: impl Fn(usize) -> Vec<u8>) {
    let matrices = weights.tensors().iter();
    let matrices = matrices.filter(|(_, info)| info.dtype == DType::B4);
    let entries = matrices.map(|(name, info)| activation_bits(name, &bits(info.shape[1])));
    with(weights, to, entries);
}

/// Logits of some texts of one token, packed or not, with prompts rounded where they may be.
fn logits(file: &Path, packed: bool, round: bool) -> Vec<Vec<f32>> {
    let mut opened = open(file).unwrap();
    if packed {
        opened.model.pack(&Team::new(2)).unwrap();
    }
    opened.model.round_prompts(round);
    let mut run = Run::of(opened, KvType::F32);
    (0..6).map(|i| run.logits(&[i * 37], 1)).collect()
}

/// How far apart the nearest are, over how large the first is. A sum in another order moves an
/// activation across a rounding now and then, and through the layers this grows: not in all.
fn apart(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let each = a.iter().zip(b).map(|(a, b)| distance(a, b));
    each.fold(f32::INFINITY, f32::min)
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
    let difference = square(&mut a.iter().zip(b).map(|(a, b)| a - b));
    (difference / square(&mut a.iter().copied())).sqrt()
}

/// 4 bits, but 8 for every fifth group.
fn mixed(cols: usize) -> Vec<u8> {
    (0..cols.div_ceil(64))
        .map(|g| if g % 5 == 0 { 8 } else { 4 })
        .collect()
}

#[test]
fn activations_have_the_bits_that_the_file_says_packed_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let plain = weights(dir.path());
    let said = |name: &str, bits: &dyn Fn(usize) -> Vec<u8>| {
        let file = dir.path().join(name);
        with_bits(&plain, &file, bits);
        file
    };
    let exact = logits(&dir.path().join("b4.gguf"), false, false);
    let mut last = 0.0;
    for (name, bits, least) in [
        ("eight", &(|_| vec![8u8]) as &dyn Fn(usize) -> Vec<u8>, 0.0),
        ("mixed", &mixed, 0.05),
        ("four", &|_| vec![4u8], 0.05),
        ("two", &|_| vec![2u8], 0.2),
    ] {
        let file = said(name, bits);
        let (stored, packed) = (logits(&file, false, false), logits(&file, true, false));
        let (off, coarse) = (apart(&stored, &packed), apart(&exact, &stored));
        println!("{name}: packed is off by {off}, fewer bits by {coarse}");
        // Of 8 bits, the reference does not round; of fewer only the head's are 8.
        let most = if least > 0.0 { 0.02 } else { 0.05 };
        assert!(off < most, "{name}: {off}");
        assert!(coarse >= least && coarse >= last, "{name}: {coarse}");
        last = coarse;
        // Prompts' rows are as coarse: rounded to bfloat16 instead, they would be near to exact.
        let prompts = apart(&exact, &logits(&file, true, true));
        assert!(prompts >= coarse / 2.0, "{name}: {prompts}");
    }
}

#[test]
fn bits_that_do_not_fit_a_matrix_are_errors_that_name_it() {
    let dir = tempfile::tempdir().unwrap();
    let plain = weights(dir.path());
    for (bits, what) in [
        (vec![4, 4, 4], "3 numbers"),
        (vec![9], "9 bits"),
        (vec![0], "0 bits"),
    ] {
        let file = dir.path().join("wrong.gguf");
        with_bits(&plain, &file, |_| bits.clone());
        let error = open(&file).unwrap_err().to_string();
        assert!(
            error.contains("blk.0.attn_q.weight") && error.contains(what),
            "{error}"
        );
    }
    // Another kind of value has no numbers.
    let (key, _) = activation_bits("blk.0.attn_q.weight", &[4]);
    let file = dir.path().join("wrong.gguf");
    with(&plain, &file, [(key, Value::Bool(true))]);
    let error = open(&file).unwrap_err().to_string();
    assert!(error.contains("0 numbers"), "{error}");
}
