//! Second moments of what products read, and how an error in one column of weights is made good
//! in the others.

use bytes::Bytes;
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};
use half::bf16;
use sedge_kernels::{
    Activations, DType, Forms, Matrix, Product, Team, Weight, packs, products, rounds_fast,
};

/// Sums over rows `x` of what a product reads: `Σ x xᵀ`, and each column's magnitudes.
#[derive(Debug)]
pub struct Moment {
    columns: usize,
    rows: usize,
    /// `[columns, columns]`, symmetric.
    sum: Vec<f32>,
    /// Sums of magnitudes.
    magnitudes: Vec<f64>,
    /// Working memory of tiles.
    rounded: Activations,
}

/// A value that is no number was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("column {column} has a value that is no number")]
pub struct NotFinite {
    /// The first such column.
    pub column: usize,
}

impl Moment {
    /// Of rows of so many columns; of none so far.
    pub fn new(columns: usize) -> Moment {
        Moment {
            columns,
            rows: 0,
            sum: vec![0.0; columns * columns],
            magnitudes: vec![0.0; columns],
            rounded: Activations::default(),
        }
    }

    /// Values in a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Rows seen.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// `Σ x xᵀ`, `[columns, columns]`.
    pub fn sum(&self) -> &[f32] {
        &self.sum
    }

    /// The mean of the squares of each column.
    pub fn squares(&self) -> Vec<f32> {
        let rows = self.rows.max(1) as f32;
        let diagonal = self.sum.iter().step_by(self.columns + 1);
        diagonal.map(|sum| sum / rows).collect()
    }

    /// The mean magnitude of each column.
    pub fn magnitudes(&self) -> Vec<f32> {
        let rows = self.rows.max(1) as f64;
        self.magnitudes.iter().map(|m| (m / rows) as f32).collect()
    }

    /// Takes rows in. With tiles, products are of values rounded to bfloat16.
    ///
    /// # Errors
    /// When a value is not finite; then nothing was taken in.
    ///
    /// # Panics
    /// When they are not whole rows.
    pub fn add(&mut self, team: &Team, x: &[f32]) -> Result<(), NotFinite> {
        let n = self.columns;
        assert!(x.len().is_multiple_of(n), "whole rows of {n}");
        if let Some(at) = x.iter().position(|x| !x.is_finite()) {
            return Err(NotFinite { column: at % n });
        }
        for row in x.chunks_exact(n) {
            for (x, sum) in row.iter().zip(&mut self.magnitudes) {
                *sum += f64::from(x.abs());
            }
        }
        let rows = x.len() / n;
        self.rows += rows;
        if rows == 0 {
            return Ok(());
        }
        if rounds_fast() && packs(DType::BF16) && self.add_rounded(team, x, rows) {
            return Ok(());
        }
        let x = MatRef::from_row_major_slice(x, rows, n);
        // Symmetric: its columns are its rows.
        let sum = MatMut::from_column_major_slice_mut(&mut self.sum, n, n);
        matmul(sum, Accum::Add, x.transpose(), x, 1.0, parallel(team));
        Ok(())
    }

    /// As a product of the columns with themselves, on tiles.
    fn add_rounded(&mut self, team: &Team, x: &[f32], rows: usize) -> bool {
        let n = self.columns;
        let mut turned = vec![0.0f32; n * rows];
        team.for_rows(&mut turned, rows, &|column, out| {
            for (out, row) in out.iter_mut().zip(x.chunks_exact(n)) {
                *out = row[column];
            }
        });
        let mut bytes = vec![0u8; n * rows * 2];
        team.for_rows(&mut bytes, rows * 2, &|column, out| {
            let values = &turned[column * rows..][..rows];
            for (out, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *out = bf16::from_f32(*value).to_le_bytes();
            }
        });
        let matrix = Matrix::new(DType::BF16, n, rows, Bytes::from(bytes));
        let mut weight: Weight = matrix.expect("as many bytes as values").into();
        let packed = sedge_kernels::Packer::new([&mut weight]).pack(team, &mut |_| {});
        let (Ok(_), Weight::Packed(weight)) = (packed, &weight) else {
            return false;
        };
        self.rounded.fill(team, &turned, rows, 0, Forms::default());
        let mut product = [Product {
            weight,
            bias: None,
            out: &mut self.sum,
            add: true,
        }];
        products(team, &self.rounded, &mut product);
        true
    }

    /// How errors spread, with a share of the mean square added to each column's, so that
    /// columns that were hardly read do not count for nothing. `None` where nothing was read.
    pub fn spread(&self, team: &Team, damping: f32) -> Option<Spread> {
        let n = self.columns;
        let diagonal = self.sum.iter().step_by(n + 1);
        let mean = diagonal.map(|d| f64::from(*d)).sum::<f64>() / n as f64;
        if mean.is_nan() || mean <= 0.0 {
            return None;
        }
        let mut damping = mean as f32 * damping;
        // Rounding may leave a moment that is not quite positive; more damping always helps.
        for _ in 0..8 {
            if let Some(spread) = self.factor(team, damping) {
                return Some(spread);
            }
            damping *= 4.0;
        }
        None
    }

    fn factor(&self, team: &Team, damping: f32) -> Option<Spread> {
        let n = self.columns;
        let upper = upper_factor(team, n, &|i, j| {
            let own = if i == j { damping } else { 0.0 };
            self.sum[i * n + j] + own
        });
        upper.map(|upper| Spread { columns: n, upper })
    }
}

/// Upper factor `U` of the inverse of a symmetric matrix, `H⁻¹ = Uᵀ U`: of `H = R Rᵀ` with `R`
/// upper it is `R⁻¹`, and that is the inverse Cholesky factor of `H` with its rows and columns
/// reversed. `None` where the matrix is not positive definite.
pub(crate) fn upper_factor(
    team: &Team,
    n: usize,
    h: &dyn Fn(usize, usize) -> f32,
) -> Option<Vec<f32>> {
    let reversed = Mat::from_fn(n, n, |i, j| h(n - 1 - i, n - 1 - j));
    let factor = reversed.llt(Side::Lower).ok()?;
    drop(reversed);
    let mut inverse = Mat::zeros(n, n);
    invert_lower_triangular(inverse.as_mut(), factor.L(), parallel(team));
    drop(factor);
    let mut upper = vec![0.0f32; n * n];
    let inverse = inverse.as_ref();
    team.for_rows(&mut upper, n, &|i, row| {
        for (j, value) in row.iter_mut().enumerate().skip(i) {
            *value = inverse[(n - 1 - i, n - 1 - j)];
        }
    });
    let good = upper
        .iter()
        .step_by(n + 1)
        .all(|d| d.is_finite() && *d > 0.0);
    good.then_some(upper)
}

/// The upper Cholesky factor of the inverse of a damped second moment.
#[derive(Debug)]
pub struct Spread {
    /// Columns of the moment.
    pub columns: usize,
    /// `[columns, columns]`, zeros below the diagonal.
    pub upper: Vec<f32>,
}

/// How the algebra uses the team's threads: as many of its own.
pub(crate) fn parallel(team: &Team) -> Par {
    match team.threads() {
        1 => Par::Seq,
        n => Par::rayon(n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::normal;

    #[test]
    fn the_spread_is_the_factor_of_the_inverse() {
        let team = Team::new(2);
        let (rows, n) = (400, 96);
        let x = normal(rows * n, 3);
        let mut moment = Moment::new(n);
        moment.add(&team, &x[..100 * n]).unwrap();
        moment.add(&team, &x[100 * n..]).unwrap();
        assert_eq!(moment.rows(), rows);
        let exact = |i: usize, j: usize| -> f64 {
            let terms = x.chunks_exact(n).map(|r| f64::from(r[i]) * f64::from(r[j]));
            terms.sum()
        };
        for (i, j) in [(0, 0), (5, 90), (90, 5), (33, 33)] {
            let found = f64::from(moment.sum()[i * n + j]);
            assert!((found - exact(i, j)).abs() < 3.0, "{found} {}", exact(i, j));
        }
        let spread = moment.spread(&team, 0.01).unwrap();
        // (Uᵀ U) H = 1.
        let damping = moment.squares().iter().sum::<f32>() / n as f32 * rows as f32 * 0.01;
        let u = |i: usize, j: usize| spread.upper[i * n + j];
        let inverse = |i: usize, j: usize| (0..n).map(|k| u(k, i) * u(k, j)).sum::<f32>();
        for (i, j) in [(0, 0), (5, 90), (95, 95), (40, 12)] {
            let one: f32 = (0..n)
                .map(|k| {
                    let own = if k == j { damping } else { 0.0 };
                    inverse(i, k) * (moment.sum()[k * n + j] + own)
                })
                .sum();
            let expected = if i == j { 1.0 } else { 0.0 };
            assert!((one - expected).abs() < 1e-2, "({i}, {j}): {one}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused_and_nothing_read_has_no_spread() {
        let team = Team::new(1);
        let mut moment = Moment::new(4);
        assert!(moment.spread(&team, 0.01).is_none());
        let bad = moment.add(&team, &[1.0, 2.0, f32::NAN, 3.0]);
        assert_eq!(bad, Err(NotFinite { column: 2 }));
        moment.add(&team, &[0.0; 8]).unwrap();
        assert!(moment.spread(&team, 0.01).is_none());
        assert!(upper_factor(&team, 2, &|i, j| if i == j { 1.0 } else { 2.0 }).is_none());
        assert!(upper_factor(&team, 1, &|_, _| f32::NAN).is_none());
        // A constant column, and one that was never used.
        moment
            .add(&team, &[1.0, 0.0, 2.0, 5.0, 1.0, 0.0, -2.0, 5.0])
            .unwrap();
        assert!(moment.spread(&team, 0.01).is_some());
    }
}
