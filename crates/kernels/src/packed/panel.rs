//! A strip with its codes as bytes and its scales as f32, unpacked once for many rows.

use super::layout::{Format, GROUP, SLAB, STRIP};

/// One vector of codes: 4 columns of 16 rows.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Codes(pub(crate) [u8; 64]);

/// An unpacked strip.
pub(crate) struct Panel {
    /// `code`, or `code − zero` as an i8 where `signed`: `[columns / 4]` vectors.
    pub(crate) codes: Vec<Codes>,
    /// Scales of blocks, `[columns / block][16]`.
    pub(crate) scales: Vec<[f32; STRIP]>,
    /// Minima alike; empty without.
    pub(crate) minima: Vec<[f32; STRIP]>,
    /// Columns that share a scale.
    pub(crate) block: usize,
    /// What is subtracted of each code; 0 where `signed`.
    pub(crate) zero: i32,
    /// Codes are i8 with their zero at 0.
    pub(crate) signed: bool,
    /// Every code is at most 127.
    pub(crate) narrow: bool,
    /// Groups of 64 columns.
    pub(crate) groups: usize,
}

impl Panel {
    pub(crate) const fn new() -> Panel {
        Panel {
            codes: Vec::new(),
            scales: Vec::new(),
            minima: Vec::new(),
            block: SLAB,
            zero: 0,
            signed: false,
            narrow: false,
            groups: 0,
        }
    }

    /// Takes the shape of a strip of so many units; the contents are to be written.
    pub(crate) fn shape<F: Format>(&mut self, units: usize, signed: bool) {
        let columns = units * F::UNIT;
        self.codes.resize(columns / 4, Codes([0; 64]));
        self.scales.resize(columns / F::BLOCK, [0.0; STRIP]);
        let minima = if F::MINIMA { columns / F::BLOCK } else { 0 };
        self.minima.resize(minima, [0.0; STRIP]);
        self.block = F::BLOCK;
        self.zero = if signed { 0 } else { F::ZERO };
        self.signed = signed;
        self.narrow = F::NARROW;
        self.groups = columns / GROUP;
    }
}
