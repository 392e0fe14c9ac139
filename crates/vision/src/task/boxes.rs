//! Boxes that may be things, and which of them stay.

/// A box in an input's pixels that may be a thing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) class: usize,
    pub(super) score: f32,
    /// Left, top, right, bottom.
    pub(super) bounds: [f32; 4],
}

/// Candidates of a class beyond this many are less likely than any that stays.
const MOST: usize = 1000;

/// Area of both over area of either: 0 when boxes do not touch, 1 when they are equal.
pub fn overlap(a: [f32; 4], b: [f32; 4]) -> f32 {
    let area = |x: [f32; 4]| (x[2] - x[0]).max(0.0) * (x[3] - x[1]).max(0.0);
    let both = area([
        a[0].max(b[0]),
        a[1].max(b[1]),
        a[2].min(b[2]),
        a[3].min(b[3]),
    ]);
    match area(a) + area(b) - both {
        either if either > 0.0 => both / either,
        _ => 0.0,
    }
}

/// Keeps, from the most likely on, what overlaps no box of its class that was kept by more than
/// `most_overlap`, and of those the `most` likeliest.
pub(super) fn suppress(
    mut found: Vec<Candidate>,
    most_overlap: f32,
    most: usize,
) -> Vec<Candidate> {
    found.sort_by(|a, b| {
        let class = a.class.cmp(&b.class);
        class.then(b.score.total_cmp(&a.score))
    });
    let mut kept: Vec<Candidate> = Vec::new();
    for same in found.chunk_by(|a, b| a.class == b.class) {
        let first = kept.len();
        for x in same.iter().take(MOST) {
            let free = |y: &Candidate| overlap(x.bounds, y.bounds) <= most_overlap;
            if kept[first..].iter().all(free) {
                kept.push(*x);
            }
        }
    }
    kept.sort_by(|a, b| b.score.total_cmp(&a.score));
    kept.truncate(most);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(class: usize, score: f32, bounds: [f32; 4]) -> Candidate {
        Candidate {
            class,
            score,
            bounds,
        }
    }

    #[test]
    fn overlap_is_both_over_either() {
        let a = [0.0, 0.0, 2.0, 2.0];
        assert_eq!(overlap(a, a), 1.0);
        assert_eq!(overlap(a, [1.0, 0.0, 3.0, 2.0]), 2.0 / 6.0);
        assert_eq!(overlap(a, [2.0, 0.0, 3.0, 2.0]), 0.0);
        assert_eq!(overlap([1.0; 4], [1.0; 4]), 0.0, "no area at all");
    }

    #[test]
    fn the_likelier_of_two_stays_unless_classes_differ() {
        let low = candidate(0, 0.5, [0.0, 0.0, 10.0, 10.0]);
        let high = candidate(0, 0.9, [1.0, 0.0, 10.0, 10.0]);
        let other = candidate(1, 0.6, [0.0, 0.0, 10.0, 10.0]);
        let far = candidate(0, 0.4, [20.0, 0.0, 30.0, 10.0]);
        let kept = suppress(vec![low, far, high, other], 0.5, 10);
        assert_eq!(kept, [high, other, far]);
        assert_eq!(suppress(kept, 0.5, 2), [high, other]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_kept_is_apart_and_what_is_not_is_near(
            boxes in prop::collection::vec((0usize..3, 0f32..1.0, 0f32..9.0, 0f32..9.0, 1f32..9.0), 0..40)
        ) {
            let all: Vec<Candidate> = boxes.iter()
                .map(|&(class, score, x, y, side)| candidate(class, score, [x, y, x + side, y + side]))
                .collect();
            let kept = suppress(all.clone(), 0.4, usize::MAX);
            for (i, a) in kept.iter().enumerate() {
                for b in &kept[..i] {
                    prop_assert!(a.class != b.class || overlap(a.bounds, b.bounds) <= 0.4);
                }
            }
            for a in &all {
                let near = |b: &Candidate| b.class == a.class && b.score >= a.score
                    && (b == a || overlap(a.bounds, b.bounds) > 0.4);
                prop_assert!(kept.iter().any(near));
            }
        }
    }
}
