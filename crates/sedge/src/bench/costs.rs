//! `sedge bench costs`: measures what steps cost and keeps it for planning and simulation.

use sedge_clock::Load;
use sedge_engine::CpuExecutor;
use sedge_kernels::Team;
use sedge_models::SharedModel;
use serde_json::json;

use crate::costs;
use crate::failure::Failure;
use crate::machine::{self, MachineArgs};
use crate::output;
use crate::source::Source;

const ABOUT: &str = "\
Examples:
  sedge bench costs                 the built-in model
  sedge bench costs -m 1b.gguf --json

Times steps of answers and pieces of prompts together, and attention far into a context. The
result is kept in the user's cache folder, for `sedge serve --tbt-slo` and `sedge sim serve`.";

#[derive(clap::Args)]
#[command(after_help = ABOUT)]
pub(super) struct CostsArgs {
    /// GGUF file, Hugging Face folder, stored model, or `seedling`, the built-in model
    #[arg(short, long, value_name = "MODEL", default_value = crate::source::BUILT_IN)]
    model: Source,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    machine: MachineArgs,
}

pub(super) fn run(args: &CostsArgs) -> Result<(), Failure> {
    let mut opened = args.model.open_within(args.machine.context)?;
    let team = Team::new(machine::threads(args.machine.threads));
    let weights = &args.machine.weights;
    weights.ready(&args.model, &mut opened.model, &team)?;
    let config = opened.model.config();
    if config.bidirectional() {
        return Err(Failure::new(
            "the model is an encoder: its steps are whole texts",
        ));
    }
    let (layers, shape, kv) = (
        config.layers.len(),
        config.kv_shape(),
        args.machine.kv().into(),
    );
    let context = config.context;
    let pages = machine::pages(args.machine.kv_memory, layers, shape, kv);
    let mut executor = CpuExecutor::new(SharedModel::new(opened.model), team, kv, pages, context);
    let costs = costs::measure(&args.model, &args.machine, &mut executor)?;
    let text = if args.json {
        format!("{:#}\n", json!({"model": args.model.name, "costs": costs}))
    } else {
        table(&args.model.name, &costs)
    };
    Ok(output::print(&text)?)
}

/// Milliseconds of steps by their load.
fn table(name: &str, costs: &sedge_clock::Costs) -> String {
    const PROMPT: [usize; 6] = [0, 16, 64, 128, 256, 512];
    let mut text = format!(
        "model         {name}\n\
         steps         ms, by tokens of answers and of prompts in one step\n\n{:>10}",
        "answers"
    );
    for prompt in PROMPT {
        text.push_str(&format!("{:>10}", format!("+{prompt}")));
    }
    text.push('\n');
    for generated in [0, 1, 4, 16, 64] {
        text.push_str(&format!("{generated:>10}"));
        for prompt in PROMPT {
            let mut load = Load {
                generated,
                ..Load::default()
            };
            load.add_prompt(0, prompt);
            text.push_str(&format!("{:>10.2}", costs.seconds(&load) * 1e3));
        }
        text.push('\n');
    }
    let mut far = [Load::default(); 2];
    far[0].context = 1000;
    far[1].pairs = 1000;
    let [context, pairs] = far.map(|load| costs.seconds(&load) * 1e6);
    text.push_str(&format!(
        "\nattention     {context:.2} µs for 1000 positions of an answer's token, {pairs:.2} µs of a prompt's\n"
    ));
    text
}
