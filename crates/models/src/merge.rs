//! Merging an adapter into its base: a new checkpoint, written tensor by tensor.
//! What the adapter does not change is written as it is.

use std::collections::HashSet;
use std::path::Path;

use sedge_formats::gguf::Value;
use sedge_kernels::{DType, Team};

use crate::adapter::{Adapter, AdapterError, Change, LayerChange, NormPart, Part as Of};
use crate::config::Config;
use crate::convert::{
    self, ConvertError, ConvertReport, Origin, Part, Progress, Rewrite, order, permuted_heads,
};
use crate::open::Model;
use crate::tensors::Stored;

/// Why an adapter was not merged. The output file is then as it was before.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The base could not be read, or the output not be written.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The adapter could not be read for this base.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The base is no decoder.
    #[error("adapters change models that generate text; {architecture} is an encoder")]
    Encoder {
        /// Its architecture.
        architecture: crate::Architecture,
    },
    /// The method changes no weight.
    #[error("{method} cannot be merged: {reason}")]
    Unmergeable {
        /// Method.
        method: &'static str,
        /// Why not.
        reason: &'static str,
    },
}

/// Writes the checkpoint `base` with the adapter of the folder `adapter` in its weights, as the GGUF file `output`. Matrices are of type `dtype`, or of
/// the types that they have in the base; those that the adapter changes are then encoded anew.
///
/// # Errors
/// When base or adapter cannot be read, do not belong together, or the method does not merge; when
/// a type cannot be written, or the disk is full.
pub fn merge(
    base: &Origin<'_>,
    adapter: &Path,
    output: &Path,
    dtype: Option<DType>,
    team: &Team,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<ConvertReport, MergeError> {
    base.refuse_same(output)?;
    let model = match base.open().map_err(ConvertError::Open)?.model {
        Model::Decoder(model) => model,
        Model::Encoder(model) => {
            return Err(MergeError::Encoder {
                architecture: model.config().architecture,
            });
        }
    };
    let name = adapter.file_name().unwrap_or(adapter.as_os_str());
    let name = name.to_string_lossy().into_owned();
    let adapter = Adapter::open(adapter, &model)?;
    let of_head = |c: &Change| c.bias.is_some();
    let biased = adapter.head.as_ref().is_some_and(of_head);
    let biased = biased.then_some("it gives the output head a bias, which no checkpoint has");
    if let Some(reason) = adapter.acts().unmergeable().or(biased) {
        let method = adapter.method();
        return Err(MergeError::Unmergeable { method, reason });
    }
    let (mut metadata, mut parts) = base.parts()?;
    if let Some(Value::String(base)) = metadata.get_mut("general.name") {
        base.push_str(&format!(" + {name}"));
    }
    let config = model.config();
    untie(&adapter, &mut parts);
    for part in &mut parts {
        change(&adapter, config, part);
    }
    add_biases(&adapter, config, &mut parts);
    parts.sort_by_key(|p| order(&p.name));
    let parts = convert::typed((metadata, parts), dtype);
    Ok(convert::write(parts, output, dtype, team, progress)?)
}

/// Gives the output head a matrix of its own where it shared the embeddings and only one changes.
fn untie(adapter: &Adapter, parts: &mut Vec<Part<'_>>) {
    let changed = adapter.embedding.is_some() || adapter.head.is_some();
    if !changed || parts.iter().any(|p| p.name == "output.weight") {
        return;
    }
    let embeddings = parts.iter().find(|p| p.name == "token_embd.weight");
    let head = embeddings.map(|p| Part::new("output.weight".into(), p.stored.clone(), None));
    parts.extend(head);
}

/// Puts the adapter's change of a tensor into it.
fn change<'a>(adapter: &'a Adapter, config: &Config, part: &mut Part<'a>) {
    let name = part.name.clone();
    match name.as_str() {
        "token_embd.weight" => {
            if let Some(embedding) = &adapter.embedding {
                part.rewrite = Some(Box::new(|row, values| embedding.merge_row(row, values)));
            }
        }
        "output.weight" => {
            part.rewrite = adapter.head.as_ref().and_then(|c| rewrite(&[(0, Some(c))]));
        }
        "output_norm.weight" => replace(part, adapter.norm.as_ref()),
        _ => {
            let Some((layer, rest)) = of_a_layer(&name) else {
                return;
            };
            let Some(layer) = adapter.layers.get(layer) else {
                return;
            };
            let (stem, kind) = rest.rsplit_once('.').unwrap_or((rest, ""));
            if let Some(norm) = norm(stem) {
                return replace(part, layer.norms[norm as usize].as_ref());
            }
            let of = |part: Of| layer.parts[part as usize].as_ref();
            let pieces: Vec<(usize, Option<&'a Change>)> = pieces(config, stem, &part.stored)
                .into_iter()
                .map(|(start, part)| (start, of(part)))
                .collect();
            match kind {
                "weight" => part.rewrite = rewrite(&pieces),
                "bias" => replace_pieces(part, &pieces),
                _ => {}
            }
        }
    }
}

/// `blk.3.attn_q.weight` as 3 and `attn_q.weight`.
fn of_a_layer(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

/// The products of a tensor, and the row with which each begins.
fn pieces(config: &Config, stem: &str, stored: &Stored) -> Vec<(usize, Of)> {
    let (q, kv) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    let fused = stored.shape.first() == Some(&(2 * config.intermediate));
    match stem {
        "attn_q" => vec![(0, Of::Q)],
        "attn_k" => vec![(0, Of::K)],
        "attn_v" => vec![(0, Of::V)],
        "attn_qkv" => vec![(0, Of::Q), (q, Of::K), (q + kv, Of::V)],
        "attn_output" => vec![(0, Of::Output)],
        "ffn_gate" => vec![(0, Of::Gate)],
        "ffn_up" if fused => vec![(0, Of::Gate), (config.intermediate, Of::Up)],
        "ffn_up" => vec![(0, Of::Up)],
        "ffn_down" => vec![(0, Of::Down)],
        _ => Vec::new(),
    }
}

fn norm(stem: &str) -> Option<NormPart> {
    Some(match stem {
        "attn_norm" => NormPart::Attention,
        "post_attention_norm" => NormPart::PostAttention,
        "ffn_norm" => NormPart::FeedForward,
        "post_ffw_norm" => NormPart::PostFeedForward,
        "attn_q_norm" => NormPart::Query,
        "attn_k_norm" => NormPart::Key,
        _ => return None,
    })
}

/// The change of a matrix's rows, if any of its products changes more than its bias.
fn rewrite<'a>(pieces: &[(usize, Option<&'a Change>)]) -> Option<Rewrite<'a>> {
    let acts = |c: &&Change| c.inputs.is_some() || c.outputs.is_some() || !c.terms.is_empty();
    if !pieces.iter().any(|(_, c)| c.as_ref().is_some_and(acts)) {
        return None;
    }
    let pieces = pieces.to_vec();
    Some(Box::new(move |row, values| {
        let piece = pieces.iter().rev().find(|(start, _)| *start <= row);
        if let Some((start, Some(change))) = piece {
            change.merge_row(row - start, values);
        }
    }))
}

fn replace(part: &mut Part<'_>, values: Option<&Vec<f32>>) {
    if let Some(values) = values {
        part.stored = stored(&part.name, values);
    }
}

/// Replaces the bias of those products that get another one.
fn replace_pieces(part: &mut Part<'_>, pieces: &[(usize, Option<&Change>)]) {
    let len = part.stored.values();
    // Shapes were checked when the model was opened.
    let Ok(mut values) = part.stored.vector(len) else {
        return;
    };
    for (start, change) in pieces {
        if let Some(bias) = change.and_then(|c| c.bias.as_ref()) {
            values[*start..][..bias.len()].copy_from_slice(bias);
        }
    }
    part.stored = stored(&part.name, &values);
}

/// Adds biases to products that had none.
fn add_biases(adapter: &Adapter, config: &Config, parts: &mut Vec<Part<'_>>) {
    let names: HashSet<String> = parts.iter().map(|p| p.name.clone()).collect();
    let added = |part: &Part<'_>| {
        let name = format!("{}.bias", part.name.strip_suffix(".weight")?);
        let (layer, rest) = of_a_layer(&name)?;
        let pieces = pieces(config, rest.strip_suffix(".bias")?, &part.stored);
        let values = biases(adapter.layers.get(layer)?, &pieces, part.stored.shape[0])?;
        let bias = stored(&name, &values);
        let permute = permuted_heads(config, &name);
        (!names.contains(&name)).then(|| Part::new(name, bias, permute))
    };
    let added: Vec<Part<'_>> = parts.iter().filter_map(added).collect();
    parts.extend(added);
}

/// The biases of a tensor's products, 0 for those that have none; `None` if none has one.
fn biases(layer: &LayerChange, pieces: &[(usize, Of)], rows: usize) -> Option<Vec<f32>> {
    let mut values: Option<Vec<f32>> = None;
    for &(start, of) in pieces {
        let change = layer.parts[of as usize].as_ref();
        if let Some(bias) = change.and_then(|c| c.bias.as_ref()) {
            let all = values.get_or_insert_with(|| vec![0.0; rows]);
            all[start..][..bias.len()].copy_from_slice(bias);
        }
    }
    values
}

fn stored(name: &str, values: &[f32]) -> Stored {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Stored {
        key: None,
        dtype: DType::F32,
        shape: vec![values.len()],
        pieces: vec![bytes.into()],
        original: name.into(),
    }
}
