//! Which kernels multiply which weights with activations of how many bits: measured on this
//! machine when a type is first packed, or first multiplied with so few bits that there are
//! products of bits, and kept. All kernels of integers give the same bits, so this is a choice of speed alone.
//!
//! Kept while the process lives: measuring a type is a small part of packing it.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::{DType, Team};

use super::activations::Forms;
use super::bits::ActivationBits;
use super::facts;
use super::kernels::{self, Kernels};
use super::layout::STRIP;
use super::panel::Panel;
use super::quantized::{BIPOLAR_BITS, BLOCK_ROWS, Quantized};
use super::serial;

/// The kernels for one type.
#[derive(Clone, Copy)]
pub(crate) struct Choice {
    /// For blocks of at most `few_rows` rows: they unpack weights in registers.
    pub(crate) few: &'static Kernels,
    /// For others: weights are unpacked once for all blocks.
    pub(crate) many: &'static Kernels,
    /// 0 where a set has no way for few rows; 16 where that is the best way for all.
    pub(crate) few_rows: usize,
}

impl Choice {
    /// Blocks of at most so many rows are better not filled up to whole ones.
    pub(crate) fn unfilled(&self) -> usize {
        match self.many.tiles {
            Some(_) => self.few_rows,
            None => BLOCK_ROWS,
        }
    }
}

/// Who chooses.
#[derive(Clone, Copy)]
pub(crate) enum Set {
    /// The table.
    Measured,
    /// The table of vector instructions on bytes alone, to compare with.
    Vectors,
    /// A test: one set for everything.
    #[cfg_attr(not(test), allow(dead_code))]
    Only(&'static Kernels),
    /// A test: the best set, and a choice for each type.
    #[cfg(test)]
    By(&'static Kernels, fn(DType) -> Choice),
}

impl Set {
    /// The best set for quantised and other weights together.
    pub(crate) fn best(self) -> &'static Kernels {
        match self {
            Set::Measured => kernels::kernels(),
            Set::Vectors => vectors().pop().unwrap_or(kernels::kernels()),
            Set::Only(set) => set,
            #[cfg(test)]
            Set::By(best, _) => best,
        }
    }

    /// Of a type, and activations of so many bits if all groups have as many.
    pub(crate) fn choice(self, dtype: DType, bits: Option<usize>) -> Choice {
        match self {
            Set::Measured => choice(dtype, bits.unwrap_or(8)),
            Set::Vectors => choice_of_vectors(dtype),
            #[cfg(test)]
            Set::By(_, choice) => choice(dtype),
            Set::Only(set) => Choice {
                few: set,
                many: set,
                // Some of each, so that tests see both.
                few_rows: if set.direct.is_some() { 6 } else { 0 },
            },
        }
    }
}

/// The bits of all groups, if they are alike; 8 where they are not, or without a list.
pub(crate) fn bits_of(bits: Option<&ActivationBits>) -> usize {
    bits.and_then(ActivationBits::alike).unwrap_or(8)
}

/// The choice for a quantised type and activations of so many bits.
pub(crate) fn choice(dtype: DType, bits: usize) -> Choice {
    static TABLE: [[OnceLock<Choice>; BIPOLAR_BITS + 1]; DType::ALL.len()] =
        [const { [const { OnceLock::new() }; BIPOLAR_BITS + 1] }; DType::ALL.len()];
    let at = DType::ALL.iter().position(|d| *d == dtype);
    let at = at.expect("every type is in the list");
    // Other numbers of bits make no difference.
    match serial::applies(dtype, bits) {
        true => *TABLE[at][bits].get_or_init(|| measure(dtype, bits, kernels::all())),
        false => *TABLE[at][0].get_or_init(|| {
            let mut sets = kernels::all();
            sets.retain(|set| !set.serial);
            measure(dtype, 8, sets)
        }),
    }
}

/// Sets of vector instructions that multiply bytes.
fn vectors() -> Vec<&'static Kernels> {
    let mut sets = kernels::all();
    sets.retain(|set| !set.serial && set.tiles.is_none());
    sets
}

/// The choice among these.
fn choice_of_vectors(dtype: DType) -> Choice {
    static TABLE: [OnceLock<Choice>; DType::ALL.len()] =
        [const { OnceLock::new() }; DType::ALL.len()];
    let at = DType::ALL.iter().position(|d| *d == dtype);
    let at = at.expect("every type is in the list");
    *TABLE[at].get_or_init(|| measure(dtype, 8, vectors()))
}

/// Columns of the weights that are measured, and their strips, which stay in the caches: the
/// time that is compared is that of arithmetic.
const SHAPE: (usize, usize) = (2048, 8);

/// Blocks that share what is unpacked.
const BLOCKS: usize = 4;

fn measure(dtype: DType, bits: usize, mut sets: Vec<&'static Kernels>) -> Choice {
    let best = sets.last().copied().unwrap_or(&kernels::PORTABLE);
    if sets.len() > 1 {
        sets.remove(0); // The portable set is never the fastest.
    }
    let list = ActivationBits::new(&[bits as u8], SHAPE.0).expect("1 to 8 bits");
    let facts = facts(dtype).expect("only types that are packed are multiplied");
    // What is multiplied does not matter to the time.
    let strip = vec![0; SHAPE.0.div_ceil(facts.unit) * facts.unit_bytes];
    let rows = |n: usize, filled: usize| {
        let mut x = Quantized::default();
        let forms = Forms {
            few: filled,
            bits: list.clone(),
            pairs: dtype.bipolar_bits().is_some(),
            ..Forms::default()
        };
        x.fill_with(&Team::new(1), (n, SHAPE.0), &forms, &|_, row| {
            row.fill(1.0);
        });
        x
    };
    let one = rows(1, BLOCK_ROWS);
    let with_direct = sets.iter().copied().filter(|set| set.direct.is_some());
    let few = with_direct.min_by_key(|set| time_few(set, dtype, &strip, &one));
    let block = rows(BLOCKS * BLOCK_ROWS, BLOCK_ROWS);
    let many = |set: &&'static Kernels| time_many(set, dtype, &strip, &block);
    let many = sets.iter().copied().min_by_key(many).unwrap_or(best);
    let whole = rows(BLOCK_ROWS, BLOCK_ROWS);
    let limit = time_many(many, dtype, &strip, &whole);
    let faster = |set: &'static Kernels| {
        let all = time_few(set, dtype, &strip, &whole) * BLOCKS as u32;
        if all < time_many(many, dtype, &strip, &block) {
            return BLOCK_ROWS;
        }
        let heights = (1..BLOCK_ROWS).rev();
        let fits =
            |&height: &usize| time_few(set, dtype, &strip, &rows(height, BLOCK_ROWS)) < limit;
        heights.step_by(2).find(fits).unwrap_or(1)
    };
    Choice {
        few: few.unwrap_or(best),
        many,
        few_rows: few.map_or(0, faster),
    }
}

fn time_few(set: &Kernels, dtype: DType, strip: &[u8], x: &Quantized) -> Duration {
    let mut sums = [[0.0; STRIP]; BLOCK_ROWS];
    let Some(direct) = set.direct else {
        return Duration::MAX;
    };
    let block = x.block(0);
    time(|| direct(dtype, strip, block, &mut sums[..block.height]))
}

fn time_many(set: &Kernels, dtype: DType, strip: &[u8], x: &Quantized) -> Duration {
    let mut panel = Panel::new();
    let mut sums = [[0.0; STRIP]; BLOCK_ROWS];
    time(|| {
        (set.unpack)(dtype, strip, set.tiles.is_some(), &mut panel);
        let entered = set.tiles.map(|tiles| (tiles, (tiles.enter)(&panel)));
        for block in 0..x.blocks() {
            let x = x.block(block);
            match &entered {
                Some((tiles, entered)) => {
                    (tiles.multiply)(entered, &panel, x, 0..panel.groups, &mut sums);
                }
                None => (set.panel)(&panel, x, &mut sums[..x.height]),
            }
        }
    })
}

/// The least of some runs: the others were disturbed.
fn time(mut f: impl FnMut()) -> Duration {
    let run = |_| {
        let start = Instant::now();
        for _ in 0..SHAPE.1 {
            f();
        }
        start.elapsed()
    };
    (0..4).map(run).min().unwrap_or_default()
}
