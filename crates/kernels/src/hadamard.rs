//! Products with normalised Hadamard matrices, in the order of the fast transform.
//!
//! They spread what is large in a few dimensions over all of them, and are their own inverses.
//! Every instruction set adds the same numbers in the same order, so the bits are equal.

use crate::KvShape;
use crate::simd::Sixteen;

/// Multiplies a vector by the matrix; of a length that is no power of two, each block of the
/// largest power of two that divides it.
#[inline(always)]
pub(crate) fn turn<S: Sixteen>(s: S, x: &mut [f32]) {
    if x.is_empty() {
        return;
    }
    let block = 1 << x.len().trailing_zeros();
    for x in x.chunks_exact_mut(block) {
        if block < 16 {
            turn_few(x);
            continue;
        }
        let vectors = x.as_chunks_mut::<16>().0;
        let norm = s.splat(norm(block));
        for x in vectors.iter_mut() {
            let v = s.mul(s.load(x), norm);
            let v = s.butterfly::<1>(v);
            let v = s.butterfly::<2>(v);
            let v = s.butterfly::<4>(v);
            s.store(s.butterfly::<8>(v), x);
        }
        let mut stride = 1;
        while stride < vectors.len() {
            for both in vectors.chunks_exact_mut(2 * stride) {
                let (low, high) = both.split_at_mut(stride);
                for (low, high) in low.iter_mut().zip(high) {
                    let (a, b) = (s.load(low), s.load(high));
                    s.store(s.add(a, b), low);
                    s.store(s.sub(a, b), high);
                }
            }
            stride *= 2;
        }
    }
}

/// [`turn`] of a block, value by value.
#[inline(always)]
fn turn_few(x: &mut [f32]) {
    let norm = norm(x.len());
    x.iter_mut().for_each(|x| *x *= norm);
    let mut stride = 1;
    while stride < x.len() {
        for both in x.chunks_exact_mut(2 * stride) {
            let (low, high) = both.split_at_mut(stride);
            for (low, high) in low.iter_mut().zip(high) {
                (*low, *high) = (*low + *high, *low - *high);
            }
        }
        stride *= 2;
    }
}

#[inline(always)]
fn norm(block: usize) -> f32 {
    1.0 / (block as f32).sqrt()
}

/// Multiplies a key or a query. A value that lies in the key is turned apart from the rest, so
/// that a sum of such values can be turned back.
#[inline(always)]
pub(crate) fn turn_key<S: Sixteen>(s: S, shape: KvShape, x: &mut [f32]) {
    let (first, rest) = x.split_at_mut(key_part(shape));
    turn(s, first);
    turn(s, rest);
}

/// Dimensions of a key that are turned together, from the first on; the others are too.
pub(crate) fn key_part(shape: KvShape) -> usize {
    if shape.v_in_k {
        shape.v_dim
    } else {
        shape.k_dim
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa;

    fn values(n: usize) -> Vec<f32> {
        (0..n)
            .map(|i| (i as f32 * 0.73 + n as f32).sin() * 5.0)
            .collect()
    }

    #[test]
    fn all_instruction_sets_agree_to_the_last_bit_with_the_definition() {
        for n in [1usize, 2, 5, 8, 12, 16, 48, 64, 80, 96, 128, 512, 576] {
            let block: usize = 1 << n.trailing_zeros();
            let x = values(n);
            let mut few = x.clone();
            few.chunks_exact_mut(block).for_each(turn_few);
            for isa in isa::all() {
                let mut y = x.clone();
                (isa.hadamard)(&mut y);
                assert_eq!(y, few, "{n} values");
            }
            // Sylvester's matrix: the sign is that of the common bits of row and column.
            for (row, y) in few.iter().enumerate() {
                let (start, row) = (row / block * block, row % block);
                let signed = |d: usize| match (row & d).count_ones() % 2 {
                    0 => f64::from(x[start + d]),
                    _ => -f64::from(x[start + d]),
                };
                let exact = (0..block).map(signed).sum::<f64>() / (block as f64).sqrt();
                assert!((f64::from(*y) - exact).abs() < 2e-5, "{n} values");
            }
        }
    }

    #[test]
    fn twice_is_nothing() {
        for n in [7, 64, 96, 512] {
            let x = values(n);
            let mut y = x.clone();
            let best = isa::isa();
            (best.hadamard)(&mut y);
            (best.hadamard)(&mut y);
            assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1e-5));
        }
    }
}
