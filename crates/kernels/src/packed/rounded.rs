//! Activations and weights as bfloat16: for many rows, whose sums need no scaling.
//!
//! A product of integers is scaled once for each 32 columns, which on machines with tiles takes
//! as long as the product; here scales go into the weights, decoded once for all the rows, and
//! sums stay in the tiles. A weight is rounded to 8 bits of mantissa, as an activation is.
//!
//! The sum of an output runs over pairs of columns from first to last, in f32, whatever rows are
//! beside it; how a pair is rounded is the instruction's affair, so sets differ in last digits.

use half::bf16;

use crate::DType;
use crate::team::{Disjoint, Team};

use super::kernels::{Entered, kernels};
use super::layout::{Format, SLAB, STRIP};
use super::quantized::BLOCK_ROWS;
use super::{code_of, scale_of};

/// Rows that a product takes at once: two blocks.
pub(crate) const PAIR_ROWS: usize = 2 * BLOCK_ROWS;

/// Columns of a tile: 32, which are a slab.
pub(crate) const TILE: usize = SLAB;

/// `[2 blocks][2 strips][16 rows][16 outputs]`. Aligned, so that no row of
/// a tile crosses cache lines.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct PairSums(pub(crate) [[[[f32; STRIP]; BLOCK_ROWS]; 2]; 2]);

impl PairSums {
    pub(crate) const ZERO: PairSums = PairSums([[[[0.0; STRIP]; BLOCK_ROWS]; 2]; 2]);
}

/// Two tiles of bfloat16, as its bits.
///
/// - of activations: `[2 blocks of rows][16 rows][32 columns]`
/// - of weights: `[2 strips][16 pairs of columns][16 rows][2 columns]`
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Tiles(pub(crate) [Half; 2]);

/// A tile: 16 rows of 64 bytes.
pub(crate) type Half = [[u16; TILE]; BLOCK_ROWS];

impl Tiles {
    pub(crate) const ZERO: Tiles = Tiles([[[0; TILE]; BLOCK_ROWS]; 2]);
}

/// How rounded rows are multiplied.
#[derive(Clone, Copy)]
pub(crate) struct RoundedKernels {
    /// Faster than products of integers.
    pub(crate) fast: bool,
    /// Rounds to nearest, ties to even.
    pub(crate) round: fn(&[f32; TILE], &mut [u16; TILE]),
    /// Rounds up to 16 rows of 16 columns, into the first or the second half of a tile's.
    pub(crate) round_rows: fn(&[[f32; STRIP]], half: usize, &mut Half),
    /// Decodes the columns of a strip that its units hold into the strip's half of the tiles.
    pub(crate) decode: fn(DType, units: &[u8], half: usize, out: &mut [Tiles]),
    /// Readies this thread's tiles.
    pub(crate) enter: fn() -> Option<Entered>,
    /// Multiplies two blocks of rows with two strips, and adds to the sums if told so.
    pub(crate) multiply: fn(&Option<Entered>, &[Tiles], &[Tiles], add: bool, &mut PairSums),
}

/// Rows rounded to bfloat16: `[pair of blocks][tile of columns]`, padded with zeros.
#[derive(Debug, Default)]
pub(crate) struct Rounded {
    rows: usize,
    tiles: usize,
    data: Vec<Tiles>,
}

impl Rounded {
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Tiles of columns.
    pub(crate) fn tiles(&self) -> usize {
        self.tiles
    }

    pub(crate) fn pairs(&self) -> usize {
        self.rows.div_ceil(PAIR_ROWS)
    }

    /// The tiles of a pair of blocks.
    pub(crate) fn pair(&self, pair: usize) -> &[Tiles] {
        &self.data[pair * self.tiles..][..self.tiles]
    }

    /// Takes a shape, of rows that are to be written.
    pub(crate) fn shape(&mut self, rows: usize, cols: usize) {
        (self.rows, self.tiles) = (rows, cols.div_ceil(TILE));
        let needed = self.pairs() * self.tiles;
        if self.data.len() < needed {
            self.data.resize(needed, Tiles::ZERO);
        }
    }

    /// Lets tiles be written from several threads. Rows and columns that fill the last tiles
    /// up are 0.
    pub(crate) fn writer(&mut self) -> RoundedWriter<'_> {
        let (rows, tiles, pairs) = (self.rows, self.tiles, self.pairs());
        let data = &mut self.data[..pairs * tiles];
        for pair in data.chunks_exact_mut(tiles.max(1)) {
            pair[tiles - 1] = Tiles::ZERO;
        }
        if !rows.is_multiple_of(PAIR_ROWS) {
            data[(pairs - 1) * tiles..].fill(Tiles::ZERO);
        }
        RoundedWriter {
            tiles,
            data: Disjoint::new(data),
        }
    }

    /// Rounds rows that `make` writes.
    pub(crate) fn fill_with(
        &mut self,
        team: &Team,
        rows: usize,
        cols: usize,
        make: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        self.shape(rows, cols);
        let tiles = self.tiles;
        let data = Disjoint::new(&mut self.data[..]);
        let round = kernels().rounded.round;
        // A task is a pair of blocks, which lie in one piece.
        team.run(rows.div_ceil(PAIR_ROWS), &|pair| {
            // SAFETY: each task writes the tiles of its own pair.
            let data = unsafe { data.part(pair * tiles, tiles) };
            ROW.with_borrow_mut(|values| {
                values.clear();
                values.resize(tiles * TILE, 0.0);
                for row in 0..PAIR_ROWS {
                    let (block, at) = (row / BLOCK_ROWS, row % BLOCK_ROWS);
                    let absent = pair * PAIR_ROWS + row >= rows;
                    if !absent {
                        make(pair * PAIR_ROWS + row, &mut values[..cols]);
                    }
                    for (values, tiles) in values.as_chunks::<TILE>().0.iter().zip(&mut *data) {
                        let out = &mut tiles.0[block][at];
                        match absent {
                            true => out.fill(0),
                            false => round(values, out),
                        }
                    }
                }
            });
        });
    }
}

/// See [`Rounded::writer`].
pub(crate) struct RoundedWriter<'a> {
    tiles: usize,
    data: Disjoint<'a, Tiles>,
}

impl RoundedWriter<'_> {
    /// The tile of the block that begins with a row, for some columns.
    ///
    /// # Safety
    /// No other tile of the same pair of blocks and the same columns is in use at the same time.
    #[allow(clippy::mut_from_ref)] // by the caller's promise
    pub(crate) unsafe fn half(&self, row: usize, tile: usize) -> &mut Half {
        let (pair, block) = (row / PAIR_ROWS, row / BLOCK_ROWS % 2);
        // SAFETY: by the caller's promise.
        let tiles = unsafe { self.data.part(pair * self.tiles + tile, 1) };
        &mut tiles[0].0[block]
    }
}

thread_local! {
    /// A row before it is rounded.
    static ROW: std::cell::RefCell<Vec<f32>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// The definition, in plain loops.
pub(crate) static PORTABLE: RoundedKernels = RoundedKernels {
    fast: false,
    round,
    round_rows: |x, half, out| {
        for (x, out) in x.iter().zip(out) {
            for (x, out) in x.iter().zip(&mut out[half * STRIP..]) {
                *out = bf16::from_f32(*x).to_bits();
            }
        }
    },
    decode: |dtype, units, half, out| {
        use super::layout::with_format;
        match dtype {
            DType::BF16 | DType::F16 => super::halves::decode(dtype, units, half, out),
            _ => with_format!(dtype, decode(units, half, out)),
        }
    },
    enter: || None,
    multiply: |_, x, w, add, sums| multiply(x, w, add, sums),
};

fn round(x: &[f32; TILE], out: &mut [u16; TILE]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = bf16::from_f32(*x).to_bits();
    }
}

fn decode<F: Format>(units: &[u8], half: usize, out: &mut [Tiles]) {
    let slabs = F::UNIT / SLAB;
    for (unit, out) in units.chunks_exact(F::UNIT_BYTES).zip(out.chunks_mut(slabs)) {
        for (slab, tile) in out.iter_mut().enumerate() {
            let bytes = &unit[slab * F::SLAB_BYTES..][..F::SLAB_BYTES];
            for column in 0..SLAB {
                for lane in 0..STRIP {
                    let block = (slab * SLAB + column) / F::BLOCK;
                    let (scale, minimum) = scale_of::<F>(unit, block, lane);
                    let least = (-F::ZERO as f32).mul_add(scale, -minimum);
                    let code = f32::from(code_of::<F>(bytes, column, lane));
                    let value = bf16::from_f32(code.mul_add(scale, least));
                    tile.0[half][column / 2][lane * 2 + column % 2] = value.to_bits();
                }
            }
        }
    }
}

fn multiply(x: &[Tiles], w: &[Tiles], add: bool, sums: &mut PairSums) {
    let value = |bits: u16| bf16::from_bits(bits).to_f32();
    for (block, sums) in sums.0.iter_mut().enumerate() {
        for (strip, sums) in sums.iter_mut().enumerate() {
            for (row, sums) in sums.iter_mut().enumerate() {
                for (lane, sum) in sums.iter_mut().enumerate() {
                    let mut total = if add { *sum } else { 0.0 };
                    for (x, w) in x.iter().zip(w) {
                        let (x, w) = (&x.0[block][row], &w.0[strip]);
                        for column in 0..TILE {
                            let w = w[column / 2][lane * 2 + column % 2];
                            total = value(x[column]).mul_add(value(w), total);
                        }
                    }
                    *sum = total;
                }
            }
        }
    }
}
