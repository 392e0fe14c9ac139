//! Convolution of quantised pictures: bytes in, bytes out, integers in between.
//!
//! A value is `scale · (q − zero)`, `q` a byte; weights are signed bytes with a scale for each
//! output. Products are summed in 32-bit integers, exactly; what becomes of a sum is one
//! sequence of f32 operations (`int8/finish.rs`), so all instruction sets, and any number of
//! threads, have the same bytes. Padding holds the zero point.

use std::marker::PhantomData;

use sedge_kernels::Team;

use crate::{Activation, Picture, PictureMut, Shape, Window, WindowError};

mod depthwise;
mod finish;
mod gather;
mod gemm;
mod lanes;
mod pixels;
mod pool;
mod sets;
mod table;
mod values;
#[cfg(target_arch = "x86_64")]
mod vectors;

use depthwise::Depthwise;
#[cfg(target_arch = "x86_64")]
use depthwise::quads::Quads;
use finish::{Add, Finish, Rows, Scales};
use gemm::{Gemm, Span, Sums};
use sets::Set;

pub use pool::{global_average, max_pool};
pub use table::Table;
pub use values::{Pair, dequantize, pair, quantize};

/// Outputs that are finished together.
const PANEL: usize = 64;

/// What a byte means: `scale · (q − zero)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quant {
    /// From one byte to the next; positive.
    pub scale: f32,
    /// The byte of 0.
    pub zero: u8,
}

impl Quant {
    /// The byte nearest to `x`, the even one of two; the ends of the range beyond it.
    pub fn of(self, x: f32) -> u8 {
        // A cast limits, and makes 0 of what is no number.
        ((x / self.scale).round_ties_even() + f32::from(self.zero)) as u8
    }

    /// What a byte means.
    pub fn real(self, q: u8) -> f32 {
        self.scale * (f32::from(q) - f32::from(self.zero))
    }
}

/// Why there is no such convolution.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Int8Error {
    /// The window is none, or does not fit.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// Channels are not a multiple of the groups, or there are none.
    #[error("{inputs} channels to {outputs} in {groups} groups")]
    Groups {
        /// Channels of the input.
        inputs: usize,
        /// Of the output.
        outputs: usize,
        /// Groups of both.
        groups: usize,
    },
    /// A list has not the length that the shape says.
    #[error("{what}: {found} values, not {wanted}")]
    Length {
        /// Of what.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// A scale is not a positive number, or a bias none.
    #[error("{what} is {value}")]
    Number {
        /// Of what.
        what: &'static str,
        /// The number.
        value: f32,
    },
    /// A sum of so many products could be beyond 32 bits.
    #[error("{0} products are too many for one sum")]
    Products(usize),
    /// A picture has other channels.
    #[error("a picture of {found} channels, not {wanted}")]
    Input {
        /// Channels of the picture.
        found: usize,
        /// Those of the weights.
        wanted: usize,
    },
}

/// A convolution of bytes, its weights packed for this machine.
#[derive(Debug)]
pub struct Int8Conv {
    set: &'static Set,
    kernel: Kernel,
    window: Window,
    inputs: usize,
    outputs: usize,
    activation: Activation,
    finish: Finish,
    /// What makes real numbers of sums, and what makes of them what `finish` takes.
    real: Scales,
    taken: Scales,
    /// What makes of a real number what `finish` takes.
    step: f32,
}

#[derive(Debug)]
enum Kernel {
    Gemm(Gemm),
    Depthwise(Depthwise),
    /// One that finishes in registers, where nothing is added.
    #[cfg(target_arch = "x86_64")]
    Quads(Depthwise, Quads),
}

impl Kernel {
    /// The kernel that finishes in registers, if the set has it for this.
    #[cfg(target_arch = "x86_64")]
    fn in_registers(self, set: &Set, finish: Finish, taken: &Scales) -> Kernel {
        match self {
            Kernel::Depthwise(depthwise) if set.quads => {
                match Quads::new(&depthwise, finish, taken) {
                    Some(quads) => Kernel::Quads(depthwise, quads),
                    None => Kernel::Depthwise(depthwise),
                }
            }
            kernel => kernel,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn in_registers(self, _: &Set, _: Finish, _: &Scales) -> Kernel {
        self
    }
}

impl Int8Conv {
    /// Packs a convolution of `inputs` channels to `outputs`.
    ///
    /// - `weights`: `[outputs, inputs / groups, kh, kw]`
    /// - `scales`: of the weights of each output
    /// - `bias`: a real number for each output
    ///
    /// # Errors
    /// When sizes do not fit each other, or a number is not finite or a scale not positive.
    #[allow(clippy::too_many_arguments)] // each is a fact of its own
    pub fn new(
        outputs: usize,
        inputs: usize,
        groups: usize,
        window: Window,
        weights: &[i8],
        scales: &[f32],
        bias: Option<&[f32]>,
        input: Quant,
        activation: Activation,
        output: Quant,
    ) -> Result<Int8Conv, Int8Error> {
        let weights = Weights {
            shape: [outputs, inputs, groups],
            window,
            weights,
            scales,
            bias,
        };
        Int8Conv::with(sets::best(), weights, input, activation, output)
    }

    /// As [`Int8Conv::new`], for a set that this machine has.
    fn with(
        set: &'static Set,
        w: Weights<'_>,
        input: Quant,
        activation: Activation,
        output: Quant,
    ) -> Result<Int8Conv, Int8Error> {
        w.check(input, output)?;
        let [outputs, inputs, groups] = w.shape;
        let set = set.for_products(inputs / groups * w.window.taps());
        let scale = |o: usize| input.scale * w.scales[o];
        let bias = |o: usize| w.bias.map_or(0.0, |bias| bias[o]);
        let finish = Finish::new(activation, output);
        let step = match finish {
            Finish::Steps { .. } => 1.0 / output.scale,
            Finish::Function { .. } => 1.0,
        };
        let kernel = match groups == inputs && groups == outputs {
            true => Kernel::Depthwise(Depthwise::new(outputs, w.window, w.weights, input.zero)),
            false => Kernel::Gemm(Gemm::new(set.run, w.shape, w.window, w.weights, input.zero)),
        };
        let place = |step: f32| {
            let place = |f: &dyn Fn(usize) -> f32| match &kernel {
                Kernel::Gemm(gemm) => gemm.place(f),
                Kernel::Depthwise(depthwise) => depthwise.place(f),
                #[cfg(target_arch = "x86_64")]
                Kernel::Quads(depthwise, _) => depthwise.place(f),
            };
            Scales {
                scale: place(&|o| scale(o) * step),
                bias: place(&|o| bias(o) * step),
            }
        };
        let (real, taken) = (place(1.0), place(step));
        Ok(Int8Conv {
            set,
            kernel: kernel.in_registers(set, finish, &taken),
            real,
            taken,
            window: w.window,
            inputs,
            outputs,
            activation,
            finish,
            step,
        })
    }

    /// The result's shape.
    ///
    /// # Errors
    /// When `x` has other channels, or not one window fits.
    pub fn output(&self, x: Shape) -> Result<Shape, Int8Error> {
        if x.c != self.inputs {
            return Err(Int8Error::Input {
                found: x.c,
                wanted: self.inputs,
            });
        }
        let [h, w] = self.window.output(x.h, x.w)?;
        let (n, c) = (x.n, self.outputs);
        Ok(Shape { n, h, w, c })
    }

    /// Bytes of scratch that a run on `x` wants with a team of so many threads.
    pub fn scratch(&self, x: Shape, threads: usize) -> usize {
        match (&self.kernel, self.output(x)) {
            (Kernel::Gemm(gemm), Ok(y)) => gemm.scratch(y.pixels(), threads),
            _ => 0,
        }
    }

    /// `y = q(activation(conv(x) + bias + add))`: what is added is taken for the real numbers
    /// that it means.
    ///
    /// # Panics
    /// When `y` has not the shape of [`Int8Conv::output`], `add` not that of `y`, or `scratch`
    /// is too short.
    pub fn run(
        &self,
        x: Picture<'_, u8>,
        add: Option<(Picture<'_, u8>, Quant)>,
        y: &mut PictureMut<'_, u8>,
        scratch: &mut [u8],
        team: &Team,
    ) {
        let (shape, stride) = (y.shape(), y.stride());
        let fits = add.is_none_or(|(add, _)| add.shape() == shape);
        assert!(fits, "what is added has the result's shape");
        let out = Output::new(y.values());
        #[cfg(target_arch = "x86_64")]
        if let (Kernel::Quads(depthwise, quads), None) = (&self.kernel, add)
            && quads.takes(shape)
        {
            assert_eq!(Ok(shape), self.output(x.shape()), "the result's shape");
            quads.run(depthwise, x, shape, (&out, stride), team);
            return;
        }
        self.sums(x, shape, scratch, team, &|sums, span| {
            let rows = rows(&self.taken, add, self.step, sums, span);
            // SAFETY: the rows are on the picture, and each is one task's.
            unsafe {
                let out = out.at(span.pixel * stride + span.output);
                (self.set.bytes)(&rows, self.finish, out, stride);
            }
        });
    }

    /// [`Int8Conv::run`] with a result of real numbers, which `output` has no part in.
    ///
    /// # Panics
    /// As [`Int8Conv::run`].
    pub fn run_f32(
        &self,
        x: Picture<'_, u8>,
        add: Option<(Picture<'_, u8>, Quant)>,
        y: &mut PictureMut<'_>,
        scratch: &mut [u8],
        team: &Team,
    ) {
        let (shape, stride) = (y.shape(), y.stride());
        let fits = add.is_none_or(|(add, _)| add.shape() == shape);
        assert!(fits, "what is added has the result's shape");
        let out = Output::new(y.values());
        self.sums(x, shape, scratch, team, &|sums, span| {
            let rows = rows(&self.real, add, 1.0, sums, span);
            // SAFETY: the rows are on the picture, and each is one task's.
            unsafe {
                let out = out.at(span.pixel * stride + span.output);
                (self.set.reals)(&rows, self.activation, out, stride);
            }
        });
    }

    fn sums(
        &self,
        x: Picture<'_, u8>,
        y: Shape,
        scratch: &mut [u8],
        team: &Team,
        finish: &(dyn Fn(&Sums, Span) + Sync),
    ) {
        assert_eq!(Ok(y), self.output(x.shape()), "the result's shape");
        match &self.kernel {
            Kernel::Gemm(gemm) => gemm.run(self.set, x, y, scratch, team, finish),
            #[cfg(target_arch = "x86_64")]
            Kernel::Quads(depthwise, _) => depthwise.run(self.set, x, y, team, finish),
            Kernel::Depthwise(depthwise) => depthwise.run(self.set, x, y, team, finish),
        }
    }
}

/// What is done with the sums of a span.
fn rows<'a>(
    scales: &'a Scales,
    add: Option<(Picture<'_, u8>, Quant)>,
    step: f32,
    sums: &'a Sums,
    span: Span,
) -> Rows<'a> {
    let add = add.map(|(picture, quant)| Add {
        values: &picture.pixel(span.pixel)[span.output],
        stride: picture.stride(),
        zero: f32::from(quant.zero),
        scale: quant.scale * step,
    });
    Rows {
        sums,
        rows: span.rows,
        outputs: span.outputs,
        scale: &scales.scale[span.panel],
        bias: &scales.bias[span.panel],
        add,
    }
}

/// What a convolution is packed from, before anything is known of it.
struct Weights<'a> {
    shape: [usize; 3],
    window: Window,
    weights: &'a [i8],
    scales: &'a [f32],
    bias: Option<&'a [f32]>,
}

impl Weights<'_> {
    fn check(&self, input: Quant, output: Quant) -> Result<(), Int8Error> {
        let [outputs, inputs, groups] = self.shape;
        let whole = |n: usize| n > 0 && n.checked_rem(groups) == Some(0);
        if !whole(inputs) || !whole(outputs) {
            return Err(Int8Error::Groups {
                inputs,
                outputs,
                groups,
            });
        }
        // A window is checked where it is laid on a picture; any that fits nowhere is none.
        self.window.output(1 << 20, 1 << 20)?;
        // 255 · 128 · 65,793 < 2³¹
        let products = (inputs / groups).saturating_mul(self.window.taps());
        if products > 65_793 {
            return Err(Int8Error::Products(products));
        }
        let length = |what, found, wanted| match found == wanted {
            true => Ok(()),
            false => Err(Int8Error::Length {
                what,
                found,
                wanted,
            }),
        };
        length(
            "weights",
            self.weights.len(),
            outputs.saturating_mul(products),
        )?;
        length("scales", self.scales.len(), outputs)?;
        length("bias", self.bias.map_or(outputs, <[f32]>::len), outputs)?;
        let number = |what, value: f32, good: bool| match good {
            true => Ok(()),
            false => Err(Int8Error::Number { what, value }),
        };
        let scale = |what, value: f32| number(what, value, value > 0.0 && value.is_finite());
        scale("input's scale", input.scale)?;
        scale("output's scale", output.scale)?;
        for value in self.scales {
            scale("weights' scale", *value)?;
        }
        for value in self.bias.into_iter().flatten() {
            number("bias", *value, value.is_finite())?;
        }
        Ok(())
    }
}

/// Memory that tasks write to, each to places of its own.
struct Output<'a, T> {
    start: *mut T,
    len: usize,
    values: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a mutable slice, whose parts threads may write to when no two write to the same;
// whoever takes a part promises it.
unsafe impl<T: Send> Sync for Output<'_, T> {}

impl<'a, T> Output<'a, T> {
    fn new(values: &'a mut [T]) -> Self {
        Output {
            start: values.as_mut_ptr(),
            len: values.len(),
            values: PhantomData,
        }
    }

    /// Where a value is.
    fn at(&self, i: usize) -> *mut T {
        assert!(i < self.len);
        // SAFETY: within the slice.
        unsafe { self.start.add(i) }
    }

    /// A run of values.
    ///
    /// # Safety
    /// Nobody else has any of them meanwhile.
    #[allow(clippy::mut_from_ref)] // the promise
    unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: within the slice, and nobody else's by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

#[cfg(test)]
mod tests;
