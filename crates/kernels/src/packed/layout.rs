//! How each stored type lies when it is packed: a table of facts, as types for the kernels.
//!
//! A **strip** is 16 rows of a matrix. Along the columns it is cut into **units** of 256 columns
//! (types whose scales are nested, and bipolar ones) or 64, and a unit into **slabs** of 32
//! columns. A slab's codes
//! lie in bit planes of 4, 2 and 1 bits, or 8, each plane in whole vectors of 64 bytes: for each
//! of the 16 rows, four bytes of four columns that follow each other. So four columns of all
//! rows are one vector for an integer product, and no product ever sums across lanes.
//! A unit's scales follow its codes:
//!
//! ```text
//! direct   f16 scale [unit/block][16 rows]         f16 minimum alike, where the type has them
//! nested   i8 scale [256/block][16 rows]           i8 minimum alike
//!          f16 scale of scales [16 rows]           f16 scale of minima, or 32 bytes of nothing
//! ```
//!
//! The value of code `c` is `scale · (c − zero) − minimum`, with `scale` and `minimum` the
//! products of their two parts where they are nested (exact in f32: 11 bits times 8).
//!
//! Bipolar types are `scale · (2c − (2ᵖ − 1))`: their codes are doubled when they are unpacked,
//! which costs nothing, since fields are moved to their places anyway. Only those of 8 bits do
//! not fit when doubled; `b8` is `2·scale · (c − 128) − (−scale)`, its minima not stored.

use crate::DType;

/// Rows of a strip.
pub(crate) const STRIP: usize = 16;
/// Columns of a slab.
pub(crate) const SLAB: usize = 32;
/// Columns that share a scale of activations. Units are whole groups.
pub(crate) const GROUP: usize = 64;
/// Columns of a block of the bipolar types: two groups of activations, which share a scale where
/// such weights read them.
pub(crate) const PAIR: usize = 2 * GROUP;

/// One packed form. Constants, so that a kernel is compiled for each.
pub(crate) trait Format: 'static {
    /// The stored type.
    const DTYPE: DType;
    /// Bits of a code.
    const BITS: usize;
    /// The code whose value is 0.
    const ZERO: i32;
    /// Codes are indices into the sixteen values of IQ4; `ZERO` is added to these.
    const CODEBOOK: bool = false;
    /// Codes are doubled; `ZERO` is of doubled ones.
    const DOUBLED: bool = false;
    /// Columns that share a scale: 16, 32 or 128.
    const BLOCK: usize = SLAB;
    /// Scales are small integers times one f16 for 256 columns.
    const NESTED: bool = false;
    /// The type has minima.
    const MINIMA: bool = false;
    /// Scales are twice those that are stored, and minima the same with the other sign, not
    /// stored.
    const CENTRED: bool = false;

    /// Every code is at most 127.
    const NARROW: bool = Self::BITS + (Self::DOUBLED as usize) < 8 && !Self::CODEBOOK;
    /// Columns of a unit. Of whole cache lines, with its scales.
    const UNIT: usize = if Self::NESTED || Self::BLOCK == PAIR {
        256
    } else {
        GROUP
    };
    /// Bytes of a slab's codes.
    const SLAB_BYTES: usize = 64 * Self::BITS;
    /// Where a unit's scales start.
    const SCALES: usize = Self::UNIT / SLAB * Self::SLAB_BYTES;
    /// Bytes of a unit's scales without minima, or of its minima.
    const SCALE_BYTES: usize = Self::UNIT / Self::BLOCK * STRIP * if Self::NESTED { 1 } else { 2 };
    /// Where its minima start.
    const MINIMUMS: usize = Self::SCALES + Self::SCALE_BYTES;
    /// Where the scale of its scales starts.
    const OUTER: usize = Self::MINIMUMS
        + if Self::MINIMA && !Self::CENTRED {
            Self::SCALE_BYTES
        } else {
            0
        };
    /// Bytes of a unit: whole cache lines.
    const UNIT_BYTES: usize = Self::OUTER + if Self::NESTED { 64 } else { 0 };
}

/// Defines the formats, and a macro that calls a generic function with that of a [`DType`].
macro_rules! formats {
    ($($name:ident { $($constant:ident: $kind:ty = $value:expr),* $(,)? })*) => {
        $(
            #[derive(Debug)]
            pub(crate) struct $name;
            impl Format for $name {
                const DTYPE: DType = DType::$name;
                $(const $constant: $kind = $value;)*
            }
        )*

        /// What [`Packed`](super::Packed) must know of a format.
        pub(crate) fn facts(dtype: DType) -> Option<Facts> {
            match dtype {
                $(DType::$name => Some(Facts::of::<$name>()),)*
                DType::F16 | DType::BF16 => Some(Facts {
                    unit: super::rounded::TILE,
                    unit_bytes: super::halves::TILE_BYTES,
                }),
                DType::F32 => None,
            }
        }
    };
}

formats! {
    Q8_0 { BITS: usize = 8, ZERO: i32 = 128 }
    Q4_0 { BITS: usize = 4, ZERO: i32 = 8 }
    Q4_1 { BITS: usize = 4, ZERO: i32 = 0, MINIMA: bool = true }
    Q5_0 { BITS: usize = 5, ZERO: i32 = 16 }
    Q5_1 { BITS: usize = 5, ZERO: i32 = 0, MINIMA: bool = true }
    Q2K { BITS: usize = 2, ZERO: i32 = 0, BLOCK: usize = 16, NESTED: bool = true, MINIMA: bool = true }
    Q3K { BITS: usize = 3, ZERO: i32 = 4, BLOCK: usize = 16, NESTED: bool = true }
    Q4K { BITS: usize = 4, ZERO: i32 = 0, NESTED: bool = true, MINIMA: bool = true }
    Q5K { BITS: usize = 5, ZERO: i32 = 0, NESTED: bool = true, MINIMA: bool = true }
    Q6K { BITS: usize = 6, ZERO: i32 = 32, BLOCK: usize = 16, NESTED: bool = true }
    Iq4Nl { BITS: usize = 4, ZERO: i32 = 128, CODEBOOK: bool = true }
    Iq4Xs { BITS: usize = 4, ZERO: i32 = 128, CODEBOOK: bool = true, NESTED: bool = true }
    B1 { BITS: usize = 1, ZERO: i32 = 1, DOUBLED: bool = true, BLOCK: usize = PAIR }
    B2 { BITS: usize = 2, ZERO: i32 = 3, DOUBLED: bool = true, BLOCK: usize = PAIR }
    B3 { BITS: usize = 3, ZERO: i32 = 7, DOUBLED: bool = true, BLOCK: usize = PAIR }
    B4 { BITS: usize = 4, ZERO: i32 = 15, DOUBLED: bool = true, BLOCK: usize = PAIR }
    B5 { BITS: usize = 5, ZERO: i32 = 31, DOUBLED: bool = true, BLOCK: usize = PAIR }
    B6 { BITS: usize = 6, ZERO: i32 = 63, DOUBLED: bool = true, BLOCK: usize = PAIR }
    B7 { BITS: usize = 7, ZERO: i32 = 127, DOUBLED: bool = true, BLOCK: usize = PAIR }
    B8 { BITS: usize = 8, ZERO: i32 = 128, BLOCK: usize = PAIR, MINIMA: bool = true, CENTRED: bool = true }
}

/// The constants of a format as a value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    pub(crate) unit: usize,
    pub(crate) unit_bytes: usize,
}

impl Facts {
    fn of<F: Format>() -> Facts {
        const { assert!(F::UNIT_BYTES.is_multiple_of(64)) };
        Facts {
            unit: F::UNIT,
            unit_bytes: F::UNIT_BYTES,
        }
    }
}

/// Calls `$function::<F>(arguments)` with the format of a packed type.
macro_rules! with_format {
    ($dtype:expr, $function:ident $(::<$($generic:tt),+>)? ($($argument:expr),* $(,)?)) => {{
        use $crate::packed::layout::*;
        use $crate::DType as D;
        match $dtype {
            D::Q8_0 => $function::<Q8_0 $($(, $generic)+)?>($($argument),*),
            D::Q4_0 => $function::<Q4_0 $($(, $generic)+)?>($($argument),*),
            D::Q4_1 => $function::<Q4_1 $($(, $generic)+)?>($($argument),*),
            D::Q5_0 => $function::<Q5_0 $($(, $generic)+)?>($($argument),*),
            D::Q5_1 => $function::<Q5_1 $($(, $generic)+)?>($($argument),*),
            D::Q2K => $function::<Q2K $($(, $generic)+)?>($($argument),*),
            D::Q3K => $function::<Q3K $($(, $generic)+)?>($($argument),*),
            D::Q4K => $function::<Q4K $($(, $generic)+)?>($($argument),*),
            D::Q5K => $function::<Q5K $($(, $generic)+)?>($($argument),*),
            D::Q6K => $function::<Q6K $($(, $generic)+)?>($($argument),*),
            D::Iq4Nl => $function::<Iq4Nl $($(, $generic)+)?>($($argument),*),
            D::Iq4Xs => $function::<Iq4Xs $($(, $generic)+)?>($($argument),*),
            D::B1 => $function::<B1 $($(, $generic)+)?>($($argument),*),
            D::B2 => $function::<B2 $($(, $generic)+)?>($($argument),*),
            D::B3 => $function::<B3 $($(, $generic)+)?>($($argument),*),
            D::B4 => $function::<B4 $($(, $generic)+)?>($($argument),*),
            D::B5 => $function::<B5 $($(, $generic)+)?>($($argument),*),
            D::B6 => $function::<B6 $($(, $generic)+)?>($($argument),*),
            D::B7 => $function::<B7 $($(, $generic)+)?>($($argument),*),
            D::B8 => $function::<B8 $($(, $generic)+)?>($($argument),*),
            D::F32 | D::F16 | D::BF16 => unreachable!("plain types have no format"),
        }
    }};
}
pub(crate) use with_format;
