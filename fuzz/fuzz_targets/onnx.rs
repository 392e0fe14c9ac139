//! Any bytes as an ONNX file: an error, or a model that is the same when written and read again
//! and whose tensors have as many values as their shapes take.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sedge_formats::onnx::{read, write};

fuzz_target!(|input: &[u8]| {
    let Ok(model) = read(Bytes::copy_from_slice(input), None) else {
        return;
    };
    // Writing asserts the sizes.
    let written = write(&model);
    let again = read(written.clone().into(), None).expect("what was written can be read");
    // Bytes rather than values, as a NaN does not equal itself.
    assert!(write(&again) == written);
});
