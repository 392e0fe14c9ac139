//! Layers of networks, each by itself: time, GFLOP/s and share of what the machine can multiply.
//!
//! `cargo bench -p sedge-conv --bench dense [NAME]` runs the layers whose names hold NAME.

use std::time::Instant;

use sedge_conv::{Activation, Conv, ConvShape, Picture, PictureMut, Shape, Window};
use sedge_kernels::{Team, f32_peak};

/// Name, rows (and columns), inputs, outputs, groups, kernel, stride.
type Layer = (&'static str, usize, usize, usize, usize, usize, usize);

const LAYERS: [Layer; 35] = [
    ("stem 32", 224, 3, 32, 1, 3, 2),
    ("stem 16", 224, 3, 16, 1, 3, 2),
    ("stem 64", 224, 3, 64, 1, 7, 2),
    ("v1 1x1", 112, 32, 64, 1, 1, 1),
    ("v1 1x1", 56, 64, 128, 1, 1, 1),
    ("v1 1x1", 56, 128, 128, 1, 1, 1),
    ("v1 1x1", 28, 128, 256, 1, 1, 1),
    ("v1 1x1", 28, 256, 256, 1, 1, 1),
    ("v1 1x1", 14, 256, 512, 1, 1, 1),
    ("v1 1x1", 14, 512, 512, 1, 1, 1),
    ("v1 1x1", 7, 512, 1024, 1, 1, 1),
    ("v1 1x1", 7, 1024, 1024, 1, 1, 1),
    ("v1 dw", 112, 32, 32, 32, 3, 1),
    ("v1 dw", 112, 64, 64, 64, 3, 2),
    ("v1 dw", 56, 128, 128, 128, 3, 1),
    ("v1 dw", 14, 512, 512, 512, 3, 1),
    ("v1 dw", 7, 1024, 1024, 1024, 3, 1),
    ("v2 1x1", 112, 32, 16, 1, 1, 1),
    ("v2 1x1", 112, 16, 96, 1, 1, 1),
    ("v2 1x1", 56, 96, 24, 1, 1, 1),
    ("v2 1x1", 56, 24, 144, 1, 1, 1),
    ("v2 1x1", 14, 384, 64, 1, 1, 1),
    ("v2 1x1", 7, 960, 160, 1, 1, 1),
    ("v2 1x1", 7, 320, 1280, 1, 1, 1),
    ("v3 1x1", 28, 40, 120, 1, 1, 1),
    ("v3 1x1", 28, 120, 40, 1, 1, 1),
    ("v3 1x1", 14, 80, 200, 1, 1, 1),
    ("v3 dw", 56, 72, 72, 72, 5, 2),
    ("v3 dw", 28, 120, 120, 120, 5, 1),
    ("v3 dw", 7, 960, 960, 960, 5, 1),
    ("full", 1, 1280, 1000, 1, 1, 1),
    ("resnet 3x3", 56, 64, 64, 1, 3, 1),
    ("resnet 3x3", 14, 256, 256, 1, 3, 1),
    ("resnet 3x3", 7, 512, 512, 1, 3, 1),
    ("resnet 1x1", 56, 256, 512, 1, 1, 2),
];

/// Measurements of a layer; the least counts, since all else is somebody else's doing.
const RUNS: usize = 60;

fn main() {
    let name = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    for threads in [1, 2] {
        let team = Team::new(threads);
        let peak = f32_peak(&team).per_second;
        println!("{threads} threads, {:.0} GFLOP/s at best", 2e-9 * peak);
        for layer in LAYERS {
            if name.as_ref().is_some_and(|name| !layer.0.contains(name)) {
                continue;
            }
            let (seconds, products) = measure(layer, &team);
            let (name, size, inputs, outputs, groups, kernel, stride) = layer;
            println!(
                "{name:11} {size:3}² {inputs:4} → {outputs:4}, {groups:4} groups, {kernel}×{kernel} / {stride}: \
                 {:8.1} µs {:6.1} GFLOP/s {:3.0} %",
                1e6 * seconds,
                2e-9 * products / seconds,
                100.0 * products / seconds / peak
            );
        }
    }
}

/// Seconds of a layer, and its multiply-adds.
fn measure(layer: Layer, team: &Team) -> (f64, f64) {
    let (_, size, inputs, outputs, groups, kernel, stride) = layer;
    let shape = ConvShape {
        outputs,
        inputs,
        groups,
        window: Window::square(kernel, stride, kernel / 2),
    };
    let some = |n: usize| {
        (0..n)
            .map(|i| (i % 17) as f32 * 0.1 - 0.8)
            .collect::<Vec<_>>()
    };
    let weights = some(outputs * inputs / groups * kernel * kernel);
    let conv = Conv::new(shape, &weights, Some(&some(outputs)), Activation::Relu)
        .expect("a layer of the table");
    let x = Shape {
        n: 1,
        h: size,
        w: size,
        c: inputs,
    };
    let y = conv.output(x).expect("a picture of its channels");
    let values = some(x.values());
    let mut result = vec![0.0; y.values()];
    let mut scratch = vec![0.0; conv.scratch(x, team.threads())];
    let mut run = || {
        let mut y = PictureMut::new(&mut result, y);
        conv.run(Picture::new(&values, x), None, &mut y, &mut scratch, team);
    };
    let start = Instant::now();
    run();
    let repeats = (3e-4 / start.elapsed().as_secs_f64().max(1e-7)).ceil() as usize;
    let times = (0..RUNS).map(|_| {
        let start = Instant::now();
        (0..repeats).for_each(|_| run());
        start.elapsed().as_secs_f64() / repeats as f64
    });
    let products = y.pixels() * weights.len();
    (times.fold(f64::INFINITY, f64::min), products as f64)
}
