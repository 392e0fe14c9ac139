//! Low-rank terms of many adapters, added to products of one flat batch of rows.
//!
//! Each adapter's factors are read once for up to eight of its rows, from f32, f16 or bf16 as
//! they are stored (the gathered products of Punica, Chen et al., MLSys 2024, on a CPU). Every
//! output is summed in an order that the factors' shapes fix, so a row's result does not depend
//! on the rows beside it.

#![allow(clippy::needless_range_loop)] // one index walks several arrays of vectors

use std::cell::RefCell;

use crate::isa::isa;
use crate::simd::Sixteen;
use crate::team::{Disjoint, Team};
use crate::{DType, Matrix};

/// Rows that share what is read of an adapter.
const ROWS: usize = 8;
/// Rows, and rows of the first factor, whose sums are in registers at once.
const SIDE: usize = 4;

/// `out += diag(after) · bᵀ · diag(between) · a · x`, for some rows.
#[derive(Debug, Clone, Copy)]
pub struct LowRankTerm<'a> {
    /// All rows of the batch, `[rows, a.cols]`.
    pub x: &'a [f32],
    /// Which of them, each at most once.
    pub rows: &'a [u32],
    /// `[rank, cols]` of f32, f16 or bf16.
    pub a: &'a Matrix,
    /// `[rank]`.
    pub between: &'a [f32],
    /// `[rank, n]` of f32, f16 or bf16.
    pub b: &'a Matrix,
    /// `[n]`.
    pub after: Option<&'a [f32]>,
    /// Which of the outputs.
    pub out: usize,
}

/// One task: some rows of one term.
pub(crate) struct Work<'a> {
    term: &'a LowRankTerm<'a>,
    rows: &'a [u32],
    a: Values<'a>,
    b: Values<'a>,
    out: &'a Disjoint<'a, f32>,
}

/// A factor's values as their type.
#[derive(Clone, Copy)]
enum Values<'a> {
    F32(&'a [f32]),
    F16(&'a [u16]),
    Bf16(&'a [u16]),
}

impl<'a> Values<'a> {
    fn bytes(self) -> &'a [u8] {
        // SAFETY: the same memory, of which every byte is a value.
        unsafe {
            match self {
                Values::F32(x) => std::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)),
                Values::F16(x) | Values::Bf16(x) => {
                    std::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x))
                }
            }
        }
    }
}

/// Bytes that are read soon, asked for bit by bit while others are computed with: a factor is
/// read once, and too short for the machine to notice that it is read in a row.
struct Ahead<'a> {
    bytes: &'a [u8],
    /// Cache lines to ask for at each of the steps.
    lines: usize,
}

impl<'a> Ahead<'a> {
    fn new(bytes: &'a [u8], steps: usize) -> Ahead<'a> {
        let lines = bytes.len().div_ceil(64).div_ceil(steps.max(1));
        Ahead { bytes, lines }
    }

    #[inline(always)]
    fn step<S: Sixteen>(&mut self, s: S) {
        for _ in 0..self.lines {
            let Some(first) = self.bytes.first() else {
                return;
            };
            s.prefetch(first);
            self.bytes = self.bytes.get(64..).unwrap_or(&[]);
        }
    }
}

thread_local! {
    /// `a · x` of a task's rows, `[ROWS, rank]`, and factors that lie unaligned.
    static NARROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Adds terms to `outs`, each `[rows, n]`. A row of an output takes part in one term at most.
///
/// # Panics
/// When lengths do not fit the shapes, a row is out of range or twice in an output, or a factor
/// is of another type.
pub fn add_low_rank(team: &Team, terms: &[LowRankTerm<'_>], outs: &mut [&mut [f32]]) {
    check(terms, outs);
    let outs: Vec<Disjoint<'_, f32>> = outs.iter_mut().map(|out| Disjoint::new(out)).collect();
    let copies: Vec<[Option<Vec<u32>>; 2]> =
        terms.iter().map(|t| [t.a, t.b].map(aligned_copy)).collect();
    let mut tasks = Vec::with_capacity(terms.len());
    for (term, [a, b]) in terms.iter().zip(&copies) {
        for rows in term.rows.chunks(ROWS) {
            tasks.push(Work {
                term,
                rows,
                a: values(term.a, a.as_deref()),
                b: values(term.b, b.as_deref()),
                out: &outs[term.out],
            });
        }
    }
    // Some of them in a row, so that what comes next is known and can be asked for.
    let together = tasks.len().div_ceil(8 * team.threads()).max(1);
    team.run(tasks.len().div_ceil(together), &|i| {
        let tasks = &tasks[i * together..tasks.len().min((i + 1) * together)];
        NARROW.with_borrow_mut(|narrow| {
            for (i, task) in tasks.iter().enumerate() {
                let next = tasks.get(i + 1).map_or(&[][..], |next| next.a.bytes());
                (isa().low_rank)(task, next, narrow);
            }
        });
    });
}

fn check(terms: &[LowRankTerm<'_>], outs: &[&mut [f32]]) {
    let mut taken: Vec<Vec<bool>> = outs.iter().map(|_| Vec::new()).collect();
    for term in terms {
        let (cols, n) = (term.a.cols(), term.b.cols());
        assert_eq!(term.a.rows(), term.b.rows(), "the rank of both factors");
        assert_eq!(term.between.len(), term.a.rows(), "a factor for each rank");
        assert!(
            term.after.is_none_or(|after| after.len() == n),
            "a factor for each output"
        );
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

/// A factor's words, where they do not lie as their type wants.
fn aligned_copy(factor: &Matrix) -> Option<Vec<u32>> {
    let size = match factor.dtype() {
        DType::F32 => 4,
        DType::F16 | DType::BF16 => 2,
        other => panic!("a factor of type {other}"),
    };
    let bytes = factor.bytes();
    if (bytes.as_ptr() as usize).is_multiple_of(size) {
        return None;
    }
    let words = bytes.chunks(4).map(|c| {
        let mut word = [0; 4];
        word[..c.len()].copy_from_slice(c);
        u32::from_ne_bytes(word)
    });
    Some(words.collect())
}

fn values<'a>(factor: &'a Matrix, copy: Option<&'a [u32]>) -> Values<'a> {
    let len = factor.rows() * factor.cols();
    let start = copy.map_or(factor.bytes().as_ptr(), |words| words.as_ptr().cast());
    // Stored values are little-endian, as the machines are that this is compiled for.
    const { assert!(cfg!(target_endian = "little")) };
    // SAFETY: of all three, a matrix has the bytes of its shape, which live as long as it and
    // the copy do; they are aligned, or the copy is; every bit pattern is a value of the type.
    unsafe {
        match factor.dtype() {
            DType::F32 => Values::F32(std::slice::from_raw_parts(start.cast(), len)),
            DType::F16 => Values::F16(std::slice::from_raw_parts(start.cast(), len)),
            _ => Values::Bf16(std::slice::from_raw_parts(start.cast(), len)),
        }
    }
}

/// A factor's rows.
trait Rows<S: Sixteen>: Copy {
    /// Sixteen values of a row from a column on.
    fn vector(self, s: S, row: usize, at: usize) -> S::W;
    fn one(self, row: usize, at: usize) -> f32;
}

/// Values and the width of a row.
#[derive(Clone, Copy)]
struct F32<'a>(&'a [f32], usize);
#[derive(Clone, Copy)]
struct F16<'a>(&'a [u16], usize);
#[derive(Clone, Copy)]
struct Bf16<'a>(&'a [u16], usize);

macro_rules! rows {
    ($name:ident, $load:ident, $one:expr) => {
        impl<S: Sixteen> Rows<S> for $name<'_> {
            #[inline(always)]
            fn vector(self, s: S, row: usize, at: usize) -> S::W {
                let here = &self.0[row * self.1 + at..];
                s.$load(here.first_chunk().expect("sixteen columns are left"))
            }

            #[inline(always)]
            fn one(self, row: usize, at: usize) -> f32 {
                ($one)(self.0[row * self.1 + at])
            }
        }
    };
}
rows!(F32, load, |x: f32| x);
rows!(F16, load_f16, |x: u16| half::f16::from_bits(x).to_f32());
rows!(Bf16, load_bf16, |x: u16| f32::from_bits(u32::from(x) << 16));

/// Computes one task, and asks for what the `next` one reads first.
#[inline(always)]
pub(crate) fn work<S: Sixteen>(s: S, w: &Work<'_>, next: &[u8], narrow: &mut Vec<f32>) {
    let (rank, cols) = (w.term.a.rows(), w.term.a.cols());
    if narrow.len() < ROWS * rank {
        narrow.resize(ROWS * rank, 0.0);
    }
    let ahead = &mut Ahead::new(w.b.bytes(), rank.div_ceil(SIDE) * (cols / 16));
    match w.a {
        Values::F32(x) => all_dots(s, w, F32(x, cols), ahead, narrow),
        Values::F16(x) => all_dots(s, w, F16(x, cols), ahead, narrow),
        Values::Bf16(x) => all_dots(s, w, Bf16(x, cols), ahead, narrow),
    }
    let n = w.term.b.cols();
    let ahead = &mut Ahead::new(next, n / 32);
    match w.b {
        Values::F32(x) => spread_all(s, w, F32(x, n), ahead, narrow),
        Values::F16(x) => spread_all(s, w, F16(x, n), ahead, narrow),
        Values::Bf16(x) => spread_all(s, w, Bf16(x, n), ahead, narrow),
    }
}

#[inline(always)]
fn all_dots<S: Sixteen, A: Rows<S>>(
    s: S,
    w: &Work<'_>,
    a: A,
    ahead: &mut Ahead<'_>,
    narrow: &mut [f32],
) {
    let rank = w.term.a.rows();
    for (i, rows) in w.rows.chunks(SIDE).enumerate() {
        let narrow = &mut narrow[i * SIDE * rank..];
        for first in (0..rank).step_by(SIDE) {
            match rows.len() {
                1 => dots::<S, A, 1>(s, w, rows, a, first, ahead, narrow),
                2 => dots::<S, A, 2>(s, w, rows, a, first, ahead, narrow),
                3 => dots::<S, A, 3>(s, w, rows, a, first, ahead, narrow),
                _ => dots::<S, A, 4>(s, w, rows, a, first, ahead, narrow),
            }
        }
    }
}

#[inline(always)]
fn spread_all<S: Sixteen, B: Rows<S>>(
    s: S,
    w: &Work<'_>,
    b: B,
    ahead: &mut Ahead<'_>,
    narrow: &[f32],
) {
    let rank = w.term.a.rows();
    for (i, rows) in w.rows.chunks(SIDE).enumerate() {
        let narrow = &narrow[i * SIDE * rank..];
        match rows.len() {
            1 => spread::<S, B, 1>(s, w, rows, b, ahead, narrow),
            2 => spread::<S, B, 2>(s, w, rows, b, ahead, narrow),
            3 => spread::<S, B, 3>(s, w, rows, b, ahead, narrow),
            _ => spread::<S, B, 4>(s, w, rows, b, ahead, narrow),
        }
    }
}

/// `narrow[r, j…] = between · a[j…] · x[r]`, for up to four `j`.
#[allow(clippy::too_many_arguments)] // the state of one task
#[inline(always)]
fn dots<S: Sixteen, A: Rows<S>, const M: usize>(
    s: S,
    w: &Work<'_>,
    rows: &[u32],
    a: A,
    first: usize,
    ahead: &mut Ahead<'_>,
    narrow: &mut [f32],
) {
    let (rank, cols) = (w.term.a.rows(), w.term.a.cols());
    let count = SIDE.min(rank - first);
    // Where fewer are left, the first is computed again and thrown away.
    let mut j = [first; SIDE];
    for k in 0..count {
        j[k] = first + k;
    }
    let mut x: [&[f32]; M] = [&[]; M];
    for m in 0..M {
        x[m] = &w.term.x[rows[m] as usize * cols..][..cols];
    }
    let mut sums = [[s.splat(0.0); SIDE]; M];
    let whole = cols / 16 * 16;
    for at in (0..whole).step_by(16) {
        ahead.step(s);
        let mut v = [s.splat(0.0); SIDE];
        for k in 0..SIDE {
            v[k] = a.vector(s, j[k], at);
        }
        for m in 0..M {
            let x = s.load(x[m][at..].first_chunk().expect("sixteen columns are left"));
            for k in 0..SIDE {
                sums[m][k] = s.fma(v[k], x, sums[m][k]);
            }
        }
    }
    for m in 0..M {
        for k in 0..count {
            let mut sum = s.sum_lanes(sums[m][k]);
            for at in whole..cols {
                sum += a.one(j[k], at) * x[m][at];
            }
            narrow[m * rank + first + k] = sum * w.term.between[first + k];
        }
    }
}

/// `out[r] += after · Σ narrow[r, j] · b[j]`.
#[inline(always)]
fn spread<S: Sixteen, B: Rows<S>, const M: usize>(
    s: S,
    w: &Work<'_>,
    rows: &[u32],
    b: B,
    ahead: &mut Ahead<'_>,
    narrow: &[f32],
) {
    let (rank, n) = (w.term.b.rows(), w.term.b.cols());
    let whole = n / 16 * 16;
    let mut at = 0;
    while at < whole {
        let wide = at + 32 <= whole;
        ahead.step(s);
        let mut sums = [[s.splat(0.0); 2]; M];
        for j in 0..rank {
            let first = b.vector(s, j, at);
            let second = if wide { b.vector(s, j, at + 16) } else { first };
            for m in 0..M {
                let by = s.splat(narrow[m * rank + j]);
                sums[m][0] = s.fma(by, first, sums[m][0]);
                sums[m][1] = s.fma(by, second, sums[m][1]);
            }
        }
        for m in 0..M {
            for (half, sum) in sums[m].into_iter().enumerate().take(1 + usize::from(wide)) {
                let at = at + 16 * half;
                // SAFETY: each row of an output is in one task only, which `check` has seen to.
                let out = unsafe { w.out.part(rows[m] as usize * n + at, 16) };
                let out: &mut [f32; 16] = out.try_into().expect("sixteen were asked for");
                let mut sum = sum;
                if let Some(after) = w.term.after {
                    let after = after[at..].first_chunk().expect("as long as the outputs");
                    sum = s.mul(sum, s.load(after));
                }
                s.store(s.add(s.load(out), sum), out);
            }
        }
        at += if wide { 32 } else { 16 };
    }
    for m in 0..M {
        // SAFETY: as above.
        let out = unsafe { w.out.part(rows[m] as usize * n + whole, n - whole) };
        for (i, out) in out.iter_mut().enumerate() {
            let mut sum = 0.0;
            for j in 0..rank {
                sum += narrow[m * rank + j] * b.one(j, whole + i);
            }
            *out += sum * w.term.after.map_or(1.0, |after| after[whole + i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa;
    use bytes::Bytes;

    /// Numbers from −1 to 1 that look random.
    fn numbers(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(next).collect()
    }

    fn factor(dtype: DType, rank: usize, cols: usize, seed: u32, shift: usize) -> Matrix {
        let values = numbers(rank * cols, seed);
        let mut bytes = vec![0; shift];
        for v in values {
            match dtype {
                DType::F32 => bytes.extend(v.to_le_bytes()),
                DType::F16 => bytes.extend(half::f16::from_f32(v).to_le_bytes()),
                _ => bytes.extend(half::bf16::from_f32(v).to_le_bytes()),
            }
        }
        Matrix::new(dtype, rank, cols, Bytes::from(bytes).slice(shift..)).unwrap()
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
                let factors: Vec<[Matrix; 2]> = (0..3)
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
                a: values(&a, None),
                b: values(&b, None),
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
