//! A weight matrix in the form in which products read it: as it is stored, or packed.

use bytes::Bytes;

use crate::{DType, Matrix, Packed, Team, packs};

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
    /// Packs the stored matrices of quantised types; leaves others as they are. See
    /// [`Packed::pack`].
    ///
    /// # Errors
    /// When the memory cannot be had; then nothing is changed.
    pub fn pack(
        team: &Team,
        weights: Vec<&mut Weight>,
        done: &mut dyn FnMut(Bytes),
    ) -> std::io::Result<()> {
        let quantised = |w: &Weight| matches!(w, Weight::Stored(w) if packs(w.dtype()));
        let weights: Vec<_> = weights.into_iter().filter(|w| quantised(w)).collect();
        let stored: Vec<&Matrix> = weights
            .iter()
            .filter_map(|w| match w {
                Weight::Stored(w) => Some(w),
                Weight::Packed(_) => None,
            })
            .collect();
        let packed = Packed::pack(team, &stored, done)?;
        for (weight, packed) in weights.into_iter().zip(packed) {
            *weight = Weight::Packed(packed);
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
