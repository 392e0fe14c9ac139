//! Outputs of SSDLite: each box is a default one, moved and stretched. Defaults and their coding
//! are torchvision's.

use super::boxes::Candidate;
use crate::nets::ANCHORS;

/// Maps of features; each has half the rows and columns of the one before it.
const MAPS: usize = 6;
/// Size of default boxes on the first and last map, as a share of the input's.
const SCALES: [f32; 2] = [0.2, 0.95];
/// Of width and height, and the other way round.
const RATIOS: [f32; 2] = [2.0, 3.0];
/// What the network gives is so many times what moves centres and stretches sides.
const WEIGHTS: [f32; 2] = [10.0, 5.0];
/// Boxes of a class that are looked at.
const MOST: usize = 300;

/// Columns and rows of each map: the first has stride 16.
fn maps(size: [usize; 2]) -> [[usize; 2]; MAPS] {
    let mut map = size;
    for _ in 0..3 {
        map = map.map(|x| x.div_ceil(2));
    }
    std::array::from_fn(|_| {
        map = map.map(|x| x.div_ceil(2));
        map
    })
}

/// Boxes on an input of these columns and rows.
pub(super) fn count(size: [usize; 2]) -> usize {
    maps(size).iter().map(|[w, h]| w * h * ANCHORS).sum()
}

/// Centre and size of each default box, as shares of the input's.
fn defaults(size: [usize; 2]) -> impl Iterator<Item = ([f32; 2], [f32; 2])> {
    let scale = |map: usize| match map {
        MAPS => 1.0,
        _ => SCALES[0] + (SCALES[1] - SCALES[0]) * map as f32 / (MAPS - 1) as f32,
    };
    maps(size)
        .into_iter()
        .enumerate()
        .flat_map(move |(i, map)| {
            let side = scale(i);
            let between = (side * scale(i + 1)).sqrt();
            let mut sizes = vec![[side; 2], [between; 2]];
            for ratio in RATIOS {
                let [long, short] = [side * ratio.sqrt(), side / ratio.sqrt()];
                sizes.extend([[long, short], [short, long]]);
            }
            let [columns, rows] = map;
            (0..rows * columns).flat_map(move |at| {
                let x = ((at % columns) as f32 + 0.5) / columns as f32;
                let y = ((at / columns) as f32 + 0.5) / rows as f32;
                let sizes = sizes.clone().into_iter();
                sizes.map(move |size| ([x, y], size.map(|side| side.min(1.0))))
            })
        })
}

/// Candidates from `boxes` `[count, 4]` and logits `[1, count, classes]`, whose first class is
/// nothing.
pub(super) fn read(
    boxes: &[f32],
    (logits, shape): (&[f32], &[usize]),
    size: [usize; 2],
    least: f32,
) -> Vec<Candidate> {
    let classes = shape[2];
    let mut found = Vec::new();
    let mut scores = vec![0.0; classes];
    let [w, h] = size.map(|x| x as f32);
    let rows = boxes.chunks_exact(4).zip(logits.chunks_exact(classes));
    for ((code, logits), (centre, side)) in rows.zip(defaults(size)) {
        scores.copy_from_slice(logits);
        sedge_kernels::softmax_in_place(&mut scores);
        let along = |axis: usize| {
            let middle = centre[axis] + code[axis] / WEIGHTS[0] * side[axis];
            // More would be a mistake, and could be infinite.
            let stretch = (code[axis + 2] / WEIGHTS[1]).min((1000f32 / 16.0).ln());
            let half = stretch.exp() * side[axis] / 2.0;
            [middle - half, middle + half].map(|x| x.clamp(0.0, 1.0))
        };
        for (class, &score) in scores.iter().enumerate().skip(1) {
            if score >= least {
                let ([left, right], [top, bottom]) = (along(0), along(1));
                found.push(Candidate {
                    class,
                    score,
                    bounds: [left * w, top * h, right * w, bottom * h],
                });
            }
        }
    }
    let mut seen = vec![0; classes];
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    found.retain(|x| {
        seen[x.class] += 1;
        seen[x.class] <= MOST
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_3234_defaults_on_320_pixels() {
        assert_eq!(count([320, 320]), 3234);
        let all: Vec<_> = defaults([320, 320]).collect();
        assert_eq!(all.len(), 3234);
        assert_eq!(all[0], ([0.025, 0.025], [0.2, 0.2]));
        let (_, between) = all[1];
        assert!((between[0] - (0.2f32 * 0.35).sqrt()).abs() < 1e-6);
        let (centre, wide) = all[3234 - 4];
        assert_eq!(centre, [0.5; 2]);
        assert_eq!(wide, [1.0, 0.95 / 2f32.sqrt()]);
    }

    #[test]
    fn a_box_is_its_default_moved_and_stretched() {
        let size = [320, 320];
        let mut boxes = vec![0.0; 3234 * 4];
        let mut logits = [20.0, 0.0, 0.0].repeat(3234);
        // The first default of the second row's third column.
        let i = (20 + 2) * ANCHORS;
        logits[i * 3..][..3].copy_from_slice(&[0.0, 0.0, 20.0]);
        boxes[i * 4..][..4].copy_from_slice(&[1.0, 0.0, 0.0, 5.0 * 0.5f32.ln()]);
        let found = read(&boxes, (&logits, &[1, 3234, 3]), size, 0.5);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].class, 2);
        // Centre (0.125 + 0.02, 0.075), size (0.2, 0.1).
        let expected = [0.045, 0.025, 0.245, 0.125].map(|x: f32| x * 320.0);
        for (found, expected) in found[0].bounds.into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-3, "{found} {expected}");
        }
    }
}
