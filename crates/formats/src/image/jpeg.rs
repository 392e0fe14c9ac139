//! JPEG: baseline and progressive; grey, YCbCr, RGB, CMYK and YCCK.

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::orientation::Orientation;
use super::{Image, ImageError, Limits};

pub(super) fn decode(bytes: &[u8], limits: Limits) -> Result<Image, ImageError> {
    // Strict: half a picture is no picture.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(ImageError::Jpeg)?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    limits.check(width, height)?;
    // The decoder alone takes the last rows for whole if the file ends in them.
    if !ends(bytes) {
        return Err(ImageError::Truncated {
            format: "JPEG",
            len: bytes.len(),
        });
    }
    let mut pixels = vec![0; width * height * 3];
    decoder.decode_into(&mut pixels).map_err(ImageError::Jpeg)?;
    let image = Image {
        width,
        height,
        pixels,
    };
    let exif = decoder.exif().map(Vec::as_slice).unwrap_or_default();
    Ok(Orientation::from_exif(exif).apply(image))
}

/// Whether the marker of the end stands after the first scan's. A thumbnail, which has an end of
/// its own, stands before.
fn ends(bytes: &[u8]) -> bool {
    const SCAN: u8 = 0xda;
    let mut at = 2;
    while let Some([marker, kind, high, low]) = bytes.get(at..).and_then(|rest| rest.first_chunk())
    {
        if *marker != 0xff || *kind == 0xff {
            at += 1;
        } else if *kind == SCAN {
            return bytes[at..].windows(2).any(|pair| pair == [0xff, 0xd9]);
        } else {
            at += 2 + usize::from(u16::from_be_bytes([*high, *low]));
        }
    }
    false
}
