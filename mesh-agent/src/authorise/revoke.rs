//! Ends connections that a changed policy no longer allows, and plaintext that a workload takes no longer.
//!
//! For each workload of this node whose policy set is another than before: its connections from others are
//! listed in its namespace, and who is not allowed in any more is reset. Once when the change is in the maps,
//! and once more a moment later, for what was let in by the old policy and established after the first look.
//!
//! Who is calling is known as the kernel knows it: by the flow source, where the destination had asked for one
//! when the connection began. Where it had not, by the other end: a socket in the namespace of a workload of
//! this node belongs to that workload, whatever its address is; in the host's namespace, to the workload on whose
//! behalf it was connected. Otherwise there is an address and no proof. Of datagrams the kernel asks for each one, but
//! for those to connected sockets: a server's that connects one for each client end as connections do.
//!
//! Of a workload that is `strict` now, or has other ports that are, connections end whose caller nobody proves: those of
//! this node are proved as above, and what comes through a tunnel comes from the agent's own socket beside the
//! workload. A socket does not say by which interface it came: of a workload that excludes interfaces open ones stay.
//!
//! It also tells the kernel which workloads have policies at all: their other addresses are closed.
//!
//! Where requests decide, connections on which the proxy asks about each of them stay as long as any request may be
//! allowed; those that it does not see end unless they may carry whatever they like.
//!
//! Cost: a look at the changed workloads' sockets; at everybody's, once, where a proof is missing. Bounded by
//! [`MOST`] sockets a namespace. Not here: connections that are cut because their workload has ended (enrol).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mesh_common::addr;
use mesh_common::policy::{Caller, UNPROVED};
use mesh_common::record::FlowKey;
use mesh_core::authorise::{Network, Seen};
use mesh_core::hbone::PORT as TUNNELS;
use mesh_core::mtls::{MtlsMode, MtlsRules};
use mesh_core::snapshot::{Exclusions, PolicySetId, Snapshot, Workload, WorkloadId};

use super::diag::{Diag, MOST, Protocol, Socket};
use super::{Ended, caller, refusal};
use crate::config::Handle as Config;
use crate::kernel::Kernel;
use crate::path::Proxy;
use crate::sys;

/// Between two looks at who is there, at most.
const LOOK: Duration = Duration::from_millis(100);
/// From the first look to the second.
const AGAIN: Duration = Duration::from_secs(1);
/// Until a connection that the agent has accepted is known to be one whose requests it asks about.
const ACCEPTED: Duration = Duration::from_millis(100);

/// A workload's sockets, and where they live.
type Places = Vec<(WorkloadId, Arc<OwnedFd>)>;

/// Looks at every epoch for as long as the agent runs.
///
/// `took_over`: another agent serves connections still, and has asked about requests on them; it is not known which.
pub(super) async fn follow(
    kernel: Arc<Kernel>,
    proxy: Proxy,
    config: Config,
    ended: Arc<Ended>,
    mut took_over: bool,
) {
    let mut epochs = config.epoch();
    let mut known: HashMap<WorkloadId, Asked> = HashMap::new();
    let mut policed: HashMap<WorkloadId, bool> = HashMap::new();
    loop {
        let snapshot = config.snapshot();
        let places = proxy.workloads();
        let asked = |workload: WorkloadId| {
            snapshot.workloads.get(&workload).map_or_else(Asked::default, |w| Asked::of(w))
        };
        let now: HashMap<WorkloadId, Asked> = places.iter().map(|(id, _)| (*id, asked(*id))).collect();
        let changed: Vec<WorkloadId> = now
            .iter()
            .filter(|(id, asked)| asked.anything() && known.get(*id) != Some(*asked))
            .map(|(id, _)| *id)
            .collect();
        known = now;
        let closed = known.iter().map(|(id, asked)| (*id, asked.anything())).collect();
        set_policed(&kernel, &closed, &mut policed);
        if !changed.is_empty() {
            let task = Task {
                kernel: kernel.clone(),
                proxy: proxy.clone(),
                places,
                ended: ended.clone(),
                took_over,
            };
            took_over = false;
            task.look(&config, &changed).await;
            tokio::time::sleep(AGAIN).await;
            task.look(&config, &changed).await;
        }
        // A workload may come without an epoch.
        if let Ok(Err(_)) = tokio::time::timeout(LOOK, epochs.changed()).await {
            return;
        }
    }
}

/// What a workload asks of who connects to it.
#[derive(Default, PartialEq)]
struct Asked {
    set: PolicySetId,
    /// Where it is strict somewhere: where, and what is left alone.
    strict: Option<(MtlsRules, Exclusions)>,
}

impl Asked {
    fn of(workload: &Workload) -> Self {
        let left_alone =
            || workload.transport.as_ref().map_or_else(Exclusions::default, |t| t.inbound.clone());
        let strict = workload.mtls.any(MtlsMode::Strict).then(|| (workload.mtls.clone(), left_alone()));
        Self { set: workload.policy_set, strict }
    }

    fn anything(&self) -> bool {
        self.set != 0 || self.strict.is_some()
    }
}

/// Would the kernel refuse this connection as plaintext if it began now? `who`: the workload of this node that is
/// proved to have opened it; 0: none.
fn is_plaintext(called: &Workload, socket: &Socket, who: WorkloadId) -> bool {
    let (local, remote) = (socket.local, socket.remote.ip());
    // From the agent, which has asked; or from the workload itself.
    let beside = remote.is_loopback() || remote == local.ip();
    if who != 0 || beside || called.mtls.at(local.port()) != MtlsMode::Strict {
        return false;
    }
    let left_alone = |all: &Exclusions| {
        !all.interfaces.is_empty()
            || all.ports.contains(&local.port())
            || all.networks.iter().any(|network| network.covers(&Network::from(remote)))
    };
    !called.transport.as_ref().is_some_and(|transport| left_alone(&transport.inbound))
}

/// Tells the kernel which workloads have policies or are strict, where that is news.
fn set_policed(kernel: &Kernel, known: &HashMap<WorkloadId, bool>, told: &mut HashMap<WorkloadId, bool>) {
    told.retain(|workload, _| known.contains_key(workload));
    for (workload, policed) in known {
        let policed = *policed;
        if told.get(workload) == Some(&policed) {
            continue;
        }
        match kernel.set_policed(*workload, policed) {
            Ok(()) => drop(told.insert(*workload, policed)),
            Err(error) => {
                tracing::error!(%error, policed, "addresses that it was not enrolled with stay as they were");
            }
        }
    }
}

/// What a look needs.
#[derive(Clone)]
struct Task {
    kernel: Arc<Kernel>,
    proxy: Proxy,
    places: Places,
    /// Connections ended, in all.
    ended: Arc<Ended>,
    /// See [`follow`].
    took_over: bool,
}

impl Task {
    async fn look(&self, config: &Config, changed: &[WorkloadId]) {
        let (task, snapshot, changed) = (self.clone(), config.snapshot(), changed.to_vec());
        let looked = tokio::task::spawn_blocking(move || {
            Look { task: &task, snapshot: &snapshot, ends: None }.all(&changed);
        });
        if let Err(error) = looked.await {
            tracing::error!(%error, "connections could not be looked at after a change of policy");
        }
    }
}

struct Look<'a> {
    task: &'a Task,
    snapshot: &'a Snapshot,
    /// Who holds the other end of connections on this node; `None`: not asked yet.
    ends: Option<HashMap<(SocketAddr, SocketAddr), WorkloadId>>,
}

impl Look<'_> {
    fn all(&mut self, changed: &[WorkloadId]) {
        for workload in changed {
            let Some((_, netns)) = self.task.places.iter().find(|(id, _)| id == workload) else { continue };
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                match sys::in_netns(netns.as_fd(), || {
                    let diag = Diag::new()?;
                    Ok((diag.sockets(protocol)?, diag))
                }) {
                    Ok((sockets, diag)) => self.one(*workload, protocol, &sockets, &diag),
                    Err(error) => {
                        let name = self.name(*workload);
                        tracing::error!(%error, name, "connections cannot be listed: those that are no longer allowed go on");
                    }
                }
            }
        }
    }

    fn one(&mut self, workload: WorkloadId, protocol: Protocol, sockets: &[Socket], diag: &Diag) {
        let Some(called) = self.snapshot.workloads.get(&workload) else { return };
        if sockets.len() >= MOST {
            tracing::warn!(
                name = self.name(workload),
                MOST,
                "more connections than are looked at after a change of policy"
            );
        }
        let listening: std::collections::HashSet<u16> =
            sockets.iter().filter(|s| s.listens).map(|s| s.local.port()).collect();
        let udp = protocol == Protocol::Udp;
        let declares = |port| called.ports.iter().any(|p| p.port == port && p.udp() == udp);
        let inbound = |s: &&Socket| {
            let port = s.local.port();
            if called.host_network {
                // Everything else there is the host's.
                let own = called.addresses.contains(&s.local.ip());
                return !s.listens && own && declares(port);
            }
            // A connected UDP socket was accepted if there is one beside it that is not.
            let served = listening.contains(&port) || declares(port);
            // Whoever listens there, what comes is the agent's.
            let tunnel = !udp && port == TUNNELS && called.takes_tunnels();
            !tunnel && !s.listens && served && s.local.ip() != s.remote.ip() && !s.local.ip().is_loopback()
        };
        let (mut ended, mut plain, mut direct) = (0, 0, Vec::new());
        for socket in sockets.iter().filter(inbound) {
            let (caller, who, by_agent) = self.caller_of(protocol, socket);
            // Its neighbours on the host share its address, and so does it itself.
            if who == workload {
                continue;
            }
            let ask = |seen| {
                let at = (socket.local.port(), seen);
                refusal(self.snapshot, workload, caller, socket.remote.ip(), at)
            };
            if let Some(why) = ask(if udp { Seen::Opaque } else { Seen::Unknown }) {
                ended += u64::from(end(diag, socket, &why));
            } else if !udp && !by_agent && is_plaintext(called, socket, who) {
                plain += u64::from(end(diag, socket, "plaintext"));
            } else if !by_agent
                && !self.task.took_over
                && let Some(why) = ask(Seen::Opaque)
            {
                direct.push((socket, why));
            }
        }
        // Of what may bring requests that are allowed, those that nobody asks about. One that has just been accepted is
        // not known to be asked about yet.
        let asked = |socket: &Socket| self.task.proxy.asks_requests_of(socket.remote, socket.local);
        direct.retain(|(socket, _)| !asked(socket));
        if !direct.is_empty() {
            std::thread::sleep(ACCEPTED);
            for (socket, why) in direct.iter().filter(|(socket, _)| !asked(socket)) {
                ended += u64::from(end(diag, socket, why));
            }
        }
        self.task.ended.policy.fetch_add(ended, Relaxed);
        self.task.ended.plaintext.fetch_add(plain, Relaxed);
        let workload = || self.name(workload);
        if ended > 0 {
            tracing::info!(workload = workload(), connections = ended, "ended by a change of policy");
        }
        if plain > 0 {
            tracing::info!(workload = workload(), connections = plain, "plaintext ended: strict from now on");
        }
    }

    /// Who it is, and which workload of this node (0: none). `true`: the agent has opened it, and asks itself.
    fn caller_of(&mut self, protocol: Protocol, socket: &Socket) -> (Caller, WorkloadId, bool) {
        let flow = FlowKey {
            src: addr::from_ip(socket.remote.ip()),
            dst: addr::from_ip(socket.local.ip()),
            src_port_be: socket.remote.port().to_be(),
            dst_port_be: socket.local.port().to_be(),
        };
        if protocol == Protocol::Udp {
            let sender = self.task.kernel.sender_of(&flow);
            return sender.map_or((UNPROVED, 0, false), |sender| {
                (Caller { identity: sender.identity, namespace: sender.namespace }, sender.workload, false)
            });
        }
        if let Some(source) = self.task.kernel.source_of(&flow) {
            let by_agent = source.authorised != 0;
            if source.namespace == 0 {
                return (caller(self.snapshot, source.workload), source.workload, by_agent);
            }
            let caller = Caller { identity: source.identity, namespace: source.namespace };
            return (caller, source.workload, by_agent);
        }
        let (task, snapshot) = (self.task, self.snapshot);
        let ends = self.ends.get_or_insert_with(|| other_ends(&task.places, snapshot, &task.kernel));
        let holder = ends.get(&(socket.remote, socket.local)).copied();
        holder.map_or((UNPROVED, 0, false), |holder| (caller(self.snapshot, holder), holder, false))
    }

    fn name(&self, workload: WorkloadId) -> String {
        self.snapshot.workloads.get(&workload).map_or_else(String::new, |w| w.full_name.to_string())
    }
}

/// The connections of every workload of this node, by their two ends. Ends that several claim prove nothing.
fn other_ends(
    places: &Places,
    snapshot: &Snapshot,
    kernel: &Kernel,
) -> HashMap<(SocketAddr, SocketAddr), WorkloadId> {
    let mut ends: HashMap<(SocketAddr, SocketAddr), WorkloadId> = HashMap::new();
    for (workload, netns) in places {
        let shared = snapshot.workloads.get(workload).is_none_or(|w| w.host_network);
        let owns = |s: &Socket| !shared || kernel.opener(s.cookie()) == Some(*workload);
        let sockets: io::Result<Vec<Socket>> =
            sys::in_netns(netns.as_fd(), || Diag::new()?.sockets(Protocol::Tcp));
        // A namespace that is gone has no connections.
        let connections = |s: &&Socket| !s.listens && !is_local(s.remote.ip()) && owns(s);
        for socket in sockets.unwrap_or_default().iter().filter(connections) {
            let claimed = ends.entry((socket.local, socket.remote)).or_insert(*workload);
            if claimed != workload {
                *claimed = 0;
            }
        }
    }
    ends
}

/// Ends a connection; `false`: it had ended.
fn end(diag: &Diag, socket: &Socket, why: &str) -> bool {
    match diag.destroy(socket) {
        Ok(ended) => {
            if ended {
                let port = socket.local.port();
                tracing::debug!(source = %socket.remote, port, why, "connection ended by policy");
            }
            ended
        }
        Err(error) => {
            tracing::error!(%error, source = %socket.remote, "a connection that is no longer allowed cannot be ended");
            false
        }
    }
}

fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback()
}
