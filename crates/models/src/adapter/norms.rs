//! Tuning of norms (LN tuning: Zhao et al. 2023): weights of norms, `[size]`, in place of the
//! model's.

use super::Adapter;
use super::error::AdapterError;
use super::method::{Acts, Method};
use super::reader::Reader;

#[derive(Debug)]
pub(crate) struct Norms;

impl Method for Norms {
    fn name(&self) -> &'static str {
        "LN tuning"
    }

    fn peft_type(&self) -> &'static str {
        "LN_TUNING"
    }

    fn acts(&self) -> Acts {
        Acts::Norms
    }

    fn read(&self, reader: &mut Reader<'_>, adapter: &mut Adapter) -> Result<(), AdapterError> {
        for mut group in reader.tensors.groups("ln_tuning_layers") {
            let weight = group.need("ln_tuning_layers.weight")?;
            reader.norm(&group.module, &weight, adapter)?;
            group.done(self.name())?;
        }
        Ok(())
    }
}
