//! A model into a file of stacks: decompose, measure what blocks are worth, write.

use std::path::Path;

use sedge_kernels::{DType, Team, dequantize, quantize};
use sedge_models::{
    ConvertReport, Layerwise, Model, Origin, Progress, Rewriting, StackMemory, StackedMatrix,
    TensorError, stack_metadata, stack_tensors,
};

use super::decompose::{Decomposition, decompose};
use super::inputs::Inputs;
use super::order::{by_worth, gains};
use crate::distance::Distance;
use crate::moment::Moment;
use crate::shrink::{ShrinkError, check_text};

/// Settings of a stack.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StackOptions {
    /// How matrices become blocks.
    pub decomposition: Decomposition,
    /// Tokens of the calibration text on which what a block is worth is measured.
    pub measured: usize,
}

impl Default for StackOptions {
    fn default() -> StackOptions {
        StackOptions {
            decomposition: Decomposition {
                levels: 7,
                rank: 2,
                rounds: 1,
            },
            measured: 2048,
        }
    }
}

/// Why a model did not become stacks. The output file is then as it was before.
#[derive(Debug, thiserror::Error)]
pub enum StackBuildError {
    /// It cannot be shrunk at all.
    #[error(transparent)]
    Shrink(#[from] ShrinkError),
    /// Its tensors do not fit.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// It is stacked already.
    #[error("the model's weights are stacks already")]
    Stacked,
    /// Matrices of a form that stacks do not have.
    #[error(
        "{0}: only separate matrices of dense layers become stacks, not fused ones or experts'"
    )]
    Form(String),
    /// A folder's rows may be in another order than a file's.
    #[error("stacks are made of GGUF files; the model is a folder")]
    Folder,
}

/// What a run is at.
#[derive(Debug, Clone, Copy)]
pub enum StackDoing<'a> {
    /// Making blocks of a matrix.
    Decomposing {
        /// Layers that are done.
        done: usize,
        /// All of them.
        total: usize,
        /// Matrix.
        tensor: &'a str,
    },
    /// Measuring what blocks are worth.
    Measuring {
        /// Blocks that are done.
        done: usize,
        /// All of them.
        total: usize,
    },
    /// Writing the file.
    Writing(Progress<'a>),
}

/// What became of a model.
#[derive(Debug, Clone)]
pub struct StackReport {
    /// Its sizes.
    pub memory: StackMemory,
    /// How far predictions of the calibration text are from those of the model as it was, at some
    /// sizes: bytes of weights, and the mean Kullback-Leibler divergence in nats a token, smallest
    /// first.
    pub curve: Vec<(u64, f64)>,
    /// Blocks of each matrix, in the order in which memory takes them, as numbers of matrices.
    pub order: Vec<u32>,
    /// What was written.
    pub file: ConvertReport,
}

/// Sizes at which a report tells the distance.
const SIZES: usize = 12;

/// Writes the model of a GGUF file as the GGUF file `output`, its layers' matrices as stacks of
/// blocks in the order in which memory takes them, by what `text` shows. The rest is as it was.
///
/// # Errors
/// When the model cannot be read or is of no use for it, the text is too short, or the disk is
/// full.
pub fn build(
    origin: &Origin<'_>,
    text: &[Vec<u32>],
    options: StackOptions,
    output: &Path,
    team: &Team,
    progress: &mut dyn FnMut(StackDoing<'_>),
) -> Result<StackReport, StackBuildError> {
    if let Origin::Path(path) = origin
        && path.is_dir()
    {
        return Err(StackBuildError::Folder);
    }
    check_text(text)?;
    origin.refuse_same(output).map_err(ShrinkError::from)?;
    let mut file = Rewriting::open(origin).map_err(ShrinkError::from)?;
    let matrices = blocks(
        origin,
        text,
        options,
        team,
        &|name| file.has(name),
        progress,
    )?;

    // All of a level, then all of the next: enough to measure with.
    let levels = options.decomposition.levels.max(1);
    let any = (0..levels).flat_map(|_| 0..matrices.len() as u32).collect();
    let mut model = origin.model().map_err(ShrinkError::from)?.model;
    model.pack(team).map_err(ShrinkError::Memory)?;
    let measured = beginning(text, options.measured);
    let mut distance = Distance::new(team, &model, &measured);
    model.put_stacks(matrices.clone(), any)?;
    let worth = gains(
        team,
        &mut model,
        &matrices,
        &mut distance,
        &mut |done, total| {
            progress(StackDoing::Measuring { done, total });
        },
    );
    let order = by_worth(&matrices, &worth);
    model.put_stacks(matrices.clone(), order.clone())?;
    let (memory, curve) = curve(team, &mut model, &mut distance)?;

    for matrix in &matrices {
        file.remove(&matrix.name);
    }
    halve_tables(&mut file);
    for (name, dtype, shape, bytes) in stack_tensors(&matrices) {
        file.put(&name, dtype, shape, bytes);
    }
    for (key, value) in stack_metadata(&matrices, &order)? {
        file.set(&key, value);
    }
    let file = file.write(output, team, &mut |p| progress(StackDoing::Writing(p)));
    let file = file.map_err(ShrinkError::from)?;
    // The file counts all that it holds, norms too; blocks are the same.
    let written = sedge_models::open(output).map_err(ShrinkError::from)?;
    let written = written.model.memory().ok_or(StackBuildError::Stacked)?;
    let beside = |bytes: u64| (bytes + written.smallest).saturating_sub(memory.smallest);
    let curve = curve.into_iter().map(|(bytes, far)| (beside(bytes), far));
    Ok(StackReport {
        memory: written,
        curve: curve.collect(),
        order,
        file,
    })
}

/// All matrices of a model's layers as blocks.
fn blocks(
    origin: &Origin<'_>,
    text: &[Vec<u32>],
    options: StackOptions,
    team: &Team,
    has: &dyn Fn(&str) -> bool,
    progress: &mut dyn FnMut(StackDoing<'_>),
) -> Result<Vec<StackedMatrix>, StackBuildError> {
    let model = origin.model().map_err(ShrinkError::from)?.model;
    let mut layers = Layerwise::new(team, model, text, has).ok_or(ShrinkError::Encoder)?;
    let total = layers.config().layers.len();
    let mut matrices = Vec::new();
    while !layers.is_done() {
        let sites = layers.sites();
        let mut moments: Vec<Moment> = Vec::new();
        for site in &sites {
            let part = site.tensor.rsplit('.').nth(1).unwrap_or_default();
            if !STACKED.contains(&part) || site.rows.start > 0 {
                return Err(StackBuildError::Form(site.tensor.clone()));
            }
            if site.input == moments.len() {
                moments.push(Moment::new(site.weight.cols()));
            }
        }
        let mut wrong = None;
        let seen = layers.observe(team, &mut |input, rows| {
            if let Err(source) = moments[input].add(team, rows) {
                wrong.get_or_insert((input, source));
            }
        });
        seen.map_err(ShrinkError::Memory)?;
        if let Some((input, source)) = wrong {
            return Err(ShrinkError::not_finite(layers.layer(), &sites, input, source).into());
        }
        let mut inputs: Option<(usize, Inputs)> = None;
        for site in &sites {
            progress(StackDoing::Decomposing {
                done: layers.layer(),
                total,
                tensor: &site.tensor,
            });
            let ready = match inputs.take() {
                Some((input, ready)) if input == site.input => ready,
                _ => Inputs::of(team, &moments[site.input]),
            };
            let (rows, cols) = (site.weight.rows(), site.weight.cols());
            let mut weights = vec![0.0; rows * cols];
            team.for_rows(&mut weights, cols, &|row, out| site.weight.row(row, out));
            let done = decompose(team, &weights, rows, &ready, options.decomposition);
            inputs = Some((site.input, ready));
            matrices.push(StackedMatrix {
                name: site.tensor.clone(),
                rows,
                cols,
                blocks: done.blocks,
            });
        }
        layers.advance(team).map_err(ShrinkError::Memory)?;
    }
    Ok(matrices)
}

/// Puts matrices that are no stacks, embeddings and the output head, from 16 bits or more into
/// q8_0, which costs them nothing that can be measured: they are in memory at every size.
fn halve_tables(file: &mut Rewriting) {
    let tables: Vec<_> = file
        .tensors()
        .filter(|tensor| tensor.weight && tensor.dtype.block_len() == 1)
        .collect();
    for table in tables {
        let mut rounded = Vec::new();
        let whole = file.pieces(&table.name).iter().all(|piece| {
            let mut values = vec![0.0; piece.len() / table.dtype.block_bytes()];
            dequantize(table.dtype, piece, &mut values).is_ok()
                && quantize(DType::Q8_0, &values, &mut rounded).is_ok()
        });
        // Rows that are no whole blocks stay as they are.
        if whole && table.cols().is_multiple_of(DType::Q8_0.block_len()) {
            file.put(&table.name, DType::Q8_0, table.shape, rounded.into());
        }
    }
}

/// Matrices that become stacks.
const STACKED: [&str; 7] = [
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];

/// About so many tokens of a text, from all over it.
fn beginning(text: &[Vec<u32>], tokens: usize) -> Vec<Vec<u32>> {
    let each = text.iter().map(Vec::len).max().unwrap_or(1).max(1);
    let count = tokens.div_ceil(each).clamp(1, text.len().max(1));
    (0..count)
        .map(|i| text[i * text.len() / count].clone())
        .collect()
}

/// The sizes of a stack, and how far it is from the model as it was at some of them.
fn curve(
    team: &Team,
    model: &mut Model,
    distance: &mut Distance<'_>,
) -> Result<(StackMemory, Vec<(u64, f64)>), StackBuildError> {
    let whole = model.memory().ok_or(StackBuildError::Stacked)?;
    let mut curve = Vec::new();
    let step = (whole.largest - whole.smallest) / (SIZES as u64 - 1);
    for size in 0..SIZES as u64 {
        // The last is all of it, whatever was rounded.
        let bytes = match size + 1 == SIZES as u64 {
            true => whole.largest,
            false => whole.smallest + size * step,
        };
        let memory = model
            .set_memory(bytes)
            .map_err(|_| StackBuildError::Stacked)?;
        curve.push((memory.bytes, distance.of(team, model)));
    }
    Ok((whole, curve))
}
