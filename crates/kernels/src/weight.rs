//! A weight matrix in the form in which products read it: as it is stored, or packed.

use std::collections::HashMap;

use bytes::Bytes;

use crate::{DType, Matrix, Packed, Team, packs};

/// A weight matrix.
#[derive(Debug, Clone)]
pub enum Weight {
    /// As the file has it: decoded to f32 and multiplied with f32 activations. The reference,
    /// and the way of the plain types.
    Stored(Matrix),
    /// Packed: quantised types are multiplied with 8-bit activations, those of 16 bits with f32.
    Packed(Packed),
}

/// Stored weights that are to be packed, in one run of memory. Those that share their stored
/// bytes share their packed ones.
#[derive(Debug)]
pub struct Packer<'a> {
    weights: Vec<&'a mut Weight>,
    /// For each of them the first one with the same stored bytes.
    firsts: Vec<usize>,
}

impl<'a> Packer<'a> {
    /// Takes the stored matrices of quantised types; others stay as they are.
    pub fn new(weights: impl IntoIterator<Item = &'a mut Weight>) -> Packer<'a> {
        let quantised = |w: &&mut Weight| matches!(w, Weight::Stored(w) if packs(w.dtype()));
        let weights: Vec<&mut Weight> = weights.into_iter().filter(quantised).collect();
        let mut seen = HashMap::new();
        let firsts = weights.iter().enumerate().map(|(i, w)| match &**w {
            Weight::Stored(w) => {
                let bytes = (w.bytes().as_ptr(), w.bytes().len());
                *seen.entry((bytes, w.dtype(), w.cols())).or_insert(i)
            }
            Weight::Packed(_) => i,
        });
        let firsts = firsts.collect();
        Packer { weights, firsts }
    }

    /// The matrices, in the order in which they lie in memory when they are packed.
    pub fn stored(&self) -> impl Iterator<Item = &Matrix> {
        let all = self.weights.iter().zip(&self.firsts).enumerate();
        all.filter_map(|(i, (w, &first))| match &**w {
            Weight::Stored(w) if first == i => Some(w),
            _ => None,
        })
    }

    /// Packs them and gives the memory in which they lie; see [`Packed::pack`].
    ///
    /// # Errors
    /// When the memory cannot be had; then nothing is changed.
    pub fn pack(self, team: &Team, done: &mut dyn FnMut(Bytes)) -> std::io::Result<Bytes> {
        let stored: Vec<&Matrix> = self.stored().collect();
        let memory = Packed::pack(team, &stored, done)?;
        Ok(self.adopt(memory.clone()).expect("it was made for them"))
    }

    /// Takes memory in which the same matrices, or equal ones, have been packed before, by the
    /// same [version](crate::PACKED_VERSION) of the layout. Gives it back if it is not as long
    /// as it would have to be.
    ///
    /// # Errors
    /// With the memory, when it is of another length; then nothing is changed.
    pub fn adopt(self, memory: Bytes) -> Result<Bytes, Bytes> {
        let Some(packed) = Packed::within(self.stored(), &memory) else {
            return Err(memory);
        };
        let mut packed = packed.into_iter();
        let mut done: Vec<Packed> = Vec::with_capacity(self.weights.len());
        for (i, (weight, first)) in self.weights.into_iter().zip(self.firsts).enumerate() {
            let here = match first == i {
                true => packed.next().expect("one for each that is stored"),
                false => done[first].clone(),
            };
            done.push(here.clone());
            *weight = Weight::Packed(here);
        }
        Ok(memory)
    }
}

impl Weight {
    /// Whether both are the same memory.
    pub fn is(&self, other: &Weight) -> bool {
        let facts = |w: &Weight| (w.is_packed(), w.place(), w.dtype(), w.rows(), w.cols());
        facts(self) == facts(other)
    }

    /// Where its bytes lie.
    pub fn place(&self) -> *const u8 {
        match self {
            Weight::Stored(w) => w.bytes().as_ptr(),
            Weight::Packed(w) => w.place(),
        }
    }

    /// Decodes one row into `out`, of as many values as there are columns.
    ///
    /// # Panics
    /// When the row or the length of `out` is out of range.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        match self {
            Weight::Stored(w) => w.row(row, out),
            Weight::Packed(w) => w.row(row, out),
        }
    }

    /// Whether it is packed.
    pub fn is_packed(&self) -> bool {
        matches!(self, Weight::Packed(_))
    }

    /// Number of rows: the outputs of a product with this matrix.
    pub fn rows(&self) -> usize {
        match self {
            Weight::Stored(w) => w.rows(),
            Weight::Packed(w) => w.rows(),
        }
    }

    /// Values in a row: the inputs of a product with this matrix.
    pub fn cols(&self) -> usize {
        match self {
            Weight::Stored(w) => w.cols(),
            Weight::Packed(w) => w.cols(),
        }
    }

    /// The type of the file.
    pub fn dtype(&self) -> DType {
        match self {
            Weight::Stored(w) => w.dtype(),
            Weight::Packed(w) => w.dtype(),
        }
    }

    /// Bytes that a product with one row reads.
    pub fn bytes(&self) -> usize {
        match self {
            Weight::Stored(w) => w.bytes().len(),
            Weight::Packed(w) => w.bytes(),
        }
    }
}

impl From<Matrix> for Weight {
    fn from(stored: Matrix) -> Weight {
        Weight::Stored(stored)
    }
}
