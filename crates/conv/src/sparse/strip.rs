//! The product of a list of inputs with a strip of pixels, which all results pass through.

use super::epilogue::Form;
use super::lanes::{Lanes, first};

/// Most vectors of pixels in a strip.
const MOST: usize = 8;

/// Most outputs of a strip.
pub(super) const PANEL: usize = 8;

/// Outputs that share a list of inputs, and the pixels they are wanted of.
pub(super) struct Strip {
    /// Inputs with a weight that is not 0.
    pub(super) indices: *const u32,
    /// How many.
    pub(super) count: usize,
    /// For each of them the weights of all outputs of the list.
    pub(super) values: *const f32,
    /// Of all outputs of the list.
    pub(super) biases: *const f32,
    /// Outputs that exist; the list may have more, whose weights are 0.
    pub(super) rows: usize,
    /// The strip in the first input, and the distance from an input to the next.
    pub(super) x: (*const f32, usize),
    /// The same of what is added, if anything is.
    pub(super) add: Option<(*const f32, usize)>,
    /// The same of the outputs.
    pub(super) y: (*mut f32, usize),
    /// Pixels to be stored.
    pub(super) pixels: usize,
    /// Whether the last pixel is not in a vector of pixels. Its sums for all outputs of the list
    /// are then one vector, which takes a multiplication for an input and not one for each
    /// output. Only for lists of [`PANEL`] outputs.
    pub(super) alone: bool,
    /// What is applied.
    pub(super) form: Form,
}

/// Vectors of pixels in a strip for lists of `height` outputs.
pub(super) const fn widest<L: Lanes>(height: usize) -> usize {
    match L::ACCUMULATORS / height {
        0 => 1,
        most if most > MOST => MOST,
        most => most,
    }
}

/// Sums that a vector is spread over, so that additions wait less for each other.
const fn chains(vectors: usize) -> usize {
    match vectors {
        0..=2 => 4,
        3..=5 => 2,
        _ => 1,
    }
}

/// Sums in registers.
#[derive(Clone, Copy)]
struct Sums<T, const H: usize, const V: usize> {
    /// Vectors of pixels of each output.
    pixels: [[T; V]; H],
    /// One pixel of all outputs.
    alone: T,
}

impl Strip {
    /// Computes the strip, whose pixels are `vectors` vectors.
    ///
    /// # Safety
    /// - `indices` has `count` values, `values` `count · height`, `biases` `height`.
    /// - `vectors` vectors can be read at the strip in every input that `indices` names.
    /// - `pixels` values can be read at the strip in the first `rows` planes of `add`, and
    ///   written in those of `y`, where nobody else reads or writes.
    /// - `pixels` is at most what the vectors hold and more than one less would; with a pixel
    ///   alone it is one more than they hold, and that pixel can be read and written as well.
    #[inline(always)]
    pub(super) unsafe fn run<L: Lanes>(&self, l: L, height: usize, vectors: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match height {
                1 => self.of::<L, 1>(l, vectors),
                2 => self.of::<L, 2>(l, vectors),
                4 => self.of::<L, 4>(l, vectors),
                8 => self.of::<L, 8>(l, vectors),
                _ => unreachable!("lists are for 1, 2, 4 or 8 outputs"),
            }
        }
    }

    #[inline(always)]
    unsafe fn of<L: Lanes, const H: usize>(&self, l: L, vectors: usize) {
        macro_rules! choose {
            ($alone:literal: $($v:literal)*) => {
                match vectors {
                    // Only what occurs is compiled.
                    // SAFETY: the caller's promise.
                    $($v if $v < const { widest::<L>(H) + 1 } => unsafe {
                        self.tile::<L, H, $v, $alone>(l)
                    },)*
                    _ => unreachable!("strips are at most as wide as registers allow"),
                }
            };
        }
        match self.alone {
            false => choose!(false: 1 2 3 4 5 6 7 8),
            true if H == PANEL => choose!(true: 0 1 2 3),
            true => unreachable!("a pixel is alone only for eight outputs"),
        }
    }

    #[inline(always)]
    unsafe fn tile<L: Lanes, const H: usize, const V: usize, const ALONE: bool>(&self, l: L) {
        let chains = const { chains(H * V) };
        let mut sums = [Sums {
            pixels: [[l.splat(0.0); V]; H],
            alone: l.splat(0.0),
        }; 4];
        // SAFETY, of all below: `run`'s contract; `h < H`, `v < V`, and both cursors are moved
        // `count` times in all.
        #[allow(clippy::undocumented_unsafe_blocks)] // the line above
        for h in 0..H {
            sums[0].pixels[h] = [l.splat(unsafe { *self.biases.add(h) }); V];
        }
        if ALONE {
            // SAFETY: as above.
            sums[0].alone = unsafe { l.load_masked(self.biases, first(H)) };
        }
        let (mut indices, mut values) = (self.indices, self.values);
        for _ in 0..self.count / chains {
            for sums in sums.iter_mut().take(chains) {
                // SAFETY: as above.
                unsafe {
                    self.multiply::<L, H, V, ALONE>(l, indices, values, sums);
                    indices = indices.add(1);
                    values = values.add(H);
                }
            }
        }
        for _ in 0..self.count % chains {
            // SAFETY: as above.
            unsafe {
                self.multiply::<L, H, V, ALONE>(l, indices, values, &mut sums[0]);
                indices = indices.add(1);
                values = values.add(H);
            }
        }
        let [
            Sums {
                mut pixels,
                mut alone,
            },
            rest @ ..,
        ] = sums;
        for sums in rest.iter().take(chains - 1) {
            let more = sums.pixels.as_flattened();
            for (sum, more) in pixels.as_flattened_mut().iter_mut().zip(more) {
                *sum = l.add(*sum, *more);
            }
            alone = l.add(alone, sums.alone);
        }
        let tail = match ALONE {
            true => u32::MAX,
            false => first(self.pixels - (V - 1) * L::LANES),
        };
        if let Some((add, stride)) = self.add {
            for (h, sums) in pixels.iter_mut().enumerate().take(self.rows) {
                for (v, sum) in sums.iter_mut().enumerate() {
                    let mask = if v + 1 == V { tail } else { u32::MAX };
                    // SAFETY: as above.
                    let more = unsafe { l.load_masked(add.add(h * stride + v * L::LANES), mask) };
                    *sum = l.add(*sum, more);
                }
            }
        }
        match self.form {
            Form::Identity => {}
            form => {
                for sum in pixels.as_flattened_mut() {
                    *sum = form.apply(l, *sum);
                }
            }
        }
        let (y, stride) = self.y;
        for (h, sums) in pixels.iter().enumerate().take(self.rows) {
            for (v, sum) in sums.iter().enumerate() {
                // SAFETY: as above.
                unsafe {
                    let y = y.add(h * stride + v * L::LANES);
                    match v + 1 == V {
                        true => l.store_masked(*sum, y, tail),
                        false => l.store(*sum, y),
                    }
                }
            }
        }
        if ALONE {
            // SAFETY: as above.
            unsafe { self.finish_alone(l, alone) };
        }
        for h in 0..self.rows {
            // SAFETY: as above.
            unsafe { self.form.finish(y.add(h * stride), self.pixels) };
        }
    }

    /// Stores the sums of the last pixel for all outputs.
    ///
    /// # Safety
    /// As of [`Strip::run`].
    #[inline(always)]
    unsafe fn finish_alone<L: Lanes>(&self, l: L, mut sums: L::V) {
        let (at, mut lanes) = (self.pixels - 1, [0.0; 16]);
        // SAFETY: the caller's promise; no vector is longer than the array.
        unsafe {
            if let Some((add, stride)) = self.add {
                for (h, lane) in lanes.iter_mut().enumerate().take(self.rows) {
                    *lane = *add.add(h * stride + at);
                }
                sums = l.add(sums, l.load(lanes.as_ptr()));
            }
            l.store(self.form.apply(l, sums), lanes.as_mut_ptr());
            for (h, lane) in lanes.iter().enumerate().take(self.rows) {
                *self.y.0.add(h * self.y.1 + at) = *lane;
            }
        }
    }

    /// Adds one input's products to the sums.
    ///
    /// # Safety
    /// As of [`Strip::run`]: the input at `indices` and its weights at `values` exist.
    #[inline(always)]
    unsafe fn multiply<L: Lanes, const H: usize, const V: usize, const ALONE: bool>(
        &self,
        l: L,
        indices: *const u32,
        values: *const f32,
        sums: &mut Sums<L::V, H, V>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let x = self.x.0.add(*indices as usize * self.x.1);
            let mut pixels = [l.splat(0.0); V];
            for (v, pixels) in pixels.iter_mut().enumerate() {
                *pixels = l.load(x.add(v * L::LANES));
            }
            if ALONE {
                let weights = l.load_masked(values, first(H));
                let pixel = l.splat(*x.add(V * L::LANES));
                sums.alone = l.fma(weights, pixel, sums.alone);
            }
            for (h, sums) in sums.pixels.iter_mut().enumerate() {
                let weight = l.splat(*values.add(h));
                for (sum, pixels) in sums.iter_mut().zip(pixels) {
                    *sum = l.fma(weight, pixels, *sum);
                }
            }
        }
    }
}
