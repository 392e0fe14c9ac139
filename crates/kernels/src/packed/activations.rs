//! Rows of activations in the forms in which products of packed weights read them.

use crate::team::Team;

use super::quantized::Quantized;
use super::rounded::Rounded;

/// `[rows, cols]` activations, made once for all the matrices that read them: the first rows as
/// 8-bit integers, the others rounded to bfloat16. Keeps its memory from use to use.
///
/// Integers cost least where few rows read many weights; bfloat16 does where many rows share
/// weights that tiles multiply, since its sums need no scaling. Which rows take which form is
/// the caller's to say, so that a row's result depends on nothing but the row.
#[derive(Debug, Default)]
pub struct Activations {
    rows: usize,
    cols: usize,
    pub(super) integers: Quantized,
    pub(super) rounded: Rounded,
}

impl Activations {
    /// Rows of activations.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Takes `x`, whole rows of `cols` values: the first `integers` of them as integers, the
    /// nearest to `127 · x / max|x|` with the maximum over 64 columns. Values that are not finite
    /// spoil the outputs of their row.
    ///
    /// # Panics
    /// When `x` is not whole rows, or has fewer than `integers`.
    pub fn fill(&mut self, team: &Team, x: &[f32], cols: usize, integers: usize) {
        let rows = x.len() / cols.max(1);
        assert_eq!(x.len(), rows * cols, "x is not whole rows of {cols}");
        self.fill_with(team, (rows, cols), integers, &|row, out: &mut [f32]| {
            out.copy_from_slice(&x[row * cols..][..cols]);
        });
    }

    /// Takes a shape, of rounded rows that are to be written.
    pub(super) fn shape(&mut self, rows: usize, cols: usize, integers: usize) -> &mut Rounded {
        assert!(integers <= rows, "{integers} of {rows} rows");
        (self.rows, self.cols) = (rows, cols);
        self.rounded.shape(rows - integers, cols);
        &mut self.rounded
    }

    /// Takes rows that `make` writes, on whichever thread converts them.
    ///
    /// # Panics
    /// When there are fewer rows than `integers`.
    pub fn fill_with(
        &mut self,
        team: &Team,
        (rows, cols): (usize, usize),
        integers: usize,
        make: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        self.shape(rows, cols, integers);
        self.integers.fill_with(team, integers, cols, make);
        let rest = rows - integers;
        self.rounded
            .fill_with(team, rest, cols, &|row, out| make(integers + row, out));
    }
}
