//! Addresses as they stand in map keys: 16 bytes in network order, IPv4 as v4-mapped IPv6.

/// An address in a key or value: network order, IPv4 as `::ffff:a.b.c.d`.
pub type Addr = [u8; 16];

/// `::`, which stands for "none".
pub const UNSPECIFIED: Addr = [0; 16];

/// v4-mapped form of an IPv4 address given in network order, as the kernel's `user_ip4` holds it.
#[inline(always)]
pub fn from_v4_be(ip_be: u32) -> Addr {
    let b = ip_be.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, b[0], b[1], b[2], b[3]]
}

/// The four words of `user_ip6`, each in network order.
#[inline(always)]
pub fn from_v6_be(words: [u32; 4]) -> Addr {
    let (a, b, c, d) =
        (words[0].to_ne_bytes(), words[1].to_ne_bytes(), words[2].to_ne_bytes(), words[3].to_ne_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}

/// Inverse of [`from_v4_be`] for a v4-mapped address; the last four bytes of any other.
#[inline(always)]
pub fn to_v4_be(addr: &Addr) -> u32 {
    u32::from_ne_bytes([addr[12], addr[13], addr[14], addr[15]])
}

/// Inverse of [`from_v6_be`].
#[inline(always)]
pub fn to_v6_be(a: &Addr) -> [u32; 4] {
    [
        u32::from_ne_bytes([a[0], a[1], a[2], a[3]]),
        u32::from_ne_bytes([a[4], a[5], a[6], a[7]]),
        u32::from_ne_bytes([a[8], a[9], a[10], a[11]]),
        u32::from_ne_bytes([a[12], a[13], a[14], a[15]]),
    ]
}

/// Is this an IPv4 address?
#[inline(always)]
pub fn is_v4(addr: &Addr) -> bool {
    let w = to_v6_be(addr);
    w[0] == 0 && w[1] == 0 && w[2] == u32::from_ne_bytes([0, 0, 0xff, 0xff])
}

/// 127/8, `::1`, and the v4-mapped form of 127/8.
#[inline(always)]
pub fn is_loopback(addr: &Addr) -> bool {
    if is_v4(addr) {
        return addr[12] == 127;
    }
    let w = to_v6_be(addr);
    w[0] == 0 && w[1] == 0 && w[2] == 0 && w[3] == u32::from_ne_bytes([0, 0, 0, 1])
}

/// Key form of an [`core::net::IpAddr`].
pub fn from_ip(ip: core::net::IpAddr) -> Addr {
    match ip {
        core::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        core::net::IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address as people write it: v4-mapped comes back as IPv4.
pub fn to_ip(addr: &Addr) -> core::net::IpAddr {
    core::net::Ipv6Addr::from(*addr).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    #[test]
    fn v4_is_mapped_and_comes_back() {
        let ip = Ipv4Addr::new(10, 1, 2, 3);
        let be = u32::from_ne_bytes(ip.octets());
        assert_eq!(from_v4_be(be), from_ip(IpAddr::V4(ip)));
        assert_eq!(to_v4_be(&from_v4_be(be)), be);
        assert!(is_v4(&from_v4_be(be)));
        assert_eq!(to_ip(&from_v4_be(be)), IpAddr::V4(ip));
    }

    #[test]
    fn v6_words_round_trip() {
        let ip: Ipv6Addr = "fd00::1:2".parse().unwrap();
        let a = from_ip(IpAddr::V6(ip));
        assert_eq!(from_v6_be(to_v6_be(&a)), a);
        assert!(!is_v4(&a));
    }

    #[test]
    fn loopback_in_all_three_forms() {
        for s in ["127.0.0.1", "127.9.9.9", "::1"] {
            assert!(is_loopback(&from_ip(s.parse().unwrap())), "{s}");
        }
        for s in ["10.0.0.1", "::2", "fd00::1"] {
            assert!(!is_loopback(&from_ip(s.parse().unwrap())), "{s}");
        }
    }
}
