//! Part of a strip with its codes as bytes and its scales as f32, unpacked once for many rows.

use super::layout::{Format, GROUP, SLAB, STRIP};

/// Columns of a panel: 32 KiB of codes, and 1 MiB of the codes of 512 rows of activations.
pub(crate) const PANEL: usize = 2048;

/// One vector of codes: 4 columns of 16 rows.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Codes(pub(crate) [u8; 64]);

/// Columns of a strip, from a whole unit on.
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
    /// Groups of 64 columns, and the first one's number in its row.
    pub(crate) groups: usize,
    pub(crate) first_group: usize,
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
            first_group: 0,
        }
    }

    /// Takes the shape of columns from `column` on; the contents are to be written.
    pub(crate) fn shape<F: Format>(&mut self, column: usize, columns: usize, signed: bool) {
        self.codes.resize(columns / 4, Codes([0; 64]));
        self.scales.resize(columns / F::BLOCK, [0.0; STRIP]);
        let minima = if F::MINIMA { columns / F::BLOCK } else { 0 };
        self.minima.resize(minima, [0.0; STRIP]);
        self.block = F::BLOCK;
        self.zero = if signed { 0 } else { F::ZERO };
        self.signed = signed;
        self.narrow = F::BITS < 8 && !F::CODEBOOK;
        self.groups = columns / GROUP;
        self.first_group = column / GROUP;
    }
}
