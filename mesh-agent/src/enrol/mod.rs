//! Makes workloads of this node part of the mesh, and notices when they end.
//!
//! agent.sock (admin) ──▶ **enrol** ──▶ kernel entry, listeners, proxy (datapath)
//!                           ├──▶ config: numbers, slots → maps
//!                           └──▶ session: registered with the control plane
//!
//! A workload is located by descriptors that root handed over, or found again by its cgroup after a restart
//! of the agent; never by what the control plane says. Enrolled means: the kernel decides its connections.
//! The control plane's word is waited for shortly; without one the enrolment holds, under a condition.
//!
//! Invariants: one workload a name, one a namespace, but for the host's, where it is one a cgroup (host); what
//! fails half-way leaves nothing; a workload that has ended is withdrawn, whoever else is away.

pub mod addresses;
pub mod cgroup;
pub mod datapath;
mod drain;
mod foreign;
mod host;
mod listeners;
mod persist;
mod places;
mod restore;
mod table;
mod wanted;

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use mesh_api::local::LocalWorkload;
use mesh_core::locality::Locality;
use mesh_core::plan::LocalSlots;
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use crate::config::Handle as Config;
use crate::identity::renew::Accounts;
use crate::session::{Handle as Session, Name, Verdict};
use datapath::{DataPath, Install, key_of};
use host::Seat;
use persist::Record;
pub use places::Enrolee;
use table::{Live, Table};
pub use wanted::Wanted;

/// How long an enrolment waits for the control plane's word.
const VERDICT: Duration = Duration::from_secs(4);

/// Condition of enrolments that cannot be remembered.
const DISK: &str = "enrolments on disk";

/// Where things are on this node.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name.
    pub node: String,
    /// Where it is, and with it its workloads.
    pub locality: Locality,
    /// Where cgroup2 is mounted: workloads live below it.
    pub cgroup_root: PathBuf,
    /// Below which the agent makes cgroups for `run`.
    pub workload_cgroup: PathBuf,
    /// Where enrolments are remembered.
    pub state_dir: PathBuf,
    /// Workloads' questions to resolvers are taken.
    pub dns: bool,
}

/// An enrolment that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// The workload.
    pub workload: LocalWorkload,
    /// What is not as it should be.
    pub conditions: Vec<String>,
}

/// All enrolments of this node. Cheap to clone.
#[derive(Clone)]
pub struct Enrolments {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    data: Box<dyn DataPath>,
    config: Config,
    session: Session,
    table: Mutex<Table>,
    /// Of those that the control plane has taken.
    accounts: watch::Sender<Accounts>,
}

/// Where a workload is: its namespace, and the cgroup that it lives in.
struct Place {
    netns: OwnedFd,
    cgroup: PathBuf,
    own_cgroup: bool,
    /// It was enrolled by an agent before this one: it has lived, and stands on disk.
    restored: bool,
}

impl Enrolments {
    /// Nobody yet. [`Enrolments::restore`] is to be called before anybody enrols.
    pub fn new(settings: Settings, data: Box<dyn DataPath>, config: Config, session: Session) -> Self {
        let table = Mutex::new(Table::new(data.enrolled()));
        let accounts = watch::Sender::default();
        Self { inner: Arc::new(Inner { settings, data, config, session, table, accounts }) }
    }

    /// Enrols a workload that lives, or will, in the cgroup of this descriptor.
    pub async fn enrol(
        &self,
        wanted: Wanted,
        netns: OwnedFd,
        directory: &OwnedFd,
    ) -> Result<Enrolled, String> {
        let cgroup = cgroup::resolve(directory.as_fd(), &self.inner.settings.cgroup_root)?;
        self.add(wanted, Place { netns, cgroup, own_cgroup: false, restored: false }).await
    }

    /// Makes a cgroup, enrols, and moves the process in.
    pub async fn run(&self, wanted: Wanted, netns: OwnedFd, pid: i32) -> Result<Enrolled, String> {
        let name = wanted.name();
        if pid <= 0 {
            return Err(
                "the calling process is not visible to the agent: run both in one pid namespace".into()
            );
        }
        self.refuse_taken(&name, None).await?;
        let base = &self.inner.settings.workload_cgroup;
        let cgroup = cgroup::make(base, &name.0, &name.1)
            .map_err(|e| format!("no cgroup can be made below {}: {e}", base.display()))?;
        let place = Place { netns, cgroup: cgroup.clone(), own_cgroup: true, restored: false };
        let enrolled = match self.add(wanted, place).await {
            Ok(enrolled) => enrolled,
            Err(reason) => {
                cgroup::remove(&cgroup);
                return Err(reason);
            }
        };
        if let Err(error) = cgroup::put(&cgroup, pid) {
            self.withdraw(&name, "its process could not be moved into its cgroup").await;
            return Err(format!("process {pid} cannot be moved into {}: {error}", cgroup.display()));
        }
        if let Some(live) = self.inner.table.lock().await.get(&name) {
            live.lived.store(true, Relaxed);
        }
        Ok(enrolled)
    }

    /// Withdraws a workload that asks for it, once it has drained for this time.
    pub async fn leave(&self, namespace: &str, name: &str, drain: Duration) -> Result<(), String> {
        let name = (namespace.to_owned(), name.to_owned());
        if !drain.is_zero() {
            self.drain(&name, drain).await;
        }
        let left = self.withdraw(&name, "it was asked for").await;
        if left { Ok(()) } else { Err(format!("{}/{} is not enrolled on this node", name.0, name.1)) }
    }

    /// Who is enrolled.
    pub async fn list(&self) -> Vec<LocalWorkload> {
        self.inner.table.lock().await.iter().map(|live| describe(&live.record)).collect()
    }

    /// The accounts of workloads that the control plane has taken.
    pub fn accounts(&self) -> watch::Receiver<Accounts> {
        self.inner.accounts.subscribe()
    }

    /// Acts on verdicts that nobody waited for; runs as long as the session does.
    pub async fn follow(self, mut verdicts: mpsc::Receiver<(Name, Verdict)>) {
        while let Some((name, verdict)) = verdicts.recv().await {
            if let Err(reason) = self.settle(&name, verdict).await {
                tracing::warn!(workload = %condition(&name), reason, "withdrawn: the control plane refused it");
            }
        }
    }

    /// One workload a name. A unit that systemd starts again may be back in its cgroup before anybody has seen that
    /// empty: it takes its own place.
    async fn refuse_taken(&self, name: &Name, cgroup: Option<&Path>) -> Result<(), String> {
        let (ended, again) = match self.inner.table.lock().await.get(name) {
            None => return Ok(()),
            Some(Live { record, .. }) if record.host_network && Some(&*record.cgroup) == cgroup => {
                (false, true)
            }
            Some(live) => (live.has_ended(), false),
        };
        if again {
            self.withdraw(name, "it is enrolled anew").await;
            return Ok(());
        }
        if !ended {
            return Err(format!(
                "{}/{} is already enrolled on this node: give this one another name",
                name.0, name.1
            ));
        }
        // Its watcher is about to say the same.
        self.withdraw(name, "its cgroup is empty").await;
        Ok(())
    }

    /// Enrols and waits for the control plane's word.
    async fn add(&self, wanted: Wanted, place: Place) -> Result<Enrolled, String> {
        let name = wanted.name();
        self.refuse_taken(&name, Some(&place.cgroup)).await?;
        let verdict = self.install(wanted, place).await?;
        let conditions = if let Ok(Ok(verdict)) = tokio::time::timeout(VERDICT, verdict).await {
            self.settle(&name, verdict).await?
        } else {
            let line = "enrolled, and not registered yet: the control plane does not answer".to_owned();
            self.inner.config.conditions().set(&condition(&name), line.clone());
            vec![line]
        };
        let table = self.inner.table.lock().await;
        let live = table.get(&name).ok_or("it ended while it was being enrolled")?;
        Ok(Enrolled { workload: describe(&live.record), conditions })
    }

    /// Everything that is done on this node.
    async fn install(&self, wanted: Wanted, place: Place) -> Result<oneshot::Receiver<Verdict>, String> {
        let inner = &*self.inner;
        let host = host_seat(&wanted, &place)?;
        if !place.restored
            && let Some(reason) = foreign::refusal(&place.cgroup, place.netns.as_fd())
        {
            return Err(reason);
        }
        let mut table = inner.table.lock().await;
        let name = wanted.name();
        if table.get(&name).is_some() {
            return Err(format!("{}/{} is being enrolled by somebody else", name.0, name.1));
        }
        let netns = Arc::new(place.netns);
        let opening = netns.clone();
        let dns = inner.settings.dns;
        let opened = tokio::task::spawn_blocking(move || listeners::open(opening.as_fd(), dns))
            .await
            .map_err(|e| e.to_string())?
            .map_err(|e| format!("its network namespace cannot be used: {e}"))?;
        let key = host.map_or_else(|| key_of(opened.cookie), Seat::key);
        if let Some(other) = table.by_key(key) {
            let (namespace, name) = (&other.record.namespace, &other.record.name);
            let what = if host.is_some() { "cgroup" } else { "network namespace" };
            return Err(format!("its {what} is already that of {namespace}/{name}: one workload a {what}"));
        }
        let addresses = wanted.addresses_or(&opened.addresses)?;
        if host.is_some() {
            let others = table.iter().map(|live| &live.record);
            if let Some(reason) = host::refusal(&addresses, &wanted.ports(), &opened.addresses, others) {
                return Err(reason);
            }
        }
        let numbers = inner.config.identify(&wanted.namespace, &wanted.name, &wanted.service_account).await?;
        let installed = match table.slot_for(key) {
            None => Err("the map LISTENERS is full: no more workloads fit this node".to_owned()),
            Some(slot) => {
                let addresses = addresses.clone();
                let install = Install { numbers, netns, opened, slot, addresses, host };
                inner.data.install(install).map(|()| slot)
            }
        };
        let slot = match installed {
            Ok(slot) => slot,
            Err(reason) => {
                inner.config.leave(&wanted.namespace, &wanted.name, numbers.workload).await;
                return Err(reason);
            }
        };
        let home = inner.data.home(numbers.workload);
        let slots = LocalSlots { listener_slot: slot, heartbeat_slot: home };
        let mut upsert = wanted.upsert(&inner.settings, &addresses);
        upsert.starting = !place.restored && self.is_checked(&wanted.namespace);
        let described = upsert.workload.clone().unwrap_or_default();
        inner.config.place(numbers.workload, slots, described).await;
        inner.data.carry(numbers.workload);
        let lived = Arc::new(AtomicBool::new(place.restored));
        let record = wanted.into_record(addresses, place.cgroup, place.own_cgroup);
        let watcher = Some(self.watch(name.clone(), record.cgroup.clone(), lived.clone()));
        let fresh = !place.restored;
        table.insert(Live { record, key, numbers, slot, fresh, lived, watcher });
        if !place.restored {
            self.remember(&table).await;
        }
        drop(table);
        tracing::info!(namespace = name.0, name = name.1, workload = numbers.workload, "enrolled");
        Ok(inner.session.upsert(upsert).await)
    }

    /// What a verdict leads to; an error: the workload was refused and withdrawn.
    async fn settle(&self, name: &Name, verdict: Verdict) -> Result<Vec<String>, String> {
        let what = condition(name);
        let conditions = self.inner.config.conditions();
        let mut table = self.inner.table.lock().await;
        let Some(live) = table.get_mut(name) else { return Ok(Vec::new()) };
        match verdict {
            Verdict::Accepted(said) => {
                let first = !std::mem::replace(&mut live.record.accepted, true);
                if first {
                    self.remember(&table).await;
                }
                if said.is_empty() {
                    conditions.clear(&what);
                } else {
                    conditions.set(&what, said.join("; "));
                }
                Ok(said)
            }
            // It served with the control plane's blessing once: a refusal now must not cut its connections.
            Verdict::Refused(reason) if live.record.accepted => {
                conditions.set(&what, format!("the control plane does not take it any more: {reason}"));
                Ok(vec![reason])
            }
            Verdict::Refused(reason) => {
                drop(table);
                self.withdraw(name, "the control plane refused it").await;
                Err(format!("the control plane refused it: {reason}"))
            }
        }
    }

    /// Takes a workload out of the mesh; false: it was not in.
    async fn withdraw(&self, name: &Name, why: &str) -> bool {
        let inner = &*self.inner;
        let mut table = inner.table.lock().await;
        let Some(live) = table.remove(name) else { return false };
        inner.data.remove(live.key, live.numbers.workload, live.slot);
        inner.config.leave(&name.0, &name.1, live.numbers.workload).await;
        if live.record.own_cgroup {
            cgroup::remove(&live.record.cgroup);
        }
        self.remember(&table).await;
        drop(table);
        inner.config.conditions().clear(&condition(name));
        tracing::info!(namespace = name.0, name = name.1, why, "withdrawn");
        inner.session.remove(&name.0, &name.1).await;
        true
    }

    /// Withdraws it when its cgroup is empty or gone.
    fn watch(&self, name: Name, cgroup: PathBuf, lived: Arc<AtomicBool>) -> tokio::task::AbortHandle {
        let this = self.clone();
        let watcher = async move {
            if let Err(error) = cgroup::ended(&cgroup, &lived).await {
                tracing::warn!(cgroup = %cgroup.display(), %error, "a cgroup cannot be watched");
            }
            // In a task of its own: withdrawing aborts this one.
            tokio::spawn(async move { this.withdraw(&name, "its cgroup is empty or gone").await });
        };
        tokio::spawn(watcher).abort_handle()
    }

    /// Tells who is enrolled, and writes it to disk, off this thread; the lock on the table orders the writes.
    async fn remember(&self, table: &Table) {
        self.inner.accounts.send_if_modified(|told| {
            let now = table.accounts();
            let new = *told != now;
            *told = now;
            new
        });
        let directory = self.inner.settings.state_dir.clone();
        let records = table.records();
        let saved = tokio::task::spawn_blocking(move || persist::save(&directory, records)).await;
        let conditions = self.inner.config.conditions();
        match saved.map_err(std::io::Error::other).and_then(|saved| saved) {
            Ok(()) => conditions.clear(DISK),
            Err(error) => {
                let directory = self.inner.settings.state_dir.display();
                conditions.set(DISK, format!("cannot be written to {directory}: {error}"));
            }
        }
    }
}

/// Where it is in the host's network, if it is; an error where it is not where it was said to be.
fn host_seat(wanted: &Wanted, place: &Place) -> Result<Option<Seat>, String> {
    let own = cgroup::is_own_network(place.netns.as_fd());
    match (own.map_err(|e| format!("the network namespace: {e}"))?, wanted.host_network) {
        (false, false) => Ok(None),
        (true, true) => Seat::of(&place.cgroup).map(Some),
        (true, false) => Err("it shares the host's network namespace, which is the agent's own: say so \
             (--host-network), or give it a namespace of its own (`ip netns add`, `unshare -n`)"
            .into()),
        (false, true) => {
            Err("hostNetwork: its network namespace is not the agent's own: run the agent in the \
             host's, or leave --host-network out"
                .into())
        }
    }
}

fn condition((namespace, name): &Name) -> String {
    format!("workload {namespace}/{name}")
}

fn describe(record: &Record) -> LocalWorkload {
    LocalWorkload {
        namespace: record.namespace.clone(),
        name: record.name.clone(),
        service_account: record.service_account.clone(),
        addresses: record.addresses.clone(),
        cgroup: record.cgroup.display().to_string(),
        accepted: record.accepted,
    }
}

/// The first address of each family: what a workload is reached at.
fn primary(all: &[IpAddr]) -> Vec<IpAddr> {
    let v4 = all.iter().find(|ip| ip.is_ipv4());
    let v6 = all.iter().find(|ip| ip.is_ipv6());
    v4.into_iter().chain(v6).copied().collect()
}
