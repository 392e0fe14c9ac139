//! Which requests can run at all.
//! What passes here never fails for its parameters later.

use sedge_kernels::PAGE_TOKENS;

use crate::{Goal, Request, Sampling, Shape, SubmitError};

/// Most alternatives beside a token's log-probability.
const MAX_TOP: usize = 100;

/// Most positions of a sequence: the model's context, or what all pages hold if that is less.
pub(crate) fn capacity(shape: &Shape) -> usize {
    if shape.bidirectional {
        shape.context
    } else {
        shape.context.min(shape.pages * PAGE_TOKENS)
    }
}

/// Checks everything but the constraint. `text` says whether there is a tokenizer.
/// `before` positions stand before the prompt.
pub(crate) fn check(
    request: &Request,
    shape: &Shape,
    text: bool,
    before: usize,
) -> Result<(), SubmitError> {
    let prompt = request.prompt.len();
    if prompt == 0 {
        return Err(SubmitError::Empty);
    }
    if request.member >= shape.members {
        let (member, members) = (request.member, shape.members);
        return Err(SubmitError::Member { member, members });
    }
    let generates = request.goal == Goal::Generate && request.max_tokens != Some(0);
    let context = capacity(shape).saturating_sub(before);
    if prompt + usize::from(generates) > context {
        return Err(SubmitError::TooLong { prompt, context });
    }
    let biased = request.sampling.logit_bias.iter().map(|b| b.0);
    if let Some(id) = request
        .prompt
        .iter()
        .copied()
        .chain(biased)
        .find(|&id| id as usize >= shape.vocab)
    {
        return Err(SubmitError::Token {
            id,
            vocab: shape.vocab,
        });
    }
    if request.goal == Goal::Embed {
        return Ok(());
    }
    if shape.bidirectional {
        return Err(SubmitError::Unsupported(
            "this model is an encoder: it makes embeddings and cannot generate",
        ));
    }
    if !text && request.constraint.is_some() {
        return Err(SubmitError::Unsupported(
            "a constraint needs a tokenizer, and this model has none",
        ));
    }
    if !text && !request.stop.is_empty() {
        return Err(SubmitError::Unsupported(
            "stop texts need a tokenizer, and this model has none",
        ));
    }
    if let Some(top) = request.logprobs.filter(|&top| top > MAX_TOP) {
        return Err(parameter("logprobs", top, "at most 100"));
    }
    if request.stop.iter().any(String::is_empty) {
        return Err(parameter("stop", "\"\"", "texts that are not empty"));
    }
    check_sampling(&request.sampling)
}

fn check_sampling(s: &Sampling) -> Result<(), SubmitError> {
    let finite = |x: f32| x.is_finite();
    let share = |x: f32| (0.0..=1.0).contains(&x);
    let rules: [(&'static str, f32, bool, &'static str); 6] = [
        (
            "temperature",
            s.temperature,
            finite(s.temperature) && s.temperature >= 0.0,
            "0 or more",
        ),
        ("top_p", s.top_p, share(s.top_p), "from 0 to 1"),
        ("min_p", s.min_p, share(s.min_p), "from 0 to 1"),
        (
            "presence_penalty",
            s.presence_penalty,
            finite(s.presence_penalty),
            "a finite number",
        ),
        (
            "frequency_penalty",
            s.frequency_penalty,
            finite(s.frequency_penalty),
            "a finite number",
        ),
        (
            "repetition_penalty",
            s.repetition_penalty,
            finite(s.repetition_penalty) && s.repetition_penalty > 0.0,
            "more than 0",
        ),
    ];
    if let Some((name, value, _, allowed)) = rules.into_iter().find(|rule| !rule.2) {
        return Err(parameter(name, value, allowed));
    }
    match s.logit_bias.iter().find(|(_, bias)| !bias.is_finite()) {
        Some((_, bias)) => Err(parameter("logit_bias", bias, "finite numbers")),
        None => Ok(()),
    }
}

fn parameter(name: &'static str, value: impl ToString, allowed: &'static str) -> SubmitError {
    SubmitError::Parameter {
        name,
        value: value.to_string(),
        allowed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        vocab: 10,
        hidden: 4,
        context: 100,
        pages: 3,
        bidirectional: false,
        pooling: sedge_models::config::Pooling::Mean,
        members: 1,
    };

    fn refused(request: Request) -> SubmitError {
        check(&request, &SHAPE, false, 0).unwrap_err()
    }

    fn with(sampling: Sampling) -> Request {
        Request {
            prompt: vec![1],
            sampling,
            ..Request::default()
        }
    }

    #[test]
    fn a_prompt_must_leave_room_for_an_answer() {
        let long = |n, max_tokens| Request {
            prompt: vec![1; n],
            max_tokens,
            ..Request::default()
        };
        assert_eq!(
            refused(long(48, None)),
            SubmitError::TooLong {
                prompt: 48,
                context: 48
            }
        );
        assert_eq!(check(&long(47, None), &SHAPE, false, 0), Ok(()));
        assert_eq!(check(&long(48, Some(0)), &SHAPE, false, 0), Ok(()));
        assert_eq!(
            check(
                &Request {
                    goal: Goal::Embed,
                    ..long(48, None)
                },
                &SHAPE,
                false,
                0
            ),
            Ok(())
        );
        assert_eq!(refused(long(0, None)), SubmitError::Empty);
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        let d = Sampling::default();
        let cases = [
            (
                "temperature",
                Sampling {
                    temperature: -0.1,
                    ..d.clone()
                },
            ),
            (
                "temperature",
                Sampling {
                    temperature: f32::NAN,
                    ..d.clone()
                },
            ),
            (
                "top_p",
                Sampling {
                    top_p: 1.5,
                    ..d.clone()
                },
            ),
            (
                "min_p",
                Sampling {
                    min_p: f32::NAN,
                    ..d.clone()
                },
            ),
            (
                "presence_penalty",
                Sampling {
                    presence_penalty: f32::INFINITY,
                    ..d.clone()
                },
            ),
            (
                "frequency_penalty",
                Sampling {
                    frequency_penalty: f32::NAN,
                    ..d.clone()
                },
            ),
            (
                "repetition_penalty",
                Sampling {
                    repetition_penalty: 0.0,
                    ..d.clone()
                },
            ),
            (
                "logit_bias",
                Sampling {
                    logit_bias: vec![(1, f32::INFINITY)],
                    ..d.clone()
                },
            ),
        ];
        for (expected, sampling) in cases {
            match refused(with(sampling)) {
                SubmitError::Parameter { name, .. } => assert_eq!(name, expected),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(
            refused(with(Sampling {
                logit_bias: vec![(10, 1.0)],
                ..d
            })),
            SubmitError::Token { id: 10, vocab: 10 }
        );
    }

    #[test]
    fn encoders_only_embed() {
        let shape = Shape {
            bidirectional: true,
            pages: 0,
            ..SHAPE
        };
        let request = with(Sampling::default());
        assert!(matches!(
            check(&request, &shape, true, 0),
            Err(SubmitError::Unsupported(_))
        ));
        assert_eq!(
            check(
                &Request {
                    goal: Goal::Embed,
                    ..request
                },
                &shape,
                true,
                0
            ),
            Ok(())
        );
    }
}
