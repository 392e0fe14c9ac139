//! Blocks of quantised values: ggml's layouts and Sedge's bipolar ones, decoded and encoded.
//! Decoding never fails on bit patterns: every block of the right size has a value.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
pub(crate) mod bipolar;
mod decode;
mod encode;
pub(crate) mod grid;
mod write;

use crate::DType;
use crate::isa::isa;

pub(crate) use decode::{IQ4, decode, scale_min};
pub use grid::Grid;

/// Why a buffer could not be converted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The two buffers do not describe the same number of values.
    #[error("{values} values of {dtype} take {expected:?} bytes; the buffer has {found}")]
    Size {
        /// Stored type.
        dtype: DType,
        /// Number of values.
        values: usize,
        /// Bytes that they take; `None` when they do not fill whole blocks.
        expected: Option<usize>,
        /// Bytes given.
        found: usize,
    },
}

/// Decodes `bytes` of `dtype` into f32.
///
/// # Errors
/// When `bytes` is not exactly what `out.len()` values take.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), CodecError> {
    let expected = dtype.bytes_for(out.len());
    if expected != Some(bytes.len()) {
        let (values, found) = (out.len(), bytes.len());
        return Err(CodecError::Size {
            dtype,
            values,
            expected,
            found,
        });
    }
    (isa().decode)(dtype, bytes, out);
    Ok(())
}

/// Encodes `values` as `dtype`, appending to `out`.
///
/// Infinities become the largest value that the type holds and NaN becomes 0, in block types.
///
/// # Errors
/// When the values do not fill whole blocks.
pub fn quantize(dtype: DType, values: &[f32], out: &mut Vec<u8>) -> Result<(), CodecError> {
    let Some(bytes) = dtype.bytes_for(values.len()) else {
        let values = values.len();
        return Err(CodecError::Size {
            dtype,
            values,
            expected: None,
            found: 0,
        });
    };
    out.reserve(bytes);
    encode::encode(dtype, values, out);
    Ok(())
}
