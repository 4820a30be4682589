//! Source addresses of the agent's connections to local applications: more of them than one address has
//! ephemeral ports.

#![allow(unsafe_code)]

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use mesh_common::{addr, spread};

/// Lets `connect()` choose the port of a bound IPv4 socket: then only the four numbers of a connection have to
/// be unlike others, and not the port among all sockets.
fn choose_port_late(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads an int of the size that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            std::ptr::from_ref(&on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Binds an IPv4 socket to one of four million loopback addresses, which never leave the namespace.
pub fn bind_loopback(socket: BorrowedFd<'_>, random: u32) -> io::Result<()> {
    choose_port_late(socket)?;
    let source = SocketAddr::new(addr::to_ip(&spread::address4(random)), 0);
    Ok(rustix::net::bind(socket, &source)?)
}

/// Ports that are tried where IPv6 has one loopback address alone: above those that people give to servers.
const PORTS: std::ops::RangeInclusive<u16> = 32_768..=65_535;
const TRIES: u32 = 8;

/// Binds an IPv6 socket to a port of its own choice at `own`, whatever the namespace's range of ephemeral ports
/// is; where eight are taken the kernel chooses. What another socket of ours has is not taken, so that ended
/// connections (`TIME_WAIT`) are in nobody's way: `connect()` then says `EADDRNOTAVAIL` where one is open.
pub fn bind_port(socket: BorrowedFd<'_>, own: Ipv6Addr, mut random: impl FnMut() -> u16) -> io::Result<()> {
    rustix::net::sockopt::set_socket_reuseaddr(socket, true)?;
    for _ in 0..TRIES {
        let port = PORTS.start() | random();
        if rustix::net::bind(socket, &SocketAddrV6::new(own, port, 0, 0)).is_ok() {
            break;
        }
    }
    Ok(())
}
