//! Boxes of text from a map of where text is (DBNet, Liao et al. 2020). Boxes are upright: text
//! that runs aslant has the box around it.

use super::boxes::Candidate;

/// Pixels that are likelier are text.
const LEAST: f32 = 0.3;
/// Shorter sides than this are noise.
const SHORTEST: usize = 3;
/// The network is trained on text made smaller by this; boxes grow by it again.
const GROW: f32 = 1.5;

/// Runs of neighbouring pixels of text in `[1, 1, rows, columns]`, whose mean probability is their
/// score.
pub(super) fn boxes(x: &[f32], shape: &[usize], size: [usize; 2], least: f32) -> Vec<Candidate> {
    let (h, w) = (shape[2], shape[3]);
    let mut seen = vec![false; h * w];
    let mut found = Vec::new();
    let mut next = Vec::new();
    for start in 0..h * w {
        if seen[start] || x[start] <= LEAST {
            continue;
        }
        let (mut left, mut top, mut right, mut bottom) = (w, h, 0, 0);
        let (mut sum, mut count) = (0.0, 0.0);
        seen[start] = true;
        next.push(start);
        while let Some(at) = next.pop() {
            let (row, column) = (at / w, at % w);
            (left, right) = (left.min(column), right.max(column));
            (top, bottom) = (top.min(row), bottom.max(row));
            sum += x[at];
            count += 1.0;
            for row in row.saturating_sub(1)..(row + 2).min(h) {
                for column in column.saturating_sub(1)..(column + 2).min(w) {
                    let at = row * w + column;
                    if !seen[at] && x[at] > LEAST {
                        seen[at] = true;
                        next.push(at);
                    }
                }
            }
        }
        let (wide, high) = (right + 1 - left, bottom + 1 - top);
        let score = sum / count;
        if score < least || wide.min(high) < SHORTEST {
            continue;
        }
        let (width, height) = (wide as f32, high as f32);
        let more = width * height * GROW / (2.0 * (width + height));
        let [sx, sy] = [size[0] as f32 / w as f32, size[1] as f32 / h as f32];
        let [x, y] = [left as f32, top as f32];
        found.push(Candidate {
            class: 0,
            score,
            bounds: [
                (x - more) * sx,
                (y - more) * sy,
                (x + width + more) * sx,
                (y + height + more) * sy,
            ],
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_text_are_boxes_and_specks_are_not() {
        let mut map = vec![0.1; 20 * 30];
        for row in 4..8 {
            map[row * 30 + 5..][..12].fill(0.9);
        }
        // Touches the first only at a corner.
        for row in 8..12 {
            map[row * 30 + 17..][..4].fill(0.7);
        }
        map[0] = 0.9;
        let found = boxes(&map, &[1, 1, 20, 30], [60, 40], 0.6);
        assert_eq!(found.len(), 1);
        let more = 16.0 * 8.0 * 1.5 / 48.0;
        let expected = [5.0 - more, 4.0 - more, 21.0 + more, 12.0 + more];
        assert_eq!(found[0].bounds, expected.map(|x: f32| x * 2.0));
        assert!((found[0].score - (48.0 * 0.9 + 16.0 * 0.7) / 64.0).abs() < 1e-5);
    }
}
