//! Products of activations with packed matrices, shared out among a team.

use std::cell::RefCell;
use std::ops::Range;

use crate::team::{Disjoint, Team};

use super::activations::{Activations, Forms};
use super::choice::{Choice, Set};
use super::halves::is_half;
use super::kernels::{Kernels, kernels};
use super::layout::{GROUP, STRIP};
use super::panel::Panel;
use super::quantized::{BLOCK_ROWS, Quantized};
use super::rounded::{Half, PAIR_ROWS, PairSums, Rounded, RoundedWriter, TILE, Tiles};
use super::{Packed, facts};

/// Bytes of unpacked codes of one task: with as many of activations they stay in the
/// second-level cache.
const UNPACKED: usize = 384 << 10;

/// Least bytes of weights of one task of few rows: what is read while a task is claimed, some
/// times over.
const SHORT: usize = 64 << 10;

/// Strips of a task of rounded rows, and columns that are decoded at once: so many weights stay
/// in the second-level cache, and rows, which come from further away, are read once for them.
const ROUNDED: (usize, usize) = (16, 2048);

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
    static DECODED: RefCell<Decoded> = const { RefCell::new(Decoded { tiles: Vec::new(), sums: Vec::new() }) };
}

/// Working memory of products of rounded rows.
struct Decoded {
    /// `[pair of strips][tile of columns]`.
    tiles: Vec<Tiles>,
    /// Sums of columns so far, `[pair of blocks][pair of strips]`.
    sums: Vec<PairSums>,
}

/// `out = x · wᵀ + bias` for each of several matrices.
///
/// # Panics
/// When lengths do not fit the shapes, or `x` does not have the form that a matrix reads.
pub fn products(team: &Team, x: &Activations, products: &mut [Product<'_>]) {
    products_on(Set::Measured, team, x, products);
}

pub(super) fn products_on(set: Set, team: &Team, x: &Activations, all: &mut [Product<'_>]) {
    let alike =
        |a: &Product<'_>, b: &Product<'_>| is_half(a.weight.dtype()) == is_half(b.weight.dtype());
    // More matrices than any layer reads at once: a step allocates nothing.
    for all in all.chunk_by_mut(alike).flat_map(|all| all.chunks_mut(4)) {
        let mut jobs = [const { None }; 4];
        let mut strips = 0;
        for (job, p) in jobs.iter_mut().zip(all.iter_mut()) {
            check(x, p.weight, p.bias);
            assert_eq!(p.out.len(), x.rows() * p.weight.rows(), "the length of out");
            let out = Disjoint::new(&mut *p.out);
            *job = Some((strips, p.weight, p.bias, p.add, out));
            strips += p.weight.strips();
        }
        share(set, team, x, strips, &Plain { jobs });
    }
}

/// Products that go where they belong as they are.
struct Plain<'a> {
    /// The first strip of each, its weights, bias, whether it adds, and where it goes.
    jobs: [Option<(
        usize,
        &'a Packed,
        Option<&'a [f32]>,
        bool,
        Disjoint<'a, f32>,
    )>; 4],
}

impl<'a> Plain<'a> {
    #[inline]
    fn find(
        &self,
        strip: usize,
    ) -> &(
        usize,
        &'a Packed,
        Option<&'a [f32]>,
        bool,
        Disjoint<'a, f32>,
    ) {
        let mut found = self.jobs.iter().flatten().filter(|job| job.0 <= strip);
        found.next_back().expect("the first begins at 0")
    }
}

impl Task<1> for Plain<'_> {
    fn weights(&self, strip: usize) -> [(&Packed, usize); 1] {
        let (start, w, ..) = self.find(strip);
        [(*w, strip - start)]
    }

    fn ready(&self, strip: usize, rows: Range<usize>) {
        let (start, w, _, _, out) = self.find(strip);
        for row in rows {
            out.prefetch(row * w.rows() + (strip - start) * STRIP);
        }
    }

    fn take(&self, strip: usize, rows: Range<usize>, sums: &mut [Sums; 1]) {
        let (start, w, bias, add, out) = self.find(strip);
        let (sums, strip) = (&mut sums[0][..rows.len()], strip - start);
        add_bias(sums, strip, *bias);
        write(sums, rows, strip, w.rows(), *add, out);
    }
}

/// `next = activate(x · gateᵀ + gate bias, x · upᵀ + up bias)`, where `activate` puts its result
/// into its first argument. Both matrices have the same shape, and are both of quantised types or
/// both of 16 bits. As many
/// rows of the result are rounded as of `x`, the others take these forms; `plain` is working
/// memory.
///
/// # Panics
/// When lengths do not fit the shapes.
pub fn gated_product(
    team: &Team,
    x: &Activations,
    (gate, gate_bias): (&Packed, Option<&[f32]>),
    (up, up_bias): (&Packed, Option<&[f32]>),
    activate: fn(&mut [f32], &[f32]),
    plain: &mut Vec<f32>,
    (next, forms): (&mut Activations, Forms),
) {
    check(x, gate, gate_bias);
    check(x, up, up_bias);
    assert_eq!(gate.rows(), up.rows(), "rows of both matrices");
    assert_eq!(
        is_half(gate.dtype()),
        is_half(up.dtype()),
        "the kind of both matrices"
    );
    let (exact, n) = (x.exact, gate.rows());
    let rounded = next.shape(x.rows(), n, exact);
    if plain.len() < exact * n {
        plain.resize(exact * n, 0.0);
    }
    let task = Gated {
        weights: [(gate, gate_bias), (up, up_bias)],
        activate,
        exact,
        plain: Disjoint::new(&mut plain[..exact * n]),
        rounded: rounded.writer(),
        round: kernels().rounded.round_rows,
    };
    share(Set::Measured, team, x, gate.strips(), &task);
    let plain = &plain[..exact * n];
    next.fill_exact(team, forms, &|row, out| {
        out.copy_from_slice(&plain[row * n..][..n]);
    });
}

/// Products of two matrices, one of which gates the other.
struct Gated<'a> {
    weights: [(&'a Packed, Option<&'a [f32]>); 2],
    activate: fn(&mut [f32], &[f32]),
    exact: usize,
    /// Of the rows that are not rounded.
    plain: Disjoint<'a, f32>,
    /// Of the others.
    rounded: RoundedWriter<'a>,
    round: fn(&[[f32; STRIP]], usize, &mut Half),
}

impl Task<2> for Gated<'_> {
    fn weights(&self, strip: usize) -> [(&Packed, usize); 2] {
        self.weights.map(|(w, _)| (w, strip))
    }

    fn ready(&self, _: usize, _: Range<usize>) {} // a tile is written in one piece

    fn take(&self, strip: usize, rows: Range<usize>, [gates, ups]: &mut [Sums; 2]) {
        let [(gate, gate_bias), (_, up_bias)] = self.weights;
        let (gates, ups) = (&mut gates[..rows.len()], &mut ups[..rows.len()]);
        add_bias(gates, strip, gate_bias);
        add_bias(ups, strip, up_bias);
        (self.activate)(gates.as_flattened_mut(), ups.as_flattened());
        match rows.start.checked_sub(self.exact) {
            None => write(gates, rows, strip, gate.rows(), false, &self.plain),
            Some(row) => {
                // SAFETY: a task has both strips of a tile.
                let half = unsafe { self.rounded.half(row, strip / 2) };
                (self.round)(gates, strip % 2, half);
            }
        }
    }
}

fn check(x: &Activations, w: &Packed, bias: Option<&[f32]>) {
    assert_eq!(w.cols(), x.cols(), "columns of weights and activations");
    let fits = bias.is_none_or(|b| b.len() == w.rows());
    assert!(fits, "a bias of another length");
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

/// What is computed of one or more matrices at a time, strip by strip.
trait Task<const WAYS: usize>: Sync {
    /// Which matrices, and which of their strips, a strip of the outputs comes from.
    fn weights(&self, strip: usize) -> [(&Packed, usize); WAYS];

    /// Asks for where the outputs of a strip will go.
    fn ready(&self, strip: usize, rows: Range<usize>);

    /// Does with a strip's sums of some rows what is to be done.
    fn take(&self, strip: usize, rows: Range<usize>, sums: &mut [Sums; WAYS]);
}

/// Computes all strips for all rows.
fn share<const WAYS: usize>(
    set: Set,
    team: &Team,
    x: &Activations,
    strips: usize,
    job: &dyn Task<WAYS>,
) {
    let rounded = x.rounded.rows() > 0;
    let few = fair(team, strips).max(SHORT / strip_bytes(job));
    let few = few.min(strips.div_ceil(team.threads())).max(1);
    let halves = is_half(job.weights(0)[0].0.dtype());
    let integers = match halves {
        true => None,
        false => Integers::plan(set, team, x.integers(), (strips, few), job),
    };
    let k = match set {
        Set::Measured => kernels(),
        Set::Only(k) => k,
    };
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
    /// The low last block goes by itself where there is a way for few rows, unless the others
    /// have unpacked what it can use.
    alone: bool,
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
        let choices = job.weights(0).map(|(w, _)| set.choice(w.dtype()));
        let by_direct = |c: &Choice| c.few.direct.is_some();
        // Tiles take whole blocks only; other kernels take what is unpacked.
        let must = choices.iter().any(|c| c.many.tiles.is_some());
        let better = last == 0 && choices.iter().any(|c| height <= c.few_rows);
        let alone = height < BLOCK_ROWS && (must || better) && choices.iter().all(by_direct);
        let together = 0..last + usize::from(!alone);
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
        let mut sums: [Sums; WAYS] = [[[0.0; STRIP]; BLOCK_ROWS]; WAYS];
        if !self.together.is_empty() {
            PANELS.with_borrow_mut(|panels| {
                let count = strips.len() * WAYS;
                if panels.len() < count {
                    panels.resize_with(count, Panel::new);
                }
                for ((w, strip), panel) in numbered(&strips, job).zip(&mut *panels) {
                    let k = set.choice(w.dtype()).many;
                    (k.unpack)(w.dtype(), w.strip(strip), k.tiles.is_some(), panel);
                }
                let mut shape = None;
                for block in self.together.clone() {
                    let rows = rows_of(x, block);
                    for (strip, panels) in strips.clone().zip(panels.chunks(WAYS)) {
                        let weights = job.weights(strip);
                        for ((panel, sums), (w, _)) in panels.iter().zip(&mut sums).zip(weights) {
                            let x = x.block(block);
                            let k = set.choice(w.dtype()).many;
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
                        job.take(strip, rows.clone(), &mut sums);
                    }
                }
            });
        }
        if self.alone {
            let last = x.blocks() - 1;
            let (rows, x) = (rows_of(x, last), x.block(last));
            for strip in strips {
                for ((w, strip), sums) in job.weights(strip).into_iter().zip(&mut sums) {
                    let few = set.choice(w.dtype()).few;
                    let direct = few.direct.expect("the plan has looked");
                    direct(w.dtype(), w.strip(strip), x, &mut sums[..x.height]);
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
    job.weights(0).map(|w| w.0.strip(0).len()).iter().sum()
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
                multiply(w.dtype(), w.strip(strip), floats, &mut sums[..rows.len()]);
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
    let chunk = x.tiles().min(ROUNDED.1 / TILE);
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
            (k.rounded.decode)(
                w.dtype(),
                &w.strip(strip)[units],
                i % 2,
                &mut here[..columns.len()],
            );
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
