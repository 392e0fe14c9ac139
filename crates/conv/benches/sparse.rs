//! MobileNetV1 of 224² in planes, with random weights of which some are 0.
//!
//! `cargo bench -p sedge-conv --bench sparse` prints a table: milliseconds of all pointwise layers
//! and of the whole network, for each part of zeros, each number of outputs that are 0 together,
//! and one and two threads. `… -- ZEROS BLOCK THREADS` prints one line of it, to be run in turn
//! with another program; `… -- ZEROS BLOCK THREADS layers` the layers.

use std::time::Instant;

use sedge_conv::sparse::{Depthwise, PlaneConv, Planes, PlanesMut, Sparse, plane_stride};
use sedge_conv::{Activation, Window};
use sedge_kernels::Team;

/// Outputs of each pair of layers, and the step of its depthwise one.
const PAIRS: [(usize, usize); 13] = [
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
];
const SIDE: usize = 224;
const CLASSES: usize = 1000;
const RELU6: Activation = Activation::Clip {
    low: 0.0,
    high: 6.0,
};
/// Runs of which each layer's median counts, so that a neighbour disturbs a layer and not the sum.
const RUNS: usize = 31;

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let number = |i: usize| args.get(i).and_then(|a| a.parse::<f64>().ok());
    if let (Some(zeros), Some(block), Some(threads)) = (number(0), number(1), number(2)) {
        let (block, team) = (block as usize, Team::new(threads as usize));
        let layers = Net::new(zeros, block).layers(&team);
        if args.len() > 3 {
            for (name, ms) in &layers {
                println!("{name:>16} {ms:.3} ms");
            }
        }
        return print(zeros, block, &team, &layers);
    }
    for threads in [1, 2] {
        let team = Team::new(threads);
        for zeros in [0.0, 0.3, 0.7, 0.8, 0.9] {
            for block in [1, 2, 4, 8, 16] {
                print(zeros, block, &team, &Net::new(zeros, block).layers(&team));
            }
        }
    }
}

fn print(zeros: f64, block: usize, team: &Team, layers: &[(String, f64)]) {
    let sum = |kind: &str| {
        let of_kind = layers.iter().filter(|(name, _)| name.starts_with(kind));
        of_kind.map(|(_, ms)| ms).sum::<f64>()
    };
    println!(
        "zeros {zeros:.1} block {block:2} threads {}: pointwise {:.3} ms, depthwise {:.3} ms, net {:.3} ms",
        team.threads(),
        sum("pointwise"),
        sum("depthwise"),
        sum(""),
    );
}

/// Values that begin at a cache line.
struct Buffer(Vec<f32>);

impl Buffer {
    fn new(values: usize) -> Buffer {
        Buffer(vec![0.0; values + 16])
    }

    fn values(&mut self) -> &mut [f32] {
        let skip = self.0.as_ptr().align_offset(64) % 16;
        &mut self.0[skip..]
    }
}

struct Net {
    stem: PlaneConv,
    pairs: Vec<(Depthwise, Sparse)>,
    classes: Sparse,
}

fn numbers(state: &mut u64, n: usize, largest: f32) -> Vec<f32> {
    let next = || {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        ((*state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * largest
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// Weights of which `zeros` are 0, `block` outputs together.
fn weights(state: &mut u64, outputs: usize, inputs: usize, zeros: f64, block: usize) -> Vec<f32> {
    let dice = numbers(state, outputs.div_ceil(block) * inputs, 0.5);
    let mut weights = numbers(state, outputs * inputs, (6.0 / inputs as f32).sqrt());
    for (i, weight) in weights.iter_mut().enumerate() {
        if f64::from(dice[i / inputs / block * inputs + i % inputs] + 0.5) < zeros {
            *weight = 0.0;
        }
    }
    weights
}

impl Net {
    fn new(zeros: f64, block: usize) -> Net {
        let state = &mut 88_172_645_463_325_252;
        let known = "the sizes of MobileNetV1";
        let stem = numbers(state, 32 * 27, 0.5);
        let mut inputs = 32;
        let pairs = PAIRS.map(|(outputs, step)| {
            let window = Window::square(3, step, 1);
            let taps = numbers(state, inputs * 9, 0.6);
            let depthwise = Depthwise::new(&taps, inputs, window, None, RELU6).expect(known);
            let w = weights(state, outputs, inputs, zeros, block);
            let pointwise = Sparse::new(&w, outputs, inputs, None, RELU6, block).expect(known);
            inputs = outputs;
            (depthwise, pointwise)
        });
        let classes = numbers(state, CLASSES * inputs, 0.05);
        let window = Window::square(3, 2, 1);
        let identity = Activation::Identity;
        Net {
            stem: PlaneConv::new(&stem, [32, 3], window, None, RELU6, 8).expect(known),
            pairs: pairs.into(),
            classes: Sparse::new(&classes, CLASSES, inputs, None, identity, 8).expect(known),
        }
    }

    /// Milliseconds of each layer in its place among the others.
    fn layers(&self, team: &Team) -> Vec<(String, f64)> {
        let side = SIDE / 2;
        let largest = 64 * plane_stride(side, side);
        let mut picture = Buffer::new(3 * plane_stride(SIDE, SIDE));
        let state = &mut 88_172_645_463_325_252;
        let pixels = numbers(state, picture.values().len(), 1.0);
        picture.values().copy_from_slice(&pixels);
        let (mut a, mut b) = (Buffer::new(largest), Buffer::new(largest));
        let mut scratch = Buffer::new(self.stem.scratch(side, team.threads()));
        let mut times: Vec<(String, Vec<f64>)> = Vec::new();
        for _ in 0..RUNS {
            let mut place = 0;
            let mut time = |name: String, f: &mut dyn FnMut()| {
                let start = Instant::now();
                f();
                let ms = start.elapsed().as_secs_f64() * 1e3;
                match times.get_mut(place) {
                    Some((_, times)) => times.push(ms),
                    None => times.push((name, vec![ms])),
                }
                place += 1;
            };
            let x = Planes::new(picture.values(), 3, SIDE, SIDE, plane_stride(SIDE, SIDE));
            time("stem".into(), &mut || {
                let mut y = PlanesMut::new(a.values(), 32, side, side, plane_stride(side, side));
                self.stem.run(x, &mut y, scratch.values(), team);
            });
            let mut now = side;
            for (depthwise, pointwise) in &self.pairs {
                let (from, stride) = (now, plane_stride(now, now));
                let channels = depthwise.channels();
                [now, _] = depthwise.output(now, now).expect("a picture large enough");
                let small = plane_stride(now, now);
                time(format!("depthwise {channels} {now}"), &mut || {
                    let x = Planes::new(a.values(), channels, from, from, stride);
                    let mut y = PlanesMut::new(b.values(), channels, now, now, small);
                    depthwise.run(x, &mut y, team);
                });
                let outputs = pointwise.outputs();
                time(format!("pointwise {outputs} {now}"), &mut || {
                    let x = Planes::new(b.values(), channels, now, now, small);
                    let mut y = PlanesMut::new(a.values(), outputs, now, now, small);
                    pointwise.run(x, None, &mut y, team);
                });
            }
            let inputs = self.classes.inputs();
            time("mean".into(), &mut || {
                let mut means = [0.0; 1024];
                Planes::new(a.values(), inputs, now, now, plane_stride(now, now))
                    .mean(&mut means[..inputs], team);
                for (value, mean) in b.values().chunks_mut(16).zip(means) {
                    value[0] = mean;
                }
            });
            time("classes".into(), &mut || {
                let x = Planes::new(b.values(), inputs, 1, 1, 16);
                let mut y = PlanesMut::new(a.values(), CLASSES, 1, 1, 16);
                self.classes.run(x, None, &mut y, team);
            });
        }
        let median = |mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        times
            .into_iter()
            .map(|(name, times)| (name, median(times)))
            .collect()
    }
}
