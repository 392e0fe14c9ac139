//! Stop texts across token borders.
//! What is released never has to be taken back, and does not depend on how the text was cut.

/// Finds the stop text that is complete first; of those complete at once, the longest.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopTexts {
    stops: Vec<String>,
    /// The end of the text so far that may be the beginning of a stop text.
    held: String,
}

impl StopTexts {
    /// Empty texts would stop everything and are left out.
    pub(crate) fn new(mut stops: Vec<String>) -> StopTexts {
        stops.retain(|s| !s.is_empty());
        StopTexts {
            stops,
            held: String::new(),
        }
    }

    /// Adds text. Returns what is certain to be before any stop text, and whether one came.
    pub(crate) fn push(&mut self, text: String) -> (String, bool) {
        if self.stops.is_empty() {
            return (text, false);
        }
        self.held.push_str(&text);
        let found = self
            .stops
            .iter()
            .filter_map(|s| self.held.find(s).map(|at| (at + s.len(), at)))
            .min();
        if let Some((_, at)) = found {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let open = self
            .stops
            .iter()
            .map(|s| open_prefix(&self.held, s))
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - open);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What is held back when no more text comes.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` with which `stop` begins, less than all of `stop`.
fn open_prefix(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest)
        .rev()
        .find(|&n| text.as_bytes().ends_with(&stop.as_bytes()[..n]))
        .unwrap_or(0)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Tries every beginning of the text, shortest first.
    pub(crate) fn naive(text: &str, stops: &[String]) -> (String, bool) {
        for end in (0..=text.len()).filter(|&i| text.is_char_boundary(i)) {
            let longest = stops
                .iter()
                .filter(|s| text[..end].ends_with(s.as_str()))
                .map(|s| s.len())
                .max();
            if let Some(len) = longest {
                return (text[..end - len].to_string(), true);
            }
        }
        (text.to_string(), false)
    }

    #[test]
    fn a_possible_stop_text_is_held_back_and_then_released() {
        let mut stops = StopTexts::new(vec!["</s>".into()]);
        assert_eq!(stops.push("a <".into()), ("a ".into(), false));
        assert_eq!(stops.push("/".into()), (String::new(), false));
        assert_eq!(stops.push("p".into()), ("</p".into(), false));
        assert_eq!(stops.push("</s".into()), (String::new(), false));
        assert_eq!(stops.push("> b".into()), (String::new(), true));
        assert_eq!(stops.finish(), "");
    }

    proptest! {
        #[test]
        fn pieces_give_what_the_whole_text_gives(
            pieces in prop::collection::vec("[abé日]{0,3}", 0..20),
            stops in prop::collection::vec("[abé日]{1,4}", 0..4),
        ) {
            let mut filter = StopTexts::new(stops.clone());
            let (mut out, mut stopped) = (String::new(), false);
            for piece in &pieces {
                let (text, stop) = filter.push(piece.clone());
                out.push_str(&text);
                stopped = stop;
                if stopped {
                    break;
                }
            }
            out.push_str(&filter.finish());
            prop_assert_eq!((out, stopped), naive(&pieces.concat(), &stops));
        }
    }
}
