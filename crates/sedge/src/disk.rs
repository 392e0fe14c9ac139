//! The disk tier of a model's keys and values: whose pages they are, and the file.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sedge_engine::DiskTier;
use sedge_kernels::packed_kernels;
use sedge_models::Similar;
use sedge_tiers::{Disk, DiskConfig, DiskError};

use crate::failure::Failure;
use crate::machine::{Kv, MachineArgs};
use crate::size::Bytes;
use crate::source::Source;

/// Opens the file of the pages of a model and its fine-tunes below `folder`. `weights` is what
/// those are called with which the model starts.
pub(crate) fn open(
    folder: &Path,
    capacity: Bytes,
    page_bytes: usize,
    (sources, near): (&[&Source], &[Similar]),
    machine: &MachineArgs,
    weights: u64,
) -> Result<DiskTier, Failure> {
    let contents: Vec<Option<blake3::Hash>> = sources
        .iter()
        .map(|source| source.content())
        .collect::<Result<_, Failure>>()?;
    let identity = identity(sources, &contents, near, machine, weights)
        .map_err(|error| Failure::new(format_args!("{}: {error}", sources[0].name)))?;
    let name: String = identity[..8].iter().map(|b| format!("{b:02x}")).collect();
    let config = DiskConfig {
        folder: folder.join(name),
        capacity: capacity.0,
        page_bytes,
        identity,
    };
    match Disk::open(config) {
        Ok(disk) => Ok(DiskTier(Arc::new(disk))),
        Err(error @ DiskError::Locked { .. }) => {
            Err(Failure::new(error).hint("another folder: --disk-cache DIR"))
        }
        Err(error) => Err(Failure::new(error)),
    }
}

/// What keys and values depend on besides the tokens: the models to the last byte, in their order,
/// which layers serve for others', and how they are computed and stored.
fn identity(
    sources: &[&Source],
    contents: &[Option<blake3::Hash>],
    near: &[Similar],
    machine: &MachineArgs,
    weights: u64,
) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    let about = format!(
        "{} {} {:?} {:?} {} {}",
        env!("CARGO_PKG_VERSION"),
        machine.weights.arithmetic_name(),
        machine.kv(),
        // With them change the means that 4-bit keys and values are kept from.
        (machine.kv() == Kv::Q4).then_some((machine.context, weights)),
        packed_kernels(),
        sedge_kernels::rounds_fast(),
    );
    hasher.update(about.as_bytes());
    for similar in near {
        let (member, layer, with) = (similar.member, similar.layer, similar.with);
        hasher.update(format!(" {member}.{layer} of {with}").as_bytes());
    }
    for (source, content) in sources.iter().zip(contents) {
        if let Some(content) = content {
            hasher.update(content.as_bytes());
        }
        match source.path() {
            None => drop(hasher.update(source.bytes())),
            Some(path) => {
                for file in files(path)? {
                    hasher.update_reader(File::open(file)?)?;
                }
            }
        }
    }
    Ok(*hasher.finalize().as_bytes())
}

/// A file, or the files of a folder in order of their names.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
