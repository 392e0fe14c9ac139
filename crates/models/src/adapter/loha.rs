//! LoHa (FedPara: Hyeon-Woo et al. 2022; LyCORIS: Yeh et al. 2023): `W + s·(w1a·w1b) ⊙ (w2a·w2b)`
//! with `w1a: [rows, r]`, `w1b: [r, cols]` and the same of 2, `s` alpha/rank.
//!
//! The product by elements is one of low rank: that of the factors' rows and columns in all pairs
//! (Khatri–Rao products), of rank r·r. It is kept so, or as a plain matrix where that is smaller.

use sedge_kernels::{Factor, Matrix};

use super::base::Piece;
use super::error::AdapterError;
use super::lora::Scaling;
use super::method::{Acts, Method};
use super::reader::Reader;
use super::{Adapter, Kronecker, LowRank, Term};

#[derive(Debug)]
pub(crate) struct LoHa;

impl Method for LoHa {
    fn name(&self) -> &'static str {
        "LoHa"
    }

    fn peft_type(&self) -> &'static str {
        "LOHA"
    }

    fn acts(&self) -> Acts {
        Acts::Weights
    }

    fn rank_field(&self) -> Option<&'static str> {
        Some("r")
    }

    fn read(&self, reader: &mut Reader<'_>, adapter: &mut Adapter) -> Result<(), AdapterError> {
        let scaling = Scaling::of(reader.settings, "alpha")?;
        for mut module in reader.modules("hada_")? {
            let first = module.factors("hada_w1_b", "hada_w1_a")?;
            let second = module.factors("hada_w2_b", "hada_w2_a")?;
            let name = module.group.module.clone();
            let rank = scaling.rank(&name)?;
            first.0.of_rank(first.2, rank)?;
            second.0.of_rank(second.2, rank)?;
            let factors = Factors {
                w1a: first.1.values(),
                w1b: first.0.values(),
                w2a: second.1.values(),
                w2b: second.0.values(),
                rank,
                cols: module.cols,
                scale: scaling.factor(&name)?,
            };
            let pairs = rank * rank;
            let low_rank = pairs.saturating_mul(module.rows + module.cols);
            let dense = module.rows.saturating_mul(module.cols);
            reader.base.expand(&name, low_rank.min(dense))?;
            let terms: Vec<Term> = match low_rank < dense {
                true => {
                    let a = Factor::from(factors.columns());
                    let each = module.pieces.iter();
                    each.map(|piece| factors.low_rank(&a, piece)).collect()
                }
                false => module.pieces.iter().map(|p| factors.dense(p)).collect(),
            };
            for (piece, term) in module.pieces.iter().zip(terms) {
                if !term.is_finite() {
                    return Err(AdapterError::Overflow {
                        what: "products of the factors",
                        module: name,
                    });
                }
                adapter.change(piece.target).terms.push(term);
            }
            module.group.done(self.name())?;
        }
        Ok(())
    }
}

struct Factors {
    /// `[rows, rank]`
    w1a: Vec<f32>,
    /// `[rank, cols]`
    w1b: Vec<f32>,
    w2a: Vec<f32>,
    w2b: Vec<f32>,
    rank: usize,
    cols: usize,
    scale: f32,
}

impl Factors {
    /// Products by element of all pairs of rows of `w1b` and `w2b`: `[rank², cols]`.
    fn columns(&self) -> Matrix {
        let mut values = Vec::with_capacity(self.rank * self.rank * self.cols);
        for first in self.w1b.chunks_exact(self.cols) {
            for second in self.w2b.chunks_exact(self.cols) {
                values.extend(first.iter().zip(second).map(|(a, b)| a * b));
            }
        }
        matrix(self.rank * self.rank, self.cols, &values)
    }

    fn low_rank(&self, a: &Factor, piece: &Piece<'_>) -> Term {
        let (r, rows) = (self.rank, piece.rows());
        let mut values = Vec::with_capacity(r * r * rows);
        for pair in 0..r * r {
            let (i, j) = (pair / r, pair % r);
            values.extend((0..rows).map(|row| {
                let row = piece.source(row) * r;
                self.w1a[row + i] * self.w2a[row + j]
            }));
        }
        Term::LowRank(LowRank {
            a: a.clone(),
            between: vec![self.scale; r * r],
            b: matrix(r * r, rows, &values).into(),
            after: None,
        })
    }

    /// A plain matrix, as the product of a single value with it.
    fn dense(&self, piece: &Piece<'_>) -> Term {
        let (r, rows) = (self.rank, piece.rows());
        let mut values = Vec::with_capacity(rows * self.cols);
        for row in 0..rows {
            let row = piece.source(row) * r;
            for col in 0..self.cols {
                let sum = |a: &[f32], b: &[f32]| -> f32 {
                    (0..r).map(|k| a[row + k] * b[k * self.cols + col]).sum()
                };
                values.push(sum(&self.w1a, &self.w1b) * sum(&self.w2a, &self.w2b));
            }
        }
        Term::Kronecker(Kronecker {
            left: matrix(1, 1, &[1.0]),
            right: matrix(rows, self.cols, &values),
            scale: self.scale,
            rows: None,
        })
    }
}

fn matrix(rows: usize, cols: usize, values: &[f32]) -> Matrix {
    Matrix::from_f32(rows, cols, values).expect("as many values as rows and columns make")
}
