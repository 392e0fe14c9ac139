//! The built-in model, made smaller.

use std::path::{Path, PathBuf};

use sedge_formats::gguf::Value;
use sedge_kernels::{DType, KvPages, KvType, PAGE_TOKENS, Segment, Team};
use sedge_models::{Batch, Origin, Outputs, Rewriting, Workspace, open};
use sedge_shrink::{
    Doing, Method, Options, Scheme, ShrinkError, Types, by_scheme, pieces, plan, shrink, whole,
};

const SEEDLING: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../assets/seedling/seedling.gguf"
);
const TEXT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../assets/seedling/heldout.txt"
);

fn seedling() -> Origin<'static> {
    Origin::Path(Path::new(SEEDLING))
}

/// Sequences to look at, and others to judge by.
fn texts(count: usize, length: usize) -> [Vec<Vec<u32>>; 2] {
    let text = std::fs::read_to_string(TEXT).unwrap();
    let text: String = text.chars().take(60_000).collect();
    let tokenizer = open(Path::new(SEEDLING)).unwrap().tokenizer.unwrap();
    let tokens = tokenizer.encode(&text, false, false);
    let (seen, kept) = tokens.split_at(tokens.len() * 3 / 4);
    [pieces(seen, length, count), pieces(kept, length, 6)]
}

/// Mean surprise on some texts, in nats a token.
fn surprise(path: &Path, texts: &[Vec<u32>]) -> f64 {
    let team = Team::new(2);
    let mut model = open(path).unwrap().model;
    model.pack(&team).unwrap();
    let (vocab, layers) = (model.config().vocab, model.config().layers.len());
    let (mut work, mut out, mut sum, mut count) =
        (Workspace::default(), Outputs::default(), 0.0, 0);
    for text in texts {
        let pages = text.len().div_ceil(PAGE_TOKENS);
        let mut kv = KvPages::new(layers, pages, model.kv_shape(), KvType::F16);
        let batch = Batch {
            tokens: text.clone(),
            segments: vec![Segment {
                rows: 0..text.len(),
                position: 0,
                pages: 0..pages,
            }],
            tables: (0..pages as u32).collect(),
            logits: (0..text.len() as u32 - 1).collect(),
            ..Batch::default()
        };
        model.forward(&team, &batch, &mut kv, &mut work, &mut out);
        for (row, &next) in out.logits.chunks_exact(vocab).zip(&text[1..]) {
            let most = row.iter().copied().fold(f32::MIN, f32::max);
            let all: f64 = row.iter().map(|l| f64::from(l - most).exp()).sum();
            sum += all.ln() + f64::from(most - row[next as usize]);
            count += 1;
        }
    }
    sum / f64::from(count)
}

fn types(weights: DType) -> Types {
    let scheme = Scheme {
        weights,
        activations: 16,
        kv: None,
        mixed: false,
    };
    by_scheme(&seedling(), &scheme).unwrap()
}

fn run(
    types: &Types,
    text: &[Vec<u32>],
    options: Options,
    output: &Path,
) -> Result<sedge_shrink::ShrinkReport, ShrinkError> {
    let team = Team::new(2);
    shrink(
        &seedling(),
        types,
        text,
        options,
        output,
        &team,
        &|file| file.set("sedge.note", Value::String("here".into())),
        &mut |_| {},
    )
}

#[test]
fn spreading_errors_keeps_more_than_the_nearest_values_do() {
    let folder = tempfile::tempdir().unwrap();
    let [seen, kept] = texts(24, 128);
    let mut found = Vec::new();
    for method in [Method::Nearest, Method::Awq, Method::Gptq] {
        let output = folder.path().join(format!("{method:?}.gguf"));
        let options = Options {
            method,
            sequential: false,
            ..Options::default()
        };
        let report = run(&types(DType::Q3K), &seen, options, &output).unwrap();
        assert_eq!(report.matrices.len(), 57);
        assert!((3.4..4.2).contains(&report.bits_per_weight()));
        found.push(surprise(&output, &kept));
    }
    let before = surprise(Path::new(SEEDLING), &kept);
    let [nearest, awq, gptq] = found[..] else {
        unreachable!("three methods")
    };
    println!("before {before:.4}, nearest {nearest:.4}, awq {awq:.4}, gptq {gptq:.4}");
    assert!(before < gptq && gptq < nearest && awq < nearest);
    assert!(gptq - before < 0.75 * (nearest - before));
}

#[test]
fn a_run_that_was_interrupted_goes_on_to_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let [seen, _] = texts(4, 64);
    let (first, second) = (folder.path().join("a.gguf"), folder.path().join("b.gguf"));
    let left: PathBuf = folder.path().join("b.gguf.shrinking");
    let options = Options {
        sequential: false,
        ..Options::default()
    };
    let (types, team) = (types(DType::Q4K), Team::new(2));
    let whole = shrink(
        &seedling(),
        &types,
        &seen,
        options,
        &first,
        &team,
        &|_| {},
        &mut |doing| {
            // What an interruption in the fourth layer would have left.
            if matches!(doing, Doing::Rounding { done: 21, .. }) && !left.exists() {
                std::fs::create_dir(&left).unwrap();
                for file in std::fs::read_dir(folder.path().join("a.gguf.shrinking")).unwrap() {
                    let file = file.unwrap();
                    std::fs::copy(file.path(), left.join(file.file_name())).unwrap();
                }
            }
        },
    );
    assert_eq!(whole.unwrap().resumed, 0);
    assert!(!folder.path().join("a.gguf.shrinking").exists());
    // Other settings do not go on from there.
    let other = Options {
        damping: 0.5,
        ..options
    };
    let run = |options: Options| {
        let mut quiet = |_: Doing<'_>| {};
        shrink(
            &seedling(),
            &types,
            &seen,
            options,
            &second,
            &team,
            &|_| {},
            &mut quiet,
        )
    };
    assert!(matches!(run(other), Err(ShrinkError::Work(_))));
    assert!(!second.exists());
    assert_eq!(run(options).unwrap().resumed, 21);
    assert_eq!(
        std::fs::read(&first).unwrap(),
        std::fs::read(&second).unwrap()
    );
}

#[test]
fn a_budget_is_kept_and_used_up() {
    let folder = tempfile::tempdir().unwrap();
    let [seen, _] = texts(4, 64);
    let plan = plan(&seedling(), &seen, &Team::new(2), &mut |_, _, _| {}).unwrap();
    let too_small = plan.within(1_000_000).unwrap_err();
    assert!(
        matches!(too_small, ShrinkError::TooSmall { .. }),
        "{too_small}"
    );
    let options = Options {
        method: Method::Nearest,
        ..Options::default()
    };
    for budget in [10_000_000u64, 14_000_000, 20_000_000] {
        let types = plan.within(budget).unwrap();
        let output = folder.path().join("fits.gguf");
        run(&types, &seen, options, &output).unwrap();
        let size = std::fs::metadata(&output).unwrap().len();
        assert!(
            size <= budget && size > budget * 97 / 100,
            "{size} of {budget}"
        );
    }
}

#[test]
fn what_cannot_be_shrunk_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let team = Team::new(2);
    let [seen, _] = texts(4, 64);
    assert!(whole(&seedling()).is_ok());
    // Too little text.
    let output = folder.path().join("out.gguf");
    let few = run(
        &types(DType::Q4K),
        &[vec![1; 20]],
        Options::default(),
        &output,
    );
    assert!(matches!(few, Err(ShrinkError::Text { tokens: 20, .. })));
    // Quantised already.
    let options = Options {
        method: Method::Nearest,
        ..Options::default()
    };
    run(&types(DType::Q4_0), &seen, options, &output).unwrap();
    let again = whole(&Origin::Path(&output));
    assert!(matches!(again, Err(ShrinkError::Quantised { .. })));
    // A model whose activations are no numbers.
    let broken = folder.path().join("broken.gguf");
    let mut file = Rewriting::open(&seedling()).unwrap();
    let nan: Vec<u8> = [f32::NAN; 512]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    file.put("blk.3.attn_norm.weight", DType::F32, vec![512], nan.into());
    file.write(&broken, &team, &mut |_| {}).unwrap();
    let error = shrink(
        &Origin::Path(&broken),
        &types(DType::Q4K),
        &seen,
        Options::default(),
        &folder.path().join("never.gguf"),
        &team,
        &|_| {},
        &mut |_| {},
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("layer 3: what blk.3.attn_q.weight reads"),
        "{error}"
    );
    assert!(!folder.path().join("never.gguf").exists());
    // A weight that is no number spoils no others.
    let spoilt = folder.path().join("spoilt.gguf");
    let mut file = Rewriting::open(&seedling()).unwrap();
    let mut row = vec![0.25f32; 512];
    (row[3], row[9]) = (f32::NAN, f32::INFINITY);
    let rows = row.iter().cycle().take(256 * 512);
    let bytes: Vec<u8> = rows.flat_map(|v| v.to_le_bytes()).collect();
    file.put(
        "blk.0.attn_v.weight",
        DType::F32,
        vec![256, 512],
        bytes.into(),
    );
    file.write(&spoilt, &team, &mut |_| {}).unwrap();
    let out = folder.path().join("still.gguf");
    shrink(
        &Origin::Path(&spoilt),
        &types(DType::Q8_0),
        &seen,
        options,
        &out,
        &team,
        &|_| {},
        &mut |_| {},
    )
    .unwrap();
    let mut kept = vec![0.0; 512];
    let bytes = Rewriting::open(&Origin::Path(&out))
        .unwrap()
        .pieces("blk.0.attn_v.weight");
    let row = DType::Q8_0.bytes_for(512).unwrap();
    sedge_kernels::dequantize(DType::Q8_0, &bytes[0][..row], &mut kept).unwrap();
    assert!(kept.iter().all(|v| v.is_finite()) && kept[3] == 0.0);
    assert!(kept[32..].iter().all(|v| (v - 0.25).abs() < 0.01));
    // The model itself is not written over.
    let itself = shrink(
        &Origin::Path(&spoilt),
        &types(DType::Q8_0),
        &seen,
        options,
        &spoilt,
        &team,
        &|_| {},
        &mut |_| {},
    );
    assert!(itself.unwrap_err().to_string().contains("the input itself"));
    // A folder that cannot be written.
    let nowhere = folder.path().join("no/such/out.gguf");
    std::fs::write(folder.path().join("no"), "a file").unwrap();
    let error = run(&types(DType::Q4K), &seen, options, &nowhere).unwrap_err();
    assert!(matches!(error, ShrinkError::Work(_)), "{error}");
}
