//! Products of windows with weights: what pointwise and all other convolutions of several input
//! channels are.
//!
//! A tile is a few output pixels of one line by two vectors of outputs, whose sums stay in
//! registers while the windows are walked: each weight that is loaded serves all pixels, each
//! value of a pixel is multiplied straight from where it lies. Sums begin with the bias and run
//! over taps, then channels, so they do not depend on how work is cut.

use sedge_kernels::Team;

use crate::Activation;
use crate::aligned::Aligned;
use crate::lanes::{Kernel, Lanes, Set, unroll};
use crate::shared::{Shared, part, tasks};

/// Vectors of outputs of one tile.
const VECTORS: usize = 2;

/// Values of x and y that are walked for one pair of strips before the next pair: a part of L2.
const BLOCK: usize = 128 << 10;

/// Weights that stay in L1, or nearly: then pixels are finished before the next are begun.
const FEW: usize = 16 << 10;

/// Weights as tiles read them: strips of as many outputs as a vector has lanes,
/// `[group][strip][tap][input][lane]`.
pub(crate) struct Panels {
    set: Set,
    weights: Aligned,
    bias: Aligned,
    groups: usize,
    /// Of one group.
    outputs: usize,
    /// Of one group.
    inputs: usize,
    taps: usize,
}

/// From a picture, line and pixel to the next, in values.
#[derive(Clone, Copy)]
pub(crate) struct Steps {
    pub(crate) picture: usize,
    pub(crate) line: usize,
    pub(crate) pixel: usize,
}

impl Steps {
    /// Of a picture of `h` lines of `w` pixels, `stride` from pixel to pixel, of which every
    /// `every`-th line and pixel counts.
    pub(crate) fn of(h: usize, w: usize, stride: usize, every: [usize; 2]) -> Steps {
        Steps {
            picture: h * w * stride,
            line: every[0] * w * stride,
            pixel: every[1] * stride,
        }
    }

    fn at(self, picture: usize, line: usize, pixel: usize) -> usize {
        picture * self.picture + line * self.line + pixel * self.pixel
    }
}

/// Which windows lie where: lines of pixels that are the same distance apart.
#[derive(Clone, Copy)]
pub(crate) struct Walk {
    pub(crate) pictures: usize,
    pub(crate) lines: usize,
    pub(crate) pixels: usize,
    /// From a window's first value to the next one's.
    pub(crate) x: Steps,
    /// From an output pixel to the next.
    pub(crate) y: Steps,
    /// Rows and columns of taps.
    pub(crate) taps: [usize; 2],
    /// From a row of taps to the next, from a column to the next.
    pub(crate) pitch: [usize; 2],
}

/// What is added to the sums.
#[derive(Clone, Copy)]
pub(crate) struct Added<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) steps: Steps,
}

impl Panels {
    /// Packs the weight that `weight` gives for (output of all, input of its group, tap).
    pub(crate) fn new(
        set: Set,
        groups: usize,
        outputs: usize,
        inputs: usize,
        taps: usize,
        bias: Option<&[f32]>,
        weight: impl Fn(usize, usize, usize) -> f32,
    ) -> Panels {
        let lanes = set.lanes();
        let strips = outputs.div_ceil(lanes);
        let mut weights = Aligned::zeros(groups * strips * taps * inputs * lanes);
        let mut padded = Aligned::zeros(groups * strips * lanes);
        for group in 0..groups {
            for output in 0..outputs {
                let (strip, lane) = (group * strips + output / lanes, output % lanes);
                let number = group * outputs + output;
                padded.values_mut()[strip * lanes + lane] = bias.map_or(0.0, |bias| bias[number]);
                for tap in 0..taps {
                    for input in 0..inputs {
                        let at = ((strip * taps + tap) * inputs + input) * lanes + lane;
                        weights.values_mut()[at] = weight(number, input, tap);
                    }
                }
            }
        }
        Panels {
            set,
            weights,
            bias: padded,
            groups,
            outputs,
            inputs,
            taps,
        }
    }

    /// Computes all windows of `walk`.
    ///
    /// # Safety
    /// Every window that the walk gives is in `x`, every output pixel, with all outputs, in what
    /// `y` points to and in `add`; no two of them overlap, and `y` is in nobody else's use.
    pub(crate) unsafe fn run(
        &self,
        walk: &Walk,
        x: &[f32],
        add: Option<Added<'_>>,
        y: Shared<f32>,
        activation: Activation,
        team: &Team,
    ) {
        let pairs = self.outputs.div_ceil(VECTORS * self.set.lanes());
        // Lines are cut into tiles that differ by one pixel at most.
        // Where pixels are whole pages apart, they share the same few lines of L1.
        let rows = match walk.x.pixel % 1024 {
            0 => self.set.rows().min(8),
            _ => self.set.rows(),
        };
        let in_line = walk.pixels.div_ceil(rows);
        let tiles = walk.pictures * walk.lines * in_line;
        let pixel = walk.x.pixel + walk.y.pixel;
        let block = match self.weights.values().len() <= FEW {
            true => 4,
            false => BLOCK / (walk.pixels * pixel).div_ceil(in_line.max(1)).max(1),
        };
        let block = block.clamp(1, tiles.max(1));
        // Channels and columns of taps that lie one after the other are one run.
        let joined = self.groups == 1 && walk.pitch[1] == self.inputs;
        let (columns, run) = match joined {
            true => (1, walk.taps[1] * self.inputs),
            false => (walk.taps[1], self.inputs),
        };
        let job = Job {
            panels: self,
            walk,
            in_line,
            pairs,
            columns,
            run,
            x,
            add,
            y,
            activation,
        };
        // Blocks of tiles; in each all pairs of strips; for each of these the block's tiles.
        let all_pairs = self.groups * pairs;
        let units = tiles * all_pairs;
        let tasks = tasks(units, team.threads());
        team.run(tasks, &|task| {
            let mut left = part(task, tasks, units);
            let mut first = left.start / (block * all_pairs) * block;
            let mut in_block = block.min(tiles - first);
            let within = left.start - first * all_pairs;
            let (mut pair, mut tile) = (within / in_block, within % in_block);
            while left.next().is_some() {
                // SAFETY: the caller's promise; each tile of each pair is in one task.
                unsafe { job.tile(first + tile, pair) };
                tile += 1;
                if tile == in_block {
                    (tile, pair) = (0, pair + 1);
                }
                if pair == all_pairs {
                    (pair, first) = (0, first + in_block);
                    in_block = block.min(tiles - first);
                }
            }
        });
    }
}

/// All tiles of one product.
struct Job<'a> {
    panels: &'a Panels,
    walk: &'a Walk,
    /// Tiles of a line.
    in_line: usize,
    /// Pairs of strips of a group.
    pairs: usize,
    /// Columns of taps, and values of x that lie together in each.
    columns: usize,
    run: usize,
    x: &'a [f32],
    add: Option<Added<'a>>,
    y: Shared<f32>,
    activation: Activation,
}

impl Job<'_> {
    /// One tile of all, by one pair of strips of all.
    ///
    /// # Safety
    /// As for [`Panels::run`].
    unsafe fn tile(&self, tile: usize, pair: usize) {
        let (panels, walk) = (self.panels, self.walk);
        let lanes = panels.set.lanes();
        let strip = panels.taps * panels.inputs * lanes;
        let (group, pair) = match panels.groups {
            1 => (0, pair),
            _ => (pair / self.pairs, pair % self.pairs),
        };
        let (picture, line, tile) = match self.in_line {
            all if tile < all => (0, 0, tile),
            all => (tile / all / walk.lines, tile / all % walk.lines, tile % all),
        };
        let pixels = part(tile, self.in_line, walk.pixels);
        let place = |steps: Steps| steps.at(picture, line, pixels.start);
        let output = pair * VECTORS * lanes;
        let number = group * panels.outputs.div_ceil(lanes) + pair * VECTORS;
        let first = group * panels.outputs + output;
        // SAFETY: the caller's promise about the walk; strips are in the weights by how these
        // were made.
        unsafe {
            let work = Work {
                weights: panels.weights.values().as_ptr().add(number * strip),
                strip,
                bias: panels.bias.values().as_ptr().add(number * lanes),
                x: (self.x.as_ptr()).wrapping_add(place(walk.x) + group * panels.inputs),
                x_step: walk.x.pixel,
                rows: walk.taps[0],
                columns: self.columns,
                pitch: walk.pitch,
                run: self.run,
                y: self.y.at(place(walk.y) + first),
                y_step: walk.y.pixel,
                add: self.add.map(|add| {
                    let at = place(add.steps) + first;
                    (add.values.as_ptr().add(at), add.steps.pixel)
                }),
                outputs: (panels.outputs - output).min(VECTORS * lanes),
                activation: self.activation,
            };
            work.run(panels.set, pixels.len());
        }
    }
}

/// One tile.
#[derive(Clone, Copy)]
struct Work {
    weights: *const f32,
    /// From a strip's weights to the next one's.
    strip: usize,
    bias: *const f32,
    x: *const f32,
    x_step: usize,
    rows: usize,
    columns: usize,
    pitch: [usize; 2],
    /// Values of x that lie together.
    run: usize,
    y: *mut f32,
    y_step: usize,
    add: Option<(*const f32, usize)>,
    /// How many outputs there are: lanes beyond them are not stored.
    outputs: usize,
    activation: Activation,
}

impl Work {
    /// Runs the kernel for so many pixels.
    ///
    /// # Safety
    /// All that the fields say to lie somewhere is there, for `pixels` pixels.
    unsafe fn run(self, set: Set, pixels: usize) {
        macro_rules! choose {
            ($($rows:literal)*) => {
                match (pixels, self.outputs > set.lanes()) {
                    $(
                        ($rows, true) => set.run(Tile::<$rows, 2>(self)),
                        ($rows, false) => set.run(Tile::<$rows, 1>(self)),
                    )*
                    _ => unreachable!("lines are cut into tiles that registers hold"),
                }
            };
        }
        choose!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    }
}

/// The work of `R` pixels and `V` vectors.
struct Tile<const R: usize, const V: usize>(Work);

impl<const R: usize, const V: usize> Kernel for Tile<R, V> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        if R > L::ROWS {
            return; // never asked for: spares the compiler
        }
        let Work {
            weights,
            strip,
            bias,
            x,
            x_step,
            rows,
            columns,
            pitch,
            run,
            y,
            y_step,
            add,
            outputs,
            activation,
        } = self.0;
        // SAFETY: who made the work promised that all of it is there.
        unsafe {
            let mut sums = [[l.splat(0.0); V]; R];
            for sums in &mut sums {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = l.load(bias.add(v * L::N));
                }
            }
            let mut weights = weights;
            for row in 0..rows {
                for column in 0..columns {
                    // Three pixels from each pointer, which one register of the step reaches:
                    // a pointer for each would be too many.
                    let mut from = [x.wrapping_add(row * pitch[0] + column * pitch[1]); 5];
                    for (i, from) in from.iter_mut().enumerate() {
                        *from = from.wrapping_add(3 * i * x_step);
                    }
                    for _ in 0..run {
                        let mut w = [l.splat(0.0); V];
                        for (v, w) in w.iter_mut().enumerate() {
                            *w = l.load(weights.add(v * strip));
                        }
                        unroll!(r < R => {
                            let x = l.splat(*from[r / 3].wrapping_add(r % 3 * x_step));
                            for v in 0..V {
                                sums[r][v] = l.fma(x, w[v], sums[r][v]);
                            }
                        });
                        weights = weights.add(L::N);
                        for from in &mut from {
                            *from = from.wrapping_add(1);
                        }
                    }
                }
            }
            let mut parts = [l.first(L::N); V];
            parts[V - 1] = l.first(outputs - (V - 1) * L::N);
            if let Some((add, add_step)) = add {
                unroll!(r < R => {
                    for v in 0..V {
                        let add = add.add(r * add_step + v * L::N);
                        sums[r][v] = l.add(sums[r][v], l.load_part(add, parts[v]));
                    }
                });
            }
            if let Some((low, high)) = activation.bounds() {
                let (low, high) = (l.splat(low), l.splat(high));
                unroll!(r < R => {
                    for v in 0..V {
                        let y = y.add(r * y_step + v * L::N);
                        l.store_part(l.clamp(sums[r][v], low, high), y, parts[v]);
                    }
                });
            } else if activation == Activation::HardSwish {
                unroll!(r < R => {
                    for v in 0..V {
                        let y = y.add(r * y_step + v * L::N);
                        l.store_part(Activation::HardSwish.on(l, sums[r][v]), y, parts[v]);
                    }
                });
            } else {
                // Long functions are not written out for each vector: the sums go to memory.
                let kept = sums;
                let mut r = 0;
                while r < std::hint::black_box(R) {
                    for v in 0..V {
                        let y = y.add(r * y_step + v * L::N);
                        l.store_part(activation.on(l, kept[r][v]), y, parts[v]);
                    }
                    r += 1;
                }
            }
        }
    }
}
