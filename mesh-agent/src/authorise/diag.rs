//! Sockets of the network namespace that the calling thread is in: list them, end one.
//!
//! Asked of the kernel over `NETLINK_SOCK_DIAG`. Not here: which are to be ended (revoke), or named (squatters).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::ControlFlow;

use mesh_common::record::{PROTO_TCP, PROTO_UDP};
use rustix::net::netlink::SOCK_DIAG;

use crate::sys::netlink::Netlink;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const LISTEN: u8 = 10;
/// Of TCP: it has ended. Of UDP: it is not connected.
const CLOSE: u8 = 7;
/// Established, half open, half closed, and listening: not those that have ended, and not those being opened
/// from here.
const TCP_STATES: u32 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << LISTEN | 1 << 11;
const UDP_STATES: u32 = 1 << 1 | 1 << CLOSE;
/// `struct inet_diag_sockid`.
const ID: usize = 48;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = 8 + ID;
/// Sockets of one namespace that are looked at.
pub(super) const MOST: usize = 1 << 17;

/// What sockets speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    fn number(self) -> u8 {
        match self {
            Self::Tcp => PROTO_TCP,
            Self::Udp => PROTO_UDP,
        }
    }

    fn states(self) -> u32 {
        match self {
            Self::Tcp => TCP_STATES,
            Self::Udp => UDP_STATES,
        }
    }
}

/// A socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    /// Its own end, IPv4 as IPv4.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// It waits for connections; of UDP: it is not connected.
    pub listens: bool,
    protocol: Protocol,
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
    pub fn sockets(&self, protocol: Protocol) -> io::Result<Vec<Socket>> {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let request = request(protocol, family, protocol.states(), &[0; ID]);
            self.0.dump(SOCK_DIAG_BY_FAMILY, &request, |kind, body| {
                if kind == SOCK_DIAG_BY_FAMILY && found.len() < MOST {
                    found.extend(socket(protocol, body));
                }
                ControlFlow::Continue(())
            })?;
        }
        Ok(found)
    }

    /// Does a TCP socket wait for connections at this port?
    pub fn listens(&self, port: u16) -> io::Result<bool> {
        let mut found = false;
        for family in [AF_INET, AF_INET6] {
            let request = request(Protocol::Tcp, family, 1 << LISTEN, &[0; ID]);
            self.0.dump(SOCK_DIAG_BY_FAMILY, &request, |_, body| {
                found |= socket(Protocol::Tcp, body).is_some_and(|s| s.listens && s.local.port() == port);
                ControlFlow::Continue(())
            })?;
        }
        Ok(found)
    }

    /// Resets a connection, whoever holds it. `false`: it has ended by itself.
    pub fn destroy(&self, socket: &Socket) -> io::Result<bool> {
        match self
            .0
            .ask(SOCK_DESTROY, &request(socket.protocol, socket.family, socket.protocol.states(), &socket.id))
        {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn request(protocol: Protocol, family: u8, states: u32, id: &[u8; ID]) -> [u8; REQUEST] {
    let mut out = [0; REQUEST];
    out[..2].copy_from_slice(&[family, protocol.number()]);
    out[4..8].copy_from_slice(&states.to_ne_bytes());
    out[8..].copy_from_slice(id);
    out
}

/// A `struct inet_diag_msg`.
fn socket(protocol: Protocol, body: &[u8]) -> Option<Socket> {
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
    let (local, remote) = (end(4, port(0))?, end(20, port(2))?);
    let listens = state == LISTEN || state == CLOSE;
    Some(Socket { local, remote, listens, protocol, family, id })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn sockets_are_found_over_both_families() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let at = listener.local_addr().unwrap();
            let client = TcpStream::connect(at).unwrap();
            let (_server, _) = listener.accept().unwrap();
            let sockets = Diag::new().unwrap().sockets(Protocol::Tcp).unwrap();
            let ends = (at, client.local_addr().unwrap());
            assert!(sockets.iter().any(|s| !s.listens && (s.local, s.remote) == ends), "{ends:?}");
            assert!(sockets.iter().any(|s| s.listens && s.local == at), "{at}");
            let diag = Diag::new().unwrap();
            assert!(diag.listens(at.port()).unwrap());
            drop(listener);
            assert!(!diag.listens(at.port()).unwrap(), "its connection is none that waits");
        }
    }

    #[test]
    fn a_connected_socket_of_datagrams_shows_its_ends() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        let sockets = Diag::new().unwrap().sockets(Protocol::Udp).unwrap();
        let ends = (client.local_addr().unwrap(), server.local_addr().unwrap());
        assert!(sockets.iter().any(|s| !s.listens && (s.local, s.remote) == ends));
        assert!(sockets.iter().any(|s| s.listens && s.local == ends.1));
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
        let sockets = diag.sockets(Protocol::Tcp).unwrap();
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
