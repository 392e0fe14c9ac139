//! What a server says of itself while it works, from its Prometheus metrics.

use super::client::Target;

/// A look at a server; `None` for what it does not say.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sample {
    /// Seconds since the start of the run.
    pub at: f64,
    /// Requests that run.
    pub running: Option<f64>,
    /// Requests that wait.
    pub waiting: Option<f64>,
    /// Pages of keys and values in use.
    pub pages_used: Option<f64>,
    /// Pages that there are.
    pub pages: Option<f64>,
    /// Tokens of prompts computed so far.
    pub prompt_tokens: Option<f64>,
    /// Tokens generated so far.
    pub generated_tokens: Option<f64>,
}

impl Sample {
    /// Looks at the server; `None` if it has no metrics.
    pub(crate) async fn take(target: &Target, at: f64) -> Option<Sample> {
        let (status, text) = target.get("/metrics").await.ok()?;
        (status == 200).then(|| Sample::parse(&text, at))
    }

    /// Reads the text format, for the names of Sedge, llama-server and vLLM; values that differ
    /// in labels only are added.
    fn parse(text: &str, at: f64) -> Sample {
        let of = |names: &[&str]| {
            let mut sum = None;
            for line in text.lines().filter(|l| !l.starts_with('#')) {
                let end = line.find(['{', ' ']).unwrap_or(line.len());
                if !names.contains(&&line[..end]) {
                    continue;
                }
                let rest = line.rsplit_once('}').map_or(&line[end..], |(_, r)| r);
                let value = rest.split_whitespace().next();
                if let Some(value) = value.and_then(|v| v.parse::<f64>().ok()) {
                    sum = Some(sum.unwrap_or(0.0) + value);
                }
            }
            sum
        };
        Sample {
            at,
            running: of(&[
                "sedge_requests_running",
                "llamacpp:requests_processing",
                "vllm:num_requests_running",
            ]),
            waiting: of(&[
                "sedge_requests_waiting",
                "llamacpp:requests_deferred",
                "vllm:num_requests_waiting",
            ]),
            pages_used: of(&["sedge_kv_pages_used"]),
            pages: of(&["sedge_kv_pages"]),
            prompt_tokens: of(&[
                "sedge_computed_prompt_tokens_total",
                "llamacpp:prompt_tokens_total",
                "vllm:prompt_tokens_total",
            ]),
            generated_tokens: of(&[
                "sedge_generated_tokens_total",
                "llamacpp:tokens_predicted_total",
                "vllm:generation_tokens_total",
            ]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_added_up() {
        let text = "# HELP sedge_kv_pages Pages.\n\
                    sedge_kv_pages{model=\"a b\"} 4\nsedge_kv_pages{model=\"b\"} 5\n\
                    sedge_kv_pages_used{model=\"a\"} 1 1700000000\n\
                    llamacpp:requests_processing 2\n";
        let expected = Sample {
            at: 1.5,
            running: Some(2.0),
            pages: Some(9.0),
            pages_used: Some(1.0),
            ..Sample::default()
        };
        assert_eq!(Sample::parse(text, 1.5), expected);
    }
}
