//! A weight matrix: rows of stored values over shared, often memory-mapped, bytes.
//! Cloning and slicing by rows share the bytes.

use std::ops::Range;

use bytes::Bytes;

use crate::DType;
use crate::isa::isa;

/// Why bytes do not form a matrix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MatrixError {
    /// A row does not fill whole blocks of the type.
    #[error("a row of {cols} values does not fill whole {dtype} blocks of {}", dtype.block_len())]
    Blocks {
        /// Stored type.
        dtype: DType,
        /// Values in a row.
        cols: usize,
    },
    /// The buffer's size is not that of the shape.
    #[error("{rows} × {cols} values of {dtype} take {expected} bytes; the buffer has {found}")]
    Size {
        /// Stored type.
        dtype: DType,
        /// Rows.
        rows: usize,
        /// Values in a row.
        cols: usize,
        /// Bytes needed (saturated when the product overflows).
        expected: usize,
        /// Bytes given.
        found: usize,
    },
}

/// `[rows, cols]` values, row-major, each row whole blocks of `dtype`.
#[derive(Debug, Clone)]
pub struct Matrix {
    dtype: DType,
    rows: usize,
    cols: usize,
    data: Bytes,
}

impl Matrix {
    /// Wraps bytes that hold `[rows, cols]` values.
    ///
    /// # Errors
    /// When the size or block length does not fit the shape.
    pub fn new(dtype: DType, rows: usize, cols: usize, data: Bytes) -> Result<Matrix, MatrixError> {
        let row = dtype
            .bytes_for(cols)
            .ok_or(MatrixError::Blocks { dtype, cols })?;
        let expected = row.saturating_mul(rows);
        if expected != data.len() {
            return Err(MatrixError::Size {
                dtype,
                rows,
                cols,
                expected,
                found: data.len(),
            });
        }
        Ok(Matrix {
            dtype,
            rows,
            cols,
            data,
        })
    }

    /// A matrix of f32 values that owns its bytes; `values.len()` must be `rows * cols`.
    ///
    /// # Errors
    /// When the sizes differ.
    pub fn from_f32(rows: usize, cols: usize, values: &[f32]) -> Result<Matrix, MatrixError> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Matrix::new(DType::F32, rows, cols, bytes.into())
    }

    /// Stored type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of rows: the outputs of a product with this matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row: the inputs of a product with this matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All bytes, row after row.
    pub fn bytes(&self) -> &Bytes {
        &self.data
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.cols / self.dtype.block_len() * self.dtype.block_bytes()
    }

    /// The matrix of these rows, sharing the bytes.
    ///
    /// # Panics
    /// When the range is not within the rows.
    pub fn slice_rows(&self, rows: Range<usize>) -> Matrix {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        let row = self.row_bytes();
        Matrix {
            dtype: self.dtype,
            rows: rows.len(),
            cols: self.cols,
            data: self.data.slice(rows.start * row..rows.end * row),
        }
    }

    /// Decodes one row into `out`, of `cols` values.
    ///
    /// # Panics
    /// When the row or the length of `out` is out of range.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols);
        let size = self.row_bytes();
        (isa().decode)(self.dtype, &self.data[row * size..(row + 1) * size], out);
    }
}
