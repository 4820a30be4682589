//! TCP connections of the network namespace that the calling thread is in: list them, end one.
//!
//! Asked of the kernel over `NETLINK_SOCK_DIAG`. Not here: which are to be ended (revoke).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x1 | 0x300;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const ASK: u16 = 0x1 | 0x4;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const LISTEN: u8 = 10;
/// Established, half open, half closed, and listening: not those that have ended, and not those being opened
/// from here.
const STATES: u32 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << LISTEN | 1 << 11;
const HEADER: usize = 16;
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

/// A conversation about the sockets of one namespace.
pub(super) struct Diag {
    netlink: OwnedFd,
}

impl Diag {
    /// About the namespace that the calling thread is in.
    pub fn new() -> io::Result<Self> {
        let kind = SocketType::RAW;
        let netlink = rustix::net::socket_with(
            AddressFamily::NETLINK,
            kind,
            SocketFlags::CLOEXEC,
            Some(netlink::SOCK_DIAG),
        )?;
        Ok(Self { netlink })
    }

    /// The sockets of both address families, up to [`MOST`].
    pub fn sockets(&self) -> io::Result<Vec<Socket>> {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let request = request(SOCK_DIAG_BY_FAMILY, DUMP, family, &[0; ID]);
            rustix::net::send(&self.netlink, &request, SendFlags::empty())?;
            self.read(&mut found)?;
        }
        found.truncate(MOST);
        Ok(found)
    }

    /// Resets a connection, whoever holds it. `false`: it has ended by itself.
    pub fn destroy(&self, socket: &Socket) -> io::Result<bool> {
        let request = request(SOCK_DESTROY, ASK, socket.family, &socket.id);
        rustix::net::send(&self.netlink, &request, SendFlags::empty())?;
        match self.read(&mut Vec::new()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads to the end of a dump, or to the answer of a request. What exceeds [`MOST`] is read and left out.
    fn read(&self, found: &mut Vec<Socket>) -> io::Result<()> {
        let mut buffer = vec![0u8; 64 * 1024];
        loop {
            let (read, _) = rustix::net::recv(&self.netlink, buffer.as_mut_slice(), RecvFlags::empty())?;
            if parse(&buffer[..read], found)? {
                return Ok(());
            }
        }
    }
}

fn request(kind: u16, flags: u16, family: u8, id: &[u8; ID]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + REQUEST);
    out.extend_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.resize(HEADER, 0);
    out.extend_from_slice(&[family, IPPROTO_TCP, 0, 0]);
    out.extend_from_slice(&STATES.to_ne_bytes());
    out.extend_from_slice(id);
    out
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Adds the sockets of one datagram; true at the end.
fn parse(mut bytes: &[u8], found: &mut Vec<Socket>) -> io::Result<bool> {
    while let (Some(len), Some(kind)) = (word32(bytes, 0), bytes.get(4..6)) {
        let len = len as usize;
        if len < HEADER || len > bytes.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "truncated netlink message"));
        }
        let body = &bytes[HEADER..len];
        match u16::from_ne_bytes([kind[0], kind[1]]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = word32(body, 0).unwrap_or(0) as i32;
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            SOCK_DIAG_BY_FAMILY if found.len() < MOST => found.extend(socket(body)),
            _ => {}
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
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
