//! Who calls: the workload whose connection it is, or whoever is at the other end of a connection or tunnel that came.
//!
//! accept, tunnels ──[`Whose`]──▶ authorise. Invariant: the kernel is asked once a connection, and its answer is kept.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use mesh_common::addr;
use mesh_common::policy::{Caller, UNPROVED, proves};
use mesh_common::record::{FlowKey, FlowSource};
use mesh_core::snapshot::Snapshot;

use super::hbone::tunnel::Tunnel;
use super::sockets::Sockets;
use crate::sys::monotonic_ns;

/// Who calls.
#[derive(Clone)]
pub enum Whose {
    /// The session's own workload.
    Member,
    /// Whoever is at the other end of a connection that came to it.
    Other(Other),
    /// Whoever is at the other end of a tunnel.
    Tunnel(Rc<Tunnel>),
}

/// The other end of a connection that came to a workload of ours.
#[derive(Clone)]
pub struct Other {
    pub(super) client: SocketAddr,
    wanted: SocketAddr,
    /// What the kernel has said: who it is, and which workload (0: unknown). Asked once.
    known: Cell<Option<(Caller, u32)>>,
    /// The workload that it is to whoever only looks on: nothing is allowed because of it.
    shown: Cell<Option<u32>>,
}

impl Other {
    /// The connection from `client` to `wanted`.
    pub fn new(client: SocketAddr, wanted: SocketAddr) -> Self {
        Self { client, wanted, known: Cell::new(None), shown: Cell::new(None) }
    }

    /// Client and destination.
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        (self.client, self.wanted)
    }

    fn asked(&self, sockets: &dyn Sockets) -> Option<FlowSource> {
        sockets.source_of(&FlowKey {
            src: addr::from_ip(self.client.ip()),
            dst: addr::from_ip(self.wanted.ip()),
            src_port_be: self.client.port().to_be(),
            dst_port_be: self.wanted.port().to_be(),
        })
    }

    /// The workload that it is, to be told and for nothing else; 0: the kernel does not know.
    pub fn source(&self, sockets: &dyn Sockets) -> u32 {
        if let Some((_, workload)) = self.known.get() {
            return workload;
        }
        let shown =
            self.shown.get().unwrap_or_else(|| self.asked(sockets).map_or(0, |source| source.workload));
        self.shown.set(Some(shown));
        shown
    }

    /// Who it is, as the kernel has it. `fresh`: the connection has just come, and an older proof is none.
    pub(super) fn caller(&self, sockets: &dyn Sockets, snapshot: &Snapshot, fresh: bool) -> (Caller, u32) {
        if let Some(known) = self.known.get() {
            return known;
        }
        let source = self.asked(sockets);
        let source = source.filter(|source| !fresh || proves(source.established_ns, monotonic_ns()));
        let known = source.map_or((UNPROVED, 0), |source| {
            let own = Caller { identity: source.identity, namespace: source.namespace };
            let found = || snapshot.workloads.get(&source.workload);
            let caller = match source.namespace {
                0 => found().map_or(UNPROVED, |w| Caller { identity: w.identity, namespace: w.mesh_ns }),
                _ => own,
            };
            (caller, source.workload)
        });
        self.known.set(Some(known));
        known
    }
}
