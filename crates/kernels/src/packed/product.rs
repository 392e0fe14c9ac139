//! Products of quantised activations with packed matrices, shared out among a team.

use std::cell::RefCell;
use std::ops::Range;

use crate::team::{Disjoint, Team};

use super::Packed;
use super::kernels::{Kernels, kernels};
use super::layout::{STRIP, facts};
use super::panel::{PANEL, Panel};
use super::quantized::{BLOCK_ROWS, Quantized};

/// Blocks of rows of one task: their codes of a panel's columns fill half of a cache of 2 MiB.
const DEEP: usize = 32;

/// One matrix of several that read the same activations.
#[derive(Debug)]
pub struct Product<'a> {
    /// Weights, `[n, cols]`.
    pub weight: &'a Packed,
    /// Added to each row.
    pub bias: Option<&'a [f32]>,
    /// `[rows, n]`.
    pub out: &'a mut [f32],
    /// Adds to what is in `out`.
    pub add: bool,
}

/// What a thread needs besides its part of the outputs.
struct Scratch {
    panel: Panel,
    first: Vec<[f32; STRIP]>,
    second: Vec<[f32; STRIP]>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch { panel: Panel::new(), first: Vec::new(), second: Vec::new() })
    };
}

/// `out = x · wᵀ + bias` for each of several matrices.
///
/// # Panics
/// When lengths do not fit the shapes.
pub fn products(team: &Team, x: &Quantized, products: &mut [Product<'_>]) {
    products_on(kernels(), team, x, products);
}

pub(super) fn products_on(k: &Kernels, team: &Team, x: &Quantized, all: &mut [Product<'_>]) {
    let mut jobs: Vec<_> = Vec::with_capacity(all.len());
    let mut strips = 0;
    for p in all.iter_mut() {
        check(x, p.weight, p.bias, p.out.len());
        jobs.push((strips, p.weight, p.bias, p.add, Disjoint::new(p.out)));
        strips += p.weight.strips();
    }
    share(team, x, strips, &|strip, blocks, s: &mut Scratch| {
        let last = jobs.partition_point(|job| job.0 <= strip) - 1;
        let (start, w, bias, add, out) = &jobs[last];
        let strip = strip - start;
        strip_products(k, w, strip, x, blocks.clone(), &mut s.panel, &mut s.first);
        let rows = rows_of(x, blocks);
        let lanes = strip * STRIP..w.rows().min((strip + 1) * STRIP);
        for (row, sums) in rows.zip(&mut s.first) {
            if let Some(bias) = bias {
                for (sum, bias) in sums.iter_mut().zip(&bias[lanes.clone()]) {
                    *sum += bias;
                }
            }
            // SAFETY: each task writes the outputs of its own strip and rows.
            let out = unsafe { out.part(row * w.rows() + lanes.start, lanes.len()) };
            if *add {
                for (out, sum) in out.iter_mut().zip(&*sums) {
                    *out += sum;
                }
            } else {
                out.copy_from_slice(&sums[..out.len()]);
            }
        }
    });
}

/// `out = activate(x · gateᵀ + gate bias, x · upᵀ + up bias)`, where `activate` puts its result
/// into its first argument. Both matrices have the same shape.
///
/// # Panics
/// When lengths do not fit the shapes.
pub fn gated_product(
    team: &Team,
    x: &Quantized,
    (gate, gate_bias): (&Packed, Option<&[f32]>),
    (up, up_bias): (&Packed, Option<&[f32]>),
    activate: fn(&mut [f32], &[f32]),
    out: &mut [f32],
) {
    let k = kernels();
    check(x, gate, gate_bias, out.len());
    check(x, up, up_bias, out.len());
    let out = Disjoint::new(out);
    share(team, x, gate.strips(), &|strip, blocks, s: &mut Scratch| {
        let n = gate.rows();
        let lanes = strip * STRIP..n.min((strip + 1) * STRIP);
        for (w, bias, sums) in [
            (gate, gate_bias, &mut s.first),
            (up, up_bias, &mut s.second),
        ] {
            strip_products(k, w, strip, x, blocks.clone(), &mut s.panel, sums);
            let Some(bias) = bias else { continue };
            for sums in sums {
                for (sum, bias) in sums.iter_mut().zip(&bias[lanes.clone()]) {
                    *sum += bias;
                }
            }
        }
        activate(s.first.as_flattened_mut(), s.second.as_flattened());
        for (row, sums) in rows_of(x, blocks).zip(&s.first) {
            // SAFETY: each task writes the outputs of its own strip and rows.
            let out = unsafe { out.part(row * n + lanes.start, lanes.len()) };
            out.copy_from_slice(&sums[..out.len()]);
        }
    });
}

fn check(x: &Quantized, w: &Packed, bias: Option<&[f32]>, out: usize) {
    assert_eq!(w.cols(), x.cols(), "columns of weights and activations");
    assert_eq!(
        out,
        x.rows() * w.rows(),
        "out is not {} × {}",
        x.rows(),
        w.rows()
    );
    assert!(
        bias.is_none_or(|b| b.len() == w.rows()),
        "a bias of another length"
    );
}

/// The rows of blocks, without those that fill the last one up.
fn rows_of(x: &Quantized, blocks: Range<usize>) -> Range<usize> {
    blocks.start * BLOCK_ROWS..x.rows().min(blocks.end * BLOCK_ROWS)
}

/// Runs `task(strip, blocks)` for all strips and all blocks of rows.
fn share(
    team: &Team,
    x: &Quantized,
    strips: usize,
    task: &(dyn Fn(usize, Range<usize>, &mut Scratch) + Sync),
) {
    let blocks = x.blocks();
    let deep = blocks.div_ceil(DEEP);
    // Some tasks for each thread, so that a slow one does not hold up the rest, each of strips
    // that follow each other in memory.
    let width = (strips * deep).div_ceil(8 * team.threads()).clamp(1, 16);
    let runs = strips.div_ceil(width);
    team.run(runs * deep, &|index| {
        let (run, d) = (index / deep, index % deep);
        SCRATCH.with_borrow_mut(|scratch| {
            for strip in run * width..strips.min((run + 1) * width) {
                task(strip, d * DEEP..blocks.min((d + 1) * DEEP), scratch);
            }
        });
    });
}

/// The products of one strip with blocks of rows: `out[row of the blocks][16]`.
fn strip_products(
    k: &Kernels,
    w: &Packed,
    strip: usize,
    x: &Quantized,
    blocks: Range<usize>,
    panel: &mut Panel,
    out: &mut Vec<[f32; STRIP]>,
) {
    let bytes = w.strip(strip);
    let rows = x.padded_rows().min(blocks.end * BLOCK_ROWS) - blocks.start * BLOCK_ROWS;
    out.clear();
    out.resize(rows, [0.0; STRIP]);
    let whole = rows / BLOCK_ROWS;
    let tail = rows % BLOCK_ROWS;
    let signed = k.tiles.is_some();
    // The last block goes by itself where there is a way for few rows and nothing is unpacked
    // that it could use.
    let alone = k.direct.filter(|_| tail > 0 && (signed || whole == 0));
    if let Some(direct) = alone {
        let block = x.block(blocks.end - 1);
        direct(w.dtype(), bytes, block, &mut out[whole * BLOCK_ROWS..]);
    }
    let together = blocks.start..blocks.end - usize::from(alone.is_some());
    if together.is_empty() {
        return;
    }
    let facts = facts(w.dtype()).expect("only such types are packed");
    let columns = w.cols().next_multiple_of(facts.unit);
    for column in (0..columns).step_by(PANEL) {
        let here = PANEL.min(columns - column);
        match k.tiles {
            Some(tiles) => {
                (k.unpack)(w.dtype(), bytes, column, here, true, panel);
                tiles(panel, x, together.clone(), out);
            }
            None => {
                (k.unpack)(w.dtype(), bytes, column, here, false, panel);
                for (block, out) in together.clone().zip(out.chunks_mut(BLOCK_ROWS)) {
                    (k.panel)(panel, x.block(block), out);
                }
            }
        }
    }
}
