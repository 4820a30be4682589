//! The addresses of the network namespace that the calling thread is in: what a workload is reached at.
//!
//! Asked of the kernel over rtnetlink (`RTM_GETADDR`). Taken: global scope, usable; loopback, link-local,
//! failed and deprecated addresses are not. Not here: changing them, ever.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x1 | 0x300;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_DADFAILED: u8 = 0x08;
const IFA_F_DEPRECATED: u8 = 0x20;
const HEADER: usize = 16;
const IFADDRMSG: usize = 8;
/// A namespace with more is not a workload's.
const MAX: usize = 64;

/// Addresses of the calling thread's namespace, IPv4 first.
pub fn of_this_namespace() -> io::Result<Vec<IpAddr>> {
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    rustix::net::send(&socket, &request(), SendFlags::empty())?;
    let mut found = Vec::new();
    let mut buffer = vec![0u8; 32 * 1024];
    loop {
        // The kernel answers a dump at once; it never blocks for long.
        let (read, _) = rustix::net::recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        let done = parse(&buffer[..read], &mut found)?;
        if done || found.len() > MAX {
            break;
        }
    }
    found.truncate(MAX);
    // Stable: the interface's own order within a family.
    found.sort_by_key(IpAddr::is_ipv6);
    Ok(found)
}

fn request() -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + IFADDRMSG);
    out.extend_from_slice(&((HEADER + IFADDRMSG) as u32).to_ne_bytes());
    out.extend_from_slice(&RTM_GETADDR.to_ne_bytes());
    out.extend_from_slice(&DUMP.to_ne_bytes());
    out.resize(HEADER + IFADDRMSG, 0);
    out
}

fn word16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Adds the addresses of one datagram; true at the end of the dump.
fn parse(mut bytes: &[u8], found: &mut Vec<IpAddr>) -> io::Result<bool> {
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
            RTM_NEWADDR => found.extend(address(body)),
            _ => {}
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The address in an `ifaddrmsg` with its attributes, if it is one that others can use.
fn address(body: &[u8]) -> Option<IpAddr> {
    let (flags, scope) = (*body.get(2)?, *body.get(3)?);
    if scope != 0 || flags & (IFA_F_DADFAILED | IFA_F_DEPRECATED) != 0 {
        return None;
    }
    let mut rest = body.get(IFADDRMSG..)?;
    let (mut address, mut local) = (None, None);
    while let (Some(len), Some(kind)) = (word16(rest, 0), word16(rest, 2)) {
        let value = rest.get(4..len as usize)?;
        match kind {
            IFA_ADDRESS => address = ip(value),
            IFA_LOCAL => local = ip(value),
            _ => {}
        }
        rest = rest.get((len as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    // On a point-to-point link IFA_ADDRESS is the peer's.
    local.or(address).filter(usable)
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

/// May a workload have this address?
pub fn usable(ip: &IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(flags: u8, scope: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![0u8, 0, flags, scope, 1, 0, 0, 0];
        for (kind, value) in attributes {
            body.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
            body.extend_from_slice(&kind.to_ne_bytes());
            body.extend_from_slice(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut out = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        out.extend_from_slice(&RTM_NEWADDR.to_ne_bytes());
        out.resize(HEADER, 0);
        out.extend_from_slice(&body);
        out
    }

    #[test]
    fn global_addresses_are_taken_and_others_are_not() {
        let mut bytes =
            message(0, 0, &[(IFA_ADDRESS, &[10, 0, 0, 1]), (IFA_LOCAL, &[10, 0, 0, 2]), (3, b"eth0\0")]);
        bytes.extend(message(0, 253, &[(IFA_ADDRESS, &[10, 0, 0, 3])]));
        bytes.extend(message(IFA_F_DADFAILED, 0, &[(IFA_ADDRESS, &[10, 0, 0, 4])]));
        bytes.extend(message(0, 0, &[(IFA_ADDRESS, &[127, 0, 0, 1])]));
        let mut found = Vec::new();
        assert!(!parse(&bytes, &mut found).unwrap());
        assert_eq!(found, [IpAddr::from([10, 0, 0, 2])]);
    }

    #[test]
    fn a_truncated_message_is_an_error() {
        let bytes = message(0, 0, &[(IFA_ADDRESS, &[10, 0, 0, 1])]);
        assert!(parse(&bytes[..bytes.len() - 4], &mut Vec::new()).is_err());
    }

    #[test]
    fn this_namespace_can_be_asked() {
        for ip in of_this_namespace().unwrap() {
            assert!(usable(&ip), "{ip}");
        }
    }
}
