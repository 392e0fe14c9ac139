//! Writes the files that fuzzing starts from into `seeds/`: small, valid and rich in kinds.
//! Run it again when the formats gain something; the result is checked in.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;

use bytes::Bytes;
use indexmap::IndexMap;
use sedge_formats::gguf::{Array, Gguf, TensorPlan, Value, write};
use sedge_kernels::DType;
use sedge_store::{Blob, Container, Kind, Manifest, Origin, SourceFile, TensorEntry};

fn main() -> Result<(), Box<dyn Error>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (gguf, safetensors) = (here.join("seeds/gguf"), here.join("seeds/safetensors"));
    fs::create_dir_all(&gguf)?;
    fs::create_dir_all(&safetensors)?;

    let plans: Vec<TensorPlan> = DType::ALL
        .into_iter()
        .map(|dtype| TensorPlan {
            name: dtype.to_string(),
            dtype,
            shape: vec![1, dtype.block_len()],
        })
        .collect();
    let fill = |i: usize| io::Result::Ok(Bytes::from(vec![i as u8; plans[i].dtype.block_bytes()]));
    write(&gguf.join("every-type.gguf"), &every_kind(), &plans, fill)?;

    let vocabs = here.join("../crates/formats/tests/vocabs");
    for (name, tokens, merges) in [("gpt-2", 300, 30), ("llama-spm", 300, 0)] {
        let whole = Gguf::open(&vocabs.join(format!("ggml-vocab-{name}.gguf")))?;
        let mut metadata = whole.metadata().clone();
        for (key, value) in &mut metadata {
            let Value::Array(array) = value else { continue };
            let keep = if key.ends_with(".merges") {
                merges
            } else {
                tokens
            };
            match array {
                Array::String(v) => v.truncate(keep),
                Array::F32(v) => v.truncate(keep),
                Array::I32(v) => v.truncate(keep),
                _ => {}
            }
        }
        write(&gguf.join(format!("{name}.gguf")), &metadata, &[], |_| {
            io::Result::Ok(Bytes::new())
        })?;
    }

    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[],"data_offsets":[8,10]},"c":{"dtype":"I64","shape":[1],"data_offsets":[10,18]},"d":{"dtype":"F16","shape":[0,3],"data_offsets":[18,18]}}"#;
    let file = [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        &[1; 18],
    ]
    .concat();
    fs::write(safetensors.join("every-type.safetensors"), file)?;

    let manifests = here.join("seeds/manifest");
    fs::create_dir_all(&manifests)?;
    fs::write(manifests.join("one.json"), manifest()?.to_bytes()?)?;
    Ok(())
}

fn manifest() -> Result<Manifest, Box<dyn Error>> {
    let blob = |digit: &str, len| -> Result<Blob, Box<dyn Error>> {
        let hash = digit.repeat(64).parse()?;
        Ok(Blob { hash, len })
    };
    let file = |path: &str, size, blob| SourceFile {
        path: path.to_owned(),
        size,
        sha256: "ab".repeat(32),
        git: Some("cd".repeat(20)),
        etag: Some("\"x\"".to_owned()),
        blob,
    };
    let origin = Origin {
        source: "hf:a/b".to_owned(),
        revision: None,
    };
    let files = vec![
        file("config.json", 2, Some(blob("1", 2)?)),
        file("model.safetensors", 24, None),
    ];
    let tensor = TensorEntry {
        name: "w".to_owned(),
        dtype: "f32".to_owned(),
        shape: vec![1, 2],
        blob: blob("2", 8)?,
        file: 1,
        offset: 16,
    };
    let (kind, container) = (Kind::Model, Container::Safetensors);
    Ok(Manifest::new(kind, container, origin, files, vec![tensor])?)
}

fn every_kind() -> IndexMap<String, Value> {
    let nested = Array::Array(vec![
        Array::I32(vec![1, -2]),
        Array::String(vec!["in".to_owned()]),
        Array::Bool(vec![]),
    ]);
    [
        ("general.architecture", "llama".into()),
        ("general.alignment", 64u32.into()),
        ("u8", Value::U8(1)),
        ("i8", Value::I8(-1)),
        ("u16", Value::U16(2)),
        ("i16", Value::I16(-2)),
        ("u32", Value::U32(3)),
        ("i32", Value::I32(-3)),
        ("u64", Value::U64(4)),
        ("i64", Value::I64(-4)),
        ("f32", Value::F32(0.5)),
        ("f64", Value::F64(-0.5)),
        ("bool", true.into()),
        ("array.u8", Value::Array(Array::U8(vec![1, 2]))),
        ("array.f32", vec![0.5f32].into()),
        ("array.u64", Value::Array(Array::U64(vec![9]))),
        ("array.bool", Value::Array(Array::Bool(vec![true, false]))),
        ("array.strings", vec!["ä".to_owned(), String::new()].into()),
        ("array.nested", Value::Array(nested)),
    ]
    .map(|(key, value): (&str, Value)| (key.to_owned(), value))
    .into()
}
