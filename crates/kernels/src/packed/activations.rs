//! Rows of activations in the forms in which products of packed weights read them.

use std::ops::Range;

use crate::team::{Disjoint, Team};

use super::bits::ActivationBits;
use super::kernels::kernels;
use super::layout::GROUP;
use super::quantized::{GroupOut, Quantized};
use super::rounded::{Rounded, TILE};

/// Forms that rows take which are not rounded to bfloat16.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forms {
    /// Integers of up to 8 bits, for quantised weights.
    pub codes: bool,
    /// As they are, for weights of 16 bits.
    pub floats: bool,
    /// Blocks of more rows of integers are filled up to 16 where the machine has tiles for them.
    pub few: usize,
    /// Bits of the integers, and of what floats are rounded to; 8, and not at all, without.
    pub bits: Option<ActivationBits>,
    /// Two groups of 64 columns each share a scale, and the larger of their bits: what weights
    /// in blocks of 128 columns read.
    pub pairs: bool,
}

impl std::ops::BitOr for Forms {
    type Output = Forms;

    fn bitor(self, other: Forms) -> Forms {
        Forms {
            codes: self.codes || other.codes,
            floats: self.floats || other.floats,
            few: self.few.max(other.few),
            bits: ActivationBits::finest(self.bits.as_ref(), other.bits.as_ref()),
            pairs: self.pairs || other.pairs,
        }
    }
}

/// `[rows, cols]` activations, made once for all the matrices that read them: the first rows
/// exact, as f32 or as 8-bit integers, the others rounded to bfloat16. Keeps its memory from
/// use to use.
///
/// The first forms cost least where few rows read many weights; bfloat16 does where many rows
/// share weights that tiles multiply, since its sums need no scaling. Which rows take which
/// form is the caller's to say, so that a row's result depends on nothing but the row.
#[derive(Debug, Default)]
pub struct Activations {
    rows: usize,
    cols: usize,
    /// Rows that are not rounded.
    pub(super) exact: usize,
    forms: Forms,
    pub(super) integers: Quantized,
    /// `[exact][cols, padded to whole tiles]`.
    floats: Vec<f32>,
    /// See [`coarse`](Activations::coarse).
    coarse: Vec<f32>,
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

    /// Takes `x`, whole rows of `cols` values, the first `exact` of them in these forms. Of 8
    /// bits, the integers are the nearest to `127 · x / max|x|`, the maximum over 64 columns. Values that
    /// are not finite spoil the outputs of their row.
    ///
    /// # Panics
    /// When `x` is not whole rows, or has fewer than `exact`.
    pub fn fill(&mut self, team: &Team, x: &[f32], cols: usize, exact: usize, forms: Forms) {
        let rows = x.len() / cols.max(1);
        assert_eq!(x.len(), rows * cols, "x is not whole rows of {cols}");
        self.fill_with(team, (rows, cols), exact, forms, &|row, out: &mut [f32]| {
            out.copy_from_slice(&x[row * cols..][..cols]);
        });
    }

    /// Takes rows that `make` writes, on whichever thread converts them.
    ///
    /// # Panics
    /// When there are fewer rows than `exact`.
    pub fn fill_with(
        &mut self,
        team: &Team,
        (rows, cols): (usize, usize),
        exact: usize,
        forms: Forms,
        make: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        self.shape(rows, cols, exact);
        self.fill_exact(team, forms, make);
        let rest = rows - exact;
        self.rounded
            .fill_with(team, rest, cols, &|row, out| make(exact + row, out));
    }

    /// The same, and keeps the rows as they are in `kept`, `[rows, cols]`.
    ///
    /// # Panics
    /// When there are fewer rows than `exact`, or `kept` is of another size.
    pub fn fill_kept(
        &mut self,
        team: &Team,
        (rows, cols): (usize, usize),
        exact: usize,
        forms: Forms,
        make: &(dyn Fn(usize, &mut [f32]) + Sync),
        kept: &mut [f32],
    ) {
        assert_eq!(kept.len(), rows * cols, "the size of what is kept");
        let kept = Disjoint::new(kept);
        self.fill_with(team, (rows, cols), exact, forms, &|row, out| {
            make(row, out);
            // SAFETY: each row is made once, on one thread.
            let to = unsafe { kept.part(row * cols, cols) };
            to.copy_from_slice(&out[..cols]);
        });
    }

    /// Rounds whole rows of `cols` values to so many bits and back to f32, in pairs of groups or
    /// not, for [`coarse`](Activations::coarse).
    pub fn coarsen(
        &mut self,
        team: &Team,
        x: &[f32],
        cols: usize,
        (bits, pairs): (&ActivationBits, bool),
    ) {
        self.coarse.clear();
        self.coarse.extend_from_slice(x);
        team.for_rows(&mut self.coarse, cols, &|_, row| coarsen(row, bits, pairs));
    }

    /// The rows that [`coarsen`](Activations::coarsen) has rounded, as f32: what products of
    /// weights that are not packed read where activations have fewer than 8 bits.
    pub fn coarse(&self) -> &[f32] {
        &self.coarse
    }

    /// Takes a shape, of rounded rows that are to be written.
    pub(super) fn shape(&mut self, rows: usize, cols: usize, exact: usize) -> &mut Rounded {
        assert!(exact <= rows, "{exact} of {rows} rows");
        (self.rows, self.cols, self.exact) = (rows, cols, exact);
        self.rounded.shape(rows - exact, cols);
        &mut self.rounded
    }

    /// Takes the rows that are not rounded.
    pub(super) fn fill_exact(
        &mut self,
        team: &Team,
        forms: Forms,
        make: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        let (cols, exact, width) = (self.cols, self.exact, self.width());
        let bits = forms.bits.clone();
        if forms.floats {
            if self.floats.len() < exact * width {
                self.floats.resize(exact * width, 0.0);
            }
            let floats = &mut self.floats[..exact * width];
            team.for_rows(floats, width, &|row, out| {
                make(row, &mut out[..cols]);
                out[cols..].fill(0.0);
                if let Some(bits) = &bits {
                    coarsen(&mut out[..cols], bits, forms.pairs);
                }
            });
        }
        if forms.codes {
            let (floats, shape) = (&self.floats, (exact, cols));
            match forms.floats && bits.is_none() {
                true => self.integers.fill_with(team, shape, &forms, &|row, out| {
                    out.copy_from_slice(&floats[row * width..][..cols]);
                }),
                false => self.integers.fill_with(team, shape, &forms, make),
            }
        }
        self.forms = forms;
    }

    /// Columns with those that fill the last tile up.
    fn width(&self) -> usize {
        self.cols.next_multiple_of(TILE)
    }

    /// Some of the rows that are not rounded, as they are.
    pub(super) fn floats(&self, rows: Range<usize>) -> &[f32] {
        assert!(self.forms.floats && rows.end <= self.exact);
        &self.floats[rows.start * self.width()..rows.end * self.width()]
    }

    /// The rows that are not rounded, as integers.
    pub(super) fn integers(&self) -> &Quantized {
        assert!(self.forms.codes || self.exact == 0);
        &self.integers
    }
}

/// Rounds a row to so many bits and back.
pub(super) fn coarsen(row: &mut [f32], bits: &ActivationBits, pairs: bool) {
    let together = if pairs { 2 } else { 1 };
    for (i, row) in row.chunks_mut(together * GROUP).enumerate() {
        let mut x = [[0.0; GROUP]; 2];
        x.as_flattened_mut()[..row.len()].copy_from_slice(row);
        let (mut codes, mut scales) = ([[0; GROUP]; 2], [0.0; 2]);
        let (mut sums, mut slab_sums) = ([[0; 4]; 2], [[0.0; 2]; 2]);
        let ([a, b], [scale_a, scale_b]) = (&mut codes, &mut scales);
        let ([sums_a, sums_b], [slabs_a, slabs_b]) = (&mut sums, &mut slab_sums);
        let out = |codes, scale, sums, slab_sums| GroupOut {
            codes,
            scale,
            sums,
            slab_sums,
        };
        let mut outs = [
            out(a, scale_a, sums_a, slabs_a),
            out(b, scale_b, sums_b, slabs_b),
        ];
        let bits = bits.of_some(i * together, together);
        (kernels().quantize)(&x[..together], bits, &mut outs[..together]);
        for (x, code) in row.iter_mut().zip(codes.as_flattened()) {
            *x = f32::from(*code) * scales[0];
        }
    }
}
