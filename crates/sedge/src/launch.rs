//! From an opened model to an engine that answers.

use std::sync::Arc;

use sedge_engine::{CpuExecutor, Engine, EngineConfig, Executor, Sampling};
use sedge_formats::template::ChatTemplate;
use sedge_formats::tokenizer::Tokenizer;
use sedge_kernels::Team;
use sedge_models::Info;

use crate::costs;
use crate::disk;
use crate::failure::Failure;
use crate::load::LoadArgs;
use crate::machine::{self, MachineArgs};
use crate::output;
use crate::sampling;
use crate::source::Source;

/// A model with its running engine.
pub(crate) struct Running {
    /// Name in the API.
    pub(crate) name: String,
    pub(crate) engine: Engine,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) template: Option<Arc<ChatTemplate>>,
    pub(crate) architecture: &'static str,
    /// Facts of the file.
    pub(crate) info: Info,
    /// Most tokens of a sequence.
    pub(crate) context: usize,
    /// False for an encoder.
    pub(crate) generates: bool,
    /// Sampling where a request says nothing.
    pub(crate) defaults: Sampling,
}

/// Opens a model and starts its engine, under a load as `load` says.
pub(crate) fn launch(
    source: &Source,
    machine: &MachineArgs,
    load: Option<&LoadArgs>,
) -> Result<Running, Failure> {
    let mut opened = source.open_within(machine.context)?;
    let tokenizer = opened.tokenizer.ok_or_else(|| {
        Failure::new(format_args!("{}: the model has no tokenizer", source.name))
            .hint("a folder with tokenizer.json beside the weights")
    })?;
    let template = opened
        .chat_template
        .as_deref()
        .and_then(|text| compile(&source.name, text, &tokenizer));
    let team = Team::new(machine::threads(machine.threads));
    machine.weights.ready(source, &mut opened.model, &team)?;
    let model = opened.model.config();
    let architecture = model.architecture.name();
    let generates = !model.bidirectional();
    let context = machine
        .context
        .map_or(model.context, |limit| limit.get().min(model.context));

    let kv = machine.kv.into();
    let pages = match generates {
        true => machine::pages(machine.kv_memory, model.layers.len(), model.kv_shape(), kv),
        false => 0,
    };
    if generates && machine::tokens(pages) < context {
        output::note(format_args!(
            "sedge: {}: {} hold the keys and values of {} tokens; the model's context is {context}\n  \
             try: --kv-memory with more, or --context {}",
            source.name,
            machine.kv_memory,
            machine::tokens(pages),
            machine::tokens(pages),
        ));
    }
    let mut executor = CpuExecutor::new(Arc::new(opened.model), team, kv, pages, context);
    let mut config = match load {
        Some(load) => load.config(executor.page_bytes()),
        None => EngineConfig::default(),
    };
    if let Some((folder, capacity)) = load.and_then(LoadArgs::disk).filter(|_| generates) {
        let disk = disk::open(folder, capacity, executor.page_bytes(), source, machine)?;
        config.cache.disk = Some(disk);
    }
    if config.tbt_slo.is_some() && generates {
        let costs = match costs::kept(source, machine) {
            Some(costs) => costs,
            None => costs::measure(source, machine, &mut executor)?,
        };
        config.costs = Some(Arc::new(costs));
    }
    let engine = Engine::start(Box::new(executor), Some(tokenizer.clone()), config);
    Ok(Running {
        name: source.name.clone(),
        engine,
        tokenizer,
        template,
        architecture,
        info: opened.info,
        context,
        generates,
        defaults: sampling::of_model(&opened.recommended),
    })
}

/// A template that does not compile costs the model its chat, not its life.
fn compile(name: &str, text: &str, tokenizer: &Tokenizer) -> Option<Arc<ChatTemplate>> {
    let word = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
    let bos = word(tokenizer.bos());
    let eos = word(tokenizer.eos().first().copied());
    match ChatTemplate::new(text, bos, eos) {
        Ok(template) => Some(Arc::new(template)),
        Err(error) => {
            output::note(format_args!("sedge: {name}: chat is off: {error}"));
            None
        }
    }
}
