//! Where connections inside one namespace go on loopback, so that they do not run out of names: a connection is its
//! two addresses and two ports, and to one port of one address there are only as many as there are ephemeral ports.
//!
//! IPv4 has four million loopback addresses that are nobody's; IPv6 has one, so there it is ports. Nobody listens
//! at either: `sk_lookup` hands what a workload sends there from its own address to the agent's listener.

use crate::addr::{Addr, LOOPBACK6, from_v4_be, same};

/// Ports of `::1` that captured connections go to: the last ones, above what is given out as ephemeral.
pub const PORTS: core::ops::RangeInclusive<u16> = 0xffc0..=0xffff;

/// First half of 127/8 is for people: `127.0.0.53`, `127.0.1.1`. This is one of the second half's addresses,
/// v4-mapped; never the first or last of a network.
#[inline(always)]
pub const fn address4(random: u32) -> Addr {
    from_v4_be((0x7f80_0001 | (random & 0x007f_fffe)).to_be())
}

/// One of [`PORTS`], in network order.
#[inline(always)]
pub const fn port6_be(random: u32) -> u16 {
    (0xffc0 | (random & 0x3f) as u16).to_be()
}

/// Could a connection to this port be a captured one that was spread? Asked of all that arrives on loopback, before
/// more is looked at. `ip_be` is of IPv4; 0 where the connection is one of IPv6.
#[inline(always)]
pub const fn perhaps(v4: bool, ip_be: u32, port: u16) -> bool {
    if v4 { u32::from_be(ip_be) >> 23 == 0x7f80_0000 >> 23 } else { port >= *PORTS.start() }
}

/// Is it `::1`?
#[inline(always)]
pub const fn is_loopback6(addr: &Addr) -> bool {
    same(addr, &LOOPBACK6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{is_loopback, to_ip, to_v4_be};

    #[test]
    fn spread_addresses_are_loopback_and_nobodys() {
        for random in [0, 1, u32::MAX, 0x1234_5678, 0x00ff_ffff] {
            let addr = address4(random);
            let core::net::IpAddr::V4(ip) = to_ip(&addr) else { panic!("not IPv4") };
            assert!(is_loopback(&addr) && ip.octets()[1] >= 128, "{ip}");
            assert!(!matches!(ip.octets()[3], 0 | 254), "{ip}");
            assert!(perhaps(true, to_v4_be(&addr), 1), "{ip}");
        }
        for people in ["127.0.0.1", "127.127.255.255", "128.0.0.1", "10.0.0.1"] {
            let ip: core::net::Ipv4Addr = people.parse().unwrap();
            assert!(!perhaps(true, u32::from_ne_bytes(ip.octets()), u16::MAX), "{ip}");
        }
    }

    #[test]
    fn spread_ports_are_the_last_ones_and_all_of_them() {
        for random in 0..64 {
            let port = u16::from_be(port6_be(random | 0x5a40));
            assert_eq!(port, PORTS.start() + random as u16);
            assert!(perhaps(false, 0, port));
        }
        assert!(!perhaps(false, 0, PORTS.start() - 1));
    }
}
