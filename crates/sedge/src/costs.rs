//! The cost model of a model on this machine: measured once and kept in the user's cache folder.

use std::path::PathBuf;

use sedge_bench::measure_costs;
use sedge_clock::Costs;
use sedge_engine::CpuExecutor;
use sedge_kernels::packed_kernels;

use crate::failure::Failure;
use crate::machine::{self, MachineArgs};
use crate::output::{self, ProgressLine};
use crate::source::Source;

/// Times that a step is timed.
const REPEATS: usize = 3;

/// Where a model's costs lie, under a name that changes with whatever they depend on; `None`
/// where there is no cache folder.
fn path(source: &Source, args: &MachineArgs) -> Option<PathBuf> {
    let file = source.path().and_then(|path| {
        let data = std::fs::metadata(path).ok()?;
        Some((path.canonicalize().ok()?, data.len(), data.modified().ok()?))
    });
    let content = source.content().ok()?;
    let about = format!(
        "{:?} {file:?} {content:?} {} {:?} {} {:?} {}",
        source.path().map(|_| ()),
        machine::threads(args.threads),
        args.kv(),
        packed_kernels(),
        args.weights.arithmetic_name(),
        env!("CARGO_PKG_VERSION"),
    );
    // FNV-1a: names a file, protects nothing.
    let hash = about
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let name: String = source
        .name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(40)
        .collect();
    Some(machine::cache_folder("costs")?.join(format!("{name}-{hash:016x}.json")))
}

/// The costs that were measured before, or `None`.
pub(crate) fn kept(source: &Source, args: &MachineArgs) -> Option<Costs> {
    let text = std::fs::read_to_string(path(source, args)?).ok()?;
    serde_json::from_str(&text).ok()
}

/// Measures the costs of a model that is ready to run, and keeps them.
pub(crate) fn measure(
    source: &Source,
    args: &MachineArgs,
    executor: &mut CpuExecutor,
) -> Result<Costs, Failure> {
    let mut line = ProgressLine::new();
    let costs = measure_costs(executor, REPEATS, &mut |done, total| {
        line.show(done as u64, total as u64, "measuring what steps cost");
    })
    .map_err(Failure::new)?;
    line.clear();
    if let Some(path) = path(source, args) {
        let text = serde_json::to_vec(&costs).map_err(Failure::new)?;
        let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(error) = folder.and_then(|()| std::fs::write(&path, text)) {
            output::note(format_args!(
                "sedge: the costs could not be kept in {}: {error}",
                path.display()
            ));
        }
    }
    Ok(costs)
}
