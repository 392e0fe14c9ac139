//! Pooling of bytes.

use sedge_kernels::Team;

use crate::{Picture, PictureMut, Window};

use super::lanes::{Lanes, Portable};
use super::{PANEL, Quant, finish, pixels};

/// The greatest value of each window's pixels, by channel; what is beyond the edges is none of
/// them, and a window that lies beyond them altogether has 0. Both pictures' bytes mean the same.
///
/// # Panics
/// When `y` has not the shape that the window makes of `x`.
pub fn max_pool(x: Picture<'_, u8>, window: Window, y: &mut PictureMut<'_, u8>, team: &Team) {
    let (from, to) = (x.shape(), y.shape());
    assert_eq!(window.output(from.h, from.w), Ok([to.h, to.w]));
    assert_eq!((from.n, from.c), (to.n, to.c));
    let [kh, kw] = window.kernel;
    let place = |place: usize, tap: usize, axis: usize, size: usize| {
        (place * window.stride[axis] + tap * window.dilation[axis])
            .checked_sub(window.pads[axis])
            .filter(|at| *at < size)
    };
    pixels::each(y, team, &|pixel, out| {
        let (row, column) = (pixel / to.w, pixel % to.w);
        let (picture, row) = (row / to.h, row % to.h);
        out.fill(0);
        for row in (0..kh).filter_map(|ky| place(row, ky, 0, from.h)) {
            for column in (0..kw).filter_map(|kx| place(column, kx, 1, from.w)) {
                let x = x.pixel((picture * from.h + row) * from.w + column);
                for (out, x) in out.iter_mut().zip(x) {
                    *out = (*out).max(*x);
                }
            }
        }
    });
}

/// The mean of all pixels of each picture, by channel: `y` has one pixel of each.
///
/// # Panics
/// When `y` has another shape, or pictures are of more than 2²³ pixels.
pub fn global_average(
    (x, input): (Picture<'_, u8>, Quant),
    (y, output): (&mut PictureMut<'_, u8>, Quant),
    team: &Team,
) {
    let (from, to) = (x.shape(), y.shape());
    assert_eq!((to.n, to.h, to.w, to.c), (from.n, 1, 1, from.c));
    let pixels = from.h * from.w;
    assert!(
        pixels <= 1 << 23,
        "sums of {pixels} bytes are beyond 32 bits"
    );
    let step = Portable::splat(input.scale / output.scale / pixels as f32);
    pixels::each(y, team, &|picture, out| {
        for (panel, out) in out.chunks_mut(PANEL).enumerate() {
            let mut sums = [-(pixels as i32) * i32::from(input.zero); PANEL];
            for pixel in 0..pixels {
                let x = &x.pixel(picture * pixels + pixel)[panel * PANEL..][..out.len()];
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum += i32::from(*x);
                }
            }
            for (sums, out) in sums.as_chunks::<16>().0.iter().zip(out.chunks_mut(16)) {
                let steps = Portable::from_i32(sums).mul(step);
                let bytes = finish::quantised(steps, output.zero, 0, 255);
                out.copy_from_slice(&bytes[..out.len()]);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;

    #[test]
    fn a_mean_is_that_of_the_real_numbers() {
        let shape = Shape {
            n: 2,
            h: 3,
            w: 5,
            c: 70,
        };
        let x: Vec<u8> = (0..shape.values()).map(|i| (i * i / 7) as u8).collect();
        let input = Quant {
            scale: 0.1,
            zero: 40,
        };
        let output = Quant {
            scale: 0.131,
            zero: 90,
        };
        let one = Shape {
            h: 1,
            w: 1,
            ..shape
        };
        let mut y = vec![0; one.values()];
        let team = Team::new(2);
        let from = (Picture::new(&x, shape), input);
        global_average(from, (&mut PictureMut::new(&mut y, one), output), &team);
        for (i, y) in y.into_iter().enumerate() {
            let (picture, c) = (i / shape.c, i % shape.c);
            let value = |pixel| input.real(x[(picture * 15 + pixel) * shape.c + c]);
            let mean = (0..15).map(value).sum::<f32>() / 15.0;
            assert!((output.real(y) - mean).abs() < 0.501 * output.scale);
        }
    }

    #[test]
    fn the_greatest_of_a_window_is_not_the_padding() {
        let shape = Shape {
            n: 1,
            h: 3,
            w: 3,
            c: 2,
        };
        let x: Vec<u8> = (0..18).collect();
        let to = Shape {
            h: 2,
            w: 2,
            ..shape
        };
        let mut y = vec![0; to.values()];
        let window = Window::square(3, 2, 1);
        let mut picture = PictureMut::new(&mut y, to);
        max_pool(Picture::new(&x, shape), window, &mut picture, &Team::new(1));
        assert_eq!(y, [8, 9, 10, 11, 14, 15, 16, 17]);
    }
}
