//! How far a changed model is from what it was.

use half::f16;
use sedge_kernels::{KvPages, KvType, PAGE_TOKENS, Team, log_softmax_in_place};
use sedge_models::{Batch, Model, Outputs, Workspace};

/// How far a model's predictions of a text's tokens are from another's: the mean
/// Kullback-Leibler divergence, in nats a token.
pub(crate) struct Distance<'a> {
    text: &'a [Vec<u32>],
    kv: KvPages,
    work: Workspace,
    out: Outputs,
    /// The other's log-probabilities, for each text `[tokens, vocab]`.
    from: Vec<Vec<f16>>,
}

impl<'a> Distance<'a> {
    /// From a model.
    pub(crate) fn new(team: &Team, model: &Model, text: &'a [Vec<u32>]) -> Distance<'a> {
        let config = model.config();
        let longest = text.iter().map(Vec::len).max().unwrap_or(0);
        let pages = longest.div_ceil(PAGE_TOKENS);
        let mut distance = Distance {
            text,
            kv: KvPages::new(config.layers.len(), pages, model.kv_shape(), KvType::F16),
            work: Workspace::default(),
            out: Outputs::default(),
            from: Vec::new(),
        };
        for tokens in text {
            distance.predict(team, model, tokens);
            let logits = distance.out.logits.iter();
            distance
                .from
                .push(logits.map(|p| f16::from_f32(*p)).collect());
        }
        distance
    }

    /// Of a model.
    pub(crate) fn of(&mut self, team: &Team, model: &Model) -> f64 {
        let vocab = model.config().vocab;
        let (mut sum, mut count) = (0.0, 0);
        for (number, tokens) in self.text.iter().enumerate() {
            self.predict(team, model, tokens);
            let from = self.from[number].chunks_exact(vocab);
            for (from, to) in from.zip(self.out.logits.chunks_exact(vocab)) {
                let terms = from.iter().zip(to).map(|(from, to)| {
                    let from = from.to_f32();
                    f64::from(from.exp() * (from - to))
                });
                sum += terms.sum::<f64>();
                count += 1;
            }
        }
        sum / f64::from(count.max(1))
    }

    /// Leaves the log-probabilities after each token.
    fn predict(&mut self, team: &Team, model: &Model, tokens: &[u32]) {
        let mut batch = Batch::default();
        batch.push_sequence(tokens);
        batch.logits.extend(0..tokens.len() as u32);
        model.forward(team, &batch, &mut self.kv, &mut self.work, &mut self.out);
        let vocab = model.config().vocab;
        team.for_rows(&mut self.out.logits, vocab, &|_, row| {
            log_softmax_in_place(row)
        });
    }
}
