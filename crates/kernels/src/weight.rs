//! A weight matrix in the form in which products read it: as it is stored, or packed.

use crate::{DType, Matrix, Packed, Team};

/// A weight matrix.
#[derive(Debug, Clone)]
pub enum Weight {
    /// As the file has it: decoded to f32 and multiplied with f32 activations. The reference,
    /// and the way of the plain types.
    Stored(Matrix),
    /// Packed: multiplied with 8-bit activations.
    Packed(Packed),
}

impl Weight {
    /// Packs a stored matrix of a quantised type; leaves others as they are. What it was made
    /// of is handed to `done`, once nothing reads it any more.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn pack(&mut self, team: &Team, done: &mut dyn FnMut(Matrix)) -> std::io::Result<()> {
        let Weight::Stored(stored) = &*self else {
            return Ok(());
        };
        if let Some(packed) = Packed::pack(team, stored)?
            && let Weight::Stored(stored) = std::mem::replace(self, Weight::Packed(packed))
        {
            done(stored);
        }
        Ok(())
    }

    /// Whether products read 8-bit activations.
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
