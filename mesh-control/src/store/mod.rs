//! Stores behind the trait of `mesh_registry::store`: redb in a directory of this machine, or etcd for several replicas.
//!
//! - [`redb`]: opening, reading, waiting for a write to be durable; [`writer`]: one thread that commits what
//!   queued up together; [`tables`]: what is in the file, and what a transaction does to it.
//! - [`etcd`]: the same over etcd's API.
//!
//! Not here: what the keys mean (mesh-registry's `intent`).

mod args;
pub mod etcd;
pub mod redb;
mod tables;
mod writer;

pub use args::{Backend, Opened, StoreArgs};
pub use etcd::{EtcdStore, Options as EtcdOptions};
pub use redb::{Options, RedbStore};
pub use writer::Timings;
