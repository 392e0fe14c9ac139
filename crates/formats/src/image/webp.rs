//! WebP: lossy, lossless, and the first frame of an animation.
//!
//! The container is read here, and the decoder is given one plain picture. Its own reader of
//! containers decodes a frame before it compares the frame's size with the one that the container
//! states, and with transparency not even then: a small picture could take a large one's memory.

use std::io::Cursor;

use image_webp::{DecodingError, WebPDecoder};

use super::orientation::Orientation;
use super::{Image, ImageError, Limits, over_white};

/// Bytes before the first chunk: `RIFF`, a length, `WEBP`.
const HEADER: usize = 12;

/// One picture in a container.
#[derive(Default)]
struct Frame<'a> {
    /// From the canvas's left.
    x: usize,
    /// From the canvas's top.
    y: usize,
    width: usize,
    height: usize,
    /// The chunk of its transparency, which lossy pictures have apart.
    alpha: Option<&'a [u8]>,
    /// Name and content of the chunk of its pixels.
    pixels: Option<([u8; 4], &'a [u8])>,
}

pub(super) fn decode(bytes: &[u8], limits: Limits) -> Result<Image, ImageError> {
    let truncated = || ImageError::Truncated {
        format: "WebP",
        len: bytes.len(),
    };
    let malformed = || ImageError::Webp(DecodingError::ChunkMissing);
    // The length counts from `WEBP`. Some writers leave the last even byte out.
    let len = bytes.get(4..).and_then(|rest| rest.first_chunk());
    let len = len.map_or(0, |len| u32::from_le_bytes(*len) as usize);
    if len > bytes.len().next_multiple_of(2) - 8 {
        return Err(truncated());
    }
    let rest = bytes.get(HEADER..).unwrap_or_default();
    let (name, content, mut rest) = chunk(rest).ok_or_else(truncated)?;
    if &name != b"VP8X" {
        // A plain picture, whose size is its own.
        let (width, height) = size(name, content).ok_or_else(malformed)?;
        limits.check(width, height)?;
        return pixels(&Frame {
            width,
            height,
            pixels: Some((name, content)),
            ..Frame::default()
        });
    }

    // One byte of flags and three reserved, then the canvas's width and height less one.
    let (width, height) = match (u24(content, 4), u24(content, 7)) {
        (Some(width), Some(height)) => (width + 1, height + 1),
        _ => return Err(malformed()),
    };
    limits.check(width, height)?;
    let mut frame = Frame {
        width,
        height,
        ..Frame::default()
    };
    let mut exif = None;
    while !rest.is_empty() {
        let (name, content, after) = chunk(rest).ok_or_else(truncated)?;
        rest = after;
        match &name {
            b"EXIF" => exif = exif.or(Some(content)),
            // Later frames of an animation, and pixels beside one, are left.
            _ if frame.pixels.is_some() => {}
            b"ANMF" => frame = animated(content).ok_or_else(malformed)?,
            _ => frame.take(name, content),
        }
    }
    if frame.x + frame.width > width || frame.y + frame.height > height {
        return Err(ImageError::Webp(DecodingError::FrameOutsideImage));
    }
    let image = place(pixels(&frame)?, &frame, width, height);
    Ok(Orientation::from_exif(exif.unwrap_or_default()).apply(image))
}

impl<'a> Frame<'a> {
    /// Takes a chunk that is part of the picture.
    fn take(&mut self, name: [u8; 4], content: &'a [u8]) {
        match &name {
            b"ALPH" => self.alpha = self.alpha.or(Some(content)),
            b"VP8 " | b"VP8L" => self.pixels = self.pixels.or(Some((name, content))),
            _ => {}
        }
    }
}

/// The frame of an `ANMF` chunk: half its place, its size less one, its duration and its flags
/// (16 bytes), then chunks.
fn animated(content: &[u8]) -> Option<Frame<'_>> {
    let mut frame = Frame {
        x: 2 * u24(content, 0)?,
        y: 2 * u24(content, 3)?,
        width: u24(content, 6)? + 1,
        height: u24(content, 9)? + 1,
        ..Frame::default()
    };
    let mut rest = content.get(16..)?;
    while !rest.is_empty() {
        let (name, content, after) = chunk(rest)?;
        frame.take(name, content);
        rest = after;
    }
    frame.pixels.is_some().then_some(frame)
}

/// Decodes a frame, whose size is within the limits if it is as the frame says.
fn pixels(frame: &Frame) -> Result<Image, ImageError> {
    let &Frame { width, height, .. } = frame;
    let Some((name, content)) = frame.pixels else {
        return Err(ImageError::Webp(DecodingError::ChunkMissing));
    };
    if size(name, content) != Some((width, height)) {
        return Err(ImageError::Webp(DecodingError::InconsistentImageSizes));
    }
    let mut file = b"RIFF\0\0\0\0WEBP".to_vec();
    if let (b"VP8 ", Some(alpha)) = (&name, frame.alpha) {
        // Sides of lossy pictures have 14 bits, by `size`.
        let [w, h] = [width - 1, height - 1].map(|n| (n as u32).to_le_bytes());
        const ALPHA: u8 = 0x10;
        let canvas = [ALPHA, 0, 0, 0, w[0], w[1], w[2], h[0], h[1], h[2]];
        push(&mut file, b"VP8X", &canvas);
        push(&mut file, b"ALPH", alpha);
    }
    push(&mut file, &name, content);
    let len = (file.len() - 8) as u32;
    file[4..8].copy_from_slice(&len.to_le_bytes());

    let mut decoder = WebPDecoder::new(Cursor::new(&file)).map_err(ImageError::Webp)?;
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    let mut pixels = vec![0; width * height * channels];
    decoder.read_image(&mut pixels).map_err(ImageError::Webp)?;
    if channels == 4 {
        pixels = over_white(&pixels, |[r, g, b, alpha]| ([r, g, b], alpha));
    }
    Ok(Image {
        width,
        height,
        pixels,
    })
}

/// A frame on its canvas, in which it lies, and which is white elsewhere.
fn place(part: Image, frame: &Frame, width: usize, height: usize) -> Image {
    if (part.width, part.height) == (width, height) {
        return part;
    }
    let mut pixels = vec![255; width * height * 3];
    let rows = pixels.chunks_exact_mut(width * 3).skip(frame.y);
    for (row, from) in rows.zip(part.pixels.chunks_exact(part.width * 3)) {
        row[frame.x * 3..][..from.len()].copy_from_slice(from);
    }
    Image {
        width,
        height,
        pixels,
    }
}

/// The size that stands in a chunk of pixels.
fn size(name: [u8; 4], content: &[u8]) -> Option<(usize, usize)> {
    match &name {
        // A tag of three bytes, a start code, and two sides of 14 bits, the rest being a scale.
        b"VP8 " => {
            let [w0, w1, h0, h1] = *content.get(6..)?.first_chunk()?;
            let side = |low, high| usize::from(u16::from_le_bytes([low, high]) & 0x3fff);
            Some((side(w0, w1), side(h0, h1)))
        }
        // A signature, and two sides of 14 bits less one.
        b"VP8L" => {
            let bits = u32::from_le_bytes(*content.get(1..)?.first_chunk()?);
            let side = |bits: u32| (bits & 0x3fff) as usize + 1;
            Some((side(bits), side(bits >> 14)))
        }
        _ => None,
    }
}

/// The first chunk of some bytes, and what follows it: a name, a length, the content, and a byte
/// more if the length is odd. `None` if it does not end in them.
fn chunk(bytes: &[u8]) -> Option<([u8; 4], &[u8], &[u8])> {
    let name = *bytes.first_chunk()?;
    let len = u32::from_le_bytes(*bytes.get(4..)?.first_chunk()?);
    let len = usize::try_from(len).ok()?;
    let (content, rest) = bytes[8..].split_at_checked(len)?;
    Some((name, content, rest.get(len % 2..).unwrap_or_default()))
}

fn push(file: &mut Vec<u8>, name: &[u8; 4], content: &[u8]) {
    file.extend(name);
    // A slice of a chunk, whose length had 32 bits.
    file.extend((content.len() as u32).to_le_bytes());
    file.extend(content);
    file.resize(file.len().next_multiple_of(2), 0);
}

fn u24(bytes: &[u8], at: usize) -> Option<usize> {
    let [a, b, c] = *bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes([a, b, c, 0]) as usize)
}
