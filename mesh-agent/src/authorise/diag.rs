//! TCP connections of the network namespace that the calling thread is in: list them, end one.
//!
//! Asked of the kernel over `NETLINK_SOCK_DIAG`. Not here: which are to be ended (revoke).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::ControlFlow;

use rustix::net::netlink::SOCK_DIAG;

use crate::sys::netlink::Netlink;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const LISTEN: u8 = 10;
/// Established, half open, half closed, and listening: not those that have ended, and not those being opened
/// from here.
const STATES: u32 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << LISTEN | 1 << 11;
/// `struct inet_diag_sockid`.
const ID: usize = 48;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = 8 + ID;
/// Sockets of one namespace that are looked at.
pub(super) const MOST: usize = 1 << 17;

/// A TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    /// Its own end, IPv4 as IPv4.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// It waits for connections.
    pub listens: bool,
    family: u8,
    /// As the kernel knows it, its cookie included: no later socket on the same ports is meant.
    id: [u8; ID],
}

impl Socket {
    /// What the kernel's programs know it by.
    pub fn cookie(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.id[ID - 8..]);
        u64::from_ne_bytes(bytes)
    }
}

/// A conversation about the sockets of one namespace.
pub(super) struct Diag(Netlink);

impl Diag {
    /// About the namespace that the calling thread is in.
    pub fn new() -> io::Result<Self> {
        Netlink::new(Some(SOCK_DIAG)).map(Self)
    }

    /// The sockets of both address families, up to [`MOST`]. What exceeds it is read and left out.
    pub fn sockets(&self) -> io::Result<Vec<Socket>> {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            self.0.dump(SOCK_DIAG_BY_FAMILY, &request(family, &[0; ID]), |kind, body| {
                if kind == SOCK_DIAG_BY_FAMILY && found.len() < MOST {
                    found.extend(socket(body));
                }
                ControlFlow::Continue(())
            })?;
        }
        Ok(found)
    }

    /// Resets a connection, whoever holds it. `false`: it has ended by itself.
    pub fn destroy(&self, socket: &Socket) -> io::Result<bool> {
        match self.0.ask(SOCK_DESTROY, &request(socket.family, &socket.id)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn request(family: u8, id: &[u8; ID]) -> [u8; REQUEST] {
    let mut out = [0; REQUEST];
    out[..2].copy_from_slice(&[family, IPPROTO_TCP]);
    out[4..8].copy_from_slice(&STATES.to_ne_bytes());
    out[8..].copy_from_slice(id);
    out
}

/// A `struct inet_diag_msg`.
fn socket(body: &[u8]) -> Option<Socket> {
    let (family, state) = (*body.first()?, *body.get(1)?);
    let id: [u8; ID] = body.get(4..4 + ID)?.try_into().ok()?;
    let port = |at: usize| u16::from_be_bytes([id[at], id[at + 1]]);
    let end = |at: usize, port: u16| {
        let bytes: [u8; 16] = id[at..at + 16].try_into().ok()?;
        let ip = match family {
            AF_INET => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
            AF_INET6 => Ipv6Addr::from(bytes).to_canonical(),
            _ => return None,
        };
        Some(SocketAddr::new(ip, port))
    };
    Some(Socket { local: end(4, port(0))?, remote: end(20, port(2))?, listens: state == LISTEN, family, id })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn sockets_are_found_over_both_families() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let at = listener.local_addr().unwrap();
            let client = TcpStream::connect(at).unwrap();
            let (_server, _) = listener.accept().unwrap();
            let sockets = Diag::new().unwrap().sockets().unwrap();
            let ends = (at, client.local_addr().unwrap());
            assert!(sockets.iter().any(|s| !s.listens && (s.local, s.remote) == ends), "{ends:?}");
            assert!(sockets.iter().any(|s| s.listens && s.local == at), "{at}");
        }
    }

    #[test]
    fn an_ended_connection_is_reset_and_its_neighbour_lives() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let mut ended = TcpStream::connect(at).unwrap();
        let (_far, _) = listener.accept().unwrap();
        let mut lives = TcpStream::connect(at).unwrap();
        let (mut near, _) = listener.accept().unwrap();
        let diag = Diag::new().unwrap();
        let sockets = diag.sockets().unwrap();
        let client = ended.local_addr().unwrap();
        let far = sockets.iter().find(|s| s.remote == client && s.local == at).unwrap();
        // Needs CAP_NET_ADMIN, as the agent does.
        match diag.destroy(far) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return,
            done => assert!(done.unwrap()),
        }
        assert!(ended.read(&mut [0]).is_err());
        assert!(!diag.destroy(far).unwrap(), "it has ended");
        near.write_all(b"x").unwrap();
        assert_eq!(lives.read(&mut [0; 8]).unwrap(), 1);
    }
}
