//! The product of a list of inputs with a strip of pixels, which all results pass through.

use super::epilogue::Form;
use super::lanes::{Lanes, first};

/// Most vectors of pixels in a strip.
pub(super) const MOST: usize = 8;

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

impl Strip {
    /// Computes the strip, whose pixels are `vectors` vectors.
    ///
    /// # Safety
    /// - `indices` has `count` values, `values` `count · height`, `biases` `height`.
    /// - `vectors` vectors can be read at the strip in every input that `indices` names.
    /// - `pixels` values can be read at the strip in the first `rows` planes of `add`, and
    ///   written in those of `y`, where nobody else reads or writes.
    /// - `pixels` is at most what the vectors hold and more than one less would.
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
            ($($v:literal)*) => {
                match vectors {
                    // Only the widths that occur are compiled.
                    // SAFETY: the caller's promise.
                    $($v if $v <= const { widest::<L>(H) } => unsafe {
                        self.tile::<L, H, $v>(l)
                    },)*
                    _ => unreachable!("strips are at most as wide as registers allow"),
                }
            };
        }
        choose!(1 2 3 4 5 6 7 8);
    }

    #[inline(always)]
    unsafe fn tile<L: Lanes, const H: usize, const V: usize>(&self, l: L) {
        let chains = const { chains(H * V) };
        let mut sums = [[[l.splat(0.0); V]; H]; 4];
        // SAFETY, of all below: `run`'s contract; `c < count`, `h < H`, `v < V`.
        #[allow(clippy::undocumented_unsafe_blocks)] // the line above
        for h in 0..H {
            sums[0][h] = [l.splat(unsafe { *self.biases.add(h) }); V];
        }
        let (mut indices, mut values) = (self.indices, self.values);
        for _ in 0..self.count / chains {
            for sums in sums.iter_mut().take(chains) {
                // SAFETY: as above.
                unsafe {
                    self.multiply(l, indices, values, sums);
                    indices = indices.add(1);
                    values = values.add(H);
                }
            }
        }
        for _ in 0..self.count % chains {
            // SAFETY: as above.
            unsafe {
                self.multiply(l, indices, values, &mut sums[0]);
                indices = indices.add(1);
                values = values.add(H);
            }
        }
        let [mut total, rest @ ..] = sums;
        for sums in rest.iter().take(chains - 1) {
            for h in 0..H {
                for v in 0..V {
                    total[h][v] = l.add(total[h][v], sums[h][v]);
                }
            }
        }
        let tail = first(self.pixels - (V - 1) * L::LANES);
        if let Some((add, stride)) = self.add {
            for (h, total) in total.iter_mut().enumerate().take(self.rows) {
                for (v, total) in total.iter_mut().enumerate() {
                    let mask = if v + 1 == V { tail } else { u32::MAX };
                    // SAFETY: as above.
                    let more = unsafe { l.load_masked(add.add(h * stride + v * L::LANES), mask) };
                    *total = l.add(*total, more);
                }
            }
        }
        match self.form {
            Form::Identity => {}
            form => {
                for total in total.as_flattened_mut() {
                    *total = form.apply(l, *total);
                }
            }
        }
        let (y, stride) = self.y;
        for (h, total) in total.iter().enumerate().take(self.rows) {
            // SAFETY: as above.
            unsafe {
                let y = y.add(h * stride);
                for (v, total) in total.iter().enumerate().take(V - 1) {
                    l.store(*total, y.add(v * L::LANES));
                }
                l.store_masked(total[V - 1], y.add((V - 1) * L::LANES), tail);
                self.form.finish(y, self.pixels);
            }
        }
    }

    /// Adds one input's products to the sums.
    ///
    /// # Safety
    /// As of [`Strip::run`]: the input at `indices` and its weights at `values` exist.
    #[inline(always)]
    unsafe fn multiply<L: Lanes, const H: usize, const V: usize>(
        &self,
        l: L,
        indices: *const u32,
        values: *const f32,
        sums: &mut [[L::V; V]; H],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let x = self.x.0.add(*indices as usize * self.x.1);
            let mut pixels = [l.splat(0.0); V];
            for (v, pixels) in pixels.iter_mut().enumerate() {
                *pixels = l.load(x.add(v * L::LANES));
            }
            for (h, sums) in sums.iter_mut().enumerate() {
                let weight = l.splat(*values.add(h));
                for (sum, pixels) in sums.iter_mut().zip(pixels) {
                    *sum = l.fma(weight, pixels, *sum);
                }
            }
        }
    }
}
