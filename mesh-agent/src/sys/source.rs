//! Source addresses of the agent's connections to local applications: more of them than one address has
//! ephemeral ports.

#![allow(unsafe_code)]

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

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

/// First half of 127/8 is for people: `127.0.0.53`, `127.0.1.1`. This is one of the second half's addresses.
fn spread_address(random: u64) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x7f80_0000 | (random as u32 & 0x007f_fffe) | 1)
}

/// Binds an IPv4 socket to one of four million loopback addresses, which never leave the namespace.
pub fn bind_loopback(socket: BorrowedFd<'_>, random: u64) -> io::Result<()> {
    choose_port_late(socket)?;
    Ok(rustix::net::bind(socket, &SocketAddrV4::new(spread_address(random), 0))?)
}

/// Ports that are tried where IPv6 has one loopback address alone: above those that people give to servers.
const PORTS: std::ops::RangeInclusive<u16> = 32_768..=65_535;
const TRIES: u32 = 8;

/// Binds an IPv6 socket to a port of its own choice at `own`, whatever the namespace's range of ephemeral ports
/// is; where eight are taken the kernel chooses.
pub fn bind_port(socket: BorrowedFd<'_>, own: std::net::Ipv6Addr, mut random: impl FnMut() -> u16) {
    for _ in 0..TRIES {
        let port = PORTS.start() | random();
        if rustix::net::bind(socket.as_fd(), &SocketAddrV6::new(own, port, 0, 0)).is_ok() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_addresses_are_loopback_and_nobodys() {
        for random in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
            let address = spread_address(random);
            assert!(address.is_loopback() && address.octets()[1] >= 128, "{address}");
            assert!(!matches!(address.octets()[3], 0 | 254), "{address}");
        }
    }
}
