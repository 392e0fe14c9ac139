//! Products of activations with stored matrices.

use std::cell::RefCell;

use crate::block::decode;
use crate::team::Disjoint;
use crate::{Matrix, Team};

thread_local! {
    /// A decoded row of weights.
    static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Rows of weights in one task.
const TASK_ROWS: usize = 16;

/// `out[m, w.rows] = x[m, w.cols] · wᵀ`, f32 activations, any stored type.
///
/// Each output is reduced in one order whatever `m` is.
///
/// # Panics
/// When the lengths do not fit the shapes.
pub fn matmul(team: &Team, x: &[f32], w: &Matrix, out: &mut [f32]) {
    let (rows, cols) = (w.rows(), w.cols());
    if rows == 0 {
        assert!(out.is_empty());
        return;
    }
    let m = out.len() / rows;
    assert_eq!(out.len(), m * rows);
    assert_eq!(x.len(), m * cols);
    let out = Disjoint::new(out);
    team.run(rows.div_ceil(TASK_ROWS), &|task| {
        ROW.with_borrow_mut(|row| {
            row.resize(cols, 0.0);
            let size = w.row_bytes();
            for r in task * TASK_ROWS..rows.min((task + 1) * TASK_ROWS) {
                decode(w.dtype(), &w.bytes()[r * size..(r + 1) * size], row);
                for i in 0..m {
                    // SAFETY: output (i, r) belongs to the one task that holds row r.
                    let out = unsafe { out.part(i * rows + r, 1) };
                    out[0] = dot(&x[i * cols..(i + 1) * cols], row);
                }
            }
        });
    });
}

pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a8, a) = a.as_chunks::<8>();
    let (b8, b) = b.as_chunks::<8>();
    let mut lanes = [0.0f32; 8];
    for (a, b) in a8.iter().zip(b8) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    let tail: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + tail
}
