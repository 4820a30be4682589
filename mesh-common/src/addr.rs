//! Addresses as they stand in map keys: 16 bytes in network order, IPv4 as v4-mapped IPv6.
//!
//! Held as four words, because BPF has no unaligned access: as bytes, each copy and comparison would be
//! sixteen instructions.

use core::net::{IpAddr, Ipv6Addr};

/// An address in a key or value: the 16 bytes of the network form, read as four words of this machine.
/// IPv4 is `::ffff:a.b.c.d`.
pub type Addr = [u32; 4];

/// `::`, which stands for "none".
pub const UNSPECIFIED: Addr = [0; 4];

const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// 127.0.0.1, v4-mapped.
pub const LOOPBACK4: Addr = [0, 0, MAPPED, u32::from_ne_bytes([127, 0, 0, 1])];

/// `::1`.
pub const LOOPBACK6: Addr = [0, 0, 0, u32::from_ne_bytes([0, 0, 0, 1])];

/// v4-mapped form of an IPv4 address given in network order, as the kernel's `user_ip4` holds it.
#[inline(always)]
pub const fn from_v4_be(ip_be: u32) -> Addr {
    [0, 0, MAPPED, ip_be]
}

/// Inverse of [`from_v4_be`] for a v4-mapped address; the last four bytes of any other.
#[inline(always)]
pub const fn to_v4_be(addr: &Addr) -> u32 {
    addr[3]
}

/// Is this an IPv4 address?
#[inline(always)]
pub const fn is_v4(addr: &Addr) -> bool {
    addr[0] == 0 && addr[1] == 0 && addr[2] == MAPPED
}

/// 127/8, `::1`, and the v4-mapped form of 127/8.
#[inline(always)]
pub const fn is_loopback(addr: &Addr) -> bool {
    if is_v4(addr) {
        return addr[3].to_ne_bytes()[0] == 127;
    }
    addr[0] == 0 && addr[1] == 0 && addr[2] == 0 && addr[3] == LOOPBACK6[3]
}

/// Are they the same?
#[inline(always)]
pub const fn same(a: &Addr, b: &Addr) -> bool {
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
}

/// Key form of an [`IpAddr`].
pub fn from_ip(ip: IpAddr) -> Addr {
    let bytes = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let mut words = UNSPECIFIED;
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}

/// The address as people write it: v4-mapped comes back as IPv4.
pub fn to_ip(addr: &Addr) -> IpAddr {
    let mut bytes = [0; 16];
    for (bytes, word) in bytes.chunks_exact_mut(4).zip(addr) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(bytes).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v4_is_mapped_and_comes_back() {
        let ip = core::net::Ipv4Addr::new(10, 1, 2, 3);
        let be = u32::from_ne_bytes(ip.octets());
        assert_eq!(from_v4_be(be), from_ip(IpAddr::V4(ip)));
        assert_eq!(to_v4_be(&from_v4_be(be)), be);
        assert!(is_v4(&from_v4_be(be)));
        assert_eq!(to_ip(&from_v4_be(be)), IpAddr::V4(ip));
    }

    #[test]
    fn v6_round_trips() {
        let ip: Ipv6Addr = "fd00::1:2".parse().unwrap();
        let a = from_ip(IpAddr::V6(ip));
        assert_eq!(to_ip(&a), IpAddr::V6(ip));
        assert!(!is_v4(&a));
    }

    #[test]
    fn loopback_in_all_three_forms() {
        assert_eq!(from_ip("127.0.0.1".parse().unwrap()), LOOPBACK4);
        assert_eq!(from_ip("::1".parse().unwrap()), LOOPBACK6);
        for s in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(is_loopback(&from_ip(s.parse().unwrap())), "{s}");
        }
        for s in ["10.0.0.1", "::2", "fd00::1", "::127.0.0.1"] {
            assert!(!is_loopback(&from_ip(s.parse().unwrap())), "{s}");
        }
    }
}
