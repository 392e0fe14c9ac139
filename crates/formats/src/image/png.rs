//! PNG: every depth and kind of colour. An animation's default picture, which is its first frame
//! in most, is the picture.

use std::io::Cursor;

use png::{ColorType, Decoder, DecodingError, Encoder, Transformations};

use super::orientation::Orientation;
use super::{Image, ImageError, Limits, over_white};

pub(super) fn decode(bytes: &[u8], limits: Limits) -> Result<Image, ImageError> {
    let failed = |error| match error {
        DecodingError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageError::Truncated {
                format: "PNG",
                len: bytes.len(),
            }
        }
        error => ImageError::Png(error),
    };
    let mut decoder = Decoder::new(Cursor::new(bytes));
    // Not needed, and compressed, so that they could take much memory.
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let header = decoder.read_header_info().map_err(failed)?;
    let (width, height) = (header.width as usize, header.height as usize);
    limits.check(width, height)?;
    let mut reader = decoder.read_info().map_err(failed)?;
    let size = reader.output_buffer_size();
    let mut pixels = vec![0; size.ok_or(ImageError::Png(DecodingError::LimitsExceeded))?];
    reader.next_frame(&mut pixels).map_err(failed)?;
    let pixels = match reader.output_color_type().0 {
        ColorType::Grayscale | ColorType::Indexed => {
            pixels.into_iter().flat_map(|grey| [grey; 3]).collect()
        }
        ColorType::GrayscaleAlpha => over_white(&pixels, |[grey, alpha]| ([grey; 3], alpha)),
        ColorType::Rgb => pixels,
        ColorType::Rgba => over_white(&pixels, |[r, g, b, alpha]| ([r, g, b], alpha)),
    };
    let image = Image {
        width,
        height,
        pixels,
    };
    let exif = reader.info().exif_metadata.as_deref().unwrap_or_default();
    Ok(Orientation::from_exif(exif).apply(image))
}

/// The bytes of a file that holds a picture, which is not empty.
pub(super) fn encode(image: &Image) -> Vec<u8> {
    let side = |n| u32::try_from(n).expect("a side of a picture has 32 bits");
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&mut out, side(image.width), side(image.height));
    encoder.set_color(ColorType::Rgb);
    // Nothing here can fail: memory takes all bytes, and there are as many as the size says.
    let mut writer = encoder.write_header().expect("a header in memory");
    let written = writer.write_image_data(&image.pixels);
    written.expect("as many bytes as the size takes");
    writer.finish().expect("an end in memory");
    out
}
