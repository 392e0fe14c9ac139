//! Content-addressed blobs and the manifests that name them.
//!
//! A store keeps models and adapters, one blob a tensor, so that what two of them share is kept
//! once, whatever files it came in; every blob is a file of its own that can be mapped. [`pull()`]
//! brings them from a hub or from this machine, [`Store::load`] maps them, [`Store::collect`]
//! frees what nothing names, and [`Store::verify`] hashes all of it again.
//!
//! What always holds: a manifest becomes visible in one durable transaction after all its blobs
//! are durable, so that a crash or a full disk at any point leaves the store valid and loses
//! nothing that was acknowledged. Any number of processes may use one store. Nothing that comes
//! from outside is believed: names, lengths, hashes and headers are checked before they count.
//!
//! On the disk:
//!
//! ```text
//! index.redb, index.lock  names and manifests (index.rs)
//! lock                    shared by pulls, taken alone by collecting
//! blobs/ab/abcd…          a blob, named after BLAKE3 of its bytes
//! partial/HASH/           a file on its way into the store (staging.rs)
//! damaged/                blobs that verifying found wrong
//! ```
#![deny(missing_docs)]
#![deny(unsafe_code)]

mod cache;
mod choice;
#[cfg(test)]
mod crash;
mod digest;
mod disk;
mod download;
mod http;
mod hub;
mod import;
mod index;
mod layout;
mod manifest;
mod name;
mod pull;
mod ranges;
mod reference;
mod staging;
mod store;

pub use http::HttpError;
pub use layout::LayoutError;
pub use manifest::{
    Blob, Container, Kind, Manifest, ManifestError, Origin, SourceFile, TensorEntry,
};
pub use name::{NameError, check_file_path, check_model_name, close_names};
pub use pull::{Event, Options, PullError, Pulled, pull};
pub use reference::{HubReference, Reference, ReferenceError};
pub use store::{Damage, Freed, Store, StoreError, Stored, Usage, Usages, Verified};
