//! Questions to resolvers: which are taken to the agent, and where it hears them.
//!
//! The agent hears on loopback inside the workload's namespace. TCP: at its outbound listeners, as every
//! captured connection. UDP: on [`PLACES`] ports in a row, the first of them the number of the TCP listener. A
//! connected socket speaks with the first place. One that names a resolver with each datagram speaks with a place
//! for each resolver, so that neither the agent nor the socket confuses two.

use crate::addr::{self, Addr};

/// Where resolvers hear.
pub const PORT: u16 = 53;
/// The same in network order.
pub const PORT_BE: u16 = PORT.to_be();

/// How many resolvers one socket that is not connected may ask through the agent at once: as many as a
/// resolv.conf names. Further ones it asks itself.
pub const PLACES: u16 = 3;

/// May an address be a resolver's that the agent can ask in the workload's place? Not those that need an
/// interface to be named (link-local), and not several hosts at once.
#[inline(always)]
pub const fn askable(addr: &Addr) -> bool {
    if addr::is_v4(addr) {
        let first = addr[3].to_ne_bytes()[0];
        return first != 0 && first & 0xf0 != 0xe0 && addr[3] != u32::MAX;
    }
    let [first, second, ..] = addr[0].to_ne_bytes();
    let link_local = first == 0xfe && second & 0xc0 == 0x80;
    first != 0xff && !link_local && !addr::same(addr, &addr::UNSPECIFIED)
}

/// The port of a place, by that of the first.
#[inline(always)]
pub const fn port_be(first_be: u16, place: u16) -> u16 {
    u16::from_be(first_be).wrapping_add(place).to_be()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_that_needs_no_interface_may_be_asked() {
        let askable = |text: &str| super::askable(&addr::from_ip(text.parse().unwrap()));
        for yes in [
            "10.0.0.10",
            "127.0.0.53",
            "169.254.20.10",
            "8.8.8.8",
            "240.240.0.1",
            "::1",
            "fd00::53",
            "2001:4860::8888",
        ] {
            assert!(askable(yes), "{yes}");
        }
        for no in ["0.0.0.0", "::", "224.0.0.251", "255.255.255.255", "ff02::fb", "fe80::1", "febf::1"] {
            assert!(!askable(no), "{no}");
        }
    }

    #[test]
    fn places_stand_in_a_row() {
        assert_eq!(u16::from_be(port_be(255u16.to_be(), 2)), 257);
    }
}
