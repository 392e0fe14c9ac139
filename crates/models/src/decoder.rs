//! The forward pass of every decoder: one flat batch through all layers.
//! A row's result does not depend on the other rows, so batching never changes an answer.

use sedge_kernels::{
    Activations, Attention, KvPages, PAGE_TOKENS, Packer, Segment, Team, add_assign, attend,
    rms_norm, rms_norm_in_place, rotate, scale, softcap,
};

use crate::adapter::{Before, NormPart, Part as Product};
use crate::batch::{Batch, Outputs};
use crate::changed::{ChangeWork, Changed, Changes, change, scale_inputs};
use crate::config::{Config, QkNorm};
use crate::family::{Family, JoinError, Stage};
use crate::input::{
    ChangedOut, FeedForwardOut, FeedForwardWork, Input, Read, Rows, adapted, feed_forward,
};
use crate::latent::{latent_queries, out_of_latent, rotate_latent};
use crate::moe;
use crate::rope::Angles;
use crate::rows::{Part, Who};
use crate::stack::StacksInUse;
use crate::tensors::{TensorError, Tensors};
use crate::weights::{FeedForward, LayerWeights, Projections, Weights, Work};

/// A causal language model, and fine-tunes of it that share what is equal.
#[derive(Debug, Clone)]
pub struct Decoder {
    pub(crate) config: Config,
    pub(crate) family: Family,
    /// Rounds the rows of prompts to bfloat16 for packed weights.
    pub(crate) round: bool,
    /// The blocks that its stacked matrices may have, if any are.
    pub(crate) stacks: Option<StacksInUse>,
}

/// Working memory of forward passes; grows to the largest batch and stays.
#[derive(Debug, Default)]
pub struct Scratch {
    positions: Vec<u32>,
    angles: Vec<Angles>,
    pub(crate) who: Who,
    /// All rows, and those of the part that a stage computes where there are several.
    pub(crate) rows: Rowed,
    part: Rowed,
    work: StageWork,
}

/// What is kept of each row between stages.
#[derive(Debug, Default)]
pub(crate) struct Rowed {
    pub(crate) state: Vec<f32>,
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
    pub(crate) attended: Vec<f32>,
}

/// Working memory within a stage.
#[derive(Debug, Default)]
pub(crate) struct StageWork {
    pub(crate) normed: Vec<f32>,
    pub(crate) result: Vec<f32>,
    pub(crate) narrow: Vec<f32>,
    pub(crate) by_head: Vec<f32>,
    pub(crate) converted: Activations,
    ffn: FeedForwardWork,
    moe: moe::MoeScratch,
    change: ChangeWork,
}

/// The first `len` values of a buffer that only grows.
pub(crate) fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// A buffer of [`Rowed`].
#[derive(Debug, Clone, Copy)]
enum Column {
    State,
    Q,
    K,
    V,
    Attended,
}

impl Rowed {
    fn column(&mut self, column: Column) -> &mut Vec<f32> {
        match column {
            Column::State => &mut self.state,
            Column::Q => &mut self.q,
            Column::K => &mut self.k,
            Column::V => &mut self.v,
            Column::Attended => &mut self.attended,
        }
    }
}

/// Runs a stage: on all rows where they are one part, else on each part's, brought together and
/// taken back. `bring` and `take` are columns with their widths.
fn each_part(
    parts: &[Part],
    (rows, sub): (&mut Rowed, &mut Rowed),
    bring: &[(Column, usize)],
    take: &[(Column, usize)],
    run: &mut dyn FnMut(&Part, &mut Rowed),
) {
    if let [one] = parts {
        return run(one, rows);
    }
    let all: usize = parts.iter().map(|part| part.size.all).sum();
    for part in parts {
        for &(column, width) in bring {
            let to = sized(sub.column(column), part.size.all * width);
            let from = rows.column(column);
            for (to, &row) in to.chunks_exact_mut(width).zip(&part.of) {
                to.copy_from_slice(&from[row as usize * width..][..width]);
            }
        }
        run(part, sub);
        for &(column, width) in take {
            let from = &sub.column(column)[..part.size.all * width];
            let to = sized(rows.column(column), all * width);
            for (from, &row) in from.chunks_exact(width).zip(&part.of) {
                to[row as usize * width..][..width].copy_from_slice(from);
            }
        }
    }
}

impl Decoder {
    pub(crate) fn load(config: Config, tensors: &Tensors) -> Result<Decoder, TensorError> {
        let weights = Weights::load(&config, tensors)?;
        let stacks = tensors.stacks.clone();
        let stacks = stacks.map(|stacks| StacksInUse::all(stacks, &weights));
        Ok(Decoder {
            config,
            family: Family::of(weights),
            round: false,
            stacks: stacks.transpose()?,
        })
    }

    /// Takes a fine-tune of the same shape as a further member; its number. Weights that equal
    /// an earlier member's become those.
    pub(crate) fn join(&mut self, other: Decoder) -> Result<usize, JoinError> {
        if self.is_packed() || other.is_packed() {
            return Err(JoinError::Packed);
        }
        if self.config != other.config {
            return Err(JoinError::Shape);
        }
        let mut number = self.family.members.len();
        for weights in other.family.members {
            number = self.family.join(weights);
        }
        Ok(number)
    }

    /// Whether any weights are packed.
    pub(crate) fn is_packed(&self) -> bool {
        let weights = &self.family.members[0];
        let layers = weights.layers.iter().map(|layer| &layer.output);
        layers
            .chain([&weights.head])
            .any(|linear| linear.weight.is_packed())
    }

    /// Whether packed weights multiply the rows of prompts rounded to bfloat16; see
    /// [`Model::round_prompts`](crate::Model::round_prompts).
    pub fn rounds_prompts(&self) -> bool {
        self.round
    }

    /// What [`Model::pack`](crate::Model::pack) packs.
    pub(crate) fn packer(&mut self) -> Packer<'_> {
        self.family.packer()
    }

    #[cfg(test)]
    pub(crate) fn embedding(&self, token: usize, out: &mut [f32]) {
        self.family.members[0].embedding(token, out);
    }

    /// A member's weights.
    pub(crate) fn weights(&self, member: usize) -> &Weights {
        &self.family.members[member]
    }

    /// What the products of one token take: in all layers, and in the output head.
    pub fn work(&self) -> [Work; 2] {
        self.family.members[0].work(&self.config)
    }

    /// The model's shape and rules.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Runs a batch: stores its keys and values, and computes the logits and hidden states that
    /// it asks for. A token beyond the vocabulary is one of those that its adapter puts before
    /// every prompt.
    ///
    /// # Panics
    /// When a token is neither, or segments, variants, tables and pages do not fit together.
    pub fn forward(
        &self,
        team: &Team,
        batch: &Batch,
        kv: &mut KvPages,
        s: &mut Scratch,
        out: &mut Outputs,
    ) {
        self.begin(team, batch, s);
        for layer in 0..self.config.layers.len() {
            self.layer(team, layer, batch, kv, s);
        }
        self.emit(team, batch, s, out);
        s.who.forget();
    }

    /// Readies a batch for the first layer.
    pub(crate) fn begin(&self, team: &Team, batch: &Batch, s: &mut Scratch) {
        let (c, size) = (&self.config, self.rows(batch));
        assert!(
            batch.generated <= size.all,
            "more generated tokens than rows"
        );
        positions(&batch.segments, size.all, &mut s.positions);
        s.angles.resize_with(c.ropes.len(), Angles::default);
        for (angles, rope) in s.angles.iter_mut().zip(&c.ropes) {
            angles.fill(rope, &s.positions);
        }
        s.who.fill(batch, size, &self.family);
        self.embed(team, batch, s);
    }

    /// Brings all rows' states through a layer.
    pub(crate) fn layer(
        &self,
        team: &Team,
        layer: usize,
        batch: &Batch,
        kv: &mut KvPages,
        s: &mut Scratch,
    ) {
        self.project(team, layer, s);
        self.place(team, layer, batch, kv, s);
        self.attend(team, layer, batch, kv, s);
        self.feed_forward(team, layer, s);
    }

    /// The batch's rows, as packed weights multiply them.
    fn rows(&self, batch: &Batch) -> Rows {
        let all = batch.tokens.len();
        let integers = if self.round { batch.generated } else { all };
        Rows { all, integers }
    }

    fn embed(&self, team: &Team, batch: &Batch, s: &mut Scratch) {
        let (c, who) = (&self.config, &s.who);
        let state = sized(&mut s.rows.state, batch.tokens.len() * c.hidden);
        team.for_rows(state, c.hidden, &|row, out| {
            let token = batch.tokens[row] as usize;
            let adapter = who.whole.adapted.of(row);
            match token.checked_sub(c.vocab) {
                None => {
                    self.family.members[who.member(row)].embedding(token, out);
                    if let Some(change) = adapter.and_then(|a| a.embedding.as_ref()) {
                        change.merge_row(token, out);
                    }
                }
                Some(place) => match adapter.and_then(|a| a.before.as_ref()) {
                    // Not scaled as tokens' are.
                    Some(Before::Embeddings(rows)) => return rows.row(place, out),
                    Some(Before::KeysValues { .. }) => out.fill(0.0),
                    None => panic!("token {token} of {}, and no adapter", c.vocab),
                },
            }
            if c.embedding_scale != 1.0 {
                scale(out, c.embedding_scale);
            }
        });
    }

    /// Queries, keys and values of all rows, not yet rotated.
    fn project(&self, team: &Team, index: usize, s: &mut Scratch) {
        let (c, work) = (&self.config, &mut s.work);
        let first = |m| self.family.first(index, Stage::Project, m);
        let shape = c.kv_shape();
        let (q, k, v) = (
            (Column::Q, c.heads * shape.k_dim),
            (Column::K, shape.heads * shape.k_dim),
            (Column::V, shape.heads * shape.v_dim),
        );
        let take: &[_] = if c.latent.is_some() {
            &[q, k]
        } else {
            &[q, k, v]
        };
        each_part(
            s.who.parts(first),
            (&mut s.rows, &mut s.part),
            &[(Column::State, c.hidden)],
            take,
            &mut |part, values| {
                let w = &self.family.members[part.member].layers[index];
                self.project_part(team, index, part, w, values, work);
            },
        );
    }

    fn project_part(
        &self,
        team: &Team,
        index: usize,
        part: &Part,
        w: &LayerWeights,
        values: &mut Rowed,
        s: &mut StageWork,
    ) {
        let (c, rows) = (&self.config, part.size.all);
        let state = &values.state;
        let norm = |row: usize, out: &mut [f32]| {
            let from = &state[row * c.hidden..][..c.hidden];
            let own = &w.attention_norm;
            let by = part.adapted.norm(row, index, NormPart::Attention, own);
            rms_norm(from, by, c.norm_eps, out);
        };
        let (q, k, v, q_norm, k_norm) = match &w.projections {
            Projections::Heads {
                q,
                k,
                v,
                q_norm,
                k_norm,
            } => (q, k, v, q_norm, k_norm),
            Projections::Latent(latent) => {
                team.for_rows(sized(&mut s.normed, rows * c.hidden), c.hidden, &norm);
                return latent_queries(c, team, latent, part.size, values, s);
            }
        };
        let changes = [Product::Q, Product::K, Product::V].map(|p| part.changes(index, p));
        let changed = changes.iter().any(|c| !c.is_empty());
        let readers = [q, k, v];
        let (normed, converted) = (&mut s.normed, &mut s.converted);
        let input = Input::made(team, part.size, &norm, &readers, normed, converted, changed);
        let (q_cols, kv_cols) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let mut outs = [
            sized(&mut values.q, rows * q_cols),
            sized(&mut values.k, rows * kv_cols),
            sized(&mut values.v, rows * kv_cols),
        ];
        let [to_q, to_k, to_v] = &mut outs;
        let reads = [(q, &mut **to_q), (k, &mut **to_k), (v, &mut **to_v)];
        input.products(team, reads.map(|(linear, out)| Read { linear, out }));
        if changed {
            let [of_q, of_k, of_v] = changes;
            let products = [
                (q, of_q, &mut **to_q),
                (k, of_k, &mut **to_k),
                (v, of_v, &mut **to_v),
            ];
            let products = products.map(|(linear, changes, out)| Changed {
                linear,
                changes,
                out,
            });
            let x = (input.plain(), part.size.integers);
            change(team, x, false, products, &mut s.change);
        }
        let [q, k, v] = outs;
        let norms = [(q_norm, NormPart::Query), (k_norm, NormPart::Key)];
        let normalise = |x: &mut [f32], (own, of): (&Option<Vec<f32>>, NormPart)| {
            let Some(own) = own else { return };
            let each = x.len() / rows.max(1);
            team.for_rows(x, each, &|row, x| {
                let by = part.adapted.norm(row, index, of, own);
                for x in x.chunks_exact_mut(by.len()) {
                    rms_norm_in_place(x, by, c.norm_eps);
                }
            });
        };
        if c.qk_norm == QkNorm::Whole {
            // OLMoE clips what its norms have left.
            normalise(q, norms[0]);
            normalise(k, norms[1]);
        }
        if let Some(clip) = c.qkv_clip {
            for x in [&mut *q, &mut *k, &mut *v] {
                x.iter_mut().for_each(|x| *x = x.clamp(-clip, clip));
            }
        }
        if c.qk_norm == QkNorm::Head {
            normalise(q, norms[0]);
            normalise(k, norms[1]);
        }
    }

    /// Tells queries and keys their positions, and puts keys and values into their pages.
    fn place(&self, team: &Team, index: usize, batch: &Batch, kv: &mut KvPages, s: &mut Scratch) {
        let (c, rows) = (&self.config, batch.tokens.len());
        if let Some(rope) = c.layers[index].rope {
            let (angles, pairs) = (&s.angles[rope], c.ropes[rope].frequencies.len());
            match c.latent {
                Some(latent) => rotate_latent(c, latent, rope, angles, rows, &mut s.rows),
                None => {
                    for (x, heads) in [(&mut s.rows.q, c.heads), (&mut s.rows.k, c.kv_heads)] {
                        let width = heads * c.head_dim;
                        team.for_rows(&mut x[..rows * width], width, &|row, x| {
                            let angle = row * pairs..(row + 1) * pairs;
                            let (cos, sin) = (&angles.cos[angle.clone()], &angles.sin[angle]);
                            rotate(x, heads, c.head_dim, cos, sin, pairs, c.rope_style);
                        });
                    }
                }
            }
        }
        self.put_before(index, batch, s);
        store(batch, index, kv, &s.rows.k, &s.rows.v);
    }

    /// The keys and values that adapters put before prompts, in place of what was computed.
    fn put_before(&self, index: usize, batch: &Batch, s: &mut Scratch) {
        let (c, adapted) = (&self.config, &s.who.whole.adapted);
        if adapted.is_empty() {
            return;
        }
        let width = c.kv_heads * c.head_dim;
        for (row, &token) in batch.tokens.iter().enumerate() {
            let Some(place) = (token as usize).checked_sub(c.vocab) else {
                continue;
            };
            if let Some(Before::KeysValues { layers, .. }) =
                adapted.of(row).and_then(|a| a.before.as_ref())
            {
                let to = [&mut s.rows.k, &mut s.rows.v];
                for (to, from) in to.into_iter().zip(&layers[index]) {
                    to[row * width..][..width].copy_from_slice(&from[place * width..][..width]);
                }
            }
        }
    }

    /// Attention of all rows, and what it adds to their states.
    fn attend(&self, team: &Team, index: usize, batch: &Batch, kv: &KvPages, s: &mut Scratch) {
        let (c, rows, work) = (&self.config, batch.tokens.len(), &mut s.work);
        let shape = kv.shape();
        let attention = Attention {
            layer: index,
            heads: c.heads,
            scale: c.attention_scale,
            window: c.layers[index].window,
            softcap: c.attention_softcap,
            segments: &batch.segments,
            tables: &batch.tables,
            rounded_from: self.rows(batch).integers,
        };
        let q = &s.rows.q[..rows * c.heads * shape.k_dim];
        let attended = sized(&mut s.rows.attended, rows * c.heads * shape.v_dim);
        attend(team, &attention, q, kv, attended);
        each_part(
            s.who.parts(|m| self.family.first(index, Stage::Output, m)),
            (&mut s.rows, &mut s.part),
            &[
                (Column::State, c.hidden),
                (Column::Attended, c.heads * shape.v_dim),
            ],
            &[(Column::State, c.hidden)],
            &mut |part, values| {
                let w = &self.family.members[part.member].layers[index];
                self.output_part(team, index, part, w, values, work);
            },
        );
    }

    fn output_part(
        &self,
        team: &Team,
        index: usize,
        part: &Part,
        w: &LayerWeights,
        values: &mut Rowed,
        s: &mut StageWork,
    ) {
        let (
            c,
            Rows {
                all: rows,
                integers,
            },
        ) = (&self.config, part.size);
        if let (Projections::Latent(latent), Some(l)) = (&w.projections, c.latent) {
            out_of_latent(c.heads, team, latent, l, rows, values, s);
        }
        let (linear, cols) = (&w.output, w.output.weight.cols());
        let changes = part.changes(index, Product::Output);
        let x = &mut values.attended[..rows * cols];
        for (row, x) in x
            .chunks_exact_mut(cols)
            .enumerate()
            .filter(|_| !changes.is_empty())
        {
            scale_inputs(x, row, &changes);
        }
        let input = Input::of(team, x, integers, &[linear], &mut s.converted);
        let state = &mut values.state[..rows * c.hidden];
        if w.post_attention_norm.is_none() {
            if changes.is_empty() {
                return input.add_product(team, Read { linear, out: state }, &mut s.result);
            }
            let out = ChangedOut::Add(state, &mut s.result);
            return input.changed(team, linear, changes, out, &mut s.change);
        }
        let out = sized(&mut s.result, rows * c.hidden);
        input.changed(team, linear, changes, ChangedOut::Set(out), &mut s.change);
        let norm = (NormPart::PostAttention, &w.post_attention_norm);
        let result = &mut s.result[..rows * c.hidden];
        self.add(team, index, part, norm, result, state);
    }

    /// Adds `x`, or its norm if there is one, to `state`.
    fn add(
        &self,
        team: &Team,
        index: usize,
        part: &Part,
        (of, norm): (NormPart, &Option<Vec<f32>>),
        x: &mut [f32],
        state: &mut [f32],
    ) {
        let c = &self.config;
        if let Some(own) = norm {
            team.for_rows(x, c.hidden, &|row, x| {
                let by = part.adapted.norm(row, index, of, own);
                rms_norm_in_place(x, by, c.norm_eps);
            });
        }
        let x = &*x;
        team.for_rows(state, c.hidden, &|row, state| {
            add_assign(state, &x[row * c.hidden..][..c.hidden]);
        });
    }

    fn feed_forward(&self, team: &Team, index: usize, s: &mut Scratch) {
        let (c, work) = (&self.config, &mut s.work);
        each_part(
            s.who
                .parts(|m| self.family.first(index, Stage::FeedForward, m)),
            (&mut s.rows, &mut s.part),
            &[(Column::State, c.hidden)],
            &[(Column::State, c.hidden)],
            &mut |part, values| {
                let w = &self.family.members[part.member].layers[index];
                self.feed_forward_part(team, index, part, w, values, work);
            },
        );
    }

    fn feed_forward_part(
        &self,
        team: &Team,
        index: usize,
        part: &Part,
        w: &LayerWeights,
        values: &mut Rowed,
        s: &mut StageWork,
    ) {
        let (c, rows) = (&self.config, part.size);
        let len = rows.all * c.hidden;
        let from = &values.state;
        let norm = |row: usize, out: &mut [f32]| {
            let from = &from[row * c.hidden..][..c.hidden];
            let by = part
                .adapted
                .norm(row, index, NormPart::FeedForward, &w.ffn_norm);
            rms_norm(from, by, c.norm_eps, out);
        };
        match (&w.ffn, &c.moe) {
            (FeedForward::Dense(dense), _) => {
                let changes: [Changes<'_>; 3] =
                    [Product::Gate, Product::Up, Product::Down].map(|p| part.changes(index, p));
                let changed = changes.iter().any(|c| !c.is_empty());
                let readers = [&dense.gate, &dense.up];
                let (plain, converted) = (&mut s.normed, &mut s.converted);
                let x = Input::made(team, rows, &norm, &readers, plain, converted, changed);
                let state = &mut values.state[..len];
                let post = w.post_ffn_norm.is_some();
                if changed {
                    let out = match post {
                        true => ChangedOut::Set(sized(&mut s.result, len)),
                        false => ChangedOut::Add(state, &mut s.result),
                    };
                    let work = (&mut s.ffn, &mut s.change);
                    adapted(team, c.activation, dense, x, changes, work, out);
                } else {
                    let out = match post {
                        true => FeedForwardOut::Set(sized(&mut s.result, len)),
                        false => FeedForwardOut::Add(state),
                    };
                    feed_forward(team, c.activation, dense, x, &mut s.ffn, out);
                }
                if !post {
                    return;
                }
            }
            (FeedForward::Experts(experts), Some(rules)) => {
                let normed = sized(&mut s.normed, len);
                team.for_rows(normed, c.hidden, &norm);
                let result = sized(&mut s.result, len);
                moe::forward(
                    team,
                    c.activation,
                    rules,
                    experts,
                    (normed, rows.integers),
                    &mut s.moe,
                    result,
                );
            }
            (FeedForward::Experts(_), None) => {
                unreachable!("experts are loaded only where the config has them")
            }
        }
        let norm = (NormPart::PostFeedForward, &w.post_ffn_norm);
        let state = &mut values.state[..len];
        self.add(team, index, part, norm, &mut s.result[..len], state);
    }

    /// The last norm of the rows that are wanted, and their logits.
    fn emit(&self, team: &Team, batch: &Batch, s: &mut Scratch, out: &mut Outputs) {
        let (c, state, who) = (&self.config, &s.rows.state, &mut s.who);
        out.hidden.resize(batch.hidden.len() * c.hidden, 0.0);
        out.logits.resize(batch.logits.len() * c.vocab, 0.0);
        {
            let who = &*who;
            let last_norm = |row: u32, out: &mut [f32]| self.last_norm(who, state, row, out);
            team.for_rows(&mut out.hidden, c.hidden, &|i, out| {
                last_norm(batch.hidden[i], out);
            });
        }
        if batch.logits.is_empty() {
            return;
        }
        let members: Vec<usize> = who
            .parts(|m| self.family.first_head(m))
            .iter()
            .map(|part| part.member)
            .collect();
        let who = &*who;
        for &member in &members {
            // All of them, where one head is everybody's.
            let mine = |row: u32| {
                members.len() == 1 || self.family.first_head(who.member(row as usize)) == member
            };
            let places = (0..batch.logits.len()).filter(|&i| mine(batch.logits[i]));
            let places: Vec<usize> = places.collect();
            let logits = match members.len() {
                1 => &mut out.logits[..],
                _ => sized(&mut s.work.result, places.len() * c.vocab),
            };
            let rows: Vec<u32> = places.iter().map(|&i| batch.logits[i]).collect();
            let adapted = who.whole.adapted.some(&rows);
            let changes = adapted.changes(|a| a.head.as_ref());
            let changed = !changes.is_empty();
            let linear = &self.family.members[member].head;
            // Few rows, of either kind: always as integers.
            let size = Rows {
                all: rows.len(),
                integers: rows.len(),
            };
            let input = Input::made(
                team,
                size,
                &|i, out| self.last_norm(who, state, rows[i], out),
                &[linear],
                &mut s.work.normed,
                &mut s.work.converted,
                changed,
            );
            input.products(
                team,
                [Read {
                    linear,
                    out: &mut *logits,
                }],
            );
            if changed {
                let products = [Changed {
                    linear,
                    changes,
                    out: &mut *logits,
                }];
                let x = (input.plain(), size.integers);
                change(team, x, false, products, &mut s.work.change);
            }
            if members.len() > 1 {
                let rows = s.work.result.chunks_exact(c.vocab);
                for (&place, row) in places.iter().zip(rows) {
                    out.logits[place * c.vocab..][..c.vocab].copy_from_slice(row);
                }
            }
        }
        if let Some(cap) = c.logit_softcap {
            team.for_rows(&mut out.logits, c.vocab, &|_, row| softcap(row, cap));
        }
    }

    fn last_norm(&self, who: &Who, state: &[f32], row: u32, out: &mut [f32]) {
        let (c, row) = (&self.config, row as usize);
        let from = &state[row * c.hidden..][..c.hidden];
        let own = &self.family.members[who.member(row)].norm;
        let changed = who.whole.adapted.of(row).and_then(|a| a.norm.as_ref());
        rms_norm(from, changed.unwrap_or(own), c.norm_eps, out);
    }
}

/// Each row's place in its sequence.
pub(crate) fn positions(segments: &[Segment], rows: usize, out: &mut Vec<u32>) {
    out.clear();
    out.resize(rows, 0);
    for segment in segments {
        for (i, row) in segment.rows.clone().enumerate() {
            out[row] = (segment.position + i) as u32;
        }
    }
}

/// Puts the batch's keys and values into their pages.
fn store(batch: &Batch, layer: usize, kv: &mut KvPages, k: &[f32], v: &[f32]) {
    let shape = kv.shape();
    let k_cols = shape.heads * shape.k_dim;
    let v_cols = if shape.v_in_k {
        0
    } else {
        shape.heads * shape.v_dim
    };
    for segment in &batch.segments {
        let table = &batch.tables[segment.pages.clone()];
        for (i, row) in segment.rows.clone().enumerate() {
            let position = segment.position + i;
            let page = table[position / PAGE_TOKENS];
            kv.write(
                layer,
                page,
                position % PAGE_TOKENS,
                &k[row * k_cols..][..k_cols],
                &v[row * v_cols..][..v_cols],
            );
        }
    }
}
