//! Pictures: JPEG, PNG and WebP files to rows of RGB bytes, and back to PNG.
//!
//! What a file holds is seen from its first bytes, not from its name. Its size is checked against
//! a limit before memory is taken. Colour profiles and gamma are not applied: models were trained
//! on the numbers as they stand in the files.

mod jpeg;
mod orientation;
mod png;
mod resize;
mod webp;

pub use resize::Filter;

/// A picture: rows from the top, each from the left, three bytes a pixel: red, green, blue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height` × `width` × 3 bytes.
    pub pixels: Vec<u8>,
}

/// How large a picture may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most pixels. Decoding takes at most some twelve bytes for each.
    pub pixels: usize,
}

impl Default for Limits {
    /// 100 million pixels.
    fn default() -> Limits {
        Limits {
            pixels: 100_000_000,
        }
    }
}

impl Limits {
    /// Refuses what is larger than this or empty.
    fn check(self, width: usize, height: usize) -> Result<(), ImageError> {
        if width == 0 || height == 0 {
            return Err(ImageError::Empty { width, height });
        }
        if width.checked_mul(height).is_none_or(|n| n > self.pixels) {
            return Err(ImageError::TooLarge {
                width,
                height,
                limit: self.pixels,
            });
        }
        Ok(())
    }
}

/// Why bytes could not be decoded.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The first bytes are those of no format that is read.
    #[error("the file begins with {start:02x?}: not a JPEG, PNG or WebP picture")]
    Format {
        /// The first bytes, twelve at most.
        start: Vec<u8>,
    },
    /// A picture without pixels.
    #[error("the picture has {width} × {height} pixels")]
    Empty {
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// More pixels than the limit.
    #[error("the picture has {width} × {height} pixels; at most {limit} are read")]
    TooLarge {
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
        /// Most pixels.
        limit: usize,
    },
    /// The file ends before its picture.
    #[error("the {format} file ends at byte {len}, before its picture does")]
    Truncated {
        /// Format.
        format: &'static str,
        /// The file's number of bytes.
        len: usize,
    },
    /// A JPEG file that is malformed, or of a kind that is not read (arithmetic coding, lossless,
    /// 12 bits).
    #[error("JPEG: {0}")]
    Jpeg(zune_jpeg::errors::DecodeErrors),
    /// A PNG file that is malformed.
    #[error("PNG: {0}")]
    Png(::png::DecodingError),
    /// A WebP file that is malformed.
    #[error("WebP: {0}")]
    Webp(image_webp::DecodingError),
}

/// Decodes a picture, turned as its EXIF data say. What is transparent lies over white. Of an
/// animation it is the first frame; of 16 bits the upper 8.
///
/// # Errors
/// When the format is none of the three, or the file is malformed, ends early or is larger than
/// `limits`.
pub fn decode(bytes: &[u8], limits: Limits) -> Result<Image, ImageError> {
    match bytes {
        [0xff, 0xd8, 0xff, ..] => jpeg::decode(bytes, limits),
        [0x89, b'P', b'N', b'G', ..] => png::decode(bytes, limits),
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => webp::decode(bytes, limits),
        _ => Err(ImageError::Format {
            start: bytes[..bytes.len().min(12)].to_vec(),
        }),
    }
}

impl Image {
    /// The bytes of a PNG file.
    ///
    /// # Panics
    /// When the picture is empty, or `pixels` is not as long as its size takes.
    pub fn encode_png(&self) -> Vec<u8> {
        self.assert_whole();
        png::encode(self)
    }

    fn assert_whole(&self) {
        assert!(self.width > 0 && self.height > 0, "an empty picture");
        assert_eq!(self.pixels.len(), self.height * self.width * 3);
    }
}

/// Pixels with a last byte of opacity, over white.
fn over_white<const N: usize>(pixels: &[u8], rgb: impl Fn([u8; N]) -> ([u8; 3], u8)) -> Vec<u8> {
    let pixels = pixels.as_chunks::<N>().0.iter();
    pixels
        .flat_map(|pixel| {
            let (colour, alpha) = rgb(*pixel);
            let alpha = u32::from(alpha);
            colour.map(|c| ((u32::from(c) * alpha + 255 * (255 - alpha) + 127) / 255) as u8)
        })
        .collect()
}
