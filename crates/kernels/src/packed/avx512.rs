//! AVX-512 with VNNI: four columns of 16 rows are one `vpdpbusd`.

use std::arch::x86_64::*;

use crate::DType;

use super::kernels::Kernels;
use super::layout::{Format, GROUP, PAIR, SLAB, STRIP, with_format};
use super::panel::{Codes, Panel};
use super::quantized::{BIPOLAR_BITS, GroupOut, RowBlock, factors, quantize_groups, top};

/// The set, where the machine has it.
pub(super) fn kernels() -> Option<&'static Kernels> {
    let there = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("fma");
    there.then_some(&AVX512)
}

// SAFETY, of every block below: the table is only handed out after detection.
#[allow(clippy::undocumented_unsafe_blocks)] // the line above
pub(super) static AVX512: Kernels = Kernels {
    name: "avx512-vnni",
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
    halves: Some(|dtype, strip, x, out| unsafe { sixteen_bits(dtype, strip, x, out) }),
    rounded: &super::rounded::PORTABLE,
};

/// See [`Kernels::direct`]; of the table above.
pub(super) fn direct_of(dtype: DType, strip: &[u8], x: RowBlock<'_>, out: &mut [[f32; STRIP]]) {
    // SAFETY: as above.
    unsafe { with_format!(dtype, direct(strip, x, out)) }
}

macro_rules! avx512 {
    ($(#[$meta:meta])* $vis:vis fn $($rest:tt)*) => {
        $(#[$meta])*
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,f16c,fma")]
        $vis fn $($rest)*
    };
}

avx512! {
fn pack<F: Format>(stored: &[u8], row_bytes: usize, strip: &mut [u8]) {
    super::pack_strip::<F>(stored, row_bytes, strip);
}
}

avx512! {
/// [`quantize_groups`], four vectors at a time.
fn quantize(x: &[[f32; GROUP]], bits: usize, outs: &mut [GroupOut<'_>]) {
    if bits <= BIPOLAR_BITS {
        return quantize_groups(x, bits, outs);
    }
    // The largest magnitude as an integer: so ordered, what is not finite is above all else.
    let mut largest = _mm512_setzero_si512();
    for x in x.as_flattened().as_chunks::<16>().0 {
        largest = _mm512_max_epi32(largest, _mm512_castps_si512(_mm512_abs_ps(load_f32(x))));
    }
    let largest = f32::from_bits(_mm512_reduce_max_epi32(largest) as u32);
    let factors = factors(largest, top(bits));
    let inverse = _mm512_set1_ps(factors.inverse);
    for (x, out) in x.iter().zip(outs) {
        *out.scale = factors.scale;
        if !factors.scale.is_finite() {
            out.codes.fill(0);
            out.sums.fill(0);
            out.slab_sums.fill(0.0);
            continue;
        }
        let codes = out.codes.as_chunks_mut::<16>().0;
        for (i, (x, codes)) in x.as_chunks::<16>().0.iter().zip(codes).enumerate() {
            // Rounds to nearest, ties to even.
            let whole = _mm512_cvtps_epi32(_mm512_mul_ps(load_f32(x), inverse));
            out.sums[i] = _mm512_reduce_add_epi32(whole);
            // SAFETY: writes the 16 bytes of the array.
            unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(whole)) };
        }
        for (slab, sums) in out.slab_sums.iter_mut().zip(out.sums.as_chunks::<2>().0) {
            *slab = (sums[0] + sums[1]) as f32;
        }
    }
}
}

avx512! {
#[inline]
pub(super) fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: reads the 64 bytes of the array.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}
}

avx512! {
#[inline]
pub(super) fn load_f32(values: &[f32; STRIP]) -> __m512 {
    // SAFETY: reads the 16 values of the array.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}
}

avx512! {
#[inline]
pub(super) fn store_f32(values: &mut [f32; STRIP], v: __m512) {
    // SAFETY: writes the 16 values of the array.
    unsafe { _mm512_storeu_ps(values.as_mut_ptr(), v) }
}
}

avx512! {
/// Adds a plane of `WIDTH` bits to the codes that it is part of, above the `below` lowest bits.
#[inline]
fn plane<const WIDTH: usize>(vectors: &[[u8; 64]], below: usize, out: &mut [__m512i; 8]) {
    let mask = _mm512_set1_epi8((((1 << WIDTH) - 1) << below) as i8);
    let mut loaded = [_mm512_setzero_si512(); WIDTH];
    for v in 0..WIDTH {
        loaded[v] = load(&vectors[v]);
    }
    for group in 0..8 {
        let (v, at) = (loaded[group % WIDTH], group / WIDTH * WIDTH);
        // The field, brought to where it stands in the code.
        let v = if at >= below {
            _mm512_srlv_epi16(v, _mm512_set1_epi16((at - below) as i16))
        } else {
            _mm512_sllv_epi16(v, _mm512_set1_epi16((below - at) as i16))
        };
        // out | v & mask
        out[group] = _mm512_ternarylogic_epi32::<0xf8>(out[group], v, mask);
    }
}
}

avx512! {
/// The eight vectors of a slab's codes.
#[inline]
pub(super) fn codes<F: Format>(slab: &[u8]) -> [__m512i; 8] {
    let vectors = slab.as_chunks::<64>().0;
    let mut out = [_mm512_setzero_si512(); 8];
    if F::BITS == 8 {
        for (out, v) in out.iter_mut().zip(vectors) {
            *out = load(v);
        }
        return out;
    }
    // Spelled out, lest a loop over widths stays a loop.
    let doubled = usize::from(F::DOUBLED);
    if F::BITS & 4 != 0 {
        plane::<4>(&vectors[..4], doubled, &mut out);
    }
    if F::BITS & 2 != 0 {
        plane::<2>(&vectors[F::BITS & 4..][..2], doubled + (F::BITS & 4), &mut out);
    }
    if F::BITS & 1 != 0 {
        plane::<1>(&vectors[F::BITS & 6..][..1], doubled + (F::BITS & 6), &mut out);
    }
    if F::CODEBOOK {
        let table = crate::block::IQ4.map(|v| (v as u8 ^ 0x80) as i8);
        // SAFETY: reads the 16 bytes of the array.
        let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
        let table = _mm512_broadcast_i32x4(table);
        for out in &mut out {
            *out = _mm512_shuffle_epi8(table, *out);
        }
    }
    out
}
}

avx512! {
/// The scales (or minima) of a block, from where they start in the unit.
#[inline]
pub(super) fn scales<F: Format>(unit: &[u8], start: usize, block: usize, outer: __m512) -> __m512 {
    if F::NESTED {
        let bytes = &unit[start + block * STRIP..][..STRIP];
        // SAFETY: reads the 16 bytes of the slice.
        let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
        _mm512_mul_ps(outer, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)))
    } else if F::CENTRED {
        let scale = halves(&unit[F::SCALES + block * STRIP * 2..]);
        match start == F::SCALES {
            true => _mm512_add_ps(scale, scale),
            false => _mm512_sub_ps(_mm512_set1_ps(-0.0), scale),
        }
    } else {
        halves(&unit[start + block * STRIP * 2..])
    }
}
}

avx512! {
#[inline]
fn halves(bytes: &[u8]) -> __m512 {
    let bytes = &bytes[..2 * STRIP];
    // SAFETY: reads the 32 bytes of the slice.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
}
}

avx512! {
/// What multiplies nested scales, and nested minima.
#[inline]
pub(super) fn outer<F: Format>(unit: &[u8]) -> [__m512; 2] {
    if F::NESTED {
        [halves(&unit[F::OUTER..]), halves(&unit[F::OUTER + 2 * STRIP..])]
    } else {
        [_mm512_setzero_ps(); 2]
    }
}
}

avx512! {
fn unpack<F: Format>(strip: &[u8], signed: bool, panel: &mut Panel) {
    panel.shape::<F>(strip.len() / F::UNIT_BYTES, signed);
    let zero = _mm512_set1_epi8(if signed { F::ZERO as u8 as i8 } else { 0 });
    let units = strip.chunks_exact(F::UNIT_BYTES);
    let slabs = panel.codes.as_chunks_mut::<8>().0;
    for (unit, slabs) in units.zip(slabs.chunks_exact_mut(F::UNIT / SLAB)) {
        for (bytes, out) in unit.chunks_exact(F::SLAB_BYTES).zip(slabs) {
            for (v, out) in codes::<F>(bytes).into_iter().zip(out) {
                // SAFETY: writes the 64 bytes of the vector, which is aligned.
                unsafe { _mm512_store_si512(out.0.as_mut_ptr().cast(), _mm512_sub_epi8(v, zero)) };
            }
        }
    }
    let units = strip.chunks_exact(F::UNIT_BYTES);
    let blocks = F::UNIT / F::BLOCK;
    for (unit, out) in units.clone().zip(panel.scales.chunks_exact_mut(blocks)) {
        let [scale, _] = outer::<F>(unit);
        for (block, out) in out.iter_mut().enumerate() {
            store_f32(out, scales::<F>(unit, F::SCALES, block, scale));
        }
    }
    if F::MINIMA {
        for (unit, out) in units.zip(panel.minima.chunks_exact_mut(blocks)) {
            let [_, minimum] = outer::<F>(unit);
            for (block, out) in out.iter_mut().enumerate() {
                store_f32(out, scales::<F>(unit, F::MINIMUMS, block, minimum));
            }
        }
    }
}
}

avx512! {
/// See [`super::halves::multiply`].
fn sixteen_bits(dtype: DType, strip: &[u8], x: &[f32], out: &mut [[f32; STRIP]]) {
    let columns = strip.len() / (2 * STRIP);
    assert_eq!(x.len(), columns * out.len());
    let mut row = 0;
    while row < out.len() {
        let x = &x[row * columns..];
        let out = &mut out[row..];
        row += match (dtype, out.len()) {
            (DType::F16, 8..) => sixteen_bits_rows::<true, 8>(strip, x, columns, out),
            (DType::F16, 4..) => sixteen_bits_rows::<true, 4>(strip, x, columns, out),
            (DType::F16, 2 | 3) => sixteen_bits_rows::<true, 2>(strip, x, columns, out),
            (DType::F16, _) => sixteen_bits_rows::<true, 1>(strip, x, columns, out),
            (_, 8..) => sixteen_bits_rows::<false, 8>(strip, x, columns, out),
            (_, 4..) => sixteen_bits_rows::<false, 4>(strip, x, columns, out),
            (_, 2 | 3) => sixteen_bits_rows::<false, 2>(strip, x, columns, out),
            (_, _) => sixteen_bits_rows::<false, 1>(strip, x, columns, out),
        };
    }
}
}

avx512! {
fn sixteen_bits_rows<const F16: bool, const M: usize>(
    strip: &[u8],
    x: &[f32],
    columns: usize,
    out: &mut [[f32; STRIP]],
) -> usize {
    let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let mut rows = [&x[..columns]; M];
    for (m, row) in rows.iter_mut().enumerate() {
        *row = &x[m * columns..][..columns];
    }
    let mut sums = [[_mm512_setzero_ps(); 2]; M];
    for (i, eight) in strip.as_chunks::<512>().0.iter().enumerate() {
        ask_ahead(eight.as_ptr(), 8);
        for (j, vector) in eight.as_chunks::<64>().0.iter().enumerate() {
            let v = load(vector);
            let w = if F16 {
                [
                    _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)),
                    _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(v))),
                ]
            } else {
                [
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v)),
                    _mm512_castsi512_ps(_mm512_and_si512(v, high)),
                ]
            };
            let column = 2 * (8 * i + j);
            for m in 0..M {
                for (k, w) in w.iter().enumerate() {
                    let x = _mm512_set1_ps(rows[m][column + k]);
                    sums[m][k] = _mm512_fmadd_ps(x, *w, sums[m][k]);
                }
            }
        }
    }
    for (sums, out) in sums.iter().zip(out) {
        store_f32(out, _mm512_add_ps(sums[0], sums[1]));
    }
    M
}
}

/// Rows `row..row + M` of a block.
#[derive(Clone, Copy)]
struct Rows<'a> {
    x: RowBlock<'a>,
    row: usize,
}

impl Rows<'_> {
    /// The cell of a group of the `m`-th row.
    #[inline(always)]
    fn cell(&self, group: usize, m: usize) -> usize {
        group * self.x.height + self.row + m
    }

    /// Codes of a group.
    #[inline(always)]
    fn codes<const M: usize>(&self, group: usize) -> [&[i8; GROUP]; M] {
        let mut xs = [&self.x.codes[0].0; M];
        for (m, xs) in xs.iter_mut().enumerate() {
            *xs = &self.x.codes[self.cell(group, m)].0;
        }
        xs
    }

    /// Sums of the codes of a block of two groups.
    #[inline(always)]
    fn pair_sums<const M: usize>(&self, block: usize) -> [i32; M] {
        let sums = self.x.sums.as_chunks::<4>().0;
        let mut all = [0; M];
        for (m, all) in all.iter_mut().enumerate() {
            let [a, b] = [0, 1].map(|group| &sums[self.cell(2 * block + group, m)]);
            *all = a[0] + a[1] + a[2] + a[3] + b[0] + b[1] + b[2] + b[3];
        }
        all
    }

    avx512! {
    /// Scales the sums of a block of two groups, with minima or without, and adds them.
    #[inline]
    fn scale_pairs<const M: usize>(
        &self,
        products: [__m512; M],
        (s, least): (__m512, __m512),
        minima: bool,
        (block, sums): (usize, [i32; M]),
        acc: &mut [__m512; M],
    ) {
        for m in 0..M {
            let mut t = _mm512_mul_ps(products[m], s);
            if minima {
                t = _mm512_fnmadd_ps(least, _mm512_set1_ps(sums[m] as f32), t);
            }
            let scale = _mm512_set1_ps(self.x.scales[self.cell(2 * block, m)]);
            acc[m] = _mm512_fmadd_ps(t, scale, acc[m]);
        }
    }
    }
}

avx512! {
/// The sums of a block of columns start here: at what the codes' zero takes away.
#[inline]
fn start(zero: i32, sum: i32) -> __m512i {
    if zero == 0 {
        _mm512_setzero_si512()
    } else {
        _mm512_set1_epi32(-zero * sum)
    }
}
}

avx512! {
/// Four columns of `x` for all lanes.
#[inline]
fn four(x: &[i8; GROUP], column: usize) -> __m512i {
    let x = x.as_chunks::<4>().0[column / 4];
    _mm512_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8)))
}
}

/// The sums of a block for `M` rows. Two of one row alone: a product's latency is five times its
/// rate.
struct BlockSums<const M: usize> {
    even: [__m512i; M],
    odd: __m512i,
}

impl<const M: usize> BlockSums<M> {
    avx512! {
    #[inline]
    fn new(zero: i32, sums: [i32; M]) -> BlockSums<M> {
        let mut even = [_mm512_setzero_si512(); M];
        for m in 0..M {
            even[m] = start(zero, sums[m]);
        }
        BlockSums { even, odd: _mm512_setzero_si512() }
    }
    }

    avx512! {
    /// Adds the products of some vectors of codes, of columns from `column` on.
    #[inline]
    fn add(&mut self, codes: &[__m512i], x: &[&[i8; GROUP]; M], column: usize) {
        for (g, &w) in codes.iter().enumerate() {
            for m in 0..M {
                let x = four(x[m], column + 4 * g);
                if M == 1 && g % 2 == 1 {
                    self.odd = _mm512_dpbusd_epi32(self.odd, w, x);
                } else {
                    self.even[m] = _mm512_dpbusd_epi32(self.even[m], w, x);
                }
            }
        }
    }
    }

    avx512! {
    #[inline]
    fn total(self) -> [__m512; M] {
        let mut out = [_mm512_setzero_ps(); M];
        for m in 0..M {
            let sum = if M == 1 { _mm512_add_epi32(self.even[m], self.odd) } else { self.even[m] };
            out[m] = _mm512_cvtepi32_ps(sum);
        }
        out
    }
    }
}

avx512! {
/// `t + products · s`. The first block's `t` is 0, and a product alone is cheaper; where it is
/// −0 and the sum +0, the group's sum comes out the same.
#[inline]
pub(super) fn scaled(products: __m512, s: __m512, t: __m512, first: bool) -> __m512 {
    if first { _mm512_mul_ps(products, s) } else { _mm512_fmadd_ps(products, s, t) }
}
}

avx512! {
/// A whole strip with all rows of a block.
fn direct<F: Format>(strip: &[u8], x: RowBlock<'_>, out: &mut [[f32; STRIP]]) {
    let mut row = 0;
    while row < x.height {
        let rows = Rows { x, row };
        let out = &mut out[row..];
        row += match x.height - row {
            4.. => direct_rows::<F, 4>(strip, rows, out),
            2 | 3 => direct_rows::<F, 2>(strip, rows, out),
            _ => direct_rows::<F, 1>(strip, rows, out),
        };
    }
}
}

avx512! {
fn direct_rows<F: Format, const M: usize>(
    strip: &[u8],
    rows: Rows<'_>,
    out: &mut [[f32; STRIP]],
) -> usize {
    if F::BLOCK == PAIR {
        return direct_pairs::<F, M>(strip, rows, out);
    }
    let x = rows.x;
    let x_codes = x.codes;
    let (x_sums, x_slab_sums) = (x.sums.as_chunks::<4>().0, x.slab_sums.as_chunks::<2>().0);
    let mut acc = [_mm512_setzero_ps(); M];
    for (u, unit) in strip.chunks_exact(F::UNIT_BYTES).enumerate() {
        let [scale, minimum] = outer::<F>(unit);
        for g in 0..F::UNIT / GROUP {
            let group = u * (F::UNIT / GROUP) + g;
            let mut xs = [&x_codes[0].0; M];
            for (m, xs) in xs.iter_mut().enumerate() {
                *xs = &x_codes[rows.cell(group, m)].0;
            }
            let mut t = [_mm512_setzero_ps(); M];
            for half in 0..2 {
                let slab = 2 * g + half;
                let bytes = &unit[slab * F::SLAB_BYTES..][..F::SLAB_BYTES];
                let after = if slab + 1 == F::UNIT / SLAB { F::UNIT_BYTES } else { (slab + 1) * F::SLAB_BYTES };
                ask_ahead(bytes.as_ptr(), (after - slab * F::SLAB_BYTES) / 64);
                let codes = codes::<F>(bytes);
                for part in 0..SLAB / F::BLOCK {
                    let block = slab * (SLAB / F::BLOCK) + part;
                    let s = scales::<F>(unit, F::SCALES, block, scale);
                    let mut sums = [0; M];
                    for (m, sum) in sums.iter_mut().enumerate() {
                        let parts = &x_sums[rows.cell(group, m)];
                        *sum = if F::BLOCK == SLAB {
                            parts[2 * half] + parts[2 * half + 1]
                        } else {
                            parts[2 * half + part]
                        };
                    }
                    let vectors = F::BLOCK / 4;
                    let column = half * SLAB + part * F::BLOCK;
                    let mut products = BlockSums::<M>::new(F::ZERO, sums);
                    products.add(&codes[part * vectors..(part + 1) * vectors], &xs, column);
                    let products = products.total();
                    for m in 0..M {
                        t[m] = scaled(products[m], s, t[m], half == 0 && part == 0);
                    }
                    if F::MINIMA {
                        let least = scales::<F>(unit, F::MINIMUMS, block, minimum);
                        for m in 0..M {
                            let sum = if F::BLOCK == SLAB {
                                x_slab_sums[rows.cell(group, m)][half]
                            } else {
                                sums[m] as f32
                            };
                            t[m] = _mm512_fnmadd_ps(least, _mm512_set1_ps(sum), t[m]);
                        }
                    }
                }
            }
            for m in 0..M {
                let scale = _mm512_set1_ps(x.scales[rows.cell(group, m)]);
                acc[m] = _mm512_fmadd_ps(t[m], scale, acc[m]);
            }
        }
    }
    for (acc, out) in acc.into_iter().zip(out) {
        store_f32(out, acc);
    }
    M
}
}

avx512! {
/// The same of types whose blocks are two groups.
fn direct_pairs<F: Format, const M: usize>(
    strip: &[u8],
    rows: Rows<'_>,
    out: &mut [[f32; STRIP]],
) -> usize {
    let mut acc = [_mm512_setzero_ps(); M];
    for (u, unit) in strip.chunks_exact(F::UNIT_BYTES).enumerate() {
        for pair in 0..F::UNIT / PAIR {
            let block = u * (F::UNIT / PAIR) + pair;
            let sums = rows.pair_sums::<M>(block);
            let mut products = BlockSums::<M>::new(F::ZERO, sums);
            for slab in 0..PAIR / SLAB {
                let xs = rows.codes::<M>(2 * block + slab / 2);
                let slab_of_unit = pair * (PAIR / SLAB) + slab;
                let at = slab_of_unit * F::SLAB_BYTES;
                let bytes = &unit[at..][..F::SLAB_BYTES];
                let after = if slab_of_unit + 1 == F::UNIT / SLAB { F::UNIT_BYTES } else { at + F::SLAB_BYTES };
                ask_ahead(bytes.as_ptr(), (after - at) / 64);
                products.add(&codes::<F>(bytes), &xs, slab % 2 * SLAB);
            }
            let none = _mm512_setzero_ps();
            let s = scales::<F>(unit, F::SCALES, pair, none);
            let least = if F::MINIMA { scales::<F>(unit, F::MINIMUMS, pair, none) } else { none };
            rows.scale_pairs::<M>(products.total(), (s, least), F::MINIMA, (block, sums), &mut acc);
        }
    }
    for (acc, out) in acc.into_iter().zip(out) {
        store_f32(out, acc);
    }
    M
}
}

/// Asks for what follows some lines of a stream. The processor reads ahead by itself, but each
/// line is touched only once here, which it takes for a weaker hint, and it stops at the end of
/// a page. So each line is asked for a little ahead, and the first lines of the next page while
/// this one is begun: one matrix after the other, 77 → 84 % of the memory's rate. Much further
/// ahead, requests wait for memory in the few buffers between the first two caches, and keep
/// others out of these.
#[inline(always)]
fn ask_ahead(at: *const u8, lines: usize) {
    const NEAR: usize = 27 * 64;
    const NEXT_PAGE: usize = 12;
    let into_page = at as usize % 4096;
    // SAFETY: a hint, which never faults.
    unsafe {
        for line in 0..lines {
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(NEAR + 64 * line).cast());
        }
        if into_page < 64 * lines {
            let page = at.wrapping_add(4096 - into_page);
            for line in 0..NEXT_PAGE {
                _mm_prefetch::<_MM_HINT_T1>(page.wrapping_add(64 * line).cast());
            }
        }
    }
}

avx512! {
fn panel(p: &Panel, x: RowBlock<'_>, out: &mut [[f32; STRIP]]) {
    assert!(!p.signed, "vpdpbusd takes unsigned codes");
    let mut row = 0;
    while row < x.height {
        let rows = Rows { x, row };
        let out = &mut out[row..];
        row += match x.height - row {
            8.. => panel_rows::<8>(p, rows, out),
            4..8 => panel_rows::<4>(p, rows, out),
            2 | 3 => panel_rows::<2>(p, rows, out),
            _ => panel_rows::<1>(p, rows, out),
        };
    }
}
}

avx512! {
fn panel_rows<const M: usize>(p: &Panel, rows: Rows<'_>, out: &mut [[f32; STRIP]]) -> usize {
    match (p.block, p.minima.is_empty()) {
        (PAIR, _) => panel_pairs::<M>(p, rows, out),
        (SLAB, true) => panel_kind::<M, SLAB, false>(p, rows, out),
        (SLAB, false) => panel_kind::<M, SLAB, true>(p, rows, out),
        (_, true) => panel_kind::<M, 16, false>(p, rows, out),
        (_, false) => panel_kind::<M, 16, true>(p, rows, out),
    }
}
}

avx512! {
fn panel_kind<const M: usize, const BLOCK: usize, const MINIMA: bool>(
    p: &Panel,
    rows: Rows<'_>,
    out: &mut [[f32; STRIP]],
) -> usize {
    let x = rows.x;
    let x_codes = x.codes;
    let (x_sums, x_slab_sums) = (x.sums.as_chunks::<4>().0, x.slab_sums.as_chunks::<2>().0);
    let mut acc = [_mm512_setzero_ps(); M];
    for g in 0..p.groups {
        let group = g;
        let mut xs = [&x_codes[0].0; M];
        for (m, xs) in xs.iter_mut().enumerate() {
            *xs = &x_codes[rows.cell(group, m)].0;
        }
        let mut t = [_mm512_setzero_ps(); M];
        let codes: &[Codes] = &p.codes[g * 16..(g + 1) * 16];
        for part in 0..GROUP / BLOCK {
            let block = g * (GROUP / BLOCK) + part;
            let mut sums = [0; M];
            for (m, sum) in sums.iter_mut().enumerate() {
                let parts = &x_sums[rows.cell(group, m)];
                *sum = match BLOCK {
                    SLAB => parts[2 * part] + parts[2 * part + 1],
                    _ => parts[part],
                };
            }
            let mut products = BlockSums::<M>::new(p.zero, sums);
            let mut w = [_mm512_setzero_si512(); 8];
            for (w, codes) in w.iter_mut().zip(&codes[part * (BLOCK / 4)..(part + 1) * (BLOCK / 4)]) {
                *w = load(&codes.0);
            }
            products.add(&w[..BLOCK / 4], &xs, part * BLOCK);
            let products = products.total();
            let s = load_f32(&p.scales[block]);
            for m in 0..M {
                t[m] = scaled(products[m], s, t[m], part == 0);
            }
            if MINIMA {
                let least = load_f32(&p.minima[block]);
                for m in 0..M {
                    let sum = match BLOCK {
                        SLAB => x_slab_sums[rows.cell(group, m)][part],
                        _ => sums[m] as f32,
                    };
                    t[m] = _mm512_fnmadd_ps(least, _mm512_set1_ps(sum), t[m]);
                }
            }
        }
        for m in 0..M {
            let scale = _mm512_set1_ps(x.scales[rows.cell(group, m)]);
            acc[m] = _mm512_fmadd_ps(t[m], scale, acc[m]);
        }
    }
    for (acc, out) in acc.into_iter().zip(out) {
        store_f32(out, acc);
    }
    M
}
}

avx512! {
/// The same of types whose blocks are two groups.
fn panel_pairs<const M: usize>(p: &Panel, rows: Rows<'_>, out: &mut [[f32; STRIP]]) -> usize {
    let mut acc = [_mm512_setzero_ps(); M];
    let minima = !p.minima.is_empty();
    for (block, vectors) in p.codes.as_chunks::<{ PAIR / 4 }>().0.iter().enumerate() {
        let sums = rows.pair_sums::<M>(block);
        let mut products = BlockSums::<M>::new(p.zero, sums);
        for (slab, vectors) in vectors.as_chunks::<{ SLAB / 4 }>().0.iter().enumerate() {
            let xs = rows.codes::<M>(2 * block + slab / 2);
            let mut w = [_mm512_setzero_si512(); SLAB / 4];
            for (w, codes) in w.iter_mut().zip(vectors) {
                *w = load(&codes.0);
            }
            products.add(&w, &xs, slab % 2 * SLAB);
        }
        let s = load_f32(&p.scales[block]);
        let least = if minima { load_f32(&p.minima[block]) } else { _mm512_setzero_ps() };
        rows.scale_pairs::<M>(products.total(), (s, least), minima, (block, sums), &mut acc);
    }
    for (acc, out) in acc.into_iter().zip(out) {
        store_f32(out, acc);
    }
    M
}
}
