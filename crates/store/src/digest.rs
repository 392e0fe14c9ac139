//! The hashes that sources give of whole files: SHA-256, and git's of a blob.

use std::fmt;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// What a file's content is said to hash to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Digest {
    /// SHA-256 of the content.
    Sha256([u8; 32]),
    /// SHA-1 of `blob LENGTH\0` and the content, as git names its blobs.
    Git([u8; 20]),
}

impl Digest {
    /// Reads 64 or 40 hexadecimal digits, with the quotes of an ETag or without.
    pub(crate) fn from_hex(text: &str) -> Option<Digest> {
        let text = text.strip_prefix("W/").unwrap_or(text).trim_matches('"');
        match text.len() {
            64 => Some(Digest::Sha256(hex(text)?)),
            40 => Some(Digest::Git(hex(text)?)),
            _ => None,
        }
    }
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    for (byte, pair) in out.iter_mut().zip(pairs) {
        let digit = |c: u8| (c as char).to_digit(16);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    (pairs.len() == N).then_some(out)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: &[u8] = match self {
            Digest::Sha256(bytes) => bytes,
            Digest::Git(bytes) => bytes,
        };
        bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Both hashes of a file of a known length, while it streams. Git's is computed only when asked
/// for: the files that it names are small.
pub(crate) struct Digester {
    sha256: Sha256,
    git: Option<Sha1>,
}

impl Digester {
    pub(crate) fn new(len: u64, git: bool) -> Digester {
        let git = git.then(|| {
            let mut sha1 = Sha1::new();
            sha1.update(format!("blob {len}\0"));
            sha1
        });
        Digester {
            sha256: Sha256::new(),
            git,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(git) = &mut self.git {
            git.update(bytes);
        }
    }

    /// SHA-256, and git's if it was asked for.
    pub(crate) fn finish(self) -> (Digest, Option<Digest>) {
        let sha256 = Digest::Sha256(self.sha256.finalize().into());
        let git = self.git.map(|git| Digest::Git(git.finalize().into()));
        (sha256, git)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_sha256sum_and_git() {
        // printf 'sedge\n' | sha256sum; printf 'sedge\n' | git hash-object --stdin
        let mut digester = Digester::new(6, true);
        digester.update(b"sed");
        digester.update(b"ge\n");
        let (sha256, git) = digester.finish();
        assert_eq!(
            sha256.to_string(),
            "93d227a6aaeff7bfbb6edcb7057f9b17f85c91bb81d247973a2640c612c719db"
        );
        assert_eq!(
            git.unwrap().to_string(),
            "5c3951297f5e1429c6060ac2fe09496e3fe4e7b3"
        );
    }

    #[test]
    fn etags_are_read_with_quotes_and_nothing_else_is() {
        let digits = "ab".repeat(20);
        let plain = Digest::from_hex(&digits);
        assert_eq!(plain, Some(Digest::Git([0xab; 20])));
        assert_eq!(Digest::from_hex(&format!("\"{digits}\"")), plain);
        assert_eq!(Digest::from_hex(&format!("W/\"{digits}\"")), plain);
        let digits = "AB".repeat(32);
        assert_eq!(Digest::from_hex(&digits), Some(Digest::Sha256([0xab; 32])));
        for other in ["", "abc", &"zz".repeat(20), &"é".repeat(20)] {
            assert_eq!(Digest::from_hex(other), None);
        }
    }
}
