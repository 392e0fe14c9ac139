//! Products of activations with packed matrices, and what becomes of them.

use std::ops::Range;

use crate::team::{Disjoint, Team};

use super::Packed;
use super::activations::{Activations, Forms};
use super::choice::Set;
use super::halves::is_half;
use super::kernels::kernels;
use super::layout::STRIP;
use super::rounded::{Half, RoundedWriter};
use super::share::{Sums, Task, share};

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

/// `out = x · wᵀ + bias` for each of several matrices.
///
/// # Panics
/// When lengths do not fit the shapes, or `x` does not have the form that a matrix reads.
pub fn products(team: &Team, x: &Activations, products: &mut [Product<'_>]) {
    products_on(Set::Measured, team, x, products);
}

/// [`products`] by vector instructions on 8-bit integers alone, without tiles or products of
/// bits: what faster ways are measured against. The results are the same.
///
/// # Panics
/// As [`products`].
pub fn vector_products(team: &Team, x: &Activations, products: &mut [Product<'_>]) {
    products_on(Set::Vectors, team, x, products);
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
            *job = Some(Job {
                start: strips,
                weight: p.weight,
                bias: p.bias,
                add: p.add,
                out: Disjoint::new(&mut *p.out),
            });
            strips += p.weight.strips();
        }
        share(set, team, x, strips, &Plain { jobs });
    }
}

/// Products that go where they belong as they are.
struct Plain<'a> {
    jobs: [Option<Job<'a>>; 4],
}

/// One of them.
struct Job<'a> {
    /// The first of its strips among those of all.
    start: usize,
    weight: &'a Packed,
    bias: Option<&'a [f32]>,
    add: bool,
    out: Disjoint<'a, f32>,
}

impl<'a> Plain<'a> {
    fn find(&self, strip: usize) -> &Job<'a> {
        let mut found = self.jobs.iter().flatten().filter(|job| job.start <= strip);
        found.next_back().expect("the first begins at 0")
    }
}

impl Task<1> for Plain<'_> {
    fn weights(&self, strip: usize) -> [(&Packed, usize); 1] {
        let job = self.find(strip);
        [(job.weight, strip - job.start)]
    }

    fn ready(&self, strip: usize, rows: Range<usize>) {
        let job = self.find(strip);
        for row in rows {
            let first = (strip - job.start) * STRIP;
            job.out.prefetch(row * job.weight.rows() + first);
        }
    }

    fn take(&self, strip: usize, rows: Range<usize>, sums: &mut [Sums; 1]) {
        let job = self.find(strip);
        let (sums, strip) = (&mut sums[0][..rows.len()], strip - job.start);
        add_bias(sums, strip, job.bias);
        write(sums, rows, strip, job.weight.rows(), job.add, &job.out);
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
