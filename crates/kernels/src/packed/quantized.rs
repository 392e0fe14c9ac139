//! Activations as 8-bit integers, quantised once for all the matrices that read them.

use crate::team::{Disjoint, Team};

use super::kernels::kernels;
use super::layout::GROUP;

/// Rows of a whole block: the rows of a tile.
pub(crate) const BLOCK_ROWS: usize = 16;

/// `[rows, cols]` activations: for each group of 64 columns of a row, integers −127 to 127 and
/// the f32 that multiplies them. Keeps its memory from use to use.
///
/// Rows lie in blocks of 16, the last one lower; in a block, the groups of all its rows follow
/// each other: `[group][row][64]`. A block of one row is that row.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Quantized {
    rows: usize,
    cols: usize,
    /// A last block of more rows is filled up to a whole one, since a tile costs the same.
    few: usize,
    codes: Vec<GroupCodes>,
    /// `[group][row]`.
    scales: Vec<f32>,
    /// Sums of codes of 16 columns, `[group][row][4]`.
    sums: Vec<i32>,
    /// Sums of codes of 32 columns, `[group][row][2]`.
    slab_sums: Vec<f32>,
}

/// A row's integers of one group: a cache line.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct GroupCodes(pub(crate) [i8; GROUP]);

/// A block of rows: what a kernel reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowBlock<'a> {
    pub(crate) height: usize,
    pub(crate) codes: &'a [GroupCodes],
    pub(crate) scales: &'a [f32],
    pub(crate) sums: &'a [i32],
    pub(crate) slab_sums: &'a [f32],
}

/// One group of one row, to be written.
pub(crate) struct GroupOut<'a> {
    pub(crate) codes: &'a mut [i8; GROUP],
    pub(crate) scale: &'a mut f32,
    pub(crate) sums: &'a mut [i32],
    pub(crate) slab_sums: &'a mut [f32],
}

impl Quantized {
    /// Rows of activations.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Quantises rows that `make` writes, on whichever thread quantises them. The integer is the
    /// nearest to `127 · x / max|x|`, the maximum over the group; values that are not finite make
    /// their group's outputs NaN.
    pub(crate) fn fill_with(
        &mut self,
        team: &Team,
        rows: usize,
        cols: usize,
        few: usize,
        make: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        (self.rows, self.cols, self.few) = (rows, cols, few);
        let (groups, heights) = (self.groups(), self.padded_rows());
        let cells = groups * heights;
        self.codes.resize(cells, GroupCodes([0; GROUP]));
        self.scales.resize(cells, 0.0);
        self.sums.resize(cells * 4, 0);
        self.slab_sums.resize(cells * 2, 0.0);
        let (codes, scales) = (
            Disjoint::new(&mut self.codes),
            Disjoint::new(&mut self.scales),
        );
        let sums = Disjoint::new(&mut self.sums);
        let slab_sums = Disjoint::new(&mut self.slab_sums);
        team.run(heights.div_ceil(BLOCK_ROWS), &|block| {
            let first = block * BLOCK_ROWS;
            let height = BLOCK_ROWS.min(heights - first);
            let (start, len) = (first * groups, height * groups);
            // SAFETY: each task writes the cells of its own block.
            let (codes, scales, sums, slab_sums) = unsafe {
                (
                    codes.part(start, len),
                    scales.part(start, len),
                    sums.part(start * 4, len * 4),
                    slab_sums.part(start * 2, len * 2),
                )
            };
            ROW.with_borrow_mut(|values| {
                values.clear();
                values.resize(groups * GROUP, 0.0);
                for row in 0..height {
                    if first + row < rows {
                        make(first + row, &mut values[..cols]);
                    } else {
                        values.fill(0.0);
                    }
                    for (group, values) in values.as_chunks::<GROUP>().0.iter().enumerate() {
                        let cell = group * height + row;
                        (kernels().quantize)(
                            values,
                            GroupOut {
                                codes: &mut codes[cell].0,
                                scale: &mut scales[cell],
                                sums: &mut sums[cell * 4..][..4],
                                slab_sums: &mut slab_sums[cell * 2..][..2],
                            },
                        );
                    }
                }
            });
        });
    }

    /// Groups of a row: an even number, as the units of all types have, the last of zeros if
    /// need be.
    pub(crate) fn groups(&self) -> usize {
        self.cols.div_ceil(2 * GROUP) * 2
    }

    /// Rows with those that fill the last block up.
    pub(crate) fn padded_rows(&self) -> usize {
        match self.rows % BLOCK_ROWS > self.few {
            true => self.rows.next_multiple_of(BLOCK_ROWS),
            false => self.rows,
        }
    }

    pub(crate) fn blocks(&self) -> usize {
        self.padded_rows().div_ceil(BLOCK_ROWS)
    }

    pub(crate) fn block(&self, block: usize) -> RowBlock<'_> {
        let first = block * BLOCK_ROWS;
        let height = BLOCK_ROWS.min(self.padded_rows() - first);
        let (start, len) = (first * self.groups(), height * self.groups());
        RowBlock {
            height,
            codes: &self.codes[start..][..len],
            scales: &self.scales[start..][..len],
            sums: &self.sums[start * 4..][..len * 4],
            slab_sums: &self.slab_sums[start * 2..][..len * 2],
        }
    }
}

thread_local! {
    /// A row before it is quantised.
    static ROW: std::cell::RefCell<Vec<f32>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// How a group is quantised.
pub(crate) struct Factors {
    /// Multiplies the integers; NaN for a group that is not finite.
    pub(crate) scale: f32,
    /// Multiplies the values.
    pub(crate) inverse: f32,
}

/// From the largest magnitude of a group, which is infinite or NaN if any value is.
#[inline(always)]
pub(crate) fn factors(largest: f32) -> Factors {
    let inverse = 127.0 / largest;
    let (scale, inverse) = if !largest.is_finite() {
        (f32::NAN, 0.0)
    } else if inverse.is_finite() {
        (largest / 127.0, inverse)
    } else {
        // Zero, or subnormal: nothing beside other values.
        (0.0, 0.0)
    };
    Factors { scale, inverse }
}

/// The definition of quantisation.
#[inline(always)]
pub(crate) fn quantize_group(x: &[f32; GROUP], out: GroupOut<'_>) {
    // As integers, magnitudes are in order, and what is not finite is above all else.
    let largest = x.iter().fold(0, |max, x| max.max(x.abs().to_bits()));
    let factors = factors(f32::from_bits(largest));
    *out.scale = factors.scale;
    let finite = factors.scale.is_finite();
    for (code, x) in out.codes.iter_mut().zip(x) {
        let x = if finite { *x } else { 0.0 };
        *code = (x * factors.inverse).round_ties_even() as i32 as i8;
    }
    for (sum, codes) in out.sums.iter_mut().zip(out.codes.as_chunks::<16>().0) {
        *sum = codes.iter().map(|&c| i32::from(c)).sum();
    }
    for (slab, sums) in out.slab_sums.iter_mut().zip(out.sums.as_chunks::<2>().0) {
        *slab = (sums[0] + sums[1]) as f32;
    }
}
