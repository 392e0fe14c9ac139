//! Matrices that are stacks of blocks, and how much of them is in memory.
//!
//! A file may hold, in place of a matrix, blocks whose sum it is
//! ([`Stack`](sedge_kernels::Stack)). All blocks of all matrices have one order, that in which
//! memory takes them: whatever fits is a model, and more of it a better one.
//!
//! In a GGUF file block `n` of the matrix `NAME` is the tensor `NAME.stack.n`, a vector of
//! 16-bit words of the type f16 (some of them are signs, 16 in a word). Metadata:
//!
//! | key | |
//! |---|---|
//! | `sedge.stack.matrices` | names, such as `blk.0.attn_q.weight` |
//! | `sedge.stack.rows`, `.cols` | their shapes |
//! | `sedge.stack.order` | for each block in its turn the number of its matrix; the first block of every matrix comes before any second one |

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use indexmap::IndexMap;
use sedge_formats::gguf::{Array, Gguf, Value};
use sedge_kernels::{DType, Packed, Stack, StackBlock, StackError, Weight};

use crate::adapter::{Part, product};
use crate::decoder::Decoder;
use crate::open::Model;
use crate::tensors::{Stored, TensorError};
use crate::weights::Weights;

/// Metadata keys.
const MATRICES: &str = "sedge.stack.matrices";
const ROWS: &str = "sedge.stack.rows";
const COLS: &str = "sedge.stack.cols";
const ORDER: &str = "sedge.stack.order";

/// One matrix and all its blocks.
#[derive(Debug, Clone)]
pub struct StackedMatrix {
    /// Name in the checkpoint, `blk.N.PART.weight`.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// From the coarsest on.
    pub blocks: Vec<StackBlock>,
}

/// All stacked matrices of a model, and the order in which memory takes their blocks.
#[derive(Debug, Clone)]
pub(crate) struct Stacks {
    matrices: Vec<StackedMatrix>,
    /// The layer and the product that each is.
    places: Vec<(usize, Part)>,
    names: HashMap<String, usize>,
    order: Vec<u32>,
    /// Bytes after each block of the order, all other weights counted.
    sums: Vec<u64>,
}

/// Blocks in memory, by matrix and number.
pub(crate) type Loaded = HashMap<(usize, usize), StackBlock>;

/// How much of a stacked model is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StackMemory {
    /// Bytes of weights: all that is not stacked, and the blocks that are used.
    pub bytes: u64,
    /// The same with one block of each matrix: a model cannot be smaller.
    pub smallest: u64,
    /// The same with all blocks.
    pub largest: u64,
    /// Blocks that are used.
    pub blocks: usize,
    /// Blocks that there are.
    pub of: usize,
    /// Matrices that are stacked.
    pub matrices: usize,
    /// Fewest and most blocks of a matrix.
    pub levels: (usize, usize),
}

/// Why a model does not take some memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Its weights are no stacks.
    #[error("the model's weights are not stacks of blocks: it has one size")]
    NotStacked,
    /// One block of each matrix takes more.
    #[error("{asked} bytes are too few: the smallest that the model runs in is {smallest} bytes")]
    TooSmall {
        /// What was asked for.
        asked: u64,
        /// What it would take.
        smallest: u64,
    },
    /// A block could not be loaded.
    #[error("{matrix}: {source}")]
    Block {
        /// Its matrix.
        matrix: String,
        /// Why.
        source: StackError,
    },
}

/// The metadata of a file with these matrices, whose blocks come in this order.
///
/// # Errors
/// When the order is not one of all blocks, or begins with a second block before every first one.
pub fn stack_metadata(
    matrices: &[StackedMatrix],
    order: &[u32],
) -> Result<IndexMap<String, Value>, TensorError> {
    check(matrices, order)?;
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let names = matrices.iter().map(|m| m.name.clone()).collect();
    let rows = matrices.iter().map(|m| number(m.rows)).collect();
    let cols = matrices.iter().map(|m| number(m.cols)).collect();
    Ok(IndexMap::from([
        (MATRICES.into(), Value::Array(Array::String(names))),
        (ROWS.into(), Value::Array(Array::U32(rows))),
        (COLS.into(), Value::Array(Array::U32(cols))),
        (ORDER.into(), Value::Array(Array::U32(order.to_vec()))),
    ]))
}

/// The tensors of stacked matrices, as a GGUF file holds them: name, type, shape and bytes.
pub fn stack_tensors(
    matrices: &[StackedMatrix],
) -> impl Iterator<Item = (String, DType, Vec<usize>, Bytes)> + '_ {
    matrices.iter().flat_map(|matrix| {
        let numbered = matrix.blocks.iter().enumerate();
        numbered.map(|(n, block)| {
            let bytes = block.bytes().clone();
            let words = bytes.len() / size_of::<u16>();
            (tensor_name(&matrix.name, n), DType::F16, vec![words], bytes)
        })
    })
}

fn tensor_name(matrix: &str, block: usize) -> String {
    format!("{matrix}.stack.{block}")
}

fn wrong(name: &str, reason: impl Into<String>) -> TensorError {
    TensorError::Stack {
        name: name.to_owned(),
        reason: reason.into(),
    }
}

/// The layer and the product of a name.
fn place(name: &str) -> Option<(usize, Part)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let part = match rest.strip_suffix(".weight")? {
        "attn_q" => Part::Q,
        "attn_k" => Part::K,
        "attn_v" => Part::V,
        "attn_output" => Part::Output,
        "ffn_gate" => Part::Gate,
        "ffn_up" => Part::Up,
        "ffn_down" => Part::Down,
        _ => return None,
    };
    Some((layer.parse().ok()?, part))
}

/// Whether an order names every block once, all first ones first.
fn check(matrices: &[StackedMatrix], order: &[u32]) -> Result<(), TensorError> {
    let mut seen = vec![0; matrices.len()];
    for (turn, &matrix) in order.iter().enumerate() {
        let Some(seen) = seen.get_mut(matrix as usize) else {
            let reason = format!(
                "entry {turn} is {matrix}; there are {} matrices",
                matrices.len()
            );
            return Err(wrong(ORDER, reason));
        };
        if *seen > 0 && turn < matrices.len() {
            return Err(wrong(ORDER, "not every matrix's first block comes first"));
        }
        *seen += 1;
    }
    for (matrix, seen) in matrices.iter().zip(seen) {
        if matrix.blocks.is_empty() || seen != matrix.blocks.len() {
            let reason = format!("{} blocks, and {seen} in the order", matrix.blocks.len());
            return Err(wrong(&matrix.name, reason));
        }
    }
    Ok(())
}

impl Stacks {
    /// Takes the stacked matrices' blocks out of a file's tensors, if it has any.
    pub(crate) fn take(
        file: &Gguf,
        map: &mut IndexMap<String, Stored>,
    ) -> Result<Option<Stacks>, TensorError> {
        let Some(order) = file.get(ORDER) else {
            return Ok(None);
        };
        let numbers = |key: &str, value: Option<&Value>| match value.and_then(Value::as_array) {
            Some(Array::U32(numbers)) => Ok(numbers.clone()),
            _ => Err(wrong(key, "an array of u32 is expected")),
        };
        let order = numbers(ORDER, Some(order))?;
        let (rows, cols) = (
            numbers(ROWS, file.get(ROWS))?,
            numbers(COLS, file.get(COLS))?,
        );
        let Some(Array::String(names)) = file.get(MATRICES).and_then(Value::as_array) else {
            return Err(wrong(MATRICES, "an array of strings is expected"));
        };
        if names.is_empty() || names.len() != rows.len() || names.len() != cols.len() {
            return Err(wrong(MATRICES, "names, rows and columns differ in number"));
        }
        let mut matrices = Vec::with_capacity(names.len());
        for ((name, &rows), &cols) in names.iter().zip(&rows).zip(&cols) {
            let (rows, cols) = (rows as usize, cols as usize);
            let mut blocks = Vec::new();
            while let Some(stored) = map.shift_remove(&tensor_name(name, blocks.len())) {
                let block = StackBlock::new(rows, cols, stored.pieces[0].clone());
                blocks.push(block.map_err(|e| wrong(&stored.original, e.to_string()))?);
            }
            matrices.push(StackedMatrix {
                name: name.clone(),
                rows,
                cols,
                blocks,
            });
        }
        let fixed = map.values().flat_map(|stored| &stored.pieces);
        let fixed = fixed.map(|piece| piece.len() as u64).sum();
        Stacks::new(matrices, order, fixed).map(Some)
    }

    /// Of matrices whose blocks come in an order, beside so many bytes of other weights.
    pub(crate) fn new(
        matrices: Vec<StackedMatrix>,
        order: Vec<u32>,
        fixed: u64,
    ) -> Result<Stacks, TensorError> {
        check(&matrices, &order)?;
        let mut places = Vec::with_capacity(matrices.len());
        let mut names = HashMap::new();
        for (number, matrix) in matrices.iter().enumerate() {
            let place = place(&matrix.name);
            places.push(place.ok_or_else(|| wrong(&matrix.name, "not a matrix that is stacked"))?);
            if names.insert(matrix.name.clone(), number).is_some() {
                return Err(wrong(&matrix.name, "stands twice"));
            }
        }
        let mut counts = vec![0; matrices.len()];
        let mut sum = fixed;
        let sums = order.iter().map(|&matrix| {
            let matrix = matrix as usize;
            sum += matrices[matrix].blocks[counts[matrix]].bytes().len() as u64;
            counts[matrix] += 1;
            sum
        });
        Ok(Stacks {
            sums: sums.collect(),
            matrices,
            places,
            names,
            order,
        })
    }

    /// A matrix with all its blocks, as they lie in the file; `None` if it is not stacked.
    pub(crate) fn matrix(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Option<Weight>, TensorError> {
        let Some(&number) = self.names.get(name) else {
            return Ok(None);
        };
        let matrix = &self.matrices[number];
        if (matrix.rows, matrix.cols) != (rows, cols) {
            return Err(TensorError::Shape {
                name: name.to_owned(),
                found: vec![matrix.rows, matrix.cols],
                expected: vec![rows, cols],
            });
        }
        let stack = Stack::new(rows, cols, matrix.blocks.clone());
        let stack = stack.map_err(|e| wrong(name, e.to_string()))?;
        Ok(Some(Weight::Packed(Packed::stacked(Arc::new(stack)))))
    }

    /// Whether a matrix is stacked.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// Values of all matrices.
    pub(crate) fn values(&self) -> u64 {
        let values = self.matrices.iter().map(|m| (m.rows * m.cols) as u64);
        values.sum()
    }

    /// Blocks that there are.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether a tensor is one of the blocks.
    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        let matrix = name.rsplit_once(".stack.");
        matrix.is_some_and(|(matrix, _)| self.names.contains_key(matrix))
    }

    /// How many blocks, the first of the order, fit into so many bytes.
    pub(crate) fn fitting(&self, bytes: u64) -> Result<usize, MemoryError> {
        let blocks = self.sums.partition_point(|&sum| sum <= bytes);
        let smallest = self.sums[self.matrices.len() - 1];
        match blocks < self.matrices.len() {
            true => Err(MemoryError::TooSmall {
                asked: bytes,
                smallest,
            }),
            false => Ok(blocks),
        }
    }

    /// The memory that so many blocks take.
    pub(crate) fn memory(&self, blocks: usize) -> StackMemory {
        let counts = self.counts(blocks);
        StackMemory {
            bytes: self.sums[blocks - 1],
            smallest: self.sums[self.matrices.len() - 1],
            largest: self.sums[self.order.len() - 1],
            blocks,
            of: self.order.len(),
            matrices: self.matrices.len(),
            levels: (
                counts.iter().copied().min().unwrap_or(0),
                counts.iter().copied().max().unwrap_or(0),
            ),
        }
    }

    /// Blocks of each matrix among the first ones of the order.
    fn counts(&self, blocks: usize) -> Vec<usize> {
        let mut counts = vec![0; self.matrices.len()];
        for &matrix in &self.order[..blocks] {
            counts[matrix as usize] += 1;
        }
        counts
    }

    /// Lets weights use so many blocks of each matrix. Blocks that are used already stay where they
    /// are; others are as the file has them, or `loaded` where they are there. The bytes of blocks
    /// that came and that went.
    fn apply(&self, weights: &mut [Weights], counts: &[usize], loaded: &Loaded) -> Moved {
        let mut moved = Moved::default();
        for (number, &count) in counts.iter().enumerate() {
            let matrix = &self.matrices[number];
            let now = self.stack(&weights[0], number).map(|s| s.blocks().to_vec());
            let now = now.unwrap_or_default();
            let replaced = |n: &usize| loaded.contains_key(&(number, *n));
            if now.len() == count && !(0..count).any(|n| replaced(&n)) {
                continue;
            }
            for block in now.iter().skip(count) {
                moved.out.add(block);
                sedge_formats::release(block.bytes());
            }
            let mut next = now;
            next.truncate(count);
            for (n, block) in matrix.blocks.iter().enumerate().take(count) {
                let block = loaded.get(&(number, n)).unwrap_or(block);
                match next.get_mut(n) {
                    Some(_) if !replaced(&n) => {}
                    Some(place) => *place = block.clone(),
                    None => {
                        moved.into.add(block);
                        next.push(block.clone());
                    }
                }
            }
            let stack = Stack::new(matrix.rows, matrix.cols, next);
            let stack = Arc::new(stack.expect("one block at least, each of the matrix's shape"));
            let weight = Weight::Packed(Packed::stacked(stack));
            let (layer, part) = self.places[number];
            for weights in weights.iter_mut() {
                // A member with other weights there keeps them.
                if self.stack(weights, number).is_some()
                    && let Some(linear) = weights.layers[layer].part(part)
                {
                    linear.weight = weight.clone();
                }
            }
        }
        moved
    }

    /// The blocks of a matrix that weights use.
    fn stack<'a>(&self, weights: &'a Weights, matrix: usize) -> Option<&'a Arc<Stack>> {
        let (layer, part) = self.places[matrix];
        match &product(weights.layers.get(layer)?, part).ok()?.weight {
            Weight::Packed(packed) => packed.stack(),
            Weight::Stored(_) => None,
        }
    }

    /// Copies blocks `from..to` of the order to memory, those that lie in the file.
    pub(crate) fn load(&self, from: usize, to: usize) -> Result<Loaded, MemoryError> {
        let mut counts = self.counts(from);
        let mut loaded = HashMap::new();
        for &matrix in &self.order[from..to] {
            let number = matrix as usize;
            let (matrix, n) = (&self.matrices[number], counts[number]);
            counts[number] += 1;
            let stored = &matrix.blocks[n];
            let block = stored.load().map_err(|source| MemoryError::Block {
                matrix: matrix.name.clone(),
                source,
            })?;
            // The copy is what is read from now on.
            sedge_formats::release(stored.bytes());
            loaded.insert((number, n), block);
        }
        Ok(loaded)
    }

    /// The end of a run of blocks from one on, of about so many bytes, one block at least.
    pub(crate) fn run(&self, from: usize, to: usize, bytes: u64) -> usize {
        let before = self.sums[from - 1];
        let end = self.sums.partition_point(|&sum| sum <= before + bytes);
        end.clamp(from + 1, to.max(from + 1)).min(to)
    }
}

/// Some blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Blocks {
    /// How many.
    pub count: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl Blocks {
    fn add(&mut self, block: &StackBlock) {
        self.count += 1;
        self.bytes += block.bytes().len() as u64;
    }
}

/// What a change of memory moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Blocks that were loaded.
    pub into: Blocks,
    /// Blocks that were given up.
    pub out: Blocks,
}

impl std::ops::AddAssign for Moved {
    fn add_assign(&mut self, other: Moved) {
        for (sum, more) in [(&mut self.into, other.into), (&mut self.out, other.out)] {
            sum.count += more.count;
            sum.bytes += more.bytes;
        }
    }
}

/// The stacks of a model, and how many blocks its weights use.
#[derive(Debug, Clone)]
pub(crate) struct StacksInUse {
    pub(crate) stacks: Arc<Stacks>,
    pub(crate) blocks: usize,
}

impl StacksInUse {
    /// Of weights that use all blocks.
    pub(crate) fn all(stacks: Arc<Stacks>, weights: &Weights) -> Result<StacksInUse, TensorError> {
        for (number, matrix) in stacks.matrices.iter().enumerate() {
            if stacks.stack(weights, number).is_none() {
                return Err(wrong(&matrix.name, NO_SUCH));
            }
        }
        let blocks = stacks.len();
        Ok(StacksInUse { stacks, blocks })
    }

    /// How much is in memory.
    pub(crate) fn memory(&self) -> StackMemory {
        self.stacks.memory(self.blocks)
    }

    /// Lets weights use so many blocks.
    pub(crate) fn apply(
        &mut self,
        weights: &mut [Weights],
        blocks: usize,
        loaded: &Loaded,
    ) -> Moved {
        self.blocks = blocks;
        let counts = self.stacks.counts(blocks);
        self.stacks.apply(weights, &counts, loaded)
    }

    /// Lets weights use so many blocks of each matrix, whatever the order.
    pub(crate) fn set_levels(&mut self, weights: &mut [Weights], levels: &[usize]) {
        self.stacks.apply(weights, levels, &Loaded::new());
    }
}

impl Decoder {
    /// Puts stacks in place of matrices.
    fn put_stacks(
        &mut self,
        matrices: Vec<StackedMatrix>,
        order: Vec<u32>,
    ) -> Result<(), TensorError> {
        let stacked: u64 = matrices
            .iter()
            .filter_map(|m| {
                let (layer, part) = place(&m.name)?;
                let layer = self.family.members[0].layers.get(layer)?;
                Some(product(layer, part).ok()?.weight.bytes() as u64)
            })
            .sum();
        let fixed = self.family.bytes().saturating_sub(stacked);
        let stacks = Arc::new(Stacks::new(matrices, order, fixed)?);
        for (matrix, &(layer, part)) in stacks.matrices.iter().zip(&stacks.places) {
            for weights in &mut self.family.members {
                let layer = weights.layers.get_mut(layer);
                let linear = layer.and_then(|layer| layer.part(part));
                let linear = linear.ok_or_else(|| wrong(&matrix.name, NO_SUCH))?;
                let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
                if let Some(stacked) = stacks.matrix(&matrix.name, rows, cols)? {
                    linear.weight = stacked;
                }
            }
        }
        let weights = &self.family.members[0];
        self.stacks = Some(StacksInUse::all(stacks, weights)?);
        Ok(())
    }
}

impl Model {
    /// Puts stacks in place of a model's matrices, whose blocks come in this order.
    ///
    /// # Errors
    /// When the model has no such matrix, or of another shape, or the order is not one of all
    /// blocks; the model is of no use then.
    pub fn put_stacks(
        &mut self,
        matrices: Vec<StackedMatrix>,
        order: Vec<u32>,
    ) -> Result<(), TensorError> {
        match self {
            Model::Decoder(decoder) => decoder.put_stacks(matrices, order),
            Model::Encoder(_) => Err(wrong("blk", NO_SUCH)),
        }
    }

    /// Uses so many blocks of each stacked matrix, whatever their order: to find out what each
    /// block is worth. Does nothing where the weights are no stacks.
    ///
    /// # Panics
    /// When there are not as many levels as matrices, or one is 0 or more than there are blocks.
    pub fn set_levels(&mut self, levels: &[usize]) {
        if let Model::Decoder(Decoder {
            family,
            stacks: Some(stacks),
            ..
        }) = self
        {
            assert_eq!(
                levels.len(),
                stacks.stacks.matrices.len(),
                "a level for each matrix"
            );
            for (level, matrix) in levels.iter().zip(&stacks.stacks.matrices) {
                assert!((1..=matrix.blocks.len()).contains(level), "level {level}");
            }
            stacks.set_levels(&mut family.members, levels);
        }
    }
}

const NO_SUCH: &str = "the model has no such matrix";
