//! Keys and values in 4 bits: how a head of a page lies in lines of sixteen 32-bit words.
//!
//! Dimensions are cut into groups. A group begins with a line of what its codes mean, a word for
//! each token: a scale (the low half) and a minimum (the high half), both f16; a value is
//! `code · scale + minimum`. The codes follow. Of keys, a line holds eight dimensions, those of a
//! token in one word, so that a vector of words gives one dimension of all tokens after the
//! other. Of values, a line holds sixteen dimensions of eight tokens, a dimension in each word,
//! so that a vector gives one token after the other.
#![allow(clippy::needless_range_loop)] // one index walks several arrays of lanes

use half::f16;

use crate::PAGE_TOKENS;
use crate::isa::isa;

/// Dimensions that share a scale and a minimum.
pub(crate) const GROUP: usize = 32;

/// Words of a line: a line of the cache, and a vector.
pub(crate) const LINE: usize = 16;

/// Codes in a word.
pub(crate) const CODES: usize = 8;

/// Words of a head's keys in a page.
pub(crate) const fn key_words(dims: usize) -> usize {
    (dims.div_ceil(GROUP) + dims.div_ceil(CODES)) * LINE
}

/// Words of a head's values in a page.
pub(crate) const fn value_words(dims: usize) -> usize {
    (dims.div_ceil(GROUP) + dims.div_ceil(LINE) * (PAGE_TOKENS / CODES)) * LINE
}

/// Stores a token's key.
pub(super) fn write_key(words: &mut [u32], slot: usize, x: &[f32]) {
    let mut lines = words.as_chunks_mut::<LINE>().0;
    for x in x.chunks(GROUP) {
        let mut codes = [0; GROUP];
        let meaning = (isa().four_bits)(x, &mut codes);
        let (group, rest) = lines.split_at_mut(1 + x.len().div_ceil(CODES));
        group[0][slot] = meaning;
        for (line, codes) in group[1..].iter_mut().zip(codes.as_chunks::<CODES>().0) {
            line[slot] = together(*codes);
        }
        lines = rest;
    }
}

/// Stores a token's value.
pub(super) fn write_value(words: &mut [u32], slot: usize, x: &[f32]) {
    let mut lines = words.as_chunks_mut::<LINE>().0;
    let (half, shift) = (slot / CODES, 4 * (slot % CODES));
    for x in x.chunks(GROUP) {
        let mut codes = [0; GROUP];
        let meaning = (isa().four_bits)(x, &mut codes);
        let (group, rest) = lines.split_at_mut(1 + 2 * x.len().div_ceil(LINE));
        group[0][slot] = meaning;
        let halves = group[1..].iter_mut().skip(half).step_by(2);
        for (line, codes) in halves.zip(codes.as_chunks::<LINE>().0) {
            for (word, code) in line.iter_mut().zip(codes) {
                *word = *word & !(15 << shift) | u32::from(*code) << shift;
            }
        }
        lines = rest;
    }
}

/// Eight codes in a word, the first in the lowest bits.
fn together(codes: [u8; CODES]) -> u32 {
    let x = u64::from_le_bytes(codes);
    let x = (x | x >> 4) & 0x00ff_00ff_00ff_00ff;
    let x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
    (x | x >> 16) as u32
}

/// Times that scale and minimum are fitted to the codes that they gave.
const FITS: usize = 2;

/// The codes of at most [`GROUP`] values, and the word that says what they mean. What is not
/// finite makes all values NaN.
///
/// From the scale and minimum that cover all values, codes and least squares in turn: the ends
/// are few, and nearer ones serve the others better.
///
/// Plain arithmetic, which is compiled for each instruction set and has the same bits on all.
#[inline(always)]
pub(crate) fn four_bits(x: &[f32], codes: &mut [u8; GROUP]) -> u32 {
    let Some(&first) = x.first() else { return 0 };
    let mut all = [first; GROUP];
    all[..x.len()].copy_from_slice(x);
    let mut counts = [0.0; GROUP];
    counts[..x.len()].fill(1.0);
    let (mut least, mut most, mut largest) = ([first; LINE], [first; LINE], [0; LINE]);
    for x in all.as_chunks::<LINE>().0 {
        for i in 0..LINE {
            least[i] = if x[i] < least[i] { x[i] } else { least[i] };
            most[i] = if x[i] > most[i] { x[i] } else { most[i] };
            // As integers, magnitudes are in order, and what is not finite is above all else.
            largest[i] = largest[i].max(x[i].abs().to_bits());
        }
    }
    let largest = largest.iter().fold(0, |a, &b| a.max(b));
    if !f32::from_bits(largest).is_finite() {
        return word(f16::NAN, f16::NAN);
    }
    let least = least.iter().copied().fold(first, f32::min);
    let most = most.iter().copied().fold(first, f32::max);
    let mut from = f16::from_f32(least);
    // From the minimum as it is kept, so that its rounding costs the codes nothing.
    let mut scale = f16::from_f32((most - from.to_f32()) / 15.0);
    for _ in 0..FITS {
        let mut near = [0.0; GROUP];
        if !nearest(&all, scale, from, &mut near) {
            break;
        }
        let Some(fit) = fit(&all, &near, &counts, x.len(), least) else {
            break;
        };
        (scale, from) = fit;
    }
    let mut near = [0.0; GROUP];
    if nearest(&all, scale, from, &mut near) {
        for (code, near) in codes.iter_mut().zip(near) {
            // In the last bits of 2²³ and something are whole numbers.
            *code = (near + WHOLE).to_bits() as u8;
        }
    }
    word(scale, from)
}

fn word(scale: f16, least: f16) -> u32 {
    u32::from(least.to_bits()) << 16 | u32::from(scale.to_bits())
}

/// Adding it to what is not negative rounds to whole numbers, the even one of two that are as near.
const WHOLE: f32 = 8_388_608.0;

/// The nearest code of each value; false where the scale allows only one.
#[inline(always)]
fn nearest(x: &[f32; GROUP], scale: f16, from: f16, near: &mut [f32; GROUP]) -> bool {
    let (from, inverse) = (from.to_f32(), 1.0 / scale.to_f32());
    if !(inverse.is_finite() && inverse > 0.0) {
        return false;
    }
    for (near, x) in near.iter_mut().zip(x) {
        let code = (x - from) * inverse;
        let code = if code > 0.0 { code } else { 0.0 };
        let code = if code < 15.0 { code } else { 15.0 };
        *near = (code + WHOLE) - WHOLE;
    }
    true
}

/// The scale and minimum with which the codes are nearest to the values, by least squares.
#[inline(always)]
fn fit(
    x: &[f32; GROUP],
    codes: &[f32; GROUP],
    counts: &[f32; GROUP],
    count: usize,
    least: f32,
) -> Option<(f16, f16)> {
    // Σ code, Σ code², Σ value, Σ code · value, with values from the least on.
    let mut sums = [[0.0; LINE]; 4];
    let lines = x.as_chunks::<LINE>().0.iter();
    let lines = lines.zip(codes.as_chunks::<LINE>().0);
    for ((x, codes), counts) in lines.zip(counts.as_chunks::<LINE>().0) {
        for i in 0..LINE {
            let (code, x) = (codes[i] * counts[i], (x[i] - least) * counts[i]);
            sums[0][i] += code;
            sums[1][i] += code * code;
            sums[2][i] += x;
            sums[3][i] += code * x;
        }
    }
    let [c, cc, x, cx] = sums.map(|lanes| lanes.iter().sum::<f32>());
    let count = count as f32;
    let spread = count * cc - c * c;
    let scale = f16::from_f32((count * cx - c * x) / spread);
    let from = f16::from_f32(least + (x - scale.to_f32() * c) / count);
    let usable = spread > 0.0 && scale > f16::ZERO && scale.is_finite() && from.is_finite();
    usable.then_some((scale, from))
}

/// One stored value: the code of dimension `d` and token `slot`, and what it means.
#[cfg(test)]
pub(crate) fn at(words: &[u32], keys: bool, d: usize, slot: usize) -> f32 {
    let lines = words.as_chunks::<LINE>().0;
    let whole = 1 + GROUP / CODES;
    let (start, d) = (d / GROUP * whole, d % GROUP);
    let (line, lane, place) = match keys {
        true => (start + 1 + d / CODES, slot, d % CODES),
        false => {
            let line = start + 1 + 2 * (d / LINE) + slot / CODES;
            (line, d % LINE, slot % CODES)
        }
    };
    let code = lines[line][lane] >> (4 * place) & 15;
    let half = |bits: u32| f16::from_bits(bits as u16).to_f32();
    let meaning = lines[start][slot];
    code as f32 * half(meaning) + half(meaning >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa;

    fn decoded(x: &[f32], four_bits: fn(&[f32], &mut [u8; GROUP]) -> u32) -> Vec<f32> {
        let mut codes = [0; GROUP];
        let word = four_bits(x, &mut codes);
        let half = |bits: u32| f16::from_bits(bits as u16).to_f32();
        let each = |c: &u8| f32::from(*c) * half(word) + half(word >> 16);
        codes[..x.len()].iter().map(each).collect()
    }

    #[test]
    fn every_value_is_within_about_a_step_and_most_are_within_half() {
        for n in 1..=GROUP {
            let x: Vec<f32> = (0..n)
                .map(|i| ((i * 37 + n) % 53) as f32 * 0.37 - 4.0)
                .collect();
            let range = |f: fn(f32, f32) -> f32| x.iter().copied().reduce(f).unwrap();
            let step = (range(f32::max) - range(f32::min)) / 15.0;
            for isa in isa::all() {
                let y = decoded(&x, isa.four_bits);
                let error: f32 = y.iter().zip(&x).map(|(y, x)| (y - x) * (y - x)).sum();
                let even = step * step / 12.0;
                assert!(
                    error / n as f32 <= even * 1.2 + 1e-4,
                    "{error} of {n} values"
                );
                for (y, x) in y.iter().zip(&x) {
                    // Fitting gives up some of the ends; on the whole it is better.
                    assert!((y - x).abs() <= step * 1.1 + 0.011, "{y}, not {x}, of {n}");
                }
            }
        }
    }

    #[test]
    fn all_instruction_sets_choose_the_same_codes() {
        for n in [1, 5, 16, 23, GROUP] {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 1.7).sin() * 3.0 + 1.0).collect();
            let all = isa::all();
            let made = all.iter().map(|isa| {
                let mut codes = [0; GROUP];
                ((isa.four_bits)(&x, &mut codes), codes)
            });
            let made: Vec<_> = made.collect();
            assert!(made.iter().all(|m| *m == made[0]), "{n} values");
        }
    }

    #[test]
    fn equal_values_are_kept_as_f16_keeps_them() {
        for x in [0.0, 1.5, -70.0, 1e-7] {
            let kept = f16::from_f32(x).to_f32();
            assert!(
                decoded(&[x; 20], four_bits).iter().all(|y| *y == kept),
                "{x}"
            );
        }
    }

    #[test]
    fn what_is_not_finite_is_seen() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; 30];
            x[7] = bad;
            assert!(decoded(&x, four_bits).iter().all(|y| y.is_nan()));
        }
        // Above what f16 holds.
        let x = [1e6, -1e6];
        assert!(decoded(&x, four_bits).iter().all(|y| !y.is_finite()));
    }

    #[test]
    fn a_token_is_written_without_touching_the_others() {
        for dims in [3, 16, 40, 64, 80, 128] {
            let token = |slot: usize| -> Vec<f32> {
                (0..dims)
                    .map(|d| ((d * 7 + slot * 5) % 16) as f32)
                    .collect()
            };
            let (mut keys, mut values) = (vec![!0; key_words(dims)], vec![!0; value_words(dims)]);
            for slot in [5, 0, 15, 8, 7, 9, 5] {
                write_key(&mut keys, slot, &token(slot));
                write_value(&mut values, slot, &token(slot));
            }
            for slot in [0, 5, 7, 8, 9, 15] {
                for (d, x) in token(slot).into_iter().enumerate() {
                    assert!(
                        (at(&keys, true, d, slot) - x).abs() < 0.51,
                        "{dims} {slot} {d}"
                    );
                    assert!(
                        (at(&values, false, d, slot) - x).abs() < 0.51,
                        "{dims} {slot} {d}"
                    );
                }
            }
        }
    }
}
