//! Running a checkpoint of tests/golden, and reading what it should compute.
#![allow(dead_code)] // each test file uses a part

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use sedge_kernels::{KvPages, KvType, PAGE_TOKENS, Segment, Team, argmax};
use sedge_models::{Adapter, Batch, Decoder, Model, Opened, Outputs, Variant, Workspace, open};

pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

pub(crate) struct Golden(Vec<u8>);

pub(crate) fn golden(name: &str) -> Golden {
    Golden(std::fs::read(folder(name).join("golden.safetensors")).unwrap())
}

impl Golden {
    pub(crate) fn ids(&self, key: &str) -> Vec<u32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let (eights, _) = file.tensor(key).unwrap().data().as_chunks::<8>();
        eights
            .iter()
            .map(|b| i64::from_le_bytes(*b) as u32)
            .collect()
    }

    pub(crate) fn f32s(&self, key: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let (fours, _) = file.tensor(key).unwrap().data().as_chunks::<4>();
        fours.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }
}

/// Adapters of `llama`: the folders of tests/golden/peft. `golden("peft/lora")` is what the first
/// of them should compute.
pub(crate) const ADAPTERS: [&str; 14] = [
    "lora",
    "lora-rs-qv",
    "lora-rank-pattern",
    "lora-embed-head",
    "dora",
    "adalora",
    "ia3",
    "vera",
    "loha",
    "lokr",
    "ln",
    "prefix",
    "prompt",
    "ptuning",
];

/// An adapter of tests/golden/peft.
pub(crate) fn adapter(name: &str, model: &Decoder) -> Adapter {
    Adapter::open(&folder(&format!("peft/{name}")), model).unwrap()
}

const PAGES: usize = 64;

pub(crate) struct Run {
    pub(crate) model: Model,
    team: Team,
    kv: KvPages,
    work: Workspace,
}

impl Run {
    pub(crate) fn open(name: &str, kv: KvType) -> Run {
        Run::of(open(&folder(name)).unwrap(), kv)
    }

    pub(crate) fn of(opened: Opened, kv: KvType) -> Run {
        Run::kept(opened, kv, kv.rotates())
    }

    /// The same with keys and values rotated, or not. Those of 4 bits are kept from their means.
    pub(crate) fn kept(opened: Opened, kv: KvType, rotated: bool) -> Run {
        let config = opened.model.config();
        let team = Team::new(2);
        let pages = KvPages::new(config.layers.len(), PAGES, config.kv_shape(), kv);
        let mut pages = pages.with_rotation(rotated);
        if let (KvType::Q4, Model::Decoder(decoder)) = (kv, &opened.model) {
            pages = pages.with_centre(decoder.kv_centre(&team, config.context));
        }
        Run {
            model: opened.model,
            team,
            kv: pages,
            work: Workspace::default(),
        }
    }

    fn forward(&mut self, batch: &Batch) -> Outputs {
        let mut out = Outputs::default();
        self.model
            .forward(&self.team, batch, &mut self.kv, &mut self.work, &mut out);
        out
    }

    fn segment(
        rows: std::ops::Range<usize>,
        position: usize,
        pages: std::ops::Range<usize>,
    ) -> Segment {
        Segment {
            rows,
            position,
            pages,
        }
    }

    /// Logits of every position, the prompt cut into chunks.
    pub(crate) fn logits(&mut self, ids: &[u32], chunk: usize) -> Vec<f32> {
        let mut all = Vec::new();
        for (i, part) in ids.chunks(chunk).enumerate() {
            let batch = Batch {
                tokens: part.to_vec(),
                segments: vec![Run::segment(0..part.len(), i * chunk, 0..PAGES)],
                // Not in order, so that a table that is ignored shows.
                tables: (0..PAGES as u32).rev().collect(),
                logits: (0..part.len() as u32).collect(),
                ..Batch::default()
            };
            all.extend(self.forward(&batch).logits);
        }
        all
    }

    /// Logits of every position, computed with an adapter and with what it puts before them.
    pub(crate) fn adapted(&mut self, ids: &[u32], adapter: Adapter) -> Vec<f32> {
        let (vocab, before) = (self.model.config().vocab as u32, adapter.positions());
        let tokens: Vec<u32> = (vocab..).take(before).chain(ids.iter().copied()).collect();
        let batch = Batch {
            segments: vec![Run::segment(0..tokens.len(), 0, 0..PAGES)],
            variants: vec![Variant {
                member: 0,
                adapter: Some(adapter.into()),
            }],
            tables: (0..PAGES as u32).rev().collect(),
            logits: (before as u32..tokens.len() as u32).collect(),
            tokens,
            ..Batch::default()
        };
        self.forward(&batch).logits
    }

    /// Logits of every position of `ids`, run in one batch among other sequences.
    pub(crate) fn logits_among_others(&mut self, ids: &[u32], sequences: usize) -> Vec<f32> {
        let pages = ids.len().div_ceil(PAGE_TOKENS);
        let mut batch = Batch {
            tables: (0..(sequences * pages) as u32).collect(),
            ..Batch::default()
        };
        for sequence in 0..sequences {
            let start = batch.tokens.len();
            let own = sequence == sequences / 2;
            let len = if own {
                ids.len()
            } else {
                1 + sequence * 5 % ids.len()
            };
            let token = |i: usize| {
                if own {
                    ids[i]
                } else {
                    (ids[i] + sequence as u32 * 31) % 512
                }
            };
            batch.tokens.extend((0..len).map(token));
            batch.segments.push(Run::segment(
                start..start + len,
                0,
                sequence * pages..(sequence + 1) * pages,
            ));
            if own {
                batch.logits = (start as u32..(start + len) as u32).collect();
            }
        }
        self.forward(&batch).logits
    }

    /// The most likely continuation, token by token.
    pub(crate) fn greedy(&mut self, prompt: &[u32], tokens: usize) -> Vec<u32> {
        let vocab = self.model.config().vocab;
        let mut next =
            argmax(&self.logits(prompt, prompt.len())[(prompt.len() - 1) * vocab..]) as u32;
        let mut out = vec![next];
        while out.len() < tokens {
            let position = prompt.len() + out.len() - 1;
            let batch = Batch {
                tokens: vec![next],
                segments: vec![Run::segment(0..1, position, 0..PAGES)],
                tables: (0..PAGES as u32).rev().collect(),
                logits: vec![0],
                ..Batch::default()
            };
            next = argmax(&self.forward(&batch).logits) as u32;
            out.push(next);
        }
        out
    }

    /// Final hidden states of every position.
    pub(crate) fn hidden(&mut self, ids: &[u32]) -> Vec<f32> {
        let batch = Batch {
            tokens: ids.to_vec(),
            segments: vec![Run::segment(0..ids.len(), 0, 0..PAGES)],
            tables: (0..PAGES as u32).collect(),
            hidden: (0..ids.len() as u32).collect(),
            ..Batch::default()
        };
        self.forward(&batch).hidden
    }
}
