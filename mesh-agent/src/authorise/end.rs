//! Resets what is open to a workload.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use super::diag::{Diag, Protocol};
use crate::sys;

/// Connections to these ports of a workload, whoever holds them; how many there were. Blocks.
pub fn end_inbound(netns: &OwnedFd, addresses: &[IpAddr], ports: &[u16]) -> io::Result<usize> {
    sys::in_netns(netns.as_fd(), || {
        let diag = Diag::new()?;
        let mut ended = 0;
        for socket in diag.sockets(Protocol::Tcp)? {
            let inbound = addresses.contains(&socket.local.ip()) && ports.contains(&socket.local.port());
            if inbound && !socket.listens {
                ended += usize::from(diag.destroy(&socket)?);
            }
        }
        Ok(ended)
    })
}
