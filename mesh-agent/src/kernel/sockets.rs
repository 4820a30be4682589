//! Records on the agent's own sockets: how the programs know them, and how the agent learns where an
//! accepted connection wanted to go. On the request path: one system call each, no lock.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use mesh_common::addr;
use mesh_common::flows::COOKIE;
use mesh_common::record::{Capture, PROTO_TCP, WorkloadKey, captured, flags, flow, role};
use mesh_common::udp::{SIDE_HEARD, StickyKey};

use super::maps::Kernel;
use crate::dns::clients::Asker;
use crate::sys::bpf;

/// A connection that the agent is about to open for a workload.
#[derive(Clone, Copy, Debug)]
pub struct Leg {
    /// On whose behalf.
    pub workload: u32,
    /// Its identity.
    pub identity: u32,
    /// Service id; 0: none.
    pub service: u32,
    /// Endpoint id that is to count it; 0: none.
    pub endpoint: u32,
    /// The destination lives on this node: its side is told that this connection was authorised.
    pub local: bool,
    /// The client that a local application is to see.
    pub show: Option<SocketAddr>,
}

impl Kernel {
    /// The record of a connection that the agent has accepted. `None`: its listener is not one of ours.
    pub fn capture(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<Capture>> {
        bpf::storage_get(self.captured.as_fd(), accepted)
    }

    /// Marks a socket as the agent's, before `connect()`: never captured, counted for its endpoint only.
    pub fn mark_leg(&self, socket: BorrowedFd<'_>, leg: &Leg) -> io::Result<()> {
        let (shown, port_be, role) = match leg.show {
            Some(client) => (addr::from_ip(client.ip()), client.port().to_be(), role::DIAL),
            None => (addr::UNSPECIFIED, 0, role::LEG),
        };
        let capture = Capture {
            addr: shown,
            epoch: 0,
            workload: leg.workload,
            service: leg.service,
            endpoint: leg.endpoint,
            role,
            identity: leg.identity,
            port_be,
            flags: if leg.local { captured::LOCAL } else { 0 },
        };
        bpf::storage_put(self.captured.as_fd(), socket, &capture)
    }

    /// After `connect()` of a leg that shows a client: was its record left for the application's side? Where
    /// it was not, the application would see the agent: the connection must be reset.
    pub fn handed_over(&self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        Ok(self.capture(socket)?.is_some_and(|c| c.role == role::DIALLED))
    }

    /// Marks a socket that asks a resolver in a workload's place, before `connect()`.
    pub fn mark_resolving(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        bpf::storage_put(self.captured.as_fd(), socket, &plain(0, role::RESOLVES))
    }

    /// The resolver that a UDP socket asked by what came to the agent at `at`.
    pub fn asked(&self, client: &Asker, at: SocketAddr) -> Option<SocketAddr> {
        let cookie = client.cookie & COOKIE;
        if client.connected {
            let flow = self.flows.get(cookie).filter(|flow| flow.flags & flow::CAPTURED != 0)?;
            return Some(SocketAddr::new(addr::to_ip(&flow.peer), u16::from_be(flow.peer_port_be)));
        }
        let key = StickyKey {
            cookie,
            addr: addr::from_ip(at.ip()),
            port_be: at.port().to_be(),
            side: SIDE_HEARD,
            pad: 0,
        };
        let asked = self.sticky.lock().get(&key, 0).ok()?;
        Some(SocketAddr::new(addr::to_ip(&asked.addr), u16::from_be(asked.port_be)))
    }

    /// Do the maps say that requests decide at this address and port of a workload of this node?
    pub fn asks_requests(&self, at: SocketAddr) -> bool {
        let key =
            |port_be| WorkloadKey { addr: addr::from_ip(at.ip()), port_be, proto: PROTO_TCP, network: 0 };
        let workloads = self.workloads.lock();
        let entry = workloads.get(&key(at.port().to_be()), 0).or_else(|_| workloads.get(&key(0), 0));
        entry.is_ok_and(|entry| entry.flags & flags::REQUESTS != 0)
    }

    /// Marks a listener as the agent's; accepted sockets inherit the mark and get the client's record.
    pub(super) fn mark_listener(&self, socket: BorrowedFd<'_>, workload: u32) -> io::Result<()> {
        bpf::storage_put(self.captured.as_fd(), socket, &plain(workload, role::LISTENER))
    }
}

/// A record that says what a socket is, and no more.
fn plain(workload: u32, role: u32) -> Capture {
    Capture {
        addr: addr::UNSPECIFIED,
        epoch: 0,
        workload,
        service: 0,
        endpoint: 0,
        role,
        identity: 0,
        port_be: 0,
        flags: 0,
    }
}
