//! Writing any checkpoint as a GGUF file that llama.cpp reads too, weights re-encoded if wanted.

use std::path::Path;
use std::sync::OnceLock;

use bytes::Bytes;
use indexmap::IndexMap;
use sedge_formats::gguf::{self, Gguf, GgufError, TensorPlan, Value};
use sedge_formats::tokenizer::TokenizerError;
use sedge_kernels::{CodecError, DType, RopeStyle, Team, dequantize, quantize};

use crate::config::{self, Config};
use crate::open::{Folder, OpenError, Opened, is_gguf, open, open_bytes};
use crate::tensors::{Keys, Stored, Tensors};

/// Why a conversion failed. The output file is then as it was before.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The input could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The tokenizer cannot be said in GGUF.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The output could not be written.
    #[error("writing {path}: {source}")]
    Write {
        /// Output file.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
    /// Reading or writing failed in between.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A tensor could not be re-encoded.
    #[error("tensor {name:?}: {source}")]
    Codec {
        /// Name.
        name: String,
        /// What is wrong.
        source: CodecError,
    },
    /// A value is too large for the type to write, or no number.
    #[error("tensor {name:?} has values that {dtype} cannot hold")]
    NotFinite {
        /// Name.
        name: String,
        /// Type to write.
        dtype: DType,
    },
    /// The input's matrices are stacks of blocks, which are written by no other command.
    #[error("{0} is a stack of blocks of another checkpoint; convert the one that it was made of")]
    Stacked(String),
    /// The output file is the input file.
    #[error("{0} is the input itself; choose another output file")]
    SameFile(String),
}

impl From<GgufError> for ConvertError {
    fn from(error: GgufError) -> Self {
        ConvertError::Open(error.into())
    }
}

/// A tensor that is about to be written.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Its name in the output.
    pub tensor: &'a str,
    /// Bytes written before it.
    pub done: u64,
    /// Bytes of all tensors in the output.
    pub total: u64,
}

/// What a conversion did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvertReport {
    /// Tensors written.
    pub tensors: usize,
    /// Bytes of the tensors in the input.
    pub bytes_in: u64,
    /// Bytes of the tensors in the output.
    pub bytes_out: u64,
    /// Tensors written as another type than asked for, with that type: their rows do not fill
    /// its blocks.
    pub exceptions: Vec<(String, DType)>,
}

/// Rewrites the checkpoint at `input` as the GGUF file `output`, weights as `dtype` or as they are.
///
/// Norms, biases and routers stay f32. With a type of 4 bits or fewer the output head is q6_k (or q8_0), which
/// costs little and keeps much. The file appears whole or not at all.
///
/// # Errors
/// When the input cannot be opened, a type cannot be written, or the disk is full.
pub fn convert(
    input: &Path,
    output: &Path,
    dtype: Option<DType>,
    team: &Team,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<ConvertReport, ConvertError> {
    let origin = Origin::Path(input);
    origin.refuse_same(output)?;
    let parts = typed(origin.parts()?, dtype);
    write(parts, output, dtype, team, progress)
}

/// Where a checkpoint is.
#[derive(Debug, Clone)]
pub enum Origin<'a> {
    /// A Hugging Face folder or a GGUF file.
    Path(&'a Path),
    /// A GGUF file in memory, under a name for errors and for show.
    Memory(Bytes, &'a str),
}

impl Origin<'_> {
    pub(crate) fn open(&self) -> Result<Opened, OpenError> {
        match self {
            Origin::Path(path) => open(path),
            Origin::Memory(bytes, name) => open_bytes(bytes.clone(), name),
        }
    }

    /// Refuses to write over what is read.
    ///
    /// # Errors
    /// When the output is the input.
    pub fn refuse_same(&self, output: &Path) -> Result<(), ConvertError> {
        let Origin::Path(input) = self else {
            return Ok(());
        };
        match (input.canonicalize(), output.canonicalize()) {
            (Ok(a), Ok(b)) if a == b => Err(ConvertError::SameFile(output.display().to_string())),
            _ => Ok(()),
        }
    }

    pub(crate) fn is_gguf(&self) -> Result<bool, OpenError> {
        match self {
            Origin::Path(path) => is_gguf(path),
            Origin::Memory(..) => Ok(true),
        }
    }

    /// Metadata and tensors, as a GGUF file has them.
    pub(crate) fn parts<'b>(&self) -> Result<Parts<'b>, ConvertError> {
        match self {
            Origin::Path(path) if is_gguf(path)? => {
                from_gguf(&Gguf::open(path)?, &path.display().to_string())
            }
            Origin::Path(path) => from_folder(path),
            Origin::Memory(bytes, name) => from_gguf(&Gguf::parse(bytes.clone())?, name),
        }
    }
}

/// The same to be written as `dtype`, or as they are: all but the matrices of products as f32.
pub(crate) fn typed((mut metadata, parts): Parts<'_>, dtype: Option<DType>) -> Parts<'_> {
    let parts: Vec<Part> = parts.into_iter().map(|p| p.typed(dtype)).collect();
    let tied = !parts.iter().any(|p| p.name == "output.weight");
    let parts: Vec<Part> = parts
        .into_iter()
        .map(|p| p.with_better_head(dtype, tied))
        .collect();
    let file_type = dtype.or_else(|| commonest(&parts)).map(file_type);
    if let Some(file_type) = file_type {
        metadata.insert("general.file_type".into(), Value::U32(file_type));
    }
    metadata.insert("general.quantization_version".into(), Value::U32(2));
    (metadata, parts)
}

/// Writes tensors in the types that they have been given; `dtype` is what was asked for.
pub(crate) fn write(
    (metadata, parts): Parts<'_>,
    output: &Path,
    dtype: Option<DType>,
    team: &Team,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<ConvertReport, ConvertError> {
    let plans: Vec<TensorPlan> = parts.iter().map(Part::plan).collect();
    let size = |p: &Part| p.to.bytes_for(p.stored.values()).unwrap_or(0) as u64;
    let total = parts.iter().map(size).sum();
    let mut done = 0;
    gguf::write(output, &metadata, &plans, |index| {
        let part = &parts[index];
        progress(Progress {
            tensor: &part.name,
            done,
            total,
        });
        done += size(part);
        let bytes = part.encode(team)?;
        Ok(match &part.edit {
            Some(edit) => {
                let mut bytes = Vec::from(bytes);
                edit(&mut bytes);
                bytes.into()
            }
            None => bytes,
        })
    })
    .map_err(|e| match e {
        ConvertError::Io(source) => ConvertError::Write {
            path: output.display().to_string(),
            source,
        },
        other => other,
    })?;
    let odd = |p: &&Part| dtype.is_some_and(|d| p.weight() && p.to != d && !p.head);
    Ok(ConvertReport {
        tensors: parts.len(),
        bytes_in: parts
            .iter()
            .flat_map(|p| &p.stored.pieces)
            .map(|b| b.len() as u64)
            .sum(),
        bytes_out: total,
        exceptions: parts
            .iter()
            .filter(odd)
            .map(|p| (p.name.clone(), p.to))
            .collect(),
    })
}

/// One tensor on its way.
pub(crate) struct Part<'a> {
    pub(crate) name: String,
    pub(crate) stored: Stored,
    /// Type to write.
    to: DType,
    /// Heads whose rows go from halves to pairs.
    permute: Option<usize>,
    /// Its type was raised because the logits come straight from it.
    head: bool,
    /// Changes a row as it is stored, by its index.
    pub(crate) rewrite: Option<Rewrite<'a>>,
    /// Changes the bytes that are about to be written.
    pub(crate) edit: Option<Edit<'a>>,
}

/// A change of a matrix's rows.
pub(crate) type Rewrite<'a> = Box<dyn Fn(usize, &mut [f32]) + Sync + 'a>;

/// A change of a tensor's bytes.
pub(crate) type Edit<'a> = Box<dyn Fn(&mut [u8]) + Sync + 'a>;

pub(crate) type Parts<'a> = (IndexMap<String, Value>, Vec<Part<'a>>);

fn from_gguf<'a>(file: &Gguf, place: &str) -> Result<Parts<'a>, ConvertError> {
    let config = config::from_gguf(file).map_err(|source| OpenError::Config {
        place: place.into(),
        source,
    })?;
    let tensors = Tensors::from_gguf(file, config.architecture, &Keys::new()).with_stacks(file);
    let tensors = tensors.map_err(OpenError::Tensor)?;
    if tensors.stacks.is_some() {
        return Err(ConvertError::Stacked(place.into()));
    }
    let part = |(name, stored): (String, Stored)| Part::new(name, stored, None);
    // A file in several parts becomes one.
    let metadata = file
        .metadata()
        .iter()
        .filter(|(k, _)| !k.starts_with("split."));
    Ok((
        metadata.map(|(k, v)| (k.clone(), v.clone())).collect(),
        tensors.map.into_iter().map(part).collect(),
    ))
}

fn from_folder<'a>(input: &Path) -> Result<Parts<'a>, ConvertError> {
    let folder = Folder::open(input)?;
    // Only what can be computed is written, so every shape is known to be right from here on.
    folder.check()?;
    let config = &folder.config;
    let mut metadata = config::to_gguf(config);
    metadata.insert("general.name".into(), Value::String(folder.name.clone()));
    let recommended = folder.recommended;
    for (key, value) in [
        ("temp", recommended.temperature),
        ("top_p", recommended.top_p),
        ("penalty_repeat", recommended.repetition_penalty),
    ] {
        metadata.extend(value.map(|v| (format!("general.sampling.{key}"), Value::F32(v))));
    }
    let top_k = recommended.top_k.and_then(|k| i32::try_from(k).ok());
    metadata.extend(top_k.map(|k| ("general.sampling.top_k".to_string(), Value::I32(k))));
    if let Some(tokenizer) = &folder.tokenizer {
        metadata.extend(tokenizer.to_gguf_metadata()?);
    }
    let mut tensors = folder.tensors.map;
    let freqs = config::rope_freqs(config).map(|(_, divisors)| ("rope_freqs.weight", divisors));
    for (name, divisors) in freqs.into_iter().chain(config::rope_factors(config)) {
        let bytes: Vec<u8> = divisors.iter().flat_map(|d| d.to_le_bytes()).collect();
        let name = name.to_string();
        let stored = Stored {
            dtype: DType::F32,
            shape: vec![divisors.len()],
            pieces: vec![bytes.into()],
            key: None,
            original: name.clone(),
        };
        tensors.insert(name, stored);
    }
    // What the architecture does not read does not belong in the file.
    tensors.retain(|name, _| name.starts_with("blk.") || known_outside_blocks(name));
    let mut parts: Vec<Part> = tensors
        .into_iter()
        .map(|(name, stored)| {
            let permute = permuted_heads(config, &name);
            Part::new(name, stored, permute)
        })
        .collect();
    parts.sort_by_key(|p| order(&p.name));
    Ok((metadata, parts))
}

fn known_outside_blocks(name: &str) -> bool {
    let stem = name.trim_end_matches(".weight").trim_end_matches(".bias");
    [
        "token_embd",
        "output_norm",
        "output",
        "rope_freqs",
        "rope_factors_long",
        "rope_factors_short",
        "position_embd",
        "token_types",
        "token_embd_norm",
    ]
    .contains(&stem)
}

/// Embeddings first, then block after block, then the rest.
pub(crate) fn order(name: &str) -> (usize, String) {
    let block = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split('.').next())
        .and_then(|n| n.parse::<usize>().ok());
    let place = match block {
        Some(block) => block + 1,
        None if name.starts_with("output") => usize::MAX,
        None => 0,
    };
    (place, name.to_string())
}

/// GGUF files of the llama family pair neighbouring values; Hugging Face pairs the halves.
pub(crate) fn permuted_heads(config: &Config, name: &str) -> Option<usize> {
    let differs = config.rope_style == RopeStyle::Halves
        && config.architecture.gguf_rope_style() == RopeStyle::Pairs;
    let part = name.rsplit('.').nth(1)?;
    match part {
        "attn_q" if differs => Some(config.heads),
        "attn_k" if differs => Some(config.kv_heads),
        _ => None,
    }
}

impl<'a> Part<'a> {
    pub(crate) fn new(name: String, stored: Stored, permute: Option<usize>) -> Part<'a> {
        Part {
            name,
            to: stored.dtype,
            stored,
            permute,
            head: false,
            rewrite: None,
            edit: None,
        }
    }

    /// Takes other contents, of the same order of rows.
    pub(crate) fn replace(&mut self, stored: Stored) {
        self.to = stored.dtype;
        self.stored = stored;
    }

    fn plan(&self) -> TensorPlan {
        TensorPlan {
            name: self.name.clone(),
            dtype: self.to,
            shape: self.stored.shape.clone(),
        }
    }

    fn cols(&self) -> usize {
        self.stored.shape.last().copied().unwrap_or(1)
    }

    /// Whether it is a matrix of a product; the rest stays f32.
    pub(crate) fn weight(&self) -> bool {
        let small = ["ffn_gate_inp", "position_embd", "token_types", "norm"];
        self.stored.shape.len() >= 2
            && self.name.ends_with(".weight")
            && !small.iter().any(|s| self.name.contains(s))
    }

    fn typed(mut self, wanted: Option<DType>) -> Part<'a> {
        self.to = match wanted {
            _ if !self.weight() => DType::F32,
            Some(wanted) => fitting(wanted, self.cols()),
            None => self.stored.dtype,
        };
        self
    }

    fn with_better_head(mut self, wanted: Option<DType>, tied: bool) -> Part<'a> {
        let head = self.name == "output.weight" || (tied && self.name == "token_embd.weight");
        if head && wanted.is_some_and(has_better_head) {
            self.to = fitting(DType::Q6K, self.cols());
            self.head = true;
        }
        self
    }

    /// The tensor's bytes in the type to write.
    fn encode(&self, team: &Team) -> Result<Bytes, ConvertError> {
        let codec = |source| self.codec(source);
        let cols = self.cols();
        let row_bytes = self.stored.dtype.bytes_for(cols).ok_or_else(|| {
            codec(CodecError::Size {
                dtype: self.stored.dtype,
                values: cols,
                expected: None,
                found: 0,
            })
        })?;
        let mut out = Vec::with_capacity(self.to.bytes_for(self.stored.values()).unwrap_or(0));
        if self.stored.values() == 0 {
            return Ok(Bytes::new());
        }
        if let Some(rewrite) = &self.rewrite {
            return self.rewritten(team, rewrite, row_bytes);
        }
        // A bias has a value for each row.
        let unit = match self.stored.shape.len() {
            1 => row_bytes / cols,
            _ => row_bytes,
        };
        for piece in &self.stored.pieces {
            let piece = match self.permute {
                Some(heads) => permute(piece, heads, piece.len() / unit, unit),
                None => piece.clone(),
            };
            if self.to == self.stored.dtype {
                out.extend_from_slice(&piece);
                continue;
            }
            // A few hundred kilobytes of f32 at a time, on all threads.
            let rows = (1usize << 16).div_ceil(cols).max(1);
            let chunks: Vec<&[u8]> = piece.chunks(rows * row_bytes).collect();
            let encoded: Vec<OnceLock<Result<Vec<u8>, CodecError>>> =
                chunks.iter().map(|_| OnceLock::new()).collect();
            team.run(chunks.len(), &|i| {
                encoded[i]
                    .get_or_init(|| recode(self.stored.dtype, chunks[i], cols, row_bytes, self.to));
            });
            for part in encoded {
                match part.into_inner() {
                    Some(bytes) => out.extend_from_slice(&bytes.map_err(codec)?),
                    None => unreachable!("the team ran every task"),
                }
            }
        }
        Ok(out.into())
    }
}

impl Part<'_> {
    /// The bytes of a matrix whose rows change, a few hundred kilobytes of f32 at a time.
    fn rewritten(
        &self,
        team: &Team,
        rewrite: &Rewrite<'_>,
        row_bytes: usize,
    ) -> Result<Bytes, ConvertError> {
        let (cols, stored) = (self.cols(), &self.stored.pieces[0]);
        let rows = stored.len() / row_bytes;
        let head = self.permute.map(|heads| rows / heads);
        let some = |from: usize, to: usize| -> Result<Vec<u8>, ConvertError> {
            let mut values = vec![0.0; (to - from) * cols];
            for (row, out) in (from..to).zip(values.chunks_exact_mut(cols)) {
                let source = head.map_or(row, |head| halves_row(row, head));
                let bytes = &stored[source * row_bytes..][..row_bytes];
                dequantize(self.stored.dtype, bytes, out).map_err(|e| self.codec(e))?;
                rewrite(source, out);
            }
            let most = match self.to {
                DType::F16 => f32::from(half::f16::MAX),
                _ => f32::MAX,
            };
            if !values.iter().all(|v| v.abs() <= most) {
                return Err(ConvertError::NotFinite {
                    name: self.name.clone(),
                    dtype: self.to,
                });
            }
            let mut out = Vec::new();
            quantize(self.to, &values, &mut out).map_err(|e| self.codec(e))?;
            Ok(out)
        };
        let chunk = (1usize << 16).div_ceil(cols).max(1);
        let encoded: Vec<OnceLock<Result<Vec<u8>, ConvertError>>> =
            (0..rows.div_ceil(chunk)).map(|_| OnceLock::new()).collect();
        team.run(encoded.len(), &|i| {
            encoded[i].get_or_init(|| some(i * chunk, rows.min((i + 1) * chunk)));
        });
        let mut out = Vec::with_capacity(self.to.bytes_for(rows * cols).unwrap_or(0));
        for part in encoded {
            match part.into_inner() {
                Some(bytes) => out.extend_from_slice(&bytes?),
                None => unreachable!("the team ran every task"),
            }
        }
        Ok(out.into())
    }

    fn codec(&self, source: CodecError) -> ConvertError {
        ConvertError::Codec {
            name: self.name.clone(),
            source,
        }
    }
}

fn recode(
    from: DType,
    bytes: &[u8],
    cols: usize,
    row_bytes: usize,
    to: DType,
) -> Result<Vec<u8>, CodecError> {
    let mut values = vec![0.0; bytes.len() / row_bytes * cols];
    dequantize(from, bytes, &mut values)?;
    let mut out = Vec::new();
    quantize(to, &values, &mut out)?;
    Ok(out)
}

/// Rows of each head from `[2, half]` to `[half, 2]`.
fn permute(bytes: &Bytes, heads: usize, rows: usize, row_bytes: usize) -> Bytes {
    let head = rows / heads;
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        out.extend_from_slice(&bytes[halves_row(row, head) * row_bytes..][..row_bytes]);
    }
    out.into()
}

/// Of heads whose rotated values are the halves, the row that is row `row` once they are pairs.
pub(crate) fn halves_row(row: usize, head: usize) -> usize {
    let (h, i) = (row / head, row % head);
    h * head + i / 2 + (i % 2) * (head / 2)
}

/// Types of so few bits that the output head, from which logits come straight, is worth more.
pub(crate) fn has_better_head(wanted: DType) -> bool {
    wanted.block_bytes() * 8 < 5 * wanted.block_len()
}

/// The wanted type, or the nearest whose blocks a row fills.
pub(crate) fn fitting(wanted: DType, cols: usize) -> DType {
    [wanted, DType::Q8_0, DType::F16]
        .into_iter()
        .find(|d| d.bytes_for(cols).is_some())
        .unwrap_or(DType::F16)
}

/// The type that most bytes have.
pub(crate) fn commonest(parts: &[Part]) -> Option<DType> {
    let bytes = |d: DType| {
        parts
            .iter()
            .filter(|p| p.to == d)
            .map(|p| p.stored.values())
            .sum::<usize>()
    };
    DType::ALL.into_iter().max_by_key(|&d| bytes(d))
}

/// llama.cpp's number for a file that is mostly of one type; of Sedge's own types their number.
pub(crate) fn file_type(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q8_0 => 7,
        DType::Q5_0 => 8,
        DType::Q5_1 => 9,
        DType::Q2K => 10,
        DType::Q3K => 12,
        DType::Q4K => 15,
        DType::Q5K => 17,
        DType::Q6K => 18,
        DType::Iq4Nl => 25,
        DType::Iq4Xs => 30,
        DType::BF16 => 32,
        DType::B1 => 1001,
        DType::B2 => 1002,
        DType::B3 => 1003,
        DType::B4 => 1004,
        DType::B5 => 1005,
        DType::B6 => 1006,
        DType::B7 => 1007,
        DType::B8 => 1008,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permuting_pairs_the_halves_of_each_head() {
        // Two heads of four rows, a byte each.
        let rows = Bytes::from_static(&[0, 1, 2, 3, 10, 11, 12, 13]);
        assert_eq!(&permute(&rows, 2, 8, 1)[..], &[0, 2, 1, 3, 10, 12, 11, 13]);
    }

    #[test]
    fn a_row_that_does_not_fill_blocks_takes_a_type_that_it_fills() {
        assert_eq!(fitting(DType::Q4K, 512), DType::Q4K);
        assert_eq!(fitting(DType::Q4K, 64), DType::Q8_0);
        assert_eq!(fitting(DType::Q4K, 48), DType::F16);
    }
}
