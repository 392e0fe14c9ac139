//! LoKr (LyCORIS: Yeh et al. 2023): `W + s·(w1 ⊗ w2)` with `w1: [l, m]`, `w2: [k, n]`, where
//! rows = l·k and cols = m·n. Either may be a product of two factors of the rank; `s` is
//! alpha/rank.

use sedge_kernels::Matrix;

use super::checkpoint::Entry;
use super::error::AdapterError;
use super::lora::Scaling;
use super::method::{Acts, Method};
use super::reader::{Module, Reader};
use super::{Adapter, Kronecker, Term};

#[derive(Debug)]
pub(crate) struct LoKr;

impl Method for LoKr {
    fn name(&self) -> &'static str {
        "LoKr"
    }

    fn peft_type(&self) -> &'static str {
        "LOKR"
    }

    fn acts(&self) -> Acts {
        Acts::Weights
    }

    fn rank_field(&self) -> Option<&'static str> {
        Some("r")
    }

    fn read(&self, reader: &mut Reader<'_>, adapter: &mut Adapter) -> Result<(), AdapterError> {
        let scaling = Scaling::of(reader.settings, "alpha")?;
        for mut module in reader.modules("lokr_")? {
            if let Some(t2) = module.group.take("lokr_t2") {
                return Err(AdapterError::Part {
                    tensor: t2.name,
                    module: module.group.module,
                    reason: "it is a factor of a convolution, which no language model here has",
                });
            }
            let left = side(reader, &mut module, "lokr_w1", &scaling)?;
            let right = side(reader, &mut module, "lokr_w2", &scaling)?;
            let found = vec![
                left.matrix.rows().saturating_mul(right.matrix.rows()),
                left.matrix.cols().saturating_mul(right.matrix.cols()),
            ];
            let expected = vec![module.rows, module.cols];
            if found != expected {
                return Err(AdapterError::Base {
                    tensor: format!("{} ⊗ {}", left.name, right.name),
                    found,
                    expected,
                    base: reader.base.named.clone(),
                });
            }
            let scale = scaling.factor(&module.group.module)?;
            for piece in &module.pieces {
                // One module in several products: each takes its rows of the whole.
                let part = module.pieces.len() > 1;
                let all = || {
                    (0..piece.rows())
                        .map(|row| piece.source(row) as u32)
                        .collect()
                };
                let term = Term::Kronecker(Kronecker {
                    left: left.matrix.clone(),
                    right: right.matrix.clone(),
                    scale,
                    rows: if part { Some(all()) } else { piece.order() },
                });
                adapter.change(piece.target).terms.push(term);
            }
            module.group.done(self.name())?;
        }
        Ok(())
    }
}

/// One side of the product, and a tensor's name for errors.
struct Side {
    matrix: Matrix,
    name: String,
}

fn side(
    reader: &Reader<'_>,
    module: &mut Module<'_>,
    name: &str,
    scaling: &Scaling,
) -> Result<Side, AdapterError> {
    if let Some(whole) = module.group.take(name) {
        let matrix = whole.matrix(whole.dim(0)?, whole.dim(1)?)?;
        let name = whole.name;
        return Ok(Side { matrix, name });
    }
    let (a, b) = (
        module.group.need(&format!("{name}_a"))?,
        module.group.need(&format!("{name}_b"))?,
    );
    let rank = scaling.rank(&module.group.module)?;
    a.of_rank(a.dim(1)?, rank)?;
    b.of_rank(b.dim(0)?, rank)?;
    let (rows, cols) = (a.dim(0)?, b.dim(1)?);
    // No side is larger than the whole.
    if rows > module.rows || cols > module.cols {
        return Err(AdapterError::Base {
            tensor: a.name,
            found: vec![rows, cols],
            expected: vec![module.rows, module.cols],
            base: reader.base.named.clone(),
        });
    }
    reader.base.expand(&module.group.module, rows * cols)?;
    Ok(Side {
        matrix: product(&a, &b, rank, module)?,
        name: a.name,
    })
}

/// `a · b` in f32.
fn product(a: &Entry, b: &Entry, rank: usize, module: &Module<'_>) -> Result<Matrix, AdapterError> {
    let (rows, cols) = (a.dim(0)?, b.dim(1)?);
    let (a, b) = (a.values(), b.values());
    let mut values = vec![0.0; rows * cols];
    if cols > 0 {
        for (row, out) in values.chunks_exact_mut(cols).enumerate() {
            for k in 0..rank {
                let factor = a[row * rank + k];
                let from = &b[k * cols..][..cols];
                out.iter_mut().zip(from).for_each(|(o, b)| *o += factor * b);
            }
        }
    }
    match values.iter().all(|v| v.is_finite()) {
        true => Ok(Matrix::from_f32(rows, cols, &values).expect("as many values as were made")),
        false => Err(AdapterError::Overflow {
            what: "products of the factors",
            module: module.group.module.clone(),
        }),
    }
}
