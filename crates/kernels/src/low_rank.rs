//! Low-rank terms of many adapters, added to products of one flat batch of rows.
//!
//! Each adapter's factors are read once for up to six of its rows, from f32, f16 or bf16 as
//! they are stored (the gathered products of Punica, Chen et al., MLSys 2024, on a CPU). Every
//! output is summed in an order that the factors' shapes fix, so a row's result does not depend
//! on the rows beside it.

#![allow(clippy::needless_range_loop)] // one index walks several arrays of vectors

use std::cell::RefCell;

use crate::factor::{Factor, LANES, Values, blocks};
use crate::isa::isa;
use crate::simd::{Sixteen, prefetch};
use crate::team::{Disjoint, Team};

/// Rows that share what is read of an adapter.
const ROWS: usize = 6;
/// Rows whose sums are in registers at once.
const SIDE: usize = 3;
/// Bytes ahead of what is computed with that are asked for.
const AHEAD: usize = 1024;

/// `out += diag(after) · bᵀ · diag(between) · a · x`, for some rows.
#[derive(Debug, Clone, Copy)]
pub struct LowRankTerm<'a> {
    /// All rows of the batch, `[rows, a.cols]`.
    pub x: &'a [f32],
    /// Which of them, each at most once.
    pub rows: &'a [u32],
    /// `[rank, cols]`.
    pub a: &'a Factor,
    /// `[rank]`.
    pub between: &'a [f32],
    /// `[rank, n]`.
    pub b: &'a Factor,
    /// `[n]`.
    pub after: Option<&'a [f32]>,
    /// Which of the outputs.
    pub out: usize,
}

/// One task: some rows of one term.
pub(crate) struct Work<'a> {
    term: &'a LowRankTerm<'a>,
    rows: &'a [u32],
    out: &'a Disjoint<'a, f32>,
}

thread_local! {
    /// `a · x` of a task's rows, `[ROWS, rank]`.
    static NARROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Adds terms to `outs`, each `[rows, n]`. A row of an output takes part in one term at most.
///
/// # Panics
/// When lengths do not fit the shapes, or a row is out of range or twice in an output.
pub fn add_low_rank(team: &Team, terms: &[LowRankTerm<'_>], outs: &mut [&mut [f32]]) {
    check(terms, outs);
    let outs: Vec<Disjoint<'_, f32>> = outs.iter_mut().map(|out| Disjoint::new(out)).collect();
    let mut tasks = Vec::with_capacity(terms.len());
    for term in terms {
        for rows in term.rows.chunks(ROWS) {
            tasks.push(Work {
                term,
                rows,
                out: &outs[term.out],
            });
        }
    }
    // An adapter's terms lie one after the other in memory.
    tasks.sort_by_key(|task| task.rows[0]);
    // Some of them in a row, so that what comes next is known and can be asked for.
    let together = tasks.len().div_ceil(8 * team.threads()).max(1);
    team.run(tasks.len().div_ceil(together), &|i| {
        let tasks = &tasks[i * together..tasks.len().min((i + 1) * together)];
        NARROW.with_borrow_mut(|narrow| {
            for (i, task) in tasks.iter().enumerate() {
                let next = tasks
                    .get(i + 1)
                    .map_or(&[][..], |next| &next.term.a.bytes()[..]);
                (isa().low_rank)(task, next, narrow);
            }
        });
    });
}

fn check(terms: &[LowRankTerm<'_>], outs: &[&mut [f32]]) {
    let mut taken: Vec<Vec<bool>> = outs.iter().map(|_| Vec::new()).collect();
    let mut widths: Vec<Option<usize>> = outs.iter().map(|_| None).collect();
    for term in terms {
        let (cols, n) = (term.a.cols(), term.b.cols());
        assert_eq!(term.a.rows(), term.b.rows(), "the rank of both factors");
        assert_eq!(term.between.len(), term.a.rows(), "a factor for each rank");
        assert!(
            term.after.is_none_or(|after| after.len() == n),
            "a factor for each output"
        );
        let width = *widths[term.out].get_or_insert(n);
        assert_eq!(width, n, "terms of one output are as wide as it");
        let taken = &mut taken[term.out];
        let rows = outs[term.out].len() / n.max(1);
        taken.resize(rows, false);
        for &row in term.rows {
            let row = row as usize;
            assert!(
                row < rows && (row + 1) * cols <= term.x.len(),
                "row {row} of {rows}"
            );
            assert!(
                !std::mem::replace(&mut taken[row], true),
                "row {row} is there twice"
            );
        }
    }
}

/// Values of one type, a vector at a time.
trait Stored<S: Sixteen>: Copy {
    fn len(self) -> usize;
    /// The vector of this number.
    fn vector(self, s: S, index: usize) -> S::W;
    /// Asks for what comes after that vector, whether or not it is there.
    fn ahead(self, index: usize);
}

#[derive(Clone, Copy)]
struct F32<'a>(&'a [[f32; LANES]]);
#[derive(Clone, Copy)]
struct F16<'a>(&'a [[u16; LANES]]);
#[derive(Clone, Copy)]
struct Bf16<'a>(&'a [[u16; LANES]]);

macro_rules! stored {
    ($name:ident, $load:ident) => {
        impl<S: Sixteen> Stored<S> for $name<'_> {
            #[inline(always)]
            fn len(self) -> usize {
                self.0.len()
            }

            #[inline(always)]
            fn vector(self, s: S, index: usize) -> S::W {
                s.$load(&self.0[index])
            }

            #[inline(always)]
            fn ahead(self, index: usize) {
                prefetch(self.0.as_ptr().wrapping_add(index).wrapping_byte_add(AHEAD));
            }
        }
    };
}
stored!(F32, load);
stored!(F16, load_f16);
stored!(Bf16, load_bf16);

/// Computes one task, and asks for the start of what the `next` one reads.
#[inline(always)]
pub(crate) fn work<S: Sixteen>(s: S, w: &Work<'_>, next: &[u8], narrow: &mut Vec<f32>) {
    let rank = w.term.a.rows();
    if narrow.len() < ROWS * rank {
        narrow.resize(ROWS * rank, 0.0);
    }
    match w.term.a.values() {
        Values::F32(x) => narrow_all(s, w, F32(x.as_chunks().0), narrow),
        Values::F16(x) => narrow_all(s, w, F16(x.as_chunks().0), narrow),
        Values::Bf16(x) => narrow_all(s, w, Bf16(x.as_chunks().0), narrow),
    }
    for line in next[..next.len().min(AHEAD)].chunks(64) {
        prefetch(line.as_ptr());
    }
    match w.term.b.values() {
        Values::F32(x) => spread_all(s, w, F32(x.as_chunks().0), narrow),
        Values::F16(x) => spread_all(s, w, F16(x.as_chunks().0), narrow),
        Values::Bf16(x) => spread_all(s, w, Bf16(x.as_chunks().0), narrow),
    }
}

/// Calls a function with its rows and its block's height as constants.
macro_rules! sized {
    ($f:ident, $rows:expr, $height:expr, $args:tt) => {
        match ($rows, $height) {
            (1, 8) => $f::<S, F, 1, 8> $args,
            (2, 8) => $f::<S, F, 2, 8> $args,
            (3, 8) => $f::<S, F, 3, 8> $args,
            (1, 4) => $f::<S, F, 1, 4> $args,
            (2, 4) => $f::<S, F, 2, 4> $args,
            (3, 4) => $f::<S, F, 3, 4> $args,
            (1, 2) => $f::<S, F, 1, 2> $args,
            (2, 2) => $f::<S, F, 2, 2> $args,
            (3, 2) => $f::<S, F, 3, 2> $args,
            (1, 1) => $f::<S, F, 1, 1> $args,
            (2, 1) => $f::<S, F, 2, 1> $args,
            (3, 1) => $f::<S, F, 3, 1> $args,
            _ => unreachable!("up to three rows, and heights that blocks have"),
        }
    };
}

/// `narrow[r, j] = between[j] · a[j] · x[r]`.
#[inline(always)]
fn narrow_all<S: Sixteen, F: Stored<S>>(s: S, w: &Work<'_>, a: F, narrow: &mut [f32]) {
    let (rank, chunks) = (w.term.a.rows(), w.term.a.cols().div_ceil(LANES));
    assert_eq!(a.len(), rank * chunks);
    for (i, rows) in w.rows.chunks(SIDE).enumerate() {
        let narrow = &mut narrow[i * SIDE * rank..];
        for (first, height) in blocks(rank) {
            sized!(dots, rows.len(), height, (s, w, rows, a, first, narrow));
        }
    }
}

#[inline(always)]
fn dots<S: Sixteen, F: Stored<S>, const M: usize, const H: usize>(
    s: S,
    w: &Work<'_>,
    rows: &[u32],
    a: F,
    first: usize,
    narrow: &mut [f32],
) {
    let (rank, cols) = (w.term.a.rows(), w.term.a.cols());
    let start = first * cols.div_ceil(LANES);
    let mut x: [&[f32]; M] = [&[]; M];
    for m in 0..M {
        x[m] = &w.term.x[rows[m] as usize * cols..][..cols];
    }
    let mut sums = [[s.splat(0.0); H]; M];
    for chunk in 0..cols / LANES {
        let at = start + chunk * H;
        let mut v = [s.splat(0.0); M];
        for m in 0..M {
            let here = &x[m][chunk * LANES..];
            v[m] = s.load(here.first_chunk().expect("sixteen columns are left"));
        }
        for k in 0..H {
            a.ahead(at + k);
            let a = a.vector(s, at + k);
            for m in 0..M {
                sums[m][k] = s.fma(a, v[m], sums[m][k]);
            }
        }
    }
    if !cols.is_multiple_of(LANES) {
        // The factor's other columns are 0.
        let at = start + cols / LANES * H;
        for m in 0..M {
            let mut rest = [0.0; LANES];
            let left = &x[m][cols / LANES * LANES..];
            rest[..left.len()].copy_from_slice(left);
            let v = s.load(&rest);
            for k in 0..H {
                sums[m][k] = s.fma(a.vector(s, at + k), v, sums[m][k]);
            }
        }
    }
    for m in 0..M {
        for k in 0..H {
            let sum = s.sum_lanes(sums[m][k]);
            narrow[m * rank + first + k] = sum * w.term.between[first + k];
        }
    }
}

/// `out[r] += after · Σ narrow[r, j] · b[j]`, block by block.
#[inline(always)]
fn spread_all<S: Sixteen, F: Stored<S>>(s: S, w: &Work<'_>, b: F, narrow: &[f32]) {
    let (rank, chunks) = (w.term.b.rows(), w.term.b.cols().div_ceil(LANES));
    assert_eq!(b.len(), rank * chunks);
    for (i, rows) in w.rows.chunks(SIDE).enumerate() {
        let narrow = &narrow[i * SIDE * rank..];
        for (first, height) in blocks(rank) {
            sized!(spread, rows.len(), height, (s, w, rows, b, first, narrow));
        }
    }
}

#[inline(always)]
fn spread<S: Sixteen, F: Stored<S>, const M: usize, const H: usize>(
    s: S,
    w: &Work<'_>,
    rows: &[u32],
    b: F,
    first: usize,
    narrow: &[f32],
) {
    let (rank, n) = (w.term.b.rows(), w.term.b.cols());
    let start = first * n.div_ceil(LANES);
    let mut by = [[s.splat(0.0); H]; M];
    for m in 0..M {
        for k in 0..H {
            by[m][k] = s.splat(narrow[m * rank + first + k]);
        }
    }
    for chunk in 0..n.div_ceil(LANES) {
        let at = start + chunk * H;
        let mut sums = [s.splat(0.0); M];
        for k in 0..H {
            b.ahead(at + k);
            let b = b.vector(s, at + k);
            for m in 0..M {
                sums[m] = s.fma(by[m][k], b, sums[m]);
            }
        }
        let columns = chunk * LANES..n.min((chunk + 1) * LANES);
        for m in 0..M {
            // SAFETY: each row of an output is in one task only, which `check` has seen to.
            let out = unsafe {
                w.out
                    .part(rows[m] as usize * n + columns.start, columns.len())
            };
            let after = w.term.after.map(|after| &after[columns.clone()]);
            if let Ok(out) = <&mut [f32; LANES]>::try_from(&mut *out) {
                let mut sum = sums[m];
                if let Some(after) = after {
                    let after = after.first_chunk().expect("as long as the outputs");
                    sum = s.mul(sum, s.load(after));
                }
                s.store(s.add(s.load(out), sum), out);
                continue;
            }
            let mut lanes = [0.0; LANES];
            s.store(sums[m], &mut lanes);
            for (i, out) in out.iter_mut().enumerate() {
                *out += lanes[i] * after.map_or(1.0, |after| after[i]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{DType, Matrix, isa};

    /// Numbers from −1 to 1 that look random.
    fn numbers(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(next).collect()
    }

    fn factor(dtype: DType, rank: usize, cols: usize, seed: u32, shift: usize) -> Factor {
        let values = numbers(rank * cols, seed);
        let mut bytes = vec![0; shift];
        for v in values {
            match dtype {
                DType::F32 => bytes.extend(v.to_le_bytes()),
                DType::F16 => bytes.extend(half::f16::from_f32(v).to_le_bytes()),
                _ => bytes.extend(half::bf16::from_f32(v).to_le_bytes()),
            }
        }
        let matrix = Matrix::new(dtype, rank, cols, Bytes::from(bytes).slice(shift..)).unwrap();
        let factor = Factor::from(matrix.clone());
        let (mut a, mut b) = (vec![0.0; cols], vec![0.0; cols]);
        for row in 0..rank {
            matrix.row(row, &mut a);
            factor.row(row, &mut b);
            assert_eq!(a, b);
        }
        factor
    }

    /// The textbook's sums.
    fn naive(term: &LowRankTerm<'_>, out: &mut [f32]) {
        let (rank, cols, n) = (term.a.rows(), term.a.cols(), term.b.cols());
        let (mut a, mut b) = (vec![0.0; cols], vec![0.0; n]);
        for &row in term.rows {
            let row = row as usize;
            for j in 0..rank {
                term.a.row(j, &mut a);
                term.b.row(j, &mut b);
                let x = &term.x[row * cols..][..cols];
                let dot: f64 = a.iter().zip(x).map(|(a, x)| f64::from(a * x)).sum();
                for i in 0..n {
                    let after = term.after.map_or(1.0, |after| after[i]);
                    out[row * n + i] += dot as f32 * term.between[j] * b[i] * after;
                }
            }
        }
    }

    #[test]
    fn terms_are_those_of_the_textbook_and_do_not_see_their_neighbours() {
        let team = Team::new(2);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (rank, cols, n) in [
                (1, 16, 16),
                (3, 64, 40),
                (8, 50, 96),
                (17, 33, 7),
                (5, 8, 200),
            ] {
                let rows = 21;
                let x = numbers(rows * cols, 1);
                let (between, after) = (numbers(rank, 2), numbers(n, 3));
                let factors: Vec<[Factor; 2]> = (0..3)
                    .map(|i| {
                        let shift = if i == 2 { 1 } else { 0 };
                        [
                            factor(dtype, rank, cols, 4 + i, shift),
                            factor(dtype, rank, n, 9 + i, shift),
                        ]
                    })
                    .collect();
                let picks: [Vec<u32>; 3] = [vec![0], (1..14).collect(), vec![20, 15, 17]];
                let terms: Vec<LowRankTerm<'_>> = factors
                    .iter()
                    .zip(&picks)
                    .enumerate()
                    .map(|(i, ([a, b], rows))| LowRankTerm {
                        x: &x,
                        rows,
                        a,
                        between: &between,
                        b,
                        after: (i == 1).then_some(&after[..]),
                        out: 0,
                    })
                    .collect();
                let start = numbers(rows * n, 30);
                let (mut out, mut expected) = (start.clone(), start.clone());
                add_low_rank(&team, &terms, &mut [&mut out]);
                for term in &terms {
                    naive(term, &mut expected);
                }
                for (found, expected) in out.iter().zip(&expected) {
                    let close = (found - expected).abs() <= 1e-4 * (1.0 + expected.abs());
                    assert!(close, "{dtype} {rank} {cols} {n}: {found} {expected}");
                }
                // Alone, each row has the same bits.
                for term in &terms {
                    for row in term.rows {
                        let mut alone = start.clone();
                        let rows = &[*row];
                        add_low_rank(&team, &[LowRankTerm { rows, ..*term }], &mut [&mut alone]);
                        let here = *row as usize * n..(*row as usize + 1) * n;
                        assert_eq!(alone[here.clone()], out[here]);
                    }
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_agrees() {
        let (rank, cols, n) = (6, 72, 56);
        let x = numbers(3 * cols, 1);
        let (a, b) = (
            factor(DType::BF16, rank, cols, 2, 0),
            factor(DType::F16, rank, n, 3, 0),
        );
        let between = numbers(rank, 4);
        let term = LowRankTerm {
            x: &x,
            rows: &[0, 2],
            a: &a,
            between: &between,
            b: &b,
            after: None,
            out: 0,
        };
        let mut expected = vec![0.0; 3 * n];
        naive(&term, &mut expected);
        for isa in isa::all() {
            let mut out = vec![0.0; 3 * n];
            let disjoint = Disjoint::new(&mut out);
            let work = Work {
                term: &term,
                rows: term.rows,
                out: &disjoint,
            };
            (isa.low_rank)(&work, &[], &mut Vec::new());
            for (found, expected) in out.iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-4 * (1.0 + expected.abs()));
            }
        }
    }

    #[test]
    #[should_panic(expected = "twice")]
    fn a_row_is_in_one_term_of_an_output() {
        let (a, b) = (
            factor(DType::F32, 1, 4, 1, 0),
            factor(DType::F32, 1, 4, 2, 0),
        );
        let term = LowRankTerm {
            x: &[0.0; 8],
            rows: &[1, 1],
            a: &a,
            between: &[1.0],
            b: &b,
            after: None,
            out: 0,
        };
        add_low_rank(&Team::new(1), &[term], &mut [&mut [0.0; 8]]);
    }
}
