//! Latent attention in its absorbed form (DeepSeek-V2): ways into and out of the latent space.

use sedge_kernels::{Team, matmul, rms_norm, rms_norm_in_place, rotate};

use crate::config::{Config, Latent};
use crate::decoder::{Rowed, StageWork, sized};
use crate::input::{Input, Read, Rows};
use crate::rope::Angles;
use crate::weights::LatentWeights;

/// Queries in the latent space and this batch's latent keys: `q [rows, heads, kv_rank + rope]`,
/// `k [rows, kv_rank + rope]`.
pub(crate) fn latent_queries(
    c: &Config,
    team: &Team,
    w: &LatentWeights,
    Rows {
        all: rows,
        integers,
    }: Rows,
    values: &mut Rowed,
    s: &mut StageWork,
) {
    let Some(l) = c.latent else { return };
    let normed = &s.normed[..rows * c.hidden];
    let head = l.nope + l.rope;
    let plain = sized(&mut values.v, rows * c.heads * head);
    let first = w.q_down.as_ref().map_or(&w.q, |(down, _)| down);
    let readers = [first, &w.kv_down];
    let input = Input::of(team, normed, integers, &readers, &mut s.converted);
    let width = l.kv_rank + l.rope;
    let down = sized(&mut s.narrow, rows * width);
    let linear = &w.kv_down;
    input.products(team, [Read { linear, out: down }]);
    match &w.q_down {
        Some((narrow, norm)) => {
            let rank = narrow.weight.rows();
            let out = sized(&mut s.by_head, rows * rank);
            input.products(
                team,
                [Read {
                    linear: narrow,
                    out,
                }],
            );
            let x = &mut s.by_head[..rows * rank];
            team.for_rows(x, rank, &|_, row| rms_norm_in_place(row, norm, c.norm_eps));
            let input = Input::of(team, x, integers, &[&w.q], &mut s.converted);
            input.products(
                team,
                [Read {
                    linear: &w.q,
                    out: plain,
                }],
            );
        }
        None => input.products(
            team,
            [Read {
                linear: &w.q,
                out: plain,
            }],
        ),
    }
    let k = sized(&mut values.k, rows * width);
    for (from, to) in down.chunks_exact(width).zip(k.chunks_exact_mut(width)) {
        rms_norm(
            &from[..l.kv_rank],
            &w.kv_norm,
            c.norm_eps,
            &mut to[..l.kv_rank],
        );
        to[l.kv_rank..].copy_from_slice(&from[l.kv_rank..]);
    }
    // Each head's part without positions goes through that head's matrix.
    let q = sized(&mut values.q, rows * c.heads * width);
    let (nope, latent) =
        sized(&mut s.by_head, rows * (l.nope + l.kv_rank)).split_at_mut(rows * l.nope);
    for (h, to_latent) in w.q_to_latent.iter().enumerate() {
        for row in 0..rows {
            nope[row * l.nope..][..l.nope]
                .copy_from_slice(&plain[(row * c.heads + h) * head..][..l.nope]);
        }
        matmul(team, nope, to_latent, latent);
        for row in 0..rows {
            let to = &mut q[(row * c.heads + h) * width..][..width];
            to[..l.kv_rank].copy_from_slice(&latent[row * l.kv_rank..][..l.kv_rank]);
            to[l.kv_rank..]
                .copy_from_slice(&plain[(row * c.heads + h) * head + l.nope..][..l.rope]);
        }
    }
}

/// `attended [rows, heads, kv_rank]` becomes `[rows, heads, v]`.
pub(crate) fn out_of_latent(
    heads: usize,
    team: &Team,
    w: &LatentWeights,
    l: Latent,
    rows: usize,
    values: &mut Rowed,
    s: &mut StageWork,
) {
    let out = sized(&mut values.q, rows * heads * l.v);
    let (latent, v) =
        sized(&mut s.by_head, rows * (l.kv_rank + l.v)).split_at_mut(rows * l.kv_rank);
    for (h, to_v) in w.latent_to_v.iter().enumerate() {
        for row in 0..rows {
            let from = &values.attended[(row * heads + h) * l.kv_rank..][..l.kv_rank];
            latent[row * l.kv_rank..][..l.kv_rank].copy_from_slice(from);
        }
        matmul(team, latent, to_v, v);
        for row in 0..rows {
            out[(row * heads + h) * l.v..][..l.v].copy_from_slice(&v[row * l.v..][..l.v]);
        }
    }
    sized(&mut values.attended, rows * heads * l.v).copy_from_slice(out);
}

/// Rotates the parts of queries and keys that know their positions.
pub(crate) fn rotate_latent(
    c: &Config,
    l: Latent,
    rope: usize,
    angles: &Angles,
    rows: usize,
    values: &mut Rowed,
) {
    let width = l.kv_rank + l.rope;
    let pairs = c.ropes[rope].frequencies.len();
    let (q, k) = (&mut values.q, &mut values.k);
    for row in 0..rows {
        let angle = row * pairs..(row + 1) * pairs;
        let (cos, sin) = (&angles.cos[angle.clone()], &angles.sin[angle]);
        let heads = q[row * c.heads * width..][..c.heads * width].chunks_exact_mut(width);
        for part in heads.chain([&mut k[row * width..][..width]]) {
            let part = &mut part[l.kv_rank..];
            rotate(part, 1, l.rope, cos, sin, pairs, c.rope_style);
        }
    }
}
