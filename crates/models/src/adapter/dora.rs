//! DoRA (Liu et al. 2024): `m ⊙ (W + s·B·A) / ‖W + s·B·A‖`, the norm taken of each row.
//! `m: [rows]`; the factors are LoRA's.

use std::num::NonZeroUsize;

use super::error::AdapterError;
use super::lora::{Scaling, refuse_variants, terms};
use super::method::{Acts, Method};
use super::reader::Reader;
use super::settings::Settings;
use super::{Adapter, Change};
use crate::weights::Linear;

#[derive(Debug)]
pub(crate) struct Dora;

impl Method for Dora {
    fn name(&self) -> &'static str {
        "DoRA"
    }

    fn peft_type(&self) -> &'static str {
        "LORA"
    }

    fn takes(&self, settings: &Settings) -> Result<bool, AdapterError> {
        settings.flag("use_dora")
    }

    fn acts(&self) -> Acts {
        Acts::Weights
    }

    fn rank_field(&self) -> Option<&'static str> {
        Some("r")
    }

    fn read(&self, reader: &mut Reader<'_>, adapter: &mut Adapter) -> Result<(), AdapterError> {
        refuse_variants(reader)?;
        reader.without(&[("lora_bias", "it has no meaning together with use_dora")])?;
        let scaling = Scaling::of(reader.settings, "lora_alpha")?;
        for mut module in reader.modules("lora_")? {
            for (target, term) in terms(&mut module, &scaling)? {
                adapter.change(target).terms.push(term);
            }
            let name = "lora_magnitude_vector";
            let longer = format!("{name}.weight");
            let magnitude = match module.group.has(&longer) {
                true => module.group.need(&longer)?,
                false => module.group.need(name)?,
            };
            magnitude.fits(&[module.rows])?;
            let magnitude = magnitude.values();
            for piece in &module.pieces {
                let change = adapter.change(piece.target);
                let norms = norms(change, piece.linear);
                let own = piece.gather(&magnitude);
                let outputs: Vec<f32> = own.iter().zip(&norms).map(|(m, n)| m / n).collect();
                if !outputs.iter().all(|v| v.is_finite()) {
                    return Err(AdapterError::Overflow {
                        what: "magnitudes over norms",
                        module: module.group.module,
                    });
                }
                change.outputs = Some(outputs);
            }
            module.group.done(self.name())?;
        }
        Ok(())
    }
}

/// `‖W + s·B·A‖` of each row. It is a product of the base's size, so all processors take part.
fn norms(change: &Change, linear: &Linear) -> Vec<f32> {
    let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
    let mut norms = vec![0.0; rows];
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let share = rows.div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        for (index, part) in norms.chunks_mut(share).enumerate() {
            scope.spawn(move || {
                let mut values = vec![0.0; cols];
                for (i, norm) in part.iter_mut().enumerate() {
                    let row = index * share + i;
                    linear.weight.row(row, &mut values);
                    change.merge_row(row, &mut values);
                    let square = |v: &f32| f64::from(*v) * f64::from(*v);
                    *norm = values.iter().map(square).sum::<f64>().sqrt() as f32;
                }
            });
        }
    });
    norms
}
