//! Encoding through the `tokenizers` crate: byte-level BPE, WordPiece and whatever else a
//! `tokenizer.json` asks for.

use tokenizers::tokenizer::OffsetType;
use tokenizers::{AddedVocabulary, Model, PreTokenizer};

/// A tokenizer of the crate, and its added tokens once more, without the special ones.
#[derive(Debug)]
pub(super) struct Pipeline {
    inner: tokenizers::Tokenizer,
    /// Recognises added tokens that are not special; special ones are text.
    plain: AddedVocabulary,
}

impl Pipeline {
    /// # Errors
    /// The crate's reason, when it cannot encode what it does not know (no token for unknowns).
    pub(super) fn new(mut inner: tokenizers::Tokenizer) -> tokenizers::Result<Pipeline> {
        // Training's limits do not bound what we encode.
        inner.with_truncation(None)?.with_padding(None);
        let mut plain = inner.get_added_vocabulary().clone();
        plain.set_encode_special_tokens(true);
        let pipeline = Pipeline { inner, plain };
        // What could fail later fails now: characters outside of every vocabulary.
        pipeline.pieces("a \u{1}\u{10fffe}é漢🙂\n", false)?;
        Ok(pipeline)
    }

    pub(super) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// Ids of a text, nothing put around it.
    pub(super) fn encode(&self, text: &str, parse_special: bool) -> Vec<u32> {
        // Splitting cannot fail, and that unknown characters have a token was tried in `new`.
        self.pieces(text, parse_special).unwrap_or_default()
    }

    fn pieces(&self, text: &str, parse_special: bool) -> tokenizers::Result<Vec<u32>> {
        let added = if parse_special {
            self.inner.get_added_vocabulary()
        } else {
            &self.plain
        };
        let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        let model = self.inner.get_model();
        pieces.tokenize(|piece| model.tokenize(piece.get()))?;
        Ok(pieces
            .into_encoding(None, 0, OffsetType::None)?
            .get_ids()
            .to_vec())
    }

    /// What the post-processor puts before and after a text.
    pub(super) fn around(&self) -> tokenizers::Result<(Vec<u32>, Vec<u32>)> {
        let encode = |special| self.inner.encode_fast("a", special);
        let (bare, whole) = (encode(false)?, encode(true)?);
        let (bare, whole) = (bare.get_ids(), whole.get_ids());
        let at = whole
            .windows(bare.len().max(1))
            .position(|window| window == bare);
        let Some(at) = at else {
            return Ok((Vec::new(), Vec::new()));
        };
        Ok((whole[..at].to_vec(), whole[at + bare.len()..].to_vec()))
    }
}
