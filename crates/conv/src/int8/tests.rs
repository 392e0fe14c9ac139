use super::*;
use proptest::prelude::*;

/// Numbers that look random and are the same each time.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub(super) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }

    fn real(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.next() % 4096) as f32 / 4095.0
    }
}

/// A convolution, its input, and what is added.
#[derive(Debug)]
struct Case {
    shape: [usize; 3],
    window: Window,
    x: Shape,
    x_gap: usize,
    y_gap: usize,
    add: bool,
    activation: Activation,
    seed: u64,
}

const INPUT: Quant = Quant {
    scale: 0.02,
    zero: 113,
};
const BESIDE: Quant = Quant {
    scale: 0.03,
    zero: 99,
};

struct Made {
    weights: Vec<i8>,
    scales: Vec<f32>,
    bias: Vec<f32>,
    x: Vec<u8>,
    add: Vec<u8>,
    output: Quant,
}

impl Case {
    fn made(&self, y: Shape) -> Made {
        let mut numbers = Numbers(self.seed);
        let [outputs, inputs, groups] = self.shape;
        let products = inputs / groups * self.window.taps();
        let weights = numbers.bytes(outputs * products);
        Made {
            weights: weights.into_iter().map(|w| w as i8).collect(),
            scales: (0..outputs).map(|_| numbers.real(0.002, 0.01)).collect(),
            bias: (0..outputs).map(|_| numbers.real(-3.0, 3.0)).collect(),
            x: numbers.bytes(self.x.pixels() * (self.x.c + self.x_gap)),
            add: numbers.bytes(y.values()),
            output: Quant {
                scale: 0.01 * (products as f32).sqrt(),
                zero: numbers.next() as u8,
            },
        }
    }

    /// The definition, pixel by pixel in real numbers.
    fn plain(&self, made: &Made, y: Shape) -> Vec<f32> {
        let [outputs, inputs, groups] = self.shape;
        let (inputs, each) = (inputs / groups, outputs / groups);
        let [kh, kw] = self.window.kernel;
        let mut out = Vec::new();
        for i in 0..y.pixels() {
            let (n, row, column) = (i / (y.h * y.w), i / y.w % y.h, i % y.w);
            for o in 0..outputs {
                let mut sum = 0i64;
                for ky in 0..kh {
                    for kx in 0..kw {
                        let at = |place: usize, tap: usize, axis: usize, size: usize| {
                            let w = &self.window;
                            (place * w.stride[axis] + tap * w.dilation[axis])
                                .checked_sub(w.pads[axis])
                                .filter(|at| *at < size)
                        };
                        let row = at(row, ky, 0, self.x.h);
                        let column = at(column, kx, 1, self.x.w);
                        let (Some(row), Some(column)) = (row, column) else {
                            continue;
                        };
                        let pixel = (n * self.x.h + row) * self.x.w + column;
                        for c in 0..inputs {
                            let x = pixel * (self.x.c + self.x_gap) + o / each * inputs + c;
                            let w = ((o * inputs + c) * kh + ky) * kw + kx;
                            sum += (i64::from(made.x[x]) - i64::from(INPUT.zero))
                                * i64::from(made.weights[w]);
                        }
                    }
                }
                let mut v = sum as f32 * (INPUT.scale * made.scales[o]) + made.bias[o];
                if self.add {
                    v += BESIDE.real(made.add[i * outputs + o]);
                }
                out.push(self.activation.of(v));
            }
        }
        out
    }

    fn run(&self, set: &'static Set, made: &Made, threads: usize) -> (Vec<u8>, Vec<f32>) {
        let weights = Weights {
            shape: self.shape,
            window: self.window,
            weights: &made.weights,
            scales: &made.scales,
            bias: Some(&made.bias),
        };
        let conv = Int8Conv::with(set, weights, INPUT, self.activation, made.output).unwrap();
        let y = conv.output(self.x).unwrap();
        let x = Picture::strided(&made.x, self.x, self.x.c + self.x_gap);
        let add = self.add.then(|| (Picture::new(&made.add, y), BESIDE));
        let team = Team::new(threads);
        let mut scratch = vec![0; conv.scratch(self.x, threads)];
        let stride = y.c + self.y_gap;
        let mut bytes = vec![7; y.pixels() * stride];
        let mut picture = PictureMut::strided(&mut bytes, y, stride);
        conv.run(x, add, &mut picture, &mut scratch, &team);
        let mut reals = vec![7.0; y.pixels() * stride];
        let mut picture = PictureMut::strided(&mut reals, y, stride);
        conv.run_f32(x, add, &mut picture, &mut scratch, &team);
        (bytes, reals)
    }

    fn check(&self) {
        let y = {
            let [h, w] = self.window.output(self.x.h, self.x.w).unwrap();
            let (n, c) = (self.x.n, self.shape[0]);
            Shape { n, h, w, c }
        };
        let made = self.made(y);
        let plain = self.plain(&made, y);
        let first = self.run(sets::all().next().unwrap(), &made, 1);
        for (i, want) in plain.iter().enumerate() {
            let at = i / y.c * (y.c + self.y_gap) + i % y.c;
            let error = (first.1[at] - want).abs();
            assert!(
                error <= 1e-4 + 1e-5 * want.abs(),
                "{} is not {want}",
                first.1[at]
            );
            // Where a number is nearly half way, its last bits decide.
            let steps = want / made.output.scale;
            let half = (steps - steps.floor() - 0.5).abs() < 1e-2;
            let off = first.0[at].abs_diff(made.output.of(*want));
            assert!(off <= u8::from(half), "{} of {want}", first.0[at]);
        }
        for set in sets::all() {
            for threads in [1, 3] {
                let again = self.run(set, &made, threads);
                assert!(again.0 == first.0, "{}: bytes", set.name);
                let same = again
                    .1
                    .iter()
                    .zip(&first.1)
                    .all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{}: reals", set.name);
            }
        }
    }
}

fn activations() -> impl Strategy<Value = Activation> {
    prop_oneof![
        Just(Activation::Identity),
        Just(Activation::Relu),
        Just(Activation::Clip {
            low: -0.5,
            high: 1.0
        }),
        Just(Activation::LeakyRelu { slope: 0.1 }),
        Just(Activation::HardSigmoid {
            alpha: 0.2,
            beta: 0.5
        }),
        Just(Activation::HardSwish),
        Just(Activation::Sigmoid),
        Just(Activation::Silu),
        Just(Activation::Tanh),
    ]
}

fn cases() -> impl Strategy<Value = Case> {
    let shape = prop_oneof![
        (1usize..150, 1usize..150).prop_map(|(o, i)| [o, i, 1]),
        (1usize..150).prop_map(|c| [c, c, c]),
        (1usize..150).prop_map(|c| [c, c, c]),
        (1usize..20, 1usize..20, 1usize..4).prop_map(|(o, i, g)| [o * g, i * g, g]),
    ];
    let axis = |k: &'static [usize]| {
        (
            prop::sample::select(k),
            1usize..3,
            1usize..3,
            0usize..3,
            0usize..3,
        )
    };
    let window = prop_oneof![
        Just(Window::pointwise()),
        (prop::sample::select(&[3usize, 5][..]), 1usize..3).prop_map(|(k, s)| Window::square(
            k,
            s,
            k / 2
        )),
        (axis(&[1, 2, 3, 4]), axis(&[1, 2, 3, 5])).prop_map(|(a, b)| Window {
            kernel: [a.0, b.0],
            stride: [a.1, b.1],
            dilation: [a.2, b.2],
            pads: [a.3, b.3, a.4, b.4],
        }),
    ];
    let place = (1usize..3, 1usize..9, 1usize..21, 0usize..5, 0usize..5);
    let rest = (any::<bool>(), activations(), any::<u64>());
    (shape, window, place, rest)
        .prop_map(
            |(shape, window, (n, h, w, x_gap, y_gap), (add, activation, seed))| Case {
                shape,
                window,
                x: Shape {
                    n,
                    h,
                    w,
                    c: shape[1],
                },
                x_gap,
                y_gap,
                add,
                activation,
                seed,
            },
        )
        .prop_filter("has room", |case| {
            case.window.output(case.x.h, case.x.w).is_ok()
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(8),
        ..ProptestConfig::default() })]

    #[test]
    fn all_sets_have_the_bytes_of_the_definition(case in cases()) {
        case.check();
    }
}

#[test]
fn bytes_and_numbers_are_each_others() {
    let team = Team::new(2);
    for set in sets::all() {
        for c in [1, 15, 16, 37] {
            let bytes: Vec<u8> = Numbers(5).bytes(c);
            let mut reals = vec![0.0; c];
            let mut again = vec![0; c];
            // SAFETY: the set is this machine's.
            unsafe {
                (set.dequantize)(&bytes, INPUT, &mut reals);
                (set.quantize)(&reals, INPUT, &mut again);
            }
            for (q, real) in bytes.iter().zip(&reals) {
                assert_eq!(*real, INPUT.real(*q));
            }
            assert_eq!(again, bytes, "{}", set.name);
        }
    }
    let shape = Shape {
        n: 1,
        h: 2,
        w: 2,
        c: 3,
    };
    let x: Vec<f32> = (0..12).map(|i| i as f32 / 3.0 - 2.0).collect();
    let (mut y, mut back) = (vec![0; 12], vec![0.0; 12]);
    quantize(
        Picture::new(&x, shape),
        INPUT,
        &mut PictureMut::new(&mut y, shape),
        &team,
    );
    dequantize(
        Picture::new(&y, shape),
        INPUT,
        &mut PictureMut::new(&mut back, shape),
        &team,
    );
    for ((x, y), back) in x.iter().zip(y).zip(back) {
        assert_eq!((y, back), (INPUT.of(*x), INPUT.real(y)));
    }
}

#[test]
fn pairs_are_those_of_the_real_numbers() {
    let team = Team::new(2);
    let shape = Shape {
        n: 2,
        h: 2,
        w: 3,
        c: 37,
    };
    let one = Shape {
        h: 1,
        w: 1,
        ..shape
    };
    let a = Numbers(1).bytes(shape.values());
    let out = Quant {
        scale: 0.07,
        zero: 120,
    };
    for (b_shape, of) in [
        (shape, Pair::Add),
        (shape, Pair::Mul),
        (one, Pair::Mul),
        (one, Pair::Add),
    ] {
        let b = Numbers(2).bytes(b_shape.values());
        let mut y = vec![0; a.len()];
        pair(
            of,
            (Picture::new(&a, shape), INPUT),
            (Picture::new(&b, b_shape), BESIDE),
            (&mut PictureMut::new(&mut y, shape), out),
            &team,
        );
        for (i, y) in y.iter().enumerate() {
            let j = match b_shape == shape {
                true => i,
                false => i / (6 * shape.c) * shape.c + i % shape.c,
            };
            let (a, b) = (INPUT.real(a[i]), BESIDE.real(b[j]));
            let want = if of == Pair::Add { a + b } else { a * b };
            let limited = want.clamp(out.real(0), out.real(255));
            assert!((out.real(*y) - limited).abs() < 0.501 * out.scale);
        }
        for set in sets::all() {
            let mut again = vec![0; shape.c];
            // SAFETY: the set is this machine's.
            unsafe {
                (set.pair)(
                    of,
                    [&a[..shape.c], &b[..shape.c]],
                    [INPUT, BESIDE, out],
                    &mut again,
                )
            };
            assert_eq!(again, y[..shape.c], "{}", set.name);
        }
    }
}
