//! Outputs of the YOLO family.

use super::boxes::Candidate;

/// Pixels from one place of a map to the next.
const STRIDES: [usize; 3] = [8, 16, 32];

/// Places of all three maps on an input of these columns and rows.
pub(super) fn places([w, h]: [usize; 2]) -> usize {
    STRIDES.iter().map(|s| (w / s) * (h / s)).sum()
}

fn around([x, y]: [f32; 2], [w, h]: [f32; 2]) -> [f32; 4] {
    [x - w / 2.0, y - h / 2.0, x + w / 2.0, y + h / 2.0]
}

fn likeliest(scores: impl Iterator<Item = f32>) -> (usize, f32) {
    scores
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (i, x)| match x > best.1 {
            true => (i, x),
            false => best,
        })
}

/// A row of objectness and classes, if it is likely enough.
fn scored(row: &[f32], least: f32, bounds: impl Fn() -> [f32; 4]) -> Option<Candidate> {
    let (class, score) = likeliest(row[5..].iter().copied());
    let score = score * row[4];
    (score >= least).then(|| Candidate {
        class,
        score,
        bounds: bounds(),
    })
}

/// YOLOX (Ge et al. 2021), `[1, places, 5 + classes]`: centres relative to their places, in
/// strides, and logarithms of sizes.
pub(super) fn x(x: &[f32], shape: &[usize], [w, h]: [usize; 2], least: f32) -> Vec<Candidate> {
    let grid = STRIDES.into_iter().flat_map(|stride| {
        let (columns, rows) = (w / stride, h / stride);
        (0..rows * columns).map(move |i| (stride as f32, i % columns, i / columns))
    });
    let rows = x.chunks_exact(shape[2]).zip(grid);
    rows.filter_map(|(row, (stride, column, line))| {
        scored(row, least, || {
            let centre = [row[0] + column as f32, row[1] + line as f32];
            let size = [row[2].exp(), row[3].exp()];
            around(centre.map(|x| x * stride), size.map(|x| x * stride))
        })
    })
    .collect()
}

/// YOLOv5, `[1, boxes, 5 + classes]`: centres and sizes in pixels.
pub(super) fn v5(x: &[f32], shape: &[usize], least: f32) -> Vec<Candidate> {
    let rows = x.chunks_exact(shape[2]);
    rows.filter_map(|row| scored(row, least, || around([row[0], row[1]], [row[2], row[3]])))
        .collect()
}

/// YOLOv8, `[1, 4 + classes, boxes]`: centres and sizes in pixels, no objectness.
pub(super) fn v8(x: &[f32], shape: &[usize], least: f32) -> Vec<Candidate> {
    let (rows, boxes) = (shape[1], shape[2]);
    let at = |row: usize, i: usize| x[row * boxes + i];
    let candidate = |i: usize| {
        let (class, score) = likeliest((4..rows).map(|row| at(row, i)));
        (score >= least).then(|| Candidate {
            class,
            score,
            bounds: around([at(0, i), at(1, i)], [at(2, i), at(3, i)]),
        })
    };
    (0..boxes).filter_map(candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yolox_reads_places_and_strides() {
        let size = [64, 32];
        assert_eq!(places(size), 32 + 8 + 2);
        let mut rows = vec![0.0; places(size) * 7];
        // The second place of the second line of stride 16.
        let row = &mut rows[(32 + 4 + 1) * 7..][..7];
        row.copy_from_slice(&[0.5, 0.25, 0.0, 2f32.ln(), 0.8, 0.1, 0.9]);
        let found = x(&rows, &[1, 42, 7], size, 0.3);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].class, 1);
        assert!((found[0].score - 0.72).abs() < 1e-6);
        let expected = [24.0 - 8.0, 20.0 - 16.0, 24.0 + 8.0, 20.0 + 16.0];
        for (found, expected) in found[0].bounds.into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-4);
        }
    }

    #[test]
    fn both_layouts_of_boxes_are_read() {
        let bounds = [3.0, 0.0, 7.0, 4.0];
        let rows = [
            5.0, 2.0, 4.0, 4.0, 0.5, 0.2, 1.0, 9.0, 9.0, 1.0, 1.0, 0.1, 1.0, 1.0,
        ];
        let found = v5(&rows, &[1, 2, 7], 0.3);
        let expected = Candidate {
            class: 1,
            score: 0.5,
            bounds,
        };
        assert_eq!(found, [expected]);
        let columns = [5.0, 9.0, 2.0, 9.0, 4.0, 1.0, 4.0, 1.0, 0.2, 0.1, 0.5, 0.0];
        assert_eq!(v8(&columns, &[1, 6, 2], 0.3), [expected]);
    }
}
