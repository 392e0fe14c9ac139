//! LoRA (Hu et al. 2021): `W + s·B·A` with `A: [rank, cols]`, `B: [rows, rank]`.
//! `s` is alpha/rank, or alpha/√rank where it is rank-stabilised (Kalajdzievski 2023).

use sedge_kernels::Factor;

use super::base::{Place, Target};
use super::checkpoint::Group;
use super::error::AdapterError;
use super::method::{Acts, Method};
use super::reader::{Module, Reader};
use super::settings::{self, Patterns, Settings};
use super::{Adapter, EmbeddingChange, LowRank, Term};

#[derive(Debug)]
pub(crate) struct Lora;

impl Method for Lora {
    fn name(&self) -> &'static str {
        "LoRA"
    }

    fn peft_type(&self) -> &'static str {
        "LORA"
    }

    fn takes(&self, settings: &Settings) -> Result<bool, AdapterError> {
        Ok(!settings.flag("use_dora")?)
    }

    fn acts(&self) -> Acts {
        Acts::Weights
    }

    fn rank_field(&self) -> Option<&'static str> {
        Some("r")
    }

    fn read(&self, reader: &mut Reader<'_>, adapter: &mut Adapter) -> Result<(), AdapterError> {
        refuse_variants(reader)?;
        let scaling = Scaling::of(reader.settings, "lora_alpha")?;
        for group in reader.tensors.groups("lora_") {
            let place = reader.base.place(&group.module, group.any())?;
            if matches!(place, Place::Embedding) {
                adapter.embedding = Some(embedding(reader, &scaling, group, self.name())?);
                continue;
            }
            let mut module = reader.module(group)?;
            for (target, term) in terms(&mut module, &scaling)? {
                adapter.change(target).terms.push(term);
            }
            added_bias(&mut module, &scaling, adapter)?;
            module.group.done(self.name())?;
        }
        Ok(())
    }
}

/// What LoRA's checkpoints may ask for and Sedge does not compute.
pub(crate) fn refuse_variants(reader: &Reader<'_>) -> Result<(), AdapterError> {
    reader.without(&[
        (
            "alora_invocation_tokens",
            "the adapter acts only behind these tokens",
        ),
        ("arrow_config", "a router chooses among adapters"),
        ("kasa_config", "the base's singular values are cut first"),
        ("layer_replication", "the model's layers are repeated"),
        ("monteclora_config", "the factors are sampled"),
        ("target_parameters", "experts' matrices are changed"),
        (
            "trainable_token_indices",
            "embeddings of some tokens are replaced",
        ),
        ("use_bdlora", "the factors are block-diagonal"),
        ("use_qalora", "the inputs are pooled by group"),
        ("velora_config", "the inputs are projected by group"),
    ])?;
    // These start from a base that they have changed, which the checkpoint does not hold.
    let init = reader.settings.get("init_lora_weights");
    let Some(init) = init.and_then(|v| v.as_str()) else {
        return Ok(());
    };
    let changing = ["pissa", "olora", "corda", "loftq", "lora_ga"];
    match changing.iter().any(|name| init.starts_with(name)) {
        false => Ok(()),
        true => Err(AdapterError::Variant {
            field: "init_lora_weights".into(),
            found: format!("{init:?}"),
            reason: "it changes the base's weights; PEFT can save such an adapter as one of the unchanged base".into(),
        }),
    }
}

/// The factor before the product of two factors, by module.
#[derive(Debug)]
pub(crate) struct Scaling {
    rank: usize,
    ranks: Patterns,
    alpha: f32,
    alphas: Patterns,
    stabilised: bool,
}

impl Scaling {
    pub(crate) fn of(settings: &Settings, alpha: &str) -> Result<Scaling, AdapterError> {
        Ok(Scaling {
            rank: settings.rank("r")?,
            ranks: settings.patterns("rank_pattern")?,
            alpha: settings.number(alpha)?,
            alphas: settings.patterns("alpha_pattern")?,
            stabilised: settings.flag("use_rslora")?,
        })
    }

    pub(crate) fn rank(&self, module: &str) -> Result<usize, AdapterError> {
        let own = self.ranks.of(module);
        own.map_or(Ok(self.rank), |r| settings::rank("rank_pattern", r))
    }

    pub(crate) fn factor(&self, module: &str) -> Result<f32, AdapterError> {
        let own = self.alphas.of(module);
        let alpha = own.map_or(Ok(self.alpha), |a| settings::number("alpha_pattern", a))?;
        let rank = self.rank(module)? as f32;
        Ok(match self.stabilised {
            true => alpha / rank.sqrt(),
            false => alpha / rank,
        })
    }
}

/// A module's low-rank terms, one for each of its products.
pub(crate) fn terms(
    module: &mut Module<'_>,
    scaling: &Scaling,
) -> Result<Vec<(Target, Term)>, AdapterError> {
    let (a, b, rank) = module.factors("lora_A.weight", "lora_B.weight")?;
    let name = &module.group.module;
    a.of_rank(rank, scaling.rank(name)?)?;
    let between = vec![scaling.factor(name)?; rank];
    let a = Factor::from(module.a(&a, rank)?);
    let term = |piece: &super::base::Piece<'_>| {
        let low_rank = LowRank {
            a: a.clone(),
            between: between.clone(),
            b: b.turned(piece)?.into(),
            after: None,
        };
        Ok((piece.target, Term::LowRank(low_rank)))
    };
    module.pieces.iter().map(term).collect()
}

/// A bias of the second factor (`lora_bias`) is added to the product's own.
fn added_bias(
    module: &mut Module<'_>,
    scaling: &Scaling,
    adapter: &mut Adapter,
) -> Result<(), AdapterError> {
    let Some(bias) = module.group.take("lora_B.bias") else {
        return Ok(());
    };
    bias.fits(&[module.rows])?;
    let factor = scaling.factor(&module.group.module)?;
    let values = bias.values();
    for piece in &module.pieces {
        let change = adapter.change(piece.target);
        let own = piece.linear.bias.clone();
        let sum = change
            .bias
            .get_or_insert_with(|| own.unwrap_or_else(|| vec![0.0; piece.rows()]));
        for (sum, added) in sum.iter_mut().zip(piece.gather(&values)) {
            *sum += factor * added;
        }
    }
    Ok(())
}

/// `lora_embedding_A: [rank, vocab]`, `lora_embedding_B: [hidden, rank]`.
fn embedding(
    reader: &Reader<'_>,
    scaling: &Scaling,
    mut group: Group,
    method: &'static str,
) -> Result<EmbeddingChange, AdapterError> {
    reader.without(&[(
        "ensure_weight_tying",
        "the head changes with the embeddings",
    )])?;
    let c = reader.base.config;
    let (a, b) = (
        group.need("lora_embedding_A")?,
        group.need("lora_embedding_B")?,
    );
    let rank = a.dim(0)?;
    a.of_rank(rank, scaling.rank(&group.module)?)?;
    a.fits(&[rank, c.vocab])?;
    b.of_rank(b.dim(1)?, rank)?;
    b.fits(&[c.hidden, rank])?;
    let scale = scaling.factor(&group.module)?;
    group.done(method)?;
    Ok(EmbeddingChange {
        a: a.transposed()?,
        scale,
        b: b.transposed()?,
    })
}
