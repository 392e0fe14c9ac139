//! Groups of pages that live in device, host and disk memory, and the moves between them.
//! Capacity and link rate are settings of every tier, so that any machine can stand in for a
//! smaller or slower one.
#![deny(missing_docs)]

mod disk;
mod groups;
mod link;
mod residents;

pub use disk::{Disk, DiskConfig, DiskError, DiskStats, Fetched, PageKey};
pub use groups::{Groups, Owner, runs};
pub use link::{Link, LinkConfig};
pub use residents::Residents;
