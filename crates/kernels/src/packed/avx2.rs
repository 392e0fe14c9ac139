//! AVX2: a vector of codes is two halves of 8 rows. Products of bytes are summed in pairs to
//! 16 bits (`vpmaddubsw`), which codes of up to 7 bits cannot overflow; wider codes go in as
//! magnitudes, their signs moved to the activations.

use std::arch::x86_64::*;

use super::kernels::Kernels;
use super::layout::{Format, GROUP, PAIR, SLAB, STRIP, with_format};
use super::panel::Panel;
use super::quantized::{GroupOut, RowBlock, quantize_groups};
use crate::DType;

/// The set, where the machine has it.
pub(super) fn kernels() -> Option<&'static Kernels> {
    let there = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    there.then_some(&AVX2)
}

// SAFETY, of every block below: the table is only handed out after detection.
#[allow(clippy::undocumented_unsafe_blocks)] // the line above
static AVX2: Kernels = Kernels {
    name: "avx2",
    pack: |dtype, stored, row_bytes, strip| unsafe {
        with_format!(dtype, pack(stored, row_bytes, strip));
    },
    quantize: |x, bits, outs| unsafe { quantize(x, bits, outs) },
    unpack: |dtype, strip, signed, out| unsafe {
        with_format!(dtype, unpack(strip, signed, out));
    },
    panel: |p, x, out| unsafe { panel(p, x, out) },
    direct: Some(direct_of),
    serial: false,
    tiles: None,
    halves: None,
    rounded: &super::rounded::PORTABLE,
};

/// See [`Kernels::direct`]; of the table above.
pub(super) fn direct_of(dtype: DType, strip: &[u8], x: RowBlock<'_>, out: &mut [[f32; STRIP]]) {
    // SAFETY: as above.
    unsafe { with_format!(dtype, direct(strip, x, out)) }
}

macro_rules! avx2 {
    ($(#[$meta:meta])* fn $($rest:tt)*) => {
        $(#[$meta])*
        #[target_feature(enable = "avx2,f16c,fma")]
        fn $($rest)*
    };
}

avx2! {
fn pack<F: Format>(stored: &[u8], row_bytes: usize, strip: &mut [u8]) {
    super::pack_strip::<F>(stored, row_bytes, strip);
}
}

avx2! {
fn quantize(x: &[[f32; GROUP]], bits: usize, outs: &mut [GroupOut<'_>]) {
    quantize_groups(x, bits, outs);
}
}

avx2! {
#[inline]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: reads the 32 bytes of the array.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}
}

avx2! {
#[inline]
fn load_f32(values: &[f32]) -> __m256 {
    let values = &values[..8];
    // SAFETY: reads the 8 values of the slice.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}
}

avx2! {
#[inline]
fn store_f32(values: &mut [f32], v: __m256) {
    let values = &mut values[..8];
    // SAFETY: writes the 8 values of the slice.
    unsafe { _mm256_storeu_ps(values.as_mut_ptr(), v) }
}
}

avx2! {
/// Adds a plane of `WIDTH` bits to the codes that it is part of, above the `below` lowest bits,
/// all of them doubled or not. Planes lie in the order of their bits, so that `below` is also
/// where this one starts.
#[inline]
fn plane<const WIDTH: usize, const DOUBLED: bool>(
    vectors: &[[u8; 32]],
    half: usize,
    below: usize,
    out: &mut [__m256i; 8],
) {
    let vectors = &vectors[2 * below..];
    let below = below + usize::from(DOUBLED);
    let mask = _mm256_set1_epi8((((1 << WIDTH) - 1) << below) as i8);
    for group in 0..8 {
        let v = load(&vectors[2 * (group % WIDTH) + half]);
        let at = group / WIDTH * WIDTH;
        // The field, brought to where it stands in the code.
        let v = if at >= below {
            _mm256_srl_epi16(v, _mm_cvtsi32_si128((at - below) as i32))
        } else {
            _mm256_sll_epi16(v, _mm_cvtsi32_si128((below - at) as i32))
        };
        out[group] = _mm256_or_si256(out[group], _mm256_and_si256(v, mask));
    }
}
}

avx2! {
/// The planes of a type of fewer than 8 bits.
#[inline]
fn some_planes<F: Format, const DOUBLED: bool>(
    vectors: &[[u8; 32]],
    half: usize,
    out: &mut [__m256i; 8],
) {
    // Spelled out, lest a loop over widths stays a loop.
    if F::BITS & 4 != 0 {
        plane::<4, DOUBLED>(vectors, half, 0, out);
    }
    if F::BITS & 2 != 0 {
        plane::<2, DOUBLED>(vectors, half, F::BITS & 4, out);
    }
    if F::BITS & 1 != 0 {
        plane::<1, DOUBLED>(vectors, half, F::BITS & 6, out);
    }
}
}

avx2! {
/// The eight vectors of codes of one half of a slab's rows.
#[inline]
fn codes<F: Format>(slab: &[u8], half: usize) -> [__m256i; 8] {
    let vectors = slab.as_chunks::<32>().0;
    let mut out = [_mm256_setzero_si256(); 8];
    if F::BITS == 8 {
        for (g, out) in out.iter_mut().enumerate() {
            *out = load(&vectors[2 * g + half]);
        }
        return out;
    }
    match F::DOUBLED {
        true => some_planes::<F, true>(vectors, half, &mut out),
        false => some_planes::<F, false>(vectors, half, &mut out),
    }
    if F::CODEBOOK {
        let table = crate::block::IQ4.map(|v| (v as u8 ^ 0x80) as i8);
        // SAFETY: reads the 16 bytes of the array.
        let table = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast()) });
        for out in &mut out {
            *out = _mm256_shuffle_epi8(table, *out);
        }
    }
    out
}
}

avx2! {
/// The scales (or minima) of a block for one half of the rows.
#[inline]
fn scales<F: Format>(unit: &[u8], start: usize, block: usize, half: usize, outer: __m256) -> __m256 {
    if F::NESTED {
        let bytes = &unit[start + block * STRIP + 8 * half..][..8];
        // SAFETY: reads the 8 bytes of the slice.
        let bytes = unsafe { _mm_loadl_epi64(bytes.as_ptr().cast()) };
        _mm256_mul_ps(outer, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)))
    } else if F::CENTRED {
        let scale = halves(&unit[F::SCALES + 2 * (block * STRIP + 8 * half)..]);
        match start == F::SCALES {
            true => _mm256_add_ps(scale, scale),
            false => _mm256_sub_ps(_mm256_set1_ps(-0.0), scale),
        }
    } else {
        halves(&unit[start + 2 * (block * STRIP + 8 * half)..])
    }
}
}

avx2! {
#[inline]
fn halves(bytes: &[u8]) -> __m256 {
    let bytes = &bytes[..16];
    // SAFETY: reads the 16 bytes of the slice.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}
}

avx2! {
/// What multiplies nested scales, and nested minima.
#[inline]
fn outer<F: Format>(unit: &[u8], half: usize) -> [__m256; 2] {
    if F::NESTED {
        [0, 1].map(|which| F::OUTER + 2 * (which * STRIP + 8 * half)).map(|at| halves(&unit[at..]))
    } else {
        [_mm256_setzero_ps(); 2]
    }
}
}

avx2! {
fn unpack<F: Format>(strip: &[u8], signed: bool, panel: &mut Panel) {
    panel.shape::<F>(strip.len() / F::UNIT_BYTES, signed);
    let zero = _mm256_set1_epi8(if signed { F::ZERO as u8 as i8 } else { 0 });
    let blocks = F::UNIT / F::BLOCK;
    for (u, unit) in strip.chunks_exact(F::UNIT_BYTES).enumerate() {
        for half in 0..2 {
            for slab in 0..F::UNIT / SLAB {
                let bytes = &unit[slab * F::SLAB_BYTES..][..F::SLAB_BYTES];
                let out = &mut panel.codes[(u * F::UNIT + slab * SLAB) / 4..][..8];
                for (v, out) in codes::<F>(bytes, half).into_iter().zip(out) {
                    let out = &mut out.0[32 * half..][..32];
                    // SAFETY: writes the 32 bytes of the slice.
                    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_sub_epi8(v, zero)) };
                }
            }
            let [scale, minimum] = outer::<F>(unit, half);
            for block in 0..blocks {
                let at = u * blocks + block;
                let s = scales::<F>(unit, F::SCALES, block, half, scale);
                store_f32(&mut panel.scales[at][8 * half..], s);
                if F::MINIMA {
                    let s = scales::<F>(unit, F::MINIMUMS, block, half, minimum);
                    store_f32(&mut panel.minima[at][8 * half..], s);
                }
            }
        }
    }
}
}

avx2! {
/// Adds the products of four columns. `NARROW`: codes of at most 7 bits, zero not taken away;
/// else codes as i8.
#[inline]
fn dot<const NARROW: bool>(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
    let pairs = if NARROW {
        _mm256_maddubs_epi16(w, x)
    } else {
        // |w| ≤ 128 and |x| ≤ 127: two products are at most 32,512.
        _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
    };
    _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}
}

avx2! {
/// A block's sums start here, for `M` rows: at what the codes' zero takes away.
#[inline]
fn start<const M: usize>(zero: i32, sums: [i32; M]) -> [__m256i; M] {
    let mut acc = [_mm256_setzero_si256(); M];
    if zero != 0 {
        for m in 0..M {
            acc[m] = _mm256_set1_epi32(-zero * sums[m]);
        }
    }
    acc
}
}

avx2! {
/// Adds the products of some codes of eight rows of weights, of columns from `column` on.
#[inline]
fn add_products<const M: usize, const NARROW: bool>(
    acc: &mut [__m256i; M],
    codes: &[__m256i],
    x: &[&[i8; GROUP]; M],
    column: usize,
) {
    for (g, &w) in codes.iter().enumerate() {
        for m in 0..M {
            let four = x[m].as_chunks::<4>().0[column / 4 + g].map(|x| x as u8);
            acc[m] = dot::<NARROW>(acc[m], w, _mm256_set1_epi32(i32::from_le_bytes(four)));
        }
    }
}
}

avx2! {
#[inline]
fn as_floats<const M: usize>(sums: [__m256i; M]) -> [__m256; M] {
    let mut out = [_mm256_setzero_ps(); M];
    for m in 0..M {
        out[m] = _mm256_cvtepi32_ps(sums[m]);
    }
    out
}
}

avx2! {
fn direct<F: Format>(strip: &[u8], x: RowBlock<'_>, out: &mut [[f32; STRIP]]) {
    let mut row = 0;
    while row < x.height {
        let out = &mut out[row..];
        row += match x.height - row {
            2.. => direct_rows::<F, 2>(strip, x, row, out),
            _ => direct_rows::<F, 1>(strip, x, row, out),
        };
    }
}
}

avx2! {
fn direct_rows<F: Format, const M: usize>(
    strip: &[u8],
    x: RowBlock<'_>,
    row: usize,
    out: &mut [[f32; STRIP]],
) -> usize {
    if F::BLOCK == PAIR {
        return direct_pairs::<F, M>(strip, x, row, out);
    }
    let x_codes = x.codes;
    let (x_sums, x_slab_sums) = (x.sums.as_chunks::<4>().0, x.slab_sums.as_chunks::<2>().0);
    let mut acc = [[_mm256_setzero_ps(); M]; 2];
    for (u, unit) in strip.chunks_exact(F::UNIT_BYTES).enumerate() {
        for (half, acc) in acc.iter_mut().enumerate() {
            let [scale, minimum] = outer::<F>(unit, half);
            for g in 0..F::UNIT / GROUP {
                let cell = (u * (F::UNIT / GROUP) + g) * x.height + row;
                let mut xs = [&x_codes[0].0; M];
                xs.iter_mut().zip(&x_codes[cell..]).for_each(|(to, x)| *to = &x.0);
                let mut t = [_mm256_setzero_ps(); M];
                for part in 0..GROUP / F::BLOCK {
                    let sums = part_sums::<M>(&x_sums[cell..], part, F::BLOCK);
                    let mut products = start::<M>(if F::NARROW { F::ZERO } else { 0 }, sums);
                    for within in (0..F::BLOCK).step_by(SLAB) {
                        let column = part * F::BLOCK + within;
                        let slab = 2 * g + column / SLAB;
                        let bytes = &unit[slab * F::SLAB_BYTES..][..F::SLAB_BYTES];
                        let mut w = codes::<F>(bytes, half);
                        if !F::NARROW {
                            for w in &mut w {
                                *w = _mm256_sub_epi8(*w, _mm256_set1_epi8(F::ZERO as u8 as i8));
                            }
                        }
                        let start = column % SLAB / 4;
                        let w = &w[start..start + F::BLOCK.min(SLAB) / 4];
                        match F::NARROW {
                            true => add_products::<M, true>(&mut products, w, &xs, column),
                            false => add_products::<M, false>(&mut products, w, &xs, column),
                        }
                    }
                    let products = as_floats(products);
                    let block = g * (GROUP / F::BLOCK) + part;
                    let s = scales::<F>(unit, F::SCALES, block, half, scale);
                    for m in 0..M {
                        t[m] = _mm256_fmadd_ps(products[m], s, t[m]);
                    }
                    if F::MINIMA {
                        let least = scales::<F>(unit, F::MINIMUMS, block, half, minimum);
                        for m in 0..M {
                            let sum = match F::BLOCK {
                                SLAB => x_slab_sums[cell + m][part],
                                _ => sums[m] as f32,
                            };
                            t[m] = _mm256_fnmadd_ps(least, _mm256_set1_ps(sum), t[m]);
                        }
                    }
                }
                for m in 0..M {
                    acc[m] = _mm256_fmadd_ps(t[m], _mm256_set1_ps(x.scales[cell + m]), acc[m]);
                }
            }
        }
    }
    for m in 0..M {
        store_f32(&mut out[m][..8], acc[0][m]);
        store_f32(&mut out[m][8..], acc[1][m]);
    }
    M
}
}

avx2! {
/// The same of types whose blocks are two groups.
fn direct_pairs<F: Format, const M: usize>(
    strip: &[u8],
    x: RowBlock<'_>,
    row: usize,
    out: &mut [[f32; STRIP]],
) -> usize {
    for half in 0..2 {
        let mut acc = [_mm256_setzero_ps(); M];
        for (u, unit) in strip.chunks_exact(F::UNIT_BYTES).enumerate() {
            for pair in 0..F::UNIT / PAIR {
                let block = u * (F::UNIT / PAIR) + pair;
                let pairs = Pairs { x, row, block };
                let mut products = start::<M>(if F::NARROW { F::ZERO } else { 0 }, pairs.sums());
                for slab in 0..PAIR / SLAB {
                    let at = (pair * PAIR / SLAB + slab) * F::SLAB_BYTES;
                    let mut w = codes::<F>(&unit[at..][..F::SLAB_BYTES], half);
                    if !F::NARROW {
                        for w in &mut w {
                            *w = _mm256_sub_epi8(*w, _mm256_set1_epi8(F::ZERO as u8 as i8));
                        }
                    }
                    let (xs, column) = (pairs.codes::<M>(slab / 2), slab % 2 * SLAB);
                    match F::NARROW {
                        true => add_products::<M, true>(&mut products, &w, &xs, column),
                        false => add_products::<M, false>(&mut products, &w, &xs, column),
                    }
                }
                let none = _mm256_setzero_ps();
                let s = scales::<F>(unit, F::SCALES, pair, half, none);
                let mut least = none;
                if F::MINIMA {
                    least = scales::<F>(unit, F::MINIMUMS, pair, half, none);
                }
                scale_pairs::<M>(products, s, F::MINIMA.then_some(least), pairs, &mut acc);
            }
        }
        for m in 0..M {
            store_f32(&mut out[m][8 * half..], acc[m]);
        }
    }
    M
}
}

/// Rows of activations from `row` on, of a block of weights of two groups.
#[derive(Clone, Copy)]
struct Pairs<'a> {
    x: RowBlock<'a>,
    row: usize,
    block: usize,
}

impl<'a> Pairs<'a> {
    /// The cell of the `m`-th row, of the first group or the second.
    #[inline(always)]
    fn cell(&self, group: usize, m: usize) -> usize {
        (2 * self.block + group) * self.x.height + self.row + m
    }

    /// Codes of one of the groups.
    #[inline(always)]
    fn codes<const M: usize>(&self, group: usize) -> [&'a [i8; GROUP]; M] {
        let mut xs = [&self.x.codes[0].0; M];
        for (m, xs) in xs.iter_mut().enumerate() {
            *xs = &self.x.codes[self.cell(group, m)].0;
        }
        xs
    }

    /// Sums of both groups' codes.
    #[inline(always)]
    fn sums<const M: usize>(&self) -> [i32; M] {
        let sums = self.x.sums.as_chunks::<4>().0;
        let mut all = [0; M];
        for (m, all) in all.iter_mut().enumerate() {
            let of = |group: usize| sums[self.cell(group, m)].iter().sum::<i32>();
            *all = of(0) + of(1);
        }
        all
    }
}

avx2! {
/// Scales the sums of a block of two groups and adds them.
#[inline]
fn scale_pairs<const M: usize>(
    products: [__m256i; M],
    s: __m256,
    least: Option<__m256>,
    pairs: Pairs<'_>,
    acc: &mut [__m256; M],
) {
    let sums = pairs.sums::<M>();
    for m in 0..M {
        let mut t = _mm256_mul_ps(_mm256_cvtepi32_ps(products[m]), s);
        if let Some(least) = least {
            t = _mm256_fnmadd_ps(least, _mm256_set1_ps(sums[m] as f32), t);
        }
        let scale = _mm256_set1_ps(pairs.x.scales[pairs.cell(0, m)]);
        acc[m] = _mm256_fmadd_ps(t, scale, acc[m]);
    }
}
}

/// Sums of a block's activations, for `M` rows.
#[inline(always)]
fn part_sums<const M: usize>(sums: &[[i32; 4]], part: usize, block: usize) -> [i32; M] {
    std::array::from_fn(|m| match block {
        SLAB => sums[m][2 * part] + sums[m][2 * part + 1],
        _ => sums[m][part],
    })
}

avx2! {
fn panel(p: &Panel, x: RowBlock<'_>, out: &mut [[f32; STRIP]]) {
    let mut row = 0;
    while row < x.height {
        let out = &mut out[row..];
        row += match (x.height - row, p.narrow && !p.signed) {
            (4.., true) => panel_rows::<4, true>(p, x, row, out),
            (4.., false) => panel_rows::<4, false>(p, x, row, out),
            (_, true) => panel_rows::<1, true>(p, x, row, out),
            (_, false) => panel_rows::<1, false>(p, x, row, out),
        };
    }
}
}

avx2! {
fn panel_rows<const M: usize, const NARROW: bool>(
    p: &Panel,
    x: RowBlock<'_>,
    row: usize,
    out: &mut [[f32; STRIP]],
) -> usize {
    let x_codes = x.codes;
    let (x_sums, x_slab_sums) = (x.sums.as_chunks::<4>().0, x.slab_sums.as_chunks::<2>().0);
    if p.block == PAIR {
        return panel_pairs::<M, NARROW>(p, x, row, out);
    }
    let zero = _mm256_set1_epi8(p.zero as u8 as i8);
    for half in 0..2 {
        let mut acc = [_mm256_setzero_ps(); M];
        for g in 0..p.groups {
            let cell = g * x.height + row;
            let mut xs = [&x_codes[0].0; M];
            xs.iter_mut().zip(&x_codes[cell..]).for_each(|(to, x)| *to = &x.0);
            let mut t = [_mm256_setzero_ps(); M];
            let parts = GROUP / p.block;
            for part in 0..parts {
                let block = g * parts + part;
                let vectors = &p.codes[block * p.block / 4..][..p.block / 4];
                let sums = part_sums::<M>(&x_sums[cell..], part, p.block);
                let mut products = start::<M>(if NARROW { p.zero } else { 0 }, sums);
                for (i, vectors) in vectors.chunks(8).enumerate() {
                    let mut w = [_mm256_setzero_si256(); 8];
                    for (w, codes) in w.iter_mut().zip(vectors) {
                        *w = load(&codes.0.as_chunks::<32>().0[half]);
                        if !NARROW {
                            *w = _mm256_sub_epi8(*w, zero);
                        }
                    }
                    let w = &w[..vectors.len()];
                    add_products::<M, NARROW>(&mut products, w, &xs, part * p.block + i * SLAB);
                }
                let products = as_floats(products);
                let s = load_f32(&p.scales[block][8 * half..]);
                for m in 0..M {
                    t[m] = _mm256_fmadd_ps(products[m], s, t[m]);
                }
                if let Some(least) = p.minima.get(block) {
                    let least = load_f32(&least[8 * half..]);
                    for m in 0..M {
                        let sum = match p.block {
                            SLAB => x_slab_sums[cell + m][part],
                            _ => sums[m] as f32,
                        };
                        t[m] = _mm256_fnmadd_ps(least, _mm256_set1_ps(sum), t[m]);
                    }
                }
            }
            for m in 0..M {
                acc[m] = _mm256_fmadd_ps(t[m], _mm256_set1_ps(x.scales[cell + m]), acc[m]);
            }
        }
        for m in 0..M {
            store_f32(&mut out[m][8 * half..], acc[m]);
        }
    }
    M
}
}

avx2! {
/// The same of types whose blocks are two groups.
fn panel_pairs<const M: usize, const NARROW: bool>(
    p: &Panel,
    x: RowBlock<'_>,
    row: usize,
    out: &mut [[f32; STRIP]],
) -> usize {
    let zero = _mm256_set1_epi8(p.zero as u8 as i8);
    for half in 0..2 {
        let mut acc = [_mm256_setzero_ps(); M];
        for (block, vectors) in p.codes.chunks_exact(PAIR / 4).enumerate() {
            let pairs = Pairs { x, row, block };
            let mut products = start::<M>(if NARROW { p.zero } else { 0 }, pairs.sums());
            for (slab, vectors) in vectors.chunks_exact(SLAB / 4).enumerate() {
                let mut w = [_mm256_setzero_si256(); 8];
                for (w, codes) in w.iter_mut().zip(vectors) {
                    *w = load(&codes.0.as_chunks::<32>().0[half]);
                    if !NARROW {
                        *w = _mm256_sub_epi8(*w, zero);
                    }
                }
                let (xs, column) = (pairs.codes::<M>(slab / 2), slab % 2 * SLAB);
                add_products::<M, NARROW>(&mut products, &w, &xs, column);
            }
            let s = load_f32(&p.scales[block][8 * half..]);
            let mut least = None;
            if let Some(minima) = p.minima.get(block) {
                least = Some(load_f32(&minima[8 * half..]));
            }
            scale_pairs::<M>(products, s, least, pairs, &mut acc);
        }
        for m in 0..M {
            store_f32(&mut out[m][8 * half..], acc[m]);
        }
    }
    M
}
}
