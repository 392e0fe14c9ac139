//! What each pixel is.

use super::{Frame, Labels};

/// The class of each pixel of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Number of the class of each pixel.
    pub classes: Vec<u16>,
    /// Names of all classes.
    pub names: Vec<String>,
}

impl Mask {
    /// Classes that are there and the share of pixels that each has, largest first.
    pub fn shares(&self) -> Vec<(u16, f32)> {
        let mut counts = vec![0u64; self.names.len()];
        for &class in &self.classes {
            counts[usize::from(class)] += 1;
        }
        let all = self.classes.len().max(1) as f32;
        let there = counts.iter().enumerate().filter(|(_, n)| **n > 0);
        let mut shares: Vec<_> = there.map(|(i, &n)| (i as u16, n as f32 / all)).collect();
        shares.sort_by(|a, b| b.1.total_cmp(&a.1));
        shares
    }
}

/// The likeliest class of each pixel from `[1, classes, rows, columns]`: that of the place of the
/// output which the pixel's middle is in.
pub(super) fn most_likely(
    x: &[f32],
    shape: &[usize],
    size: [usize; 2],
    frame: &Frame,
    labels: &Labels,
) -> Mask {
    let (count, h, w) = (shape[1], shape[2], shape[3]);
    let plane = h * w;
    let mut best = x[..plane].to_vec();
    let mut small = vec![0u16; plane];
    for class in 1..count {
        let values = x[class * plane..][..plane].iter();
        for ((best, small), &x) in best.iter_mut().zip(&mut small).zip(values) {
            if x > *best {
                (*best, *small) = (x, class as u16);
            }
        }
    }
    let [width, height] = frame.size;
    let at = |axis: usize, i: usize, places: usize| {
        let middle = i as f32 + 0.5;
        let inside = frame.place(middle, middle)[axis] / size[axis] as f32;
        ((inside * places as f32).max(0.0) as usize).min(places - 1)
    };
    let columns: Vec<usize> = (0..width).map(|i| at(0, i, w)).collect();
    let mut classes = Vec::with_capacity(width * height);
    for y in 0..height {
        let row = &small[at(1, y, h) * w..][..w];
        classes.extend(columns.iter().map(|&x| row[x]));
    }
    Mask {
        width,
        height,
        classes,
        names: (0..count).map(|i| labels.name(i)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::LabelSet;

    #[test]
    fn pixels_have_the_class_of_their_place() {
        // Two by two places: class 1 in the upper right, class 2 below.
        let x = [
            [0.5, 0.0, 0.0, 0.0],
            [0.0, 0.5, 0.0, 0.0],
            [0.0, 0.0, 0.5, 0.5],
        ]
        .concat();
        let frame = Frame {
            size: [4, 3],
            scale: [8.0 / 4.0, 8.0 / 3.0],
            offset: [0.0; 2],
        };
        let labels = Labels::known(LabelSet::Numbers, 3);
        let mask = most_likely(&x, &[1, 3, 2, 2], [8, 8], &frame, &labels);
        assert_eq!(mask.classes, [0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]);
        assert_eq!(mask.shares()[0], (2, 8.0 / 12.0));
    }
}
