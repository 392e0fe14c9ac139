//! Softmax over the channels of each pixel.

use sedge_kernels::Team;

use crate::lanes::{Kernel, Lanes, Set};
use crate::shared::{Shared, part, tasks};
use crate::{Picture, PictureMut};

/// `y[.., c] = exp(x[.., c] − max) / Σ exp(x − max)`.
///
/// # Panics
/// When the two have different shapes.
pub fn softmax(x: Picture, y: &mut PictureMut, team: &Team) {
    softmax_by(Set::best(), x, y, team);
}

fn softmax_by(set: Set, x: Picture, y: &mut PictureMut, team: &Team) {
    assert_eq!(x.shape(), y.shape(), "operand and result differ in shape");
    let pixels = x.shape().pixels();
    let tasks = tasks(pixels, team.threads());
    let stride = y.stride();
    let to = Shared::new(y.values());
    team.run(tasks, &|task| {
        set.run(Pixels {
            x,
            pixels: part(task, tasks, pixels),
            y: to,
            stride,
        });
    });
}

struct Pixels<'a> {
    x: Picture<'a>,
    pixels: std::ops::Range<usize>,
    /// The pixels are this work's own.
    y: Shared<f32>,
    stride: usize,
}

impl Kernel for Pixels<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for pixel in self.pixels.clone() {
            let x = self.x.pixel(pixel);
            let max = x.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x));
            let channels = x.len();
            // SAFETY: y has the pixel, which is this work's own.
            let y =
                unsafe { std::slice::from_raw_parts_mut(self.y.at(pixel * self.stride), channels) };
            for (x, y) in x.chunks(L::N).zip(y.chunks_mut(L::N)) {
                let part = l.first(x.len());
                // SAFETY: the part is as long as the chunks.
                unsafe {
                    let x = l.sub(l.load_part(x.as_ptr(), part), l.splat(max));
                    l.store_part(l.exp(x), y.as_mut_ptr(), part);
                }
            }
            // Sixteen sums on all machines, so that results do not depend on their vectors.
            let mut sums = [0.0; 16];
            for y in y.chunks(16) {
                for (sum, y) in sums.iter_mut().zip(y) {
                    *sum += y;
                }
            }
            let scale = 1.0 / sums.iter().sum::<f32>();
            y.iter_mut().for_each(|y| *y *= scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;
    use crate::testing::{Random, close};

    #[test]
    fn softmax_is_its_definition() {
        let mut random = Random(1);
        for c in [1, 2, 17, 40, 1000] {
            let shape = Shape {
                n: 1,
                h: 2,
                w: 3,
                c,
            };
            let x: Vec<f32> = random.values(6 * c).iter().map(|x| x * 9.0).collect();
            let mut expected = vec![];
            for x in x.chunks(c) {
                let sum: f64 = x.iter().map(|&x| f64::from(x).exp()).sum();
                expected.extend(x.iter().map(|&x| (f64::from(x).exp() / sum) as f32));
            }
            for set in Set::all() {
                let mut y = vec![0.0; 6 * c];
                let mut to = PictureMut::new(&mut y, shape);
                softmax_by(set, Picture::new(&x, shape), &mut to, &Team::new(2));
                close(&y, &expected, 1e-6);
            }
        }
    }
}
