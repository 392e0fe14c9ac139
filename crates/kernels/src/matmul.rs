//! Products of activations with stored matrices.
//!
//! An output is the sum, in order, of the products of [`CHUNK`] columns each; within a chunk,
//! eight lanes each take every eighth column and are then summed in one order. Neither the
//! tile that computes an output nor the rows beside it enter its result.

use std::cell::RefCell;

use crate::isa::{Dot4, Isa, isa};
use crate::simd::{LANES, Simd};
use crate::team::{Disjoint, Team};
use crate::{DType, Matrix};

/// Columns multiplied before a sum: four rows of x and three of w fit the first-level cache.
/// A multiple of every block length.
const CHUNK: usize = 1024;

/// Rows of weights decoded at once for many rows of x: they stay in the second-level cache.
const WIDE: usize = 48;

/// Rows of weights decoded at once for few rows of x: they stay in the first-level cache.
const NARROW: usize = 4;

/// Rows of x in one task: enough to pay for decoding the weights.
const DEEP: usize = 256;

thread_local! {
    /// Decoded weights.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `out[m, w.rows] = x[m, w.cols] · wᵀ`, f32 activations, any stored type.
///
/// Each output is reduced in one order whatever `m` is.
///
/// # Panics
/// When the lengths do not fit the shapes.
pub fn matmul(team: &Team, x: &[f32], w: &Matrix, out: &mut [f32]) {
    matmul_on(isa(), team, x, w, out);
}

fn matmul_on(isa: &Isa, team: &Team, x: &[f32], w: &Matrix, out: &mut [f32]) {
    let (n, k) = (w.rows(), w.cols());
    if n == 0 || k == 0 {
        assert!(n > 0 || out.is_empty());
        assert!(x.is_empty());
        out.fill(0.0);
        return;
    }
    let m = x.len() / k;
    assert_eq!(x.len(), m * k, "x is not whole rows of {k}");
    assert_eq!(out.len(), m * n, "out is not {m} × {n}");

    if let (1, Some(dot4)) = (m, isa.dot4) {
        return one_row(dot4, team, x, w, out);
    }
    let decoded = if m < 4 { NARROW } else { WIDE };
    // Some four tasks for each thread, so that a slow one does not hold up the rest.
    let share = n.div_ceil(4 * team.threads()).next_multiple_of(12);
    let width = if m < 4 { share } else { share.min(WIDE) };
    let deep = m.div_ceil(DEEP);
    let out = Disjoint::new(out);
    team.run(n.div_ceil(width) * deep, &|task| {
        let (rows, x_rows) = (task / deep * width, task % deep * DEEP);
        let rows = rows..n.min(rows + width);
        let x_rows = x_rows..m.min(x_rows + DEEP);
        for start in rows.clone().step_by(decoded) {
            let n_here = decoded.min(rows.end - start);
            for column in (0..k).step_by(CHUNK) {
                let columns = CHUNK.min(k - column);
                with_weights(isa, w, start, n_here, column, columns, |weights, stride| {
                    let panel = Panel {
                        x: &x[x_rows.start * k + column..],
                        x_stride: k,
                        m: x_rows.len(),
                        w: weights,
                        w_stride: stride,
                        n: n_here,
                        k: columns,
                        out: &out,
                        out_start: x_rows.start * n + start,
                        out_stride: n,
                        add: column > 0,
                    };
                    panel.compute(&isa.tiles);
                });
            }
        }
    });
}

/// The product of one row with the matrix: bound by reading the weights, so these are decoded
/// in registers, four rows side by side.
fn one_row(dot4: Dot4, team: &Team, x: &[f32], w: &Matrix, out: &mut [f32]) {
    let (n, row_bytes) = (w.rows(), w.row_bytes());
    let (block, size) = (w.dtype().block_len(), w.dtype().block_bytes());
    let width = n.div_ceil(4 * team.threads()).next_multiple_of(4);
    let out = Disjoint::new(out);
    team.run(n.div_ceil(width), &|task| {
        let rows = task * width..n.min((task + 1) * width);
        // SAFETY: each task writes the outputs of its own rows.
        let out = unsafe { out.part(rows.start, rows.len()) };
        for (start, out) in rows.step_by(4).zip(out.chunks_mut(4)) {
            // Where fewer than four are left, the last is repeated.
            let rows = [0, 1, 2, 3].map(|r| (start + r).min(n - 1) * row_bytes);
            let rows = rows.map(|at| &w.bytes()[at..at + row_bytes]);
            for (chunk, x) in x.chunks(CHUNK).enumerate() {
                let at = chunk * CHUNK / block * size..(chunk * CHUNK + x.len()) / block * size;
                let sums = dot4(w.dtype(), rows.map(|row| &row[at.clone()]), x);
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = if chunk > 0 { *out + sum } else { sum };
                }
            }
        }
    });
}

/// Calls `f` with `rows × columns` values of `w` as f32 and the distance between rows: where
/// they lie when they are aligned f32, else decoded.
fn with_weights(
    isa: &Isa,
    w: &Matrix,
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
    f: impl FnOnce(&[f32], usize),
) {
    let (block, size) = (w.dtype().block_len(), w.dtype().block_bytes());
    let (row_bytes, skip) = (w.row_bytes(), column / block * size);
    let bytes = &w.bytes()[row * row_bytes + skip..];
    if w.dtype() == DType::F32 && cfg!(target_endian = "little") {
        // SAFETY: any four bytes are an f32.
        let (before, values, _) = unsafe { bytes.align_to::<f32>() };
        if before.is_empty() {
            return f(values, w.cols());
        }
    }
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < rows * columns {
            scratch.resize(rows * columns, 0.0);
        }
        let bytes = bytes
            .chunks(row_bytes)
            .map(|row| &row[..columns / block * size]);
        for (bytes, out) in bytes.zip(scratch.chunks_exact_mut(columns)).take(rows) {
            (isa.decode)(w.dtype(), bytes, out);
        }
        f(scratch, columns);
    });
}

/// `out[i, j] (+)= x[i, ..k] · w[j, ..k]` for `m × n` outputs.
struct Panel<'a> {
    x: &'a [f32],
    x_stride: usize,
    m: usize,
    w: &'a [f32],
    w_stride: usize,
    n: usize,
    k: usize,
    /// The outputs of this panel belong to the calling task alone.
    out: &'a Disjoint<'a, f32>,
    out_start: usize,
    out_stride: usize,
    /// Adds to what is there.
    add: bool,
}

impl Panel<'_> {
    fn compute(&self, tiles: &Tiles) {
        for i in (0..self.m).step_by(TILE_X) {
            let rows = TILE_X.min(self.m - i);
            for j in (0..self.n).step_by(TILE_W) {
                let columns = TILE_W.min(self.n - j);
                let mut sums = [[0.0; TILE_W]; TILE_X];
                let (x, w) = (&self.x[i * self.x_stride..], &self.w[j * self.w_stride..]);
                let tile = tiles[rows - 1][columns - 1];
                tile(x, self.x_stride, w, self.w_stride, self.k, &mut sums);
                for (r, sums) in sums.iter().enumerate().take(rows) {
                    let at = self.out_start + (i + r) * self.out_stride + j;
                    // SAFETY: the panel's outputs belong to the calling task alone.
                    let out = unsafe { self.out.part(at, columns) };
                    for (out, sum) in out.iter_mut().zip(sums) {
                        *out = if self.add { *out + sum } else { *sum };
                    }
                }
            }
        }
    }
}

/// Rows of x and of w in a tile: twelve sums and four operands fill sixteen registers.
pub(crate) const TILE_X: usize = 4;
pub(crate) const TILE_W: usize = 3;

/// Products of rows of `x`, a stride apart, with rows of `w`, over `k` columns.
pub(crate) type Tile = fn(&[f32], usize, &[f32], usize, usize, &mut [[f32; TILE_W]; TILE_X]);

/// `tiles[m − 1][n − 1]` computes `m × n` products. Each is a function of its own: together in
/// one, they would not get the registers that they need.
pub(crate) type Tiles = [[Tile; TILE_W]; TILE_X];

/// The function behind a [`Tile`].
#[inline(always)]
pub(crate) fn strided_tile<S: Simd, const M: usize, const N: usize>(
    s: S,
    (x, x_stride): (&[f32], usize),
    (w, w_stride): (&[f32], usize),
    k: usize,
    out: &mut [[f32; TILE_W]; TILE_X],
) {
    let mut x_rows: [&[f32]; M] = [&[]; M];
    for (r, row) in x_rows.iter_mut().enumerate() {
        *row = &x[r * x_stride..][..k];
    }
    let mut w_rows: [&[f32]; N] = [&[]; N];
    for (r, row) in w_rows.iter_mut().enumerate() {
        *row = &w[r * w_stride..][..k];
    }
    for (out, sums) in out.iter_mut().zip(tile(s, &x_rows, &w_rows)) {
        out[..N].copy_from_slice(&sums);
    }
}

/// The dot products of `M` rows with `N ≤ 4` rows, all of one length.
#[inline(always)]
pub(crate) fn tile<S: Simd, const M: usize, const N: usize>(
    s: S,
    x: &[&[f32]; M],
    w: &[&[f32]; N],
) -> [[f32; N]; M] {
    let (steps, rest) = (x[0].len() / LANES, x[0].len() % LANES);
    let mut x8: [&[[f32; LANES]]; M] = [&[]; M];
    for (x8, x) in x8.iter_mut().zip(x) {
        *x8 = &x.as_chunks().0[..steps];
    }
    let mut w8: [&[[f32; LANES]]; N] = [&[]; N];
    for (w8, w) in w8.iter_mut().zip(w) {
        *w8 = &w.as_chunks().0[..steps];
    }
    let mut acc = [[s.zero(); N]; M];
    for step in 0..steps {
        let mut wv = [s.zero(); N];
        for c in 0..N {
            wv[c] = s.load(&w8[c][step]);
        }
        for r in 0..M {
            let xv = s.load(&x8[r][step]);
            for c in 0..N {
                acc[r][c] = s.fma(xv, wv[c], acc[r][c]);
            }
        }
    }
    if rest > 0 {
        for r in 0..M {
            let xv = s.load_part(&x[r][steps * LANES..]);
            for c in 0..N {
                acc[r][c] = s.fma(xv, s.load_part(&w[c][steps * LANES..]), acc[r][c]);
            }
        }
    }
    let mut sums = [[0.0; N]; M];
    for r in 0..M {
        let mut four = [s.zero(); 4];
        four[..N].copy_from_slice(&acc[r]);
        sums[r].copy_from_slice(&s.sum4(four)[..N]);
    }
    sums
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::isa;

    /// Reproducible values in −1 to 1.
    fn values(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2) + 1;
        let mut next = move || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// A matrix of any type: random bytes, with ordinary scales.
    fn matrix(dtype: DType, rows: usize, cols: usize, seed: u64) -> Matrix {
        let len = dtype.bytes_for(rows * cols).unwrap();
        let mut bytes: Vec<u8> = values(len, seed)
            .iter()
            .map(|v| (v * 128.0) as i8 as u8)
            .collect();
        let scales: &[usize] = match dtype {
            DType::F32 | DType::F16 | DType::BF16 => &[],
            DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
            DType::Q2K => &[80, 82],
            DType::Q3K => &[108],
            DType::Q6K => &[208],
            _ => &[0],
        };
        for block in bytes.chunks_mut(dtype.block_bytes()) {
            for &at in scales {
                block[at..at + 2].copy_from_slice(&half::f16::from_f32(0.01).to_le_bytes());
            }
            match dtype {
                DType::F32 => block.copy_from_slice(&(f32::from(block[0]) - 128.0).to_le_bytes()),
                DType::F16 => block[1] &= 0xbf,
                DType::BF16 => block[1] &= 0xbf,
                _ => {}
            }
        }
        Matrix::new(dtype, rows, cols, bytes.into()).unwrap()
    }

    /// The product in f64, and for each output the sum of magnitudes, which bounds the error.
    fn exact(x: &[f32], w: &Matrix) -> Vec<(f64, f64)> {
        let mut row = vec![0.0; w.cols()];
        let mut out = vec![(0.0, 0.0); x.len() / w.cols() * w.rows()];
        for r in 0..w.rows() {
            w.row(r, &mut row);
            for (i, x) in x.chunks(w.cols()).enumerate() {
                let terms = x
                    .iter()
                    .zip(&row)
                    .map(|(a, b)| f64::from(*a) * f64::from(*b));
                out[i * w.rows() + r] = terms.fold((0.0, 0.0), |s, t| (s.0 + t, s.1 + t.abs()));
            }
        }
        out
    }

    fn product(isa: &Isa, threads: usize, x: &[f32], w: &Matrix) -> Vec<f32> {
        let mut out = vec![f32::NAN; x.len() / w.cols() * w.rows()];
        matmul_on(isa, &Team::new(threads), x, w, &mut out);
        out
    }

    /// Columns that fill blocks and are now and then odd, or longer than a chunk.
    fn columns(dtype: DType, pick: usize) -> usize {
        match dtype.block_len() {
            1 => [1, 7, 8, 33, 250, 1024, 1031, 2100][pick % 8],
            block => block * [1, 2, 3, 5][pick % 4] * if pick >= 4 { 8 } else { 1 },
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() })]

        #[test]
        fn every_set_agrees_with_f64(
            d in 0usize..15, m in 1usize..20, n in 1usize..70, pick in 0usize..8, seed: u32,
            threads in 1usize..4, power in -12i32..12,
        ) {
            let dtype = DType::ALL[d];
            let k = columns(dtype, pick);
            let w = matrix(dtype, n, k, seed.into());
            let mut x = values(m * k, u64::from(seed) + 1);
            x.iter_mut().for_each(|x| *x *= 10f32.powi(power));
            let exact = exact(&x, &w);
            for isa in isa::all() {
                for (y, (e, size)) in product(isa, threads, &x, &w).iter().zip(&exact) {
                    let bound = size * 1e-7 * (4.0 + (k as f64 / 8.0).min(128.0)) + 1e-30;
                    prop_assert!((f64::from(*y) - e).abs() <= bound, "{dtype}: {y}, not {e}");
                }
            }
        }

        #[test]
        fn a_row_does_not_depend_on_its_batch(
            d in 0usize..15, m in 2usize..12, n in 1usize..120, pick in 0usize..8, seed: u32,
        ) {
            let dtype = DType::ALL[d];
            let k = columns(dtype, pick);
            let w = matrix(dtype, n, k, seed.into());
            let x = values(m * k, u64::from(seed) + 1);
            for isa in isa::all() {
                let all = product(isa, 1, &x, &w);
                prop_assert_eq!(&all, &product(isa, 3, &x, &w));
                for (x, y) in x.chunks(k).zip(all.chunks(n)) {
                    prop_assert_eq!(&product(isa, 2, x, &w)[..], y);
                }
            }
        }

        #[test]
        fn fast_decoding_equals_portable(d in 0usize..15, seed: u32, odd in 0usize..20) {
            let dtype = DType::ALL[d];
            let n = if dtype.block_len() == 1 { 100 + odd } else { 4 * dtype.block_len() };
            let bytes: Vec<u8> = values(dtype.bytes_for(n).unwrap(), seed.into())
                .iter().map(|v| (v * 128.0) as i8 as u8).collect();
            let mut expected = vec![0.0; n];
            (isa::PORTABLE.decode)(dtype, &bytes, &mut expected);
            for isa in isa::all() {
                let mut out = vec![0.0; n];
                (isa.decode)(dtype, &bytes, &mut out);
                for (a, b) in out.iter().zip(&expected) {
                    prop_assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(), "{dtype}: {a}, not {b}");
                }
            }
        }
    }

    #[test]
    fn a_large_batch_gives_each_row_what_it_gets_alone() {
        let w = matrix(DType::Q8_0, 100, 1056, 1);
        let x = values(600 * 1056, 2);
        for isa in isa::all() {
            let all = product(isa, 2, &x, &w);
            for i in [0, 1, 255, 256, 511, 599] {
                let alone = product(isa, 2, &x[i * 1056..][..1056], &w);
                assert_eq!(all[i * 100..][..100], alone);
            }
        }
    }

    #[test]
    fn unaligned_f32_weights_give_the_same_bits() {
        let (x, w) = (values(5 * 40, 1), values(9 * 40, 2));
        let aligned = Matrix::from_f32(9, 40, &w).unwrap();
        let mut bytes = vec![0u8; 1];
        bytes.extend_from_slice(aligned.bytes());
        let shifted = bytes::Bytes::from(bytes).slice(1..);
        let shifted = Matrix::new(DType::F32, 9, 40, shifted).unwrap();
        for isa in isa::all() {
            assert_eq!(product(isa, 1, &x, &aligned), product(isa, 1, &x, &shifted));
        }
    }

    #[test]
    fn empty_shapes_are_products_too() {
        let w = Matrix::from_f32(3, 0, &[]).unwrap();
        let mut out = [7.0; 6];
        matmul(&Team::new(1), &[], &w, &mut out);
        assert_eq!(out, [0.0; 6]);
        let w = Matrix::from_f32(3, 2, &[1.0; 6]).unwrap();
        matmul(&Team::new(1), &[], &w, &mut []);
    }

    #[test]
    fn infinities_and_nan_stay_in_their_row() {
        let w = matrix(DType::Q4K, 5, 256, 3);
        let mut x = values(3 * 256, 4);
        x[256] = f32::NAN;
        x[300] = f32::INFINITY;
        for isa in isa::all() {
            let y = product(isa, 1, &x, &w);
            assert!(y[5..10].iter().all(|v| v.is_nan()));
            assert!(y[..5].iter().chain(&y[10..]).all(|v| v.is_finite()));
        }
    }
}
