//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864).

/// Which two values of a head form a rotated pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(i, i + pairs)`: Hugging Face's and GPT-NeoX's.
    Halves,
    /// `(2i, 2i + 1)`: the original; GGUF files of the llama family are permuted for it.
    Pairs,
}

/// Rotates the first `2 · pairs` values of every head in place.
///
/// - `x`: `[rows, heads, dim]`
/// - `cos`, `sin`: `[rows, pairs]`
///
/// # Panics
/// When the lengths do not fit.
pub fn rotate(
    x: &mut [f32],
    heads: usize,
    dim: usize,
    cos: &[f32],
    sin: &[f32],
    pairs: usize,
    style: RopeStyle,
) {
    assert!(
        2 * pairs <= dim,
        "{pairs} pairs do not fit in a head of {dim}"
    );
    assert_eq!(cos.len(), sin.len());
    if pairs == 0 || heads == 0 {
        return;
    }
    assert!(cos.len().is_multiple_of(pairs));
    assert_eq!(x.len(), cos.len() / pairs * heads * dim);
    let angles = cos.chunks_exact(pairs).zip(sin.chunks_exact(pairs));
    for (row, (cos, sin)) in x.chunks_exact_mut(heads * dim).zip(angles) {
        for head in row.chunks_exact_mut(dim) {
            match style {
                RopeStyle::Halves => {
                    let (a, b) = head[..2 * pairs].split_at_mut(pairs);
                    for (((a, b), &c), &s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                    }
                }
                RopeStyle::Pairs => {
                    let (head, _) = head.as_chunks_mut::<2>();
                    for (([a, b], &c), &s) in head.iter_mut().zip(cos).zip(sin) {
                        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn angles(rows: usize, pairs: usize) -> (Vec<f32>, Vec<f32>) {
        (0..rows * pairs)
            .map(|i| (i as f32 * 0.37).sin_cos())
            .map(|(s, c)| (c, s))
            .unzip()
    }

    #[test]
    fn rotating_keeps_each_pairs_length_and_leaves_the_rest() {
        let (rows, heads, dim, pairs) = (3, 2, 12, 4);
        let (cos, sin) = angles(rows, pairs);
        let x: Vec<f32> = (0..rows * heads * dim)
            .map(|i| i as f32 * 0.1 - 3.0)
            .collect();
        for style in [RopeStyle::Halves, RopeStyle::Pairs] {
            let mut y = x.clone();
            rotate(&mut y, heads, dim, &cos, &sin, pairs, style);
            for (x, y) in x.chunks(dim).zip(y.chunks(dim)) {
                assert_eq!(x[8..], y[8..]);
                for i in 0..pairs {
                    let (a, b) = match style {
                        RopeStyle::Halves => (i, i + pairs),
                        RopeStyle::Pairs => (2 * i, 2 * i + 1),
                    };
                    assert!((x[a].hypot(x[b]) - y[a].hypot(y[b])).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn the_styles_differ_by_a_permutation_alone() {
        let (dim, pairs) = (8, 4);
        let (cos, sin) = angles(1, pairs);
        let halves: Vec<f32> = (0..dim).map(|i| i as f32).collect();
        let mut pairwise: Vec<f32> = (0..pairs)
            .flat_map(|i| [halves[i], halves[i + pairs]])
            .collect();
        let mut halves = halves;
        rotate(&mut halves, 1, dim, &cos, &sin, pairs, RopeStyle::Halves);
        rotate(&mut pairwise, 1, dim, &cos, &sin, pairs, RopeStyle::Pairs);
        for i in 0..pairs {
            assert_eq!(
                [halves[i], halves[i + pairs]],
                [pairwise[2 * i], pairwise[2 * i + 1]]
            );
        }
    }

    #[test]
    fn a_negative_angle_undoes_the_rotation() {
        let (cos, sin) = angles(2, 3);
        let x: Vec<f32> = (0..2 * 3 * 6).map(|i| (i as f32).cos()).collect();
        let back: Vec<f32> = sin.iter().map(|s| -s).collect();
        for style in [RopeStyle::Halves, RopeStyle::Pairs] {
            let mut y = x.clone();
            rotate(&mut y, 3, 6, &cos, &sin, 3, style);
            rotate(&mut y, 3, 6, &cos, &back, 3, style);
            assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1e-6));
        }
    }
}
