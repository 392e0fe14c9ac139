//! Server-sent events, however the bytes are cut.

/// Collects bytes and yields the data of events.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// Of a line that has not ended.
    line: Vec<u8>,
    /// Lines of data of an event that has not ended.
    data: Option<String>,
}

impl Events {
    /// Takes bytes, and calls `each` with the data of every event that they end.
    pub(crate) fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
            if line.is_empty() {
                if let Some(data) = self.data.take() {
                    each(&data);
                }
            } else if let Some(value) = line.strip_prefix(b"data:") {
                let value = value.strip_prefix(b" ").unwrap_or(value);
                let value = String::from_utf8_lossy(value);
                match &mut self.data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(&value);
                    }
                    None => self.data = Some(value.into_owned()),
                }
            }
            // Comments and other fields say nothing here.
            self.line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let (mut events, mut found) = (Events::default(), Vec::new());
        for piece in pieces {
            events.push(piece, |data| found.push(data.to_owned()));
        }
        found
    }

    #[test]
    fn comments_and_other_fields_are_passed_over() {
        let stream = b": hello\n\nevent: x\r\ndata: {\"a\": 1}\r\nid: 3\r\n\r\ndata:b\ndata: c\n\n";
        assert_eq!(events(&[stream]), ["{\"a\": 1}", "b\nc"]);
        // What has not ended is no event.
        assert!(events(&[b"data: x\n"]).is_empty());
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(
            texts in prop::collection::vec("[a-zé日🙂 :{}\"]{0,12}", 0..6),
            cuts in prop::collection::vec(0usize..200, 0..8),
            crlf: bool,
        ) {
            let end = if crlf { "\r\n" } else { "\n" };
            let stream: String = texts.iter().map(|t| format!("data: {t}{end}{end}")).collect();
            let bytes = stream.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(events(&pieces), texts);
        }
    }
}
