//! AMX: 16 rows of activations by 16 rows of weights are one tile.
//!
//! A tile product sums a block's columns in integers. Its sums are stored and scaled by vector
//! instructions while the next group's products run; those are the limit (40 cycles of vector
//! arithmetic for 32 of tile products in a group of 64 columns). Blocks of 128 columns need 24
//! for 32; loading tiles is then the limit.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::OnceLock;

use crate::amx::{Entered, Shape};

use super::avx512::{load_f32, scaled, store_f32};
use super::kernels::{Kernels, Tiles};
use super::layout::{GROUP, PAIR, SLAB, STRIP};
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
                multiply: |_, p, x, groups, out| {
                    assert!(p.signed, "tiles take signed codes");
                    assert_eq!((x.height, out.len()), (BLOCK_ROWS, BLOCK_ROWS));
                    // SAFETY: `enter` has set the tiles' shape, or its value would not be here,
                    // and the instructions are there, by the check above.
                    unsafe {
                        match (p.block, p.minima.is_empty()) {
                            (PAIR, true) => pair_products::<false>(p, x, groups, out),
                            (PAIR, false) => pair_products::<true>(p, x, groups, out),
                            (SLAB, true) => block_products::<SLAB, false>(p, x, groups, out),
                            (SLAB, false) => block_products::<SLAB, true>(p, x, groups, out),
                            (_, true) => block_products::<16, false>(p, x, groups, out),
                            (_, false) => block_products::<16, true>(p, x, groups, out),
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
    // A block of two groups is two products.
    let columns = p.block.min(GROUP);
    crate::amx::enter(&Shape {
        sums: BLOCK_ROWS as u8,
        left: (BLOCK_ROWS as u8, columns as u16),
        right: (columns as u8 / 4, 64),
    })
}

/// The integer sums of two blocks. Two of these are 4 KiB: a load of one never looks, by the
/// low twelve bits of its address, like a store to the other.
#[repr(C, align(64))]
struct Sums([[[i32; STRIP]; BLOCK_ROWS]; 2]);

/// What sums of groups from `start` on begin at: those before.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,f16c,fma")]
#[inline]
fn begin(start: usize, out: &[[f32; STRIP]]) -> [__m512; BLOCK_ROWS] {
    let mut acc = [_mm512_setzero_ps(); BLOCK_ROWS];
    if start > 0 {
        for (acc, out) in acc.iter_mut().zip(out) {
            *acc = load_f32(out);
        }
    }
    acc
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,f16c,fma")]
fn block_products<const BLOCK: usize, const MINIMA: bool>(
    p: &Panel,
    x: RowBlock<'_>,
    groups: Range<usize>,
    out: &mut [[f32; STRIP]],
) {
    let (start, groups) = (groups.start, groups.len());
    let codes = &x.codes[start * BLOCK_ROWS..][..groups * BLOCK_ROWS];
    let x_scales = &x.scales.as_chunks::<BLOCK_ROWS>().0[start..][..groups];
    let x_sums = &x.sums.as_chunks::<4>().0[start * BLOCK_ROWS..][..groups * BLOCK_ROWS];
    let x_slab_sums = &x.slab_sums.as_chunks::<2>().0[start * BLOCK_ROWS..][..groups * BLOCK_ROWS];
    let weights = &p.codes[start * GROUP / 4..][..groups * GROUP / 4];
    let first = start * GROUP / BLOCK;
    let steps = GROUP / BLOCK / 2;
    let mut acc = begin(start, out);
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
            let at = first + 2 * step;
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

/// Types whose blocks are two groups: two tile products for each scaling.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,f16c,fma")]
fn pair_products<const MINIMA: bool>(
    p: &Panel,
    x: RowBlock<'_>,
    groups: Range<usize>,
    out: &mut [[f32; STRIP]],
) {
    let (first, blocks) = (groups.start / 2, groups.len() / 2);
    let codes = &x.codes[2 * first * BLOCK_ROWS..][..2 * blocks * BLOCK_ROWS];
    let x_scales = &x.scales.as_chunks::<BLOCK_ROWS>().0[2 * first..][..2 * blocks];
    let x_slab_sums = &x.slab_sums.as_chunks::<2>().0[2 * first * BLOCK_ROWS..];
    let weights = &p.codes[first * PAIR / 4..][..blocks * PAIR / 4];
    let mut acc = begin(first, out);
    let mut sums = Sums([[[0; STRIP]; BLOCK_ROWS]; 2]);
    // As in `block_products`, tiles are a block ahead of what is scaled.
    let multiply = |block: usize| {
        let a = codes[2 * block * BLOCK_ROWS..][..2 * BLOCK_ROWS].as_ptr();
        let b = weights[block * PAIR / 4..][..PAIR / 4].as_ptr();
        // SAFETY: the tiles have the shape that `enter` set; each load stays within two groups.
        unsafe {
            match block % 2 {
                0 => multiply_first(a.cast(), b.cast()),
                _ => multiply_second(a.cast(), b.cast()),
            }
        }
    };
    if blocks > 0 {
        multiply(0);
        // SAFETY: the tiles are configured and the sums have their size.
        unsafe { store_first(&mut sums) };
    }
    for block in 0..blocks {
        let more = block + 1 < blocks;
        if more {
            multiply(block + 1);
        }
        let s = load_f32(&p.scales[first + block]);
        let here = &sums.0[block % 2];
        for m in 0..BLOCK_ROWS {
            // SAFETY: reads the 16 integers of the array.
            let sum = unsafe { _mm512_loadu_si512(here[m].as_ptr().cast()) };
            let mut t = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), s);
            if MINIMA {
                let of = |group: usize| &x_slab_sums[(2 * block + group) * BLOCK_ROWS + m];
                let ([a, b], [c, d]) = (of(0), of(1));
                let least = load_f32(&p.minima[first + block]);
                t = _mm512_fnmadd_ps(least, _mm512_set1_ps(a + b + c + d), t);
            }
            acc[m] = _mm512_fmadd_ps(t, _mm512_set1_ps(x_scales[2 * block][m]), acc[m]);
        }
        if more {
            // SAFETY: as above.
            unsafe {
                match block % 2 {
                    0 => store_second(&mut sums),
                    _ => store_first(&mut sums),
                }
            }
        }
    }
    for (acc, out) in acc.into_iter().zip(out) {
        store_f32(out, acc);
    }
}

/// Functions that multiply a block of two groups into one of the tiles of sums, and that store
/// it into its half of the sums. `a` are activations, 64 bytes from row to row, and `b` codes, a
/// KiB of each a group.
macro_rules! pair_tile {
    ($multiply:ident, $store:ident, $sum:tt, $left:tt, $right:tt, $half:literal) => {
        /// # Safety
        /// The tiles are configured as [`enter`] does, and the operands are there.
        #[inline(always)]
        unsafe fn $multiply(a: *const i8, b: *const u8) {
            // SAFETY: by the caller's promise.
            unsafe {
                asm!(
                    concat!("tilezero ", $sum),
                    concat!("tileloadd ", $left, ", [{a} + {row}]"),
                    concat!("tileloadd ", $right, ", [{b} + {row}]"),
                    concat!("tdpbssd ", $sum, ", ", $left, ", ", $right),
                    concat!("tileloadd ", $left, ", [{a} + {row} + 1024]"),
                    concat!("tileloadd ", $right, ", [{b} + {row} + 1024]"),
                    concat!("tdpbssd ", $sum, ", ", $left, ", ", $right),
                    a = in(reg) a, b = in(reg) b, row = in(reg) 64usize,
                    out($sum) _, out($left) _, out($right) _,
                    options(nostack, preserves_flags),
                );
            }
        }

        /// # Safety
        /// The tile is configured, of 16 rows of 64 bytes.
        #[inline(always)]
        unsafe fn $store(sums: &mut Sums) {
            // SAFETY: by the caller's promise; a tile fills half of the sums.
            unsafe {
                asm!(
                    concat!("tilestored [{c} + {row}], ", $sum),
                    c = in(reg) sums.0[$half].as_mut_ptr(), row = in(reg) 64usize,
                    options(nostack, preserves_flags),
                );
            }
        }
    };
}

pair_tile!(multiply_first, store_first, "tmm0", "tmm4", "tmm6", 0);
pair_tile!(multiply_second, store_second, "tmm1", "tmm5", "tmm7", 1);

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
