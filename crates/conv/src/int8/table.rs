//! Any function of one byte: 256 results, looked up.

use std::fmt;

use sedge_kernels::Team;

use crate::{Picture, PictureMut};

use super::{Quant, pixels};

/// A function from bytes to bytes.
#[derive(Clone)]
pub struct Table([u8; 256]);

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Table").field(&self.0.as_slice()).finish()
    }
}

impl Table {
    /// The table of a function of real numbers.
    pub fn new(f: impl Fn(f32) -> f32, input: Quant, output: Quant) -> Table {
        let mut table = [0; 256];
        for (q, out) in (0..=255).zip(&mut table) {
            *out = output.of(f(input.real(q)));
        }
        Table(table)
    }

    /// Each value of `y` is what the table has for `x`'s.
    ///
    /// # Panics
    /// When the shapes differ.
    pub fn apply(&self, x: Picture<'_, u8>, y: &mut PictureMut<'_, u8>, team: &Team) {
        assert_eq!(x.shape(), y.shape());
        let lookup = best();
        pixels::each(y, team, &|pixel, out| {
            lookup(&self.0, x.pixel(pixel), out);
        });
    }
}

type Lookup = fn(&[u8; 256], &[u8], &mut [u8]);

fn best() -> Lookup {
    #[cfg(target_arch = "x86_64")]
    if x86::there() {
        // SAFETY: the instructions are there.
        return |table, x, out| unsafe { x86::lookup(table, x, out) };
    }
    portable
}

fn portable(table: &[u8; 256], x: &[u8], out: &mut [u8]) {
    for (x, out) in x.iter().zip(out) {
        *out = table[usize::from(*x)];
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    pub(super) fn there() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vbmi")
    }

    /// 64 values at a time: each half of the table is two vectors.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub(super) fn lookup(table: &[u8; 256], x: &[u8], out: &mut [u8]) {
        assert_eq!(x.len(), out.len());
        // SAFETY: loads are of quarters of the table, and, by their masks, of what is left of
        // `x` and `out`, which are of one length.
        unsafe {
            let quarter = |i: usize| _mm512_loadu_si512(table[64 * i..][..64].as_ptr().cast());
            let [a, b, c, d] = [quarter(0), quarter(1), quarter(2), quarter(3)];
            for at in (0..x.len()).step_by(64) {
                let mask = u64::MAX >> (64 - (x.len() - at).min(64));
                let x = _mm512_maskz_loadu_epi8(mask, x.as_ptr().add(at).cast());
                let lower = _mm512_permutex2var_epi8(a, x, b);
                let upper = _mm512_permutex2var_epi8(c, x, d);
                let y = _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), lower, upper);
                _mm512_mask_storeu_epi8(out.as_mut_ptr().add(at).cast(), mask, y);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;

    #[test]
    fn every_byte_has_its_result_whatever_the_length() {
        let (input, output) = (
            Quant {
                scale: 0.05,
                zero: 128,
            },
            Quant {
                scale: 0.01,
                zero: 3,
            },
        );
        let table = Table::new(|x| x * x, input, output);
        for c in [1, 63, 64, 65, 256] {
            let shape = Shape {
                n: 1,
                h: 3,
                w: 1,
                c,
            };
            let x: Vec<u8> = (0..shape.values()).map(|i| (i * 37) as u8).collect();
            let mut y = vec![0; x.len()];
            let picture = Picture::new(&x, shape);
            table.apply(picture, &mut PictureMut::new(&mut y, shape), &Team::new(2));
            for (x, y) in x.iter().zip(y) {
                assert_eq!(y, output.of(input.real(*x) * input.real(*x)));
            }
        }
    }
}
