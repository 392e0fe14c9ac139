//! Any bytes as a GGUF file: an error, or a file whose tensors lie inside it, that is the same
//! when written and read again, and whose vocabulary, if any, is an error or a tokenizer.
#![no_main]

use std::io;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sedge_formats::gguf::{Gguf, TensorPlan, write_to};
use sedge_formats::tokenizer::Tokenizer;

fuzz_target!(|input: &[u8]| {
    let Ok(gguf) = Gguf::parse(Bytes::copy_from_slice(input)) else {
        return;
    };
    let plans: Vec<TensorPlan> = gguf
        .tensors()
        .iter()
        .map(|(name, t)| TensorPlan {
            name: name.clone(),
            dtype: t.dtype,
            shape: t.shape.clone(),
        })
        .collect();
    let written = bytes_of(&gguf, &plans);
    let again = Gguf::parse(written.clone().into()).expect("what was written can be read");
    // Bytes rather than values, as a NaN does not equal itself.
    assert!(bytes_of(&again, &plans) == written);

    if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) {
        let ids = tokenizer.encode("Hello, wörld! 1234\n\u{1f33f}<s>", true, true);
        tokenizer.decode(&ids);
    }
});

fn bytes_of(gguf: &Gguf, plans: &[TensorPlan]) -> Vec<u8> {
    let mut out = Vec::new();
    let fill = |i: usize| io::Result::Ok(gguf.data(&gguf.tensors()[i]));
    write_to(&mut out, gguf.metadata(), plans, fill).expect("what was read can be written");
    out
}
