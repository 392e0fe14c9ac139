//! What runs a step's batch: the CPU here; a GPU or a simulator behind the same trait.

use sedge_kernels::{KvType, Team};
use sedge_models::{Batch, Outputs};

/// What the engine must know of a model to plan for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Logits in a row.
    pub vocab: usize,
    /// Values in a hidden state.
    pub hidden: usize,
    /// Most positions of a sequence.
    pub context: usize,
    /// Pages of 16 tokens there are; 0 for a model that keeps none.
    pub pages: usize,
    /// Every token sees the whole sequence, so a sequence is computed in one step (encoders).
    pub bidirectional: bool,
}

/// Runs batches. Owns the weights' working memory and the pages.
pub trait Executor: Send {
    /// Sizes that do not change.
    fn shape(&self) -> Shape;

    /// Runs one batch and leaves what it asked for in `out`.
    fn forward(&mut self, batch: &Batch, out: &mut Outputs);
}

/// The CPU's executor (filled in by `models` integration).
#[derive(Debug)]
pub struct CpuExecutor {
    #[allow(dead_code)]
    team: Team,
    #[allow(dead_code)]
    kv: KvType,
}
