//! Arrays of any number of axes, rows last: what constants are folded with, and what operations
//! without a kernel of their own run with.

/// Values of this shape; `None` when they cannot be counted.
pub(crate) fn count(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |n, &size| n.checked_mul(size))
}

/// The shape that both are repeated to, as numpy has it.
pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |shape: &[usize], i: usize| match (i + shape.len()).checked_sub(rank) {
        Some(i) => shape[i],
        None => 1,
    };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

/// From one value to the next along each axis.
pub(crate) fn strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![0; shape.len()];
    let mut step = 1;
    for (stride, &size) in strides.iter_mut().zip(shape).rev() {
        *stride = step as isize;
        step *= size;
    }
    strides
}

/// Strides of `shape` seen as `out`, 0 along axes that are repeated.
pub(crate) fn repeated(shape: &[usize], out: &[usize]) -> Vec<isize> {
    let own = strides(shape);
    let more = out.len() - shape.len();
    (0..out.len())
        .map(|i| match i.checked_sub(more) {
            Some(j) if shape[j] != 1 => own[j],
            _ => 0,
        })
        .collect()
}

/// Calls `row` with the offset of each run along the last axis, first to last.
fn rows(size: &[usize], strides: &[isize], offset: isize, row: &mut impl FnMut(isize)) {
    match size {
        [] | [_] => row(offset),
        [n, rest @ ..] => {
            for i in 0..*n as isize {
                rows(rest, &strides[1..], offset + i * strides[0], row);
            }
        }
    }
}

/// Copies values that lie anyhow into ones that lie in order.
pub(crate) fn gather_strided<T: Copy>(
    x: &[T],
    offset: usize,
    strides: &[isize],
    size: &[usize],
    out: &mut [T],
) {
    if out.is_empty() {
        return;
    }
    let last = size.last().copied().unwrap_or(1);
    let step = strides.last().copied().unwrap_or(1);
    let mut chunks = out.chunks_exact_mut(last);
    rows(size, strides, offset as isize, &mut |at| {
        let out = chunks.next().expect("one for each row of the shape");
        match step {
            1 => out.copy_from_slice(&x[at as usize..][..last]),
            _ => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = x[(at + i as isize * step) as usize];
                }
            }
        }
    });
}

pub(crate) fn slice<T: Copy>(
    x: &[T],
    shape: &[usize],
    start: &[usize],
    step: &[isize],
    size: &[usize],
    out: &mut [T],
) {
    let own = strides(shape);
    let offset: usize = start.iter().zip(&own).map(|(&i, &s)| i * s as usize).sum();
    let steps: Vec<isize> = own.iter().zip(step).map(|(&a, &b)| a * b).collect();
    gather_strided(x, offset, &steps, size, out);
}

pub(crate) fn transpose<T: Copy>(x: &[T], shape: &[usize], perm: &[usize], out: &mut [T]) {
    let own = strides(shape);
    let turned: Vec<isize> = perm.iter().map(|&i| own[i]).collect();
    let size: Vec<usize> = perm.iter().map(|&i| shape[i]).collect();
    gather_strided(x, 0, &turned, &size, out);
}

pub(crate) fn expand<T: Copy>(x: &[T], shape: &[usize], to: &[usize], out: &mut [T]) {
    gather_strided(x, 0, &repeated(shape, to), to, out);
}

/// Joins inputs along an axis.
pub(crate) fn concat<T: Copy>(inputs: &[(&[T], &[usize])], axis: usize, out: &mut [T]) {
    let width = |shape: &[usize]| shape[axis..].iter().product::<usize>();
    let all: usize = inputs.iter().map(|(_, shape)| width(shape)).sum();
    let mut at = 0;
    for (x, shape) in inputs {
        let width = width(shape);
        if width > 0 {
            for (row, x) in x.chunks_exact(width).enumerate() {
                out[row * all + at..][..width].copy_from_slice(x);
            }
        }
        at += width;
    }
}

/// Chosen indices along an axis.
pub(crate) fn gather<T: Copy>(
    x: &[T],
    shape: &[usize],
    axis: usize,
    indices: &[usize],
    out: &mut [T],
) {
    let inner: usize = shape[axis + 1..].iter().product();
    let slab = shape[axis] * inner;
    if slab == 0 || indices.is_empty() || inner == 0 {
        return;
    }
    let rows = out.chunks_exact_mut(indices.len() * inner);
    for (x, out) in x.chunks_exact(slab).zip(rows) {
        for (&i, out) in indices.iter().zip(out.chunks_exact_mut(inner)) {
            out.copy_from_slice(&x[i * inner..][..inner]);
        }
    }
}

/// `f` of two values, repeated where their shapes say so.
pub(crate) fn binary<T: Copy, U>(
    (a, a_shape): (&[T], &[usize]),
    (b, b_shape): (&[T], &[usize]),
    shape: &[usize],
    out: &mut [U],
    f: impl Fn(T, T) -> U,
) {
    if out.is_empty() {
        return;
    }
    let (a_strides, b_strides) = (repeated(a_shape, shape), repeated(b_shape, shape));
    let last = shape.last().copied().unwrap_or(1);
    let step = |strides: &[isize]| strides.last().copied().unwrap_or(1) as usize;
    let (a_step, b_step) = (step(&a_strides), step(&b_strides));
    let starts = |strides: &[isize]| {
        let mut starts = Vec::with_capacity(out.len() / last);
        rows(shape, strides, 0, &mut |at| starts.push(at as usize));
        starts
    };
    let (a_starts, b_starts) = (starts(&a_strides), starts(&b_strides));
    let places = a_starts.into_iter().zip(b_starts);
    for (out, (i, j)) in out.chunks_exact_mut(last).zip(places) {
        for (n, out) in out.iter_mut().enumerate() {
            *out = f(a[i + n * a_step], b[j + n * b_step]);
        }
    }
}

/// What surrounds a value in [`pad`]: given an index before or after, the index it mirrors.
pub(crate) enum Around<T> {
    Constant(T),
    Edge,
    Reflect,
}

pub(crate) fn pad<T: Copy>(
    x: &[T],
    shape: &[usize],
    before: &[usize],
    around: Around<T>,
    size: &[usize],
    out: &mut [T],
) {
    if out.is_empty() {
        return;
    }
    let own = strides(shape);
    let to = strides(size);
    // For each axis and output index, how far into the input it is; none where nothing is.
    let places: Vec<Vec<Option<usize>>> = (0..shape.len())
        .map(|axis| {
            let n = shape[axis] as isize;
            let place = |i: usize| {
                let at = i as isize - before[axis] as isize;
                let at = match around {
                    Around::Constant(_) if !(0..n).contains(&at) => return None,
                    Around::Constant(_) => at,
                    Around::Edge => at.clamp(0, n - 1),
                    Around::Reflect if at < 0 => -at,
                    Around::Reflect if at >= n => 2 * (n - 1) - at,
                    Around::Reflect => at,
                };
                Some(at as usize * own[axis] as usize)
            };
            (0..size[axis]).map(place).collect()
        })
        .collect();
    for (i, out) in out.iter_mut().enumerate() {
        let mut at = Some(0);
        for axis in 0..shape.len() {
            let index = i / to[axis] as usize % size[axis];
            at = at.zip(places[axis][index]).map(|(a, b)| a + b);
        }
        *out = match (at, &around) {
            (Some(at), _) => x[at],
            (None, Around::Constant(value)) => *value,
            (None, _) => unreachable!("mirrored indices are inside"),
        };
    }
}

/// Folds all values of `axes` into one: `f(sum, value, index along the last of the axes)`.
pub(crate) fn reduce(
    x: &[f32],
    shape: &[usize],
    axes: &[usize],
    out: &mut [f32],
    start: f32,
    mut f: impl FnMut(f32, f32) -> f32,
) {
    out.fill(start);
    let kept: Vec<usize> = (0..shape.len())
        .map(|i| if axes.contains(&i) { 1 } else { shape[i] })
        .collect();
    let to = repeated(&kept, shape);
    let last = shape.last().copied().unwrap_or(1);
    if x.is_empty() {
        return;
    }
    let step = to.last().copied().unwrap_or(1) as usize;
    let mut chunks = x.chunks_exact(last);
    rows(shape, &to, 0, &mut |at| {
        let row = chunks.next().expect("one for each row of the shape");
        for (i, &x) in row.iter().enumerate() {
            let out = &mut out[at as usize + i * step];
            *out = f(*out, x);
        }
    });
}

/// Splits a shape at an axis: how many rows before it, its size, how many values after it.
pub(crate) fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    let before = shape[..axis].iter().product();
    let after = shape[axis + 1..].iter().product();
    (before, shape[axis], after)
}

pub(crate) fn arg_max(x: &[f32], shape: &[usize], axis: usize, out: &mut [f32]) {
    let (rows, size, inner) = around(shape, axis);
    for row in 0..rows {
        for i in 0..inner {
            let value = |j: usize| x[(row * size + j) * inner + i];
            let mut best = 0;
            for j in 1..size {
                if value(j) > value(best) {
                    best = j;
                }
            }
            out[row * inner + i] = best as f32;
        }
    }
}

pub(crate) fn softmax(x: &[f32], shape: &[usize], axis: usize, out: &mut [f32]) {
    let (rows, size, inner) = around(shape, axis);
    for row in 0..rows {
        for i in 0..inner {
            let at = |j: usize| (row * size + j) * inner + i;
            let max = (0..size)
                .map(|j| x[at(j)])
                .fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for j in 0..size {
                let e = (x[at(j)] - max).exp();
                out[at(j)] = e;
                sum += e;
            }
            for j in 0..size {
                out[at(j)] /= sum;
            }
        }
    }
}

/// `[…, m, k] · […, k, n]`, batches repeated where their shapes say so.
pub(crate) fn matmul(
    (a, a_shape): (&[f32], &[usize]),
    (b, b_shape): (&[f32], &[usize]),
    shape: &[usize],
    out: &mut [f32],
) {
    let rank = shape.len();
    let (m, n) = (shape[rank - 2], shape[rank - 1]);
    let k = a_shape[a_shape.len() - 1];
    out.fill(0.0);
    if out.is_empty() || k == 0 {
        return;
    }
    let batches = &shape[..rank - 2];
    let starts = |x: &[usize], each: usize| {
        let strides = repeated(&x[..x.len() - 2], batches);
        let mut starts = Vec::new();
        let last = batches.last().copied().unwrap_or(1) as isize;
        let step = strides.last().copied().unwrap_or(0);
        rows(batches, &strides, 0, &mut |at| {
            starts.extend((0..last).map(|i| (at + i * step) as usize * each));
        });
        starts
    };
    let places = starts(a_shape, m * k)
        .into_iter()
        .zip(starts(b_shape, k * n));
    for ((i, j), out) in places.zip(out.chunks_exact_mut(m * n)) {
        for (row, out) in out.chunks_exact_mut(n).enumerate() {
            for (p, &a) in a[i + row * k..][..k].iter().enumerate() {
                for (out, &b) in out.iter_mut().zip(&b[j + p * n..][..n]) {
                    *out += a * b;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_broadcast_as_numpys() {
        assert_eq!(broadcast(&[2, 1, 4], &[3, 1]), Some(vec![2, 3, 4]));
        assert_eq!(broadcast(&[2], &[3]), None);
        assert_eq!(broadcast(&[], &[3]), Some(vec![3]));
    }

    #[test]
    fn a_transposed_transpose_is_what_it_was() {
        let x: Vec<u32> = (0..24).collect();
        let (mut y, mut z) = (vec![0; 24], vec![0; 24]);
        transpose(&x, &[2, 3, 4], &[2, 0, 1], &mut y);
        assert_eq!(y[..3], [0, 4, 8]);
        transpose(&y, &[4, 2, 3], &[1, 2, 0], &mut z);
        assert_eq!(x, z);
    }

    #[test]
    fn slices_step_in_both_directions() {
        let x: Vec<u32> = (0..12).collect();
        let mut y = vec![0; 4];
        slice(&x, &[3, 4], &[2, 3], &[-2, -2], &[2, 2], &mut y);
        assert_eq!(y, [11, 9, 3, 1]);
    }

    #[test]
    fn pads_mirror_or_repeat() {
        let x = [1, 2, 3];
        let mut y = vec![0; 7];
        pad(&x, &[3], &[2], Around::Reflect, &[7], &mut y);
        assert_eq!(y, [3, 2, 1, 2, 3, 2, 1]);
        pad(&x, &[3], &[2], Around::Edge, &[7], &mut y);
        assert_eq!(y, [1, 1, 1, 2, 3, 3, 3]);
        pad(&x, &[3], &[2], Around::Constant(9), &[7], &mut y);
        assert_eq!(y, [9, 9, 1, 2, 3, 9, 9]);
    }

    #[test]
    fn binaries_repeat_what_is_smaller() {
        let mut y = vec![0; 6];
        binary(
            (&[1, 2], &[2, 1]),
            (&[10, 20, 30], &[3]),
            &[2, 3],
            &mut y,
            |a, b| a + b,
        );
        assert_eq!(y, [11, 21, 31, 12, 22, 32]);
        let mut y = [0];
        binary((&[1], &[]), (&[4], &[]), &[], &mut y, |a, b| a + b);
        assert_eq!(y, [5]);
    }

    #[test]
    fn reductions_fold_any_axes() {
        let x: Vec<f32> = (0..12).map(|x| x as f32).collect();
        let mut y = vec![0.0; 3];
        reduce(&x, &[2, 3, 2], &[0, 2], &mut y, 0.0, |a, b| a + b);
        assert_eq!(y, [14.0, 22.0, 30.0]);
        let mut y = vec![0.0; 4];
        arg_max(
            &[1.0, 5.0, 2.0, 0.0, 3.0, 4.0, 9.0, 9.0],
            &[2, 2, 2],
            1,
            &mut y,
        );
        assert_eq!(y, [1.0, 0.0, 1.0, 1.0]);
    }

    #[test]
    fn products_of_batches() {
        let a = [1.0, 2.0, 3.0, 4.0];
        let b = [1.0, 0.0, 0.0, 2.0];
        let mut y = vec![0.0; 4];
        matmul((&a, &[2, 1, 2]), (&b, &[2, 2]), &[2, 1, 2], &mut y);
        assert_eq!(y, [1.0, 4.0, 3.0, 8.0]);
    }
}
