//! What a caller asks for and what it gets back.

use std::sync::Arc;
use std::time::Duration;

/// How tokens are chosen: the penalties change the logits, then the bias, then the temperature;
/// `top_k` and `min_p` choose among the tokens, and `top_p` among those that they kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 chooses the most likely token.
    pub temperature: f32,
    /// Keep the fewest tokens whose probabilities sum to this; 1 keeps all.
    pub top_p: f32,
    /// Keep this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep tokens at least this share as likely as the most likely; 0 keeps all.
    pub min_p: f32,
    /// Subtracted from the logit of every token generated so far.
    pub presence_penalty: f32,
    /// Subtracted once per occurrence among the generated tokens.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of every token of prompt and answer; 1 does nothing.
    pub repetition_penalty: f32,
    /// Added to logits: `(token, bias)`.
    pub logit_bias: Vec<(u32, f32)>,
    /// Makes the choice repeatable; without it the engine draws one.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// A language that the answer must be in.
#[derive(Debug, Clone, PartialEq)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema accepts.
    JsonSchema(serde_json::Value),
    /// A grammar in llguidance's Lark dialect.
    Lark(String),
    /// A regular expression.
    Regex(String),
}

/// What a request is for.
#[derive(Debug, Clone, PartialEq)]
pub enum Goal {
    /// Tokens that continue the prompt.
    Generate,
    /// The prompt's final hidden states pooled as the model wants it, `[hidden]`, not normalised.
    Embed,
}

/// One sequence to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What for.
    pub goal: Goal,
    /// Token ids; at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate; the context's rest when `None`. 0 generates nothing.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The answer ends before any of these texts; they are not part of it. A control token
    /// within such a text keeps it from being one.
    pub stop: Vec<String>,
    /// The answer ends at any of these tokens, besides the model's own.
    pub stop_tokens: Vec<u32>,
    /// Go on past the model's end tokens (for measuring).
    pub ignore_eos: bool,
    /// Report each token's log-probability and this many alternatives.
    pub logprobs: Option<usize>,
    /// Report the prompt's log-probabilities too.
    pub prompt_logprobs: bool,
    /// What the answer must look like.
    pub constraint: Option<Constraint>,
    /// Number of the fine-tune that answers, in the order in which the models were joined.
    pub member: usize,
    /// Name of the [adapter](crate::NewAdapter) that changes it.
    pub adapter: Option<Arc<str>>,
    /// Who asks. Tenants share the engine by their weights; the empty name is a tenant too.
    pub tenant: Arc<str>,
    /// Lower is sooner; requests of a lower number never wait for those of a higher one.
    pub priority: i32,
    /// Time after which nobody wants the answer any more, from submission: the request then ends
    /// with an error, and is refused at once if it would have to wait longer.
    pub deadline: Option<Duration>,
}

impl Default for Request {
    fn default() -> Self {
        Request {
            goal: Goal::Generate,
            prompt: Vec::new(),
            max_tokens: None,
            sampling: Sampling::default(),
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            prompt_logprobs: false,
            constraint: None,
            member: 0,
            adapter: None,
            tenant: Arc::default(),
            priority: 0,
            deadline: None,
        }
    }
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// The prompt has no token.
    #[error("the prompt is empty")]
    Empty,
    /// The prompt does not fit.
    #[error("the prompt has {prompt} tokens; the model's context is {context}")]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Most positions of a sequence, one of which an answer needs: the model's, or those of
        /// all pages together if they are fewer.
        context: usize,
    },
    /// No such fine-tune.
    #[error("fine-tune {member} of {members}")]
    Member {
        /// The number asked for.
        member: usize,
        /// How many there are.
        members: usize,
    },
    /// No such adapter.
    #[error("there is no adapter named {0:?}")]
    Adapter(Arc<str>),
    /// A token id is not in the vocabulary.
    #[error("token {id} is not in the vocabulary of {vocab}")]
    Token {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A parameter is out of its range.
    #[error("{name} is {value}; it must be {allowed}")]
    Parameter {
        /// Name as in `Sampling`.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// The constraint cannot be compiled.
    #[error("the output constraint is not valid: {0}")]
    Constraint(String),
    /// The model cannot do this (an encoder asked to generate).
    #[error("{0}")]
    Unsupported(&'static str),
    /// Too many requests wait.
    #[error("{waiting} requests are waiting; try again in {} s", retry_after.as_secs())]
    Busy {
        /// Requests in the queue.
        waiting: usize,
        /// When a place is likely.
        retry_after: Duration,
    },
    /// It would wait for longer than its deadline.
    #[error("the request would wait for about {} s, longer than its deadline", wait.as_secs_f64().ceil())]
    Late {
        /// Expected wait.
        wait: Duration,
    },
    /// The engine takes no more requests.
    #[error("the server is shutting down")]
    Closed,
}

/// A token's log-probability and its strongest rivals.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprob {
    /// Token.
    pub id: u32,
    /// Natural logarithm of its probability, before temperature and filters.
    pub logprob: f32,
    /// The most likely tokens and theirs, most likely first.
    pub top: Vec<(u32, f32)>,
}

/// One generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenEvent {
    /// Token.
    pub id: u32,
    /// Text that this token completed; empty while a character or a possible stop text is open.
    pub text: String,
    /// Asked for with `logprobs`.
    pub logprob: Option<Logprob>,
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, a stop text or token came, or the constraint was fulfilled.
    Stop,
    /// `max_tokens` or the context was reached.
    Length,
    /// The request's deadline passed first.
    Deadline,
    /// The engine could not go on; the text says why.
    Error(String),
}

/// Tokens counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens generated, the end token included.
    pub completion: usize,
    /// Tokens of the prompt that were not computed again.
    pub cached: usize,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// From submission to the first step that ran a part of it.
    pub queued: Duration,
    /// From submission to the first token (or the embedding).
    pub first_token: Duration,
    /// From submission to the end.
    pub total: Duration,
}

/// The end of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// Text that was held back for a stop text that did not come, or an incomplete character.
    pub text: String,
    /// Tokens.
    pub usage: Usage,
    /// Times.
    pub timings: Timings,
}

/// What a request's receiver sees, in order: `Prompt` at most once, tokens or one embedding,
/// then exactly one `Finished`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Log-probabilities of the prompt's tokens from the second on.
    Prompt(Vec<Logprob>),
    /// A token. A token that ends the answer is counted, but not sent.
    Token(TokenEvent),
    /// The embedding, `[hidden]`.
    Embedding(Vec<f32>),
    /// The end.
    Finished(Finish),
}
