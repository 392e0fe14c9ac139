//! IA³ (Liu et al. 2022): a learned factor for each output of a product, `l: [rows, 1]`, or for
//! each input where the product is of a feed-forward block, `l: [1, cols]`.

use super::Adapter;
use super::error::AdapterError;
use super::method::{Acts, Method};
use super::reader::Reader;

#[derive(Debug)]
pub(crate) struct Ia3;

impl Method for Ia3 {
    fn name(&self) -> &'static str {
        "IA³"
    }

    fn peft_type(&self) -> &'static str {
        "IA3"
    }

    fn acts(&self) -> Acts {
        Acts::Activations
    }

    fn read(&self, reader: &mut Reader<'_>, adapter: &mut Adapter) -> Result<(), AdapterError> {
        let pattern = reader.settings.matcher("feedforward_modules")?;
        let list = match &pattern {
            Some(_) => None,
            None => reader.settings.list("feedforward_modules")?,
        };
        for mut module in reader.modules("ia3_")? {
            let factors = module.group.need("ia3_l")?;
            let name = &module.group.module;
            let inputs = match (&pattern, &list) {
                (Some(pattern), _) => pattern.is_match(name),
                (None, Some(list)) => list.iter().any(|end| name.ends_with(end)),
                (None, None) => false,
            };
            if inputs {
                factors.fits(&[1, module.cols])?;
                for piece in &module.pieces {
                    adapter.change(piece.target).inputs = Some(factors.values());
                }
            } else {
                factors.fits(&[module.rows, 1])?;
                let values = factors.values();
                for piece in &module.pieces {
                    let change = adapter.change(piece.target);
                    let outputs = piece.gather(&values);
                    // The bias is scaled with the rest of the output.
                    if let Some(bias) = change.bias.as_ref().or(piece.linear.bias.as_ref()) {
                        let scaled = bias.iter().zip(&outputs).map(|(b, l)| b * l);
                        change.bias = Some(scaled.collect());
                    }
                    change.outputs = Some(outputs);
                }
            }
            module.group.done(self.name())?;
        }
        Ok(())
    }
}
