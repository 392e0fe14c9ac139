//! Keys and values in pages of 16 tokens.
//! A page is one run of memory, so that it can be copied or moved whole.

mod centre;
pub(crate) mod nibbles;

pub use centre::KvCentre;

use std::ops::Range;

use crate::isa::isa;
use crate::{hadamard, large_pages};

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
    /// 4-bit integers with a scale and a minimum, both f16, for each 32 dimensions of a token's
    /// key and value in each head.
    Q4,
}

impl KvType {
    /// Whether keys and values of this type are kept multiplied by a Hadamard matrix, unless a
    /// caller wants them [otherwise](KvPages::with_rotation). Few bits need it: what is large in
    /// a few dimensions would cost all others their precision.
    pub const fn rotates(self) -> bool {
        match self {
            KvType::F32 | KvType::F16 | KvType::BF16 | KvType::Q8 => false,
            KvType::Q4 => true,
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
        let each = match kv {
            KvType::F32 | KvType::Q4 => 4,
            KvType::F16 | KvType::BF16 => 2,
            KvType::Q8 => 1,
        };
        self.page_units(kv) * each + self.page_scales(kv) * size_of::<f32>()
    }

    /// Stored units in a page: values, or words of 4-bit codes and of what they mean.
    fn page_units(&self, kv: KvType) -> usize {
        let v = if self.v_in_k { 0 } else { self.value_units(kv) };
        self.heads * (self.key_units(kv) + v)
    }

    /// Units of a head's keys.
    fn key_units(&self, kv: KvType) -> usize {
        match kv {
            KvType::Q4 => nibbles::key_words(self.k_dim),
            _ => PAGE_TOKENS * self.k_dim,
        }
    }

    /// Units of a head's values that are stored apart from its keys.
    fn value_units(&self, kv: KvType) -> usize {
        match kv {
            KvType::Q4 => nibbles::value_words(self.v_dim),
            _ => PAGE_TOKENS * self.v_dim,
        }
    }

    /// Stored scales in a page.
    fn page_scales(&self, kv: KvType) -> usize {
        match kv {
            KvType::Q8 => PAGE_TOKENS * self.heads * if self.v_in_k { 1 } else { 2 },
            KvType::F32 | KvType::F16 | KvType::BF16 | KvType::Q4 => 0,
        }
    }
}

/// The pages of all layers: page `p` of layer `l` holds 16 consecutive tokens of one sequence.
/// Which sequence, a block table says. A page's K is `[head][k_dim][16]`, so that one vector
/// holds a dimension of all its tokens and scores need no sum across lanes; its V is
/// `[head][16][v_dim]`. Those of 4 bits are in the same order, many to a word (`kv/nibbles.rs`).
pub struct KvPages {
    layers: usize,
    pages: usize,
    shape: KvShape,
    kv: KvType,
    rotated: bool,
    centre: Option<KvCentre>,
    values: Values,
    /// A head's key or value on its way.
    turned: Vec<f32>,
    /// `[layer][page][K, then V][head][16]`; empty but for 8-bit values.
    scales: Vec<f32>,
}

/// `[layer][page][K, then V]`; halves are kept as bits, because the allocator hands out zeroed
/// integers without touching them.
enum Values {
    F32(Vec<f32>),
    Half(Vec<u16>),
    Q8(Vec<i8>),
    Q4(Lines),
}

/// Words that begin where a line of the cache does.
struct Lines {
    words: Vec<u32>,
    /// Words before that.
    skip: usize,
}

impl Lines {
    fn zeroed(len: usize) -> Lines {
        let words = vec![0; len + nibbles::LINE - 1];
        let line = nibbles::LINE * size_of::<u32>();
        let past = words.as_ptr() as usize % line;
        let skip = (line - past) % line / size_of::<u32>();
        Lines { words, skip }
    }

    fn get(&self) -> &[u32] {
        &self.words[self.skip..]
    }

    fn get_mut(&mut self) -> &mut [u32] {
        &mut self.words[self.skip..]
    }
}

/// What is stored of a token and a head.
#[derive(Clone, Copy)]
enum Part {
    Key,
    Value,
}

/// One head's stored keys `[k_dim][16]` or values `[16][v_dim]` in one page.
#[derive(Clone, Copy)]
pub(crate) enum PageHead<'a> {
    F32(&'a [f32]),
    F16(&'a [u16]),
    BF16(&'a [u16]),
    /// Integers; what multiplies each token's is [`KvPages::key_scales`] and its twin.
    Q8(&'a [i8]),
    /// Lines of [`nibbles`].
    Q4(&'a [u32]),
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
        let len = all(shape.page_units(kv));
        let values = match kv {
            KvType::F32 => Values::F32(vec![0.0; len]),
            KvType::F16 | KvType::BF16 => Values::Half(vec![0; len]),
            KvType::Q8 => Values::Q8(vec![0; len]),
            KvType::Q4 => Values::Q4(Lines::zeroed(len)),
        };
        match &values {
            Values::F32(x) => large_pages::ask(x),
            Values::Half(x) => large_pages::ask(x),
            Values::Q8(x) => large_pages::ask(x),
            Values::Q4(x) => large_pages::ask(x.get()),
        }
        KvPages {
            layers,
            pages,
            shape,
            kv,
            rotated: kv.rotates(),
            centre: None,
            values,
            turned: Vec::new(),
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

    /// The same pages, still empty, with keys and values multiplied by a Hadamard matrix when they
    /// are written, or not. Attention multiplies queries alike, and its results back, so that only
    /// the rounding differs. What comes of the type unless this is called:
    /// [`KvType::rotates`].
    pub fn with_rotation(mut self, rotated: bool) -> KvPages {
        self.rotated = rotated;
        self
    }

    /// The same pages, still empty, with something taken off keys and values when they are
    /// written. Attention puts it back, so that only the rounding differs: smaller numbers lose
    /// less.
    ///
    /// # Panics
    /// When the centre is of another shape.
    pub fn with_centre(mut self, centre: KvCentre) -> KvPages {
        assert!(centre.fits(self.layers, self.shape));
        self.centre = Some(centre);
        self
    }

    /// Adds what was taken off a head's values to a mean of them.
    #[inline(always)]
    pub(crate) fn put_back(&self, layer: usize, head: usize, out: &mut [f32]) {
        if let Some(centre) = &self.centre {
            for (out, x) in out.iter_mut().zip(centre.value(layer, head)) {
                *out += x;
            }
        }
    }

    /// Whether keys and values are kept multiplied by a Hadamard matrix.
    pub fn rotated(&self) -> bool {
        self.rotated
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
        let start = page * self.shape.page_units(self.kv);
        let scale = page * self.shape.page_scales(self.kv) + slot;
        let (keys, values) = (
            self.shape.key_units(self.kv),
            self.shape.value_units(self.kv),
        );
        let mut turned = std::mem::take(&mut self.turned);
        for head in 0..heads {
            let k = &k[head * k_dim..][..k_dim];
            let centre = self.centre.as_ref().map(|c| c.key(layer, head));
            let k = self.turn(k, centre, hadamard::key_part(self.shape), &mut turned);
            let at = (start + head * keys, slot);
            self.put(Part::Key, at, scale + head * PAGE_TOKENS, k);
        }
        let start = start + heads * keys;
        for head in (0..heads).filter(|_| !v_in_k) {
            let centre = self.centre.as_ref().map(|c| c.value(layer, head));
            let v = self.turn(&v[head * v_dim..][..v_dim], centre, v_dim, &mut turned);
            let at = (start + head * values, slot);
            self.put(Part::Value, at, scale + (heads + head) * PAGE_TOKENS, v);
        }
        self.turned = turned;
    }

    /// What is kept of `x`: what is left without the centre, whose first `part` values and whose
    /// others are rotated apart.
    fn turn<'a>(
        &self,
        x: &'a [f32],
        centre: Option<&[f32]>,
        part: usize,
        room: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        if !self.rotated && centre.is_none() {
            return x;
        }
        room.clear();
        room.extend_from_slice(x);
        for (x, centre) in room.iter_mut().zip(centre.into_iter().flatten()) {
            *x -= centre;
        }
        if self.rotated {
            let (first, rest) = room.split_at_mut(part);
            (isa().hadamard)(first);
            (isa().hadamard)(rest);
        }
        room
    }

    /// Stores the key or value of the token in `slot` of a head whose units begin at `start`, and
    /// what multiplies it, if it needs that.
    fn put(&mut self, part: Part, (start, slot): (usize, usize), scale: usize, x: &[f32]) {
        let (at, stride) = match part {
            Part::Key => (start + slot, PAGE_TOKENS),
            Part::Value => (start + slot * x.len(), 1),
        };
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
            Values::Q4(lines) => {
                let words = &mut lines.get_mut()[start..];
                match part {
                    Part::Key => nibbles::write_key(words, slot, x),
                    Part::Value => nibbles::write_value(words, slot, x),
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
        let (each, scales) = self.each();
        for layer in 0..self.layers {
            let (from, to) = (self.page_number(layer, from), self.page_number(layer, to));
            match &mut self.values {
                Values::F32(values) => values.copy_within(part(from, each), to * each),
                Values::Half(bits) => bits.copy_within(part(from, each), to * each),
                Values::Q8(codes) => codes.copy_within(part(from, each), to * each),
                Values::Q4(x) => x.get_mut().copy_within(part(from, each), to * each),
            }
            self.scales.copy_within(part(from, scales), to * scales);
        }
    }

    /// A page's bytes, of all layers: its values, then its scales, little end first.
    ///
    /// # Panics
    /// When the page is out of range.
    pub fn page_bytes(&self, page: u32) -> Vec<u8> {
        let (each, scales) = self.each();
        let mut bytes = Vec::with_capacity(self.layers * self.shape.page_bytes(self.kv));
        for layer in 0..self.layers {
            let number = self.page_number(layer, page);
            let range = number * each..(number + 1) * each;
            match &self.values {
                Values::F32(x) => bytes.extend(x[range].iter().flat_map(|x| x.to_le_bytes())),
                Values::Half(x) => bytes.extend(x[range].iter().flat_map(|x| x.to_le_bytes())),
                Values::Q8(x) => bytes.extend(x[range].iter().flat_map(|x| x.to_le_bytes())),
                Values::Q4(x) => {
                    bytes.extend(x.get()[range].iter().flat_map(|x| x.to_le_bytes()));
                }
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
        let (each, scales) = self.each();
        let layer_bytes = self.shape.page_bytes(self.kv);
        assert_eq!(bytes.len(), self.layers * layer_bytes);
        for (layer, bytes) in bytes.chunks_exact(layer_bytes).enumerate() {
            let number = self.page_number(layer, page);
            let range = number * each..(number + 1) * each;
            let (values, tail) = bytes.split_at(layer_bytes - scales * size_of::<f32>());
            match &mut self.values {
                Values::F32(x) => fill(&mut x[range], values, f32::from_le_bytes),
                Values::Half(x) => fill(&mut x[range], values, u16::from_le_bytes),
                Values::Q8(x) => fill(&mut x[range], values, i8::from_le_bytes),
                Values::Q4(x) => fill(&mut x.get_mut()[range], values, u32::from_le_bytes),
            }
            let scales = &mut self.scales[number * scales..(number + 1) * scales];
            fill(scales, tail, f32::from_le_bytes);
        }
    }

    /// Units and scales of a page.
    fn each(&self) -> (usize, usize) {
        (
            self.shape.page_units(self.kv),
            self.shape.page_scales(self.kv),
        )
    }

    /// The keys `[k_dim][16]` of a head.
    pub(crate) fn keys(&self, layer: usize, page: u32, head: usize) -> PageHead<'_> {
        let n = self.shape.key_units(self.kv);
        let start = self.page_number(layer, page) * self.shape.page_units(self.kv) + head * n;
        self.part(start..start + n)
    }

    /// The values `[16][v_dim]` of a head that are stored apart from its keys.
    pub(crate) fn values(&self, layer: usize, page: u32, head: usize) -> PageHead<'_> {
        let keys = self.shape.heads * self.shape.key_units(self.kv);
        let n = self.shape.value_units(self.kv);
        let page = self.page_number(layer, page) * self.shape.page_units(self.kv);
        let start = page + keys + head * n;
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
            (Values::Q4(lines), _) => PageHead::Q4(&lines.get()[range]),
        }
    }
}

/// Reads values from their bytes.
fn fill<T, const N: usize>(values: &mut [T], bytes: &[u8], read: fn([u8; N]) -> T) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = read(*bytes);
    }
}

#[cfg(test)]
impl KvPages {
    /// A token's key in a head, as it is kept.
    pub(crate) fn key(&self, layer: usize, page: u32, head: usize, slot: usize) -> Vec<f32> {
        let (keys, dims) = (self.keys(layer, page, head), self.shape.k_dim);
        if let PageHead::Q4(words) = keys {
            return (0..dims)
                .map(|d| nibbles::at(words, true, d, slot))
                .collect();
        }
        let scale = match self.kv {
            KvType::Q8 => self.key_scales(layer, page, head)[slot],
            _ => 1.0,
        };
        let at = |d: usize| keys.at(d * PAGE_TOKENS + slot) * scale;
        (0..dims).map(at).collect()
    }

    /// A token's value in a head, which is stored apart from its key.
    pub(crate) fn value(&self, layer: usize, page: u32, head: usize, slot: usize) -> Vec<f32> {
        let (values, dims) = (self.values(layer, page, head), self.shape.v_dim);
        if let PageHead::Q4(words) = values {
            return (0..dims)
                .map(|d| nibbles::at(words, false, d, slot))
                .collect();
        }
        let scale = match self.kv {
            KvType::Q8 => self.value_scales(layer, page, head)[slot],
            _ => 1.0,
        };
        let at = |d: usize| values.at(slot * dims + d) * scale;
        (0..dims).map(at).collect()
    }
}

#[cfg(test)]
impl PageHead<'_> {
    /// One stored value; of 8-bit ones, the integer.
    fn at(&self, index: usize) -> f32 {
        match self {
            PageHead::F32(x) => x[index],
            PageHead::F16(x) => f16::from_bits(x[index]).to_f32(),
            PageHead::BF16(x) => bf16::from_bits(x[index]).to_f32(),
            PageHead::Q8(x) => x[index].into(),
            PageHead::Q4(_) => unreachable!("many to a word: `nibbles::at`"),
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

    const ALL: [KvType; 5] = [
        KvType::F32,
        KvType::F16,
        KvType::BF16,
        KvType::Q8,
        KvType::Q4,
    ];

    #[test]
    fn what_is_written_is_read_back_where_the_layout_says() {
        for (kv, rotated) in ALL.iter().flat_map(|&kv| [(kv, false), (kv, true)]) {
            let mut pages = KvPages::new(2, 3, SHAPE, kv).with_rotation(rotated);
            let k: Vec<f32> = (0..12).map(|i| i as f32 + 0.5).collect();
            let v: Vec<f32> = (0..8).map(|i| -(i as f32) - 0.5).collect();
            pages.write(1, 2, 5, &k, &v);
            pages.copy_page(2, 0);
            let bytes = pages.page_bytes(2);
            assert_eq!(bytes.len(), 2 * SHAPE.page_bytes(kv));
            pages.set_page_bytes(1, &bytes);
            // What a rounding may cost, of the largest value.
            let off = match kv {
                KvType::F32 | KvType::F16 | KvType::BF16 if !rotated => 0.0,
                KvType::F32 => 1e-6,
                KvType::F16 => 5e-4,
                KvType::BF16 | KvType::Q8 => 5e-3,
                // Half a step of a fifteenth of the range, which is at most twice the largest.
                KvType::Q4 => 7e-2,
            };
            let check = |kept: Vec<f32>, x: &[f32], slot: usize| {
                let mut x = if slot == 5 {
                    x.to_vec()
                } else {
                    vec![0.0; x.len()]
                };
                if rotated {
                    (isa().hadamard)(&mut x);
                }
                let largest = x.iter().fold(0f32, |a, x| a.max(x.abs()));
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= off * largest;
                assert!(kept.iter().zip(&x).all(near), "{kv:?}: {kept:?}, not {x:?}");
            };
            for (page, head) in [2, 0, 1].into_iter().flat_map(|p| [(p, 0), (p, 1)]) {
                for slot in 0..16 {
                    check(pages.key(1, page, head, slot), &k[head * 6..][..6], slot);
                    check(pages.value(1, page, head, slot), &v[head * 4..][..4], slot);
                }
            }
            assert!((0..16).all(|slot| pages.key(0, 2, 0, slot) == [0.0; 6]));
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
        // One word of codes, one of what they mean.
        assert_eq!(shape.page_bytes(KvType::Q4), 16 * 2 * (4 + 4));
        let mut pages = KvPages::new(1, 1, shape, KvType::F16);
        pages.write(0, 0, 15, &[1.0; 12], &[]);
        assert_eq!(pages.key(0, 0, 1, 15), [1.0; 6]);
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
