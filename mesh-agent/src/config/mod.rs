//! From what the control plane says to what the node does: one task that owns the compiler and the view of
//! the BPF maps.
//!
//! xds ──[`Update`]──▶ **config**: decode → compile → snapshot swapped → plan → maps
//! enrol ──slots─────▶              └──▶ disk, conditions
//!
//! It flows one way. No request writes configuration, and nothing that a request needs waits for this task.
//!
//! Invariants: the snapshot that the proxy loads is never older than what the maps hold, except while a
//! map write is repeated; a resource that cannot be decoded leaves the one before in force; nothing is
//! deleted from the maps before the first full sync.
//!
//! Not here: the stream (xds, sync), what resources mean (mesh-core), how maps are written (kernel).

pub mod backoff;
pub mod conditions;
pub mod connect;
pub mod disk;
mod ejected;
mod maps;
mod outside;
mod owner;
mod replicas;
pub mod resource;
pub mod sync;
#[cfg(test)]
mod tests;
mod trust;
pub mod xds;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use arc_swap::ArcSwap;
use mesh_api::proto::v1;
use mesh_core::compile::WorkloadIds;
use mesh_core::locality::Locality;
use mesh_core::plan::LocalSlots;
use mesh_core::snapshot::{Revision, Snapshot, WorkloadId};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use crate::telemetry::names::Names;
use conditions::Conditions;
pub use maps::Maps;
use resource::{Kind, Rejected, Update};

/// Numbers of an enrolled workload.
pub type Numbers = WorkloadIds;

/// Changes that wait, at most: who has one more waits itself.
const QUEUE: usize = 64;

/// What the task needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node's name.
    pub node: String,
    /// Where it is.
    pub locality: Locality,
    /// Where the snapshot is kept.
    pub state_dir: PathBuf,
}

/// What a stream tells the control plane that this node has.
#[derive(Debug, Default)]
pub struct Known {
    /// Version of each resource.
    pub versions: BTreeMap<Kind, BTreeMap<String, String>>,
    /// Revision; empty: nothing was received yet.
    pub revision: Revision,
}

/// What the task is asked to do.
enum Command {
    Known(oneshot::Sender<Known>),
    Update(Update, oneshot::Sender<Vec<Rejected>>),
    Identify {
        namespace: String,
        name: String,
        service_account: String,
        reply: oneshot::Sender<Result<Numbers, String>>,
    },
    Place {
        workload: WorkloadId,
        slots: LocalSlots,
        described: Box<v1::Workload>,
        reply: oneshot::Sender<()>,
    },
    Leave {
        namespace: String,
        name: String,
        workload: WorkloadId,
        reply: oneshot::Sender<()>,
    },
    Resolved(BTreeMap<String, Vec<IpAddr>>, oneshot::Sender<()>),
    Begin(oneshot::Sender<()>),
    Save(oneshot::Sender<()>),
}

/// Speaks to the task. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    epoch: watch::Receiver<u64>,
    trust: watch::Receiver<Arc<v1::TrustBundle>>,
}

struct Shared {
    snapshot: Arc<ArcSwap<Snapshot>>,
    conditions: Arc<Conditions>,
    names: Names,
    /// There is something to serve: a snapshot from disk, or a first sync.
    served: AtomicBool,
    /// Everything has come once since this agent started.
    synced: AtomicBool,
    /// When the epoch in force came.
    since: Mutex<Instant>,
    /// Workloads enrolled on this node.
    enrolled: AtomicUsize,
    /// Endpoints that this node leaves out.
    ejections: Mutex<Vec<v1::Ejection>>,
}

/// Loads what is on disk, compiles it, and starts the task on the current runtime. The maps are left as
/// they are until [`Handle::begin`].
pub fn start(options: Options, maps: Arc<dyn Maps>, snapshot: Arc<ArcSwap<Snapshot>>) -> Handle {
    let (commands, queue) = mpsc::channel(QUEUE);
    let shared = Arc::new(Shared {
        snapshot,
        conditions: Arc::default(),
        names: Names::default(),
        served: AtomicBool::new(false),
        synced: AtomicBool::new(false),
        since: Mutex::new(Instant::now()),
        enrolled: AtomicUsize::new(0),
        ejections: Mutex::default(),
    });
    let (epochs, epoch) = watch::channel(0);
    let (sender, trust) = trust::Trust::new();
    let owner = owner::Owner::new(options, maps, shared.clone(), (epochs, sender));
    tokio::spawn(owner.run(queue));
    Handle { commands, shared, epoch, trust }
}

impl Handle {
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }

    /// What this node has; `None`: the agent is ending.
    pub async fn known(&self) -> Option<Known> {
        self.ask(Command::Known).await
    }

    /// Applies an update; the resources that were not taken. `None`: the agent is ending.
    pub async fn apply(&self, update: Update) -> Option<Vec<Rejected>> {
        self.ask(|reply| Command::Update(update, reply)).await
    }

    /// Numbers for a workload that is being enrolled; its own until [`Handle::leave`].
    pub async fn identify(
        &self,
        namespace: &str,
        name: &str,
        service_account: &str,
    ) -> Result<Numbers, String> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let service_account = service_account.to_owned();
        let answer = self.ask(|reply| Command::Identify { namespace, name, service_account, reply }).await;
        answer.unwrap_or_else(|| Err("the agent is ending".into()))
    }

    /// Where an enrolled workload's listeners are, and what it is: policies select it from now on, whether the
    /// control plane knows it or not.
    pub async fn place(&self, workload: WorkloadId, slots: LocalSlots, described: v1::Workload) {
        let described = Box::new(described);
        self.ask(|reply| Command::Place { workload, slots, described, reply }).await;
    }

    /// The workload is no longer enrolled.
    pub async fn leave(&self, namespace: &str, name: &str, workload: WorkloadId) {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        self.ask(|reply| Command::Leave { namespace, name, workload, reply }).await;
    }

    /// What host names outside of the mesh resolve to: all that are known.
    pub async fn resolved(&self, resolved: BTreeMap<String, Vec<IpAddr>>) {
        self.ask(|reply| Command::Resolved(resolved, reply)).await;
    }

    /// From now on the maps follow the snapshot: to be called when the workloads of an earlier agent have
    /// been found again.
    pub async fn begin(&self) {
        self.ask(Command::Begin).await;
    }

    /// Writes the snapshot to disk: before the agent ends.
    pub async fn save(&self) {
        self.ask(Command::Save).await;
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// What is wrong.
    pub fn conditions(&self) -> &Conditions {
        &self.shared.conditions
    }

    /// The same, for who outlives this handle.
    pub fn shared_conditions(&self) -> Arc<Conditions> {
        self.shared.conditions.clone()
    }

    /// Whom to believe; empty until somebody has said.
    pub fn trust(&self) -> watch::Receiver<Arc<v1::TrustBundle>> {
        self.trust.clone()
    }

    /// Wakes at each epoch.
    pub fn epoch(&self) -> watch::Receiver<u64> {
        self.epoch.clone()
    }

    /// Names of numbers that the snapshot does not hold.
    pub fn names(&self) -> &Names {
        &self.shared.names
    }

    /// When the epoch in force came.
    pub fn since(&self) -> Instant {
        *self.shared.since.lock()
    }

    /// Workloads enrolled on this node.
    pub fn enrolled(&self) -> usize {
        self.shared.enrolled.load(Relaxed)
    }

    /// Endpoints that this node leaves out for what it saw of them.
    pub fn ejections(&self) -> Vec<v1::Ejection> {
        self.shared.ejections.lock().clone()
    }

    /// These are left out now.
    pub fn set_ejections(&self, ejections: Vec<v1::Ejection>) {
        *self.shared.ejections.lock() = ejections;
    }

    /// Has everything come once since this agent started? Before, what is missing may be what is not known yet.
    pub fn synced(&self) -> bool {
        self.shared.synced.load(Relaxed)
    }

    /// Is there something to serve?
    pub fn served(&self) -> bool {
        self.shared.served.load(Relaxed)
    }
}
