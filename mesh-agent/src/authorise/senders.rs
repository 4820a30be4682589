//! Proves to workloads with policies who sends to them from sockets that were connected before they asked, before
//! their own workload was enrolled, or so long ago that the programs have forgotten it.
//!
//! Datagrams of a connected socket run no program, so whose they are can only be seen by the socket: one in the
//! namespace of a workload of this node belongs to that workload; in the host's namespace, to the one on whose behalf
//! it was connected. Looked at when policies or workloads have changed, when a datagram of a workload of this node
//! was refused because nobody had proved whose it was, and again before what was said lapses.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mesh_common::addr::{self, Addr};
use mesh_common::record::{Denial, FlowKey, PROTO_UDP};
use mesh_common::sender::{SEEN_HOLDS_NS, Sender};
use mesh_core::snapshot::{Snapshot, WorkloadId};
use parking_lot::Mutex;

use super::diag::{Diag, Protocol, Socket};
use crate::config::Handle as Config;
use crate::kernel::Kernel;
use crate::path::Proxy;
use crate::sys;

/// Between two looks at what has changed.
const LOOK: Duration = Duration::from_millis(200);
/// Between two looks at the sockets because of datagrams that were refused.
const WANTED: Duration = Duration::from_secs(1);
/// Between two looks at the sockets where nothing has changed.
const AGAIN: Duration = Duration::from_nanos(SEEN_HOLDS_NS / 3);

type Places = Vec<(WorkloadId, Arc<OwnedFd>)>;

/// What is known of who was refused.
#[derive(Default)]
pub(super) struct Strangers {
    /// Addresses of this node's workloads.
    ours: Mutex<HashSet<Addr>>,
    wanted: AtomicBool,
}

impl Strangers {
    /// A refusal: is there perhaps a socket of ours behind it?
    pub fn hear(&self, denial: &Denial) {
        if denial.source == 0
            && denial.proto == u16::from(PROTO_UDP)
            && !self.wanted.load(Relaxed)
            && self.ours.lock().contains(&denial.source_addr)
        {
            self.wanted.store(true, Relaxed);
        }
    }
}

/// Looks for as long as the agent runs.
pub(super) async fn follow(kernel: Arc<Kernel>, proxy: Proxy, config: Config, strangers: Arc<Strangers>) {
    let mut epochs = config.epoch();
    let mut known: HashMap<WorkloadId, bool> = HashMap::new();
    let mut looked: Option<Instant> = None;
    loop {
        let (snapshot, places) = (config.snapshot(), proxy.workloads());
        let policed =
            |id: &WorkloadId| snapshot.workloads.get(id).is_some_and(|workload| workload.policy_set != 0);
        let now: HashMap<WorkloadId, bool> = places.iter().map(|(id, _)| (*id, policed(id))).collect();
        let since = |time: Duration| looked.is_none_or(|at| at.elapsed() >= time);
        let due = now != known || (strangers.wanted.load(Relaxed) && since(WANTED)) || since(AGAIN);
        if due {
            looked = Some(Instant::now());
            known = now;
            strangers.wanted.store(false, Relaxed);
            *strangers.ours.lock() = addresses(&snapshot, places.iter().map(|(id, _)| id)).collect();
            if known.values().any(|policed| *policed) {
                look(&kernel, snapshot, places, &known).await;
            }
        }
        if let Ok(Err(_)) = tokio::time::timeout(LOOK, epochs.changed()).await {
            return;
        }
    }
}

fn addresses<'a>(
    snapshot: &Snapshot,
    workloads: impl Iterator<Item = &'a WorkloadId>,
) -> impl Iterator<Item = Addr> {
    let of = |id| snapshot.workloads.get(id).map(|workload| workload.addresses.to_vec());
    let all: Vec<Vec<IpAddr>> = workloads.filter_map(of).collect();
    all.into_iter().flatten().map(addr::from_ip)
}

async fn look(
    kernel: &Arc<Kernel>,
    snapshot: Arc<Snapshot>,
    places: Places,
    policed: &HashMap<WorkloadId, bool>,
) {
    let asking = policed.iter().filter(|(_, policed)| **policed).map(|(id, _)| id);
    let asking: HashSet<Addr> = addresses(&snapshot, asking).collect();
    let kernel = kernel.clone();
    let looked = tokio::task::spawn_blocking(move || {
        let found =
            places.iter().map(|(id, netns)| one(&kernel, &snapshot, *id, netns, &asking)).sum::<u64>();
        if found > 0 {
            tracing::debug!(found, "it is proved who sends from sockets that were connected before");
        }
    });
    if let Err(error) = looked.await {
        tracing::error!(%error, "connected UDP sockets could not be looked at");
    }
}

/// Proves who sends from a workload's sockets. How many proofs there were to leave.
fn one(kernel: &Kernel, snapshot: &Snapshot, id: WorkloadId, netns: &OwnedFd, asking: &HashSet<Addr>) -> u64 {
    let Some(workload) = snapshot.workloads.get(&id) else { return 0 };
    // A namespace that is gone has no sockets.
    let sockets = sys::in_netns(netns.as_fd(), || Diag::new()?.sockets(Protocol::Udp)).unwrap_or_default();
    let owns = |s: &&Socket| !workload.host_network || kernel.opener(s.cookie()) == Some(id);
    let mut found = 0;
    for socket in sockets.iter().filter(|s| !s.listens && asking.contains(&addr::from_ip(s.remote.ip()))) {
        if !owns(&socket) {
            continue;
        }
        let flow = FlowKey {
            src: addr::from_ip(socket.local.ip()),
            dst: addr::from_ip(socket.remote.ip()),
            src_port_be: socket.local.port().to_be(),
            dst_port_be: socket.remote.port().to_be(),
        };
        let sender = Sender {
            at_ns: 0,
            cookie: 0,
            workload: id,
            identity: workload.identity,
            namespace: workload.mesh_ns,
            pad: 0,
        };
        match kernel.saw_sender(&flow, sender) {
            Ok(written) => found += u64::from(written),
            Err(error) => tracing::warn!(%error, "who sends from a connected socket stays unproved"),
        }
    }
    found
}
