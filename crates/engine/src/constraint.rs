//! Answers that must be in a language: JSON, a schema, a grammar, a regular expression.
//! A token that the language does not allow next is never chosen.

use std::fmt;
use std::sync::{Arc, OnceLock};

use llguidance::api::{ParserLimits, StopReason, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use sedge_formats::tokenizer::Tokenizer;
use toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokRxInfo, TokTrie};

use crate::{Constraint, SubmitError};

/// Longest source of a constraint, in bytes.
const MAX_SOURCE: usize = 1 << 20;

/// Longest token that the trie takes, in bytes: its nodes count at most 1024 ancestors.
const MAX_TOKEN: usize = 1000;

/// Compiles constraints for one vocabulary.
pub(crate) struct Grammars {
    vocabulary: Vocabulary,
    /// Made at the first constraint: takes a fraction of a second for a large vocabulary.
    factory: OnceLock<Result<ParserFactory, String>>,
}

/// What a grammar must know of the tokens.
pub(crate) enum Vocabulary {
    /// Of a model with this many logits in a row.
    Model(Arc<Tokenizer>, usize),
    /// Given: each token's bytes (none for one that is never chosen) and those that end a text.
    #[cfg(test)]
    Words(Vec<Vec<u8>>, Vec<u32>),
}

impl Grammars {
    pub(crate) fn new(vocabulary: Vocabulary) -> Grammars {
        Grammars {
            vocabulary,
            factory: OnceLock::new(),
        }
    }

    /// Compiles a constraint; the work is bounded by limits on the source, the grammar and the lexer.
    pub(crate) fn compile(&self, constraint: &Constraint) -> Result<Grammar, SubmitError> {
        let refuse = |why: String| SubmitError::Constraint(why);
        let factory = self
            .factory
            .get_or_init(|| self.vocabulary.factory())
            .as_ref()
            .map_err(|e| refuse(e.clone()))?;
        let source = match constraint {
            Constraint::JsonObject => 0,
            Constraint::JsonSchema(schema) => schema.to_string().len(),
            Constraint::Lark(text) | Constraint::Regex(text) => text.len(),
        };
        if source > MAX_SOURCE {
            return Err(refuse(format!(
                "it has {source} bytes; at most {MAX_SOURCE} are allowed"
            )));
        }
        let grammar = match constraint {
            Constraint::JsonObject => json(&serde_json::json!({ "type": "object" })),
            Constraint::JsonSchema(schema) => json(schema),
            Constraint::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
            Constraint::Regex(text) => TopLevelGrammar::from_regex(text),
        };
        let mut matcher = Matcher::new(factory.create_parser(grammar));
        match matcher.get_error() {
            Some(why) => Err(refuse(first_paragraph(&why))),
            // Some errors show only when the first mask is computed.
            None => match matcher.compute_mask() {
                Ok(_) => Ok(Grammar { matcher }),
                Err(why) => Err(refuse(first_paragraph(&why.to_string()))),
            },
        }
    }
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars")
            .field("ready", &self.factory.get().is_some())
            .finish()
    }
}

impl Vocabulary {
    fn factory(&self) -> Result<ParserFactory, String> {
        let (words, ends) = match self {
            Vocabulary::Model(tokenizer, logits) => words(tokenizer, *logits),
            #[cfg(test)]
            Vocabulary::Words(words, ends) => (words.clone(), ends.clone()),
        };
        let size =
            u32::try_from(words.len()).map_err(|_| "the vocabulary is too large".to_string())?;
        let info = TokRxInfo::new(size, ends.first().copied().unwrap_or(INVALID_TOKEN));
        let mut trie = TokTrie::from(&info, &words);
        if !ends.is_empty() {
            trie = trie.with_eos_tokens(&ends);
        }
        let env: toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(|e| e.to_string())?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(factory)
    }
}

/// White space between the parts of JSON: a blank, or a line end and an indentation. Without a
/// bound a weak model may write nothing else until its tokens are used up.
const JSON_SPACE: &str = r"[ \t]|\r?\n[ \t]{0,32}";

/// The language of a schema; `x-guidance`, llguidance's own options, may stand in it.
fn json(schema: &serde_json::Value) -> TopLevelGrammar {
    let mut schema = schema.clone();
    if let Some(map) = schema.as_object_mut() {
        map.entry("x-guidance")
            .or_insert_with(|| serde_json::json!({ "whitespace_pattern": JSON_SPACE }));
    }
    TopLevelGrammar::from_json_schema(schema)
}

/// Each token's bytes as the trie wants them, one for each logit, and the ids that end a text.
/// Control tokens begin with a byte that no text has, so that no text is spelled with them.
fn words(tokenizer: &Tokenizer, logits: usize) -> (Vec<Vec<u8>>, Vec<u32>) {
    let ends: Vec<u32> = tokenizer
        .eos()
        .iter()
        .copied()
        .filter(|&id| (id as usize) < logits)
        .collect();
    let word = |id: u32| {
        if tokenizer.is_special(id) || ends.contains(&id) {
            let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
            word.extend_from_slice(tokenizer.token(id).unwrap_or_default().as_bytes());
            word
        } else {
            tokenizer.bytes(id).to_vec()
        }
    };
    let known = tokenizer.len().min(logits);
    let mut words: Vec<Vec<u8>> = (0u32..).take(known).map(word).collect();
    words
        .iter_mut()
        .filter(|w| w.len() > MAX_TOKEN)
        .for_each(Vec::clear);
    words.resize(logits, Vec::new());
    (words, ends)
}

/// The message without the state dump that may follow it.
fn first_paragraph(message: &str) -> String {
    let end = ["\n<state>", "\n<non-verbose", "\n<backtrace>"]
        .iter()
        .filter_map(|m| message.find(m))
        .min();
    message[..end.unwrap_or(message.len())]
        .trim_end()
        .to_string()
}

/// One answer's place in its language.
pub(crate) struct Grammar {
    matcher: Matcher,
}

impl Grammar {
    /// Rules out (−∞) every token that may not come next. End tokens are allowed where the
    /// answer may end.
    ///
    /// # Errors
    /// When no token can continue, or the grammar takes too much work here; the text says which.
    pub(crate) fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let allowed =
            self.matcher
                .compute_mask_or_eos()
                .map_err(|e| match self.matcher.stop_reason() {
                    StopReason::NoExtensionBias => {
                        "no token of the vocabulary continues the constrained answer".to_string()
                    }
                    _ => first_paragraph(&e.to_string()),
                })?;
        let mut blocks = logits.chunks_mut(u32::BITS as usize);
        for (&bits, block) in allowed.as_slice().iter().zip(&mut blocks) {
            match bits {
                u32::MAX => {}
                0 => block.fill(f32::NEG_INFINITY),
                _ => {
                    for (i, logit) in block.iter_mut().enumerate() {
                        if bits >> i & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
        blocks.for_each(|beyond| beyond.fill(f32::NEG_INFINITY));
        Ok(())
    }

    /// Goes on by a token that the mask allowed.
    ///
    /// # Errors
    /// When the grammar takes too much work here.
    pub(crate) fn advance(&mut self, token: u32) -> Result<(), String> {
        self.matcher
            .consume_token(token)
            .map_err(|e| first_paragraph(&e.to_string()))
    }

    /// The answer is in the language and nothing can be added.
    pub(crate) fn complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar")
            .field("complete", &self.complete())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use serde::de::IgnoredAny;
    use serde_json::{Value, json};

    use super::*;
    use crate::rng::Rng;

    /// Single bytes, a few longer tokens, and one that ends the text.
    fn grammars() -> (Grammars, Vec<Vec<u8>>, u32) {
        let mut words: Vec<Vec<u8>> = (0..=255u8).map(|b| vec![b]).collect();
        words.extend(
            [
                "{\"", "\":", "true", "name", "age", "12", "\"}", "  ", "é", "\", \"",
            ]
            .map(|w| w.into()),
        );
        let end = words.len() as u32;
        words.push(b"\xff<end>".to_vec());
        words.push(Vec::new());
        (
            Grammars::new(Vocabulary::Words(words.clone(), vec![end])),
            words,
            end,
        )
    }

    /// A model without any sense: every token that is allowed is as likely, printable ones more.
    fn babble(
        grammar: &mut Grammar,
        words: &[Vec<u8>],
        end: u32,
        seed: u64,
        most: usize,
    ) -> Option<Vec<u8>> {
        let mut rng = Rng::new(seed);
        let mut text = Vec::new();
        for _ in 0..most {
            if grammar.complete() {
                return Some(text);
            }
            let mut logits = vec![0.0; words.len() + 40];
            grammar.mask(&mut logits).unwrap();
            let allowed: Vec<usize> = (0..logits.len()).filter(|&i| logits[i] == 0.0).collect();
            let token = allowed[(rng.unit() * allowed.len() as f64) as usize];
            if token == end as usize {
                return Some(text);
            }
            grammar.advance(token as u32).unwrap();
            text.extend_from_slice(&words[token]);
        }
        None
    }

    fn answers(constraint: Constraint) -> Vec<String> {
        let (grammars, words, end) = grammars();
        let answers: Vec<String> = (0..40)
            .filter_map(|seed| {
                babble(
                    &mut grammars.compile(&constraint).unwrap(),
                    &words,
                    end,
                    seed,
                    400,
                )
            })
            .map(|bytes| String::from_utf8(bytes).unwrap())
            .collect();
        assert!(
            answers.len() > 10,
            "only {} of 40 answers ended",
            answers.len()
        );
        answers
    }

    #[test]
    fn every_json_object_parses() {
        for text in answers(Constraint::JsonObject) {
            // Not read into numbers: JSON allows those that no double holds.
            assert!(serde_json::from_str::<IgnoredAny>(&text).is_ok(), "{text}");
            assert!(text.trim_start().starts_with('{'), "{text}");
        }
    }

    #[test]
    fn every_answer_follows_its_schema() {
        let schema = json!({
            "type": "object",
            "properties": { "name": { "$ref": "#/$defs/short" }, "age": { "type": "integer", "minimum": 0, "maximum": 150 } },
            "required": ["name", "age"],
            "additionalProperties": false,
            "$defs": { "short": { "type": "string", "maxLength": 5 } },
        });
        for text in answers(Constraint::JsonSchema(schema)) {
            let value: Value = serde_json::from_str(&text).unwrap();
            let object = value.as_object().unwrap();
            assert_eq!(object.len(), 2, "{text}");
            assert!(
                object["name"]
                    .as_str()
                    .is_some_and(|s| s.chars().count() <= 5),
                "{text}"
            );
            assert!(object["age"].as_u64().is_some_and(|n| n <= 150), "{text}");
        }
    }

    #[test]
    fn every_answer_matches_its_expression_or_grammar() {
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        for text in answers(Constraint::Regex("[0-9]{2,4}/[0-9]{1,3}".into())) {
            let (a, b) = text.split_once('/').unwrap();
            assert!(
                digits(a) && digits(b) && (2..=4).contains(&a.len()) && b.len() <= 3,
                "{text}"
            );
        }
        for text in answers(Constraint::Lark(
            "start: \"yes\" | \"no\" (\" \" /[a-z]{3}/)?".into(),
        )) {
            assert!(text == "yes" || text == "no" || text.len() == 6, "{text}");
        }
    }

    #[test]
    fn a_bad_constraint_is_refused_with_a_reason() {
        let (grammars, ..) = grammars();
        let bad = [
            Constraint::Regex("[0-9".into()),
            Constraint::Lark("start: missing".into()),
            Constraint::Lark(String::new()),
            Constraint::JsonSchema(json!({ "type": "colour" })),
            Constraint::JsonSchema(json!({ "$ref": "https://example.org/a.json" })),
            Constraint::JsonSchema(json!(false)),
            Constraint::Regex("x".repeat(MAX_SOURCE + 1)),
        ];
        for constraint in bad {
            match grammars.compile(&constraint) {
                Err(SubmitError::Constraint(why)) => {
                    assert!(!why.is_empty() && why.len() < 2000, "{why}")
                }
                other => panic!("{constraint:?} gave {other:?}"),
            }
        }
    }
}
