//! How far a network's outputs are from another's.

use sedge_kernels::Team;
use sedge_vision::{Graph, Options, Program};

use super::{Pictures, VisionError};

/// Two networks' outputs on the same pictures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// How many pictures.
    pub pictures: usize,
    /// Root of the mean square of the differences, over that of the first network's outputs.
    pub error: f64,
    /// Of classifiers: the share of pictures of which both say the same.
    pub same: Option<f64>,
}

/// Compares a network with another of the same inputs and outputs.
///
/// # Errors
/// When one does not run.
pub fn compare(
    graph: &Graph,
    other: &Graph,
    pictures: &Pictures,
    team: &Team,
) -> Result<Comparison, VisionError> {
    let before = outputs(graph, pictures, team)?;
    let after = outputs(other, pictures, team)?;
    let (mut off, mut all) = (0.0, 0.0);
    for (a, b) in before.iter().flatten().zip(after.iter().flatten()) {
        for (&a, &b) in a.iter().zip(b) {
            off += f64::from(a - b).powi(2);
            all += f64::from(a).powi(2);
        }
    }
    let classes = match graph.outputs() {
        [output] => match graph.shape(*output) {
            [_, n] => (*n > 1).then_some(*n),
            _ => None,
        },
        _ => None,
    };
    let same = classes.map(|n| {
        let most = |x: &[f32]| (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b]));
        let rows = |x: &[Vec<Vec<f32>>]| -> Vec<Option<usize>> {
            let rows = x.iter().flat_map(|x| x[0].chunks_exact(n));
            rows.map(most).collect()
        };
        let (a, b) = (rows(&before), rows(&after));
        let same = a.iter().zip(&b).filter(|(a, b)| a == b).count();
        same as f64 / a.len().max(1) as f64
    });
    Ok(Comparison {
        pictures: pictures.len(),
        error: (off / f64::max(all, f64::MIN_POSITIVE)).sqrt(),
        same,
    })
}

/// What a network makes of each picture.
fn outputs(
    graph: &Graph,
    pictures: &Pictures,
    team: &Team,
) -> Result<Vec<Vec<Vec<f32>>>, VisionError> {
    let mut program = Program::new(graph, Options::default(), team)?;
    let run = |picture: &Vec<Vec<f32>>| {
        let x: Vec<&[f32]> = picture.iter().map(|x| &x[..]).collect();
        program.run(&x, team);
        let outputs = 0..program.outputs();
        outputs.map(|i| program.output(i).0.to_vec()).collect()
    };
    Ok(pictures.iter().map(run).collect())
}
