//! The store in etcd, shared by several replicas of mesh-control.
//!
//! ```text
//! transact ─▶ [`plan`] ─Txn─▶ [`client`] ─▶ etcd ─watch─▶ [`follow`] ─▶ [`mirror`] ─▶ get, range, changes, leases
//! replicas ([`seat`]) ──lease, keys under it──▶ etcd ─────────────────────┘
//! ```
//!
//! Reads are answered from memory, also while etcd is away; a write is acknowledged when etcd has committed it and the
//! memory has it. Everything of etcd runs on a thread of its own: the store's calls may come from anywhere.
//!
//! Invariants: revisions are etcd's; of a write whose fate is unknown it is said that it may have been done; a write is
//! answered within [`WRITE_TIME`]. Why etcd is spoken to without a crate for it: decision 35.

mod client;
mod follow;
mod layout;
mod mirror;
#[allow(clippy::all, clippy::pedantic, missing_docs)]
mod pb {
    tonic::include_proto!("etcdserverpb");
}
mod plan;
mod seat;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use mesh_registry::store::{Changes, Entry, Hook, Range, Store, StoreError, StoredLease, Txn};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use self::client::Client;
use self::layout::Layout;
use self::mirror::Mirror;
use self::plan::Guard;
use super::Timings;
use crate::ca::hex;

/// A write is answered within this time.
const WRITE_TIME: Duration = Duration::from_secs(5);
/// The same where etcd has taken no write for as long.
const KNOWN_TIME: Duration = Duration::from_secs(1);
/// How long the memory may take to follow a write that is done, before it is answered all the same.
const FOLLOW_TIME: Duration = Duration::from_secs(2);
/// How long it is looked whether a write whose fate is unknown was done.
const DOUBT_TIME: Duration = Duration::from_millis(1500);
/// How long etcd may take to answer at start.
const START_TIME: Duration = Duration::from_secs(10);
/// Writes that may be under way.
const QUEUE: usize = 4096;
/// How often a plan that met a change is made anew.
const RETRIES: usize = 16;

/// Where etcd is, and as whom it is spoken to.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `http(s)://HOST:PORT` of each member.
    pub endpoints: Vec<String>,
    /// Whom to believe, PEM; needed for https.
    pub ca: Option<PathBuf>,
    /// What is shown, PEM.
    pub cert: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
    /// Name and password.
    pub user: Option<(String, String)>,
    /// What every key begins with.
    pub prefix: String,
    /// Etcd's history is left alone: somebody else sees to it that it is forgotten.
    pub keeps_history: bool,
}

/// What the thread of etcd and the callers share.
struct Shared {
    client: Client,
    layout: Layout,
    mirror: Mutex<Mirror>,
    /// Turns with everything that the mirror has taken in.
    turned: watch::Sender<u64>,
    hooks: Mutex<Vec<Hook>>,
    timings: Mutex<Timings>,
    /// Since when etcd takes no writes, and why.
    trouble: Mutex<Option<(Instant, String)>>,
    following: AtomicBool,
    marks: AtomicU64,
    /// Of this process, in `head`.
    writer: String,
    /// The leader has etcd forget old history.
    forgets: bool,
}

/// A store in etcd.
pub struct EtcdStore {
    id: String,
    shared: Arc<Shared>,
    handle: Handle,
    waiting: AtomicUsize,
    replicas: Arc<crate::replicas::Replicas>,
    /// Dropped: the thread ends.
    _alive: oneshot::Sender<()>,
}

impl EtcdStore {
    /// Connects, makes the store where there is none, and reads all of it. `name`: of this replica, and of no other.
    pub fn open(options: &Options, name: &str) -> Result<Self, StoreError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| thread_failed(&error))?;
        let client = {
            // Connections are tasks of that thread.
            let _of_thread = runtime.enter();
            Client::new(options).map_err(|cause| StoreError::Failed { operation: "reach etcd", cause })?
        };
        let shared = Arc::new(Shared {
            client,
            layout: Layout::new(&options.prefix),
            mirror: Mutex::default(),
            turned: watch::Sender::new(0),
            hooks: Mutex::default(),
            timings: Mutex::default(),
            trouble: Mutex::default(),
            following: AtomicBool::new(true),
            marks: AtomicU64::new(0),
            writer: random()?,
            forgets: !options.keeps_history,
        });
        let replicas = crate::replicas::Replicas::of(name);
        let (alive, ended) = oneshot::channel::<()>();
        let (opened, opening) = sync_channel(1);
        let (of_thread, seat) = (shared.clone(), replicas.clone());
        let thread = std::thread::Builder::new().name("etcd".to_owned()).spawn(move || {
            runtime.block_on(async move {
                let handle = Handle::current();
                match begin(&of_thread).await {
                    Err(error) => drop(opened.send(Err(error))),
                    Ok(at) => {
                        let _ = opened.send(Ok(handle));
                        tokio::select! {
                            () = follow::follow(of_thread.clone(), at) => {}
                            () = seat::hold(of_thread, seat) => {}
                            _ = ended => {}
                        }
                    }
                }
            });
        });
        thread.map_err(|error| thread_failed(&error))?;
        let handle = opening.recv().map_err(|error| thread_failed(&error))??;
        let id = shared.mirror.lock().id.clone();
        Ok(Self { id, shared, handle, waiting: AtomicUsize::new(0), replicas, _alive: alive })
    }

    /// How long transactions took.
    pub fn timings(&self) -> Timings {
        self.shared.timings.lock().clone()
    }

    /// The replicas of this store.
    pub fn replicas(&self) -> Arc<crate::replicas::Replicas> {
        self.replicas.clone()
    }
}

fn thread_failed(cause: &dyn std::fmt::Display) -> StoreError {
    StoreError::Failed { operation: "start its thread", cause: cause.to_string() }
}

fn random() -> Result<String, StoreError> {
    let mut bytes = [0; 12];
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    let none = |_| StoreError::Failed { operation: "draw its id", cause: "no random numbers".to_owned() };
    random.fill(&mut bytes).map_err(none)?;
    Ok(hex(&bytes))
}

/// Makes the store where there is none, and reads it.
async fn begin(shared: &Shared) -> Result<i64, StoreError> {
    let until = Instant::now() + START_TIME;
    let unreached = |failure: client::Failure| StoreError::Failed {
        operation: "reach etcd",
        cause: format!("{failure}; check --etcd-endpoints, and that most of its members run"),
    };
    let (id, head) = (shared.layout.id(), shared.layout.head());
    let make = pb::TxnRequest {
        compare: vec![plan::modified(id.clone(), 0)],
        success: vec![plan::put(id, random()?.into_bytes()), plan::put(head, shared.mark())],
        failure: Vec::new(),
    };
    loop {
        match shared.client.txn(make.clone(), until).await {
            Ok(_) => break,
            // It makes a store once, however often it is done.
            Err(failure) if Instant::now() >= until || failure.undone => return Err(unreached(failure)),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    follow::load(shared).await.map_err(unreached)
}

/// A status with its causes.
fn failed(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(cause) => format!("etcd: {}: {cause}", status.message()),
        None => format!("etcd: {}", status.message()),
    }
}

impl Shared {
    /// Of one write, and of no other.
    fn mark(&self) -> Vec<u8> {
        format!("{}:{}", self.writer, self.marks.fetch_add(1, Relaxed)).into_bytes()
    }

    /// The mirror has taken something in.
    fn told(&self) {
        let revision = {
            let mut mirror = self.mirror.lock();
            for key in mirror.unread.drain(..) {
                tracing::error!(key, "a value in etcd cannot be read and is left out");
            }
            mirror.revision()
        };
        self.hooks.lock().iter().for_each(|hook| hook(revision));
        self.turned.send_modify(|turn| *turn += 1);
    }

    fn watching(&self) {
        self.following.store(true, Relaxed);
    }

    /// The watch broke.
    fn broken(&self, cause: &str) {
        if self.following.swap(false, Relaxed) {
            tracing::warn!(cause, "etcd is not followed; trying its next member");
        }
    }

    /// What a write, or the seat's renewal, came to.
    fn heard(&self, outcome: Result<(), &str>) {
        let mut trouble = self.trouble.lock();
        match (outcome, trouble.as_ref()) {
            (Ok(()), Some(_)) => tracing::info!("etcd takes writes again"),
            (Err(cause), None) => tracing::error!(cause, "etcd takes no writes"),
            _ => {}
        }
        let since = trouble.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        *trouble = outcome.err().map(|cause| (since, cause.to_owned()));
    }

    /// How long a write may take: where none was taken for long, the next is not kept waiting.
    fn patience(&self) -> Duration {
        let long = |(since, _): &(Instant, String)| since.elapsed() > WRITE_TIME;
        if self.trouble.lock().as_ref().is_some_and(long) { KNOWN_TIME } else { WRITE_TIME }
    }

    /// Waits until the mirror says so; false: it did not in time.
    async fn wait(&self, time: Duration, reached: impl Fn(&Mirror) -> bool) -> bool {
        let mut turned = self.turned.subscribe();
        let wait = async {
            while !reached(&self.mirror.lock()) {
                if turned.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(time, wait).await.is_ok()
    }

    async fn transact(&self, txn: Txn) -> Result<u64, StoreError> {
        let until = Instant::now() + self.patience();
        for _ in 0..RETRIES {
            let mark = self.mark();
            let planned = plan::plan(&self.layout, &self.mirror.lock(), &txn, &mark)?;
            let Some(plan) = planned else { return Ok(self.mirror.lock().revision()) };
            let begun = Instant::now();
            let answer = match self.client.txn(plan.request, until).await {
                Ok(answer) => answer,
                Err(failure) => return self.doubt(&failure, &mark).await,
            };
            self.heard(Ok(()));
            if answer.succeeded {
                self.timings.lock().add(begun.elapsed(), 1);
                if !plan.writes {
                    return Ok(self.mirror.lock().revision());
                }
                let revision = answer.header.unwrap_or_default().revision as u64;
                if !self.wait(FOLLOW_TIME, |mirror| mirror.revision() >= revision).await {
                    tracing::warn!(revision, "what was written has not come back yet");
                }
                return Ok(revision);
            }
            let found = plan::found(&answer);
            if let Some(conflict) = self.conflict(&txn, &found).await {
                return Err(conflict);
            }
            self.catch_up(&plan.guards, &found[txn.compare.len().min(found.len())..]).await;
        }
        let lease = "a lease that others write all the time".to_owned();
        Err(StoreError::Conflict { key: lease, expected: 0, found: 0 })
    }

    /// The first of the transaction's own comparisons that did not hold. Who looks again then sees what it met.
    async fn conflict(&self, txn: &Txn, found: &[u64]) -> Option<StoreError> {
        let (compare, found) =
            txn.compare.iter().zip(found).find(|(compare, found)| compare.modified != **found)?;
        let (key, found) = (compare.key.clone(), *found);
        self.wait(FOLLOW_TIME, |mirror| {
            if found == 0 { mirror.get(&key).is_none() } else { mirror.modified(&key) >= found }
        })
        .await;
        Some(StoreError::Conflict { key, expected: compare.modified, found })
    }

    /// A lease's record is not as it was seen: waits until it is seen as it is.
    async fn catch_up(&self, guards: &[Guard], found: &[u64]) {
        for (guard, found) in guards.iter().zip(found) {
            self.wait(FOLLOW_TIME, |mirror| {
                mirror
                    .lease(guard.name())
                    .map_or(*found == 0, |record| record.modified >= *found && *found > 0)
            })
            .await;
        }
    }

    /// A call failed. It may have been done all the same: the watch will say so.
    async fn doubt(&self, failure: &client::Failure, mark: &[u8]) -> Result<u64, StoreError> {
        let marked = |mirror: &Mirror| mirror.marked(mark).is_some();
        let done = !failure.undone && self.wait(DOUBT_TIME, marked).await;
        let revision = if done { self.mirror.lock().marked(mark) } else { None };
        if let Some(revision) = revision {
            return Ok(revision);
        }
        self.heard(Err(&failure.cause));
        let doubt = if failure.undone { "" } else { " (this write may have been done all the same)" };
        Err(StoreError::Unavailable { cause: format!("{}{doubt}", failure.cause) })
    }
}

impl Store for EtcdStore {
    fn id(&self) -> &str {
        &self.id
    }

    fn revision(&self) -> Result<u64, StoreError> {
        Ok(self.shared.mirror.lock().revision())
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.shared.mirror.lock().get(key).map(|entry| Entry::clone(entry)))
    }

    fn range(&self, prefix: &str, at: Option<u64>) -> Result<Range, StoreError> {
        self.shared.mirror.lock().range(prefix, at)
    }

    fn transact(&self, txn: Txn) -> Result<u64, StoreError> {
        txn.check()?;
        let waiting = self.waiting.fetch_add(1, Relaxed);
        let done = if waiting >= QUEUE {
            Err(StoreError::Busy { waiting })
        } else {
            let (answer, answered) = sync_channel(1);
            let shared = self.shared.clone();
            self.handle.spawn(async move {
                // Whoever asked may be gone; what was written stays written.
                let _ = answer.send(shared.transact(txn).await);
            });
            let ended = |_| StoreError::Unavailable { cause: "this process ends".to_owned() };
            answered.recv().map_err(ended).flatten()
        };
        self.waiting.fetch_sub(1, Relaxed);
        done
    }

    fn changes(&self, prefix: &str, after: u64, max: usize) -> Result<Changes, StoreError> {
        self.shared.mirror.lock().changes(prefix, after, max)
    }

    fn on_commit(&self, hook: Hook) {
        self.shared.hooks.lock().push(hook);
    }

    fn leases(&self) -> Result<Vec<StoredLease>, StoreError> {
        Ok(self.shared.mirror.lock().leases())
    }

    fn compact(&self, upto: u64) -> Result<(), StoreError> {
        self.shared.mirror.lock().compact(upto)
    }

    fn trouble(&self) -> Option<String> {
        self.shared.trouble.lock().as_ref().map(|(_, cause)| cause.clone())
    }
}
