//! The store on the command line: where it is, and what to try when it fails.

use std::env;
use std::sync::OnceLock;

use sedge_store::{Options, PullError, Store, StoreError};

use crate::failure::Failure;
use crate::size::Bytes;
use crate::source::BUILT_IN;

/// The store of this user. There is one in a process, so that a blob is mapped once.
pub(crate) fn store() -> Result<&'static Store, Failure> {
    static STORE: OnceLock<Option<Store>> = OnceLock::new();
    let place = || Store::place(|name| env::var_os(name)).map(Store::new);
    STORE.get_or_init(place).as_ref().ok_or_else(|| {
        Failure::new(
            "there is no place for models: none of SEDGE_HOME, XDG_DATA_HOME and HOME is set",
        )
        .hint("SEDGE_HOME=DIR sedge …")
    })
}

/// How to pull, as the environment has it.
pub(crate) fn options() -> Options {
    Options {
        reserved: vec![BUILT_IN.to_owned()],
        ..Options::from_environment(|name| env::var_os(name))
    }
}

/// A failure of the store, with a way out.
pub(crate) fn failure(error: StoreError) -> Failure {
    let failure = Failure::new(&error);
    match error {
        StoreError::NotFound { close, .. } if close.is_empty() => {
            failure.hint("sedge list, or sedge pull hf:ORG/NAME")
        }
        StoreError::NotFound { close, .. } => failure.hint(close.join(", or ")),
        StoreError::Missing { origin, name, .. } => {
            failure.hint(format_args!("sedge pull {origin} --name {name}"))
        }
        StoreError::Busy { .. } => failure.hint("again when it has ended"),
        StoreError::Io { source, .. } if full(&source) => {
            failure.hint("sedge gc, or SEDGE_HOME on a larger disk")
        }
        _ => failure,
    }
}

fn full(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    )
}

/// A failure of a pull of `reference`, with a way out.
pub(crate) fn pull_failure(error: PullError, reference: &str) -> Failure {
    const AGAIN: &str = "the same command: it goes on with what has come";
    let failure = Failure::new(&error);
    match error {
        PullError::Store(StoreError::Io { ref source, .. }) if full(source) => {
            failure.hint("sedge gc, or a larger disk; then the same command goes on with what has come")
        }
        PullError::Store(error) => self::failure(error),
        PullError::Http {
            source: sedge_store::HttpError::Status { status, .. },
            ..
        } => match status {
            401 | 403 => failure.hint(
                "the spelling; for a private or gated model HF_TOKEN=… with a token that may read it",
            ),
            404 => failure.hint("the spelling of repository, revision and file"),
            _ => failure.hint(AGAIN),
        },
        PullError::Http { source, .. } if source.to_string().contains("certificate") => failure
            .hint("SSL_CERT_FILE=FILE with the certificate that signs for this host, or HF_ENDPOINT"),
        PullError::Http { .. } => failure.hint(AGAIN),
        PullError::Hash { .. } | PullError::Changed { .. } => failure.hint("the same command again"),
        PullError::Several { choices, .. } => with_choices(error_text(&failure), &choices, reference),
        PullError::NoFile { choices, .. } if !choices.is_empty() => {
            with_choices(error_text(&failure), &choices, reference)
        }
        PullError::Taken { name, .. } => failure.hint(format_args!(
            "--name with another than {name:?}, or --force to replace it"
        )),
        PullError::Reserved { name } => {
            Failure::new(format_args!("{name:?} is the built-in model's name"))
                .hint("--name with another")
        }
        PullError::Name(_) => failure.hint("--name NAME"),
        PullError::NotGguf { .. } => failure.hint("a .gguf file, or the folder that it lies in"),
        PullError::NoPath { .. } => {
            failure.hint("a file, a folder, or hf:ORG/NAME for a model of Hugging Face's hub")
        }
        _ => failure,
    }
}

fn error_text(failure: &Failure) -> String {
    match failure {
        Failure::Failed { what, .. } => what.clone(),
        _ => String::new(),
    }
}

/// Lists what could be meant, and how to say it.
fn with_choices(what: String, choices: &[(String, Option<u64>)], reference: &str) -> Failure {
    let mut text = format!("{what}; there are:");
    for (path, size) in choices {
        let size = size.map_or_else(String::new, |size| Bytes(size).to_string());
        text.push_str(&format!("\n  {size:>10}  {path}"));
    }
    let hint = choices.first().map_or("", |(path, _)| path);
    match reference.strip_prefix("hf:") {
        Some(rest) => {
            let repo = rest.split(':').next().unwrap_or_default();
            Failure::new(text).hint(format_args!("sedge pull 'hf:{repo}:{hint}'"))
        }
        None => Failure::new(text).hint(format_args!(
            "sedge pull {}",
            std::path::Path::new(reference).join(hint).display()
        )),
    }
}
