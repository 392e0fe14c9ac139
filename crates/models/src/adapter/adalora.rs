//! AdaLoRA (Zhang et al. 2023): `W + s·B·diag(E)·A` with `A: [rank, cols]`, `E: [rank, 1]`,
//! `B: [rows, rank]`, the rank of each module what training has left of the first one.

use serde_json::Value;

use sedge_kernels::Factor;

use super::error::AdapterError;
use super::lora::refuse_variants;
use super::method::{Acts, Method};
use super::reader::Reader;
use super::settings::{Settings, invalid};
use super::{Adapter, LowRank, Term};

/// Added to the rank in the scaling, as PEFT does.
const EPSILON: f32 = 1e-5;

#[derive(Debug)]
pub(crate) struct AdaLora;

impl Method for AdaLora {
    fn name(&self) -> &'static str {
        "AdaLoRA"
    }

    fn peft_type(&self) -> &'static str {
        "ADALORA"
    }

    fn acts(&self) -> Acts {
        Acts::Weights
    }

    fn rank_field(&self) -> Option<&'static str> {
        Some("init_r")
    }

    fn read(&self, reader: &mut Reader<'_>, adapter: &mut Adapter) -> Result<(), AdapterError> {
        refuse_variants(reader)?;
        reader.without(&[("use_dora", "DoRA is a variant of LoRA alone")])?;
        let first = reader.settings.rank("init_r")?;
        let alpha = reader.settings.number("lora_alpha")?;
        // Ranks that were pruned do not change the scaling.
        let alpha = if alpha > 0.0 { alpha } else { first as f32 };
        let scale = alpha / (first as f32 + EPSILON);
        for mut module in reader.modules("lora_")? {
            let (a, b, rank) = module.factors("lora_A", "lora_B")?;
            let e = module.group.need("lora_E")?;
            let name = &module.group.module;
            a.of_rank(rank, left(reader.settings, name)?.unwrap_or(first))?;
            e.fits(&[rank, 1])?;
            let between: Vec<f32> = e.values().iter().map(|e| e * scale).collect();
            // Nothing may be left of a module.
            if rank > 0 {
                let a = Factor::from(module.a(&a, rank)?);
                for piece in &module.pieces {
                    let term = Term::LowRank(LowRank {
                        a: a.clone(),
                        between: between.clone(),
                        b: b.turned(piece)?.into(),
                        after: None,
                    });
                    adapter.change(piece.target).terms.push(term);
                }
            }
            module.group.done(self.name())?;
        }
        Ok(())
    }
}

/// The rank that the configuration's masks leave of a module, if they speak of it.
fn left(settings: &Settings, module: &str) -> Result<Option<usize>, AdapterError> {
    let Some(masks) = settings.get("rank_pattern") else {
        return Ok(None);
    };
    let wrong = |found| invalid("rank_pattern", found, "lists of truth values by module");
    let masks = masks.as_object().ok_or_else(|| wrong(masks))?;
    let Some(mask) = masks.get(&format!("{module}.lora_E")) else {
        return Ok(None);
    };
    let flags = mask.as_array().ok_or_else(|| wrong(mask))?;
    Ok(Some(
        flags.iter().filter(|f| **f == Value::Bool(true)).count(),
    ))
}
