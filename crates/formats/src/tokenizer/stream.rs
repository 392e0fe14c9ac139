//! Ids to text as they come.

use super::Tokenizer;

/// Turns ids into text as they come; never splits a UTF-8 character.
#[derive(Debug, Default, Clone)]
pub struct TextStream {
    /// The first bytes of a character whose rest has not come yet: at most three.
    pending: Vec<u8>,
    started: bool,
}

impl TextStream {
    /// The text that became complete with `id`; may be empty. Bytes that cannot be part of
    /// UTF-8 become U+FFFD. All that is pushed and then finished is the text of
    /// [`Tokenizer::decode`].
    ///
    /// Time is linear in the token's bytes.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        let mut bytes = tokenizer.bytes(id);
        if !self.started && !bytes.is_empty() {
            self.started = true;
            if tokenizer.drops_first_space() {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
        }
        if self.pending.is_empty() {
            return self.complete(bytes);
        }
        let mut joined = std::mem::take(&mut self.pending);
        joined.extend_from_slice(bytes);
        self.complete(&joined)
    }

    /// The complete characters of `bytes`; keeps the start of an incomplete last one.
    fn complete(&mut self, bytes: &[u8]) -> String {
        let mut text = String::with_capacity(bytes.len());
        let mut rest = bytes;
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    return text;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid)); // valid: borrowed, not replaced
                    match error.error_len() {
                        Some(len) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &after[len..];
                        }
                        None => {
                            self.pending = after.to_vec();
                            return text;
                        }
                    }
                }
            }
        }
    }

    /// What is left when the stream ends, incomplete characters as U+FFFD.
    pub fn finish(&mut self) -> String {
        self.started = false;
        let pending = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&pending).into_owned()
    }
}
