//! What the request path asks of the kernel, as a trait, so that it runs in tests on plain loopback without
//! BPF. `Kernel` implements it; nothing else of the kernel is known to the path.
//!
//! Invariant: one system call a connection, none a request.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mesh_common::record::{Capture, FlowKey, FlowSource, Load};
use mesh_core::balance::Loads;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::dns::clients::Asker;
use crate::kernel::Kernel;
pub use crate::kernel::Leg;
use crate::sys::{in_netns, monotonic_ns};

/// The kernel's side of a connection.
pub trait Sockets: Send + Sync + 'static {
    /// The capture record on an accepted socket; `None`: it carries none.
    fn capture(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<Capture>>;

    /// Says, before `connect()`, what this socket is for.
    fn mark_leg(&self, socket: BorrowedFd<'_>, leg: &Leg) -> io::Result<()>;

    /// After the connect of a leg with [`Leg::show`]: did the application's socket get the client's address?
    fn handed_over(&self, socket: BorrowedFd<'_>) -> io::Result<bool>;

    /// Writes a worker's heartbeat.
    fn beat(&self, worker: u32);

    /// This worker takes no new connections any more: they need not wait until it is missed.
    fn stop_beating(&self, worker: u32);

    /// Counters of an endpoint.
    fn load(&self, endpoint: u32) -> Load;

    /// Endpoints of a service that are ejected.
    fn ejected(&self, service: u32) -> u64;

    /// Leaves an endpoint out because of what it answers; `before`: ejections that make this one longer. Until when;
    /// `None`: it is left out already, or may not be.
    fn eject(&self, service: u32, endpoint: u32, before: u32) -> Option<u64>;

    /// The ejection of an endpoint that lasted until `until` is over.
    fn let_back(&self, service: u32, endpoint: u32, until: u64);

    /// The resolver that a workload's UDP socket asked by what came to the agent at `at`; `None`: it asked none.
    fn asked(&self, client: &Asker, at: SocketAddr) -> Option<SocketAddr>;

    /// Who has opened a connection on this node, where its destination asks; `None`: nobody has proved it.
    fn source_of(&self, flow: &FlowKey) -> Option<FlowSource>;

    /// Do the maps still hand connections to this address and port to the agent, although requests decide there?
    fn assigns(&self, wanted: SocketAddr) -> bool;

    /// A non-blocking socket in a network namespace that asks resolvers: its questions are not taken again.
    fn resolving(&self, netns: BorrowedFd<'_>, v6: bool, stream: bool) -> io::Result<OwnedFd>;

    /// A non-blocking TCP socket in a network namespace.
    fn socket(&self, netns: BorrowedFd<'_>, v6: bool) -> io::Result<OwnedFd>;
}

impl Sockets for Kernel {
    fn capture(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<Capture>> {
        self.capture(accepted)
    }

    fn mark_leg(&self, socket: BorrowedFd<'_>, leg: &Leg) -> io::Result<()> {
        self.mark_leg(socket, leg)
    }

    fn handed_over(&self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        self.handed_over(socket)
    }

    fn beat(&self, worker: u32) {
        self.beat(worker);
    }

    fn stop_beating(&self, worker: u32) {
        self.stop_beating(worker);
    }

    fn load(&self, endpoint: u32) -> Load {
        self.load_of(endpoint)
    }

    fn ejected(&self, service: u32) -> u64 {
        self.service_load_of(service).ejected
    }

    fn eject(&self, service: u32, endpoint: u32, before: u32) -> Option<u64> {
        self.eject(service, endpoint, before)
    }

    fn let_back(&self, service: u32, endpoint: u32, until: u64) {
        self.let_back(service, endpoint, until);
    }

    fn asked(&self, client: &Asker, at: SocketAddr) -> Option<SocketAddr> {
        self.asked(client, at)
    }

    fn source_of(&self, flow: &FlowKey) -> Option<FlowSource> {
        self.source_of(flow)
    }

    fn assigns(&self, wanted: SocketAddr) -> bool {
        self.asks_requests(wanted)
    }

    fn resolving(&self, netns: BorrowedFd<'_>, v6: bool, stream: bool) -> io::Result<OwnedFd> {
        let kind = if stream { SocketType::STREAM } else { SocketType::DGRAM };
        let socket = in_netns(netns, || socket_of(kind, v6))?;
        self.mark_resolving(socket.as_fd())?;
        Ok(socket)
    }

    fn socket(&self, netns: BorrowedFd<'_>, v6: bool) -> io::Result<OwnedFd> {
        in_netns(netns, || tcp_socket(v6))
    }
}

impl Loads for dyn Sockets {
    fn load(&self, endpoint: u32) -> Load {
        Sockets::load(self, endpoint)
    }

    fn ejected(&self, service: u32) -> u64 {
        Sockets::ejected(self, service)
    }

    fn now(&self) -> u64 {
        monotonic_ns()
    }

    fn let_back(&self, service: u32, endpoint: u32, until: u64) {
        Sockets::let_back(self, service, endpoint, until);
    }
}

/// A non-blocking TCP socket in this thread's network namespace.
pub fn tcp_socket(v6: bool) -> io::Result<OwnedFd> {
    socket_of(SocketType::STREAM, v6)
}

fn socket_of(kind: SocketType, v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
    Ok(socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}
