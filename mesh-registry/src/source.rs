//! Events: what sources tell the registry.
//!
//! source (store, Kubernetes, …) → **Event** → registry
//!
//! Intent is what people wrote; observed state is what is there. Each event says who owns what it brings, so
//! that two owners of one name are a visible conflict and not a race.
//! Not here: how a source learns of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::resource::{Key, Resource};

/// Who an object is from: `rest`, `node:n1`, `file:/etc/mesh`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(Arc<str>);

impl Owner {
    /// The REST API.
    pub fn rest() -> Self {
        Self::named("rest")
    }

    /// The store itself, which brings what others own.
    pub fn store() -> Self {
        Self::named("store")
    }

    /// The agent of a node.
    pub fn node(node: &str) -> Self {
        Self::named(&format!("node:{node}"))
    }

    /// By its whole name.
    pub fn named(name: &str) -> Self {
        Self(name.into())
    }

    /// Its whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A lease that a registration goes with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRef {
    /// Its name: [`LeaseRef::of_node`] or [`LeaseRef::of_workload`].
    pub name: String,
    /// How long it lasts between heartbeats.
    pub ttl: Duration,
}

impl LeaseRef {
    /// Everything that one node registers goes with one lease.
    pub fn of_node(node: &str, ttl: Duration) -> Self {
        Self { name: format!("node:{node}"), ttl }
    }

    /// A workload that was registered by itself.
    pub fn of_workload(key: &Key, ttl: Duration) -> Self {
        Self { name: format!("workload:{}", key.wire_name()), ttl }
    }
}

/// What happened, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Whose.
    pub owner: Owner,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// People wrote it, or took it away.
    Intent(Change),
    /// It is there, or no longer.
    Observed(Change),
    /// All that this source had when it was first asked has been told.
    Synced,
}

/// An object's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is so now.
    Upsert {
        /// The object.
        resource: Box<Resource>,
        /// The lease that it goes with; `None`: it stays until it is removed.
        lease: Option<LeaseRef>,
    },
    /// It is gone.
    Remove(Key),
}

/// Events up to a revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The source's revision that these lead to.
    pub revision: u64,
    /// In order.
    pub events: Vec<Event>,
    /// Records that could not be read and were left out: (key, cause).
    pub refused: Vec<(String, String)>,
}

/// Why a source has nothing to say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The store behind it failed; ask again later.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
}

/// Where events come from. Asked again whenever it may have news.
pub trait Source: Send {
    /// What happened since the last call, at most about `max` events; empty: nothing. Does not wait.
    fn poll(&mut self, max: usize) -> Result<Batch, SourceError>;
}
