//! Chat templates: Jinja as Hugging Face models use it.
//!
//! A template comes with a model and is hostile until proven otherwise: it reads no file, includes
//! no other template, and its time, memory and output are bounded by fuel that grows with the
//! conversation.
//!
//! Clients speak OpenAI's message format; templates differ in what they take. When a template is
//! compiled it renders a few tiny probe conversations, and [`ChatTemplate::render`] then hands
//! messages over in the form that came out right (see [`form`](self)):
//! text parts are joined with newlines unless the template only takes lists of parts; arguments of
//! tool calls are objects unless it only takes strings; `null` content becomes `""` if it would be
//! printed as `None`; `developer` becomes `system` unless the template knows it; and a leading
//! system message that the template refuses goes in front of the first user message.

mod environment;
mod form;
mod json;
mod strftime;

use std::time::SystemTime;

use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value as Jinja};
use serde_json::Value;

use form::Form;

/// Largest template source, in bytes.
const SOURCE_LIMIT: usize = 1 << 20;

/// Why a template failed.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template's text is not valid.
    #[error("chat template, line {line}: {reason}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The template itself refused the conversation (`raise_exception`).
    #[error("the model's chat template refuses this conversation: {0}")]
    Refused(String),
    /// Rendering failed or went over its limits.
    #[error("rendering the chat template failed: {0}")]
    Render(String),
}

/// What a template is rendered with.
#[derive(Debug, Clone, Default)]
pub struct ChatInput {
    /// Messages as OpenAI's API has them (`role`, `content`, `tool_calls`, `tool_call_id`, `name`).
    pub messages: Vec<Value>,
    /// Tools as OpenAI's API has them.
    pub tools: Vec<Value>,
    /// Whether to open the assistant's turn.
    pub add_generation_prompt: bool,
    /// Further variables (`enable_thinking`, …).
    pub extra: serde_json::Map<String, Value>,
}

/// A compiled template.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
    form: Form,
}

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are the texts of those tokens.
    ///
    /// # Errors
    /// When it is not valid or is larger than 1 MiB.
    pub fn new(
        source: &str,
        bos: Option<&str>,
        eos: Option<&str>,
    ) -> Result<ChatTemplate, TemplateError> {
        if source.len() > SOURCE_LIMIT {
            let reason = format!("{} bytes; at most {SOURCE_LIMIT} are read", source.len());
            return Err(TemplateError::Syntax { line: 1, reason });
        }
        let compiled = environment::on_deep_stack(|| environment::compile(source));
        let environment = compiled
            .map_err(no_thread)?
            .map_err(|error| TemplateError::Syntax {
                line: error.line().unwrap_or(1),
                reason: error
                    .detail()
                    .map_or_else(|| error.kind().to_string(), str::to_owned),
            })?;
        let mut template = ChatTemplate {
            source: source.to_owned(),
            environment,
            bos: bos.map(str::to_owned),
            eos: eos.map(str::to_owned),
            form: Form::default(),
        };
        environment::on_deep_stack(|| Form::probe(&mut template)).map_err(no_thread)?;
        Ok(template)
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template mentions tools.
    pub fn supports_tools(&self) -> bool {
        self.source.contains("tools")
    }

    /// Renders a conversation; `strftime_now` tells the time of the system's clock, in UTC.
    ///
    /// # Errors
    /// When the template refuses it, or fails, or runs past its limits of time and output.
    pub fn render(&self, input: &ChatInput) -> Result<String, TemplateError> {
        self.render_at(input, SystemTime::now())
    }

    /// Renders a conversation as of `now`: equal arguments give equal texts.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`].
    pub fn render_at(&self, input: &ChatInput, now: SystemTime) -> Result<String, TemplateError> {
        let messages = self.form.apply(&input.messages);
        let fuel = environment::fuel(&messages, &input.tools);
        let render = || self.render_raw(messages, input, now, fuel);
        environment::on_deep_stack(render).map_err(no_thread)?
    }

    /// As in transformers, absent tools are none, not an empty list; but a few templates only
    /// take a list.
    fn tools(&self, tools: &[Value]) -> Jinja {
        if tools.is_empty() && !self.form.lists_tools() {
            Jinja::from(())
        } else {
            Serde(tools).into()
        }
    }

    /// Renders messages as they are, with everything else from `input`.
    fn render_raw(
        &self,
        messages: Vec<Value>,
        input: &ChatInput,
        now: SystemTime,
        fuel: u64,
    ) -> Result<String, TemplateError> {
        let mut context: Vec<(&str, Jinja)> = vec![
            ("tools", self.tools(&input.tools)),
            ("documents", Jinja::from(())),
            ("add_generation_prompt", input.add_generation_prompt.into()),
            (
                "strftime_now",
                Jinja::from_function(move |format: &str| strftime::utc(format, now)),
            ),
        ];
        for (name, token) in [("bos_token", &self.bos), ("eos_token", &self.eos)] {
            if let Some(token) = token {
                context.push((name, token.as_str().into()));
            }
        }
        // Firefunction's names for tools and time.
        if self.source.contains("functions") && self.source.contains("datetime") {
            let tools = if input.tools.is_empty() {
                String::new()
            } else {
                pretty(&input.tools)
            };
            context.push(("functions", tools.into()));
            context.push((
                "datetime",
                strftime::utc("%b %d %Y %H:%M:%S GMT", now).into(),
            ));
        }
        for (name, value) in &input.extra {
            context.push((name, Serde(value).into()));
        }
        context.push(("messages", Serde(&messages).into()));
        environment::render(&self.environment, fuel, Jinja::from_pairs(context)).map_err(|error| {
            if let Some(reason) = environment::refusal(&error) {
                return TemplateError::Refused(reason);
            }
            match error.kind() {
                ErrorKind::OutOfFuel => {
                    TemplateError::Render("it ran past its limits of time and memory".to_owned())
                }
                _ => TemplateError::Render(error.to_string()),
            }
        })
    }
}

fn no_thread(error: std::io::Error) -> TemplateError {
    TemplateError::Render(error.to_string())
}

/// JSON text over several lines.
fn pretty(tools: &[Value]) -> String {
    serde_json::to_string_pretty(tools).unwrap_or_default() // values have string keys: it cannot fail
}
