//! The way through a model: see what its products read, round, go on with what was rounded.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use sedge_kernels::{DType, Matrix, MatrixError, Team, dequantize};
use sedge_models::{
    ConvertError, ConvertReport, Layerwise, OpenError, Origin, Progress, Rewriting, Site,
    activation_bits,
};

use crate::awq;
use crate::moment::{Moment, NotFinite};
use crate::outliers::{self, GROUP};
use crate::round::{nearest, spreading};
use crate::work::{Work, WorkError};

/// Values of a matrix that are decoded at once.
const VALUES: usize = 1 << 25;

/// How matrices are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Each value to the nearest, whatever it is multiplied with.
    Nearest,
    /// The same, after columns that are multiplied with large values were made larger and what
    /// comes before them smaller (AWQ: Lin et al., 2023, arXiv 2306.00978).
    Awq,
    /// Each column's error made good in those after it (GPTQ).
    Gptq,
}

/// The type that each matrix is to have, by the tensor's name; of a layer, those that have none stay
/// as they are.
pub type Types = BTreeMap<String, DType>;

/// Settings of a run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How matrices are rounded.
    pub method: Method,
    /// Added to each column's mean square, as a share of all columns' mean.
    pub damping: f32,
    /// Sees a layer's inputs again after each group of its matrices was rounded.
    pub sequential: bool,
    /// Bits of activations, and whether outliers among them keep eight; written into the file
    /// where they are fewer than eight.
    pub activations: Option<(u8, bool)>,
    /// Forgets what an interrupted run has done.
    pub anew: bool,
}

impl Options {
    /// Whether what products read is looked at, for which the model reads a text.
    pub fn looks(&self) -> bool {
        let mixed = self.activations.is_some_and(|(_, mixed)| mixed);
        self.method != Method::Nearest || mixed
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            method: Method::Gptq,
            damping: 0.01,
            sequential: true,
            activations: None,
            anew: false,
        }
    }
}

/// Why a model was not shrunk. The output is then as it was before.
#[derive(Debug, thiserror::Error)]
pub enum ShrinkError {
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It could not be read or written.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// What was done could not be kept.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// It is no decoder, or made of stacks.
    #[error("only models that generate text, and whose weights are no stacks, are shrunk")]
    Encoder,
    /// Its weights are quantised already.
    #[error(
        "the model is quantised already ({tensor} is {dtype}): what it has lost would be lost twice"
    )]
    Quantised {
        /// One of its matrices.
        tensor: String,
        /// Its type.
        dtype: DType,
    },
    /// There is too little text.
    #[error("the calibration text has {tokens} tokens; at least {least} are needed")]
    Text {
        /// Tokens there are.
        tokens: usize,
        /// Tokens needed.
        least: usize,
    },
    /// A product read what is no number.
    #[error("layer {layer}: what {tensor} reads is not finite: {source}")]
    NotFinite {
        /// Layer; the number of layers for the output head.
        layer: usize,
        /// Its first reader.
        tensor: String,
        /// Where.
        source: NotFinite,
    },
    /// A tensor is no matrix.
    #[error("{tensor}: {source}")]
    Matrix {
        /// Tensor.
        tensor: String,
        /// Why not.
        source: MatrixError,
    },
    /// Memory could not be had.
    #[error("memory for a layer's weights: {0}")]
    Memory(std::io::Error),
    /// No choice of types is as small.
    #[error("{wanted} bytes are too few: the smallest that this model fits is {smallest} bytes")]
    TooSmall {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes of the smallest choice.
        smallest: u64,
    },
}

impl ShrinkError {
    /// Of what one of a layer's inputs held.
    pub(crate) fn not_finite(
        layer: usize,
        sites: &[Site],
        input: usize,
        source: NotFinite,
    ) -> ShrinkError {
        let reader = sites.iter().find(|s| s.input == input);
        let tensor = reader.map_or_else(String::new, |s| s.tensor.clone());
        ShrinkError::NotFinite {
            layer,
            tensor,
            source,
        }
    }
}

/// Refuses a text in which there is too little to see.
pub(crate) fn check_text(text: &[Vec<u32>]) -> Result<&[Vec<u32>], ShrinkError> {
    let tokens = text.iter().map(Vec::len).sum();
    match tokens < LEAST_TOKENS {
        true => Err(ShrinkError::Text {
            tokens,
            least: LEAST_TOKENS,
        }),
        false => Ok(text),
    }
}

/// What a run is at.
#[derive(Debug, Clone, Copy)]
pub enum Doing<'a> {
    /// Rounding a tensor of a layer.
    Rounding {
        /// Matrices that are done.
        done: usize,
        /// All of them.
        total: usize,
        /// Tensor.
        tensor: &'a str,
    },
    /// Writing the file.
    Writing(Progress<'a>),
}

/// What became of a matrix.
#[derive(Debug, Clone)]
pub struct Shrunk {
    /// Tensor.
    pub tensor: String,
    /// Its type.
    pub dtype: DType,
    /// Its values.
    pub values: usize,
}

/// What a run did.
#[derive(Debug, Clone)]
pub struct ShrinkReport {
    /// Matrices by tensor, in the order of the layers.
    pub matrices: Vec<Shrunk>,
    /// What was written.
    pub file: ConvertReport,
    /// Tensors that an interrupted run had done.
    pub resumed: usize,
}

impl ShrinkReport {
    /// Bits of each value of the matrices.
    pub fn bits_per_weight(&self) -> f64 {
        let bits = |m: &Shrunk| m.dtype.bytes_for(m.values).unwrap_or(0) as f64 * 8.0;
        let values: usize = self.matrices.iter().map(|m| m.values).sum();
        self.matrices.iter().map(bits).sum::<f64>() / values.max(1) as f64
    }
}

/// Sequences on which outliers are looked for.
const LOOKED_AT: usize = 16;

/// Tokens of calibration text without which there is nothing to see.
pub const LEAST_TOKENS: usize = 256;

/// Writes the model with its matrices rounded to `types` as the GGUF file `output`, looking at
/// what they read while the model reads `text`, sequences of tokens. `change` may put metadata
/// into the file.
///
/// # Errors
/// When the model cannot be read or is of no use for it, the text is too short, or the disk is
/// full; what was done until then is kept for the next try, beside the output.
#[allow(clippy::too_many_arguments)] // each is a thing of its own
pub fn shrink(
    origin: &Origin<'_>,
    types: &Types,
    text: &[Vec<u32>],
    options: Options,
    output: &Path,
    team: &Team,
    change: &dyn Fn(&mut Rewriting<'_>),
    progress: &mut dyn FnMut(Doing<'_>),
) -> Result<ShrinkReport, ShrinkError> {
    origin.refuse_same(output)?;
    let mut file = Rewriting::open(origin)?;
    // Where nothing is looked at, nothing need pass through the layers.
    let text = match options.looks() {
        true => check_text(text)?,
        false => &[],
    };
    let stored = |t: sedge_models::Tensor| t.dtype.bytes_for(t.values()).unwrap_or(0) as u64;
    let bytes_in = file.tensors().map(stored).sum();
    let work = Work::open(output, &key(&file, types, text, options), options.anew)?;
    let has = |name: &str| file.has(name);
    let order = match options.activations {
        Some((_, true)) => {
            let few = &text[..text.len().min(LOOKED_AT)];
            outliers::hidden_order(team, origin.model()?.model, few, &has)?
        }
        _ => None,
    };
    let model = origin.model()?.model;
    let mut layers = Layerwise::new(team, model, text, &has).ok_or(ShrinkError::Encoder)?;
    if let Some(order) = &order {
        for states in layers.states() {
            for row in states.chunks_exact_mut(order.len()) {
                let own = row.to_vec();
                row.iter_mut().zip(order).for_each(|(x, &i)| *x = own[i]);
            }
        }
        let norm = layers.last_norm();
        *norm = order.iter().map(|&i| norm[i]).collect();
    }
    let total = types.len();
    let mut run = Run {
        team,
        types,
        options,
        work: &work,
        layers,
        order,
        done: BTreeMap::new(),
        bits: BTreeMap::new(),
        resumed: 0,
    };
    while !run.layers.is_done() {
        run.layer(&mut |done, tensor| {
            progress(Doing::Rounding {
                done,
                total,
                tensor,
            });
        })?;
    }
    run.rest(&file, &mut |done, tensor| {
        progress(Doing::Rounding {
            done,
            total,
            tensor,
        });
    })?;
    let Run {
        done,
        bits,
        resumed,
        ..
    } = run;
    let shapes: BTreeMap<String, Vec<usize>> = file.tensors().map(|t| (t.name, t.shape)).collect();
    let mut matrices = Vec::new();
    for (tensor, (dtype, bytes)) in done {
        let shape = shapes[&tensor].clone();
        let values = shape.iter().product();
        if shape.len() > 1 {
            matrices.push(Shrunk {
                tensor: tensor.clone(),
                dtype,
                values,
            });
        }
        file.put(&tensor, dtype, shape, bytes);
    }
    for (tensor, bits) in bits {
        let (key, value) = activation_bits(&tensor, &bits);
        file.set(&key, value);
    }
    change(&mut file);
    let mut file = file.write(output, team, &mut |p| progress(Doing::Writing(p)))?;
    // What was read, not what took its place.
    file.bytes_in = bytes_in;
    work.remove()?;
    Ok(ShrinkReport {
        matrices,
        file,
        resumed,
    })
}

/// Bytes that are hashed of a tensor, at so many places.
const HASHED: (usize, usize) = (4096, 16);

/// What names a run: the same for the same model, text and settings. Of the weights it hashes
/// some of each tensor: fine-tunes differ everywhere in what they have changed.
fn key(file: &Rewriting<'_>, types: &Types, text: &[Vec<u32>], options: Options) -> String {
    let mut hash = blake3::Hasher::new();
    for tensor in file.tensors() {
        hash.update(format!("{tensor:?}").as_bytes());
        for piece in file.pieces(&tensor.name) {
            let step = (piece.len() / HASHED.1).max(HASHED.0);
            for part in piece.chunks(step) {
                hash.update(&part[..part.len().min(HASHED.0)]);
            }
        }
    }
    hash.update(
        format!(
            "{types:?} {:?} {} {} {:?}",
            options.method, options.damping, options.sequential, options.activations
        )
        .as_bytes(),
    );
    for sequence in text {
        hash.update(&(sequence.len() as u64).to_le_bytes());
        for token in sequence {
            hash.update(&token.to_le_bytes());
        }
    }
    format!("{} {}\n", env!("CARGO_PKG_VERSION"), hash.finalize())
}

/// A run on its way.
struct Run<'a> {
    team: &'a Team,
    types: &'a Types,
    options: Options,
    work: &'a Work,
    layers: Layerwise,
    /// The order in which the states' channels are taken.
    order: Option<Vec<usize>>,
    /// Bits of activations of the tensors that are done, for each group.
    bits: BTreeMap<String, Vec<u8>>,
    /// Tensors that are done, norms that were changed among them.
    done: BTreeMap<String, (DType, Bytes)>,
    resumed: usize,
}

impl Run<'_> {
    /// Rounds a layer and passes it.
    fn layer(&mut self, progress: &mut dyn FnMut(usize, &str)) -> Result<(), ShrinkError> {
        let sites = self.layers.sites();
        if !self.resume(&sites)? {
            if let Some(order) = &self.order {
                outliers::reorder(self.team, &mut self.layers, order)?;
            }
            let sites = self.layers.sites();
            self.choose_bits(&sites)?;
            self.round_layer(sites, progress)?;
            self.keep_small()?;
        }
        self.layers.advance(self.team).map_err(ShrinkError::Memory)
    }

    /// Takes what an interrupted run has done of this layer, if it was done with it.
    fn resume(&mut self, sites: &[Site]) -> Result<bool, ShrinkError> {
        let mut found = Vec::new();
        for (tensor, rows, columns) in tensors(sites) {
            let dtype = self.type_of(&tensor, sites);
            let len = dtype.bytes_for(columns).unwrap_or(0) * rows;
            match self.work.find(&tensor, len)? {
                Some(bytes) => found.push((tensor, dtype, bytes)),
                None => return Ok(false),
            }
        }
        let mut small = BTreeMap::new();
        let mut bits = BTreeMap::new();
        if self.changes_small() {
            let names = self.small();
            for (name, values) in names {
                let Some(bytes) = self.work.find(&name, values.len() * 4)? else {
                    return Ok(false);
                };
                small.insert(name, bytes);
            }
        }
        if self.options.activations.is_some() {
            for (tensor, _, columns) in tensors(sites) {
                let (name, groups) = (format!("{tensor}.bits"), columns.div_ceil(GROUP));
                let Some(found) = self.work.find(&name, groups)? else {
                    return Ok(false);
                };
                bits.insert(tensor, found.to_vec());
            }
        }
        self.bits.extend(bits);
        self.take_small(small);
        self.resumed += found.len();
        for (tensor, dtype, bytes) in found {
            self.done.insert(tensor, (dtype, bytes));
        }
        let sites = self.layers.sites();
        self.adopt(&sites);
        Ok(true)
    }

    fn round_layer(
        &mut self,
        mut sites: Vec<Site>,
        progress: &mut dyn FnMut(usize, &str),
    ) -> Result<(), ShrinkError> {
        let inputs = 1 + sites.iter().map(|s| s.input).max().unwrap_or(0);
        let mut bytes: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let groups: Vec<Vec<usize>> = match self.options.sequential {
            true => (0..inputs).map(|input| vec![input]).collect(),
            false => vec![(0..inputs).collect()],
        };
        if self.options.method == Method::Awq {
            let moments = self.moments(&sites, &(0..inputs).collect::<Vec<_>>())?;
            awq::fold(self.team, &mut self.layers, &sites, &moments, self.types);
            sites = self.layers.sites();
        }
        for group in groups {
            let mut moments = match self.options.method {
                Method::Nearest => BTreeMap::new(),
                _ => self.moments(&sites, &group)?,
            };
            for input in group {
                let moment = moments.remove(&input);
                let readers = sites.iter().enumerate().filter(|(_, s)| s.input == input);
                let readers: Vec<(usize, &Site)> = readers.collect();
                let spread = match (self.options.method, &moment) {
                    (Method::Gptq, Some(m)) => m.spread(self.team, self.options.damping),
                    _ => None,
                };
                let squares = moment.as_ref().map(Moment::squares);
                for (index, site) in readers {
                    progress(self.done.len(), &site.tensor);
                    let dtype = self.type_of(&site.tensor, &sites);
                    let rounded = round(
                        self.team,
                        dtype,
                        &site.weight,
                        None,
                        spread.as_ref(),
                        squares.as_deref(),
                    );
                    let (rows, columns) = (site.weight.rows(), site.weight.cols());
                    let matrix = Bytes::from(rounded);
                    let here = bytes.entry(site.tensor.clone()).or_default();
                    let start = site.rows.start * dtype.bytes_for(columns).unwrap_or(0);
                    if here.len() < start + matrix.len() {
                        here.resize(start + matrix.len(), 0);
                    }
                    here[start..start + matrix.len()].copy_from_slice(&matrix);
                    let matrix = Matrix::new(dtype, rows, columns, matrix);
                    let matrix = matrix.expect("rounding keeps the shape");
                    self.layers.replace(index, matrix, site.bias.clone());
                }
            }
        }
        for (tensor, bytes) in bytes {
            let kept = self.work.keep(&tensor, &bytes)?;
            let dtype = self.type_of(&tensor, &sites);
            self.done.insert(tensor, (dtype, kept));
        }
        let sites = self.layers.sites();
        self.adopt(&sites);
        Ok(())
    }

    /// The type that a tensor of the layer is to have.
    fn type_of(&self, tensor: &str, sites: &[Site]) -> DType {
        let stored = || {
            sites
                .iter()
                .find(|s| s.tensor == tensor)
                .map(|s| s.weight.dtype())
        };
        let wanted = self.types.get(tensor).copied();
        wanted.or_else(stored).unwrap_or(DType::F16)
    }

    /// Whether norms and biases become others.
    fn changes_small(&self) -> bool {
        self.options.method == Method::Awq || self.order.is_some()
    }

    /// The layer's norms and biases by their tensors' names.
    fn small(&mut self) -> BTreeMap<String, Vec<f32>> {
        let mut all = BTreeMap::new();
        for site in self.layers.sites() {
            if let Some(bias) = site.bias {
                let name = site.tensor.replace(".weight", ".bias");
                let here: &mut Vec<f32> = all.entry(name).or_default();
                here.extend(bias);
            }
        }
        let norms = self.layers.norms().into_iter();
        all.extend(norms.map(|(name, norm)| (name, norm.clone())));
        all
    }

    /// Keeps the layer's norms and biases, where they have become others.
    fn keep_small(&mut self) -> Result<(), ShrinkError> {
        if !self.changes_small() {
            return Ok(());
        }
        for (name, values) in self.small() {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let kept = self.work.keep(&name, &bytes)?;
            self.done.insert(name, (DType::F32, kept));
        }
        Ok(())
    }

    /// Has the layer use norms and biases that were kept.
    fn take_small(&mut self, small: BTreeMap<String, Bytes>) {
        let values = |bytes: &Bytes| -> Vec<f32> {
            let each = bytes.as_chunks::<4>().0.iter();
            each.map(|b| f32::from_le_bytes(*b)).collect()
        };
        for (name, norm) in self.layers.norms() {
            if let Some(bytes) = small.get(&name) {
                *norm = values(bytes);
            }
        }
        let sites = self.layers.sites();
        for (index, site) in sites.into_iter().enumerate() {
            let name = site.tensor.replace(".weight", ".bias");
            if let (Some(bytes), Some(_)) = (small.get(&name), &site.bias) {
                let bias = values(bytes)[site.rows].to_vec();
                self.layers.replace(index, site.weight, Some(bias));
            }
        }
        let kept = small.into_iter();
        self.done
            .extend(kept.map(|(name, bytes)| (name, (DType::F32, bytes))));
    }

    /// With how many bits the layer's activations will be multiplied.
    fn choose_bits(&mut self, sites: &[Site]) -> Result<(), ShrinkError> {
        let Some((bits, mixed)) = self.options.activations else {
            return Ok(());
        };
        let sizes = match mixed {
            true => outliers::sizes(self.team, &mut self.layers, sites)?,
            false => Vec::new(),
        };
        for (tensor, _, columns) in tensors(sites) {
            let input = sites
                .iter()
                .find(|s| s.tensor == tensor)
                .map_or(0, |s| s.input);
            let readers: Vec<&Site> = sites.iter().filter(|s| s.input == input).collect();
            let all = match sizes.get(input) {
                Some(sizes) => sizes.bits(self.team, &readers, bits),
                None => vec![bits; columns.div_ceil(GROUP)],
            };
            self.work.keep(&format!("{tensor}.bits"), &all)?;
            self.bits.insert(tensor, all);
        }
        Ok(())
    }

    /// Has the layer read what lies in files instead of memory.
    fn adopt(&mut self, sites: &[Site]) {
        for (index, site) in sites.iter().enumerate() {
            let (dtype, bytes) = &self.done[&site.tensor];
            let columns = site.weight.cols();
            let row = dtype.bytes_for(columns).unwrap_or(0);
            let bytes = bytes.slice(site.rows.start * row..site.rows.end * row);
            let matrix = Matrix::new(*dtype, site.rows.len(), columns, bytes);
            let matrix = matrix.expect("as many bytes as the shape takes");
            self.layers.replace(index, matrix, site.bias.clone());
        }
    }

    /// What some inputs of the layer look like.
    fn moments(
        &mut self,
        sites: &[Site],
        inputs: &[usize],
    ) -> Result<BTreeMap<usize, Moment>, ShrinkError> {
        let reader = |input: usize| sites.iter().find(|s| s.input == input);
        let mut moments: BTreeMap<usize, Moment> = inputs
            .iter()
            .filter_map(|&input| Some((input, Moment::new(reader(input)?.weight.cols()))))
            .collect();
        let (team, mut wrong) = (self.team, None);
        let layer = self.layers.layer();
        let seen = self.layers.observe(team, &mut |input, rows| {
            if let Some(moment) = moments.get_mut(&input)
                && let Err(source) = moment.add(team, rows)
            {
                wrong.get_or_insert((input, source));
            }
        });
        seen.map_err(ShrinkError::Memory)?;
        match wrong {
            None => Ok(moments),
            Some((input, source)) => Err(ShrinkError::not_finite(layer, sites, input, source)),
        }
    }

    /// The output head, and what is no layer's.
    fn rest(
        &mut self,
        file: &Rewriting<'_>,
        progress: &mut dyn FnMut(usize, &str),
    ) -> Result<(), ShrinkError> {
        let head = match file.has("output.weight") {
            true => "output.weight",
            false => "token_embd.weight",
        };
        if self.order.is_some() {
            let norm = self.layers.last_norm().clone();
            let bytes: Vec<u8> = norm.iter().flat_map(|v| v.to_le_bytes()).collect();
            let name = "output_norm.weight".to_owned();
            self.done.insert(name, (DType::F32, bytes.into()));
        }
        let left: Vec<_> = file
            .tensors()
            .filter(|t| self.types.contains_key(&t.name) && !self.done.contains_key(&t.name))
            .collect();
        for tensor in left {
            let (dtype, columns) = (self.types[&tensor.name], tensor.cols());
            let len = dtype.bytes_for(tensor.values()).unwrap_or(0);
            if let Some(bytes) = self.work.find(&tensor.name, len)? {
                self.resumed += 1;
                self.done.insert(tensor.name, (dtype, bytes));
                continue;
            }
            progress(self.done.len(), &tensor.name);
            let mut moment = Moment::new(columns);
            let mut wrong = None;
            if tensor.name == head && self.options.method != Method::Nearest {
                let team = self.team;
                self.layers.head_inputs(team, &mut |rows| {
                    if let Err(source) = moment.add(team, rows) {
                        wrong.get_or_insert(source);
                    }
                });
            }
            if let Some(source) = wrong {
                return Err(ShrinkError::NotFinite {
                    layer: self.layers.layer(),
                    tensor: tensor.name,
                    source,
                });
            }
            let spread = match self.options.method {
                Method::Gptq => moment.spread(self.team, self.options.damping),
                _ => None,
            };
            let squares = (moment.rows() > 0).then(|| moment.squares());
            let mut bytes = Vec::with_capacity(len);
            for piece in file.pieces(&tensor.name) {
                let row = tensor.dtype.bytes_for(columns).unwrap_or(1);
                let matrix = Matrix::new(tensor.dtype, piece.len() / row, columns, piece);
                let matrix = matrix.map_err(|source| ShrinkError::Matrix {
                    tensor: tensor.name.clone(),
                    source,
                })?;
                // Rows of embeddings, and of the output head, are states.
                let states = tensor.name == head || tensor.name == "token_embd.weight";
                let order = self.order.as_deref().filter(|_| states);
                let rounded = round(
                    self.team,
                    dtype,
                    &matrix,
                    order,
                    spread.as_ref(),
                    squares.as_deref(),
                );
                bytes.extend_from_slice(&rounded);
            }
            let kept = self.work.keep(&tensor.name, &bytes)?;
            self.done.insert(tensor.name, (dtype, kept));
        }
        Ok(())
    }
}

/// Each tensor of some sites once, with its rows and columns.
fn tensors(sites: &[Site]) -> Vec<(String, usize, usize)> {
    let mut all: Vec<(String, usize, usize)> = Vec::new();
    for site in sites {
        match all.iter_mut().find(|t| t.0 == site.tensor) {
            Some(tensor) => tensor.1 = tensor.1.max(site.rows.end),
            None => all.push((site.tensor.clone(), site.rows.end, site.weight.cols())),
        }
    }
    all
}

/// Rounds a matrix, some rows at a time.
fn round(
    team: &Team,
    dtype: DType,
    w: &Matrix,
    order: Option<&[usize]>,
    spread: Option<&crate::Spread>,
    squares: Option<&[f32]>,
) -> Vec<u8> {
    let (rows, columns) = (w.rows(), w.cols());
    let at_once = (VALUES / columns.max(1)).max(64).next_multiple_of(64);
    let (mut all, mut values) = (Vec::new(), Vec::new());
    for start in (0..rows).step_by(at_once) {
        let part = w.slice_rows(start..rows.min(start + at_once));
        values.resize(part.rows() * columns, 0.0);
        decode(team, &part, &mut values);
        if let Some(order) = order {
            team.for_rows(&mut values, columns, &|_, row| {
                let own = row.to_vec();
                row.iter_mut().zip(order).for_each(|(x, &i)| *x = own[i]);
            });
        }
        let rounded = match (spread, squares) {
            (Some(spread), Some(squares)) => spreading(team, dtype, &values, spread, squares),
            (None, squares) => nearest(team, dtype, &values, columns, squares),
            (Some(_), None) => unreachable!("both come from one moment"),
        };
        all.extend_from_slice(&rounded.bytes);
    }
    all
}

/// All values of a matrix. One that is not finite is a mistake of the checkpoint's, which must not
/// spread over its row: it is the largest that quantising takes, or 0 where it is no number.
pub(crate) fn decode(team: &Team, w: &Matrix, out: &mut [f32]) {
    let (columns, row) = (w.cols(), w.row_bytes());
    team.for_rows(out, columns, &|index, out| {
        let bytes = &w.bytes()[index * row..(index + 1) * row];
        dequantize(w.dtype(), bytes, out).expect("a matrix has the bytes of its shape");
        for x in out {
            *x = if x.is_nan() {
                0.0
            } else {
                x.clamp(-1e15, 1e15)
            };
        }
    });
}
