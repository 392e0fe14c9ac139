//! The packed kernels of each instruction set, and the choice among them: made once, at run
//! time. All give the same bits, so the choice is one of speed alone.

use std::ops::Range;
use std::sync::OnceLock;

use crate::DType;

use super::layout::{GROUP, STRIP, with_format};
use super::panel::Panel;
use super::portable;
use super::quantized::{GroupOut, Quantized, RowBlock, quantize_group};

/// The kernels of one instruction set.
pub(crate) struct Kernels {
    /// For reports.
    pub(crate) name: &'static str,
    /// Packs up to 16 stored rows, `row_bytes` each, into a strip.
    pub(crate) pack: fn(DType, stored: &[u8], row_bytes: usize, strip: &mut [u8]),
    /// Quantises one group of one row.
    pub(crate) quantize: fn(&[f32; GROUP], GroupOut<'_>),
    /// Unpacks columns of a strip, from `column`; both are whole units.
    pub(crate) unpack:
        fn(DType, strip: &[u8], column: usize, columns: usize, signed: bool, &mut Panel),
    /// Adds a panel's products with a block's rows to `out`, a strip of outputs for each row.
    pub(crate) panel: fn(&Panel, RowBlock<'_>, out: &mut [[f32; STRIP]]),
    /// The same for a whole strip, unpacked in registers, for blocks of few rows; `out` is
    /// overwritten.
    pub(crate) direct: Option<fn(DType, strip: &[u8], RowBlock<'_>, out: &mut [[f32; STRIP]])>,
    /// As `panel`, of a signed panel with several whole blocks of 16 rows, where there are tiles.
    pub(crate) tiles: Option<fn(&Panel, &Quantized, Range<usize>, out: &mut [[f32; STRIP]])>,
}

pub(crate) static PORTABLE: Kernels = Kernels {
    name: "portable",
    pack: |dtype, stored, row_bytes, strip| {
        use super::pack_strip;
        with_format!(dtype, pack_strip(stored, row_bytes, strip));
    },
    quantize: quantize_group,
    unpack: |dtype, strip, column, columns, signed, out| {
        use portable::unpack;
        with_format!(dtype, unpack(strip, column, columns, signed, out));
    },
    panel: portable::panel,
    direct: None,
    tiles: None,
};

/// The best kernels for this machine.
pub(crate) fn kernels() -> &'static Kernels {
    static BEST: OnceLock<&'static Kernels> = OnceLock::new();
    BEST.get_or_init(|| all().pop().expect("the portable set is there"))
}

/// Every set that this machine has, the best last.
pub(crate) fn all() -> Vec<&'static Kernels> {
    let mut all = vec![&PORTABLE];
    #[cfg(target_arch = "x86_64")]
    {
        all.extend(super::avx2::kernels());
        all.extend(super::avx512::kernels());
        all.extend(super::amx::kernels());
    }
    all
}
