//! Tensors: a shape, and as many values of one type as it takes.

use std::fmt;

use half::f16;

use super::OnnxError;
use super::external::External;
use super::proto::{EXTERNAL, TensorProto};

/// Most dimensions of a tensor or a value; real models have six at most.
pub(super) const MAX_RANK: usize = 32;

/// The type of a tensor's elements. The numbers are those of TensorProto.DataType.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// IEEE single precision.
    F32 = 1,
    /// Unsigned, 8 bits.
    U8 = 2,
    /// Signed, 8 bits.
    I8 = 3,
    /// Unsigned, 16 bits.
    U16 = 4,
    /// Signed, 16 bits.
    I16 = 5,
    /// Signed, 32 bits.
    I32 = 6,
    /// Signed, 64 bits.
    I64 = 7,
    /// True or false, a byte each.
    Bool = 9,
    /// IEEE half precision.
    F16 = 10,
    /// IEEE double precision.
    F64 = 11,
    /// Unsigned, 32 bits.
    U32 = 12,
    /// Unsigned, 64 bits.
    U64 = 13,
}

impl ElementType {
    const ALL: [ElementType; 12] = [
        ElementType::F32,
        ElementType::U8,
        ElementType::I8,
        ElementType::U16,
        ElementType::I16,
        ElementType::I32,
        ElementType::I64,
        ElementType::Bool,
        ElementType::F16,
        ElementType::F64,
        ElementType::U32,
        ElementType::U64,
    ];

    /// The type that a file's number means.
    pub(super) fn read(number: i32, place: &str) -> Result<ElementType, OnnxError> {
        let known = ElementType::ALL.into_iter().find(|e| *e as i32 == number);
        known.ok_or_else(|| OnnxError::Unsupported {
            place: place.to_owned(),
            what: match number {
                0 => "elements of no stated type".to_owned(),
                8 => "texts as elements".to_owned(),
                16 => "bfloat16 elements".to_owned(),
                _ => format!("elements of type {number}"),
            },
        })
    }

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            ElementType::U8 | ElementType::I8 | ElementType::Bool => 1,
            ElementType::U16 | ElementType::I16 | ElementType::F16 => 2,
            ElementType::F32 | ElementType::I32 | ElementType::U32 => 4,
            ElementType::F64 | ElementType::I64 | ElementType::U64 => 8,
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

/// A tensor that the file holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Name; that of an attribute's tensor is often empty.
    pub name: String,
    /// Slowest dimension first. May be empty (one value) or hold a 0 (none).
    pub shape: Vec<usize>,
    /// As many values as `shape` takes, the last dimension's beside each other.
    pub data: TensorData,
}

/// A tensor's values.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData {
    /// IEEE single precision.
    F32(Vec<f32>),
    /// IEEE double precision.
    F64(Vec<f64>),
    /// IEEE half precision.
    F16(Vec<f16>),
    /// Signed, 64 bits.
    I64(Vec<i64>),
    /// Signed, 32 bits.
    I32(Vec<i32>),
    /// Signed, 16 bits.
    I16(Vec<i16>),
    /// Signed, 8 bits.
    I8(Vec<i8>),
    /// Unsigned, 64 bits.
    U64(Vec<u64>),
    /// Unsigned, 32 bits.
    U32(Vec<u32>),
    /// Unsigned, 16 bits.
    U16(Vec<u16>),
    /// Unsigned, 8 bits.
    U8(Vec<u8>),
    /// True or false.
    Bool(Vec<bool>),
}

impl TensorData {
    /// The values' type.
    pub fn element(&self) -> ElementType {
        match self {
            TensorData::F32(_) => ElementType::F32,
            TensorData::F64(_) => ElementType::F64,
            TensorData::F16(_) => ElementType::F16,
            TensorData::I64(_) => ElementType::I64,
            TensorData::I32(_) => ElementType::I32,
            TensorData::I16(_) => ElementType::I16,
            TensorData::I8(_) => ElementType::I8,
            TensorData::U64(_) => ElementType::U64,
            TensorData::U32(_) => ElementType::U32,
            TensorData::U16(_) => ElementType::U16,
            TensorData::U8(_) => ElementType::U8,
            TensorData::Bool(_) => ElementType::Bool,
        }
    }

    /// From little-endian bytes, a whole number of elements.
    fn from_raw(element: ElementType, raw: &[u8]) -> TensorData {
        match element {
            ElementType::F32 => TensorData::F32(values(raw, f32::from_le_bytes)),
            ElementType::F64 => TensorData::F64(values(raw, f64::from_le_bytes)),
            ElementType::F16 => TensorData::F16(values(raw, f16::from_le_bytes)),
            ElementType::I64 => TensorData::I64(values(raw, i64::from_le_bytes)),
            ElementType::I32 => TensorData::I32(values(raw, i32::from_le_bytes)),
            ElementType::I16 => TensorData::I16(values(raw, i16::from_le_bytes)),
            ElementType::I8 => TensorData::I8(values(raw, i8::from_le_bytes)),
            ElementType::U64 => TensorData::U64(values(raw, u64::from_le_bytes)),
            ElementType::U32 => TensorData::U32(values(raw, u32::from_le_bytes)),
            ElementType::U16 => TensorData::U16(values(raw, u16::from_le_bytes)),
            ElementType::U8 => TensorData::U8(raw.to_vec()),
            ElementType::Bool => TensorData::Bool(values(raw, |[byte]| byte != 0)),
        }
    }

    /// Little-endian bytes.
    pub(super) fn to_raw(&self) -> Vec<u8> {
        match self {
            TensorData::F32(v) => bytes(v, f32::to_le_bytes),
            TensorData::F64(v) => bytes(v, f64::to_le_bytes),
            TensorData::F16(v) => bytes(v, f16::to_le_bytes),
            TensorData::I64(v) => bytes(v, i64::to_le_bytes),
            TensorData::I32(v) => bytes(v, i32::to_le_bytes),
            TensorData::I16(v) => bytes(v, i16::to_le_bytes),
            TensorData::I8(v) => bytes(v, i8::to_le_bytes),
            TensorData::U64(v) => bytes(v, u64::to_le_bytes),
            TensorData::U32(v) => bytes(v, u32::to_le_bytes),
            TensorData::U16(v) => bytes(v, u16::to_le_bytes),
            TensorData::U8(v) => v.clone(),
            TensorData::Bool(v) => bytes(v, |value| [u8::from(value)]),
        }
    }
}

fn values<T, const N: usize>(raw: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
    raw.as_chunks().0.iter().map(|chunk| from(*chunk)).collect()
}

fn bytes<T: Copy, const N: usize>(values: &[T], to: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|value| to(*value)).collect()
}

/// Reads a tensor, which `place` says where it is if it has no name.
pub(super) fn read(
    mut proto: TensorProto,
    place: impl FnOnce() -> String,
    external: &mut External,
) -> Result<Tensor, OnnxError> {
    let name = std::mem::take(&mut proto.name);
    let place = if name.is_empty() {
        place()
    } else {
        format!("tensor {name:?}")
    };
    let element = ElementType::read(proto.data_type, &place)?;
    let Some((shape, count)) = sizes(&proto.dims) else {
        let shape = proto.dims.into_iter().take(MAX_RANK).collect();
        return Err(OnnxError::Shape { place, shape });
    };
    // `sizes` leaves room for the widest elements.
    let expected = count * element.bytes();
    let size = |unit, expected, found| OnnxError::Size {
        place: place.clone(),
        element,
        shape: shape.clone(),
        unit,
        expected,
        found,
    };
    let data = if proto.data_location == EXTERNAL {
        let raw = external.load(&place, &proto.external_data, expected)?;
        TensorData::from_raw(element, &raw)
    } else if !proto.raw_data.is_empty() {
        if proto.raw_data.len() != expected {
            return Err(size("bytes", expected, proto.raw_data.len()));
        }
        TensorData::from_raw(element, &proto.raw_data)
    } else {
        let found = match element {
            ElementType::F32 => proto.float_data.len(),
            ElementType::F64 => proto.double_data.len(),
            ElementType::I64 => proto.int64_data.len(),
            ElementType::U32 | ElementType::U64 => proto.uint64_data.len(),
            _ => proto.int32_data.len(),
        };
        if found != count {
            return Err(size("values", count, found));
        }
        from_fields(element, proto).map_err(|index| OnnxError::Range {
            place: place.clone(),
            element,
            index,
        })?
    };
    Ok(Tensor { name, shape, data })
}

/// Dimensions and number of elements, unless there are too many or some are negative. The number
/// of bytes then fits an allocation whatever the type, even were the empty dimensions 1.
fn sizes(dims: &[i64]) -> Option<(Vec<usize>, usize)> {
    if dims.len() > MAX_RANK {
        return None;
    }
    let shape = dims.iter().map(|d| usize::try_from(*d).ok());
    let shape: Vec<usize> = shape.collect::<Option<_>>()?;
    let most = shape
        .iter()
        .try_fold(1usize, |n, d| n.checked_mul(*d.max(&1)));
    if most.is_none_or(|n| n > isize::MAX as usize / 8) {
        return None;
    }
    let count = shape.iter().product();
    Some((shape, count))
}

/// From the field that the specification has for a type, or the index of a value out of range.
fn from_fields(element: ElementType, proto: TensorProto) -> Result<TensorData, usize> {
    let small = &proto.int32_data;
    Ok(match element {
        ElementType::F32 => TensorData::F32(proto.float_data),
        ElementType::F64 => TensorData::F64(proto.double_data),
        ElementType::F16 => {
            let bits: Vec<u16> = narrow(small)?;
            TensorData::F16(bits.into_iter().map(f16::from_bits).collect())
        }
        ElementType::I64 => TensorData::I64(proto.int64_data),
        ElementType::I32 => TensorData::I32(proto.int32_data),
        ElementType::I16 => TensorData::I16(narrow(small)?),
        ElementType::I8 => TensorData::I8(narrow(small)?),
        ElementType::U64 => TensorData::U64(proto.uint64_data),
        ElementType::U32 => TensorData::U32(narrow(&proto.uint64_data)?),
        ElementType::U16 => TensorData::U16(narrow(small)?),
        ElementType::U8 => TensorData::U8(narrow(small)?),
        ElementType::Bool => TensorData::Bool(small.iter().map(|value| *value != 0).collect()),
    })
}

fn narrow<S: Copy, T: TryFrom<S>>(values: &[S]) -> Result<Vec<T>, usize> {
    let narrowed = values.iter().enumerate();
    narrowed
        .map(|(index, value)| T::try_from(*value).map_err(|_| index))
        .collect()
}
