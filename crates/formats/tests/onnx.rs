//! ONNX: files of the format's own package, round trips, and what is refused.

use std::path::Path;

use bytes::Bytes;
use half::f16;
use indexmap::IndexMap;
use proptest::prelude::*;
use sedge_formats::onnx::{
    Attribute, Dim, ElementType, Graph, Model, Node, OnnxError, Tensor, TensorData, ValueInfo,
    read, write,
};

const KINDS: &[u8] = include_bytes!("onnx/kinds.onnx");
const EXTERNAL: &[u8] = include_bytes!("onnx/external.onnx");
const EXTERNAL_DATA: &[u8] = include_bytes!("onnx/external.bin");

#[test]
fn every_type_is_read_from_its_field_and_from_raw_bytes() {
    let model = read(KINDS.into(), None).unwrap();
    let expected = [
        ("f32", TensorData::F32(vec![0.5, -1.0])),
        ("f64", TensorData::F64(vec![0.1, -2.0])),
        ("f16", TensorData::F16(vec![f16::from_f32(0.5), f16::MIN])),
        ("i64", TensorData::I64(vec![i64::MIN, i64::MAX])),
        ("i32", TensorData::I32(vec![i32::MIN, i32::MAX])),
        ("i16", TensorData::I16(vec![i16::MIN, i16::MAX])),
        ("i8", TensorData::I8(vec![i8::MIN, i8::MAX])),
        ("u64", TensorData::U64(vec![0, u64::MAX])),
        ("u32", TensorData::U32(vec![0, u32::MAX])),
        ("u16", TensorData::U16(vec![0, u16::MAX])),
        ("u8", TensorData::U8(vec![0, u8::MAX])),
        ("bool", TensorData::Bool(vec![false, true])),
    ];
    let mut tensors = model.graph.initializers.iter();
    for (name, data) in expected {
        for (form, shape) in [("fields", vec![2]), ("raw", vec![1, 2])] {
            let name = format!("{name}.{form}");
            let data = data.clone();
            assert_eq!(tensors.next(), Some(&Tensor { name, shape, data }));
        }
    }
    assert_eq!(tensors.next().unwrap().shape, [0, 3]);
    assert_eq!(tensors.next(), None);
}

#[test]
fn a_graph_is_read_with_its_attributes_and_put_in_order() {
    let model = read(KINDS.into(), None).unwrap();
    assert_eq!((model.ir_version, model.opset), (8, 17));
    assert_eq!(model.domains, [("made.up".to_owned(), 2)]);
    assert_eq!(model.producer, "onnx");
    assert_eq!(model.metadata, [("stride".to_owned(), "32".to_owned())]);

    let graph = &model.graph;
    assert_eq!(graph.name, "kinds");
    let ops: Vec<&str> = graph.nodes.iter().map(|node| node.op.as_str()).collect();
    assert_eq!(ops, ["Every", "Clip", "Add"]);
    let [every, clip, add] = &graph.nodes[..] else {
        unreachable!()
    };
    assert_eq!(every.int("int").unwrap(), Some(-3));
    assert_eq!(every.float("float").unwrap(), Some(0.25));
    assert_eq!(every.string("string").unwrap(), Some("ä"));
    assert_eq!(every.ints("ints").unwrap(), Some(&[1, -2][..]));
    assert_eq!(every.floats("floats").unwrap(), Some(&[0.5][..]));
    let strings = every.strings("strings").unwrap().unwrap();
    assert_eq!(strings, ["p", ""]);
    let tensor = every.tensor("tensor").unwrap().unwrap();
    assert_eq!(
        (&tensor.shape[..], &tensor.data),
        (&[][..], &TensorData::I64(vec![7]))
    );
    assert!(matches!(every.attributes["graph"], Attribute::Graph(_)));
    assert_eq!(every.int("missing").unwrap(), None);
    assert_eq!(
        every.int("float").unwrap_err().to_string(),
        r#"attribute "float" of Every of "a" is not an integer"#
    );
    assert_eq!(clip.domain, "");
    assert_eq!(clip.inputs, ["a", "", "f32.fields"]);
    assert_eq!(clip.outputs, ["b", ""]);
    assert_eq!(add.label(), r#"Add "last""#);

    let [input] = &graph.inputs[..] else {
        panic!("the initializer is no input");
    };
    assert_eq!(
        (input.name.as_str(), input.element),
        ("x", ElementType::F32)
    );
    let batch = Dim::Symbol("batch".to_owned());
    let unknown = || Dim::Unknown;
    let shape = vec![batch, Dim::Fixed(3), unknown(), unknown(), unknown()];
    assert_eq!(input.shape, Some(shape));
    assert_eq!(graph.outputs[0].element, ElementType::F16);
    assert_eq!(graph.outputs[0].shape, None);
}

#[test]
fn what_was_read_is_the_same_when_written_and_read_again() {
    let model = read(KINDS.into(), None).unwrap();
    assert_eq!(read(write(&model).into(), None).unwrap(), model);
}

#[test]
fn a_file_that_ends_early_is_an_error_and_one_with_any_byte_changed_does_not_panic() {
    for len in 0..KINDS.len() {
        let cut = Bytes::copy_from_slice(&KINDS[..len]);
        // Of what a model has, only its metadata can be missing unnoticed.
        if let Ok(model) = read(cut, None) {
            assert!(model.metadata.is_empty(), "{len} bytes");
        }
    }
    for at in 0..KINDS.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff, KINDS[at] ^ 1] {
            let mut changed = KINDS.to_vec();
            changed[at] = value;
            if let Ok(model) = read(changed.into(), None) {
                let written = write(&model);
                let again = read(written.clone().into(), None).unwrap();
                assert_eq!(write(&again), written, "byte {at} is {value}");
            }
        }
    }
}

/// A folder with the external model's data.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("external.bin"), EXTERNAL_DATA).unwrap();
    folder
}

/// The external model with a text of its bytes replaced by another of its length.
fn external(from: &str, to: &str) -> Bytes {
    assert_eq!(from.len(), to.len());
    let at = EXTERNAL
        .windows(from.len())
        .position(|w| w == from.as_bytes());
    let at = at.unwrap();
    let mut bytes = EXTERNAL.to_vec();
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    bytes.into()
}

#[test]
fn external_data_are_read_from_the_models_folder() {
    let folder = folder();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, EXTERNAL).unwrap();
    let model = Model::open(&path).unwrap();
    let weights = (0..6).map(|i| i as f32).collect();
    assert_eq!(model.graph.initializers[0].data, TensorData::F32(weights));
    // Then they are within.
    assert_eq!(read(write(&model).into(), None).unwrap(), model);
}

#[test]
fn external_data_outside_the_models_folder_are_refused() {
    let folder = folder();
    let inner = folder.path().join("in");
    std::fs::create_dir(&inner).unwrap();
    for location in ["../ternal.bin", "in/../al.bin", "/ternal.bin."] {
        let error = read(external("external.bin", &location[..12]), Some(&inner)).unwrap_err();
        assert!(
            matches!(
                error,
                OnnxError::External {
                    key: "location",
                    ..
                }
            ),
            "{location}: {error}"
        );
    }
    #[cfg(unix)]
    {
        let link = inner.join("external.bin");
        std::os::unix::fs::symlink(folder.path().join("external.bin"), link).unwrap();
        let error = read(EXTERNAL.into(), Some(&inner)).unwrap_err();
        assert!(matches!(error, OnnxError::External { .. }), "{error}");
        // The same link is fine where it does not lead out.
        let link = folder.path().join("other.bin...");
        std::os::unix::fs::symlink(folder.path().join("external.bin"), link).unwrap();
        read(
            external("external.bin", "other.bin..."),
            Some(folder.path()),
        )
        .unwrap();
    }
    let missing = read(
        external("external.bin", "externas.bin"),
        Some(folder.path()),
    );
    assert!(matches!(missing, Err(OnnxError::Io { .. })));
    assert!(matches!(
        read(EXTERNAL.into(), None),
        Err(OnnxError::NoFolder { .. })
    ));
}

#[test]
fn external_data_outside_their_file_are_refused() {
    let folder = folder();
    std::fs::write(folder.path().join("external.bin"), &EXTERNAL_DATA[..23]).unwrap();
    let error = read(EXTERNAL.into(), Some(folder.path())).unwrap_err();
    assert_eq!(
        error.to_string().split(" of /").next(),
        Some(r#"tensor "w" takes 24 bytes from byte 0"#)
    );
    let error = read(external("\x12\x0224", "\x12\x0225"), Some(folder.path())).unwrap_err();
    assert!(
        matches!(error, OnnxError::External { key: "length", .. }),
        "{error}"
    );
    let error = read(external("\x12\x0224", "\x12\x02-4"), Some(folder.path())).unwrap_err();
    assert!(
        matches!(error, OnnxError::External { key: "length", .. }),
        "{error}"
    );
}

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> Node {
    let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    Node {
        name: String::new(),
        op: op.to_owned(),
        domain: String::new(),
        inputs: owned(inputs),
        outputs: owned(outputs),
        attributes: IndexMap::new(),
    }
}

fn value(name: &str) -> ValueInfo {
    ValueInfo {
        name: name.to_owned(),
        element: ElementType::F32,
        shape: Some(vec![Dim::Fixed(1)]),
    }
}

fn tensor(name: &str) -> Tensor {
    Tensor {
        name: name.to_owned(),
        shape: vec![1],
        data: TensorData::F32(vec![1.0]),
    }
}

/// A model that computes `y` from `x`.
fn model(nodes: Vec<Node>, initializers: Vec<Tensor>) -> Model {
    Model {
        ir_version: 8,
        opset: 17,
        domains: Vec::new(),
        producer: String::new(),
        metadata: Vec::new(),
        graph: Graph {
            name: "g".to_owned(),
            nodes,
            initializers,
            inputs: vec![value("x")],
            outputs: vec![value("y")],
        },
    }
}

fn refused(model: &Model) -> String {
    read(write(model).into(), None).unwrap_err().to_string()
}

#[test]
fn a_graph_that_is_not_sound_is_refused() {
    let relu = || node("Relu", &["x"], &["y"]);
    assert_eq!(
        refused(&model(vec![relu(), relu()], vec![])),
        r#"value "y" is written twice, the second time by Relu of "y""#
    );
    assert_eq!(
        refused(&model(vec![node("Relu", &["x"], &["x"])], vec![])),
        r#"value "x" is written twice, the second time by Relu of "x""#
    );
    assert_eq!(
        refused(&model(vec![relu()], vec![tensor("w"), tensor("w")])),
        r#"value "w" is written twice, the second time by an initializer"#
    );
    assert_eq!(
        refused(&model(vec![node("Add", &["x", "w"], &["y"])], vec![])),
        r#"Add of "y" reads value "w", which nothing writes"#
    );
    assert_eq!(
        refused(&model(vec![], vec![])),
        r#"the graph's output reads value "y", which nothing writes"#
    );
    let after = node("Relu", &["a"], &["y"]);
    let cycle = [
        after,
        node("Add", &["x", "b"], &["a"]),
        node("Neg", &["a"], &["b"]),
    ];
    let error = refused(&model(cycle.to_vec(), vec![]));
    assert!(
        error.ends_with("reads, through others, what it writes"),
        "{error}"
    );
    assert!(!error.contains("Relu"), "{error}");
    assert_eq!(
        refused(&model(vec![node("", &["x"], &["y"])], vec![])),
        r#"the operator of node 0 ("") has no name"#
    );
    let mut twice = model(vec![relu()], vec![]);
    twice.domains = vec![("ai.onnx".to_owned(), 3)];
    assert!(refused(&twice).contains("two versions"));
}

#[test]
fn what_is_no_model_is_refused() {
    assert!(matches!(read(Bytes::new(), None), Err(OnnxError::NoGraph)));
    assert!(matches!(
        read(Bytes::from_static(b"GGUF"), None),
        Err(OnnxError::Protobuf { .. })
    ));
}

/// A model with one tensor, whose message holds these bytes.
fn with_tensor(fields: &[u8]) -> Result<Model, OnnxError> {
    let part = |tag: u8, content: &[u8]| {
        let len = u8::try_from(content.len()).unwrap();
        assert!(len < 128);
        [&[tag << 3 | 2, len], content].concat()
    };
    let tensor = [part(8, b"t"), fields.to_vec()].concat();
    let graph = part(7, &part(5, &tensor));
    let opset = part(8, &[0x10, 17]);
    read([graph, opset].concat().into(), None)
}

#[test]
fn tensors_that_cannot_be_are_refused() {
    // Fields: 1 dims, 2 type, 4 floats, 5 small integers, 9 raw bytes.
    assert!(with_tensor(&[0x08, 1, 0x10, 3, 0x4a, 1, 0xfe]).is_ok());
    let error = |fields: &[u8]| with_tensor(fields).unwrap_err().to_string();
    assert_eq!(
        error(&[0x08, 2, 0x10, 3, 0x4a, 1, 0xfe]),
        r#"tensor "t" of type i8 and shape [2] takes 2 bytes and has 1"#
    );
    assert_eq!(
        error(&[0x08, 2, 0x10, 1]),
        r#"tensor "t" of type f32 and shape [2] takes 2 values and has 0"#
    );
    assert_eq!(
        error(&[0x08, 1, 0x10, 3, 0x2a, 2, 0x80, 1]),
        r#"value 0 of tensor "t" does not fit its type, i8"#
    );
    let huge = [&[0x08][..], &[0xff; 8], &[0x7f]].concat();
    assert_eq!(
        error(&[&huge[..], &huge, &[0x10, 3]].concat()),
        format!(r#"tensor "t" cannot have shape [{0}, {0}]"#, i64::MAX)
    );
    assert_eq!(
        error(&[&[0x08, 0][..], &huge, &huge, &[0x10, 3]].concat()),
        format!(r#"tensor "t" cannot have shape [0, {0}, {0}]"#, i64::MAX)
    );
    let negative = [&[0x08][..], &[0xff; 9], &[1, 0x10, 3]].concat();
    assert_eq!(error(&negative), r#"tensor "t" cannot have shape [-1]"#);
    let many = [&[0x08, 1].repeat(33)[..], &[0x10, 3]].concat();
    assert!(error(&many).contains("cannot have shape"));
    assert_eq!(
        error(&[0x08, 1, 0x10, 8]),
        r#"tensor "t" has texts as elements, which is not supported"#
    );
}

#[test]
fn tensors_that_share_external_bytes_are_refused() {
    let part = |tag: u8, content: &[u8]| {
        let len = u8::try_from(content.len()).unwrap();
        assert!(len < 128);
        [&[tag << 3 | 2, len], content].concat()
    };
    let folder = folder();
    let entry = [part(1, b"location"), part(2, b"external.bin")].concat();
    let tensor = |name: &[u8]| {
        let fields = [0x08, 24, 0x10, 2, 0x70, 1];
        part(
            5,
            &[part(8, name), fields.to_vec(), part(13, &entry)].concat(),
        )
    };
    let model = |tensors: &[u8]| {
        let model = [part(7, tensors), part(8, &[0x10, 17])].concat();
        read(model.into(), Some(folder.path()))
    };
    assert!(model(&tensor(b"a")).is_ok());
    let error = model(&[tensor(b"a"), tensor(b"b")].concat()).unwrap_err();
    assert!(
        matches!(error, OnnxError::ExternalOverlap { .. }),
        "{error}"
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Model::open(Path::new("no such.onnx")).unwrap_err();
    assert!(error.to_string().starts_with("no such.onnx: "));
}

fn any_data(count: usize) -> BoxedStrategy<TensorData> {
    let n = count;
    prop_oneof![
        prop::collection::vec(-1e6f32..1e6, n).prop_map(TensorData::F32),
        prop::collection::vec(-1e6f64..1e6, n).prop_map(TensorData::F64),
        prop::collection::vec(0u16..0x7c00, n)
            .prop_map(|v| TensorData::F16(v.into_iter().map(f16::from_bits).collect())),
        prop::collection::vec(any::<i64>(), n).prop_map(TensorData::I64),
        prop::collection::vec(any::<i32>(), n).prop_map(TensorData::I32),
        prop::collection::vec(any::<i16>(), n).prop_map(TensorData::I16),
        prop::collection::vec(any::<i8>(), n).prop_map(TensorData::I8),
        prop::collection::vec(any::<u64>(), n).prop_map(TensorData::U64),
        prop::collection::vec(any::<u32>(), n).prop_map(TensorData::U32),
        prop::collection::vec(any::<u16>(), n).prop_map(TensorData::U16),
        prop::collection::vec(any::<u8>(), n).prop_map(TensorData::U8),
        prop::collection::vec(any::<bool>(), n).prop_map(TensorData::Bool),
    ]
    .boxed()
}

fn any_tensor(name: String) -> impl Strategy<Value = Tensor> {
    let shape = prop::collection::vec(0usize..4, 0..4);
    shape.prop_flat_map(move |shape| {
        let name = name.clone();
        any_data(shape.iter().product()).prop_map(move |data| Tensor {
            name: name.clone(),
            shape: shape.clone(),
            data,
        })
    })
}

fn any_attribute() -> impl Strategy<Value = Attribute> {
    let floats = prop::collection::vec(-9f32..9.0, 0..3);
    prop_oneof![
        (-9f32..9.0).prop_map(Attribute::Float),
        any::<i64>().prop_map(Attribute::Int),
        ".{0,4}".prop_map(Attribute::String),
        any_tensor(String::new()).prop_map(Attribute::Tensor),
        floats.prop_map(Attribute::Floats),
        prop::collection::vec(any::<i64>(), 0..3).prop_map(Attribute::Ints),
        prop::collection::vec(".{0,4}", 0..3).prop_map(Attribute::Strings),
        prop::collection::vec(any::<u8>(), 0..9).prop_map(|v| Attribute::Graph(v.into())),
    ]
}

fn any_dim() -> impl Strategy<Value = Dim> {
    prop_oneof![
        (1..usize::MAX / 2).prop_map(Dim::Fixed),
        "[a-z]{1,3}".prop_map(Dim::Symbol),
        Just(Dim::Unknown),
    ]
}

/// Nodes `n0`, `n1`, …, each of which reads what is written before it.
fn any_model() -> impl Strategy<Value = Model> {
    let initializers: Vec<_> = (0..3).map(|i| any_tensor(format!("w{i}"))).collect();
    let attributes = prop::collection::vec(("[a-z]{1,3}", any_attribute()), 0..4);
    let reads = prop::collection::vec(any::<prop::sample::Index>(), 0..4);
    let nodes = prop::collection::vec((reads, attributes, ".{0,3}"), 1..6);
    let shape = prop::option::of(prop::collection::vec(any_dim(), 0..4));
    let texts = prop::collection::vec((".{0,3}", ".{0,3}"), 0..3);
    (initializers, nodes, shape, texts, any::<i64>()).prop_map(
        |(initializers, nodes, shape, metadata, opset)| {
            let mut names = ["x", "w0", "w1", "w2", ""].map(String::from).to_vec();
            let mut all = Vec::new();
            for (i, (reads, attributes, name)) in nodes.into_iter().enumerate() {
                let inputs = reads.iter().map(|at| at.get(&names).clone()).collect();
                let output = format!("n{i}");
                names.push(output.clone());
                all.push(Node {
                    name,
                    op: "Op".to_owned(),
                    domain: if i % 2 == 0 { "" } else { "other" }.to_owned(),
                    inputs,
                    outputs: vec![String::new(), output],
                    attributes: attributes.into_iter().collect(),
                });
            }
            let mut made = model(all, initializers);
            made.opset = opset;
            made.metadata = metadata;
            made.domains = vec![("other".to_owned(), 1)];
            made.graph.inputs[0].shape = shape;
            made.graph.outputs = vec![value("n0"), value("x")];
            made
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reading_what_was_written_gives_the_model(model in any_model()) {
        prop_assert_eq!(read(write(&model).into(), None).unwrap(), model);
    }

    #[test]
    fn nodes_in_any_order_come_out_in_one_that_can_be_computed(
        model in any_model(),
        swaps in prop::collection::vec(any::<prop::sample::Index>(), 6),
    ) {
        let mut shuffled = model.clone();
        let nodes = &mut shuffled.graph.nodes;
        for (i, swap) in swaps.iter().enumerate() {
            let (a, b) = (i % nodes.len(), swap.index(nodes.len()));
            nodes.swap(a, b);
        }
        let read = read(write(&shuffled).into(), None).unwrap();
        let mut written: Vec<&str> = vec!["x", "w0", "w1", "w2", ""];
        for node in &read.graph.nodes {
            prop_assert!(node.inputs.iter().all(|name| written.contains(&name.as_str())));
            written.push(&node.outputs[1]);
        }
        prop_assert_eq!(read.graph.nodes.len(), model.graph.nodes.len());
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = read(bytes.into(), None);
    }
}
