//! A page in the file: a header that says what it is, then its bytes.
//! What is read is what was written, whole and under its own name, or nothing.
//!
//! ```text
//! offset  bytes
//!      0      8  magic
//!      8     32  identity
//!     40     16  key
//!     56     32  BLAKE3 of the page's bytes
//!     88     32  BLAKE3 of the 88 bytes before
//!   4096      …  the page, padded to a multiple of 4096
//! ```

use super::PageKey;

/// Bytes of a header, and what slots are multiples of.
pub(super) const HEADER: usize = 4096;
const MAGIC: [u8; 8] = *b"sedgekv1";
const SIGNED: usize = 88;

/// Bytes of a slot.
pub(super) fn slot_bytes(page_bytes: usize) -> u64 {
    (HEADER + page_bytes.next_multiple_of(HEADER)) as u64
}

/// The header of a page.
pub(super) fn header(identity: &[u8; 32], key: PageKey, page: &[u8]) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER);
    header.extend(MAGIC);
    header.extend(identity);
    header.extend(key.0);
    header.extend(blake3::hash(page).as_bytes());
    header.extend(blake3::hash(&header).as_bytes());
    header.resize(HEADER, 0);
    header
}

/// The key in a header and the hash of its page, if it is one of this identity.
pub(super) fn read_header(header: &[u8], identity: &[u8; 32]) -> Option<(PageKey, [u8; 32])> {
    let (signed, rest) = header.split_at_checked(SIGNED)?;
    let signature = rest.get(..32)?;
    let sound = blake3::hash(signed).as_bytes() == signature
        && signed[..8] == MAGIC
        && signed[8..40] == identity[..];
    let key = signed[40..56].try_into().ok()?;
    let hash = signed[56..88].try_into().ok()?;
    sound.then_some((PageKey(key), hash))
}
