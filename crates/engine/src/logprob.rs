//! Log-probabilities of a row of logits, before temperature and filters.

use crate::Logprob;
use crate::softmax::log_total;

/// A row that says nothing: a logit is not a number or infinite, or no token is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model computed logits that are not finite numbers")]
pub(crate) struct BadLogits;

/// The largest logit and where it is first.
///
/// # Errors
/// When any logit is NaN or +∞, or all are −∞.
pub(crate) fn peak(logits: &[f32]) -> Result<(usize, f32), BadLogits> {
    // Lanes instead of one running maximum, so that the compiler uses vectors.
    let mut max = [f32::NEG_INFINITY; 16];
    let mut nan = [false; 16];
    let (blocks, rest) = logits.as_chunks::<16>();
    for block in blocks {
        for ((m, n), &x) in max.iter_mut().zip(&mut nan).zip(block) {
            *m = if x > *m { x } else { *m };
            *n |= x.is_nan();
        }
    }
    let bad = nan.contains(&true) || rest.iter().any(|x| x.is_nan());
    let max = max
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |m, &x| m.max(x));
    match logits.iter().position(|&x| x == max) {
        Some(at) if !bad && max.is_finite() => Ok((at, max)),
        _ => Err(BadLogits),
    }
}

/// The log-probability of `id` and the `top` most likely tokens with theirs.
pub(crate) fn logprob(logits: &[f32], id: u32, top: usize) -> Result<Logprob, BadLogits> {
    let (_, max) = peak(logits)?;
    let log_total = log_total(logits, max);
    let of = |logit: f32| (f64::from(logit) - log_total) as f32;
    let own = logits.get(id as usize).copied().ok_or(BadLogits)?;
    let top = strongest(logits, top)
        .into_iter()
        .map(|(logit, id)| (id, of(logit)))
        .collect();
    Ok(Logprob {
        id,
        logprob: of(own),
        top,
    })
}

/// The `n` largest logits with their tokens, largest first, the first of equals first.
/// Tokens that are ruled out (−∞) are not among them.
pub(crate) fn strongest(logits: &[f32], n: usize) -> Vec<(f32, u32)> {
    const BLOCK: usize = 64;
    if n == 0 {
        return Vec::new();
    }
    // The n-th largest of the blocks' maxima bounds the n-th largest logit from below, so only
    // the few logits above it need sorting.
    let mut bound = f32::NEG_INFINITY;
    if n < logits.len() / BLOCK / 2 {
        let mut maxima: Vec<f32> = logits
            .chunks(BLOCK)
            .map(|b| {
                b.iter()
                    .fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
            })
            .collect();
        let (_, &mut nth, _) = maxima.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a));
        bound = nth;
    }
    let mut found: Vec<(f32, u32)> = logits
        .iter()
        .zip(0u32..)
        .filter(|&(&x, _)| x >= bound && x > f32::NEG_INFINITY)
        .map(|(&x, i)| (x, i))
        .collect();
    let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if found.len() > n {
        found.select_nth_unstable_by(n - 1, order);
        found.truncate(n);
    }
    found.sort_unstable_by(order);
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn peak_is_the_first_of_equals() {
        let mut row = vec![0.0; 100];
        row[40] = 2.0;
        row[99] = 2.0;
        assert_eq!(peak(&row), Ok((40, 2.0)));
        assert_eq!(peak(&[f32::NEG_INFINITY, -3.0]), Ok((1, -3.0)));
    }

    #[test]
    fn rows_that_are_not_numbers_are_refused() {
        for at in [0, 17, 32] {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut row = vec![1.0; 33];
                row[at] = bad;
                assert_eq!(peak(&row), Err(BadLogits));
                assert_eq!(logprob(&row, 0, 0), Err(BadLogits));
            }
        }
        assert_eq!(peak(&[f32::NEG_INFINITY; 20]), Err(BadLogits));
        assert_eq!(peak(&[]), Err(BadLogits));
    }

    #[test]
    fn probabilities_sum_to_one() {
        let row: Vec<f32> = (0..500).map(|i| ((i * 37) % 101) as f32 * 0.1).collect();
        let all = logprob(&row, 3, 500).unwrap();
        let sum: f64 = all.top.iter().map(|&(_, l)| f64::from(l).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        assert!(all.top.contains(&(3, all.logprob)));
        assert!(all.top.is_sorted_by(|a, b| a.1 >= b.1));
    }

    proptest! {
        #[test]
        fn strongest_are_those_of_a_full_sort(
            row in prop::collection::vec(prop_oneof![-4i8..4, Just(i8::MIN)], 1..700), n in 0usize..20,
        ) {
            let row: Vec<f32> =
                row.iter().map(|&x| if x == i8::MIN { f32::NEG_INFINITY } else { f32::from(x) }).collect();
            let mut all: Vec<(f32, u32)> =
                row.iter().copied().zip(0..).filter(|p| p.0 > f32::NEG_INFINITY).collect();
            all.sort_by(|a, b| b.0.total_cmp(&a.0)); // stable: equals stay in order
            all.truncate(n);
            prop_assert_eq!(strongest(&row, n), all);
        }
    }
}
