//! Keys and values in pages of 16 tokens.
//! A page is one run of memory, so that it can be copied or moved whole.

use std::ops::Range;

use crate::large_pages;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Tokens in a page.
pub const PAGE_TOKENS: usize = 16;

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are the field's own
pub enum KvType {
    F32,
    F16,
    BF16,
    /// 8-bit integers with an f32 scale for each token's key and value in each head.
    Q8,
}

impl KvType {
    /// Bytes of one value, without scales.
    pub const fn bytes(self) -> usize {
        match self {
            KvType::F32 => 4,
            KvType::F16 | KvType::BF16 => 2,
            KvType::Q8 => 1,
        }
    }
}

/// What one layer keeps for one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Key and value heads.
    pub heads: usize,
    /// Values in one head's key.
    pub k_dim: usize,
    /// Values in one head's value.
    pub v_dim: usize,
    /// The value is the first `v_dim` entries of the key and is not stored again: the latent
    /// cache of multi-head latent attention.
    pub v_in_k: bool,
}

impl KvShape {
    /// Bytes of one page of one layer.
    pub fn page_bytes(&self, kv: KvType) -> usize {
        self.page_values() * kv.bytes() + self.page_scales(kv) * size_of::<f32>()
    }

    /// Stored values in a page.
    fn page_values(&self) -> usize {
        let v = if self.v_in_k { 0 } else { self.v_dim };
        PAGE_TOKENS * self.heads * (self.k_dim + v)
    }

    /// Stored scales in a page.
    fn page_scales(&self, kv: KvType) -> usize {
        match kv {
            KvType::Q8 => PAGE_TOKENS * self.heads * if self.v_in_k { 1 } else { 2 },
            KvType::F32 | KvType::F16 | KvType::BF16 => 0,
        }
    }
}

/// The pages of all layers: page `p` of layer `l` holds 16 consecutive tokens of one sequence.
/// Which sequence, a block table says. A page's K is `[head][k_dim][16]`, so that one vector
/// holds a dimension of all its tokens and scores need no sum across lanes; its V is
/// `[head][16][v_dim]`.
pub struct KvPages {
    layers: usize,
    pages: usize,
    shape: KvShape,
    kv: KvType,
    values: Values,
    /// `[layer][page][K, then V][head][16]`; empty but for 8-bit values.
    scales: Vec<f32>,
}

/// `[layer][page][K, then V]`; halves are kept as bits, because the allocator hands out zeroed
/// integers without touching them.
enum Values {
    F32(Vec<f32>),
    Half(Vec<u16>),
    Q8(Vec<i8>),
}

/// One head's stored keys `[k_dim][16]` or values `[16][v_dim]` in one page.
#[derive(Clone, Copy)]
pub(crate) enum PageHead<'a> {
    F32(&'a [f32]),
    F16(&'a [u16]),
    BF16(&'a [u16]),
    /// Integers; what multiplies each token's is [`KvPages::key_scales`] and its twin.
    Q8(&'a [i8]),
}

impl KvPages {
    /// Zeroed pages; memory is touched when it is first written.
    ///
    /// # Panics
    /// When the size overflows.
    pub fn new(layers: usize, pages: usize, shape: KvShape, kv: KvType) -> KvPages {
        let all = |each: usize| {
            each.checked_mul(pages)
                .and_then(|n| n.checked_mul(layers))
                .expect("the pages fit the address space")
        };
        let len = all(shape.page_values());
        let values = match kv {
            KvType::F32 => Values::F32(vec![0.0; len]),
            KvType::F16 | KvType::BF16 => Values::Half(vec![0; len]),
            KvType::Q8 => Values::Q8(vec![0; len]),
        };
        match &values {
            Values::F32(x) => large_pages::ask(x),
            Values::Half(x) => large_pages::ask(x),
            Values::Q8(x) => large_pages::ask(x),
        }
        KvPages {
            layers,
            pages,
            shape,
            kv,
            values,
            scales: vec![0.0; all(shape.page_scales(kv))],
        }
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Pages in each layer.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// What a token takes in a layer.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Stored type.
    pub fn kv_type(&self) -> KvType {
        self.kv
    }

    /// The number of a page of a layer among all pages.
    fn page_number(&self, layer: usize, page: u32) -> usize {
        let page = page as usize;
        assert!(
            layer < self.layers && page < self.pages,
            "layer {layer}, page {page}"
        );
        layer * self.pages + page
    }

    /// Stores one token's key `[heads, k_dim]` and value `[heads, v_dim]` (ignored when the
    /// value lies in the key) at `slot` of `page`.
    ///
    /// # Panics
    /// When an index or a length is out of range.
    pub fn write(&mut self, layer: usize, page: u32, slot: usize, k: &[f32], v: &[f32]) {
        let KvShape {
            heads,
            k_dim,
            v_dim,
            v_in_k,
        } = self.shape;
        assert!(slot < PAGE_TOKENS);
        assert_eq!(k.len(), heads * k_dim);
        assert!(v_in_k || v.len() == heads * v_dim);
        let page = self.page_number(layer, page);
        let start = page * self.shape.page_values();
        let scale = page * self.shape.page_scales(self.kv) + slot;
        for head in 0..heads {
            let at = start + head * k_dim * PAGE_TOKENS + slot;
            let scale = scale + head * PAGE_TOKENS;
            self.put(at, PAGE_TOKENS, scale, &k[head * k_dim..][..k_dim]);
        }
        if v_in_k {
            return;
        }
        let start = start + PAGE_TOKENS * heads * k_dim;
        for head in 0..heads {
            let at = start + (head * PAGE_TOKENS + slot) * v_dim;
            let scale = scale + (heads + head) * PAGE_TOKENS;
            self.put(at, 1, scale, &v[head * v_dim..][..v_dim]);
        }
    }

    /// Stores values from `at`, `stride` apart, and what multiplies them, if they need it.
    fn put(&mut self, at: usize, stride: usize, scale: usize, x: &[f32]) {
        match &mut self.values {
            Values::F32(values) => {
                for (to, x) in values[at..].iter_mut().step_by(stride).zip(x) {
                    *to = *x;
                }
            }
            Values::Half(bits) if self.kv == KvType::F16 => {
                // Eight at a time where the machine can; one by one was some 2 % of a small
                // model's step.
                let mut halves = [f16::ZERO; 64];
                let mut bits = bits[at..].iter_mut().step_by(stride);
                for x in x.chunks(halves.len()) {
                    let halves = &mut halves[..x.len()];
                    halves.convert_from_f32_slice(x);
                    for (half, to) in halves.iter().zip(&mut bits) {
                        *to = half.to_bits();
                    }
                }
            }
            Values::Half(bits) => {
                for (to, x) in bits[at..].iter_mut().step_by(stride).zip(x) {
                    *to = bf16::from_f32(*x).to_bits();
                }
            }
            Values::Q8(codes) => {
                // As integers, magnitudes are in order, and what is not finite is above all else.
                let largest = x.iter().fold(0, |max, x| max.max(x.abs().to_bits()));
                let largest = f32::from_bits(largest);
                let inverse = 127.0 / largest;
                let usable = inverse.is_finite() && largest.is_finite();
                self.scales[scale] = match usable {
                    true => largest / 127.0,
                    false if largest.is_finite() => 0.0,
                    false => f32::NAN,
                };
                for (to, x) in codes[at..].iter_mut().step_by(stride).zip(x) {
                    *to = if usable {
                        (x * inverse).round_ties_even() as i8
                    } else {
                        0
                    };
                }
            }
        }
    }

    /// Copies a page, in all layers.
    ///
    /// # Panics
    /// When a page is out of range.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        let part = |number: usize, each: usize| number * each..(number + 1) * each;
        let (each, scales) = (self.shape.page_values(), self.shape.page_scales(self.kv));
        for layer in 0..self.layers {
            let (from, to) = (self.page_number(layer, from), self.page_number(layer, to));
            match &mut self.values {
                Values::F32(values) => values.copy_within(part(from, each), to * each),
                Values::Half(bits) => bits.copy_within(part(from, each), to * each),
                Values::Q8(codes) => codes.copy_within(part(from, each), to * each),
            }
            self.scales.copy_within(part(from, scales), to * scales);
        }
    }

    /// A page's bytes, of all layers: its values, then its scales, little end first.
    ///
    /// # Panics
    /// When the page is out of range.
    pub fn page_bytes(&self, page: u32) -> Vec<u8> {
        let (each, scales) = (self.shape.page_values(), self.shape.page_scales(self.kv));
        let mut bytes = Vec::with_capacity(self.layers * self.shape.page_bytes(self.kv));
        for layer in 0..self.layers {
            let number = self.page_number(layer, page);
            let range = number * each..(number + 1) * each;
            match &self.values {
                Values::F32(x) => bytes.extend(x[range].iter().flat_map(|x| x.to_le_bytes())),
                Values::Half(x) => bytes.extend(x[range].iter().flat_map(|x| x.to_le_bytes())),
                Values::Q8(x) => bytes.extend(x[range].iter().flat_map(|x| x.to_le_bytes())),
            }
            let scales = &self.scales[number * scales..(number + 1) * scales];
            bytes.extend(scales.iter().flat_map(|x| x.to_le_bytes()));
        }
        bytes
    }

    /// Makes a page what it was when [`page_bytes`](KvPages::page_bytes) gave its bytes.
    ///
    /// # Panics
    /// When the page is out of range or the bytes are not as many as a page's.
    pub fn set_page_bytes(&mut self, page: u32, bytes: &[u8]) {
        let (each, scales) = (self.shape.page_values(), self.shape.page_scales(self.kv));
        let layer_bytes = self.shape.page_bytes(self.kv);
        assert_eq!(bytes.len(), self.layers * layer_bytes);
        for (layer, bytes) in bytes.chunks_exact(layer_bytes).enumerate() {
            let number = self.page_number(layer, page);
            let range = number * each..(number + 1) * each;
            let (values, tail) = bytes.split_at(each * self.kv.bytes());
            match &mut self.values {
                Values::F32(x) => fill(&mut x[range], values, f32::from_le_bytes),
                Values::Half(x) => fill(&mut x[range], values, u16::from_le_bytes),
                Values::Q8(x) => fill(&mut x[range], values, i8::from_le_bytes),
            }
            let scales = &mut self.scales[number * scales..(number + 1) * scales];
            fill(scales, tail, f32::from_le_bytes);
        }
    }

    /// The keys `[k_dim][16]` of a head.
    pub(crate) fn keys(&self, layer: usize, page: u32, head: usize) -> PageHead<'_> {
        let n = PAGE_TOKENS * self.shape.k_dim;
        let start = self.page_number(layer, page) * self.shape.page_values() + head * n;
        self.part(start..start + n)
    }

    /// The values `[16][v_dim]` of a head that are stored apart from its keys.
    pub(crate) fn values(&self, layer: usize, page: u32, head: usize) -> PageHead<'_> {
        let keys = PAGE_TOKENS * self.shape.heads * self.shape.k_dim;
        let n = PAGE_TOKENS * self.shape.v_dim;
        let start = self.page_number(layer, page) * self.shape.page_values() + keys + head * n;
        self.part(start..start + n)
    }

    /// What multiplies each token's 8-bit key.
    pub(crate) fn key_scales(&self, layer: usize, page: u32, head: usize) -> &[f32; PAGE_TOKENS] {
        self.scales_at(layer, page, head)
    }

    /// What multiplies each token's 8-bit value that is stored apart from its key.
    pub(crate) fn value_scales(&self, layer: usize, page: u32, head: usize) -> &[f32; PAGE_TOKENS] {
        self.scales_at(layer, page, self.shape.heads + head)
    }

    fn scales_at(&self, layer: usize, page: u32, index: usize) -> &[f32; PAGE_TOKENS] {
        let page = self.page_number(layer, page) * self.shape.page_scales(self.kv);
        let (groups, _) = self.scales[page..].as_chunks::<PAGE_TOKENS>();
        &groups[index]
    }

    fn part(&self, range: Range<usize>) -> PageHead<'_> {
        match (&self.values, self.kv) {
            (Values::F32(values), _) => PageHead::F32(&values[range]),
            (Values::Half(bits), KvType::BF16) => PageHead::BF16(&bits[range]),
            (Values::Half(bits), _) => PageHead::F16(&bits[range]),
            (Values::Q8(codes), _) => PageHead::Q8(&codes[range]),
        }
    }
}

/// Reads values from their bytes.
fn fill<T, const N: usize>(values: &mut [T], bytes: &[u8], read: fn([u8; N]) -> T) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = read(*bytes);
    }
}

impl PageHead<'_> {
    /// One stored value; of 8-bit ones, the integer.
    #[cfg(test)]
    pub(crate) fn at(&self, index: usize) -> f32 {
        match self {
            PageHead::F32(x) => x[index],
            PageHead::F16(x) => f16::from_bits(x[index]).to_f32(),
            PageHead::BF16(x) => bf16::from_bits(x[index]).to_f32(),
            PageHead::Q8(x) => x[index].into(),
        }
    }
}

impl std::fmt::Debug for KvPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvPages")
            .field("layers", &self.layers)
            .field("pages", &self.pages)
            .field("shape", &self.shape)
            .field("kv", &self.kv)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: KvShape = KvShape {
        heads: 2,
        k_dim: 6,
        v_dim: 4,
        v_in_k: false,
    };

    #[test]
    fn what_is_written_is_read_back_where_the_layout_says() {
        for kv in [KvType::F32, KvType::F16, KvType::BF16, KvType::Q8] {
            let mut pages = KvPages::new(2, 3, SHAPE, kv);
            let k: Vec<f32> = (0..12).map(|i| i as f32 + 0.5).collect();
            let v: Vec<f32> = (0..8).map(|i| -(i as f32) - 0.5).collect();
            pages.write(1, 2, 5, &k, &v);
            pages.copy_page(2, 0);
            let bytes = pages.page_bytes(2);
            assert_eq!(bytes.len(), 2 * SHAPE.page_bytes(kv));
            pages.set_page_bytes(1, &bytes);
            let q8 = kv == KvType::Q8;
            for page in [2, 0, 1] {
                for head in 0..2 {
                    let keys = pages.keys(1, page, head);
                    let values = pages.values(1, page, head);
                    let scale = |scales: &[f32; 16]| if q8 { scales[5] } else { 1.0 };
                    let (ks, vs) = match q8 {
                        true => (
                            scale(pages.key_scales(1, page, head)),
                            scale(pages.value_scales(1, page, head)),
                        ),
                        false => (1.0, 1.0),
                    };
                    for token in 0..16 {
                        for d in 0..6 {
                            let expected = if token == 5 { k[head * 6 + d] } else { 0.0 };
                            let off = keys.at(d * 16 + token) * ks - expected;
                            assert!(off.abs() <= if q8 { 0.05 } else { 0.0 }, "{kv:?}");
                        }
                        for d in 0..4 {
                            let expected = if token == 5 { v[head * 4 + d] } else { 0.0 };
                            let off = values.at(token * 4 + d) * vs - expected;
                            assert!(off.abs() <= if q8 { 0.05 } else { 0.0 }, "{kv:?}");
                        }
                    }
                }
            }
            assert!((0..96).all(|i| pages.keys(0, 2, 0).at(i) == 0.0));
        }
    }

    #[test]
    fn a_value_that_lies_in_the_key_takes_no_room() {
        let shape = KvShape {
            v_in_k: true,
            ..SHAPE
        };
        assert_eq!(shape.page_bytes(KvType::F16), 16 * 2 * 6 * 2);
        assert_eq!(shape.page_bytes(KvType::Q8), 16 * 2 * (6 + 4));
        let mut pages = KvPages::new(1, 1, shape, KvType::F16);
        pages.write(0, 0, 15, &[1.0; 12], &[]);
        assert!((0..6).all(|d| pages.keys(0, 0, 1).at(d * 16 + 15) == 1.0));
    }

    #[test]
    fn an_8_bit_key_that_is_not_finite_is_seen() {
        let mut pages = KvPages::new(1, 1, SHAPE, KvType::Q8);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut k = [1.0; 12];
            k[3] = bad;
            pages.write(0, 0, 0, &k, &[0.0; 8]);
            assert!(pages.key_scales(0, 0, 0)[0].is_nan());
            assert_eq!(pages.value_scales(0, 0, 1)[0], 0.0);
        }
    }
}
