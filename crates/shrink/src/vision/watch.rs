//! What a network computes of some pictures.

use sedge_kernels::Team;
use sedge_vision::{Graph, Options, Program, Sparsity, Value};

use super::VisionError;
use crate::numbers::Numbers;

/// Inputs of some runs: for each picture, the values of each input, as ONNX has them.
pub type Pictures = Vec<Vec<Vec<f32>>>;

/// Inputs without meaning, of mean 0 and variance 1: what there is without pictures.
pub fn noise(graph: &Graph, pictures: usize, seed: u64) -> Pictures {
    let mut numbers = Numbers::new(seed);
    // Twelve uniform numbers have variance 1.
    let mut one = || (0..12).map(|_| numbers.unit()).sum::<f32>() - 6.0;
    let mut picture = || {
        let inputs = graph.inputs().iter();
        let counts = inputs.map(|&x| graph.shape(x).iter().product::<usize>());
        counts.map(|n| (0..n).map(|_| one()).collect()).collect()
    };
    (0..pictures).map(|_| picture()).collect()
}

/// Calls `see` with each of `values` (by its place among them) for each picture.
pub(super) fn watch(
    graph: &Graph,
    values: &[Value],
    pictures: &Pictures,
    team: &Team,
    see: &mut dyn FnMut(usize, &[f32]),
) -> Result<(), VisionError> {
    let mut watched = graph.clone();
    let mut outputs = graph.outputs().len();
    // Where each value is found: among the inputs, or among the outputs.
    let places: Vec<Result<usize, usize>> = values
        .iter()
        .map(
            |value| match graph.inputs().iter().position(|x| x == value) {
                Some(input) => Err(input),
                None => {
                    watched.output(*value);
                    outputs += 1;
                    Ok(outputs - 1)
                }
            },
        )
        .collect();
    let options = Options {
        sparse: Sparsity::Never,
        ..Options::default()
    };
    let mut program = Program::new(&watched, options, team)?;
    for picture in pictures {
        let inputs: Vec<&[f32]> = picture.iter().map(|x| &x[..]).collect();
        program.run(&inputs, team);
        for (i, place) in places.iter().enumerate() {
            let x = match *place {
                Ok(output) => program.output(output).0,
                Err(input) => inputs[input],
            };
            if !x.iter().all(|x| x.is_finite()) {
                let value = graph.info(values[i]).name.clone();
                return Err(VisionError::NotFinite { value });
            }
            see(i, x);
        }
    }
    Ok(())
}
