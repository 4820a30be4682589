//! The addresses of the network namespace that the calling thread is in: what a workload is reached at.
//!
//! Asked of the kernel over rtnetlink (`RTM_GETADDR`). Taken: global scope, usable; loopback, link-local,
//! failed and deprecated addresses are not. Not here: changing them, ever.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;

use crate::sys::netlink::{Netlink, attributes};

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_DADFAILED: u8 = 0x08;
const IFA_F_DEPRECATED: u8 = 0x20;
const IFADDRMSG: usize = 8;
/// A namespace with more is not a workload's.
const MAX: usize = 64;

/// Addresses of the calling thread's namespace, IPv4 first.
pub fn of_this_namespace() -> io::Result<Vec<IpAddr>> {
    let mut found = Vec::new();
    Netlink::new(None)?.dump(RTM_GETADDR, &[0; IFADDRMSG], |kind, body| take(kind, body, &mut found))?;
    found.truncate(MAX);
    // Stable: the interface's own order within a family.
    found.sort_by_key(IpAddr::is_ipv6);
    Ok(found)
}

fn take(kind: u16, body: &[u8], found: &mut Vec<IpAddr>) -> ControlFlow<()> {
    if kind == RTM_NEWADDR {
        found.extend(address(body));
    }
    if found.len() > MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// The address in an `ifaddrmsg` with its attributes, if it is one that others can use.
fn address(body: &[u8]) -> Option<IpAddr> {
    let (flags, scope) = (*body.get(2)?, *body.get(3)?);
    if scope != 0 || flags & (IFA_F_DADFAILED | IFA_F_DEPRECATED) != 0 {
        return None;
    }
    let (mut address, mut local) = (None, None);
    for attribute in attributes(body.get(IFADDRMSG..)?) {
        let (kind, value) = attribute?;
        match kind {
            IFA_ADDRESS => address = ip(value),
            IFA_LOCAL => local = ip(value),
            _ => {}
        }
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
    use crate::sys::netlink;

    fn message(flags: u8, scope: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![0u8, 0, flags, scope, 1, 0, 0, 0];
        for (kind, value) in attributes {
            body.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
            body.extend_from_slice(&kind.to_ne_bytes());
            body.extend_from_slice(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        netlink::message(RTM_NEWADDR, 0, &body)
    }

    fn parse(bytes: &[u8], found: &mut Vec<IpAddr>) -> io::Result<bool> {
        netlink::messages(bytes, &mut |kind, body: &[u8]| take(kind, body, found))
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
