//! Kernels of planes, in which zeros among weights are left out.

use sedge_conv::sparse::{self, Planes, PlanesMut};

pub(crate) use sedge_conv::sparse::plane_stride;

use super::{Form, Place, Run, Scratch};
use crate::op::Activation;

/// What a step does to planes.
pub(crate) enum PlaneKernel {
    /// Reads planes, and what is added.
    Product(sparse::Sparse),
    Depthwise(sparse::Depthwise),
    /// Any window, few channels.
    Conv(sparse::PlaneConv),
    /// The mean of each plane, as plain values.
    Mean,
    /// Planes times a plain value for each.
    Scale(Activation),
    Add(Activation),
    Activate(Activation),
    /// From plain values.
    FromPlain,
    FromPixels,
    ToPlain,
    ToPixels,
}

impl PlaneKernel {
    /// Values of scratch that it needs.
    pub(crate) fn scratch(&self, output: sedge_conv::Shape, threads: usize) -> usize {
        match self {
            PlaneKernel::Conv(conv) => conv.scratch(output.w, threads),
            _ => 0,
        }
    }

    pub(crate) fn run(&self, run: &Run<'_>, out: &mut [f32], scratch: &mut Scratch) {
        let Run { write, team, .. } = *run;
        let x = |i: usize| planes(run.reads[i], run.floats(i));
        let pixels = write.shape.h * write.shape.w;
        match self {
            PlaneKernel::Mean => {
                let count = write.count();
                x(0).mean(&mut out[write.offset..][..count], team);
                return;
            }
            PlaneKernel::ToPlain => {
                let (x, out) = (x(0), &mut out[write.offset..][..write.count()]);
                for (channel, y) in out.chunks_exact_mut(pixels).enumerate() {
                    y.copy_from_slice(x.plane(channel));
                }
                return;
            }
            PlaneKernel::ToPixels => {
                sparse::from_planes(x(0), &mut write.picture_mut(out), 0);
                return;
            }
            _ => {}
        }
        let sedge_conv::Shape { h, w, c, .. } = write.shape;
        let mut y = PlanesMut::new(&mut out[write.offset..], c, h, w, write.stride);
        match self {
            PlaneKernel::Product(product) => {
                let add = (run.reads.len() > 1).then(|| x(1));
                product.run(x(0), add, &mut y, team);
            }
            PlaneKernel::Depthwise(conv) => conv.run(x(0), &mut y, team),
            PlaneKernel::Conv(conv) => conv.run(x(0), &mut y, scratch.floats(), team),
            PlaneKernel::Scale(activation) => {
                copy(x(0), &mut y);
                y.scale(run.plain(1), *activation, team);
            }
            PlaneKernel::Add(activation) => {
                copy(x(0), &mut y);
                y.add(x(1), *activation, team);
            }
            PlaneKernel::Activate(activation) => {
                copy(x(0), &mut y);
                y.activate(*activation, team);
            }
            PlaneKernel::FromPlain => {
                for (channel, x) in run.plain(0).chunks_exact(pixels).enumerate() {
                    y.plane(channel).copy_from_slice(x);
                }
            }
            PlaneKernel::FromPixels => sparse::to_planes(run.pixels(0), 0, &mut y, team),
            PlaneKernel::Mean | PlaneKernel::ToPlain | PlaneKernel::ToPixels => {
                unreachable!("done above")
            }
        }
    }
}

fn planes(place: Place, values: &[f32]) -> Planes<'_> {
    debug_assert_eq!(place.form, Form::Planes);
    let sedge_conv::Shape { h, w, c, .. } = place.shape;
    Planes::new(&values[place.offset..], c, h, w, place.stride)
}

fn copy(x: Planes<'_>, y: &mut PlanesMut<'_>) {
    for channel in 0..x.channels() {
        y.plane(channel).copy_from_slice(x.plane(channel));
    }
}
