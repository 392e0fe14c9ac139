//! What runs a step's batch: the CPU here; a GPU or a simulator behind the same trait.

use std::sync::Arc;

use sedge_kernels::{KvPages, KvType, Team};
use sedge_models::config::Pooling;
use sedge_models::{Batch, Model, Outputs, SharedModel, Workspace};

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
    /// Which hidden states make an embedding.
    pub pooling: Pooling,
    /// Fine-tunes that requests may name.
    pub members: usize,
}

/// Runs batches. Owns the weights' working memory and the pages.
pub trait Executor: Send {
    /// Sizes that do not change.
    fn shape(&self) -> Shape;

    /// Runs one batch and leaves exactly what it asked for in `out`, of the sizes that
    /// [`Outputs`] names. The batch's own keys and values are in its pages afterwards.
    ///
    /// A panic ends the requests that run; the next batch comes all the same.
    fn forward(&mut self, batch: &Batch, out: &mut Outputs);

    /// The model, where its memory may change while batches run.
    fn model(&self) -> Option<Arc<SharedModel>> {
        None
    }

    /// What the weights are called that would compute a batch now: batches under one name are
    /// computed alike. See [`Model::stack_version`](sedge_models::Model::stack_version).
    fn weights_now(&self) -> u64 {
        0
    }

    /// What the weights were called that computed the last batch.
    fn weights_used(&self) -> u64 {
        0
    }

    /// Bytes of one page in all layers.
    fn page_bytes(&self) -> usize {
        0
    }

    /// Blocks of memory that a page's bytes lie in.
    fn page_blocks(&self) -> usize {
        1
    }

    /// A page's bytes, as [`write_page`](Executor::write_page) takes them.
    fn read_page(&self, _page: u32) -> Vec<u8> {
        Vec::new()
    }

    /// Makes a page what it was when its bytes were read.
    fn write_page(&mut self, _page: u32, _bytes: &[u8]) {}

    /// Makes a page a copy of another.
    fn copy_page(&mut self, _from: u32, _to: u32) {}

    /// Threads that are idle between batches, if there are any: tokens are chosen on them.
    fn idle_team(&self) -> Option<&Team> {
        None
    }
}

/// Runs a model on a team of threads, with pages in memory.
#[derive(Debug)]
pub struct CpuExecutor {
    model: Arc<SharedModel>,
    team: Team,
    kv: KvPages,
    work: Workspace,
    context: usize,
    /// See [`Executor::weights_used`].
    used: u64,
}

impl CpuExecutor {
    /// Takes `pages` pages of 16 tokens for all sequences together. `context` bounds a sequence;
    /// it is at most what the model allows. An encoder keeps no pages. For keys and values of 4
    /// bits, a batch is computed to [know their means](sedge_models::Decoder::kv_centre).
    pub fn new(
        model: Arc<SharedModel>,
        team: Team,
        kv: KvType,
        pages: usize,
        context: usize,
    ) -> CpuExecutor {
        let first = model.get();
        let config = first.config();
        let pages = if config.bidirectional() { 0 } else { pages };
        let mut kv = KvPages::new(config.layers.len(), pages, config.kv_shape(), kv);
        let context = context.min(config.context);
        if let (KvType::Q4, Model::Decoder(decoder)) = (kv.kv_type(), &*first) {
            kv = kv.with_centre(decoder.kv_centre(&team, context));
        }
        CpuExecutor {
            model,
            team,
            kv,
            work: Workspace::default(),
            context,
            used: 0,
        }
    }

    /// The same with keys and values rotated before they are stored, or not, whatever is usual
    /// for their type: what [`KvPages::with_rotation`] says. To be called before the first batch.
    pub fn with_kv_rotation(mut self, rotated: bool) -> CpuExecutor {
        self.kv = self.kv.with_rotation(rotated);
        self
    }
}

impl Executor for CpuExecutor {
    fn shape(&self) -> Shape {
        let model = self.model.get();
        let config = model.config();
        Shape {
            vocab: config.vocab,
            hidden: config.hidden,
            context: self.context,
            pages: self.kv.pages(),
            bidirectional: config.bidirectional(),
            pooling: config.pooling,
            members: model.members(),
        }
    }

    fn forward(&mut self, batch: &Batch, out: &mut Outputs) {
        let model = self.model.get();
        self.used = model.stack_version();
        model.forward(&self.team, batch, &mut self.kv, &mut self.work, out);
    }

    fn model(&self) -> Option<Arc<SharedModel>> {
        Some(self.model.clone())
    }

    fn weights_now(&self) -> u64 {
        self.model.get().stack_version()
    }

    fn weights_used(&self) -> u64 {
        self.used
    }

    fn page_bytes(&self) -> usize {
        self.kv.layers() * self.kv.shape().page_bytes(self.kv.kv_type())
    }

    fn page_blocks(&self) -> usize {
        self.kv.layers()
    }

    fn read_page(&self, page: u32) -> Vec<u8> {
        self.kv.page_bytes(page)
    }

    fn write_page(&mut self, page: u32, bytes: &[u8]) {
        self.kv.set_page_bytes(page, bytes);
    }

    fn copy_page(&mut self, from: u32, to: u32) {
        self.kv.copy_page(from, to);
    }

    fn idle_team(&self) -> Option<&Team> {
        Some(&self.team)
    }
}
