//! Traces of real requests: when they came, and how long prompts and answers were.

use std::time::Duration;

/// A request of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Since the first row; `None` where the trace has lengths only.
    pub at: Option<Duration>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub output_tokens: usize,
}

/// Rows in order of time; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    rows: Vec<Row>,
}

/// Why a text is no trace.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// The header is another.
    #[error("line 1 is not TIMESTAMP,ContextTokens,GeneratedTokens")]
    Header,
    /// A line has not three fields.
    #[error("line {line} has {found} fields, not 3")]
    Fields {
        /// From 1.
        line: usize,
        /// Fields that it has.
        found: usize,
    },
    /// A number of tokens is no number.
    #[error("line {line}: {text:?} is no number of tokens")]
    Number {
        /// From 1.
        line: usize,
        /// What is there.
        text: String,
    },
    /// A timestamp is neither a time nor `XXX`.
    #[error("line {line}: {text:?} is neither a time such as 2023-11-16 18:17:03.97 nor XXX")]
    Time {
        /// From 1.
        line: usize,
        /// What is there.
        text: String,
    },
    /// Time runs backwards.
    #[error("line {line} is earlier than the line before")]
    Order {
        /// From 1.
        line: usize,
    },
    /// Some lines have times and others have not.
    #[error("line {line} has no time as the line before, or alone has one")]
    Mixed {
        /// From 1.
        line: usize,
    },
    /// There is no row.
    #[error("the trace has no row")]
    Empty,
}

impl Trace {
    /// Reads the CSV of the Azure LLM inference traces: `TIMESTAMP,ContextTokens,GeneratedTokens`.
    pub fn parse(text: &str) -> Result<Trace, TraceError> {
        let mut rows: Vec<Row> = Vec::new();
        let mut first = None;
        for (i, content) in text.lines().enumerate() {
            let (line, content) = (i + 1, content.trim());
            let fields: Vec<&str> = content.split(',').map(str::trim).collect();
            if i == 0 {
                if fields != ["TIMESTAMP", "ContextTokens", "GeneratedTokens"] {
                    return Err(TraceError::Header);
                }
                continue;
            }
            if content.is_empty() {
                continue;
            }
            let [time, prompt, output] = fields[..] else {
                let found = fields.len();
                return Err(TraceError::Fields { line, found });
            };
            let number = |text: &str| {
                let wrong = |_| TraceError::Number {
                    line,
                    text: text.to_owned(),
                };
                text.parse::<usize>().map_err(wrong)
            };
            let at = match time {
                "XXX" => None,
                _ => {
                    let time = epoch(time).ok_or_else(|| TraceError::Time {
                        line,
                        text: time.to_owned(),
                    })?;
                    let start = *first.get_or_insert(time);
                    let at = time.checked_sub(start);
                    Some(at.ok_or(TraceError::Order { line })?)
                }
            };
            if let Some(last) = rows.last() {
                if last.at.is_some() != at.is_some() {
                    return Err(TraceError::Mixed { line });
                }
                if at < last.at {
                    return Err(TraceError::Order { line });
                }
            }
            rows.push(Row {
                at,
                prompt_tokens: number(prompt)?,
                output_tokens: number(output)?,
            });
        }
        match rows.is_empty() {
            true => Err(TraceError::Empty),
            false => Ok(Trace { rows }),
        }
    }

    /// The rows, in order of time.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }
}

/// `2023-11-16 18:17:03.9799600` as a time since 1970.
fn epoch(text: &str) -> Option<Duration> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let mut date = date.splitn(3, '-').map(str::parse::<u64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let mut time = time.trim_end_matches('Z').splitn(3, ':');
    let hours: u64 = time.next()?.parse().ok()?;
    let minutes: u64 = time.next()?.parse().ok()?;
    let seconds: f64 = time.next()?.parse().ok()?;
    let valid = (1970..3000).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hours < 24
        && minutes < 60
        && (0.0..61.0).contains(&seconds);
    if !valid {
        return None;
    }
    // Days of the civil calendar, in years that begin in March.
    let (y, m) = match month {
        1 | 2 => (year - 1, month + 9),
        _ => (year, month - 3),
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let whole = Duration::from_secs(days * 86_400 + hours * 3600 + minutes * 60);
    Some(whole + Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\n";

    #[test]
    fn times_are_since_the_first_row() {
        let text = format!(
            "{HEAD}2023-11-30 23:59:59.9799600,4808,10\n2023-12-01 00:00:00.0319600,3180,8\r\n"
        );
        let trace = Trace::parse(&text).unwrap();
        let row = |at, prompt_tokens, output_tokens| Row {
            at: Some(Duration::from_millis(at)),
            prompt_tokens,
            output_tokens,
        };
        let rounded = |r: &Row| Row {
            at: r.at.map(|d| Duration::from_millis(d.as_millis() as u64)),
            ..*r
        };
        let rows: Vec<Row> = trace.rows().iter().map(rounded).collect();
        assert_eq!(rows, [row(0, 4808, 10), row(52, 3180, 8)]);
        assert_eq!(
            epoch("1970-01-01 00:00:01").unwrap(),
            Duration::from_secs(1)
        );
        assert_eq!(
            epoch("2024-02-29 12:00:00").unwrap().as_secs(),
            1_709_208_000
        );
    }

    #[test]
    fn a_trace_may_have_lengths_only() {
        let trace = Trace::parse(&format!("{HEAD}XXX,107,15\nXXX,396,513\n")).unwrap();
        assert_eq!(trace.rows().len(), 2);
        assert_eq!(
            (trace.rows()[1].at, trace.rows()[1].output_tokens),
            (None, 513)
        );
    }

    #[test]
    fn errors_name_the_line() {
        let of = |rows: &str| Trace::parse(&format!("{HEAD}{rows}")).unwrap_err();
        assert_eq!(Trace::parse("a,b\n"), Err(TraceError::Header));
        assert_eq!(of(""), TraceError::Empty);
        assert_eq!(
            of("XXX,1,1\nXXX,2\n"),
            TraceError::Fields { line: 3, found: 2 }
        );
        for (rows, text) in [
            ("XXX,-1,1", "line 2: \"-1\" is no number of tokens"),
            (
                "2023-13-01 00:00:00,1,1",
                "line 2: \"2023-13-01 00:00:00\" is neither",
            ),
            (
                "2023-11-16 10:00:01,1,1\n2023-11-16 10:00:00,1,1",
                "line 3 is earlier",
            ),
            ("XXX,1,1\n2023-11-16 10:00:00,1,1", "line 3 has no time"),
        ] {
            let error = of(rows).to_string();
            assert!(error.starts_with(text), "{error}");
        }
    }
}
