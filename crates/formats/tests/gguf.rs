//! GGUF files: real ones, ones that Sedge wrote, and broken ones.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use indexmap::IndexMap;
use proptest::collection::vec;
use proptest::prelude::*;
use sedge_formats::gguf::{Array, Gguf, GgufError, TensorPlan, Value, write, write_to};
use sedge_kernels::DType;

type Metadata = IndexMap<String, Value>;

fn vocab(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/vocabs")
        .join(format!("ggml-vocab-{name}.gguf"))
}

/// Bytes of a file whose tensor `i` is filled with the byte `i`.
fn file(metadata: &Metadata, tensors: &[TensorPlan]) -> Vec<u8> {
    let mut out = Vec::new();
    write_to(&mut out, metadata, tensors, |i| {
        io::Result::Ok(content(&tensors[i], i))
    })
    .unwrap();
    out
}

fn content(plan: &TensorPlan, index: usize) -> Bytes {
    let rows: usize = plan.shape[..plan.shape.len() - 1].iter().product();
    let row = plan.dtype.bytes_for(*plan.shape.last().unwrap()).unwrap();
    vec![index as u8; rows * row].into()
}

fn plan(name: &str, dtype: DType, shape: &[usize]) -> TensorPlan {
    TensorPlan {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
    }
}

fn parse(bytes: impl Into<Bytes>) -> Result<Gguf, GgufError> {
    Gguf::parse(bytes.into())
}

/// A small file with every kind of thing in it.
fn sample() -> Vec<u8> {
    let metadata = Metadata::from_iter([
        ("general.architecture".to_owned(), "llama".into()),
        ("a.bool".to_owned(), true.into()),
        (
            "a.strings".to_owned(),
            vec!["one".to_owned(), "zwei ß".to_owned()].into(),
        ),
        (
            "a.nested".to_owned(),
            Value::Array(Array::Array(vec![
                Array::I32(vec![1, 2]),
                Array::I32(vec![]),
            ])),
        ),
        ("a.f64".to_owned(), Value::F64(0.5)),
    ]);
    file(
        &metadata,
        &[
            plan("w", DType::Q8_0, &[2, 64]),
            plan("b", DType::F32, &[3]),
        ],
    )
}

/// A version 3 header followed by `rest`.
fn header(tensors: u64, entries: u64, rest: &[&[u8]]) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend(tensors.to_le_bytes());
    out.extend(entries.to_le_bytes());
    rest.iter().for_each(|part| out.extend(*part));
    out
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A directory entry; `dims` fastest first.
fn tensor(name: &str, dims: &[u64], id: u32, offset: u64) -> Vec<u8> {
    let mut out = string(name);
    out.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
    out.extend(id.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

#[test]
fn real_vocabularies_open_with_all_their_tokens() {
    for (name, model, tokens, merges) in [
        ("gpt-2", "gpt2", 50257, Some(50000)),
        ("llama-spm", "llama", 32000, None),
        ("phi-3", "llama", 32064, None),
    ] {
        let gguf = Gguf::open(&vocab(name)).unwrap();
        let strings = |key: &str| {
            gguf.get(key)
                .and_then(Value::as_array)
                .and_then(Array::strings)
                .map(<[_]>::len)
        };
        assert_eq!(
            gguf.get("tokenizer.ggml.model").and_then(Value::as_str),
            Some(model)
        );
        assert_eq!(strings("tokenizer.ggml.tokens"), Some(tokens));
        assert_eq!(strings("tokenizer.ggml.merges"), merges);
        let types = gguf
            .get("tokenizer.ggml.token_type")
            .and_then(Value::as_array)
            .and_then(Array::i32s);
        assert_eq!(types.map(<[_]>::len), Some(tokens));
        assert!(gguf.tensors().is_empty());
    }
}

#[test]
fn a_real_file_written_again_is_the_same_but_for_its_end() {
    for name in ["gpt-2", "llama-spm", "phi-3"] {
        let original = std::fs::read(vocab(name)).unwrap();
        let gguf = parse(original.clone()).unwrap();
        let again = file(gguf.metadata(), &[]);
        // Some writers pad a file without tensors and some do not; one file is of version 2.
        let len = original.len().min(again.len());
        assert_eq!(again[8..len], original[8..len]);
        assert!(original.len().abs_diff(again.len()) < 32);
    }
}

/// `fixtures/gguf_py.py` wrote the file with ggml's own Python package.
#[test]
fn a_file_of_another_writer_has_its_values_and_shapes() {
    let gguf = parse(&include_bytes!("fixtures/gguf-py.gguf")[..]).unwrap();
    let array = |key: &str| gguf.get(key).and_then(Value::as_array).unwrap();
    assert_eq!(
        gguf.get("general.architecture").and_then(Value::as_str),
        Some("llama")
    );
    assert_eq!(
        gguf.get("llama.block_count").and_then(Value::as_u64),
        Some(3)
    );
    assert_eq!(
        array("tokenizer.ggml.tokens").strings().unwrap(),
        ["a", "ß", ""]
    );
    assert_eq!(
        array("tokenizer.ggml.scores").f32s().unwrap(),
        [0.5, -1.0, 2.0]
    );
    assert_eq!(array("array.bool").bools().unwrap(), [true, false]);
    assert_eq!(
        array("array.nested"),
        &Array::Array(vec![Array::I32(vec![1, 2]), Array::I32(vec![3])])
    );
    assert_eq!(gguf.get("f64").and_then(Value::as_f64), Some(0.1));

    for dtype in ["F32", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"] {
        let tensor = &gguf.tensors()[if dtype == "F32" { "f32" } else { dtype }];
        assert_eq!(tensor.dtype, DType::from_name(dtype).unwrap());
        assert_eq!(tensor.shape, [2, 3, 64]);
        assert_eq!(tensor.len as usize, 6 * tensor.dtype.bytes_for(64).unwrap());
        assert!(tensor.offset.is_multiple_of(64));
    }
    let f32s = |name: &str| -> Vec<f32> {
        let data = gguf.data(&gguf.tensors()[name]);
        data.as_chunks::<4>()
            .0
            .iter()
            .map(|&raw| f32::from_le_bytes(raw))
            .collect()
    };
    assert_eq!(
        f32s("f32"),
        (0..2 * 3 * 64).map(|i| i as f32).collect::<Vec<_>>()
    );
    assert_eq!(f32s("vector"), [1.0, 2.0, 3.0]);
    assert_eq!(gguf.tensors()["f16"].shape, [3, 64]);
    assert_eq!(gguf.data(&gguf.tensors()["f16"])[2..4], [0x00, 0x3c]); // 1.0 after 0.0
}

#[test]
fn truncating_anywhere_is_an_error_and_no_panic() {
    let whole = sample();
    parse(whole.clone()).unwrap();
    // The last tensor's padding is not needed.
    let needed = whole.len() - 20;
    for len in 0..whole.len() {
        assert_eq!(
            parse(whole[..len].to_vec()).is_ok(),
            len >= needed,
            "{len} of {}",
            whole.len()
        );
    }
}

#[test]
fn flipping_any_bit_never_panics_and_keeps_tensors_inside_the_file() {
    let whole = sample();
    for bit in 0..whole.len() * 8 {
        let mut broken = whole.clone();
        broken[bit / 8] ^= 1 << (bit % 8);
        if let Ok(gguf) = parse(broken) {
            for tensor in gguf.tensors().values() {
                assert_eq!(gguf.data(tensor).len() as u64, tensor.len);
            }
        }
    }
}

#[test]
fn absurd_counts_are_refused_before_anything_is_allocated() {
    for count in [u64::MAX, 1 << 62, 1 << 40, 100] {
        let n = count.to_le_bytes();
        for bytes in [
            header(count, 0, &[]),
            header(0, count, &[]),
            header(0, 1, &[&n]),
            header(0, 1, &[&string("k"), &8u32.to_le_bytes(), &n]),
            header(
                0,
                1,
                &[&string("k"), &9u32.to_le_bytes(), &0u32.to_le_bytes(), &n],
            ),
            header(
                0,
                1,
                &[&string("k"), &9u32.to_le_bytes(), &8u32.to_le_bytes(), &n],
            ),
            header(
                0,
                1,
                &[&string("k"), &9u32.to_le_bytes(), &9u32.to_le_bytes(), &n],
            ),
            header(
                0,
                1,
                &[&string("k"), &9u32.to_le_bytes(), &12u32.to_le_bytes(), &n],
            ),
            header(1, 0, &[&n, &[0; 32]]),
        ] {
            let error = parse(bytes).unwrap_err();
            assert!(
                matches!(error, GgufError::Count { .. } | GgufError::Truncated { .. }),
                "{error}"
            );
        }
    }
}

#[test]
fn arrays_nest_four_deep_and_no_deeper() {
    let nest = |depth: usize| {
        let array = (1..depth).fold(Array::U8(vec![7]), |inner, _| Array::Array(vec![inner]));
        Metadata::from_iter([("k".to_owned(), Value::Array(array))])
    };
    let gguf = parse(file(&nest(4), &[])).unwrap();
    assert_eq!(gguf.metadata(), &nest(4));
    assert!(write_to(Vec::new(), &nest(5), &[], |_| io::Result::Ok(Bytes::new())).is_err());

    let deeper = [9u32.to_le_bytes().as_slice(), &1u64.to_le_bytes()]
        .concat()
        .repeat(100_000);
    let bytes = header(0, 1, &[&string("k"), &9u32.to_le_bytes(), &deeper]);
    assert!(matches!(parse(bytes), Err(GgufError::Depth)));
}

#[test]
fn other_formats_versions_and_byte_orders_are_named() {
    assert!(matches!(
        parse(&b"PK\x03\x04"[..]),
        Err(GgufError::Magic { .. })
    ));
    assert!(matches!(parse(&b""[..]), Err(GgufError::Magic { .. })));
    let version = |raw: [u8; 4]| parse([b"GGUF".as_slice(), &raw, &[0; 16]].concat());
    assert!(version(2u32.to_le_bytes()).is_ok());
    assert!(version(3u32.to_le_bytes()).is_ok());
    assert!(matches!(
        version(1u32.to_le_bytes()),
        Err(GgufError::Version { found: 1 })
    ));
    assert!(matches!(
        version(4u32.to_le_bytes()),
        Err(GgufError::Version { found: 4 })
    ));
    assert!(matches!(
        version(3u32.to_be_bytes()),
        Err(GgufError::BigEndian)
    ));
}

#[test]
fn what_stands_twice_is_refused() {
    let entry = [string("k"), 0u32.to_le_bytes().to_vec(), vec![1]].concat();
    assert!(matches!(
        parse(header(0, 2, &[&entry, &entry])),
        Err(GgufError::DuplicateKey { key }) if key == "k"
    ));
    let bytes = header(
        2,
        0,
        &[
            &tensor("t", &[1], 0, 0),
            &tensor("t", &[1], 0, 32),
            &[0; 200],
        ],
    );
    assert!(matches!(parse(bytes), Err(GgufError::DuplicateTensor { name }) if name == "t"));
}

#[test]
fn tensors_must_lie_apart_aligned_and_inside() {
    let one = |dims: &[u64], id, offset| {
        parse(header(1, 0, &[&tensor("t", dims, id, offset), &[0; 128]])).unwrap_err()
    };
    assert!(matches!(
        one(&[], 0, 0),
        GgufError::Dimensions { found: 0, .. }
    ));
    assert!(matches!(
        one(&[1; 5], 0, 0),
        GgufError::Dimensions { found: 5, .. }
    ));
    assert!(matches!(one(&[0, 4], 0, 0), GgufError::Shape { .. }));
    assert!(matches!(
        one(&[1 << 33, 1 << 33], 0, 0),
        GgufError::Shape { .. }
    ));
    assert!(matches!(one(&[u64::MAX], 0, 0), GgufError::Shape { .. }));
    // Rows of 16 values do not fill blocks of 32, though two of them would.
    assert!(matches!(one(&[16, 2], 8, 0), GgufError::Shape { .. }));
    assert!(matches!(
        one(&[4], 0, 8),
        GgufError::Misaligned { offset: 8, .. }
    ));
    assert!(matches!(one(&[4], 0, 1 << 20), GgufError::OutOfFile { .. }));
    assert!(matches!(
        one(&[4], 0, u64::MAX - 31),
        GgufError::OutOfFile { .. }
    ));
    assert!(matches!(one(&[1 << 20], 0, 0), GgufError::OutOfFile { .. }));

    let bytes = header(
        2,
        0,
        &[
            &tensor("a", &[9], 0, 0),
            &tensor("b", &[1], 0, 32),
            &[0; 200],
        ],
    );
    assert!(
        matches!(parse(bytes), Err(GgufError::Overlap { first, second }) if first == "a" && second == "b")
    );
}

#[test]
fn an_unsupported_tensor_type_is_named_with_those_that_are_not() {
    let error = parse(header(
        1,
        0,
        &[&tensor("blk.0.w", &[256], 16, 0), &[0; 128]],
    ))
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("\"blk.0.w\"") && error.contains("iq2_xxs") && error.contains("q4_k"),
        "{error}"
    );
    let error = parse(header(1, 0, &[&tensor("t", &[256], 999, 0), &[0; 128]]))
        .unwrap_err()
        .to_string();
    assert!(error.contains("999"), "{error}");
}

#[test]
fn only_sensible_alignments_are_honoured() {
    let with = |value: Value| Metadata::from_iter([("general.alignment".to_owned(), value)]);
    let tensors = [plan("a", DType::F32, &[3]), plan("b", DType::F16, &[5])];
    for alignment in [8u32, 32, 4096, 65536] {
        let gguf = parse(file(&with(alignment.into()), &tensors)).unwrap();
        assert!(
            gguf.tensors()
                .values()
                .all(|t| t.offset.is_multiple_of(alignment.into()))
        );
    }
    for value in [
        0u32.into(),
        4u32.into(),
        48u32.into(),
        131072u32.into(),
        "32".into(),
        Value::I32(-32),
    ] {
        let entry = with(value.clone());
        let result = write_to(Vec::new(), &entry, &tensors, |i| {
            io::Result::Ok(content(&tensors[i], i))
        });
        assert!(result.is_err(), "{value:?}");
    }
    let bytes = header(
        0,
        1,
        &[
            &string("general.alignment"),
            &4u32.to_le_bytes(),
            &7u32.to_le_bytes(),
        ],
    );
    assert!(matches!(
        parse(bytes),
        Err(GgufError::Alignment { found: Some(7) })
    ));
}

#[test]
fn bad_text_and_bad_truth_are_refused_with_their_place() {
    let key = |bytes: &[u8]| {
        header(
            0,
            1,
            &[
                &(bytes.len() as u64).to_le_bytes(),
                bytes,
                &0u32.to_le_bytes(),
                &[0],
            ],
        )
    };
    assert!(matches!(
        parse(key(b"\xff\xfe")),
        Err(GgufError::Utf8 { offset: 32, .. })
    ));
    let bytes = header(0, 1, &[&string("k"), &7u32.to_le_bytes(), &[2]]);
    assert!(matches!(
        parse(bytes),
        Err(GgufError::Bool {
            found: 2,
            offset: 37
        })
    ));
    let bytes = header(0, 1, &[&string("k"), &13u32.to_le_bytes(), &[2]]);
    assert!(matches!(
        parse(bytes),
        Err(GgufError::ValueType { id: 13, offset: 33 })
    ));
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let tensors = [plan("a", DType::F32, &[4]), plan("b", DType::F32, &[4])];
    write(&path, &Metadata::new(), &tensors, |i| {
        io::Result::Ok(content(&tensors[i], i))
    })
    .unwrap();
    let before = std::fs::read(&path).unwrap();

    let failed = write(&path, &Metadata::new(), &tensors, |i| match i {
        0 => Ok(content(&tensors[0], 0)),
        _ => Err(io::Error::other("no more")),
    });
    assert_eq!(failed.unwrap_err().to_string(), "no more");
    let short = write(&path, &Metadata::new(), &tensors, |_| {
        io::Result::Ok(Bytes::from_static(b"abc"))
    });
    assert_eq!(
        short.unwrap_err().to_string(),
        "tensor \"a\" takes 16 bytes; 3 were given"
    );
    let twice = [tensors[0].clone(), tensors[0].clone()];
    assert!(
        write(&path, &Metadata::new(), &twice, |i| io::Result::Ok(
            content(&twice[i], i)
        ))
        .is_err()
    );

    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_mapped_file_can_be_replaced_and_stays_readable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let tensors = [plan("a", DType::F32, &[4])];
    let fill = |byte: u8| move |_| io::Result::Ok(Bytes::from(vec![byte; 16]));
    write(&path, &Metadata::new(), &tensors, fill(1)).unwrap();
    let old = Gguf::open(&path).unwrap();
    write(&path, &Metadata::new(), &tensors, fill(2)).unwrap();
    let new = Gguf::open(&path).unwrap();
    assert_eq!(old.data(&old.tensors()["a"]), vec![1; 16]);
    assert_eq!(new.data(&new.tensors()["a"]), vec![2; 16]);
}

mod split {
    use super::*;

    /// Writes part `no` (from 0) of `count` under the name that it should have.
    fn part(dir: &Path, no: u16, count: u16, tensors: &[TensorPlan], total: i32) -> PathBuf {
        let path = dir.join(format!("m-{:05}-of-{count:05}.gguf", no + 1));
        let metadata = Metadata::from_iter([
            ("split.no".to_owned(), Value::U16(no)),
            ("split.count".to_owned(), Value::U16(count)),
            ("split.tensors.count".to_owned(), Value::I32(total)),
        ]);
        write(&path, &metadata, tensors, |i| {
            io::Result::Ok(content(&tensors[i], no as usize * 10 + i))
        })
        .unwrap();
        path
    }

    #[test]
    fn the_parts_of_a_model_open_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let first = part(dir.path(), 0, 3, &[plan("a", DType::F32, &[4])], 4);
        part(
            dir.path(),
            1,
            3,
            &[plan("b", DType::F32, &[5]), plan("c", DType::F16, &[6])],
            4,
        );
        part(dir.path(), 2, 3, &[plan("d", DType::F32, &[7])], 4);
        let gguf = Gguf::open(&first).unwrap();
        let found: Vec<_> = gguf
            .tensors()
            .iter()
            .map(|(name, t)| (name.as_str(), gguf.data(t)[0]))
            .collect();
        assert_eq!(found, [("a", 0), ("b", 10), ("c", 11), ("d", 20)]);
    }

    #[test]
    fn a_later_part_alone_a_missing_part_and_a_stranger_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let error = |path: &Path| Gguf::open(path).unwrap_err().to_string();
        let first = part(dir.path(), 0, 2, &[plan("a", DType::F32, &[4])], 2);
        assert!(
            error(&first).contains("m-00002-of-00002.gguf"),
            "{}",
            error(&first)
        );

        let second = part(dir.path(), 1, 2, &[plan("a", DType::F32, &[4])], 2);
        assert!(error(&second).contains("open "), "{}", error(&second));
        assert!(error(&first).contains("stands twice"), "{}", error(&first));

        part(dir.path(), 1, 2, &[], 2);
        assert!(error(&first).contains("2 tensors"), "{}", error(&first));

        std::fs::copy(&first, &second).unwrap();
        assert!(error(&first).contains("part 2 of 2"), "{}", error(&first));

        let renamed = dir.path().join("other.gguf");
        std::fs::copy(&first, &renamed).unwrap();
        assert!(
            error(&renamed).contains("-00001-of-00002.gguf"),
            "{}",
            error(&renamed)
        );
    }
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f32>().prop_map(Value::F32),
        any::<f64>().prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        any::<String>().prop_map(Value::String),
    ]
}

fn array() -> impl Strategy<Value = Array> {
    let flat = prop_oneof![
        any::<Vec<u8>>().prop_map(Array::U8),
        any::<Vec<i8>>().prop_map(Array::I8),
        any::<Vec<u16>>().prop_map(Array::U16),
        any::<Vec<i16>>().prop_map(Array::I16),
        any::<Vec<u32>>().prop_map(Array::U32),
        any::<Vec<i32>>().prop_map(Array::I32),
        any::<Vec<u64>>().prop_map(Array::U64),
        any::<Vec<i64>>().prop_map(Array::I64),
        any::<Vec<f32>>().prop_map(Array::F32),
        any::<Vec<f64>>().prop_map(Array::F64),
        any::<Vec<bool>>().prop_map(Array::Bool),
        vec(any::<String>(), 0..20).prop_map(Array::String),
    ];
    flat.prop_recursive(3, 20, 5, |inner| vec(inner, 0..5).prop_map(Array::Array))
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let value = prop_oneof![scalar(), array().prop_map(Value::Array)];
    // An alignment is not arbitrary, and one in the metadata would be taken at its word.
    proptest::collection::btree_map("[a-z.]{0,12}", value, 0..12).prop_map(Metadata::from_iter)
}

fn tensors() -> impl Strategy<Value = Vec<TensorPlan>> {
    let one = (0..DType::ALL.len(), vec(1usize..5, 0..4), 1usize..4).prop_map(
        |(dtype, mut shape, blocks)| {
            let dtype = DType::ALL[dtype];
            shape.push(blocks * dtype.block_len());
            (dtype, shape)
        },
    );
    vec(one, 0..8).prop_map(|all| {
        all.into_iter()
            .enumerate()
            .map(|(i, (dtype, shape))| plan(&format!("t.{i}"), dtype, &shape))
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn reading_gives_back_what_was_written(metadata in metadata(), tensors in tensors()) {
        let bytes = file(&metadata, &tensors);
        let gguf = parse(bytes.clone()).unwrap();
        prop_assert!(gguf.metadata().keys().eq(metadata.keys()));
        prop_assert_eq!(gguf.tensors().len(), tensors.len());
        for (i, (wanted, (name, found))) in tensors.iter().zip(gguf.tensors()).enumerate() {
            prop_assert_eq!((&wanted.name, wanted.dtype, &wanted.shape), (name, found.dtype, &found.shape));
            prop_assert_eq!(gguf.data(found), content(wanted, i));
        }
        // Bytes rather than values, as a NaN does not equal itself.
        prop_assert_eq!(file(gguf.metadata(), &tensors), bytes);
    }

    #[test]
    fn broken_files_never_panic(
        metadata in metadata(),
        tensors in tensors(),
        cut in any::<prop::sample::Index>(),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let mut bytes = file(&metadata, &tensors);
        for (at, with) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= with;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        if let Ok(gguf) = parse(bytes) {
            for tensor in gguf.tensors().values() {
                prop_assert_eq!(gguf.data(tensor).len() as u64, tensor.len);
            }
        }
    }

    #[test]
    fn any_bytes_after_a_valid_start_never_panic(rest in vec(any::<u8>(), 0..300), tensors in 0u64..3, entries in 0u64..3) {
        let _ = parse(header(tensors, entries, &[&rest]));
    }
}
