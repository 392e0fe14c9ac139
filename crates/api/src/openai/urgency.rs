//! How soon an answer is wanted: fields of Sedge's own, beside OpenAI's.

use std::time::Duration;

use super::fields::{Fields, wrong};
use crate::error::ApiError;

/// Priorities beyond this in either direction are refused.
const MOST: i64 = 1000;
/// Longest time that a caller can name, in seconds.
const LONGEST: f64 = 86_400.0;

/// How soon an answer is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Urgency {
    /// Lower is sooner.
    pub(crate) priority: i32,
    /// After this time nobody wants it any more.
    pub(crate) deadline: Option<Duration>,
}

impl Urgency {
    /// Takes `priority` and `timeout`.
    pub(crate) fn take(fields: &mut Fields) -> Result<Urgency, ApiError> {
        let priority = match fields.take("priority") {
            None => 0,
            Some(value) => value
                .as_i64()
                .filter(|priority| (-MOST..=MOST).contains(priority))
                .and_then(|priority| i32::try_from(priority).ok())
                .ok_or_else(|| {
                    let expected = format!("an integer from -{MOST} to {MOST}");
                    wrong(&fields.path("priority"), &expected, &value)
                })?,
        };
        let deadline = match fields.take("timeout") {
            None => None,
            Some(value) => Some(
                value
                    .as_f64()
                    .filter(|seconds| *seconds > 0.0 && *seconds <= LONGEST)
                    .map(Duration::from_secs_f64)
                    .ok_or_else(|| {
                        let expected = format!("a number of seconds above 0, at most {LONGEST}");
                        wrong(&fields.path("timeout"), &expected, &value)
                    })?,
            ),
        };
        Ok(Urgency { priority, deadline })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn take(value: Value) -> Result<Urgency, ApiError> {
        Urgency::take(&mut Fields::open("", value)?)
    }

    #[test]
    fn priorities_and_timeouts_are_read_and_errors_name_them() {
        let urgency = take(json!({"priority": -2, "timeout": 1.5})).unwrap();
        assert_eq!(urgency.priority, -2);
        assert_eq!(urgency.deadline, Some(Duration::from_millis(1500)));
        assert_eq!(take(json!({"priority": null})), Ok(Urgency::default()));
        for (field, value) in [
            ("priority", json!(1.5)),
            ("priority", json!(1001)),
            ("timeout", json!(0)),
            ("timeout", json!("1s")),
        ] {
            let error = take(json!({ field: value })).unwrap_err();
            assert!(matches!(error, ApiError::Invalid { param, .. } if param == field));
        }
    }
}
