//! Reading the header of a GGUF file.
//! Nothing is allocated for a count before the rest of the file is known to be able to hold it.

use indexmap::IndexMap;
use indexmap::map::Entry;

use super::{Array, GgufError, Header, TensorInfo, Value, alignment, tensor_len, types};

/// Arrays in arrays that are followed. Real files nest once; without a limit a small file could
/// overflow the stack.
pub(super) const MAX_DEPTH: usize = 4;

/// An empty key, a type, a value of one byte.
const MIN_ENTRY: usize = 8 + 4 + 1;
/// An empty name, one dimension, a type, an offset.
const MIN_TENSOR: usize = 8 + 4 + 8 + 4 + 8;
/// An element type and a count.
const MIN_ARRAY: usize = 4 + 8;

/// Reads the metadata and the tensor directory of a file of `file` bytes, of which `bytes` are
/// the first.
pub(super) fn parse(bytes: &[u8], file: usize) -> Result<Header, GgufError> {
    let mut cursor = Cursor { bytes, at: 0, file };
    if !bytes.starts_with(b"GGUF") {
        return Err(GgufError::Magic {
            found: bytes[..bytes.len().min(4)].to_vec(),
        });
    }
    cursor.take(4, "the magic")?;
    match cursor.scalar(u32::from_le_bytes, "the version")? {
        2 | 3 => {}
        // A big-endian file's small version, read the wrong way round.
        v if v & 0xffff == 0 && v != 0 => return Err(GgufError::BigEndian),
        found => return Err(GgufError::Version { found }),
    }
    let tensor_count = cursor.count(MIN_TENSOR, "tensors")?;
    let entry_count = cursor.count(MIN_ENTRY, "metadata entries")?;

    let mut metadata = IndexMap::new();
    for _ in 0..entry_count {
        let key = cursor.string("a metadata key")?;
        let value = cursor.value()?;
        match metadata.entry(key) {
            Entry::Occupied(entry) => {
                return Err(GgufError::DuplicateKey {
                    key: entry.key().clone(),
                });
            }
            Entry::Vacant(entry) => entry.insert(value),
        };
    }
    let alignment = alignment(&metadata)?;

    let mut tensors = IndexMap::new();
    for _ in 0..tensor_count {
        let (name, tensor) = cursor.tensor(alignment)?;
        match tensors.entry(name) {
            Entry::Occupied(entry) => {
                return Err(GgufError::DuplicateTensor {
                    name: entry.key().clone(),
                });
            }
            Entry::Vacant(entry) => entry.insert(tensor),
        };
    }

    let data_start = (cursor.at as u64).next_multiple_of(alignment);
    for (name, tensor) in &mut tensors {
        let offset = data_start.checked_add(tensor.offset);
        let end = offset.and_then(|offset| offset.checked_add(tensor.len));
        tensor.offset = offset.unwrap_or(u64::MAX);
        if end.is_none_or(|end| end > file as u64) {
            return Err(GgufError::OutOfFile {
                name: name.clone(),
                offset: tensor.offset,
                len: tensor.len,
                file,
            });
        }
    }
    check_overlap(&tensors)?;
    Ok(Header {
        metadata,
        tensors,
        len: data_start.min(file as u64),
    })
}

/// Two tensors on the same bytes are an error: no writer makes such files, and a loader that
/// copies tensors would need far more memory than the file has bytes.
fn check_overlap(tensors: &IndexMap<String, TensorInfo>) -> Result<(), GgufError> {
    let mut order: Vec<(&String, &TensorInfo)> = tensors.iter().collect();
    order.sort_by_key(|(_, t)| t.offset);
    for pair in order.windows(2) {
        let [(first, a), (second, b)] = pair else {
            continue;
        };
        if a.offset + a.len > b.offset {
            return Err(GgufError::Overlap {
                first: (*first).clone(),
                second: (*second).clone(),
            });
        }
    }
    Ok(())
}

/// A place in the file.
struct Cursor<'a> {
    /// The file's first bytes.
    bytes: &'a [u8],
    at: usize,
    /// Bytes of the whole file.
    file: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.file - self.at
    }

    fn take(&mut self, n: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let left = self.left();
        if n > left as u64 {
            return Err(GgufError::Truncated {
                what,
                offset: self.at,
                need: n,
                left,
            });
        }
        let end = self.at + n as usize;
        let taken = self.bytes.get(self.at..end);
        let taken = taken.ok_or(GgufError::Unfinished { need: end as u64 })?;
        self.at = end;
        Ok(taken)
    }

    fn scalar<const N: usize, T>(
        &mut self,
        from: fn([u8; N]) -> T,
        what: &'static str,
    ) -> Result<T, GgufError> {
        let mut raw = [0; N];
        raw.copy_from_slice(self.take(N as u64, what)?);
        Ok(from(raw))
    }

    /// A count of things of at least `min_bytes` each, all of which the rest can hold.
    fn count(&mut self, min_bytes: usize, what: &'static str) -> Result<usize, GgufError> {
        let offset = self.at;
        let count = self.scalar(u64::from_le_bytes, what)?;
        let left = self.left();
        if count > (left / min_bytes) as u64 {
            return Err(GgufError::Count {
                what,
                offset,
                count,
                left,
            });
        }
        Ok(count as usize)
    }

    fn string(&mut self, what: &'static str) -> Result<String, GgufError> {
        let len = self.scalar(u64::from_le_bytes, what)?;
        let offset = self.at;
        let bytes = self.take(len, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(GgufError::Utf8 { what, offset }),
        }
    }

    fn bool(&mut self) -> Result<bool, GgufError> {
        let offset = self.at;
        match self.scalar(u8::from_le_bytes, "a truth value")? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(GgufError::Bool { found, offset }),
        }
    }

    /// A type number and the value after it.
    fn value(&mut self) -> Result<Value, GgufError> {
        const WHAT: &str = "a metadata value";
        let offset = self.at;
        Ok(match self.scalar(u32::from_le_bytes, "a metadata type")? {
            0 => Value::U8(self.scalar(u8::from_le_bytes, WHAT)?),
            1 => Value::I8(self.scalar(i8::from_le_bytes, WHAT)?),
            2 => Value::U16(self.scalar(u16::from_le_bytes, WHAT)?),
            3 => Value::I16(self.scalar(i16::from_le_bytes, WHAT)?),
            4 => Value::U32(self.scalar(u32::from_le_bytes, WHAT)?),
            5 => Value::I32(self.scalar(i32::from_le_bytes, WHAT)?),
            6 => Value::F32(self.scalar(f32::from_le_bytes, WHAT)?),
            7 => Value::Bool(self.bool()?),
            8 => Value::String(self.string("a metadata string")?),
            9 => Value::Array(self.array(1)?),
            10 => Value::U64(self.scalar(u64::from_le_bytes, WHAT)?),
            11 => Value::I64(self.scalar(i64::from_le_bytes, WHAT)?),
            12 => Value::F64(self.scalar(f64::from_le_bytes, WHAT)?),
            id => return Err(GgufError::ValueType { id, offset }),
        })
    }

    /// An element type, a count and the elements; `depth` is 1 for an array in no other.
    fn array(&mut self, depth: usize) -> Result<Array, GgufError> {
        if depth > MAX_DEPTH {
            return Err(GgufError::Depth);
        }
        let offset = self.at;
        Ok(match self.scalar(u32::from_le_bytes, "an array's type")? {
            0 => Array::U8(self.scalars(u8::from_le_bytes)?),
            1 => Array::I8(self.scalars(i8::from_le_bytes)?),
            2 => Array::U16(self.scalars(u16::from_le_bytes)?),
            3 => Array::I16(self.scalars(i16::from_le_bytes)?),
            4 => Array::U32(self.scalars(u32::from_le_bytes)?),
            5 => Array::I32(self.scalars(i32::from_le_bytes)?),
            6 => Array::F32(self.scalars(f32::from_le_bytes)?),
            7 => {
                let count = self.count(1, "truth values")?;
                Array::Bool((0..count).map(|_| self.bool()).collect::<Result<_, _>>()?)
            }
            8 => {
                let count = self.count(8, "strings")?;
                let mut strings = Vec::with_capacity(count);
                for _ in 0..count {
                    strings.push(self.string("a string of an array")?);
                }
                Array::String(strings)
            }
            9 => {
                let count = self.count(MIN_ARRAY, "arrays")?;
                Array::Array(
                    (0..count)
                        .map(|_| self.array(depth + 1))
                        .collect::<Result<_, _>>()?,
                )
            }
            10 => Array::U64(self.scalars(u64::from_le_bytes)?),
            11 => Array::I64(self.scalars(i64::from_le_bytes)?),
            12 => Array::F64(self.scalars(f64::from_le_bytes)?),
            id => return Err(GgufError::ValueType { id, offset }),
        })
    }

    fn scalars<const N: usize, T>(&mut self, from: fn([u8; N]) -> T) -> Result<Vec<T>, GgufError> {
        let count = self.count(N, "array elements")?;
        let bytes = self.take((count * N) as u64, "an array's elements")?;
        Ok(bytes
            .as_chunks::<N>()
            .0
            .iter()
            .map(|&raw| from(raw))
            .collect())
    }

    /// One entry of the directory; its offset still counts from the start of the data.
    fn tensor(&mut self, alignment: u64) -> Result<(String, TensorInfo), GgufError> {
        const WHAT: &str = "a tensor's entry";
        let name = self.string("a tensor's name")?;
        let dims = self.scalar(u32::from_le_bytes, WHAT)?;
        if !(1..=4).contains(&dims) {
            return Err(GgufError::Dimensions {
                name,
                found: dims as usize,
            });
        }
        let mut shape = Vec::with_capacity(dims as usize);
        for _ in 0..dims {
            shape.push(self.scalar(u64::from_le_bytes, WHAT)?);
        }
        shape.reverse();
        let id = self.scalar(u32::from_le_bytes, WHAT)?;
        let offset = self.scalar(u64::from_le_bytes, WHAT)?;
        let Some(dtype) = types::dtype(id) else {
            return Err(GgufError::TensorType { name, id });
        };
        let Some(shape) = shape
            .iter()
            .map(|&d| d.try_into().ok())
            .collect::<Option<Vec<usize>>>()
        else {
            return Err(GgufError::Shape { name, shape, dtype });
        };
        let len = tensor_len(&name, dtype, &shape)? as u64;
        if !offset.is_multiple_of(alignment) {
            return Err(GgufError::Misaligned {
                name,
                offset,
                alignment,
            });
        }
        Ok((
            name,
            TensorInfo {
                dtype,
                shape,
                offset,
                len,
                shard: 0,
            },
        ))
    }
}
