//! Any bytes as a manifest of the store: an error, or one that holds together and is read again
//! as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sedge_store::{Manifest, check_file_path};

fuzz_target!(|input: &[u8]| {
    let Ok(manifest) = Manifest::parse(input) else {
        return;
    };
    for file in &manifest.files {
        assert!(check_file_path(&file.path).is_ok());
    }
    for tensor in &manifest.tensors {
        let file = &manifest.files[tensor.file];
        assert!(tensor.offset + tensor.blob.len <= file.size);
        if let Some(dtype) = tensor.dtype() {
            let values = tensor.shape.iter().product();
            assert_eq!(dtype.bytes_for(values), Some(tensor.blob.len as usize));
        }
    }
    manifest.content();
    let bytes = manifest.to_bytes().unwrap();
    assert_eq!(Manifest::parse(&bytes).unwrap(), manifest);
});
