//! The one place where state changes: writes go through the store, and what the store then tells makes the
//! registry and what agents are sent.
//!
//! ```text
//! REST, Node.Session ─▶ [`writes`] ─▶ store ─hook─▶ [`pump`] ─▶ registry ─▶ hub ─▶ agents
//!                                                      └─▶ [`reads`]
//! ```
//!
//! Invariant: the pump alone changes the registry's objects; a write is answered after it is durable, and
//! agents are told without waiting for the answer.
//!
//! Not here: HTTP, gRPC.

mod authz;
pub mod backup;
pub mod discover;
mod follow;
mod health;
mod history;
pub mod members;
mod pump;
pub mod reads;
pub mod tokens;
mod why;
pub mod writes;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use mesh_api::resource::{Condition, Key, Kind, Spec};
use mesh_registry::registry::Registry;
use mesh_registry::store::{Store, StoreError};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::auth::members::Members;
use crate::auth::table::Tokens;
use crate::envoy::hub::Envoys;
use crate::files::Files;
use crate::hooks::Hooks;
use crate::jwks::Shown;
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::replicas::Replicas;
use crate::xds::hub::Hub;

/// How often agents say that they are there, and how long their workloads stay when they don't.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// From the last heartbeat to the end of the node's workloads.
    pub lease: Duration,
}

/// State of the control plane, shared by everything that serves.
pub struct Engine {
    store: Arc<dyn Store>,
    registry: Mutex<Registry>,
    /// Revision that the registry has taken in.
    applied: watch::Sender<u64>,
    /// Writes that history was told of.
    history_writes: AtomicU64,
    /// Why expiry stands still, if it does.
    held: Mutex<Option<mesh_registry::lease::Held>>,
    /// What agents should have.
    pub hub: Arc<Hub>,
    /// What Envoys should have, and who they are.
    pub envoys: Arc<Envoys>,
    /// Which tokens are valid.
    pub tokens: Arc<Tokens>,
    /// Which nodes have joined.
    pub members: Arc<Members>,
    /// What status shows of nodes.
    pub nodes: Arc<Nodes>,
    /// What is known of the keys of those who issue tokens.
    pub jwks: Shown,
    /// What was done for workloads that do not get well, and who is told.
    pub hooks: Arc<Hooks>,
    /// Who else serves this store.
    pub replicas: Arc<Replicas>,
    /// What the watched directory came to.
    pub files: Files,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Heartbeats and leases of nodes.
    pub times: Times,
}

impl Engine {
    /// Reads what the store holds, and follows it from then on until the engine is dropped.
    pub fn start(
        store: Arc<dyn Store>,
        times: Times,
        replicas: Arc<Replicas>,
    ) -> Result<Arc<Self>, StoreError> {
        let engine = Arc::new(Self {
            hub: Hub::new(store.id()),
            registry: Mutex::new(Registry::new([pump::source_owner()])),
            applied: watch::Sender::new(0),
            history_writes: AtomicU64::new(0),
            held: Mutex::default(),
            tokens: Arc::default(),
            members: Arc::default(),
            nodes: Arc::default(),
            envoys: Arc::default(),
            jwks: Shown::default(),
            hooks: Arc::default(),
            replicas,
            files: Files::default(),
            metrics: Arc::default(),
            times,
            store,
        });
        let follow = follow::Follow::begin(&engine)?;
        pump::start(&engine, follow)?;
        Ok(engine)
    }

    /// The store, for what is neither object nor registration.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Random id of the store.
    pub fn store_id(&self) -> &str {
        self.store.id()
    }

    /// Looks at the registry; nothing changes meanwhile.
    pub fn read<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(&self.registry.lock())
    }

    /// What an object asks for.
    pub fn spec_of(&self, key: &Key) -> Option<Spec> {
        self.registry.lock().get(key).map(|object| object.spec.clone())
    }

    /// Hears of each revision that the registry has taken in.
    pub fn follow_applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// What holds of an object.
    fn conditions(&self, registry: &Registry, key: &Key) -> Vec<Condition> {
        let mut all = registry.conditions(key);
        if key.kind == Kind::Mesh {
            all.extend(self.jwks.conditions());
        }
        all.extend(self.files.conflict(key));
        all
    }

    /// Whether everything that was stored is being served.
    pub fn ready(&self) -> bool {
        self.registry.lock().synced()
    }
}
