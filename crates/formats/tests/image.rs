//! Pictures: every kind of file against another program's pixels, sizes, and what is refused.

use std::path::PathBuf;

use proptest::prelude::*;
use sedge_formats::image::{Filter, Image, ImageError, Limits, decode};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/images")
}

/// The names of all files that are decoded, and their bytes.
fn files() -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in folder().read_dir().unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_file() && !name.ends_with(".py") {
            files.push((name, std::fs::read(path).unwrap()));
        }
    }
    files.sort();
    files
}

fn expected(name: &str) -> Image {
    let bytes = std::fs::read(folder().join("expected").join(name)).unwrap();
    decode(&bytes, Limits::default()).unwrap()
}

/// The largest difference between two pictures of one size, and the mean.
fn difference(a: &Image, b: &Image) -> (u8, f64) {
    assert_eq!((a.width, a.height), (b.width, b.height));
    let differences = a.pixels.iter().zip(&b.pixels).map(|(a, b)| a.abs_diff(*b));
    let sum: f64 = differences.clone().map(f64::from).sum();
    (differences.max().unwrap(), sum / a.pixels.len() as f64)
}

#[test]
fn every_kind_of_file_has_the_pixels_that_pillow_reads() {
    let files = files();
    assert_eq!(files.len(), 24);
    for (name, bytes) in files {
        let image = decode(&bytes, Limits::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (most, mean) = difference(&image, &expected(&format!("{name}.png")));
        // Decoders of JPEG round transforms and enlarge chroma each in its own way.
        let jpeg = name.ends_with(".jpg");
        let (may_most, may_mean) = if jpeg { (3, 0.5) } else { (0, 0.0) };
        assert!(
            most <= may_most && mean <= may_mean,
            "{name}: at most {most}, {mean} on average"
        );
    }
}

#[test]
fn a_file_that_ends_early_is_an_error_that_says_so() {
    for (name, bytes) in files() {
        let whole = decode(&bytes, Limits::default()).unwrap();
        for len in 0..bytes.len() {
            match decode(&bytes[..len], Limits::default()) {
                // What follows a picture may be missing.
                Ok(image) => assert!(image == whole, "{name}: {len} bytes"),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        let half = decode(&bytes[..bytes.len() / 2], Limits::default());
        assert!(half.is_err(), "{name}");
    }
}

#[test]
fn a_file_with_any_byte_changed_does_not_panic() {
    let limits = Limits { pixels: 10_000 };
    for (_, bytes) in files() {
        for at in 0..bytes.len() {
            for value in [0, 0xff, bytes[at] ^ 1, bytes[at] ^ 0x80] {
                let mut changed = bytes.clone();
                changed[at] = value;
                if let Ok(image) = decode(&changed, limits) {
                    assert_eq!(image.pixels.len(), image.width * image.height * 3);
                }
            }
        }
    }
}

#[test]
fn a_picture_larger_than_the_limit_is_refused_by_its_header() {
    let limit = |pixels| Limits { pixels };
    for (name, bytes) in files() {
        let fits = decode(&bytes, limit(24 * 17));
        assert!(fits.is_ok(), "{name}");
        let error = decode(&bytes, limit(24 * 17 - 1)).unwrap_err();
        assert!(
            matches!(error, ImageError::TooLarge { .. }),
            "{name}: {error}"
        );
    }
    // The header alone is read: what claims to be large need not be there.
    let mut png = std::fs::read(folder().join("grey.png")).unwrap();
    png[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
    let sum = crc(&png[12..29]).to_be_bytes();
    png[29..33].copy_from_slice(&sum);
    let error = decode(&png[..33], Limits::default()).unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
}

/// The check sum of PNG, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

/// Replaces the only `from` in a file by `to`, as long.
fn replaced(name: &str, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = std::fs::read(folder().join(name)).unwrap();
    let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
    bytes[at..at + from.len()].copy_from_slice(to);
    bytes
}

#[test]
fn a_frame_larger_than_its_canvas_is_refused_before_it_is_decoded() {
    // The sides of a lossy picture after its start code.
    let from = [0x9d, 0x01, 0x2a, 24, 0, 17, 0];
    let to = [0x9d, 0x01, 0x2a, 0xff, 0x3f, 0xff, 0x3f];
    let error = decode(&replaced("lossy-alpha.webp", &from, &to), Limits::default()).unwrap_err();
    assert_eq!(format!("{error:?}"), "Webp(InconsistentImageSizes)");
    // The size of an animation's frame.
    let from = [2, 0, 0, 3, 0, 0, 9, 0, 0, 7, 0, 0];
    let to = [2, 0, 0, 3, 0, 0, 0xff, 0xff, 0xff, 7, 0, 0];
    let error = decode(&replaced("part.webp", &from, &to), Limits::default()).unwrap_err();
    assert_eq!(format!("{error:?}"), "Webp(FrameOutsideImage)");
}

#[test]
fn empty_and_unknown_files_are_refused() {
    for bytes in [&b""[..], b"GIF89a", b"RIFF\0\0\0\0WAVE", b"\xff\xd8"] {
        let error = decode(bytes, Limits::default()).unwrap_err();
        assert!(matches!(error, ImageError::Format { .. }), "{error}");
    }
    // A JPEG file says its height and width after the precision of 8 bits.
    let jpeg = replaced("444.jpg", &[8, 0, 17, 0, 24, 3], &[8, 0, 17, 0, 0, 3]);
    assert!(decode(&jpeg, Limits::default()).is_err());
}

#[test]
fn the_antialiased_filter_is_that_of_pillow() {
    let image = expected("lossless.webp.png");
    for (name, width, height) in [("smaller.png", 11, 9), ("larger.png", 40, 50)] {
        let resized = image.resized(width, height, Filter::Antialiased);
        let (most, _) = difference(&resized, &expected(name));
        assert!(most <= 1, "{name}: {most}");
    }
}

/// Bilinear interpolation between the centres of the four pixels around a point, in f64.
fn plain(image: &Image, width: usize, height: usize) -> Vec<f64> {
    let around = |i: usize, to: usize, from: usize| {
        let at = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let at = at.clamp(0.0, (from - 1) as f64);
        let low = at.floor() as usize;
        (low, (low + 1).min(from - 1), at - at.floor())
    };
    let mut values = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let (top, bottom, v) = around(y, height, image.height);
            let (left, right, u) = around(x, width, image.width);
            for c in 0..3 {
                let pixel = |y, x| f64::from(image.pixels[(y * image.width + x) * 3 + c]);
                let upper = pixel(top, left) * (1.0 - u) + pixel(top, right) * u;
                let lower = pixel(bottom, left) * (1.0 - u) + pixel(bottom, right) * u;
                values.push(upper * (1.0 - v) + lower * v);
            }
        }
    }
    values
}

fn any_image() -> impl Strategy<Value = Image> {
    (1usize..40, 1usize..40).prop_flat_map(|(width, height)| {
        let pixels = prop::collection::vec(any::<u8>(), width * height * 3);
        pixels.prop_map(move |pixels| Image {
            width,
            height,
            pixels,
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_plain_filter_reads_the_four_pixels_around_a_point(
        image in any_image(),
        width in 1usize..60,
        height in 1usize..60,
    ) {
        let resized = image.resized(width, height, Filter::Plain);
        prop_assert_eq!((resized.width, resized.height), (width, height));
        for (got, want) in resized.pixels.iter().zip(plain(&image, width, height)) {
            // Rounded once for each axis.
            prop_assert!((f64::from(*got) - want).abs() <= 1.01, "{got} for {want}");
        }
    }

    #[test]
    fn decoding_what_was_encoded_gives_the_picture(image in any_image()) {
        prop_assert_eq!(decode(&image.encode_png(), Limits::default()).unwrap(), image);
    }

    #[test]
    fn no_bytes_panic(kind in 0usize..4, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let start = [&b""[..], b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"][kind];
        let _ = decode(&[start, &bytes].concat(), Limits { pixels: 10_000 });
    }
}
