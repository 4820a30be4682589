//! What the kernel knows of the TCP sockets of a network namespace: one `NETLINK_SOCK_DIAG` dump, as `ss` does
//! it.
//!
//! Not here: which sockets are flows (`open`).

use std::io;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use mesh_common::decide::{self, tcp};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x1 | 0x300;
const HEADER: usize = 16;
/// `inet_diag_req_v2`.
const REQUEST: usize = 56;
/// `inet_diag_msg`.
const MESSAGE: usize = 72;
/// Where its socket cookie is.
const COOKIE: usize = 44;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const INET_DIAG_INFO: u16 = 2;
/// Offsets in `struct tcp_info`.
const RTT: usize = 68;
const TOTAL_RETRANS: usize = 100;
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;
/// States in which a handshake is done and the end has not come.
const STATES: u32 = 1 << 1
    | 1 << tcp::FIN_WAIT1
    | 1 << tcp::FIN_WAIT2
    | 1 << tcp::CLOSE_WAIT
    | 1 << tcp::LAST_ACK
    | 1 << tcp::CLOSING;

/// A connection as it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Payload bytes that the peer acknowledged.
    pub sent: u64,
    /// Payload bytes received.
    pub received: u64,
    /// Smoothed round-trip time, microseconds.
    pub srtt_us: u32,
    /// Segments sent again.
    pub retransmits: u32,
}

/// Calls `each` with the cookie and the standing of every established TCP socket of the namespace that the
/// calling thread is in.
pub fn sockets(mut each: impl FnMut(u64, Standing)) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    let mut buffer = vec![0u8; 64 * 1024];
    for family in [AF_INET, AF_INET6] {
        rustix::net::send(&socket, &request(family), SendFlags::empty())?;
        loop {
            // The kernel answers a dump at once; it never blocks for long.
            let (read, _) = rustix::net::recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
            if parse(&buffer[..read], &mut each)? {
                break;
            }
        }
    }
    Ok(())
}

fn request(family: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + REQUEST);
    out.extend_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    out.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    out.extend_from_slice(&DUMP.to_ne_bytes());
    out.resize(HEADER, 0);
    out.extend_from_slice(&[family, IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0]);
    out.extend_from_slice(&STATES.to_ne_bytes());
    out.resize(HEADER + REQUEST, 0);
    out
}

fn word16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn word64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Reads one datagram; true at the end of the dump.
fn parse(mut bytes: &[u8], each: &mut impl FnMut(u64, Standing)) -> io::Result<bool> {
    while let (Some(len), Some(kind)) = (word32(bytes, 0), word16(bytes, 4)) {
        let len = len as usize;
        if len < HEADER || len > bytes.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "truncated netlink message"));
        }
        let body = &bytes[HEADER..len];
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = word32(body, 0).unwrap_or(0) as i32;
                return Err(io::Error::from_raw_os_error(-code));
            }
            SOCK_DIAG_BY_FAMILY => {
                if let Some((cookie, standing)) = read(body) {
                    each(cookie, standing);
                }
            }
            _ => {}
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// An `inet_diag_msg` with its attributes; `None`: without what is asked for.
fn read(body: &[u8]) -> Option<(u64, Standing)> {
    let state = u32::from(*body.get(1)?);
    // Two words, the low one first.
    let cookie = u64::from(word32(body, COOKIE)?) | u64::from(word32(body, COOKIE + 4)?) << 32;
    let mut rest = body.get(MESSAGE..)?;
    while let (Some(len), Some(kind)) = (word16(rest, 0), word16(rest, 2)) {
        let value = rest.get(4..len as usize)?;
        if kind == INET_DIAG_INFO {
            let (acked, received) = (word64(value, BYTES_ACKED)?, word64(value, BYTES_RECEIVED)?);
            return Some((
                cookie,
                Standing {
                    // Never more than what will be counted at the end.
                    sent: decide::sent(acked, state, state == tcp::FIN_WAIT2),
                    received: decide::received(received, state, received as u32),
                    srtt_us: word32(value, RTT)?,
                    retransmits: word32(value, TOTAL_RETRANS)?,
                },
            ));
        }
        rest = rest.get((len as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_of_this_namespace_shows_its_payload() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(&[7; 1000]).unwrap();
        server.read_exact(&mut [0; 1000]).unwrap();
        server.write_all(&[7; 30]).unwrap();
        client.read_exact(&mut [0; 30]).unwrap();
        let cookie = rustix::net::sockopt::socket_cookie(&client).unwrap();
        let mut seen = Vec::new();
        sockets(|of, standing| {
            if of == cookie {
                seen.push((standing.sent, standing.received));
            }
        })
        .unwrap();
        assert_eq!(seen, [(1000, 30)]);
    }

    #[test]
    fn a_truncated_message_is_an_error() {
        let mut bytes = request(AF_INET);
        bytes.pop();
        assert!(parse(&bytes, &mut |_, _| {}).is_err());
    }
}
