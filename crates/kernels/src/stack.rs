//! A matrix as a sum of blocks, of which any number of first ones are an approximation: as much
//! of it as there is memory for (BitStack, Wang et al., ICLR 2025).
//!
//! A block is a sign for each value and magnitudes of low rank: `W ≈ Σ_b S_b ∘ (U_b V_b)`. Each
//! approximates what those before it have left. A block's bytes are words of 16 bits,
//! little-endian, in strips of 16 rows, the last one filled up with rows of 0:
//!
//! ```text
//! signs  [strips][cols]        bit r: the value of row r of the strip is negative
//! U      [strips][rank][16]    f16
//! V      [rank][cols]          f16
//! ```
//!
//! Products read strips as 8-bit integers, rebuilt where they are read and never kept: keeping them
//! would cost the memory that a stack saves. Whatever the rows that it is multiplied with, a strip
//! is rebuilt into the packed layout of q8_0. So a row's result depends on neither the rows beside
//! it nor the machine. For 32 columns of a row
//!
//! ```text
//! scale = f16(Σ |u| · max |v| / 127)            over blocks and ranks, in order
//! value = Σ v · (± u · (1 / scale))             alike, each added by a fused multiply-add
//! code  = value, rounded to nearest, ties to even, from −128 to 127
//! ```

#[cfg(target_arch = "x86_64")]
mod avx512;

use std::sync::OnceLock;

use bytes::Bytes;
use half::f16;
use memmap2::MmapMut;

use crate::packed::layout::{GROUP, SLAB, STRIP};

/// Why bytes are no block of a stack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StackError {
    /// No rank makes a block of this size.
    #[error("{found} bytes are no block of a {rows} × {cols} matrix, whatever its rank")]
    Size {
        /// Rows of the matrix.
        rows: usize,
        /// Its columns.
        cols: usize,
        /// Bytes given.
        found: usize,
    },
    /// A factor is infinite or no number.
    #[error("a factor of the block is not finite")]
    NotFinite,
    /// There is no memory for a copy.
    #[error("there is no memory for a block: {0}")]
    Memory(String),
    /// A stack of nothing.
    #[error("a stack has one block at least")]
    Empty,
}

/// One block: `S ∘ (U V)`. Cloning shares the bytes.
#[derive(Debug, Clone)]
pub struct StackBlock {
    rank: usize,
    /// Where its factors begin.
    factors: usize,
    data: Bytes,
}

/// Bytes of a word.
const WORD: usize = 2;

impl StackBlock {
    /// Bytes of a block of a `rows × cols` matrix.
    pub fn size(rows: usize, cols: usize, rank: usize) -> usize {
        let strips = rows.div_ceil(STRIP);
        WORD * (strips * cols + rank * (strips * STRIP + cols))
    }

    /// Takes a block's bytes as they are stored. The rank follows from their number; nothing of
    /// them is read.
    ///
    /// # Errors
    /// When the size is that of no rank.
    pub fn new(rows: usize, cols: usize, data: Bytes) -> Result<StackBlock, StackError> {
        let found = data.len();
        let wrong = StackError::Size { rows, cols, found };
        let (signs, one) = (
            StackBlock::size(rows, cols, 0),
            StackBlock::size(rows, cols, 1),
        );
        let factors = found.checked_sub(signs).filter(|f| *f > 0);
        let rank = factors.filter(|f| f.is_multiple_of(one - signs));
        let rank = rank.ok_or(wrong)? / (one - signs);
        let factors = signs;
        Ok(StackBlock {
            rank,
            factors,
            data,
        })
    }

    /// A copy in memory of its own, which goes back to the system when the copy's last clone is
    /// gone.
    ///
    /// # Errors
    /// When the memory cannot be had, or a factor is not finite.
    pub fn load(&self) -> Result<StackBlock, StackError> {
        let words = self.data[self.factors..].as_chunks::<WORD>().0;
        if words.iter().any(|w| !f16::from_le_bytes(*w).is_finite()) {
            return Err(StackError::NotFinite);
        }
        let memory = MmapMut::map_anon(self.data.len());
        let mut memory = memory.map_err(|error| StackError::Memory(error.to_string()))?;
        memory.copy_from_slice(&self.data);
        Ok(StackBlock {
            data: Bytes::from_owner(memory),
            ..*self
        })
    }

    /// The bytes of a block: `negative` tells the sign of `[rows, cols]` values, `u` is
    /// `[rows, rank]`, `v` is `[rank, cols]`.
    ///
    /// # Panics
    /// When lengths do not fit the shapes.
    pub fn encode(
        (rows, cols): (usize, usize),
        negative: &[bool],
        u: &[f16],
        v: &[f16],
    ) -> Vec<u8> {
        let rank = v.len() / cols;
        assert_eq!(negative.len(), rows * cols, "a sign for each value");
        assert_eq!((u.len(), v.len()), (rows * rank, rank * cols), "factors");
        let mut words = Vec::with_capacity(StackBlock::size(rows, cols, rank) / WORD);
        for strip in negative.chunks(STRIP * cols) {
            for column in 0..cols {
                let bits = strip.chunks_exact(cols).enumerate();
                words.push(bits.fold(0, |word, (r, row)| word | u16::from(row[column]) << r));
            }
        }
        for strip in u.chunks(STRIP * rank) {
            for r in 0..rank {
                let rows = strip.chunks_exact(rank).map(|row| row[r].to_bits());
                words.extend(rows.chain(std::iter::repeat(0)).take(STRIP));
            }
        }
        words.extend(v.iter().map(|v| v.to_bits()));
        words.iter().flat_map(|w: &u16| w.to_le_bytes()).collect()
    }

    /// Its bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.data
    }

    /// Rank of its magnitudes.
    pub fn rank(&self) -> usize {
        self.rank
    }
}

/// The first blocks of a matrix. Cloning shares their bytes.
#[derive(Debug, Clone)]
pub struct Stack {
    rows: usize,
    cols: usize,
    blocks: Vec<StackBlock>,
}

impl Stack {
    /// A `[rows, cols]` matrix of these blocks.
    ///
    /// # Errors
    /// When there is none, or one is of another shape.
    pub fn new(rows: usize, cols: usize, blocks: Vec<StackBlock>) -> Result<Stack, StackError> {
        if blocks.is_empty() {
            return Err(StackError::Empty);
        }
        for block in &blocks {
            let found = block.data.len();
            if found != StackBlock::size(rows, cols, block.rank) {
                return Err(StackError::Size { rows, cols, found });
            }
        }
        Ok(Stack { rows, cols, blocks })
    }

    /// Number of rows: the outputs of a product with this matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row: the inputs of a product with this matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Its blocks.
    pub fn blocks(&self) -> &[StackBlock] {
        &self.blocks
    }

    /// Bytes of all blocks.
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(|b| b.data.len()).sum()
    }

    /// Bytes of a rebuilt strip.
    pub(crate) fn strip_bytes(&self) -> usize {
        self.cols.div_ceil(GROUP) * UNIT
    }

    /// Rebuilds a strip as packed q8_0.
    pub(crate) fn rebuild(&self, strip: usize, work: &mut StripWork) {
        work.out.resize(self.strip_bytes(), 0);
        rebuild()(self, strip, work);
    }

    fn terms(&self) -> usize {
        self.blocks.iter().map(|b| b.rank).sum()
    }
}

/// Working memory of rebuilding a strip, and the strip.
#[derive(Debug, Default)]
pub(crate) struct StripWork {
    /// The packed strip.
    pub(crate) out: Vec<u8>,
    /// `U` of the strip, `[terms]`, and the same over the scales.
    u: Vec<[f32; STRIP]>,
    scaled: Vec<[f32; STRIP]>,
    /// `V` of 32 columns, `[terms]`.
    v: Vec<[f32; SLAB]>,
}

/// Bytes of 64 columns of packed q8_0: codes, then scales.
const UNIT: usize = STRIP * GROUP + 2 * SCALES;
/// Bytes of 32 columns' scales.
const SCALES: usize = STRIP * WORD;

type Rebuild = fn(&Stack, usize, &mut StripWork);

/// The fastest way of this machine; all give the same bits.
fn rebuild() -> Rebuild {
    static BEST: OnceLock<Rebuild> = OnceLock::new();
    *BEST.get_or_init(|| all().pop().expect("the portable one is there"))
}

/// Every way that this machine has, the best last.
fn all() -> Vec<Rebuild> {
    let mut all: Vec<Rebuild> = vec![portable];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the sets are there, by the test above.
            all.push(|stack, strip, work| unsafe { avx2(stack, strip, work) });
        }
        all.extend(avx512::rebuild());
    }
    all
}

/// The definition, compiled for vectors of eight.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(stack: &Stack, strip: usize, work: &mut StripWork) {
    portable(stack, strip, work);
}

/// A block's signs and U of a strip, and its V, as words.
fn parts<'a>(stack: &'a Stack, block: &'a StackBlock, strip: usize) -> [&'a [[u8; WORD]]; 3] {
    let (cols, strips) = (stack.cols, stack.rows.div_ceil(STRIP));
    let words = block.data.as_chunks::<WORD>().0;
    let (signs, factors) = words.split_at(strips * cols);
    let (u, v) = factors.split_at(strips * block.rank * STRIP);
    let size = block.rank * STRIP;
    [
        &signs[strip * cols..][..cols],
        &u[strip * size..][..size],
        v,
    ]
}

fn number(word: [u8; WORD]) -> f32 {
    f16::from_le_bytes(word).to_f32()
}

/// The definition.
#[inline(always)]
fn portable(stack: &Stack, strip: usize, work: &mut StripWork) {
    let terms = stack.terms();
    let StripWork { out, u, scaled, v } = work;
    u.clear();
    for block in &stack.blocks {
        let [_, factors, _] = parts(stack, block, strip);
        let rows = factors.as_chunks::<STRIP>().0;
        u.extend(rows.iter().map(|row| row.map(number)));
    }
    scaled.resize(terms, [0.0; STRIP]);
    v.resize(terms, [0.0; SLAB]);
    for (index, unit) in out.chunks_exact_mut(UNIT).enumerate() {
        let (codes, scales) = unit.split_at_mut(STRIP * GROUP);
        let slabs = codes.chunks_exact_mut(STRIP * SLAB);
        for (half, (codes, scales)) in slabs.zip(scales.chunks_exact_mut(SCALES)).enumerate() {
            let first = (2 * index + half) * SLAB;
            let columns = stack.cols.saturating_sub(first).min(SLAB);
            let mut term = 0;
            for block in &stack.blocks {
                let [_, _, all] = parts(stack, block, strip);
                for row in all.chunks_exact(stack.cols) {
                    v[term] = [0.0; SLAB];
                    if columns > 0 {
                        for (v, word) in v[term].iter_mut().zip(&row[first..first + columns]) {
                            *v = number(*word);
                        }
                    }
                    term += 1;
                }
            }
            let mut bound = [0.0f32; STRIP];
            for (u, v) in u.iter().zip(&*v) {
                let most = v.iter().fold(0.0f32, |most, v| most.max(v.abs()));
                for lane in 0..STRIP {
                    bound[lane] = u[lane].abs().mul_add(most, bound[lane]);
                }
            }
            let mut inverse = [0.0f32; STRIP];
            for lane in 0..STRIP {
                let scale = f16::from_f32(bound[lane] / 127.0);
                scales[lane * WORD..][..WORD].copy_from_slice(&scale.to_le_bytes());
                let scale = scale.to_f32();
                inverse[lane] = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            }
            for (scaled, u) in scaled.iter_mut().zip(&*u) {
                for lane in 0..STRIP {
                    scaled[lane] = u[lane] * inverse[lane];
                }
            }
            codes.fill(ZERO);
            for column in 0..columns {
                let mut sum = [0.0f32; STRIP];
                let mut term = 0;
                for block in &stack.blocks {
                    let [signs, _, _] = parts(stack, block, strip);
                    let negative = u16::from_le_bytes(signs[first + column]);
                    for _ in 0..block.rank {
                        for lane in 0..STRIP {
                            let sign = u32::from(negative >> lane & 1) << 31;
                            let u = f32::from_bits(scaled[term][lane].to_bits() ^ sign);
                            sum[lane] = v[term][column].mul_add(u, sum[lane]);
                        }
                        term += 1;
                    }
                }
                let place = column / 4 * 64 + column % 4;
                for lane in 0..STRIP {
                    let code = sum[lane].round_ties_even().clamp(-128.0, 127.0) as i8;
                    codes[place + lane * 4] = code as u8 ^ ZERO;
                }
            }
        }
    }
}

/// The code of 0.
const ZERO: u8 = 0x80;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::{Activations, Packed, Product, Team, products};

    /// Numbers from −1 to 1 that look random.
    fn numbers(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(next).collect()
    }

    /// Random blocks, each smaller than the one before, and the matrix that they sum up to.
    fn stack(rows: usize, cols: usize, ranks: &[usize], seed: u32) -> (Stack, Vec<f64>) {
        let mut sum = vec![0.0; rows * cols];
        let mut blocks = Vec::new();
        for (b, &rank) in ranks.iter().enumerate() {
            let seed = seed.wrapping_add(b as u32 * 3);
            let half = |x: f32| f16::from_f32(x / (1 << b) as f32);
            let u: Vec<f16> = numbers(rows * rank, seed).into_iter().map(half).collect();
            let v: Vec<f16> = numbers(rank * cols, seed + 1)
                .into_iter()
                .map(f16::from_f32)
                .collect();
            let signs = numbers(rows * cols, seed + 2);
            let negative: Vec<bool> = signs.iter().map(|s| *s < 0.0).collect();
            for row in 0..rows {
                for column in 0..cols {
                    let terms = (0..rank).map(|r| {
                        f64::from(u[row * rank + r].to_f32())
                            * f64::from(v[r * cols + column].to_f32())
                    });
                    let value: f64 = terms.sum();
                    let at = row * cols + column;
                    sum[at] += if negative[at] { -value } else { value };
                }
            }
            let data = StackBlock::encode((rows, cols), &negative, &u, &v);
            assert_eq!(data.len(), StackBlock::size(rows, cols, rank));
            blocks.push(StackBlock::new(rows, cols, data.into()).unwrap());
        }
        (Stack::new(rows, cols, blocks).unwrap(), sum)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

        #[test]
        fn every_way_rebuilds_the_same_bits(
            rows in 1usize..50, cols in 1usize..200, ranks in proptest::collection::vec(1usize..4, 1..5), seed: u32,
        ) {
            let (stack, _) = stack(rows, cols, &ranks, seed);
            for strip in 0..rows.div_ceil(STRIP) {
                let strips = all().into_iter().map(|rebuild| {
                    let mut work = StripWork::default();
                    work.out.resize(stack.strip_bytes(), 0);
                    rebuild(&stack, strip, &mut work);
                    work.out
                });
                let strips: Vec<Vec<u8>> = strips.collect();
                for other in &strips[1..] {
                    prop_assert_eq!(&strips[0], other);
                }
            }
        }

        #[test]
        fn rebuilt_rows_are_near_the_sum_of_the_blocks(
            rows in 1usize..40, cols in 1usize..150, ranks in proptest::collection::vec(1usize..3, 1..4), seed: u32,
        ) {
            let (stack, exact) = stack(rows, cols, &ranks, seed);
            let packed = Packed::stacked(Arc::new(stack));
            // A scale covers the largest that signs could have made of 32 columns.
            let bound: f64 = ranks.iter().enumerate().map(|(b, &rank)| rank as f64 / f64::from(1 << b)).sum();
            let mut row = vec![0.0; cols];
            for r in 0..rows {
                packed.row(r, &mut row);
                for (a, b) in row.iter().zip(&exact[r * cols..]) {
                    prop_assert!((f64::from(*a) - b).abs() <= bound / 127.0 * 0.51 + 1e-6, "{a}, not {b}");
                }
            }
        }

        #[test]
        fn a_product_is_that_of_its_rows_alone_and_near_f64(
            rows in 1usize..60, cols in 1usize..150, m in 1usize..40, seed: u32,
        ) {
            let (stack, _) = stack(rows, cols, &[1, 2], seed);
            let packed = Packed::stacked(Arc::new(stack));
            let x = numbers(m * cols, seed ^ 1);
            let product = |x: &[f32], threads: usize| {
                let team = Team::new(threads);
                let mut converted = Activations::default();
                converted.fill(&team, x, cols, x.len() / cols, packed.forms(None));
                let mut out = vec![f32::NAN; x.len() / cols * rows];
                let product = Product { weight: &packed, bias: None, out: &mut out, add: false };
                products(&team, &converted, &mut [product]);
                out
            };
            let all = product(&x, 2);
            for (x, y) in x.chunks(cols).zip(all.chunks(rows)) {
                prop_assert_eq!(&product(x, 1)[..], y);
            }
            let mut w = vec![0.0; cols];
            for r in 0..rows {
                packed.row(r, &mut w);
                for (x, y) in x.chunks(cols).zip(all.chunks(rows)) {
                    let terms = x.iter().zip(&w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let sum: f64 = terms.sum();
                    // An activation, which is at most 1, is off by half of a 127th.
                    let size: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
                    prop_assert!((sum - f64::from(y[r])).abs() <= size / 250.0 + 1e-6);
                }
            }
        }
    }

    #[test]
    fn bytes_that_are_no_block_are_refused() {
        let (stack, _) = stack(20, 70, &[2], 1);
        let data = stack.blocks()[0].bytes().clone();
        assert_eq!(StackBlock::new(20, 70, data.clone()).unwrap().rank(), 2);
        for len in [0, 1, StackBlock::size(20, 70, 0), data.len() - 2] {
            let error = StackBlock::new(20, 70, data.slice(..len)).unwrap_err();
            assert!(matches!(error, StackError::Size { .. }));
        }
        let mut spoiled = data.to_vec();
        let last = spoiled.len() - 2;
        spoiled[last..].copy_from_slice(&f16::INFINITY.to_le_bytes());
        let spoiled = StackBlock::new(20, 70, spoiled.into()).unwrap();
        assert_eq!(spoiled.load().unwrap_err(), StackError::NotFinite);
        assert_eq!(Stack::new(20, 70, vec![]).unwrap_err(), StackError::Empty);
        let other = StackBlock::new(20, 70, data.clone()).unwrap();
        let loaded = other.load().unwrap();
        assert_eq!(loaded.bytes(), &data);
        assert_ne!(loaded.bytes().as_ptr(), data.as_ptr());
        assert!(Stack::new(21, 77, vec![other]).is_err());
    }

    #[test]
    fn factors_at_the_ends_of_their_range_rebuild_alike() {
        for (u, v) in [(65504.0, 65504.0), (6e-8, 6e-8), (0.0, 1.0), (6e-8, 1.0)] {
            let (rows, cols) = (16, 64);
            let u = vec![f16::from_f32(u); rows];
            let v = vec![f16::from_f32(v); cols];
            let negative: Vec<bool> = (0..rows * cols).map(|i| i % 3 == 0).collect();
            let data = StackBlock::encode((rows, cols), &negative, &u, &v);
            let block = StackBlock::new(rows, cols, data.into()).unwrap();
            let stack = Stack::new(rows, cols, vec![block]).unwrap();
            let mut first = None;
            for rebuild in all() {
                let mut work = StripWork::default();
                work.out.resize(stack.strip_bytes(), 0);
                rebuild(&stack, 0, &mut work);
                assert_eq!(first.get_or_insert(work.out.clone()), &work.out);
            }
        }
    }
}
