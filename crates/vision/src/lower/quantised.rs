//! Operators of models in 8 bits, written as rounding (`QuantizeLinear`) and back
//! (`DequantizeLinear`): a value between the two is on a grid, weights keep their integers.

use std::sync::Arc;

use sedge_conv::Quant;

use super::constant::{Constant, Data, Kind};
use super::{Known, Lowering, Reader, Refusal, axis_of, unsupported, wrong};
use crate::op::{Op, Weights};

type Made = Result<Vec<Known>, Refusal>;

/// Weights as the file holds them: real numbers, or integers with scales.
pub(super) struct Stored {
    pub(super) shape: Vec<usize>,
    constant: Constant,
}

impl Stored {
    pub(super) fn constant(&self) -> &Constant {
        &self.constant
    }

    /// As weights whose outputs are along `axis`.
    pub(super) fn weights(&self, axis: usize) -> Result<Weights, Refusal> {
        let Some(grid) = &self.constant.grid else {
            return Ok(Weights::Float(self.constant.to_floats()));
        };
        let outputs = self.shape[axis];
        let scales: Arc<[f32]> = match (grid.scales.len(), grid.axis) {
            (1, _) => vec![grid.scales[0]; outputs].into(),
            (n, at) if n == outputs && at == axis => Arc::clone(&grid.scales),
            _ => return unsupported("scales of weights that are not of their outputs"),
        };
        Ok(Weights::Int8 {
            codes: Arc::clone(&grid.codes),
            scales,
        })
    }
}

/// The integers behind a constant that was dequantised.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    pub(crate) codes: Arc<[i8]>,
    pub(crate) scales: Arc<[f32]>,
    pub(crate) axis: usize,
}

impl Lowering<'_> {
    /// `None` when the operator is not one of these.
    pub(super) fn quantised(&mut self, node: &Reader<'_>, op: &str) -> Option<Made> {
        Some(match op {
            "QuantizeLinear" => self.quantize(node),
            "DequantizeLinear" => self.dequantize(node),
            _ => return None,
        })
    }

    pub(super) fn stored(&self, node: &Reader<'_>, i: usize) -> Result<Stored, Refusal> {
        match node.constant(i)? {
            Some(constant) => Ok(Stored {
                shape: constant.shape.clone(),
                constant,
            }),
            None => wrong(format!("input {i} is missing")),
        }
    }

    /// A value is rounded and stays a real number; that it is one of a grid is known of it.
    fn quantize(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let quant = self.quant(node)?;
        let value = match &x {
            Known::Value(value) => *value,
            Known::Constant(_) => return unsupported("rounding of constants"),
            Known::Missing => return Err(Refusal::Missing),
        };
        if self.graph.info(value).quant == Some(quant) {
            return Ok(vec![x]);
        }
        let rounded = self.apply(node, Op::Round, &[x])?;
        if let Known::Value(value) = rounded {
            self.graph.set_quant(value, Some(quant));
        }
        Ok(vec![rounded])
    }

    /// One scale and zero point; signed grids are the unsigned ones moved by 128.
    fn quant(&self, node: &Reader<'_>) -> Result<Quant, Refusal> {
        let Some(scale) = node.constant(1)?.and_then(|x| x.single()) else {
            return unsupported("a scale for each channel of a value");
        };
        if !(scale.is_finite() && scale > 0.0) {
            return wrong(format!("its scale is {scale}"));
        }
        let zero = match node.constant(2)? {
            None => 0,
            Some(zero) => match (&zero.data, zero.len()) {
                (Data::Int(values, Kind::U8), 1) => values[0],
                (Data::Int(values, Kind::I8), 1) => values[0] + 128,
                _ => return unsupported("a zero point that is not one integer of 8 bits"),
            },
        };
        match u8::try_from(zero) {
            Ok(zero) => Ok(Quant { scale, zero }),
            Err(_) => wrong(format!("its zero point is {zero}")),
        }
    }

    fn dequantize(&mut self, node: &Reader<'_>) -> Made {
        let x = node.input(0)?;
        let constant = match &x {
            Known::Value(value) => {
                // Back from the grid that it is on: it has been a real number all along.
                return match self.graph.info(*value).quant == Some(self.quant(node)?) {
                    true => Ok(vec![x]),
                    false => unsupported("another scale than the value was rounded with"),
                };
            }
            Known::Constant(constant) => constant,
            Known::Missing => return Err(Refusal::Missing),
        };
        let Some(codes) = constant.to_ints() else {
            return wrong("what it reads is not of integers");
        };
        let Some(scales) = node.constant(1)?.map(|x| x.to_floats()) else {
            return wrong("its scale is missing");
        };
        let zeros = node
            .constant_ints(2)?
            .unwrap_or_else(|| vec![0; scales.len()]);
        let shape = constant.shape.clone();
        let axis = match scales.len() {
            1 => 0,
            _ => axis_of(node.int("axis", 1)?, shape.len())?,
        };
        let parts = shape.get(axis).copied().unwrap_or(1);
        if zeros.len() != scales.len() || (scales.len() != 1 && scales.len() != parts) {
            return wrong(format!("{} scales for {shape:?}", scales.len()));
        }
        let inner: usize = shape.get(axis + 1..).unwrap_or(&[]).iter().product();
        let part = |i: usize| match scales.len() {
            1 => 0,
            _ => i / inner.max(1) % parts,
        };
        let values = codes
            .iter()
            .enumerate()
            .map(|(i, &q)| (q - zeros[part(i)]) as f32 * scales[part(i)]);
        let mut made = Constant::floats(shape, values.collect());
        let signed = matches!(constant.data, Data::Int(_, Kind::I8));
        if signed && zeros.iter().all(|&x| x == 0) {
            made.grid = Some(Grid {
                codes: codes.iter().map(|&q| q as i8).collect(),
                scales,
                axis,
            });
        }
        Ok(vec![Known::Constant(made)])
    }
}
