//! What all methods share in reading: the checkpoint's tensors beside the model that they change,
//! and the biases, norms and embeddings that any checkpoint may carry.

use indexmap::IndexMap;
use sedge_formats::safetensors::Tensor;
use sedge_kernels::{DType, Matrix, quantize};

use super::base::{Base, Piece, Place, Target, sizes};
use super::checkpoint::{Entry, Group, Tensors, module_name};
use super::error::AdapterError;
use super::settings::{Settings, shortened};
use super::{Adapter, Change};
use crate::decoder::Decoder;

#[derive(Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) tensors: Tensors,
    pub(crate) base: Base<'a>,
}

/// A group of tensors that change products, and those products.
#[derive(Debug)]
pub(crate) struct Module<'a> {
    pub(crate) group: Group,
    pub(crate) pieces: Vec<Piece<'a>>,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(
        settings: &'a Settings,
        tensors: IndexMap<String, Tensor>,
        (model, member): (&'a Decoder, usize),
    ) -> Result<Reader<'a>, AdapterError> {
        Ok(Reader {
            settings,
            tensors: Tensors::new(tensors, settings.base())?,
            base: Base::new(model, member, settings.base()),
        })
    }

    /// Modules with a field that begins with `prefix`: all must be products.
    pub(crate) fn modules(&mut self, prefix: &str) -> Result<Vec<Module<'a>>, AdapterError> {
        let groups = self.tensors.groups(prefix);
        groups.into_iter().map(|g| self.module(g)).collect()
    }

    pub(crate) fn module(&self, group: Group) -> Result<Module<'a>, AdapterError> {
        match self.base.place(&group.module, group.any())? {
            Place::Product(pieces) => {
                let (rows, cols) = sizes(&pieces);
                Ok(Module {
                    group,
                    pieces,
                    rows,
                    cols,
                })
            }
            _ => Err(AdapterError::Part {
                tensor: group.any().into(),
                module: group.module,
                reason: "the method changes products, and this is none that it can change",
            }),
        }
    }

    /// Refuses fields that change what is computed in ways that Sedge does not know.
    pub(crate) fn without(&self, fields: &[(&str, &str)]) -> Result<(), AdapterError> {
        for &(field, reason) in fields {
            let set = self.settings.get(field).filter(|v| {
                let empty = v.as_object().is_some_and(|o| o.is_empty())
                    || v.as_array().is_some_and(|a| a.is_empty());
                v.as_bool() != Some(false) && !empty
            });
            if let Some(value) = set {
                return Err(AdapterError::Variant {
                    field: field.into(),
                    found: shortened(value),
                    reason: reason.into(),
                });
            }
        }
        Ok(())
    }

    /// Reads whole tensors of the model that the checkpoint holds: biases and norms replace the
    /// model's, and embeddings are refused unless they are the model's.
    pub(crate) fn whole(&mut self, adapter: &mut Adapter) -> Result<(), AdapterError> {
        let names: Vec<String> = self.tensors.names().cloned().collect();
        for name in names {
            let Some((module, kind)) = module_name(&name).rsplit_once('.') else {
                continue;
            };
            let saved = |module: &str| module.replace(".modules_to_save", "");
            let (module, frozen) = match module.strip_suffix(".base_layer") {
                Some(module) => (saved(module), true),
                None => (saved(module), false),
            };
            let own = module.split('.').any(of_a_method);
            if own || !matches!(kind, "weight" | "bias") {
                continue;
            }
            let place = self.base.place(&module, &name)?;
            let entry = self.tensors.take(&name).expect("it is one of the names");
            match (place, kind) {
                (Place::Product(pieces), "bias") => {
                    entry.fits(&[sizes(&pieces).0])?;
                    let values = entry.values();
                    for piece in &pieces {
                        adapter.change(piece.target).bias = Some(piece.gather(&values));
                    }
                }
                (Place::Product(pieces), _) => self.unchanged(&entry, &pieces, frozen)?,
                (Place::Embedding, "weight") => {
                    let c = self.base.config;
                    entry.fits(&[c.vocab, c.hidden])?;
                    let dtype = match &self.base.weights.embeddings {
                        Some(embeddings) => embeddings.dtype(),
                        None => self.base.weights.head.weight.dtype(),
                    };
                    let row = |row: usize, out: &mut [f32]| self.base.weights.embedding(row, out);
                    same(&entry, dtype, &row, frozen)?;
                }
                (Place::Norm(..) | Place::LastNorm, "weight") => {
                    self.norm(&module, &entry, adapter)?
                }
                _ => {
                    return Err(AdapterError::Unused {
                        tensor: name,
                        method: adapter.method(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Puts a tensor in place of a norm's weights.
    pub(crate) fn norm(
        &self,
        module: &str,
        entry: &Entry,
        adapter: &mut Adapter,
    ) -> Result<(), AdapterError> {
        use crate::Architecture::{Gemma2, Gemma3};
        // Gemma multiplies by 1 + weight.
        let plus = match self.base.config.architecture {
            Gemma2 | Gemma3 => 1.0,
            _ => 0.0,
        };
        let values = |size: usize| {
            entry.fits(&[size])?;
            Ok(Some(entry.values().iter().map(|v| v + plus).collect()))
        };
        match self.base.place(module, &entry.name)? {
            Place::Norm(layer, part, size) => {
                adapter.layers[layer].norms[part as usize] = values(size)?;
            }
            Place::LastNorm => adapter.norm = values(self.base.config.hidden)?,
            Place::Product(_) | Place::Embedding => {
                return Err(AdapterError::Part {
                    tensor: entry.name.clone(),
                    module: module.into(),
                    reason: "it is no norm",
                });
            }
        }
        Ok(())
    }

    /// Refuses a whole matrix unless it is the model's own.
    fn unchanged(
        &self,
        entry: &Entry,
        pieces: &[Piece<'_>],
        frozen: bool,
    ) -> Result<(), AdapterError> {
        let (rows, cols) = sizes(pieces);
        entry.fits(&[rows, cols])?;
        let [piece] = pieces else {
            return Err(AdapterError::Whole {
                tensor: entry.name.clone(),
            });
        };
        let mut place = vec![0; rows];
        (0..rows).for_each(|row| place[piece.source(row)] = row);
        let weight = &piece.linear.weight;
        let row = |row: usize, out: &mut [f32]| weight.row(place[row], out);
        same(entry, weight.dtype(), &row, frozen)
    }
}

impl Module<'_> {
    /// `[rank, cols]`, `[rows, rank]` and the rank of a pair of factors.
    pub(crate) fn factors(
        &mut self,
        a: &str,
        b: &str,
    ) -> Result<(Entry, Entry, usize), AdapterError> {
        let (a, b) = (self.group.need(a)?, self.group.need(b)?);
        let rank = a.dim(0)?;
        a.fits(&[rank, self.cols])?;
        let other = b.dim(1)?;
        b.of_rank(other, rank)?;
        b.fits(&[self.rows, rank])?;
        Ok((a, b, rank))
    }

    /// A factor's `[rank, cols]` values.
    pub(crate) fn a(&self, a: &Entry, rank: usize) -> Result<Matrix, AdapterError> {
        a.matrix(rank, self.cols)
    }
}

/// Whether a part of a name is a field of some method.
fn of_a_method(part: &str) -> bool {
    const FIELDS: [&str; 7] = [
        "lora_",
        "ia3_",
        "vera_",
        "hada_",
        "lokr_",
        "ln_tuning_layers",
        "prompt_",
    ];
    FIELDS.iter().any(|field| part.starts_with(field))
}

/// Refuses values that are not the model's. Where both have plain types they must be equal in the
/// coarser one; quantised ones must be near if they were `frozen` in training.
fn same(
    entry: &Entry,
    dtype: DType,
    row: &dyn Fn(usize, &mut [f32]),
    frozen: bool,
) -> Result<(), AdapterError> {
    let (rows, cols) = (entry.dim(0)?, entry.dim(1)?);
    let saved = entry.matrix(rows, cols)?;
    let plain = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
    let (mut theirs, mut ours) = (vec![0.0; cols], vec![0.0; cols]);
    let (mut size, mut apart) = (0f64, 0f64);
    let mut equal = true;
    for index in 0..rows {
        saved.row(index, &mut theirs);
        row(index, &mut ours);
        for (a, b) in theirs.iter().zip(&ours) {
            size += f64::from(a * a);
            apart += f64::from((a - b) * (a - b));
        }
        if equal && theirs != ours {
            equal = [dtype, entry.dtype].into_iter().any(|coarse| {
                let bytes = |values: &[f32]| {
                    let mut bytes = Vec::new();
                    quantize(coarse, values, &mut bytes)
                        .is_ok()
                        .then_some(bytes)
                };
                plain && bytes(&theirs).is_some_and(|a| Some(a) == bytes(&ours))
            });
        }
    }
    // The coarsest types are off by a third.
    match equal || (frozen && !plain && apart <= 0.25 * size) {
        true => Ok(()),
        false => Err(AdapterError::Whole {
            tensor: entry.name.clone(),
        }),
    }
}

impl Adapter {
    /// The change of a product, to be filled.
    pub(crate) fn change(&mut self, target: Target) -> &mut Change {
        let place = match target {
            Target::Part(layer, part) => &mut self.layers[layer].parts[part as usize],
            Target::Head => &mut self.head,
        };
        place.get_or_insert_default()
    }
}
