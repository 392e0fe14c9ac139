//! Convolution: what a layer is, and by which way it is computed.

use sedge_kernels::Team;

use crate::depthwise::Depthwise;
use crate::lanes::Set;
use crate::product::{Added, Panels, Steps, Walk};
use crate::shared::{Shared, part, tasks};
use crate::{Activation, Picture, PictureMut, Shape, Window, WindowError};

/// How large a convolution is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Channels of the result.
    pub outputs: usize,
    /// Channels of the input, of all groups.
    pub inputs: usize,
    /// Parts of the channels that know nothing of each other.
    pub groups: usize,
    /// Where its windows lie.
    pub window: Window,
}

/// Why there is no such convolution, or none of this picture.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConvError {
    /// Its window is none.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// No channels, or groups that do not divide them.
    #[error("{inputs} inputs and {outputs} outputs are not {groups} groups of channels")]
    Groups {
        /// Channels of the input.
        inputs: usize,
        /// Channels of the result.
        outputs: usize,
        /// Groups.
        groups: usize,
    },
    /// As many weights as the shape says do not fit into memory.
    #[error("a convolution is too large: {0:?}")]
    Large(ConvShape),
    /// Not as many weights as the shape says.
    #[error("{found} weights, where there should be {expected}")]
    Weights {
        /// By the shape.
        expected: usize,
        /// Given.
        found: usize,
    },
    /// Not a bias for each output.
    #[error("a bias of {found} values for {expected} outputs")]
    Bias {
        /// Outputs.
        expected: usize,
        /// Given.
        found: usize,
    },
    /// A picture with other channels.
    #[error("a picture of {found} channels, where there should be {expected}")]
    Channels {
        /// By the shape.
        expected: usize,
        /// Of the picture.
        found: usize,
    },
}

impl ConvShape {
    /// Weights, when all is as it should be.
    pub(crate) fn weights(self) -> Result<usize, ConvError> {
        let ConvShape {
            outputs,
            inputs,
            groups,
            window,
        } = self;
        if groups == 0 || inputs == 0 || outputs == 0 || inputs % groups + outputs % groups > 0 {
            return Err(ConvError::Groups {
                inputs,
                outputs,
                groups,
            });
        }
        window.check()?;
        // A factor of 16 is left for the padding of outputs to whole vectors.
        outputs
            .checked_mul(inputs / groups)
            .and_then(|product| product.checked_mul(window.taps()))
            .filter(|&weights| weights <= isize::MAX as usize / 4 / 16 / 2)
            .ok_or(ConvError::Large(self))
    }

    /// Whether these are its weights and bias.
    pub(crate) fn check(self, weights: &[f32], bias: Option<&[f32]>) -> Result<(), ConvError> {
        let expected = self.weights()?;
        if weights.len() != expected {
            return Err(ConvError::Weights {
                expected,
                found: weights.len(),
            });
        }
        match bias {
            Some(bias) if bias.len() != self.outputs => Err(ConvError::Bias {
                expected: self.outputs,
                found: bias.len(),
            }),
            _ => Ok(()),
        }
    }

    /// Whether a picture has its channels.
    pub(crate) fn check_input(self, x: Shape) -> Result<(), ConvError> {
        match x.c == self.inputs {
            true => Ok(()),
            false => Err(ConvError::Channels {
                expected: self.inputs,
                found: x.c,
            }),
        }
    }
}

/// A convolution, its weights packed for this machine.
pub struct Conv {
    shape: ConvShape,
    activation: Activation,
    way: Way,
}

enum Way {
    Product(Panels),
    Depthwise(Depthwise),
}

impl Conv {
    /// Packs weights `[outputs, inputs / groups, kernel rows, kernel columns]` and a bias for each
    /// output.
    ///
    /// # Errors
    /// When the shape is none, or weights or bias are not as long as it says.
    pub fn new(
        shape: ConvShape,
        weights: &[f32],
        bias: Option<&[f32]>,
        activation: Activation,
    ) -> Result<Conv, ConvError> {
        Conv::of(Set::best(), shape, weights, bias, activation)
    }

    /// [`Conv::new`] for one set of instructions.
    pub(crate) fn of(
        set: Set,
        shape: ConvShape,
        weights: &[f32],
        bias: Option<&[f32]>,
        activation: Activation,
    ) -> Result<Conv, ConvError> {
        shape.check(weights, bias)?;
        let ConvShape {
            outputs,
            inputs,
            groups,
            window,
        } = shape;
        let way = match groups == inputs && groups == outputs {
            true => Way::Depthwise(Depthwise::new(set, groups, window, weights, bias)),
            false => {
                let (inputs, taps) = (inputs / groups, window.taps());
                Way::Product(Panels::new(
                    set,
                    groups,
                    outputs / groups,
                    inputs,
                    taps,
                    bias,
                    |output, input, tap| weights[(output * inputs + input) * taps + tap],
                ))
            }
        };
        Ok(Conv {
            shape,
            activation,
            way,
        })
    }

    /// Its shape.
    pub fn shape(&self) -> ConvShape {
        self.shape
    }

    /// The result's shape.
    ///
    /// # Errors
    /// When the picture has other channels or no room for a window.
    pub fn output(&self, x: Shape) -> Result<Shape, ConvError> {
        self.shape.check_input(x)?;
        let [h, w] = self.shape.window.output(x.h, x.w)?;
        let (n, c) = (x.n, self.shape.outputs);
        Ok(Shape { n, h, w, c })
    }

    /// Values of scratch that [`Conv::run`] wants for this input: room for the picture with its
    /// padding, where there is any. `threads` share it.
    pub fn scratch(&self, x: Shape, _threads: usize) -> usize {
        let pads = self.shape.window.pads;
        match self.way {
            Way::Product(_) if pads != [0; 4] => padded(x, pads).values(),
            _ => 0,
        }
    }

    /// `y = activation(conv(x) + bias + add)`. Allocates nothing. Results do not depend on the
    /// team.
    ///
    /// # Panics
    /// When `y` or `add` is not shaped as [`Conv::output`] says, or scratch is shorter than
    /// [`Conv::scratch`].
    pub fn run(
        &self,
        x: Picture,
        add: Option<Picture>,
        y: &mut PictureMut,
        scratch: &mut [f32],
        team: &Team,
    ) {
        let shape = y.shape();
        assert_eq!(
            self.output(x.shape()),
            Ok(shape),
            "the result's shape differs"
        );
        if let Some(add) = add {
            assert_eq!(add.shape(), shape, "what is added has another shape");
        }
        match &self.way {
            Way::Depthwise(depthwise) => depthwise.run(x, add, y, self.activation, team),
            Way::Product(panels) => {
                let wanted = self.scratch(x.shape(), team.threads());
                let x = match wanted {
                    0 => x,
                    _ => pad(x, self.shape.window.pads, &mut scratch[..wanted], team),
                };
                let walk = self.walk(x.shape(), x.stride(), shape, y.stride());
                let steps = |p: Picture| Steps::of(shape.h, shape.w, p.stride(), [1, 1]);
                let add = add.map(|add| Added {
                    values: add.values(),
                    steps: match walk.pictures * walk.lines {
                        1 => Steps::of(1, 1, add.stride(), [1, 1]),
                        _ => steps(add),
                    },
                });
                let y = Shared::new(y.values());
                // SAFETY: the walk is of these two shapes, whose values pictures have; `y` is
                // borrowed by this call alone, its output pixels are apart.
                unsafe { panels.run(&walk, x.values(), add, y, self.activation, team) };
            }
        }
    }

    /// The windows of a padded picture.
    fn walk(&self, x: Shape, x_stride: usize, y: Shape, y_stride: usize) -> Walk {
        let window = self.shape.window;
        let taps = window.kernel;
        let pitch = [
            window.dilation[0] * x.w * x_stride,
            window.dilation[1] * x_stride,
        ];
        // Where every pixel is a window, all pixels are one line.
        match window.kernel == [1, 1] && window.stride == [1, 1] {
            true => Walk {
                pictures: 1,
                lines: 1,
                pixels: y.pixels(),
                x: Steps::of(1, 1, x_stride, [1, 1]),
                y: Steps::of(1, 1, y_stride, [1, 1]),
                taps,
                pitch,
            },
            false => Walk {
                pictures: y.n,
                lines: y.h,
                pixels: y.w,
                x: Steps::of(x.h, x.w, x_stride, window.stride),
                y: Steps::of(y.h, y.w, y_stride, [1, 1]),
                taps,
                pitch,
            },
        }
    }
}

/// The shape of a picture with padding.
pub(crate) fn padded(x: Shape, pads: [usize; 4]) -> Shape {
    Shape {
        h: x.h + pads[0] + pads[2],
        w: x.w + pads[1] + pads[3],
        ..x
    }
}

/// Copies a picture between its padding. It is a small part of the products that follow, and
/// these need not know of edges.
pub(crate) fn pad<'a>(
    x: Picture,
    pads: [usize; 4],
    scratch: &'a mut [f32],
    team: &Team,
) -> Picture<'a> {
    let (from, to) = (x.shape(), padded(x.shape(), pads));
    let (lines, width) = (to.n * to.h, to.w * to.c);
    let tasks = tasks(lines, team.threads());
    let out = Shared::new(&mut scratch[..to.values()]);
    team.run(tasks, &|task| {
        for line in part(task, tasks, lines) {
            // SAFETY: each line belongs to one task, and the scratch has all.
            let out = unsafe { std::slice::from_raw_parts_mut(out.at(line * width), width) };
            let row = (line % to.h).wrapping_sub(pads[0]);
            if row >= from.h {
                out.fill(0.0);
                continue;
            }
            let (left, rest) = out.split_at_mut(pads[1] * to.c);
            let (middle, right) = rest.split_at_mut(from.w * to.c);
            left.fill(0.0);
            right.fill(0.0);
            let first = (line / to.h * from.h + row) * from.w;
            if x.stride() == to.c {
                middle.copy_from_slice(&x.values()[first * to.c..][..middle.len()]);
            } else {
                for (i, pixel) in middle.chunks_exact_mut(to.c).enumerate() {
                    pixel.copy_from_slice(x.pixel(first + i));
                }
            }
        }
    });
    Picture::new(scratch, to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, close};

    /// Convolution as it is written down.
    fn plain(
        shape: ConvShape,
        weights: &[f32],
        bias: &[f32],
        activation: Activation,
        x: Picture,
        add: Option<Picture>,
        y: &mut PictureMut,
    ) {
        let (window, out, size) = (shape.window, y.shape(), x.shape());
        let (inputs, outputs) = (shape.inputs / shape.groups, shape.outputs / shape.groups);
        for i in 0..out.pixels() {
            let (n, h, w) = (i / out.w / out.h, i / out.w % out.h, i % out.w);
            for o in 0..out.c {
                let mut sum = f64::from(bias[o]);
                for tap in 0..window.taps() {
                    let at = |axis: usize, of: usize, tap: usize| {
                        (of * window.stride[axis] + tap * window.dilation[axis])
                            .wrapping_sub(window.pads[axis])
                    };
                    let row = at(0, h, tap / window.kernel[1]);
                    let column = at(1, w, tap % window.kernel[1]);
                    if row >= size.h || column >= size.w {
                        continue;
                    }
                    let pixel = x.pixel((n * size.h + row) * size.w + column);
                    for c in 0..inputs {
                        let weight = weights[(o * inputs + c) * window.taps() + tap];
                        sum += f64::from(weight) * f64::from(pixel[o / outputs * inputs + c]);
                    }
                }
                let add = add.map_or(0.0, |add| add.pixel(i)[o]);
                y.pixel(i)[o] = activation.of(sum as f32 + add);
            }
        }
    }

    fn hold(random: &mut Random, shape: ConvShape, x: Shape, activation: Activation) {
        let ConvShape { outputs, .. } = shape;
        let weights = random.values(shape.weights().unwrap());
        let bias = random.values(outputs);
        let stride = x.c + random.below(2) * 3;
        let pixels = random.values(x.pixels() * stride);
        let x = Picture::strided(&pixels, x, stride);
        let [h, w] = shape.window.output(x.shape().h, x.shape().w).unwrap();
        let out = Shape {
            n: x.shape().n,
            h,
            w,
            c: outputs,
        };
        let stride = outputs + random.below(2) * 5;
        let to_add = random.values(out.pixels() * stride);
        let add = match random.below(2) {
            0 => None,
            _ => Some(Picture::strided(&to_add, out, stride)),
        };
        let mut expected = vec![0.0; out.values()];
        let mut to = PictureMut::new(&mut expected, out);
        plain(shape, &weights, &bias, activation, x, add, &mut to);
        for set in Set::all() {
            let conv = Conv::of(set, shape, &weights, Some(&bias), activation).unwrap();
            let mut alone = Vec::new();
            for threads in [1, 2] {
                let team = Team::new(threads);
                let mut scratch = vec![f32::NAN; conv.scratch(x.shape(), threads)];
                let stride = outputs + 2;
                let mut found = vec![7.5; out.pixels() * stride];
                let mut y = PictureMut::strided(&mut found, out, stride);
                conv.run(x, add, &mut y, &mut scratch, &team);
                for i in 0..out.pixels() {
                    close(y.pixel(i), &expected[i * outputs..][..outputs], 3e-5);
                }
                let gaps = found.chunks(stride).flat_map(|pixel| &pixel[outputs..]);
                assert!(gaps.into_iter().all(|&gap| gap == 7.5), "a gap was written");
                match threads {
                    1 => alone = found,
                    _ => assert_eq!(alone, found, "threads change the result"),
                }
            }
        }
    }

    const ACTIVATIONS: [Activation; 6] = [
        Activation::Identity,
        Activation::Relu,
        Activation::Clip {
            low: 0.0,
            high: 6.0,
        },
        Activation::HardSwish,
        Activation::Silu,
        Activation::Tanh,
    ];

    #[test]
    fn pointwise_layers_are_their_definition() {
        let mut random = Random(1);
        for (i, [inputs, outputs, pixels]) in [
            [1, 1, 1],
            [3, 16, 5],
            [24, 40, 49],
            [40, 24, 13],
            [72, 100, 29],
            [33, 72, 1],
        ]
        .into_iter()
        .enumerate()
        {
            let shape = ConvShape {
                outputs,
                inputs,
                groups: 1,
                window: Window::pointwise(),
            };
            let x = Shape {
                n: 1,
                h: 1,
                w: pixels,
                c: inputs,
            };
            hold(&mut random, shape, x, ACTIVATIONS[i]);
        }
    }

    #[test]
    fn any_convolution_is_its_definition() {
        let mut random = Random(2);
        for round in 0..60 {
            let groups = [1, 1, 2, 3][random.below(4)];
            let shape = ConvShape {
                outputs: groups * (1 + random.below(40)),
                inputs: groups * (1 + random.below(7)),
                groups,
                window: window(&mut random),
            };
            let x = Shape {
                n: 1 + random.below(2),
                h: 9 + random.below(5),
                w: 9 + random.below(20),
                c: shape.inputs,
            };
            hold(&mut random, shape, x, ACTIVATIONS[round % 6]);
        }
    }

    #[test]
    fn depthwise_layers_are_their_definition() {
        let mut random = Random(3);
        for round in 0..80 {
            let channels = 2 + random.below(40);
            let mut window = window(&mut random);
            if round % 4 > 0 {
                let pad = random.below(3);
                window = Window::square([3, 5][round % 2], 1 + random.below(2), pad);
            }
            let shape = ConvShape {
                outputs: channels,
                inputs: channels,
                groups: channels,
                window,
            };
            let x = Shape {
                n: 1 + random.below(2),
                h: 9 + random.below(3),
                w: 9 + random.below(20),
                c: channels,
            };
            hold(&mut random, shape, x, ACTIVATIONS[round % 6]);
        }
    }

    /// Some window that fits nine pixels.
    fn window(random: &mut Random) -> Window {
        let mut some = |from: usize, n: usize| std::array::from_fn(|_| from + random.below(n));
        let pads: [usize; 2] = some(0, 3);
        let more: [usize; 2] = some(0, 2);
        Window {
            kernel: some(1, 5),
            stride: some(1, 3),
            dilation: some(1, 2),
            pads: [pads[0], pads[1], more[0], more[1]],
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut shape = ConvShape {
            outputs: 4,
            inputs: 6,
            groups: 2,
            window: Window::square(3, 1, 1),
        };
        let new = |shape, weights: usize, bias: usize| {
            let (weights, bias) = (vec![0.0; weights], vec![0.0; bias]);
            Conv::new(shape, &weights, Some(&bias), Activation::Identity).err()
        };
        assert_eq!(new(shape, 108, 4), None);
        assert!(matches!(
            new(shape, 107, 4),
            Some(ConvError::Weights { .. })
        ));
        assert!(matches!(new(shape, 108, 3), Some(ConvError::Bias { .. })));
        shape.groups = 4;
        assert!(matches!(new(shape, 54, 4), Some(ConvError::Groups { .. })));
        shape.groups = 0;
        assert!(matches!(new(shape, 54, 4), Some(ConvError::Groups { .. })));
        shape.groups = 1;
        shape.window.kernel = [0, 1];
        assert!(matches!(new(shape, 0, 4), Some(ConvError::Window(_))));
        shape.window.kernel = [60_000; 2];
        shape.outputs = 1 << 40;
        assert!(matches!(new(shape, 0, 0), Some(ConvError::Large(_))));
    }
}
