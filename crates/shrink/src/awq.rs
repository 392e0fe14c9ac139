//! Columns that are multiplied with large values are made larger, so that rounding hurts them
//! less, and what comes before them smaller by as much (AWQ: Lin et al., 2023, arXiv 2306.00978).
//! The model as it is computes the same.

use std::collections::BTreeMap;

use sedge_kernels::{Matrix, Team};
use sedge_models::{Layerwise, Site};

use crate::moment::Moment;
use crate::round::nearest;
use crate::shrink::{Types, decode};

/// Exponents of the columns' mean magnitude that are tried: twentieths up to 1.
const STEPS: usize = 20;
/// Rows of a matrix on which they are tried.
const TRIED: usize = 256;

/// Scales the columns of all of a layer's matrices that read the result of one of its norms, and
/// of those before which another matrix's rows can take it up.
pub(crate) fn fold(
    team: &Team,
    layers: &mut Layerwise,
    sites: &[Site],
    moments: &BTreeMap<usize, Moment>,
    types: &Types,
) {
    let layer = layers.layer();
    let named = |site: &Site, part: &str| site.tensor == format!("blk.{layer}.{part}.weight");
    let of = |parts: &[&str]| -> Vec<usize> {
        let is = |site: &Site| parts.iter().any(|part| named(site, part));
        (0..sites.len()).filter(|&i| is(&sites[i])).collect()
    };
    let mut weights: Vec<Vec<f32>> = sites
        .iter()
        .map(|site| values(team, &site.weight))
        .collect();
    // All that read the same, whatever their names.
    let beside = |parts: &[&str]| -> Vec<usize> {
        let Some(&first) = of(parts).first() else {
            return Vec::new();
        };
        let input = sites[first].input;
        (0..sites.len())
            .filter(|&i| sites[i].input == input)
            .collect()
    };
    let groups = [
        (beside(&["attn_q", "attn_qkv", "attn_q_a"]), Some(0), None),
        (beside(&["ffn_gate", "ffn_up"]), Some(1), None),
        (of(&["ffn_down"]), None, of(&["ffn_up"]).pop()),
    ];
    let mut biases: Vec<Option<Vec<f32>>> = sites.iter().map(|site| site.bias.clone()).collect();
    let mut changed = vec![false; sites.len()];
    for (readers, norm, before) in groups {
        let Some(&first) = readers.first() else {
            continue;
        };
        let Some(moment) = moments.get(&sites[first].input) else {
            continue;
        };
        let columns = sites[first].weight.cols();
        // Gate and up in one matrix, or experts: what comes before is not one matrix's rows.
        let foldable =
            before.is_none_or(|up| sites[up].weight.rows() == columns && sites[up].rows.start == 0);
        if norm.is_none() && (before.is_none() || !foldable) {
            continue;
        }
        let tried: Vec<(&[f32], &Site)> = readers
            .iter()
            .map(|&i| (&weights[i][..], &sites[i]))
            .collect();
        let Some(by) = search(team, &tried, moment, types) else {
            continue;
        };
        for &reader in &readers {
            for row in weights[reader].chunks_exact_mut(columns) {
                row.iter_mut().zip(&by).for_each(|(w, by)| *w *= by);
            }
            changed[reader] = true;
        }
        if let Some(norm) = norm {
            let mut norms = layers.norms();
            norms[norm]
                .1
                .iter_mut()
                .zip(&by)
                .for_each(|(n, by)| *n /= by);
        } else if let Some(up) = before {
            let columns = sites[up].weight.cols();
            for (row, by) in weights[up].chunks_exact_mut(columns).zip(&by) {
                row.iter_mut().for_each(|w| *w /= by);
            }
            if let Some(bias) = &mut biases[up] {
                bias.iter_mut().zip(&by).for_each(|(b, by)| *b /= by);
            }
            changed[up] = true;
        }
    }
    for (index, (site, values)) in sites.iter().zip(&weights).enumerate() {
        if changed[index] {
            let (rows, columns) = (site.weight.rows(), site.weight.cols());
            let matrix = Matrix::from_f32(rows, columns, values);
            let bias = biases[index].clone();
            layers.replace(index, matrix.expect("the shape is kept"), bias);
        }
    }
}

fn values(team: &Team, w: &Matrix) -> Vec<f32> {
    let mut out = vec![0.0; w.rows() * w.cols()];
    decode(team, w, &mut out);
    out
}

/// The factors of the columns with which rounding costs least; `None` where none is better
/// than without.
fn search(
    team: &Team,
    readers: &[(&[f32], &Site)],
    moment: &Moment,
    types: &Types,
) -> Option<Vec<f32>> {
    let columns = moment.columns();
    let (squares, magnitudes) = (moment.squares(), moment.magnitudes());
    let error = |by: &[f32]| -> f64 {
        let weights: Vec<f32> = squares
            .iter()
            .zip(by)
            .map(|(s, by)| s / (by * by))
            .collect();
        let of = |(w, site): &(&[f32], &Site)| {
            let step = (w.len() / columns).div_ceil(TRIED).max(1);
            let rows = w.chunks_exact(columns).step_by(step);
            let scaled = rows.flat_map(|row| row.iter().zip(by).map(|(w, by)| w * by));
            let scaled: Vec<f32> = scaled.collect();
            let wanted = types.get(&site.tensor).copied();
            let dtype = wanted.unwrap_or(site.weight.dtype());
            nearest(team, dtype, &scaled, columns, Some(&weights)).error
        };
        readers.iter().map(of).sum()
    };
    let plain = error(&vec![1.0; columns]);
    let mut best = (plain, None);
    for step in 1..=STEPS {
        let power = step as f32 / STEPS as f32;
        let by: Vec<f32> = magnitudes.iter().map(|m| m.max(1e-4).powf(power)).collect();
        let low = by.iter().copied().fold(f32::INFINITY, f32::min);
        let high = by.iter().copied().fold(0.0, f32::max);
        let middle = (low * high).sqrt();
        let by: Vec<f32> = by.iter().map(|by| (by / middle).clamp(1e-3, 1e3)).collect();
        let found = error(&by);
        if found < best.0 {
            best = (found, Some(by));
        }
    }
    best.1
}
