//! ONNX files against what onnxruntime makes of them (`golden/make.py`): read, lowered, fused,
//! planned in every way, and run.

use std::path::Path;

use sedge_formats::onnx::Model;
use sedge_kernels::Team;
use sedge_vision::{Graph, Options, Program, Sizes, Sparsity, fuse, lower, reference};

/// A file's graph, its input, and its outputs by onnxruntime.
fn golden(name: &str) -> (Graph, Vec<f32>, Vec<Vec<f32>>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let model = Model::open(&folder.join(format!("{name}.onnx"))).unwrap();
    let graph = lower(&model, Sizes::default()).unwrap();
    let bytes = std::fs::read(folder.join(format!("{name}.golden"))).unwrap();
    let (values, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    let mut values = values.iter().map(|&x| f32::from_le_bytes(x));
    let mut take = |shape: &[usize]| values.by_ref().take(shape.iter().product()).collect();
    let x = take(graph.shape(graph.inputs()[0]));
    let outputs = graph
        .outputs()
        .iter()
        .map(|&y| take(graph.shape(y)))
        .collect();
    assert_eq!(
        values.next(),
        None,
        "the file has as many values as the outputs"
    );
    (graph, x, outputs)
}

fn near(name: &str, how: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{name}, {how}");
    let largest = expected.iter().fold(1f32, |max, x| max.max(x.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let off = (a - b).abs();
        assert!(
            off <= tolerance * largest,
            "{name}, {how}, value {i}: {a}, not {b}"
        );
    }
}

/// `tolerance` is of the largest value of an output.
fn check(name: &str, tolerance: f32) {
    let (graph, x, expected) = golden(name);
    for (i, (found, expected)) in reference(&graph, &[&x]).iter().zip(&expected).enumerate() {
        near(
            name,
            &format!("reference, output {i}"),
            found,
            expected,
            tolerance,
        );
    }
    let mut fused = graph.clone();
    fuse(&mut fused);
    assert!(fused.nodes().len() <= graph.nodes().len());
    let ways = [
        ("as it comes", Options::default()),
        (
            "in bands",
            Options {
                cache: 1,
                band: 1,
                ..Options::default()
            },
        ),
        (
            "in planes",
            Options {
                sparse: Sparsity::Always,
                ..Options::default()
            },
        ),
    ];
    for threads in [1, 2] {
        let team = Team::new(threads);
        for (how, options) in ways {
            for (graph, form) in [(&graph, "plain"), (&fused, "fused")] {
                let mut program = Program::new(graph, options, &team).unwrap();
                // Twice: nothing of the first run may be left in the second's values.
                for _ in 0..2 {
                    program.run(&[&x], &team);
                }
                for (i, expected) in expected.iter().enumerate() {
                    let how = format!("{form} {how}, {threads} threads, output {i}");
                    near(name, &how, program.output(i).0, expected, tolerance);
                }
            }
        }
    }
}

#[test]
fn convolutions_are_onnxruntimes() {
    check("convolutions", 1e-5);
}

#[test]
fn pools_and_reductions_are_onnxruntimes() {
    check("pools", 1e-5);
}

#[test]
fn functions_are_onnxruntimes() {
    check("arithmetic", 1e-5);
}

#[test]
fn values_move_as_onnxruntime_moves_them() {
    check("movement", 0.0);
}

#[test]
fn resizes_are_onnxruntimes() {
    check("resizes", 1e-5);
}

#[test]
fn products_of_matrices_are_onnxruntimes() {
    check("matrices", 1e-5);
}

#[test]
fn old_operators_are_onnxruntimes() {
    check("old", 1e-5);
}

/// A step of a grid may be rounded the other way where the value lies between two.
#[test]
fn networks_in_8_bits_are_onnxruntimes() {
    check("quantised", 0.02);
}
