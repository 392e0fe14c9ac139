//! VeRA (Kopiczko et al. 2023): `W + diag(λ_b)·B·diag(λ_d)·A`, where all modules share the first
//! columns of a random `A: [rank, most cols]` and the first rows of a random `B: [most rows, rank]`,
//! and each has its own `λ_d: [rank]` and `λ_b: [rows]`.

use std::collections::HashMap;

use super::error::AdapterError;
use super::method::{Acts, Method};
use super::reader::Reader;
use super::{Adapter, LowRank, Term};
use sedge_kernels::Factor;

#[derive(Debug)]
pub(crate) struct Vera;

impl Method for Vera {
    fn name(&self) -> &'static str {
        "VeRA"
    }

    fn peft_type(&self) -> &'static str {
        "VERA"
    }

    fn acts(&self) -> Acts {
        Acts::Weights
    }

    fn rank_field(&self) -> Option<&'static str> {
        Some("r")
    }

    fn read(&self, reader: &mut Reader<'_>, adapter: &mut Adapter) -> Result<(), AdapterError> {
        let rank = reader.settings.rank("r")?;
        let shared = |reader: &mut Reader<'_>, name: &str| {
            let found = ["base_model.", ""]
                .iter()
                .find_map(|prefix| reader.tensors.take(&format!("{prefix}{name}")));
            found.ok_or_else(|| AdapterError::Incomplete {
                module: "base_model".into(),
                found: "vera_lambda_b".into(),
                missing: format!(
                    "{name}, without which (save_projection: false) it cannot be read"
                ),
            })
        };
        let (a, b) = (shared(reader, "vera_A")?, shared(reader, "vera_B")?);
        a.of_rank(a.dim(0)?, rank)?;
        b.of_rank(b.dim(1)?, rank)?;
        // Modules of one size, and of one order of rows, share what was cut for the first.
        let mut a_of: HashMap<usize, Factor> = HashMap::new();
        let mut b_of: HashMap<(usize, usize, bool), Factor> = HashMap::new();
        for mut module in reader.modules("vera_")? {
            let (d, l) = (
                module.group.need("vera_lambda_d")?,
                module.group.need("vera_lambda_b")?,
            );
            d.fits(&[rank])?;
            l.fits(&[module.rows])?;
            let name = &module.group.module;
            let a = match a_of.get(&module.cols) {
                Some(a) => a.clone(),
                None => {
                    reader.base.expand(name, rank.saturating_mul(module.cols))?;
                    let cut = Factor::from(a.first_columns(module.cols)?);
                    a_of.insert(module.cols, cut.clone());
                    cut
                }
            };
            let values = l.values();
            for piece in &module.pieces {
                let key = (piece.end(), piece.rows(), piece.order().is_some());
                let b = match b_of.get(&key) {
                    Some(b) => b.clone(),
                    None => {
                        reader
                            .base
                            .expand(name, rank.saturating_mul(piece.rows()))?;
                        let cut = Factor::from(b.turned(piece)?);
                        b_of.insert(key, cut.clone());
                        cut
                    }
                };
                let term = Term::LowRank(LowRank {
                    a: a.clone(),
                    between: d.values(),
                    b,
                    after: Some(piece.gather(&values)),
                });
                adapter.change(piece.target).terms.push(term);
            }
            module.group.done(self.name())?;
        }
        Ok(())
    }
}
