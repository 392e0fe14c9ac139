//! The kernels of each instruction set, and the choice among them: made once, at run time.

use std::sync::OnceLock;

use crate::DType;
use crate::attention::Work;
use crate::block;
use crate::hadamard;
use crate::kv::nibbles;
use crate::low_rank;
use crate::matmul::{Tiles, strided_tile};
use crate::simd::{Pair, Portable};

/// See [`Isa::dot4`].
pub(crate) type Dot4 = fn(DType, [&[u8]; 4], &[f32]) -> [f32; 4];

/// The kernels of one instruction set. Those of different sets may differ in a result's last
/// bits, but for decoding, which is exact.
pub(crate) struct Isa {
    /// Decodes whole blocks.
    pub(crate) decode: fn(DType, &[u8], &mut [f32]),
    /// Fits a block's grid.
    pub(crate) fit: block::grid::Fit,
    /// Rounds values one after the other, errors spread over those that follow.
    pub(crate) round_spreading: block::grid::RoundSpreading,
    /// Products of four rows of stored values with one row of x, if the set decodes in
    /// registers; the bits are those of `decode` and `tiles`.
    pub(crate) dot4: Option<Dot4>,
    /// Products of rows with rows.
    pub(crate) tiles: Tiles,
    /// Attention of a few queries over one head's pages.
    pub(crate) attend: fn(&Work<'_>, &mut Vec<f32>),
    /// [`hadamard::turn`]; every set has the same bits.
    pub(crate) hadamard: fn(&mut [f32]),
    /// [`nibbles::four_bits`]; every set has the same bits.
    pub(crate) four_bits: fn(&[f32], &mut [u8; nibbles::GROUP]) -> u32,
    /// Low-rank terms of a few rows.
    pub(crate) low_rank: fn(&low_rank::Work<'_>, &[u8], &mut Vec<f32>),
    /// `gate = silu(gate) · up`.
    pub(crate) silu_mul: fn(&mut [f32], &[f32]),
    /// `gate = gelu_tanh(gate) · up`.
    pub(crate) gelu_mul: fn(&mut [f32], &[f32]),
    /// `x = exp(x − max)`.
    pub(crate) exp_above: fn(&mut [f32], f32),
}

/// The table of tiles from the function of one, which names its sizes `M` and `N`.
macro_rules! tiles {
    ($tile:expr) => {
        tiles!(@rows $tile; 1 2 3 4)
    };
    (@rows $tile:expr; $($m:literal)*) => {
        [$([tiles!(@one $tile, $m, 1), tiles!(@one $tile, $m, 2), tiles!(@one $tile, $m, 3)]),*]
    };
    (@one $tile:expr, $m:literal, $n:literal) => {{
        const M: usize = $m;
        const N: usize = $n;
        $tile
    }};
}

/// For every machine: defines what the others compute.
pub(crate) static PORTABLE: Isa = Isa {
    decode: block::decode,
    fit: block::grid::fit,
    round_spreading: block::grid::round_spreading,
    dot4: None,
    tiles: tiles!(|x, xs, w, ws, k, out| strided_tile::<_, M, N>(
        Portable,
        (x, xs),
        (w, ws),
        k,
        out
    )),
    attend: |w, scratch| crate::attention::work(Pair(Portable), w, scratch),
    hadamard: |x| hadamard::turn(Pair(Portable), x),
    four_bits: nibbles::four_bits,
    low_rank: |w, next, narrow| low_rank::work(Pair(Portable), w, next, narrow),
    silu_mul: |gate, up| crate::elementwise::silu_mul_lanes(Portable, gate, up),
    gelu_mul: |gate, up| crate::elementwise::gelu_mul_lanes(Portable, gate, up),
    exp_above: |x, max| crate::sampling::exp_above_lanes(Portable, x, max),
};

/// The best kernels for this machine.
pub(crate) fn isa() -> &'static Isa {
    static BEST: OnceLock<&'static Isa> = OnceLock::new();
    BEST.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        if let Some(isa) = avx512::isa().or_else(avx2::isa) {
            return isa;
        }
        &PORTABLE
    })
}

/// Every set that this machine has.
#[cfg(test)]
pub(crate) fn all() -> Vec<&'static Isa> {
    let mut all = vec![&PORTABLE];
    #[cfg(target_arch = "x86_64")]
    all.extend(avx2::isa().into_iter().chain(avx512::isa()));
    all
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::*;
    use crate::block::grid::{Grid, Shape};
    use crate::simd::Avx2;

    /// The table, where the machine has the set.
    pub(super) fn isa() -> Option<&'static Isa> {
        Avx2::detect().map(|_| &AVX2)
    }

    // SAFETY, of every block below: the table is only handed out after detection.
    #[allow(clippy::undocumented_unsafe_blocks)] // the line above
    pub(super) static AVX2: Isa = Isa {
        decode: |dtype, bytes, out| unsafe { block::avx2::decode(dtype, bytes, out) },
        fit: |shape, x, importance| unsafe { fit(shape, x, importance) },
        round_spreading: |grid, x, spread, codes, errors| unsafe {
            round_spreading(grid, x, spread, codes, errors)
        },
        dot4: Some(|dtype, rows, x| unsafe { block::avx2::dot4(dtype, rows, x) }),
        tiles: tiles!(|x, xs, w, ws, k, out| unsafe { tile::<M, N>(x, xs, w, ws, k, out) }),
        attend: |w, scratch| unsafe { attend(w, scratch) },
        hadamard: |x| unsafe { hadamard(x) },
        four_bits: |x, codes| unsafe { four_bits(x, codes) },
        low_rank: |w, next, narrow| unsafe { low_rank(w, next, narrow) },
        silu_mul: |gate, up| unsafe { silu_mul(gate, up) },
        gelu_mul: |gate, up| unsafe { gelu_mul(gate, up) },
        exp_above: |x, max| unsafe { exp_above(x, max) },
    };

    #[target_feature(enable = "avx2,fma,f16c")]
    fn fit(shape: Shape, x: &[f32], importance: Option<&[f32]>) -> Grid {
        block::grid::fit(shape, x, importance)
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn round_spreading(
        grid: &Grid,
        x: &mut [f32],
        spread: (&[f32], usize),
        codes: &mut [u8],
        errors: &mut [f32],
    ) {
        block::grid::round_spreading(grid, x, spread, codes, errors);
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn tile<const M: usize, const N: usize>(
        x: &[f32],
        x_stride: usize,
        w: &[f32],
        w_stride: usize,
        k: usize,
        out: &mut [[f32; 3]; 4],
    ) {
        strided_tile::<_, M, N>(Avx2::here(), (x, x_stride), (w, w_stride), k, out);
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn attend(w: &Work<'_>, scratch: &mut Vec<f32>) {
        crate::attention::work(Pair(Avx2::here()), w, scratch);
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn hadamard(x: &mut [f32]) {
        hadamard::turn(Pair(Avx2::here()), x);
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn four_bits(x: &[f32], codes: &mut [u8; nibbles::GROUP]) -> u32 {
        nibbles::four_bits(x, codes)
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn low_rank(w: &low_rank::Work<'_>, next: &[u8], narrow: &mut Vec<f32>) {
        low_rank::work(Pair(Avx2::here()), w, next, narrow);
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn silu_mul(gate: &mut [f32], up: &[f32]) {
        crate::elementwise::silu_mul_lanes(Avx2::here(), gate, up);
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn gelu_mul(gate: &mut [f32], up: &[f32]) {
        crate::elementwise::gelu_mul_lanes(Avx2::here(), gate, up);
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn exp_above(x: &mut [f32], max: f32) {
        crate::sampling::exp_above_lanes(Avx2::here(), x, max);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::*;
    use crate::simd::Avx512;

    /// The table, where the machine has the set: AVX2's, but for attention and low-rank terms.
    pub(super) fn isa() -> Option<&'static Isa> {
        static TABLE: OnceLock<Isa> = OnceLock::new();
        let base = avx2::isa().filter(|_| Avx512::detect().is_some())?;
        Some(TABLE.get_or_init(|| Isa {
            // SAFETY: only made where the set has been detected.
            attend: |w, scratch| unsafe { attend(w, scratch) },
            // SAFETY: as above.
            hadamard: |x| unsafe { hadamard(x) },
            // SAFETY: as above.
            four_bits: |x, codes| unsafe { four_bits(x, codes) },
            // SAFETY: as above.
            low_rank: |w, next, narrow| unsafe { low_rank(w, next, narrow) },
            ..*base
        }))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn attend(w: &Work<'_>, scratch: &mut Vec<f32>) {
        crate::attention::work(Avx512::here(), w, scratch);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn hadamard(x: &mut [f32]) {
        hadamard::turn(Avx512::here(), x);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn four_bits(x: &[f32], codes: &mut [u8; nibbles::GROUP]) -> u32 {
        nibbles::four_bits(x, codes)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn low_rank(w: &low_rank::Work<'_>, next: &[u8], narrow: &mut Vec<f32>) {
        low_rank::work(Avx512::here(), w, next, narrow);
    }
}
