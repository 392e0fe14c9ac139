//! From opened models to engines that answer: fine-tunes that share weights share an engine.

use std::path::Path;
use std::sync::Arc;

use sedge_engine::{CpuExecutor, Engine, EngineConfig, Executor, Sampling};
use sedge_formats::template::ChatTemplate;
use sedge_formats::tokenizer::Tokenizer;
use sedge_kernels::Team;
use sedge_models::{Info, Model, SharedModel, Similar};

use crate::adapters::Adapters;
use crate::costs;
use crate::disk;
use crate::failure::Failure;
use crate::load::LoadArgs;
use crate::machine::{self, MachineArgs};
use crate::output;
use crate::pressure;
use crate::sampling;
use crate::share::{Share, ShareArgs};
use crate::source::Source;

/// A model with its running engine.
pub(crate) struct Running {
    /// Name in the API.
    pub(crate) name: String,
    pub(crate) engine: Engine,
    /// Its number among those that share the engine.
    pub(crate) member: usize,
    /// Where its adapters come from.
    pub(crate) adapters: Adapters,
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
    /// Bytes of weights of all that share the engine, and how many they are.
    pub(crate) weights: (u64, usize),
}

/// Opens a model and starts its engine, under a load as `load` says.
pub(crate) fn launch(
    source: &Source,
    machine: &MachineArgs,
    load: Option<&LoadArgs>,
) -> Result<Running, Failure> {
    let all = launch_all(std::slice::from_ref(source), machine, load, None)?;
    Ok(all
        .into_iter()
        .next()
        .expect("a model runs for each source"))
}

/// Opens models and starts their engines. Those of one shape and vocabulary that have weights in
/// common are one engine's.
pub(crate) fn launch_all(
    sources: &[Source],
    machine: &MachineArgs,
    load: Option<&LoadArgs>,
    share: Option<&ShareArgs>,
) -> Result<Vec<Running>, Failure> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for (place, source) in sources.iter().enumerate() {
        let (model, member) = Member::open(place, source, machine)?;
        Group::take(&mut groups, model, member, share)?;
    }
    if let Some(share) = share.filter(|s| s.share == Share::Approximate) {
        for group in &mut groups {
            group.approximate(share, machine)?;
        }
    }
    let mut running = Vec::new();
    for group in groups {
        running.extend(group.start(machine, load)?);
    }
    running.sort_by_key(|(place, _)| *place);
    Ok(running.into_iter().map(|(_, running)| running).collect())
}

/// Models that share an engine.
struct Group<'a> {
    model: Model,
    members: Vec<Member<'a>>,
    /// Layers of others in place of a member's own.
    near: Vec<Similar>,
}

/// What is a model's own.
struct Member<'a> {
    /// Among all sources.
    place: usize,
    source: &'a Source,
    tokenizer: Arc<Tokenizer>,
    template: Option<Arc<ChatTemplate>>,
    info: Info,
    defaults: Sampling,
}

impl<'a> Member<'a> {
    fn open(
        place: usize,
        source: &'a Source,
        machine: &MachineArgs,
    ) -> Result<(Model, Member<'a>), Failure> {
        let opened = source.open_within(machine.context)?;
        let tokenizer = opened.tokenizer.ok_or_else(|| {
            Failure::new(format_args!("{}: the model has no tokenizer", source.name))
                .hint("a folder with tokenizer.json beside the weights")
        })?;
        let template = opened
            .chat_template
            .as_deref()
            .and_then(|text| compile(&source.name, text, &tokenizer));
        let member = Member {
            place,
            source,
            tokenizer,
            template,
            info: opened.info,
            defaults: sampling::of_model(&opened.recommended),
        };
        Ok((opened.model, member))
    }
}

impl<'a> Group<'a> {
    /// Puts a model where it belongs.
    fn take(
        groups: &mut Vec<Group<'a>>,
        mut model: Model,
        member: Member<'a>,
        share: Option<&ShareArgs>,
    ) -> Result<(), Failure> {
        if share.is_some_and(|s| s.share != Share::Off) {
            for group in groups.iter_mut() {
                let first = &group.members[0].tokenizer;
                if first.is_alike(&member.tokenizer) && group.model.is_akin(&mut model) {
                    group.model.join(model).map_err(Failure::new)?;
                    group.members.push(member);
                    return Ok(());
                }
            }
        }
        groups.push(Group {
            model,
            members: vec![member],
            near: Vec::new(),
        });
        Ok(())
    }

    /// Lets near layers serve for each other.
    fn approximate(&mut self, share: &ShareArgs, machine: &MachineArgs) -> Result<(), Failure> {
        let team = Team::new(machine::threads(machine.threads));
        let names: Vec<&str> = self
            .members
            .iter()
            .map(|m| m.source.name.as_str())
            .collect();
        let tokenizer = &self.members[0].tokenizer;
        self.near = share.approximate(&mut self.model, &names, tokenizer, machine, &team)?;
        Ok(())
    }

    /// The file that all weights are of, if it is one.
    fn file(&self) -> Option<&Path> {
        match &self.members[..] {
            [one] => one.source.path(),
            _ => None,
        }
    }

    /// Starts the engine; its models with their places.
    fn start(
        mut self,
        machine: &MachineArgs,
        load: Option<&LoadArgs>,
    ) -> Result<Vec<(usize, Running)>, Failure> {
        let machine = &machine.of(&self.members[0].info);
        let team = Team::new(machine::threads(machine.threads));
        let file = self.file().map(Path::to_path_buf);
        let weights = &machine.weights;
        weights.ready_file(file.as_deref(), &mut self.model, &team)?;
        let weights = (self.model.weight_bytes(), self.members.len());
        let model = self.model.config();
        let architecture = model.architecture.name();
        let generates = !model.bidirectional();
        let context = machine
            .context
            .map_or(model.context, |limit| limit.get().min(model.context));
        let source = self.members[0].source;

        let kv = machine.kv().into();
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
        let version = self.model.stack_version();
        let shared = SharedModel::new(self.model);
        if load.is_some() && machine.weights.follows_machine() {
            pressure::watch(&source.name, &shared);
        }
        let mut executor = CpuExecutor::new(shared.clone(), team, kv, pages, context);
        let mut config = match load {
            Some(load) => load.config(executor.page_bytes()),
            None => EngineConfig::default(),
        };
        if let Some((folder, capacity)) = load.and_then(LoadArgs::disk).filter(|_| generates) {
            let sources: Vec<&Source> = self.members.iter().map(|m| m.source).collect();
            let page_bytes = executor.page_bytes();
            let disk = disk::open(
                folder,
                capacity,
                page_bytes,
                (&sources, &self.near),
                machine,
                version,
            )?;
            config.cache.disk = Some(disk);
        }
        if config.tbt_slo.is_some() && generates {
            let costs = match costs::kept(source, machine) {
                Some(costs) => costs,
                None => costs::measure(source, machine, &mut executor)?,
            };
            config.costs = Some(Arc::new(costs));
        }
        // What is generated becomes text by the first one's vocabulary, which is everybody's.
        let tokenizer = self.members[0].tokenizer.clone();
        let engine = Engine::start(Box::new(executor), Some(tokenizer), config);
        let running = |(number, member): (usize, Member<'_>)| {
            let running = Running {
                name: member.source.name.clone(),
                engine: engine.clone(),
                member: number,
                adapters: Adapters::new(shared.clone(), number, machine),
                tokenizer: member.tokenizer,
                template: member.template,
                architecture,
                info: member.info,
                context,
                generates,
                defaults: member.defaults,
                weights,
            };
            (member.place, running)
        };
        Ok(self.members.into_iter().enumerate().map(running).collect())
    }
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
