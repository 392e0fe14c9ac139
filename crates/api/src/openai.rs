//! The requests and responses of OpenAI's API, as far as they are served here.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod constraint;
pub(crate) mod embeddings;
pub(crate) mod fields;
pub(crate) mod options;
pub(crate) mod response;
pub(crate) mod tools;
pub(crate) mod urgency;
