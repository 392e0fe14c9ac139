//! With how many bits a matrix's activations are multiplied, as a GGUF file says it.
//!
//! For the tensor NAME, the key `sedge.activation_bits.NAME` holds an array of u8: one number from
//! 1 to 8 for all groups of 64 columns, or one for each. Without it, all have 8. Matrices that
//! read the same activations share them, quantised to the larger of their numbers.

use std::collections::HashMap;

use indexmap::IndexMap;
use sedge_formats::gguf::{Array, Value};

const PREFIX: &str = "sedge.activation_bits.";

/// The numbers by the tensors' names.
pub(crate) type BitsByName = HashMap<String, Vec<u8>>;

/// The entry of a GGUF file's metadata that says with how many bits the activations of a tensor
/// are multiplied, such as `blk.3.ffn_down.weight`: one number from 1 to 8, or one for each 64
/// columns. For a tensor of experts it is for all of them.
pub fn activation_bits(tensor: &str, bits: &[u8]) -> (String, Value) {
    let value = Value::Array(Array::U8(bits.to_vec()));
    (format!("{PREFIX}{tensor}"), value)
}

/// Such entries of a file. What is no array of u8 has no numbers, which no tensor accepts.
pub(crate) fn of_metadata(metadata: &IndexMap<String, Value>) -> BitsByName {
    let entry = |(key, value): (&String, &Value)| {
        let name = key.strip_prefix(PREFIX)?.to_owned();
        match value {
            Value::Array(Array::U8(bits)) => Some((name, bits.clone())),
            _ => Some((name, Vec::new())),
        }
    };
    metadata.iter().filter_map(entry).collect()
}
