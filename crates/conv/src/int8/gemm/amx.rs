//! AMX: a step multiplies 64 columns of up to 16 rows by 16 outputs.
//! The sums of a panel are four tiles, which stay in their registers for all columns.

use std::arch::asm;

use sedge_kernels::amx;

use super::super::sets::Entered;
use super::{Products, Sums};

/// Columns of a step.
pub(in super::super) const COLUMNS: usize = 64;

/// Gives tiles their shape: so many rows.
pub(in super::super) fn enter(rows: usize) -> Entered {
    let rows = rows as u8;
    Some(amx::enter(&amx::Shape {
        sums: rows,
        left: (rows, COLUMNS as u16),
        right: (16, 64),
    }))
}

/// # Safety
/// As [`super::portable`]; [`enter`] has given tiles `p`'s rows, and `p.quads` are whole steps.
pub(in super::super) unsafe fn products(p: &Products<'_>, sums: &mut Sums) {
    // SAFETY: by the caller's promise.
    unsafe {
        match p.strips() {
            1 => one(p, sums),
            2 => two(p, sums),
            3 => three(p, sums),
            _ => four(p, sums),
        }
    }
}

/// The function of so many strips: each has a tile of sums, and takes turns with the two tiles
/// of weights. `$at` is where strips are, in steps of a KiB, and in strips' bytes.
macro_rules! products {
    ($name:ident, $strips:literal: $($sum:tt, $right:tt, $strip:literal);*) => {
        /// # Safety
        /// As [`products`], of so many strips.
        #[inline]
        unsafe fn $name(p: &Products<'_>, sums: &mut Sums) {
            let bytes = 64 * p.quads;
            assert!(p.weights.len() == $strips * p.quads && p.quads % 16 == 0);
            let row = 64usize;
            // SAFETY: tiles are configured, so they have `p.rows` rows, by the caller's promise;
            // loads of columns stay within rows, those of weights within strips, by the
            // assertion. A start is 16 integers, read for each row: it is 0 from one to the next.
            unsafe {
                $(asm!(
                    concat!("tileloadd ", $sum, ", [{start} + {zero}]"),
                    start = in(reg) p.start[16 * $strip..][..16].as_ptr(), zero = in(reg) 0usize,
                    out($sum) _,
                    options(nostack, preserves_flags, readonly),
                );)*
                for step in 0..p.quads / 16 {
                    asm!(
                        "tileloadd tmm4, [{x} + {stride}]",
                        x = in(reg) p.x.add(COLUMNS * step), stride = in(reg) p.stride,
                        out("tmm4") _,
                        options(nostack, preserves_flags, readonly),
                    );
                    let weights = p.weights.as_ptr().add(16 * step).cast::<u8>();
                    $(asm!(
                        concat!("tileloadd ", $right, ", [{w} + {row}]"),
                        concat!("tdpbusd ", $sum, ", tmm4, ", $right),
                        w = in(reg) weights.add($strip * bytes), row = in(reg) row,
                        out($right) _,
                        options(nostack, preserves_flags, readonly),
                    );)*
                }
                $(asm!(
                    concat!("tilestored [{out} + {row}], ", $sum),
                    out = in(reg) sums.0[$strip].as_mut_ptr(), row = in(reg) row,
                    options(nostack, preserves_flags),
                );)*
            }
        }
    };
}

products!(one, 1: "tmm0", "tmm6", 0);
products!(two, 2: "tmm0", "tmm6", 0; "tmm1", "tmm7", 1);
products!(three, 3: "tmm0", "tmm6", 0; "tmm1", "tmm7", 1; "tmm2", "tmm6", 2);
products!(four, 4: "tmm0", "tmm6", 0; "tmm1", "tmm7", 1; "tmm2", "tmm6", 2; "tmm3", "tmm7", 3);
