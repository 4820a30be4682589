//! What the kernel knows of the TCP sockets of a network namespace: one `NETLINK_SOCK_DIAG` dump, as `ss` does
//! it.
//!
//! Not here: which sockets are flows (`open`).

use std::io;
use std::ops::ControlFlow;

use mesh_common::decide::{self, tcp};
use rustix::net::netlink::SOCK_DIAG;

use crate::sys::netlink::{Netlink, attributes, word32, word64};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
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
    let netlink = Netlink::new(Some(SOCK_DIAG))?;
    for family in [AF_INET, AF_INET6] {
        netlink.dump(SOCK_DIAG_BY_FAMILY, &request(family), |kind, body| {
            if kind == SOCK_DIAG_BY_FAMILY
                && let Some((cookie, standing)) = read(body)
            {
                each(cookie, standing);
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(())
}

fn request(family: u8) -> [u8; REQUEST] {
    let mut out = [0; REQUEST];
    out[..3].copy_from_slice(&[family, IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1)]);
    out[4..8].copy_from_slice(&STATES.to_ne_bytes());
    out
}

/// An `inet_diag_msg` with its attributes; `None`: without what is asked for.
fn read(body: &[u8]) -> Option<(u64, Standing)> {
    let state = u32::from(*body.get(1)?);
    // Two words, the low one first.
    let cookie = u64::from(word32(body, COOKIE)?) | u64::from(word32(body, COOKIE + 4)?) << 32;
    let info = attributes(body.get(MESSAGE..)?).flatten().find(|(kind, _)| *kind == INET_DIAG_INFO)?.1;
    let (acked, received) = (word64(info, BYTES_ACKED)?, word64(info, BYTES_RECEIVED)?);
    let standing = Standing {
        // Never more than what will be counted at the end.
        sent: decide::sent(acked, state, state == tcp::FIN_WAIT2),
        received: decide::received(received, state, received as u32),
        srtt_us: word32(info, RTT)?,
        retransmits: word32(info, TOTAL_RETRANS)?,
    };
    Some((cookie, standing))
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
}
