//! What the request path asks of the kernel, as a trait, so that it runs in tests on plain loopback without
//! BPF. `Kernel` implements it; nothing else of the kernel is known to the path.
//!
//! Invariant: one system call a connection, none a request.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use mesh_common::record::{Capture, Load};
use mesh_core::balance::Loads;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

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

    /// Counters of an endpoint.
    fn load(&self, endpoint: u32) -> Load;

    /// Endpoints of a service that are ejected.
    fn ejected(&self, service: u32) -> u64;

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

    fn load(&self, endpoint: u32) -> Load {
        self.load_of(endpoint)
    }

    fn ejected(&self, service: u32) -> u64 {
        self.service_load_of(service).ejected
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
}

/// A non-blocking TCP socket in this thread's network namespace.
pub fn tcp_socket(v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
    Ok(socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}
