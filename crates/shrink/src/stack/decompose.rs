//! A matrix into blocks: iterated signs with magnitudes of low rank.
//!
//! BitStack (Wang et al., ICLR 2025) takes the signs of what is left, and magnitudes by a singular
//! value decomposition of the absolute values, with inputs scaled by their size. Here what counts
//! is the error of the outputs on calibration inputs, by their whole second moment:
//!
//! 1. Magnitudes of a block are the best of their rank for `|W|` with columns scaled.
//! 2. Signs are chosen column by column, each column's error made up for by the columns after it
//!    (GPTQ, Frantar et al., ICLR 2023).
//! 3. With these signs, both factors are fitted to the outputs by least squares, and 2 is
//!    repeated with the fitted ones.
//! 4. The factors are rounded to f16, one after the other is fitted to it, and what is left of
//!    the weights is the next block's.
//!
//! The scale of an input goes into the second factor, so that nothing is folded elsewhere.

use std::sync::{Mutex, PoisonError};

use half::f16;
use sedge_kernels::{StackBlock, Team};

use super::inputs::Inputs;
use super::linear::{approach, dot, orthonormal, product, solve, transposed};

/// How matrices become stacks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decomposition {
    /// Blocks of each matrix.
    pub levels: usize,
    /// Rank of the magnitudes.
    pub rank: usize,
    /// Times that signs and factors are fitted to each other.
    pub rounds: usize,
}

/// What became of a matrix.
#[derive(Debug, Clone)]
pub struct Decomposed {
    /// Its blocks.
    pub blocks: Vec<StackBlock>,
    /// After each block, the squared error of outputs over the squared outputs.
    pub errors: Vec<f32>,
}

/// A matrix on its way, `[rows, cols]`.
struct Work<'a> {
    team: &'a Team,
    rows: usize,
    cols: usize,
    rank: usize,
    /// What is left of the weights.
    left: Vec<f32>,
    /// The second moment of the inputs, `[cols, cols]`, and the factor of its inverse.
    moment: &'a [f32],
    factor: &'a [f32],
}

/// One block on its way.
struct Block {
    negative: Vec<bool>,
    /// `[rows, rank]`.
    u: Vec<f32>,
    /// `[rank, cols]`.
    v: Vec<f32>,
}

/// Decomposes `weights`, `[rows, cols]`. Values that are not finite count as 0.
///
/// # Panics
/// When lengths do not fit the shape.
pub fn decompose(
    team: &Team,
    weights: &[f32],
    rows: usize,
    inputs: &Inputs,
    how: Decomposition,
) -> Decomposed {
    let cols = inputs.cols;
    assert_eq!(weights.len(), rows * cols, "the shape of the weights");
    let tame = |w: &f32| if w.is_finite() { *w } else { 0.0 };
    let mut work = Work {
        team,
        rows,
        cols,
        rank: how.rank.clamp(1, rows.min(cols)),
        left: ordered(weights, cols, &inputs.order)
            .iter()
            .map(tame)
            .collect(),
        moment: &inputs.moment,
        factor: &inputs.factor,
    };
    let mut through = work.through(&work.left);
    let whole = work.error(&through).max(f64::MIN_POSITIVE);
    let mut out = Decomposed {
        blocks: Vec::new(),
        errors: Vec::new(),
    };
    let mut back = vec![0; cols];
    for (at, &column) in inputs.order.iter().enumerate() {
        back[column] = at;
    }
    for _ in 0..how.levels.max(1) {
        let block = work.block(how.rounds.max(1), &through);
        let halves = |x: &[f32]| x.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>();
        let v = halves(&ordered(&block.v, cols, &back));
        let negative = ordered(&block.negative, cols, &back);
        let bytes = StackBlock::encode((rows, cols), &negative, &halves(&block.u), &v);
        let stored = StackBlock::new(rows, cols, bytes.into());
        out.blocks.push(stored.expect("encoded for this shape"));
        work.subtract(&block);
        through = work.through(&work.left);
        out.errors.push((work.error(&through) / whole) as f32);
    }
    out
}

impl Work<'_> {
    /// `x · moment` for `[rows, cols]`.
    fn through(&self, x: &[f32]) -> Vec<f32> {
        product(self.team, x, self.moment, self.cols)
    }

    /// Squared error of the outputs, from what is left times the moment.
    fn error(&self, through: &[f32]) -> f64 {
        let terms = self.left.iter().zip(through);
        terms.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    /// One block of what is left, which times the moment is `left`.
    fn block(&self, rounds: usize, left: &[f32]) -> Block {
        let (u, v) = self.magnitudes();
        let mut block = Block {
            negative: vec![false; self.rows * self.cols],
            u,
            v,
        };
        for _ in 0..rounds {
            self.choose_signs(&mut block);
            self.fit_rows(&mut block, left);
            self.fit_columns(&mut block, left);
        }
        self.choose_signs(&mut block);
        self.fit_rows(&mut block, left);
        self.fit_columns(&mut block, left);
        balance(&mut block, self.rank, self.cols);
        round(&mut block.v);
        self.fit_rows(&mut block, left);
        round(&mut block.u);
        block
    }

    /// Factors of the absolute values of what is left, columns scaled by their inputs' size, by
    /// subspace iteration.
    fn magnitudes(&self) -> (Vec<f32>, Vec<f32>) {
        let (rows, cols, rank) = (self.rows, self.cols, self.rank);
        let size = |j: usize| self.moment[j * (cols + 1)].max(f32::MIN_POSITIVE).sqrt();
        let sizes: Vec<f32> = (0..cols).map(size).collect();
        let scaled = |(i, w): (usize, &f32)| w.abs() * sizes[i % cols];
        let a: Vec<f32> = self.left.iter().enumerate().map(scaled).collect();
        let turned = transposed(&a, rows, cols);
        // The first direction is near that of equal values; others begin anywhere.
        let mut random = 1u32;
        let mut start = |i: usize| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if i < cols {
                1.0
            } else {
                (random >> 8) as f32 / (1 << 23) as f32 - 1.0
            }
        };
        let mut v: Vec<f32> = (0..rank * cols).map(&mut start).collect();
        let mut u = Vec::new();
        for _ in 0..ITERATIONS {
            orthonormal(&mut v, cols);
            // [rank, rows], then [rank, cols].
            u = product(self.team, &v, &a, cols);
            orthonormal(&mut u, rows);
            v = product(self.team, &u, &turned, rows);
        }
        for v in v.chunks_exact_mut(cols) {
            for (v, size) in v.iter_mut().zip(&sizes) {
                *v /= size;
            }
        }
        (transposed(&u, rank, rows), v)
    }

    /// Magnitudes of a row.
    fn row(&self, block: &Block, row: usize, out: &mut [f32]) {
        out.fill(0.0);
        for r in 0..self.rank {
            let u = block.u[row * self.rank + r];
            let v = &block.v[r * self.cols..][..self.cols];
            for (out, v) in out.iter_mut().zip(v) {
                *out += u * v;
            }
        }
    }

    /// Chooses signs column by column; each error is made up for by the columns after it.
    fn choose_signs(&self, block: &mut Block) {
        let mut negative = std::mem::take(&mut block.negative);
        {
            let (block, size) = (&*block, TOGETHER * self.cols);
            let groups: Vec<Mutex<&mut [bool]>> =
                negative.chunks_mut(size).map(Mutex::new).collect();
            self.team.run(groups.len(), &|group| {
                // Each is one task's.
                let mut out = groups[group].lock().unwrap_or_else(PoisonError::into_inner);
                self.choose_rows(block, group * TOGETHER, &mut out);
            });
        }
        block.negative = negative;
    }

    /// The same for up to [`TOGETHER`] rows, which share what is read of the factor.
    fn choose_rows(&self, block: &Block, first: usize, negative: &mut [bool]) {
        let cols = self.cols;
        let mut left = self.left[first * cols..][..negative.len()].to_vec();
        let mut sizes = vec![0.0; negative.len()];
        for (row, sizes) in sizes.chunks_exact_mut(cols).enumerate() {
            self.row(block, first + row, sizes);
        }
        for j in 0..cols {
            let factor = &self.factor[j * cols..][..cols];
            let rows = left.chunks_exact_mut(cols).zip(sizes.chunks_exact(cols));
            for ((left, sizes), negative) in rows.zip(negative.chunks_exact_mut(cols)) {
                negative[j] = left[j] * sizes[j] < 0.0;
                let value = if negative[j] { -sizes[j] } else { sizes[j] };
                let error = (left[j] - value) / factor[j];
                for (left, factor) in left[j + 1..].iter_mut().zip(&factor[j + 1..]) {
                    *left -= error * factor;
                }
            }
        }
    }

    /// The signs as factors on `v`'s row `r`, `[rows, cols]`.
    fn signed(&self, block: &Block, r: usize) -> Vec<f32> {
        let cols = self.cols;
        let v = &block.v[r * cols..][..cols];
        let value = |(i, negative): (usize, &bool)| match negative {
            true => -v[i % cols],
            false => v[i % cols],
        };
        block.negative.iter().enumerate().map(value).collect()
    }

    /// Fits `u` to the outputs, each row by itself: `left` is what is left times the moment.
    fn fit_rows(&self, block: &mut Block, left: &[f32]) {
        let (cols, rank) = (self.cols, self.rank);
        let signed: Vec<Vec<f32>> = (0..rank).map(|r| self.signed(block, r)).collect();
        let through: Vec<Vec<f32>> = signed.iter().map(|x| self.through(x)).collect();
        self.team.for_rows(&mut block.u, rank, &|row, u| {
            let here = row * cols..(row + 1) * cols;
            let mut normal = vec![0.0; rank * rank];
            let mut wanted = vec![0.0; rank];
            for a in 0..rank {
                for b in 0..rank {
                    normal[a * rank + b] = dot(&through[a][here.clone()], &signed[b][here.clone()]);
                }
                wanted[a] = dot(&signed[a][here.clone()], &left[here.clone()]);
            }
            solve(&mut normal, &mut wanted, u);
        });
    }

    /// Fits `v` to the outputs, one of its rows after the other. Where there are more inputs than
    /// [`FITTED`], it stays as it is: the system to solve takes time with the square of them.
    fn fit_columns(&self, block: &mut Block, left: &[f32]) {
        let (rows, cols, rank) = (self.rows, self.cols, self.rank);
        if cols > FITTED {
            return;
        }
        for r in 0..rank {
            // D = signs · u, [rows, cols]: the block is D ∘ v.
            let mut weighted = vec![0.0; rows * cols];
            let signs = block.negative.chunks_exact(cols).enumerate();
            for ((row, signs), out) in signs.zip(weighted.chunks_exact_mut(cols)) {
                let u = block.u[row * rank + r];
                for (out, negative) in out.iter_mut().zip(signs) {
                    *out = if *negative { -u } else { u };
                }
            }
            let turned = transposed(&weighted, rows, cols);
            let mut system = product(self.team, &turned, &turned, rows);
            for (a, h) in system.iter_mut().zip(self.moment) {
                *a *= h;
            }
            // What the other ranks leave.
            let mut others = vec![0.0; rows * cols];
            for other in (0..rank).filter(|other| *other != r) {
                let signed = self.signed(block, other);
                for (row, out) in others.chunks_exact_mut(cols).enumerate() {
                    let u = block.u[row * rank + other];
                    let signed = &signed[row * cols..][..cols];
                    for (out, signed) in out.iter_mut().zip(signed) {
                        *out += u * signed;
                    }
                }
            }
            let others = if rank > 1 {
                self.through(&others)
            } else {
                others
            };
            let mut wanted = vec![0.0f64; cols];
            for (row, weighted) in weighted.chunks_exact(cols).enumerate() {
                let here = row * cols;
                for (j, wanted) in wanted.iter_mut().enumerate() {
                    let left = left[here + j] - others[here + j];
                    *wanted += f64::from(weighted[j] * left);
                }
            }
            approach(&system, &wanted, &mut block.v[r * cols..][..cols], STEPS);
        }
    }

    /// Takes a block from what is left.
    fn subtract(&mut self, block: &Block) {
        let mut row_of = vec![0.0; self.cols];
        for row in 0..self.rows {
            self.row(block, row, &mut row_of);
            let here = row * self.cols..(row + 1) * self.cols;
            let signs = &block.negative[here.clone()];
            for ((left, size), negative) in self.left[here].iter_mut().zip(&row_of).zip(signs) {
                *left -= if *negative { -size } else { *size };
            }
        }
    }
}

/// Iterations for the leading directions of the magnitudes.
const ITERATIONS: usize = 8;

/// Rows that go through the columns together.
const TOGETHER: usize = 8;

/// Steps towards the best second factor.
const STEPS: usize = 30;

/// Most inputs for which the second factor is fitted.
const FITTED: usize = 2048;

/// Columns in another order: column `i` is what `order[i]` was.
fn ordered<T: Copy>(x: &[T], cols: usize, order: &[usize]) -> Vec<T> {
    let rows = x.chunks_exact(cols);
    rows.flat_map(|row| order.iter().map(|&column| row[column]))
        .collect()
}

/// Gives both factors the same size, rank by rank, so that neither leaves the range of f16.
fn balance(block: &mut Block, rank: usize, cols: usize) {
    for r in 0..rank {
        let v = &mut block.v[r * cols..][..cols];
        let u = block.u.iter().skip(r).step_by(rank);
        let largest = |max: f32, x: &f32| max.max(x.abs());
        let (most_u, most_v) = (u.fold(0.0, largest), v.iter().fold(0.0, largest));
        if most_u > 0.0 && most_v > 0.0 {
            let scale = (most_u / most_v).sqrt();
            v.iter_mut().for_each(|v| *v *= scale);
            block
                .u
                .iter_mut()
                .skip(r)
                .step_by(rank)
                .for_each(|u| *u /= scale);
        }
    }
}

/// To values of f16, finite ones.
fn round(x: &mut [f32]) {
    for x in x {
        *x = f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moment::Moment;

    /// Numbers that are nearly normal, from a seed.
    fn numbers(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2).wrapping_add(1);
        let mut next = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..len).map(|_| (0..4).map(|_| next()).sum()).collect()
    }

    /// Inputs of unlike sizes that depend on each other.
    fn inputs(rows: usize, cols: usize) -> Vec<f32> {
        let mut x = numbers(rows * cols, 3);
        for row in x.chunks_exact_mut(cols) {
            for j in 1..cols {
                row[j] = (row[j] + 0.7 * row[j - 1]) * if j % 9 == 0 { 3.0 } else { 0.9 };
            }
        }
        x
    }

    const HOW: Decomposition = Decomposition {
        levels: 4,
        rank: 1,
        rounds: 1,
    };

    /// The share of the outputs' squares that a stack's first blocks get wrong.
    fn error(weights: &[f32], x: &[f32], rows: usize, cols: usize, blocks: &[StackBlock]) -> f64 {
        let stack = sedge_kernels::Stack::new(rows, cols, blocks.to_vec()).unwrap();
        let packed = sedge_kernels::Packed::stacked(std::sync::Arc::new(stack));
        let mut row = vec![0.0; cols];
        let (mut wrong, mut all) = (0.0, 0.0);
        for (r, weights) in weights.chunks_exact(cols).enumerate() {
            packed.row(r, &mut row);
            for x in x.chunks_exact(cols) {
                let (y, approximate) = (dot(x, weights), dot(x, &row));
                wrong += (y - approximate).powi(2);
                all += y * y;
            }
        }
        wrong / all
    }

    #[test]
    fn each_block_takes_away_two_fifths_of_the_error_at_least_and_inputs_count() {
        let (rows, cols) = (40, 96);
        let team = Team::new(2);
        let weights = numbers(rows * cols, 1);
        let x = inputs(400, cols);
        let mut moment = Moment::new(cols);
        moment.add(&team, &x).unwrap();
        let inputs = Inputs::of(&team, &moment);
        let seen = decompose(&team, &weights, rows, &inputs, HOW);
        let blind = Inputs::of(&team, &Moment::new(cols));
        let blind = decompose(&team, &weights, rows, &blind, HOW);
        let mut last = 1.0;
        for level in 1..=4 {
            let [of_seen, of_blind] =
                [&seen, &blind].map(|d| error(&weights, &x, rows, cols, &d.blocks[..level]));
            assert!(
                of_seen < last * 0.6,
                "level {level}: {of_seen} after {last}"
            );
            assert!(
                of_seen < of_blind,
                "level {level}: {of_seen}, not {of_blind}"
            );
            // What is reported counts the damping too, and no rounding to 8 bits.
            let reported = f64::from(seen.errors[level - 1]);
            assert!(
                (of_seen / reported - 1.0).abs() < 0.3,
                "{of_seen} {reported}"
            );
            last = of_seen;
        }
        assert_eq!(seen.blocks[0].rank(), 1);
    }

    #[test]
    fn a_higher_rank_is_nearer() {
        let (rows, cols) = (48, 64);
        let team = Team::new(1);
        // Magnitudes of rank 2.
        let signs = numbers(rows * cols, 5);
        let value = |i: usize| {
            let (row, col) = (i / cols, i % cols);
            let size = if (row < 20) == (col < 30) { 1.0 } else { 0.2 };
            size * signs[i].signum()
        };
        let weights: Vec<f32> = (0..rows * cols).map(value).collect();
        let inputs = Inputs::of(&team, &Moment::new(cols));
        let with = |rank: usize| {
            let how = Decomposition {
                levels: 1,
                rank,
                ..HOW
            };
            decompose(&team, &weights, rows, &inputs, how).errors[0]
        };
        assert!(with(2) < 1e-4 && with(1) > 0.01, "{} {}", with(2), with(1));
    }

    #[test]
    fn hostile_weights_and_inputs_give_finite_blocks() {
        let (rows, cols) = (17, 33);
        let mut weights = numbers(rows * cols, 1);
        weights[5] = f32::NAN;
        weights[90] = f32::INFINITY;
        weights[cols * 3..cols * 4].fill(0.0);
        let team = Team::new(1);
        let mut moment = Moment::new(cols);
        let mut x = inputs(20, cols);
        x[41] = f32::NAN;
        // An input that never varies.
        x.chunks_exact_mut(cols).for_each(|row| row[7] = 0.0);
        assert!(moment.add(&team, &x).is_err());
        x[41] = 1.0;
        moment.add(&team, &x).unwrap();
        assert_eq!(moment.rows(), 20);
        let decomposed = decompose(&team, &weights, rows, &Inputs::of(&team, &moment), HOW);
        for block in &decomposed.blocks {
            block.load().unwrap();
        }
        assert!(decomposed.errors.iter().all(|e| e.is_finite()));
        let zeros = vec![0.0; rows * cols];
        let nothing = decompose(&team, &zeros, rows, &Inputs::of(&team, &moment), HOW);
        assert!(nothing.blocks.iter().all(|b| b.load().is_ok()));
    }
}
