//! The handle by which the rest of the agent holds the workers.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_core::outcome::LogRule;
use mesh_core::snapshot::Snapshot;
use mesh_identity::Keys;
use tokio::sync::mpsc;

use super::accept::Listeners;
use super::budget::{Budget, Usage};
use super::hbone::stats::TunnelCounts;
use super::member::Member;
use super::resilience::{rate, state};
use super::see::log::AccessLog;
use super::see::tap::Taps;
use super::shed::{self, Shed};
use super::stats::{self, ProxyStats};
use super::worker::{self, COMMANDS, Command, Common, HANDED, Inbox, Seat, Shared};
use super::{Limits, Sockets, hbone};
use crate::dns::open::Ears;
use crate::sys::monotonic_ns;

/// How long connections that are cut may take to end, and so to be counted.
const CUT: Duration = Duration::from_millis(200);
/// How long the last lines of the access log may take.
const LAST_LINES: Duration = Duration::from_secs(1);

/// A workload that the proxy is to serve, with its listeners (made in its network namespace).
#[derive(Debug)]
pub struct Enrolment {
    /// Node-local workload id.
    pub workload: u32,
    /// Node-local identity id.
    pub identity: u32,
    /// Node-local id of its mesh namespace.
    pub namespace: u32,
    /// Its network namespace.
    pub netns: Arc<OwnedFd>,
    /// Captured connections over IPv4.
    pub out4: Option<TcpListener>,
    /// Captured connections over IPv6.
    pub out6: Option<TcpListener>,
    /// Inbound connections.
    pub inbound: Option<TcpListener>,
    /// Questions to resolvers; `None`: they are not taken.
    pub dns: Option<Ears>,
    /// Own IPv4 address.
    pub addr4: Option<Ipv4Addr>,
    /// Own IPv6 address.
    pub addr6: Option<Ipv6Addr>,
    /// What it may use.
    pub budget: Budget,
}

/// The workers could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No worker was asked for.
    #[error("the number of workers is 0: give --workers 1 or more")]
    NoWorkers,
    /// A thread or its runtime could not be made.
    #[error("worker {index} cannot start: {source}: raise the limits on threads and file descriptors")]
    Worker {
        /// Which.
        index: usize,
        /// Why.
        source: io::Error,
    },
}

/// A worker did not take a command: it hangs, or far too much changes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("worker {worker} takes no commands: it hangs or is overloaded; try again, or restart the agent")]
pub struct ProxyFull {
    /// Which.
    pub worker: u32,
}

/// The workers. Cheap to clone; they end when the last handle drops.
#[derive(Clone)]
pub struct Proxy {
    inner: Arc<Inner>,
}

struct Inner {
    common: Arc<Common>,
    commands: Vec<mpsc::Sender<Command>>,
    shared: Vec<Arc<Shared>>,
}

impl Proxy {
    /// Starts `workers` OS threads.
    pub fn start(
        workers: usize,
        snapshot: Arc<ArcSwap<Snapshot>>,
        sockets: Arc<dyn Sockets>,
        keys: Arc<dyn Keys>,
        limits: Limits,
    ) -> Result<Self, StartError> {
        if workers == 0 {
            return Err(StartError::NoWorkers);
        }
        let mut inboxes = Vec::new();
        let mut seats = Vec::new();
        let mut commands = Vec::new();
        for _ in 0..workers {
            let (command, commands_in) = mpsc::channel(COMMANDS);
            let (jobs, jobs_in) = mpsc::channel(HANDED);
            // As if it had beaten: until its thread runs, what it is given waits for it.
            let shared = Shared { beat_ns: AtomicU64::new(monotonic_ns()), ..Shared::default() };
            seats.push(Seat { jobs, shared: Arc::new(shared) });
            commands.push(command);
            inboxes.push(Inbox { commands: commands_in, jobs: jobs_in });
        }
        let shared = seats.iter().map(|seat| seat.shared.clone()).collect();
        let common = Arc::new(Common {
            seats,
            snapshot,
            sockets,
            keys,
            limits,
            members: Arc::default(),
            resilience: state::Node::default(),
            buckets: rate::Buckets::default(),
            shed: Shed::default(),
            taps: Arc::default(),
            log: AccessLog::default(),
        });
        for (index, inbox) in inboxes.into_iter().enumerate() {
            spawn(index, common.clone(), inbox).map_err(|source| StartError::Worker { index, source })?;
        }
        let watched = Arc::downgrade(&common);
        // Without it nothing is refused.
        drop(std::thread::Builder::new().name("shed".to_owned()).spawn(move || shed::watch(&watched)));
        Ok(Self { inner: Arc::new(Inner { common, commands, shared }) })
    }

    /// Index of the worker that accepts a workload's connections, and of its heartbeat word.
    pub fn home(&self, workload: u32) -> u32 {
        // Ids are dense: this spreads them evenly.
        workload % self.inner.commands.len() as u32
    }

    /// Accepts for a workload from now on; one of the same id is replaced.
    pub fn add_workload(&self, enrolment: Enrolment) -> Result<(), ProxyFull> {
        let workload = enrolment.workload;
        self.remove_workload(workload);
        let member = Arc::new(Member {
            workload,
            identity: enrolment.identity,
            namespace: enrolment.namespace,
            netns: enrolment.netns,
            addr4: enrolment.addr4,
            addr6: enrolment.addr6,
            budget: enrolment.budget,
            ruled_connections: AtomicU32::new(0),
            log: AtomicU32::new(0),
            usage: Usage::default(),
        });
        let listeners = Listeners {
            out: [enrolment.out4, enrolment.out6].into_iter().flatten().collect(),
            inbound: enrolment.inbound.into_iter().collect(),
            dns: enrolment.dns,
        };
        let home = self.home(workload);
        self.inner.commands[home as usize]
            .try_send(Command::Add(member.clone(), listeners))
            .map_err(|_| ProxyFull { worker: home })?;
        self.inner.common.members.lock().insert(workload, member);
        Ok(())
    }

    /// Closes a workload's listeners and resets its connections.
    pub fn remove_workload(&self, workload: u32) {
        let Some(member) = self.inner.common.members.lock().remove(&workload) else { return };
        member.usage.leave();
        for (index, commands) in self.inner.commands.iter().enumerate() {
            if commands.try_send(Command::Remove(workload)).is_err() {
                tracing::warn!(
                    workload,
                    worker = index,
                    "worker takes no commands; its sweep will see the end"
                );
            }
        }
    }

    /// A policy says how many connections a workload may have; `None`: none does. Those that it has go on.
    pub fn set_connections(&self, workload: u32, connections: Option<u32>) {
        if let Some(member) = self.inner.common.members.lock().get(&workload) {
            member.ruled_connections.store(connections.unwrap_or(0), Relaxed);
        }
    }

    /// Which requests of a workload are written to the access log.
    pub fn set_log(&self, workload: u32, rule: LogRule) {
        if let Some(member) = self.inner.common.members.lock().get(&workload) {
            member.log.store(rule.packed(), Relaxed);
        }
    }

    /// The access log.
    pub fn access_log(&self) -> &AccessLog {
        &self.inner.common.log
    }

    /// Those who look at requests.
    pub fn taps(&self) -> &Arc<Taps> {
        &self.inner.common.taps
    }

    /// The workloads that it serves, with their network namespaces.
    pub fn workloads(&self) -> Vec<(u32, Arc<OwnedFd>)> {
        let members = self.inner.common.members.lock();
        members.iter().map(|(workload, member)| (*workload, member.netns.clone())).collect()
    }

    /// What was counted, over all workers.
    pub fn stats(&self) -> ProxyStats {
        let stats = stats::merge(self.inner.shared.iter().map(|s| (&s.counters, &s.requests)));
        let mut audits = HashMap::new();
        self.inner.shared.iter().for_each(|s| s.audits.add_to(&mut audits));
        let lines = self.access_log().counts();
        let lines = (lines.written.load(Relaxed), lines.dropped.load(Relaxed));
        ProxyStats { tunnels: self.tunnels(), audits, lines, ..stats }
    }

    /// Does it ask about requests on this connection, one by one?
    pub fn asks_requests_of(&self, client: SocketAddr, wanted: SocketAddr) -> bool {
        self.inner.shared.iter().any(|s| s.inbound.has(client, wanted))
    }

    /// What is known of services whose policies follow requests.
    pub fn resilience(&self) -> Vec<(u32, state::Seen)> {
        self.inner.common.resilience.seen()
    }

    /// What was counted of tunnels, over all workers.
    pub fn tunnels(&self) -> TunnelCounts {
        hbone::stats::merge(&self.inner.shared.iter().map(|s| &s.tunnels))
    }

    /// Connections being proxied now.
    pub fn open(&self) -> u64 {
        self.inner.shared.iter().map(|s| s.counters.open.load(Relaxed)).sum()
    }

    /// Sends new connections elsewhere, as when the agent has gone: it is about to.
    pub async fn retire(&self) {
        self.tell(|| Command::Retire).await;
    }

    /// Lets connections end (idle ones at once, HTTP after the request that they are at), waits for them up to
    /// `deadline`, then cuts what is left. Listeners stay until the process ends.
    pub async fn drain(&self, deadline: Duration) {
        self.tell(|| Command::Drain).await;
        let end = Instant::now() + deadline;
        // What was on its way to a listener is there a moment later.
        let mut rests = 0;
        while rests < 3 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
            rests = if self.open() == 0 { rests + 1 } else { 0 };
        }
        if self.open() > 0 {
            self.tell(|| Command::Cut).await;
            let end = Instant::now() + CUT;
            while self.open() > 0 && Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        self.inner.common.log.settle(LAST_LINES).await;
    }

    /// Tells every worker; one that hangs is not waited for.
    async fn tell(&self, command: impl Fn() -> Command) {
        for commands in &self.inner.commands {
            let _ = tokio::time::timeout(Duration::from_millis(500), commands.send(command())).await;
        }
    }
}

fn spawn(index: usize, common: Arc<Common>, inbox: Inbox) -> io::Result<()> {
    let (begun, hear) = std_mpsc::channel();
    std::thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || worker::run(index as u32, common, inbox, &begun))?;
    hear.recv_timeout(Duration::from_secs(10))
        .unwrap_or_else(|_| Err(io::Error::other("its thread ended or did not answer")))
}
