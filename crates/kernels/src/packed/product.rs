//! Products of quantised activations with packed matrices, shared out among a team.

use std::cell::RefCell;
use std::ops::Range;

use crate::team::{Disjoint, Team};

use super::Packed;
use super::kernels::{Kernels, kernels};
use super::layout::STRIP;
use super::panel::Panel;
use super::quantized::{BLOCK_ROWS, Quantized};

/// Bytes of unpacked codes of one task: with as many of activations they stay in the
/// second-level cache.
const UNPACKED: usize = 384 << 10;

/// Least bytes of weights of one task of few rows: what is read while a task is claimed, some
/// times over.
const SHORT: usize = 64 << 10;

/// Outputs of one strip for one block of rows.
type Sums = [[f32; STRIP]; BLOCK_ROWS];

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

thread_local! {
    static PANELS: RefCell<Vec<Panel>> = const { RefCell::new(Vec::new()) };
}

/// `out = x · wᵀ + bias` for each of several matrices.
///
/// # Panics
/// When lengths do not fit the shapes.
pub fn products(team: &Team, x: &Quantized, products: &mut [Product<'_>]) {
    products_on(kernels(), team, x, products);
}

pub(super) fn products_on(k: &Kernels, team: &Team, x: &Quantized, all: &mut [Product<'_>]) {
    // More matrices than any layer reads at once: a step allocates nothing.
    for all in all.chunks_mut(4) {
        let mut jobs = [const { None }; 4];
        let mut strips = 0;
        for (job, p) in jobs.iter_mut().zip(all.iter_mut()) {
            check(x, p.weight, p.bias, p.out.len());
            let out = Disjoint::new(&mut *p.out);
            *job = Some((strips, p.weight, p.bias, p.add, out));
            strips += p.weight.strips();
        }
        let find = |strip: usize| {
            let mut found = jobs.iter().flatten().filter(|job| job.0 <= strip);
            found.next_back().expect("the first begins at 0")
        };
        let ways: [Way<'_>; 1] = [&|strip| {
            let (start, w, ..) = find(strip);
            (*w, strip - start)
        }];
        share(k, team, x, strips, &ways, &|strip, rows, sums| {
            let (start, w, bias, add, out) = find(strip);
            let (sums, strip) = (&mut sums[0][..rows.len()], strip - start);
            add_bias(sums, strip, *bias);
            write(sums, rows, strip, w.rows(), *add, out);
        });
    }
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
    check(x, gate, gate_bias, out.len());
    check(x, up, up_bias, out.len());
    let out = Disjoint::new(out);
    let ways: [Way<'_>; 2] = [&|strip| (gate, strip), &|strip| (up, strip)];
    share(
        kernels(),
        team,
        x,
        gate.strips(),
        &ways,
        &|strip, rows, sums| {
            let [gates, ups] = sums;
            let (gates, ups) = (&mut gates[..rows.len()], &mut ups[..rows.len()]);
            add_bias(gates, strip, gate_bias);
            add_bias(ups, strip, up_bias);
            activate(gates.as_flattened_mut(), ups.as_flattened());
            write(gates, rows, strip, gate.rows(), false, &out);
        },
    );
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

fn add_bias(sums: &mut [[f32; STRIP]], strip: usize, bias: Option<&[f32]>) {
    let Some(bias) = bias else { return };
    let bias = &bias[strip * STRIP..bias.len().min((strip + 1) * STRIP)];
    for sums in sums {
        for (sum, bias) in sums.iter_mut().zip(bias) {
            *sum += bias;
        }
    }
}

/// Puts a strip's sums of some rows where they belong in `[rows, n]`.
fn write(
    sums: &[[f32; STRIP]],
    rows: Range<usize>,
    strip: usize,
    n: usize,
    add: bool,
    out: &Disjoint<'_, f32>,
) {
    let first = strip * STRIP;
    let lanes = STRIP.min(n - first);
    for (row, sums) in rows.zip(sums) {
        // SAFETY: each task writes the outputs of its own strips and rows.
        let out = unsafe { out.part(row * n + first, lanes) };
        match (<&mut [f32; STRIP]>::try_from(&mut *out), add) {
            (Ok(out), false) => *out = *sums,
            (Ok(out), true) => {
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out += sum;
                }
            }
            (Err(_), _) => {
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = if add { *out + sum } else { *sum };
                }
            }
        }
    }
}

/// Which matrix, and which of its strips, a strip of the outputs comes from.
type Way<'a> = &'a (dyn Fn(usize) -> (&'a Packed, usize) + Sync);

/// What is done with a strip's sums of some rows: those of each way.
type Take<'a> = &'a (dyn Fn(usize, Range<usize>, &mut [Sums; 2]) + Sync);

/// Computes all strips for all rows, one or two matrices at a time.
fn share<const WAYS: usize>(
    k: &Kernels,
    team: &Team,
    x: &Quantized,
    strips: usize,
    ways: &[Way<'_>; WAYS],
    take: Take<'_>,
) {
    let Some(last) = x.blocks().checked_sub(1) else {
        return;
    };
    // A low last block goes by itself where there is a way for few rows, unless the others have
    // unpacked what it can use.
    let low = x.block(last).height < BLOCK_ROWS;
    let alone = k.direct.filter(|_| low && (k.tiles.is_some() || last == 0));
    let together = 0..last + usize::from(alone.is_none());
    // Some tasks for each thread, so that a slow one does not hold up the rest, each of strips
    // that follow each other in memory.
    let fair = strips.div_ceil(8 * team.threads());
    let width = if together.is_empty() {
        let bytes: usize = ways.iter().map(|way| way(0).0.strip(0).len()).sum();
        fair.max(SHORT / bytes).min(strips.div_ceil(team.threads()))
    } else {
        let bytes = WAYS * STRIP * x.groups() * super::layout::GROUP;
        fair.min((UNPACKED / bytes).max(1))
    };
    team.run(strips.div_ceil(width), &|task| {
        let mut sums: [Sums; 2] = [[[0.0; STRIP]; BLOCK_ROWS]; 2];
        let strips = task * width..strips.min((task + 1) * width);
        if !together.is_empty() {
            PANELS.with_borrow_mut(|panels| {
                if panels.len() < width * WAYS {
                    panels.resize_with(width * WAYS, Panel::new);
                }
                let numbered = strips
                    .clone()
                    .flat_map(|strip| ways.iter().map(move |w| w(strip)));
                for ((w, strip), panel) in numbered.zip(&mut *panels) {
                    (k.unpack)(w.dtype(), w.strip(strip), k.tiles.is_some(), panel);
                }
                let mut shape = None;
                for block in together.clone() {
                    let rows = rows_of(x, block);
                    for (strip, panels) in strips.clone().zip(panels.chunks(WAYS)) {
                        for (panel, sums) in panels.iter().zip(&mut sums) {
                            let x = x.block(block);
                            let Some(tiles) = k.tiles else {
                                (k.panel)(panel, x, &mut sums[..x.height]);
                                continue;
                            };
                            if !matches!(&shape, Some((block, _)) if *block == panel.block) {
                                drop(shape.take());
                                shape = Some((panel.block, (tiles.enter)(panel)));
                            }
                            if let Some((_, entered)) = &shape {
                                (tiles.multiply)(entered, panel, x, sums);
                            }
                        }
                        take(strip, rows.clone(), &mut sums);
                    }
                }
            });
        }
        if let Some(direct) = alone {
            let rows = rows_of(x, last);
            let x = x.block(last);
            for strip in strips {
                for (way, sums) in ways.iter().zip(&mut sums) {
                    let (w, strip) = way(strip);
                    direct(w.dtype(), w.strip(strip), x, &mut sums[..x.height]);
                }
                take(strip, rows.clone(), &mut sums);
            }
        }
    });
}

/// The rows of a block, without those that fill it up.
fn rows_of(x: &Quantized, block: usize) -> Range<usize> {
    block * BLOCK_ROWS..x.rows().min((block + 1) * BLOCK_ROWS)
}
