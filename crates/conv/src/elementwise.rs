//! Arithmetic of each value by itself: activations, and two operands of which one may be smaller.

use sedge_kernels::Team;

use crate::lanes::{Kernel, Lanes, Set};
use crate::shared::{Shared, part, tasks};
use crate::{Activation, Picture, PictureMut, Shape};

/// An operation of two values, `a` of the picture and `b` of the other operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`
    Add,
    /// `a − b`
    Sub,
    /// `b − a`
    SubFrom,
    /// `a · b`
    Mul,
    /// `a / b`
    Div,
    /// `b / a`
    DivInto,
    /// The greater.
    Max,
    /// The less.
    Min,
}

/// What a picture is combined with.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// A value for each value.
    Picture(Picture<'a>),
    /// A value for each pixel: a picture of one channel.
    Pixels(Picture<'a>),
    /// A value for each channel of each picture, `[n, c]`: what squeeze and excitation gives.
    Pictures(&'a [f32]),
    /// A value for each channel, `[c]`.
    Channels(&'a [f32]),
    /// One value.
    Value(f32),
}

impl Binary {
    /// The operation of two values: what every kernel's version is held against.
    pub fn of(self, a: f32, b: f32) -> f32 {
        match self {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::SubFrom => b - a,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::DivInto => b / a,
            Binary::Max => a.max(b),
            Binary::Min => a.min(b),
        }
    }

    #[inline(always)]
    fn on<L: Lanes>(self, l: L, a: L::V, b: L::V) -> L::V {
        match self {
            Binary::Add => l.add(a, b),
            Binary::Sub => l.sub(a, b),
            Binary::SubFrom => l.sub(b, a),
            Binary::Mul => l.mul(a, b),
            Binary::Div => l.div(a, b),
            Binary::DivInto => l.div(b, a),
            Binary::Max => l.max(a, b),
            Binary::Min => l.min(a, b),
        }
    }
}

/// `y = activation(x)`.
///
/// # Panics
/// When the two have different shapes.
pub fn activate(x: Picture, activation: Activation, y: &mut PictureMut, team: &Team) {
    binary(Binary::Add, x, Operand::Value(0.0), activation, y, team);
}

/// `y = activation(a op b)`, as for example of channels that are scaled.
///
/// # Panics
/// When the shapes do not fit.
pub fn binary(
    op: Binary,
    a: Picture,
    b: Operand,
    activation: Activation,
    y: &mut PictureMut,
    team: &Team,
) {
    assert_eq!(a.shape(), y.shape(), "operand and result differ in shape");
    combine(Set::best(), op, a, b, activation, y, team);
}

/// Pixels of a picture.
#[derive(Clone, Copy)]
struct Source {
    values: *const f32,
    stride: usize,
}

// SAFETY: each task reads the pixels that it alone may write.
unsafe impl Sync for Source {}

fn combine(
    set: Set,
    op: Binary,
    a: Picture,
    b: Operand,
    activation: Activation,
    y: &mut PictureMut,
    team: &Team,
) {
    let Shape { n, h, w, c } = y.shape();
    match b {
        Operand::Picture(b) => assert_eq!(b.shape(), y.shape(), "operands differ in shape"),
        Operand::Pixels(b) => assert_eq!(b.shape(), Shape { n, h, w, c: 1 }, "not a value a pixel"),
        Operand::Pictures(b) => assert_eq!(b.len(), n * c, "not a value a picture and channel"),
        Operand::Channels(b) => assert_eq!(b.len(), c, "not a value a channel"),
        Operand::Value(_) => {}
    }
    let pixels = n * h * w;
    let tasks = tasks(pixels, team.threads());
    let stride = y.stride();
    let to = Shared::new(y.values());
    let a = Source {
        values: a.values().as_ptr(),
        stride: a.stride(),
    };
    team.run(tasks, &|task| {
        let a = &a;
        set.run(Pixels {
            op,
            a: *a,
            b,
            activation,
            pixels: part(task, tasks, pixels),
            picture: h * w,
            channels: c,
            y: to,
            stride,
        });
    });
}

struct Pixels<'a> {
    op: Binary,
    a: Source,
    b: Operand<'a>,
    activation: Activation,
    pixels: std::ops::Range<usize>,
    /// Pixels of one picture.
    picture: usize,
    channels: usize,
    /// The pixels are this work's own.
    y: Shared<f32>,
    stride: usize,
}

impl Kernel for Pixels<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let mut pixels = self.pixels.clone();
        // Pixels without gaps that all meet one value are one long pixel.
        let dense = self.channels == self.stride && self.channels == self.a.stride;
        let mut channels = self.channels;
        if let (Operand::Value(_), true) = (self.b, dense) {
            channels *= pixels.len();
            pixels.end = pixels.start + usize::from(channels > 0);
        }
        for pixel in pixels {
            let (b, one) = match self.b {
                Operand::Picture(b) => (b.pixel(pixel).as_ptr(), None),
                Operand::Pixels(b) => (std::ptr::null(), Some(b.pixel(pixel)[0])),
                Operand::Pictures(b) => {
                    let picture = pixel / self.picture;
                    (b[picture * channels..][..channels].as_ptr(), None)
                }
                Operand::Channels(b) => (b.as_ptr(), None),
                Operand::Value(b) => (std::ptr::null(), Some(b)),
            };
            let mut c = 0;
            while c < channels {
                let part = l.first(channels - c);
                // SAFETY: a pixel has its channels; so has `b`, by the checks at the door,
                // unless it is one value.
                unsafe {
                    let a = self.a.values.add(pixel * self.a.stride + c);
                    let a = l.load_part(a, part);
                    let b = match one {
                        Some(b) => l.splat(b),
                        None => l.load_part(b.add(c), part),
                    };
                    let y = self.activation.on(l, self.op.on(l, a, b));
                    l.store_part(y, self.y.at(pixel * self.stride + c), part);
                }
                c += L::N;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, close};

    #[test]
    fn every_operand_and_operation_is_its_definition() {
        let mut random = Random(1);
        let ops = [
            Binary::Add,
            Binary::Sub,
            Binary::SubFrom,
            Binary::Mul,
            Binary::Div,
            Binary::DivInto,
            Binary::Max,
            Binary::Min,
        ];
        let shape = |c| Shape {
            n: 2,
            h: 3,
            w: 5,
            c,
        };
        for (round, op) in ops.into_iter().cycle().take(40).enumerate() {
            let c = 1 + random.below(40);
            let (xs, zs) = (c + round % 3, c + round % 2);
            let (x, z) = (random.values(30 * xs), random.values(30 * zs));
            let (x, z) = (
                Picture::strided(&x, shape(c), xs),
                Picture::strided(&z, shape(c), zs),
            );
            let activation = [Activation::Identity, Activation::Silu][round % 2];
            let b = match round / 8 {
                0 => Operand::Picture(z),
                1 => Operand::Pixels(Picture::strided(z.values(), shape(1), zs)),
                2 => Operand::Pictures(&z.values()[..2 * c]),
                3 => Operand::Channels(&z.values()[..c]),
                _ => Operand::Value(0.3),
            };
            for set in Set::all() {
                let team = Team::new(2);
                let ys = c + round % 4;
                let mut y = vec![0.0; 30 * ys];
                let mut y = PictureMut::strided(&mut y, shape(c), ys);
                combine(set, op, x, b, activation, &mut y, &team);
                for i in 0..30 {
                    for (channel, (&a, &y)) in x.pixel(i).iter().zip(&*y.pixel(i)).enumerate() {
                        let b = match b {
                            Operand::Picture(b) => b.pixel(i)[channel],
                            Operand::Pixels(b) => b.pixel(i)[0],
                            Operand::Pictures(b) => b[i / 15 * c + channel],
                            Operand::Channels(b) => b[channel],
                            Operand::Value(b) => b,
                        };
                        close(&[y], &[activation.of(op.of(a, b))], 2e-6);
                    }
                }
            }
        }
    }

    #[test]
    fn activations_of_vectors_are_those_of_values() {
        let team = Team::new(2);
        let x: Vec<f32> = (-90..=90).map(|i| i as f32 * 0.11).collect();
        let shape = Shape {
            n: 1,
            h: 1,
            w: x.len(),
            c: 1,
        };
        for activation in [
            Activation::Identity,
            Activation::Relu,
            Activation::Clip {
                low: -1.0,
                high: 2.0,
            },
            Activation::LeakyRelu { slope: 0.1 },
            Activation::HardSigmoid {
                alpha: 0.2,
                beta: 0.5,
            },
            Activation::HardSwish,
            Activation::Sigmoid,
            Activation::Silu,
            Activation::Tanh,
        ] {
            let expected: Vec<f32> = x.iter().map(|&x| activation.of(x)).collect();
            let mut y = vec![0.0; x.len()];
            let mut to = PictureMut::new(&mut y, shape);
            activate(Picture::new(&x, shape), activation, &mut to, &team);
            close(&y, &expected, 3e-6);
        }
    }
}
