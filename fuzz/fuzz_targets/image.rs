//! Any bytes as a picture: an error, or a picture within the limit that is the same when encoded
//! and decoded again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sedge_formats::image::{Limits, decode};

fuzz_target!(|input: &[u8]| {
    let limits = Limits { pixels: 1 << 20 };
    let Ok(image) = decode(input, limits) else {
        return;
    };
    assert!(image.width * image.height <= limits.pixels);
    assert_eq!(image.pixels.len(), image.width * image.height * 3);
    assert!(decode(&image.encode_png(), limits).expect("what was encoded is a picture") == image);
});
