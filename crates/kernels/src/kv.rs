//! Keys and values in pages of 16 tokens.
//! A page is one run of memory, so that it can be copied or moved whole.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
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
}

impl KvType {
    /// Bytes of one value.
    pub const fn bytes(self) -> usize {
        match self {
            KvType::F32 => 4,
            KvType::F16 | KvType::BF16 => 2,
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
        let v = if self.v_in_k { 0 } else { self.v_dim };
        PAGE_TOKENS * self.heads * (self.k_dim + v) * kv.bytes()
    }
}

/// The pages of all layers: page `p` of layer `l` holds 16 consecutive tokens of one sequence.
/// Which sequence, a block table says. A page's K is `[head][16][k_dim]`, its V `[head][16][v_dim]`.
pub struct KvPages {
    layers: usize,
    pages: usize,
    shape: KvShape,
    kv: KvType,
    values: Values,
}

/// `[layer][page][K, then V]`; halves are kept as bits, because the allocator hands out zeroed
/// integers without touching them.
enum Values {
    F32(Vec<f32>),
    Half(Vec<u16>),
}

/// One head's keys or values in one page: `[16][dim]`.
#[derive(Clone, Copy)]
pub(crate) enum PageHead<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
}

impl KvPages {
    /// Zeroed pages; memory is touched when it is first written.
    ///
    /// # Panics
    /// When the size overflows.
    pub fn new(layers: usize, pages: usize, shape: KvShape, kv: KvType) -> KvPages {
        let len = (shape.page_bytes(kv) / kv.bytes())
            .checked_mul(pages)
            .and_then(|n| n.checked_mul(layers))
            .expect("the pages fit the address space");
        let values = match kv {
            KvType::F32 => Values::F32(vec![0.0; len]),
            KvType::F16 | KvType::BF16 => Values::Half(vec![0; len]),
        };
        KvPages {
            layers,
            pages,
            shape,
            kv,
            values,
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

    /// Values in one page of one layer.
    fn page_len(&self) -> usize {
        self.shape.page_bytes(self.kv) / self.kv.bytes()
    }

    /// Where a page of a layer starts.
    fn page_start(&self, layer: usize, page: u32) -> usize {
        let page = page as usize;
        assert!(
            layer < self.layers && page < self.pages,
            "layer {layer}, page {page}"
        );
        (layer * self.pages + page) * self.page_len()
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
        let start = self.page_start(layer, page);
        self.write_heads(start, slot, k_dim, k);
        if !v_in_k {
            assert_eq!(v.len(), heads * v_dim);
            self.write_heads(start + PAGE_TOKENS * heads * k_dim, slot, v_dim, v);
        }
    }

    fn write_heads(&mut self, start: usize, slot: usize, dim: usize, x: &[f32]) {
        if dim == 0 {
            return;
        }
        for (head, x) in x.chunks_exact(dim).enumerate() {
            let at = start + (head * PAGE_TOKENS + slot) * dim;
            match &mut self.values {
                Values::F32(values) => values[at..at + dim].copy_from_slice(x),
                Values::Half(bits) => {
                    let bits = &mut bits[at..at + dim];
                    if self.kv == KvType::F16 {
                        bits.reinterpret_cast_mut::<f16>().convert_from_f32_slice(x);
                    } else {
                        bits.reinterpret_cast_mut::<bf16>()
                            .convert_from_f32_slice(x);
                    }
                }
            }
        }
    }

    /// Copies a page, in all layers.
    ///
    /// # Panics
    /// When a page is out of range.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        let len = self.page_len();
        for layer in 0..self.layers {
            let (from, to) = (self.page_start(layer, from), self.page_start(layer, to));
            match &mut self.values {
                Values::F32(values) => values.copy_within(from..from + len, to),
                Values::Half(bits) => bits.copy_within(from..from + len, to),
            }
        }
    }

    /// The keys `[16][k_dim]` of a head.
    pub(crate) fn keys(&self, layer: usize, page: u32, head: usize) -> PageHead<'_> {
        let n = PAGE_TOKENS * self.shape.k_dim;
        self.part(self.page_start(layer, page) + head * n, n)
    }

    /// The values `[16][v_dim]` of a head that are stored apart from its keys.
    pub(crate) fn values(&self, layer: usize, page: u32, head: usize) -> PageHead<'_> {
        let keys = PAGE_TOKENS * self.shape.heads * self.shape.k_dim;
        let n = PAGE_TOKENS * self.shape.v_dim;
        self.part(self.page_start(layer, page) + keys + head * n, n)
    }

    fn part(&self, start: usize, len: usize) -> PageHead<'_> {
        match &self.values {
            Values::F32(values) => PageHead::F32(&values[start..start + len]),
            Values::Half(bits) => {
                let bits = &bits[start..start + len];
                match self.kv {
                    KvType::BF16 => PageHead::BF16(bits.reinterpret_cast()),
                    KvType::F16 | KvType::F32 => PageHead::F16(bits.reinterpret_cast()),
                }
            }
        }
    }
}

impl PageHead<'_> {
    /// Decodes `out.len()` values from `start`.
    pub(crate) fn decode(&self, start: usize, out: &mut [f32]) {
        let part = start..start + out.len();
        match self {
            PageHead::F32(x) => out.copy_from_slice(&x[part]),
            PageHead::F16(x) => x[part].convert_to_f32_slice(out),
            PageHead::BF16(x) => x[part].convert_to_f32_slice(out),
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

    fn decode(part: PageHead<'_>, len: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; len];
        part.decode(0, &mut out);
        out
    }

    #[test]
    fn what_is_written_is_read_back_where_the_layout_says() {
        for kv in [KvType::F32, KvType::F16, KvType::BF16] {
            let mut pages = KvPages::new(2, 3, SHAPE, kv);
            let k: Vec<f32> = (0..12).map(|i| i as f32 + 0.5).collect();
            let v: Vec<f32> = (0..8).map(|i| -(i as f32) - 0.5).collect();
            pages.write(1, 2, 5, &k, &v);
            pages.copy_page(2, 0);
            for page in [2, 0] {
                for head in 0..2 {
                    let keys = decode(pages.keys(1, page, head), 16 * 6);
                    let values = decode(pages.values(1, page, head), 16 * 4);
                    assert_eq!(keys[5 * 6..6 * 6], k[head * 6..][..6]);
                    assert_eq!(values[5 * 4..6 * 4], v[head * 4..][..4]);
                    assert!(keys[..30].iter().chain(&values[..20]).all(|&x| x == 0.0));
                }
            }
            let untouched = decode(pages.keys(0, 2, 0), 16 * 6);
            assert!(untouched.iter().all(|&x| x == 0.0));
        }
    }

    #[test]
    fn a_value_that_lies_in_the_key_takes_no_room() {
        let shape = KvShape {
            v_in_k: true,
            ..SHAPE
        };
        assert_eq!(shape.page_bytes(KvType::F16), 16 * 2 * 6 * 2);
        let mut pages = KvPages::new(1, 1, shape, KvType::F16);
        pages.write(0, 0, 15, &[1.0; 12], &[]);
        assert_eq!(decode(pages.keys(0, 0, 1), 96)[90..], [1.0; 6]);
    }
}
