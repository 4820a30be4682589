//! Writes: objects of people, registrations of nodes and of the API.
//!
//! The store blocks until a write is durable, so every call runs on a blocking thread; their number is
//! bounded by tokio's pool, their waiting by the store's own queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::error::{ApiError, Reason};
use mesh_api::resource::{Condition, Key, MeshSpec, Resource, Spec};
use mesh_registry::history::By;
use mesh_registry::intent::{Author, Intents, WriteError, Written};
use mesh_registry::source::{LeaseRef, Owner};
use mesh_registry::store::StoreError;
use serde_json::Value;

use super::Engine;
use crate::ca::hex;
use crate::clock::unix_ms;

/// How long an answer waits for the registry to have taken the write in.
const APPLY_TIME: Duration = Duration::from_secs(2);

/// A random id for a new object.
pub(super) fn new_uid() -> String {
    let mut bytes = [0; 16];
    // Without randomness the server would not have come up; and what the id is for, telling an object from
    // an earlier one of its name, revisions do as well.
    let _ = rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut bytes);
    hex(&bytes)
}

/// How something is to be written.
#[derive(Clone, Debug)]
pub struct Manner {
    /// Whose the object is then.
    pub owner: Owner,
    /// Who writes.
    pub by: By,
    /// The revision that it is to be written over; 0: only if it is new.
    pub expect: Option<u64>,
    /// Only say what would be written.
    pub dry_run: bool,
}

impl Manner {
    /// Of the REST API, over whatever there is.
    pub fn rest(by: By) -> Self {
        Self { owner: Owner::rest(), by, expect: None, dry_run: false }
    }

    pub(super) fn author(&self) -> Author<'_> {
        let Self { owner, by, dry_run, .. } = self;
        Author {
            owner: owner.clone(),
            by: by.clone(),
            dry_run: *dry_run,
            now_ms: unix_ms(),
            new_uid: &new_uid,
        }
    }
}

impl Engine {
    /// Runs `write` on a blocking thread and times it.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        write: impl FnOnce(&Engine) -> Result<T, WriteError> + Send + 'static,
    ) -> Result<T, WriteError> {
        let engine = self.clone();
        match tokio::task::spawn_blocking(move || write(&engine)).await {
            Ok(result) => result,
            Err(cause) => {
                Err(StoreError::Failed { operation: "finish a call", cause: cause.to_string() }.into())
            }
        }
    }

    /// Counts and times what changes the store.
    pub(super) fn commit<T>(&self, write: impl FnOnce() -> Result<T, WriteError>) -> Result<T, WriteError> {
        let start = Instant::now();
        let result = write();
        if result.is_ok() {
            self.metrics.writes.inc();
            self.metrics.commit.observe(start.elapsed());
        }
        result
    }

    pub(super) fn intents(&self) -> Intents<'_> {
        Intents::new(&*self.store)
    }

    /// Writes an object of people.
    pub async fn put(self: &Arc<Self>, manner: Manner, resource: Resource) -> Result<Written, WriteError> {
        let written = self
            .blocking(move |engine| {
                mesh_envoy::check::check(&resource)?;
                let write = || engine.intents().put(&manner.author(), &resource, manner.expect);
                if manner.dry_run { write() } else { engine.commit(write) }
            })
            .await?;
        if written.changed {
            self.noted();
        }
        Ok(written)
    }

    /// Registers a workload under a lease.
    pub async fn register(
        self: &Arc<Self>,
        owner: Owner,
        workload: Resource,
        lease: LeaseRef,
    ) -> Result<Written, WriteError> {
        self.blocking(move |engine| {
            let manner = Manner { owner, ..Manner::rest(By::system()) };
            let author = manner.author();
            engine.commit(|| engine.intents().register(&author, &workload, &lease))
        })
        .await
    }

    /// Ends registrations of an owner.
    pub async fn deregister(self: &Arc<Self>, owner: Owner, keys: Vec<Key>) -> Result<u64, WriteError> {
        self.blocking(move |engine| engine.commit(|| engine.intents().deregister(&owner, &keys))).await
    }

    /// Removes an object of people, or a registration that nobody keeps alive.
    pub async fn delete(self: &Arc<Self>, manner: Manner, key: Key) -> Result<u64, WriteError> {
        let revision = self
            .blocking(move |engine| {
                let write = || match engine.intents().delete(&manner.author(), &key, manner.expect) {
                    Err(WriteError::Refused(error)) if error.reason == Reason::NotFound => {
                        engine.delete_registration(&key, manner.dry_run, error)
                    }
                    done => done,
                };
                if manner.dry_run { write() } else { engine.commit(write) }
            })
            .await?;
        self.noted();
        Ok(revision)
    }

    fn delete_registration(&self, key: &Key, dry_run: bool, not_found: ApiError) -> Result<u64, WriteError> {
        let registry = self.registry.lock();
        let owner = registry.lease_of(key).and_then(|_| registry.owner(key)).cloned();
        drop(registry);
        let Some(owner) = owner else { return Err(not_found.into()) };
        let node = owner.as_str().strip_prefix("node:");
        if let Some(node) = node
            && (self.nodes.list().get(node).is_some_and(|node| node.session)
                || self.replicas.heard_elsewhere().contains_key(&self.node_lease(node).name))
        {
            let message = format!("{key} runs on node {node}, which is there; end it on that node");
            let value = Value::from(key.name.as_str());
            return Err(ApiError::new(Reason::Owned, "metadata.name", value, "a workload of nobody")
                .saying(message)
                .into());
        }
        if dry_run {
            return Ok(self.store.revision()?);
        }
        self.intents().deregister(&owner, std::slice::from_ref(key))
    }

    /// Makes the `Mesh` with its defaults where there is none.
    pub async fn ensure_mesh(self: &Arc<Self>) -> Result<(), WriteError> {
        self.blocking(|engine| {
            if engine.intents().get(&Key::mesh())?.is_some() {
                return Ok(());
            }
            let mesh = Resource::new("", "mesh", Spec::Mesh(MeshSpec::default()));
            let manner = Manner::rest(By::system());
            match engine.commit(|| engine.intents().put(&manner.author(), &mesh, Some(0))) {
                // Another replica made it a moment ago.
                Err(WriteError::Refused(error)) if error.reason == Reason::Stale => Ok(()),
                done => done.map(drop),
            }
        })
        .await
    }

    /// Waits until the registry has taken `revision` in; bounded.
    pub async fn applied(&self, revision: u64) {
        let mut applied = self.applied.subscribe();
        let reached = applied.wait_for(|applied| *applied >= revision);
        if tokio::time::timeout(APPLY_TIME, reached).await.is_err() {
            tracing::warn!(revision, "the registry lags behind the store");
        }
    }

    /// What holds of an object but should not, once `revision` is taken in.
    pub async fn problems(&self, key: &Key, revision: u64) -> Vec<Condition> {
        self.applied(revision).await;
        self.conditions(&self.registry.lock(), key).into_iter().filter(is_problem).collect()
    }

    /// Renews the lease of a workload that the API registered; false: there is none.
    pub fn heartbeat_workload(&self, key: &Key) -> bool {
        let mut registry = self.registry.lock();
        let Some(lease) = registry.lease_of(key).cloned() else { return false };
        let own = LeaseRef::of_workload(key, lease.ttl);
        own == lease && registry.leases_mut().heartbeat(&lease.name, Instant::now()).is_some()
    }

    /// A node's session begins.
    pub fn node_hello(&self, node: &str) {
        let lease = self.node_lease(node);
        self.registry.lock().leases_mut().hello(&lease, Instant::now());
    }

    /// A node says again what it has.
    pub fn node_confirms(&self, node: &str, key: &Key) {
        let lease = self.node_lease(node);
        self.registry.lock().leases_mut().confirm(&lease.name, key);
    }

    /// A node is there. `None`: it has no lease; else what it had before its session and has no more.
    pub fn node_heartbeat(&self, node: &str) -> Option<Vec<Key>> {
        let lease = self.node_lease(node);
        self.registry.lock().leases_mut().heartbeat(&lease.name, Instant::now())
    }

    /// The lease of all that a node registers.
    pub fn node_lease(&self, node: &str) -> LeaseRef {
        LeaseRef::of_node(node, self.times.lease)
    }
}

/// Conditions say that something is well (`True`) except `Conflicted`.
pub fn is_problem(condition: &Condition) -> bool {
    condition.status == (condition.kind == "Conflicted")
}
