//! Any bytes as a safetensors file: an error, or tensors with as many bytes as they should have.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use sedge_formats::safetensors::Checkpoint;

fuzz_target!(|input: &[u8]| {
    let Ok(checkpoint) = Checkpoint::parse(Bytes::copy_from_slice(input)) else {
        return;
    };
    let mut total = 0;
    for tensor in checkpoint.tensors.values() {
        assert_eq!(
            tensor.dtype.bytes_for(tensor.shape.iter().product()),
            Some(tensor.data.len())
        );
        total += tensor.data.len();
    }
    assert!(total <= input.len());
});
