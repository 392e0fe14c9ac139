//! A matrix rounded to a type: each value to the nearest that its block can hold, or so that the
//! errors of a row's values make good for each other in the product (GPTQ: Frantar et al., 2022,
//! arXiv 2210.17323). Rows are independent of each other.

use std::ops::Range;
use std::sync::OnceLock;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use sedge_kernels::{DType, Grid, Team, quantize};

use crate::moment::Spread;

/// Columns that are rounded before what is left of their errors goes to the columns after them:
/// a block of the longest types.
const RUN: usize = 256;
/// Rows of a task.
const ROWS: usize = 64;

/// A rounded matrix.
#[derive(Debug)]
pub struct Rounded {
    /// Rows of blocks.
    pub bytes: Vec<u8>,
    /// `Σ ‖x (w − rounded)ᵀ‖²` over the rows `x` of the moment, damping included; of plain
    /// rounding, with the columns taken as independent of each other.
    pub error: f64,
}

/// Rounds `w`, `[rows, columns]`, each value to the nearest. Blocks' scales are fitted with the
/// errors of columns weighed by `squares`, the mean squares of what they are multiplied with.
///
/// # Panics
/// When rows do not fill blocks.
pub fn nearest(
    team: &Team,
    dtype: DType,
    w: &[f32],
    columns: usize,
    squares: Option<&[f32]>,
) -> Rounded {
    let row_bytes = dtype.bytes_for(columns).expect("rows of whole blocks");
    let rows = w.len() / columns;
    in_chunks(team, rows, &|rows| {
        let (mut out, mut codes, mut error) = (Vec::new(), [0; 256], 0.0);
        out.reserve(rows.len() * row_bytes);
        for row in w[rows.start * columns..rows.end * columns].chunks_exact(columns) {
            if !Grid::is_of(dtype) {
                quantize(dtype, row, &mut out).expect("plain types have no blocks");
                continue;
            }
            for (i, x) in row.chunks_exact(dtype.block_len()).enumerate() {
                let here = i * x.len()..(i + 1) * x.len();
                let weights = squares.map(|s| &s[here]);
                let grid = Grid::fit(dtype, x, weights);
                for (column, (code, &x)) in codes.iter_mut().zip(x).enumerate() {
                    let (nearest, value) = grid.round(column, x);
                    *code = nearest;
                    let weight = weights.map_or(1.0, |w| w[column]);
                    error += f64::from(weight * (x - value) * (x - value));
                }
                grid.write(&codes, &mut out);
            }
        }
        (out, error)
    })
}

/// Rounds some rows at a time, on all threads.
fn in_chunks(
    team: &Team,
    rows: usize,
    round: &(dyn Fn(Range<usize>) -> (Vec<u8>, f64) + Sync),
) -> Rounded {
    let chunks: Vec<OnceLock<(Vec<u8>, f64)>> =
        (0..rows.div_ceil(ROWS)).map(|_| OnceLock::new()).collect();
    team.run(chunks.len(), &|i| {
        chunks[i].get_or_init(|| round(i * ROWS..rows.min((i + 1) * ROWS)));
    });
    let mut all = Rounded {
        bytes: Vec::new(),
        error: 0.0,
    };
    for (bytes, error) in chunks.into_iter().filter_map(OnceLock::into_inner) {
        all.bytes.extend_from_slice(&bytes);
        all.error += error;
    }
    all
}

/// Rounds `w`, `[rows, columns]`, column by column, each error spread over the columns that
/// follow.
///
/// # Panics
/// When rows do not fill blocks, or the spread is of other columns.
pub fn spreading(
    team: &Team,
    dtype: DType,
    w: &[f32],
    spread: &Spread,
    squares: &[f32],
) -> Rounded {
    let columns = spread.columns;
    let row_bytes = dtype.bytes_for(columns).expect("rows of whole blocks");
    let rows = w.len() / columns;
    if !Grid::is_of(dtype) {
        return nearest(team, dtype, w, columns, None);
    }
    in_chunks(team, rows, &|rows| {
        let mut w = w[rows.start * columns..rows.end * columns].to_vec();
        let mut out = vec![0; rows.len() * row_bytes];
        let error = chunk_spreading(dtype, &mut w, spread, squares, &mut out);
        (out, error)
    })
}

/// Rounds some rows; the sum of the squares of their errors.
fn chunk_spreading(
    dtype: DType,
    w: &mut [f32],
    spread: &Spread,
    squares: &[f32],
    out: &mut [u8],
) -> f64 {
    let n = spread.columns;
    let rows = w.len() / n;
    let row_bytes = out.len() / rows.max(1);
    let len = dtype.block_len();
    let mut errors = vec![0.0f32; rows * RUN];
    let (mut codes, mut block) = ([0u8; RUN], Vec::new());
    let mut total = 0.0;
    for start in (0..n).step_by(RUN) {
        let run = RUN.min(n - start);
        let upper = &spread.upper[start * n + start..];
        for row in 0..rows {
            let x = &mut w[row * n + start..][..run];
            let errors = &mut errors[row * RUN..][..run];
            let blocks = errors.chunks_exact_mut(len).zip((0..run).step_by(len));
            for (errors, first) in blocks {
                // A block's scales are fitted to what its values have become by then.
                let weights = &squares[start + first..][..len];
                let grid = Grid::fit(dtype, &x[first..][..len], Some(weights));
                let upper = (&upper[first * n + first..], n);
                grid.round_spreading(&mut x[first..], upper, &mut codes[..len], errors);
                total += errors.iter().map(|e| f64::from(e * e)).sum::<f64>();
                block.clear();
                grid.write(&codes[..len], &mut block);
                let at = row * row_bytes + (start + first) / len * dtype.block_bytes();
                out[at..at + block.len()].copy_from_slice(&block);
            }
        }
        let rest = start + run;
        if rest == n {
            continue;
        }
        let spread = MatRef::from_row_major_slice_with_stride(
            &spread.upper[start * n + rest..][..(run - 1) * n + n - rest],
            run,
            n - rest,
            n,
        );
        let errors = MatRef::from_row_major_slice_with_stride(&errors, rows, run, RUN);
        // Columns of the transposed matrix: faer 0.24's mutable rows with a stride are not rows.
        let after =
            MatMut::from_column_major_slice_with_stride_mut(&mut w[rest..], n - rest, rows, n);
        let (spread, errors) = (spread.transpose(), errors.transpose());
        matmul(after, Accum::Add, spread, errors, -1.0, Par::Seq);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moment::Moment;
    use crate::numbers::normal;
    use sedge_kernels::dequantize;

    fn decoded(dtype: DType, bytes: &[u8], n: usize) -> Vec<f32> {
        let mut out = vec![0.0; n];
        dequantize(dtype, bytes, &mut out).unwrap();
        out
    }

    #[test]
    fn spreading_is_better_than_the_nearest_and_its_error_is_what_it_says() {
        let team = Team::new(2);
        let (rows, n, samples) = (96, 512, 1500);
        // Columns that go together, as activations' do.
        let base = normal(samples * 24, 1);
        let mix = normal(24 * n, 2);
        let own = normal(samples * n, 3);
        let mut x = vec![0.0f32; samples * n];
        for (i, x) in x.chunks_exact_mut(n).enumerate() {
            for (j, x) in x.iter_mut().enumerate() {
                let shared: f32 = (0..24).map(|k| base[i * 24 + k] * mix[k * n + j]).sum();
                *x = shared + 0.5 * own[i * n + j];
            }
        }
        let mut moment = Moment::new(n);
        moment.add(&team, &x).unwrap();
        let spread = moment.spread(&team, 0.01).unwrap();
        let squares = moment.squares();
        let w = normal(rows * n, 4);
        let error = |rounded: &Rounded, dtype: DType| -> f64 {
            let near = decoded(dtype, &rounded.bytes, rows * n);
            let off: Vec<f32> = w.iter().zip(&near).map(|(a, b)| a - b).collect();
            let mut sum = 0.0;
            for x in x.chunks_exact(n).step_by(10) {
                for off in off.chunks_exact(n) {
                    let y: f32 = x.iter().zip(off).map(|(x, o)| x * o).sum();
                    sum += f64::from(y * y);
                }
            }
            sum * 10.0
        };
        for dtype in [
            DType::Q2K,
            DType::Q3K,
            DType::Q4K,
            DType::Iq4Xs,
            DType::Q4_0,
        ] {
            let plain = nearest(&team, dtype, &w, n, Some(&squares));
            let spreading = spreading(&team, dtype, &w, &spread, &squares);
            let (a, b) = (error(&plain, dtype), error(&spreading, dtype));
            assert!(b < 0.6 * a, "{dtype}: {b} against {a}");
            let said = spreading.error / b;
            assert!((0.8..1.6).contains(&said), "{dtype}: says {said} of it");
        }
    }

    #[test]
    fn rows_do_not_depend_on_their_neighbours_or_the_threads() {
        let (rows, n) = (150, 512);
        let mut moment = Moment::new(n);
        moment.add(&Team::new(1), &normal(600 * n, 5)).unwrap();
        let spread = moment.spread(&Team::new(1), 0.01).unwrap();
        let w = normal(rows * n, 6);
        let squares = moment.squares();
        let all = spreading(&Team::new(2), DType::Q3K, &w, &spread, &squares);
        let some = spreading(&Team::new(1), DType::Q3K, &w[..64 * n], &spread, &squares);
        assert_eq!(all.bytes[..some.bytes.len()], some.bytes);
    }
}
