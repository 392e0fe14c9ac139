//! What is left of a layer's weights makes good for those that are left out: each error is spread
//! over the columns that follow, as in rounding (SparseGPT: Frantar and Alistarh, 2023, arXiv
//! 2301.00774). The bias is one more column, which always reads 1 and is never left out.

use std::collections::HashMap;

use sedge_kernels::Team;
use sedge_vision::{Graph, Value};

use super::VisionError;
use super::watch::{Pictures, watch};
use crate::moment::{Moment, Spread};

/// Share of the mean square that is added to each column's.
const DAMPING: f32 = 0.01;

/// How errors of layers spread, by the value that they read.
pub(super) fn spreads(
    graph: &Graph,
    reads: &[Value],
    pictures: &Pictures,
    team: &Team,
) -> Result<HashMap<Value, Spread>, VisionError> {
    let mut values: Vec<Value> = reads.to_vec();
    values.sort_unstable();
    values.dedup();
    let mut moments: Vec<Moment> = values
        .iter()
        .map(|&x| Moment::new(graph.shape(x)[1] + 1))
        .collect();
    let mut wrong = None;
    watch(graph, &values, pictures, team, &mut |i, x| {
        let shape = graph.shape(values[i]);
        let (c, pixels) = (shape[1], shape[2..].iter().product::<usize>());
        for x in x.chunks_exact((c * pixels).max(1)) {
            let mut rows = vec![1.0; pixels * (c + 1)];
            for (row, place) in rows.chunks_exact_mut(c + 1).zip(0..) {
                for (value, plane) in row[..c].iter_mut().zip(x.chunks_exact(pixels)) {
                    *value = plane[place];
                }
            }
            if moments[i].add(team, &rows).is_err() {
                wrong = Some(values[i]);
            }
        }
    })?;
    if let Some(value) = wrong {
        let value = graph.info(value).name.clone();
        return Err(VisionError::NotFinite { value });
    }
    let found = values.iter().zip(&moments);
    let found = found.filter_map(|(&x, moment)| Some((x, moment.spread(team, DAMPING)?)));
    Ok(found.collect())
}

/// Leaves out the weights of `rows` (`[outputs, inputs + 1]`, the bias last) that `out` says,
/// by output and input.
pub(super) fn correct(
    rows: &mut [f32],
    spread: &Spread,
    out: &(dyn Fn(usize, usize) -> bool + Sync),
    team: &Team,
) {
    let n = spread.columns;
    team.for_rows(rows, n, &|i, row| {
        for j in 0..n - 1 {
            if out(i, j) {
                let upper = &spread.upper[j * n..][..n];
                let error = row[j] / upper[j];
                row[j] = 0.0;
                for (w, u) in row[j + 1..].iter_mut().zip(&upper[j + 1..]) {
                    *w -= error * u;
                }
            }
        }
    });
}
