//! What is known of a value while an ONNX graph is read: a constant is folded at once.

use std::sync::Arc;

use sedge_formats::onnx::{Tensor, TensorData};

use super::quantised::Grid;
use crate::nd;

/// A constant.
#[derive(Clone, Debug)]
pub(crate) struct Constant {
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Data,
    /// The integers that it was, if it has just been dequantised.
    pub(crate) grid: Option<Grid>,
}

/// A constant's values. All whole numbers are one type here; `Kind` says which they were.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    Float(Arc<[f32]>),
    Int(Arc<[i64]>, Kind),
}

/// What whole numbers are in the file, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    I8,
    U8,
    Other,
}

impl Constant {
    pub(crate) fn floats(shape: Vec<usize>, values: Vec<f32>) -> Constant {
        Constant {
            shape,
            data: Data::Float(values.into()),
            grid: None,
        }
    }

    pub(crate) fn ints(shape: Vec<usize>, values: Vec<i64>) -> Constant {
        Constant {
            shape,
            data: Data::Int(values.into(), Kind::Other),
            grid: None,
        }
    }

    pub(crate) fn of(tensor: &Tensor) -> Option<Constant> {
        let ints = |values: Vec<i64>, kind| Data::Int(values.into(), kind);
        let data = match &tensor.data {
            TensorData::F32(x) => Data::Float(x.to_vec().into()),
            TensorData::F64(x) => Data::Float(x.iter().map(|&x| x as f32).collect()),
            TensorData::F16(x) => Data::Float(x.iter().map(|x| x.to_f32()).collect()),
            TensorData::I64(x) => ints(x.to_vec(), Kind::Other),
            TensorData::I32(x) => ints(x.iter().map(|&x| x.into()).collect(), Kind::Other),
            TensorData::I16(x) => ints(x.iter().map(|&x| x.into()).collect(), Kind::Other),
            TensorData::U16(x) => ints(x.iter().map(|&x| x.into()).collect(), Kind::Other),
            TensorData::U32(x) => ints(x.iter().map(|&x| x.into()).collect(), Kind::Other),
            TensorData::I8(x) => ints(x.iter().map(|&x| x.into()).collect(), Kind::I8),
            TensorData::U8(x) => ints(x.iter().map(|&x| x.into()).collect(), Kind::U8),
            TensorData::Bool(x) => ints(x.iter().map(|&x| x.into()).collect(), Kind::Other),
            TensorData::U64(x) => {
                let values: Option<Vec<i64>> = x.iter().map(|&x| x.try_into().ok()).collect();
                ints(values?, Kind::Other)
            }
        };
        Some(Constant {
            shape: tensor.shape.clone(),
            data,
            grid: None,
        })
    }

    pub(crate) fn len(&self) -> usize {
        nd::count(&self.shape).unwrap_or(0)
    }

    /// As real numbers.
    pub(crate) fn to_floats(&self) -> Arc<[f32]> {
        match &self.data {
            Data::Float(values) => Arc::clone(values),
            Data::Int(values, _) => values.iter().map(|&x| x as f32).collect(),
        }
    }

    /// As whole numbers, if that is what they are.
    pub(crate) fn to_ints(&self) -> Option<Vec<i64>> {
        match &self.data {
            Data::Float(_) => None,
            Data::Int(values, _) => Some(values.to_vec()),
        }
    }

    /// The only value there is.
    pub(crate) fn single(&self) -> Option<f32> {
        match self.len() {
            1 => self.to_floats().first().copied(),
            _ => None,
        }
    }
}
