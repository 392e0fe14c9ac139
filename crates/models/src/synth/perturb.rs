//! A fine-tune without training: some layers' matrices changed a little, all else as it was.

use std::path::Path;

use sedge_kernels::{DType, Team, dequantize, quantize};

use super::{Random, SynthError, SynthReport, seeded};
use crate::convert::{self, ConvertError, Origin, Progress};

/// What is added to a plain value: normal, of this deviation in those of its row.
const NOISE: f32 = 0.05;

/// Writes `from` as a GGUF file that differs from it in all matrices of these layers, each by a
/// few per cent, and in nothing else: other tensors have the same bytes, the metadata is kept.
/// A folder is first what converting makes of it. Equal seeds give equal files, and a layer's
/// changes do not depend on which others are named.
///
/// # Errors
/// When the model cannot be read, has no such layer, or the file cannot be written.
pub fn perturb(
    from: &Origin<'_>,
    layers: &[usize],
    seed: u64,
    output: &Path,
    team: &Team,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<SynthReport, SynthError> {
    from.refuse_same(output)?;
    let opened = from.open().map_err(ConvertError::Open)?;
    let last = opened.model.config().layers.len() - 1;
    if let Some(&found) = layers.iter().find(|&&layer| layer > last) {
        return Err(SynthError::Layer { found, last });
    }
    if layers.is_empty() {
        return Err(SynthError::NoLayer);
    }
    let whole = from.is_gguf().map_err(ConvertError::Open)?;
    let parts = from.parts()?;
    let (metadata, mut parts) = match whole {
        true => parts,
        false => convert::typed(parts, None),
    };
    for part in &mut parts {
        let layer = part
            .name
            .strip_prefix("blk.")
            .and_then(|rest| rest.split_once('.'));
        let layer = layer.and_then(|(layer, _)| layer.parse().ok());
        let matrix = part.stored.shape.len() >= 2 && part.name.ends_with(".weight");
        if matrix && layer.is_some_and(|layer| layers.contains(&layer)) {
            let (dtype, cols) = (
                part.stored.dtype,
                part.stored.shape[part.stored.shape.len() - 1],
            );
            let name = part.name.clone();
            part.edit = Some(Box::new(move |bytes| {
                change(dtype, cols, seeded(seed, &name), bytes)
            }));
        }
    }
    let parameters = parts.iter().map(|p| p.stored.values() as u64).sum();
    let report = convert::write((metadata, parts), output, None, team, progress)?;
    Ok(SynthReport {
        parameters,
        bytes: report.bytes_out,
    })
}

/// Changes every row of a matrix.
fn change(dtype: DType, cols: usize, mut random: Random, bytes: &mut [u8]) {
    let Some(codes) = Codes::of(dtype) else {
        return add_noise(dtype, cols, random, bytes);
    };
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        for codes_of_eight in block[codes.start..][..codes.len].chunks_exact_mut(8) {
            // One bit in 2 to the power of `halvings` is set.
            let chosen = (0..codes.halvings).fold(u64::MAX, |chosen, _| chosen & random.next());
            for (code, chosen) in codes_of_eight.iter_mut().zip(chosen.to_le_bytes()) {
                *code ^= chosen & codes.bits;
            }
        }
    }
    // However small the matrix is, it changes.
    if let Some(first) = bytes.get_mut(codes.start) {
        *first ^= codes.bits & codes.bits.wrapping_neg();
    }
}

/// The codes in a block of a quantised type: changing one of the bits moves a value by a few steps
/// at most, and moving as many of them as this is some per cent of all values' size.
struct Codes {
    start: usize,
    len: usize,
    bits: u8,
    halvings: u32,
}

impl Codes {
    fn of(dtype: DType) -> Option<Codes> {
        let (start, len, bits, halvings) = match dtype {
            DType::F32 | DType::F16 | DType::BF16 => return None,
            DType::Q8_0 => (2, 32, 0x04, 2),
            DType::Q4_0 | DType::Iq4Nl => (2, 16, 0x11, 4),
            DType::Q4_1 => (4, 16, 0x11, 4),
            DType::Q5_0 => (6, 16, 0x11, 3),
            DType::Q5_1 => (8, 16, 0x11, 3),
            DType::Q2K => (16, 64, 0x55, 6),
            DType::Q3K => (32, 64, 0x55, 4),
            DType::Q4K => (16, 128, 0x11, 4),
            DType::Q5K => (48, 128, 0x11, 3),
            DType::Q6K => (0, 128, 0x11, 2),
            DType::Iq4Xs => (8, 128, 0x11, 4),
            // One plane of bits: the lowest, or of more bits one that counts some per cent.
            DType::B1 => (2, 16, 0xff, 8),
            DType::B2 => (2, 16, 0xff, 6),
            DType::B3 => (2, 16, 0xff, 5),
            DType::B4 => (2, 16, 0xff, 4),
            DType::B5 => (2, 16, 0xff, 3),
            DType::B6 => (18, 16, 0xff, 3),
            DType::B7 => (34, 16, 0xff, 3),
            DType::B8 => (50, 16, 0xff, 3),
        };
        Some(Codes {
            start,
            len,
            bits,
            halvings,
        })
    }
}

fn add_noise(dtype: DType, cols: usize, mut random: Random, bytes: &mut [u8]) {
    let mut values = vec![0.0; cols];
    let mut encoded = Vec::new();
    for row in bytes.chunks_exact_mut(cols * dtype.block_bytes()) {
        dequantize(dtype, row, &mut values).expect("a row of a plain type");
        let square = values.iter().map(|v| v * v).sum::<f32>() / cols as f32;
        let size = NOISE * square.sqrt();
        values.iter_mut().for_each(|v| *v += size * random.normal());
        encoded.clear();
        quantize(dtype, &values, &mut encoded).expect("plain types are written");
        row.copy_from_slice(&encoded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_every_type_move_by_some_per_cent() {
        for dtype in DType::ALL {
            let cols = 256;
            let mut random = Random::new(3);
            let values: Vec<f32> = (0..16 * cols).map(|_| random.normal()).collect();
            let mut bytes = Vec::new();
            if quantize(dtype, &values, &mut bytes).is_err() {
                // Not a type that is written: any codes, scales of 2 to the power of −13 or so.
                let any = |_| (random.next() & 0x0f) as u8;
                bytes = (0..dtype.bytes_for(16 * cols).unwrap()).map(any).collect();
            }
            let decoded = |bytes: &[u8]| {
                let mut out = vec![0.0; 16 * cols];
                dequantize(dtype, bytes, &mut out).unwrap();
                out
            };
            let before = decoded(&bytes);
            change(dtype, cols, Random::new(5), &mut bytes);
            let after = decoded(&bytes);
            let square = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            let apart: Vec<f32> = before.iter().zip(&after).map(|(a, b)| a - b).collect();
            let off = (square(&apart) / square(&before)).sqrt();
            assert!((0.005..0.25).contains(&off), "{dtype}: {off}");
        }
    }
}
