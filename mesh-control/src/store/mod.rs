//! Stores behind the trait of `mesh_registry::store`: redb in a directory of this machine.
//!
//! - [`redb`]: opening, reading, waiting for a write to be durable; [`writer`]: one thread that commits what
//!   queued up together; [`tables`]: what is in the file, and what a transaction does to it.
//!
//! Not here: what the keys mean (mesh-registry's `intent`).

pub mod redb;
mod tables;
mod writer;

pub use redb::{Options, RedbStore};
pub use writer::Timings;
