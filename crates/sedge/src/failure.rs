//! What went wrong, what to try, and the exit code.

use std::fmt::Display;
use std::process::ExitCode;

use crate::output;

/// Why a command ended without doing its work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line is not valid, or only help was asked for: clap's own text.
    Usage(Box<clap::Error>),
    /// The command line is not valid in a way that only the command knows.
    Misused {
        /// What is wrong.
        what: String,
        /// A way out.
        hint: String,
    },
    /// The command could not do its work.
    Failed {
        /// What happened.
        what: String,
        /// A way out, if one is known.
        hint: Option<String>,
    },
    /// The reader of the output went away, which is its right.
    PipeClosed,
    /// Ctrl-C.
    Interrupted,
}

impl Failure {
    /// A failure that says what happened.
    pub(crate) fn new(what: impl Display) -> Failure {
        Failure::Failed {
            what: what.to_string(),
            hint: None,
        }
    }

    /// The same with a way out.
    pub(crate) fn hint(self, hint: impl Display) -> Failure {
        match self {
            Failure::Failed { what, .. } => Failure::Failed {
                what,
                hint: Some(hint.to_string()),
            },
            other => other,
        }
    }

    /// A wrong use of the command line.
    pub(crate) fn misused(what: impl Display, hint: impl Display) -> Failure {
        Failure::Misused {
            what: what.to_string(),
            hint: hint.to_string(),
        }
    }

    /// A failure with a model's file or folder. Errors that name the place are said as they are.
    pub(crate) fn about(path: &std::path::Path, error: &dyn Display) -> Failure {
        let (path, what) = (path.display().to_string(), error.to_string());
        if what.contains(&path) {
            return Failure::new(what);
        }
        Failure::new(format_args!("{path}: {what}"))
    }

    /// A failure of reading or writing a file.
    pub(crate) fn file(path: &std::path::Path, source: &std::io::Error) -> Failure {
        Failure::new(format_args!("{}: {source}", path.display()))
    }
}

impl From<clap::Error> for Failure {
    fn from(error: clap::Error) -> Failure {
        Failure::Usage(Box::new(error))
    }
}

/// Errors of writing to standard output.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::PipeClosed,
            _ => Failure::new(format_args!("cannot write the output: {error}")),
        }
    }
}

/// Prints the failure on standard error: 0 done, 1 failed, 2 wrong use, 130 interrupted.
pub(crate) fn report(result: Result<(), Failure>) -> ExitCode {
    let (what, hint, code) = match result {
        Ok(()) | Err(Failure::PipeClosed) => return ExitCode::SUCCESS,
        Err(Failure::Interrupted) => return ExitCode::from(130),
        Err(Failure::Usage(error)) if !error.use_stderr() => {
            // Help or the version: it goes to standard output, and whether that works is its reader's business.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(Failure::Usage(error)) => {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
            (text.to_owned(), None, 2)
        }
        Err(Failure::Misused { what, hint }) => (what, Some(hint), 2),
        Err(Failure::Failed { what, hint }) => (what, hint, 1),
    };
    output::note(format_args!("sedge: {what}"));
    if let Some(hint) = hint {
        output::note(format_args!("  try: {hint}"));
    }
    ExitCode::from(code)
}
