//! SentencePiece's BPE: pairs merge in the order of the merged token's score, and what has no
//! token is spelt in bytes (Kudo and Richardson, 2018, arXiv:1808.06226).

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};

use aho_corasick::{AhoCorasick, MatchKind};

use super::vocabulary::Kind;

/// A space inside a token.
const SPACE: &str = "\u{2581}";

/// A vocabulary with scores.
#[derive(Debug)]
pub(super) struct Spm {
    /// Every token by its text.
    ids: HashMap<Box<str>, u32>,
    scores: Vec<f32>,
    kinds: Vec<Kind>,
    bytes: [Option<u32>; 256],
    unknown: Option<u32>,
    longest: usize,
    settings: Settings,
    /// Tokens that are found before anything merges: user-defined ones, and with control ones.
    plain: Finder,
    special: Finder,
}

/// What a file says beside its tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    /// Text begins with a space, as after a special token.
    pub(super) space_prefix: bool,
    /// Runs of spaces become one, and those around the text go.
    pub(super) single_spaces: bool,
    /// White space after a control token belongs to it.
    pub(super) strip_after_control: bool,
}

/// Finds whole tokens in a text, the leftmost first, of those the longest.
#[derive(Debug)]
struct Finder {
    automaton: Option<AhoCorasick>,
    ids: Vec<u32>,
}

impl Finder {
    fn new(tokens: Vec<(String, u32)>) -> Result<Finder, aho_corasick::BuildError> {
        let tokens: Vec<_> = tokens
            .into_iter()
            .filter(|(text, _)| !text.is_empty())
            .collect();
        let automaton = match tokens.is_empty() {
            true => None,
            false => Some(
                AhoCorasick::builder()
                    .match_kind(MatchKind::LeftmostLongest)
                    .build(tokens.iter().map(|(text, _)| text))?,
            ),
        };
        Ok(Finder {
            automaton,
            ids: tokens.into_iter().map(|(_, id)| id).collect(),
        })
    }
}

/// A piece of the text, in a list of those that are left.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    /// 0: merged into the one before.
    len: usize,
    before: usize,
    after: usize,
}

const NONE: usize = usize::MAX;

/// A pair that may merge: the best score first, of equal ones the leftmost.
#[derive(PartialEq)]
struct Pair {
    score: f32,
    left: Reverse<usize>,
    right: usize,
    len: usize,
}

impl Eq for Pair {}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Pair) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pair {
    fn cmp(&self, other: &Pair) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then(self.left.cmp(&other.left))
    }
}

impl Spm {
    /// `tokens`, `scores` and `kinds` have one entry an id.
    ///
    /// # Errors
    /// When the tokens to find are too many or too long.
    pub(super) fn new(
        tokens: &[String],
        scores: Vec<f32>,
        kinds: Vec<Kind>,
        unknown: Option<u32>,
        settings: Settings,
    ) -> Result<Spm, aho_corasick::BuildError> {
        let mut ids = HashMap::with_capacity(tokens.len());
        let mut bytes = [None; 256];
        let (mut plain, mut special) = (Vec::new(), Vec::new());
        let mut longest = 0;
        for (id, (text, kind)) in tokens.iter().zip(&kinds).enumerate() {
            let id = id as u32;
            ids.entry(text.as_str().into()).or_insert(id);
            match kind {
                Kind::Byte => {
                    if let Some(byte) = byte(text) {
                        bytes[usize::from(byte)] = Some(id);
                    }
                }
                Kind::UserDefined => {
                    plain.push((text.replace(SPACE, " "), id));
                    special.push((text.replace(SPACE, " "), id));
                }
                Kind::Control | Kind::Unknown => special.push((text.clone(), id)),
                Kind::Normal | Kind::Unused => longest = longest.max(text.len()),
            }
        }
        let (plain, special) = (Finder::new(plain)?, Finder::new(special)?);
        Ok(Spm {
            ids,
            scores,
            kinds,
            bytes,
            unknown,
            longest,
            settings,
            plain,
            special,
        })
    }

    /// The id of a token as the vocabulary writes it.
    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// Ids of a text, nothing put around it.
    pub(super) fn encode(&self, text: &str, parse_special: bool) -> Vec<u32> {
        let finder = if parse_special {
            &self.special
        } else {
            &self.plain
        };
        let single_spaced;
        let text = if self.settings.single_spaces {
            single_spaced = text
                .split(' ')
                .filter(|word| !word.is_empty())
                .collect::<Vec<_>>()
                .join(" ");
            &single_spaced
        } else {
            text
        };
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        let mut at = 0;
        let mut prefix = self.settings.space_prefix;
        if let Some(automaton) = &finder.automaton {
            for found in automaton.find_iter(text) {
                if found.start() < at {
                    continue; // inside white space that a control token took
                }
                let id = finder.ids[found.pattern().as_usize()];
                self.merge(&text[at..found.start()], prefix, &mut ids);
                ids.push(id);
                at = found.end();
                if self.settings.strip_after_control && self.kinds[id as usize] == Kind::Control {
                    at = text.len() - text[at..].trim_start().len();
                }
                prefix = self.settings.space_prefix;
            }
        }
        self.merge(&text[at..], prefix, &mut ids);
        ids
    }

    /// A token that pairs can merge into.
    fn mergeable(&self, text: &str) -> Option<u32> {
        if text.len() > self.longest {
            return None;
        }
        let id = *self.ids.get(text)?;
        matches!(
            self.kinds[id as usize],
            Kind::Normal | Kind::Unused | Kind::UserDefined
        )
        .then_some(id)
    }

    /// Appends the ids of a text without special tokens. Time is n log n in its characters.
    fn merge(&self, text: &str, prefix: bool, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let mut spelt = String::with_capacity(text.len() + text.len() / 2 + SPACE.len());
        if prefix {
            spelt.push_str(SPACE);
        }
        for c in text.chars() {
            if c == ' ' {
                spelt.push_str(SPACE)
            } else {
                spelt.push(c)
            }
        }
        let text = spelt.as_str();

        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                before: i.wrapping_sub(1), // of the first: NONE
                after: i + 1,
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.after = NONE;
        }

        let mut queue = BinaryHeap::new();
        // Where a token that may not be put out came from: the length of its left part.
        let mut unused: HashMap<&str, usize> = HashMap::new();
        let mut offer =
            |symbols: &[Symbol], queue: &mut BinaryHeap<Pair>, left: usize, right: usize| {
                if left == NONE || right == NONE {
                    return;
                }
                let (l, r) = (symbols[left], symbols[right]);
                let joined = &text[l.start..r.start + r.len];
                if let Some(id) = self.mergeable(joined) {
                    if self.kinds[id as usize] == Kind::Unused {
                        unused.insert(joined, l.len);
                    }
                    let score = self.scores[id as usize];
                    queue.push(Pair {
                        score,
                        left: Reverse(left),
                        right,
                        len: joined.len(),
                    });
                }
            };
        for left in 0..symbols.len() - 1 {
            offer(&symbols, &mut queue, left, left + 1);
        }
        while let Some(pair) = queue.pop() {
            let (left, right) = (pair.left.0, pair.right);
            let (l, r) = (symbols[left], symbols[right]);
            if l.len == 0 || r.len == 0 || l.len + r.len != pair.len {
                continue; // one of them has merged since
            }
            symbols[left].len = pair.len;
            symbols[left].after = r.after;
            symbols[right].len = 0;
            if r.after != NONE {
                symbols[r.after].before = left;
            }
            offer(&symbols, &mut queue, l.before, left);
            offer(&symbols, &mut queue, left, r.after);
        }

        let mut parts = Vec::new();
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            parts.push(&text[symbol.start..symbol.start + symbol.len]);
            while let Some(part) = parts.pop() {
                match self.mergeable(part) {
                    Some(id) if self.kinds[id as usize] != Kind::Unused => ids.push(id),
                    _ => match unused.get(part) {
                        Some(&left) => parts.extend([&part[left..], &part[..left]]),
                        None => self.spell(part, ids),
                    },
                }
            }
        }
    }

    fn spell(&self, part: &str, ids: &mut Vec<u32>) {
        let bytes: Option<Vec<u32>> = part
            .bytes()
            .map(|byte| self.bytes[usize::from(byte)])
            .collect();
        match bytes {
            Some(bytes) => ids.extend(bytes),
            None => ids.extend(self.unknown),
        }
    }
}

/// The byte that a token `<0x0A>` names.
pub(super) fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}
