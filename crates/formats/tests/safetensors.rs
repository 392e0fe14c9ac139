//! Safetensors checkpoints: ones that the reference implementation wrote, sharded ones, broken ones.

use std::path::Path;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sedge_formats::safetensors::{Checkpoint, SafetensorsError};
use sedge_kernels::DType;

/// Name, type, shape and bytes.
type Plain = (String, Dtype, Vec<usize>, Vec<u8>);

/// A file as the reference implementation writes it.
fn reference(tensors: &[Plain]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize(views, Some(metadata)).unwrap()
}

fn f32s(name: &str, count: usize) -> Plain {
    (name.to_owned(), Dtype::F32, vec![count], vec![1; 4 * count])
}

/// A file with this header and so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        &vec![0; data],
    ]
    .concat()
}

fn parse(bytes: Vec<u8>) -> Result<Checkpoint, SafetensorsError> {
    Checkpoint::parse(bytes.into())
}

fn write_index(folder: &Path, weights: &[(&str, &str)]) {
    let map: serde_json::Map<_, _> = weights
        .iter()
        .map(|&(name, shard)| (name.to_owned(), shard.into()))
        .collect();
    let index = serde_json::json!({"metadata": {"total_size": 7}, "weight_map": map});
    std::fs::write(
        folder.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
}

#[test]
fn tensors_of_other_types_are_listed_and_not_read() {
    let tensors = [
        ("ids".to_owned(), Dtype::I64, vec![2], vec![0; 16]),
        ("w".to_owned(), Dtype::BF16, vec![2, 3], vec![5; 12]),
    ];
    let checkpoint = parse(reference(&tensors)).unwrap();
    assert_eq!(checkpoint.skipped, [("ids".to_owned(), "I64".to_owned())]);
    let w = &checkpoint.tensors["w"];
    assert_eq!(
        (w.dtype, w.shape.as_slice(), &w.data[..]),
        (DType::BF16, &[2, 3][..], &[5; 12][..])
    );

    // A type of the future leaves the rest readable.
    let header = r#"{"q":{"dtype":"F2_E1","shape":[8],"data_offsets":[0,2]},
                     "w":{"dtype":"F16","shape":[],"data_offsets":[2,4]}}"#;
    let checkpoint = parse(file(header, 4)).unwrap();
    assert_eq!(checkpoint.skipped, [("q".to_owned(), "F2_E1".to_owned())]);
    assert_eq!(checkpoint.tensors["w"].data.len(), 2);
}

#[test]
fn truncating_anywhere_is_an_error() {
    let whole = reference(&[f32s("a", 3), f32s("b", 2)]);
    for len in 0..whole.len() {
        assert!(
            parse(whole[..len].to_vec()).is_err(),
            "{len} of {}",
            whole.len()
        );
    }
    let longer = [whole.as_slice(), &[0]].concat();
    assert!(matches!(parse(longer), Err(SafetensorsError::Cover { .. })));
}

#[test]
fn header_sizes_past_the_file_or_the_limit_are_refused() {
    for size in [u64::MAX, 1 << 40, 100_000_001, 3] {
        let bytes = [&size.to_le_bytes()[..], b"{}"].concat();
        assert!(
            matches!(parse(bytes), Err(SafetensorsError::HeaderSize { size: Some(s), .. }) if s == size)
        );
    }
    assert!(matches!(
        parse(vec![0; 7]),
        Err(SafetensorsError::HeaderSize {
            size: None,
            file: 7
        })
    ));
    assert!(parse(file("{}", 0)).unwrap().tensors.is_empty());
}

#[test]
fn errors_name_the_tensor() {
    let one = |entry: &str| parse(file(&format!(r#"{{"t":{entry}}}"#), 8)).unwrap_err();
    let error = one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,9]}"#);
    assert!(matches!(error, SafetensorsError::Offsets { name, end: 9, len: 8, .. } if name == "t"));
    let error = one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#);
    assert!(matches!(error, SafetensorsError::Offsets { name, .. } if name == "t"));
    let error = one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#);
    assert!(matches!(error, SafetensorsError::Size { name, found: 8, .. } if name == "t"));
    let error =
        one(r#"{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]}"#);
    assert!(matches!(error, SafetensorsError::Size { .. }));
    let error = one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#);
    assert!(matches!(
        error,
        SafetensorsError::Cover {
            expected: 0,
            found: 4
        }
    ));
    let error = one(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}"#);
    assert!(matches!(error, SafetensorsError::Json(_)));

    let entry = r#""t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let error = parse(file(&format!("{{{entry},{entry}}}"), 4)).unwrap_err();
    assert!(error.to_string().contains("\"t\" stands twice"), "{error}");
    let two = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    assert!(matches!(
        parse(file(two, 8)),
        Err(SafetensorsError::Cover {
            expected: 8,
            found: 4
        })
    ));
}

#[test]
fn deep_json_is_an_error_and_no_stack_overflow() {
    for header in [
        "[".repeat(1_000_000),
        r#"{"__metadata__":"#.to_owned() + &"[".repeat(1_000_000),
    ] {
        assert!(matches!(
            parse(file(&header, 0)),
            Err(SafetensorsError::Json(_))
        ));
    }
}

#[test]
fn a_folder_opens_as_one_file_or_as_shards() {
    let dir = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(matches!(error, SafetensorsError::NoCheckpoint { .. }));

    std::fs::write(
        dir.path().join("x-1.safetensors"),
        reference(&[f32s("a", 3), f32s("b", 2)]),
    )
    .unwrap();
    std::fs::write(
        dir.path().join("x-2.safetensors"),
        reference(&[f32s("c", 1)]),
    )
    .unwrap();
    write_index(
        dir.path(),
        &[
            ("a", "x-1.safetensors"),
            ("c", "x-2.safetensors"),
            ("b", "x-1.safetensors"),
        ],
    );
    let mut names: Vec<_> = Checkpoint::open(dir.path())
        .unwrap()
        .tensors
        .into_keys()
        .collect();
    names.sort();
    assert_eq!(names, ["a", "b", "c"]);

    std::fs::write(
        dir.path().join("model.safetensors"),
        reference(&[f32s("only", 3)]),
    )
    .unwrap();
    assert!(
        Checkpoint::open(dir.path())
            .unwrap()
            .tensors
            .keys()
            .eq(["only"])
    );
}

#[test]
fn shards_outside_the_folder_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    let outside = dir.path().join("s.safetensors");
    std::fs::write(&outside, reference(&[f32s("a", 3)])).unwrap();
    for name in [
        "../s.safetensors",
        outside.to_str().unwrap(),
        "x/../../s.safetensors",
        "..",
        ".",
        "",
        "./s",
    ] {
        write_index(&folder, &[("a", name)]);
        let error = Checkpoint::open(&folder).unwrap_err().to_string();
        assert!(
            error.contains("is not the name of a file"),
            "{name}: {error}"
        );
    }
}

#[cfg(unix)]
#[test]
fn shards_may_be_links_as_in_download_caches() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(dir.path().join("blob"), reference(&[f32s("a", 3)])).unwrap();
    std::os::unix::fs::symlink("../blob", folder.join("s.safetensors")).unwrap();
    write_index(&folder, &[("a", "s.safetensors")]);
    assert_eq!(Checkpoint::open(&folder).unwrap().tensors.len(), 1);
}

#[test]
fn shards_that_do_not_fit_their_index_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = || Checkpoint::open(dir.path()).unwrap_err().to_string();
    std::fs::write(dir.path().join("1.safetensors"), reference(&[f32s("a", 3)])).unwrap();
    write_index(
        dir.path(),
        &[("a", "1.safetensors"), ("b", "2.safetensors")],
    );
    assert!(error().contains("2.safetensors"), "{}", error());

    // In another shard than the index says.
    std::fs::write(dir.path().join("2.safetensors"), reference(&[f32s("c", 3)])).unwrap();
    assert!(error().contains("should hold tensor \"b\""), "{}", error());
    write_index(
        dir.path(),
        &[("a", "1.safetensors"), ("c", "1.safetensors")],
    );
    assert!(error().contains("should hold tensor \"c\""), "{}", error());

    std::fs::write(
        dir.path().join("2.safetensors"),
        reference(&[f32s("a", 3), f32s("b", 1)]),
    )
    .unwrap();
    write_index(
        dir.path(),
        &[("a", "1.safetensors"), ("b", "2.safetensors")],
    );
    assert!(
        error().contains("\"a\" is also in another shard"),
        "{}",
        error()
    );

    std::fs::write(
        dir.path().join("model.safetensors.index.json"),
        "{\"weight_map\": 3}",
    )
    .unwrap();
    assert!(
        error().contains("index.json: malformed JSON"),
        "{}",
        error()
    );
}

fn dtype() -> impl Strategy<Value = Dtype> {
    prop::sample::select(vec![
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::I64,
        Dtype::F64,
        Dtype::BOOL,
        Dtype::U8,
    ])
}

fn tensors() -> impl Strategy<Value = Vec<Plain>> {
    btree_map(
        "[^_]{0,10}",
        (dtype(), vec(0usize..5, 0..4), any::<u8>()),
        0..8,
    )
    .prop_map(|all| {
        all.into_iter()
            .map(|(name, (dtype, shape, byte))| {
                let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
                (name, dtype, shape, vec![byte; bytes])
            })
            .collect()
    })
}

/// Both readers' views of the tensors that Sedge computes with; `None` for a refused file.
fn both(bytes: &[u8]) -> (Option<Vec<Plain>>, Option<Vec<Plain>>) {
    let sort = |mut all: Vec<Plain>| {
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    let ours = parse(bytes.to_vec()).ok().map(|checkpoint| {
        let plain = checkpoint.tensors.into_iter().map(|(name, t)| {
            let dtype = match t.dtype {
                DType::F32 => Dtype::F32,
                DType::F16 => Dtype::F16,
                _ => Dtype::BF16,
            };
            (name, dtype, t.shape, t.data.to_vec())
        });
        sort(plain.collect())
    });
    let theirs = SafeTensors::deserialize(bytes).ok().map(|file| {
        let plain = file
            .tensors()
            .into_iter()
            .map(|(name, t)| (name, t.dtype(), t.shape().to_vec(), t.data().to_vec()));
        sort(
            plain
                .filter(|(_, dtype, ..)| matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16))
                .collect(),
        )
    });
    (ours, theirs)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn files_of_the_reference_implementation_read_as_it_reads_them(tensors in tensors()) {
        let (ours, theirs) = both(&reference(&tensors));
        prop_assert!(ours.is_some());
        prop_assert_eq!(ours, theirs);
    }

    #[test]
    fn what_both_readers_accept_they_read_alike(
        tensors in tensors(),
        cut in any::<prop::sample::Index>(),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let mut bytes = reference(&tensors);
        for (at, with) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= with;
        }
        if cut.index(4) == 0 {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        if let (Some(ours), Some(theirs)) = both(&bytes) {
            prop_assert_eq!(ours, theirs);
        }
    }
}
