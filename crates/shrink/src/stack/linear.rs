//! The linear algebra of stacks: products on the kernels' tiles, and two solvers.

use sedge_kernels::{Matrix, Team, matmul};

/// `a · bᵀ` of `[m, k]` and `[n, k]`.
pub(super) fn product(team: &Team, a: &[f32], b: &[f32], k: usize) -> Vec<f32> {
    let (m, n) = (a.len() / k, b.len() / k);
    let b = Matrix::from_f32(n, k, b).expect("as many values as rows and columns");
    let mut out = vec![0.0; m * n];
    matmul(team, a, &b, &mut out);
    out
}

/// `[cols, rows]` of `[rows, cols]`.
pub(super) fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for (i, row) in x.chunks_exact(cols).enumerate() {
        for (j, x) in row.iter().enumerate() {
            out[j * rows + i] = *x;
        }
    }
    out
}

/// The sum of products, in f64.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
}

/// Brings `x` nearer to the solution of `a · x = b`, `a` symmetric and positive definite, by
/// conjugate gradients. Leaves it as it is where the sums leave the range of f64.
pub(super) fn approach(a: &[f32], b: &[f64], x: &mut [f32], steps: usize) {
    let n = b.len();
    let through = |x: &[f64]| -> Vec<f64> {
        let row = |row: &[f32]| row.iter().zip(x).map(|(a, x)| f64::from(*a) * x).sum();
        a.chunks_exact(n).map(row).collect()
    };
    let square = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
    let mut at: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let mut left: Vec<f64> = b.iter().zip(through(&at)).map(|(b, ax)| b - ax).collect();
    let mut way = left.clone();
    let mut size = square(&left);
    for _ in 0..steps {
        let change = through(&way);
        let bend: f64 = way.iter().zip(&change).map(|(a, b)| a * b).sum();
        if !(bend > 0.0 && size > 0.0) {
            break;
        }
        let far = size / bend;
        for i in 0..n {
            at[i] += far * way[i];
            left[i] -= far * change[i];
        }
        let next = square(&left);
        for (way, left) in way.iter_mut().zip(&left) {
            *way = left + next / size * *way;
        }
        size = next;
    }
    if at.iter().all(|x| x.is_finite()) {
        for (x, at) in x.iter_mut().zip(at) {
            *x = at as f32;
        }
    }
}

/// Solves a small symmetric system by elimination with a slightly raised diagonal; `out` stays as
/// it was where there is no solution.
pub(super) fn solve(a: &mut [f64], b: &mut [f64], out: &mut [f32]) {
    let n = b.len();
    let mean = (0..n).map(|i| a[i * (n + 1)]).sum::<f64>() / n as f64;
    if n > 1 {
        (0..n).for_each(|i| a[i * (n + 1)] += 1e-6 * mean);
    }
    for i in 0..n {
        let pivot = a[i * (n + 1)];
        if !(pivot > 0.0 && pivot.is_finite()) {
            return;
        }
        for row in i + 1..n {
            let by = a[row * n + i] / pivot;
            for col in i..n {
                a[row * n + col] -= by * a[i * n + col];
            }
            b[row] -= by * b[i];
        }
    }
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|j| a[i * n + j] * b[j]).sum();
        b[i] = (b[i] - known) / a[i * (n + 1)];
    }
    if b.iter().all(|x| x.is_finite()) {
        for (out, x) in out.iter_mut().zip(b) {
            *out = *x as f32;
        }
    }
}

/// Makes rows orthonormal, in order; one that is a sum of those before becomes 0.
pub(super) fn orthonormal(x: &mut [f32], len: usize) {
    for r in 0..x.len() / len {
        let (before, rest) = x.split_at_mut(r * len);
        let row = &mut rest[..len];
        for other in before.chunks_exact(len) {
            let along = dot(row, other) as f32;
            for (x, other) in row.iter_mut().zip(other) {
                *x -= along * other;
            }
        }
        let size = dot(row, row).sqrt() as f32;
        let scale = if size > 1e-12 { 1.0 / size } else { 0.0 };
        row.iter_mut().for_each(|x| *x *= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A positive definite matrix.
    fn matrix(n: usize) -> Vec<f32> {
        let value = |i: usize| ((i * 7919 + 13) % 101) as f32 / 50.0 - 1.0;
        let x: Vec<f32> = (0..3 * n * n).map(value).collect();
        let mut h = product(&Team::new(1), &x, &x, 3 * n);
        h.truncate(n * n);
        (0..n).for_each(|i| h[i * (n + 1)] += 0.5);
        h
    }

    #[test]
    fn both_solvers_solve() {
        let n = 19;
        let a = matrix(n);
        let expected: Vec<f32> = (0..n).map(|i| i as f32 / 7.0 - 1.0).collect();
        let b: Vec<f64> = a.chunks_exact(n).map(|row| dot(row, &expected)).collect();
        let mut near = vec![0.0; n];
        approach(&a, &b, &mut near, 60);
        let mut exact = vec![0.0; n];
        let mut wide: Vec<f64> = a.iter().map(|a| f64::from(*a)).collect();
        solve(&mut wide, &mut b.clone(), &mut exact);
        for i in 0..n {
            assert!(
                (near[i] - expected[i]).abs() < 1e-2,
                "{} {}",
                near[i],
                expected[i]
            );
            assert!((exact[i] - expected[i]).abs() < 1e-2);
        }
        let mut kept = vec![3.0];
        solve(&mut [0.0], &mut [1.0], &mut kept);
        assert_eq!(kept, [3.0]);
    }
}
