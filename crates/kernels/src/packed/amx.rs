//! AMX: 16 rows of activations by 16 rows of weights are one tile.
//!
//! A tile product sums a block's columns in integers. Its sums are stored and scaled by vector
//! instructions while the next group's products run; those are the limit (40 cycles of vector
//! arithmetic for 32 of tile products in a group of 64 columns). Where a block is a group, the
//! tile's sums begin at a number of which they are the lowest bits as f32, which saves making
//! floats of them: 16 cycles of vector arithmetic for 16 of tile products.

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

use crate::amx::{Entered, Shape};

use super::avx512::{load_f32, scaled, store_f32};
use super::kernels::{Kernels, Tiles};
use super::layout::{GROUP, SLAB, STRIP};
use super::panel::Panel;
use super::quantized::{BLOCK_ROWS, RowBlock};

/// The set, where processor and system have it.
pub(super) fn kernels() -> Option<&'static Kernels> {
    static SET: OnceLock<Option<Kernels>> = OnceLock::new();
    SET.get_or_init(|| {
        let base = super::avx512::kernels()?;
        let tiles = crate::amx::available();
        tiles.then_some(Kernels {
            name: "amx-int8",
            tiles: Some(Tiles {
                enter,
                multiply: |_, p, x, out| {
                    assert!(p.signed, "tiles take signed codes");
                    assert_eq!((x.height, out.len()), (BLOCK_ROWS, BLOCK_ROWS));
                    // SAFETY: `enter` has set the tiles' shape, or its value would not be here,
                    // and the instructions are there, by the check above.
                    unsafe {
                        match (p.block, p.minima.is_empty()) {
                            (GROUP, true) => group_products::<false>(p, x, out),
                            (GROUP, false) => group_products::<true>(p, x, out),
                            (SLAB, true) => block_products::<SLAB, false>(p, x, out),
                            (SLAB, false) => block_products::<SLAB, true>(p, x, out),
                            (_, true) => block_products::<16, false>(p, x, out),
                            (_, false) => block_products::<16, true>(p, x, out),
                        }
                    }
                },
            }),
            rounded: super::amx_rounded::kernels().unwrap_or(base.rounded),
            ..*base
        })
    })
    .as_ref()
}

/// Rows of weights are a block's columns, by fours; rows of activations hold them all.
fn enter(p: &Panel) -> Entered {
    crate::amx::enter(&Shape {
        sums: BLOCK_ROWS as u8,
        left: (BLOCK_ROWS as u8, p.block as u16),
        right: (p.block as u8 / 4, 64),
    })
}

/// The integer sums of two blocks. Two of these are 4 KiB: a load of one never looks, by the
/// low twelve bits of its address, like a store to the other.
#[repr(C, align(64))]
struct Sums([[[i32; STRIP]; BLOCK_ROWS]; 2]);

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,f16c,fma")]
fn block_products<const BLOCK: usize, const MINIMA: bool>(
    p: &Panel,
    x: RowBlock<'_>,
    out: &mut [[f32; STRIP]],
) {
    let groups = p.groups;
    let codes = &x.codes[..groups * BLOCK_ROWS];
    let x_scales = &x.scales.as_chunks::<BLOCK_ROWS>().0[..groups];
    let x_sums = &x.sums.as_chunks::<4>().0[..groups * BLOCK_ROWS];
    let x_slab_sums = &x.slab_sums.as_chunks::<2>().0[..groups * BLOCK_ROWS];
    let weights = &p.codes[..groups * GROUP / 4];
    let steps = GROUP / BLOCK / 2;
    let mut acc = [_mm512_setzero_ps(); BLOCK_ROWS];
    let mut sums = Sums([[[0; STRIP]; BLOCK_ROWS]; 2]);
    // A step is two blocks. The tiles hold the next step's sums while those of the last, which
    // are stored, are scaled.
    let multiply = |step: usize| {
        let group = step / steps;
        let a = codes[group * BLOCK_ROWS..][..BLOCK_ROWS]
            .as_ptr()
            .cast::<i8>();
        let b = weights[group * GROUP / 4..][..GROUP / 4]
            .as_ptr()
            .cast::<u8>();
        let half = step % steps;
        // SAFETY: the tiles have the shape that `enter` set; each load stays within the group.
        unsafe { multiply::<BLOCK>(a.add(half * 32), b.add(half * 512)) }
    };
    multiply(0);
    // SAFETY: the tiles are configured and the sums have their size.
    unsafe { store(&mut sums) };
    for group in 0..groups {
        let mut t = [_mm512_setzero_ps(); BLOCK_ROWS];
        for half in 0..steps {
            let step = group * steps + half;
            let more = step + 1 < groups * steps;
            if more {
                multiply(step + 1);
            }
            let at = 2 * step;
            let s = [load_f32(&p.scales[at]), load_f32(&p.scales[at + 1])];
            let mut least = [_mm512_setzero_ps(); 2];
            if MINIMA {
                least = [load_f32(&p.minima[at]), load_f32(&p.minima[at + 1])];
            }
            for m in 0..BLOCK_ROWS {
                for block in 0..2 {
                    // SAFETY: reads the 16 integers of the array.
                    let sum = unsafe { _mm512_loadu_si512(sums.0[block][m].as_ptr().cast()) };
                    let first = half == 0 && block == 0;
                    t[m] = scaled(_mm512_cvtepi32_ps(sum), s[block], t[m], first);
                    if MINIMA {
                        let cell = group * BLOCK_ROWS + m;
                        let sum = match BLOCK {
                            SLAB => x_slab_sums[cell][block],
                            _ => x_sums[cell][2 * half + block] as f32,
                        };
                        t[m] = _mm512_fnmadd_ps(least[block], _mm512_set1_ps(sum), t[m]);
                    }
                }
                if half + 1 == steps {
                    let scale = _mm512_set1_ps(x_scales[group][m]);
                    acc[m] = _mm512_fmadd_ps(t[m], scale, acc[m]);
                }
            }
            if more {
                // SAFETY: as above.
                unsafe { store(&mut sums) };
            }
        }
    }
    for (acc, out) in acc.into_iter().zip(out) {
        store_f32(out, acc);
    }
}

/// Added to an integer of less than 2²² in magnitude, its bits are those of the f32 that is
/// this much more.
const FLOAT: f32 = 12_582_912.0;

/// Where sums of blocks begin that are groups: of at most 64 · 128 · 127.
static BEGIN: Sums = Sums([[[FLOAT.to_bits() as i32; STRIP]; BLOCK_ROWS]; 2]);

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,f16c,fma")]
fn group_products<const MINIMA: bool>(p: &Panel, x: RowBlock<'_>, out: &mut [[f32; STRIP]]) {
    let groups = p.groups;
    assert!(groups.is_multiple_of(2), "units are of two groups");
    let codes = &x.codes[..groups * BLOCK_ROWS];
    let x_scales = &x.scales.as_chunks::<BLOCK_ROWS>().0[..groups];
    let x_slab_sums = &x.slab_sums.as_chunks::<2>().0[..groups * BLOCK_ROWS];
    let weights = &p.codes[..groups * GROUP / 4];
    let mut acc = [_mm512_setzero_ps(); BLOCK_ROWS];
    let mut sums = Sums([[[0; STRIP]; BLOCK_ROWS]; 2]);
    // A step is two groups; as in `block_products`, the tiles are a step ahead.
    let multiply = |step: usize| {
        let a = codes[2 * step * BLOCK_ROWS..][..2 * BLOCK_ROWS].as_ptr();
        let b = weights[2 * step * GROUP / 4..][..2 * GROUP / 4].as_ptr();
        // SAFETY: the tiles have the shape that `enter` set; each load stays within two groups.
        unsafe { multiply_groups(a.cast(), b.cast()) }
    };
    if groups > 0 {
        multiply(0);
        // SAFETY: the tiles are configured and the sums have their size.
        unsafe { store(&mut sums) };
    }
    for step in 0..groups / 2 {
        let more = 2 * step + 2 < groups;
        if more {
            multiply(step + 1);
        }
        for i in 0..2 {
            let group = 2 * step + i;
            let s = load_f32(&p.scales[group]);
            // Exact: a scale has 11 bits, and this number 2.
            let begin = _mm512_mul_ps(s, _mm512_set1_ps(-FLOAT));
            for m in 0..BLOCK_ROWS {
                // SAFETY: reads the 16 integers of the array.
                let sum = unsafe { _mm512_loadu_ps(sums.0[i][m].as_ptr().cast()) };
                // The product of sum and scale, rounded once.
                let mut t = _mm512_fmadd_ps(sum, s, begin);
                if MINIMA {
                    let [a, b] = x_slab_sums[group * BLOCK_ROWS + m];
                    let least = load_f32(&p.minima[group]);
                    t = _mm512_fnmadd_ps(least, _mm512_set1_ps(a + b), t);
                }
                acc[m] = _mm512_fmadd_ps(t, _mm512_set1_ps(x_scales[group][m]), acc[m]);
            }
        }
        if more {
            // SAFETY: as above.
            unsafe { store(&mut sums) };
        }
    }
    for (acc, out) in acc.into_iter().zip(out) {
        store_f32(out, acc);
    }
}

/// Multiplies two groups into tiles 0 and 1, which begin at [`BEGIN`]: `a` are activations, 64
/// bytes from row to row, and `b` codes, a KiB of each a group.
///
/// # Safety
/// The tiles are configured as [`enter`] does, and the operands are there.
#[inline(always)]
unsafe fn multiply_groups(a: *const i8, b: *const u8) {
    // SAFETY: by the caller's promise.
    unsafe {
        asm!(
            "tileloadd tmm0, [{c} + {row}]",
            "tileloadd tmm1, [{c} + {row} + 1024]",
            "tileloadd tmm4, [{a} + {row}]",
            "tileloadd tmm6, [{b} + {row}]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{a} + {row} + 1024]",
            "tileloadd tmm7, [{b} + {row} + 1024]",
            "tdpbssd tmm1, tmm5, tmm7",
            a = in(reg) a, b = in(reg) b, c = in(reg) BEGIN.0.as_ptr(), row = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags),
        );
    }
}

/// Multiplies two blocks into tiles 0 and 1: `a` are activations, 64 bytes from row to row,
/// `b` codes, 64 bytes from four columns to the next four.
///
/// # Safety
/// The tiles are configured as [`enter`] does, and the operands are there.
#[inline(always)]
unsafe fn multiply<const BLOCK: usize>(a: *const i8, b: *const u8) {
    // SAFETY: by the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tileloadd tmm4, [{a} + {row}]",
            "tileloadd tmm6, [{b} + {row}]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{a} + {row} + {block}]",
            "tileloadd tmm7, [{b} + {row} + 16 * {block}]",
            "tdpbssd tmm1, tmm5, tmm7",
            a = in(reg) a, b = in(reg) b, row = in(reg) 64usize, block = const BLOCK,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags),
        );
    }
}

/// Stores tiles 0 and 1.
///
/// # Safety
/// They are configured, of 16 rows of 64 bytes.
#[inline(always)]
unsafe fn store(sums: &mut Sums) {
    // SAFETY: by the caller's promise; two tiles fill the sums.
    unsafe {
        asm!(
            "tilestored [{c} + {row}], tmm0",
            "tilestored [{c} + {row} + 1024], tmm1",
            c = in(reg) sums.0.as_mut_ptr(), row = in(reg) 64usize,
            options(nostack, preserves_flags),
        );
    }
}
