//! Low-rank factors in memory, in the order in which they are read.

use std::collections::HashMap;

use bytes::Bytes;

use crate::{Arena, DType, Matrix};

/// Columns that lie together.
pub(crate) const LANES: usize = 16;

/// A low-rank factor `[rank, cols]` in the order in which it is read, from start to end: its rank
/// is cut into blocks of eight, four, two or one rows, and a block has sixteen columns of all its
/// rows together. Cloning shares the bytes.
#[derive(Debug, Clone)]
pub struct Factor {
    dtype: DType,
    rank: usize,
    cols: usize,
    /// From a cache line on.
    data: Bytes,
}

impl From<Matrix> for Factor {
    /// # Panics
    /// When the matrix is of another type than f32, f16 or bf16.
    fn from(matrix: Matrix) -> Factor {
        let (rank, cols) = (matrix.rows(), matrix.cols());
        let size = size_of_value(matrix.dtype());
        let width = cols.next_multiple_of(LANES);
        let mut data = vec![0; rank * width * size + 63];
        let start = data.as_ptr().align_offset(64).min(63);
        let mut to = data[start..].chunks_exact_mut(LANES * size);
        for (first, height) in blocks(rank) {
            for chunk in 0..width / LANES {
                for row in first..first + height {
                    let here = chunk * LANES..cols.min((chunk + 1) * LANES);
                    let from = (row * cols + here.start) * size..(row * cols + here.end) * size;
                    let to = to.next().expect("a place for each row's columns");
                    to[..from.len()].copy_from_slice(&matrix.bytes()[from]);
                }
            }
        }
        Factor {
            dtype: matrix.dtype(),
            rank,
            cols,
            data: Bytes::from(data).slice(start..start + rank * width * size),
        }
    }
}

impl Factor {
    /// Stored type: f32, f16 or bf16.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rank
    }

    /// Values in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// What it takes in memory.
    pub fn bytes(&self) -> &Bytes {
        &self.data
    }

    /// The same in an arena, as long as there is room. What shares memory shares it there too:
    /// `kept` remembers what was moved from where.
    pub fn kept_in(&self, arena: &Arena, kept: &mut HashMap<*const u8, Bytes>) -> Factor {
        let data = match kept.get(&self.data.as_ptr()) {
            Some(data) => data.clone(),
            None => {
                let data = arena.keep(&self.data).unwrap_or_else(|| self.data.clone());
                kept.insert(self.data.as_ptr(), data.clone());
                data
            }
        };
        Factor {
            data,
            ..self.clone()
        }
    }

    /// A value.
    ///
    /// # Panics
    /// When row or column is out of range.
    pub fn get(&self, row: usize, col: usize) -> f32 {
        assert!(col < self.cols, "column {col} of {}", self.cols);
        let (start, stride) = self.place(row);
        let at = start + col / LANES * stride + col % LANES;
        match self.values() {
            Values::F32(x) => x[at],
            Values::F16(x) => of_f16(x[at]),
            Values::Bf16(x) => of_bf16(x[at]),
        }
    }

    /// Decodes one row into `out`, of as many values as there are columns.
    ///
    /// # Panics
    /// When the row or the length of `out` is out of range.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols);
        let place = self.place(row);
        match self.values() {
            Values::F32(x) => gather(x, place, out, |v| v),
            Values::F16(x) => gather(x, place, out, of_f16),
            Values::Bf16(x) => gather(x, place, out, of_bf16),
        }
    }

    /// Where the first sixteen columns of a row lie, and how far it is to the next ones.
    fn place(&self, row: usize) -> (usize, usize) {
        assert!(row < self.rank, "row {row} of {}", self.rank);
        let mut blocks = blocks(self.rank);
        let found = blocks.find(|(first, height)| row < first + height);
        let (first, height) = found.expect("the blocks hold all rows");
        let start = first * self.cols.next_multiple_of(LANES) + (row - first) * LANES;
        (start, height * LANES)
    }

    pub(crate) fn values(&self) -> Values<'_> {
        // Stored values are little-endian, as the machines are that this is compiled for.
        const { assert!(cfg!(target_endian = "little")) };
        let (start, len) = (
            self.data.as_ptr(),
            self.data.len() / size_of_value(self.dtype),
        );
        assert!((start as usize).is_multiple_of(align_of::<f32>()));
        // SAFETY, of the three: so many values of the type are there and live as long as the
        // factor does; they are aligned; every bit pattern is a value.
        match self.dtype {
            // SAFETY: as above.
            DType::F32 => Values::F32(unsafe { std::slice::from_raw_parts(start.cast(), len) }),
            // SAFETY: as above.
            DType::F16 => Values::F16(unsafe { std::slice::from_raw_parts(start.cast(), len) }),
            // SAFETY: as above.
            _ => Values::Bf16(unsafe { std::slice::from_raw_parts(start.cast(), len) }),
        }
    }
}

fn of_f16(bits: u16) -> f32 {
    half::f16::from_bits(bits).to_f32()
}

fn of_bf16(bits: u16) -> f32 {
    half::bf16::from_bits(bits).to_f32()
}

/// Reads sixteen columns at a time.
fn gather<T: Copy>(
    values: &[T],
    (start, stride): (usize, usize),
    out: &mut [f32],
    decode: impl Fn(T) -> f32,
) {
    for (chunk, out) in out.chunks_mut(LANES).enumerate() {
        let values = &values[start + chunk * stride..];
        for (out, &value) in out.iter_mut().zip(values) {
            *out = decode(value);
        }
    }
}

fn size_of_value(dtype: DType) -> usize {
    match dtype {
        DType::F32 => 4,
        DType::F16 | DType::BF16 => 2,
        other => panic!("a factor of type {other}"),
    }
}

/// The first row and the height of each block of a rank.
pub(crate) fn blocks(rank: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let height = match rank - first {
            0 => return None,
            left => [8, 4, 2, 1].into_iter().find(|&h| h <= left)?,
        };
        first += height;
        Some((first - height, height))
    })
}

/// A factor's values as their type.
#[derive(Clone, Copy)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    F16(&'a [u16]),
    Bf16(&'a [u16]),
}
