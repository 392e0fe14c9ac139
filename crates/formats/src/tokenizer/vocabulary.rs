//! The tokens of a vocabulary and what each stands for.

use super::{alphabet, spm};

/// What a token is for; the numbers are those of `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl Kind {
    /// Of a number in a file; unknown ones are normal tokens.
    pub(super) fn of(number: i32) -> Kind {
        match number {
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => Kind::Normal,
        }
    }
}

/// How tokens are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// GPT-2's alphabet of bytes.
    ByteLevel,
    /// `▁` is a space, `<0x0A>` a byte.
    SentencePiece,
    /// `##` continues a word; all else begins one.
    WordPiece {
        /// No space before punctuation and clitics, as `tokenizers` decodes.
        tidy: bool,
    },
    /// `</w>` ends a word.
    WordEnd,
    /// Tokens are words.
    Words,
}

/// A token.
#[derive(Debug)]
pub(super) struct Token {
    /// As the vocabulary writes it.
    pub(super) text: Box<str>,
    /// What it stands for.
    pub(super) bytes: Box<[u8]>,
    pub(super) kind: Kind,
}

impl Token {
    pub(super) fn new(text: String, kind: Kind, spelling: Spelling) -> Token {
        let bytes = bytes(&text, kind, spelling).into_boxed_slice();
        Token {
            text: text.into_boxed_str(),
            bytes,
            kind,
        }
    }
}

fn bytes(text: &str, kind: Kind, spelling: Spelling) -> Vec<u8> {
    match (kind, spelling) {
        (Kind::Control | Kind::Unknown, _) => Vec::new(),
        (Kind::UserDefined, Spelling::ByteLevel) => text.as_bytes().to_vec(),
        (_, Spelling::ByteLevel) => {
            alphabet::bytes(text).unwrap_or_else(|| text.as_bytes().to_vec())
        }
        (_, Spelling::SentencePiece) => match spm::byte(text) {
            Some(byte) if kind == Kind::Byte => vec![byte],
            _ => text.replace('\u{2581}', " ").into_bytes(),
        },
        (_, Spelling::WordPiece { tidy }) => match text.strip_prefix("##") {
            Some(rest) => rest.as_bytes().to_vec(),
            None if tidy => tidied(&format!(" {text}")).into_bytes(),
            None => format!(" {text}").into_bytes(),
        },
        (_, Spelling::WordEnd) => text.replace("</w>", " ").into_bytes(),
        (_, Spelling::Words) => format!(" {text}").into_bytes(),
    }
}

/// Without the spaces that the `tokenizers` crate's WordPiece decoder takes out.
fn tidied(text: &str) -> String {
    let mut text = text.to_owned();
    for (from, to) in [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ] {
        text = text.replace(from, to);
    }
    text
}
