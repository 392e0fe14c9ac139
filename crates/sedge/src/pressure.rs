//! `--memory`: how much of a stacked model is in memory, and letting the machine decide.

use std::str::FromStr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use sedge_engine::{Reading, Watch};
use sedge_models::{MemoryError, Model, SharedModel};

use crate::failure::Failure;
use crate::output;
use crate::size::Bytes;

/// Bytes, or as many as the machine can spare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    Bytes(Bytes),
    Auto,
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Memory, String> {
        match text {
            "auto" => Ok(Memory::Auto),
            bytes => bytes.parse().map(Memory::Bytes),
        }
    }
}

/// Time between two looks at the machine.
const PAUSE: Duration = Duration::from_secs(1);

impl Memory {
    /// Lets a model that does not run yet use as many blocks as fit.
    pub(crate) fn begin(self, model: &mut Model) -> Result<(), Failure> {
        let bytes = match self {
            Memory::Bytes(bytes) => bytes.0,
            Memory::Auto => {
                let memory = model.memory().ok_or(MemoryError::NotStacked);
                reading()?.first(memory.map_err(failure)?)
            }
        };
        model.set_memory(bytes).map(drop).map_err(failure)
    }
}

fn reading() -> Result<Reading, Failure> {
    Reading::now().ok_or_else(|| {
        Failure::new("--memory auto: /proc/meminfo does not tell how much memory is available")
            .hint("--memory with a number of bytes")
    })
}

/// Why a model does not take some memory, and what to do.
pub(crate) fn failure(error: MemoryError) -> Failure {
    let failure = Failure::new(&error);
    match error {
        MemoryError::NotStacked => {
            failure.hint("sedge shrink MODEL --to stack -o OUT.gguf, which makes such a model")
        }
        MemoryError::TooSmall { smallest, .. } => failure.hint(format_args!("--memory {smallest}")),
        MemoryError::Block { .. } => failure,
    }
}

/// Lets a model that serves give memory back when the machine is short of it, and take it again,
/// for as long as it is there.
pub(crate) fn watch(name: &str, model: &Arc<SharedModel>) {
    let (name, model) = (name.to_owned(), Arc::downgrade(model));
    let thread = std::thread::Builder::new().name("sedge-memory".into());
    let started = thread.spawn(move || run(&name, &model));
    if let Err(error) = started {
        output::note(format_args!(
            "sedge: memory stays as it is: the thread that watches it could not be started: {error}"
        ));
    }
}

fn run(name: &str, model: &Weak<SharedModel>) {
    let (start, mut watch) = (Instant::now(), Watch::default());
    while let Some(model) = model.upgrade() {
        if let (Some(reading), Some(memory)) = (Reading::now(), model.memory())
            && let Some(bytes) = watch.next(start.elapsed(), reading, memory)
        {
            match model.set_memory(bytes) {
                Ok(_) => {
                    let bytes = model.memory().map_or(bytes, |memory| memory.bytes);
                    let bytes = Bytes(bytes);
                    output::note(format_args!("sedge: {name}: weights have {bytes} now"));
                }
                Err(error) => output::note(format_args!("sedge: {name}: {error}")),
            }
        }
        drop(model);
        std::thread::sleep(PAUSE);
    }
}
