//! What changes mean for a weight: its rows with all terms and factors in them.
//! The definition that the forward pass is held against, and what merging writes.

use half::{bf16, f16};
use sedge_kernels::{DType, Factor, Matrix};

use super::{Change, EmbeddingChange, Kronecker, LowRank, Term};

impl Change {
    /// Turns row `row` of the weight, `[cols]`, into the changed one:
    /// `(values ⊙ inputs + Σ term[row]) · outputs[row]`.
    pub(crate) fn merge_row(&self, row: usize, values: &mut [f32]) {
        if let Some(inputs) = &self.inputs {
            values.iter_mut().zip(inputs).for_each(|(v, f)| *v *= f);
        }
        for term in &self.terms {
            term.add_row(row, values);
        }
        if let Some(outputs) = &self.outputs {
            values.iter_mut().for_each(|v| *v *= outputs[row]);
        }
    }
}

impl EmbeddingChange {
    /// Adds a token's change to its embedding, `[hidden]`.
    pub(crate) fn merge_row(&self, token: usize, values: &mut [f32]) {
        let mut row = vec![0.0; values.len()];
        for k in 0..self.b.rows() {
            self.b.row(k, &mut row);
            add(values, self.scale * element(&self.a, token, k), &row);
        }
    }
}

impl Term {
    /// Adds row `row` of the term to `values`, `[cols]`.
    pub(crate) fn add_row(&self, row: usize, values: &mut [f32]) {
        match self {
            Term::LowRank(term) => term.add_row(row, values),
            Term::Kronecker(term) => term.add_row(row, values),
        }
    }

    /// Whether all values of its factors are finite.
    pub(crate) fn is_finite(&self) -> bool {
        let finite = |m: &Matrix| {
            let mut row = vec![0.0; m.cols()];
            (0..m.rows()).all(|i| {
                m.row(i, &mut row);
                row.iter().all(|v| v.is_finite())
            })
        };
        match self {
            Term::LowRank(t) => [&t.a, &t.b].into_iter().all(is_finite),
            Term::Kronecker(t) => finite(&t.left) && finite(&t.right),
        }
    }
}

fn is_finite(factor: &Factor) -> bool {
    let mut row = vec![0.0; factor.cols()];
    (0..factor.rows()).all(|i| {
        factor.row(i, &mut row);
        row.iter().all(|v| v.is_finite())
    })
}

impl LowRank {
    fn add_row(&self, row: usize, values: &mut [f32]) {
        let after = self.after.as_ref().map_or(1.0, |after| after[row]);
        let mut a = vec![0.0; values.len()];
        for (k, between) in self.between.iter().enumerate() {
            self.a.row(k, &mut a);
            add(values, after * self.b.get(k, row) * between, &a);
        }
    }
}

impl Kronecker {
    fn add_row(&self, row: usize, values: &mut [f32]) {
        let row = self.rows.as_ref().map_or(row, |rows| rows[row] as usize);
        let height = self.right.rows();
        let mut right = vec![0.0; self.right.cols()];
        self.right.row(row % height, &mut right);
        for (j, values) in values.chunks_exact_mut(right.len()).enumerate() {
            let factor = self.scale * element(&self.left, row / height, j);
            add(values, factor, &right);
        }
    }
}

fn add(values: &mut [f32], factor: f32, row: &[f32]) {
    for (value, &added) in values.iter_mut().zip(row) {
        *value += factor * added;
    }
}

/// One value of a matrix of a plain type.
fn element(m: &Matrix, row: usize, col: usize) -> f32 {
    let size = m.dtype().block_bytes();
    let bytes = &m.bytes()[(row * m.cols() + col) * size..][..size];
    match (m.dtype(), bytes) {
        (DType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (DType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (DType::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        (dtype, _) => unreachable!("factors are of plain types, this one is {dtype}"),
    }
}
