//! How products are shared out among a team: tasks of strips, each with all rows.

use std::cell::RefCell;
use std::ops::Range;

use crate::team::Team;

use super::activations::Activations;
use super::choice::Set;
use super::halves::is_half;
use super::kernels::Kernels;
use super::layout::{GROUP, STRIP};
use super::panel::Panel;
use super::quantized::{BLOCK_ROWS, Quantized};
use super::rounded::{PAIR_ROWS, PairSums, Rounded, TILE, Tiles};
use super::{Packed, facts};

/// Bytes of unpacked codes of one task: with as many of activations they stay in the
/// second-level cache.
const UNPACKED: usize = 384 << 10;

/// Groups of a block of rows that all strips of a task are multiplied with before the next ones:
/// the rows' codes, 16 KiB, stay in the first-level cache meanwhile.
const NEAR: usize = 16;

/// Least bytes of weights of one task of few rows: what is read while a task is claimed, some
/// times over.
const SHORT: usize = 64 << 10;

/// Strips of a task of rounded rows, and columns that are decoded at once: so many weights stay
/// in the second-level cache, and rows, which come from further away, are read once for them.
const ROUNDED: (usize, usize) = (16, 2048);

/// Outputs of one strip for one block of rows.
pub(super) type Sums = [[f32; STRIP]; BLOCK_ROWS];

thread_local! {
    /// Unpacked strips, and their sums.
    static PANELS: RefCell<(Vec<Panel>, Vec<Sums>)> =
        const { RefCell::new((Vec::new(), Vec::new())) };
    static DECODED: RefCell<Decoded> = const { RefCell::new(Decoded { tiles: Vec::new(), sums: Vec::new() }) };
}

/// Working memory of products of rounded rows.
struct Decoded {
    /// `[pair of strips][tile of columns]`.
    tiles: Vec<Tiles>,
    /// Sums of columns so far, `[pair of blocks][pair of strips]`.
    sums: Vec<PairSums>,
}

/// What is computed of one or more matrices at a time, strip by strip.
pub(super) trait Task<const WAYS: usize>: Sync {
    /// Which matrices, and which of their strips, a strip of the outputs comes from.
    fn weights(&self, strip: usize) -> [(&Packed, usize); WAYS];

    /// Asks for where the outputs of a strip will go.
    fn ready(&self, strip: usize, rows: Range<usize>);

    /// Does with a strip's sums of some rows what is to be done.
    fn take(&self, strip: usize, rows: Range<usize>, sums: &mut [Sums; WAYS]);
}

/// Computes all strips for all rows.
pub(super) fn share<const WAYS: usize>(
    set: Set,
    team: &Team,
    x: &Activations,
    strips: usize,
    job: &dyn Task<WAYS>,
) {
    let rounded = x.rounded.rows() > 0;
    // A strip that is rebuilt takes as long as reading many.
    let rebuilt = job.weights(0).iter().any(|(w, _)| w.stack().is_some());
    let short = if rebuilt { 1 } else { SHORT / strip_bytes(job) };
    let few = fair(team, strips).max(short);
    let few = few.min(strips.div_ceil(team.threads())).max(1);
    let halves = is_half(job.weights(0)[0].0.dtype());
    let integers = match halves {
        true => None,
        false => Integers::plan(set, team, x.integers(), (strips, few), job),
    };
    let k = set.best();
    let width = match (&integers, rounded) {
        // Even, since two strips share a tile.
        (_, true) => (ROUNDED.0 / WAYS)
            .min(strips.div_ceil(4 * team.threads()))
            .next_multiple_of(2),
        (Some(integers), false) => integers.width,
        (None, false) => few,
    };
    team.run(strips.div_ceil(width), &|task| {
        let strips = task * width..strips.min((task + 1) * width);
        if let Some(integers) = &integers {
            // What the integers' products have read is still near for the others.
            for start in strips.clone().step_by(integers.width) {
                let part = start..strips.end.min(start + integers.width);
                integers.multiply(set, x.integers(), part, job);
            }
        }
        if halves && x.exact > 0 {
            multiply_halves(k, x, strips.clone(), job);
        }
        if rounded {
            let first = x.exact;
            DECODED.with_borrow_mut(|work| {
                multiply_rounded(k, (&x.rounded, first), strips, job, work);
            });
        }
    });
}

/// How rows of integers are multiplied.
struct Integers {
    /// Blocks that share unpacked strips.
    together: Range<usize>,
    /// Blocks that go by themselves: the low last one where there is a way for few rows, unless
    /// the others have unpacked what it can use; all of them where that way is the best.
    alone: Range<usize>,
    /// Strips of a task.
    width: usize,
}

impl Integers {
    fn plan<const WAYS: usize>(
        set: Set,
        team: &Team,
        x: &Quantized,
        (strips, few): (usize, usize),
        job: &dyn Task<WAYS>,
    ) -> Option<Integers> {
        let last = x.blocks().checked_sub(1)?;
        let height = x.block(last).height;
        // Tiles take whole blocks only, and any of the matrices may go to them; other kernels
        // take what is unpacked. Where the best set has a way for few rows, every choice has.
        let must = set.best().tiles.is_some();
        let bits = x.bits();
        let few_rows = job
            .weights(0)
            .map(|(w, _)| set.choice(w.dtype(), bits).few_rows);
        let better = last == 0 && few_rows.iter().any(|&few| height <= few);
        let can = set.best().direct.is_some();
        let alone = height < BLOCK_ROWS && (must || better) && can;
        let together = match few_rows.iter().all(|&few| few == BLOCK_ROWS) && can {
            true => 0,
            false => last + usize::from(!alone),
        };
        let (together, alone) = (0..together, together..last + 1);
        let width = if together.is_empty() {
            few
        } else {
            let bytes = WAYS * STRIP * x.groups() * GROUP;
            fair(team, strips).min((UNPACKED / bytes).max(1))
        };
        Some(Integers {
            together,
            alone,
            width,
        })
    }

    fn multiply<const WAYS: usize>(
        &self,
        set: Set,
        x: &Quantized,
        strips: Range<usize>,
        job: &dyn Task<WAYS>,
    ) {
        if !self.together.is_empty() {
            PANELS.with_borrow_mut(|(panels, all)| {
                let count = strips.len() * WAYS;
                if panels.len() < count {
                    panels.resize_with(count, Panel::new);
                    all.resize(count, [[0.0; STRIP]; BLOCK_ROWS]);
                }
                for ((w, strip), panel) in numbered(&strips, job).zip(&mut *panels) {
                    let k = set.choice(w.dtype(), x.bits()).many;
                    w.with_strip(strip, |strip| {
                        (k.unpack)(w.dtype(), strip, k.tiles.is_some(), panel);
                    });
                }
                let mut shape = None;
                for block in self.together.clone() {
                    let (bits, rows, x) = (x.bits(), rows_of(x, block), x.block(block));
                    for start in (0..x.codes.len() / x.height).step_by(NEAR) {
                        for ((i, (w, _)), sums) in
                            numbered(&strips, job).enumerate().zip(all.iter_mut())
                        {
                            let (k, panel) = (set.choice(w.dtype(), bits).many, &panels[i]);
                            let groups = start..panel.groups.min(start + NEAR);
                            let Some(tiles) = k.tiles else {
                                if start == 0 {
                                    (k.panel)(panel, x, &mut sums[..x.height]);
                                }
                                continue;
                            };
                            if !matches!(&shape, Some((block, _)) if *block == panel.block) {
                                drop(shape.take());
                                shape = Some((panel.block, (tiles.enter)(panel)));
                            }
                            if let (Some((_, entered)), false) = (&shape, groups.is_empty()) {
                                (tiles.multiply)(entered, panel, x, groups, sums);
                            }
                        }
                    }
                    for (strip, sums) in strips.clone().zip(all.as_chunks_mut::<WAYS>().0) {
                        job.take(strip, rows.clone(), sums);
                    }
                }
            });
        }
        let mut sums: [Sums; WAYS] = [[[0.0; STRIP]; BLOCK_ROWS]; WAYS];
        for block in self.alone.clone() {
            let (rows, bits) = (rows_of(x, block), x.bits());
            let x = x.block(block);
            for strip in strips.clone() {
                for ((w, strip), sums) in job.weights(strip).into_iter().zip(&mut sums) {
                    let few = set.choice(w.dtype(), bits).few;
                    let direct = few.direct.expect("the plan has looked");
                    w.with_strip(strip, |strip| {
                        direct(w.dtype(), strip, x, &mut sums[..x.height]);
                    });
                }
                job.take(strip, rows.clone(), &mut sums);
            }
        }
    }
}

/// Some tasks for each thread, so that a slow one does not hold up the rest, each of strips that
/// follow each other in memory.
fn fair(team: &Team, strips: usize) -> usize {
    strips.div_ceil(8 * team.threads())
}

/// Bytes of a strip of all ways.
fn strip_bytes<const WAYS: usize>(job: &dyn Task<WAYS>) -> usize {
    job.weights(0).map(|w| w.0.strip_bytes()).iter().sum()
}

/// Multiplies rows of f32 with strips of 16-bit weights.
fn multiply_halves<const WAYS: usize>(
    k: &Kernels,
    x: &Activations,
    strips: Range<usize>,
    job: &dyn Task<WAYS>,
) {
    let multiply = k.halves.unwrap_or(super::halves::multiply);
    let mut sums: [Sums; WAYS] = [[[0.0; STRIP]; BLOCK_ROWS]; WAYS];
    for strip in strips {
        for start in (0..x.exact).step_by(BLOCK_ROWS) {
            let rows = start..x.exact.min(start + BLOCK_ROWS);
            let floats = x.floats(rows.clone());
            for ((w, strip), sums) in job.weights(strip).into_iter().zip(&mut sums) {
                w.with_strip(strip, |strip| {
                    multiply(w.dtype(), strip, floats, &mut sums[..rows.len()]);
                });
            }
            job.take(strip, rows, &mut sums);
        }
    }
}

/// The strips of each matrix, one way beside the other.
fn numbered<'a, const WAYS: usize>(
    strips: &Range<usize>,
    job: &'a dyn Task<WAYS>,
) -> impl Iterator<Item = (&'a Packed, usize)> + use<'a, WAYS> {
    strips.clone().flat_map(|strip| job.weights(strip))
}

/// Multiplies rounded rows, which follow `first` others, with some strips.
fn multiply_rounded<const WAYS: usize>(
    k: &Kernels,
    (x, first): (&Rounded, usize),
    strips: Range<usize>,
    job: &dyn Task<WAYS>,
    work: &mut Decoded,
) {
    let pairs = (strips.len() * WAYS).div_ceil(2);
    // A stacked strip is rebuilt whole, so all its columns are decoded at once.
    let stacked = numbered(&strips, job).any(|(w, _)| w.is_stacked());
    let chunk = match stacked {
        true => x.tiles(),
        false => x.tiles().min(ROUNDED.1 / TILE),
    };
    let chunks = x.tiles().div_ceil(chunk);
    work.tiles
        .resize((pairs * chunk).max(work.tiles.len()), Tiles::ZERO);
    let kept = if chunks > 1 { x.pairs() * pairs } else { 1 };
    work.sums.resize(kept.max(work.sums.len()), PairSums::ZERO);
    let entered = (k.rounded.enter)();
    let rows_of = |pair: usize, block: usize| {
        let start = (pair * PAIR_ROWS + block * BLOCK_ROWS).min(x.rows());
        first + start..first + x.rows().min(start + BLOCK_ROWS)
    };
    // Two strips of one matrix, or one of each.
    let outputs = |p: usize| strips.start + p * 2 / WAYS..strips.end;
    for c in 0..chunks {
        let columns = c * chunk..x.tiles().min((c + 1) * chunk);
        let mut tiles = work.tiles.chunks_exact_mut(chunk);
        let mut here: &mut [Tiles] = &mut [];
        for (i, (w, strip)) in numbered(&strips, job).enumerate() {
            if i % 2 == 0 {
                here = tiles.next().expect("a pair for every two strips");
            }
            let facts = facts(w.dtype()).expect("only such types are packed");
            let (unit, size) = (facts.unit / TILE, facts.unit_bytes);
            let units = columns.start / unit * size..columns.end.div_ceil(unit) * size;
            let out = &mut here[..columns.len()];
            w.with_strip(strip, |strip| {
                (k.rounded.decode)(w.dtype(), &strip[units], i % 2, out);
            });
        }
        for pair in 0..x.pairs() {
            let rows = &x.pair(pair)[columns.clone()];
            for (p, tiles) in work.tiles.chunks_exact(chunk).take(pairs).enumerate() {
                let at = if chunks > 1 { pair * pairs + p } else { 0 };
                let sums = &mut work.sums[at];
                if c + 1 == chunks {
                    job.ready(
                        outputs(p).start,
                        rows_of(pair, 0).start..rows_of(pair, 1).end,
                    );
                }
                let tiles = &tiles[..columns.len()];
                (k.rounded.multiply)(&entered, rows, tiles, c > 0, sums);
                if c + 1 == chunks {
                    for (block, sums) in sums.0.iter_mut().enumerate() {
                        let rows = rows_of(pair, block);
                        let sums = sums.as_chunks_mut::<WAYS>().0;
                        for (strip, sums) in outputs(p).zip(sums).filter(|_| !rows.is_empty()) {
                            job.take(strip, rows.clone(), sums);
                        }
                    }
                }
            }
        }
    }
}

/// The rows of a block, without those that fill it up.
fn rows_of(x: &Quantized, block: usize) -> Range<usize> {
    block * BLOCK_ROWS..x.rows().min((block + 1) * BLOCK_ROWS)
}
