//! A stacked model grows and shrinks, before it serves and while it does.
//!
//! Nothing that a running step reads is written to: blocks are loaded beside the steps, and a
//! step begins with the weights that are there. What is given up goes when the last step that
//! reads it has ended.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::decoder::Decoder;
use crate::open::Model;
use crate::shared::SharedModel;
use crate::stack::{Loaded, MemoryError, Moved, StackMemory, StacksInUse};

/// Bytes of blocks that become visible at once: a wish for less memory waits no longer than they
/// take to load.
const RUN: u64 = 8 << 20;

/// The wish for memory of a model that serves.
#[derive(Debug, Default)]
pub(crate) struct Resizing {
    /// Bytes that were asked for last; 0 before anybody has.
    target: AtomicU64,
    /// Held by who moves blocks.
    turn: Mutex<()>,
}

impl Decoder {
    fn stacks(&self) -> Result<&StacksInUse, MemoryError> {
        self.stacks.as_ref().ok_or(MemoryError::NotStacked)
    }

    fn use_blocks(&mut self, blocks: usize, loaded: &Loaded) -> Moved {
        let members = &mut self.family.members;
        let stacks = self.stacks.as_mut();
        stacks.map_or_else(Moved::default, |s| s.apply(members, blocks, loaded))
    }
}

impl Model {
    fn stacks(&self) -> Result<&StacksInUse, MemoryError> {
        match self {
            Model::Decoder(decoder) => decoder.stacks(),
            Model::Encoder(_) => Err(MemoryError::NotStacked),
        }
    }

    /// How much of the model is in memory; `None` where its weights are no stacks.
    pub fn memory(&self) -> Option<StackMemory> {
        self.stacks().ok().map(StacksInUse::memory)
    }

    /// A name of what its weights are: models of one file with the same name compute the same.
    /// 0 where all blocks are used, or there are none.
    pub fn stack_version(&self) -> u64 {
        match self.memory() {
            Some(memory) if memory.blocks < memory.of => memory.blocks as u64,
            _ => 0,
        }
    }

    /// Uses the first blocks that fit into so many bytes of weights, before the model runs.
    ///
    /// # Errors
    /// When its weights are no stacks, or the smallest model takes more.
    pub fn set_memory(&mut self, bytes: u64) -> Result<StackMemory, MemoryError> {
        let blocks = self.stacks()?.stacks.fitting(bytes)?;
        if let Model::Decoder(decoder) = self {
            decoder.use_blocks(blocks, &Loaded::new());
        }
        Ok(self.stacks()?.memory())
    }

    /// Copies the blocks that are used into memory, if the weights are stacks. Without it they
    /// are read where they lie in the mapped file.
    ///
    /// # Errors
    /// When the memory cannot be had, or a block is damaged; the model is as it was then.
    pub fn load_blocks(&mut self) -> Result<(), MemoryError> {
        let Ok(stacks) = self.stacks() else {
            return Ok(());
        };
        let blocks = stacks.blocks;
        let loaded = stacks.stacks.load(0, blocks)?;
        if let Model::Decoder(decoder) = self {
            decoder.use_blocks(blocks, &loaded);
        }
        Ok(())
    }
}

impl SharedModel {
    /// How much of the model is in memory; `None` where its weights are no stacks.
    pub fn memory(&self) -> Option<StackMemory> {
        self.get().memory()
    }

    /// Bytes that were asked for last, if anybody has asked.
    pub fn memory_target(&self) -> Option<u64> {
        let target = self.resizing.target.load(Ordering::Acquire);
        (target > 0).then_some(target)
    }

    /// Lets the model have so many bytes of weights while it serves. Only blocks that come or go
    /// are moved: those that go are given up at once, those that come are read on the caller's
    /// thread, and steps that begin meanwhile use what is there. Where several ask, the last one's
    /// wish holds. What was moved until then.
    ///
    /// # Errors
    /// When its weights are no stacks, the smallest model takes more, or a block cannot be
    /// loaded; the model then goes on with the blocks that it has.
    pub fn set_memory(&self, bytes: u64) -> Result<Moved, MemoryError> {
        self.get().stacks()?.stacks.fitting(bytes)?;
        self.resizing.target.store(bytes, Ordering::Release);
        let turn = self.resizing.turn.lock();
        let _turn = turn.unwrap_or_else(PoisonError::into_inner);
        let mut moved = Moved::default();
        loop {
            let model = self.get();
            let StacksInUse { stacks, blocks } = model.stacks()?;
            let wanted = stacks.fitting(self.resizing.target.load(Ordering::Acquire))?;
            let (next, loaded) = match wanted.cmp(blocks) {
                std::cmp::Ordering::Equal => return Ok(moved),
                std::cmp::Ordering::Less => (wanted, Loaded::new()),
                std::cmp::Ordering::Greater => {
                    let next = stacks.run(*blocks, wanted, RUN);
                    (next, stacks.load(*blocks, next)?)
                }
            };
            drop(model);
            let change = self.change(|decoder| decoder.use_blocks(next, &loaded));
            moved += change.ok_or(MemoryError::NotStacked)?;
        }
    }
}
