//! Networks as policies name them: all addresses that have some first bits.
//!
//! Invariant: an IPv6 network never holds an IPv4 address, although both are held in one form.
//! Not here: how text becomes one (mesh-api's `Cidr`).

use std::net::IpAddr;

/// A set of addresses with one prefix; IPv4 as v4-mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    first: u128,
    /// Bits that count, of 128.
    length: u8,
}

/// `::ffff:0:0/96`: all of IPv4.
pub const IPV4: Network = Network { first: 0xffff << 32, length: 96 };

impl Network {
    /// The addresses that have the first `length` bits of `address`.
    pub fn new(address: IpAddr, length: u8) -> Self {
        let (first, length) = match address {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped().into(), length.saturating_add(96)),
            IpAddr::V6(v6) => (v6.into(), length),
        };
        Self { first, length: length.min(128) }
    }

    /// Its first address.
    pub fn first(&self) -> IpAddr {
        std::net::Ipv6Addr::from(self.first).to_canonical()
    }

    /// Bits that count, of 128.
    pub fn length(&self) -> u8 {
        self.length
    }

    fn is_v4(&self) -> bool {
        IPV4.has(self.first, self.length)
    }

    fn has(&self, first: u128, length: u8) -> bool {
        let beyond = u32::from(128 - self.length);
        length >= self.length && (self.first ^ first).checked_shr(beyond).unwrap_or(0) == 0
    }

    /// Is every address of `other` one of this network's?
    pub fn covers(&self, other: &Self) -> bool {
        self.is_v4() == other.is_v4() && self.has(other.first, other.length)
    }

    /// Do its bits take in all of IPv4, which is not its own?
    pub fn spans_v4(&self) -> bool {
        !self.is_v4() && self.has(IPV4.first, IPV4.length)
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self::new(address, 128)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_holds_no_ipv4_address() {
        let network = |text: &str| {
            let (address, length) = text.split_once('/').unwrap();
            Network::new(address.parse().unwrap(), length.parse().unwrap())
        };
        let all6 = network("::/0");
        assert!(all6.spans_v4() && !network("fd00::/8").spans_v4() && !IPV4.spans_v4());
        assert!(!all6.covers(&network("10.0.0.0/8")) && all6.covers(&network("fd00::/8")));
        assert!(network("0.0.0.0/0").covers(&network("10.0.0.0/8")));
        assert!(!network("10.0.0.0/8").covers(&network("0.0.0.0/0")));
        assert!(all6.covers(&all6));
    }
}
