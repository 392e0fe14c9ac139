//! Activations as integers of up to 8 bits, quantised once for all the matrices that read them.
//!
//! Of 3 to 8 bits, integers are those from −(2^(q−1) − 1) to 2^(q−1) − 1 and the largest value of
//! a group is the largest of them. Of 1 or 2 bits that would leave no levels but 0 for most: they
//! are bipolar, −1 and 1, or −3, −1, 1 and 3, times the scale that fits best, and their bits are
//! kept beside them for products of bits.
#![allow(clippy::needless_range_loop)] // one index walks several arrays of lanes

use crate::team::{Disjoint, Team};

use super::activations::Forms;
use super::bits::ActivationBits;
use super::kernels::kernels;
use super::layout::{GROUP, SLAB};

/// Rows of a whole block: the rows of a tile.
pub(crate) const BLOCK_ROWS: usize = 16;

/// Most bits of activations that are bipolar.
pub(crate) const BIPOLAR_BITS: usize = 2;

/// The bits of 32 columns, as those of weights lie in a plane: byte `column % 4`, bit `column / 4`.
pub(crate) type SlabBits = u32;

/// The bipolar bits of a group, `[plane][slab]`.
pub(crate) type GroupBits = [[SlabBits; GROUP / SLAB]; BIPOLAR_BITS];

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
    /// Without a list, all groups have 8.
    bits: Option<ActivationBits>,
    codes: Vec<GroupCodes>,
    /// `[group][row]`.
    scales: Vec<f32>,
    /// Sums of codes of 16 columns, `[group][row][4]`.
    sums: Vec<i32>,
    /// Sums of codes of 32 columns, `[group][row][2]`.
    slab_sums: Vec<f32>,
    /// `[group][row]` where all groups have 1 bit or all have 2; else empty.
    planes: Vec<GroupBits>,
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
    /// Bits of all groups, if they are alike; 8 where they are not.
    pub(crate) bits: usize,
    /// Empty but for activations of 1 or 2 bits.
    pub(crate) planes: &'a [GroupBits],
}

/// One group of one row, to be written.
pub(crate) struct GroupOut<'a> {
    pub(crate) codes: &'a mut [i8; GROUP],
    pub(crate) scale: &'a mut f32,
    pub(crate) sums: &'a mut [i32],
    pub(crate) slab_sums: &'a mut [f32],
}

/// The cells of a block of rows, to be written.
struct Cells<'a> {
    codes: &'a mut [GroupCodes],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
    slab_sums: &'a mut [f32],
}

impl Cells<'_> {
    /// Quantises one group of a row, or two that share a scale, into the cell `first` and the one
    /// `apart` from it.
    fn quantize(&mut self, x: &[[f32; GROUP]], bits: usize, first: usize, apart: usize) {
        let apart = apart.min(self.codes.len() - first);
        let (codes, more_codes) = self.codes[first..].split_at_mut(apart);
        let (scales, more_scales) = self.scales[first..].split_at_mut(apart);
        let (sums, more_sums) = self.sums[4 * first..].split_at_mut(4 * apart);
        let (slab_sums, more_slab_sums) = self.slab_sums[2 * first..].split_at_mut(2 * apart);
        let one = GroupOut {
            codes: &mut codes[0].0,
            scale: &mut scales[0],
            sums: &mut sums[..4],
            slab_sums: &mut slab_sums[..2],
        };
        if x.len() == 1 {
            return (kernels().quantize)(x, bits, &mut [one]);
        }
        let other = GroupOut {
            codes: &mut more_codes[0].0,
            scale: &mut more_scales[0],
            sums: &mut more_sums[..4],
            slab_sums: &mut more_slab_sums[..2],
        };
        (kernels().quantize)(x, bits, &mut [one, other]);
    }
}

impl Quantized {
    /// Rows of activations.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Bits of all groups, if they are alike.
    pub(crate) fn bits(&self) -> Option<usize> {
        self.bits.as_ref().map_or(Some(8), ActivationBits::alike)
    }

    /// Quantises rows that `make` writes, on whichever thread quantises them. Of 8 bits, the
    /// integer is the nearest to `127 · x / max|x|`, the maximum over the group; values that are
    /// not finite make their group's outputs NaN.
    pub(crate) fn fill_with(
        &mut self,
        team: &Team,
        (rows, cols): (usize, usize),
        forms: &Forms,
        make: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        (self.rows, self.cols, self.few) = (rows, cols, forms.few);
        self.bits = forms.bits.clone();
        let together = if forms.pairs { 2 } else { 1 };
        let alike = self.bits().filter(|&bits| bits <= BIPOLAR_BITS);
        let (groups, heights) = (self.groups(), self.padded_rows());
        let cells = groups * heights;
        self.codes.resize(cells, GroupCodes([0; GROUP]));
        self.scales.resize(cells, 0.0);
        self.sums.resize(cells * 4, 0);
        self.slab_sums.resize(cells * 2, 0.0);
        let bits = self.bits.as_ref();
        let planes = if alike.is_some() { cells } else { 0 };
        self.planes.resize(planes, GroupBits::default());
        let (codes, scales) = (
            Disjoint::new(&mut self.codes),
            Disjoint::new(&mut self.scales),
        );
        let sums = Disjoint::new(&mut self.sums);
        let slab_sums = Disjoint::new(&mut self.slab_sums);
        let planes = Disjoint::new(&mut self.planes);
        team.run(heights.div_ceil(BLOCK_ROWS), &|block| {
            let first = block * BLOCK_ROWS;
            let height = BLOCK_ROWS.min(heights - first);
            let (start, len) = (first * groups, height * groups);
            let with_planes = if alike.is_some() { len } else { 0 };
            // SAFETY: each task writes the cells of its own block.
            let (codes, scales, sums, slab_sums, planes) = unsafe {
                (
                    codes.part(start, len),
                    scales.part(start, len),
                    sums.part(start * 4, len * 4),
                    slab_sums.part(start * 2, len * 2),
                    planes.part(if alike.is_some() { start } else { 0 }, with_planes),
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
                    let some = values.as_chunks::<GROUP>().0.chunks_exact(together);
                    for (i, values) in some.enumerate() {
                        let first = i * together;
                        let bits = bits.map_or(8, |bits| bits.of_some(first, together));
                        let mut to = Cells {
                            codes: &mut *codes,
                            scales: &mut *scales,
                            sums: &mut *sums,
                            slab_sums: &mut *slab_sums,
                        };
                        to.quantize(values, bits, first * height + row, height);
                        for group in first..first + together {
                            let cell = group * height + row;
                            if let (Some(bits), Some(planes)) = (alike, planes.get_mut(cell)) {
                                *planes = planes_of(bits, &codes[cell].0);
                            }
                        }
                    }
                }
            });
        });
    }

    /// Groups of a row: as many as units of 256 columns have, the last of zeros if need be.
    pub(crate) fn groups(&self) -> usize {
        self.cols.div_ceil(4 * GROUP) * 4
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
            bits: self.bits().unwrap_or(8),
            planes: self.planes.get(start..start + len).unwrap_or_default(),
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

/// From the largest magnitude of a group, which is infinite or NaN if any value is, and the
/// largest integer.
#[inline(always)]
pub(crate) fn factors(largest: f32, top: f32) -> Factors {
    let inverse = top / largest;
    let (scale, inverse) = if !largest.is_finite() {
        (f32::NAN, 0.0)
    } else if inverse.is_finite() {
        (largest / top, inverse)
    } else {
        // Zero, or subnormal: nothing beside other values.
        (0.0, 0.0)
    };
    Factors { scale, inverse }
}

/// The largest integer of so many bits, 3 to 8.
#[inline(always)]
pub(crate) fn top(bits: usize) -> f32 {
    ((1 << (bits - 1)) - 1) as f32
}

/// The definition of quantisation, of one group or two that share a scale.
#[inline(always)]
pub(crate) fn quantize_groups(x: &[[f32; GROUP]], bits: usize, outs: &mut [GroupOut<'_>]) {
    // As integers, magnitudes are in order, and what is not finite is above all else.
    let all = x.as_flattened().iter();
    let largest = f32::from_bits(all.fold(0, |max, x| max.max(x.abs().to_bits())));
    if bits <= BIPOLAR_BITS {
        bipolar_groups(x, bits, largest, outs);
    } else {
        let factors = factors(largest, top(bits));
        let finite = factors.scale.is_finite();
        for (x, out) in x.iter().zip(&mut *outs) {
            *out.scale = factors.scale;
            for (code, x) in out.codes.iter_mut().zip(x) {
                let x = if finite { *x } else { 0.0 };
                *code = (x * factors.inverse).round_ties_even() as i32 as i8;
            }
        }
    }
    for out in outs {
        for (sum, codes) in out.sums.iter_mut().zip(out.codes.as_chunks::<16>().0) {
            *sum = codes.iter().map(|&c| i32::from(c)).sum();
        }
        for (slab, sums) in out.slab_sums.iter_mut().zip(out.sums.as_chunks::<2>().0) {
            *slab = (sums[0] + sums[1]) as f32;
        }
    }
}

/// Bipolar integers and their scale: first the nearest for the scale that is best for normal
/// values, then the best scale for these integers. Zeros, which fill rows up, do not count. Sums
/// run over lanes of 16.
#[inline(always)]
fn bipolar_groups(x: &[[f32; GROUP]], bits: usize, largest: f32, outs: &mut [GroupOut<'_>]) {
    /// Added to a number and taken away again, it leaves the nearest integer.
    const WHOLE: f32 = 12_582_912.0;
    let (mut sums, mut counts) = ([0.0f32; 16], [0.0f32; 16]);
    for x in x.as_flattened().as_chunks::<16>().0 {
        for i in 0..16 {
            sums[i] += x[i].abs();
            counts[i] += if x[i] == 0.0 { 0.0 } else { 1.0 };
        }
    }
    let mean = sums.iter().sum::<f32>() / counts.iter().sum::<f32>();
    // Max (1960): the best four levels of normal values are ±0.498 and ±1.494 deviations.
    let (top, first) = match bits {
        1 => (1.0, mean),
        _ => (3.0, 0.624 * mean),
    };
    let inverse = 0.5 / first;
    if !largest.is_finite() || !inverse.is_finite() {
        // Not finite, or zero, or nothing beside other values.
        let scale = if largest.is_finite() { 0.0 } else { f32::NAN };
        for out in outs {
            out.codes.fill(-1);
            *out.scale = scale;
        }
        return;
    }
    let (mut xv, mut vv) = ([0.0f32; 16], [0.0f32; 16]);
    for (x, out) in x.iter().zip(&mut *outs) {
        let chunks = out.codes.as_chunks_mut::<16>().0.iter_mut();
        for (x, codes) in x.as_chunks::<16>().0.iter().zip(chunks) {
            for i in 0..16 {
                let code = (x[i] * inverse + 0.5 * top).clamp(0.0, top);
                let v = 2.0 * (code + WHOLE - WHOLE) - top;
                codes[i] = v as i32 as i8;
                xv[i] += x[i] * v;
                vv[i] += if x[i] == 0.0 { 0.0 } else { v * v };
            }
        }
    }
    let scale = xv.iter().sum::<f32>() / vv.iter().sum::<f32>();
    for out in outs {
        *out.scale = scale;
    }
}

/// The bits of bipolar integers.
#[inline(always)]
fn planes_of(bits: usize, codes: &[i8; GROUP]) -> GroupBits {
    let top = (1 << bits) - 1;
    let mut planes = GroupBits::default();
    for (slab, codes) in codes.as_chunks::<SLAB>().0.iter().enumerate() {
        for (i, four) in codes.as_chunks::<4>().0.iter().enumerate() {
            let four = u32::from_le_bytes(four.map(|v| ((v + top) / 2) as u8));
            for (plane, words) in planes.iter_mut().enumerate().take(bits) {
                words[slab] |= (four >> plane & 0x0101_0101) << i;
            }
        }
    }
    planes
}
