//! Writing GGUF v3 files.
//! The directory is laid out from types and shapes alone, so tensors can be made one at a time.

use std::collections::HashSet;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use bytes::Bytes;
use indexmap::IndexMap;
use sedge_kernels::DType;

use super::read::MAX_DEPTH;
use super::{Array, GgufError, Value, alignment, tensor_len, types};

/// A tensor to write.
#[derive(Debug, Clone)]
pub struct TensorPlan {
    /// Name.
    pub name: String,
    /// Stored type.
    pub dtype: DType,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
}

/// Writes a GGUF v3 file: metadata and the directory first, then each tensor's bytes as
/// `fill(index)` returns them, in order, so that only one tensor need be in memory.
/// Writes to a temporary file beside `path` and renames it, so that a crash leaves no half file;
/// returns when file and name are on the disk. A mapping of a file that `path` named before
/// stays valid, so a model can be converted in place.
///
/// # Errors
/// When writing fails, `fill` fails, or a tensor's bytes do not fit its type and shape: then an
/// [`io::Error`] holding a [`GgufError`].
pub fn write<E: From<io::Error>>(
    path: &Path,
    metadata: &IndexMap<String, Value>,
    tensors: &[TensorPlan],
    fill: impl FnMut(usize) -> Result<Bytes, E>,
) -> Result<(), E> {
    crate::replace(path, |file| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        write_to(&mut out, metadata, tensors, fill)?;
        Ok(out.flush()?)
    })
}

/// Writes what [`write()`] does to any stream. Honours `general.alignment` (32 if absent).
///
/// # Errors
/// As [`write()`].
pub fn write_to<E: From<io::Error>>(
    mut out: impl Write,
    metadata: &IndexMap<String, Value>,
    tensors: &[TensorPlan],
    mut fill: impl FnMut(usize) -> Result<Bytes, E>,
) -> Result<(), E> {
    let (header, alignment, lens) = header(metadata, tensors).map_err(invalid)?;
    out.write_all(&header)?;
    for (index, (plan, &expected)) in tensors.iter().zip(&lens).enumerate() {
        let bytes = fill(index)?;
        let found = bytes.len() as u64;
        if found != expected {
            return Err(invalid(GgufError::Size {
                name: plan.name.clone(),
                expected,
                found,
            })
            .into());
        }
        out.write_all(&bytes)?;
        let padding = expected.next_multiple_of(alignment) - expected;
        io::copy(&mut io::Read::take(io::repeat(0), padding), &mut out)?;
    }
    out.flush()?;
    Ok(())
}

fn invalid(error: GgufError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

/// Everything before the data, padded; the alignment; and each tensor's bytes.
fn header(
    metadata: &IndexMap<String, Value>,
    tensors: &[TensorPlan],
) -> Result<(Vec<u8>, u64, Vec<u64>), GgufError> {
    let alignment = alignment(metadata)?;
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_string(&mut out, key);
        put_value(&mut out, value)?;
    }
    let (mut names, mut lens, mut offset) = (HashSet::new(), Vec::new(), 0u64);
    for TensorPlan { name, dtype, shape } in tensors {
        if !names.insert(name) {
            return Err(GgufError::DuplicateTensor { name: name.clone() });
        }
        let len = tensor_len(name, *dtype, shape)? as u64;
        put_string(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        for &dim in shape.iter().rev() {
            out.extend((dim as u64).to_le_bytes());
        }
        out.extend(types::id(*dtype).to_le_bytes());
        out.extend(offset.to_le_bytes());
        lens.push(len);
        offset = len
            .checked_next_multiple_of(alignment)
            .and_then(|len| offset.checked_add(len))
            .ok_or_else(|| GgufError::Shape {
                name: name.clone(),
                shape: shape.iter().map(|&d| d as u64).collect(),
                dtype: *dtype,
            })?;
    }
    out.resize(out.len().next_multiple_of(alignment as usize), 0);
    Ok((out, alignment, lens))
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) -> Result<(), GgufError> {
    let mut put = |id: u32, bytes: &[u8]| {
        out.extend(id.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U8(v) => put(0, &v.to_le_bytes()),
        Value::I8(v) => put(1, &v.to_le_bytes()),
        Value::U16(v) => put(2, &v.to_le_bytes()),
        Value::I16(v) => put(3, &v.to_le_bytes()),
        Value::U32(v) => put(4, &v.to_le_bytes()),
        Value::I32(v) => put(5, &v.to_le_bytes()),
        Value::F32(v) => put(6, &v.to_le_bytes()),
        Value::Bool(v) => put(7, &[u8::from(*v)]),
        Value::String(v) => {
            put(8, &[]);
            put_string(out, v);
        }
        Value::Array(v) => {
            put(9, &[]);
            put_array(out, v, 1)?;
        }
        Value::U64(v) => put(10, &v.to_le_bytes()),
        Value::I64(v) => put(11, &v.to_le_bytes()),
        Value::F64(v) => put(12, &v.to_le_bytes()),
    }
    Ok(())
}

/// `depth` is 1 for an array in no other. What could not be read again is not written.
fn put_array(out: &mut Vec<u8>, array: &Array, depth: usize) -> Result<(), GgufError> {
    if depth > MAX_DEPTH {
        return Err(GgufError::Depth);
    }
    match array {
        Array::U8(v) => put_scalars(out, 0, v, u8::to_le_bytes),
        Array::I8(v) => put_scalars(out, 1, v, i8::to_le_bytes),
        Array::U16(v) => put_scalars(out, 2, v, u16::to_le_bytes),
        Array::I16(v) => put_scalars(out, 3, v, i16::to_le_bytes),
        Array::U32(v) => put_scalars(out, 4, v, u32::to_le_bytes),
        Array::I32(v) => put_scalars(out, 5, v, i32::to_le_bytes),
        Array::F32(v) => put_scalars(out, 6, v, f32::to_le_bytes),
        Array::Bool(v) => put_scalars(out, 7, v, |b| [u8::from(b)]),
        Array::String(v) => {
            put_array_head(out, 8, v.len());
            v.iter().for_each(|text| put_string(out, text));
        }
        Array::Array(v) => {
            put_array_head(out, 9, v.len());
            v.iter()
                .try_for_each(|inner| put_array(out, inner, depth + 1))?;
        }
        Array::U64(v) => put_scalars(out, 10, v, u64::to_le_bytes),
        Array::I64(v) => put_scalars(out, 11, v, i64::to_le_bytes),
        Array::F64(v) => put_scalars(out, 12, v, f64::to_le_bytes),
    }
    Ok(())
}

fn put_array_head(out: &mut Vec<u8>, element: u32, count: usize) {
    out.extend(element.to_le_bytes());
    out.extend((count as u64).to_le_bytes());
}

fn put_scalars<const N: usize, T: Copy>(
    out: &mut Vec<u8>,
    element: u32,
    values: &[T],
    to: fn(T) -> [u8; N],
) {
    put_array_head(out, element, values.len());
    out.extend(values.iter().flat_map(|&v| to(v)));
}
