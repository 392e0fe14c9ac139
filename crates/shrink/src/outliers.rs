//! Fine-grained mixed precision of activations (FMPQ of COMET: Liu et al., 2025): channels whose
//! values are far larger than others' are brought together, so that few blocks of channels need
//! eight bits and the others do with less. The order of channels is folded into the weights
//! before and after them; the model as it is computes the same.

use sedge_kernels::{Matrix, Team};
use sedge_models::{Layerwise, Model, Site};

use crate::shrink::{ShrinkError, decode};

/// Channels that share a scale, and a number of bits.
pub(crate) const GROUP: usize = 64;

/// At most this share of groups keeps eight bits.
const WIDE: f64 = 0.2;

/// What a layer's inputs look like, channel by channel and group by group.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sizes {
    /// Largest magnitude of each channel.
    pub(crate) peaks: Vec<f32>,
    /// Sums of the squares of each row's largest magnitude, by group.
    groups: Vec<f64>,
}

impl Sizes {
    /// Takes rows in.
    pub(crate) fn add(&mut self, rows: &[f32], columns: usize) {
        self.peaks.resize(columns, 0.0);
        self.groups.resize(columns.div_ceil(GROUP), 0.0);
        for row in rows.chunks_exact(columns) {
            for (peak, x) in self.peaks.iter_mut().zip(row) {
                *peak = peak.max(x.abs());
            }
            for (sum, group) in self.groups.iter_mut().zip(row.chunks(GROUP)) {
                let most = group.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                *sum += f64::from(most * most);
            }
        }
    }

    /// Bits of each group: eight for those where coarser values would cost the product with
    /// these weights most, `bits` for the others.
    pub(crate) fn bits(&self, team: &Team, readers: &[&Site], bits: u8) -> Vec<u8> {
        let mut weights = vec![0.0f64; self.groups.len()];
        for site in readers {
            let columns = site.weight.cols();
            let mut values = vec![0.0; site.weight.rows() * columns];
            decode(team, &site.weight, &mut values);
            for row in values.chunks_exact(columns) {
                for (sum, group) in weights.iter_mut().zip(row.chunks(GROUP)) {
                    *sum += group.iter().map(|w| f64::from(w * w)).sum::<f64>();
                }
            }
        }
        let cost = |g: usize| self.groups[g] * weights[g];
        let mut order: Vec<usize> = (0..self.groups.len()).collect();
        order.sort_by(|&a, &b| cost(b).total_cmp(&cost(a)).then(a.cmp(&b)));
        let wide = (order.len() as f64 * WIDE) as usize;
        let mut all = vec![bits; order.len()];
        order[..wide].iter().for_each(|&g| all[g] = 8);
        all
    }
}

/// The sizes of a layer's inputs, by input.
pub(crate) fn sizes(
    team: &Team,
    layers: &mut Layerwise,
    sites: &[Site],
) -> Result<Vec<Sizes>, ShrinkError> {
    let inputs = 1 + sites.iter().map(|s| s.input).max().unwrap_or(0);
    let mut all = vec![Sizes::default(); inputs];
    let columns = |input: usize| {
        let reader = sites.iter().find(|s| s.input == input);
        reader.map_or(1, |s| s.weight.cols())
    };
    let seen = layers.observe(team, &mut |input, rows| {
        all[input].add(rows, columns(input))
    });
    seen.map_err(ShrinkError::Memory)?;
    Ok(all)
}

/// Channels from the largest to the smallest.
fn descending(sizes: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by(|&a, &b| sizes[b].total_cmp(&sizes[a]).then(a.cmp(&b)));
    order
}

/// The order of the model's states in which channels that are outliers of any layer's inputs come
/// first: one order for the whole model, since all layers add to the same states. `None` where a
/// router reads them too.
pub(crate) fn hidden_order(
    team: &Team,
    model: Model,
    text: &[Vec<u32>],
    tensors: &dyn Fn(&str) -> bool,
) -> Result<Option<Vec<usize>>, ShrinkError> {
    let mut layers = Layerwise::new(team, model, text, tensors).ok_or(ShrinkError::Encoder)?;
    let hidden = layers.config().hidden;
    if layers.config().moe.is_some() || layers.config().latent.is_some() {
        return Ok(None);
    }
    let mut scores = vec![0.0f32; hidden];
    while !layers.is_done() {
        let layer = layers.layer();
        let sites = layers.sites();
        let sizes = sizes(team, &mut layers, &sites)?;
        for part in ["attn_q", "attn_qkv", "ffn_up"] {
            let name = format!("blk.{layer}.{part}.weight");
            let Some(site) = sites.iter().find(|s| s.tensor == name) else {
                continue;
            };
            let peaks = &sizes[site.input].peaks;
            let mut sorted = peaks.clone();
            sorted.sort_by(f32::total_cmp);
            let middle = sorted[sorted.len() / 2].max(f32::MIN_POSITIVE);
            for (score, peak) in scores.iter_mut().zip(peaks) {
                *score = score.max(peak / middle);
            }
        }
        layers.advance(team).map_err(ShrinkError::Memory)?;
    }
    Ok(Some(descending(&scores)))
}

/// Takes the channels of the states in another order, in all of a layer that reads or writes
/// them, and then those between gate, up and down by their own sizes.
pub(crate) fn reorder(
    team: &Team,
    layers: &mut Layerwise,
    order: &[usize],
) -> Result<(), ShrinkError> {
    let layer = layers.layer();
    let is = |site: &Site, parts: &[&str]| {
        let named = |part: &&str| site.tensor == format!("blk.{layer}.{part}.weight");
        parts.iter().any(named)
    };
    for (index, site) in layers.sites().iter().enumerate() {
        let writes = is(site, &["attn_output", "ffn_down"]);
        let (rows, columns) = match writes {
            true => (Some(order), None),
            false => (None, Some(order)),
        };
        replace(team, layers, index, site, rows, columns);
    }
    for (_, norm) in layers.norms() {
        *norm = order.iter().map(|&i| norm[i]).collect();
    }
    let sites = layers.sites();
    let Some(down) = sites.iter().position(|s| is(s, &["ffn_down"])) else {
        return Ok(());
    };
    let sizes = sizes(team, layers, &sites)?;
    let inner = descending(&sizes[sites[down].input].peaks);
    for (index, site) in sites.iter().enumerate() {
        if index == down {
            replace(team, layers, index, site, None, Some(&inner));
        } else if is(site, &["ffn_gate", "ffn_up"]) {
            replace(team, layers, index, site, Some(&inner), None);
        }
    }
    Ok(())
}

fn replace(
    team: &Team,
    layers: &mut Layerwise,
    index: usize,
    site: &Site,
    rows: Option<&[usize]>,
    columns: Option<&[usize]>,
) {
    let (height, width) = (site.weight.rows(), site.weight.cols());
    let mut values = vec![0.0; height * width];
    decode(team, &site.weight, &mut values);
    let mut turned = vec![0.0f32; height * width];
    for (row, to) in turned.chunks_exact_mut(width).enumerate() {
        let from = rows.map_or(row, |rows| rows[row]);
        let from = &values[from * width..][..width];
        match columns {
            None => to.copy_from_slice(from),
            Some(columns) => {
                for (to, &column) in to.iter_mut().zip(columns) {
                    *to = from[column];
                }
            }
        }
    }
    let bias = site.bias.as_ref().map(|bias| match rows {
        Some(rows) => rows.iter().map(|&row| bias[row]).collect(),
        None => bias.clone(),
    });
    let matrix = Matrix::from_f32(height, width, &turned).expect("the shape is kept");
    layers.replace(index, matrix, bias);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_with_outliers_keep_eight_bits() {
        let mut sizes = Sizes::default();
        let mut rows = vec![1.0f32; 10 * 640];
        for row in rows.chunks_exact_mut(640) {
            (row[70], row[639]) = (50.0, -80.0);
        }
        sizes.add(&rows, 640);
        let weight = Matrix::from_f32(4, 640, &vec![0.5; 4 * 640]).unwrap();
        let site = Site {
            tensor: "x".into(),
            rows: 0..4,
            input: 0,
            weight,
            bias: None,
        };
        let bits = sizes.bits(&Team::new(1), &[&site], 4);
        assert_eq!(bits, [4, 8, 4, 4, 4, 4, 4, 4, 4, 8]);
        assert_eq!(descending(&sizes.peaks)[..2], [639, 70]);
    }
}
