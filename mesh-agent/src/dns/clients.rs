//! Which socket a datagram came from, asked of the kernel over `NETLINK_SOCK_DIAG`: the one that an answer would
//! reach.
//!
//! The programs know a socket by its cookie, the agent sees an address and a port. One exchange a question that is
//! passed on. Where the socket has been closed nobody waits for the answer.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::net::netlink::SOCK_DIAG;

use crate::sys::netlink::{Netlink, word32};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_UDP: u8 = 17;
/// `struct inet_diag_sockid` in `struct inet_diag_req_v2`.
const ID: usize = 8;
/// Both.
const REQUEST: usize = ID + 48;
/// Of `struct inet_diag_sockid`: the other end's port, and the cookie.
const DPORT: usize = 2;
const COOKIE: usize = 40;
/// Of `struct inet_diag_msg`.
const SOCKID: usize = 4;

/// A workload's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// What the kernel knows it by.
    pub cookie: u64,
    /// It is connected.
    pub connected: bool,
}

/// A conversation about the sockets of one namespace.
#[derive(Debug)]
pub struct Clients(Netlink);

impl Clients {
    /// About the namespace that the calling thread is in.
    pub fn new() -> io::Result<Self> {
        Netlink::new(Some(SOCK_DIAG)).map(Self)
    }

    /// The socket that what `here` sends to `there` would reach; `None`: there is none any more.
    pub fn at(&self, here: SocketAddr, there: SocketAddr) -> io::Result<Option<Asker>> {
        let mut found = None;
        let asked = self.0.one(SOCK_DIAG_BY_FAMILY, &request(here, there), |body| found = client(body));
        match asked {
            Ok(()) => Ok(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A `struct inet_diag_req_v2` about one UDP socket: for UDP the kernel takes the sender of what would arrive as
/// the source.
fn request(here: SocketAddr, there: SocketAddr) -> [u8; REQUEST] {
    let mut out = [0; REQUEST];
    out[0] = if here.is_ipv4() { AF_INET } else { AF_INET6 };
    out[1] = IPPROTO_UDP;
    out[4..8].fill(0xff);
    let id = &mut out[ID..];
    id[..2].copy_from_slice(&here.port().to_be_bytes());
    id[2..4].copy_from_slice(&there.port().to_be_bytes());
    for (at, end) in [(4, here), (20, there)] {
        match end.ip() {
            IpAddr::V4(v4) => id[at..at + 4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => id[at..at + 16].copy_from_slice(&v6.octets()),
        }
    }
    // Any cookie.
    id[COOKIE..].fill(0xff);
    out
}

/// A `struct inet_diag_msg`.
fn client(body: &[u8]) -> Option<Asker> {
    let id = body.get(SOCKID..)?;
    let cookie = u64::from(word32(id, COOKIE)?) | u64::from(word32(id, COOKIE + 4)?) << 32;
    let connected = id.get(DPORT..DPORT + 2)? != [0, 0];
    Some(Asker { cookie, connected })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_socket_is_found_by_where_an_answer_would_go() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(here) = UdpSocket::bind(loopback) else { continue };
            let here = here.local_addr().unwrap();
            let clients = Clients::new().unwrap();
            let connected = UdpSocket::bind(loopback).unwrap();
            connected.connect(here).unwrap();
            let free = UdpSocket::bind(loopback).unwrap();
            let [first, second] = [&connected, &free].map(|socket| {
                let there = socket.local_addr().unwrap();
                clients.at(here, there).unwrap().expect("it is there")
            });
            assert!(first.connected && !second.connected, "{first:?} {second:?}");
            assert_ne!(first.cookie, second.cookie);
            let gone = free.local_addr().unwrap();
            drop(free);
            assert_eq!(clients.at(here, gone).unwrap(), None);
        }
    }
}
