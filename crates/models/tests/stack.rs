//! Models whose matrices are stacks: from a file, at any size, and damaged.

use bytes::Bytes;
use half::f16;
use indexmap::IndexMap;
use sedge_formats::gguf::{Array, Gguf, TensorPlan, Value, write_to};
use sedge_kernels::{KvPages, KvType, PAGE_TOKENS, Segment, StackBlock, Team};
use sedge_models::{
    Batch, MemoryError, Model, OpenError, Outputs, SharedModel, StackedMatrix, TensorError,
    Workspace, convert, open, open_bytes, stack_metadata, stack_tensors,
};

const LLAMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
const BLOCKS: usize = 3;

/// Numbers from −1 to 1 that look random.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(next).collect()
}

/// Random stacks for all matrices of the tiny llama's layers.
fn stacks(model: &Model) -> Vec<StackedMatrix> {
    let c = model.config();
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let parts = [
        ("attn_q", q, c.hidden),
        ("attn_k", kv, c.hidden),
        ("attn_v", kv, c.hidden),
        ("attn_output", c.hidden, q),
        ("ffn_gate", c.intermediate, c.hidden),
        ("ffn_up", c.intermediate, c.hidden),
        ("ffn_down", c.hidden, c.intermediate),
    ];
    let mut matrices = Vec::new();
    for layer in 0..c.layers.len() {
        for (part, rows, cols) in parts {
            let seed = matrices.len() as u32 * 10;
            let block = |b: usize| {
                let halves = |len, seed, size: f32| -> Vec<f16> {
                    let values = numbers(len, seed).into_iter();
                    values.map(|x| f16::from_f32(x.abs() * size)).collect()
                };
                let signs = numbers(rows * cols, seed + b as u32);
                let negative: Vec<bool> = signs.iter().map(|s| *s < 0.0).collect();
                let u = halves(rows, seed + 5, 0.2 / (1 << b) as f32);
                let v = halves(cols, seed + 6, 1.0);
                let bytes = StackBlock::encode((rows, cols), &negative, &u, &v);
                StackBlock::new(rows, cols, bytes.into()).unwrap()
            };
            matrices.push(StackedMatrix {
                name: format!("blk.{layer}.{part}.weight"),
                rows,
                cols,
                blocks: (0..BLOCKS).map(block).collect(),
            });
        }
    }
    matrices
}

fn order(matrices: usize) -> Vec<u32> {
    let first = 0..matrices as u32;
    // Two blocks of a matrix in a row, but for the first ones.
    first
        .clone()
        .chain(first.flat_map(|m| [m; BLOCKS - 1]))
        .collect()
}

/// Spoils a file before it is written.
type Change<'a> = dyn Fn(&mut IndexMap<String, Value>, &mut Vec<StackedMatrix>) + 'a;

/// The llama's file, its matrices as stacks; `change` may spoil it.
fn file(change: &Change<'_>) -> Bytes {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("llama.gguf");
    convert(LLAMA.as_ref(), &path, None, &Team::new(1), &mut |_| {}).unwrap();
    let base = Gguf::open(&path).unwrap();
    let mut matrices = stacks(&open(&path).unwrap().model);
    let mut metadata = base.metadata().clone();
    metadata.extend(stack_metadata(&matrices, &order(matrices.len())).unwrap());
    change(&mut metadata, &mut matrices);
    let mut tensors: Vec<_> = stack_tensors(&matrices).collect();
    for (name, info) in base.tensors() {
        if !matrices.iter().any(|m| m.name == *name) {
            tensors.push((
                name.clone(),
                info.dtype,
                info.shape.clone(),
                base.data(info),
            ));
        }
    }
    let plans: Vec<TensorPlan> = tensors
        .iter()
        .map(|(name, dtype, shape, _)| TensorPlan {
            name: name.clone(),
            dtype: *dtype,
            shape: shape.clone(),
        })
        .collect();
    let mut out = Vec::new();
    write_to(&mut out, &metadata, &plans, |i| {
        Ok::<_, std::io::Error>(tensors[i].3.clone())
    })
    .unwrap();
    out.into()
}

/// The logits of some tokens.
fn logits(model: &Model) -> Vec<f32> {
    let tokens: Vec<u32> = (0..20).map(|i| (i * 37 + 5) % 512).collect();
    let pages = tokens.len().div_ceil(PAGE_TOKENS);
    let batch = Batch {
        segments: vec![Segment {
            rows: 0..tokens.len(),
            position: 0,
            pages: 0..pages,
        }],
        tables: (0..pages as u32).collect(),
        logits: (0..tokens.len() as u32).collect(),
        tokens,
        ..Batch::default()
    };
    let layers = model.config().layers.len();
    let mut kv = KvPages::new(layers, pages, model.kv_shape(), KvType::F32);
    let (mut work, mut out) = (Workspace::default(), Outputs::default());
    model.forward(&Team::new(2), &batch, &mut kv, &mut work, &mut out);
    out.logits
}

#[test]
fn a_file_of_stacks_is_the_model_with_these_stacks() {
    let opened = open_bytes(file(&|_, _| {}), "stacked").unwrap();
    // A file's rows are in another order than the folder's.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("llama.gguf");
    convert(LLAMA.as_ref(), &path, None, &Team::new(1), &mut |_| {}).unwrap();
    let mut other = open(&path).unwrap();
    // What a file says of its size is what the model says.
    assert_eq!(opened.info.parameters, other.info.parameters);
    let matrices = stacks(&other.model);
    let count = matrices.len();
    other.model.put_stacks(matrices, order(count)).unwrap();
    assert!(logits(&opened.model) == logits(&other.model));
    // Levels that no beginning of the order has.
    let mut levels = vec![1; count];
    levels[3] = 3;
    let before = logits(&other.model);
    other.model.set_levels(&levels);
    assert!(logits(&other.model) != before);
}

#[test]
fn as_many_blocks_are_used_as_fit_and_only_those_move() {
    let mut model = open_bytes(file(&|_, _| {}), "stacked").unwrap().model;
    let whole = model.memory().unwrap();
    assert_eq!((whole.bytes, whole.blocks), (whole.largest, whole.of));
    assert_eq!((whole.levels, model.stack_version()), ((BLOCKS, BLOCKS), 0));
    let all = logits(&model);

    let error = model.set_memory(whole.smallest - 1).unwrap_err();
    let (asked, smallest) = (whole.smallest - 1, whole.smallest);
    assert_eq!(error, MemoryError::TooSmall { asked, smallest });
    let small = model.set_memory(whole.smallest).unwrap();
    assert_eq!((small.blocks, small.levels), (whole.matrices, (1, 1)));
    model.load_blocks().unwrap();
    let least = logits(&model);
    assert!(least != all);

    let shared = SharedModel::new(model);
    assert_eq!(shared.memory_target(), None);
    let mut last = small;
    let steps = 7;
    for step in 1..=steps {
        let asked = whole.smallest + (whole.largest - whole.smallest) * step / steps;
        let moved = shared.set_memory(asked).unwrap();
        let memory = shared.memory().unwrap();
        assert!(memory.bytes <= asked);
        assert_eq!(moved.into.bytes, memory.bytes - last.bytes);
        assert_eq!(moved.into.count, memory.blocks - last.blocks);
        assert_eq!(moved.out, Default::default());
        last = memory;
    }
    assert!(logits(&shared.get()) == all);
    let old = shared.get();
    let moved = shared.set_memory(whole.smallest).unwrap();
    assert_eq!(moved.out.bytes, whole.largest - whole.smallest);
    assert_eq!(moved.into, Default::default());
    assert_eq!(shared.get().stack_version(), whole.matrices as u64);
    assert!(logits(&shared.get()) == least);
    // Who holds the model that was, computes what it did.
    assert!(logits(&old) == all);
    assert_eq!(
        shared.set_memory(whole.smallest).unwrap(),
        Default::default()
    );
}

#[test]
fn the_last_wish_holds_where_several_ask() {
    let shared = SharedModel::new(open_bytes(file(&|_, _| {}), "stacked").unwrap().model);
    let whole = shared.memory().unwrap();
    std::thread::scope(|scope| {
        for i in 0..4u64 {
            let shared = &shared;
            scope.spawn(move || {
                for j in 0..20 {
                    let size = (i * 7 + j * 3) % 11;
                    let bytes = whole.smallest + (whole.largest - whole.smallest) * size / 10;
                    shared.set_memory(bytes).unwrap();
                }
            });
        }
    });
    let target = shared.memory_target().unwrap();
    shared.set_memory(target).unwrap();
    let memory = shared.memory().unwrap();
    let mut fresh = open_bytes(file(&|_, _| {}), "stacked").unwrap().model;
    assert_eq!(fresh.set_memory(target).unwrap(), memory);
    assert!(logits(&fresh) == logits(&shared.get()));
}

#[test]
fn models_of_one_size_and_damaged_files_say_so() {
    let mut plain = open(LLAMA.as_ref()).unwrap().model;
    assert_eq!(plain.memory(), None);
    assert_eq!(plain.set_memory(1 << 40), Err(MemoryError::NotStacked));
    let plain = SharedModel::new(plain);
    assert_eq!(plain.set_memory(1 << 40), Err(MemoryError::NotStacked));

    let numbers = |numbers: Vec<u32>| Value::Array(Array::U32(numbers));
    let refused = |change: &Change<'_>| {
        let error = open_bytes(file(change), "stacked").unwrap_err();
        assert!(matches!(error, OpenError::Tensor(_)), "{error}");
        error.to_string()
    };
    let text = refused(&|metadata, _| {
        metadata.insert("sedge.stack.order".into(), numbers(vec![0, 0]));
    });
    assert!(text.contains("first block"), "{text}");
    let text = refused(&|metadata, _| {
        metadata.insert("sedge.stack.order".into(), numbers(vec![u32::MAX]));
    });
    assert!(text.contains("4294967295"), "{text}");
    let text = refused(&|metadata, _| {
        metadata.insert("sedge.stack.cols".into(), Value::U32(1));
    });
    assert!(text.contains("sedge.stack.cols"), "{text}");
    // A block is missing, or is another matrix's.
    refused(&|_, matrices| drop(matrices[0].blocks.pop()));
    refused(&|_, matrices| {
        let other = matrices[0].blocks[0].clone();
        matrices[6].blocks[1] = other;
    });
    // Blocks of a layer that is not there.
    refused(&|metadata, matrices| {
        matrices[0].name = "blk.99.attn_q.weight".into();
        let names = matrices.iter().map(|m| m.name.clone()).collect();
        let names = Value::Array(Array::String(names));
        metadata.insert("sedge.stack.matrices".into(), names);
    });
    let matrices = stacks(&open(LLAMA.as_ref()).unwrap().model);
    let error = stack_metadata(&matrices, &[0]).unwrap_err();
    assert!(matches!(error, TensorError::Stack { .. }));
}

#[test]
fn a_damaged_block_is_refused_when_it_is_loaded_and_the_model_goes_on() {
    let spoiled = file(&|_, matrices| {
        let matrix = &mut matrices[2];
        let mut bytes = matrix.blocks[BLOCKS - 1].bytes().to_vec();
        let last = bytes.len() - 2;
        bytes[last..].copy_from_slice(&f16::NAN.to_le_bytes());
        let spoiled = StackBlock::new(matrix.rows, matrix.cols, bytes.into());
        matrix.blocks[BLOCKS - 1] = spoiled.unwrap();
    });
    let mut model = open_bytes(spoiled, "stacked").unwrap().model;
    let whole = model.memory().unwrap();
    assert!(matches!(
        model.load_blocks(),
        Err(MemoryError::Block { .. })
    ));
    model.set_memory(whole.smallest).unwrap();
    model.load_blocks().unwrap();
    let shared = SharedModel::new(model);
    let before = logits(&shared.get());
    let error = shared.set_memory(whole.largest).unwrap_err();
    assert!(error.to_string().contains("blk.0.attn_v.weight"), "{error}");
    assert!(logits(&shared.get()) == before);
}
