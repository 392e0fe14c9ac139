//! What another program measured: the output of llama-bench and llama-batched-bench.

use serde_json::Value;

use crate::speed::Task;

/// One figure of a peer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PeerFigure {
    /// What was timed.
    pub task: Task,
    /// Tokens in a second, of all sequences together.
    pub rate: f64,
}

/// Why a peer's output is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// There is no figure in it.
    #[error(
        "the peer printed no figures; llama-bench wants -o json, llama-batched-bench --output-format jsonl"
    )]
    Empty,
}

/// Reads llama-bench's `-o json` (an array), its `-o jsonl`, or llama-batched-bench's
/// `--output-format jsonl`; lines that are something else are passed over.
///
/// # Errors
/// When there are no figures.
pub fn read_peer(output: &str) -> Result<Vec<PeerFigure>, PeerError> {
    let array = output.find('[').map(|start| &output[start..]);
    let whole = array.and_then(|text| {
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<Vec<Value>>();
        values.next()?.ok()
    });
    let objects = whole.unwrap_or_else(|| {
        let lines = output.lines();
        lines
            .filter_map(|l| serde_json::from_str(l.trim()).ok())
            .collect()
    });
    let figures: Vec<_> = objects.iter().flat_map(figures).collect();
    match figures.is_empty() {
        true => Err(PeerError::Empty),
        false => Ok(figures),
    }
}

fn figures(object: &Value) -> Vec<PeerFigure> {
    let size = |key: &str| object.get(key).and_then(Value::as_u64).map(|v| v as usize);
    let number = |key: &str| object.get(key).and_then(Value::as_f64);
    let mut out = Vec::new();
    let mut put = |task: Task, rate: Option<f64>| {
        if let (Some(rate), true) = (rate, task.tokens() > 0) {
            out.push(PeerFigure { task, rate });
        }
    };
    if let (Some(prompt), Some(generated)) = (size("n_prompt"), size("n_gen")) {
        let (depth, rate) = (size("n_depth").unwrap_or(0), number("avg_ts"));
        let (tokens, batch) = (generated, 1);
        match (prompt, generated) {
            (tokens, 0) => put(Task::Prompt { tokens, depth }, rate),
            (0, _) => put(
                Task::Generate {
                    tokens,
                    depth,
                    batch,
                },
                rate,
            ),
            _ => {} // both at once: nothing that is measured here
        }
    } else if let (Some(depth), Some(tokens), Some(batch)) = (size("pp"), size("tg"), size("pl")) {
        put(
            Task::Prompt {
                tokens: depth,
                depth: 0,
            },
            number("speed_pp"),
        );
        put(
            Task::Generate {
                tokens,
                depth,
                batch,
            },
            number("speed_tg"),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_benchs_array_is_read() {
        let output = r#"load_backend: something
[
  { "n_prompt": 512, "n_gen": 0, "n_depth": 0, "avg_ts": 123.5, "samples_ts": [ 123.5 ] },
  { "n_prompt": 0, "n_gen": 128, "n_depth": 8192, "avg_ts": 4.5 },
  { "n_prompt": 512, "n_gen": 128, "n_depth": 0, "avg_ts": 50.0 }
]
"#;
        let figures = read_peer(output).unwrap();
        assert_eq!(
            figures,
            [
                PeerFigure {
                    task: Task::Prompt {
                        tokens: 512,
                        depth: 0
                    },
                    rate: 123.5
                },
                PeerFigure {
                    task: Task::Generate {
                        tokens: 128,
                        depth: 8192,
                        batch: 1
                    },
                    rate: 4.5
                },
            ]
        );
    }

    #[test]
    fn llama_batched_benchs_lines_are_read() {
        let output = "main: x\n{\"pp\": 128, \"tg\": 64, \"pl\": 16, \"speed_pp\": 200.0, \"speed_tg\": 90.0}\n";
        let figures = read_peer(output).unwrap();
        assert_eq!(
            figures[1].task,
            Task::Generate {
                tokens: 64,
                depth: 128,
                batch: 16
            }
        );
        assert_eq!((figures[0].rate, figures[1].rate), (200.0, 90.0));
    }

    #[test]
    fn no_figures_are_an_error() {
        assert_eq!(read_peer("| model | size |\n"), Err(PeerError::Empty));
        assert_eq!(read_peer("[1, 2]"), Err(PeerError::Empty));
    }
}
