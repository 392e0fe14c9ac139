//! GPT-2's alphabet: a printable character for each byte, so that byte sequences are strings.
//!
//! Printable bytes of Latin-1 stand for themselves; the other 68, in their order, are the
//! characters from U+0100 on.

/// Whether a byte stands for itself.
const fn is_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// `TABLE[c]` is the byte that U+0000 + c stands for.
const TABLE: [Option<u8>; 256 + 68] = {
    let mut table = [None; 256 + 68];
    let (mut byte, mut next) = (0, 256);
    while byte < 256 {
        if is_itself(byte as u8) {
            table[byte] = Some(byte as u8);
        } else {
            table[next] = Some(byte as u8);
            next += 1;
        }
        byte += 1;
    }
    table
};

/// The bytes that a token's text stands for, or nothing if a character is not of the alphabet.
pub(super) fn bytes(token: &str) -> Option<Vec<u8>> {
    token.chars().map(|c| *TABLE.get(c as usize)?).collect()
}

/// The character of each byte: [`byte_letters()`](super::byte_letters).
pub fn byte_letters() -> [char; 256] {
    let mut letters = ['\0'; 256];
    for (letter, byte) in ('\0'..).zip(&TABLE) {
        if let Some(byte) = byte {
            letters[usize::from(*byte)] = letter;
        }
    }
    letters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        let mut all: Vec<u8> = TABLE.iter().flatten().copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..=255).collect::<Vec<u8>>());
        assert_eq!(bytes("Ġhé"), Some(vec![b' ', b'h', 0xe9]));
        assert_eq!(bytes("Ċ"), Some(b"\n".to_vec()));
        assert_eq!(bytes("a b"), None);
        for (byte, letter) in (0..=255).zip(byte_letters()) {
            assert_eq!(bytes(&letter.to_string()), Some(vec![byte]));
        }
    }
}
