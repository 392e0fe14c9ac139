//! How a file is cut into pieces, each of which becomes a blob; read from the file's header.

use sedge_formats::gguf::{self, GgufError};
use sedge_formats::safetensors::{self, SafetensorsError};

use crate::manifest::Container;

/// Most bytes of a header. Vocabularies of a quarter million tokens take some 15 MB.
const MAX_HEADER: u64 = 256 << 20;

/// Why a file cannot be cut.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The GGUF header is malformed.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The safetensors header is malformed.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    /// The header is larger than any real one.
    #[error("the header goes on past byte {need}; at most {MAX_HEADER} are read")]
    Header {
        /// Where it goes on.
        need: u64,
    },
}

/// A part of a file that becomes a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// First byte in the file.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// The tensor that it is; none for a header or a whole small file.
    pub(crate) tensor: Option<TensorFacts>,
}

/// A tensor without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorFacts {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
}

/// The pieces of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of the file.
    pub(crate) size: u64,
    /// In the order of the header; they do not overlap.
    pub(crate) pieces: Vec<Piece>,
}

/// What the first bytes of a file say.
#[derive(Debug)]
pub(crate) enum Head {
    /// All of the layout.
    Whole(Layout),
    /// So many first bytes are needed to say it.
    Needs(u64),
}

/// What is made of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// One blob.
    Whole,
    /// A blob a tensor.
    Tensors(Container),
}

impl Layout {
    /// A file that is one piece.
    pub(crate) fn whole(size: u64) -> Layout {
        Layout {
            size,
            pieces: vec![Piece {
                start: 0,
                len: size,
                tensor: None,
            }],
        }
    }

    /// Reads the layout of a file of `size` bytes from its first bytes.
    pub(crate) fn read(cut: Cut, head: &[u8], size: u64) -> Result<Head, LayoutError> {
        let have = head.len() as u64;
        let needs = |need: u64| match need.max(have + 1) {
            need if need > MAX_HEADER => Err(LayoutError::Header { need }),
            need => Ok(Head::Needs(need.min(size))),
        };
        match cut {
            Cut::Whole => Ok(Head::Whole(Layout::whole(size))),
            Cut::Tensors(Container::Safetensors) => {
                if have < 8 && size >= 8 {
                    return needs(8);
                }
                let len = safetensors::Header::len(head, size)?;
                if have < len {
                    return needs(len);
                }
                let header = safetensors::Header::parse(&head[..len as usize], size)?;
                let pieces = header.tensors.into_iter().map(|(name, place)| Piece {
                    start: place.begin,
                    len: place.end - place.begin,
                    tensor: Some(TensorFacts {
                        name,
                        dtype: match place.dtype() {
                            Some(dtype) => dtype.name().to_owned(),
                            None => place.type_name.to_ascii_lowercase(),
                        },
                        shape: place.shape,
                    }),
                });
                Ok(Head::Whole(Layout {
                    size,
                    pieces: pieces.collect(),
                }))
            }
            Cut::Tensors(Container::Gguf) => {
                let header = match gguf::Header::parse(head, size) {
                    Err(GgufError::Unfinished { need }) => return needs(need.max(2 * have)),
                    // So short that not even the magic is there yet.
                    Err(GgufError::Magic { .. }) if have < 4 && size > have => return needs(4),
                    header => header?,
                };
                let first = Piece {
                    start: 0,
                    len: header.len,
                    tensor: None,
                };
                let tensors = header.tensors.into_iter().map(|(name, info)| Piece {
                    start: info.offset,
                    len: info.len,
                    tensor: Some(TensorFacts {
                        name,
                        dtype: info.dtype.name().to_owned(),
                        shape: info.shape,
                    }),
                });
                Ok(Head::Whole(Layout {
                    size,
                    pieces: [first].into_iter().chain(tensors).collect(),
                }))
            }
        }
    }

    /// The whole file from first byte to last: the pieces in order, and what lies between.
    pub(crate) fn segments(&self) -> Vec<Segment> {
        let mut order: Vec<usize> = (0..self.pieces.len()).collect();
        order.sort_by_key(|&i| (self.pieces[i].start, self.pieces[i].len));
        let mut segments = Vec::with_capacity(order.len() + 1);
        let (mut at, mut between) = (0, 0);
        let mut gap = |from: u64, to: u64, segments: &mut Vec<Segment>| {
            if from < to {
                segments.push(Segment {
                    start: from,
                    len: to - from,
                    place: Place::Between(between),
                });
                between += to - from;
            }
        };
        for i in order {
            let Piece { start, len, .. } = self.pieces[i];
            gap(at, start, &mut segments);
            segments.push(Segment {
                start,
                len,
                place: Place::Piece(i),
            });
            at = start + len;
        }
        gap(at, self.size, &mut segments);
        segments
    }
}

/// A run of a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// First byte in the file.
    pub(crate) start: u64,
    /// Bytes; may be none.
    pub(crate) len: u64,
    /// Where they are kept.
    pub(crate) place: Place,
}

/// Where a segment's bytes are kept until they are blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The file of this piece.
    Piece(usize),
    /// The file of what lies between pieces, from this byte on: kept only to hash the whole.
    Between(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn safetensors(json: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.extend(data);
        bytes
    }

    /// Reads with as few bytes as are asked for.
    fn read(cut: Cut, file: &[u8]) -> Layout {
        let mut have = 0;
        loop {
            match Layout::read(cut, &file[..have], file.len() as u64).unwrap() {
                Head::Whole(layout) => return layout,
                Head::Needs(need) => {
                    assert!(need as usize > have && need as usize <= file.len());
                    have = need as usize;
                }
            }
        }
    }

    #[test]
    fn segments_cover_a_file_whose_tensors_stand_in_any_order() {
        let json = r#"{"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},
            "a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]},
            "none":{"dtype":"F16","shape":[0],"data_offsets":[4,4]}}"#;
        let file = safetensors(json, &[7; 12]);
        let layout = read(Cut::Tensors(Container::Safetensors), &file);
        assert_eq!(layout.pieces.len(), 3);
        assert_eq!(layout.pieces[1].tensor.as_ref().unwrap().dtype, "i32");
        let mut at = 0;
        for segment in layout.segments() {
            assert_eq!(segment.start, at);
            at += segment.len;
        }
        assert_eq!(at, file.len() as u64);
    }

    #[test]
    fn a_gguf_header_is_read_from_as_little_as_it_takes() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../assets/seedling/seedling.gguf"
        );
        let file = std::fs::read(path).unwrap();
        let layout = read(Cut::Tensors(Container::Gguf), &file);
        let gguf = gguf::Gguf::parse(file.clone().into()).unwrap();
        assert_eq!(layout.pieces.len(), gguf.tensors().len() + 1);
        let total: u64 = layout.segments().iter().map(|s| s.len).sum();
        assert_eq!(total, file.len() as u64);
    }

    #[test]
    fn headers_without_end_are_refused() {
        let mut file = (90_000_000u64).to_le_bytes().to_vec();
        assert!(matches!(
            Layout::read(Cut::Tensors(Container::Safetensors), &file, 1 << 40),
            Ok(Head::Needs(90_000_008))
        ));
        file[3] = 0xff;
        assert!(Layout::read(Cut::Tensors(Container::Safetensors), &file, 1 << 40).is_err());
        let mut gguf = b"GGUF".to_vec();
        gguf.extend(3u32.to_le_bytes());
        gguf.extend(0u64.to_le_bytes());
        gguf.extend(1u64.to_le_bytes());
        gguf.extend((1u64 << 39).to_le_bytes());
        let read = Layout::read(Cut::Tensors(Container::Gguf), &gguf, 1 << 40);
        assert!(matches!(read, Err(LayoutError::Header { .. })), "{read:?}");
    }
}
