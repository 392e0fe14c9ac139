//! From pixels of channels to planes, and back.

use sedge_kernels::Team;

use super::planes::{Planes, PlanesMut};
use crate::{Picture, PictureMut};

/// Pixels and channels of the tiles in which values change places, so that the lines of both
/// sides stay in the cache until they are used up.
const TILE: usize = 16;

/// The planes of picture `n` of a batch.
///
/// # Panics
/// When there is no such picture, or its channels, rows and columns are not those of `y`.
pub fn to_planes(x: Picture<'_>, n: usize, y: &mut PlanesMut<'_>, team: &Team) {
    let shape = x.shape();
    assert!(n < shape.n, "picture {n} of {}", shape.n);
    assert_eq!(y.channels(), shape.c, "channels");
    assert_eq!(y.size(), [shape.h, shape.w], "size");
    let pixels = shape.h * shape.w;
    let y = y.target();
    let runs = pixels.div_ceil(TILE);
    let run = runs.div_ceil(4 * team.threads()).max(1) * TILE;
    team.run(pixels.div_ceil(run), &|task| {
        for start in (task * run..pixels.min((task + 1) * run)).step_by(TILE) {
            let end = pixels.min(start + TILE);
            for channels in (0..shape.c).step_by(TILE) {
                for pixel in start..end {
                    let values = &x.pixel(n * pixels + pixel)[channels..];
                    for (i, value) in values.iter().take(TILE).enumerate() {
                        // SAFETY: the channel and the pixel exist, by the checks above, and no
                        // other task has this pixel.
                        unsafe { *y.at(channels + i, pixel) = *value };
                    }
                }
            }
        }
    });
}

/// Planes as picture `n` of a batch.
///
/// # Panics
/// When there is no such picture, or its channels, rows and columns are not those of `x`.
pub fn from_planes(x: Planes<'_>, y: &mut PictureMut<'_>, n: usize) {
    let shape = y.shape();
    assert!(n < shape.n, "picture {n} of {}", shape.n);
    assert_eq!(x.channels(), shape.c, "channels");
    assert_eq!(x.size(), [shape.h, shape.w], "size");
    let pixels = shape.h * shape.w;
    for start in (0..pixels).step_by(TILE) {
        for channels in (0..shape.c).step_by(TILE) {
            for channel in channels..shape.c.min(channels + TILE) {
                let values = &x.plane(channel)[start..];
                for (i, value) in values.iter().take(TILE).enumerate() {
                    y.pixel(n * pixels + start + i)[channel] = *value;
                }
            }
        }
    }
}
