//! Methods that put something before every prompt: keys and values (prefix tuning, Li & Liang
//! 2021), or embeddings (prompt tuning, Lester et al. 2021; P-tuning, Liu et al. 2021, whose
//! encoder has done its work when the checkpoint is saved).

use super::base::paired_head;
use super::checkpoint::Entry;
use super::error::AdapterError;
use super::method::{Acts, Method};
use super::reader::Reader;
use super::{Adapter, Before};
use crate::convert::halves_row;

#[derive(Debug)]
pub(crate) struct Prefix;

#[derive(Debug)]
pub(crate) struct Prompt;

#[derive(Debug)]
pub(crate) struct PTuning;

const FIELD: &str = "prompt_embeddings";

impl Method for Prefix {
    fn name(&self) -> &'static str {
        "prefix tuning"
    }

    fn peft_type(&self) -> &'static str {
        "PREFIX_TUNING"
    }

    fn acts(&self) -> Acts {
        Acts::KeysValues
    }

    /// `prompt_embeddings` is `[positions, layers, 2, kv_heads, head_dim]`, in two dimensions.
    fn read(&self, reader: &mut Reader<'_>, adapter: &mut Adapter) -> Result<(), AdapterError> {
        let entry = rows(reader)?;
        let c = reader.base.config;
        if c.latent.is_some() {
            return Err(AdapterError::Part {
                tensor: entry.name,
                module: "past_key_values".into(),
                reason: "latent attention has no keys and values that could be replaced",
            });
        }
        let size = c.kv_heads * c.head_dim;
        let positions = entry.dim(0)?;
        entry.fits(&[positions, 2 * c.layers.len() * size])?;
        let values = entry.values();
        let head = paired_head(c);
        let mut layers = vec![[const { Vec::new() }; 2]; c.layers.len()];
        for position in values.chunks_exact(2 * c.layers.len() * size) {
            for (layer, both) in layers.iter_mut().zip(position.chunks_exact(2 * size)) {
                let (key, value) = both.split_at(size);
                let source = |i: usize| head.map_or(i, |head| halves_row(i, head));
                layer[0].extend((0..size).map(|i| key[source(i)]));
                layer[1].extend_from_slice(value);
            }
        }
        adapter.before = Some(Before::KeysValues { positions, layers });
        Ok(())
    }
}

impl Method for Prompt {
    fn name(&self) -> &'static str {
        "prompt tuning"
    }

    fn peft_type(&self) -> &'static str {
        "PROMPT_TUNING"
    }

    fn acts(&self) -> Acts {
        Acts::Embeddings
    }

    fn read(&self, reader: &mut Reader<'_>, adapter: &mut Adapter) -> Result<(), AdapterError> {
        embeddings(reader, adapter)
    }
}

impl Method for PTuning {
    fn name(&self) -> &'static str {
        "P-tuning"
    }

    fn peft_type(&self) -> &'static str {
        "P_TUNING"
    }

    fn acts(&self) -> Acts {
        Acts::Embeddings
    }

    fn read(&self, reader: &mut Reader<'_>, adapter: &mut Adapter) -> Result<(), AdapterError> {
        embeddings(reader, adapter)
    }
}

/// `prompt_embeddings` is `[positions, hidden]`.
fn embeddings(reader: &mut Reader<'_>, adapter: &mut Adapter) -> Result<(), AdapterError> {
    let entry = rows(reader)?;
    let rows = entry.matrix(entry.dim(0)?, reader.base.config.hidden)?;
    adapter.before = Some(Before::Embeddings(rows));
    Ok(())
}

/// The tensor that the three methods have, of as many positions as the configuration says.
fn rows(reader: &mut Reader<'_>) -> Result<Entry, AdapterError> {
    let settings = reader.settings;
    if let Some(2..) = settings
        .get("num_transformer_submodules")
        .and_then(|v| v.as_u64())
    {
        reader.without(&[(
            "num_transformer_submodules",
            "it has rows for an encoder and for a decoder",
        )])?;
    }
    let (stated, context) = (
        settings.rank("num_virtual_tokens")?,
        reader.base.config.context,
    );
    if stated >= context {
        return Err(AdapterError::Value {
            field: "num_virtual_tokens".into(),
            found: stated.to_string(),
            expected: format!("less than the model's {context} positions"),
        });
    }
    let entry = reader.tensors.take(FIELD);
    let entry = entry.ok_or_else(|| AdapterError::Incomplete {
        module: "base_model".into(),
        found: "no tensor of that name".into(),
        missing: FIELD.into(),
    })?;
    match entry.dim(0)? == stated {
        true => Ok(entry),
        false => Err(entry.misshapen(&format!("the {stated} rows of num_virtual_tokens"))),
    }
}
