//! Products of pixels and weights: 16 pixels by a panel of up to 64 outputs at a time.
//!
//! Where each output reads one pixel, pixels are read where they lie. Else the values of each
//! window are gathered first, a few windows at a time, into a row of their own.

use std::ops::Range;

use sedge_kernels::Team;

use crate::Aligned;
use crate::{Picture, Shape, Window};

use super::gather::Gather;
use super::sets::Set;
use super::{Output, PANEL};

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;

/// Pixels of a block.
pub(super) const BLOCK: usize = 16;

/// Bytes of pixels that are multiplied by all weights before the next are looked at: they stay
/// in the first cache.
const CHUNK: usize = 24 << 10;

/// `[strip][row]` of 16 outputs each.
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [[[i32; 16]; BLOCK]; PANEL / 16]);

impl Sums {
    pub(super) fn new() -> Sums {
        Sums([[[0; 16]; BLOCK]; PANEL / 16])
    }
}

/// Up to [`BLOCK`] rows by up to a panel of outputs.
pub(super) struct Products<'a> {
    /// Rows of `4 · quads` values, `stride` apart.
    pub(super) x: *const u8,
    pub(super) stride: usize,
    pub(super) rows: usize,
    /// `[strip][quad][16 outputs][4]`
    pub(super) weights: &'a [[i8; 64]],
    /// Quads of a strip.
    pub(super) quads: usize,
    /// What sums begin with.
    pub(super) start: &'a [i32; PANEL],
}

impl Products<'_> {
    #[cfg(target_arch = "x86_64")]
    pub(super) fn strips(&self) -> usize {
        self.weights.len() / self.quads
    }
}

/// Defines what the others compute.
///
/// # Safety
/// `x` has the rows that are said, and tiles have their shape where the set has tiles.
#[inline(always)]
pub(super) unsafe fn portable(p: &Products<'_>, sums: &mut Sums) {
    for (strip, weights) in p.weights.chunks_exact(p.quads).enumerate() {
        for row in 0..p.rows {
            let mut sum = [0; 16];
            sum.copy_from_slice(&p.start[16 * strip..][..16]);
            for (quad, w) in weights.iter().enumerate() {
                // SAFETY: the row has `4 · quads` values, by the caller's promise.
                let x = unsafe { p.x.add(row * p.stride + 4 * quad).cast::<[u8; 4]>().read() };
                let x = x.map(i32::from);
                for (sum, w) in sum.iter_mut().zip(w.as_chunks::<4>().0) {
                    for (x, w) in x.iter().zip(w) {
                        *sum += x * i32::from(*w);
                    }
                }
            }
            sums.0[strip][row] = sum;
        }
    }
}

/// Outputs that are computed together.
#[derive(Clone, Copy, Debug)]
struct Panel {
    group: usize,
    /// The first output of all.
    output: usize,
    outputs: usize,
    /// The first strip of all.
    strip: usize,
    strips: usize,
}

/// Weights of a convolution as panels.
#[derive(Debug)]
pub(super) struct Gemm {
    window: Window,
    /// Inputs of a group.
    inputs: usize,
    zero: u8,
    quads: usize,
    panels: Vec<Panel>,
    weights: Aligned<[i8; 64]>,
    start: Vec<[i32; PANEL]>,
}

impl Gemm {
    /// `weights`: `[out, inputs / groups, kh, kw]`; `zero` is what padding holds.
    pub(super) fn new(
        run: usize,
        [out, inputs, groups]: [usize; 3],
        window: Window,
        weights: &[i8],
        zero: u8,
    ) -> Gemm {
        let taps = window.taps();
        let inputs = inputs / groups;
        let columns = inputs * taps;
        let quads = columns.next_multiple_of(run) / 4;
        let each = out / groups;
        let mut packed: Vec<[i8; 64]> = Vec::new();
        let mut gemm = Gemm {
            window,
            inputs,
            zero,
            quads,
            panels: Vec::new(),
            weights: Aligned::zeros(0),
            start: Vec::new(),
        };
        let strips = each.div_ceil(16);
        // Panels of equal size: 144 outputs are 3 × 48.
        let strips_each = strips.div_ceil(strips.div_ceil(PANEL / 16));
        for group in 0..groups {
            for first in (0..strips).step_by(strips_each) {
                let outputs = (each - 16 * first).min(16 * strips_each);
                let panel = Panel {
                    group,
                    output: group * each + 16 * first,
                    outputs,
                    strip: packed.len() / quads,
                    strips: outputs.div_ceil(16),
                };
                let mut start = [0; PANEL];
                let base = packed.len();
                packed.resize(base + panel.strips * quads, [0i8; 64]);
                for (i, start) in start.iter_mut().enumerate().take(outputs) {
                    let w = &weights[(panel.output + i) * columns..][..columns];
                    let sum: i32 = w.iter().map(|w| i32::from(*w)).sum();
                    *start = -i32::from(zero) * sum;
                    for (j, w) in w.iter().enumerate() {
                        // Of [inputs, taps] to [taps, inputs], as pixels lie.
                        let column = j % taps * inputs + j / taps;
                        let quad = base + i / 16 * quads + column / 4;
                        packed[quad][i % 16 * 4 + column % 4] = *w;
                    }
                }
                gemm.panels.push(panel);
                gemm.start.push(start);
            }
        }
        gemm.weights = Aligned::of(&packed);
        gemm
    }

    /// For each output, `f`'s number in its place of a panel, and 0 in the others.
    pub(super) fn place(&self, f: &dyn Fn(usize) -> f32) -> Vec<[f32; PANEL]> {
        let one = |panel: &Panel| {
            let mut out = [0.0; PANEL];
            for (i, out) in out.iter_mut().enumerate().take(panel.outputs) {
                *out = f(panel.output + i);
            }
            out
        };
        self.panels.iter().map(one).collect()
    }

    /// Whether pixels can be read where they lie.
    fn in_place(&self) -> bool {
        self.window.is_pointwise()
    }

    /// Values of a row, past which weights are 0.
    fn columns(&self) -> usize {
        4 * self.quads
    }

    /// Pixels of a chunk.
    fn chunk(&self) -> usize {
        (CHUNK / self.columns() / BLOCK).max(1) * BLOCK
    }

    /// Runs of pixels, and of panels, that are tasks of a team.
    fn tasks(&self, pixels: usize, threads: usize) -> [usize; 2] {
        let blocks = pixels.div_ceil(BLOCK).max(1);
        match threads {
            1 => [1, 1],
            // Few pixels: each thread takes its panels, and reads only their weights.
            _ if self.in_place() && blocks < 4 * threads => [1, self.panels.len().min(2 * threads)],
            _ => [blocks.min(4 * threads), 1],
        }
    }

    /// Bytes that a task needs.
    fn task_scratch(&self) -> usize {
        match self.in_place() {
            // The last pixels, where a run of bytes would end beyond them.
            true => BLOCK * self.columns(),
            false => self.chunk() * self.columns(),
        }
    }

    pub(super) fn scratch(&self, pixels: usize, threads: usize) -> usize {
        let [pixel_tasks, panel_tasks] = self.tasks(pixels, threads);
        pixel_tasks * panel_tasks * self.task_scratch()
    }

    /// Calls `finish` with all sums of `y`'s pixels.
    pub(super) fn run(
        &self,
        set: &Set,
        x: Picture<'_, u8>,
        y: Shape,
        scratch: &mut [u8],
        team: &Team,
        finish: &(dyn Fn(&Sums, Span) + Sync),
    ) {
        let [pixel_tasks, panel_tasks] = self.tasks(y.pixels(), team.threads());
        let each = self.task_scratch();
        let scratch = Output::new(scratch);
        team.run(pixel_tasks * panel_tasks, &|task| {
            // SAFETY: each task has a part of its own.
            let scratch = unsafe { scratch.part(task * each, each) };
            let pixels = share(y.pixels(), task / panel_tasks, pixel_tasks);
            let panels = share(self.panels.len(), task % panel_tasks, panel_tasks);
            if !pixels.is_empty() {
                self.task(set, x, y, (pixels, panels), scratch, finish);
            }
        });
    }

    fn task(
        &self,
        set: &Set,
        x: Picture<'_, u8>,
        y: Shape,
        (pixels, panels): (Range<usize>, Range<usize>),
        scratch: &mut [u8],
        finish: &(dyn Fn(&Sums, Span) + Sync),
    ) {
        let blocks = pixels.len().div_ceil(BLOCK);
        // Blocks of equal size: 49 pixels are 4 × 13, the last of which overlap.
        let rows = pixels.len().div_ceil(blocks);
        let first = |block: usize| pixels.start + (block * rows).min(pixels.len() - rows);
        let _entered = (set.enter)(rows);
        let columns = self.columns();
        let per_chunk = (self.chunk() / BLOCK).max(1);
        let mut sums = Sums::new();
        let gather = Gather::new(self.window, x, y, self.inputs, self.zero);
        for chunk in (0..blocks).step_by(per_chunk) {
            let chunk = chunk..blocks.min(chunk + per_chunk);
            let all = first(chunk.start)..first(chunk.end - 1) + rows;
            let mut gathered = None;
            for panel in panels.clone() {
                let start = &self.start[panel];
                let Panel {
                    group,
                    output,
                    outputs,
                    strip,
                    strips,
                } = self.panels[panel];
                if !self.in_place() && gathered != Some(group) {
                    gather.rows(group, all.clone(), scratch, columns);
                    gathered = Some(group);
                }
                for block in chunk.clone() {
                    let pixel = first(block);
                    let (from, stride) = match self.in_place() {
                        false => (&scratch[(pixel - all.start) * columns..], columns),
                        true => {
                            let from = &x.values()[pixel * x.stride() + group * self.inputs..];
                            match from.len() >= (rows - 1) * x.stride() + columns {
                                true => (from, x.stride()),
                                false => {
                                    gather.rows(group, pixel..pixel + rows, scratch, columns);
                                    (&*scratch, columns)
                                }
                            }
                        }
                    };
                    assert!(from.len() >= (rows - 1) * stride + columns);
                    let products = Products {
                        x: from.as_ptr(),
                        stride,
                        rows,
                        weights: &self.weights.values()[strip * self.quads..]
                            [..strips * self.quads],
                        quads: self.quads,
                        start,
                    };
                    // SAFETY: the rows are there, by the assertion, and tiles have been entered.
                    unsafe { (set.products)(&products, &mut sums) };
                    let span = Span {
                        panel,
                        pixel,
                        rows,
                        output,
                        outputs,
                    };
                    finish(&sums, span);
                }
            }
        }
    }
}

/// Which results sums are of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// Index of the panel.
    pub(super) panel: usize,
    /// The first pixel of the output, and how many.
    pub(super) pixel: usize,
    pub(super) rows: usize,
    /// The first output, and how many.
    pub(super) output: usize,
    pub(super) outputs: usize,
}

/// Part `i` of `n` of so many things.
pub(super) fn share(of: usize, i: usize, n: usize) -> Range<usize> {
    of * i / n..of * (i + 1) / n
}
