//! Every kernel, on every instruction set that there is, against plain sums.

use sedge_kernels::Team;

use super::isa::Isa;
use super::*;
use crate::{Activation, Picture, PictureMut, Shape};

/// Numbers from −1 to 1 that look random and are the same every time.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// [`numbers`] of which some part is 0.
fn weights(n: usize, zeros: f32, seed: u64) -> Vec<f32> {
    let dice = numbers(n, seed + 1);
    let values = numbers(n, seed).into_iter().zip(dice);
    values
        .map(|(value, dice)| if dice * 0.5 + 0.5 < zeros { 0.0 } else { value })
        .collect()
}

/// Planes with numbers, also behind their last pixels.
struct Owned {
    values: Vec<f32>,
    channels: usize,
    size: [usize; 2],
    stride: usize,
}

impl Owned {
    fn new(channels: usize, [h, w]: [usize; 2], seed: u64) -> Owned {
        let stride = plane_stride(h, w) + 16 * (seed as usize % 2);
        Owned {
            values: numbers(channels * stride, seed),
            channels,
            size: [h, w],
            stride,
        }
    }

    fn read(&self) -> Planes<'_> {
        let [h, w] = self.size;
        Planes::new(&self.values, self.channels, h, w, self.stride)
    }

    fn write(&mut self) -> PlanesMut<'_> {
        let [h, w] = self.size;
        PlanesMut::new(&mut self.values, self.channels, h, w, self.stride)
    }

    /// Pixels of all planes, without what lies between.
    fn pixels(&self) -> Vec<f32> {
        let planes = (0..self.channels).map(|c| self.read().plane(c));
        planes.flatten().copied().collect()
    }
}

/// A convolution with kernels `[outputs, inputs / groups, kh, kw]`, in double precision.
fn plain(
    x: Planes<'_>,
    weights: &[f32],
    [outputs, groups]: [usize; 2],
    window: Window,
    bias: &[f32],
    add: Option<Planes<'_>>,
    activation: Activation,
) -> Vec<f32> {
    let ([h, w], inputs) = (x.size(), x.channels() / groups);
    let [rows, columns] = window.output(h, w).unwrap();
    let [kh, kw] = window.kernel;
    let mut y = Vec::new();
    for o in 0..outputs {
        let first = o / (outputs / groups) * inputs;
        for (row, column) in (0..rows * columns).map(|p| (p / columns, p % columns)) {
            let mut sum = f64::from(bias[o]);
            for (i, dy, dx) in (0..inputs * kh * kw).map(|t| (t / (kh * kw), t / kw % kh, t % kw)) {
                let at = row * window.stride[0] + dy * window.dilation[0];
                let left = column * window.stride[1] + dx * window.dilation[1];
                let (at, left) = (
                    at.wrapping_sub(window.pads[0]),
                    left.wrapping_sub(window.pads[1]),
                );
                if at < h && left < w {
                    let weight = weights[((o * inputs + i) * kh + dy) * kw + dx];
                    sum += f64::from(weight) * f64::from(x.plane(first + i)[at * w + left]);
                }
            }
            if let Some(add) = add {
                sum += f64::from(add.plane(o)[row * columns + column]);
            }
            y.push(activation.of(sum as f32));
        }
    }
    y
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= 2e-5 * (1.0 + b.abs()),
            "{what}: {i}: {a} {b}"
        );
    }
}

const ACTIVATIONS: [Activation; 6] = [
    Activation::Identity,
    Activation::Relu,
    Activation::Clip {
        low: -0.5,
        high: 1.5,
    },
    Activation::HardSwish,
    Activation::HardSigmoid {
        alpha: 0.2,
        beta: 0.4,
    },
    Activation::Silu,
];

#[test]
fn products_of_lists_equal_plain_sums() {
    let sizes = [[1, 1], [3, 5], [7, 7], [4, 12], [14, 14], [13, 25]];
    let channels = [[1, 1], [5, 7], [16, 9], [19, 40], [35, 33]];
    let mut seed = 0;
    for isa in Isa::all() {
        for block in [1, 2, 4, 8, 16] {
            for (size, [outputs, inputs]) in
                sizes.into_iter().flat_map(|s| channels.map(|c| (s, c)))
            {
                seed += 1;
                let what = format!("{isa:?} {block} {size:?} {outputs} of {inputs}");
                let zeros = [0.0, 0.3, 0.8, 1.0][seed as usize % 4];
                let activation = ACTIVATIONS[seed as usize % 6];
                let w = weights(outputs * inputs, zeros, seed);
                let bias = numbers(outputs, seed + 2);
                let x = Owned::new(inputs, size, seed + 3);
                let add = Owned::new(outputs, size, seed + 4);
                let add = (seed % 3 == 0).then(|| add.read());
                let mut y = Owned::new(outputs, size, seed + 5);
                let shape = [outputs, inputs];
                let sparse = Sparse::on(isa, &w, shape, Some(&bias), activation, block).unwrap();
                let team = Team::new(1 + seed as usize % 2);
                sparse.run(x.read(), add, &mut y.write(), &team);
                let window = Window::pointwise();
                let expected = plain(x.read(), &w, [outputs, 1], window, &bias, add, activation);
                assert_close(&y.pixels(), &expected, &what);
            }
        }
    }
}

#[test]
fn a_large_picture_is_cut_into_groups_that_join() {
    let (outputs, inputs, size) = (6, 300, [31, 37]);
    let w = weights(outputs * inputs, 0.5, 1);
    let x = Owned::new(inputs, size, 2);
    let bias = [0.0; 6];
    let (window, identity) = (Window::pointwise(), Activation::Identity);
    let expected = plain(x.read(), &w, [outputs, 1], window, &bias, None, identity);
    for block in [1, 2, 4, 8, 16] {
        let sparse = Sparse::new(&w, outputs, inputs, None, identity, block).unwrap();
        let run = |threads| {
            let mut y = Owned::new(outputs, size, 3);
            sparse.run(x.read(), None, &mut y.write(), &Team::new(threads));
            y.pixels()
        };
        let one = run(1);
        assert_close(&one, &expected, "one thread");
        assert_eq!(one, run(3), "threads change no bit");
    }
}

#[test]
fn depthwise_kernels_equal_plain_sums() {
    let sizes = [[1, 1], [2, 3], [7, 7], [14, 14], [15, 17], [9, 40], [3, 65]];
    let mut seed = 100;
    for isa in Isa::all() {
        for (k, s, pad) in [
            (3, 1, 1),
            (3, 2, 1),
            (5, 1, 2),
            (5, 2, 2),
            (3, 2, 2),
            (5, 1, 4),
        ] {
            for size in sizes {
                seed += 1;
                let (channels, mut window) = (5, Window::square(k, s, pad));
                // As networks that were made for even sizes pad.
                window.pads[0] -= seed as usize % 2;
                window.pads[1] -= seed as usize % 2;
                let Ok(out) = window.output(size[0], size[1]) else {
                    continue;
                };
                let activation = ACTIVATIONS[seed as usize % 6];
                let w = numbers(channels * k * k, seed);
                let bias = numbers(channels, seed + 1);
                let x = Owned::new(channels, size, seed + 2);
                let mut y = Owned::new(channels, out, seed + 3);
                let depthwise =
                    Depthwise::on(isa, &w, channels, window, Some(&bias), activation).unwrap();
                assert_eq!(depthwise.output(size[0], size[1]), Ok(out));
                let team = Team::new(1 + seed as usize % 3);
                depthwise.run(x.read(), &mut y.write(), &team);
                let groups = [channels, channels];
                let expected = plain(x.read(), &w, groups, window, &bias, None, activation);
                assert_close(
                    &y.pixels(),
                    &expected,
                    &format!("{isa:?} {window:?} {size:?}"),
                );
                let behind = &y.values[out[0] * out[1]..y.stride];
                assert!(behind.iter().all(|x| *x == 0.0), "zeros behind a plane");
            }
        }
    }
}

#[test]
fn convolutions_of_few_planes_equal_plain_sums() {
    let dilated = Window {
        kernel: [2, 3],
        stride: [1, 3],
        dilation: [2, 2],
        pads: [1, 0, 2, 3],
    };
    let windows = [
        Window::square(3, 2, 1),
        Window::square(3, 1, 1),
        Window::square(7, 2, 3),
        Window::square(4, 4, 0),
        dilated,
    ];
    let mut seed = 200;
    for isa in Isa::all() {
        for window in windows {
            for size in [[9, 8], [16, 31], [20, 37]] {
                seed += 1;
                let (outputs, inputs) = (11, 3);
                let [h, w] = size;
                let out = window.output(h, w).unwrap();
                let activation = ACTIVATIONS[seed as usize % 6];
                let kernels = weights(outputs * inputs * window.taps(), 0.3, seed);
                let bias = numbers(outputs, seed + 1);
                let x = Owned::new(inputs, size, seed + 2);
                let mut y = Owned::new(outputs, out, seed + 3);
                let block = [1, 4, 8, 16][seed as usize % 4];
                let shape = [outputs, inputs];
                let conv =
                    PlaneConv::on(isa, &kernels, shape, window, Some(&bias), activation, block)
                        .unwrap();
                let team = Team::new(1 + seed as usize % 2);
                let mut scratch = numbers(conv.scratch(out[1], team.threads()), 1);
                conv.run(x.read(), &mut y.write(), &mut scratch, &team);
                let expected = plain(
                    x.read(),
                    &kernels,
                    [outputs, 1],
                    window,
                    &bias,
                    None,
                    activation,
                );
                assert_close(
                    &y.pixels(),
                    &expected,
                    &format!("{isa:?} {window:?} {size:?}"),
                );
            }
        }
    }
}

#[test]
fn pixels_become_planes_and_pixels_again() {
    let shape = Shape {
        n: 2,
        h: 5,
        w: 9,
        c: 35,
    };
    let team = Team::new(2);
    let values = numbers(shape.values(), 7);
    let mut back = vec![0.0; shape.values()];
    for n in 0..2 {
        let mut planes = Owned::new(shape.c, [shape.h, shape.w], 8);
        to_planes(Picture::new(&values, shape), n, &mut planes.write(), &team);
        for (c, p) in (0..shape.c).flat_map(|c| (0..45).map(move |p| (c, p))) {
            assert_eq!(
                planes.read().plane(c)[p],
                values[(n * 45 + p) * shape.c + c]
            );
        }
        from_planes(planes.read(), &mut PictureMut::new(&mut back, shape), n);
    }
    assert_eq!(values, back);
}

#[test]
fn planes_are_scaled_added_and_averaged() {
    let (size, channels, team) = ([7, 9], 6, Team::new(2));
    let (x, more) = (Owned::new(channels, size, 1), Owned::new(channels, size, 4));
    let scales = numbers(channels, 3);
    for activation in ACTIVATIONS {
        let mut y = Owned::new(channels, size, 1);
        y.write().scale(&scales, activation, &team);
        y.write().add(more.read(), Activation::Relu, &team);
        y.write().activate(Activation::HardSwish, &team);
        let values = x.pixels().into_iter().zip(more.pixels()).enumerate();
        let expected: Vec<f32> = values
            .map(|(i, (x, more))| {
                let sum = activation.of(x * scales[i / 63]) + more;
                Activation::HardSwish.of(Activation::Relu.of(sum))
            })
            .collect();
        assert_close(&y.pixels(), &expected, &format!("{activation:?}"));
    }
    let mut means = vec![0.0; channels];
    x.read().mean(&mut means, &team);
    let expected: Vec<f32> = x
        .pixels()
        .chunks(63)
        .map(|x| x.iter().sum::<f32>() / 63.0)
        .collect();
    assert_close(&means, &expected, "means");
}

#[test]
fn the_best_block_follows_the_zeros() {
    let (outputs, inputs) = (64, 64);
    let scattered = weights(outputs * inputs, 0.9, 5);
    assert!(Sparse::best_block(&scattered, outputs, inputs) <= 2);
    for block in [4, 8, 16] {
        let kept = weights(outputs / block * inputs, 0.7, 9);
        let w: Vec<f32> = (0..outputs * inputs)
            .map(|i| kept[i / inputs / block * inputs + i % inputs])
            .collect();
        assert!(Sparse::best_block(&w, outputs, inputs) >= block.min(8));
        let sparse = Sparse::new(&w, outputs, inputs, None, Activation::Identity, block).unwrap();
        let there = w.iter().filter(|w| **w != 0.0).count() as f32;
        assert_eq!(sparse.density(), there / w.len() as f32);
    }
    assert_eq!(Sparse::best_block(&[], 0, 0), 1);
}

#[test]
fn layers_that_do_not_exist_are_refused() {
    let identity = Activation::Identity;
    let refused = |r: Result<Sparse, SparseError>| r.unwrap_err();
    assert_eq!(
        refused(Sparse::new(&[0.0; 4], 2, 2, None, identity, 3)),
        SparseError::Block(3)
    );
    assert_eq!(
        refused(Sparse::new(&[0.0; 3], 2, 2, None, identity, 1)),
        SparseError::Weights {
            found: 3,
            expected: 4
        }
    );
    assert_eq!(
        refused(Sparse::new(&[0.0; 4], 2, 2, Some(&[0.0]), identity, 1)),
        SparseError::Bias {
            found: 1,
            expected: 2
        }
    );
    let window = Window::square(7, 1, 3);
    let depthwise = Depthwise::new(&[0.0; 49], 1, window, None, identity);
    assert_eq!(depthwise.unwrap_err(), SparseError::Depthwise(window));
}
