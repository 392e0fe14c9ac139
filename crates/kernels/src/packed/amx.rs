//! AMX: 16 rows of activations by 16 rows of weights are one tile.
//!
//! A tile product sums a block's columns in integers. Its sums are stored and scaled by vector
//! instructions while the next group's products run; those are the limit (40 cycles of vector
//! arithmetic for 32 of tile products in a group of 64 columns).

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::OnceLock;

use super::avx512::{load_f32, scaled, store_f32};
use super::kernels::Kernels;
use super::layout::{GROUP, SLAB, STRIP};
use super::panel::Panel;
use super::quantized::{BLOCK_ROWS, Quantized, RowBlock};

/// The set, where processor and system have it.
pub(super) fn kernels() -> Option<&'static Kernels> {
    static SET: OnceLock<Option<Kernels>> = OnceLock::new();
    SET.get_or_init(|| {
        let base = super::avx512::kernels()?;
        crate::amx::available().then(|| Kernels {
            name: "amx-int8",
            // SAFETY: only reached where the instructions are, by the check above.
            tiles: Some(|p, x, blocks, out| unsafe { tiles(p, x, blocks, out) }),
            ..*base
        })
    })
    .as_ref()
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,f16c,fma")]
fn tiles(p: &Panel, x: &Quantized, blocks: Range<usize>, out: &mut [[f32; STRIP]]) {
    assert!(p.signed, "tiles take signed codes");
    // Rows of weights are columns / 4 of a block; rows of activations hold a block's columns.
    let shape = crate::amx::Shape {
        sums: 16,
        left: (16, p.block as u16),
        right: (p.block as u8 / 4, 64),
    };
    let _tiles = crate::amx::enter(&shape);
    for (block, out) in blocks.zip(out.chunks_exact_mut(BLOCK_ROWS)) {
        let x = x.block(block);
        assert_eq!(x.height, BLOCK_ROWS);
        match (p.block, p.minima.is_empty()) {
            (SLAB, true) => block_products::<SLAB, false>(p, x, out),
            (SLAB, false) => block_products::<SLAB, true>(p, x, out),
            (_, true) => block_products::<16, false>(p, x, out),
            (_, false) => block_products::<16, true>(p, x, out),
        }
    }
}

/// The integer sums of a group: one tile for each of its blocks.
#[repr(C, align(64))]
struct Sums([[[i32; STRIP]; BLOCK_ROWS]; 4]);

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,f16c,fma")]
fn block_products<const BLOCK: usize, const MINIMA: bool>(
    p: &Panel,
    x: RowBlock<'_>,
    out: &mut [[f32; STRIP]],
) {
    let groups = p.groups;
    let first = p.first_group * BLOCK_ROWS;
    let codes = &x.codes[first * GROUP..][..groups * BLOCK_ROWS * GROUP];
    let x_scales = &x.scales.as_chunks::<BLOCK_ROWS>().0[p.first_group..][..groups];
    let x_sums = &x.sums.as_chunks::<4>().0[first..][..groups * BLOCK_ROWS];
    let x_slab_sums = &x.slab_sums.as_chunks::<2>().0[first..][..groups * BLOCK_ROWS];
    let weights = &p.codes[..groups * GROUP / 4];
    let mut sums = [const { Sums([[[0; STRIP]; BLOCK_ROWS]; 4]) }; 2];
    let mut acc = [_mm512_setzero_ps(); BLOCK_ROWS];
    for (acc, out) in acc.iter_mut().zip(out.iter()) {
        *acc = load_f32(out);
    }
    let products = |group: usize, sums: &mut Sums| {
        let a = codes[group * BLOCK_ROWS * GROUP..][..BLOCK_ROWS * GROUP].as_ptr();
        let b = weights[group * GROUP / 4..][..GROUP / 4].as_ptr();
        // SAFETY: the tiles have the shape that `tiles` set; each load and store stays within
        // the group's codes and the sums.
        unsafe { group_products::<BLOCK>(a, b.cast(), sums.0.as_mut_ptr().cast()) }
    };
    products(0, &mut sums[0]);
    for group in 0..groups {
        if group + 1 < groups {
            products(group + 1, &mut sums[(group + 1) % 2]);
        }
        let sums = &sums[group % 2].0;
        let blocks = GROUP / BLOCK;
        let mut s = [_mm512_setzero_ps(); 4];
        for (s, scale) in s.iter_mut().zip(&p.scales[group * blocks..][..blocks]) {
            *s = load_f32(scale);
        }
        let mut least = [_mm512_setzero_ps(); 4];
        if MINIMA {
            for (l, minimum) in least.iter_mut().zip(&p.minima[group * blocks..][..blocks]) {
                *l = load_f32(minimum);
            }
        }
        for m in 0..BLOCK_ROWS {
            let mut t = _mm512_setzero_ps();
            for block in 0..blocks {
                // SAFETY: reads the 16 integers of the array.
                let sum = unsafe { _mm512_loadu_si512(sums[block][m].as_ptr().cast()) };
                t = scaled(_mm512_cvtepi32_ps(sum), s[block], t, block == 0);
                if MINIMA {
                    let cell = group * BLOCK_ROWS + m;
                    let sum = match BLOCK {
                        SLAB => x_slab_sums[cell][block],
                        _ => x_sums[cell][block] as f32,
                    };
                    t = _mm512_fnmadd_ps(least[block], _mm512_set1_ps(sum), t);
                }
            }
            acc[m] = _mm512_fmadd_ps(t, _mm512_set1_ps(x_scales[group][m]), acc[m]);
        }
    }
    for (acc, out) in acc.into_iter().zip(out) {
        store_f32(out, acc);
    }
}

/// Multiplies the blocks of one group: `a` is `[16][64]` activations, `b` `[16][64]` codes,
/// `c` takes a tile of sums for each block.
///
/// # Safety
/// The tiles are configured as [`tiles`] does, and the three arrays are there.
#[inline(always)]
unsafe fn group_products<const BLOCK: usize>(a: *const i8, b: *const u8, c: *mut i32) {
    if BLOCK == SLAB {
        // SAFETY: by the caller's promise.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tileloadd tmm4, [{a} + {row}]",
                "tileloadd tmm6, [{b} + {row}]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a} + {row} + 32]",
                "tileloadd tmm7, [{b} + {row} + 512]",
                "tdpbssd tmm1, tmm5, tmm7",
                "tilestored [{c} + {row}], tmm0",
                "tilestored [{c} + {row} + 1024], tmm1",
                a = in(reg) a, b = in(reg) b, c = in(reg) c, row = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        }
    } else {
        // SAFETY: by the caller's promise.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tileloadd tmm4, [{a} + {row}]",
                "tileloadd tmm6, [{b} + {row}]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a} + {row} + 16]",
                "tileloadd tmm7, [{b} + {row} + 256]",
                "tdpbssd tmm1, tmm5, tmm7",
                "tileloadd tmm4, [{a} + {row} + 32]",
                "tileloadd tmm6, [{b} + {row} + 512]",
                "tdpbssd tmm2, tmm4, tmm6",
                "tileloadd tmm5, [{a} + {row} + 48]",
                "tileloadd tmm7, [{b} + {row} + 768]",
                "tdpbssd tmm3, tmm5, tmm7",
                "tilestored [{c} + {row}], tmm0",
                "tilestored [{c} + {row} + 1024], tmm1",
                "tilestored [{c} + {row} + 2048], tmm2",
                "tilestored [{c} + {row} + 3072], tmm3",
                a = in(reg) a, b = in(reg) b, c = in(reg) c, row = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        }
    }
}
