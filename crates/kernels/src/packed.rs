//! Packed weights: products of activations with quantised weights.
//!
//! Weights are repacked once, at load, from the blocks of their file into strips of 16 rows
//! ([`layout`]); activations are converted once per use, whatever reads them ([`Activations`]):
//! to 8-bit integers, or, where many rows meet tiles, to bfloat16 ([`rounded`]).
//!
//! **Every kernel of integers gives the same bits.** The products of a block are integers, so
//! their order does not matter; what is rounded is fixed, for each output, by this sequence:
//!
//! ```text
//! for each group of 64 columns:                    of 128 where blocks are of 128
//!     t = 0
//!     for each block of the group:
//!         t = fma(Σ code·x, scale, t)              Σ over the block, exact, (code − zero) · x
//!         t = fma(−minimum, Σ x, t)                where the type has minima
//!     sum = fma(t, activation scale, sum)
//! ```
//!
//! Therefore a kernel may be chosen by speed alone, and a row's result does not depend on the
//! rows beside it.
#![allow(clippy::needless_range_loop)] // one index walks several arrays of vectors

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod amx_rounded;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bits;
mod choice;
pub(crate) mod codes;
pub(crate) mod halves;
pub(crate) mod kernels;
pub(crate) mod layout;
pub(crate) mod panel;
mod portable;
mod product;
mod quantized;
mod rounded;
mod serial;
mod share;
#[cfg(test)]
mod tests;

pub use activations::{Activations, Forms};
pub use bits::{ActivationBits, BitsError};
pub use kernels::{packed_kernels, rounds_fast};
pub use product::{Product, gated_product, products, vector_products};

use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;
use half::f16;
use memmap2::MmapMut;

use crate::stack::{Stack, StripWork};
use crate::{DType, Matrix, Team};
use codes::RowUnit;
use halves::is_half;
use kernels::kernels;
use layout::{Facts, Format, SLAB, STRIP, facts};
use panel::Panel;

/// A weight matrix in strips of 16 rows. Cloning shares the bytes.
#[derive(Debug, Clone)]
pub struct Packed {
    dtype: DType,
    rows: usize,
    cols: usize,
    strips: Strips,
}

/// Where strips come from.
#[derive(Debug, Clone)]
enum Strips {
    /// Strip after strip; each starts on a cache line.
    Packed(Bytes),
    /// Rebuilt where they are read, as strips of q8_0.
    Stacked(Arc<Stack>),
}

/// Number of the layout: packed bytes of another one are not understood.
pub const PACKED_VERSION: u32 = 2;

/// Whether matrices of this type can be packed, and are better for it on this machine.
pub fn packs(dtype: DType) -> bool {
    facts(dtype).is_some() && (!is_half(dtype) || kernels().halves.is_some())
}

impl Packed {
    /// Repacks matrices of quantised types on all threads, all into one run of memory. Stored
    /// bytes are handed to `done` piece by piece, as soon as they have been read for the last
    /// time, so that their memory can be given back before more is taken.
    ///
    /// # Errors
    /// When the memory cannot be had.
    ///
    /// # Panics
    /// When a matrix is of a type that is not packed; see [`packs`].
    pub fn pack(
        team: &Team,
        stored: &[&Matrix],
        done: &mut dyn FnMut(Bytes),
    ) -> std::io::Result<Bytes> {
        let total: usize = stored.iter().map(|w| packed_bytes(w)).sum();
        let mut memory = MmapMut::map_anon(total.max(1))?;
        // Fewer, larger pages: a decode step walks through all of them. A hint; it may fail.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        let mut rest = &mut memory[..total];
        for w in stored {
            let (out, after) = rest.split_at_mut(packed_bytes(w));
            pack_matrix(team, w, out, done);
            rest = after;
        }
        let types = stored.iter().map(|w| w.dtype());
        for dtype in types.filter(|d| !is_half(*d)) {
            choice::choice(dtype, 8); // measured now, not in the first step
        }
        Ok(Bytes::from_owner(memory).slice(..total))
    }

    /// The matrices that [`pack`](Packed::pack) has put into some memory; `None` if it is not as
    /// long as it would have to be.
    ///
    /// # Panics
    /// When a matrix is of a type that is not packed.
    pub fn within<'a>(
        stored: impl Iterator<Item = &'a Matrix>,
        memory: &Bytes,
    ) -> Option<Vec<Packed>> {
        let mut start = 0;
        let mut all = Vec::new();
        for w in stored {
            let end = start + packed_bytes(w);
            if end > memory.len() {
                return None;
            }
            all.push(Packed {
                dtype: w.dtype(),
                rows: w.rows(),
                cols: w.cols(),
                strips: Strips::Packed(memory.slice(start..end)),
            });
            start = end;
        }
        (start == memory.len()).then_some(all)
    }

    /// A matrix whose strips are rebuilt from a stack's blocks where they are read. Its values are
    /// those of the stack, rounded to the codes of q8_0.
    pub fn stacked(stack: Arc<Stack>) -> Packed {
        choice::choice(DType::Q8_0, 8); // measured now, not in the first step
        Packed {
            dtype: DType::Q8_0,
            rows: stack.rows(),
            cols: stack.cols(),
            strips: Strips::Stacked(stack),
        }
    }

    /// The stack that its strips are rebuilt from, if they are.
    pub fn stack(&self) -> Option<&Arc<Stack>> {
        match &self.strips {
            Strips::Stacked(stack) => Some(stack),
            Strips::Packed(_) => None,
        }
    }

    /// The type that was packed; q8_0 of what is rebuilt.
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

    /// Where it lies.
    pub(crate) fn place(&self) -> *const u8 {
        match &self.strips {
            Strips::Packed(data) => data.as_ptr(),
            Strips::Stacked(stack) => Arc::as_ptr(stack).cast(),
        }
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        match &self.strips {
            Strips::Packed(data) => data.len(),
            Strips::Stacked(stack) => stack.bytes(),
        }
    }

    /// Decodes one row into `out`, of `cols` values: the values of the stored matrix, bit for bit.
    ///
    /// # Panics
    /// When the row or the length of `out` is out of range.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols);
        let lane = row % STRIP;
        if is_half(self.dtype) {
            return self.with_strip(row / STRIP, |strip| {
                halves::row(self.dtype, strip, lane, out);
            });
        }
        ROW_PANEL.with_borrow_mut(|panel| {
            self.with_strip(row / STRIP, |strip| {
                (kernels().unpack)(self.dtype, strip, false, panel);
            });
            for (column, out) in out.iter_mut().enumerate() {
                let code = panel.codes[column / 4].0[lane * 4 + column % 4];
                let block = column / panel.block;
                *out = panel.scales[block][lane] * (i32::from(code) - panel.zero) as f32;
                if let Some(minima) = panel.minima.get(block) {
                    *out -= minima[lane];
                }
            }
        });
    }

    /// In which forms a product reads the rows of activations that are not rounded, quantised to
    /// so many bits if it says so.
    pub fn forms(&self, bits: Option<&ActivationBits>) -> Forms {
        let floats = is_half(self.dtype);
        Forms {
            codes: !floats,
            floats,
            few: match floats {
                true => 0,
                false => choice::choice(self.dtype, choice::bits_of(bits)).unfilled(),
            },
            bits: bits.cloned(),
            pairs: self.dtype.bipolar_bits().is_some(),
        }
    }

    /// The name of the kernels that multiply so many rows of integers of so many bits with it.
    pub fn kernels(&self, rows: usize, bits: Option<&ActivationBits>) -> &'static str {
        if is_half(self.dtype) {
            return kernels().name;
        }
        let choice = choice::choice(self.dtype, choice::bits_of(bits));
        let few = rows <= choice.few_rows || choice.few_rows == quantized::BLOCK_ROWS;
        if few { choice.few } else { choice.many }.name
    }

    pub(crate) fn strips(&self) -> usize {
        self.rows.div_ceil(STRIP)
    }

    /// Lends a strip, rebuilt if need be.
    pub(crate) fn with_strip<T>(&self, strip: usize, f: impl FnOnce(&[u8]) -> T) -> T {
        match &self.strips {
            Strips::Packed(data) => {
                let size = self.strip_bytes();
                f(&data[strip * size..(strip + 1) * size])
            }
            Strips::Stacked(stack) => REBUILT.with_borrow_mut(|work| {
                stack.rebuild(strip, work);
                f(&work.out)
            }),
        }
    }

    /// Whether its strips are rebuilt when they are read.
    pub(crate) fn is_stacked(&self) -> bool {
        matches!(self.strips, Strips::Stacked(_))
    }

    /// Bytes of a strip as products see it.
    pub(crate) fn strip_bytes(&self) -> usize {
        let facts = facts(self.dtype).expect("only such types are packed");
        strip_bytes(facts, self.cols)
    }
}

thread_local! {
    /// The strip that is rebuilt.
    static REBUILT: RefCell<StripWork> = RefCell::default();

    /// The strip of a row that is decoded.
    static ROW_PANEL: RefCell<Panel> = const { RefCell::new(Panel::new()) };
}

/// Bytes of a matrix when it is packed.
fn packed_bytes(w: &Matrix) -> usize {
    let facts = facts(w.dtype()).expect("the type is one that is packed");
    strip_bytes(facts, w.cols()) * w.rows().div_ceil(STRIP)
}

/// Bytes of stored weights that are packed before they are handed on.
const PIECE: usize = 4 << 20;

/// Packs a matrix into `out`.
fn pack_matrix(team: &Team, w: &Matrix, out: &mut [u8], done: &mut dyn FnMut(Bytes)) {
    let strip = out.len() / w.rows().div_ceil(STRIP).max(1);
    let row = w.row_bytes();
    let piece = (PIECE / (STRIP * row).max(1)).max(1);
    for (i, out) in out.chunks_mut(piece * strip).enumerate() {
        let rows = i * piece * STRIP..w.rows().min((i + 1) * piece * STRIP);
        let bytes = w.bytes().slice(rows.start * row..rows.end * row);
        team.for_rows(out, strip, &|s, out| {
            let from = s * STRIP * row;
            let to = bytes.len().min(from + STRIP * row);
            match is_half(w.dtype()) {
                true => halves::pack(&bytes[from..to], row, out),
                false => (kernels().pack)(w.dtype(), &bytes[from..to], row, out),
            }
        });
        done(bytes);
    }
}

fn strip_bytes(facts: Facts, cols: usize) -> usize {
    cols.div_ceil(facts.unit) * facts.unit_bytes
}

/// Packs up to 16 stored rows, `row_bytes` each; rows that are missing have the value 0.
#[inline(always)]
pub(crate) fn pack_strip<F: Format>(stored: &[u8], row_bytes: usize, out: &mut [u8]) {
    let stored_unit = F::UNIT / F::DTYPE.block_len() * F::DTYPE.block_bytes();
    let mut units = [const { RowUnit::ZERO }; STRIP];
    for (u, out) in out.chunks_exact_mut(F::UNIT_BYTES).enumerate() {
        let here = u * stored_unit..row_bytes.min((u + 1) * stored_unit);
        for (unit, row) in units.iter_mut().zip(stored.chunks_exact(row_bytes)) {
            unit.read::<F>(&row[here.clone()]);
        }
        let (codes, scales) = out.split_at_mut(F::SCALES);
        for (slab, out) in codes.chunks_exact_mut(F::SLAB_BYTES).enumerate() {
            pack_slab::<F>(&units, slab, out);
        }
        pack_scales::<F>(&units, scales);
    }
}

/// The planes of a slab; see [`layout`]. Column group `g` of 8 lies in vector `g % v` of a
/// plane's `v` vectors, at the `g / v`-th field from the lowest bits.
#[inline(always)]
fn pack_slab<F: Format>(units: &[RowUnit; STRIP], slab: usize, out: &mut [u8]) {
    let mut out = out.as_chunks_mut::<4>().0;
    let mut below = 0;
    for width in planes(F::BITS) {
        let vectors = width;
        let (plane, rest) = out.split_at_mut(vectors * STRIP);
        let mask = 0x0101_0101 * ((1u32 << width) - 1);
        for (v, plane) in plane.chunks_exact_mut(STRIP).enumerate() {
            for (unit, out) in units.iter().zip(plane) {
                let words = unit.codes[slab * SLAB..][..SLAB].as_chunks::<4>().0;
                let mut word = 0;
                for field in 0..8 / width {
                    let code = u32::from_le_bytes(words[v + field * vectors]);
                    word |= (code >> below & mask) << (field * width);
                }
                *out = word.to_le_bytes();
            }
        }
        below += width;
        out = rest;
    }
}

/// The widths of the planes that make up a code, lowest bits first.
pub(crate) fn planes(bits: usize) -> impl Iterator<Item = usize> {
    [8, 4, 2, 1]
        .into_iter()
        .filter(move |width| bits & width != 0)
}

#[inline(always)]
fn pack_scales<F: Format>(units: &[RowUnit; STRIP], out: &mut [u8]) {
    let mut at = 0;
    let mut put = |value: u16, bytes: usize| {
        out[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        at += bytes;
    };
    let bytes = if F::NESTED { 1 } else { 2 };
    for block in 0..F::UNIT / F::BLOCK {
        units.iter().for_each(|u| put(u.scales[block], bytes));
    }
    if F::MINIMA && !F::CENTRED {
        for block in 0..F::UNIT / F::BLOCK {
            units.iter().for_each(|u| put(u.minima[block], bytes));
        }
    }
    if F::NESTED {
        units.iter().for_each(|u| put(u.outer[0], 2));
        units.iter().for_each(|u| put(u.outer[1], 2));
    }
}

/// Scale and minimum of a block for one row of a unit.
pub(crate) fn scale_of<F: Format>(unit: &[u8], block: usize, lane: usize) -> (f32, f32) {
    let at = block * STRIP + lane;
    let half = |at: usize| f16::from_le_bytes([unit[at], unit[at + 1]]).to_f32();
    let part = |start: usize, outer: usize| {
        if F::NESTED {
            half(F::OUTER + 2 * (outer * STRIP + lane)) * f32::from(unit[start + at] as i8)
        } else {
            half(start + 2 * at)
        }
    };
    let scale = part(F::SCALES, 0);
    if F::CENTRED {
        return (2.0 * scale, -scale);
    }
    let minimum = if F::MINIMA { part(F::MINIMUMS, 1) } else { 0.0 };
    (scale, minimum)
}

/// The code of one row and column of a slab.
pub(crate) fn code_of<F: Format>(slab: &[u8], column: usize, lane: usize) -> u8 {
    let (group, byte) = (column / 4, column % 4);
    let (mut start, mut below, mut code) = (0, 0, 0);
    for width in planes(F::BITS) {
        let at = start + group % width * 64 + lane * 4 + byte;
        let mask = ((1u16 << width) - 1) as u8;
        code |= (slab[at] >> (group / width * width) & mask) << below;
        start += width * 64;
        below += width;
    }
    if F::DOUBLED {
        code *= 2;
    }
    if F::CODEBOOK {
        code = (crate::block::IQ4[usize::from(code)] as u8) ^ 0x80;
    }
    code
}
