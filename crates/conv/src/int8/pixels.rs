//! Operations that take pictures pixel by pixel, shared out among a team.

use sedge_kernels::Team;

use crate::PictureMut;

use super::Output;
use super::gemm::share;

/// Calls `f(pixel, its channels)` for every pixel of `y`.
pub(super) fn each<T: Send>(
    y: &mut PictureMut<'_, T>,
    team: &Team,
    f: &(dyn Fn(usize, &mut [T]) + Sync),
) {
    let (shape, stride) = (y.shape(), y.stride());
    let pixels = shape.pixels();
    let tasks = match team.threads() {
        1 => 1,
        threads => pixels.min(4 * threads),
    };
    let out = Output::new(y.values());
    team.run(tasks, &|task| {
        for pixel in share(pixels, task, tasks) {
            // SAFETY: each pixel is one task's.
            f(pixel, unsafe { out.part(pixel * stride, shape.c) });
        }
    });
}
