//! Opening a checkpoint: a Hugging Face folder or a GGUF file, into the same types.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use sedge_formats::gguf::{self, Gguf, GgufError, Value};
use sedge_formats::safetensors::{Checkpoint, SafetensorsError, Tensor};
use sedge_formats::tokenizer::{Tokenizer, TokenizerError};
use sedge_kernels::{DType, KvPages, KvShape, Packer, Team};

use crate::batch::{Batch, Outputs};
use crate::config::{self, Config, ConfigError, Pooling};
use crate::decoder::{Decoder, Scratch};
use crate::encoder::{Encoder, EncoderScratch};
use crate::family::JoinError;
use crate::tensors::{Keys, TensorError, Tensors, of_a_tower};

/// Why a checkpoint could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing is there, or it cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// File or folder.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
    /// A folder without the files of a checkpoint, or a file of another kind.
    #[error(
        "{path} is not a model: expected a .gguf file, or a folder with config.json and *.safetensors"
    )]
    NotAModel {
        /// File or folder.
        path: String,
    },
    /// The GGUF file is malformed.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The safetensors files are malformed.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    /// The tokenizer is malformed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The configuration is of no use.
    #[error("{place}: {source}")]
    Config {
        /// `config.json` or the GGUF file's metadata.
        place: String,
        /// What is wrong.
        source: ConfigError,
    },
    /// The tensors do not fit the configuration.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// A model that can run. A copy shares the memory of the weights.
#[derive(Debug, Clone)]
pub enum Model {
    /// Generates text.
    Decoder(Decoder),
    /// Embeds text.
    Encoder(Encoder),
}

/// Working memory of either kind.
#[derive(Debug, Default)]
pub struct Workspace {
    decoder: Scratch,
    encoder: EncoderScratch,
}

impl Model {
    /// The model's shape and rules.
    pub fn config(&self) -> &Config {
        match self {
            Model::Decoder(model) => model.config(),
            Model::Encoder(model) => model.config(),
        }
    }

    /// What the cache keeps of a token in one layer.
    pub fn kv_shape(&self) -> KvShape {
        self.config().kv_shape()
    }

    /// Packs quantised weights for products with 8-bit activations: faster by far, and off by
    /// the activations' rounding, some 0.4 % of each group's largest. Without it, products
    /// decode the stored weights to f32: the reference. Pages of a mapped file are given back
    /// as soon as what was on them is packed.
    ///
    /// # Errors
    /// When the memory cannot be had; the model still runs then.
    pub fn pack(&mut self, team: &Team) -> std::io::Result<()> {
        let done = &mut |stored: Bytes| sedge_formats::release(&stored);
        self.packer().pack(team, done).map(drop)
    }

    /// The weights that [`pack`](Model::pack) packs.
    pub(crate) fn packer(&mut self) -> Packer<'_> {
        match self {
            Model::Decoder(model) => model.packer(),
            Model::Encoder(model) => model.packer(),
        }
    }

    /// Takes a fine-tune of the same shape as a further member and gives its number, which
    /// [`Variant::member`](crate::Variant) names. Tensors that are equal are held once, and
    /// computed once for the tokens of all members that have them. Members join before the
    /// weights are packed.
    ///
    /// # Errors
    /// When the two cannot be one model.
    pub fn join(&mut self, other: Model) -> Result<usize, JoinError> {
        match (self, other) {
            (Model::Decoder(model), Model::Decoder(other)) => model.join(other),
            _ => Err(JoinError::Encoder),
        }
    }

    /// Whether another model could [join](Model::join), and would share memory by it. What is
    /// compared is read, up to the first difference of each tensor.
    pub fn is_akin(&mut self, other: &mut Model) -> bool {
        match (self, other) {
            (Model::Decoder(model), Model::Decoder(other)) => {
                // Stacks grow and shrink by themselves.
                let stacked = model.stacks.is_some() || other.stacks.is_some();
                let weights = &mut other.family.members[0];
                !stacked && model.config == other.config && model.family.shares_with(weights)
            }
            _ => false,
        }
    }

    /// Bytes of weights that are in memory to compute with, what is shared once.
    pub fn weight_bytes(&mut self) -> u64 {
        match self {
            Model::Decoder(model) => model.family.bytes(),
            Model::Encoder(_) => 0,
        }
    }

    /// How many fine-tunes have joined, the first one counted.
    pub fn members(&self) -> usize {
        match self {
            Model::Decoder(model) => model.family.members.len(),
            Model::Encoder(_) => 1,
        }
    }

    /// Whether packed weights multiply the rows of prompts, and of texts to embed, rounded to
    /// bfloat16 instead of 8-bit integers: faster where
    /// [tiles](sedge_kernels::rounds_fast) are. Off at first, so that a model's results are the
    /// same on all machines.
    pub fn round_prompts(&mut self, round: bool) {
        match self {
            Model::Decoder(model) => model.round = round,
            Model::Encoder(model) => model.round = round,
        }
    }

    /// Runs a batch. An encoder leaves no logits and touches no pages.
    ///
    /// # Panics
    /// When a token is not in the vocabulary, or segments, tables and pages do not fit together.
    pub fn forward(
        &self,
        team: &Team,
        batch: &Batch,
        kv: &mut KvPages,
        work: &mut Workspace,
        out: &mut Outputs,
    ) {
        match self {
            Model::Decoder(model) => model.forward(team, batch, kv, &mut work.decoder, out),
            Model::Encoder(model) => model.forward(team, batch, &mut work.encoder, out),
        }
    }
}

/// One tensor, as `sedge show` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorFact {
    /// Name in the checkpoint.
    pub name: String,
    /// Stored type.
    pub dtype: DType,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// Bytes.
    pub bytes: u64,
}

/// What there is to know of a checkpoint without running it.
#[derive(Debug, Clone)]
pub struct Info {
    /// Name that the checkpoint gives itself, or that of its file or folder.
    pub name: String,
    /// Container: "gguf" or "safetensors".
    pub container: &'static str,
    /// Values in all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Tensors in the order of the checkpoint.
    pub tensors: Vec<TensorFact>,
    /// How many of them nothing is computed with: those of a vision tower.
    pub left_out: usize,
    /// The type of keys and values that the model was shrunk for, if it says one.
    pub kv: Option<String>,
}

/// An opened checkpoint.
#[derive(Debug)]
pub struct Opened {
    /// The model.
    pub model: Model,
    /// Its vocabulary, if the checkpoint has one.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// The text of its chat template.
    pub chat_template: Option<String>,
    /// Facts to show.
    pub info: Info,
    /// Sampling that the checkpoint's `generation_config.json` recommends.
    pub recommended: Recommended,
}

/// Sampling that a checkpoint recommends; `None` where it says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Recommended {
    /// Temperature; 0 for always the most likely token.
    pub temperature: Option<f32>,
    /// Share of probability to keep.
    pub top_p: Option<f32>,
    /// Number of tokens to keep.
    pub top_k: Option<usize>,
    /// Penalty of repeated tokens.
    pub repetition_penalty: Option<f32>,
}

/// Opens a `.gguf` file or a Hugging Face folder. Weights stay mapped: opening reads headers.
///
/// # Errors
/// When it is not a model, is malformed, or is of an architecture that is not known.
pub fn open(path: &Path) -> Result<Opened, OpenError> {
    open_within(path, None)
}

/// Opens a model for sequences of at most `limit` positions: see [`Config::within`].
///
/// # Errors
/// As [`open`].
pub fn open_within(path: &Path, limit: Option<usize>) -> Result<Opened, OpenError> {
    if is_gguf(path)? {
        return open_gguf(
            &Gguf::open(path)?,
            &Keys::new(),
            limit,
            name_of(path, false),
            &path.display().to_string(),
        );
    }
    let folder = Folder::open(path)?;
    finish(
        folder.config.within(limit.unwrap_or(usize::MAX)),
        &folder.tensors,
        folder.tokenizer,
        folder.info,
        folder.recommended,
    )
}

/// Opens a GGUF file that is in memory, under a name for errors and for show.
///
/// # Errors
/// As [`open`].
pub fn open_bytes(bytes: Bytes, name: &str) -> Result<Opened, OpenError> {
    open_gguf(&Gguf::parse(bytes)?, &Keys::new(), None, name.into(), name)
}

/// Whether a GGUF file is there, not a folder.
pub(crate) fn is_gguf(path: &Path) -> Result<bool, OpenError> {
    use std::io::Read;
    let shown = || path.display().to_string();
    let facts = std::fs::metadata(path).map_err(|source| OpenError::Io {
        path: shown(),
        source,
    })?;
    if facts.is_dir() {
        return Ok(false);
    }
    let mut magic = [0; 4];
    let starts = std::fs::File::open(path)
        .and_then(|mut f| f.read_exact(&mut magic))
        .is_ok()
        && &magic == b"GGUF";
    match starts
        || path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
    {
        true => Ok(true),
        false => Err(OpenError::NotAModel { path: shown() }),
    }
}

/// The last part of a path, without the extension of a file.
fn name_of(path: &Path, folder: bool) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let part = if folder {
        whole.file_name()
    } else {
        whole.file_stem()
    };
    part.map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned())
}

/// A checkpoint whose tensors lie apart, each with its own bytes, as a store keeps them.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Its name, for errors and for show.
    pub name: String,
    /// The first bytes of its GGUF file with all metadata, and the bytes of the whole file;
    /// nothing for a Hugging Face folder.
    pub gguf: Option<(Bytes, u64)>,
    /// Small files of the folder by path.
    pub files: BTreeMap<String, Bytes>,
    /// Tensors in the order of the checkpoint.
    pub tensors: Vec<Piece>,
}

/// A tensor of [`Parts`].
#[derive(Debug, Clone)]
pub struct Piece {
    /// Name in the checkpoint.
    pub name: String,
    /// Name of its stored type, which may be one that is not computed with.
    pub type_name: String,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// Its bytes, as many as type and shape take.
    pub bytes: Bytes,
    /// Their hash.
    pub key: blake3::Hash,
}

/// Opens a checkpoint whose tensors lie apart, for sequences of at most `limit` positions. What
/// it opens is the model that its file or folder would.
///
/// # Errors
/// As [`open`].
pub fn open_parts(parts: Parts, limit: Option<usize>) -> Result<Opened, OpenError> {
    let keys = parts.tensors.iter().map(|t| (t.name.clone(), t.key));
    let keys: Keys = keys.collect();
    if let Some((head, size)) = &parts.gguf {
        let header = gguf::Header::parse(head, *size)?;
        let mut tensors = Vec::with_capacity(parts.tensors.len());
        for part in parts.tensors {
            let Some(dtype) = DType::from_name(&part.type_name) else {
                return Err(OpenError::Tensor(TensorError::Types {
                    count: 1,
                    example: part.name,
                    dtype: part.type_name,
                }));
            };
            tensors.push((part.name, dtype, part.shape, part.bytes));
        }
        let file = Gguf::assemble(header.metadata, tensors)?;
        return open_gguf(&file, &keys, limit, parts.name.clone(), &parts.name);
    }
    let mut checkpoint = Checkpoint::default();
    for part in parts.tensors {
        let Some(dtype) = DType::from_name(&part.type_name) else {
            checkpoint.skipped.push((part.name, part.type_name));
            continue;
        };
        let tensor = Tensor {
            dtype,
            shape: part.shape,
            data: part.bytes,
        };
        checkpoint.tensors.insert(part.name, tensor);
    }
    let files = &parts.files;
    let text = |name: &str| {
        let bytes = files.get(name)?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    };
    let tokenizer = match files.contains_key("tokenizer.json") {
        true => Some(Tokenizer::from_files(&parts.name, &|name| {
            files.get(name).cloned()
        })?),
        false => None,
    };
    let Some(config) = text("config.json") else {
        return Err(OpenError::NotAModel {
            path: parts.name.clone(),
        });
    };
    let place = |name: &str| format!("{}/{name}", parts.name);
    let pooling = text(POOLING);
    let folder = Folder::new(
        parts.name.clone(),
        (&config, place("config.json")),
        pooling.as_deref().map(|text| (text, place(POOLING))),
        (&checkpoint, &keys),
        tokenizer,
        &text("generation_config.json").unwrap_or_default(),
    )?;
    finish(
        folder.config.within(limit.unwrap_or(usize::MAX)),
        &folder.tensors,
        folder.tokenizer,
        folder.info,
        folder.recommended,
    )
}

/// Where a GGUF file says which type of keys and values its model was shrunk for.
pub const KV_TYPE: &str = "sedge.kv";

/// Where a sentence-transformers folder says how rows become one vector.
const POOLING: &str = "1_Pooling/config.json";

/// A Hugging Face folder, read but not yet made into a model.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) name: String,
    pub(crate) config: Config,
    pub(crate) tensors: Tensors,
    pub(crate) tokenizer: Option<Tokenizer>,
    pub(crate) recommended: Recommended,
    info: Info,
}

impl Folder {
    pub(crate) fn open(path: &Path) -> Result<Folder, OpenError> {
        let config_path = path.join("config.json");
        let place = config_path.display().to_string();
        let text = match std::fs::read_to_string(&config_path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(OpenError::NotAModel {
                    path: path.display().to_string(),
                });
            }
            Err(source) => {
                return Err(OpenError::Io {
                    path: place,
                    source,
                });
            }
        };
        let pooling_path = path.join(POOLING);
        let pooling = std::fs::read_to_string(&pooling_path).ok();
        let checkpoint = Checkpoint::open(path)?;
        let tokenizer = match path.join("tokenizer.json").is_file() {
            true => Some(Tokenizer::open(path)?),
            false => None,
        };
        let generation =
            std::fs::read_to_string(path.join("generation_config.json")).unwrap_or_default();
        Folder::new(
            name_of(path, true),
            (&text, place),
            pooling
                .as_deref()
                .map(|text| (text, pooling_path.display().to_string())),
            (&checkpoint, &Keys::new()),
            tokenizer,
            &generation,
        )
    }

    /// From the texts of its files, those of `config.json` and of the pooling with their places.
    fn new(
        name: String,
        (config, place): (&str, String),
        pooling: Option<(&str, String)>,
        (checkpoint, keys): (&Checkpoint, &Keys),
        tokenizer: Option<Tokenizer>,
        generation: &str,
    ) -> Result<Folder, OpenError> {
        let mut config =
            config::from_hf(config).map_err(|source| OpenError::Config { place, source })?;
        config.pooling = match pooling {
            Some((text, place)) => self::pooling(text, place)?,
            None => Pooling::Mean,
        };
        let tensors = Tensors::from_hf(checkpoint, config.architecture, keys)?;
        let facts = checkpoint.tensors.iter().map(|(name, t)| TensorFact {
            name: name.clone(),
            dtype: t.dtype,
            shape: t.shape.clone(),
            bytes: t.data.len() as u64,
        });
        let info = info(name.clone(), "safetensors", facts.collect());
        let recommended = recommended_by_json(generation);
        Ok(Folder {
            name,
            config,
            tensors,
            tokenizer,
            recommended,
            info,
        })
    }
}

fn open_gguf(
    file: &Gguf,
    keys: &Keys,
    limit: Option<usize>,
    name: String,
    place: &str,
) -> Result<Opened, OpenError> {
    let config = config::from_gguf(file).map_err(|source| OpenError::Config {
        place: place.into(),
        source,
    })?;
    let tensors = Tensors::from_gguf(file, config.architecture, keys).with_stacks(file)?;
    let tokenizer = match file.get("tokenizer.ggml.model") {
        Some(_) => Some(Tokenizer::from_gguf(file)?),
        None => None,
    };
    let facts = file.tensors().iter().map(|(name, t)| TensorFact {
        name: name.clone(),
        dtype: t.dtype,
        shape: t.shape.clone(),
        bytes: t.len,
    });
    let given = file
        .get("general.name")
        .and_then(Value::as_str)
        .filter(|n| !n.is_empty())
        .map(String::from);
    let mut info = info(given.unwrap_or(name), "gguf", facts.collect());
    info.kv = file.get(KV_TYPE).and_then(Value::as_str).map(String::from);
    if let Some(stacks) = &tensors.stacks {
        let others = info.tensors.iter().filter(|t| !stacks.has_tensor(&t.name));
        let values = others.map(|t| t.shape.iter().product::<usize>() as u64);
        info.parameters = values.sum::<u64>() + stacks.values();
    }
    let number = |key: &str| {
        file.get(&format!("general.sampling.{key}"))
            .and_then(Value::as_f64)
    };
    let recommended = Recommended {
        temperature: number("temp").map(|v| v as f32),
        top_p: number("top_p").map(|v| v as f32),
        top_k: number("top_k").filter(|&v| v >= 0.0).map(|v| v as usize),
        repetition_penalty: number("penalty_repeat").map(|v| v as f32),
    };
    let config = config.within(limit.unwrap_or(usize::MAX));
    finish(config, &tensors, tokenizer, info, recommended)
}

fn info(name: String, container: &'static str, tensors: Vec<TensorFact>) -> Info {
    let parameters = tensors
        .iter()
        .map(|t| t.shape.iter().product::<usize>() as u64)
        .sum();
    let bytes = tensors.iter().map(|t| t.bytes).sum();
    let left_out = tensors.iter().filter(|t| of_a_tower(&t.name)).count();
    Info {
        name,
        container,
        parameters,
        bytes,
        tensors,
        left_out,
        kv: None,
    }
}

impl Folder {
    /// Whether the tensors make the model that the configuration describes.
    pub(crate) fn check(&self) -> Result<(), OpenError> {
        load(self.config.clone(), &self.tensors).map(|_| ())
    }
}

fn load(config: Config, tensors: &Tensors) -> Result<Model, OpenError> {
    Ok(match config.bidirectional() {
        true => Model::Encoder(Encoder::load(config, tensors)?),
        false => Model::Decoder(Decoder::load(config, tensors)?),
    })
}

/// What a sentence-transformers folder says of pooling.
fn pooling(text: &str, place: String) -> Result<Pooling, OpenError> {
    let json: serde_json::Value =
        serde_json::from_str(text).map_err(|error| OpenError::Config {
            place: place.clone(),
            source: ConfigError::Json(error.to_string()),
        })?;
    let modes: Vec<&str> = json
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, on)| key.starts_with("pooling_mode_") && on.as_bool() == Some(true))
        .map(|(key, _)| key.as_str())
        .collect();
    match modes[..] {
        [] | ["pooling_mode_mean_tokens"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token"] => Ok(Pooling::First),
        ["pooling_mode_lasttoken"] => Ok(Pooling::Last),
        _ => Err(OpenError::Config {
            place,
            source: ConfigError::invalid(
                "pooling",
                modes.join(" and "),
                "mean tokens, the cls token or the last token",
            ),
        }),
    }
}

fn recommended_by_json(text: &str) -> Recommended {
    let json: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let number = |key: &str| json.get(key).and_then(serde_json::Value::as_f64);
    let sampled = json.get("do_sample").and_then(serde_json::Value::as_bool);
    Recommended {
        temperature: match sampled {
            Some(false) => Some(0.0),
            _ => number("temperature").map(|v| v as f32),
        },
        top_p: number("top_p").map(|v| v as f32),
        top_k: number("top_k").filter(|&v| v >= 0.0).map(|v| v as usize),
        repetition_penalty: number("repetition_penalty").map(|v| v as f32),
    }
}

fn finish(
    config: Config,
    tensors: &Tensors,
    tokenizer: Option<Tokenizer>,
    info: Info,
    recommended: Recommended,
) -> Result<Opened, OpenError> {
    let chat_template = tokenizer
        .as_ref()
        .and_then(|t| t.chat_template().map(String::from));
    let model = load(config, tensors)?;
    Ok(Opened {
        model,
        tokenizer: tokenizer.map(Arc::new),
        chat_template,
        info,
        recommended,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

    /// A folder, taken apart as a store does.
    fn parts(folder: &Path) -> Parts {
        let read = |name: &str| std::fs::read(folder.join(name)).ok();
        let names = [
            "config.json",
            "tokenizer.json",
            "generation_config.json",
            POOLING,
        ];
        let files = names
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), read(name)?.into())));
        let tensors = Checkpoint::open(folder).unwrap().tensors;
        let tensors = tensors.into_iter().map(|(name, tensor)| Piece {
            name,
            type_name: tensor.dtype.name().to_owned(),
            shape: tensor.shape,
            key: blake3::hash(&tensor.data),
            bytes: tensor.data,
        });
        Parts {
            name: name_of(folder, true),
            gguf: None,
            files: files.collect(),
            tensors: tensors.collect(),
        }
    }

    #[test]
    fn a_checkpoint_in_parts_is_the_one_of_its_folder() {
        let mut compared = 0;
        for folder in std::fs::read_dir(GOLDEN).unwrap() {
            let folder = folder.unwrap().path();
            if !folder.join("model.safetensors").is_file() {
                continue;
            }
            let whole = open(&folder).unwrap();
            let apart = open_parts(parts(&folder), None).unwrap();
            assert_eq!(whole.model.config(), apart.model.config());
            assert_eq!(whole.info.tensors, apart.info.tensors);
            assert_eq!(whole.tokenizer.is_some(), apart.tokenizer.is_some());
            compared += 1;
        }
        assert!(compared > 5);
    }

    #[test]
    fn keys_follow_the_bytes() {
        let tensors = |name: &str| {
            let folder = Path::new(GOLDEN).join(name);
            let parts = parts(&folder);
            let keys: Keys = parts
                .tensors
                .iter()
                .map(|t| (t.name.clone(), t.key))
                .collect();
            let text = String::from_utf8(parts.files["config.json"].to_vec()).unwrap();
            let config = config::from_hf(&text).unwrap();
            let checkpoint = Checkpoint::open(&folder).unwrap();
            Tensors::from_hf(&checkpoint, config.architecture, &keys).unwrap()
        };
        for stored in tensors("llama").map.values() {
            assert_eq!(stored.key, Some(blake3::hash(&stored.pieces[0])));
        }
        // Experts are several pieces under one key, each layer's its own.
        let mixtral = tensors("mixtral");
        let experts: Vec<_> = mixtral
            .map
            .values()
            .filter(|s| s.pieces.len() > 1)
            .collect();
        assert!(experts.len() > 1);
        for (i, a) in experts.iter().enumerate() {
            assert!(a.key.is_some());
            assert!(experts[..i].iter().all(|b| b.key != a.key));
        }
        // Norms that are changed on the way are not the bytes that were hashed.
        let gemma = tensors("gemma2");
        let norms = gemma
            .map
            .iter()
            .filter(|(name, _)| name.ends_with("norm.weight"));
        assert!(norms.into_iter().all(|(_, stored)| stored.key.is_none()));
    }
}
