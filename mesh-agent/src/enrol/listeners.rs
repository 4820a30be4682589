//! The agent's listeners inside a workload's network namespace, and what that namespace says of itself.
//!
//! Bound to port 0: nobody can squat the port. Those for outbound are on loopback, out of reach from outside.
//! The kernel programs learn the ports from the workload's entry, `sk_lookup` assigns inbound connections of
//! both families to the one inbound listener, which is therefore bound to any address.
//!
//! Not here: who accepts on them (path), who is told of them (enrol).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::addresses;
use crate::dns::open::{Ears, beside};
use crate::sys;

const BACKLOG: i32 = 4096;

/// A namespace as it was found, with the agent's listeners in it.
#[derive(Debug)]
pub struct Opened {
    /// Its cookie: what the kernel knows it by.
    pub cookie: u64,
    /// Addresses of its interfaces.
    pub addresses: Vec<IpAddr>,
    /// Outbound capture over IPv4.
    pub out4: Option<TcpListener>,
    /// Outbound capture over IPv6; `None`: the namespace has no IPv6.
    pub out6: Option<TcpListener>,
    /// Inbound capture.
    pub inbound: Option<TcpListener>,
    /// Questions to resolvers; `None`: they are left alone.
    pub dns: Option<Ears>,
}

impl Opened {
    /// The port of a listener, in network order; 0: there is none.
    pub fn port_be(listener: Option<&TcpListener>) -> u16 {
        let port = listener.and_then(|l| l.local_addr().ok()).map_or(0, |a| a.port());
        port.to_be()
    }
}

/// Enters the namespace, reads it, makes the listeners, with `dns` those for questions as well. Blocks for a
/// moment: not for a runtime's thread.
pub fn open(netns: BorrowedFd<'_>, dns: bool) -> io::Result<Opened> {
    sys::in_netns(netns, || {
        let out4 = outbound(Ipv4Addr::LOCALHOST.into(), dns).map_err(|error| match error.kind() {
            io::ErrorKind::AddrNotAvailable => {
                io::Error::new(error.kind(), "its loopback is down: ip link set lo up")
            }
            _ => error,
        })?;
        let (out4, mut sockets) = out4;
        let (out6, more) = optional(outbound(Ipv6Addr::LOCALHOST.into(), dns))?.unzip();
        sockets.extend(more.into_iter().flatten());
        let dns = if dns { Ears::new(sockets)? } else { None };
        // A bind to ::1 makes a socket IPv6-only, and sk_lookup can't assign IPv4 connections to it. Who dials
        // this port itself names no endpoint, and is reset.
        let inbound = match optional(listen(Ipv6Addr::UNSPECIFIED.into(), false))? {
            Some(both) => both,
            None => listen(Ipv4Addr::UNSPECIFIED.into(), false)?,
        };
        Ok(Opened {
            cookie: sys::netns_cookie(out4.as_fd())?,
            addresses: addresses::of_this_namespace()?,
            out4: Some(out4),
            out6,
            inbound: Some(inbound),
            dns,
        })
    })
}

/// The cookie of a namespace.
pub fn cookie(netns: BorrowedFd<'_>) -> io::Result<u64> {
    sys::in_netns(netns, || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None)?;
        sys::netns_cookie(socket.as_fd())
    })
}

/// IPv6 may be off altogether, or off on loopback.
fn optional<T>(made: io::Result<T>) -> io::Result<Option<T>> {
    match made {
        Ok(made) => Ok(Some(made)),
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A listener for outbound connections, with `dns` beside what hears questions.
fn outbound(ip: IpAddr, dns: bool) -> io::Result<(TcpListener, Vec<UdpSocket>)> {
    let make = || listen(ip, ip.is_ipv6());
    if dns { beside(ip, make) } else { make().map(|listener| (listener, Vec::new())) }
}

fn listen(ip: IpAddr, v6_only: bool) -> io::Result<TcpListener> {
    let address = SocketAddr::new(ip, 0);
    let kind = Type::STREAM.cloexec().nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(v6_only)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
