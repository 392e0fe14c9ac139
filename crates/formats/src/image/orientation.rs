//! How a camera was held: the orientation of EXIF data, and turning a picture by it.

use super::Image;

/// The tag of the orientation in the first directory of TIFF data, which EXIF data are.
const ORIENTATION: u16 = 0x0112;
/// The type of a tag of 16 bits.
const SHORT: u16 = 3;

/// How stored pixels become the picture: first the mirrors, then the exchange of rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Orientation {
    mirror_x: bool,
    mirror_y: bool,
    transpose: bool,
}

impl Orientation {
    /// From EXIF data, with or without the `Exif\0\0` before them. Data that say nothing, or are
    /// malformed, turn nothing, as in other programs.
    pub(super) fn from_exif(exif: &[u8]) -> Orientation {
        let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
        Orientation::from_number(number(tiff).unwrap_or(1))
    }

    /// From the tag's value: 1 to 8; others turn nothing.
    fn from_number(number: u16) -> Orientation {
        Orientation {
            mirror_x: matches!(number, 2 | 3 | 7 | 8),
            mirror_y: matches!(number, 3 | 4 | 6 | 7),
            transpose: matches!(number, 5..=8),
        }
    }

    /// Turns a picture as it was stored.
    pub(super) fn apply(self, image: Image) -> Image {
        if self == Orientation::from_number(1) {
            return image;
        }
        let (w, h) = (image.width, image.height);
        let (width, height) = if self.transpose { (h, w) } else { (w, h) };
        let mut pixels = Vec::with_capacity(image.pixels.len());
        let stored = image.pixels.as_chunks::<3>().0;
        for y in 0..height {
            for x in 0..width {
                let (mut column, mut row) = if self.transpose { (y, x) } else { (x, y) };
                if self.mirror_x {
                    column = w - 1 - column;
                }
                if self.mirror_y {
                    row = h - 1 - row;
                }
                pixels.extend_from_slice(&stored[row * w + column]);
            }
        }
        Image {
            width,
            height,
            pixels,
        }
    }
}

/// The orientation's number in TIFF data, if they have one.
fn number(tiff: &[u8]) -> Option<u16> {
    let big = match tiff.first_chunk()? {
        b"II*\0" => false,
        b"MM\0*" => true,
        _ => return None,
    };
    let u16_at = |at: usize| {
        let raw = *tiff.get(at..)?.first_chunk()?;
        Some(if big {
            u16::from_be_bytes(raw)
        } else {
            u16::from_le_bytes(raw)
        })
    };
    let raw = *tiff.get(4..)?.first_chunk()?;
    let directory = if big {
        u32::from_be_bytes(raw)
    } else {
        u32::from_le_bytes(raw)
    };
    let directory = usize::try_from(directory).ok()?;
    let entries = directory.checked_add(2)?;
    // An entry: tag, type, count of 32 bits, and the value in the first bytes of the last four.
    (0..usize::from(u16_at(directory)?))
        .map_while(|i| entries.checked_add(12 * i))
        .find(|&at| u16_at(at) == Some(ORIENTATION) && u16_at(at + 2) == Some(SHORT))
        .and_then(|at| u16_at(at + 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A first directory with another tag and the orientation.
    fn exif(big: bool, orientation: u16) -> Vec<u8> {
        let short = |n: u16| {
            if big {
                n.to_be_bytes()
            } else {
                n.to_le_bytes()
            }
        };
        let long = |n: u32| {
            if big {
                n.to_be_bytes()
            } else {
                n.to_le_bytes()
            }
        };
        let mut bytes = if big { b"MM\0*" } else { b"II*\0" }.to_vec();
        bytes.extend(long(8));
        bytes.extend(short(2));
        for (tag, value) in [(0x010f, 7), (ORIENTATION, orientation)] {
            bytes.extend(short(tag));
            bytes.extend(short(SHORT));
            bytes.extend(long(1));
            bytes.extend(short(value));
            bytes.extend(short(0));
        }
        bytes.extend(long(0));
        bytes
    }

    #[test]
    fn the_tag_is_found_in_either_byte_order() {
        for big in [false, true] {
            for n in 1..=8 {
                assert_eq!(number(&exif(big, n)), Some(n));
            }
        }
        let prefixed = [b"Exif\0\0".as_slice(), &exif(false, 6)].concat();
        assert_eq!(
            Orientation::from_exif(&prefixed),
            Orientation::from_number(6)
        );
    }

    #[test]
    fn malformed_data_turn_nothing() {
        let whole = exif(true, 6);
        for len in 0..32 {
            assert_eq!(number(&whole[..len]), None, "{len} bytes");
        }
        let mut far = whole.clone();
        far[4..8].fill(0xff);
        assert_eq!(number(&far), None);
        assert_eq!(Orientation::from_number(9), Orientation::from_number(1));
    }

    #[test]
    fn each_orientation_turns_as_the_standard_draws_it() {
        // Where the corners a b / c d of a picture of 3 × 2 go, for the numbers 1 to 8.
        let stored = Image {
            width: 3,
            height: 2,
            pixels: b"a.bc.d".iter().flat_map(|p| [*p; 3]).collect(),
        };
        let expected = [
            (3, "a.bc.d"),
            (3, "b.ad.c"),
            (3, "d.cb.a"),
            (3, "c.da.b"),
            (2, "ac..bd"),
            (2, "ca..db"),
            (2, "db..ca"),
            (2, "bd..ac"),
        ];
        for (number, (width, pixels)) in (1..).zip(expected) {
            let turned = Orientation::from_number(number).apply(stored.clone());
            assert_eq!(turned.width, width);
            assert_eq!(turned.height, 6 / width);
            let got: Vec<u8> = turned.pixels.iter().step_by(3).copied().collect();
            assert_eq!(
                String::from_utf8(got).unwrap(),
                pixels,
                "orientation {number}"
            );
        }
    }
}
