//! Between planes of channels (NCHW) and pixels of channels (NHWC), and from bytes of RGB.

use sedge_kernels::Team;

use crate::shared::{Shared, part, tasks};
use crate::{Picture, PictureMut};

/// Pixels that are turned at a time: a cache line of each plane.
const PIXELS: usize = 16;

/// Fills a picture from planes `[n, c, h, w]`.
///
/// # Panics
/// When there are not as many values.
pub fn from_planes(planes: &[f32], y: &mut PictureMut, team: &Team) {
    let (shape, stride) = (y.shape(), y.stride());
    assert_eq!(planes.len(), shape.values(), "planes of another shape");
    let size = shape.h * shape.w;
    let runs = size.div_ceil(PIXELS);
    let tasks = tasks(shape.n * runs, team.threads());
    let to = Shared::new(y.values());
    team.run(tasks, &|task| {
        for run in part(task, tasks, shape.n * runs) {
            let (picture, first) = (run / runs, run % runs * PIXELS);
            for c in 0..shape.c {
                let plane = &planes[(picture * shape.c + c) * size..][..size];
                for (i, &x) in plane[first..].iter().take(PIXELS).enumerate() {
                    // SAFETY: the picture has this pixel and channel; the run is this task's.
                    unsafe { *to.at((picture * size + first + i) * stride + c) = x };
                }
            }
        }
    });
}

/// Writes a picture as planes `[n, c, h, w]`.
///
/// # Panics
/// When there is not room for as many values.
pub fn to_planes(x: Picture, planes: &mut [f32], team: &Team) {
    let shape = x.shape();
    assert_eq!(planes.len(), shape.values(), "planes of another shape");
    let size = shape.h * shape.w;
    let runs = size.div_ceil(PIXELS);
    let tasks = tasks(shape.n * runs, team.threads());
    let to = Shared::new(planes);
    team.run(tasks, &|task| {
        for run in part(task, tasks, shape.n * runs) {
            let (picture, first) = (run / runs, run % runs * PIXELS);
            let pixels = picture * size + first..picture * size + size.min(first + PIXELS);
            for c in 0..shape.c {
                for (i, pixel) in pixels.clone().enumerate() {
                    let at = (picture * shape.c + c) * size + first + i;
                    // SAFETY: the planes have this value; the run is this task's.
                    unsafe { *to.at(at) = x.values()[pixel * x.stride() + c] };
                }
            }
        }
    });
}

/// Fills a picture from bytes `[n, h, w, c]`: `y[.., c] = x[.., c] · scale[c] + offset[c]`, with
/// which a mean is subtracted and a deviation divided by.
///
/// # Panics
/// When there are not as many bytes, or not a scale and an offset a channel.
pub fn from_bytes(x: &[u8], scale: &[f32], offset: &[f32], y: &mut PictureMut, team: &Team) {
    let (shape, stride) = (y.shape(), y.stride());
    assert_eq!(x.len(), shape.values(), "bytes of another shape");
    assert_eq!(
        [scale.len(), offset.len()],
        [shape.c; 2],
        "not one a channel"
    );
    let pixels = shape.pixels();
    let tasks = tasks(pixels, team.threads());
    let to = Shared::new(y.values());
    team.run(tasks, &|task| {
        for pixel in part(task, tasks, pixels) {
            let bytes = &x[pixel * shape.c..][..shape.c];
            for (c, &byte) in bytes.iter().enumerate() {
                let value = f32::from(byte) * scale[c] + offset[c];
                // SAFETY: the picture has this pixel and channel; the pixel is this task's.
                unsafe { *to.at(pixel * stride + c) = value };
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;
    use crate::testing::Random;

    #[test]
    fn planes_and_pixels_are_the_same_values() {
        let team = Team::new(2);
        let shape = Shape {
            n: 2,
            h: 5,
            w: 7,
            c: 3,
        };
        let planes = Random(1).values(shape.values());
        let mut pixels = vec![0.0; shape.pixels() * 5];
        let mut y = PictureMut::strided(&mut pixels, shape, 5);
        from_planes(&planes, &mut y, &team);
        for i in 0..shape.pixels() {
            for c in 0..3 {
                assert_eq!(y.pixel(i)[c], planes[(i / 35 * 3 + c) * 35 + i % 35]);
            }
        }
        let mut back = vec![0.0; shape.values()];
        to_planes(y.as_ref(), &mut back, &team);
        assert_eq!(back, planes);
    }

    #[test]
    fn bytes_are_scaled_by_channel() {
        let shape = Shape {
            n: 1,
            h: 2,
            w: 1,
            c: 3,
        };
        let mut y = [0.0; 6];
        let mut to = PictureMut::new(&mut y, shape);
        let bytes = [0, 1, 2, 255, 4, 8];
        from_bytes(
            &bytes,
            &[1.0, 0.5, 2.0],
            &[0.0, -1.0, 1.0],
            &mut to,
            &Team::new(1),
        );
        assert_eq!(y, [0.0, -0.5, 5.0, 255.0, 1.0, 17.0]);
    }
}
