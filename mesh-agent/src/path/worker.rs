//! A worker: one OS thread, one single-threaded runtime, and everything that its connections share.
//!
//! A connection lives on one worker from accept to close, upstream legs included, so nothing here is locked.
//! Workers share the snapshot, each workload's budget and the counters. The heartbeat is written by the
//! runtime that moves the traffic: a worker that hangs stops beating, and the kernel stops sending to it.
//!
//! Invariant: every channel into a worker is bounded. A full one refuses (commands) or keeps the connection
//! where it was accepted (hand-over); a workload's end is also seen without a command, at the next sweep.
//! Not here: accepting and handing over (accept).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Cache};
use mesh_common::decide::HEARTBEAT_NS;
use mesh_core::balance::Balancer;
use mesh_core::snapshot::Snapshot;
use mesh_identity::Keys;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::accept::{self, Job, Listeners};
use super::buffers::Pool;
use super::clock::{Clock, LOOK_MS};
use super::detect::Silents;
use super::hbone::Identities;
use super::hbone::pool::Tunnels;
use super::hbone::stats::TunnelCounters;
use super::http2::peers::Peers;
use super::judged::Judged;
use super::link::FlushQueue;
use super::member::{Member, Members};
use super::origin::Origins;
use super::pool::Upstreams;
use super::resilience::{rate, state};
use super::see::log::{AccessLog, Lines};
use super::see::tap::Taps;
use super::series::{Requests, RouteNumbers};
use super::shed::Shed;
use super::sockets::Sockets;
use super::stats::{Audits, Counters, Inbound};
use super::transport::Plain;
use super::tries::Retries;
use super::{Limits, intercept};
use crate::jwt::Tokens;
use crate::sys::monotonic_ns;

/// Commands that may wait for a worker.
pub const COMMANDS: usize = 1024;
/// Connections that may wait for a worker which another has given them to.
pub const HANDED: usize = 512;

/// Milliseconds between two looks for series of requests that nobody uses.
const EXPIRE_MS: u64 = 60_000;

/// What a worker is told.
pub enum Command {
    /// Accept for this workload.
    Add(Arc<Member>, Listeners),
    /// It has left: end its connections.
    Remove(u32),
    /// New connections go elsewhere, as when the agent has gone.
    Retire,
    /// Let connections end: no more requests on them than the one they are at.
    Drain,
    /// End all connections.
    Cut,
}

/// What others read of a worker.
#[derive(Debug, Default)]
pub struct Shared {
    /// Connections.
    pub counters: Counters,
    /// Requests.
    pub requests: Requests,
    /// Tunnels.
    pub tunnels: TunnelCounters,
    /// Matches of policies that audit.
    pub audits: Audits,
    /// Inbound connections on which requests are asked about.
    pub inbound: Inbound,
    /// `CLOCK_MONOTONIC` nanoseconds of its last heartbeat.
    pub beat_ns: AtomicU64,
}

/// A worker as its colleagues and the [`super::Proxy`] see it.
pub struct Seat {
    /// Connections for it.
    pub jobs: mpsc::Sender<Job>,
    /// Its counters.
    pub shared: Arc<Shared>,
}

/// What reaches a worker: the other end of its [`Seat`].
pub struct Inbox {
    /// Commands.
    pub commands: mpsc::Receiver<Command>,
    /// Connections handed to it.
    pub jobs: mpsc::Receiver<Job>,
}

/// What all workers share.
pub struct Common {
    /// All workers, by index.
    pub seats: Vec<Seat>,
    /// Everything that this node was told.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// The kernel.
    pub sockets: Arc<dyn Sockets>,
    /// Certificates.
    pub keys: Arc<dyn Keys>,
    /// Limits.
    pub limits: Limits,
    /// What is known of services whose policies follow requests.
    pub resilience: state::Node,
    /// How often workloads of this node were asked.
    pub buckets: rate::Buckets,
    /// Whether new work is refused.
    pub shed: Shed,
    /// Who looks at requests.
    pub taps: Arc<Taps>,
    /// The access log.
    pub log: AccessLog,
    /// The workloads of this node.
    pub members: Arc<Members>,
}

/// What the connections of one worker share.
pub struct Worker {
    /// Index, and heartbeat word.
    pub index: u32,
    /// The kernel.
    pub sockets: Arc<dyn Sockets>,
    /// Limits.
    pub limits: Limits,
    /// What it counts.
    pub shared: Arc<Shared>,
    /// Coarse time.
    pub clock: Rc<Clock>,
    /// Buffers.
    pub buffers: Rc<Pool>,
    /// Output of this turn.
    pub flush: FlushQueue,
    /// Idle upstream connections.
    pub upstreams: Upstreams,
    /// Whose turn it is.
    pub balance: RefCell<Balancer>,
    /// How plain connections are opened.
    pub transport: Plain,
    /// Tunnels, this worker's own.
    pub tunnels: Tunnels,
    /// Connections that are asked about again when policies change.
    pub judged: Judged,
    /// What this worker knows of tokens.
    pub tokens: Tokens,
    /// Whom they prove to be, and whom they believe.
    pub identities: Identities,
    /// Connections of HTTP/2 to endpoints.
    pub peers: Peers,
    /// Requests that may be tried again.
    pub retries: Retries,
    /// Its way to what is known of services.
    pub tables: state::Tables,
    /// Who is known to wait for its server to speak first.
    pub silents: Silents,
    /// Copies of requests that are under way.
    pub mirrors: Cell<u32>,
    /// How TLS is spoken with the outside.
    pub origins: Origins,
    /// Numbers of routes.
    pub routes: RouteNumbers,
    /// Lines for the access log.
    pub log: Lines,
    /// Connections end after their request.
    pub draining: Cell<bool>,
    /// New connections go elsewhere.
    retired: Cell<bool>,
    /// Everybody.
    pub common: Arc<Common>,
    snapshot: RefCell<Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>>,
    listeners: RefCell<HashMap<u32, Listening>>,
    /// Of the snapshot at the last sweep.
    epoch: Cell<u64>,
}

/// A workload that this worker accepts for.
struct Listening {
    member: Arc<Member>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Worker {
    pub(super) fn new(index: u32, common: Arc<Common>) -> Self {
        let clock = Rc::new(Clock::new(Instant::now()));
        let limits = common.limits.clone();
        Self {
            index,
            sockets: common.sockets.clone(),
            shared: common.seats[index as usize].shared.clone(),
            buffers: Rc::default(),
            flush: FlushQueue::default(),
            upstreams: Upstreams::new(limits.pool_per_key, limits.pool_total),
            balance: RefCell::default(),
            transport: Plain { sockets: common.sockets.clone(), clock: clock.clone() },
            tunnels: Tunnels::default(),
            judged: Judged::default(),
            identities: Identities::new(common.keys.clone()),
            tokens: Tokens::default(),
            peers: Peers::default(),
            retries: Retries::default(),
            tables: state::Tables::default(),
            silents: Silents::default(),
            mirrors: Cell::new(0),
            origins: Origins::default(),
            routes: RouteNumbers::default(),
            log: Lines::default(),
            draining: Cell::new(false),
            retired: Cell::new(false),
            snapshot: RefCell::new(Cache::new(common.snapshot.clone())),
            listeners: RefCell::default(),
            epoch: Cell::new(0),
            clock,
            limits,
            common,
        }
    }

    /// Looks something up in the newest snapshot: one atomic load, no count on the snapshot.
    pub fn with_snapshot<T>(&self, look: impl FnOnce(&Snapshot) -> T) -> T {
        look(self.snapshot.borrow_mut().load())
    }

    /// Takes a connection: from here on it is this worker's.
    pub fn serve(self: &Rc<Self>, job: Job) {
        // The task's handle is dropped: a panic ends the task alone, and `Admitted` counts it.
        drop(tokio::task::spawn_local(intercept::serve(self.clone(), job)));
    }

    fn obey(self: &Rc<Self>, command: Command) {
        match command {
            Command::Add(member, listeners) => {
                let tasks = accept::listen(self, &member, listeners);
                self.listeners.borrow_mut().insert(member.workload, Listening { member, tasks });
            }
            Command::Remove(workload) => {
                self.listeners
                    .borrow_mut()
                    .retain(|_, l| l.member.workload != workload || !l.member.usage.gone());
                self.upstreams.forget(workload);
                self.peers.forget(workload);
                self.tunnels.sweep(&self.identities, self.clock.now(), self.limits.tunnel_idle);
                self.clock.cut_gone();
            }
            Command::Retire => {
                self.retired.set(true);
                self.sockets.stop_beating(self.index);
            }
            Command::Drain => {
                self.draining.set(true);
                self.log.flush(&self.common.log);
                self.tunnels.retire();
                self.clock.wake_all();
            }
            Command::Cut => self.clock.cut_all(),
        }
    }

    fn sweep(&self) {
        self.listeners.borrow_mut().retain(|_, l| !l.member.usage.gone());
        self.clock.cut_gone();
        self.tunnels.sweep(&self.identities, self.clock.now(), self.limits.tunnel_idle);
        let changed = self.with_snapshot(|snapshot| {
            let changed = self.epoch.replace(snapshot.epoch) != snapshot.epoch;
            let (now, idle, changes) =
                (self.clock.now(), self.limits.upstream_idle, changed.then_some(snapshot));
            self.upstreams.sweep(now, idle, changes);
            self.peers.sweep(now, idle, changes);
            if changed {
                self.balance.borrow_mut().retain(snapshot);
                self.tables.retain(&self.common.resilience, snapshot);
                self.tunnels.judge(snapshot);
                self.origins.retain(snapshot);
            }
            changed
        });
        if changed {
            self.judged.judge(self);
        }
        self.shared.counters.upstream_idle.store(self.upstreams.idle() as u64, Relaxed);
    }
}

/// Runs a worker on this thread until its commands end. `begun` hears whether it could start.
pub fn run(index: u32, common: Arc<Common>, inbox: Inbox, begun: &std::sync::mpsc::Sender<io::Result<()>>) {
    let built = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let runtime = match built {
        Ok(runtime) => runtime,
        Err(e) => return drop(begun.send(Err(e))),
    };
    runtime.block_on(async move {
        let worker = Rc::new(Worker::new(index, common));
        worker.sockets.beat(index);
        let _ = begun.send(Ok(()));
        let tasks = begin(&worker);
        attend(&worker, inbox).await;
        tasks.iter().for_each(JoinHandle::abort);
        worker.listeners.borrow_mut().clear();
    });
}

/// Starts what every worker does besides its connections.
pub(super) fn begin(worker: &Rc<Worker>) -> [JoinHandle<()>; 2] {
    let flushed = worker.clone();
    let flush = async move { std::future::poll_fn(|cx| flushed.flush.poll(cx)).await };
    [tokio::task::spawn_local(beat(worker.clone())), tokio::task::spawn_local(flush)]
}

async fn attend(worker: &Rc<Worker>, mut inbox: Inbox) {
    loop {
        tokio::select! {
            command = inbox.commands.recv() => match command {
                Some(command) => worker.obey(command),
                None => return,
            },
            Some(job) = inbox.jobs.recv() => worker.serve(job),
        }
    }
}

async fn beat(worker: Rc<Worker>) {
    let mut ticks = tokio::time::interval(Duration::from_nanos(HEARTBEAT_NS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut looked, mut swept, mut expired) = (0, 0, 0);
    loop {
        ticks.tick().await;
        if !worker.retired.get() {
            worker.sockets.beat(worker.index);
        }
        worker.shared.beat_ns.store(monotonic_ns(), Relaxed);
        worker.clock.tick(Instant::now());
        worker.log.flush(&worker.common.log);
        let now = worker.clock.now();
        if now >= looked + LOOK_MS {
            looked = now;
            worker.clock.look();
        }
        if now >= swept + 1000 {
            swept = now;
            worker.sweep();
        }
        if now >= expired + EXPIRE_MS {
            expired = now;
            worker.shared.requests.sweep(now);
        }
    }
}
