//! The kernels of each instruction set, and the choice among them: made once, at run time.

use std::fmt;
use std::ops::Range;

use crate::Activation;

use super::Quant;
use super::depthwise::{self, Line};
use super::finish::{self, Finish, Rows};
use super::gemm::{self, Products, Sums};
use super::lanes::Portable;
use super::values::{self, Pair};

/// What a thread holds while it multiplies.
#[cfg(target_arch = "x86_64")]
pub(super) type Entered = Option<sedge_kernels::amx::Entered>;
#[cfg(not(target_arch = "x86_64"))]
pub(super) type Entered = Option<()>;

type PairRow = unsafe fn(Pair, [&[u8]; 2], [Quant; 3], &mut [u8]);

/// What a set of instructions does. All have the same results.
pub(super) struct Set {
    pub(super) name: &'static str,
    /// Rows of inputs are read in runs of so many bytes: past the last input, weights are 0.
    pub(super) run: usize,
    /// What multiplies sums of few products faster, and up to how many.
    pub(super) few: Option<(usize, &'static Set)>,
    /// Makes ready for products of so many rows.
    pub(super) enter: fn(usize) -> Entered,
    /// # Safety
    /// As [`gemm::portable`].
    pub(super) products: unsafe fn(&Products<'_>, &mut Sums),
    /// # Safety
    /// As [`depthwise::portable`].
    pub(super) line: unsafe fn(&Line<'_>, Range<usize>, &mut Sums),
    /// Whether it has the depthwise kernels that finish in registers.
    #[cfg(target_arch = "x86_64")]
    pub(super) quads: bool,
    /// # Safety
    /// As [`finish::bytes`].
    pub(super) bytes: unsafe fn(&Rows<'_>, Finish, *mut u8, usize),
    /// # Safety
    /// As [`finish::reals`].
    pub(super) reals: unsafe fn(&Rows<'_>, Activation, *mut f32, usize),
    /// # Safety
    /// The machine has the set; so of the two below.
    pub(super) quantize: unsafe fn(&[f32], Quant, &mut [u8]),
    pub(super) dequantize: unsafe fn(&[u8], Quant, &mut [f32]),
    pub(super) pair: PairRow,
}

impl Set {
    /// The set for sums of so many products.
    pub(super) fn for_products(&'static self, products: usize) -> &'static Set {
        match self.few {
            Some((most, few)) if products <= most => few,
            _ => self,
        }
    }
}

impl fmt::Debug for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// For every machine.
static PORTABLE: Set = Set {
    name: "portable",
    run: 4,
    few: None,
    enter: |_| None,
    products: gemm::portable,
    line: depthwise::portable,
    #[cfg(target_arch = "x86_64")]
    quads: false,
    bytes: finish::bytes::<Portable>,
    reals: finish::reals::<Portable>,
    quantize: values::quantize_row::<Portable>,
    dequantize: values::dequantize_row::<Portable>,
    pair: values::pair_row::<Portable>,
};

/// Every set that this machine has, the best last.
pub(super) fn all() -> impl DoubleEndedIterator<Item = &'static Set> {
    #[cfg(not(target_arch = "x86_64"))]
    let sets = [Some(&PORTABLE)];
    #[cfg(target_arch = "x86_64")]
    let sets = [Some(&PORTABLE), x86::avx2(), x86::avx512(), x86::amx()];
    sets.into_iter().flatten()
}

/// The best set of this machine.
pub(super) fn best() -> &'static Set {
    all().next_back().unwrap_or(&PORTABLE)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::int8::lanes::Avx512;

    pub(super) fn avx2() -> Option<&'static Set> {
        let there = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        there.then_some(&AVX2)
    }

    pub(super) fn avx512() -> Option<&'static Set> {
        let there = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && avx2().is_some();
        there.then_some(&AVX512)
    }

    pub(super) fn amx() -> Option<&'static Set> {
        (avx512().is_some() && sedge_kernels::amx::available()).then_some(&AMX)
    }

    /// The portable loops as vectors of 256 bits.
    static AVX2: Set = Set {
        name: "avx2",
        run: 4,
        few: None,
        enter: |_| None,
        products: avx2_products,
        line: avx2_line,
        quads: false,
        bytes: avx2_bytes,
        reals: avx2_reals,
        quantize: avx2_quantize,
        dequantize: avx2_dequantize,
        pair: avx2_pair,
    };

    static AVX512: Set = Set {
        name: "avx512",
        run: 4,
        few: None,
        enter: |_| None,
        products: gemm::avx512::products,
        line: avx512_line,
        quads: true,
        bytes: finish::avx512::bytes,
        reals: avx512_reals,
        quantize: avx512_quantize,
        dequantize: avx512_dequantize,
        pair: avx512_pair,
    };

    static AMX: Set = Set {
        name: "amx",
        run: gemm::amx::COLUMNS,
        // As measured: tiles are the faster from some 64 inputs on, whatever the pixels.
        few: Some((48, &AVX512)),
        enter: gemm::amx::enter,
        products: gemm::amx::products,
        ..AVX512
    };

    /// Functions of the portable loops, compiled for a set.
    macro_rules! compiled {
        ($($name:ident, $features:literal, $f:path, ($($arg:ident: $ty:ty),*);)*) => {$(
            #[target_feature(enable = $features)]
            unsafe fn $name($($arg: $ty),*) {
                // SAFETY: the caller's promise is this function's.
                unsafe { $f($($arg),*) }
            }
        )*};
    }

    compiled! {
        avx2_products, "avx2,fma", gemm::portable, (p: &Products<'_>, sums: &mut Sums);
        avx2_line, "avx2,fma", depthwise::portable, (line: &Line<'_>, columns: Range<usize>, sums: &mut Sums);
        avx2_bytes, "avx2,fma", finish::bytes::<Portable>, (rows: &Rows<'_>, finish: Finish, out: *mut u8, stride: usize);
        avx2_reals, "avx2,fma", finish::reals::<Portable>, (rows: &Rows<'_>, activation: Activation, out: *mut f32, stride: usize);
        avx512_line, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma", depthwise::portable, (line: &Line<'_>, columns: Range<usize>, sums: &mut Sums);
        avx512_reals, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma", finish::reals::<Avx512>, (rows: &Rows<'_>, activation: Activation, out: *mut f32, stride: usize);
        avx2_quantize, "avx2,fma", values::quantize_row::<Portable>, (x: &[f32], quant: Quant, out: &mut [u8]);
        avx2_dequantize, "avx2,fma", values::dequantize_row::<Portable>, (x: &[u8], quant: Quant, out: &mut [f32]);
        avx2_pair, "avx2,fma", values::pair_row::<Portable>, (pair: Pair, rows: [&[u8]; 2], quants: [Quant; 3], out: &mut [u8]);
        avx512_quantize, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma", values::quantize_row::<Avx512>, (x: &[f32], quant: Quant, out: &mut [u8]);
        avx512_dequantize, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma", values::dequantize_row::<Avx512>, (x: &[u8], quant: Quant, out: &mut [f32]);
        avx512_pair, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma", values::pair_row::<Avx512>, (pair: Pair, rows: [&[u8]; 2], quants: [Quant; 3], out: &mut [u8]);
    }
}
