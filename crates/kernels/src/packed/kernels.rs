//! The packed kernels of each instruction set, and the choice among them: made once, at run
//! time. All give the same bits, so the choice is one of speed alone.

use std::ops::Range;
use std::sync::OnceLock;

use crate::DType;

use super::halves;
use super::layout::{GROUP, STRIP, with_format};
use super::panel::Panel;
use super::portable;
use super::quantized::{GroupOut, RowBlock, quantize_groups};
use super::rounded::{self, RoundedKernels};

/// See [`Kernels::direct`].
pub(crate) type Direct = fn(DType, strip: &[u8], RowBlock<'_>, out: &mut [[f32; STRIP]]);

/// The kernels of one instruction set.
pub(crate) struct Kernels {
    /// For reports.
    pub(crate) name: &'static str,
    /// Packs up to 16 stored rows, `row_bytes` each, into a strip.
    pub(crate) pack: fn(DType, stored: &[u8], row_bytes: usize, strip: &mut [u8]),
    /// Quantises one group of one row, or two that share a scale, to so many bits, 1 to 8.
    pub(crate) quantize: fn(&[[f32; GROUP]], usize, &mut [GroupOut<'_>]),
    /// Unpacks a strip.
    pub(crate) unpack: fn(DType, strip: &[u8], signed: bool, &mut Panel),
    /// The products of a strip with a block's rows: 16 outputs for each row.
    pub(crate) panel: fn(&Panel, RowBlock<'_>, out: &mut [[f32; STRIP]]),
    /// The same from the packed strip, unpacked in registers: for blocks of few rows.
    pub(crate) direct: Option<Direct>,
    /// Whether `direct` has products of bits.
    pub(crate) serial: bool,
    /// Tiles of integers, where there are any.
    pub(crate) tiles: Option<Tiles>,
    /// Products of weights of 16 bits, if they are faster than those of stored ones.
    pub(crate) halves: Option<halves::Multiply>,
    /// Products of rows that are rounded to bfloat16.
    pub(crate) rounded: &'static RoundedKernels,
}

/// As `panel`, of a signed panel with a whole block of 16 rows, in some of its groups; of pairs, an
/// even number from an even one on. Those from the first one on set what is in `out`, others add.
pub(crate) type Multiply =
    fn(&Entered, &Panel, RowBlock<'_>, groups: Range<usize>, out: &mut [[f32; STRIP]]);

/// A machine's tiles.
#[derive(Clone, Copy)]
pub(crate) struct Tiles {
    /// Readies this thread's tiles for panels of this form.
    pub(crate) enter: fn(&Panel) -> Entered,
    /// See [`Multiply`].
    pub(crate) multiply: Multiply,
}

#[cfg(target_arch = "x86_64")]
pub(crate) use crate::amx::Entered;
/// No tiles here.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) enum Entered {}

pub(crate) static PORTABLE: Kernels = Kernels {
    name: "portable",
    pack: |dtype, stored, row_bytes, strip| {
        use super::pack_strip;
        with_format!(dtype, pack_strip(stored, row_bytes, strip));
    },
    quantize: quantize_groups,
    unpack: |dtype, strip, signed, out| {
        use portable::unpack;
        with_format!(dtype, unpack(strip, signed, out));
    },
    panel: portable::panel,
    direct: None,
    serial: false,
    tiles: None,
    halves: None,
    rounded: &rounded::PORTABLE,
};

/// The best kernels for this machine.
pub(crate) fn kernels() -> &'static Kernels {
    static BEST: OnceLock<&'static Kernels> = OnceLock::new();
    // Products of bits are for some types only.
    let general = || all().into_iter().filter(|set| !set.serial);
    BEST.get_or_init(|| general().next_back().expect("the portable set is there"))
}

/// Every set that this machine has, the best last.
pub(crate) fn all() -> Vec<&'static Kernels> {
    let mut all = vec![&PORTABLE];
    #[cfg(target_arch = "x86_64")]
    {
        all.extend(super::avx2::kernels());
        all.extend(super::serial::kernels());
        all.extend(super::avx512::kernels());
        all.extend(super::amx::kernels());
    }
    all
}

/// The name of the set that products use.
pub fn packed_kernels() -> &'static str {
    kernels().name
}

/// Whether products of rows that are rounded to bfloat16 are fast here: whether there are tiles.
pub fn rounds_fast() -> bool {
    kernels().rounded.fast
}
